"""Gradient cosine (Fig. 2c, bottom) against its definition."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import said
from edc_nb.core.runtime import generator
from edc_nb.core.settings import DataSettings
from edc_nb.data.open import open_dataset
from edc_nb.diagnostics.gradients import (
    cosine_curve,
    dataset_batches,
    draw_batches,
    global_gradient,
    gradient_cosine,
    gradient_gains,
    gradient_gram,
    gradient_study,
    plot_gradient_cosine,
    probe,
)
from edc_nb.models.registry import build_model

GEN = torch.Generator().manual_seed(torch.seed() % 2**31)      # fresh inputs at every run


def rand(*shape):
    return torch.randn(*shape, generator=GEN, dtype=torch.float64)


def network(norm=True):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=not norm), *([nn.BatchNorm2d(8)] if norm else []),
                        nn.ReLU(inplace=True),
                        nn.Conv2d(8, 6, 3, groups=2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(.5),
                        nn.Linear(24, 5)).double()
    if norm:
        net[1].running_var.uniform_(.5, 2, generator=GEN)
        net[1].running_mean.normal_(generator=GEN)
    return net


def one_by_one(net, x, y):
    net, out = copy.deepcopy(net).eval(), []
    for i in range(len(x)):
        net.zero_grad()
        F.cross_entropy(net(x[i:i + 1]), y[i:i + 1]).backward()
        out.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    return torch.stack(out)


def batch(n=12, soft=False):
    return rand(n, 3, 8, 8), rand(n, 5).softmax(1) if soft else torch.randint(5, (n,), generator=GEN)


@pytest.mark.parametrize('norm', [True, False])
@pytest.mark.parametrize('soft', [True, False])
def test_gram_and_global_gradient(norm, soft):
    net, (x, y) = network(norm), batch(soft=soft)
    rows = one_by_one(net, x, y)
    g = global_gradient(net, [(x[:5], y[:5]), (x[5:6], y[5:6]), (x[6:], y[6:])])
    torch.testing.assert_close(g, rows.mean(0))
    # in one piece, in parts, a tensor and an image at a time
    for budget, chunk in ((2**27, 32), (12 * 100, 5), (1, 1)):
        G, b = gradient_gram(net, x, y, g, budget=budget, chunk=chunk)
        torch.testing.assert_close(G, rows @ rows.T)
        torch.testing.assert_close(b, rows @ g)


@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize('balanced', [True, False])
def test_cosines_are_those_of_the_batches(dtype, tol, balanced):
    net, (x, y), (u, v) = network(), batch(), batch(20)
    g = one_by_one(net, u, v).mean(0)                                 # another set's gradient
    df = gradient_cosine(copy.deepcopy(net).to(dtype), x.to(dtype), y, g, (1, 4, 12), draws=7, seed=11,
                         balanced=balanced)
    assert len(df) == 21
    for size, part in df.groupby('batch size'):
        for mask, row in zip(draw_batches(y, size, 7, generator(11, 'draws', size), balanced), part.itertuples()):
            assert mask.sum() == size
            mean = one_by_one(net, x[mask], y[mask]).mean(0)
            assert row.cosine == pytest.approx(F.cosine_similarity(mean, g, 0).item(), abs=tol)
            assert row.length == pytest.approx((mean.norm() / g.norm()).item(), rel=10 * tol)


def test_batch_statistics():
    net, (x, y) = network(), batch()
    g = global_gradient(net, [(x, y)], 'batch')
    df, other = gradient_cosine(net, x, y, g, (4, 12), draws=3, seed=2, bn='batch'), copy.deepcopy(net)
    other.train(), other[6].eval()                                    # dropout stays off
    for size, part in df.groupby('batch size'):
        for mask, c in zip(draw_batches(y, size, 3, generator(2, 'draws', size)), part.cosine):
            other.zero_grad()
            F.cross_entropy(other(x[mask]), y[mask]).backward()
            v = torch.cat([p.grad.flatten() for p in other.parameters()])
            assert c == pytest.approx(F.cosine_similarity(v, g, 0).item(), abs=1e-9)
    assert df[df['batch size'] == 12].cosine.tolist() == pytest.approx([1.] * 3)


def test_calibrated_statistics():
    net, (x, _) = network(), batch(40)
    first = net[0](x)
    bn = probe(net, 'calibrated', [x])[1]
    torch.testing.assert_close(bn.running_mean, first.mean((0, 2, 3)))
    torch.testing.assert_close(bn.running_var, first.var((0, 2, 3)))
    assert not bn.training


def test_draws():
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate((20, 9, 3))])
    m = draw_batches(labels, 8, 4000, GEN)
    # uniform
    assert (m.sum(1) == 8).all() and (m.double().mean(0) - 8 / 32).abs().max() < 5 * (.25 * .75 / 4000) ** .5
    m = draw_batches(labels, 8, 4000, GEN, balanced=True)
    per = torch.stack([m[:, labels == c].sum(1) for c in range(3)], 1)
    assert (m.sum(1) == 8).all() and ((per.max(1).values - per.min(1).values) <= 1).all()
    # images and classes alike
    assert (m[:, :20].double().mean(0) - m[:,
                                           :20].double().mean()).abs().max() < .05 and abs(
                                               per.double().mean(0) - 8 / 3).max() < .05


def test_closed_form():
    "The approximation is exact at the whole set, and its two expectations are those of many draws."
    rows, g = rand(30, 50) + .3, rand(50) + 1
    G, b = rows @ rows.T, rows @ g
    for size in (1, 5, 17, 30):
        m = draw_batches(torch.zeros(30, dtype=torch.long), size, 20000, GEN).double()
        v = m @ rows / size
        expected = (v @ g).mean() / (g.norm() * (v * v).sum(1).mean().sqrt())
        assert cosine_curve(G, b, g.norm().item(), [size])[0] == pytest.approx(expected.item(), abs=.01)
    mean = rows.mean(0)
    assert cosine_curve(G, b, g.norm().item(), [30])[0] == pytest.approx(F.cosine_similarity(mean, g, 0).item())


@pytest.mark.parametrize('bn', ['eval', 'batch'])
def test_the_network_and_the_random_state_are_left_alone(bn):
    net, (x, y) = network(), batch()
    net[1].eval()
    F.cross_entropy(net(x), y).backward()
    net.requires_grad_(False)
    state, modes, grads = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], [p.grad.clone()
        for p in net.parameters()]
    rng = torch.get_rng_state()
    g = global_gradient(net, [(x, y)], bn)
    gradient_cosine(net, x, y, g, (2, 5), draws=3, bn=bn)
    probe(net, 'calibrated', [x])
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()) and [m.training
        for m in net.modules()] == modes
    assert all(torch.equal(p.grad, v) and not p.requires_grad for p, v in zip(net.parameters(), grads))


def test_a_dataset_is_its_own_reference():
    d, net = open_dataset(DataSettings('digits', per_class=20)), build_model('convnet_d1', 10, 8, seed=1)
    x, y = next(dataset_batches(d, 1000))
    a, b = (gradient_cosine(net, x[:30], y[:30], r, (1, 30), draws=4)
            for r in (d, global_gradient(net, dataset_batches(d, 33))))
    assert a.cosine.tolist() == pytest.approx(b.cosine.tolist(), abs=1e-5)


def test_study_on_the_digits(tmp_path, monkeypatch):
    how = dict(out=tmp_path, seeds=2, methods=('random-real',), labels=('hard',), batch_sizes=(1, 10, 100, 1000),
               draws=20, pool=120, progress=False, device='cpu')
    df = gradient_study('tiny', **how)
    assert list(df.source.unique()) == ['original', 'original, balanced batches',
                                        'random-real'] and sorted(df['batch size'].unique()) == [1, 10, 100]
    assert ((df.low <= df.cosine) & (df.cosine <= df.high)).all() and df.cosine.abs().max(
        ) <= 1 and df.init.nunique() == 2
    mean = df.groupby('batch size').cosine.mean()
    assert mean[1] < mean[10] < mean[100]
    monkeypatch.setattr('edc_nb.diagnostics.gradients.global_gradient', None)      # a second call computes nothing
    assert gradient_study('tiny', **how).equals(df)
    gains = gradient_gains(df)
    assert (gains[gains.source == 'random-real']['over random-real'] == 0).all() and (gains.inits == 2).all()
    assert len(plot_gradient_cosine(df).lines) >= 3


def test_bad_input():
    net, (x, y) = network(), batch()
    g = global_gradient(net, [(x, y)])
    bad = x.clone()
    bad[3, 0, 0, 0] = float('nan')
    def cos(x=x, y=y, g=g, sizes=(2,), **kw): return lambda: gradient_cosine(net, x, y, g, sizes, **kw)
    said(cos(bad), 'images', '1 of 12', 'not finite')
    said(lambda: global_gradient(net, [(bad, y)]), 'not finite')
    said(cos(x.to(torch.uint8)), 'torch.uint8', 'normalized floats')
    said(cos(draws=1), 'draws: got 1', 'at least 2')
    said(cos(sizes=(3, 13)), 'batch_sizes: got 13', 'from 1 to 12')
    said(cos(sizes=(0,)), 'batch_sizes: got 0')
    said(cos(sizes=()), 'batch_sizes: got none')
    said(cos(sizes=(1,), bn='batch'), 'got 1', 'from 2 to 12')
    said(cos(bn='running'), "unknown bn 'running'", 'eval, batch')
    said(cos(y=y[:4]), 'got 4 for 12')
    said(cos(y=y + 3), 'classes from', 'has 5 classes') if y.max() > 1 else None
    said(cos(y=rand(12, 5)), 'labels', 'rows sum to one')
    said(cos(y=rand(12, 4).softmax(1)), '4 columns', '5 classes')
    said(cos(g=g[:-1]), 'global_gradient', str(len(g) - 1), str(len(g)))
    said(lambda: global_gradient(net, []), 'batches: got none')
    said(lambda: global_gradient(net, [(x, y)], 'calibrated'), "unknown bn 'calibrated'")
    said(lambda: gradient_study('small'), "unknown scale 'small'")
    said(lambda: gradient_study('tiny', seeds=0), 'seeds: got 0')
    said(lambda: gradient_study('tiny', labels=('warm',)), "unknown labels 'warm'")
    said(lambda: gradient_study('tiny', methods=('magic',), progress=False), "unknown recipe 'magic'")
