"""Shared fixtures."""
import os
from pathlib import Path

import pytest


@pytest.fixture(scope='session')
def data_root():
    "A function from a data folder's name to its path: below $EDC_NB_DATA, else ../shared/data; skips the test where there is none."
    roots = [Path(os.environ['EDC_NB_DATA'])] if os.environ.get('EDC_NB_DATA') else [Path(__file__).resolve().parents[2] / 'shared' / 'data']

    def find(name):
        path = roots[0] / name
        if not path.exists():
            pytest.skip(f'needs the data folder {path} (set EDC_NB_DATA to the folder that holds {name})')
        return path
    return find
