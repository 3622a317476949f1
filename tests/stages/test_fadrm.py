"""FADRM's stages: first images blended back in, each stage at its size and with a fresh Adam."""
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from edc_nb.core.settings import DataSettings, MatchingSettings, SqueezeSettings, SynthesizeSettings
from edc_nb.data.open import open_dataset
from edc_nb.models.registry import build_model
from edc_nb.stages.initialize import Initial
from edc_nb.stages.matching import collect_statistics
from edc_nb.stages.synthesize import Observer, synthesize, to_bytes

PLAIN = dict(flatness='off', crop='none', flip=0.)      # a synthesis that draws nothing


def valid_range(d):
    "Black and white as the network sees them."
    return (d.normalize(torch.full((1, 3, 1, 1), v)) for v in (0., 1.))


@pytest.fixture(scope='module')
def still():
    "(digits, first images, an observer without tiles): the images move only between stages, and slide."
    d = open_dataset(DataSettings('digits', per_class=20, test_per_class=5))
    m = MatchingSettings(patch=0, stat_ema=0.)
    net = build_model('wrn16_2', 10, 8, seed=1).eval()         # takes images of every size
    statistics = collect_statistics(net, d, m, SqueezeSettings(crop='none', flip=0.), seed=0, name='wrn16_2')
    gen = torch.Generator().manual_seed(5)
    low, high = valid_range(d)
    x = low + (high - low) * torch.rand(20, 3, 8, 8, generator=gen)
    first = Initial(x, torch.arange(10).repeat_interleave(2), torch.full((20, 1), -1))
    return d, first, Observer('wrn16_2', net, statistics, 8, m), m


def resize(x, size):
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, (size, size), mode='bilinear', antialias=True, align_corners=False)


@pytest.mark.parametrize('sizes,residual', [
    ((), .5), ((12, 8, 12, 8), .5), ((12, 16, 10, 8), .25), ((8, 12), 1.), ((12, 8), 0.)])
def test_stages_blend_first_images_back_in(sizes, residual, still):
    "With a rate of zero: X_k = (1 - r) resize(X_(k-1)) + r resize(first), each stage at its own size."
    d, first, o, m = still
    parts, seen = len(sizes) or 4, []
    s = SynthesizeSettings(iterations=2 * parts, lr=0., stages=parts, residual=residual, stage_sizes=sizes, **PLAIN)
    hook = o.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    try:
        out = synthesize(first, [o], d, s, m)
    finally:
        hook.remove()
    x = first.images
    low, high = valid_range(d)
    for k in range(parts):
        size = sizes[k] if sizes else 8
        x = resize(x, size) if k == 0 else (1 - residual) * resize(x, size) + residual * resize(first.images, size)
        for i in (2 * k, 2 * k + 1):
            torch.testing.assert_close(seen[i], x, atol=2e-6, rtol=0)
        x = x.clamp(low, high)
    assert len(seen) == 2 * parts and [v.shape[-1] for v in seen[::2]] == list(sizes or (8,) * 4)
    assert (out.images.int() - to_bytes(resize(x, 8), d).int()).abs().max() <= 1


def test_each_stage_starts_adam_anew(still):
    "One step per stage: every step is Adam's first, whose size is the rate whatever the gradient."
    d, first, o, m = still
    inside = dataclasses.replace(first, images=first.images * .2)
    seen = []
    s = SynthesizeSettings(iterations=3, lr=.01, lr_schedule='constant', stages=3, residual=.5, **PLAIN)
    synthesize(inside, [o], d, s, m, watch=lambda b, t, x, o: seen.append(x.clone()))
    x = inside.images
    for k, after in enumerate(seen):
        begin = x if k == 0 else .5 * (x + inside.images)
        moved = (after - begin).abs()
        assert moved.max() <= .01 + 1e-5 and (moved > .0095).float().mean() > .8, k
        x = after
