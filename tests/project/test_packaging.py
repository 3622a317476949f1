"""What is shipped: a wheel and a source archive that are whole, small in their requirements, and run by themselves."""
import ast
import email
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from check_lines import parse
from conftest import ROOT

PACKAGE = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'edc_nb').rglob('*')
           if p.is_file() and '__pycache__' not in p.parts}
LAB = {'nbdev', 'fastcore', 'execnb', 'jupyter', 'jupyterlab', 'ipywidgets', 'ipython', 'ipykernel', 'nbclient',
       'nbconvert', 'notebook', 'pytest', 'scikit-learn', 'timm', 'optuna', 'curvlinops-for-pytorch'}


def call(*args, **kw):
    done = subprocess.run([*map(str, args)], capture_output=True, text=True, timeout=300, **kw)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Folders with what `pip wheel` makes of a clean checkout, and with what `build` makes: an archive, and a wheel
    made from that archive."""
    tmp = tmp_path_factory.mktemp('packaging')
    source = tmp / 'source'
    # what earlier builds left in the checkout would otherwise slip into the wheel
    left_out = '.git', '.venv', 'build', 'dist', 'runs', '*.egg-info', '__pycache__', '.pytest_cache', 'data_*'
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*left_out))
    call(sys.executable, '-m', 'pip', 'wheel', '.', '--no-deps', '-q', '-w', tmp / 'pip', cwd=source)
    shutil.rmtree(source / 'build', ignore_errors=True)
    call(sys.executable, '-m', 'build', '--outdir', tmp / 'build', source, cwd=tmp)
    return tmp


@pytest.fixture(scope='module')
def wheel(built):
    path, = (built / 'pip').iterdir()
    return path


def content(path):
    with zipfile.ZipFile(path) as z:
        return {n: z.read(n) for n in z.namelist() if not n.endswith('/')}


def meta(wheel, name):
    return next(v.decode() for k, v in content(wheel).items() if k.endswith(f'.dist-info/{name}'))


def test_wheel_holds_the_package_and_nothing_else(wheel):
    files = {k: v for k, v in content(wheel).items() if '.dist-info/' not in k}
    assert set(files) == PACKAGE and 'edc_nb/assets/digits.npz' in files
    assert all(v == (ROOT / k).read_bytes() for k, v in files.items())
    assert wheel.name.endswith('-py3-none-any.whl') and wheel.stat().st_size < 500_000


def test_metadata_says_what_settings_ini_says(wheel):
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    cfg, m = config['DEFAULT'], email.message_from_string(meta(wheel, 'METADATA'))
    assert (m['Name'].replace('-', '_'), m['Version'], m['Requires-Python']) == ('edc_nb', cfg['version'], '>=3.10')
    assert (m['License-Expression'] or m['License']) == 'Apache-2.0' and 'Apache License' in meta(wheel,
        'licenses/LICENSE')
    assert m.get_payload().strip() == (ROOT / 'README.md').read_text(encoding='utf-8').strip()
    assert set(m.get_all('Provides-Extra')) == {'models', 'lab', 'search', 'diagnostics', 'dev'}
    assert re.search(r'^edc ?= ?edc_nb\.cli:main$', meta(wheel, 'entry_points.txt'), re.M)


def test_core_requirements_are_without_notebook_packages(wheel):
    needed = [Requirement(r) for r in email.message_from_string(meta(wheel, 'METADATA')).get_all('Requires-Dist')]
    core = {r.name.lower(): r for r in needed if not r.marker}
    assert not LAB & set(core) and len(core) >= 8
    assert '2.6.0' in core['torch'].specifier and '2.5.1' not in core['torch'].specifier
    def extra(name): return {r.name.lower() for r in needed if r.marker and r.marker.evaluate({'extra': name})}
    assert extra('models') == {'timm'} and extra('search') == {'optuna'}
    assert extra('diagnostics') == {'curvlinops-for-pytorch'} and {'scipy', 'filelock'} <= set(core)
    assert extra('lab') >= {'jupyterlab', 'ipywidgets'} | extra('models') | extra('search') | extra('diagnostics')
    assert extra('dev') >= {'pytest', 'nbclient', 'ruff'} | extra('lab')


def test_the_lab_extra_installs_what_the_notebooks_import():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    listed = shlex.split(config['DEFAULT']['requirements']) + shlex.split(config['DEFAULT']['lab_requirements'])
    # of jupyterlab's kernel
    have = {canonicalize_name(Requirement(r).name) for r in listed} | {'edc-nb', 'ipython'}
    distributions, missing = importlib.metadata.packages_distributions(), {}
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        for module in {m for c in cells if c['cell_type'] == 'code' for m in imported_modules(''.join(c['source']))}:
            known = module in sys.stdlib_module_names or module == 'edc_nb'
            if not known and not {canonicalize_name(d) for d in distributions.get(module, [])} & have:
                missing.setdefault(module, []).append(path.name)
    assert not missing


def imported_modules(source):
    "Top-level names that a cell imports."
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name.split('.')[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split('.')[0]


def test_source_archive_is_whole(built):
    path, = (built / 'build').glob('*.tar.gz')
    with tarfile.open(path) as tar:
        names = {m.name.split('/', 1)[1]: m for m in tar if m.isfile()}
        assert names.keys() >= PACKAGE | {'settings.ini', 'setup.py', 'pyproject.toml', 'LICENSE', 'README.md'}
        assert tar.extractfile(names['edc_nb/assets/digits.npz']).read() == (
            ROOT / 'edc_nb/assets/digits.npz').read_bytes()


def test_a_wheel_from_the_source_archive_is_the_same(built, wheel):
    other, = (built / 'build').glob('*.whl')
    assert content(other) == content(wheel)


@pytest.fixture(scope='module')
def installed(built, wheel):
    target = built / 'site'
    call(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', target, wheel)
    return target


def test_installed_wheel_runs_from_anywhere(installed, tmp_path):
    environment = dict(cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(installed), 'OMP_NUM_THREADS': '1'})
    code = ('import edc_nb; from edc_nb.core.settings import DataSettings; d = edc_nb.open_dataset(DataSettings()); '
            'print(edc_nb.__file__, len(d.train), len(d.test))')
    file, *counts = call(sys.executable, '-c', code, **environment).split()
    assert file == str(installed / 'edc_nb' / '__init__.py') and counts == ['1297', '500']
    listing = call(sys.executable, '-m', 'edc_nb', 'recipes', **environment)
    assert 'edc-released' in listing
    assert call(installed / 'bin' / 'edc', 'recipes', **environment) == listing
