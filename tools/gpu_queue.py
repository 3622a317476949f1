"""The queue behind tools/gpu_run.sh: cells in order of importance, each run only if no ledger has it.

A cell runs in a process of its own, which is stopped when the time is up; its checkpoints let the next call go on.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'results' / 'cifar10.jsonl'

# what a rehearsal changes: amounts, never kinds
TINY = {'data.per_class': 20, 'data.test_per_class': 5, 'squeeze.keep_epoch': 0, 'synthesize.iterations': 8,
        'evaluate.epochs': 2, 'evaluate.checks': 1}
HELD_OUT = {'data.validation': 5000}    # settings are chosen without the test set


def cells():
    "(recipe, number of seeds, train the full-data reference) in order of importance."
    from edc_nb.recipes.base import for_student
    from edc_nb.recipes.registry import recipe
    from edc_nb.paper.reproduce import rows

    def cell(name, ipc=10, changes=None, student='resnet18', seeds=3, full=False):
        return for_student(recipe(name, 'cifar10', ipc).replace(changes or {}), student), seeds, full

    yield cell('edc', full=True)
    yield cell('random-real', full=True)
    yield cell('random-real-hard', full=True)
    for epochs in (1, 2, 5, 10, 20):
        yield cell('edc', changes=HELD_OUT | {'squeeze.epochs': epochs}, seeds=1)
    yield cell('edc-released')
    for ipc in (1, 50):
        yield cell('edc', ipc)
        yield cell('random-real', ipc)
    for student in ('resnet50', 'resnet101', 'mobilenet_v2'):
        yield cell('edc', student=student)
    for name in ('rded', 'sre2l', 'gvbsm'):
        yield cell(name)
    for table in ('table11', 'table18', 'table19', 'table20', 'table21'):
        for row in rows(table):
            if row.recipe and 'pretrained' not in (row.recipe.squeeze.start, row.recipe.squeeze.label_start):     # those weights need a download
                yield row.recipe, 1, False


def reduced(r):
    "The same cell at the size of a rehearsal."
    small = dict(TINY)
    if r.data.validation: small['data.validation'] = 50
    if not r.synthesize.iterations: del small['synthesize.iterations']
    return r.replace(small | {'squeeze.epochs': min(2, r.squeeze.epochs)})


def missing(r, seeds, ledgers):
    "Seeds of a recipe that no ledger holds."
    from edc_nb import Ledger
    done = {rec['seed'] for path in ledgers for rec in Ledger(path).find(recipe_hash=r.hash, chain_seed=0)}
    return [s for s in range(seeds) if s not in done]


def run_cell(args):
    "In the child: condense and evaluate one cell."
    from edc_nb import condense, evaluate
    from edc_nb.core.settings import from_yaml, EdcError
    r, work = from_yaml(Path(args.cell).read_text()), Path(args.work)
    r = r.replace(name=args.name)
    # students of one condensed set share its folder, so that a further architecture costs only itself
    try:
        c = condense(r, args.data, work / 'runs' / f'{r.name}-{r.hash}', store=work / 'store', seed=0, labels=False, progress=sys.stderr.isatty())
        report = evaluate(c, seeds=json.loads(args.seeds), full_data=True if args.full else 'auto', ledger=work / 'ledger.jsonl')
    except EdcError as e:
        sys.exit(f'{r.name}: {e}')
    keep = Path(args.out) / f'condensed-{r.name}-ipc{r.ipc}.safetensors'
    shutil.copy(c.folder / 'condensed.safetensors', keep)
    print(report)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    for name in ('work', 'out', 'cell', 'name', 'data', 'seeds'): ap.add_argument(f'--{name}')
    ap.add_argument('--limit', type=float, default=520)
    ap.add_argument('--tiny', action='store_true')
    ap.add_argument('--full', action='store_true')
    args = ap.parse_args()
    if args.cell: return run_cell(args)

    start, work = time.time(), Path(args.work)
    ledgers = [work / 'ledger.jsonl'] + ([] if args.tiny else [RESULTS])
    shards = sorted((work / 'data').glob('*.parquet'))
    print('data:', ', '.join(p.name for p in shards) or 'none')
    if not any('test' in p.name for p in shards) or not any('train' in p.name for p in shards):
        sys.exit(f'{work}/data needs parquet shards of both splits; send them in data_a, data_b and data_c')
    done, stopped = 0, False
    for r, seeds, full in cells():
        if args.tiny: r = reduced(r)
        name = r.name
        todo = missing(r, seeds, ledgers)
        if not todo: continue
        left = args.limit - (time.time() - start) - 10
        if left < (5 if args.tiny else 60):
            stopped = True
            break
        spec = work / 'cells' / f'{r.hash}.yaml'
        spec.parent.mkdir(parents=True, exist_ok=True)
        spec.write_text(r.to_yaml())
        print(f'\n{name} ({r.hash}), IPC {r.ipc}, {r.evaluate.student}, seeds {todo}: {left:.0f} s left', flush=True)
        child = subprocess.Popen([sys.executable, __file__, '--cell', str(spec), '--name', name, '--work', str(work), '--out', args.out, '--data', str(work / 'data'), '--seeds', json.dumps(todo)] + ['--full'] * full)
        try:
            if child.wait(left): sys.exit(f'{name}: stopped with exit code {child.returncode}')
            done += 1
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)      # checkpoints are at most twenty seconds old
            child.wait()
            print('time is up; the same command goes on from here')
            stopped = True
            break
    if (work / 'ledger.jsonl').exists(): shutil.copy(work / 'ledger.jsonl', Path(args.out) / 'ledger.jsonl')
    from edc_nb.run.ledger import Ledger, summarize
    print(f'\n{done} cells finished in {time.time() - start:.0f} s; ' + ('more are waiting' if stopped else 'none is missing'))
    records = [rec for path in ledgers for rec in Ledger(path).records()]
    if records: print(summarize(records).to_string(index=False))
    room = sorted(Path(args.out).iterdir(), key=lambda p: p.stat().st_mtime)
    print('comes back:', ', '.join(f'{p.name} {p.stat().st_size / 2**20:.1f} MiB' for p in room))


if __name__ == '__main__':
    main()
