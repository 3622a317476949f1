"""Fingerprints of a user's code change if, and as nearly as possible only if, what it computes can change."""
import ast
import functools
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import edc_nb.core.registry as registry
from conftest import edc_environment, said
from edc_nb.core.registry import Registry, fingerprint, fingerprint_network, why_uncached


def cells(text):
    "Name -> source of the cells of a program, each under a line `# cell NAME`."
    parts = re.split(r'^# cell (\w+)\n', text, flags=re.M)[1:]
    return {name: source.strip('\n') for name, source in zip(parts[::2], parts[1::2])}


def load(path, text, name=None):
    "A user's module from a file."
    path.write_text(text)
    name = name or path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def ipython():
    "A function that runs cells in a fresh namespace of a real IPython shell, and returns the namespace."
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config
    main, hook = sys.modules['__main__'], sys.displayhook
    shell = InteractiveShell(config=Config(HistoryManager=dict(enabled=False)))

    def run(*sources, fresh=True, **names):
        if fresh:
            shell.reset(new_session=False)
        shell.user_ns.update(names)
        for source in sources:
            shell.run_cell(source, store_history=True).raise_error()
        return shell.user_ns
    yield run
    sys.modules['__main__'], sys.displayhook = main, hook


PROCESS = '''
import json, sys, importlib.util
from edc_nb.core.registry import fingerprint
spec = importlib.util.spec_from_file_location('program', sys.argv[1])
m = sys.modules['program'] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
print(json.dumps({k: fingerprint(v) for k, v in vars(m).items() if not k.startswith('__')}))
'''


def elsewhere(path, seed):
    "Name -> fingerprint of all that a file defines, from a process of its own with this PYTHONHASHSEED."
    done = subprocess.run([sys.executable, '-c', PROCESS, path], check=True, capture_output=True, text=True,
                          timeout=120, env=edc_environment(PYTHONHASHSEED=seed))
    return json.loads(done.stdout)


# --- a program in cells, as a user writes it

CELLS = cells('''
# cell imports
import functools, math
import dataclasses
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
# cell number
amount = 3
# cell table
sizes = {"small": [8, (16, 0.5)], "big": [32]}
kinds = {"x", "y"}
# cell array
kernel = np.array([[1., 2.], [3., 4.]])
weights = torch.tensor([.25, .5])
# cell deep
def halve(x):
    return x / 2
# cell helper
def soften(x, by=1):
    return halve(x) - amount * by
# cell config
@dataclass
class Config:
    rate: float = .1
    steps: int = 5
    def total(self): return self.rate * self.steps
config = Config(.2)
# cell klass
class Base:
    factor = 2
    def go(self, x): return self.factor * x
class Child(Base):
    def __init__(self, k=1): self.k = k
    @property
    def twice(self): return 2 * self.k
    @staticmethod
    def off(x): return x + 1
    def __call__(self, x): return self.off(self.go(x)) + self.twice
child = Child(4)
# cell net
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(3, width)
    def forward(self, x): return self.layer(x).relu()
# cell wrap
def logged(f):
    @functools.wraps(f)
    def inner(*args):
        return f(*args) * 1
    return inner
@logged
def wrapped(x): return x + 5
# cell made
def make(k):
    def inner(x): return x * k
    return inner
triple = make(3)
# cell part
def power(x, n): return x ** n
cube = functools.partial(power, n=3)
# cell pick
pick = lambda x: x + 1; drop = lambda x: x - 1
# cell even
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
# cell f
def f(x, k=2, *, mode='a'):
    "What it is."
    total = soften(x) * k + sizes['small'][0] + len(kinds)          # a sum
    for j in range(3):
        total += triple(j) + cube(j) + pick(j) + wrapped(j) if even(j) else drop(j)
    if mode == 'a':
        total = total + config.total() + child(x)
    deeper = [soften(y) for y in (1, 2)]
    return math.sqrt(abs(total)) + kernel.sum() + weights.sum() + len(deeper) + Net(5).layer.out_features
''')

# (cell, old text, new text)
EDITS = [
    ('number', '3', '4'), ('number', '3', '3.'), ('number', '3', 'True'), ('number', '3', "'3'"),
    ('number', '3', 'None'), ('table', '8', '9'), ('table', '0.5', '0.25'),
    ('table', '"small": [8, (16, 0.5)], "big": [32]', '"big": [32], "small": [8, (16, 0.5)]'),
    ('table', '(16, 0.5)', '[16, 0.5]'), ('table', '"y"', '"z"'), ('table', '{"x", "y"}', '["x", "y"]'),
    ('array', '4.', '5.'), ('array', '[[1., 2.], [3., 4.]]', '[1., 2., 3., 4.]'),
    ('array', '4.]]', '4.]], dtype="float32"'), ('array', '.25', '.26'), ('array', '.5]', '.5], dtype=torch.float64'),
    ('deep', 'x / 2', 'x // 2'), ('deep', 'x / 2', '2 / x'), ('helper', '-', '+'), ('helper', 'by=1', 'by=2'),
    ('helper', 'by=1', 'by=1.'), ('helper', 'amount', 'len(kernel)'), ('config', '.1', '.3'),
    ('config', '= 5', '= 6'), ('config', 'Config(.2)', 'Config(.3)'), ('config', '* self.steps', '+ self.steps'),
    ('config', '@dataclass', '@dataclass(order=True)'), ('klass', 'factor = 2', 'factor = 3'),
    ('klass', 'self.factor * x', 'self.factor + x'), ('klass', 'Child(4)', 'Child(5)'),
    ('klass', 'Child(Base)', 'Child(Base, dict)'), ('klass', '2 * self.k', '3 * self.k'), ('klass', 'x + 1', 'x + 2'),
    ('klass', 'self.k = k', 'self.j = self.k = k'), ('klass', 'k=1', 'k=2'), ('net', 'width=4', 'width=5'),
    ('net', '.relu()', '.sigmoid()'), ('net', 'nn.Module', 'nn.Sequential'), ('wrap', '* 1', '* 2'),
    ('wrap', 'x + 5', 'x + 6'), ('wrap', '@logged\n', ''), ('made', 'make(3)', 'make(4)'), ('made', 'x * k', 'x + k'),
    ('part', 'n=3', 'n=4'), ('part', '**', '*'), ('pick', 'x + 1', 'x + 2'), ('pick', 'x - 1', 'x - 2'),
    ('pick', 'pick = lambda x: x + 1; drop = lambda x: x - 1', 'drop = lambda x: x + 1; pick = lambda x: x - 1'),
    ('even', 'n == 0', 'n <= 0'), ('even', 'n != 0', 'n > 0'),
    ('even', 'n != 0 and even(n - 1)', 'n != 0 and odd(n - 1)'), ('f', 'range(3)', 'range(4)'),
    ('f', "mode == 'a'", "mode != 'a'"), ('f', "mode='a'", "mode='b'"), ('f', 'k=2', 'k=3'),
    ('f', '+ len(kinds)', '- len(kinds)'), ('f', '(1, 2)', '(1, 3)'), ('f', 'math.sqrt', 'math.exp'),
    ('f', 'Net(5)', 'Net(6)'), ('f', '*, mode', 'mode'), ('f', 'total = total + config', 'total += config'),
    ('f', '    deeper', '        deeper'), ('deep', 'def', 'async def'), ('klass', '    def go', '    async def go'),
    ('f', 'abs(total)', 'max(total, 0)'), ('f', "['small'][0]", "['small'][-1][0]"),
    ('imports', 'import functools, math', 'import functools, cmath as math'),
    ('imports', 'import torch\n', 'import torch\nabs = math.fabs\n')]

# the same in other words
SAME = [
    ('f', 'soften(x) * k + sizes', '(soften(x) * k) + sizes'), ('f', '    "What it is."\n', ''),
    ('f', '"What it is."', '"""What it was.\n\n    More of it."""'), ('f', '          # a sum', ' # the sum'),
    ('f', "(x, k=2, *, mode='a'):", "(\n    x: float,      # a number\n    k: int = 2,\n    *, mode='a',\n) -> float:"),
    ('f', 'for j in range(3):', '# loop\n\n    for j in range( 3 ):'), ('f', "'a'", '"a"'),
    ('f', 'def f', '\n\n\n\ndef f'), ('f', '    for j', '    "a note"\n    pass\n    for j'),
    ('f', 'total + config.total() + child(x)', '(\n        total + config.total()   # both\n        + child(x))'),
    ('number', 'amount = 3', '# how much\namount = 2 + 1'), ('number', 'amount = 3', 'unused = 7\namount = 3'),
    ('table', '{"x", "y"}', '{"y", "x", "y"}'), ('table', '"small": [8', '"small": [4 + 4'),
    ('array', '[[1., 2.], [3., 4.]]', '[[1, 3], [2, 4]]).T.astype(float) * (1.'),
    ('deep', 'def halve(x):\n    return x / 2', 'def halve(x: "a number"):\n    "Half."\n    return (x/2)'),
    ('helper', 'def soften', '@functools.partial(lambda f: f)\ndef soften'),
    ('klass', 'factor = 2', '"Doc."\n    factor: int = 2  # why'),
    ('klass', 'def go(self, x): return', 'def go(self, x):\n        "Doc."\n        return'),
    ('klass', 'def twice(self): return 2 * self.k\n', 'def twice(self):\n        return (2 * self.k)\n\n'),
    ('config', 'class Config:', 'class Config:\n    "Doc."'), ('config', 'Config(.2)', 'Config(steps=5, rate=.2)'),
    ('net', 'super().__init__()', 'super().__init__()  # first'),
    ('made', 'triple = make(3)', 'other = make(4)\ntriple = make(3)'),
    ('pick', 'pick = lambda x: x + 1; drop = lambda x: x - 1', 'pick = lambda x: x + 1\ndrop = lambda x: (x -\n 1)'),
    ('imports', 'import functools', 'import json, functools'), ('even', 'def odd', '# odd\ndef odd')]


def edited(name, old, new):
    assert old in CELLS[name], (name, old)
    return CELLS | {name: CELLS[name].replace(old, new)}


@pytest.fixture(scope='module')
def base(ipython):
    return fingerprint(ipython(*CELLS.values())['f'])


def test_the_program_runs(ipython, base):
    assert ipython(*CELLS.values())['f'](3) > 0 and len(base) == 16


@pytest.mark.parametrize('edit', EDITS, ids=str)
def test_an_edit_that_can_change_the_result_changes_the_fingerprint(edit, ipython, base):
    assert fingerprint(ipython(*edited(*edit).values())['f']) not in (base, None)


@pytest.mark.parametrize('edit', SAME, ids=str)
def test_an_edit_that_cannot_change_the_result_leaves_the_fingerprint(edit, ipython, base):
    space = ipython(*edited(*edit).values())
    assert space['f'](3) > 0 and fingerprint(space['f']) == base


def test_the_order_and_number_of_cells_do_not_matter(ipython, base):
    space = ipython(*CELLS.values())
    for name in ('number', 'deep', 'helper', 'klass', 'f', 'even', 'config', 'array', 'f'):
        ipython(CELLS[name], fresh=False)
        assert fingerprint(space['f']) == base, name
    assert fingerprint(ipython('one = 1', '\n\n'.join(CELLS.values()))['f']) == base


def test_every_edit_is_seen_as_soon_as_its_cell_is_run_and_its_undoing_too(ipython, base):
    space = ipython(*CELLS.values())
    for name, old, new in (('number', '3', '4'), ('deep', 'x / 2', 'x // 2'), ('helper', '-', '+')):
        ipython(edited(name, old, new)[name], fresh=False)
        assert fingerprint(space['f']) != base
        ipython(CELLS[name], fresh=False)
        assert fingerprint(space['f']) == base


def from_source(f):
    return registry._code(f.__code__, f.__code__.co_filename)[0] == 'source'


def test_a_cell_with_magics_is_read_as_source(ipython):
    one = ipython('%pwd\ndef g(x): return x + 1')['g']
    two = ipython('import os\n!true\n\ndef g(x):\n    # more\n    return (x + 1)')['g']
    assert fingerprint(one) == fingerprint(two) and from_source(one) and from_source(two)


def test_a_file_in_another_process_gives_the_same(ipython, base, tmp_path):
    (path := tmp_path / 'anything.py').write_text('\n'.join(CELLS.values()))
    found = [elsewhere(path, seed) for seed in ('0', '1', 'random')]
    space = ipython(*CELLS.values())
    assert found[0] == found[1] == found[2] and found[0]['f'] == base
    assert found[0] == {k: fingerprint(space[k]) for k in found[0]}


KEPT = '''
import collections, dataclasses, enum, functools, math, typing
a = 3
b = {"x": [1, 2.5, None], 2: {"k", "l"}}
def g(x, *, k=1.5): return [x + y * k for y in b["x"]]
class A:
    n = 1
    def go(self, x, *rest, **more):
        try: return f"{x:>{self.n}} {x!r} {'a' 'b'}"
        finally: del x
    async def late(self): return await g(a)
h = lambda x, /, y=a: (A().go(x) if x else {**b}, [*y], x[1:, ::2], not x)
@functools.lru_cache(None)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
@dataclasses.dataclass
class D:
    x: int
    y: list = dataclasses.field(default_factory=list)
    def s(self): return self.x + len(self.y) + math.pi
d = D(2)
class C(enum.Enum):
    R = 1
    S = 2
    def up(self): return self.value + a
P = collections.namedtuple('P', 'u v')
class S:
    __slots__ = ('k',)
    def __init__(self): self.k = 1
    def __eq__(self, o): return super().__eq__(o) and isinstance(o, S)
def walrus(x):
    if (n := len(x)) > 10: return n
    match x:
        case [1, *rest] if rest: return rest
        case {'k': None, **kw}: return kw
        case D(x=0) | str(): return C.R
    for i in x:
        with open(i) as f, open(i) as k: print(f, file=k)
    else: raise ValueError(i) from None
    assert x, 'no'
    from json import dumps as dd
    return dd(x), P(1, 2), (yield from x)
part = functools.partial(g, k=3)
'''
PINNED = dict(a='7cbf84dfd971dc93', b='84b39b89cf066700', g='3d10a99f6aa9f475', A='36133c20a5e9ab26',
    h='3dace95a3a04614c', fib='878bb0cbf02d1c0a', D='46fdd24444c8f748', d='ec3749c6a0d2c7a8', C='7b04bcd49e97b46a',
    P='2c1159a73909f9e0', S='ea0548fd5d6b76ad', walrus='d733746e9f521f00', part='945472e7b5889c17')


@pytest.mark.skipif(sys.version_info >= (3, 15), reason='checked on Python 3.10 to 3.14')
def test_fingerprints_outlive_versions_of_python_and_of_this_module(tmp_path):
    "Results that users made earlier are found under these; changing one of them makes all users' results anew."
    m = load(tmp_path / 'kept.py', KEPT)
    assert {k: fingerprint(getattr(m, k)) for k in PINNED} == PINNED


# --- what a function may hold

HOLDS = '''
import abc, collections, datetime, decimal, enum, fractions, functools, pathlib, random, re, types, typing, uuid
import dataclasses, numpy as np, pandas as pd, torch
from torch import nn
class Color(enum.Enum):
    RED = 1
    BLUE = 2
class Flags(enum.IntFlag):
    A = 1
    B = 2
Point = collections.namedtuple('Point', 'a b', defaults=[3])
class Typed(typing.NamedTuple):
    a: int
    b: int = 3
@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: list = dataclasses.field(default_factory=list)
class Slots:
    __slots__ = 'x', 'y'
    def __init__(self, x): self.x = x
class Abstract(abc.ABC):
    @abc.abstractmethod
    def go(self): ...
class Concrete(Abstract):
    def go(self): return 1
class Lazy:
    def __init__(self, k): self.k = k
    @functools.cached_property
    def big(self): return self.k * 10
class Listed(list): pass
class Generic(typing.Generic[typing.TypeVar('T')]):
    def __init__(self, k): self.k = k
class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.round()
    @staticmethod
    def backward(ctx, g): return g
@torch.no_grad()
def quiet(x): return x * 2
@functools.lru_cache(8)
def kept(x): return x
def circle(k):
    held = [k]
    held.append(held)
    return held
class Module(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.layer, self.k = nn.Linear(2, 2), k
        nn.init.constant_(self.layer.weight, k); nn.init.zeros_(self.layer.bias)
'''
PAIRS = '''1 | 2; 1 | 1.; 1 | True; 0. | -0.; 'a' | b'a'; (1,) | [1]; [1, [2]] | [[1], 2]; [1, 2] | [2, 1]; {1, 2} | {3}
{1: 2} | {2: 1}; {'a': 1, 'b': 2} | {'b': 2, 'a': 1}; float('nan') | float('inf'); 10**5000 | 10**5000 + 1; 1j | 2j
None | ...; range(3) | range(4); slice(1, 2) | slice(1, 3); bytearray(b'a') | bytearray(b'b')
frozenset({'a', 'b'}) | frozenset({'a'}); [[]] | [[[]]]; '' | None; np.arange(3) | np.arange(4)
np.arange(3) | np.arange(3.); np.zeros((2, 3)) | np.zeros((3, 2)); np.float32(1) | np.float64(1)
np.array(['a', None], object) | np.array(['b', None], object)
np.array(['2020-01-01'], 'M8[D]') | np.array(['2020-01-02'], 'M8[D]')
np.ma.array([1, 2], mask=[0, 1]) | np.ma.array([1, 2], mask=[1, 0])
np.arange(6).reshape(2, 3).T | np.arange(6).reshape(3, 2); np.random.default_rng(1) | np.random.default_rng(2)
np.zeros(1, [('a', 'i4')]) | np.zeros(1, [('b', 'i4')]); torch.tensor([1.]) | torch.tensor([2.])
torch.tensor([1.]) | torch.tensor([1.]).double(); torch.zeros(2, 0) | torch.zeros(0, 2)
torch.tensor([1.]).bfloat16() | torch.tensor([1.]).half(); torch.tensor(1j) | torch.tensor(1j).conj()
torch.tensor(True) | torch.tensor(False); torch.zeros(2) | nn.Parameter(torch.zeros(2))
torch.zeros(2) | torch.zeros(2, requires_grad=True); torch.float32 | torch.float64; torch.Size([1]) | torch.Size([2])
torch.Generator().manual_seed(1) | torch.Generator().manual_seed(2); torch.device('cpu') | torch.device('cuda')
torch.arange(6).view(2, 3).T | torch.arange(6).view(3, 2)
torch.zeros(2, device='meta') | torch.zeros(3, device='meta'); nn.Conv2d | nn.Conv1d; torch.relu | torch.sigmoid
torch.nn.functional.relu | torch.nn.functional.gelu; torch.Tensor.relu | torch.Tensor.exp; Module(1.) | Module(2.)
Module(1.) | Module(1.).eval(); nn.Sequential(Module(1.), nn.ReLU()) | nn.Sequential(Module(1.), nn.GELU())
Round | Concrete; Round.apply | Concrete().go; quiet | kept; kept | kept.__wrapped__
functools.lru_cache(4)(len) | functools.lru_cache(5)(len); Color.RED | Color.BLUE; Color | Flags
Flags.A | Flags.A | Flags.B; Point(1, 2) | Point(1, 3); Point(1, 2) | (1, 2); Typed(1) | Typed(2); Typed(1) | Point(1)
Frozen(1) | Frozen(2); Frozen(1, [2]) | Frozen(1, [3]); Slots(1) | Slots(2); Concrete() | Abstract; Listed([1]) | [1]
Listed([1]) | Listed([2]); Lazy(1) | Lazy(2); Generic(1) | Generic(2); circle(1) | circle(2)
Lazy(1).__init__ | Lazy(2).__init__; functools.partial(kept, 1) | functools.partial(kept, 2)
functools.partial(kept, x=1) | functools.partial(quiet, x=1); str.lower | str.upper; len | max; 'a'.join | 'b'.join
np.add | np.multiply; collections.OrderedDict(a=1) | collections.OrderedDict(a=2)
collections.OrderedDict(a=1) | dict(a=1); collections.Counter('ab') | collections.Counter('abb')
collections.deque([1], 3) | collections.deque([1], 4); collections.defaultdict(list) | collections.defaultdict(set)
types.SimpleNamespace(a=1) | types.SimpleNamespace(a=2); datetime.date(2020, 1, 1) | datetime.date(2020, 1, 2)
pathlib.Path('a') | pathlib.Path('b'); re.compile('a') | re.compile('a', re.I)
decimal.Decimal('1') | decimal.Decimal('1.0'); fractions.Fraction(1, 3) | fractions.Fraction(1, 2)
random.Random(1) | random.Random(2); uuid.UUID(int=1) | uuid.UUID(int=2); object() | print
pd.DataFrame({'a': [1, 2]}) | pd.DataFrame({'a': [1, 3]}); pd.DataFrame({'a': ['x']}) | pd.DataFrame({'b': ['x']})
pd.Series([1., 2.]) | pd.Series([1., 2.], index=[1, 2]); list[int] | list[str]
typing.Optional[int] | typing.Optional[str]; int | float; type(None) | type(...); np | torch
typing.Any | typing.Optional; {kept: 1} | {quiet: 1}; {kept: 1} | {kept: 2}; {kept, quiet} | {kept}
{Concrete: [1]} | {Concrete: [2]}; frozenset({kept, Color.RED}) | frozenset({kept, Color.BLUE})
{(kept, 1): quiet} | {(kept, 1): kept}'''
PAIRS = [tuple(p.strip() for p in pair.split(' | ', 1)) for line in PAIRS.splitlines() for pair in line.split('; ')]


@pytest.fixture(scope='module')
def holds(tmp_path_factory):
    return load(tmp_path_factory.mktemp('holds') / 'holds.py', HOLDS)


@pytest.mark.parametrize('one, other', PAIRS, ids=str)
def test_values_that_differ_have_fingerprints_that_differ(one, other, holds):
    def closure(text):
        v = eval(text, vars(holds))
        return lambda: v
    for wrap in (lambda v: v, lambda v: [v, {'key': (v,)}]):
        a, again, b = (fingerprint(wrap(closure(t)())) for t in (one, one, other))
        assert a == again and a != b and None not in (a, b)
    assert fingerprint(closure(one)) == fingerprint(closure(one)) != fingerprint(closure(other))


def test_held_values_are_the_same_in_every_process(tmp_path):
    values = [f'v{n}_{k} = {text}' for n, pair in enumerate(PAIRS) for k, text in enumerate(pair)]
    (path := tmp_path / 'holds.py').write_text('\n'.join([HOLDS, *values]))
    one, two = (elsewhere(path, seed) for seed in '01')
    assert one == two and len(one) > len(values) and [k for k, v in one.items() if v is None] == []


def test_a_cached_property_that_was_read_changes_nothing(holds):
    one, two = holds.Lazy(1), holds.Lazy(1)
    assert two.big == 10 and fingerprint(one) == fingerprint(two)


def test_memories_that_fill_up_with_use_change_nothing(holds):
    import copy
    used = [holds.Slots, holds.Flags, holds.Color, holds.Concrete, holds.Typed, holds.Lazy, holds.kept]
    before = [fingerprint(x) for x in used]
    one = copy.copy(holds.Slots(1)), holds.Flags(3), holds.Color(1), holds.Typed(1)._asdict(), holds.Lazy(1).big
    assert holds.kept(1) == 1 and not isinstance(one, holds.Abstract)
    with pytest.raises(ValueError):
        holds.Color(5)
    assert [fingerprint(x) for x in used] == before


def test_a_class_of_autograd_made_again_is_the_same(tmp_path):
    assert len({fingerprint(load(tmp_path / 'holds.py', HOLDS).Round) for _ in range(2)}) == 1


def test_equal_values_are_equal_whether_shared_or_not():
    x, y = [print, 1], [print, 1]
    assert fingerprint([x, x]) == fingerprint([x, y]) and fingerprint({print: x}) == fingerprint({print: y})


def test_a_compiled_function_is_the_function(ipython):
    cell = 'import torch\ndef g(x): return x + {}\nf = torch.compile(g)'
    one, again, other = (fingerprint(ipython(cell.format(k))['f']) for k in (1, 1, 2))
    assert one == again != other and None not in (one, other)


OPAQUE = cells('''
# cell file
log = open(os.devnull)
def f(x): print(x, file=log)
# cell generator
g = (i for i in range(3))
def f(x): return next(g)
# cell lock
lock = threading.Lock()
def f(x):
    with lock: return x
# cell closure
def make():
    log = open(os.devnull)
    return lambda x: print(x, file=log)
f = make()
# cell default
def f(x, log=open(os.devnull)): pass
# cell instance
class A:
    def __init__(self): self.log = open(os.devnull)
    def go(self): pass
f = A().go
# cell helper
log = open(os.devnull)
def say(x): print(x, file=log)
def f(x): say(x)
# cell attribute
def f(x): pass
f.log = open(os.devnull)
# cell eval
def f(x): return eval("x + 1")
# cell exec
def f(x): exec("x + 1")
# cell globals
def f(x): return globals()["os"]
# cell broken
class A:
    def __reduce__(self): raise RuntimeError("no\\nway")
a = A()
def f(x): return a
# cell sparse
t = torch.eye(2).to_sparse()
def f(x): return t
# cell socket
s = socket.socket()
def f(x): return s
# cell weak
w = weakref.ref(os)
def f(x): return w()
# cell scripted
warnings.simplefilter("ignore")
@torch.jit.script
def f(x: torch.Tensor): return x
''')


@pytest.mark.parametrize('name', OPAQUE)
def test_what_cannot_be_compared_has_no_fingerprint_and_says_why(name, ipython):
    f = ipython('import os, socket, threading, torch, warnings, weakref', OPAQUE[name])['f']
    why = why_uncached(f)
    assert fingerprint(f) is None and why and '\n' not in why and not why.endswith('.')
    expected = dict(file='f → log is a TextIO', helper='f → say → log is a TextIO', eval='f → eval can run')
    assert expected.get(name, '') in why


def test_a_shadowed_eval_is_an_ordinary_function(ipython):
    assert fingerprint(ipython('def eval(x): return x', 'def f(x): return eval(x)')['f'])


# --- modules of the user's own, and imports

USER = cells('''
# cell package
from . import deep
version = 1
# cell deep
import my_package
def sharpen(x): return x * CONSTANT
def other(): return UNUSED
# cell helpers
import my_package.deep
def blur(x): return BLUR
def unused(): return UNUSED
# cell code
import my_helpers, my_package.deep
from my_helpers import blur
def f(x): return my_helpers.blur(x)
def g(x): return my_package.deep.sharpen(x)
def h(x): return blur(x)
def i(x):
    from my_helpers import blur as soft
    import my_package.deep as d
    return soft(d.sharpen(x))
def j(x): return getattr(my_helpers, x)()
''')


def test_only_the_attributes_count_that_are_mentioned(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'my_package').mkdir()

    def build(**change):
        for k in [k for k in sys.modules if k.partition('.')[0] in ('my_package', 'my_helpers')]:
            del sys.modules[k]
        places = dict(package='my_package/__init__.py', deep='my_package/deep.py', helpers='my_helpers.py')
        for name, path in places.items():
            text = USER[name]
            for word, value in (dict(CONSTANT='3', BLUR='x / 2', UNUSED='1') | change).items():
                text = text.replace(word, value)
            (tmp_path / path).write_text(text)
        m = load(tmp_path / 'user_code.py', USER['code'])
        return {k: fingerprint(getattr(m, k)) for k in 'fghij'}
    first = build()
    assert None not in first.values() and first == build()
    for change, seen_by in ((dict(BLUR='x / 3'), 'fhij'), (dict(CONSTANT='4'), 'gij'), (dict(UNUSED='2'), 'j')):
        now = build(**change)
        assert [k for k in first if first[k] != now[k]] == list(seen_by), change


def test_a_missing_optional_import_is_a_fact(tmp_path):
    text = 'def f(x):\n    try: import no_such_package_here\n    except ImportError: return x\n'
    one, two = (fingerprint(load(tmp_path / f'{k}.py', text).f) for k in 'ab')
    assert one == two is not None


def test_a_user_s_module_may_have_the_name_of_one_of_python_s(tmp_path, monkeypatch):
    assert registry._belongs('colorsys') == ''
    monkeypatch.setitem(sys.modules, 'colorsys', None)      # put back at the end
    path, texts = tmp_path / 'colorsys.py', ('def f(x): return x + 1\n', 'def f(x): return x + 22\n')
    one, two = (fingerprint(load(path, text).f) for text in texts)
    assert registry._belongs('colorsys') is None and one != two


def test_a_package_counts_by_its_version(monkeypatch, ipython):
    f = ipython('import numpy as np', 'def f(x): return np.mean(x)')['f']
    before, version = fingerprint(f), registry._version
    monkeypatch.setattr(registry, '_version', lambda top: '0.0.1' if top == 'numpy' else version(top))
    assert fingerprint(f) != before
    monkeypatch.setattr(registry, '_version', lambda top: '0.0.1' if top == 'pandas' else version(top))
    assert fingerprint(f) == before


def test_a_build_of_a_package_does_not_count(monkeypatch):
    import importlib.metadata
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '2.6.0+cu124')
    assert registry._version.__wrapped__('torch') == '2.6.0'


# --- the code that runs

def test_a_file_edited_after_its_import_is_not_taken_for_what_runs(tmp_path):
    path, old, new = tmp_path / 'stale.py', 'def f(x): return x + 1\n', 'def f(x): return x + 2\n'
    fresh = [fingerprint(load(tmp_path / f'fresh{k}.py', text).f) for k, text in enumerate((old, new))]
    m = load(path, old)
    path.write_text(new)
    os.utime(path, (1, 1))
    assert fingerprint(m.f) not in (fresh[1], None)      # the old code still runs
    spec = importlib.util.spec_from_file_location('stale', path)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.f(1) == 3 and fingerprint(again.f) == fresh[1]


TRY = '''
def f(x):
    try:
        a(x)
        b(x)
    except ValueError: pass
'''


@pytest.mark.parametrize('old, new, same', [
    ('def f(x):', 'def f(x):\n    "Doc."  # comment\n', True), ('def f', '\n\ndef f', True), ('a(x)', '(a( x ))', True),
    ('    try:\n        a(x)\n', '    a(x)\n    try:\n', False), ('a(x)', 'x(a)', False), ('a(x)', 'a(x, 1)', False),
    ('ValueError', 'TypeError', False), ('pass', 'raise', False), ('b(x)', 'b(*x)', False), ('def', 'async def', False),
    ('b(x)', 'b(x in {"c", "d"})', False), ('(x):', '(x, /):', False), ('b(x)', 'yield b(x)', False)], ids=str)
def test_functions_without_source_are_compared_by_what_runs(old, new, same):
    def made(text):
        space = {}
        exec(text, space)
        assert not from_source(space['f'])
        return fingerprint(space['f'])
    assert (made(TRY) == made(TRY.replace(old, new))) == same


def test_the_order_in_a_constant_set_does_not_count_without_source(tmp_path):
    (path := tmp_path / 'made.py').write_text('exec(\'def f(x): return x in {"a", "b", "c", "d"}\')')
    assert len({json.dumps(elsewhere(path, seed)) for seed in '0123'}) == 1


def test_two_names_swapped_are_seen(ipython):
    make, use = 'def make(k): return lambda x: x + k', 'def f(x): return a(b(x))'
    assert len({fingerprint(ipython(make, f'{names} = make(1), make(2)', use)['f']) for names in ('a, b', 'b, a')}) == 2


def test_many_classes_that_refer_to_each_other_take_little_time(ipython):
    names = [f'C{k}' for k in range(25)]
    sources = [f'class {n}:\n    def go(self): return [{", ".join(names)}]' for n in names]
    f = ipython(*sources, 'def f(): return C0()')['f']
    start = time.perf_counter()
    before = fingerprint(f)
    assert time.perf_counter() - start < 2
    ipython(sources[17].replace('return', 'return 1 and'), fresh=False)
    assert fingerprint(f) != before


def test_a_circle_is_the_same_however_it_was_made(ipython):
    a, b, c = 'def a(n): return b(n)', 'def b(n): return c(n)', 'def c(n): return a(n) + {}'
    f = 'def f(n): return [a, b, c]'
    programs = (a, b, c.format(1)), (c.format(1), b, a), (a, b, c.format(2))
    one, again, other = (fingerprint(ipython(*program, f)['f']) for program in programs)
    assert one == again != other


CHAIN = '''class Node:
    def __init__(self, value, rest): self.value, self.rest = value, rest
    {}
def chain(last, n, ring=False):
    end = node = Node(last, None)
    for k in range(n): node = Node(0, node)
    if ring: end.rest = node
    return node'''


def test_a_long_chain_of_objects_is_followed_to_its_end(ipython):
    chain = ipython(CHAIN.format(''))['chain']
    start = time.perf_counter()
    a, b, c, d = (fingerprint(chain(last, n)) for last, n in ((1, 3000), (1, 3000), (2, 3000), (1, 3001)))
    assert a == b and len({a, c, d}) == 3 and None not in (a, c, d) and time.perf_counter() - start < 10


@pytest.mark.parametrize('ring', [False, True])
def test_a_circle_is_followed_with_some_work_and_refused_beyond(ring, ipython, monkeypatch):
    chain = ipython(CHAIN.format('def more(self): return Node(1, self)'))['chain']
    a, b, c, d = (fingerprint(chain(last, n, ring)) for last, n in ((1, 60), (1, 60), (2, 60), (1, 61)))
    assert a == b and len({a, c, d}) == 3 and None not in (a, c, d)
    monkeypatch.setattr(registry, '_WORK', 10_000)
    assert fingerprint(chain(1, 300, ring)) is None and 'too many objects' in why_uncached(chain(1, 300, ring))


def test_more_objects_than_can_be_looked_at_are_refused(monkeypatch):
    monkeypatch.setattr(registry, '_MOST', 50)
    assert fingerprint([[print] for _ in range(30)]) and fingerprint([[print] for _ in range(60)]) is None
    assert '50 objects' in why_uncached([[print] for _ in range(60)])


def test_an_object_made_before_its_class_was_run_again_is_the_same(ipython):
    cell = 'class A:\n    def __init__(self, k): self.k = k\n    def more(self): return A(self.k + 1)'
    f = ipython(cell, 'a = A(1)', 'def f(x): return a.more(), A(x)')['f']
    before = fingerprint(f)
    ipython(cell, fresh=False)
    assert fingerprint(f) == before
    ipython(cell.replace('+ 1', '+ 2'), fresh=False)
    assert fingerprint(f) != before


def test_a_choice_that_is_called_by_its_name_counts(ipython):
    methods = Registry('some.method')
    inner = '@methods.register("inner")\ndef inner(x): return x + {}'
    outer = '@methods.register("outer")\ndef outer(x): return methods["inner"](x)'
    other = 'which = ["inner"]\ndef other(x): return methods[which[0]](x)'

    def now(k):
        space = ipython(inner.format(k), outer, other, methods=methods)
        return fingerprint(space['outer']), fingerprint(space['other'])
    one, two, again = now(1), now(2), now(1)
    assert one == again and one[0] != two[0] and one[1] != two[1]
    methods.register('unrelated', print)
    assert now(1) == one


# --- random edits of real programs

CORPUS = 'statistics textwrap heapq fractions colorsys difflib shlex contextlib graphlib csv calendar'.split()


def standard(name):
    return Path(os.__file__).with_name(f'{name}.py').read_text(encoding='utf-8')


def fingerprints(path, text):
    "Name -> fingerprint of what is defined in a module of this text."
    m = load(path, text)
    found = {k: v for k, v in vars(m).items() if isinstance(v, (types.FunctionType, type))}
    return {k: fingerprint(v) for k, v in found.items() if v.__module__ == m.__name__}


@pytest.mark.parametrize('name', CORPUS)
def test_another_layout_of_a_program_gives_the_same_fingerprints(name, tmp_path):
    text = standard(name)
    one = fingerprints(tmp_path / 'one.py', text)
    assert one == fingerprints(tmp_path / 'two.py', '# moved\n\n\n' + ast.unparse(ast.parse(text)))
    assert one and None not in one.values()


SWAP = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq,
        ast.Is: ast.IsNot, ast.In: ast.NotIn, ast.And: ast.Or, ast.Or: ast.And, ast.Not: ast.USub}
OTHER = {int: lambda v: v + 1, float: lambda v: v + .5, str: lambda v: v + '!', bool: lambda v: not v}


def working(definition):
    "The nodes in the bodies of a definition's functions that compute something."
    bodies = [s for f in ast.walk(definition) if isinstance(f, ast.FunctionDef) for s in f.body]
    nodes = {id(n): n for s in bodies for n in ast.walk(s)}
    silent = [n.value for n in nodes.values() if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    silent += [getattr(n, k) for n in nodes.values() for k in ('annotation', 'returns') if getattr(n, k, None)]
    dead = {id(x) for n in silent for x in ast.walk(n)}
    return [n for k, n in nodes.items() if k not in dead]


def mutations(definition):
    "(node, field, new value) of changes, one at a time."
    for n in working(definition):
        if isinstance(n, ast.Constant) and type(n.value) in OTHER:
            yield n, 'value', OTHER[type(n.value)](n.value)
        elif isinstance(n, (ast.BinOp, ast.BoolOp, ast.UnaryOp)) and type(n.op) in SWAP:
            yield n, 'op', SWAP[type(n.op)]()
        elif isinstance(n, ast.Compare) and type(n.ops[0]) in SWAP:
            yield n, 'ops', [SWAP[type(n.ops[0])](), *n.ops[1:]]
        elif isinstance(n, ast.If):
            yield n, 'test', ast.UnaryOp(ast.Not(), n.test)
        elif isinstance(n, ast.Return) and n.value:
            yield n, 'value', ast.Tuple([n.value], ast.Load())
        elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load):
            yield n, 'attr', n.attr + '_'


@pytest.mark.parametrize('seed', range(40))
def test_a_random_edit_of_a_function_changes_its_fingerprint(seed, tmp_path):
    rng = random.Random(seed)
    name = rng.choice(CORPUS)
    tree = ast.parse(standard(name))
    before = fingerprints(tmp_path / 'before.py', ast.unparse(tree))
    choices = [n for n in tree.body if getattr(n, 'name', None) in before and any(mutations(n))]
    f = rng.choice(choices)
    node, field, value = rng.choice(list(mutations(f)))
    was = ast.unparse(f)
    setattr(node, field, value)
    now = ast.unparse(ast.fix_missing_locations(f))
    after = fingerprints(tmp_path / 'after.py', ast.unparse(tree))
    changed = {k for k in before if before[k] != after.get(k)}
    assert f.name in changed, f'{name}.{f.name}, seed {seed}:\n{was}\n---\n{now}'
    mentioned = [{getattr(x, 'id', getattr(x, 'attr', None)) for x in ast.walk(n)} for n in tree.body if n is not f]
    if not any(f.name in names for names in mentioned):
        assert changed == {f.name}


# --- this library, and networks

def test_this_library_has_no_fingerprint_unless_it_carries_something_of_the_user_s():
    from edc_nb import schedules, settings
    from edc_nb.stages.initialize import from_real
    assert [fingerprint(x) for x in (from_real, schedules.ALRS, settings.EdcError)] == ['', '', '']
    assert why_uncached(from_real) == ''
    parts = [functools.partial(from_real, ipc=k) for k in (3, 4)]
    states = [settings.InitializeSettings(factor=k) for k in (2, 3)]
    found = [fingerprint(x) for x in (*parts, *states)]
    assert len(set(found)) == 4 and not {None, ''} & set(found)


def test_usual_functions_take_less_than_five_milliseconds(ipython):
    space = ipython(*CELLS.values())
    for name in ('f', 'child', 'Net', 'soften', 'config'):
        times = []
        for _ in range(7):
            start = time.perf_counter()
            fingerprint(space[name])
            times.append(time.perf_counter() - start)
        assert min(times) < .005, (name, times)


NETS = cells('''
# cell imports
import torch
from pathlib import Path
from torch import nn
# cell net
class Net(nn.Module):
    def __init__(self, classes, size, width=4):
        super().__init__()
        self.body, self.act, self.head = nn.Conv2d(3, width, 3), nn.ReLU(), nn.Linear(width, classes)
        self.register_buffer("mean", torch.zeros(1))
    def forward(self, x): return self.head(self.act(self.body(x)).mean((2, 3)) + self.mean.mean())
# cell deep
def deep(classes, size):
    n = int(Path(depth).read_text())
    return nn.Sequential(*[nn.Linear(size, size) for _ in range(n)], nn.Linear(size, classes))
# cell small
small = lambda classes, size: Net(classes, size, 2)
''')


def test_a_network_counts_by_source_layers_and_shapes(ipython, tmp_path):
    def now(old='', new='', depth='2'):
        (path := tmp_path / 'depth.txt').write_text(depth)
        space = ipython(*(source.replace(old, new) if old else source for source in NETS.values()), depth=str(path))
        return {n: fingerprint_network(space[n], 10, 8) for n in ('Net', 'deep', 'small')}
    state, first = torch.random.get_rng_state(), now()
    assert torch.equal(state, torch.random.get_rng_state())
    assert None not in first.values() and len(set(first.values())) == 3
    edits = [(dict(old='n = int', new='# more\n    n = int'), []), (dict(old='ReLU', new='GELU'), ['Net', 'small']),
             (dict(old='zeros(1)', new='zeros(2)'), ['Net', 'small']), (dict(depth='3'), ['deep'])]
    for edit, seen_by in edits:
        assert [k for k, v in now(**edit).items() if v != first[k]] == seen_by, edit


ODD = cells('''
# cell imports
import os, torch
from torch import nn
log = open(os.devnull)
# cell scaled
def scaled(n, size):
    net = nn.Linear(size, n)
    net.scale = net.weight.sum().item()
    return net
# cell bad
def bad(n, size): raise RuntimeError("no such size")
# cell none
def none(n, size): return 3
# cell noisy
def noisy(n, size):
    print(n, file=log)
    return nn.Linear(size, n)
# cell hooked
class Hooked(nn.Module):
    def extra_repr(self): return f"hook={print_it}"
def print_it(): pass
''')


def test_networks_that_cannot_be_made_without_memory_or_at_all(ipython):
    space = ipython(*ODD.values())
    state = torch.random.get_rng_state()
    assert len(fingerprint_network(space['scaled'], 10, 8)) == 16 and torch.equal(state, torch.random.get_rng_state())
    said(lambda: fingerprint_network(space['bad'], 10, 8), 'bad(10, 8)', 'no such size')
    said(lambda: fingerprint_network(space['none'], 10, 8), 'none(10, 8)', 'int', 'nn.Module')
    assert fingerprint_network(space['noisy'], 10, 8) is None


def test_a_network_s_address_does_not_count(ipython):
    one, two = (fingerprint_network(ipython(*ODD.values())['Hooked']) for _ in range(2))
    assert one == two


def test_networks_of_this_library_of_packages_and_ready_made():
    from edc_nb.models.architectures import alexnet
    assert fingerprint_network(alexnet, 10, 32) == ''
    assert len({fingerprint_network(nn.Linear, 3, k) for k in (4, 4, 5)}) == 2
    torch.manual_seed(0)
    assert len({fingerprint_network(nn.Linear(2, 2)) for _ in range(2)}) == 2      # its weights count
