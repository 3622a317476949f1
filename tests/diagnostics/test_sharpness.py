"""Sharpness and the pieces of the flatness theory against independent computations: bisection-free oracles, naive
loops, finite differences, brute force."""
import math

import pytest
import torch

from edc_nb.core.settings import EdcError
from edc_nb.diagnostics.flatness import (
    effective_curvature,
    ema_trajectory,
    fitted_order,
    flatness_closeness,
    taylor_remainders,
)
from edc_nb.diagnostics.sharpness import quadratic_sharpness, sharpness, worst_direction


@pytest.fixture
def rng():
    seed = torch.seed() % 2**31
    print('seed', seed)
    return torch.Generator().manual_seed(seed)


def randn(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize('p', [1.1, 1.5, 2., 4., float('inf')])
@pytest.mark.parametrize('per_image', [False, True])
def test_worst_direction_attains_hoelder(p, per_image, rng):
    q = 1. if math.isinf(p) else p / (p - 1)
    g = randn(rng, 3, 2, 4) * 10**randn(rng, 3, 1, 1)
    e = worst_direction(g, .3, p, per_image)
    for a, b in zip(e, g) if per_image else [(e, g)]:
        norm = max(abs(v) for v in a.flatten().tolist()) if math.isinf(p) else sum(abs(v)**p
            for v in a.flatten().tolist())**(1 / p)
        dual = sum(abs(v)**q for v in b.flatten().tolist())**(1 / q)
        assert norm == pytest.approx(.3, rel=1e-9)
        assert float((a * b).sum()) == pytest.approx(.3 * dual, rel=1e-9)


def test_worst_direction_extremes():
    for scale in (1e-30, 1e30):     # neither underflow nor overflow in float32
        e = worst_direction(torch.tensor([3., 4.]) * scale, 1., 1.2)
        assert torch.isfinite(e).all() and torch.linalg.vector_norm(e, 1.2).item() == pytest.approx(1, rel=1e-5)
    assert worst_direction(torch.zeros(2, 3), 1., per_image=True).eq(0).all()


@pytest.mark.parametrize('convex', [True, False])
def test_quadratic_sharpness_beats_a_grid(convex, rng):
    for _ in range(20):     # in two dimensions the whole disc can be searched
        a = randn(rng, 2, 2)
        H, g, rho = (a @ a.T if convex else a + a.T), randn(rng, 2), 10**randn(rng, 1).item()
        rise, e = quadratic_sharpness(H, g, rho)
        t = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
        # dense near the centre too, where a maximum inside a large ball is
        disc = (rho * torch.logspace(-4, 0, 301, dtype=torch.float64)[:, None, None] *
                torch.stack([t.cos(), t.sin()], 1)).view(-1, 2)
        best = (disc @ g + ((disc @ H) * disc).sum(1) / 2).max()
        assert e.norm() <= rho * (1 + 1e-9) and float(g @ e + e @ H @ e / 2) == pytest.approx(float(rise), rel=1e-8)
        assert best <= rise * (1 + 1e-9) and rise <= best + 1e-3 * (1 + abs(best)) * (1 + rho)


def test_sharpness_is_a_lower_bound_and_tight_on_quadratics(rng):
    for _ in range(10):
        a = randn(rng, 8, 8)
        H, g = a @ a.T / 8, randn(rng, 8)
        s = sharpness(lambda e: g @ e + e @ H @ e / 2, torch.zeros(8, dtype=torch.float64), .8, steps=60, starts=4)
        exact = quadratic_sharpness(H, g, .8)[0]
        assert .95 * exact <= s.rise <= exact * (1 + 1e-9)
        assert s.sam <= s.rise and s.delta.norm() <= .8 * (1 + 1e-9)
        assert float(s.first_order) == pytest.approx(.8 * float(g.norm()))
        # certified by its point
        assert float(g @ s.delta + s.delta @ H @ s.delta / 2) == pytest.approx(float(s.rise))


@pytest.mark.parametrize('p', [1.3, 2., 3., float('inf')])
def test_sharpness_stays_in_every_ball(p, rng):
    w = randn(rng, 5, 12)
    loss = lambda x: (x.flatten(1) * w).sin().sum(1)
    x = randn(rng, 5, 3, 4)
    s = sharpness(loss, x, .6, p, per_image=True, steps=10, starts=3, generator=torch.Generator().manual_seed(1))
    assert (torch.linalg.vector_norm(s.delta.flatten(1), p, dim=1) <= .6 * (1 + 1e-9)).all()
    torch.testing.assert_close(loss(x + s.delta) - loss(x), s.rise)
    again = sharpness(loss, x, .6, p, per_image=True, steps=10, starts=3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.delta, s.delta)


def test_sharpness_moves_away_from_a_minimum(rng):
    h = torch.tensor([1., 5., 2.], dtype=torch.float64)
    s = sharpness(lambda e: (h * e**2).sum() / 2, torch.zeros(3, dtype=torch.float64), .5, steps=80, starts=3)
    assert float(s.first_order) == 0 and float(s.sam) == 0
    assert float(s.rise) == pytest.approx(5 * .25 / 2, rel=.02)


def test_taylor_orders(rng):
    w, r = randn(rng, 6), torch.logspace(-3, -1.5, 8, dtype=torch.float64)
    f = lambda x: (x @ w).cos() + x.pow(3).sum()
    orders = torch.stack([fitted_order(r, taylor_remainders(f, randn(rng, 6), randn(rng, 6) / 3, r))
                          for _ in range(15)]).median(0).values
    assert torch.allclose(orders, torch.tensor([1., 2., 3.], dtype=torch.float64), atol=.15)


def test_flatness_closeness_against_loops(rng):
    a, d = randn(rng, 4, 5, 5), randn(rng, 4, 5)
    H = (a + a.mT) / 2
    got = flatness_closeness(H, d)
    norm = [torch.linalg.svdvals(h)[0].item() for h in H]
    frob = [math.sqrt(sum(v * v for v in h.flatten().tolist())) for h in H]
    close = [sum(v * v for v in x.tolist()) for x in d]
    mean = lambda v: sum(v) / 4
    want = dict(exact=mean([float(x @ h @ x) for x, h in zip(d, H)]),
                spectral=mean([n * c for n, c in zip(norm, close)]),
                cauchy=math.sqrt(mean([n * n for n in norm]) * mean([c * c for c in close])),
                paper_spectral=4 * mean(norm) * mean(close),
                paper=4 * mean(frob) * mean(close), product=mean(frob) * mean(close))
    for k, v in want.items():
        assert float(got[k]) == pytest.approx(v), k
    many = flatness_closeness(*(lambda b: ((b + b.mT) / 2, randn(rng, 300, 3, 4)))(randn(rng, 300, 3, 4, 4)))
    chain = ['exact', 'eigenvalue', 'spectral', 'cauchy', 'paper_spectral', 'paper']
    for lo, hi in zip(chain, chain[1:]):
        assert (many[lo] <= many[hi] * (1 + 1e-12) + 1e-12).all(), (lo, hi)


def test_ema_trajectory_against_the_recursion(rng):
    xs = randn(rng, 30, 2, 3)
    for beta in (0., .3, .99, 1.):
        ema = xs[0]
        for got, x in zip(ema_trajectory(xs, beta)[1:], xs[1:]):
            ema = beta * ema + (1 - beta) * x
            torch.testing.assert_close(got, ema)
    torch.testing.assert_close(ema_trajectory(xs.float(), .9), ema_trajectory(xs, .9).float())


def test_effective_curvature_is_the_edge_of_stability(rng):
    for _ in range(50):     # the spectral radius of the whole linear map
        d, beta, w = 4, torch.rand(1, generator=rng).item(), 3 * torch.rand(1, generator=rng).item()
        H, G = (a @ a.T for a in randn(rng, 2, d, d))
        edge = 2 / effective_curvature(H, G, w, beta).item()
        for eta, stable in ((.98 * edge, True), (1.02 * edge, False)):
            M = torch.zeros(2 * d, 2 * d, dtype=torch.float64)
            for k in range(2 * d):      # column by column, from the update itself
                e, ema = torch.zeros(2, d, dtype=torch.float64)
                (e if k < d else ema)[k % d] = 1
                e = e - eta * (H @ e - w * G @ (ema - e))
                M[:, k] = torch.cat([e, beta * ema + (1 - beta) * e])
            assert (torch.linalg.eigvals(M).abs().max() < 1) == stable


@pytest.mark.parametrize('call, says', [
    (lambda: worst_direction(torch.ones(2), 1., p=1.), 'p = 1.0: expected a number above 1'),
    (lambda: worst_direction(torch.ones(2), -1.), 'rho = -1.0: expected a number above 0'),
    (lambda: sharpness(lambda x: x.sum(), torch.ones(2, 3), 0.), 'rho = 0.0: expected a number above 0'),
    (lambda: sharpness(lambda x: x.sum(1), torch.ones(2, 3), 1.), 'accepted: a scalar loss, or per_image=True'),
    (lambda: sharpness(lambda x: x.sum(), torch.full((2, 3), float('nan')), 1.), 'the loss is not finite'),
    (lambda: ema_trajectory(torch.ones(3, 2), 1.5), 'beta = 1.5: expected a number from 0 to 1'),
])
def test_bad_input(call, says):
    with pytest.raises(EdcError, match='^[^\n]+$') as e:
        call()
    assert says in str(e.value)
