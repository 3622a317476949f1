"""Every notebook runs from top to bottom in a fresh kernel, and its stored outputs are of the kinds that running it gives.

The course and the tutorials run by default, the notebooks in paper/ with `-m full`."""
import sys

import nbformat
import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / 'tools'))
from run_notebooks import all_notebooks  # noqa: E402


def kinds(cell):
    "Which kinds of output a code cell has, however often."
    return sorted({kind for o in cell.get('outputs', []) for kind in o.get('data', [o.output_type])})


@pytest.mark.parametrize('path', [pytest.param(p, marks=[pytest.mark.full] if p.parent.name == 'paper' else []) for p in all_notebooks()], ids=lambda p: str(p.relative_to(ROOT / 'nbs')))
def test_notebook_runs(path, executed):
    stored = nbformat.read(path, as_version=4)
    ran = executed[path].result()      # raises nbclient's CellExecutionError: the cell's source and its traceback
    for n, (old, new) in enumerate(zip(stored.cells, ran.cells, strict=True)):
        if 'nbdev_export()' not in old.source:
            assert kinds(old) == kinds(new), f'cell {n} stores other outputs than it gives, run tools/run_notebooks.py:\n{old.source}'
