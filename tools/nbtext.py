"""A notebook as text, to edit, search and compare:

    python tools/nbtext.py out NOTEBOOK [TEXT]     writes text (to the screen where no file is named)
    python tools/nbtext.py in TEXT NOTEBOOK        writes the notebook

A cell starts with a line `#%% code ID` or `#%% md ID`; a new cell has no ID. Outputs stay with the ID."""
import hashlib
import json
import re
import sys
from pathlib import Path

KINDS = {'md': 'markdown', 'code': 'code', 'raw': 'raw'}
HEAD = r'^#%% (md|code|raw)[ \t]*([\w-]*)(?: tags=(\S+))?[ \t]*$\n?'
NEW = dict(cells=[], metadata=dict(kernelspec=dict(display_name='python3', language='python', name='python3')))


def to_text(nb):
    "The cells of a notebook's JSON, one after another."
    short, cells = {v: k for k, v in KINDS.items()}, []
    for cell in nb['cells']:
        tags = ','.join(cell['metadata'].get('tags', []))
        head = f"#%% {short[cell['cell_type']]} {cell.get('id', '')}" + (f' tags={tags}' if tags else '')
        cells.append(f"{head}\n{''.join(cell['source']).rstrip()}\n")
    return '\n'.join(cells)


def new_id(source, position, taken):
    "An ID for a cell that has none."
    found = hashlib.sha256((source + str(position)).encode()).hexdigest()[:8]
    while found in taken:
        found = hashlib.sha256(found.encode()).hexdigest()[:8]
    return found


def to_notebook(text, old):
    "The JSON of a notebook: cells from the text, outputs and metadata from the old one."
    was, cells, seen = {cell.get('id'): cell for cell in old['cells']}, [], set()
    parts = re.split(HEAD, text, flags=re.M)
    for kind, id, tags, source in zip(parts[1::4], parts[2::4], parts[3::4], parts[4::4]):
        source = source.strip('\n')
        if not id or id in seen:
            id = new_id(source, len(cells), seen | was.keys())
        seen.add(id)
        cell = dict(cell_type=KINDS[kind], id=id, metadata={'tags': tags.split(',')} if tags else {})
        if kind == 'code':
            cell |= dict(execution_count=None, outputs=was.get(id, {}).get('outputs', []))
        cells.append(cell | dict(source=source.splitlines(keepends=True)))
    return dict(cells=cells, metadata=old['metadata'], nbformat=4, nbformat_minor=5)


def main(how, source, target=None):
    "`out NOTEBOOK [TEXT]` or `in TEXT NOTEBOOK`."
    if how == 'out':
        text = to_text(json.loads(Path(source).read_text(encoding='utf-8')))
        return Path(target).write_text(text, encoding='utf-8') if target else print(text)
    path = Path(target)
    old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else NEW
    path.parent.mkdir(parents=True, exist_ok=True)
    nb = to_notebook(Path(source).read_text(encoding='utf-8'), old)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main(*sys.argv[1:])
