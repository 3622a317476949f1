"""What several test files share: small recipes, what a store holds, the command line, a run that can be killed.

Tests import from here, never from one another."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def edc_environment(**more):
    "This process's environment for a child that runs one thread and finds this checkout first."
    paths = filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(paths), **more}


# ---- one sentence for bad input

def said(f, *parts):
    "Bad input gets one `EdcError`, a single sentence that holds all these words; returns it."
    from edc_nb.core.settings import EdcError
    with pytest.raises(EdcError) as e:
        f()
    text = str(e.value)
    assert all(p in text for p in parts) and '\n' not in text and not re.search(r'\. [A-Z](?!id you)', text), text
    return text


def one_sentence(code, out, err, *named):
    "What a mistake on the command line gets: code 2, one line, and in it what was given and what is accepted."
    assert 'Traceback' not in out + err
    assert code == 2 and err.startswith('edc: ') and err.count('\n') == 1 and err.endswith('\n'), err
    for word in named:
        assert word in err, f'{word!r} is not in: {err}'


def without_warnings(err):
    "What is left of the error output when the warnings, a line each, are taken out."
    return ''.join(line for line in err.splitlines(True) if not line.startswith('edc: warning: '))


def sets(changes):
    "The changes as command-line options."
    return [a for k, v in changes.items() for a in ('--set', f'{k}={json.dumps(v)}')]


# ---- small recipes on the digits

QUICK = {'data.per_class': 20, 'data.test_per_class': 10, 'squeeze.epochs': 1,
         'synthesize.observers': ['convnet_d1', 'convnet_d2'], 'relabel.observers': ['convnet_d1', 'convnet_d2'],
         'initialize.observer': 'convnet_d1', 'synthesize.iterations': 3,
         'evaluate.student': 'convnet_d1', 'evaluate.epochs': 4, 'evaluate.checks': 2}
# so few steps must show in images of 256 levels: a large rate, and a flatness term that matters
VISIBLE = {'synthesize.iterations': 8, 'synthesize.lr': .2, 'synthesize.flatness_weight': 5.,
           'synthesize.flatness_decay': .8, 'initialize.candidates': 8}


def quick(ipc=2, **changes):
    "A recipe that takes seconds."
    from edc_nb.recipes.registry import recipe
    return recipe('edc', 'digits', ipc=ipc).replace(QUICK | changes)


def small(**changes):
    "The same with a synthesis that is seen in the images."
    return quick(**VISIBLE | changes)


def small_changes():
    "The changes that make `small()` of the named recipe."
    from edc_nb.core.settings import flat
    from edc_nb.recipes.registry import recipe
    a, b = flat(recipe('edc', 'digits', 2)), flat(small())
    return {k: v for k, v in b.items() if v != a[k]}


# ---- what a store holds

AFTER = ['synthesize', 'relabel', 'evaluate']      # the stages that depend on the images


def stages(store):
    "{stage: {key: time of its manifest}} of all finished results."
    found = {}
    for m in sorted(store.glob('*/*/manifest.json')):
        if m.parts[-3] != 'partial':
            found.setdefault(m.parts[-3], {})[m.parts[-2]] = m.stat().st_mtime_ns
    return found


def count(store):
    "{stage: number of its finished results}."
    return {k: len(v) for k, v in stages(store).items()}


def new_stages(before, after):
    "Stages that have results they had not; what was there must be untouched."
    for stage, keys in before.items():
        assert keys.items() <= after[stage].items(), f'{stage} was written again'
    return {s for s in after if after[s].keys() - before.get(s, {}).keys()}


# ---- records

def plain(v):
    "As it comes back from a JSON file."
    return json.loads(json.dumps(v))


def essence(records):
    "Records without clocks and places."
    left_out = ('seconds', 'peak_mb', 'environment', 'schema')
    return [{k: v for k, v in plain(r).items() if k not in left_out} for r in records]


# ---- a run that can be killed

# Every stage has a checkpoint to resume from: two observers of three epochs, mosaics, three synthesis batches (the last
# one shorter) whose statistic averages outlive them, labels in blocks, a student whose schedule has a memory.
CHECKPOINTED = {'data.per_class': 20, 'data.test_per_class': 5, 'squeeze.epochs': 3,
                'synthesize.observers': ['convnet_d1', 'wrn16_2'], 'relabel.observers': ['convnet_d1', 'wrn16_2'],
                'initialize.method': 'rded', 'initialize.factor': 2, 'initialize.candidates': 10,
                'initialize.observer': 'wrn16_2', 'synthesize.iterations': 6, 'synthesize.batch_size': 8,
                'synthesize.snapshots': [2, 6], 'matching.stat_ema_reset': 'never',
                'relabel.teacher_batch': 40, 'evaluate.student': 'convnet_d1', 'evaluate.epochs': 10,
                'evaluate.schedule': 'alrs', 'evaluate.checks': 2}

# The chain as `edc run` runs it, saving at every chance, and killing itself where the command line says: STAGE:WHEN:N
SCRIPT = '''
import dataclasses, json, os, signal, sys
from pathlib import Path
import torch
from edc_nb.core import files
from edc_nb.run import folder, report
from edc_nb.recipes.registry import recipe

out, kill, changes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
while kill == 'serve':       # one job a line, each in a forked process: what is imported need not be imported again
    line = sys.stdin.readline()
    if not line: sys.exit()
    if child := os.fork(): print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else: kill = line.strip()
stage, when, n = (kill.split(':') + [''] * 3)[:3]
stops = 0

def die(at, path):
    global stops
    if at != when or not Path(path).name.lstrip('.').startswith(stage): return
    stops += 1
    if stops == int(n): os.kill(os.getpid(), signal.SIGSTOP if os.environ.get('ONLY_STOP') else signal.SIGKILL)

make, save, write, tsave = folder.make_runtime, files.Checkpoint.save, files.write_json, torch.save
folder.make_runtime = lambda *a, **kw: dataclasses.replace(make(*a, **kw), checkpoint_seconds=0.)

def saving(self, state, force=False):
    save(self, state, force)
    if self.path: die('saved', self.path)
files.Checkpoint.save = saving

def torn(value, path):                       # half of a checkpoint is on the disk
    tsave(value, path)
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[:len(whole) // 2])
    die('torn', path)
    Path(path).write_bytes(whole)
torch.save = torn

def writing(path, value):                    # the payload is written; then the manifest as well, but not yet renamed
    if Path(path).name != 'manifest.json': return write(path, value)
    die('payload', Path(path).parent)
    write(path, value)
    die('manifest', Path(path).parent)
files.write_json = writing

r = recipe('edc', 'digits', ipc=2).replace(changes)
c = folder.condense(r, out=out, store=os.environ.get('STORE'), progress=False)
report.evaluate(c)
'''


def start(folder, kill='', changes=CHECKPOINTED, **kw):
    "The script in a process of its own; the run's folder is FOLDER/run."
    env = edc_environment(**kw.pop('env', {}))
    program = [sys.executable, '-c', SCRIPT, str(folder / 'run'), kill, json.dumps(changes)]
    return subprocess.Popen(program, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)


def finish(process, timeout=240):
    "Waits for a process: its exit code, stdout and stderr."
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err
