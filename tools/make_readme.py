"""Writes README.md from nbs/index.ipynb: `python tools/make_readme.py [OUTPUT]`."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def from_root(link):
    "A link of the index, which is relative to its folder, as seen from the README."
    return link[3:] if link.startswith('../') else f'nbs/{link}'


def readme():
    "The README's text and its figures (name -> bytes)."
    nb = nbformat.read(ROOT / 'nbs' / 'index.ipynb', as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}    # nbdev_clean drops it, and with it the fences' language
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
    for cell in nb.cells:
        if cell.cell_type == 'code':
            if '#| echo: false' in cell.source:    # only the output is shown
                cell.metadata['transient'] = dict(remove_source=True)
            cell.source = '\n'.join(line for line in cell.source.split('\n') if not line.startswith('#|'))
            for output in cell.outputs:
                output.get('data', {}).pop('text/html', None)    # tables as plain text: a README drops pandas' styles
    text, resources = MarkdownExporter().from_notebook_node(nb, {'output_files_dir': 'nbs/index_files'})
    text = re.sub(r'\]\((?!\w+:|#|nbs/)([^)\s]+)\)', lambda m: f']({from_root(m[1])})', text)
    return text.strip() + '\n', resources['outputs']


if __name__ == '__main__':
    text, figures = readme()
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / 'README.md'
    out.write_text(text, encoding='utf-8')
    for name, data in figures.items():
        (out.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (out.parent / name).write_bytes(data)
    print(f'{out}: {len(text)} characters, {len(figures)} figures')
