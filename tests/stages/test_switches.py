"""Every switch of the design space changes what it says, and no stage before it."""
import dataclasses
import shutil

import pytest
import torch

from edc_nb.core.files import load_tensors
from edc_nb.run.folder import condense
from edc_nb.run.report import evaluate
from kit import AFTER, new_stages, small, stages


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
        equal = {k for k in ('images', 'initial') if getattr(self, k).equal(getattr(other, k))}
        for k in ('labels', 'student'):
            a, b = getattr(self, k), getattr(other, k)
            if a.keys() == b.keys() and all(v.equal(b[name]) for name, v in a.items()):
                equal.add(k)
        return equal


def run(r, folder, store):
    c = condense(r, out=folder, store=store, progress=False)
    record, = evaluate(c).records
    labels = c.chain.labels(c.chain.stream(c.images, c.labels, 0)).store if r.relabel.labels == 'soft' else None
    student = load_tensors(c.chain.student(0)[1] / 'student.safetensors')[0]
    return Artefacts(c.images, c.chain.initial().images, labels.tensors if labels else {}, student, record)


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


def alone(section, *choices):
    "A case for each (setting, value) of a section, nothing else changed before."
    return [({}, {f'{section}.{k}': v}) for k, v in choices]


def ids(cases):
    "`changes before`, the names of the changed settings without their sections."
    def name(changes, short):
        return [f"{k.split('.', 1)[-1] if short else k}={v}" for k, v in changes.items()]
    return [' '.join([*name(changes, False), *name(before, True)]) for before, changes in cases]


# ---- the student's training: images and labels stay

STUDENT = [
    *alone('evaluate', ('zeta', 1.), ('zeta', 3.),
           ('schedule', 'cosine'), ('schedule', 'linear'), ('schedule', 'constant')),
    *(({'evaluate.epochs': 8}, {'evaluate.schedule': s}) for s in ('ssrs', 'ssrs_continuous', 'multistep', 'alrs')),
    ({'evaluate.schedule': 'multistep'}, {'evaluate.gamma': .1}),
    ({'evaluate.schedule': 'multistep'}, {'evaluate.milestones': [.25]}),
    ({'evaluate.schedule': 'alrs', 'evaluate.lr': 1e-5, 'augment.crop': 'none', 'augment.mix': 'none'},
     {'evaluate.alrs_gamma': .5}),
    *alone('evaluate', ('ema_rate', .9), ('ema_rate', 0.),
           ('loss', 'kl'), ('loss', 'dist'), ('loss', 'soft_ce'), ('loss', 'ce')),
    ({'evaluate.loss': 'kl'}, {'evaluate.temperature': 4.}),
    *alone('evaluate', ('ce_weight', .5), ('flatness', 'sam')),
    ({'evaluate.flatness': 'sam'}, {'evaluate.sam_radius': .5}),
    *alone('evaluate', ('flatness', 'ema')),
    ({'evaluate.flatness': 'ema'}, {'evaluate.flatness_weight': 9.}),
    ({'evaluate.flatness': 'ema'}, {'evaluate.flatness_temperature': 1.}),
    *alone('evaluate', ('optimizer', 'sgd'), ('lr', .01), ('weight_decay', .5), ('student', 'convnet_d2')),
]


@pytest.mark.parametrize('before,changes', STUDENT, ids=ids(STUDENT))
def test_a_switch_of_the_students_training_leaves_images_and_labels(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == {'evaluate'} and a.same(b) == {'images', 'initial', 'labels'}


LABELS = [
    *alone('augment', ('crop_scale', [.2, 1.]), ('crop', 'pad'), ('crop', 'none'), ('flip', .5), ('randaugment', 1),
           ('mix', 'mixup'), ('mix', 'none'), ('mix_alpha', .3), ('patch_shuffle', 2)),
    ({'augment.crop': 'pad'}, {'augment.crop_pad': 1}),
    ({'augment.randaugment': 1}, {'augment.magnitude': 25}),
    *alone('relabel', ('observers', ['convnet_d2']), ('codec', 'int8')),
    ({}, {'relabel.codec': 'topk', 'relabel.topk': 3}),
    *alone('evaluate', ('batch_size', 10), ('epochs', 5)),
    ({'relabel.observers': ['wrn16_2']}, {'relabel.bn': 'batch'}),
    ({'relabel.observers': ['wrn16_2'], 'relabel.bn': 'batch', 'evaluate.batch_size': 10}, {'relabel.bn_parts': 2}),
]


@pytest.mark.parametrize('before,changes', LABELS, ids=ids(LABELS))
def test_a_switch_of_views_and_labels_leaves_the_images(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new - {'ensemble'} == {'relabel', 'evaluate'} and a.same(b) == {'images', 'initial'}
    assert ('ensemble' in new) == ('relabel.observers' in changes)


def test_observers_for_labels_may_be_trained_longer(base, tmp_path):
    "New ones for the labels; images as they were; the record tells the two kinds apart."
    a, b, new = pair({}, {'squeeze.label_epochs': 3}, base, tmp_path)
    assert new == {'observer', 'relabel', 'evaluate', 'ensemble'} and a.same(b) == {'images', 'initial'}
    names = {'convnet_d1', 'convnet_d2'}
    assert set(a.record['observers']) == names
    assert set(b.record['observers']) == names | {f'{n} (labels)' for n in names}
    assert all(b.record['observers'][k] == v for k, v in a.record['observers'].items())
    assert len(stages(tmp_path / 'store')['observer']) == 4
    assert b.record['ensemble'] != a.record['ensemble']


# ---- the images: observers, statistics and first images stay

TWO = {'synthesize.batch_size': 10}          # a batch for each half of the twenty images
# real images of a class are so alike that the spectrum's softmax leaves no gradient
NOISE = {'initialize.method': 'noise'}
STAGES = {'synthesize.stages': 2}
DM_STEPS = {'synthesize.method': 'dm', 'synthesize.iterations': 2,
            'bilevel.network': 'convnet_d1', 'bilevel.real_batch': 8}
IMAGES = [
    *alone('matching', ('alpha', 0.), ('alpha', .25), ('alpha', .75), ('alpha', 1.), ('weight', .1), ('ce_weight', 0.),
           ('first_multiplier', 1.), ('drop_rate', .6), ('class_target', 'batch_mean'), ('class_target', 'per_image'),
           ('class_variance', 'within_image'), ('patch_swap', True), ('stat_ema', 0.), ('stat_ema_init', 'zero'),
           ('stat_group', 7), ('conv_global_variance', 'batch_mean')),
    ({'synthesize.observers': ['wrn16_2']}, {'matching.bn_global': 'pooled'}),
    (TWO, {'matching.stat_ema_reset': 'never'}),
    *alone('synthesize', ('flatness', 'statistics'), ('flatness', 'sam'), ('flatness', 'off'), ('flatness_weight', 50.),
           ('flatness_decay', .3), ('flatness_temperature', 1.), ('flatness_direction', 'ema_current'),
           ('flatness_reduction', 'element'), ('crop_scale', [.1, 1.]), ('crop', 'pad'), ('crop', 'none'),
           ('crop_min_end', .05), ('crop_shared', False), ('flip', .5), ('jitter', 2), ('iterations', 4), ('lr', .1),
           ('lr_schedule', 'constant'), ('betas', [.9, .99]), ('batch_size', 10), ('stages', 2), ('stages', 4),
           ('image_format', 'jpeg75'), ('observers', ['convnet_d2', 'convnet_d1'])),
    ({'synthesize.flatness': 'sam'}, {'synthesize.sam_radius': 2.}),
    ({'synthesize.flatness': 'statistics'}, {'synthesize.flatness_decay': .1}),
    ({'synthesize.crop': 'pad'}, {'synthesize.crop_pad': 1}),
    (TWO, {'synthesize.order': 'slot'}),
    (NOISE, {'synthesize.densify_weight': 1000.}),
    (NOISE | {'synthesize.densify_weight': 1000.}, {'synthesize.densify_temperature': 1.5}),
    (STAGES, {'synthesize.residual': .5}),
    (STAGES | {'synthesize.residual': .5}, {'synthesize.residual': .9}),
    ({'matching.patch': 0} | STAGES | {'synthesize.observers': ['wrn16_2']}, {'synthesize.stage_sizes': [10, 8]}),
    (DM_STEPS, {'bilevel.lr': 20.}),
    (DM_STEPS, {'bilevel.siamese': False}),
]


@pytest.mark.parametrize('before,changes', IMAGES, ids=ids(IMAGES))
def test_a_switch_of_the_synthesis_leaves_observers_statistics_and_first_images(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == set(AFTER) and a.same(b) == {'initial'}
    assert b.images.shape == a.images.shape and b.record['observers'] == a.record['observers']


RDED = {'initialize.method': 'rded', 'initialize.factor': 2}
FIRST = [
    *alone('initialize', ('method', 'noise'), ('method', 'rded'), ('method', 'herding'), ('method', 'k-centre'),
           ('flip', .5), ('replacement', True)),
    (RDED, {'initialize.factor': 1}),
    (RDED, {'initialize.difficulty': 'medium'}),
    (RDED, {'initialize.candidates': 20}),
    (RDED, {'initialize.crops': 2}),
    (RDED, {'initialize.crop_scale': [.5, 1.]}),
    (RDED, {'initialize.observer': 'convnet_d2'}),
    ({'initialize.method': 'herding'}, {'initialize.observer': 'convnet_d2'}),
]


@pytest.mark.parametrize('before,changes', FIRST, ids=ids(FIRST))
def test_a_switch_of_the_first_images_leaves_observers_and_statistics(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == {'initialize', *AFTER} and a.same(b) == set()
    assert b.record['observers'] == a.record['observers']


SQUEEZE = alone('squeeze', ('epochs', 2), ('lr', .01), ('batch_size', 32), ('optimizer', 'adamw'), ('weight_decay', .1),
                ('crop_pad', 2), ('crop', 'resized'), ('flip', .5))


@pytest.mark.parametrize('before,changes', SQUEEZE, ids=ids(SQUEEZE))
def test_a_switch_of_the_observers_training_makes_all_but_the_first_images_new(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == {'observer', 'statistics', 'ensemble', *AFTER} and a.same(b) == {'initial'}


# ---- what does not apply

DM = DM_STEPS | {'relabel.labels': 'hard', 'evaluate.loss': 'ce'}
NOTHING = [
    ({}, {'bilevel.lr': .3, 'bilevel.network': 'convnet_d2', 'bilevel.outer_steps': 5, 'bilevel.siamese': False}),
    ({}, {'initialize.observer': 'convnet_w32'}),
    *alone('squeeze', ('full_epochs', 9), ('label_epochs', 1), ('label_start', 'scratch')),
    (DM, {'matching.alpha': .1, 'matching.patch': 0, 'matching.taps': 'bn'}),
    (DM, {'synthesize.observers': ['wrn16_2']}),
    (DM, {'squeeze.epochs': 4}),
    (DM, {'relabel.observers': ['wrn16_2'], 'relabel.codec': 'int8'}),
    ({'synthesize.iterations': 0}, {'matching.alpha': .1, 'synthesize.lr': .5, 'synthesize.flatness': 'sam'}),
]


@pytest.mark.parametrize('before,changes', NOTHING, ids=ids(NOTHING))
def test_a_setting_of_a_part_that_is_not_used_computes_nothing(before, changes, base, tmp_path):
    a, b, new = pair(before, changes, base, tmp_path)
    assert new == set() and a.same(b) == {'images', 'initial', 'labels', 'student'}


IDLE = [
    ({'synthesize.flatness': 'off'},
     {'synthesize.flatness_weight': 9., 'synthesize.flatness_decay': .1, 'synthesize.sam_radius': 1.}),
    ({}, {'synthesize.sam_radius': 1., 'synthesize.crop_pad': 1, 'synthesize.densify_temperature': 9.}),
    ({'synthesize.crop': 'none'}, {'synthesize.crop_scale': [.1, .2]}),
    ({}, {'synthesize.snapshots': [0, 3]}),
    ({'matching.alpha': 1.}, {'matching.class_target': 'batch_mean', 'matching.class_variance': 'within_image'}),
    ({'matching.stat_ema': 0.}, {'matching.stat_ema_init': 'zero'}),
    ({}, {'matching.stat_ema_reset': 'never'}),
    ({}, {'initialize.factor': 2, 'initialize.crops': 1, 'initialize.difficulty': 'medium'}),
    ({}, {'evaluate.sam_radius': 1., 'evaluate.flatness_weight': 9., 'evaluate.temperature': 3., 'evaluate.gamma': .1,
          'evaluate.alrs_gamma': .5, 'evaluate.milestones': [.5], 'evaluate.momentum': .1}),
    ({}, {'relabel.topk': 2}),
    ({}, {'augment.crop_pad': 2, 'augment.magnitude': 20}),
    ({'augment.mix': 'none'}, {'augment.mix_alpha': 9.}),
]


@pytest.mark.parametrize('before,changes', IDLE, ids=ids(IDLE))
def test_a_setting_that_does_not_apply_changes_no_result(before, changes, base, tmp_path):
    a, b, _ = pair(before, changes, base, tmp_path)
    assert a.same(b) == {'images', 'initial', 'labels', 'student'}
    fields = ('images_hash', 'last', 'best', 'raw_last', 'curve', 'ensemble', 'observers')
    assert all(a.record[k] == b.record[k] for k in fields)


def test_labels_made_in_another_batch_size_agree(base, tmp_path):
    "Kernels may add in another order for another batch: to 1e-5 before rounding, and images are untouched."
    before = {'relabel.codec': 'fp32'}
    a, b, new = pair(before, {'relabel.teacher_batch': 7}, base, tmp_path)
    assert a.same(b) >= {'images', 'initial'} and new == {'relabel', 'evaluate'}
    assert a.labels.keys() == b.labels.keys()
    for name, tensor in a.labels.items():
        torch.testing.assert_close(tensor, b.labels[name], rtol=1e-5, atol=1e-5)


def test_label_observers_trained_otherwise_do_not_touch_those_that_judge_first_images(base, tmp_path):
    "RDED asks an observer of the first kind, whatever the labels' observers are."
    a, b, new = pair(RDED, {'squeeze.label_epochs': 2}, base, tmp_path)
    assert new == {'observer', 'relabel', 'evaluate', 'ensemble'} and a.same(b) == {'images', 'initial'}
