"""The Hessian diagnostics against independent computations: torch.func, finite differences, dense matrices,
curvlinops; and that looking changes nothing."""
import dataclasses
import hashlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edc_nb.core.files import Store, bytes_hash
from edc_nb.core.runtime import generator
from edc_nb.core.settings import EdcError, MatchingSettings
from edc_nb.data.open import open_dataset
from edc_nb.diagnostics.hessian import (
    Hessian,
    hessian_moments,
    hessian_norm,
    hessian_trace,
    spectral_density,
    top_eigenvalues,
)
from edc_nb.diagnostics.hessian_study import ARMS, HessianWatch, hessian_ratio, hessian_study, plot_hessian
from edc_nb.diagnostics.objective import SynthesisLoss, synthesis_loss
from edc_nb.diagnostics.student_hessian import curvlinops_hessian, student_at_end, student_hessian, weights_loss
from edc_nb.recipes.scales import at_scale
from edc_nb.run import chain as chain_module
from edc_nb.run.chain import Chain
from edc_nb.run.folder import condense
from edc_nb.stages.matching import Matcher, Taps, Targets
from edc_nb.stages.students import Batch
from edc_nb.stages.synthesize import synthesize


@pytest.fixture
def gen():
    return torch.Generator().manual_seed(torch.seed() % 2**31)


class Tiny(nn.Module):
    "Convolution, batch norm with buffers that are not 0 and 1, ReLU, linear."

    def __init__(self, gen, classes=4):
        super().__init__()
        self.conv, self.bn, self.conv2, self.fc = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3,
            stride=2), nn.Linear(4, classes)
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=gen) * .4)
        self.bn.running_mean.copy_(torch.randn(5, generator=gen) * .1)
        self.bn.running_var.copy_(torch.rand(5, generator=gen) + .5)
        self.eval()

    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.relu(self.bn(self.conv(x))))).mean((2, 3)))


class Fake:
    "What `SynthesisLoss` needs of an observer."

    def __init__(self, model, gen, m, classes=4, size=8):
        self.name, self.model = 'tiny', model.requires_grad_(False)
        self.taps = Taps(model, size, m)
        rand = lambda *s: torch.rand(*s, generator=gen) * .5  # noqa: E731
        self.matcher = Matcher(Targets(rand(self.taps.dim), rand(self.taps.dim), rand(classes, self.taps.dim),
                                       rand(classes, self.taps.dim), self.taps.sizes), self.taps.layout, m)


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp('hessian')
    r = at_scale('edc', {}, 'cifar10', 10, 'resnet18', 'tiny').replace({'squeeze.epochs': 1,
        'synthesize.observers': ['convnet_d1', 'convnet_d2'], 'relabel.observers': ['convnet_d1'],
        'synthesize.iterations': 6,
                                                                        'evaluate.epochs': 4,
        'evaluate.ema_rate': .9, 'evaluate.student': 'convnet_d1', 'evaluate.batch_size': 10}, ipc=1)
    return Chain(r, open_dataset(r.data), Store(root / 'store')), root


# ---- products

@pytest.mark.parametrize('case', range(5))
def test_quadratic_form_and_a_list_of_tensors(case, gen):
    n = int(torch.randint(3, 20, (), generator=gen))
    A = torch.randn(n, n, generator=gen, dtype=torch.float64)
    x, V = torch.randn(n, generator=gen, dtype=torch.float64), torch.randn(n, 3, generator=gen, dtype=torch.float64)
    H = Hessian(lambda x: x @ A @ x, x)
    torch.testing.assert_close(H @ V, (A + A.T) @ V)
    torch.testing.assert_close(H.gradient, (A + A.T) @ x)
    k = n // 2
    torch.testing.assert_close(Hessian(lambda p: torch.cat(p) @ A @ torch.cat(p), [x[:k], x[k:]]) @ V, (A + A.T) @ V)


@pytest.mark.parametrize('alpha,crop', [(1., None), (.4, 3)])
def test_synthesis_loss_against_finite_differences_and_the_whole_matrix(alpha, crop, gen):
    m = MatchingSettings(alpha=alpha)
    observer = Fake(Tiny(gen), gen, m)
    f = SynthesisLoss(observer, torch.tensor([0, 3, 0]), m, crop=crop, dtype=torch.float64)
    x = torch.randn(3, 3, 8, 8, generator=gen, dtype=torch.float64)
    H, v = Hessian(f, x), torch.randn(576, generator=gen, dtype=torch.float64)

    def gradient(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(f(x), x)[0].flatten()
    fd = (gradient(x + 1e-6 * v.view_as(x)) - gradient(x - 1e-6 * v.view_as(x))) / 2e-6
    assert (H @ v - fd).norm() < 1e-5 * fd.norm()
    M = H.matrix()
    assert (M - M.T).norm() < 1e-9 * M.norm()
    norm, trace = hessian_moments(H, probes=60, sketch=10)
    assert abs(norm.value - M.norm()) < 9 * norm.se and abs(trace.value - M.trace()) < 9 * trace.se
    lam = torch.linalg.eigvalsh(M)
    top = top_eigenvalues(H, k=3, steps=60)
    torch.testing.assert_close(torch.tensor(top.eigenvalue.values), lam[lam.abs().argsort(descending=True)[:3]],
                               rtol=1e-3, atol=1e-3 * lam.abs().max().item())
    spectrum, draws = spectral_density(H, probes=3, steps=20), generator(0, 'spectrum')
    # the quadrature is exact for powers as each start vector sees them
    for nodes, weights in zip(spectrum.nodes, spectrum.weights):
        v = torch.randint(0, 2, (576,), generator=draws, dtype=torch.int8).double() * 2 - 1
        for k in range(5):
            torch.testing.assert_close((weights * nodes ** k).sum(), v @ torch.linalg.matrix_power(M, k) @ v / 576,
                                       rtol=1e-6, atol=1e-12)
    single = Hessian(SynthesisLoss(observer, torch.tensor([0, 3, 0]), m, crop=crop), x.float()) @ v.float()
    assert (single - H @ v).norm() < 1e-2 * (H @ v).norm()


def test_cross_entropy_alone_is_torch_func(gen):
    m, y = MatchingSettings(), torch.tensor([1, 2])
    observer = Fake(Tiny(gen), gen, m, size=6)
    x = torch.randn(2, 3, 6, 6, generator=gen, dtype=torch.float64)
    net = Tiny(gen).double()
    net.load_state_dict(observer.model.state_dict())
    ref = torch.func.hessian(lambda x: F.cross_entropy(net(x), y))(x).reshape(216, 216)
    torch.testing.assert_close(Hessian(SynthesisLoss(observer, y, m, matching=False, dtype=torch.float64),
                                       x).matrix(), ref)


def test_chunks_do_not_change_the_estimate_and_seeds_do(gen):
    A = torch.randn(30, 30, generator=gen, dtype=torch.float64)
    H = Hessian(lambda x: x @ A @ x, torch.zeros(30, dtype=torch.float64))
    for f in (hessian_norm, hessian_trace):
        a, b, c = f(H, probes=13, chunk=1), f(H, probes=13, chunk=13), f(H, probes=13, seed=1)
        assert a.value == pytest.approx(b.value, rel=1e-12) and a.se == pytest.approx(b.se,
            rel=1e-9) and a.value != c.value


def test_standard_errors_cover_the_truth(gen):
    A = torch.randn(40, 40, generator=gen, dtype=torch.float64)
    A = A + A.T
    H = Hessian(lambda x: x @ A @ x / 2, torch.zeros(40, dtype=torch.float64))
    for sketch in (0, 8):
        z = torch.tensor([[(e.value - t) / e.se for e,
                           t in zip(hessian_moments(H, probes=40, sketch=sketch, seed=s), (A.norm(), A.trace()))]
                          for s in range(60)])
        assert (z.mean(0).abs() < .7).all() and ((z.std(0) > .65) & (z.std(0) < 1.5)).all()


# ---- looking changes nothing

def digest(c):
    return bytes_hash(c.images), hashlib.sha256(c.synthetic.history.numpy().tobytes()).hexdigest()


def test_condense_with_and_without_a_probing_watch_gives_the_same_bytes(chain, monkeypatch):
    ch, root = chain
    plain = condense(ch.recipe, ch.dataset, root / 'plain', device='cpu', store=root / 'plain-store', progress=False)
    seen, state = [], torch.get_rng_state()

    def watched(initial, observers, dataset, s, m, *rest, **kw):
        watch = HessianWatch(observers, initial.labels, m, s, at=range(7), probes=3)
        out = synthesize(initial, observers, dataset, s, m, *rest, watch=watch, **kw)
        seen.extend(watch.rows)
        return out
    monkeypatch.setattr(chain_module, 'synthesize', watched)
    looked = condense(ch.recipe, ch.dataset, root / 'looked', device='cpu', store=root / 'looked-store', progress=False)
    assert len(seen) == 6 * 2 and all(r['norm'] > 0 for r in seen)
    assert digest(plain) == digest(looked)
    a, b = (next((root / f'{n}-store' / 'synthesize').rglob('condensed.safetensors')).read_bytes()
            for n in ('plain', 'looked'))
    assert a == b
    a, b = (next((root / f'{n}-store' / 'relabel').rglob('*.safetensors')).read_bytes() for n in ('plain', 'looked'))
    assert a == b
    assert torch.equal(torch.get_rng_state(), state)


def test_a_watch_in_the_middle_leaves_averages_weights_and_generators(chain):
    ch, _ = chain
    observers, start = ch.observers(), ch.initial()
    o = observers[0]
    o.matcher.start(start.labels)
    o.matcher(*o.taps(start.images)[1:])
    averages, weights, state = {k: v.clone() for k, v in o.matcher.state().items()}, {k: v.clone() for k,
        v in o.model.state_dict().items()}, torch.get_rng_state()
    for f in synthesis_loss(observers, start.labels, ch.recipe.matching, crop=1).values():
        H = Hessian(f, start.images)
        hessian_norm(H, probes=2), top_eigenvalues(H, k=1, steps=3), spectral_density(H, probes=2, steps=3)
    assert all(torch.equal(v, averages[k]) for k, v in o.matcher.state().items()) and all(torch.equal(v,
        weights[k]) for k, v in o.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and not o.model.training and all(p.grad is None
        for p in o.model.parameters()) and start.images.grad is None
    assert all(not m._forward_pre_hooks for m in o.model.modules())
    assert set(synthesis_loss(ch, start.labels)) == {'convnet_d1', 'convnet_d2'}


# ---- the study

def test_study_resumes_pairs_its_arms_and_draws(chain, tmp_path):
    ch, _ = chain
    kw = dict(out=tmp_path, store=ch.store.root, seeds=2, at=(0, 2, 6), probes=2, progress=False,
              arms={k: ARMS[k] for k in ('off', 'SAM')},
              changes={k: v for k, v in (('squeeze.epochs', 1),
                                         ('synthesize.observers', ['convnet_d1', 'convnet_d2']),
                                         ('synthesize.iterations', 6))})
    df = hessian_study('tiny', ch.dataset, **kw)
    assert len(df) == 2 * 2 * 3 * 3 and set(df.observer) == {'convnet_d1', 'convnet_d2', 'mean'}
    start = df[df.iteration == 0].pivot_table(index=['seed', 'observer'], columns='arm', values='norm')
    assert (start.off == start.SAM).all() and start.off.loc[0, 'mean'] != start.off.loc[1, 'mean']
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob('part-*.json')}
    next(iter(kept)).unlink()
    again = hessian_study('tiny', ch.dataset, **kw)
    assert again.norm.tolist() == pytest.approx(df.norm.tolist(),
                                                rel=1e-5) and sum(p.stat().st_mtime_ns != t for p,
                                                    t in kept.items()) == 1
    ratio = hessian_ratio(df).set_index('observer')
    end = df[(df.iteration == 6) & (df.observer == 'mean')].pivot(index='seed', columns='arm', values='norm')
    assert ratio.ratio['mean'] == pytest.approx(((end.SAM / end.off).prod()) ** .5) and ratio.lower['mean'] == (
        end.SAM < end.off).sum()
    assert plot_hessian(df).get_xlabel() == 'iteration of synthesis'
    with pytest.raises(EdcError, match="against: got 'on'|'on'"):
        hessian_ratio(df, 'on')


# ---- the student

def some_batches(gen, n=(5, 3)):
    return [Batch(torch.randn(k, 3, 8, 8, generator=gen), *torch.randint(0, 4, (2, k), generator=gen),
                  torch.rand(k, generator=gen), torch.randn(k, 4, generator=gen)) for k in n]


def mix(z, b):
    return F.mse_loss(z, b.soft) + .3 * (b.lam * F.cross_entropy(z, b.hard,
        reduction='none') + (1 - b.lam) * F.cross_entropy(z, b.partner, reduction='none')).mean()


def test_student_hessian_of_both_engines_against_the_matrix(gen):
    curvlinops = pytest.importorskip('curvlinops')
    model, batches = Tiny(gen), some_batches(gen)
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    theirs, ours = (student_hessian(model, batches, mix, probes=80, k=2, steps=60, engine=e)
                    for e in ('curvlinops', 'own'))
    assert torch.equal(torch.get_rng_state(), state) and all(torch.equal(v, weights[k]) for k,
        v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())
    M = Hessian(*weights_loss(model, batches, mix)).matrix()
    one = Batch(*(torch.cat(v) for v in zip(*((b.views, b.hard, b.partner, b.lam, b.soft) for b in batches))))
    direct = torch.func.hessian(lambda w: mix(torch.func.functional_call(model, {'fc.weight': w}, (one.views,)),
                                              one))(model.fc.weight.detach())
    n = model.fc.weight.numel()
    torch.testing.assert_close(M[-n - 4:-4, -n - 4:-4], direct.reshape(n, n), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(curvlinops_hessian(model, batches, mix) @ torch.eye(len(M)), M, rtol=1e-3,
                               atol=1e-4 * M.abs().max().item())
    for got in (theirs, ours):
        assert abs(got['norm'].value - M.norm()) < 6 * got['norm'].se and abs(
            got['trace'].value - M.trace()) < 6 * got['trace'].se
        assert got['top'].eigenvalue[0] == pytest.approx(torch.linalg.eigvalsh(M).abs().max().item(), rel=1e-3)
    assert theirs['norm'].value == pytest.approx(ours['norm'].value, rel=1e-3) and isinstance(curvlinops, object)


def test_student_at_end_is_the_evaluated_one_on_its_last_views(chain):
    ch, root = chain
    c = condense(ch.recipe, ch.dataset, root / 'student', device='cpu', store=ch.store.root, progress=False)
    ema, batches, loss = student_at_end(c)
    raw, same, _ = student_at_end(c, {'evaluate.ema_rate': 0.})
    assert sum(len(b.views) for b in batches) == len(c.images) and all(torch.equal(a.views, b.views)
        and torch.equal(a.soft, b.soft) for a, b in zip(batches, same))
    assert not torch.equal(ema.state_dict()[next(iter(ema.state_dict()))],
                           raw.state_dict()[next(iter(raw.state_dict()))])
    found = student_hessian(ema, batches, loss, probes=2, k=1, steps=3)      # group norm: the own engine
    assert found['weights'] == sum(p.numel() for p in ema.parameters()) and found['norm'].value > 0


def test_without_curvlinops_the_extra_is_named(gen, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'curvlinops', None)
    with pytest.raises(EdcError, match=r"curvlinops-for-pytorch; install it with: pip install 'edc_nb\[diagnostics\]'"):
        student_hessian(Tiny(gen), some_batches(gen), mix, engine='curvlinops')
    assert student_hessian(Tiny(gen), some_batches(gen), mix, engine='own', probes=2, k=1, steps=3)['norm'].value > 0


# ---- bad input

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy):
        return gy * ctx.saved_tensors[0].cos()


class Silent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        e = x.tanh()
        ctx.save_for_backward(e)
        return e.clone()

    @staticmethod
    def backward(ctx, gy):
        return gy * (1 - ctx.saved_tensors[0] ** 2)


class Right(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gy):
        return gy * ctx.saved_tensors[0].cos()


class Act(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


@pytest.mark.parametrize('f', [Once.apply, Silent.apply, torch.Tensor.detach], ids=['once', 'silent', 'detached'])
def test_the_module_that_cannot_be_differentiated_twice_is_named(f, gen):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), Act(f)), nn.Flatten(),
                          nn.Linear(64, 3))
    x, y = torch.randn(2, 3, 8, 8, generator=gen), torch.tensor([0, 2])
    with pytest.raises(EdcError, match=r"cannot be differentiated twice: module '2\.1' \(Act\): "):
        hessian_norm(lambda x: F.cross_entropy(model(x), y), x, probes=2)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model[2][1].f = torch.round      # a step function has derivatives, all zero: nothing to refuse
    assert hessian_norm(lambda x: F.cross_entropy(model(x), y), x, probes=2).value == 0
    model[2][1].f = Right.apply      # a hand-written function that is right is let through
    assert hessian_norm(lambda x: F.cross_entropy(model(x), y), x, probes=2).value > 0
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_detached_loss_without_modules_and_other_bad_input(gen):
    x = torch.randn(4, 3, generator=gen)
    square = lambda x: x.square().sum()  # noqa: E731
    for f, x0, text in ((lambda x: x.detach().sum(), x,
                         'it does not depend on x; something on the way is detached'),
                        (square, torch.stack([x, x * float('nan'), x]),
                         'x: 1 of 3 are not finite, the first is number 1'),
                        (square, x.byte(), 'got uint8 values, expected float32 or float64'),
                        (lambda x: x, x, r'single number as a tensor, got \(4, 3\)'),
                        (lambda x: (x / 0).sum(), x, 'the loss is (inf|-inf|nan) at these images')):
        with pytest.raises(EdcError, match=text):
            hessian_norm(f, x0, probes=2)
    for kw, text in ((dict(probes=1), 'probes: got 1, expected at least 2'),
                     (dict(probes=6, sketch=3), 'sketch: got 3, which takes 6 of 6 products; accepted: 0 to 2'),
                     (dict(chunk=0), 'chunk: got 0')):
        with pytest.raises(EdcError, match=text):
            hessian_norm(square, x, **kw)
    for f, text in ((lambda: top_eigenvalues(square, x, k=13), 'k: got 13, expected 1 to 12'),
                    (lambda: spectral_density(square, x, probes=1), 'probes: got 1'),
                    (lambda: spectral_density(square, x, steps=0), 'steps: got 0'),
                    (lambda: hessian_study('medium'), "scale: 'medium'|scale")):
        with pytest.raises(EdcError, match=text):
            f()
    assert hessian_norm(lambda x: (3 * x).sum(), x, probes=2) == (0., 0., 2)     # linear
    torch.testing.assert_close(hessian_norm(square, x, probes=3).value, (2 * 12 ** .5))
    # a multiple of the identity is known after one probe
    assert hessian_norm(square, x, probes=3).se == pytest.approx(0, abs=1e-6)


def test_synthesis_loss_says_what_does_not_fit(gen):
    m = MatchingSettings()
    observer = Fake(Tiny(gen), gen, m)
    with pytest.raises(EdcError, match='images: got 2, but there are 3 labels'):
        SynthesisLoss(observer, torch.tensor([0, 1, 2]), m)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(EdcError, match='got False for both'):
        SynthesisLoss(observer, torch.tensor([0]), m, ce=False, matching=False)
    with pytest.raises(EdcError, match='probes: got 1'):
        HessianWatch([observer], torch.tensor([0]), m, probes=1)
    assert dataclasses.asdict(m) == dataclasses.asdict(MatchingSettings())
