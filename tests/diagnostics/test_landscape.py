"""Filter-normalised slices (Fig. 2b) against networks that are rebuilt at every point."""
import copy

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import said
from edc_nb.core.runtime import generator
from edc_nb.diagnostics.landscape import (
    landscape_1d,
    landscape_2d,
    landscape_rise,
    landscape_study,
    landscape_verdict,
    plot_landscape,
    random_direction,
)
from edc_nb.diagnostics.study import condensed_sets, edc_at, open_study, trained_student
from edc_nb.stages.students import recalibrate

GEN = torch.Generator().manual_seed(torch.seed() % 2**31)      # fresh inputs at every run


def rand(*shape):
    return torch.randn(*shape, generator=GEN, dtype=torch.float64)


def network():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(.3),
                        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(.1 * torch.randn(p.shape, generator=GEN))
    net[1].running_var.uniform_(.5, 2, generator=GEN)
    return net


def batch(n=20):
    return rand(n, 3, 8, 8), torch.randint(5, (n,), generator=GEN)


@pytest.mark.parametrize('scale', ['filter', 'layer', 'none'])
@pytest.mark.parametrize('vectors', ['fixed', 'scaled'])
def test_directions(scale, vectors):
    net = network()
    d = random_direction(net, torch.Generator().manual_seed(5), scale=scale, vectors=vectors)
    raw = random_direction(net, torch.Generator().manual_seed(5), scale='none', vectors='scaled')
    for p, v, z in zip(net.parameters(), d, raw):
        p = p.detach()
        assert v.shape == p.shape and v.dtype == p.dtype
        if p.ndim < 2 and vectors == 'fixed':
            assert not v.any()
        elif scale == 'none':
            assert torch.equal(v, z)
        else:
            for f in range(len(p)) if scale == 'filter' and p.ndim > 1 else [slice(None)]:
                torch.testing.assert_close(v[f].norm(), p[f].norm())
                assert F.cosine_similarity(v[f].flatten(), z[f].flatten(), 0) == pytest.approx(1)


@pytest.mark.parametrize('buffers', ['kept', 'recalibrated'])
@pytest.mark.parametrize('loss', ['ce', 'soft', 'mse'])
def test_slices_are_the_losses_of_rebuilt_networks(buffers, loss):
    net, (x, y), (views, _) = network(), batch(), batch(30)
    net[3].p = 0. if buffers == 'recalibrated' else .3                # so that the reference needs no random state
    t = {'ce': y, 'soft': rand(20, 5).softmax(1), 'mse': rand(20, 5)}[loss]
    how = dict(radius=.9, points=5, seed=8, vectors='scaled', buffers=buffers, calibration=views,
               loss='mse' if loss == 'mse' else 'ce', batch_size=7)
    line, plane = landscape_1d(net, x, t, directions=3, **how), landscape_2d(net, x, t, **how)
    d = [random_direction(net, generator(8, 'landscape', k), vectors='scaled') for k in range(3)]

    def reference(*moves):
        other = network()
        other[3].p = net[3].p
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            for i, p in enumerate(other.parameters()):
                for step, k in moves:
                    p += step * d[k][i]
        if buffers == 'recalibrated':
            recalibrate(other, views.split(7))
        z = other.eval()(x)
        top = y if loss == 'ce' else t.argmax(1)
        return [(F.mse_loss(z, t) if loss == 'mse' else F.cross_entropy(z, t)).item(),
                (z.argmax(1) == top).double().mean().item()]

    assert len(line) == 15 and len(plane) == 25 and sorted(line.distance.unique()) == pytest.approx([-.9, -.45, 0,
        .45, .9])
    for r in line.itertuples():
        assert [r.loss, r.accuracy] == pytest.approx(reference((r.distance, r.direction)), abs=1e-9)
    for r in plane.sample(8, random_state=1).itertuples():
        assert [r.loss, r.accuracy] == pytest.approx(reference((r.x, 0), (r.y, 1)), abs=1e-9)


def test_the_mean_rise_is_a_weighted_trace():
    "E rise = t^2/2 sum_f |w_f|^2 / n_f tr H_ff, exactly for a quadratic loss."
    net, x, t = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double(), rand(30, 3, 2, 2), rand(30, 4)
    w = net[1].weight.detach()
    H = torch.autograd.functional.hessian(lambda v: F.mse_loss(F.linear(x.flatten(1), v.view(4, 12),
        net[1].bias.detach()), t), w.flatten()).view(4, 12, 4, 12)
    expected = .5 * .4**2 * sum(w[f].norm()**2 / 12 * H[f, :, f].diagonal().sum() for f in range(4)).item()
    r = landscape_rise(landscape_1d(net, x, t, radius=.4, points=3, directions=500, loss='mse')).iloc[-1]
    assert abs(r.rise - expected) < 4.5 * r.sd / 500**.5


def test_filter_scaling_does_not_see_a_rescaling_of_layers():
    one, (x, y), k = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5)).double(), batch(), 7.
    two = copy.deepcopy(one)
    with torch.no_grad():
        two[1].weight.mul_(k), two[1].bias.mul_(k), two[3].weight.div_(k)
    a, b, c, d = (landscape_1d(m, x, y, radius=.5, points=3, directions=3, scale=s).loss.tolist()
                  for s in ('filter', 'none') for m in (one, two))
    assert a == pytest.approx(b) and c != pytest.approx(d, rel=1e-3)


def test_rises_by_hand():
    df = pd.DataFrame([dict(direction=k, distance=t, loss=1 + a * t * t + t, accuracy=.8 - .1 * abs(t)) for k,
                       a in enumerate((1., 3.)) for t in (-2., -1., 0., 1., 2.)])
    r = landscape_rise(df)
    assert r.distance.tolist() == [1, 2] and r.rise.tolist() == pytest.approx([2,
        8]) and r.sd.tolist() == pytest.approx([2**.5, 4 * 2**.5])
    assert r['accuracy lost'].tolist() == pytest.approx([.1, .2])


@pytest.mark.parametrize('buffers', ['kept', 'recalibrated'])
def test_the_network_and_the_random_state_are_left_alone(buffers):
    net, (x, y) = network(), batch()
    net[1].eval()
    F.cross_entropy(net(x), y).backward()
    state, modes, grads = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()], [p.grad.clone()
        for p in net.parameters()]
    rng, how = torch.get_rng_state(), dict(points=3, buffers=buffers, calibration=x)
    a, b = (landscape_1d(net, x, y, directions=2, **how) for _ in range(2))
    landscape_2d(net, x, y, **how)
    assert a.equals(b) and torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items()) and [m.training
        for m in net.modules()] == modes
    assert all(torch.equal(p.grad, v) and p.requires_grad for p, v in zip(net.parameters(), grads))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('landscape')


HOW = dict(seeds=2, method='random-real', points=3, directions=2, images=100, ipc=1, device='cpu', progress=False)


@pytest.mark.full
def test_study_on_the_digits(folder, monkeypatch):
    df = landscape_study('tiny', out=folder, **HOW)
    assert list(df.arm.unique()) == ['ζ = 1, raw', 'ζ = 1, EMA', 'ζ = 2, raw',
                                     'ζ = 2, EMA'] and set(df.on) == {'test', 'condensed'}
    assert len(df) == 4 * 2 * 2 * 3 and df.notna().all().all()
    v = landscape_verdict(df)
    assert len(v) == 8 and (v['rise of change'] - v['rise of base']).tolist() == pytest.approx(v.difference.tolist())
    plane = landscape_study('tiny', out=folder, plane=True, **HOW)
    assert len(plane) == 4 * 9 and len(plot_landscape(plane[plane.arm == 'ζ = 1, raw']).collections)
    monkeypatch.setattr('edc_nb.diagnostics.landscape.trained_student', None)      # a second call computes nothing
    assert landscape_study('tiny', out=folder, **HOW).equals(df)


@pytest.mark.full
def test_the_raw_student_is_the_one_that_was_averaged(folder):
    study = open_study('landscape', edc_at('tiny', 1), None, folder, precision='fp32', device='cpu', progress=False)
    c = condensed_sets(study, 'tiny', ['random-real'])['random-real']
    (raw, a), (ema, b) = (trained_student(c, {'evaluate.ema_rate': e}, seed=1) for e in (0., .9))
    assert a.last == a.raw_last == b.raw_last and a.losses == b.losses
    assert any(not torch.equal(p, q) for p, q in zip(raw.parameters(), ema.parameters()))


def test_verdict_is_paired_by_seed():
    rows = [dict(model='m', arm='', zeta=z, ema=e, seed=s, on='test', distance=t, accuracy=.5, sd=0.,
                 loss=5. * s * t * t + {(1., 0.): 3, (1., .9): 2, (2., 0.): 1, (2., .9): .5 + s}[z, e] * t * t)
            for z in (1., 2.) for e in (0., .9) for s in range(3) for t in (-1., 0., 1.)]
    v = landscape_verdict(pd.DataFrame(rows)).set_index(['base', 'change'])
    assert v.difference['ζ = 1, raw', 'ζ = 2, raw'] == pytest.approx(-2) and v.se['ζ = 1, raw',
        'ζ = 2, raw'] == pytest.approx(0)
    assert v.difference['ζ = 1, raw', 'ζ = 1, EMA'] == pytest.approx(-1) and v['flatter in']['ζ = 1, raw',
        'ζ = 1, EMA'] == '3 of 3'
    assert v.difference['ζ = 2, raw', 'ζ = 2, EMA'] == pytest.approx(.5) and v['flatter in']['ζ = 2, raw',
        'ζ = 2, EMA'] == '1 of 3'
    assert v.se['ζ = 2, raw', 'ζ = 2, EMA'] == pytest.approx(3**-.5)


def test_pictures():
    net, (x, y) = network(), batch()
    df = pd.concat([landscape_1d(net, x, y, points=3, directions=2).assign(arm=a) for a in 'ab'])
    ax = plot_landscape(df, rise=True)
    assert len(ax.lines) == 2 and list(ax.lines[0].get_ydata())[1] == pytest.approx(0) and 'distance' in ax.get_xlabel()
    assert plot_landscape(landscape_2d(net, x, y, points=5), of='accuracy').get_aspect() == 1


def test_bad_input():
    net, (x, y) = network(), batch()
    bad = x.clone()
    bad[3, 0, 0, 0] = float('inf')
    def line(x=x, y=y, **kw): return lambda: landscape_1d(net, x, y, **kw)
    said(line(bad), 'images', '1 of 20', 'not finite')
    said(lambda: landscape_2d(net, bad, y), 'not finite')
    said(line(x.to(torch.uint8)), 'torch.uint8')
    said(line(y=y[:4]), 'got 4 for 20')
    said(line(directions=1), 'directions: got 1', 'at least 2')
    said(line(points=4), 'points: got 4', 'odd')
    said(line(points=1), 'points: got 1')
    said(line(radius=0.), 'radius: got 0')
    said(line(scale='filters'), "unknown scale 'filters'", 'filter, layer, none')
    said(line(vectors='ignored'), "unknown vectors 'ignored'", 'fixed, scaled')
    said(line(buffers='fresh'), "unknown buffers 'fresh'")
    said(line(buffers='recalibrated'), 'calibration')
    said(line(loss='kl'), "unknown loss 'kl'", 'ce, mse')
    said(line(loss='mse'), 'logits')
    said(lambda: plot_landscape(landscape_1d(net, x, y, points=3, directions=2), of='error'), "unknown of 'error'")
    said(lambda: landscape_study('small'), "unknown scale 'small'")
    said(lambda: landscape_study('tiny', seeds=0), 'seeds: got 0')
    said(lambda: landscape_study('tiny', points=8), 'odd')
    said(lambda: landscape_study('tiny', vectors='free'), "unknown vectors 'free'")
