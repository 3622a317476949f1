"""How fast is edc_nb beside the authors' procedure?   python tests/bench/bench_speed.py [--quick] [--only statistics] [--out FILE]

Three jobs, each done by us and, in the same run and taking turns, by a plain re-implementation of what the authors' scripts
do (the `_Authors...` classes; written from a description of their procedure, no code of theirs): the statistics pass, one
synthesis iteration, and an evaluation epoch. Before anything is timed both are shown to compute the same numbers.
Networks have random weights and calibrated batch norm; time depends on neither. CIFAR-10 is read from $EDC_NB_DATA or
../shared/data, else images are random. Seconds are CPU seconds of this process (of all its threads), which a busy machine
disturbs least; wall ratios stand beside them. Each figure is the best of `--repeats` turns, so the first turn warms up."""
import argparse
import copy
import contextlib
import io
import json
import math
import os
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms as T

from edc_nb.core import generator, make_runtime
from edc_nb.data import Dataset, ImageSet, open_dataset, sample_per_class
from edc_nb.evaluation import recalibrate, train_student
from edc_nb.matching import collect_statistics
from edc_nb.models import build_model
from edc_nb.recipes import recipe
from edc_nb.relabel import Labels, Teachers, ViewStream, make_labels
from edc_nb.squeeze import stream, train_views
from edc_nb.synthesize import Observer, _Batch

EDC, RELEASED = recipe('edc', 'cifar10'), recipe('edc-released', 'cifar10').replace({'matching.patch_swap': False})
# CPU seconds in the fact sheet, section 11: forward of 64 images without and with the hooks; iteration at 100 images
SHEET_FORWARD = {'resnet18': (.74, 2.64), 'shufflenet_v2': (.095, .95)}
SHEET_STEP = {'resnet18': 5.81, 'convnet_w128': .5, 'mobilenet_v2': 1.2, 'wrn16_2': 1.89, 'shufflenet_v2': 1.73,
              'convnet_d1': .29, 'convnet_d2': .45, 'convnet_w32': .1}
SHEET_EPOCH = {'as shipped': 11.8, 'mended': 6.2}
P = 4


# The authors' procedure ------------------------------------------------------------------------------------------------

def _channels(x):
    "Mean and biased variance of each channel over the batch; the variance by way of a transposed copy."
    return [x.mean((0, 2, 3)), x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)]


def _tiles(x):
    "[B, tiles, numbers in a tile]: resized to a multiple of P, even where the side is one, and copied tile by tile."
    x = F.interpolate(x, [-(-n // P) * P for n in x.shape[2:]], mode='bilinear')
    b, c, h, w = x.shape
    return x.reshape(b, c, h // P, P, w // P, P).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // P**2, -1)


class _AuthorsHook:
    "The hook of one layer. It measures the layer's input, to collect statistics or for the loss."
    def __init__(self, owner, module):
        self.owner, self.module, self.conv = owner, module, isinstance(module, nn.Conv2d)
        self.ema = [0.] * (4 if self.conv else 2)
        module.register_forward_hook(lambda module, inputs, output: getattr(self, owner.job)(inputs[0]))

    def _measure(self, x):
        if not self.conv:
            return _channels(x)
        tiles = _tiles(x).transpose(0, 1).reshape(-1, len(x) * x.shape[1] * P * P)
        return _channels(x) + [tiles.mean(1), tiles.var(1, unbiased=False)]

    def reset(self):
        self.total, self.by_class = [0.] * len(self.ema), [[0.] * len(self.ema) for _ in range(self.owner.classes)]

    def collect(self, x):
        if self.conv:                           # batch norm has its running buffers
            self.total = [t + s * (len(x) / self.owner.images) for t, s in zip(self.total, self._measure(x))]
        flat = x.contiguous().view(*x.shape[:2], -1)
        stats = [flat.mean(2), flat.var(2, unbiased=False)]
        if self.conv:
            tiles = _tiles(x)
            stats += [tiles.mean(2), tiles.var(2, unbiased=False)]
        for i in range(len(x)):                 # image by image, layer by layer
            c = self.owner.labels[i].item()
            for k, s in enumerate(stats):
                self.by_class[c][k] = self.by_class[c][k] + s[i]

    def finish(self, counts):
        m = self.module
        self.goal = self.total if self.conv else [m.running_mean, m.running_var]
        self.class_goal = [torch.stack([s / n for s, n in zip(col, counts)]) for col in zip(*self.by_class)]

    def match(self, x):
        self.loss = 0.
        for k, s in enumerate(self._measure(x)):
            self.ema[k] = .8 * self.ema[k] + .2 * s.detach()
            s = self.ema[k] + s - s.detach()
            goal = self.class_goal[k][self.owner.labels].mean(0)
            self.loss = self.loss + .5 * torch.norm(self.goal[k] - s) + .5 * torch.norm(goal - s)


class _AuthorsObserver:
    "An observer with a hook on every convolution and batch norm, their statistics pass and their matching loss."
    def __init__(self, model, dataset):
        self.model, self.classes, self.images, self.job = copy.deepcopy(model), dataset.num_classes, len(dataset.train), None
        self.hooks = [_AuthorsHook(self, m) for m in self.model.modules() if isinstance(m, (nn.BatchNorm2d, nn.Conv2d))]

    @torch.no_grad()
    def statistics(self, batches):
        self.job, counts = 'collect', [0] * self.classes
        for h in self.hooks:
            h.reset()
        for x, self.labels in batches:
            self.model(x)
            for y in self.labels:
                counts[y.item()] += 1
        for h in self.hooks:
            h.finish(counts)

    def losses(self, x, labels):
        self.job, self.labels = 'match', labels
        ce = F.cross_entropy(self.model(x), labels)
        return ce, sum((10. if i == 0 else 1.) * h.loss for i, h in enumerate(self.hooks))


class _AuthorsSynthesis:
    "Their iteration: one crop and flip for the batch, losses from the hooks, Adam, pixels clamped before and after."
    def __init__(self, x, labels, dataset):
        self.x, self.labels, self.dataset = x.clone().requires_grad_(), labels, dataset
        self.opt = torch.optim.Adam([self.x], lr=.05, betas=(.5, .9), eps=1e-8)
        self.view = T.Compose([T.RandomResizedCrop(dataset.size, scale=(.5, 1.)), T.RandomHorizontalFlip()])

    def _clamp(self):
        for c, (m, s) in enumerate(zip(self.dataset.mean, self.dataset.std)):
            self.x.data[:, c] = torch.clamp(self.x[:, c], -m / s, (1 - m) / s).data

    def step(self, t, observer):
        for group in self.opt.param_groups:
            group['lr'] = .5 * (1 + math.cos(math.pi * t / 75)) * .05
        self._clamp()
        self.opt.zero_grad()
        ce, matching = observer.losses(self.view(self.x), self.labels)
        (ce + .01 * matching).backward()
        self.opt.step()
        self._clamp()


class _AuthorsTraining:
    """Their student: views made image by image with PIL and torchvision, and labelled by all observers in every step.

    `shipped` keeps the slip of their CIFAR-10 script, `with no_grad() and autocast`, which is autocast alone: the loss is
    propagated back through the observers too. (Without it: their other scripts.) No checkpoint is written after an epoch."""
    def __init__(self, images, labels, teachers, dataset, student, device, shipped):
        self.teachers, self.device, self.shipped = teachers, device, shipped
        self.model = build_model(student, dataset.num_classes, dataset.size, seed=0).to(device)
        split = [[p for p in self.model.parameters() if (p.dim() > 1) == big] for big in (True, False)]
        self.opt = torch.optim.AdamW([dict(params=split[0], weight_decay=.01), dict(params=split[1], weight_decay=0.)], lr=1e-3)
        self.average = [p.detach().clone() for p in self.model.parameters()]
        view = T.Compose([T.RandAugment(), T.ToTensor(), T.RandomResizedCrop(dataset.size, (.08, 1.)), T.RandomHorizontalFlip(),
                          T.Normalize(dataset.mean, dataset.std)])
        files = [io.BytesIO() for _ in images]
        for f, im in zip(files, images):
            Image.fromarray(im.permute(1, 2, 0).cpu().numpy()).save(f, 'PNG')

        class Files(torch.utils.data.Dataset):
            def __len__(self): return len(files)
            def __getitem__(self, i): return view(Image.open(files[i]).convert('RGB')), labels[i].item()
        self.loader = torch.utils.data.DataLoader(Files(), 25, shuffle=True)

    def _label(self, x):
        amp = torch.autocast('cuda', torch.float16) if self.device.type == 'cuda' else contextlib.nullcontext()
        with amp if self.shipped else torch.no_grad():
            return sum(m(x).float() for m in self.teachers) / len(self.teachers)

    def epoch(self):
        self.model.train()
        for x, y in self.loader:
            x, y = x.to(self.device), y.to(self.device)
            half, (a, b) = int(x.shape[-1] * math.sqrt(1 - np.random.beta(1., 1.))) // 2, np.random.randint(x.shape[-1], size=2)
            box = (..., slice(max(a - half, 0), a + half), slice(max(b - half, 0), b + half))
            x[box] = x[torch.randperm(len(x), device=x.device)][box]
            soft, z = self._label(x), self.model(x)
            loss = F.mse_loss(z, soft) + .025 * F.cross_entropy(z, y)
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            for e, p in zip(self.average, self.model.parameters()):
                e.mul_(.99).add_(p.data, alpha=.01)
            loss.item()


# Measuring -------------------------------------------------------------------------------------------------------------

def race(repeats, device, **contenders):
    "{name: (CPU seconds, wall seconds)}, the best of several turns; in a turn everyone runs once."
    best = {}
    for _ in range(repeats):
        for name, f in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            f()
            if device.type == 'cuda':
                torch.cuda.synchronize()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            best[name] = tuple(map(min, spent, best.get(name, spent)))
    return best


def tabulate(rows, key, ratios, total=True):
    "A table of CPU seconds and ratios; `ratios` maps a column to (numerator, denominator)."
    if total and len(rows) > 1:
        rows['total'] = {k: tuple(map(sum, zip(*(r[k] for r in rows.values())))) for k in next(iter(rows.values()))}
    cpu = {name: {f'{k}, s': r[k][0] for k in r} | {k: r[a][0] / r[b][0] for k, (a, b) in ratios.items()}
           | {f'{k} (wall)': r[a][1] / r[b][1] for k, (a, b) in ratios.items()} for name, r in rows.items()}
    return pd.DataFrame(cpu).T.rename_axis(key).reset_index()


def agree(what, ours, theirs, tolerance=1e-3):
    "Both do the same job: largest difference relative to the largest number."
    gap = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    if not gap < tolerance:
        raise SystemExit(f'{what}: ours and the authors\' differ by {gap:.1e}; there is no point in timing them')
    return gap


# The three jobs --------------------------------------------------------------------------------------------------------

def statistics(dataset, models, args, run):
    "Seconds for 64 images; how far both agree; both sides' observers, ready for synthesis."
    views, rows, ready, gaps, k = train_views(EDC.squeeze), {}, {}, [], len(dataset.train) / 64
    for name, model in models.items():
        theirs, mine = _AuthorsObserver(model, dataset), []
        feed = lambda: stream(dataset, views, 64, generator(0, 'statistics', name), run)
        forward = lambda: [model(x) and None for x, _ in feed()]
        best = race(args.repeats, run.device, **{
            'forward': torch.inference_mode()(forward), 'with graph': forward,
            'ours': lambda: mine.append(collect_statistics(model, dataset, EDC.matching, EDC.squeeze, run=run, name=name)),
            'authors': lambda: theirs.statistics(feed())})
        rows[name] = {c: tuple(s / k for s in v) for c, v in best.items()}
        ours, moments = mine[-1], lambda pick: torch.cat([torch.cat(pick(h)[i::2], -1) for i in (0, 1) for h in theirs.hooks], -1)
        conv = moments(lambda h: [torch.full_like(s, h.conv) for s in h.goal]).bool()
        gaps += [agree(f'{name}, class statistics', torch.cat([ours.mean, ours.within], 1), moments(lambda h: h.class_goal)),
                 agree(f'{name}, global statistics', torch.cat([ours.pooled()[0], ours.batch_var])[conv], moments(lambda h: h.goal)[conv])]
        ready[name] = ours, theirs
    ratios = {'ours/forward': ('ours', 'forward'), 'authors/ours': ('authors', 'ours')}
    return tabulate(rows, 'observer', ratios), ready, max(gaps)


def baseline_check(table):
    """Is the authors' procedure as slow here as in the fact sheet? Its forward of ShuffleNet took .095 s with autograd's graph
    (torch 2.13); without, twice as fast. So besides the ratios, the hooks' own cost is compared in units of ResNet-18's forward."""
    t, unit, rows = table.set_index('observer'), table.set_index('observer').loc['resnet18', 'forward, s'], []
    for name, (forward, hooked) in SHEET_FORWARD.items():
        r = t.loc[name]
        ratio, cost, sheet = r['authors, s'] / r['forward, s'], (r['authors, s'] - r['forward, s']) / unit, (hooked - forward) / SHEET_FORWARD['resnet18'][0]
        low, high = (3, 4) if name == 'resnet18' else (10, 10)
        rows.append({'observer': name, 'authors/forward': ratio, 'authors/(forward with graph)': r['authors, s'] / r['with graph, s'], 'sheet': hooked / forward,
                     'ratio': 'PASS' if .85 * low <= ratio <= 1.15 * high else 'FAIL', 'hooks, in forwards of resnet18': cost,
                     'sheet ': sheet, 'cost': 'PASS' if .75 < cost / sheet < 1.33 else 'FAIL'})
    return pd.DataFrame(rows)


def synthesis(dataset, models, ready, batch, args, run):
    "Seconds of an iteration; how far both agree."
    index = sample_per_class(dataset.train.labels.cpu(), batch // dataset.num_classes, generator(0, 'images'))
    x, labels = dataset.normalise(dataset.train.batch(index)).to(run.device), dataset.train.labels[index]
    turns, rows, gaps = max(1, 50 // batch), {}, []
    for name, (stats, theirs) in ready.items():
        released, edc = [], []
        for kept, r in ((released, RELEASED.replace({'synthesize.crop_scale': (.5, 1.)})), (edc, EDC)):
            kept += [Observer(name, models[name], stats, dataset.size, r.matching), _Batch(x, labels, dataset, r.synthesize, r.matching, run)]
            kept[0].matcher.start(labels)
        authors, losses = _AuthorsSynthesis(x, labels, dataset), []
        for h in theirs.hooks:
            h.ema = [0.] * len(h.ema)
        for pair in (released[1]._losses(released[0], released[1].x, lambda v: v, None)[:2], theirs.losses(authors.x, labels)):
            losses.append((pair[1], torch.autograd.grad(pair[0] + .01 * pair[1], released[1].x if not losses else authors.x)[0]))
        gaps += [agree(f'{name}, {what}', *both) for what, both in zip(('matching loss', 'gradient'), zip(*losses))]
        leaf, model = x.clone().requires_grad_(), models[name]
        best = race(args.repeats, run.device, **{
            'plain': lambda: [torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf) for _ in range(turns)],
            'ours': lambda: [released[1].step(t, released[0], generator(0, t)) for t in range(turns)],
            'ours, edc': lambda: [edc[1].step(t, edc[0], generator(0, t)) for t in range(turns)],
            'authors': lambda: [authors.step(t, theirs) for t in range(turns)]})
        rows[name] = {c: tuple(s / turns for s in v) for c, v in best.items()}
    table = tabulate(rows, 'observer', {'ours/plain': ('ours', 'plain'), 'authors/ours': ('authors', 'ours'), 'authors/edc': ('authors', 'ours, edc')})
    if batch == 100 and run.device.type == 'cpu':
        table['sheet: authors, s'] = [*map(SHEET_STEP.get, ready), sum(map(SHEET_STEP.get, ready))]
    return table, max(gaps)


def evaluation(dataset, models, args, run):
    "Seconds of an epoch: our label pass and student, and the authors' loop; one student, and three that share labels."
    index = sample_per_class(dataset.train.labels.cpu(), 10, generator(0, 'images'))
    images, labels = dataset.train.batch(index), dataset.train.labels[index]
    s = EDC.replace({'evaluate.student': args.student, 'evaluate.epochs': 1, 'evaluate.checks': 1})
    views, teachers = ViewStream(images, labels, dataset, s.augment, 25, run=run), Teachers(list(models.values()), s.relabel, run)
    for m in models.values():
        m.requires_grad_(True)                  # as they come from training
    mended, shipped = (_AuthorsTraining(images, labels, teachers.models, dataset, args.student, run.device, b) for b in (False, True))
    x = torch.cat([v for _, v, _, _ in views.chunks(0)])
    store, blocks = [], 2 if args.quick else 10
    best = race(args.repeats, run.device, **{
        'label pass': lambda: store.append(make_labels(views, teachers, blocks)),
        'student': lambda: train_student(views, Labels(views, store[-1]), dataset, s.evaluate, run=run),
        'authors, mended': mended.epoch, 'authors, as shipped': shipped.epoch})
    gap = agree('soft labels', store[-1].epoch(0, run.device), mended._label(x))
    best['label pass'] = tuple(v / blocks for v in best['label pass'])
    rows = {}
    for n in (1, 3):
        rows[f'{n} student{"s" * (n > 1)}'] = {'ours': tuple(a + n * b for a, b in zip(best['label pass'], best['student']))} | {
            k: tuple(n * v for v in best[k]) for k in ('authors, mended', 'authors, as shipped')}
    parts = pd.DataFrame({k: dict(zip(('CPU s', 'wall s'), v)) for k, v in best.items()}).T.rename_axis('one epoch').reset_index()
    return parts, tabulate(rows, args.student, {f'{k}/ours': (f'authors, {k}', 'ours') for k in ('mended', 'as shipped')}, total=False), gap


def load(args):
    "256 CIFAR-10 images (64 with --quick), or noise where there is no CIFAR-10, and the eight observers."
    root = Path(os.environ.get('EDC_NB_DATA') or Path(__file__).resolve().parents[3] / 'shared' / 'data') / 'cifar10'
    gen = generator(0, 'bench')
    if root.exists():
        data = open_dataset(EDC.replace({'data.per_class': 50, 'data.test_per_class': 1}).data, root, progress=False)
    else:
        sets = (ImageSet(torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=gen), torch.arange(n) % 10) for n in (500, 10))
        data = Dataset('noise', *sets, [str(c) for c in range(10)], (.5,) * 3, (.3,) * 3)
    return data, replace(data, train=data.train.subset(torch.randperm(500, generator=gen)[:64 if args.quick else 128]))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('--threads', type=int, default=1, help='CPU threads of torch')
    p.add_argument('--repeats', type=int, default=3, help='turns, of which the best counts')
    p.add_argument('--quick', action='store_true', help='fewer images, two turns, batch 10 only, student wrn16_2')
    p.add_argument('--only', choices=('statistics', 'synthesis', 'evaluation'), help='one of the three jobs')
    p.add_argument('--student', help='student; resnet18 unless --quick')
    p.add_argument('--device', default='auto')
    p.add_argument('--precision', default='fp32', help='of our side; the authors\' is fp32')
    p.add_argument('--out', type=Path, help='JSON file for the tables')
    args = p.parse_args()
