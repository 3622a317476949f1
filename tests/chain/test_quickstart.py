"""The first run: its rows, one process or several, resuming, and the times it prints."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from edc_nb.core.files import read_json
from edc_nb.core.settings import from_dict
from edc_nb.recipes.regimes import REGIMES, regime_of
from edc_nb.run.ledger import Ledger
from edc_nb.run.quickstart import quickstart, quickstart_recipes, regime_table

ONE = ['convnet_d1']
SHORT = {'squeeze.epochs': 1, 'squeeze.full_epochs': 1, 'synthesize.iterations': 2,
         'evaluate.epochs': 2, 'evaluate.ema_rate': .2, 'evaluate.checks': 1,
         'synthesize.observers': ONE, 'relabel.observers': ONE, 'initialize.observer': ONE[0]}


def run(out, **how):
    return quickstart(out, chains=2, changes=SHORT, device='cpu', progress=False, **how)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "The shortened first run in one process."
    return run(tmp_path_factory.mktemp('quickstart') / 'out')


def payloads(out):
    "Bytes of all that a store holds but for dates and seconds: tensors, images, cards."
    def content(path):
        if path.suffix == '.safetensors':      # whose header has no fixed order
            return {k: (t.dtype, t.shape, t.contiguous().view(torch.uint8).numpy().tobytes())
                    for k, t in load_file(path).items()}
        if path.suffix != '.json':
            return path.read_bytes()
        card = read_json(path)
        return {k: v for k, v in card.items() if k not in ('seconds', 'date')} if isinstance(card, dict) else card
    files = [p for p in (out / 'store').rglob('*')
             if p.is_file() and p.name != 'manifest.json' and p.suffix in ('.safetensors', '.json', '.png')]
    return {p.relative_to(out).as_posix(): content(p) for p in files}


def test_rows_are_real_and_condensed_images_in_three_label_regimes(alone):
    rows = {(r['recipe'], regime_of(from_dict(r['settings'])), r['chain_seed'], r['seed']) for r in alone.records}
    names = ('random-real', 'edc')
    assert rows == {(name, regime, chain, 0) for name in names for regime in REGIMES for chain in (0, 1)}
    assert len(alone.records) == len(rows) and {r['images'] for r in alone.records} == {10}
    assert list(alone.table().index) == [*REGIMES, 'hard'] and alone.table()['EDC'].notna().sum() == 3


def test_both_start_from_the_same_images_and_chains_from_others(alone):
    real, edc = (alone.sets[name].synthetic for name in ('random-real', 'edc'))
    assert torch.equal(real.source, edc.source) and not torch.equal(real.images, edc.images)
    assert len({r['images_hash'] for r in alone.records if r['recipe'] == 'random-real'}) == 2


def test_two_processes_leave_what_one_does_bit_by_bit(alone, tmp_path):
    two = run(tmp_path / 'out', workers=2)
    ours, theirs = payloads(two.out), payloads(alone.out)
    assert ours.keys() == theirs.keys() and [k for k in ours if ours[k] != theirs[k]] == []
    assert {'observer', 'statistics', 'synthesize', 'relabel', 'evaluate'} <= {k.split('/')[1] for k in ours}
    def numbers(quick): return [(r['images_hash'], r['last'], r['best'], r['raw_last']) for r in quick.records]
    assert numbers(two) == numbers(alone) and two.spent['processes'] == 2


def test_a_stopped_run_resumes_and_keeps_the_first_times(alone, tmp_path):
    out = tmp_path / 'out'
    shutil.copytree(alone.out, out)
    for path in (out / 'store' / 'evaluate').iterdir():
        shutil.rmtree(path)
    for path in out.glob('*/ledger.jsonl'):
        path.unlink()
    again = run(out, ledger=tmp_path / 'all.jsonl')
    assert [r['last'] for r in again.records] == [r['last'] for r in alone.records]
    assert len(Ledger(out / 'ledger.jsonl').records()) == len(Ledger(tmp_path / 'all.jsonl').records()) == 12
    assert read_json(out / 'quickstart.json') == read_json(alone.out / 'quickstart.json')


def test_what_it_prints_names_regimes_times_and_places(alone):
    text = str(alone)
    assert all(word in text for word in (*REGIMES, 'EDC - real', 'CPU seconds', 'chains: 2'))
    for line in text.splitlines()[-3:]:
        assert (alone.out.parent / line.split()[-1]).exists()
    assert max(map(len, text.splitlines())) <= 120
    how = read_json(alone.out / 'quickstart.json')['how']
    assert 0 < how['cpu'] and 0 < how['wall'] and how['processes'] == 1


def test_the_table_is_that_of_the_records_on_disk(alone):
    kept = [json.loads(line) for line in (alone.out / 'ledger.jsonl').read_text().splitlines()]
    assert regime_table(kept).equals(alone.table())


def test_the_moving_average_is_not_that_of_an_untrained_network():
    settings = quickstart_recipes()['edc'].evaluate
    assert settings.ema_rate ** settings.epochs < .05
