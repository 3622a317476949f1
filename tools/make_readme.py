"""Writes README.md from nbs/index.ipynb: `python tools/make_readme.py [OUTPUT]`."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent


def readme():
    "The README's text and its figures (name -> bytes)."
    nb = nbformat.read(ROOT / 'nbs' / 'index.ipynb', as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}    # nbdev_clean drops it, and with it the fences' language
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
    for cell in nb.cells:
        if cell.cell_type == 'code':
            cell.source = '\n'.join(line for line in cell.source.split('\n') if not line.startswith('#|'))
            for output in cell.outputs:
                output.get('data', {}).pop('text/html', None)    # tables as plain text: pandas' styles mean nothing to a README
    text, resources = MarkdownExporter().from_notebook_node(nb, {'output_files_dir': 'nbs/index_files'})
    text = re.sub(r'\]\((?!\w+:|#|nbs/)([^)\s]+\.ipynb)', r'](nbs/\1', text)    # links of the index are relative to its folder
    return text.strip() + '\n', resources['outputs']


if __name__ == '__main__':
    text, figures = readme()
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / 'README.md'
    out.write_text(text, encoding='utf-8')
    for name, data in figures.items():
        (out.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (out.parent / name).write_bytes(data)
    print(f'{out}: {len(text)} characters, {len(figures)} figures')
