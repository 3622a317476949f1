"""Choices by name: what a registry accepts, refuses, shows, and puts into a stage's key."""
import functools
import json
import subprocess
import sys
import textwrap
import warnings

import pytest
from torch import nn

from conftest import edc_environment, said
from edc_nb.core.registry import Registry, fingerprint, fingerprint_network, keyed
from edc_nb.core.settings import parse_set
from edc_nb.exchange.package import LAYOUTS, register_layout
from edc_nb.models.registry import register_model
from edc_nb.recipes.base import (
    FAMILIES,
    RECIPES,
    UNSET,
    for_student,
    join_columns,
    named,
    per_dataset,
    per_ipc,
    register_recipe,
    resolve,
)
from edc_nb.recipes.registry import recipe


@pytest.fixture
def methods():
    return Registry('initialize.method', needs_observer=False, images=1, note=None)


def run(module, source, methods=None, **names):
    "Run source text as the body of a module, as an import or a notebook's cell does; its names."
    space = {'__name__': module, 'methods': methods, **names}
    exec(compile(textwrap.dedent(source), f'{module}.py', 'exec'), space)
    return space


def registering(name, f, needs='', body='pass'):
    "Source text of a function `f` that is registered as `name`."
    return f'@methods.register({name!r}{needs})\ndef {f}(): {body}\n'


OURS = 'edc_nb.some'      # to run source text as a module of this library


# --- names

def test_a_decorated_function_is_found_and_returned(methods):
    @methods.register('mine', needs_observer=True)
    def f():
        "First line.\n\nMore."
    assert methods['mine'] is f and dict(methods) == {'mine': f} and 'mine' in methods and len(methods) == 1
    assert methods.register('called', f) is f and list(methods) == ['mine', 'called'] and 'mine' in repr(methods)
    assert methods.get('none') is None and methods.get('none', 3) == 3 and ['x'] not in methods


def test_an_unknown_name_names_the_nearest(methods):
    methods.register('herding', print)
    for ask in (methods.__getitem__, methods.needs, methods.builtin, methods.remove):
        said(lambda: ask('herdin'), 'initialize.method', "'herdin'", 'accepted: herding', "Did you mean 'herding'?")
    said(lambda: methods[['herding']], 'initialize.method')
    said(lambda: methods[None], 'initialize.method')


BAD = ['', ' ', 'a b', 'a\n', 'a/b', '..', '.', 'a.b', '\\', '1', '-a', '1e3', 'null', 'No', 'ON', 'nan', 'a:b', 'tv:x',
       'a,b', '[a]', None, 3, b'a', print]


@pytest.mark.parametrize('name', BAD)
def test_a_name_that_files_or_settings_cannot_hold_is_refused(name, methods):
    said(lambda: methods.register(name, print), 'initialize.method', repr(name))
    said(lambda: methods.register_lazy(name, 'math:sin'), 'initialize.method', repr(name))
    assert not len(methods)


@pytest.mark.parametrize('name', ['rded', 'k-centre', 'bn+conv', 'mse_ce', 'wrn16_2', 'größe', '_x', 'x-'])
def test_an_accepted_name_survives_the_command_line(name, methods):
    methods.register(name, print)
    assert parse_set([f'initialize.method={name}']) == {'initialize.method': name}


def test_needs_are_frozen_and_have_defaults(methods):
    methods.register('a', print)
    methods.register('b', print, needs_observer=True, images=3, note='anything')
    assert vars(methods.needs('a')) == dict(needs_observer=False, images=1, note=None)
    assert vars(methods.needs('b')) == dict(needs_observer=True, images=3, note='anything')
    with pytest.raises(AttributeError):
        methods.needs('a').needs_observer = True
    with pytest.raises(AttributeError):
        methods.needs('a').needs_nothing


def test_names_are_found_by_their_needs(methods):
    methods.register('a', print)
    methods.register('b', print, needs_observer=True, images=3)
    assert methods.names() == ['a', 'b'] and methods.names(needs_observer=False) == ['a']
    assert methods.names(needs_observer=True, images=1) == [] and methods.names(images=3) == ['b']


def test_undeclared_or_wrong_needs_are_refused(methods):
    said(lambda: methods.register('a', print, need_observer=True), "'need_observer'", "Did you mean 'needs_observer'?")
    said(lambda: methods.register('a', need_observer=True), "'need_observer'")
    said(lambda: methods.register('a', print, needs_observer=1), 'needs_observer=1', 'bool')
    said(lambda: methods.register('a', print, images=True), 'images=True', 'int')
    said(lambda: methods.names(need_observer=True), "'need_observer'")
    assert not len(methods)


def test_needs_that_cannot_be_declared_are_refused():
    said(lambda: Registry('x.y', replace=False), 'x.y', 'replace')
    said(lambda: Registry('x.y', rates={}), 'x.y', 'rates')


def test_only_what_can_be_called_is_registered(methods):
    for bad in (3, 'f', [print]):
        said(lambda: methods.register('a', bad), "initialize.method 'a'", repr(bad), 'function or a class')


# --- a name that exists

def test_a_cell_that_is_run_again_replaces_its_function(methods):
    for k in (1, 2):
        run('__main__', registering('mine', 'f', f', images={k}', f'return {k}'), methods)
    assert methods['mine']() == 2 and methods.needs('mine').images == 2 and len(methods) == 1


def test_a_module_that_is_loaded_again_replaces_its_class(methods):
    for k in (1, 2):
        run('my_methods', f'@methods.register("mine")\nclass F:\n    k = {k}', methods)
    assert methods['mine'].k == 2


def test_a_copy_in_a_notebook_replaces_the_function_of_a_user_s_module(methods):
    cell = registering('mine', 'f', body='return __name__')
    for module in ('my_methods', '__main__'):
        run(module, cell, methods)
    assert methods['mine']() == '__main__'
    said(lambda: run('my_methods', cell, methods), "'mine' is f of __main__", 'replace=True')


@pytest.mark.parametrize('how', ['lambda: 0', 'functools.partial(f, 3)', 'F()', 'functools.lru_cache(f)'])
def test_what_has_no_name_of_its_own_can_be_run_again_too(how, methods):
    cell = f'''
        import functools
        def f(x=0): pass
        class F:
            def __call__(self): pass
        f = methods.register("mine", {how})'''
    one, two = (run('__main__', cell, methods)['f'] for _ in range(2))
    assert methods['mine'] is two and one is not two


def test_another_function_does_not_take_a_name(methods):
    run('__main__', registering('mine', 'f', body='return 1'), methods)
    said(lambda: run('__main__', registering('mine', 'g'), methods), "'mine' is f of __main__", 'replace=True')
    assert methods['mine']() == 1
    run('__main__', registering('mine', 'g', ', replace=True', 'return 2'), methods)
    assert methods['mine']() == 2
    methods.remove('mine')
    assert 'mine' not in methods


def test_a_built_in_is_not_taken_by_accident_and_comes_back(methods):
    run(OURS, registering('real', 'from_real', ', images=2', 'return 1'), methods)
    assert methods.builtin('real')
    said(lambda: run('__main__', registering('real', 'mine'), methods), "'real' is built in", 'replace=True')
    said(lambda: run('my_module', registering('real', 'from_real'), methods), "'real' is built in")
    said(lambda: methods.remove('real'), "'real'", 'built in')
    run('__main__', registering('real', 'mine', ', replace=True', 'return 2'), methods)
    assert methods['real']() == 2 and not methods.builtin('real')
    run('__main__', registering('real', 'mine', body='return 3'), methods)
    assert methods['real']() == 3
    methods.remove('real')
    assert methods['real']() == 1 and methods.builtin('real') and methods.needs('real').images == 2


def test_a_built_in_network_is_called_built_in():
    for name in ('resnet18', 'deit_tiny', 'tv:resnet18'):
        said(lambda: register_model(name, nn.Flatten), f"model '{name}' is built in", 'replace=True')


def test_a_copy_of_a_built_in_in_a_notebook_warns_once(methods):
    cell = registering('real', 'from_real', body='return __name__')
    run(OURS, cell, methods)
    with pytest.warns(UserWarning, match="'real' was built in and is now from_real of __main__"):
        run('__main__', cell, methods)
    assert methods['real']() == '__main__' and not methods.builtin('real')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run('__main__', cell, methods)


def test_a_user_s_choice_stays_when_the_built_in_of_that_name_arrives(methods):
    run('__main__', registering('dm', 'mine', body='return 1'), methods)
    built = registering('dm', 'match', body='return 2')
    with pytest.warns(UserWarning, match="'dm' stays mine of __main__"):
        run(OURS, built, methods)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(OURS, built, methods)
    assert methods['dm']() == 1
    methods.remove('dm')
    assert methods['dm']() == 2 and methods.builtin('dm')


def test_two_built_ins_of_one_name_are_refused_and_a_reload_is_not(methods):
    for k in (1, 2):
        run(OURS, registering('dm', 'match', body=f'return {k}'), methods)
    assert methods['dm']() == 2
    said(lambda: run(OURS, registering('dm', 'other'), methods), "'dm' is built in")


def test_whoever_runs_the_cell_registers_whatever_is_called_in_between(methods):
    space = run(OURS, '''
        def register_it(name): return methods.register(name)
        def later(): methods.register("late", later)''', methods)
    through = '@register_it({!r})\ndef f(): pass'
    run('__main__', through.format('mine'), register_it=space['register_it'])
    run('edc_nb.other', through.format('ours'), register_it=space['register_it'])
    run('__main__', 'later()', later=space['later'])
    run('edc_nb_extra', registering('extra', 'f'), methods)
    assert {n: methods.builtin(n) for n in methods} == dict(mine=False, ours=True, late=False, extra=False)


# --- lazy entries

def test_a_lazy_entry_is_loaded_when_it_is_used(methods, tmp_path, monkeypatch):
    (tmp_path / 'slow_module.py').write_text('class A:\n    def f(): "About it."\n')
    monkeypatch.syspath_prepend(tmp_path)
    methods.register_lazy('slow', 'slow_module:A.f', needs_observer=True)
    assert list(methods) == ['slow'] and methods.needs('slow').needs_observer and 'slow_module' not in sys.modules
    assert methods['slow'].__doc__ == 'About it.' and 'slow_module' in sys.modules
    monkeypatch.delitem(sys.modules, 'slow_module')


@pytest.mark.parametrize('target', ['math', 'math.sin', 'math:', ':sin', 'math sin', 'a/b:c', None, print])
def test_a_lazy_target_that_names_nothing_is_refused_at_once(target, methods):
    said(lambda: methods.register_lazy('slow', target), "'slow'", repr(target), 'package.module:name')


@pytest.mark.parametrize('target', ['math:sine', 'no_such_module:f', 'math.deeper:f'])
def test_a_lazy_target_that_is_not_there_is_refused_at_use(target, methods):
    methods.register_lazy('slow', target)
    said(lambda: methods['slow'], "'slow'", target)


@pytest.mark.parametrize('module', [OURS, 'my_methods'])
def test_the_module_of_a_lazy_entry_registers_it_with_the_same_needs_or_none(module, methods):
    for n in 'abc':
        run(module, f'methods.register_lazy({n!r}, "{module}:{n}", images=2)', methods)
    run(module, registering('a', 'a', body='return 1') + registering('b', 'b', ', images=2', 'return 1'), methods)
    assert methods['a']() == methods['b']() == 1 and methods.needs('a').images == methods.needs('b').images == 2
    said(lambda: run(module, registering('c', 'c', ', images=3'), methods), "'c'", 'images=3', 'images=2')
    said(lambda: run('__main__', registering('c', 'mine'), methods), "'c' is")


def test_nothing_here_imports_torch():
    code = '''
import sys
from edc_nb.core.registry import Registry, fingerprint, keyed
r = Registry('a.b', needs_observer=False)
r.register_lazy('x', 'torch.nn:Linear', needs_observer=True)
k = 3
def f(x): return x + k
r.register('f', f)
assert r.needs('x').needs_observer and list(r) == ['x', 'f'] and 'x' in repr(r)
assert keyed(r, 'f')['code'] == fingerprint(f)
assert not {'torch', 'numpy', 'pandas'} & set(sys.modules), sorted(sys.modules)
'''
    subprocess.run([sys.executable, '-c', code], check=True, env=edc_environment(), timeout=60)


def test_the_table_shows_needs_first_line_and_origin(methods):
    run(OURS, registering('real', 'from_real', ', needs_observer=True', '"Real <images>.\\n\\nMore."'), methods)
    run('my_methods', '''
        import functools
        def f(x): "Mine."
        methods.register("mine", functools.partial(f, 1))''', methods)
    methods.register_lazy('sine', 'math:sin')
    t = methods.table()
    assert list(t.index) == ['real', 'mine', 'sine']
    assert list(t.columns) == ['needs_observer', 'images', 'note', 'what it is', 'from']
    assert list(t['what it is'])[:2] == ['Real <images>.', 'Mine.']
    assert list(t['from'])[:2] == ['built in', 'yours, my_methods']
    html = methods._repr_html_()
    assert 'initialize.method' in html and 'Real &lt;images&gt;.' in html


# --- keys

def test_keys_of_built_in_choices_stay_and_those_of_users_hold_the_code(methods):
    run(OURS, registering('real', 'from_real') + 'methods.register("closed", (lambda k: lambda: k)(3))', methods)
    assert keyed(methods, 'real') == keyed(methods, 'closed') == {}
    run('__main__', registering('mine', 'f', body='return 1'), methods)
    first = keyed(methods, 'mine')
    assert first == {'code': fingerprint(methods['mine'])}
    json.dumps(first)
    run('__main__', registering('mine', 'f', body='return 2'), methods)
    assert keyed(methods, 'mine') not in (first, {})
    run('__main__', registering('real', 'mine', ', replace=True'), methods)
    assert set(keyed(methods, 'real')) == {'code'}
    methods.remove('real')
    assert keyed(methods, 'real') == {}
    said(lambda: keyed(methods, 'mien'), "Did you mean 'mine'?")


def test_a_built_in_function_under_a_user_s_name_needs_no_code(methods):
    from edc_nb.stages.initialize import from_real
    methods.register('alias', from_real)
    assert keyed(methods, 'alias') == {}


def test_a_lazy_choice_is_keyed_by_its_code_and_a_built_in_one_is_not_even_loaded(methods, tmp_path, monkeypatch):
    (tmp_path / 'slow_code.py').write_text('def f(x): return x\n')
    monkeypatch.syspath_prepend(tmp_path)
    methods.register_lazy('slow', 'slow_code:f')
    run(OURS, 'methods.register_lazy("gone", "edc_nb.not_there:f")', methods)
    assert keyed(methods, 'slow') == {'code': fingerprint(methods['slow'])} and keyed(methods, 'gone') == {}
    monkeypatch.delitem(sys.modules, 'slow_code')


def test_networks_are_keyed_with_their_shapes(methods):
    methods.register('net', nn.Linear)
    code = keyed(methods, 'net', lambda f: fingerprint_network(f, 3, 4))
    assert code == {'code': fingerprint_network(nn.Linear, 3, 4)} != {'code': fingerprint_network(nn.Linear, 3, 5)}


NOISY = dict(
    log='log = open(os.devnull)',
    by='by = 1',
    say='def say(x): print(x + by, file=log)',
    f='@methods.register("mine")\ndef f(x): return say(x)')


def test_what_cannot_be_compared_is_found_again_only_while_all_else_is_the_same(methods):
    import os
    space = dict(__name__='__main__', methods=methods, os=os)

    def cell(source):
        exec(compile(source, 'cell', 'exec'), space)
    for source in NOISY.values():
        cell(source)
    with pytest.warns(UserWarning) as told:
        seen = [keyed(methods, 'mine')['code']]
    text, = (str(w.message) for w in told)
    assert "initialize.method 'mine'" in text and 'f → say → log is a TextIOWrapper' in text and '\n' not in text
    with warnings.catch_warnings():
        warnings.simplefilter('error')      # one warning is enough
        assert keyed(methods, 'mine') == {'code': seen[0]} and seen[0].startswith('uncached-')
        for name, old, new in [('by', '1', '2'), ('say', '+', '-'), ('f', 'say(x)', '1 + say(x)'), ('log', '', '')]:
            cell(NOISY[name].replace(old, new))
            seen.append(keyed(methods, 'mine')['code'])
            assert keyed(methods, 'mine')['code'] == seen[-1]
    assert len(set(seen)) == 5


def test_no_two_processes_share_the_key_of_what_cannot_be_compared(tmp_path):
    (path := tmp_path / 'noisy.py').write_text(textwrap.dedent('''
        import os, warnings
        from edc_nb.core.registry import Registry, keyed
        warnings.simplefilter("ignore")
        log, r = open(os.devnull), Registry("a.b")
        @r.register("f")
        def f(x): print(x, file=log)
        print(keyed(r, "f")["code"])'''))
    kw = dict(check=True, capture_output=True, text=True, env=edc_environment(), timeout=60)
    assert len({subprocess.run([sys.executable, path], **kw).stdout for _ in range(2)}) == 2


# --- recipes

@pytest.fixture
def patient():
    "A user's recipe, registered while the test runs."
    @register_recipe('patient', about='EDC, twice the iterations', rates={'alexnet': 1e-4})
    def settings(base, ipc):
        return {'synthesize.iterations': 10 * ipc}
    yield settings
    if 'patient' in RECIPES and not RECIPES.builtin('patient'):
        RECIPES.remove('patient')


def test_a_user_s_recipe_is_known_by_name(patient):
    r = recipe('patient', 'cifar10', ipc=5)
    assert (r.name, r.ipc, r.data.name, r.synthesize.iterations) == ('patient', 5, 'cifar10', 50)
    assert for_student(r, 'alexnet').evaluate.lr == 1e-4 and for_student(r, 'resnet18').evaluate.lr == 1e-3
    assert RECIPES.needs('patient').about == 'EDC, twice the iterations' and not RECIPES.builtin('patient')
    assert patient('cifar10', 2) == {'synthesize.iterations': 20}      # the decorator returns the function
    said(lambda: recipe('patien'), "'patien'", "Did you mean 'patient'?")


@pytest.mark.parametrize('name', ['edc', 'edc-released', 'sre2l', 'config-a', 'random-real', 'k-centre', 'patient'])
def test_a_recipe_s_name_is_not_taken_by_accident(name, patient):
    before, hash = RECIPES[name], recipe(name).hash

    def other(base, ipc):
        return {'evaluate.zeta': 3.}
    said(lambda: register_recipe(name, named(name, other)), f"recipe '{name}'", 'replace=True')
    said(lambda: register_recipe(name)(other), f"recipe '{name}'", 'replace=True')
    said(lambda: register_recipe(name, named(name, functools.partial(other))), f"recipe '{name}'", 'replace=True')
    assert RECIPES[name] is before
    register_recipe(name, named(name, other), replace=True)
    assert recipe(name).evaluate.zeta == 3.
    RECIPES.remove(name)
    assert name == 'patient' or recipe(name).hash == hash and RECIPES.builtin(name)


def test_a_recipe_s_cell_that_is_run_again_replaces_its_settings(patient):
    cell = '@register("mine")\ndef f(base, ipc): return {{"synthesize.iterations": {}}}'
    for n in (1, 2):
        run('__main__', cell.format(n), register=register_recipe)
        assert recipe('mine').synthesize.iterations == n
    RECIPES.remove('mine')


def test_a_docstring_is_what_a_recipe_is_about():
    def mine(base, ipc):
        "No settings at all.\n\nMore."
        return {}
    register_recipe('mine', named('mine', mine))
    assert RECIPES.needs('mine').about == 'No settings at all.' and RECIPES['mine'].__doc__ == mine.__doc__
    RECIPES.remove('mine')


def test_a_column_gives_the_most_special_value():
    value = per_dataset(1, cifar=2, cifar100=per_ipc({1: 3, 10: 4}), digits=UNSET)
    seen = {base: [resolve({'a': value}, base, ipc).get('a') for ipc in (1, 9, 10, 50)] for base in FAMILIES}
    assert seen == dict(digits=[None] * 4, cifar10=[2] * 4, cifar100=[3, 3, 4, 4], tiny_imagenet=[1] * 4,
                        imagenet10=[1] * 4, imagenet1k=[1] * 4)
    more = value.but(imagenet=5, cifar=6)
    assert [resolve({'a': more}, base, 1).get('a') for base in FAMILIES] == [None, 6, 6, 1, 5, 5]


def test_columns_refuse_what_would_be_overridden_or_overlooked():
    said(lambda: join_columns({'a.b': 1}, {'a.c': 1}, {'a.b': 1}), 'a.b', 'two columns')
    said(lambda: per_dataset(1, cifra=2), "'cifra'", "Did you mean 'cifar'?")
    said(lambda: per_ipc({10: 1}), 'per_ipc', '10')
    said(lambda: resolve({}, 'cifar', 1), "'cifar'", 'cifar10')


def test_naming_recipes_and_layouts_imports_no_torch():
    code = '''
import sys
from edc_nb.recipes.registry import RECIPES, recipe
from edc_nb.recipes import design_space, scales
from edc_nb.exchange.package import LAYOUTS
assert all(recipe(name).hash for name in RECIPES) and not len(LAYOUTS)
assert not {'torch', 'numpy', 'pandas'} & set(sys.modules), sorted(sys.modules)
'''
    subprocess.run([sys.executable, '-c', code], check=True, env=edc_environment(), timeout=60)


# --- layouts

def test_a_layout_is_its_writer_and_needs_a_reader_to_be_read():
    from edc_nb.exchange import layouts  # registers those of this library
    assert LAYOUTS['folder'] is layouts.write_folder and LAYOUTS.needs('folder').read is layouts.read_folder
    assert LAYOUTS.names(labeled=True) == ['huggingface'] and all(LAYOUTS.needs(n).about for n in LAYOUTS)

    def names(package, folder):
        pass
    said(lambda: register_layout('folder', None, 'mine')(names), "layout 'folder'", 'built in', 'replace=True')
    register_layout('names', None, 'mine')(names)
    assert LAYOUTS['names'] is names and LAYOUTS.needs('names').read is None
    LAYOUTS.remove('names')
