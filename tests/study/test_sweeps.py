"""Sweeps: cells share stages, finished cells are kept, failed, stopped and killed ones leave the others alone."""
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from edc_nb.core.settings import parse_set
from edc_nb.recipes.base import random_real
from edc_nb.run.folder import condense
from edc_nb.run.ledger import Ledger
from edc_nb.run.report import evaluate
from edc_nb.study.sweeps import sweep
from kit import (
    count,
    edc_environment,
    essence,
    new_stages,
    one_sentence,
    plain,
    sets,
    small,
    small_changes,
    stages,
    without_warnings,
)


def test_cells_of_a_sweep_share_stages(tmp_path):
    space = {'matching.alpha': [0., 1.], 'evaluate.zeta': [1., 2., 3.]}
    done = sweep(small(), space, out=tmp_path, seeds=2, progress=False)
    assert len(done.cells) == 6 and not done.failed and done.varied == ['matching.alpha', 'evaluate.zeta']
    assert count(tmp_path / 'store') == dict(
        observer=2, statistics=2, initialize=1, synthesize=2, relabel=4, evaluate=12, ensemble=1)
    got = [(r['settings']['matching']['alpha'], r['settings']['evaluate']['zeta'], r['seed']) for r in done.records]
    assert got == list(itertools.product([0., 1.], [1., 2., 3.], [0, 1]))
    assert essence(Ledger(tmp_path / 'ledger.jsonl').records()) == essence(done.records)
    table = done.table()
    for i, (a, z) in enumerate(itertools.product([0., 1.], [1., 2., 3.])):
        last = [100 * r['last'] for r in done.records[2 * i:2 * i + 2]]
        assert (table['matching.alpha'][i], table['evaluate.zeta'][i], table['seeds'][i]) == (a, z, 2)
        assert table['last'][i] == pytest.approx(sum(last) / 2, abs=.006)
        assert table['last sd'][i] == pytest.approx(abs(last[0] - last[1]) / 2**.5, abs=.006)


def test_a_cell_is_what_condense_and_evaluate_give(tmp_path):
    done = sweep(small(), {'matching.alpha': [0., 1.], 'evaluate.zeta': [3.]}, out=tmp_path, progress=False)
    alone = condense(small(**{'matching.alpha': 1., 'evaluate.zeta': 3.}), out=tmp_path / 'alone', progress=False)
    assert essence(evaluate(alone).records) == essence(done.of(done.cells[1]))


def test_a_finished_sweep_is_not_run_again(tmp_path):
    args = dict(out=tmp_path, progress=False)
    first = sweep(small(), {'evaluate.zeta': [1., 2.]}, **args)
    was, ledger = stages(tmp_path / 'store'), (tmp_path / 'ledger.jsonl').read_bytes()
    again = sweep(small(), {'evaluate.zeta': [1., 2.]}, **args)
    assert new_stages(was, stages(tmp_path / 'store')) == set()
    assert (tmp_path / 'ledger.jsonl').read_bytes() == ledger
    assert essence(again.records) == essence(first.records)
    more = sweep(small(), {'evaluate.zeta': [2., 3.]}, seeds=2, **args)         # what is there counts
    assert new_stages(was, stages(tmp_path / 'store')) == {'relabel', 'evaluate'}
    assert count(tmp_path / 'store')['evaluate'] == 5
    assert essence(more.records)[0] == essence(first.records)[1]


def test_chain_seeds_and_students(tmp_path):
    students = ['convnet_d1', 'convnet_d2']
    done = sweep([small(), random_real(small())], {}, out=tmp_path, chain_seeds=2, students=students, progress=False)
    assert len(done.cells) == 4 and not done.failed
    once = Counter(itertools.product(('edc', 'random-real'), students, (0, 1)))
    assert Counter((r['recipe'], r['student'], r['chain_seed']) for r in done.records) == once
    assert count(tmp_path / 'store') == dict(
        observer=4, statistics=4, initialize=2, synthesize=4, relabel=4, evaluate=8, ensemble=2)
    for name in ('edc', 'random-real'):
        assert len({r['images_hash'] for r in done.records if r['recipe'] == name}) == 2      # each chain has its own
    assert list(done.table()['seeds']) == [2] * 4


def test_two_recipes_that_differ_in_name_only(tmp_path):
    rs = [small(), small().replace(name='mine')]
    done = sweep(rs, {'evaluate.zeta': [1., 2.]}, out=tmp_path, ledger=tmp_path / 'all.jsonl', progress=False)
    assert [len(done.of(c)) for c in done.cells] == [1] * 4
    assert [r['recipe'] for r in done.records] == ['edc'] * 2 + ['mine'] * 2
    made = count(tmp_path / 'store')
    assert made['synthesize'] == 1 and made['evaluate'] == 2      # computed once
    for f in ('ledger.jsonl', 'all.jsonl'):
        assert Counter(r['recipe'] for r in Ledger(tmp_path / f).records()) == dict(edc=2, mine=2), f


def test_ledger_copies_have_no_duplicates(tmp_path):
    every = tmp_path / 'all.jsonl'
    sweep(small(), {'evaluate.zeta': [1., 2.]}, out=tmp_path / 'a', progress=False)      # without the second ledger yet
    for values, out in (([1.], 'a'), ([1., 2.], 'a'), ([2., 1.], 'a'), ([2.], 'b')):
        sweep(small(), {'evaluate.zeta': values}, out=tmp_path / out, store=tmp_path / 'a' / 'store', ledger=every,
              progress=False)
    assert sorted(r['settings']['evaluate']['zeta'] for r in Ledger(every).records()) == [1., 2.]
    assert len(Ledger(tmp_path / 'a' / 'ledger.jsonl').records()) == 2


@pytest.mark.parametrize('space,bad', [({'evaluate.lr': [1e30, 1e-3]}, 0), ({'matching.weight': [.01, 1e38]}, 1)],
                         ids=['student', 'images'])
def test_a_failing_cell_leaves_the_others(space, bad, tmp_path):
    done = sweep(small(), space, out=tmp_path, progress=False)
    assert list(done.failed) == [bad] and any(word in done.failed[bad] for word in ('finite', 'nan', 'inf'))
    table = done.table()
    assert len(done.records) == 1 and table['seeds'][bad] == 0
    assert table['failed'][bad] and not table['failed'][1 - bad]
    assert essence(Ledger(tmp_path / 'ledger.jsonl').records()) == essence(done.records)


def command(out, vary, **more):
    "`edc sweep` of `small()`."
    changes = sets(plain(small_changes()) | more)
    return ['sweep', 'edc', '--dataset', 'digits', '--ipc', '2', '--out', str(out), '--quiet', *changes, '--vary', vary]


def test_a_failing_cell_is_reported_by_the_command_line(here, tmp_path):
    code, out, err = here(*command(tmp_path / 'out', 'evaluate.lr=[1.0e+30, 0.001]'))
    one_sentence(code, out, without_warnings(err), '1 of 2 cells failed', 'the others are kept', 'student convnet_d1')
    record, = Ledger(tmp_path / 'out' / 'ledger.jsonl').records()
    assert record['settings']['evaluate']['lr'] == .001


def test_lists_of_numbers_are_read_as_single_numbers_are():
    "YAML 1.1 takes 1e-3 for text; rates are often written so."
    texts = ['evaluate.lr=1e-3', 'synthesize.lr=[1e-3, 2E-2, 0.5]', 'synthesize.betas=[[5e-1, .9], [0.9, 9.9e-1]]']
    numbers = {'evaluate.lr': .001, 'synthesize.lr': [.001, .02, .5], 'synthesize.betas': [[.5, .9], [.9, .99]]}
    assert parse_set(texts) == numbers


KILLER = '''
import dataclasses, json, os, signal, sys
from edc_nb.core import files
from edc_nb.run import folder
from edc_nb.core.settings import from_yaml
from edc_nb.study.sweeps import sweep

make, save, seen = folder.make_runtime, files.Checkpoint.save, []
hasty = lambda *a, **kw: dataclasses.replace(make(*a, **kw), checkpoint_seconds=0.)
folder.make_runtime = hasty

def saving(self, state, force=False):
    save(self, state, force)
    if self.path and self.path.name.startswith('evaluate'): seen.append(self.path.name)
    if len(set(seen)) == 2 and seen.count(seen[-1]) == 2: os.kill(os.getpid(), signal.SIGKILL)
files.Checkpoint.save = saving

sweep(from_yaml(open(sys.argv[1]).read()), json.loads(sys.argv[2]), out=sys.argv[3], progress=False)
'''


def test_killed_in_the_second_cell_and_repeated_is_the_same_sweep(tmp_path):
    space = {'matching.alpha': [.25, .75], 'evaluate.zeta': [1.5]}
    (tmp_path / 'r.yaml').write_text(small().to_yaml())
    out, ledger = tmp_path / 'killed', Ledger(tmp_path / 'killed' / 'ledger.jsonl')
    program = [sys.executable, '-c', KILLER, str(tmp_path / 'r.yaml'), json.dumps(space), str(out)]
    killed = subprocess.run(program, env=edc_environment(), capture_output=True, text=True, timeout=180)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    was = stages(out / 'store')
    assert len(was['synthesize']) == 2 and len(was['evaluate']) == 1 and len(ledger.records()) == 1
    again = sweep(small(), space, out=out, progress=False)
    assert new_stages(was, stages(out / 'store')) == {'evaluate'}
    resumed = [json.loads(m.read_text())['resumed'] for m in (out / 'store' / 'evaluate').glob('*/manifest.json')]
    assert sorted(resumed) == [False, True]
    whole = sweep(small(), space, out=tmp_path / 'whole', progress=False)
    assert essence(again.records) == essence(whole.records) == essence(ledger.records())


@pytest.mark.skipif(os.name != 'posix', reason='SIGINT')
def test_ctrl_c_keeps_finished_cells(tmp_path):
    out = tmp_path / 'out'
    args = command(out, 'evaluate.epochs=[4, 100000]', **{'relabel.mode': 'online'})
    # a shell's background job ignores SIGINT and hands that down: the child must not inherit it
    child = subprocess.Popen([sys.executable, '-m', 'edc_nb', *args], env=edc_environment(), text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        limit = time.monotonic() + 120
        while not Ledger(out / 'ledger.jsonl').records():       # then it trains the second cell, for hours
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < limit, 'too slow'
            time.sleep(.05)
        child.send_signal(signal.SIGINT)
        stdout, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode in (130, -signal.SIGINT) and 'Traceback' not in stdout
    assert err.strip().endswith('edc: interrupted; run the same command again to resume')
    record, = Ledger(out / 'ledger.jsonl').records()
    was = stages(out / 'store')
    kept = sweep(small(**{'relabel.mode': 'online'}), {'evaluate.epochs': [4]}, out=out, progress=False)
    assert essence(kept.records) == essence([record])
    assert new_stages(was, stages(out / 'store')) == set() and not list(out.rglob('*.tmp'))


def test_a_cell_may_be_sound_where_its_recipe_is_not(tmp_path):
    "Hard labels need another loss than EDC's; the sweep gives it."
    done = sweep(small(**{'relabel.labels': 'hard'}), {'evaluate.loss': ['ce']}, out=tmp_path, progress=False)
    assert not done.failed and len(done.records) == 1
