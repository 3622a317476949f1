"""Every file in results/ stands in its README, with a command of ours and the notebook that shows it."""
import json
import re

import pytest

from conftest import ROOT
from edc_nb.paper.tables import table_names

RESULTS = ROOT / 'results'
LINES = [line for line in (RESULTS / 'README.md').read_text(encoding='utf-8').splitlines() if line.startswith('| `')]
ROWS = [[cell.strip() for cell in line.strip('|').split('|')] for line in LINES]


def test_every_file_is_in_the_readme_once():
    files = sorted(str(p.relative_to(RESULTS)) for p in RESULTS.rglob('*') if p.is_file() and p.name != 'README.md')
    assert sorted(row[0].strip('`') for row in ROWS) == files


@pytest.mark.parametrize('name, command, notebook', ROWS, ids=[row[0].strip('`') for row in ROWS])
def test_a_file_is_shown_in_its_notebook(name, command, notebook):
    cells = json.loads((ROOT / notebook.strip('`')).read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(cell['source']) for cell in cells)
    stem = name.strip('`').rsplit('/', 1)[1].split('.')[0]
    shown = stem in text or f"figure_{stem.removeprefix('figure')}" in text
    if stem.startswith('cifar10_cpu_') and name.endswith("png`"):
        shown = 'cifar10_cpu_' in text
    assert shown, f'{notebook} does not name {stem}'


@pytest.mark.parametrize('row', ROWS, ids=[row[0].strip('`') for row in ROWS])
def test_a_command_writes_the_scale_and_table_of_its_file(row):
    name, command, _ = row
    found = re.match(r'`records/(\w+)/(.+)\.jsonl`', name)
    scale, table = found.groups() if found else ('', '')
    if table in table_names():
        assert f'edc reproduce {table} --scale {scale} ' in command
        assert ('--data PATH' in command) == (scale != 'tiny')


def test_no_notebook_names_a_file_of_results_that_does_not_exist():
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            for name in re.findall(r"results/'((?:records|measurements|images)/[\w./-]+\.\w+)'",
                                   ''.join(cell['source'])):
                assert (RESULTS / name).is_file(), (path.name, name)
