"""Notebook <-> text, for editing. `tools/nbtext.py out NB.ipynb [TXT]` writes text; `nbtext.py in TXT NB.ipynb` writes the notebook.
A cell starts with a line `#%% code ID` or `#%% md ID` (ID may be left out for new cells). Outputs follow the ID."""
import json, re, sys, hashlib
from pathlib import Path

def lines(text): return text.splitlines(keepends=True)

def to_text(nb):
    out = []
    for c in nb['cells']:
        kind = {'markdown': 'md', 'code': 'code', 'raw': 'raw'}[c['cell_type']]
        tags = ','.join(c['metadata'].get('tags', []))
        out.append(f"#%% {kind} {c.get('id', '')}" + (f" tags={tags}" if tags else '') + "\n" + ''.join(c['source']).rstrip('\n') + '\n')
    return '\n'.join(out)

def to_nb(text, old):
    was = {c.get('id'): c for c in old['cells']}
    cells, seen = [], set()
    parts = re.split(r'^#%% (md|code|raw)[ \t]*([0-9a-f-]*)(?: tags=(\S+))?[ \t]*$\n?', text, flags=re.M)
    for k, id, tags, src in zip(parts[1::4], parts[2::4], parts[3::4], parts[4::4]):
        src = src.strip('\n')
        if not id or id in seen:
            id = hashlib.sha256((src + str(len(cells))).encode()).hexdigest()[:8]
            while id in seen or id in was: id = hashlib.sha256(id.encode()).hexdigest()[:8]
        seen.add(id)
        c = dict(cell_type={'md': 'markdown', 'code': 'code', 'raw': 'raw'}[k], id=id, metadata={}, source=lines(src))
        if tags: c['metadata']['tags'] = tags.split(',')
        if k == 'code':
            c = dict(cell_type='code', execution_count=None, id=id, metadata=c['metadata'], outputs=was[id].get('outputs', []) if id in was else [], source=lines(src))
        cells.append(c)
    return dict(cells=cells, metadata=old['metadata'], nbformat=4, nbformat_minor=5)

NEW = dict(cells=[], metadata=dict(kernelspec=dict(display_name='python3', language='python', name='python3')))
if __name__ == '__main__':
    how, a, *b = sys.argv[1:]
    if how == 'out':
        t = to_text(json.loads(Path(a).read_text()))
        Path(b[0]).write_text(t) if b else print(t)
    else:
        nb = Path(b[0])
        old = json.loads(nb.read_text()) if nb.exists() else NEW
        nb.parent.mkdir(parents=True, exist_ok=True)
        nb.write_text(json.dumps(to_nb(Path(a).read_text(), old), indent=1, ensure_ascii=False) + '\n')
