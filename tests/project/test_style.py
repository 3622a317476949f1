"""How the sources are written: ruff's rules (pyproject.toml), lengths, and the course's order."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import check_lines
import course
from kit import ROOT

NOTEBOOKS = course.reading_order()


def ruff(*args):
    "What ruff prints, and whether it found nothing."
    program = Path(sys.executable).with_name('ruff')
    command = [program if program.exists() else shutil.which('ruff'), 'check', '--output-format', 'concise', *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing():
    fine, found = ruff()
    assert fine, found


def test_the_exported_library_imports_only_what_it_uses():
    fine, found = ruff('--isolated', '--select', 'F401,F811,F821,F841', 'edc_nb')
    assert fine, found


def test_lines_cells_and_functions_are_short():
    files = check_lines.all_files([ROOT / d for d in ('nbs', 'tests', 'tools')])
    found = [f for path in files for f in check_lines.findings(path)]
    assert not found, '\n'.join(found)


@pytest.mark.parametrize('source, sentence', [
    ('x = 1' + ' ' * 116 + '# far', '126 columns'), ('x = 1\n' * 26, '26 lines'),
    ('def f(\n    a,\n    b,\n):\n' + '    a = b\n' * 41, 'f has')])
def test_what_is_too_long_is_found(source, sentence, tmp_path):
    path = tmp_path / 'long.ipynb'
    course.write_json(path, dict(cells=[dict(cell_type='code', source=source, id='a', metadata={}, outputs=[])]))
    assert any(sentence in f for f in check_lines.findings(path))


def test_a_signature_of_one_parameter_a_line_does_not_count(tmp_path):
    source = 'def f(\n' + ''.join(f'    a{i},\n' for i in range(30)) + '):\n' + '    pass\n' * 20
    path = tmp_path / 'signature.ipynb'
    course.write_json(path, dict(cells=[dict(cell_type='code', source=source, id='a', metadata={}, outputs=[])]))
    assert not list(check_lines.findings(path))


def test_every_notebook_is_in_the_course():
    assert {p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts} == {
        *NOTEBOOKS, ROOT / 'nbs' / 'index.ipynb'}
    for folder, names in course.ORDER.items():
        assert {p.stem for p in NOTEBOOKS if p.parent.name == folder} == set(names)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT / 'nbs')))
def test_a_notebook_leads_to_its_neighbors(path):
    "`python tools/course.py` writes the line."
    cells = course.with_neighbors(path, NOTEBOOKS)['cells']
    assert [c['id'] for c in cells].count(course.CELL_ID) == 1
    assert json.loads(path.read_text(encoding='utf-8'))['cells'] == cells


def test_the_list_of_notebooks_is_what_the_tool_writes():
    assert (ROOT / 'nbs' / 'README.md').read_text(encoding='utf-8') == course.contents(NOTEBOOKS)
