"""Looking at condensed sets: gaps, labels, diversity, neighbours against independent computations; nothing changes by
being looked at."""
import dataclasses
import itertools
import math
import random

import numpy as np
import pandas as pd
import pytest
import torch

from edc_nb.core.files import bytes_hash
from edc_nb.core.settings import EdcError, MatchingSettings
from edc_nb.diagnostics.guards import check_images, eval_mode
from edc_nb.diagnostics.initializations import initialization_study, initialization_table, plot_initialization
from edc_nb.diagnostics.inspect import inspect_study, inspect_table, plot_inspect
from edc_nb.diagnostics.measures import (
    diversity,
    image_features,
    label_report,
    nearest,
    nearest_real,
    plot_diversity,
    plot_labels,
    plot_nearest,
    plot_statistic_gaps,
    spread,
    statistic_gaps,
    teacher_logits,
)
from edc_nb.run.folder import condense
from edc_nb.stages.initialize import initialize
from edc_nb.stages.matching import Matcher
from edc_nb.stages.synthesize import synthesize
from edc_nb.study.comparison import contestants

SEED = random.randrange(10**6)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Random real digits, three per class, with the observers of EDC."
    out = tmp_path_factory.mktemp('inspect')
    r = next(r for r in contestants('tiny', ipc=3, methods=('edc',), protocol='edc') if r.name == 'edc')
    c = condense(r.replace({'synthesize.iterations': 4, 'squeeze.epochs': 1}), out=out / 'run', labels=False,
                 progress=False)
    return c, c.chain.observers(), c.chain.dataset


@pytest.fixture
def gen():
    return torch.Generator().manual_seed(SEED)


def naive(f):
    return f.mean((0, 2, 3)), f.var((0, 2, 3), correction=0)


def test_gaps_of_whole_feature_maps(made, gen):
    _, observers, d = made
    x, y = torch.rand(11, 3, 8, 8, generator=gen), torch.randint(0, 10, (11,), generator=gen)
    df = statistic_gaps(x, y, observers, d)
    assert set(df['class']) == {'all', *(str(d.classes[c]) for c in y.unique().tolist())}
    for o in observers:
        seen, net = {}, o.model
        hooks = [m.register_forward_pre_hook(lambda m, a, n=n: seen.__setitem__(n, a[0].detach().double())) for n,
                 m in net.named_modules()]
        with torch.no_grad():
            net(d.normalize(x))
        for h in hooks:
            h.remove()
        for segment in o.taps.layout:
            module, what, columns = segment.module, segment.what, segment.columns
            if what != 'channel':
                continue
            for c in [None, *y.unique().tolist()]:
                f = seen[module] if c is None else seen[module][y == c]
                t = o.matcher.targets
                m, v = (t.mean, t.var) if c is None else (t.class_mean[c], t.class_var[c])
                want = [(a - b[columns]).norm().item() for a, b in zip(naive(f), (m, v))]
                row = df[(df.observer == o.name) & (df.module == module) & (df.what == what) & (
                    df['class'] == ('all' if c is None else str(d.classes[c])))]
                assert len(row) == 1
                scale = m[columns].norm().item() + v[columns].norm().item()
                for got, w in zip((row['mean'].item(), row.variance.item(), row.relative.item()),
                                  (*want, sum(want) / scale)):
                    assert got == pytest.approx(w, rel=2e-3, abs=2e-4), (o.name, module, c, SEED)


def test_gaps_add_up_to_the_matching_loss(made):
    "With alpha 1 and equal weights, Eq. 2 is the sum of the table's rows."
    c, observers, d = made
    df = statistic_gaps(c.images, c.labels, observers, d)
    x = d.normalize(c.images.float() / 255)
    for o in observers:
        for alpha in (1., 0.):
            matcher = Matcher(o.matcher.targets, o.taps.layout, MatchingSettings(alpha=alpha, first_multiplier=1.))
            matcher.start(c.labels)
            with torch.no_grad():
                loss = matcher(*o.taps(x)[1:], freeze=True).item()
            part = df[(df.observer == o.name) & ((df['class'] == 'all') if alpha else (df['class'] != 'all'))]
            assert (part['mean'] + part.variance).sum() / (1 if alpha else 10) == pytest.approx(loss, rel=1e-3)


def test_gap_of_the_data_itself_is_nothing(made):
    "All training images, as the statistics pass sees them without augmentation, against pooled targets."
    from edc_nb.stages.matching import collect_statistics
    from edc_nb.stages.synthesize import Observer
    c, observers, d = made
    s = MatchingSettings(stat_augment='none', bn_global='pooled')
    o = observers[1]
    own = Observer(o.name, o.model, collect_statistics(o.model, d, s), 8, s)
    df = statistic_gaps(d.train.images, d.train.labels, [own], d)
    assert df.relative.max() < 1e-3


def test_labels_by_hand(gen):
    T, N, C = 4, 60, 7
    z, y = 4 * torch.randn(T, N, C, generator=gen), torch.randint(0, C, (N,), generator=gen)
    df, p = label_report(z, y, list('abcd'), [f'class {i}' for i in range(C)]), np.exp(z.double().numpy())
    p /= p.sum(2, keepdims=True)
    mean = np.exp(z.double().mean(0).numpy())
    mean /= mean.sum(1, keepdims=True)
    assert df['class'].tolist() == ['all'] + [f'class {i}' for i in sorted(set(y.tolist()))]
    for row in df.to_dict('records'):
        who = [k for k in range(N) if row['class'] in ('all', f'class {y[k]}')]
        assert row['images'] == len(who)
        assert row['entropy'] == pytest.approx(np.mean([-(mean[k] * np.log(mean[k])).sum() for k in who]))
        assert row['single entropy'] == pytest.approx(np.mean([-(p[t, k] * np.log(p[t, k])).sum() for t in range(T)
            for k in who]))
        assert row['divergence'] == pytest.approx(np.mean([(p[t, k] * np.log(p[t, k] / p[:, k].mean(0))).sum()
            for t in range(T) for k in who]))
        assert row['pairs agree'] == pytest.approx(np.mean([p[a, k].argmax() == p[b, k].argmax() for a,
            b in itertools.combinations(range(T), 2) for k in who]))
        assert row['right'] == pytest.approx(np.mean([mean[k].argmax() == y[k].item() for k in who]))
        assert row['right: c'] == pytest.approx(np.mean([p[2, k].argmax() == y[k].item() for k in who]))
    assert np.isnan(label_report(z[:1], y)['pairs agree']).all()


def test_teachers_say_what_they_say_alone(made):
    c, observers, d = made
    z = teacher_logits(c.images, {o.name: o.model for o in observers}, d)
    with torch.no_grad():
        for one, o in zip(z, observers):
            torch.testing.assert_close(one, o.model(d.normalize(c.images.float() / 255)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z, teacher_logits(c.images.float() / 255, {o.name: o.model for o in observers}, d))


def test_diversity_by_hand(gen):
    f = torch.randn(6, 9, 5, generator=gen)
    dist, vendi = spread(f)
    for got_d, got_v, one in zip(dist, vendi, f.double().numpy()):
        assert got_d.item() == pytest.approx(np.mean([np.linalg.norm(a - b) for a,
            b in itertools.permutations(one, 2)]))
        unit = one / np.linalg.norm(one, axis=1, keepdims=True)
        lam = np.linalg.svd(unit / 3, compute_uv=False)**2
        assert got_v.item() == pytest.approx(np.exp(-sum(v * np.log(v) for v in lam if v > 1e-15)))
    assert spread(torch.ones(5, 3))[0] == 0 and spread(torch.ones(5, 3))[1].item() == pytest.approx(1)
    assert spread(torch.eye(7))[1].item() == pytest.approx(7)


def test_real_reference_of_diversity(gen):
    "Random subsets are neither more nor less diverse than real ones, on average over classes."
    real, y = torch.randn(400, 6, generator=gen), torch.arange(400) % 8
    rows = torch.cat([(y == c).nonzero().flatten()[torch.randperm(50, generator=gen)[:10]] for c in range(8)])
    df = diversity(real[rows], y[rows], real, y, draws=200, seed=SEED)
    z = (df.vendi - df['real vendi']) / df['real vendi sd']
    assert abs(z.mean()) < 5 / 8**.5 and len(df) == 8
    again = diversity(real[rows], y[rows], real, y, draws=200, seed=SEED)
    pd.testing.assert_frame_equal(df, again)
    collapsed = diversity(real[rows] * .01 + 1, y[rows], real, y, draws=50, seed=SEED)
    assert (collapsed.vendi < collapsed['real vendi'] - 3 * collapsed['real vendi sd']).all()


def test_nearest_against_all_pairs(gen):
    q, r = torch.randn(33, 20, generator=gen) + 100, torch.randn(301, 20, generator=gen) + 100     # far from the origin
    r[17] = q[5]
    for chunk in (1, 50, 301, 5000):
        dist, i = nearest(q, r, chunk=chunk)
        ref = (q.double()[:, None] - r.double()[None]).norm(dim=2)
        assert i.equal(ref.argmin(1)), SEED
        torch.testing.assert_close(dist, ref.min(1).values)
    assert dist[5] == 0 and i[5] == 17


def test_copies_are_found_and_new_images_are_not(made):
    c, observers, d = made
    rows = torch.arange(0, 200, 10)
    df = nearest_real(d.train.images[rows], d.train.labels[rows], d, observers[0].model)
    assert (df['pixel distance'] == 0).all() and (df['feature distance'] < 1e-4).all(
        ) and df['same class by pixels'].all()
    own = d.train.images[df['nearest by pixels'].tolist()]
    assert own.equal(d.train.images[rows])
    unseen = nearest_real(d.test.images[:20], d.test.labels[:20], d)
    assert (unseen['pixel distance'] > 0).all() and 'feature distance' not in unseen
    a, i = d.test.images[3].double() / 255, unseen['nearest by pixels'][3]
    rms = ((d.train.images.double() / 255 - a)**2).mean((1, 2, 3)).sqrt()
    assert unseen['pixel distance'][3] == pytest.approx(rms.min().item(), rel=1e-5) and rms[i] == rms.min()


def test_looking_changes_nothing(made):
    """Bit by bit: networks in a mixed mode, buffers, running averages of the matching, inputs, random state; and a
    synthesis that goes on afterwards."""
    c, observers, d = made
    net = observers[0].model
    x = d.normalize(c.images.float() / 255)
    net.train()
    next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    for o in observers:
        o.matcher.start(c.labels)
        with torch.no_grad():
            o.matcher(*o.taps(x)[1:])

    def state():
        t = [t for o in observers for t in (*o.model.state_dict().values(), *o.matcher.state().values(),
                                            *(v for v in vars(o.matcher.targets).values()
                                              if isinstance(v, torch.Tensor)))]
        return [bytes_hash(v) for v in (*t, c.images, c.labels, d.train.images, d.train.labels,
                                        torch.get_rng_state())] + [m.training for o in observers
                                            for m in o.model.modules()]

    def look(*_):
        models = {o.name: o.model for o in observers}
        statistic_gaps(c.images, c.labels, observers, d)
        label_report(teacher_logits(c.images, models, d), c.labels)
        f = image_features(c.images, net, d)
        diversity(f, c.labels, image_features(d.train.images, net, d), d.train.labels, draws=3)
        nearest_real(c.images, c.labels, d, net)
    before, inputs = state(), c.images.clone()
    look()
    assert state() == before and c.images.equal(inputs)
    net.eval()
    s = dataclasses.replace(c.recipe.synthesize, iterations=4)
    start = initialize(d, c.recipe.initialize, 3, seed=SEED)
    plain = synthesize(start, observers, d, s, c.recipe.matching, seed=1)
    watched = synthesize(start, observers, d, s, c.recipe.matching, seed=1, watch=look)
    assert plain.images.equal(watched.images) and plain.history.equal(watched.history)


def test_modes_come_back_after_an_error(made):
    net = made[1][0].model
    net.train()
    with pytest.raises(RuntimeError):
        with eval_mode(net):
            assert not any(m.training for m in net.modules()) and not torch.is_grad_enabled()
            raise RuntimeError
    assert all(m.training for m in net.modules()) and torch.is_grad_enabled()
    net.eval()


def bad_cases(c, observers, d):
    x, y = c.images.float() / 255, c.labels
    nan = x.clone()
    nan[[4, 9], 0, 3, 3] = math.nan
    z = torch.zeros(2, 5, 10)
    f = torch.randn(6, 4)
    yield 'images: 2 of 30 are not finite, the first is number 4', lambda: statistic_gaps(nan, y, observers, d)
    yield 'images: 2 of 30 are not finite', lambda: nearest_real(nan, y, d)
    yield 'images: 2 of 30 are not finite', lambda: image_features(nan, observers[0].model, d)
    yield r'images: got shape \[30, 1, 8, 8\], expected \[N, 3, 8, 8\]', lambda: statistic_gaps(x[:, :1], y,
        observers, d)
    yield r'images: got shape \[30, 3, 8, 7\]', lambda: teacher_logits(x[..., :7], {}, d)
    yield r'images: got shape \[0, 3, 8, 8\]', lambda: check_images(x[:0], y[:0], d)
    yield 'images: got torch.int32', lambda: check_images(x.int(), y, d)
    yield 'images: got values from 0 to 255', lambda: check_images(c.images.float(), y, d)
    yield r'labels: got shape \[4\] for 30 images', lambda: statistic_gaps(x, y[:4], observers, d)
    yield 'labels: got 5 to 14, expected whole numbers from 0 to 9', lambda: statistic_gaps(x, y + 5, observers, d)
    yield 'models: got none', lambda: teacher_logits(x, {}, d)
    yield 'small has 3 classes, but digits has 10', lambda: teacher_logits(x,
        {'small': torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))}, d)
    yield r'logits: got shape \[2, 5, 10\] and \[4\] labels', lambda: label_report(z, torch.zeros(4).long())
    yield 'the logits have 10 classes', lambda: label_report(z, torch.full((5,), 10))
    yield 'logits: 1 of 5 are not finite', lambda: label_report(z.index_put((torch.tensor(0), torch.tensor(2)),
        torch.tensor(math.inf)), torch.zeros(5).long())
    yield "diversity: class '1' has 1 image, expected at least 2", lambda: diversity(f,
        torch.tensor([0, 0, 0, 0, 0, 1]))
    yield "class '0' has 6 synthetic and 3 real images", lambda: diversity(f, torch.zeros(6).long(), f[:3],
        torch.zeros(3).long())
    yield r'real features: got shape \[6, 3\]', lambda: diversity(f, torch.zeros(6).long(), f[:, :3],
        torch.zeros(6).long())
    yield 'features: 1 of 6 are not finite', lambda: diversity(f.index_put((torch.tensor(0),),
        torch.tensor(math.nan)), torch.zeros(6).long())
    yield 'nearest: got shapes', lambda: nearest(f, f[:, :2])
    yield "unknown observer 'resnet'", lambda: plot_statistic_gaps({'x': statistic_gaps(x, y, observers, d)}, 'resnet')
    yield "unknown recipe 'edcc'", lambda: inspect_study('tiny', methods=('edcc',))
    yield "unknown scale 'big'", lambda: initialization_study('big')


def test_bad_input_is_told_in_one_sentence(made):
    for match, call in bad_cases(*made):
        with pytest.raises(EdcError, match=match) as e:
            call()
        assert '\n' not in str(e.value)


def test_studies_and_pictures(tmp_path):
    import matplotlib
    matplotlib.use('Agg')
    kw = dict(store=tmp_path / 'store', device='cpu', progress=False, ipc=2)
    df = inspect_study('tiny', out=tmp_path / 'inspect', methods=('random-real', 'sre2l', 'edc'), seeds=2, **kw)
    assert set(df.method) == {'random-real', 'sre2l', 'edc', 'test'} and df.value.notna().all()
    assert df[df.method == 'random-real'].seed.nunique() == 2
    t = inspect_table(df)
    assert t.loc['edc', 'gap, by class'] < t.loc['sre2l', 'gap, by class']       # from noise, a few steps
    assert t.loc['random-real', 'pixel distance'] < t.loc['test', 'pixel distance'] < t.loc['sre2l', 'pixel distance']
    pd.testing.assert_frame_equal(df, inspect_study('tiny', out=tmp_path / 'inspect',
        methods=('random-real', 'sre2l', 'edc'), seeds=2, **kw))
    for m in ('gap', 'entropy', 'right', 'vendi', 'feature distance'):
        assert plot_inspect(df, m).get_ylabel()
    ini = initialization_study('tiny', out=tmp_path / 'ini', iterations=(8, 4), seeds=2, **kw)
    assert len(ini) == 3 * (2 * 8 + 4)
    pd.testing.assert_frame_equal(ini, initialization_study('tiny', out=tmp_path / 'ini', iterations=(8, 4),
        seeds=2, **kw))
    assert len(plot_initialization(ini)) == ini.observer.nunique()


def test_table_of_starts_by_hand():
    "Two visits' worth of made-up losses."
    rows = [dict(start=m, iterations=4, seed=s, iteration=i, observer='o', matching=v, ce=0.) for m,
            all_ in (('noise', [[9, 8, 7, 6], [9, 7, 5, 3]]), ('real', [[8, 7, 8, 5], [4, 2, 2, 2]])) for s,
            vs in enumerate(all_) for i, v in enumerate(vs)]
    rows += [dict(start='real', iterations=2, seed=0, iteration=i, observer='o', matching=v, ce=0.) for i,
             v in enumerate([8, 4])]
    t = initialization_table(pd.DataFrame(rows), last=1).set_index('start')
    assert t.loc['real', "reaches noise's final at"] == [3, 1] and t.loc['real', 'visits below'] == 7 / 8
    assert t.loc['real', 'final'] == 3.5 and t.loc['noise', 'final'] == 4.5 and t.loc['real', 'final in 2'] == 4


def test_pictures_of_a_set(made):
    import matplotlib
    matplotlib.use('Agg')
    c, observers, d = made
    gaps = {'edc': statistic_gaps(c.images, c.labels, observers, d)}
    assert plot_statistic_gaps(gaps, observers[0].name).get_ylabel() == 'gap / norm of target'
    assert plot_labels({'edc': label_report(teacher_logits(c.images, {o.name: o.model for o in observers}, d),
                                            c.labels)}).get_xlabel()
    f = image_features(c.images, observers[0].model, d)
    assert plot_diversity({'edc': diversity(f, c.labels, image_features(d.train.images, observers[0].model, d),
                                            d.train.labels, draws=3)}).get_xlabel() == 'class'
    assert plot_nearest(nearest_real(c.images, c.labels, d, observers[0].model), c.images, d,
                        which=(0, 5, 9)).shape == (3, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda_agrees(made):
    from edc_nb.core.runtime import make_runtime
    from edc_nb.stages.synthesize import Observer
    c, observers, d = made
    run = make_runtime('cuda', 'fp32', progress=False)
    cpu = statistic_gaps(c.images, c.labels, observers[1:2], d)
    o = observers[1]
    moved = Observer(o.name, o.model.to('cuda'), c.chain.statistics(o.name), 8, c.recipe.matching)
    for k, v in vars(moved.matcher.targets).items():
        if isinstance(v, torch.Tensor):
            setattr(moved.matcher.targets, k, v.to('cuda'))
    gpu = statistic_gaps(c.images, c.labels, [moved], d, run=run)
    np.testing.assert_allclose(gpu.relative, cpu.relative, rtol=2e-2, atol=1e-3)
    o.model.to('cpu')
