"""What the studies share: parts are kept and read back, any registered start works, networks are left as they were."""
import warnings

import pytest
import torch

from conftest import said
from edc_nb.core.settings import content_hash
from edc_nb.diagnostics.guards import calibrate, check_finite_rows
from edc_nb.diagnostics.hessian_study import hessian_study
from edc_nb.diagnostics.initializations import initialization_study, start_key, start_recipe
from edc_nb.diagnostics.study import (
    condensed_sets,
    edc_at,
    initial_images,
    line_styles,
    open_study,
    own_code,
    trained_student,
)
from edc_nb.diagnostics.transport import transport_study
from edc_nb.models.helpers import batch_norms
from edc_nb.models.registry import build_model
from edc_nb.stages.initialize import INITIALIZATIONS, from_real, register_initialization

QUIET = dict(device='cpu', progress=False)


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    "One store for all studies of this file: the observers are trained once."
    return tmp_path_factory.mktemp('store')


@pytest.fixture
def study(tmp_path, store):
    return open_study('test', edc_at('tiny', 1), None, tmp_path, store=store, **QUIET)


def test_parts_are_measured_once_and_rows_keep_their_columns(study):
    measured = []

    def measure(cell):
        measured.append(cell)
        return [dict(value=cell / 3), dict(value=None)]
    for _ in range(2):
        for cell in study.each(range(3)):
            study.add(study.part(f'parts/{cell}.json', lambda: measure(cell)), cell=cell)
    assert measured == [0, 1, 2] and sorted(p.name for p in study.out.rglob('*.json')) == ['0.json', '1.json', '2.json']
    df = study.frame(option=1)
    assert list(df.columns) == ['cell', 'value'] and df.cell.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert df.value.dropna().tolist() == [0, 1 / 3, 2 / 3] * 2
    assert df.attrs['recipe_hash'] == study.recipe.hash and df.attrs['option'] == 1 and df.attrs['dataset'] == 'digits'


@pytest.mark.parametrize('method', ['noise', 'real', 'rded', 'herding', 'k-centre'])
def test_every_initialization_can_start_under_a_seed_of_its_own(study, method):
    recipe = study.recipe.replace({'initialize.method': method})
    a, b, again = (initial_images(study.chain, recipe, seed) for seed in (0, 1, 0))
    assert torch.equal(a.images, again.images) and len(a.images) == 10
    assert torch.equal(a.images, b.images) == (method in ('herding', 'k-centre'))      # these draw nothing
    assert own_code(recipe) == []


def test_studies_take_starts_that_need_an_observer(tmp_path, store):
    how = dict(store=store, **QUIET)
    starts = ('noise', 'herding')
    ini = initialization_study('tiny', out=tmp_path / 'a', starts=starts, iterations=3, ipc=1, seeds=1, **how)
    assert set(ini.start) == {'noise', 'herding'} and len(ini) == 6
    arms = {m: {'initialize.method': m} for m in ('noise', 'herding')}
    changes = {'synthesize.iterations': 2}
    df = hessian_study('tiny', out=tmp_path / 'b', arms=arms, changes=changes, at=(0, 2), probes=2, seeds=1, **how)
    first = df[(df.iteration == 0) & (df.observer == 'mean')].set_index('arm').norm
    assert first['herding'] != first['noise']      # other starts, other rows
    cost = transport_study('tiny', out=tmp_path / 'c', starts=('herding', 'rded 2x2'), observers=('convnet_d1',), ipc=1,
                           most=5, seeds=1, **how)
    assert set(cost.start) == {'herding', 'rded 2x2'}


def test_a_start_of_ones_own_is_kept_under_its_code(study):
    @register_initialization('dim')
    def dim(dataset, s, ipc, **how):
        start = from_real(dataset, s, ipc, **how)
        start.images = start.images / 2
        return start
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')      # code of a function in a test may not be comparable
            recipe = start_recipe('tiny', 'dim', 2, 1)
            assert len(own_code(recipe)) == 1
            real = start_key(start_recipe('tiny', 'real', 2, 1), study.chain, 0)
            assert start_key(recipe, study.chain, 0).startswith('dim-2-0-') and real.startswith('real-2-0-')
            images = initial_images(study.chain, recipe, 0).images
            assert torch.equal(images * 2, initial_images(study.chain, start_recipe('tiny', 'real', 2, 1), 0).images)
    finally:
        INITIALIZATIONS.remove('dim')


def test_keys_of_kept_parts_are_those_of_earlier_versions(study):
    "Results that were kept before must be found: for built-in methods nothing was added to the keys."
    keys, recipe = study.chain.keys, start_recipe('tiny', 'rded', 4, 1)
    assert own_code(recipe) == []
    from edc_nb.core.settings import overrides
    sections = [overrides(s) for s in (recipe.matching, recipe.synthesize, recipe.initialize)]
    observers = [keys.observer(o) for o in recipe.synthesize.observers]
    assert start_key(recipe, study.chain, 2) == 'rded-4-2-' + content_hash([keys.data, 1, *sections, observers])[:8]


def test_condensed_sets_share_protocol_and_store(study):
    sets = condensed_sets(study, 'tiny', ['random-real', 'herding'])
    assert list(sets) == ['random-real', 'herding'] and all(len(c.images) == 10 for c in sets.values())
    assert all(c.recipe.evaluate == study.recipe.evaluate for c in sets.values())
    said(lambda: condensed_sets(study, 'tiny', ['edcc']), "unknown recipe 'edcc'")
    short = {'evaluate.epochs': 2, 'evaluate.ema_rate': 0., 'relabel.labels': 'hard', 'evaluate.loss': 'ce'}
    (net, one), (same, two) = (trained_student(sets['herding'], short) for _ in range(2))
    assert not net.training and one.last == two.last
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), same.state_dict().values()))


def test_bad_input(tmp_path):
    said(lambda: edc_at('small'), "unknown scale 'small'")
    said(lambda: initialization_study('tiny', out=tmp_path, starts=('noise', 'nois'), **QUIET), "'nois'", 'noise, real')
    said(lambda: check_finite_rows('x', torch.tensor([[1.], [float('inf')]])), 'x: 1 of 2', 'number 1')
    said(lambda: check_finite_rows('x', torch.tensor(float('nan'))), 'x: 1 of 1')
    assert not list(tmp_path.iterdir())      # refused before anything is made


def test_calibration_leaves_the_random_state_alone():
    net, x, state = build_model('wrn16_2', 10, 8, seed=0), torch.randn(64, 3, 8, 8), torch.get_rng_state()
    calibrate(net, [x])
    assert torch.equal(torch.get_rng_state(), state) and not net.training
    first = batch_norms(net)[0]
    seen = []
    hook = first.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    net(x)
    hook.remove()
    torch.testing.assert_close(first.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_name_looks_the_same_in_every_picture():
    styles = line_styles(['a', 'b', 'a', 'c'])
    assert list(styles) == ['a', 'b', 'c'] and len({tuple(s.values()) for s in styles.values()}) == 3
    assert line_styles(n for n in 'ab')['b'] == styles['b']
