"""Settings that contradict each other or the data: one sentence, before anything is written."""
import pytest

from kit import one_sentence

END = ['--dataset', 'digits', '--ipc', '2', '--out', 'out', '--quiet']


def given(*items):
    return [a for i in items for a in ('--set', i)]


def run(*items, recipe='edc', more=()):
    "`edc run` with these settings."
    return ['run', recipe, *END, *given(*items), *more]


def vary(*items, recipes=('edc',)):
    "`edc sweep` over these values."
    return ['sweep', *recipes, *END, *(a for i in items for a in ('--vary', i))]


def find(*items, recipes=('edc',), settings=('data.validation=50',)):
    "`edc sweep --trials`: a search in these values."
    return [*vary(*items, recipes=recipes), '--trials', '2', *given(*settings)]


TWO_STAGES = ('synthesize.iterations=4', 'synthesize.stages=2')

WRONG = {   # what is wrong: (arguments, what the sentence names)
    # sweeps
    'sweep over an unknown setting': (vary('matching.alfa=[0, 1]'), "'matching.alfa'", 'matching.alpha'),
    'sweep over nothing': (vary('matching.alpha=[]'), 'matching.alpha', 'empty'),
    'sweep over a number': (vary('matching.alpha=0.5'), 'matching.alpha', 'list'),
    'sweep over a wrong value': (vary('matching.alpha=[0.5, 2]'), 'matching.alpha', '2'),
    'sweep over a wrong kind': (vary('evaluate.zeta=[1, often]'), 'evaluate.zeta', "'often'"),
    'sweep over an unknown choice': (vary('synthesize.flatness=[sam, samba]'), 'synthesize.flatness', "'samba'"),
    'sweep over an unknown student': ([*vary(), '--student', 'resnet19'], "'resnet19'"),
    'sweep of an unknown recipe': (vary(recipes=('edc', 'cdc')), "'cdc'"),
    'sweep over one patch': (vary('augment.patch_shuffle=[0, 1]'), 'augment.patch_shuffle', '1'),
    'sweep over patches that do not fit': (vary('augment.patch_shuffle=[2, 3]'), 'augment.patch_shuffle', '3', '8'),
    'sweep over IPC larger than a class': (vary('ipc=[1, 500]'), 'ipc', '500', 'at most'),
    'cells that contradict themselves': (
        vary('evaluate.flatness=[off, ema]', 'evaluate.ema_rate=[0, 0.9]'), 'evaluate.flatness', 'ema_rate'),
    'hard labels in one cell': (vary('relabel.labels=[soft, hard]'), 'evaluate.loss', 'relabel.labels', 'ce'),
    'stages in one cell': (vary('synthesize.stages=[1, 2]'), 'synthesize.stages', '2', '75'),
    # searches
    'search without validation': (find('matching.alpha=[0, 1]', settings=()), 'data.validation', 'hold out'),
    'search without a space': (find(), 'space'),
    'search over nothing': (find('matching.alpha=[]'), 'matching.alpha', 'empty'),
    'search over an unknown setting': (find('matching.alfa=[0, 1]'), "'matching.alfa'"),
    'search from two recipes': (find('matching.alpha=[0, 1]', recipes=('edc', 'rded')), '--trials', '2'),
    # settings of one recipe
    'one patch': (run('augment.patch_shuffle=1'), 'augment.patch_shuffle', '1'),
    'SAM with zero radius on images': (
        run('synthesize.flatness=sam', 'synthesize.sam_radius=0'), 'synthesize.sam_radius', '0'),
    'SAM with zero radius on weights': (
        run('evaluate.flatness=sam', 'evaluate.sam_radius=0'), 'evaluate.sam_radius', '0'),
    'sizes without stages': (
        run('synthesize.stage_sizes=[8, 8]'), 'synthesize.stage_sizes', '2 sizes', '1 stages'),
    'sizes that end elsewhere': (
        run(*TWO_STAGES, 'synthesize.stage_sizes=[8, 10]', 'matching.patch=0'), 'synthesize.stage_sizes', '8'),
    'sizes with tiles': (
        run(*TWO_STAGES, 'synthesize.stage_sizes=[10, 8]'), 'synthesize.stage_sizes', 'matching.patch'),
    'sizes that an observer cannot take': (
        run(*TWO_STAGES, 'synthesize.stage_sizes=[10, 8]', 'matching.patch=0', 'squeeze.epochs=0', 'evaluate.epochs=1',
            'synthesize.observers=[wrn16_2, convnet_d1]'), 'synthesize.stage_sizes', 'convnet_d1'),
    'stages that do not divide': (run('synthesize.iterations=5', 'synthesize.stages=2'), 'synthesize.stages', '5'),
    'residual without stages': (run('synthesize.residual=0.5'), 'synthesize.residual', 'stages'),
    'flatness to an average that is off': (
        run('evaluate.flatness=ema', 'evaluate.ema_rate=0'), 'evaluate.flatness', 'ema_rate'),
    'parts that do not divide a step': (run('relabel.bn=batch', 'relabel.bn_parts=2'), 'relabel.bn_parts', '25'),
    'hard labels with a soft loss': (run('relabel.labels=hard'), 'evaluate.loss', "'mse_ce'"),
    # methods
    'unknown synthesis': (run('synthesize.method=mtt'), "'mtt'", 'matching, dm, dc'),
    'unknown network of DM': (run('bilevel.network=convnet', recipe='dm'), "'convnet'", 'bilevel.network'),
    'images of elsewhere': (run('initialize.method=given'), 'given', 'import'),
    'DM on ImageNet': (['run', 'dm', '--dataset', 'imagenet1k', '--out', 'out'], "'imagenet1k'", 'tiny_imagenet'),
    'herding of more than a class has': (
        run(recipe='herding', more=('--ipc', '400')), 'ipc', '400', 'herding', 'at most'),
    'k-centre of more than a class has': (
        run(recipe='k-centre', more=('--ipc', '400')), 'ipc', '400', 'k-centre', 'at most'),
    # printed tables
    'reproduce an unknown table': (['reproduce', 'table99'], "'table99'", 'table5'),
    'reproduce at an unknown scale': (['reproduce', 'table5', '--scale', 'medium'], "'medium'", 'subset'),
    'reproduce for an unknown student': (
        ['reproduce', 'table5', '--scale', 'tiny', '--student', 'resnet19'], "'resnet19'"),
    'reproduce what cannot be run': (['reproduce', 'table22', '--scale', 'tiny'], 'table22', 'imagenet21k'),
    'reproduce with an unknown setting': (
        ['reproduce', 'table16', '--scale', 'tiny', *given('evaluate.epoch=2')], "'evaluate.epoch'"),
    'print an unknown table': (['tables', 'table99'], "'table99'", 'table5'),
}


@pytest.mark.parametrize('what', WRONG)
def test_a_contradiction_gets_one_sentence_before_anything_is_written(what, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, *named = WRONG[what]
    one_sentence(*here(*args), *named)
    assert list(tmp_path.iterdir()) == []
