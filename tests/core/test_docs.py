"""`help` shows the comments beside parameters: read here with a tokenizer, apart from the library's syntax tree."""
import importlib
import inspect
import io
import multiprocessing
import re
import subprocess
import sys
import tokenize
from concurrent.futures import ProcessPoolExecutor

import pytest

from edc_nb.core.docs import fold_docments
from kit import edc_environment

FUNCTIONS = ['run.folder.condense', 'run.report.evaluate', 'recipes.registry.recipe', 'stages.students.train_student',
             'stages.relabel.make_labels', 'study.sweeps.sweep', 'data.open.open_dataset', 'paper.reproduce.compare']


def comments_of(function):
    "Parameter name -> the comment that ends its line, by tokens."
    found, name, depth = {}, None, 0
    for t in tokenize.generate_tokens(io.StringIO(inspect.getsource(function)).readline):
        if t.type == tokenize.OP and t.string in '([{':
            depth += 1
        elif t.type == tokenize.OP and t.string in ')]}':
            depth -= 1
            if not depth:
                return found
        elif t.type == tokenize.NAME and depth == 1 and name is None:
            name = t.string
        elif t.type == tokenize.COMMENT and name:
            found[name], name = t.string.lstrip('# '), None
    return found


@pytest.mark.parametrize('where', FUNCTIONS)
def test_help_explains_every_parameter(where):
    module, name = where.rsplit('.', 1)
    function = getattr(importlib.import_module(f'edc_nb.{module}'), name)
    comments, text = comments_of(function), inspect.getdoc(function)
    assert set(comments) == set(inspect.signature(function).parameters)
    for parameter, comment in comments.items():
        assert re.search(rf'(?m)^\*{{0,2}}{parameter}\b.*\n    {re.escape(comment)}$', text), (parameter, text)


def test_a_setting_is_explained_in_the_help_of_its_section():
    from edc_nb.core.settings import SECTIONS
    for section, cls in SECTIONS.items():
        for name, field in cls.__dataclass_fields__.items():
            assert f"\n{name} : " in cls.__doc__, f'{section}.{name}'
            assert f"\n    {field.metadata['note']}" in cls.__doc__


def test_what_is_not_the_modules_own_is_left_alone():
    module = type(sys)('own')
    module.join = __import__('os').path.join
    before = module.join.__doc__
    fold_docments(module, 'def join(\n    a,    # changed?\n):\n    "Changed."\n')
    assert module.join.__doc__ == before


def test_importing_the_package_loads_neither_torch_nor_its_source():
    loaded = 'import sys, edc_nb; print(*(m for m in ("torch", "pandas", "edc_nb.run") if m in sys.modules))'
    done = subprocess.run([sys.executable, '-c', loaded], env=edc_environment(), capture_output=True, text=True)
    assert done.stdout.strip() == '' and done.returncode == 0, done


def help_of_condense():
    from edc_nb.run.folder import condense
    return condense.__doc__


def test_a_worker_process_starts_without_the_help():
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        there = pool.submit(help_of_condense).result()
    assert help_of_condense().startswith(there.splitlines()[0]) and 'Parameters' not in there
    assert 'Parameters' in help_of_condense()
