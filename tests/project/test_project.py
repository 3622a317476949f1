"""Notebooks and modules agree, notebooks are fit to be read, everything public is documented."""
import ast
import importlib
import importlib.metadata
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
import typer
import yaml
from packaging.requirements import Requirement

import edc_nb
from check_lines import parse
from conftest import ROOT, edc_environment
from run_notebooks import WIDGET, all_notebooks

NOTEBOOKS = all_notebooks()
PAGES = [ROOT / name for name in ('README.md', 'ARCHITECTURE.md', 'CONTRIBUTING.md', 'nbs/README.md',
                                 'results/README.md')]
MODULES = sorted((ROOT / 'edc_nb').rglob('*.py'))
NAMES = ['.'.join(p.relative_to(ROOT / 'edc_nb').with_suffix('').parts) for p in MODULES if not p.stem.startswith('_')]


def by_name(path):
    return str(path.relative_to(ROOT))


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']


def tree(cell):
    "A cell's syntax tree."
    return parse(cell.source)


every_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=by_name)
every_module = pytest.mark.parametrize('path', MODULES, ids=by_name)


# --- the library is what the notebooks say

def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for kind, pattern in (('edc_nb', '*.py'), ('nbs', '*.ipynb'))
            for p in (root / kind).rglob(pattern) if '.ipynb_checkpoints' not in p.parts}


def differences(root, tmp):
    """Modules and notebooks below `root` that are not what nbdev makes of its notebooks; made anew in `tmp`, without
    the old modules."""
    shutil.copytree(root / 'nbs', tmp / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    for name in ('settings.ini', 'pyproject.toml'):
        shutil.copy(root / name, tmp)
    (tmp / 'edc_nb').mkdir()
    for command in ('nbdev_export', 'nbdev_clean'):
        done = subprocess.run([Path(sys.executable).with_name(command)], cwd=tmp, capture_output=True, text=True,
                              timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    here, made = files(root), files(tmp)
    return sorted(k for k in here.keys() | made.keys() if here.get(k) != made.get(k))


def test_modules_and_notebooks_are_what_nbdev_makes_of_the_notebooks(tmp_path):
    changed = differences(ROOT, tmp_path)
    assert not changed, f'run nbdev_export and nbdev_clean: {", ".join(changed)}'


def spoil_stale(root):
    (root / 'edc_nb' / 'stale.py').write_text('x = 1\n')
    return ['edc_nb/stale.py']


def spoil_module(root):
    path = root / 'edc_nb' / 'core' / 'settings.py'
    path.write_text(path.read_text() + '\n')
    return ['edc_nb/core/settings.py']


def spoil_notebook(root):
    path = root / 'nbs' / 'reference' / 'settings.ipynb'
    nb = json.loads(path.read_text())
    next(c for c in nb['cells'] if c['cell_type'] == 'code')['execution_count'] = 7
    path.write_text(json.dumps(nb))
    return ['nbs/reference/settings.ipynb']


@pytest.mark.parametrize('spoil', [spoil_stale, spoil_module, spoil_notebook])
def test_the_comparison_sees(spoil, tmp_path):
    project = tmp_path / 'project'
    for name in ('nbs', 'edc_nb'):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('settings.ini', 'pyproject.toml'):
        shutil.copy(ROOT / name, project)
    already = differences(ROOT, tmp_path)
    spoilt = spoil(project)
    (again := tmp_path / 'again').mkdir()
    assert set(differences(project, again)) == set(already) | set(spoilt)


# --- notebooks

@every_notebook
def test_notebook_is_small_and_without_dead_parts(path):
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert nb.metadata.kernelspec.name == 'python3', 'CI has no other kernel'
    assert 'widgets' not in nb.metadata, 'widget state is random and dead without a kernel'
    assert path.stat().st_size <= 500_000
    for n, cell in enumerate(nb.cells):
        for out in cell.get('outputs', []):
            assert out.output_type != 'error', f'cell {n}: {out.get("evalue")}'
            assert len(json.dumps(out)) <= 300_000, f'cell {n} has an output of {len(json.dumps(out))} bytes'
            assert WIDGET not in out.get('data', {}), f'cell {n} stores a widget view'


def draws(node):
    "Whether a cell's syntax tree draws when it is run: a call into pyplot outside function bodies."
    if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
        return False
    if isinstance(node, ast.Call) and re.fullmatch(r'plt\.(subplots|figure|imshow|plot|show)', ast.unparse(node.func)):
        return True
    return any(draws(child) for child in ast.iter_child_nodes(node))


@every_notebook
def test_figures_are_stored(path):
    for n, cell in enumerate(code_cells(path)):
        if draws(tree(cell)):
            assert any('image/png' in o.get('data', {})
                       for o in cell.outputs), f'code cell {n} draws, but no figure is stored:\n{cell.source}'


def imported(node):
    "Names of our modules that a syntax tree imports, also through the package's lazy names."
    for x in ast.walk(node):
        if isinstance(x, ast.Import):
            yield from (a.name.split('.', 1)[1] for a in x.names if a.name.startswith('edc_nb.'))
        elif isinstance(x, ast.ImportFrom) and (x.level or x.module.split('.')[0] == 'edc_nb'):
            rest = (x.module or '').split('.')[0 if x.level else 1:]
            if rest and rest[0]:
                yield '.'.join(rest)
            else:
                yield from (edc_nb._places.get(a.name, a.name) for a in x.names)


WINGS = ('core', 'data', 'models', 'recipes', 'stages', 'run', 'exchange', 'study', 'diagnostics', 'paper', 'cli')


def test_wings_import_in_one_direction_and_nothing_private():
    places = {w: k for k, w in enumerate(WINGS)}
    wrong = []
    for path in NOTEBOOKS:
        exported = [c for c in code_cells(path) if re.match(r'#\|\s*(default_exp|export)', c.source)]
        here = next((m[1] for c in exported if (m := re.match(r'#\|\s*default_exp (\w+)', c.source))), None)
        for x in (n for c in exported for n in ast.walk(tree(c)) if isinstance(n, ast.ImportFrom)
                  and (n.module or '').startswith('edc_nb.')):
            wing = x.module.split('.')[1]
            private = [a.name for a in x.names if a.name.startswith('_') and not a.name.startswith('__')]
            if private or here in places and wing in places and places[wing] > places[here]:
                wrong.append(f'{by_name(path)} imports {x.module} {private}')
    assert not wrong


# words of the workplace in which the project was written mean nothing to its readers; ordinary uses are let through
PRIVATE = re.compile(r"""(?<![\w.~])/work(?![\w-]) | (?<![\w.~])/tmp/w(?![\w-]) | \bsandbox
    | (?<!models\.)(?<!models/)(?<!reference/)\bhelpers?\b(?!\.ipynb)(?![ -](?:function|method|class|module|cell))
    | (?<!python\ )(?<!jupyter\ )(?<!notebook\ )(?<!kernel\ )\bsessions?\b""", re.X | re.I)


@pytest.mark.parametrize('text, private', [
    ('saved in /work/main/x', True), ('/tmp/w/a.png', True), ('in an earlier session', True),
                                           ('in a sandbox', True), ('a helper wrote this', True),
    ('no worker processes, 2 workers/worked', False), ('/home/me/work/edc', False), ('/tmp/wheels', False),
                                           ('a helper function', False), ('a Jupyter session', False),
    ('/tmp/tmpab12/work', False)])
def test_private_words_are_told_from_ordinary_ones(text, private):
    assert bool(PRIVATE.search(text)) == private


def words(path):
    "What a reader sees: the sources and the textual outputs."
    if path.suffix != '.ipynb':
        return path.read_text(encoding='utf-8')
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        parts.append(cell.source)
        for out in cell.get('outputs', []):
            parts += [out.get('text', ''),
                      *(str(v) for k, v in out.get('data', {}).items() if not k.startswith('image/'))]
    return '\n'.join(parts)


@pytest.mark.parametrize('path', [*NOTEBOOKS, *PAGES], ids=by_name)
def test_nothing_speaks_of_the_workplace(path):
    text = words(path)
    assert [text[max(0, m.start() - 40):m.end() + 40] for m in PRIVATE.finditer(text)] == []


@pytest.mark.parametrize('path', [*NOTEBOOKS, *PAGES], ids=by_name)
def test_every_link_leads_somewhere(path):
    text = words(path) if path.suffix == '.md' else '\n'.join(c.source
        for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'markdown')
    links = [m[1].split('#')[0] for m in re.finditer(r'\]\((?!\w+:)([^)\s]+)\)', text)]
    assert [link for link in links if link and re.search(r'\.\w+$', link) and not (path.parent / link).exists()] == []


# --- metadata and README

def test_one_version_everywhere():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    assert config['DEFAULT']['version'] == edc_nb.__version__ == importlib.metadata.version('edc_nb')


def test_readme_is_the_index_notebook():
    if not (ROOT / 'nbs' / 'index.ipynb').exists():
        pytest.skip('there is no nbs/index.ipynb yet')
    from make_readme import readme
    text, figures = readme()
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == text, 'run tools/make_readme.py'
    for name, data in figures.items():
        assert (ROOT / name).read_bytes() == data, name
    kept = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'nbs' / 'index_files').glob('*')}
    assert kept == set(figures), 'a figure that the README no longer shows'


def test_front_page_counts_the_claims_as_their_notebook_does(monkeypatch):
    cell, = [c for c in code_cells(ROOT / 'nbs' / 'index.ipynb') if 'claims.ipynb' in c.source]
    *body, last = tree(cell).body
    names = dict(json=json, re=re, Path=Path, Markdown=str)
    monkeypatch.chdir(ROOT / 'nbs')
    exec(compile(ast.Module(body, []), 'index.ipynb', 'exec'), names)
    sentence = eval(compile(ast.Expression(last.value), 'index.ipynb', 'eval'), names)
    printed = re.findall(r'^(\d+) claims: (.+)$', words(ROOT / 'nbs' / '6_paper' / 'claims.ipynb'), re.M)
    assert [f'Of {count} theorems and claims, {verdicts}.' in sentence for count, verdicts in printed] == [True]
    stale = 'run tools/run_notebooks.py nbs/index.ipynb, then tools/make_readme.py'
    assert [o['data']['text/markdown'] for o in cell.outputs] == [sentence], stale
    assert sentence.replace('](6_paper/', '](nbs/6_paper/') in (ROOT / 'README.md').read_text(encoding='utf-8'), stale


def test_the_citation_is_that_of_this_version():
    cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))
    assert cited['cff-version'] == '1.2.0' and cited['version'] == edc_nb.__version__
    paper, = cited['references']
    assert [a['family-names'] for a in paper['authors']] == ['Shao', 'Zhou', 'Chen', 'Shen']


# --- the library

@every_module
def test_module_is_python_3_10(path):
    ast.parse(path.read_text(encoding='utf-8'), feature_version=(3, 10))


def requirements(name, seen, extra=''):
    "A distribution and all that it requires where it is installed, by normalised name."
    name = re.sub(r'[-_.]+', '-', name).lower()
    if (name, extra) not in seen:
        seen.add((name, extra))
        for r in map(Requirement, importlib.metadata.requires(name) or []):
            if not r.marker or r.marker.evaluate({'extra': extra}):
                for e in ('', *r.extras):
                    requirements(r.name, seen, e)
    return {n for n, _ in seen}


def undeclared():
    "Packages that are installed here, but that `pip install .` would not have brought."
    own = requirements('edc_nb', set())
    by_package = importlib.metadata.packages_distributions().items()
    return {package for package, dists in by_package if not {re.sub(r'[-_.]+', '-', d).lower() for d in dists} & own}


# every finder is made blind to these, so that both `import` and `find_spec` behave as if they were not installed
BLIND = '''
import importlib.util, sys
names = {names!r}
class Blind:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in names else self.finder.find_spec(name, path, target)
    def __getattr__(self, name): return getattr(self.finder, name)
assert importlib.util.find_spec('fastcore')
sys.meta_path[:] = map(Blind, sys.meta_path)
assert not importlib.util.find_spec('fastcore')
'''


@pytest.fixture(scope='module')
def bare():
    "Code that hides every package which is not among the requirements."
    names = undeclared()
    assert names >= {'fastcore', 'nbdev', 'execnb', 'IPython', 'ipykernel', 'ipywidgets', 'jupyterlab', 'timm',
                     'sklearn', 'pytest'}
    assert not names & {'torch', 'torchvision', 'numpy', 'pandas', 'yaml', 'typer', 'tqdm', 'edc_nb'}
    return BLIND.format(names=names)


def python(code, cwd):
    done = subprocess.run([sys.executable, '-c', code], cwd=cwd, env=edc_environment(), capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_library_imports_with_its_requirements_alone(bare, tmp_path):
    code = bare + f'''
import importlib, edc_nb
assert 'torch' not in sys.modules, 'import edc_nb is meant to be quick'
for name in {NAMES!r}: importlib.import_module('edc_nb.' + name)
for name in edc_nb.__all__: getattr(edc_nb, name)
print(len(edc_nb.__all__))'''
    assert int(python(code, tmp_path)) > 10


@pytest.mark.parametrize('args, expected', [(['--help'], 'quickstart'),
                                            (['recipes', 'edc'], 'synthesize.observers'),
                                            (['doctor'], 'torchvision')],
                         ids=lambda a: ' '.join(a) if isinstance(a, list) else '')
def test_command_line_runs_with_its_requirements_alone(args, expected, bare, tmp_path):
    main = f"import runpy; sys.argv = ['edc', *{args!r}]; runpy.run_module('edc_nb', run_name='__main__')"
    assert expected in python(bare + main, tmp_path)


def test_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match='no_such_thing'):
        edc_nb.no_such_thing
    assert set(edc_nb.__all__) <= set(dir(edc_nb))


# --- documentation of everything public

def commented(source):
    "Numbers of the lines that end with a comment."
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline)
            if t.type == tokenize.COMMENT and len(t.string.strip('# ')) > 2}


def undocumented_parameters(source, public):
    "`function(parameter)` for parameters of public functions that do not have a line with a comment of their own."
    comments, found = commented(source), []
    for f in ast.parse(source).body:
        if not isinstance(f, ast.FunctionDef) or f.name not in public or any('command' in ast.unparse(d)
            for d in f.decorator_list):
            continue
        a = f.args
        args = [x for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if x]
        defaults = dict(zip((a.posonlyargs + a.args)[::-1], a.defaults[::-1])) | {k: d for k,
            d in zip(a.kwonlyargs, a.kw_defaults) if d}
        lines = {x: (defaults[x] if x in defaults else x).end_lineno for x in args}
        found += [f'{f.name}({x.arg})' for x in args if lines[x] not in comments
                  or list(lines.values()).count(lines[x]) > 1]
    return found


def test_parameters_without_a_comment_are_found():
    source = '''
def good(
    a:int,       # the first
    *rest,       # more
    b=(1,
       2),       # the second
    **kw,        # options
): pass
def bad(a, b=1): # both of them
    pass
def half(
    a,           # the first
    b=2,
    *, c=3, d=4, # two of them
): pass
def _private(a): pass
'''
    assert undocumented_parameters(source, {'good', 'bad', 'half'}) == ['bad(a)', 'bad(b)', 'half(b)', 'half(c)',
        'half(d)']


@pytest.mark.parametrize('name', NAMES)
def test_public_parameters_are_explained(name):
    module = importlib.import_module(f'edc_nb.{name}')
    missing = undocumented_parameters(inspect.getsource(module), set(module.__all__))
    assert not missing, f'no comment on the line of {", ".join(missing)}'


@pytest.mark.parametrize('name', NAMES)
def test_everything_public_has_a_docstring(name):
    module, missing = importlib.import_module(f'edc_nb.{name}'), []
    for public in module.__all__:
        thing = getattr(module, public)
        # commands: next test
        if not (inspect.isfunction(thing) or inspect.isclass(thing)) or (name == 'cli' and public != 'main'):
            continue
        # a dataclass without a docstring gets its signature for one
        if not inspect.getdoc(thing) or (inspect.isclass(thing) and (thing.__doc__ or '').startswith(public + '(')):
            missing.append(public)
        if inspect.isclass(thing):
            for key, value in vars(thing).items():
                made_here = getattr(inspect.unwrap(getattr(value, '__func__', value)), '__module__',
                                    module.__name__) == module.__name__
                if not key.startswith('_') and (inspect.isfunction(value)
                                                or isinstance(value,
                                                    (property, classmethod, staticmethod))) and made_here:
                    if not inspect.getdoc(getattr(thing, key)):
                        missing.append(f'{public}.{key}')
    assert not missing, f'no docstring: {", ".join(missing)}'


def test_every_command_and_option_has_a_help_text():
    from edc_nb.cli import app
    group = typer.main.get_command(app)
    commands = group.commands.items()
    missing = [name for name, command in commands if not command.help]
    missing += [f'{name} {p.name}' for name, command in commands for p in command.params if not p.help]
    assert missing == [] and len(commands) >= 5
