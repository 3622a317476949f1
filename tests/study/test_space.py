"""The design space: every switch changes what it says and nothing else; sweeps, search and tables; stages, coresets and bi-level methods against independent computations."""
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, edc_environment
from test_chain import AFTER, new_stages, quick, sets, stages
from test_cli import here, one_sentence      # noqa: F401 (a fixture)
from test_faults import finish, start

from edc_nb.core.files import load_tensors
from edc_nb.data.open import open_dataset
from edc_nb.stages.initialize import Initial, initialize
from edc_nb.run.ledger import Ledger
from edc_nb.stages.matching import collect_statistics
from edc_nb.models.registry import build_model
from edc_nb.run.chain import Chain
from edc_nb.run.checks import check_recipe
from edc_nb.run.folder import condense
from edc_nb.run.report import evaluate
from edc_nb.recipes.base import random_real
from edc_nb.recipes.registry import recipe
from edc_nb.core.settings import DataSettings, EdcError, MatchingSettings, Recipe, SqueezeSettings, SynthesizeSettings, overrides, flat, parse_set, setting_names
from edc_nb.models.helpers import features
from edc_nb.study.search import search
from edc_nb.study.sweeps import sweep
from edc_nb.stages.synthesize import Observer, synthesize, to_bytes
from edc_nb.recipes.scales import SCALES
from edc_nb.paper.reproduce import compare, reproduce, rows
from edc_nb.paper.tables import paper, table_names

# so few steps must show in images of 256 levels: a large rate, and a flatness term that matters
BASE = {'synthesize.iterations': 8, 'synthesize.lr': .2, 'synthesize.flatness_weight': 5., 'synthesize.flatness_decay': .8, 'initialize.candidates': 8}


def small(**changes):
    return quick(**BASE | changes)


@dataclasses.dataclass
class Artefacts:
    "What a run left behind."
    images: torch.Tensor
    initial: torch.Tensor
    labels: dict
    student: dict
    record: dict

    def same(self, other):
        "Which artefacts are bitwise equal."
        return {k for k in ('images', 'initial') if getattr(self, k).equal(getattr(other, k))} | {
            k for k in ('labels', 'student') if getattr(self, k).keys() == getattr(other, k).keys() and all(v.equal(getattr(other, k)[k2]) for k2, v in getattr(self, k).items())}


def run(r, folder, store):
    c = condense(r, out=folder, store=store, progress=False)
    record, = evaluate(c).records
    labels = c.chain.labels(c.chain.stream(c.images, c.labels, 0)).store if r.relabel.labels == 'soft' else None
    return Artefacts(c.images, c.chain.initial().images, labels.tensors if labels else {}, load_tensors(c.chain.student(0)[1] / 'student.safetensors')[0], record)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp('space')
    return run(small(), folder / 'run', folder / 'store'), folder / 'store'


def pair(before, changes, base, tmp_path):
    "(artefacts without the change, artefacts with it, stages computed for it), on a copy of the base's store."
    a, store = base
    shutil.copytree(store, tmp_path / 'store', copy_function=shutil.copy2)
    if before:
        a = run(small(**before), tmp_path / 'before', tmp_path / 'store')
    was = stages(tmp_path / 'store')
    b = run(small(**before | changes), tmp_path / 'after', tmp_path / 'store')
    return a, b, new_stages(was, stages(tmp_path / 'store'))


def ids(cases):
    return [' '.join(f"{k.split('.', 1)[-1] if i else k}={v}" for i, d in enumerate(c[::-1]) for k, v in d.items()) for c in cases]


# ---- the student's training: images and labels stay

STUDENT = [({}, {'evaluate.zeta': 1.}), ({}, {'evaluate.zeta': 3.}), *(({}, {'evaluate.schedule': s}) for s in ('cosine', 'linear', 'constant')), *(({'evaluate.epochs': 8}, {'evaluate.schedule': s}) for s in ('ssrs', 'ssrs_continuous', 'multistep', 'alrs')),
           ({'evaluate.schedule': 'multistep'}, {'evaluate.gamma': .1}), ({'evaluate.schedule': 'multistep'}, {'evaluate.milestones': [.25]}), ({'evaluate.schedule': 'alrs', 'evaluate.lr': 1e-5, 'augment.crop': 'none', 'augment.mix': 'none'}, {'evaluate.alrs_gamma': .5}),
           ({}, {'evaluate.ema_rate': .9}), ({}, {'evaluate.ema_rate': 0.}), *(({}, {'evaluate.loss': k}) for k in ('kl', 'dist', 'soft_ce', 'ce')),
           ({'evaluate.loss': 'kl'}, {'evaluate.temperature': 4.}), ({}, {'evaluate.ce_weight': .5}), ({}, {'evaluate.flatness': 'sam'}), ({'evaluate.flatness': 'sam'}, {'evaluate.sam_radius': .5}),
           ({}, {'evaluate.flatness': 'ema'}), ({'evaluate.flatness': 'ema'}, {'evaluate.flatness_weight': 9.}), ({'evaluate.flatness': 'ema'}, {'evaluate.flatness_temperature': 1.}),
           ({}, {'evaluate.optimizer': 'sgd'}), ({}, {'evaluate.lr': .01}), ({}, {'evaluate.weight_decay': .5}), ({}, {'evaluate.student': 'convnet_d2'})]


@pytest.mark.parametrize('before,changes', STUDENT, ids=ids(STUDENT))
def test_a_switch_of_the_students_training_leaves_images_and_labels(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == {'evaluate'} and a.same(b) == {'images', 'initial', 'labels'}


LABELS = [*(({}, {f'augment.{k}': v}) for k, v in (('crop_scale', [.2, 1.]), ('crop', 'pad'), ('crop', 'none'), ('flip', .5), ('randaugment', 1), ('mix', 'mixup'), ('mix', 'none'), ('mix_alpha', .3), ('patch_shuffle', 2))),
          ({'augment.crop': 'pad'}, {'augment.crop_pad': 1}), ({'augment.randaugment': 1}, {'augment.magnitude': 25}),
          ({}, {'relabel.observers': ['convnet_d2']}), ({}, {'relabel.codec': 'int8'}), ({}, {'relabel.codec': 'topk', 'relabel.topk': 3}), ({}, {'evaluate.batch_size': 10}), ({}, {'evaluate.epochs': 5}),
          ({'relabel.observers': ['wrn16_2']}, {'relabel.bn': 'batch'}), ({'relabel.observers': ['wrn16_2'], 'relabel.bn': 'batch', 'evaluate.batch_size': 10}, {'relabel.bn_parts': 2})]


@pytest.mark.parametrize('before,changes', LABELS, ids=ids(LABELS))
def test_a_switch_of_views_and_labels_leaves_the_images(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new - {'ensemble'} == {'relabel', 'evaluate'} and a.same(b) == {'images', 'initial'}
    assert ('ensemble' in new) == ('relabel.observers' in changes)


def test_observers_for_labels_may_be_trained_longer(base, tmp_path):
    "New ones for the labels; images as they were; the record tells the two kinds apart."
    a, b, new = pair({}, {'squeeze.label_epochs': 3}, base, tmp_path)
    assert new == {'observer', 'relabel', 'evaluate', 'ensemble'} and a.same(b) == {'images', 'initial'}
    assert set(a.record['observers']) == {'convnet_d1', 'convnet_d2'} and set(b.record['observers']) == {'convnet_d1', 'convnet_d2', 'convnet_d1 (labels)', 'convnet_d2 (labels)'}
    assert all(b.record['observers'][k] == v for k, v in a.record['observers'].items()) and len(stages(tmp_path / 'store')['observer']) == 4
    assert b.record['ensemble'] != a.record['ensemble']


# ---- the images: observers, statistics and first images stay

TWO = {'synthesize.batch_size': 10}          # a batch for each half of the twenty images
NOISE = {'initialize.method': 'noise'}       # real images of a class are so alike that the spectrum's softmax leaves no gradient
IMAGES = [*(({}, {f'matching.{k}': v}) for k, v in (
              ('alpha', 0.), ('alpha', .25), ('alpha', .75), ('alpha', 1.), ('weight', .1), ('ce_weight', 0.), ('first_multiplier', 1.), ('drop_rate', .6), ('class_target', 'batch_mean'), ('class_target', 'per_image'),
              ('class_variance', 'within_image'), ('patch_swap', True), ('stat_ema', 0.), ('stat_ema_init', 'zero'), ('stat_group', 7), ('conv_global_variance', 'batch_mean'))),
          ({'synthesize.observers': ['wrn16_2']}, {'matching.bn_global': 'pooled'}), (TWO, {'matching.stat_ema_reset': 'never'}),
          *(({}, {f'synthesize.{k}': v}) for k, v in (
              ('flatness', 'statistics'), ('flatness', 'sam'), ('flatness', 'off'), ('flatness_weight', 50.), ('flatness_decay', .3), ('flatness_temperature', 1.), ('flatness_direction', 'ema_current'), ('flatness_reduction', 'element'),
              ('crop_scale', [.1, 1.]), ('crop', 'pad'), ('crop', 'none'), ('crop_min_end', .05), ('crop_shared', False), ('flip', .5), ('jitter', 2), ('iterations', 4), ('lr', .1), ('lr_schedule', 'constant'), ('betas', [.9, .99]),
              ('batch_size', 10), ('stages', 2), ('stages', 4), ('image_format', 'jpeg75'), ('observers', ['convnet_d2', 'convnet_d1']))),
          ({'synthesize.flatness': 'sam'}, {'synthesize.sam_radius': 2.}), ({'synthesize.flatness': 'statistics'}, {'synthesize.flatness_decay': .1}), ({'synthesize.crop': 'pad'}, {'synthesize.crop_pad': 1}),
          (TWO, {'synthesize.order': 'slot'}), (NOISE, {'synthesize.densify_weight': 1000.}), (NOISE | {'synthesize.densify_weight': 1000.}, {'synthesize.densify_temperature': 1.5}), ({'synthesize.stages': 2}, {'synthesize.residual': .5}),
          ({'synthesize.stages': 2, 'synthesize.residual': .5}, {'synthesize.residual': .9}), ({'matching.patch': 0, 'synthesize.stages': 2, 'synthesize.observers': ['wrn16_2']}, {'synthesize.stage_sizes': [10, 8]}),
          ({'synthesize.method': 'dm', 'synthesize.iterations': 2, 'bilevel.network': 'convnet_d1', 'bilevel.real_batch': 8}, {'bilevel.lr': 20.}),
          ({'synthesize.method': 'dm', 'synthesize.iterations': 2, 'bilevel.network': 'convnet_d1', 'bilevel.real_batch': 8}, {'bilevel.siamese': False})]


@pytest.mark.parametrize('before,changes', IMAGES, ids=ids(IMAGES))
def test_a_switch_of_the_synthesis_leaves_observers_statistics_and_first_images(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == set(AFTER) and a.same(b) == {'initial'}
    assert b.images.shape == a.images.shape and b.record['observers'] == a.record['observers']


RDED = {'initialize.method': 'rded', 'initialize.factor': 2}
FIRST = [*(({}, {'initialize.method': m}) for m in ('noise', 'rded', 'herding', 'k-centre')), ({}, {'initialize.flip': .5}), ({}, {'initialize.replacement': True}), (RDED, {'initialize.factor': 1}), (RDED, {'initialize.difficulty': 'medium'}),
         (RDED, {'initialize.candidates': 20}), (RDED, {'initialize.crops': 2}), (RDED, {'initialize.crop_scale': [.5, 1.]}), (RDED, {'initialize.observer': 'convnet_d2'}), ({'initialize.method': 'herding'}, {'initialize.observer': 'convnet_d2'})]


@pytest.mark.parametrize('before,changes', FIRST, ids=ids(FIRST))
def test_a_switch_of_the_first_images_leaves_observers_and_statistics(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == {'initialize', *AFTER} and a.same(b) == set()
    assert b.record['observers'] == a.record['observers']


SQUEEZE = [({}, {f'squeeze.{k}': v}) for k, v in (('epochs', 2), ('lr', .01), ('batch_size', 32), ('optimizer', 'adamw'), ('weight_decay', .1), ('crop_pad', 2), ('crop', 'resized'), ('flip', .5))]


@pytest.mark.parametrize('before,changes', SQUEEZE, ids=ids(SQUEEZE))
def test_a_switch_of_the_observers_training_makes_all_but_the_first_images_new(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == {'observer', 'statistics', 'ensemble', *AFTER} and a.same(b) == {'initial'}


# ---- what does not apply

DM = {'synthesize.method': 'dm', 'synthesize.iterations': 2, 'relabel.labels': 'hard', 'evaluate.loss': 'ce', 'bilevel.network': 'convnet_d1', 'bilevel.real_batch': 8}
NOTHING = [({}, {'bilevel.lr': .3, 'bilevel.network': 'convnet_d2', 'bilevel.outer_steps': 5, 'bilevel.siamese': False}), ({}, {'initialize.observer': 'convnet_w32'}), ({}, {'squeeze.full_epochs': 9}), ({}, {'squeeze.label_epochs': 1}),
           ({}, {'squeeze.label_start': 'scratch'}), (DM, {'matching.alpha': .1, 'matching.patch': 0, 'matching.taps': 'bn'}), (DM, {'synthesize.observers': ['wrn16_2']}), (DM, {'squeeze.epochs': 4}), (DM, {'relabel.observers': ['wrn16_2'], 'relabel.codec': 'int8'}),
           ({'synthesize.iterations': 0}, {'matching.alpha': .1, 'synthesize.lr': .5, 'synthesize.flatness': 'sam'})]


@pytest.mark.parametrize('before,changes', NOTHING, ids=ids(NOTHING))
def test_a_setting_of_a_part_that_is_not_used_computes_nothing(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == set() and a.same(b) == {'images', 'initial', 'labels', 'student'}


IDLE = [({'synthesize.flatness': 'off'}, {'synthesize.flatness_weight': 9., 'synthesize.flatness_decay': .1, 'synthesize.sam_radius': 1.}), ({}, {'synthesize.sam_radius': 1., 'synthesize.crop_pad': 1, 'synthesize.densify_temperature': 9.}),
        ({'synthesize.crop': 'none'}, {'synthesize.crop_scale': [.1, .2]}), ({}, {'synthesize.snapshots': [0, 3]}), ({'matching.alpha': 1.}, {'matching.class_target': 'batch_mean', 'matching.class_variance': 'within_image'}),
        ({'matching.stat_ema': 0.}, {'matching.stat_ema_init': 'zero'}), ({}, {'matching.stat_ema_reset': 'never'}), ({}, {'initialize.factor': 2, 'initialize.crops': 1, 'initialize.difficulty': 'medium'}),
        ({}, {'evaluate.sam_radius': 1., 'evaluate.flatness_weight': 9., 'evaluate.temperature': 3., 'evaluate.gamma': .1, 'evaluate.alrs_gamma': .5, 'evaluate.milestones': [.5], 'evaluate.momentum': .1}),
        ({}, {'relabel.topk': 2, 'relabel.teacher_batch': 7}), ({}, {'augment.crop_pad': 2, 'augment.magnitude': 20}), ({'augment.mix': 'none'}, {'augment.mix_alpha': 9.})]


@pytest.mark.parametrize('before,changes', IDLE, ids=ids(IDLE))
def test_a_setting_that_does_not_apply_changes_no_result(before, changes, base, tmp_path):
    a, b, _ = pair(before, changes, base, tmp_path)
    assert a.same(b) == {'images', 'initial', 'labels', 'student'}
    assert all(a.record[k] == b.record[k] for k in ('images_hash', 'last', 'best', 'raw_last', 'curve', 'ensemble', 'observers'))


def test_label_observers_trained_otherwise_do_not_touch_those_that_judge_first_images(base, tmp_path):
    "RDED asks an observer of the first kind, whatever the labels' observers are."
    a, b, new = pair(RDED, {'squeeze.label_epochs': 2}, base, tmp_path)
    assert new == {'observer', 'relabel', 'evaluate', 'ensemble'} and a.same(b) == {'images', 'initial'}


# ---- keys

def plain(v):
    return json.loads(json.dumps(v))


def test_defaults_never_change():
    """Keys of stages and hashes of recipes are made of what differs from the defaults. A default that changes, or a setting that goes, would
    silently give older runs and ledgers another meaning. New settings are fine if their default is what was done before: add them to the file."""
    golden = json.loads((ROOT / 'tests' / 'project' / 'defaults.json').read_text())
    now = {k: plain(v) for k, v in flat(Recipe('')).items() if '.' in k}
    assert list(now) == setting_names()
    assert {k: now.get(k, 'gone') for k in golden} == golden
    assert not set(now) - set(golden), f'new settings: add {({k: v for k, v in now.items() if k not in golden})} to tests/defaults.json, so that their defaults are kept from now on'


def test_hashes_are_made_of_what_differs_from_the_defaults():
    golden = json.loads((ROOT / 'tests' / 'project' / 'defaults.json').read_text())
    for r in (Recipe('x'), recipe('edc', 'cifar10'), recipe('fadrm-plus', 'imagenet1k', 1), small()):
        rooms = {k.split('.')[0]: {} for k in golden}
        for k, v in flat(r).items():
            if '.' in k and plain(v) != golden[k]:
                rooms[k.split('.')[0]][k.split('.')[1]] = plain(v)
        text = json.dumps(dict(ipc=r.ipc) | rooms, sort_keys=True)
        assert r.hash == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert Recipe('x').hash == Recipe('y').hash != Recipe('x', ipc=1).hash
    assert Recipe('x').replace({'matching.alpha': .5, 'synthesize.lr': .05}).hash == Recipe('x').hash       # said or not said
    assert Recipe('x').replace({'matching.alpha': .25}).hash == '0a6ea8deb77d'       # of a run long ago


def test_a_setting_that_comes_later_leaves_old_keys():
    later = dataclasses.make_dataclass('SynthesizeSettings', [('newcomer', int, dataclasses.field(default=7, metadata=dict(note='', lo=None, hi=None, choices=None, paper=None)))], bases=(SynthesizeSettings,), frozen=True)
    assert overrides(later(lr=.3)) == overrides(SynthesizeSettings(lr=.3)) == dict(lr=.3) and overrides(later(newcomer=8)) == dict(newcomer=8)


def test_keys_hold_no_defaults(tmp_path):
    d = open_dataset(DataSettings('digits', per_class=3, test_per_class=3))
    from edc_nb.core.files import Store
    chain = Chain(Recipe('x').replace({'synthesize.lr': .3, 'evaluate.zeta': 1.}), d, Store(tmp_path))
    key = chain.label_key(0)
    assert key['images']['synthesize'] == dict(lr=.3) and key['images']['matching'] == key['augment'] == key['relabel'] == {}
    assert key['observers'][0]['squeeze'] == {} and key['images']['initial']['initialize'] == dict(observer=None)


# ---- sweeps

def count(store):
    return {k: len(v) for k, v in stages(store).items()}


def essence(records):
    "Records without clocks and places."
    return [{k: v for k, v in plain(r).items() if k not in ('seconds', 'peak_mb', 'environment', 'schema')} for r in records]


def test_cells_of_a_sweep_share_stages(tmp_path):
    done = sweep(small(), {'matching.alpha': [0., 1.], 'evaluate.zeta': [1., 2., 3.]}, out=tmp_path, seeds=2, progress=False)
    assert len(done.cells) == 6 and not done.failed and done.varied == ['matching.alpha', 'evaluate.zeta']
    assert count(tmp_path / 'store') == dict(observer=2, statistics=2, initialize=1, synthesize=2, relabel=4, evaluate=12, ensemble=1)
    got = [(r['settings']['matching']['alpha'], r['settings']['evaluate']['zeta'], r['seed']) for r in done.records]
    assert got == list(itertools.product([0., 1.], [1., 2., 3.], [0, 1]))
    assert essence(Ledger(tmp_path / 'ledger.jsonl').records()) == essence(done.records)
    table = done.table()
    for i, (a, z) in enumerate(itertools.product([0., 1.], [1., 2., 3.])):
        last = [100 * r['last'] for r in done.records[2 * i:2 * i + 2]]
        assert (table['matching.alpha'][i], table['evaluate.zeta'][i], table['seeds'][i]) == (a, z, 2)
        assert table['last'][i] == pytest.approx(sum(last) / 2, abs=.006) and table['last sd'][i] == pytest.approx(abs(last[0] - last[1]) / 2**.5, abs=.006)
    alone = run(small(**{'matching.alpha': 1., 'evaluate.zeta': 3.}), tmp_path / 'alone', tmp_path / 'other store').record      # a cell is what `condense` and `evaluate` would have given
    ignored = ('seconds', 'peak_mb', 'environment')
    cell, = [r for r in done.records if (r['recipe_hash'], r['seed']) == (alone['recipe_hash'], 0)]
    assert {k: v for k, v in plain(cell).items() if k not in ignored} == {k: v for k, v in plain(alone).items() if k not in ignored} | ({'schema': cell['schema']} if 'schema' in cell else {})


def test_a_finished_sweep_is_not_run_again(tmp_path):
    args = dict(out=tmp_path, progress=False)
    first = sweep(small(), {'evaluate.zeta': [1., 2.]}, **args)
    was, ledger = stages(tmp_path / 'store'), (tmp_path / 'ledger.jsonl').read_bytes()
    again = sweep(small(), {'evaluate.zeta': [1., 2.]}, **args)
    assert new_stages(was, stages(tmp_path / 'store')) == set() and (tmp_path / 'ledger.jsonl').read_bytes() == ledger
    assert essence(again.records) == essence(first.records)
    more = sweep(small(), {'evaluate.zeta': [2., 3.]}, seeds=2, **args)         # what is there counts
    assert new_stages(was, stages(tmp_path / 'store')) == {'relabel', 'evaluate'} and count(tmp_path / 'store')['evaluate'] == 5
    assert essence(more.records)[0] == essence(first.records)[1]


def test_chain_seeds_and_students(tmp_path):
    done = sweep([small(), random_real(small())], {}, out=tmp_path, chain_seeds=2, students=['convnet_d1', 'convnet_d2'], progress=False)
    assert len(done.cells) == 4 and not done.failed
    assert Counter((r['recipe'], r['student'], r['chain_seed']) for r in done.records) == Counter(itertools.product(('edc', 'random-real'), ('convnet_d1', 'convnet_d2'), (0, 1)))
    assert count(tmp_path / 'store') == dict(observer=4, statistics=4, initialize=2, synthesize=4, relabel=4, evaluate=8, ensemble=2)
    for name in ('edc', 'random-real'):
        assert len({r['images_hash'] for r in done.records if r['recipe'] == name}) == 2      # each chain has its own
    assert list(done.table()['seeds']) == [2] * 4


def test_two_recipes_that_differ_in_name_only(tmp_path):
    rs = [small(), small().replace(name='mine')]
    done = sweep(rs, {'evaluate.zeta': [1., 2.]}, out=tmp_path, ledger=tmp_path / 'all.jsonl', progress=False)
    assert [len(done.of(c)) for c in done.cells] == [1] * 4 and [r['recipe'] for r in done.records] == ['edc'] * 2 + ['mine'] * 2
    assert count(tmp_path / 'store')['synthesize'] == 1 and count(tmp_path / 'store')['evaluate'] == 2      # computed once
    for f in ('ledger.jsonl', 'all.jsonl'):
        assert Counter(r['recipe'] for r in Ledger(tmp_path / f).records()) == dict(edc=2, mine=2), f


def test_ledger_copies_have_no_duplicates(tmp_path):
    every = tmp_path / 'all.jsonl'
    sweep(small(), {'evaluate.zeta': [1., 2.]}, out=tmp_path / 'a', progress=False)                      # not told of the second ledger yet
    for values, out in (([1.], 'a'), ([1., 2.], 'a'), ([2., 1.], 'a'), ([2.], 'b')):
        sweep(small(), {'evaluate.zeta': values}, out=tmp_path / out, store=tmp_path / 'a' / 'store', ledger=every, progress=False)
    assert sorted(r['settings']['evaluate']['zeta'] for r in Ledger(every).records()) == [1., 2.]
    assert len(Ledger(tmp_path / 'a' / 'ledger.jsonl').records()) == 2


@pytest.mark.parametrize('space,bad', [({'evaluate.lr': [1e30, 1e-3]}, 0), ({'matching.weight': [.01, 1e38]}, 1)], ids=['student', 'images'])
def test_a_failing_cell_leaves_the_others(space, bad, tmp_path):
    done = sweep(small(), space, out=tmp_path, progress=False)
    assert list(done.failed) == [bad] and ('finite' in done.failed[bad] or 'nan' in done.failed[bad] or 'inf' in done.failed[bad])
    assert len(done.records) == 1 and done.table()['failed'][bad] and not done.table()['failed'][1 - bad] and done.table()['seeds'][bad] == 0
    assert essence(Ledger(tmp_path / 'ledger.jsonl').records()) == essence(done.records)


def test_a_failing_cell_is_told_by_the_command_line(here, tmp_path, monkeypatch):      # noqa: F811
    monkeypatch.chdir(tmp_path)
    one_sentence(*here('sweep', 'edc', '--dataset', 'digits', '--ipc', 2, *sets(plain(amounts())), '--vary', 'evaluate.lr=[1.0e+30, 0.001]', '--out', 'out', '--quiet'), '1 of 2 cells failed', 'the others are kept', 'student convnet_d1')
    record, = Ledger(tmp_path / 'out' / 'ledger.jsonl').records()
    assert record['settings']['evaluate']['lr'] == .001


def test_lists_of_numbers_are_read_as_single_numbers_are():
    "YAML 1.1 takes 1e-3 for text; rates are often written so."
    assert parse_set(['evaluate.lr=1e-3', 'synthesize.lr=[1e-3, 2E-2, 0.5]', 'synthesize.betas=[[5e-1, .9], [0.9, 9.9e-1]]']) == {'evaluate.lr': .001, 'synthesize.lr': [.001, .02, .5], 'synthesize.betas': [[.5, .9], [.9, .99]]}


def amounts():
    "The changes that make `small()` of the named recipe."
    a, b = flat(recipe('edc', 'digits', 2)), flat(small())
    return {k: v for k, v in b.items() if v != a[k]}


KILLER = '''
import dataclasses, json, os, signal, sys
from edc_nb.core import files
from edc_nb.run import folder
from edc_nb.settings import Recipe
from edc_nb.sweeps import sweep

make, save, seen = folder.make_runtime, files.Checkpoint.save, []
hasty = lambda *a, **kw: dataclasses.replace(make(*a, **kw), checkpoint_seconds=0.)
folder.make_runtime = hasty

def saving(self, state, force=False):
    save(self, state, force)
    if self.path and self.path.name.startswith('evaluate'): seen.append(self.path.name)
    if len(set(seen)) == 2 and seen.count(seen[-1]) == 2: os.kill(os.getpid(), signal.SIGKILL)
files.Checkpoint.save = saving

sweep(Recipe.from_yaml(open(sys.argv[1]).read()), json.loads(sys.argv[2]), out=sys.argv[3], progress=False)
'''


def test_killed_in_the_second_cell_and_repeated_is_the_same_sweep(tmp_path):
    space = {'matching.alpha': [.25, .75], 'evaluate.zeta': [1.5]}
    (tmp_path / 'r.yaml').write_text(small().to_yaml())
    killed = subprocess.run([sys.executable, '-c', KILLER, str(tmp_path / 'r.yaml'), json.dumps(space), str(tmp_path / 'killed')], env=edc_environment(), capture_output=True, text=True, timeout=180)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    was = stages(tmp_path / 'killed' / 'store')
    assert len(was['synthesize']) == 2 and len(was['evaluate']) == 1 and len(Ledger(tmp_path / 'killed' / 'ledger.jsonl').records()) == 1
    again = sweep(small(), space, out=tmp_path / 'killed', progress=False)
    assert new_stages(was, stages(tmp_path / 'killed' / 'store')) == {'evaluate'}
    resumed = [json.loads(m.read_text())['resumed'] for m in (tmp_path / 'killed' / 'store' / 'evaluate').glob('*/manifest.json')]
    assert sorted(resumed) == [False, True]
    whole = sweep(small(), space, out=tmp_path / 'whole', progress=False)
    assert essence(again.records) == essence(whole.records) == essence(Ledger(tmp_path / 'killed' / 'ledger.jsonl').records())


@pytest.mark.skipif(os.name != 'posix', reason='SIGINT')
def test_ctrl_c_keeps_finished_cells(tmp_path):
    out = tmp_path / 'out'
    command = [sys.executable, '-m', 'edc_nb', 'sweep', 'edc', '--dataset', 'digits', '--ipc', '2', *sets(plain(amounts()) | {'relabel.mode': 'online'}), '--vary', 'evaluate.epochs=[4, 100000]', '--out', str(out), '--quiet']
    child = subprocess.Popen(command, env=edc_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        limit = time.monotonic() + 120
        while not Ledger(out / 'ledger.jsonl').records():       # then it trains the second cell, for hours
            assert child.poll() is None and time.monotonic() < limit, child.stderr.read() if child.poll() is not None else 'too slow'
            time.sleep(.05)
        child.send_signal(signal.SIGINT)
        stdout, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode in (130, -signal.SIGINT) and err.strip().endswith('edc: interrupted; the same command goes on from here') and 'Traceback' not in stdout
    record, = Ledger(out / 'ledger.jsonl').records()
    was = stages(out / 'store')
    kept = sweep(small(**{'relabel.mode': 'online'}), {'evaluate.epochs': [4]}, out=out, progress=False)
    assert essence(kept.records) == essence([record]) and new_stages(was, stages(out / 'store')) == set() and not list(out.rglob('*.tmp'))


def test_a_cell_may_be_sound_where_its_recipe_is_not(tmp_path):
    "Hard labels need another loss than EDC's; the sweep gives it."
    done = sweep(small(**{'relabel.labels': 'hard'}), {'evaluate.loss': ['ce']}, out=tmp_path, progress=False)
    assert not done.failed and len(done.records) == 1


# ---- contradictions

SWEEP = ['sweep', 'edc', '--dataset', 'digits', '--ipc', '2', '--out', 'out', '--quiet']
RUN = ['run', 'edc', '--dataset', 'digits', '--ipc', '2', '--out', 'out', '--quiet']


def given(*items): return [a for i in items for a in ('--set', i)]


def vary(*items): return [*SWEEP, *(a for i in items for a in ('--vary', i))]


WRONG = {
    'sweep over an unknown setting': (vary('matching.alfa=[0, 1]'), "'matching.alfa'", 'matching.alpha'),
    'sweep over nothing': (vary('matching.alpha=[]'), 'matching.alpha', 'empty'),
    'sweep over a number': (vary('matching.alpha=0.5'), 'matching.alpha', 'list'),
    'sweep over a wrong value': (vary('matching.alpha=[0.5, 2]'), 'matching.alpha', '2'),
    'sweep over a wrong kind': (vary('evaluate.zeta=[1, often]'), 'evaluate.zeta', "'often'"),
    'sweep over an unknown choice': (vary('synthesize.flatness=[sam, samba]'), 'synthesize.flatness', "'samba'"),
    'sweep over an unknown student': ([*SWEEP, '--student', 'resnet19'], "'resnet19'"),
    'sweep of an unknown recipe': (['sweep', 'edc', 'cdc', *SWEEP[2:]], "'cdc'"),
    'sweep over one patch': (vary('augment.patch_shuffle=[0, 1]'), 'augment.patch_shuffle', '1'),
    'sweep over patches that do not fit': (vary('augment.patch_shuffle=[2, 3]'), 'augment.patch_shuffle', '3', '8'),
    'sweep over IPC larger than a class': (vary('ipc=[1, 500]'), 'ipc', '500', 'at most'),
    'cells that contradict themselves': (vary('evaluate.flatness=[off, ema]', 'evaluate.ema_rate=[0, 0.9]'), 'evaluate.flatness', 'ema_rate'),
    'hard labels in one cell': (vary('relabel.labels=[soft, hard]'), 'evaluate.loss', 'relabel.labels', 'ce'),
    'stages in one cell': (vary('synthesize.stages=[1, 2]'), 'synthesize.stages', '2', '75'),
    'search without validation': ([*vary('matching.alpha=[0, 1]'), '--trials', '2'], 'data.validation', 'hold out'),
    'search without a space': ([*SWEEP, '--trials', '2', *given('data.validation=50')], 'space'),
    'search over nothing': ([*vary('matching.alpha=[]'), '--trials', '2', *given('data.validation=50')], 'matching.alpha', 'empty'),
    'search over an unknown setting': ([*vary('matching.alfa=[0, 1]'), '--trials', '2', *given('data.validation=50')], "'matching.alfa'"),
    'search from two recipes': (['sweep', 'edc', 'rded', *vary('matching.alpha=[0, 1]')[2:], '--trials', '2', *given('data.validation=50')], '--trials', '2'),
    'one patch': ([*RUN, *given('augment.patch_shuffle=1')], 'augment.patch_shuffle', '1'),
    'SAM with zero radius on images': ([*RUN, *given('synthesize.flatness=sam', 'synthesize.sam_radius=0')], 'synthesize.sam_radius', '0'),
    'SAM with zero radius on weights': ([*RUN, *given('evaluate.flatness=sam', 'evaluate.sam_radius=0')], 'evaluate.sam_radius', '0'),
    'sizes without stages': ([*RUN, *given('synthesize.stage_sizes=[8, 8]')], 'synthesize.stage_sizes', '2 sizes', '1 stages'),
    'sizes that end elsewhere': ([*RUN, *given('synthesize.iterations=4', 'synthesize.stages=2', 'synthesize.stage_sizes=[8, 10]', 'matching.patch=0')], 'synthesize.stage_sizes', '8'),
    'sizes with tiles': ([*RUN, *given('synthesize.iterations=4', 'synthesize.stages=2', 'synthesize.stage_sizes=[10, 8]')], 'synthesize.stage_sizes', 'matching.patch'),
    'sizes that an observer cannot take': ([*RUN, *given('synthesize.iterations=4', 'synthesize.stages=2', 'synthesize.stage_sizes=[10, 8]', 'matching.patch=0', 'synthesize.observers=[wrn16_2, convnet_d1]', 'squeeze.epochs=0', 'evaluate.epochs=1')], 'synthesize.stage_sizes', 'convnet_d1'),
    'stages that do not divide': ([*RUN, *given('synthesize.iterations=5', 'synthesize.stages=2')], 'synthesize.stages', '5'),
    'residual without stages': ([*RUN, *given('synthesize.residual=0.5')], 'synthesize.residual', 'stages'),
    'flatness to an average that is off': ([*RUN, *given('evaluate.flatness=ema', 'evaluate.ema_rate=0')], 'evaluate.flatness', 'ema_rate'),
    'parts that do not divide a step': ([*RUN, *given('relabel.bn=batch', 'relabel.bn_parts=2')], 'relabel.bn_parts', '25'),
    'hard labels with a soft loss': ([*RUN, *given('relabel.labels=hard')], 'evaluate.loss', "'mse_ce'"),
    'unknown synthesis': ([*RUN, *given('synthesize.method=mtt')], "'mtt'", 'matching, dm, dc'),
    'unknown network of DM': (['run', 'dm', *RUN[2:], *given('bilevel.network=convnet')], "'convnet'", 'bilevel.network'),
    'images of elsewhere': ([*RUN, *given('initialize.method=given')], 'given', 'import'),
    'DM on ImageNet': (['run', 'dm', '--dataset', 'imagenet1k', '--out', 'out'], "'imagenet1k'", 'tiny_imagenet'),
    'herding of more than a class has': (['run', 'herding', *RUN[2:], '--ipc', '400'], 'ipc', '400', 'herding', 'at most'),
    'k-centre of more than a class has': (['run', 'k-centre', *RUN[2:], '--ipc', '400'], 'ipc', '400', 'k-centre', 'at most'),
    'reproduce an unknown table': (['reproduce', 'table99'], "'table99'", 'table5'),
    'reproduce at an unknown scale': (['reproduce', 'table5', '--scale', 'medium'], "'medium'", 'subset'),
    'reproduce for an unknown student': (['reproduce', 'table5', '--scale', 'tiny', '--student', 'resnet19'], "'resnet19'"),
    'reproduce what cannot be run': (['reproduce', 'table22', '--scale', 'tiny'], 'table22', 'imagenet21k'),
    'reproduce with an unknown setting': (['reproduce', 'table16', '--scale', 'tiny', *given('evaluate.epoch=2')], "'evaluate.epoch'"),
    'print an unknown table': (['tables', 'table99'], "'table99'", 'table5'),
}


@pytest.mark.parametrize('what', WRONG)
def test_a_contradiction_gets_one_sentence_before_anything_is_written(what, here, tmp_path, monkeypatch):      # noqa: F811
    monkeypatch.chdir(tmp_path)
    args, *named = WRONG[what]
    one_sentence(*here(*args), *named)
    assert list(tmp_path.iterdir()) == []


# ---- search

@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    pytest.importorskip('optuna')
    out = tmp_path_factory.mktemp('search')
    r, space = small(**{'data.validation': 60}), {'evaluate.lr': (1e-4, 1e-1, 'log'), 'evaluate.epochs': (2, 9), 'synthesize.iterations': [0, 4]}
    return search(r, space, out=out, trials=6, aims=('accuracy', 'seconds'), progress=False), out, r, space


def test_search_marks_the_pareto_front(searched):
    found, *_ = searched
    df = found.table()
    assert len(df) == 6 and set(df.columns) >= {'evaluate.lr', 'evaluate.epochs', 'synthesize.iterations', 'accuracy', 'seconds', 'pareto'}
    trials = [(t.values[0], t.values[1]) for t in found.study.trials]
    best = [not any(a >= x and s <= y and (a, s) != (x, y) for a, s in trials) for x, y in trials]
    assert list(df.pareto) == best and 0 < sum(best)
    assert all(1e-4 <= v <= .1 for v in df['evaluate.lr']) and df['evaluate.epochs'].between(2, 9).all() and set(df['synthesize.iterations']) <= {0, 4}


def test_search_uses_held_out_images_only(searched):
    found, out, r, _ = searched
    records = Ledger(out / 'ledger.jsonl').records()
    assert {rec['test_images'] for rec in records} == {60}
    d, whole = open_dataset(r.data), open_dataset(DataSettings('digits'))
    def rows_of(s): return {im.numpy().tobytes() for im in s.images}
    assert rows_of(d.test) <= rows_of(whole.train) and not rows_of(d.test) & rows_of(whole.test)
    by = {(rec['settings']['evaluate']['lr'], rec['settings']['evaluate']['epochs'], rec['settings']['synthesize']['iterations']): rec for rec in records}
    for t in found.study.trials:
        assert t.values[0] == by[t.params['evaluate.lr'], t.params['evaluate.epochs'], t.params['synthesize.iterations']]['last']


def test_search_goes_on_where_it_stopped(searched, tmp_path):
    found, out, r, space = searched
    shutil.copytree(out, tmp_path / 'out', copy_function=shutil.copy2)
    was = stages(tmp_path / 'out' / 'store')
    args = dict(out=tmp_path / 'out', aims=('accuracy', 'seconds'), progress=False)
    again = search(r, space, trials=6, **args)
    assert new_stages(was, stages(tmp_path / 'out' / 'store')) == set() and [t.params for t in again.study.trials] == [t.params for t in found.study.trials]
    more = search(r, space, trials=8, **args)
    assert len(more.table()) == 8 and [t.params for t in more.study.trials[:6]] == [t.params for t in found.study.trials]


@pytest.mark.parametrize('space,kw,named', [({'matching.alpha': []}, {}, 'matching.alpha'), ({'matching.alpha': .5}, {}, 'matching.alpha'), ({'matching.alpha': (1., 0.)}, {}, 'matching.alpha'), ({'matching.alpha': (.5,)}, {}, 'matching.alpha'),
                                            ({'matching.alpha': (0., 2.)}, {}, 'matching.alpha'), ({'matching.alfa': [0]}, {}, 'matching.alfa'), ({'matching.alpha': [0.]}, dict(sampler='grid'), 'sampler'), ({'matching.alpha': [0.]}, dict(aims=('speed',)), 'aim'),
                                            ({'matching.alpha': [0.]}, dict(trials=0), 'trials'), ({'matching.alpha': [0.]}, dict(seeds=0), 'seeds')])
def test_a_search_that_cannot_be_read_is_refused(space, kw, named, tmp_path):
    pytest.importorskip('optuna')
    with pytest.raises(EdcError, match=named):
        search(small(**{'data.validation': 60}), space, out=tmp_path / 'out', progress=False, **dict(trials=1) | kw)
    assert not (tmp_path / 'out').exists()


def test_a_search_passes_over_contradictions(tmp_path):
    "Settings that are sound one by one may contradict each other: such a trial is given up, the search goes on."
    pytest.importorskip('optuna')
    found = search(small(**{'data.validation': 60}), {'evaluate.flatness': ['off', 'ema'], 'evaluate.ema_rate': [0., .9]}, out=tmp_path, trials=10, sampler='random', progress=False)
    pairs = [(t.params['evaluate.flatness'], t.params['evaluate.ema_rate']) for t in found.study.trials if t.values]
    assert len(found.study.trials) == 10 and ('ema', 0.) not in pairs and 0 < len(pairs) < 10


# ---- tables

@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('table', table_names())
def test_each_row_has_a_recipe_or_a_reason(table, scale):
    found = rows(table, scale)
    assert len(found) == len(paper(table)) > 0
    for row in found:
        assert bool(row.recipe) != bool(row.why), row.printed
        if row.recipe is None: continue
        check_recipe(row.recipe)
        r = row.recipe
        assert (r.ipc, r.data.name) == (row.printed['ipc'], dict(full=row.printed['dataset'], subset='cifar10', tiny='digits')[scale])
        if scale == 'full':
            assert r.evaluate.student == row.printed['student']
    if scale == 'full':
        assert {r.printed['top1'] for r in found} == set(paper(table)['top1'])


def test_rows_of_a_table_that_differ_in_print_differ_in_recipe():
    "Two settings of one table, data set, IPC and student: two recipes (Table 3's right half prints settings that name the same thing twice)."
    for table in (f'table{i}' for i in (4, 5, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)):
        seen = {}
        for row in rows(table):
            if row.recipe: seen.setdefault((row.printed['dataset'], row.printed['ipc'], row.printed['student']), []).append(row.recipe.hash)
        assert seen and all(len(set(v)) == len(v) for v in seen.values()), table


PRINTED = Path(os.environ.get('EDC_NB_REFERENCE') or ROOT.parent / 'shared' / 'reference') / 'paper_tables.json'


@pytest.fixture(scope='module')
def printed():
    if not PRINTED.is_file(): pytest.skip(f'needs {PRINTED}')
    return json.loads(PRINTED.read_text(encoding='utf-8'))


def test_printed_numbers_are_the_papers(printed):
    other = {'3-left': 'table3-left', '3-right': 'table3-right', '1-camera-ready': 'table1-corrected', '22-camera-ready': 'table22', '23-camera-ready': 'figure1', 'figure-4-slimming': 'figure4', 'later work': 'later'}
    order = list(dict.fromkeys(str(r['table']) for r in printed))
    assert {other.get(t, f'table{t}') for t in order} <= set(table_names()) and len(order) >= 22
    for theirs in order:
        ours = other.get(theirs, f'table{theirs}')
        df, expected = paper(ours), [r for r in printed if str(r['table']) == theirs]
        for col in ('dataset', 'ipc', 'method', 'student', 'top1', 'std'):
            assert [None if isinstance(v, float) and math.isnan(v) else v for v in df[col]] == [r[col] for r in expected], (ours, col)


IN4 = ('resnet18', 'mobilenet_v2', 'efficientnet_b0', 'shufflenet_v2')
# table -> [(what is printed, what the recipe must hold)]: written from the paper's captions, not from the library
ROWS = {
    'table3-left': [(dict(method='config_c', student='resnet101', zeta=1.), {'evaluate.zeta': 1., 'evaluate.schedule': 'smoothing', 'initialize.method': 'rded', 'synthesize.iterations': 2000, 'synthesize.flatness': 'off', 'matching.alpha': 1., 'evaluate.student': 'resnet101'})],
    'table3-right': [(dict(method='rded', choices=[], student='resnet18'), {'evaluate.zeta': 1., 'evaluate.batch_size': 1024, 'synthesize.iterations': 0, 'initialize.method': 'rded'}),
                     (dict(method='rded', choices=['small_batch', 'smoothing_lr'], student='resnet18'), {'evaluate.zeta': 2., 'evaluate.batch_size': 100, 'synthesize.iterations': 0}),
                     (dict(method='gvbsm', choices=['real_init'], student='resnet50'), {'initialize.method': 'rded', 'evaluate.zeta': 1., 'evaluate.batch_size': 1024, 'synthesize.flatness': 'off'}),
                     (dict(method='gvbsm', choices=['real_init', 'smoothing_lr', 'small_batch'], student='resnet18'), {'initialize.method': 'rded', 'evaluate.zeta': 2., 'evaluate.batch_size': 100, 'evaluate.ema_rate': 0.})],
    'table4': [(dict(loss='sam', student='resnet18'), {'synthesize.flatness': 'sam', 'synthesize.flatness_weight': .25, 'evaluate.zeta': 1.5, 'matching.alpha': 1.}),
               (dict(loss='fr_statistics', weight=.025, student='resnet18'), {'synthesize.flatness': 'statistics', 'synthesize.flatness_weight': .025, 'synthesize.flatness_decay': .999, 'synthesize.flatness_temperature': 4.}),
               (dict(loss='fr_logits', tau=1, student='densenet121'), {'synthesize.flatness': 'logits', 'synthesize.flatness_temperature': 1., 'synthesize.flatness_decay': .99, 'evaluate.student': 'densenet121'}),
               (dict(loss=None, student='resnet18'), {'synthesize.flatness': 'off', 'evaluate.zeta': 1.5})],
    'table5': [(dict(printed_alpha=0., weak_augmentation=False, ema_evaluation=False, student='resnet18', zeta=2.), {'matching.alpha': 1., 'synthesize.crop_scale': (.08, 1.), 'evaluate.ema_rate': 0., 'evaluate.zeta': 2., 'evaluate.batch_size': 100}),
               (dict(weak_augmentation=True, ema_evaluation=True, student='resnet18'), {'synthesize.crop_scale': (.5, 1.), 'evaluate.ema_rate': .99})],
    'table11': [(dict(method='gvbsm, 5 backbones', student='resnet18'), {'relabel.observers': ('resnet18', 'convnet_w128', 'mobilenet_v2', 'wrn16_2', 'shufflenet_v2'), 'synthesize.observers': ('resnet18', 'convnet_w128', 'mobilenet_v2', 'wrn16_2', 'shufflenet_v2'), 'initialize.method': 'noise'}),
                (dict(method='gvbsm, 8 backbones', student='resnet18'), {'synthesize.observers': ('resnet18', 'convnet_w128', 'mobilenet_v2', 'wrn16_2', 'shufflenet_v2', 'convnet_d1', 'convnet_d2', 'convnet_w32'), 'initialize.method': 'noise'})],
    'table12': [(dict(student='resnet18', top1=39.), {'synthesize.observers': (*IN4, 'alexnet'), 'evaluate.zeta': 1.5, 'initialize.method': 'rded'}),
                (dict(student='resnet18', top1=37.4), {'synthesize.observers': (*IN4, 'wrn50_2', 'alexnet')})],
    'table13': [(dict(student='resnet18', top1=12.8), {'relabel.observers': ('resnet18', 'mobilenet_v2', 'shufflenet_v2', 'alexnet'), 'evaluate.zeta': 2., 'ipc': 1, 'synthesize.observers': ('resnet18', 'mobilenet_v2', 'shufflenet_v2', 'efficientnet_b0', 'alexnet')})],
    'table14': [(dict(zeta=2.5), {'evaluate.zeta': 2.5, 'evaluate.student': 'mobilenet_v2', 'evaluate.schedule': 'smoothing', 'synthesize.flatness': 'off'})],
    'table15': [(dict(gamma=.99775, student='resnet50'), {'evaluate.schedule': 'alrs', 'evaluate.alrs_gamma': .99775, 'evaluate.student': 'resnet50', 'synthesize.crop_scale': (.08, 1.)})],
    'table16': [(dict(scheduler='ssrs', student='resnet18'), {'evaluate.schedule': 'ssrs', 'ipc': 40, 'evaluate.zeta': 2.})],
    'table17': [(dict(ema_rate=.9999), {'evaluate.ema_rate': .9999, 'synthesize.crop_scale': (.08, 1.), 'matching.alpha': .5})],
    'table18': [(dict(iterations=125), {'synthesize.iterations': 125, 'synthesize.observers': ('resnet18',), 'relabel.observers': ('resnet18',), 'evaluate.loss': 'kl', 'evaluate.epochs': 300, 'evaluate.ema_rate': 0., 'matching.alpha': .5, 'initialize.method': 'real'})],
    'table19': [(dict(synthesis_observers_pretrained=False, label_observers_pretrained=True, student='resnet18'), {'squeeze.start': 'scratch', 'squeeze.label_start': 'pretrained', 'evaluate.batch_size': 50, 'evaluate.schedule': 'smoothing', 'evaluate.zeta': 2.}),
                (dict(synthesis_observers_pretrained=True, label_observers_pretrained=False, student='resnet18'), {'squeeze.start': 'pretrained', 'squeeze.label_start': 'scratch'})],
    'table20': [(dict(ema_rate=.999, batch_size=50, student='resnet18'), {'evaluate.ema_rate': .999, 'evaluate.batch_size': 50, 'evaluate.schedule': 'smoothing', 'evaluate.epochs': 1000}),
                (dict(batch_size=10, student='resnet18'), {'evaluate.ema_rate': .99, 'evaluate.batch_size': 10})],
    'table21': [(dict(scheduler='multistep gamma=0.25 milestones=800,900,950', student='resnet18'), {'evaluate.schedule': 'multistep', 'evaluate.gamma': .25, 'evaluate.milestones': (.8, .9, .95), 'evaluate.batch_size': 25}),
                (dict(scheduler='smoothing zeta=3', student='resnet18'), {'evaluate.schedule': 'smoothing', 'evaluate.zeta': 3.})],
}


@pytest.mark.parametrize('table', ROWS)
def test_a_row_is_the_recipe_that_its_caption_describes(table, printed):
    for wanted, holds in ROWS[table]:
        found = [r for r in rows(table) if all(({**r.printed, **r.printed['setting']}).get(k, 'none') == v for k, v in wanted.items())]
        assert found, wanted
        for row in found:
            values = flat(row.recipe)
            assert {k: set(values[k]) if k == 'synthesize.observers' else values[k] for k in holds} == {k: set(v) if k == 'synthesize.observers' else v for k, v in holds.items()}, wanted
        theirs = [p for p in printed if p['top1'] == found[0].printed['top1'] and p['student'] == found[0].printed['student'] and p['setting'] == found[0].printed['setting']]
        assert theirs


def record_of(r, seed, last, best, data_hash='d', chain_seed=0, date='2031-02-03T04:05:06+00:00', **more):
    return dict(recipe=r.name, recipe_hash=r.hash, settings=r.to_dict(), dataset=r.data.name, data_hash=data_hash, train_images=50000, test_images=10, ipc=r.ipc, student=r.evaluate.student, seed=seed, chain_seed=chain_seed,
                last=last, best=best, images_hash='i', environment=dict(device='cuda', device_name='a device', date=date)) | more


def test_compare_shows_what_is_in_the_ledger_and_nothing_else(tmp_path):
    rs, rng = rows('table4'), torch.Generator().manual_seed(3)
    ledger, expected = Ledger(tmp_path / 'ledger.jsonl'), {}
    for i in (0, 5, 7):
        v = torch.rand(3 if i else 1, 2, generator=rng).tolist()
        for seed, (last, best) in enumerate(v):
            ledger.append(record_of(rs[i].recipe, seed, last, best))
        expected[i] = v
    ledger.append(record_of(rs[0].recipe.replace({'evaluate.zeta': 1.75}), 0, .9, .9))       # belongs to no row
    df = compare('table4', ledger=tmp_path / 'ledger.jsonl')
    assert len(df) == len(rs)
    for i, row in df.iterrows():
        assert row['paper'] == rs[i].printed['top1'] and row['student'] == rs[i].printed['student']
        if i not in expected:
            assert all(row[k] == '' for k in ('last', 'last sd', 'best', 'best sd', 'difference', 'seeds', 'used', 'our student', 'device', 'date')), i
            continue
        last, best = ([100 * x[k] for x in expected[i]] for k in (0, 1))
        assert row['last'] == pytest.approx(statistics.fmean(last), abs=.006) and row['best'] == pytest.approx(statistics.fmean(best), abs=.006)
        assert row['difference'] == pytest.approx(statistics.fmean(last) - row['paper'], abs=.011) and row['seeds'] == len(last)
        assert row['last sd'] == ('' if len(last) == 1 else pytest.approx(statistics.stdev(last), abs=.006))
        assert (row['device'], row['date'], row['our student']) == ('a device', '2031-02-03', rs[i].recipe.evaluate.student) and row['used'].startswith('imagenet1k, 50,000')
    assert (compare('table4', ledger=tmp_path / 'none.jsonl')['last'] == '').all()
    assert len(compare('table4', ledger=tmp_path, student='resnet50')) == len([r for r in rs if r.printed['student'] == 'resnet50'])


def test_compare_does_not_mix_data(tmp_path):
    "The same recipe on two data sets (a part of the images, and all of them): the newest is shown, by itself."
    r, ledger = rows('table16')[0].recipe, Ledger(tmp_path / 'ledger.jsonl')
    for seed, last in ((0, .1), (1, .2), (2, .3)): ledger.append(record_of(r, seed, last, last, 'part', train_images=100))
    for seed, last in ((0, .6), (1, .8)): ledger.append(record_of(r, seed, last, last, 'whole', date='2031-02-04T00:00:00+00:00'))
    row = compare('table16', ledger=tmp_path / 'ledger.jsonl').iloc[0]
    assert (row['last'], row['seeds'], row['used']) == (pytest.approx(70.), 2, 'imagenet1k, 50,000 images')


def test_compare_counts_a_seed_once(tmp_path):
    "Ledgers that hold copies of the same record, and a record that was made anew."
    r = rows('table16')[0].recipe
    for f in 'ab':
        for seed in (0, 1): Ledger(tmp_path / f'{f}.jsonl').append(record_of(r, seed, .25 + .5 * seed, .9))
    row = compare('table16', ledger=tmp_path).iloc[0]
    assert (row['last'], row['seeds']) == (50., 2)


def test_a_table_is_reproduced_and_compared_by_the_command_line(here, tmp_path, monkeypatch):      # noqa: F811
    "At its tiny scale, one student; a second time nothing is run."
    monkeypatch.chdir(tmp_path)
    args = ['reproduce', 'table17', '--scale', 'tiny', '--student', 'resnet18', '--seeds', 1, '--out', 'out', '--quiet']
    code, first, err = here(*args)
    assert (code, err) == (0, '')
    records = Ledger(tmp_path / 'out' / 'ledger.jsonl').records()
    assert [r['recipe_hash'] for r in records] == [r.recipe.hash for r in rows('table17', 'tiny')] and {(r['dataset'], r['ipc'], r['chain_seed'], r['seed']) for r in records} == {('digits', 10, 0, 0)}
    assert count(tmp_path / 'out' / 'store')['synthesize'] == count(tmp_path / 'out' / 'store')['relabel'] == 1      # averages alone differ
    was = stages(tmp_path / 'out' / 'store')
    assert here(*args)[1] == first and stages(tmp_path / 'out' / 'store') == was
    assert here('tables', 'table17', '--scale', 'tiny', '--student', 'resnet18', '--ledger', 'out/ledger.jsonl')[1] == first
    for r in records: assert f"{100 * r['last']:.2f}".rstrip('0') in first
    assert 'digits' in first and len(first.splitlines()) == 5


def test_reproduce_with_other_settings_is_a_sweep_of_its_own(tmp_path):
    few = {k: v for k, v in amounts().items() if k.split('.')[0] != 'initialize' and k != 'evaluate.student'}
    table = reproduce('table14', 'tiny', out=tmp_path, seeds=1, changes=few, progress=False)
    records = Ledger(tmp_path / 'ledger.jsonl').records()
    assert sorted(r['settings']['evaluate']['zeta'] for r in records) == list(table['evaluate.zeta']) == [1., 1.5, 2., 2.5, 3.] and count(tmp_path / 'store')['relabel'] == 1
    assert list(table['last']) == [pytest.approx(100 * r['last'], abs=.006) for r in records]
    assert (compare('table14', 'tiny', ledger=tmp_path / 'ledger.jsonl')['last'] == '').all()        # not what the table asks for


# ---- FADRM's stages

@pytest.fixture(scope='module')
def still():
    "(digits, first images, an observer without tiles): the images move only between stages, and slide."
    d = open_dataset(DataSettings('digits', per_class=20, test_per_class=5))
    m = MatchingSettings(patch=0, stat_ema=0.)
    net = build_model('wrn16_2', 10, 8, seed=1).eval()         # takes images of every size
    o = Observer('wrn16_2', net, collect_statistics(net, d, m, SqueezeSettings(crop='none', flip=0.), seed=0, name='wrn16_2'), 8, m)
    gen = torch.Generator().manual_seed(5)
    low, high = (d.normalize(torch.full((1, 3, 1, 1), v)) for v in (0., 1.))
    x = low + (high - low) * torch.rand(20, 3, 8, 8, generator=gen)
    return d, Initial(x, torch.arange(10).repeat_interleave(2), torch.full((20, 1), -1)), o, m


def resize(x, size):
    return x if x.shape[-1] == size else F.interpolate(x, (size, size), mode='bilinear', antialias=True, align_corners=False)


@pytest.mark.parametrize('sizes,residual', [((), .5), ((12, 8, 12, 8), .5), ((12, 16, 10, 8), .25), ((8, 12), 1.), ((12, 8), 0.)])
def test_stages_blend_first_images_back_in(sizes, residual, still):
    "With a rate of zero: X_k = (1 - r) resize(X_(k-1)) + r resize(first), each stage at its own size."
    d, first, o, m = still
    stages_, seen = len(sizes) or 4, []
    s = SynthesizeSettings(iterations=2 * stages_, lr=0., stages=stages_, residual=residual, stage_sizes=sizes, flatness='off', crop='none', flip=0.)
    hook = o.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    try: out = synthesize(first, [o], d, s, m)
    finally: hook.remove()
    x = first.images
    low, high = (d.normalize(torch.full((1, 3, 1, 1), v)) for v in (0., 1.))
    for k in range(stages_):
        size = sizes[k] if sizes else 8
        x = resize(x, size) if k == 0 else (1 - residual) * resize(x, size) + residual * resize(first.images, size)
        for i in (2 * k, 2 * k + 1): torch.testing.assert_close(seen[i], x, atol=2e-6, rtol=0)
        x = x.clamp(low, high)
    assert len(seen) == 2 * stages_ and [v.shape[-1] for v in seen[::2]] == list(sizes or (8,) * 4)
    assert (out.images.int() - to_bytes(resize(x, 8), d).int()).abs().max() <= 1


def test_each_stage_starts_adam_anew(still):
    "One step per stage: every step is Adam's first, whose size is the rate whatever the gradient."
    d, first, o, m = still
    inside = dataclasses.replace(first, images=first.images * .2)
    seen = []
    s = SynthesizeSettings(iterations=3, lr=.01, lr_schedule='constant', stages=3, residual=.5, flatness='off', crop='none', flip=0.)
    synthesize(inside, [o], d, s, m, watch=lambda b, t, x, o: seen.append(x.clone()))
    x = inside.images
    for k, after in enumerate(seen):
        start_ = x if k == 0 else .5 * (x + inside.images)
        moved = (after - start_).abs()
        assert moved.max() <= .01 + 1e-5 and (moved > .0095).float().mean() > .8, k
        x = after


# ---- coresets on real photographs, bi-level methods

def naive_herding(f, k):
    f, chosen_ = f.double(), []
    for _ in range(k):
        left = [i for i in range(len(f)) if i not in chosen_]
        chosen_.append(min(left, key=lambda i: float((f[[*chosen_, i]].mean(0) - f.mean(0)).norm())))
    return chosen_


def naive_k_centre(f, k):
    f = f.double()
    chosen_ = [min(range(len(f)), key=lambda i: float((f[i] - f.mean(0)).norm()))]
    while len(chosen_) < k:
        left = [i for i in range(len(f)) if i not in chosen_]
        chosen_.append(max(left, key=lambda i: min(float((f[i] - f[j]).norm()) for j in chosen_)))
    return chosen_


@pytest.mark.parametrize('method,naive', [('herding', naive_herding), ('k-centre', naive_k_centre)])
def test_coresets_of_photographs(method, naive, data_root):
    d = open_dataset(DataSettings('cifar10', per_class=30, test_per_class=1), data_root('cifar10'))
    net = build_model('convnet_w32', 10, 32, seed=4).eval()
    from edc_nb.core.settings import InitializeSettings
    got = initialize(d, InitializeSettings(method, observer='convnet_w32', flip=0.), 6, observers={'convnet_w32': net})
    with torch.no_grad():
        for c in range(10):
            members = (d.train.labels == c).nonzero().flatten()
            f = features(net, d.normalize(d.train.images[members].float() / 255)).flatten(1)
            assert got.source[got.labels == c].flatten().tolist() == members[naive(f, 6)].tolist(), d.classes[c]
    torch.testing.assert_close(got.images, d.normalize(d.train.images[got.source[:, 0]].float() / 255))


@pytest.mark.parametrize('method', ['dm', 'dc'])
def test_bilevel_methods_killed_and_resumed_are_the_same(method, tmp_path):
    changes = {'data.per_class': 20, 'data.test_per_class': 5, 'synthesize.method': method, 'synthesize.iterations': 6, 'synthesize.snapshots': [3], 'bilevel.network': 'wrn16_2' if method == 'dm' else 'convnet_d1', 'bilevel.real_batch': 8,
               'bilevel.outer_steps': 2, 'relabel.labels': 'hard', 'evaluate.loss': 'ce', 'evaluate.student': 'convnet_d1', 'evaluate.epochs': 2}
    killed = start(tmp_path, 'synthesize:saved:3', changes)
    assert finish(killed)[0] == -signal.SIGKILL and list((tmp_path / 'run' / 'store' / 'partial').glob('synthesize-*.pt'))
    c = condense(recipe('edc', 'digits', ipc=2).replace(changes), out=tmp_path / 'run', progress=False)
    whole = condense(recipe('edc', 'digits', ipc=2).replace(changes), out=tmp_path / 'whole', progress=False)
    assert json.loads((c.folder / 'manifest.json').read_text())['resumed'] and not json.loads((whole.folder / 'manifest.json').read_text())['resumed']
    assert c.images.equal(whole.images) and c.synthetic.history.equal(whole.synthetic.history) and c.synthetic.snapshots[3].equal(whole.synthetic.snapshots[3])
    assert len(c.synthetic.history) == 6 and not c.images.equal(to_bytes(c.chain.initial().images, c.chain.dataset))


def test_statistics_of_foreign_observers_depend_on_the_views(tmp_path):
    "Weights from outside: the views of the statistics pass are still the recipe's."
    own = condense(small(), out=tmp_path / 'own', progress=False)
    files = {n: next(iter((own.chain.store.root / 'observer').glob('*/weights.safetensors'))) for n in ('convnet_d1',)}
    from edc_nb.models.weights import save_weights
    for n in files: save_weights(own.chain.observer(n)[0], tmp_path / f'{n}.safetensors', dict(card=own.chain.observer(n)[1]))
    one = {'synthesize.observers': ['convnet_d1'], 'relabel.observers': ['convnet_d1']}
    found = [condense(small(**one | views), out=tmp_path / str(i), store=tmp_path / 'store', weights={'convnet_d1': tmp_path / 'convnet_d1.safetensors'}, progress=False) for i, views in enumerate(({}, {'squeeze.crop_pad': 3}))]
    a, b = (c.chain.statistics('convnet_d1') for c in found)
    assert not found[0].images.equal(found[1].images) and len(stages(tmp_path / 'store')['statistics']) == 2
