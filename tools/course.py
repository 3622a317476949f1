"""The course's order, from one place: `python tools/course.py` writes each notebook's previous / index / next line and
nbs/README.md, the list of all notebooks.

Numbered notebooks are read by their numbers; the order of the others stands below."""
import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
CELL_ID = 'neighbors'
FOLDERS = {
    '1_start':   ('Start', 'the idea in plain torch, a first run, one choice changed'),
    '2_stages':  ('Stages', 'the method, stage by stage'),
    '3_recipes': ('Recipes', 'every method as a value'),
    '4_run':     ('Runs', "what depends on what, the store, records, processes, other projects' layouts"),
    '5_study':   ('Studies', 'questions asked of many runs, and what images and students are like'),
    '6_paper':   ('The paper', 'what is printed, and ours beside it'),
    'reference': ('Reference', 'what the other notebooks stand on'),
}
ORDER = {
    '6_paper': ['tables', 'reproduce', 'paired', 'edc_from_scratch', 'released', 'cifar10_small', 'methods', 'configs',
                'schedules', 'flatness', 'blend', 'observers', 'budget', 'images', 'figures',
                'all_figures', 'claims', 'theory', 'theory_initialisation', 'theory_matching',
                'theory_decoupling', 'theory_sam', 'theory_ema', 'theory_schedules', 'hessian',
                'gradients', 'landscape'],
    'reference': ['settings', 'registry', 'stats', 'runtime', 'files', 'plotting', 'docs', 'known', 'images', 'sources',
                  'readers', 'open', 'architectures', 'helpers', 'weights', 'init', 'main', 'cli'],
}


def reading_order():
    "Paths of all notebooks but the index, in the order of the course."
    def place(path):
        names = ORDER.get(path.parent.name, [])
        return names.index(path.stem) if path.stem in names else len(names), path.stem
    return [p for folder in FOLDERS for p in sorted((NBS / folder).glob('*.ipynb'), key=place)]


def title_and_summary(path):
    "A notebook's heading and the sentence quoted below it."
    source = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    title, quote = re.search(r'^# (.+)$', source, re.M), re.search(r'(?:^> .+\n?)+', source, re.M)
    return title[1], ' '.join(line[2:].strip() for line in quote[0].splitlines()) if quote else ''


def neighbors(path, order):
    "The line of links to the notebooks before and after, and to the index."
    at, links = order.index(path), []
    def link(words, target): return f'[{words}]({Path(os.path.relpath(target, path.parent)).as_posix()})'
    if at:
        links.append(link(f'← {title_and_summary(order[at - 1])[0]}', order[at - 1]))
    links.append(link('Index', NBS / 'index.ipynb'))
    if at + 1 < len(order):
        links.append(link(f'{title_and_summary(order[at + 1])[0]} →', order[at + 1]))
    return ' · '.join(links)


def with_neighbors(path, order):
    "The notebook's JSON with its line of links: the last cell that a reader sees."
    nb = json.loads(path.read_text(encoding='utf-8'))
    cells = [cell for cell in nb['cells'] if cell.get('id') != CELL_ID]
    exporting = next((i for i, cell in enumerate(cells) if 'nbdev_export()' in ''.join(cell['source'])), len(cells))
    cell = dict(cell_type='markdown', id=CELL_ID, metadata={}, source=[neighbors(path, order)])
    nb['cells'] = cells[:exporting] + [cell] + cells[exporting:]
    return nb


def contents(order):
    "The text of nbs/README.md."
    parts = ['# All notebooks',
             'In reading order. Each runs top to bottom on a CPU in about a minute or less, and needs no download. '
             'Notebooks that export a module are the source of the library: see '
             '[CONTRIBUTING.md](../CONTRIBUTING.md). The [index](index.ipynb) is the front page.']
    for folder, (heading, about) in FOLDERS.items():
        rows = [f'| [{title}]({p.relative_to(NBS).as_posix()}) | {summary} |' for p in order if p.parent.name == folder
                for title, summary in [title_and_summary(p)]]
        parts.append('\n'.join([f'## {heading}: {about}', '', '| notebook | what it is about |', '|---|---|', *rows]))
    return '\n\n'.join(parts) + '\n'


def write_json(path, nb):
    "A notebook as nbdev_clean leaves it."
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n', encoding='utf-8')


if __name__ == '__main__':
    order = reading_order()
    for path in order:
        write_json(path, with_neighbors(path, order))
    (NBS / 'README.md').write_text(contents(order), encoding='utf-8')
