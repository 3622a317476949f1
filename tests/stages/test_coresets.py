"""Herding and k-center on real photographs against their definitions."""
import pytest
import torch

from edc_nb.core.settings import DataSettings, InitializeSettings
from edc_nb.data.open import open_dataset
from edc_nb.models.helpers import features
from edc_nb.models.registry import build_model
from edc_nb.stages.initialize import initialize


def naive_herding(f, k):
    f, chosen = f.double(), []
    for _ in range(k):
        left = [i for i in range(len(f)) if i not in chosen]
        chosen.append(min(left, key=lambda i: float((f[[*chosen, i]].mean(0) - f.mean(0)).norm())))
    return chosen


def naive_k_center(f, k):
    f = f.double()
    chosen = [min(range(len(f)), key=lambda i: float((f[i] - f.mean(0)).norm()))]
    while len(chosen) < k:
        left = [i for i in range(len(f)) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(float((f[i] - f[j]).norm()) for j in chosen)))
    return chosen


@pytest.mark.parametrize('method,naive', [('herding', naive_herding), ('k-centre', naive_k_center)])
def test_coresets_of_photographs(method, naive, data_root):
    d = open_dataset(DataSettings('cifar10', per_class=30, test_per_class=1), data_root('cifar10'))
    net = build_model('convnet_w32', 10, 32, seed=4).eval()
    got = initialize(d, InitializeSettings(method, observer='convnet_w32', flip=0.), 6, observers={'convnet_w32': net})
    with torch.no_grad():
        for c in range(10):
            members = (d.train.labels == c).nonzero().flatten()
            f = features(net, d.normalize(d.train.images[members].float() / 255)).flatten(1)
            assert got.source[got.labels == c].flatten().tolist() == members[naive(f, 6)].tolist(), d.classes[c]
    torch.testing.assert_close(got.images, d.normalize(d.train.images[got.source[:, 0]].float() / 255))
