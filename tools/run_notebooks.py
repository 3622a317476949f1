"""Executes notebooks in place and stores what a reader should see: `python tools/run_notebooks.py [NOTEBOOK ...]`.

Widget views and widget state are dropped (they are random and dead without a kernel), then nbdev_clean tidies the rest,
so that two runs give the same bytes.
"""
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
WIDGET = 'application/vnd.jupyter.widget-view+json'


def execute(path, timeout=900):
    "Run one notebook in a fresh kernel, in its own folder; raises at the first failing cell."
    nb = nbformat.read(path, as_version=4)
    nb.metadata['kernelspec'] = dict(display_name='python3', language='python', name='python3')
    NotebookClient(nb, timeout=timeout, coalesce_streams=True, kernel_name='python3',
                   resources={'metadata': {'path': str(path.parent)}}).execute()
    for cell in nb.cells:
        if cell.cell_type == 'code':
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get('data', {}) and o.get('name') != 'stderr']
    nb.metadata.pop('widgets', None)
    return nb


def all_notebooks():
    "Every notebook of the project, in the order of their paths."
    found = sorted((ROOT / 'nbs').rglob('*.ipynb'))
    return [p for p in found if '.ipynb_checkpoints' not in p.parts and not p.name.startswith('_')]


if __name__ == '__main__':
    for path in [Path(a).resolve() for a in sys.argv[1:]] or all_notebooks():
        start = time.time()
        nbformat.write(execute(path), path)
        subprocess.run([Path(sys.executable).with_name('nbdev_clean'), '--fname', path], check=True, cwd=ROOT)
        print(f'{path.relative_to(ROOT)}: {time.time() - start:.1f} s, {path.stat().st_size / 1000:.0f} kB')
