"""The matching code against a float64 computation that holds whole feature maps and loops: Eq. 5 and fact sheet
2.1-2.4.

Nothing here uses moments per image, the law of total variance or stacked segments: every statistic is taken from
the very pixels it is about. The networks compute in float64 (`Exact`), so the library must agree to rounding."""
import functools

import pytest
import torch
from torch import nn

from edc_nb.core.runtime import Runtime, generator
from edc_nb.core.settings import DataSettings, MatchingSettings, SqueezeSettings
from edc_nb.data.images import ImageSet
from edc_nb.data.open import open_dataset
from edc_nb.models.registry import build_model
from edc_nb.stages.matching import Matcher, Taps, collect_statistics, make_targets, statistic_gap
from edc_nb.stages.squeeze import stream, train_views
from edc_nb.stages.synthesize import Observer

OBSERVERS = ['resnet18', 'convnet_w128', 'mobilenet_v2', 'wrn16_2', 'shufflenet_v2', 'convnet_d1', 'convnet_d2',
             'convnet_w32']
COUNTS = [1, 2, 3, 5]      # images per class: unequal, one class with a single image
LABELS = torch.tensor([3, 1, 3, 0, 3, 1])     # of the synthetic batch: class 2 is absent, class 0 has one image
PLAIN = SqueezeSettings(crop='none', flip=0.)


class Exact(nn.Module):
    "A network in float64; `seen` holds the batches it was given."

    def __init__(self, name, size, classes=4):
        super().__init__()
        self.net, self.seen = build_model(name, classes, size, seed=3).double(), []
        gen = torch.Generator().manual_seed(5)
        for m in self.net.modules():      # running buffers and affine weights of a trained network are not 0 and 1
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.copy_(torch.randn(m.num_features, generator=gen) * .1)
                m.running_var.copy_(torch.rand(m.num_features, generator=gen) + .5)
        self.eval().requires_grad_(False)

    def forward(self, x):
        self.seen.append(x.detach())
        return self.net(x.double())


# ---- the naive computation

def maps(model, x):
    "Whole inputs of every batch norm and convolution: [(kind, module, map [B, C, H, W])] in `named_modules` order."
    found, handles = {}, []
    taps = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.Conv2d))]
    for n, m in taps:
        handles.append(m.register_forward_hook(lambda m, inp, out,
                                               n=n: found.__setitem__(n,
                                                   inp[0] if inp[0].requires_grad else inp[0].clone())))
    model(x)
    for h in handles:
        h.remove()
    return [('conv' if isinstance(m, nn.Conv2d) else 'bn', m, found[n]) for n, m in taps]


def stretch(x, h, w):
    "Bilinear resizing with half-pixel centres, by a matrix per axis."
    def matrix(n, to):
        out = torch.zeros(to, n, dtype=x.dtype)
        for i in range(to):
            at = max(0., (i + .5) * n / to - .5)
            lo = min(int(at), n - 1)
            hi = min(lo + 1, n - 1)
            out[i, lo] += 1 - (at - lo)
            out[i, hi] += at - lo
        return out
    return matrix(x.shape[2], h) @ x @ matrix(x.shape[3], w).T


def tiles(x, p):
    "[(B, C, p, p)] tile after tile, row by row; a map that the tiles do not fill is stretched first."
    h, w = (-(-n // p) * p for n in x.shape[2:])
    if (h, w) != tuple(x.shape[2:]):
        x = stretch(x, h, w)
    return [x[:, :, i:i + p, j:j + p] for i in range(0, h, p) for j in range(0, w, p)]


def mean_var(values, dims):
    "Mean and biased variance over some dimensions."
    mean = values.mean(dims, keepdim=True)
    return mean.flatten(), ((values - mean)**2).mean(dims).flatten()


def measure(x, patch):
    """Vectors of one group of maps x [n, C, H, W], all pixels of all its images pooled: [(mean, var)], channels first,
    then tiles."""
    out = [mean_var(x, (0, 2, 3))]
    if patch:
        out.append(tuple(torch.cat(v) for v in zip(*[mean_var(t, (0, 1, 2, 3)) for t in tiles(x, patch)])))
    return out


def flat(parts, which):
    "One vector of all taps: `parts` holds a list of (mean, var) per tap."
    return torch.cat([pair[which] for tap in parts for pair in tap])


def rows(model, x, groups, patch=4):
    "For each group (indices into x) the list over taps of [(mean, var), ...]."
    found = maps(model, x)
    return [[measure(f[g], patch if kind == 'conv' else 0) for kind, _, f in found] for g in groups]


def members(labels):
    "Indices of each class that is present, classes in order."
    return {c: [i for i, y in enumerate(labels.tolist()) if y == c] for c in sorted(set(labels.tolist()))}


class Naive:
    "Statistics of a data set, from the batches in which the library saw it."

    def __init__(self, model, batches, patch=4):
        x, y = torch.cat([b for b, _ in batches]), torch.cat([l for _, l in batches])
        with torch.no_grad():
            by_class = rows(model, x, members(y).values(), patch)
            single = rows(model, x, [[i] for i in range(len(x))], patch)
            whole, = rows(model, x, [list(range(len(x)))], patch)
            of_batch = [rows(model, b, [list(range(len(b)))], patch)[0] for b, _ in batches]
        self.mean, self.total = (torch.stack([flat(r, k) for r in by_class]) for k in (0, 1))
        self.within = torch.stack([torch.stack([flat(single[i], 1) for i in m]).mean(0) for m in members(y).values()])
        self.pooled = flat(whole, 0), flat(whole, 1)
        self.batch_var = sum(flat(r, 1) * len(b) / len(x) for r, (b, _) in zip(of_batch, batches))
        running = [[m.running_mean, m.running_var] if kind == 'bn'
                   else [torch.full((sum(len(p[0]) for p in tap),), torch.nan).double()] * 2
                   for (kind, m, _), tap in zip(maps(model, x[:1]), whole)]
        self.running = torch.cat([r[0] for r in running]), torch.cat([r[1] for r in running])
        self.sizes = [len(p[0]) for tap in whole for p in tap]
        self.tile = torch.cat([torch.full((len(p[0]),), k == 1) for tap in whole for k, p in enumerate(tap)])

    def targets(self, s):
        """(global mean, global var, class means, class vars): settings `bn_global`, `conv_global_variance`,
        `class_variance`, `patch_swap`."""
        mean, var = (t.clone() for t in self.pooled)
        if s.conv_global_variance == 'batch_mean':
            var = self.batch_var.clone()
        if s.bn_global == 'running':
            bn = ~self.running[0].isnan()
            mean[bn], var[bn] = self.running[0][bn], self.running[1][bn]
        cm, cv = self.mean.clone(), (self.within if s.class_variance == 'within_image' else self.total).clone()
        if s.patch_swap:
            cm[:, self.tile], cv[:, self.tile] = cv[:, self.tile].clone(), cm[:, self.tile].clone()
        return mean, var, cm, cv


class NaiveLoss:
    "Fact sheet 2.4 by the letter; keeps a dictionary of averages, one per statistic and group."

    def __init__(self, model, naive, s):
        self.model, self.s, self.t, self.sizes, self.average = model, s, naive.targets(s), naive.sizes, {}
        self.first = 1 + (s.patch > 0)            # segments of the first tap, the image
        self.conv = [kind == 'conv' for kind, *_ in maps(model, naive_image(model))]

    def smooth(self, key, value):
        m, s = self.s.stat_ema, self.s
        now = value.detach()
        if key in self.average:
            e = m * self.average[key] + (1 - m) * now
        else:
            e = now if s.stat_ema_init == 'first' else (1 - m) * now
        self.average[key] = e
        return e + value - now

    def distance(self, key, stats, target_mean, target_var, keep):
        "Sum over taps and their kinds of the un-squared norms."
        total, at, segment = 0., 0, 0
        for tap, parts in enumerate(stats):
            for mean, var in parts:
                for which, value, target in ((0, mean, target_mean), (1, var, target_var)):
                    s_hat = self.seen.setdefault((key, segment, which), None)
                    if s_hat is None:
                        s_hat = self.seen[key, segment, which] = self.smooth((key, segment, which), value)
                    weight = self.s.first_multiplier if segment < self.first else 1.
                    if keep[tap]:
                        total = total + weight * torch.linalg.vector_norm(s_hat - target[at:at + len(value)])
                at, segment = at + len(value), segment + 1
        return total

    def __call__(self, x, labels, keep=None):
        s, (gm, gv, cm, cv), n = self.s, self.t, len(x)
        keep = keep or [True] * len(self.conv)
        self.seen = {}
        size = s.stat_group or n
        shares = [list(range(a, min(a + size, n))) for a in range(0, n, size)]
        loss = 0.
        if s.alpha > 0 or s.class_target == 'batch_mean':
            for g, (share, stats) in enumerate(zip(shares, rows(self.model, x, shares, s.patch))):
                if s.alpha > 0:
                    loss = loss + s.alpha * len(share) / n * self.distance(('group', g), stats, gm, gv, keep)
                if s.alpha < 1 and s.class_target == 'batch_mean':
                    tm, tv = (t[labels[share]].mean(0) for t in (cm, cv))
                    loss = loss + (1 - s.alpha) * len(share) / n * self.distance(('group', g), stats, tm, tv, keep)
        if s.alpha < 1 and s.class_target != 'batch_mean':
            groups = members(labels) if s.class_target == 'per_class' else {f'image {i}': [i] for i in range(n)}
            for (name, g), stats in zip(groups.items(), rows(self.model, x, groups.values(), s.patch)):
                c = int(labels[g[0]])
                loss = loss + (1 - s.alpha) * len(g) / n * self.distance(('class', name), stats, cm[c], cv[c], keep)
        return loss


def naive_image(model):
    return torch.zeros(1, 3, model.size, model.size)


# ---- real images

def digits(size, seed=0):
    "Handwritten digits of four classes, unequally many, at any size."
    d = open_dataset(DataSettings(name='digits', size=size, classes=[1, 4, 6, 9]), seed=seed)
    keep = torch.cat([i[:n] for i, n in zip(d.by_class, COUNTS)])
    d.train = ImageSet(d.train.images[keep], d.train.labels[keep])
    d.__dict__.pop('by_class')
    return d


def exact(name, size):
    model = Exact(name, size)
    model.size = size
    return model


@functools.lru_cache(maxsize=None)
def prepared(name, size, patch=4):
    """(data, network, the library's statistics, the naive ones) in plain views; the settings that only choose targets
    do not matter here."""
    d, model = digits(size), exact(name, size)
    return d, model, *collected(model, d, MatchingSettings(stat_batch=4, stat_augment='none', patch=patch))


def collected(model, d, s, squeeze=PLAIN):
    "(the library's statistics, the same by the naive way from the batches that the library gave the model)"
    model.seen = []
    stats = collect_statistics(model, d, s, squeeze, seed=7, name='x')
    views = [x for x in model.seen if len(x) and x.abs().sum() > 0]      # without the blank probe
    by_seed = list(stream(d, train_views(squeeze), s.stat_batch, generator(7, 'statistics', 'x'), Runtime()))
    assert [len(v) for v in views] == [len(x) for x, _ in by_seed]
    for v, (x, _) in zip(views, by_seed):
        assert v.equal(x)
    return stats, Naive(model, by_seed, s.patch)


def synthetic(d, labels, seed=1):
    "Real images of the given classes, disturbed, normalised, in float64."
    gen = torch.Generator().manual_seed(seed)
    index = torch.stack([d.by_class[c][torch.randint(len(d.by_class[c]), (1,), generator=gen)][0]
                         for c in labels.tolist()])
    x = d.normalize(d.train.images[index]).double()
    return x + .3 * torch.randn(x.shape, generator=gen, dtype=torch.float64)


def close(a, b, tol=1e-6, rest=0.):
    "Largest difference in units of the largest number."
    assert a.shape == b.shape
    gap, scale = (a.double() - b.double()).abs().max().item(), b.abs().max().item()
    assert gap <= tol * scale + rest + 1e-14, f'{gap} of {scale}'


def check_statistics(stats, naive):
    assert stats.sizes == naive.sizes
    assert stats.count.tolist() == COUNTS
    means, variances = [(stats.mean, naive.mean)], [(stats.total, naive.total), (stats.within, naive.within),
        (stats.batch_var, naive.batch_var)]
    for kind, pooled in zip((means, variances), zip(stats.pooled(), naive.pooled)):
        kind.append(pooled)
    for kind in (means, variances):
        for ours, theirs in kind:
            # tap by tap: no big one hides a small one
            for a, b, m in zip(ours.split(naive.sizes, -1), theirs.split(naive.sizes, -1),
                               naive.mean.split(naive.sizes, -1)):
                # weights are float32: a variance is exact to the mean's square times 1e-7
                close(a, b, rest=1e-7 * m.abs().max()**2 if kind is variances else 0.)
    for ours, theirs in zip((stats.bn_mean, stats.bn_var), naive.running):
        assert ours.isnan().equal(theirs.isnan())
        close(ours.nan_to_num(), theirs.nan_to_num())


def pair(model, stats, naive, s):
    "(the library's observer, the naive loss)"
    return Observer('x', model, stats, model.size, s), NaiveLoss(model, naive, s)


def check_losses(observer, naive_loss, x, labels, keep=None, drop=None, tol=1e-6):
    "Loss and gradient of one visit, both ways."
    a, b = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    _, mean, var = observer.taps(a)
    ours, theirs = observer.matcher(mean, var, drop), naive_loss(b, labels, keep)
    close(ours, theirs, tol)
    ga, = torch.autograd.grad(ours, a)
    gb, = torch.autograd.grad(theirs, b)
    assert gb.abs().max() > 0
    close(ga, gb, 5 * tol)
    return theirs.item()


# ---- all eight observers of the paper, at 32 pixels and at a side that no tile divides

@pytest.mark.parametrize('size', [32, 27])
@pytest.mark.parametrize('name', OBSERVERS)
def test_statistics_loss_and_gradient_of_every_observer(name, size):
    d, model, stats, naive = prepared(name, size)
    s = MatchingSettings()
    check_statistics(stats, naive)
    observer, loss = pair(model, stats, naive, s)
    observer.matcher.start(LABELS)
    # the second visit uses the average of the first
    values = [check_losses(observer, loss, synthetic(d, LABELS, seed), LABELS) for seed in (1, 2)]
    assert values[0] != values[1]


@pytest.mark.parametrize('name', ['mobilenet_v2', 'convnet_d2'])
def test_gradient_is_the_slope_of_the_loss(name):
    "Finite differences in float64; without running averages, whose gradient is the batch's by design."
    (d, *found), s = prepared(name, 27), MatchingSettings(stat_ema=0., bn_global='pooled')
    observer, _ = pair(*found, s)
    observer.matcher.start(LABELS)
    x = synthetic(d, LABELS)

    def value(x):
        _, mean, var = observer.taps(x)
        return observer.matcher(mean, var)
    leaf = x.clone().requires_grad_(True)
    grad, = torch.autograd.grad(value(leaf), leaf)
    gen = torch.Generator().manual_seed(0)
    for _ in range(5):
        way = torch.randn(x.shape, generator=gen, dtype=torch.float64)
        slope = (value(x + 1e-6 * way) - value(x - 1e-6 * way)) / 2e-6
        close((grad * way).sum()[None], slope[None], 1e-5)


def test_statistics_of_real_photographs_in_training_views(data_root):
    "CIFAR-10, cropped and mirrored as observers see it, unequal classes, a short last batch."
    d = open_dataset(DataSettings(name='cifar10', per_class=max(COUNTS), test_per_class=1, classes=[3, 5, 0, 8]),
                     data_root('cifar10'))
    keep = torch.cat([i[:n] for i, n in zip(d.by_class, COUNTS)])
    d.train = ImageSet(d.train.images[keep], d.train.labels[keep])
    d.__dict__.pop('by_class')
    model, s = exact('wrn16_2', 32), MatchingSettings(stat_batch=4, stat_augment='train')
    stats, naive = collected(model, d, s, SqueezeSettings(crop='pad', crop_pad=4, flip=.5))
    check_statistics(stats, naive)
    observer, loss = pair(model, stats, naive, s)
    observer.matcher.start(LABELS)
    check_losses(observer, loss, synthetic(d, LABELS), LABELS)


def test_plain_views_are_the_training_images_each_once():
    d, model = digits(32), exact('convnet_d1', 32)
    collected(model, d, MatchingSettings(stat_batch=4, stat_augment='none'))
    seen = torch.cat([x for x in model.seen[1:12]])
    want = d.normalize(d.train.images)
    found = [int((want - x).abs().flatten(1).amax(1).argmin()) for x in seen[:len(want)]]
    assert sorted(found) == list(range(len(want)))
    close(seen[:len(want)], want[found])


def test_single_precision_stays_near_the_exact_values():
    "What runs use: fp32 networks. Statistics to 1e-5 of each tap's size, loss to 1e-5, gradient to 1e-3."
    s = MatchingSettings(stat_batch=4, stat_augment='none')
    for name in ('resnet18', 'shufflenet_v2'):
        d, model, _, naive = prepared(name, 32)
        single = exact(name, 32).net.float()
        quick = collect_statistics(single, d, s, PLAIN, seed=7, name='x')
        for k in ('mean', 'total', 'within', 'batch_var'):
            for a, b, m in zip(*(t.split(quick.sizes, -1) for t in (getattr(quick, k), getattr(naive, k), naive.mean))):
                close(a, b, 3e-5, 0. if k == 'mean' else 1e-6 * m.abs().max()**2)
        observer = Observer('x', single, quick, 32, s)
        loss = NaiveLoss(model, naive, s)
        observer.matcher.start(LABELS)
        x = synthetic(d, LABELS)
        a, b = x.float().requires_grad_(True), x.clone().requires_grad_(True)
        _, mean, var = observer.taps(a)
        ours, theirs = observer.matcher(mean, var), loss(b, LABELS)
        close(ours, theirs, 1e-5)
        close(torch.autograd.grad(ours, a)[0], torch.autograd.grad(theirs, b)[0], 1e-3)


# ---- the choices, released ones included

RELEASED = dict(class_target='batch_mean', class_variance='within_image', patch_swap=True,
                conv_global_variance='batch_mean',
                stat_ema_init='zero', stat_ema_reset='never', stat_group=2)
CHOICES = dict(
    released=RELEASED,
    released_uneven_groups=RELEASED | dict(stat_group=4),
    released_per_class=RELEASED | dict(class_target='per_class', stat_group=0),
    form1=dict(alpha=1.), form2=dict(alpha=0.), blend=dict(alpha=.3),
    batch_mean_form2=dict(alpha=0., class_target='batch_mean'),
    per_image=dict(class_target='per_image', alpha=.3), per_image_zero=dict(class_target='per_image',
        stat_ema_init='zero'),
    groups_and_classes=dict(stat_group=2, alpha=.3),
    pooled=dict(bn_global='pooled'), batch_variance=dict(conv_global_variance='batch_mean', bn_global='pooled'),
    within=dict(class_variance='within_image'), swapped=dict(patch_swap=True),
    no_average=dict(stat_ema=0.), zero_start=dict(stat_ema_init='zero'), long_average=dict(stat_ema=.95),
    first_tap_alike=dict(first_multiplier=1.), no_tiles=dict(patch=0), large_tiles=dict(patch=16))


@pytest.mark.parametrize('choice', CHOICES)
@pytest.mark.parametrize('name', ['wrn16_2', 'convnet_d1'])
def test_every_choice_over_several_visits(name, choice):
    s = MatchingSettings(**CHOICES[choice])
    d, *found = prepared(name, 19, s.patch)
    observer, loss = pair(*found, s)
    observer.matcher.start(LABELS)
    for seed in range(3):
        check_losses(observer, loss, synthetic(d, LABELS, seed), LABELS)


@pytest.mark.parametrize('reset', ['batch', 'never'])
@pytest.mark.parametrize('target', ['per_class', 'batch_mean', 'per_image'])
def test_averages_across_synthesis_batches(target, reset):
    "Another batch has other classes: averages start anew, or stay with their class (or group) and skip the absent."
    other = torch.tensor([2, 2, 0, 1, 2, 0])
    (d, *found), s = prepared('convnet_w32', 32), MatchingSettings(class_target=target, stat_ema_reset=reset,
        stat_group=3, alpha=.4)
    observer, loss = pair(*found, s)
    for visit, labels in enumerate((LABELS, LABELS, other, other, LABELS)):
        if visit in (0, 2, 4):
            observer.matcher.start(labels)
            if reset == 'batch':
                loss.average = {}
            else:      # single images do not live on in the next batch
                loss.average = {k: v for k, v in loss.average.items() if not str(k[0][1]).startswith('image')}
        check_losses(observer, loss, synthetic(d, labels, visit), labels)


@pytest.mark.parametrize('rate', [.4, 1.])
def test_dropped_taps_are_convolutions_only(rate):
    (d, *found), s = prepared('wrn16_2', 19), MatchingSettings(drop_rate=rate)
    observer, loss = pair(*found, s)
    observer.matcher.start(LABELS)
    conv = loss.conv
    for seed in range(4):
        lots = torch.rand(len(conv), generator=torch.Generator().manual_seed(seed))
        keep = [not c or lot >= rate for c, lot in zip(conv, lots.tolist())]
        assert any(keep) and not all(keep) and all(k for k, c in zip(keep, conv) if not c)
        check_losses(observer, loss, synthetic(d, LABELS, seed), LABELS, keep, torch.Generator().manual_seed(seed))


def test_looking_at_a_loss_leaves_the_averages_alone():
    (d, *found), s = prepared('convnet_d1', 32), MatchingSettings()
    observer, loss = pair(*found, s)
    observer.matcher.start(LABELS)
    check_losses(observer, loss, synthetic(d, LABELS, 1), LABELS)
    kept = {k: v.clone() for k, v in observer.matcher.state().items()}
    _, mean, var = observer.taps(synthetic(d, LABELS, 2))
    looked = observer.matcher(mean, var, freeze=True)
    assert all(kept[k].equal(v) for k, v in observer.matcher.state().items())
    close(looked, observer.matcher(mean, var))         # and shows what a visit would have shown
    assert not all(kept[k].equal(v) for k, v in observer.matcher.state().items())


def test_gap_between_two_sets_of_images():
    "Eq. 6: distance of pooled statistics, gradient to the first set only."
    (d, model, stats, _), s = prepared('mobilenet_v2', 27), MatchingSettings()
    observer = Observer('x', model, stats, 27, s)
    a, b = synthetic(d, LABELS, 1).requires_grad_(True), synthetic(d, LABELS, 2).requires_grad_(True)
    ours = statistic_gap(observer.matcher, observer.taps(a)[1:], observer.taps(b)[1:])
    everyone = [list(range(len(a)))]
    one, two = rows(model, a, everyone)[0], rows(model, b, everyone)[0]
    theirs = sum((s.first_multiplier if tap == 0 else 1.) * torch.linalg.vector_norm(u[k] - v[k].detach())
                 for tap, (p, q) in enumerate(zip(one, two)) for u, v in zip(p, q) for k in (0, 1))
    close(ours, theirs)
    ga, gb = torch.autograd.grad(ours, [a, b], allow_unused=True)
    assert gb is None or not gb.any()
    close(ga, torch.autograd.grad(theirs, a)[0], 5e-6)


def test_a_perfect_match_has_no_loss_and_a_finite_gradient():
    "At the target itself the norm has no derivative; the gradient there is zero, not NaN."
    d, model = digits(32), exact('convnet_d1', 32)
    s = MatchingSettings(stat_batch=64, stat_augment='none', bn_global='pooled', stat_ema=0.)
    stats, _ = collected(model, d, s)
    observer = Observer('x', model, stats, 32, s)
    observer.matcher.start(d.train.labels)
    x = d.normalize(d.train.images).double().requires_grad_(True)
    _, mean, var = observer.taps(x)
    loss = observer.matcher(mean, var)
    assert loss < 1e-4
    target = make_targets(stats, s)
    # one image that hits them all exactly
    leaf = [v.double()[None].clone().requires_grad_(True) for v in (target.mean, target.var)]
    only_global = Matcher(target, observer.taps.layout, MatchingSettings(alpha=1., stat_ema=0.))
    only_global.start(torch.tensor([0]))
    value = only_global(*leaf)
    assert value == 0 and not any(g.any() for g in torch.autograd.grad(value, leaf))


def test_batch_norm_taps_alone():
    d, model = digits(32), exact('wrn16_2', 32)
    taps = Taps(model, 32, MatchingSettings(taps='bn'))
    assert {(segment.layer, segment.what) for segment in taps.layout} == {('bn', 'channel')}
    x = synthetic(d, LABELS)
    _, mean, var = taps(x)
    bn = [f for kind, _, f in maps(model, x) if kind == 'bn']
    for i in range(len(x)):
        close(mean[i], torch.cat([measure(f[i:i + 1], 0)[0][0] for f in bn]))
        close(var[i], torch.cat([measure(f[i:i + 1], 0)[0][1] for f in bn]))
