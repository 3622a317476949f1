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


def source(path):
    "The cells of a notebook."
    return '\n'.join(''.join(cell['source']) for cell in json.loads(path.read_text(encoding='utf-8'))['cells'])


def notebooks(cell):
    "The names in the column `shown in`."
    names = cell.strip('`').split('`, `')
    assert '`' not in ''.join(names)
    return names


SHOWN = [(name, notebook) for name, _, cell in ROWS for notebook in notebooks(cell)]


@pytest.mark.parametrize('name, notebook', SHOWN)
def test_a_file_is_shown_in_its_notebook(name, notebook):
    text = source(ROOT / notebook)
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


def test_a_notebook_that_reads_the_records_of_a_table_is_listed():
    listed = {name.strip('`'): notebooks(cell) for name, _, cell in ROWS}
    missing = []
    for path in sorted((ROOT / 'nbs' / '6_paper').glob('*.ipynb')):
        for table, scale in re.findall(r"with_records\('([\w-]+)', '(\w+)'", source(path)):
            if f'nbs/6_paper/{path.name}' not in listed[f'records/{scale}/{table}.jsonl']:
                missing.append((path.name, table, scale))
    assert not missing


def test_no_notebook_names_a_file_of_results_that_does_not_exist():
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            for name in re.findall(r"results/'((?:records|measurements|images)/[\w./-]+\.\w+)'",
                                   ''.join(cell['source'])):
                assert (RESULTS / name).is_file(), (path.name, name)
