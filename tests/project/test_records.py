"""Results outlive refactoring: every committed record still has the hash of its recipe, every recipe and stage its
key."""
import json

import pytest

import edc_nb.stages.bilevel  # noqa: F401, registers DM and DC
from conftest import ROOT
from edc_nb.core.settings import content_hash, from_dict
from edc_nb.paper.reproduce import rows
from edc_nb.recipes.registry import recipe
from edc_nb.run.keys import StageKeys
from edc_nb.run.ledger import Ledger

PINNED = json.loads((ROOT / 'tests' / 'project' / 'pinned_hashes.json').read_text())
LEDGERS = sorted((ROOT / 'results' / 'records').rglob('*.jsonl'))


@pytest.mark.parametrize('path', LEDGERS, ids=lambda p: str(p.relative_to(ROOT / 'results')))
def test_a_record_has_the_hash_of_its_settings(path):
    records = Ledger(path).records()
    assert records
    for r in records:
        assert from_dict(r['settings']).hash == r['recipe_hash']


@pytest.mark.parametrize('cell', PINNED['recipes'])
def test_a_recipe_has_the_hash_and_the_keys_it_had(cell):
    name, dataset, ipc = cell.split()
    r = recipe(name, dataset, int(ipc))
    k = StageKeys(r, dict(hash='d', mean=[0.], std=[1.], size=8, precision='fp32'), 3)
    observers = list(dict.fromkeys((*r.synthesize.observers, *r.relabel.observers)))
    keys = [k.initial(), k.synthetic(), k.labels(0),
            [[k.observer(n, at) for n in observers] for at in (False, True)], []]
    assert [r.hash, content_hash(keys)] == PINNED['recipes'][cell]


@pytest.mark.parametrize('cell', PINNED['tables'])
def test_a_printed_table_has_the_recipes_it_had(cell):
    assert content_hash([r.recipe.hash if r.recipe else r.why for r in rows(*cell.split())]) == PINNED['tables'][cell]
