"""A user's function is edited and registered again: a sweep and a run's ledger hold the new result, not the old one."""
import pytest
import torch.nn as nn
import torch.nn.functional as F

from edc_nb.models.registry import MODELS, register_model
from edc_nb.recipes.registry import recipe
from edc_nb.run.folder import condense
from edc_nb.run.ledger import Ledger
from edc_nb.run.report import evaluate
from edc_nb.stages.schedules import SCHEDULES, register_schedule
from edc_nb.stages.students import LOSSES, register_loss
from edc_nb.study.sweeps import sweep

SMALL = {'synthesize.observers': ['convnet_d1'], 'relabel.observers': ['convnet_d1'], 'squeeze.epochs': 4,
         'initialize.observer': 'convnet_d1', 'synthesize.iterations': 2,
         'evaluate.student': 'convnet_d1', 'evaluate.epochs': 40, 'evaluate.ema_rate': 0.}


def loss(sign):
    @register_loss('mine', replace=True)
    def mine(z, batch, settings): return sign * F.l1_loss(z, batch.soft)


def schedule(rate):
    @register_schedule('mine', replace=True)
    def mine(epoch, epochs, settings): return rate


def model(width):
    @register_model('mine', replace=True)
    def mine(num_classes, size):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, width), nn.ReLU(), nn.Linear(width, num_classes))


@pytest.mark.parametrize('setting, register, before, after, registry', [
    ('evaluate.loss', loss, 1., -1., LOSSES), ('evaluate.schedule', schedule, 1., .001, SCHEDULES),
    ('evaluate.student', model, 8, 9, MODELS)])
def test_edited_code_is_run_again(setting, register, before, after, registry, tmp_path):
    def both():
        small = recipe('edc', 'digits', ipc=1).replace(SMALL | {setting: 'mine'})
        swept, = sweep(small, out=tmp_path / 'sweep', full_data=False, progress=False).records
        condensed = condense(small, out=tmp_path / 'run', progress=False)
        return swept, evaluate(condensed).records[0]
    try:
        register(before)
        first = both()
        again = both()
        register(after)
        second = both()
    finally:
        registry.remove('mine')
    for a, b, c in zip(first, again, second):
        curves = [list(r['curve'].values()) for r in (a, b, c)]      # of accuracies, by epoch
        assert a['code'] == b['code'] != c['code'] and curves[0] == curves[1] != curves[2]
        assert a['recipe_hash'] == c['recipe_hash']
    assert len(Ledger(tmp_path / 'run' / 'ledger.jsonl').records()) == 2
    assert len(Ledger(tmp_path / 'sweep' / 'ledger.jsonl').records()) == 2


def test_a_record_of_built_in_code_names_none(tmp_path):
    condensed = condense(recipe('edc', 'digits', ipc=1).replace(SMALL), out=tmp_path, progress=False)
    assert 'code' not in evaluate(condensed).records[0]
