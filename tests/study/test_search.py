"""Search: held-out images alone, the Pareto front, trials that are kept, and what cannot be read."""
import shutil

import pytest

from edc_nb.core.settings import DataSettings, EdcError
from edc_nb.data.open import open_dataset
from edc_nb.run.ledger import Ledger
from edc_nb.study.search import search
from kit import new_stages, small, stages

VARIED = ('evaluate.lr', 'evaluate.epochs', 'synthesize.iterations')


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    pytest.importorskip('optuna')
    out = tmp_path_factory.mktemp('search')
    r, space = small(**{'data.validation': 60}), dict(zip(VARIED, ((1e-4, 1e-1, 'log'), (2, 9), [0, 4])))
    return search(r, space, out=out, trials=6, aims=('accuracy', 'seconds'), progress=False), out, r, space


def test_search_marks_the_pareto_front(searched):
    found, *_ = searched
    df = found.table()
    assert len(df) == 6 and set(df.columns) >= {*VARIED, 'accuracy', 'seconds', 'pareto'}
    percent = [100 * t.values[0] for t in found.study.trials]
    assert df.accuracy.tolist() == pytest.approx(percent, abs=.006)
    trials = [(t.values[0], t.values[1]) for t in found.study.trials]
    best = [not any(a >= x and s <= y and (a, s) != (x, y) for a, s in trials) for x, y in trials]
    assert list(df.pareto) == best and 0 < sum(best)
    assert df['evaluate.lr'].between(1e-4, .1).all() and df['evaluate.epochs'].between(2, 9).all()
    assert set(df['synthesize.iterations']) <= {0, 4}


def test_search_uses_held_out_images_only(searched):
    found, out, r, _ = searched
    records = Ledger(out / 'ledger.jsonl').records()
    assert {rec['test_images'] for rec in records} == {60}
    d, whole = open_dataset(r.data), open_dataset(DataSettings('digits'))
    def rows_of(s): return {im.numpy().tobytes() for im in s.images}
    assert rows_of(d.test) <= rows_of(whole.train) and not rows_of(d.test) & rows_of(whole.test)
    def varied(rec): return tuple(rec['settings'][section][name] for section, name in (k.split('.') for k in VARIED))
    by = {varied(rec): rec for rec in records}
    for t in found.study.trials:
        assert t.values[0] == by[tuple(t.params[k] for k in VARIED)]['last']


def test_search_goes_on_where_it_stopped(searched, tmp_path):
    found, out, r, space = searched
    shutil.copytree(out, tmp_path / 'out', copy_function=shutil.copy2)
    was = stages(tmp_path / 'out' / 'store')
    args = dict(out=tmp_path / 'out', aims=('accuracy', 'seconds'), progress=False)
    again = search(r, space, trials=6, **args)
    def tried(s): return [t.params for t in s.study.trials[:6]]
    assert new_stages(was, stages(tmp_path / 'out' / 'store')) == set() and tried(again) == tried(found)
    more = search(r, space, trials=8, **args)
    assert len(more.table()) == 8 and tried(more) == tried(found)


@pytest.mark.parametrize('space,kw,named', [
    ({'matching.alpha': []}, {}, 'matching.alpha'),
    ({'matching.alpha': .5}, {}, 'matching.alpha'),
    ({'matching.alpha': (1., 0.)}, {}, 'matching.alpha'),
    ({'matching.alpha': (.5,)}, {}, 'matching.alpha'),
    ({'matching.alpha': (0., 2.)}, {}, 'matching.alpha'),
    ({'matching.alfa': [0]}, {}, 'matching.alfa'),
    ({'matching.alpha': [0.]}, dict(sampler='grid'), 'sampler'),
    ({'matching.alpha': [0.]}, dict(aims=('speed',)), 'aim'),
    ({'matching.alpha': [0.]}, dict(trials=0), 'trials'),
    ({'matching.alpha': [0.]}, dict(seeds=0), 'seeds'),
])
def test_a_search_that_cannot_be_read_is_refused(space, kw, named, tmp_path):
    pytest.importorskip('optuna')
    with pytest.raises(EdcError, match=named):
        search(small(**{'data.validation': 60}), space, out=tmp_path / 'out', progress=False, **dict(trials=1) | kw)
    assert not (tmp_path / 'out').exists()


def test_a_search_passes_over_contradictions(tmp_path):
    "Settings that are sound one by one may contradict each other: such a trial is given up, the search goes on."
    pytest.importorskip('optuna')
    space = {'evaluate.flatness': ['off', 'ema'], 'evaluate.ema_rate': [0., .9]}
    found = search(small(**{'data.validation': 60}), space, out=tmp_path, trials=10, sampler='random', progress=False)
    pairs = [(t.params['evaluate.flatness'], t.params['evaluate.ema_rate']) for t in found.study.trials if t.values]
    assert len(found.study.trials) == 10 and ('ema', 0.) not in pairs and 0 < len(pairs) < 10
