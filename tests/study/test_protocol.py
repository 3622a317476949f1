"""The decomposition of a protocol: its steps, records that find their steps, and a run that died."""
import pytest

from edc_nb.recipes.base import random_real
from edc_nb.run import chain
from edc_nb.run.ledger import Ledger
from edc_nb.study.protocol import KINDS, decompose, decomposed_recipes, from_records, protocol_steps
from kit import count, quick, said


class Killed(Exception):
    pass


def test_a_decomposition_that_died_trains_what_is_missing_and_nothing_else(tmp_path, monkeypatch):
    "It dies in the middle of the third step."
    trained, train = [], chain.train_student

    def dying(*args, **kw):
        if len(trained) == 5:
            raise Killed
        trained.append(1)
        return train(*args, **kw)

    def counting(*args, **kw):
        trained.append(1)
        return train(*args, **kw)

    args = dict(out=tmp_path, seeds=1, device='cpu', ledger=tmp_path / 'all.jsonl', progress=False)
    monkeypatch.setattr(chain, 'train_student', dying)
    with pytest.raises(Killed):
        decompose(quick(), **args)
    assert len(Ledger(tmp_path / 'all.jsonl').records()) == 5
    monkeypatch.setattr(chain, 'train_student', counting)
    d = decompose(quick(), **args)
    cells = 2 * len(protocol_steps(quick(), images=20))
    assert d.complete and len(trained) == cells == count(tmp_path / 'store')['evaluate']
    # nothing is trained twice
    assert decompose(quick(), **args).table().equals(d.table()) and len(trained) == cells


@pytest.fixture(scope='module')
def decomposed(tmp_path_factory):
    out = tmp_path_factory.mktemp('protocol')
    return decompose(quick(), out=out, seeds=2, device='cpu', ledger=out / 'all.jsonl', progress=False), out


def test_numbers_for_people_are_in_percent(decomposed):
    d, _ = decomposed
    table = d.table()
    for step, _ in d.steps:
        for kind, name in zip(KINDS, ('edc', 'random-real')):
            last = [x['last'] for x in d.records if (x['step'], x['trained_on']) == (step, kind)]
            assert len(last) == 2 and table.loc[step, name] == pytest.approx(100 * sum(last) / 2, abs=.006)
    bare, full = d.steps[0][0], d.steps[-1][0]
    together = table.loc[full, 'edc'] - table.loc[bare, 'random-real']
    assert d.split().together.tolist() == pytest.approx([together] * 2, abs=.011)
    assert (d.split().protocol + d.split().images).tolist() == pytest.approx([together] * 2, abs=.021)
    line = d.plot().lines[0].get_ydata()
    assert list(line) == pytest.approx(table['edc'].tolist(), abs=.006)


def test_a_ledger_gives_the_same_table(decomposed):
    d, out = decomposed
    records = Ledger(out / 'all.jsonl').records()
    assert from_records(records[::-1], d.recipe).table().equals(d.table())
    assert [r.hash for r in decomposed_recipes(records)] == [d.recipe.hash]
    without_the_bare_step = records[4:]
    assert not from_records(without_the_bare_step, d.recipe).complete
    assert decomposed_recipes(without_the_bare_step) == []


def test_what_cannot_be_decomposed_is_refused(tmp_path):
    said(lambda: decompose(random_real(quick()), out=tmp_path / 'x'), "'random-real'", 'nothing to be compared with')
    said(lambda: decompose(quick(), out=tmp_path / 'x', seeds=0), 'seeds', '0')
    said(lambda: decompose(quick(), out=tmp_path / 'x', large=1), 'large', '1', '25')
    said(lambda: from_records([], quick()), 'records', '0')
    assert not (tmp_path / 'x').exists()
