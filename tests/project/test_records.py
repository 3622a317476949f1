"""Results outlive refactoring: every committed record still has the hash of its recipe, every recipe and stage its key."""
import json
from types import SimpleNamespace

import pytest
from edc_nb.core.files import Store
from edc_nb.core.runtime import Runtime
from edc_nb.core.settings import content_hash, from_dict
from edc_nb.paper.reproduce import rows
from edc_nb.recipes.registry import recipe
from edc_nb.run.chain import Chain
from edc_nb.run.ledger import Ledger

from conftest import ROOT

PINNED = json.loads((ROOT / 'tests' / 'project' / 'pinned_hashes.json').read_text())
LEDGERS = sorted((ROOT / 'results' / 'records').rglob('*.jsonl'))


@pytest.mark.parametrize('path', LEDGERS, ids=lambda p: str(p.relative_to(ROOT / 'results')))
def test_a_record_has_the_hash_of_its_settings(path):
    records = Ledger(path).records()
    assert records
    for r in records:
        assert from_dict(r['settings']).hash == r['recipe_hash']


@pytest.mark.parametrize('cell', PINNED['recipes'])
def test_a_recipe_has_the_hash_and_the_keys_it_had(cell, tmp_path):
    name, dataset, ipc = cell.split()
    r = recipe(name, dataset, int(ipc))
    data = SimpleNamespace(hash='d', mean=(0.,), std=(1.,), size=8)
    c = Chain(r, data, Store(tmp_path), Runtime(), 3)
    observers = list(dict.fromkeys((*r.synthesize.observers, *r.relabel.observers)))
    keys = [c.initial_key(), c.synthetic_key(), c.label_key(0), [[c.observer_key(n, at) for n in observers] for at in (False, True)], []]
    assert [r.hash, content_hash(keys)] == PINNED['recipes'][cell]


@pytest.mark.parametrize('cell', PINNED['tables'])
def test_a_printed_table_has_the_recipes_it_had(cell):
    assert content_hash([r.recipe.hash if r.recipe else r.why for r in rows(*cell.split())]) == PINNED['tables'][cell]
