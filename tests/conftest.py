"""Shared fixtures."""
import os

# before torch is imported: results depend on the number of threads, and small tensors gain nothing from more
os.environ['OMP_NUM_THREADS'] = '1'

import multiprocessing
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

pytest.register_assert_rewrite('kit')
from kit import ROOT, edc_environment, said  # noqa: E402, F401


def pytest_collection_modifyitems(items):
    "Notebooks run beside all other tests; who waits for them comes last."
    items.sort(key=lambda i: i.path.name == 'test_notebooks.py')


def one_thread():
    os.environ.update(edc_environment())      # kernels inherit it


@pytest.fixture(scope='session', autouse=True)
def executed(request, tmp_path_factory):
    """Path -> future of the executed notebook, for the notebooks whose tests were selected.

    They run from the first test on, one after another in a process of their own, in a copy of the project without the
    last cells that export it: a test must not mend what the next one judges."""
    wanted = [i.callspec.params['path'] for i in request.session.items if i.path.name == 'test_notebooks.py']
    if not wanted:
        yield {}
        return
    import nbformat

    from run_notebooks import execute
    project = tmp_path_factory.mktemp('copy') / ROOT.name
    shutil.copytree(ROOT / 'nbs', project / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for p in ROOT.iterdir():
        if p.name not in ('nbs', '.git', 'runs'):
            (project / p.name).symlink_to(p)
    for path in (project / 'nbs').rglob('*.ipynb'):
        nb = nbformat.read(path, as_version=4)
        for cell in nb.cells:
            if 'nbdev_export()' in cell.source:
                cell.source = ''
        nbformat.write(nb, path)
    # a fresh process, because a forked torch may hang
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), one_thread)
    try:
        yield {path: pool.submit(execute, project / path.relative_to(ROOT)) for path in wanted}
    finally:      # an interrupted run does not wait for the notebook at hand; its kernel ends with its parent
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - before:
            child.kill()      # nbclient answers SIGTERM by a slow farewell to its kernel


@pytest.fixture(scope='session')
def data_root():
    """A function from a data folder's name to its path below $EDC_NB_DATA.

    Where there is none the test is skipped, or fails with EDC_NB_REQUIRE_DATA=1."""
    root = os.environ.get('EDC_NB_DATA')

    def find(name):
        if root and (path := Path(root) / name).exists():
            return path
        say = pytest.fail if os.environ.get('EDC_NB_REQUIRE_DATA') == '1' else pytest.skip
        say(f'needs real images: set EDC_NB_DATA to the folder that holds {name} (it is {root or "not set"})')
    return find


@pytest.fixture
def edc(tmp_path):
    "A function that runs `edc ARGS...` in tmp_path: its CompletedProcess (returncode, stdout, stderr as text)."
    def run(*args, timeout=180, **env):
        command = [sys.executable, '-m', 'edc_nb', *map(str, args)]
        how = dict(capture_output=True, text=True, timeout=timeout)
        return subprocess.run(command, cwd=tmp_path, env=edc_environment(**env), **how)
    return run


@pytest.fixture
def here(capfd):
    "`edc ARGS...` in this process (a fresh one takes seconds to import torch): exit code, stdout, stderr."
    from edc_nb.cli import main

    def run(*args):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err
    return run
