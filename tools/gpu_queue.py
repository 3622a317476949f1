"""The queue behind tools/gpu_run.sh: cells in order of importance, each run only if no ledger has it.

A cell runs in a process of its own, which is stopped when the time is up; its checkpoints let the next call go on.
"""
import argparse
import json
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
    from edc_nb.paper.reproduce import rows
    from edc_nb.recipes.base import for_student
    from edc_nb.recipes.registry import recipe

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
            # pretrained weights would need a download
            if row.recipe and 'pretrained' not in (row.recipe.squeeze.start, row.recipe.squeeze.label_start):
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
    from edc_nb.core.settings import EdcError, from_yaml
    r, work = from_yaml(Path(args.cell).read_text()), Path(args.work)
    r = r.replace(name=args.name)
    # students of one condensed set share its folder, so that a further architecture costs only itself
    try:
        c = condense(r, args.data, work / 'runs' / f'{r.name}-{r.hash}', store=work / 'store', seed=0, labels=False,
                     progress=sys.stderr.isatty())
        report = evaluate(c, seeds=json.loads(args.seeds), full_data=True if args.full else 'auto',
                          ledger=work / 'ledger.jsonl')
    except EdcError as e:
        sys.exit(f'{r.name}: {e}')
    keep = Path(args.out) / f'condensed-{r.name}-ipc{r.ipc}.safetensors'
    shutil.copy(c.folder / 'condensed.safetensors', keep)
    print(report)


def arguments():
    "Of the queue, or of one cell in the child."
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ('work', 'out', 'cell', 'name', 'data', 'seeds'): parser.add_argument(f'--{name}')
    parser.add_argument('--limit', type=float, default=520)
    parser.add_argument('--tiny', action='store_true')
    parser.add_argument('--full', action='store_true')
    return parser.parse_args()


def check_data(folder):
    "Prints the shards; ends the program where a split is missing."
    shards = sorted(folder.glob('*.parquet'))
    print('data:', ', '.join(p.name for p in shards) or 'none')
    if not any('test' in p.name for p in shards) or not any('train' in p.name for p in shards):
        sys.exit(f'{folder} needs parquet shards of both splits; send them in data_a, data_b and data_c')


def finish_cell(args, work, r, todo, full, left):
    "Runs a cell in a child; whether it ended within the time left."
    spec = work / 'cells' / f'{r.hash}.yaml'
    spec.parent.mkdir(parents=True, exist_ok=True)
    spec.write_text(r.to_yaml())
    print(f'\n{r.name} ({r.hash}), IPC {r.ipc}, {r.evaluate.student}, seeds {todo}: {left:.0f} s left', flush=True)
    options = dict(cell=spec, name=r.name, work=work, out=args.out, data=work / 'data', seeds=json.dumps(todo))
    command = [sys.executable, __file__, *(str(a) for k, v in options.items() for a in (f'--{k}', v))]
    child = subprocess.Popen(command + ['--full'] * full)
    try:
        if child.wait(left): sys.exit(f'{r.name}: stopped with exit code {child.returncode}')
        return True
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)      # checkpoints are at most twenty seconds old
        child.wait()
        print('time is up; run the same command again to resume')
        return False


def run_queue(args, work, ledgers, start):
    "Runs missing cells until none is left or time is up: (cells finished, whether more are waiting)."
    done = 0
    for r, seeds, full in cells():
        if args.tiny: r = reduced(r)
        todo = missing(r, seeds, ledgers)
        if not todo: continue
        left = args.limit - (time.time() - start) - 10
        if left < (5 if args.tiny else 60) or not finish_cell(args, work, r, todo, full, left): return done, True
        done += 1
    return done, False


def main():
    args = arguments()
    if args.cell: return run_cell(args)
    start, work = time.time(), Path(args.work)
    ledgers = [work / 'ledger.jsonl'] + ([] if args.tiny else [RESULTS])
    check_data(work / 'data')
    done, stopped = run_queue(args, work, ledgers, start)
    if ledgers[0].exists(): shutil.copy(ledgers[0], Path(args.out) / 'ledger.jsonl')
    from edc_nb.run.ledger import Ledger, summarize
    waiting = 'more are waiting' if stopped else 'none is missing'
    print(f'\n{done} cells finished in {time.time() - start:.0f} s; {waiting}')
    records = [rec for path in ledgers for rec in Ledger(path).records()]
    if records: print(summarize(records).to_string(index=False))
    files = sorted(Path(args.out).iterdir(), key=lambda p: p.stat().st_mtime)
    print('comes back:', ', '.join(f'{p.name} {p.stat().st_size / 2**20:.1f} MiB' for p in files))


if __name__ == '__main__':
    main()
