"""The theory's pieces against independent computations, on fresh random inputs; bad input by its sentence."""
import itertools
import math
import sys
import time

import numpy as np
import pytest
import torch

from edc_nb.core.settings import EdcError
from edc_nb.diagnostics import transport
from edc_nb.diagnostics.transport import plot_transport, relative_transport, transport_study
from edc_nb.diagnostics.wasserstein import gaussian_information, gaussian_transport, transport_cost
from edc_nb.paper.theory import (
    Mixture,
    animate_match,
    entropy,
    entropy_gap_bounds,
    expect,
    gaussian_entropy,
    kl,
    match_mixture,
    plot_match,
    printed_entropy_bounds,
    printed_kl_bound,
    random_mixture,
    share_points,
)

SEED = int(time.time())


@pytest.fixture
def gen():
    print('seed', SEED)
    return torch.Generator().manual_seed(SEED)


def density(q, x):
    "A one-dimensional mixture's density at one point, in plain Python."
    parts = zip(q.weights.tolist(), q.means.tolist(), q.variances.tolist())
    return sum(w * math.exp(-(x - m)**2 / 2 / v) / math.sqrt(2 * math.pi * v) for w, m, v in parts)


def adaptive(q, f):
    "Integral of f by SciPy's adaptive rule, piece by piece around the components."
    from scipy.integrate import quad
    s = q.variances.sqrt()
    edges = sorted({float(t) for k in (-11, -4, -1, 0, 1, 4, 11) for t in q.means + k * s})
    return sum(quad(f, a, b, epsabs=1e-12, epsrel=1e-11, limit=200)[0] for a, b in zip(edges, edges[1:]))


# --- mixtures

def test_density_and_moments_of_a_mixture(gen):
    for _ in range(5):
        q = random_mixture(gen)
        x = 3 * torch.randn(20, generator=gen, dtype=torch.float64)
        np.testing.assert_allclose(q.log_prob(x).exp(), [density(q, t) for t in x.tolist()], rtol=1e-10)
        assert float(q.mean) == pytest.approx(adaptive(q, lambda t: t * density(q, t)), abs=1e-8)
        variance = adaptive(q, lambda t: (t - float(q.mean))**2 * density(q, t))
        assert float(q.variance) == pytest.approx(variance, rel=1e-8)


def test_diagonal_mixture_is_the_product_in_each_component(gen):
    q = random_mixture(gen, 3, dims=4)
    x = torch.randn(6, 4, generator=gen, dtype=torch.float64)
    def product(m, v): # density of one component, coordinate by coordinate
        return torch.stack([Mixture([1.], m[k:k + 1], v[k:k + 1]).log_prob(x[:, k]) for k in range(4)]).sum(0).exp()
    naive = sum(w * product(m, v) for w, m, v in zip(q.weights, q.means, q.variances))
    torch.testing.assert_close(q.log_prob(x).exp(), naive)
    assert q.gaussian().mean.shape == (4,)
    torch.testing.assert_close(q.gaussian().variance, q.variance)


def test_samples_belong_to_their_components_and_repeat(gen):
    q = Mixture([.2, .3, .5], [-100., 0., 100.], [1., 2., 3.])
    x, c = q.sample(20_000, gen)
    assert (abs(x - q.means[c]) < 20).all()
    assert c.bincount().tolist() == pytest.approx([4000, 6000, 10000], abs=5 * 71)
    state = torch.get_rng_state()
    again = [q.sample(5, torch.Generator().manual_seed(3))[0] for _ in 'ab']
    assert torch.equal(*again) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('args, sentence', [
    (([.5, .5], [0, 1], [1, 0]), 'variances: got 0, accepted: positive'),
    (([1.], [0.], [-2.]), 'variances: got -2'),
    (([.5, .6], [0, 1], [1, 1]), 'weights: .* sum of 1.1'),
    (([1.5, -.5], [0, 1], [1, 1]), 'weights: got a smallest of -0.5'),
    (([math.nan], [0.], [1.]), 'weights'),
    (([1.], [math.nan], [1.]), 'not finite'),
    (([1.], [0.], [math.inf]), 'not finite'),
    (([1.], [0., 1.], [1., 1.]), r'mixture: got weights \[1\], means \[2\]'),
    (([], [], []), 'mixture'),
])
def test_bad_mixtures(args, sentence):
    with pytest.raises(EdcError, match=sentence):
        Mixture(*args)


# --- integrals and bounds

def test_entropy_and_divergence_against_an_adaptive_rule(gen):
    for _ in range(4):
        q, p = random_mixture(gen), random_mixture(gen)
        (h, eh), (d, ed) = entropy(q), kl(q, p)
        log = lambda m, t: float(m.log_prob(t))
        assert h == pytest.approx(adaptive(q, lambda t: -density(q, t) * log(q, t)), abs=1e-7) and eh < 1e-8
        divergence = adaptive(q, lambda t: density(q, t) * (log(q, t) - log(p, t)))
        assert d == pytest.approx(divergence, abs=1e-7 * (1 + d)) and ed < 1e-7 * (1 + d) and d >= 0
    assert kl(q, q)[0] == pytest.approx(0, abs=1e-12)


def test_estimated_error_covers_the_true_one(gen):
    for _ in range(30):
        q = random_mixture(gen, ratio=3.)
        best = entropy(q, 64)[0]
        for order in (4, 8, 16):        # two rules of 1 and 2 nodes can agree by accident
            value, error = entropy(q, order)
            assert abs(value - best) <= error + 1e-12 * (1 + abs(best))


def test_corrected_bounds_hold(gen):
    for _ in range(150):
        q = random_mixture(gen, ratio=2.)
        (h, error), (low, high), (lo, hi) = entropy(q), entropy_gap_bounds(q), printed_entropy_bounds(q)
        gap = float(gaussian_entropy(q.variance)) - h
        assert low - error - 1e-10 <= gap <= high + error + 1e-10
        assert gap == pytest.approx(kl(q, q.gaussian())[0], abs=1e-8 * (1 + gap)) and lo - 1e-9 <= h <= hi + 1e-9


def test_printed_bounds_are_the_printed_formulas(gen):
    q = random_mixture(gen, 4)
    w, m, v = (t.tolist() for t in (q.weights, q.means, q.variances))
    lower = sum(a * .5 * math.log(2 * math.pi * math.e * c) for a, c in zip(w, v))
    extra = sum(w[i] * w[j] * (m[i] - m[j])**2 * (v[i] + v[j]) / v[i] / v[j] for i in range(4) for j in range(4)) / 4
    assert printed_entropy_bounds(q) == pytest.approx((lower, float(gaussian_entropy(q.variance)) + extra))
    assert printed_kl_bound(q) == pytest.approx(sum(m[j]**2 / v[i] for i in range(4) for j in range(4)) / 16)


def test_the_printed_divergence_bound_has_a_counter_example():
    q = Mixture([.5, .5], [0., 0.], [1., 100.])
    assert kl(q, q.gaussian())[0] == pytest.approx(.3764, abs=1e-4) and printed_kl_bound(q) == 0
    assert entropy_gap_bounds(q) == pytest.approx((.1165, .8097), abs=1e-4)
    assert entropy_gap_bounds(Mixture([.5, .5], [1., 1.], [2., 2.])) == pytest.approx((0, 0), abs=1e-12)


def test_quadrature_and_bounds_are_for_one_dimension(gen):
    q = random_mixture(gen, dims=2)
    mean, divergence = lambda q: expect(q, lambda x: x), lambda q: kl(random_mixture(gen), q)
    for f in (entropy, entropy_gap_bounds, printed_entropy_bounds, printed_kl_bound, mean, divergence):
        with pytest.raises(EdcError, match='2 dimensions, accepted: one-dimensional'):
            f(q)


# --- transport and information

@pytest.mark.parametrize('power', [1., 2., 3.])
def test_transport_cost_is_the_best_permutation(gen, power):
    for n, d in ((1, 2), (4, 1), (6, 3)):
        a, b = (torch.randn(n, d, generator=gen, dtype=torch.float64) for _ in 'ab')
        ways = itertools.permutations(range(n))
        best = min(sum(math.dist(a[i], b[j])**power for i, j in enumerate(way)) / n for way in ways)
        assert transport_cost(a, b, power) == pytest.approx(best, rel=1e-6)
    a, b = torch.randn(200, generator=gen), torch.rand(200, generator=gen)
    along = np.sort(a.double().numpy()) - np.sort(b.double().numpy())       # on a line, in the order of the points
    assert transport_cost(a, b, power) == pytest.approx(float(np.mean(np.abs(along)**power)), rel=1e-5)


def test_transport_cost_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'scipy.optimize', None)
    with pytest.raises(EdcError, match=r'needs SciPy.*edc_nb\[diagnostics\]'):
        transport_cost(torch.zeros(2, 2), torch.zeros(2, 2))


@pytest.mark.parametrize('a, b, sentence', [
    (torch.zeros(2, 3), torch.zeros(3, 3), r'shapes \[2, 3\] and \[3, 3\]'),
    (torch.zeros(0, 3), torch.zeros(0, 3), 'n at least 1'),
    (torch.full((1, 1), math.nan), torch.zeros(1, 1), 'not finite'),
    (torch.zeros(1, 1), torch.full((1, 1), math.inf), 'not finite')])
def test_bad_point_sets(a, b, sentence):
    with pytest.raises(EdcError, match=sentence):
        transport_cost(a, b)


def test_gaussian_transport(gen):
    from scipy.linalg import sqrtm
    for d in (1, 3, 5):
        randn = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)
        A, B, (ma, mb) = randn(d, d), randn(d, d), randn(2, d)
        A, B = A @ A.T + .1 * torch.eye(d), B @ B.T + .1 * torch.eye(d)
        root = sqrtm(A.numpy())
        spread = np.trace(A.numpy() + B.numpy() - 2 * np.real(sqrtm(root @ B.numpy() @ root)))
        naive = float((ma - mb).square().sum()) + spread
        assert gaussian_transport(ma, A, mb, B) == pytest.approx(float(naive), rel=1e-6)
        x, y = randn(50, d), randn(50, d)
        cov = lambda t: torch.cov(t.T, correction=0).reshape(d, d)
        gelbrich = gaussian_transport(x.mean(0), cov(x), y.mean(0), cov(y))
        assert gelbrich <= transport_cost(x, y) + 1e-9


def test_gaussian_information(gen):
    for rho in (-.8, 0., .3, .99):
        exact = -.5 * math.log(1 - rho**2)
        assert gaussian_information([[4., 2 * rho], [2 * rho, 1.]], 1) == pytest.approx(exact, abs=1e-12)
    L = torch.randn(4, 4, generator=gen, dtype=torch.float64)
    cov = L @ L.T + .1 * torch.eye(4)
    h = lambda c: .5 * np.linalg.slogdet(2 * math.pi * math.e * c.numpy())[1]
    assert gaussian_information(cov, 3) == pytest.approx(h(cov[:3, :3]) + h(cov[3:, 3:]) - h(cov), rel=1e-9)
    for bad, k, sentence in ((torch.ones(2, 2), 1, 'positive definite'), (torch.eye(3), 3, 'k = 3'),
                             (torch.ones(2, 3), 1, r'\[2, 3\]')):
        with pytest.raises(EdcError, match=sentence):
            gaussian_information(bad, k)


# --- points moved by matching

@pytest.fixture
def plane(gen):
    c = torch.arange(3).repeat_interleave(100)
    return torch.tensor([[-3., 2.], [3., 2.], [0., -3.]])[c] + torch.randn(300, 2, generator=gen), c


def test_matching_reaches_the_moments_it_is_asked_for(plane):
    x, c = plane
    own = share_points(c, 24)
    off = lambda a, b: max(np.abs(a.mean(0) - b.mean(0)).max(), np.abs(a.var(0) - b.var(0)).max())
    one, two = (match_mixture(x, c, 24, form).numpy() for form in (1, 2))
    assert one.shape == two.shape == (301, 24, 2) and np.array_equal(one[0], two[0])
    x, c = x.double().numpy(), c.numpy()
    assert off(one[-1], x) < .02 and off(two[-1], x) < .02
    worst = lambda y: max(off(y[own == k], x[c == k]) for k in range(3))
    assert worst(two[-1]) < .02 < .5 < worst(one[-1])


def test_matching_repeats_and_leaves_the_global_state_alone(plane):
    x, c = plane
    state = torch.get_rng_state()
    a, b, other = (match_mixture(x, c, 12, 2, 10, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, other) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(match_mixture(x, c, 12, 1, 10), match_mixture(x, c, 12, 2, 10, alpha=1.))
    start = x[:12].clone()
    assert torch.equal(match_mixture(x, c, 12, 2, 3, start=start)[0], x[:12].double()) and torch.equal(start, x[:12])


@pytest.mark.parametrize('alpha', [0., .3, 1.])
def test_the_first_step_of_matching_follows_the_loss_as_written(plane, gen, alpha):
    (x, c), start = plane, torch.randn(12, 2, generator=gen, dtype=torch.float64)
    x, own, y = x.double(), share_points(c, 12), start.clone().requires_grad_()
    part = lambda a, b: (a.mean(0) - b.mean(0)).norm() + (a.var(0, correction=0) - b.var(0, correction=0)).norm()
    loss = alpha * part(y, x) + (1 - alpha) * sum(part(y[own == k], x[c == k]) / 3 for k in range(3))
    slope, = torch.autograd.grad(loss, y)
    first, second = match_mixture(x, c, 12, iterations=1, lr=.1, alpha=alpha, start=start)
    torch.testing.assert_close(second - first, -.1 * slope / (slope.abs() + 1e-8))       # Adam's first step


def test_points_are_shared_in_the_datas_proportions(gen):
    for _ in range(20):
        counts = torch.randint(20, 200, (4,), generator=gen)
        c, m = torch.arange(4).repeat_interleave(counts), int(torch.randint(40, 100, (), generator=gen))
        got = share_points(c[torch.randperm(len(c), generator=gen)], m).bincount(minlength=4)
        assert got.sum() == m and (abs(got - counts * m / counts.sum()) < 1).all()
    with pytest.raises(EdcError, match=r'got 2 points for 4 components'):
        share_points(c, 2)


def test_bad_matching(plane):
    x, c = plane
    with pytest.raises(EdcError, match='form: got 3, accepted: 1, 2'):
        match_mixture(x, c, form=3)
    with pytest.raises(EdcError, match=r'points \[300, 2\] and components \[7\]'):
        match_mixture(x, c[:7])


def test_pictures_of_matching(plane, tmp_path):
    import matplotlib
    matplotlib.use('agg')
    x, c = plane
    tracks = {n: match_mixture(x, c, 9, f, 5) for f, n in ((1, 'one'), (2, 'two'))}
    axes = plot_match(x, c, tracks, frames=(0, -1))
    assert axes.shape == (2, 2) and axes[1, 1].get_title() == 'iteration 5'
    assert axes[0, 0].get_xlim() == axes[1, 1].get_xlim()
    points = axes[1, 1].collections[1].get_offsets()          # the first component's points, after its data
    np.testing.assert_allclose(points, tracks['two'][-1][:3])
    path = tmp_path / 'a.gif'
    animate_match(x, c, tracks, frames=3, dpi=30).save(path, writer='pillow')
    from PIL import Image
    with Image.open(path) as im:
        assert im.n_frames == 3
    matplotlib.pyplot.close('all')


# --- transport from initialisations

def test_relative_transport(gen):
    x = torch.randn(24, 3, generator=gen)
    assert relative_transport(x.mean(0, keepdim=True), x) == pytest.approx(1, rel=1e-5)
    assert relative_transport(x, x, 4) == pytest.approx(0, abs=1e-5)
    y = torch.randn(12, 3, generator=gen)
    assert relative_transport(y, x, 4) >= relative_transport(y, x) - 1e-9
    ways = itertools.permutations(range(4))
    naive = min(sum(math.dist(y[i % 2], x[j])**2 for i, j in enumerate(way)) / 4 for way in ways)
    variance = float((x[:4] - x[:4].mean(0)).square().sum(1).mean())
    assert relative_transport(y[:2], x[:4]) == pytest.approx(naive / variance, rel=1e-4)
    for bad in ((y[:5], x), (y, x, 5), (y[:0], x)):
        with pytest.raises(EdcError, match='relative_transport: got'):
            relative_transport(*bad)


def test_transport_study_is_resumed_and_uses_unused_images(tmp_path, monkeypatch):
    seen = []
    unused = transport._unused
    def watched(dataset, starts, *args):
        index = unused(dataset, starts, *args)
        used = torch.cat([i.source.flatten() for i in starts.values()])
        seen.append(len(index))
        assert not set(index.tolist()) & set(used.tolist()) and len(set(index.tolist())) == len(index)
        return index
    monkeypatch.setattr(transport, '_unused', watched)
    def study(seeds):
        return transport_study('tiny', None, tmp_path, ipc=5, seeds=seeds, starts=('noise', 'class mean', 'real'),
                               observers=('convnet_d1',), most=20, device='cpu', progress=False)
    df = study(1)
    assert seen == [200] and len(df) == 3 * 2 * 2 and set(df.space) == {'pixels', 'convnet_d1'} and df.cost.gt(0).all()
    assert len(study(2)) == 24 and len(seen) == 2
    again = study(2)
    assert len(seen) == 2 and again[again.seed == 0].to_dict('list') == df.to_dict('list')
    mean = df[(df.within == 'all')].set_index(['start', 'space']).cost
    assert mean['noise', 'pixels'] > mean['real', 'pixels'] and mean['class mean', 'pixels'] < 1
    import matplotlib
    matplotlib.use('agg')
    assert [t.get_text() for t in plot_transport(again).get_xticklabels()] == ['noise', 'class mean', 'real']
    matplotlib.pyplot.close('all')
    with pytest.raises(EdcError, match="unknown within 'none'; accepted: class, all"):
        plot_transport(again, within='none')
