"""Shared fixtures."""
import os

os.environ['OMP_NUM_THREADS'] = '1'     # before torch is imported: results depend on the number of threads, and small tensors gain nothing from more

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def said(f, *parts):
    "Bad input gets one `EdcError`, a single sentence that holds all these words."
    from edc_nb.settings import EdcError
    with pytest.raises(EdcError) as e:
        f()
    text = str(e.value)
    assert all(p in text for p in parts) and '\n' not in text and not re.search(r'\. [A-Z](?!id you)', text), text


@pytest.fixture(scope='session')
def data_root():
    """A function from a data folder's name to its path: below $EDC_NB_DATA, else ../shared/data.

    Where there is none the test is skipped, or fails with EDC_NB_REQUIRE_DATA=1."""
    root = Path(os.environ.get('EDC_NB_DATA') or ROOT.parent / 'shared' / 'data')

    def find(name):
        path = root / name
        if not path.exists():
            say = pytest.fail if os.environ.get('EDC_NB_REQUIRE_DATA') == '1' else pytest.skip
            say(f'needs the data folder {path} (set EDC_NB_DATA to the folder that holds {name})')
        return path
    return find


def edc_environment(**more):
    "This process's environment for a child that runs one thread and finds this checkout first."
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])), **more}


@pytest.fixture
def edc(tmp_path):
    "A function that runs `edc ARGS...` in tmp_path: its CompletedProcess (returncode, stdout, stderr as text)."
    def run(*args, timeout=180, **env):
        return subprocess.run([sys.executable, '-m', 'edc_nb', *map(str, args)], cwd=tmp_path, env=edc_environment(**env),
                              capture_output=True, text=True, timeout=timeout)
    return run
