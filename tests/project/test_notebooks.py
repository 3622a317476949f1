"""Every notebook runs from top to bottom in a fresh kernel, and its stored outputs are of the kinds that running it
gives.

The course runs by default; the notebooks of the diagnostics and those that show the paper with `-m full`."""
import re

import nbformat
import pytest

from conftest import ROOT
from run_notebooks import all_notebooks


def kinds(cell):
    "Which kinds of output a code cell has, however often."
    return sorted({kind for o in cell.get('outputs', []) for kind in o.get('data', [o.output_type])})


def takes_long(path):
    "Whether a notebook belongs to the full run: diagnostics, and all of the paper that exports no module."
    exported = re.search(r'^#\|\s*default_exp (\S+)',
                         '\n'.join(c.source for c in nbformat.read(path, as_version=4).cells), re.M)
    return exported[1].startswith('diagnostics.') if exported else path.parent.name == '6_paper'


CASES = [pytest.param(p, marks=[pytest.mark.full] if takes_long(p) else []) for p in all_notebooks()]


@pytest.mark.parametrize('path', CASES, ids=lambda p: str(p.relative_to(ROOT / 'nbs')))
def test_notebook_runs(path, executed):
    stored = nbformat.read(path, as_version=4)
    ran = executed[path].result()      # raises nbclient's CellExecutionError: the cell's source and its traceback
    for n, (old, new) in enumerate(zip(stored.cells, ran.cells, strict=True)):
        if 'nbdev_export()' not in old.source:
            assert kinds(old) == kinds(
                new), f'cell {n} stores other outputs than it gives, run tools/run_notebooks.py:\n{old.source}'
