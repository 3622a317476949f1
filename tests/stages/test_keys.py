"""Keys of stages and hashes of recipes: made of what differs from the defaults, and of what a stage depends on."""
import dataclasses
import hashlib
import json

from edc_nb.core.files import Store
from edc_nb.core.settings import DataSettings, Recipe, SynthesizeSettings, flat, overrides, setting_names
from edc_nb.data.open import open_dataset
from edc_nb.models.weights import save_weights
from edc_nb.recipes.registry import recipe
from edc_nb.run.chain import Chain
from edc_nb.run.folder import condense
from kit import ROOT, plain, small, stages

DEFAULTS = ROOT / 'tests' / 'project' / 'defaults.json'


def test_defaults_never_change():
    """A default that changes, or a setting that goes, would silently give older runs and ledgers another meaning.

    New settings are fine if their default is what was done before: add them to the file."""
    golden = json.loads(DEFAULTS.read_text())
    now = {k: plain(v) for k, v in flat(Recipe('')).items() if '.' in k}
    assert list(now) == setting_names()
    assert {k: now.get(k, 'gone') for k in golden} == golden
    added = {k: v for k, v in now.items() if k not in golden}
    assert not added, f'new settings: add {added} to {DEFAULTS.name}, so that their defaults are kept from now on'


def test_hashes_are_made_of_what_differs_from_the_defaults():
    golden = json.loads(DEFAULTS.read_text())
    for r in (Recipe('x'), recipe('edc', 'cifar10'), recipe('fadrm-plus', 'imagenet1k', 1), small()):
        sections = {k.split('.')[0]: {} for k in golden}
        for k, v in flat(r).items():
            if '.' in k and plain(v) != golden[k]:
                sections[k.split('.')[0]][k.split('.')[1]] = plain(v)
        text = json.dumps(dict(ipc=r.ipc) | sections, sort_keys=True)
        assert r.hash == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert Recipe('x').hash == Recipe('y').hash != Recipe('x', ipc=1).hash
    defaults = {'matching.alpha': .5, 'synthesize.lr': .05}
    assert Recipe('x').replace(defaults).hash == Recipe('x').hash       # said or not said
    assert Recipe('x').replace({'matching.alpha': .25}).hash == '0a6ea8deb77d'       # of a run long ago


def test_a_setting_that_comes_later_leaves_old_keys():
    newcomer = dataclasses.field(default=7, metadata=dict(note='', lo=None, hi=None, choices=None, paper=None))
    later = dataclasses.make_dataclass(
        'SynthesizeSettings', [('newcomer', int, newcomer)], bases=(SynthesizeSettings,), frozen=True)
    assert overrides(later(lr=.3)) == overrides(SynthesizeSettings(lr=.3)) == dict(lr=.3)
    assert overrides(later(newcomer=8)) == dict(newcomer=8)


def test_keys_hold_no_defaults(tmp_path):
    d = open_dataset(DataSettings('digits', per_class=3, test_per_class=3))
    chain = Chain(Recipe('x').replace({'synthesize.lr': .3, 'evaluate.zeta': 1.}), d, Store(tmp_path))
    key = chain.keys.labels(0)
    assert key['images']['synthesize'] == dict(lr=.3)
    assert key['images']['matching'] == key['augment'] == key['relabel'] == {}
    assert key['observers'][0]['squeeze'] == {} and key['images']['initial']['initialize'] == dict(observer=None)


def test_statistics_of_foreign_observers_depend_on_the_views(tmp_path):
    "Weights from outside: the views of the statistics pass are still the recipe's."
    own = condense(small(), out=tmp_path / 'own', progress=False)
    network, card = own.chain.observer('convnet_d1')
    weights = {'convnet_d1': tmp_path / 'convnet_d1.safetensors'}
    save_weights(network, weights['convnet_d1'], dict(card=card))
    one = {'synthesize.observers': ['convnet_d1'], 'relabel.observers': ['convnet_d1']}
    args = dict(store=tmp_path / 'store', weights=weights, progress=False)
    a, b = (condense(small(**one | views), out=tmp_path / str(i), **args)
            for i, views in enumerate(({}, {'squeeze.crop_pad': 3})))
    assert not a.images.equal(b.images) and len(stages(tmp_path / 'store')['statistics']) == 2
