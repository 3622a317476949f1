"""Every notebook runs from top to bottom in a fresh kernel, and its stored outputs are of the kinds that running it gives.

Two processes execute notebooks, one thread each, as soon as the first of these tests starts; each test waits for its own.
They work in a copy of the project, without the last cells that export it: a test must not mend what the next one judges."""
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor

import nbformat
import pytest

from conftest import ROOT, edc_environment

sys.path.insert(0, str(ROOT / 'tools'))
from run_notebooks import all_notebooks, execute  # noqa: E402


def one_thread():
    os.environ.update(edc_environment())      # kernels inherit it


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A function from a notebook's path to that of its copy; everything beside the notebooks is linked."
    project = tmp_path_factory.mktemp('copy') / ROOT.name
    shutil.copytree(ROOT / 'nbs', project / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for p in ROOT.iterdir():
        if p.name not in ('nbs', '.git', 'runs'):
            (project / p.name).symlink_to(p)
    if (shared := ROOT.parent / 'shared').exists():      # where notebooks look for real data
        (project.parent / 'shared').symlink_to(shared)
    for path in (project / 'nbs').rglob('*.ipynb'):
        nb = nbformat.read(path, as_version=4)
        for cell in nb.cells:
            if 'nbdev_export()' in cell.source:
                cell.source = ''
        nbformat.write(nb, path)
    return lambda path: project / path.relative_to(ROOT)


@pytest.fixture(scope='module')
def executed(request, copy):
    "Path -> future of the executed notebook, for the notebooks whose tests were selected."
    wanted = [i.callspec.params['path'] for i in request.session.items if i.path == request.path]
    # fresh processes, because a forked torch may hang
    with ProcessPoolExecutor(2, multiprocessing.get_context('spawn'), one_thread) as pool:
        # the late notebooks run whole chains: begun first, so that no long one is left for the end
        yield {path: pool.submit(execute, copy(path)) for path in reversed(wanted)}
        pool.shutdown(wait=False, cancel_futures=True)


def kinds(cell):
    "Which kinds of output a code cell has, however often."
    return sorted({kind for o in cell.get('outputs', []) for kind in o.get('data', [o.output_type])})


@pytest.mark.parametrize('path', all_notebooks(), ids=lambda p: str(p.relative_to(ROOT / 'nbs')))
def test_notebook_runs(path, copy, executed):
    stored = nbformat.read(copy(path), as_version=4)
    ran = executed[path].result()      # raises nbclient's CellExecutionError: the cell's source and its traceback
    for n, (old, new) in enumerate(zip(stored.cells, ran.cells, strict=True)):
        assert kinds(old) == kinds(new), f'cell {n} stores other outputs than it gives, run tools/run_notebooks.py:\n{old.source}'
