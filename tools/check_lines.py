"""Lengths in notebooks, tests and tools: `python tools/check_lines.py [PATH ...]` prints what is too long.

Lines have at most 120 columns, cells 25 lines (60 where a cell is one class), functions 40 lines; empty lines and
those of a signature, one parameter each, do not count. `ruff check` looks after names and imports: pyproject.toml."""
import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, CELL, CLASS, FUNCTION = 120, 25, 60, 40

# cells that stay long, by the name that they define, and why
LONG_CELLS = {'_places': 'a table: one public name a line'}


def units(path):
    "(place, source, kind) of each cell of a notebook, or of a whole file."
    if path.suffix == '.ipynb':
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        return [(f'{path}: cell {i}', ''.join(c['source']), c['cell_type']) for i, c in enumerate(cells)]
    return [(str(path), path.read_text(encoding='utf-8'), 'file')]


def parse(source):
    "The syntax tree; lines for IPython alone become `pass`."
    lines = ['pass' if line.lstrip().startswith(('%', '!')) else line for line in source.splitlines()]
    return ast.parse('\n'.join(lines))


def names(node):
    "What a top-level statement defines."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    return [t.id for t in getattr(node, 'targets', []) if isinstance(t, ast.Name)]


def long_cell(source, tree):
    "Whether a code cell is longer than its kind may be."
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    written = [line for line in source.splitlines() if line.strip()]
    count = len(written) - sum(f.body[0].lineno - f.lineno - 1 for f in functions)
    defined = {n for node in tree.body for n in names(node)}
    one_class = len(tree.body) == 1 and isinstance(tree.body[0], ast.ClassDef)
    return count > (CLASS if one_class else CELL) and not defined & set(LONG_CELLS)


def findings(path):
    "One sentence for each thing that is too long in a file."
    for place, source, kind in units(path):
        for number, line in enumerate(source.splitlines(), 1):
            # a link and a row of a Markdown table cannot be wrapped
            unbreakable = kind == 'markdown' and ('](' in line or line.lstrip().startswith('|'))
            if len(line) > COLUMNS and not unbreakable:
                yield f'{place}, line {number}: {len(line)} columns'
        if kind in ('markdown', 'raw'):
            continue
        tree = parse(source)
        if kind == 'code' and long_cell(source, tree):
            yield f'{place}: {sum(1 for line in source.splitlines() if line.strip())} lines'
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.body[0].lineno + 2
                if lines > FUNCTION and node.name not in LONG_CELLS:
                    yield f'{place}: {node.name} has {lines} lines'


def all_files(paths=('nbs', 'tests', 'tools')):
    "Notebooks and Python files below the paths."
    for path in map(Path, paths):
        found = [path] if path.is_file() else sorted([*path.rglob('*.ipynb'), *path.rglob('*.py')])
        yield from (p for p in found if '.ipynb_checkpoints' not in p.parts)


if __name__ == '__main__':
    found = [f for p in all_files(sys.argv[1:] or [ROOT / 'nbs', ROOT / 'tests', ROOT / 'tools']) for f in findings(p)]
    print(*found, f'{len(found)} findings', sep='\n')
    sys.exit(bool(found))
