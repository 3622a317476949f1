"""How fast is edc_nb beside the authors' procedure?

    python tests/bench/bench_speed.py [--quick] [--only JOB] [--out FILE]

Three jobs, each done by us and, in the same run and taking turns, by a plain re-implementation of what the authors'
scripts do (the `_Authors...` classes, written from a description of their procedure): the statistics pass, an
iteration of the synthesis, an epoch of the evaluation. Before a job is timed both are shown to compute the same
numbers. Networks have random weights and calibrated batch norm; time depends on neither. Images are CIFAR-10 from
$EDC_NB_DATA, else noise. Seconds are CPU seconds of this process (all threads), which a busy machine disturbs
least; ratios of wall seconds stand beside. Each figure is the best of several turns, so the first turn warms up."""
import argparse
import contextlib
import copy
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

from edc_nb.core.runtime import generator, make_runtime
from edc_nb.data.images import Dataset, ImageSet, sample_per_class
from edc_nb.data.open import open_dataset
from edc_nb.models.helpers import make_optimizer, to_device
from edc_nb.models.registry import build_model
from edc_nb.recipes.registry import recipe
from edc_nb.stages.matching import collect_statistics
from edc_nb.stages.relabel import Labels, Teachers, ViewStream, make_labels
from edc_nb.stages.squeeze import stream, train_views
from edc_nb.stages.students import LOSSES, Average, _groups, _student_epoch, recalibrate, student_batches
from edc_nb.stages.synthesize import ImageOptimizer, Observer

EDC = recipe('edc', 'cifar10')
# the authors' mathematics
SAME = recipe('edc-released', 'cifar10').replace({'matching.patch_swap': False, 'synthesize.crop_scale': (.5, 1.)})
TILE = 4
# CPU seconds that the authors' code took (fact sheet, section 11): forward of 64 images without and with hooks; an
# iteration with 100 images
SHEET_FORWARD = {'resnet18': (.74, 2.64), 'shufflenet_v2': (.095, .95)}
SHEET_STEP = dict(resnet18=5.81, convnet_w128=.5, mobilenet_v2=1.2, wrn16_2=1.89, shufflenet_v2=1.73,
                  convnet_d1=.29, convnet_d2=.45, convnet_w32=.1)


# The authors' procedure

# even where it fits already
def _resized(x): return F.interpolate(x, [-(-n // TILE) * TILE for n in x.shape[2:]], mode='bilinear')


def _tiles(x, batch):
    """The numbers in each tile, copied tile by tile: [tiles, B * C * TILE**2] of the batch, or [B, tiles, C * TILE**2]
    of its images."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // TILE, TILE, w // TILE, TILE)
    tiles = h * w // TILE**2
    if batch: return x.permute(2, 4, 0, 1, 3, 5).reshape(tiles, -1)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, tiles, -1)


def _moments(x, dim): return [x.mean(dim), x.var(dim, unbiased=False)]


class _AuthorsHook:
    "The hook of one layer: measures the layer's input, to collect statistics or for the loss."
    def __init__(self, owner, module):
        self.owner, self.module, self.conv = owner, module, isinstance(module, nn.Conv2d)
        self.forget()
        module.register_forward_hook(lambda module, inputs, output: getattr(self, owner.job)(inputs[0]))

    def forget(self):
        kinds = 4 if self.conv else 2
        self.total, self.average = [0.] * kinds, [0.] * kinds
        self.by_class = [[0.] * kinds for _ in range(self.owner.classes)]

    def of_batch(self, x, resized):
        out = [x.mean((0, 2, 3)), x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)]
        return out + _moments(_tiles(resized, True), 1) if self.conv else out

    def collect(self, x):
        stats = _moments(x.contiguous().view(*x.shape[:2], -1), 2)
        if self.conv:                           # batch norm has its running buffers
            resized = _resized(x)
            self.total = [t + s * (len(x) / self.owner.images) for t, s in zip(self.total, self.of_batch(x, resized))]
            stats += _moments(_tiles(resized, False), 2)
        for i in range(len(x)):                 # layer by layer, image by image
            c = self.owner.labels[i].item()
            self.by_class[c] = [total + s[i] for total, s in zip(self.by_class[c], stats)]

    def finish(self, counts):
        self.goal = self.total if self.conv else [self.module.running_mean, self.module.running_var]
        self.class_goal = [torch.stack([s / n for s, n in zip(kind, counts)]) for kind in zip(*self.by_class)]

    def match(self, x):
        self.loss = 0.
        for k, s in enumerate(self.of_batch(x, _resized(x) if self.conv else None)):
            self.average[k] = .8 * self.average[k] + .2 * s.detach()
            s = self.average[k] + s - s.detach()
            by_class = self.class_goal[k][self.owner.labels].mean(0)
            self.loss = self.loss + .5 * torch.norm(self.goal[k] - s) + .5 * torch.norm(by_class - s)


class _AuthorsObserver:
    "An observer with a hook on every convolution and batch norm, its statistics pass and its losses."
    def __init__(self, model, dataset):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.classes, self.images = dataset.num_classes, len(dataset.train)
        self.hooks = [_AuthorsHook(self, m) for m in self.model.modules() if isinstance(m, (nn.BatchNorm2d, nn.Conv2d))]

    @torch.no_grad()
    def statistics(self, batches):
        self.job, counts = 'collect', [0] * self.classes
        for h in self.hooks: h.forget()
        for x, self.labels in batches:
            self.model(x)
            for y in self.labels: counts[y.item()] += 1
        for h in self.hooks: h.finish(counts)

    def loss(self, x, labels):
        self.job, self.labels = 'match', labels
        ce = F.cross_entropy(self.model(x), labels)
        return ce + .01 * sum([(10. if h is self.hooks[0] else 1.) * h.loss for h in self.hooks])

    def vector(self, pick):
        "All means, then all variances, of all hooks, in the order of our taps."
        return torch.cat([torch.cat(pick(h)[i::2], -1) for i in (0, 1) for h in self.hooks], -1)


class _AuthorsSynthesis:
    "Their iteration: one crop and flip for the batch, losses from the hooks, Adam, pixels clamped before and after."
    def __init__(self, x, labels, dataset):
        self.x, self.labels, self.dataset = x.clone().requires_grad_(), labels, dataset
        self.opt = torch.optim.Adam([self.x], lr=.05, betas=(.5, .9), eps=1e-8)
        self.view = T.Compose([T.RandomResizedCrop(dataset.size, scale=(.5, 1.)), T.RandomHorizontalFlip()])

    def clamp(self):
        for c, (m, s) in enumerate(zip(self.dataset.mean, self.dataset.std)):
            self.x.data[:, c] = torch.clamp(self.x.data[:, c], -m / s, (1 - m) / s)

    def step(self, t, observer):
        for group in self.opt.param_groups: group['lr'] = .5 * (1 + math.cos(math.pi * t / 75)) * .05
        self.clamp()
        self.opt.zero_grad()
        observer.loss(self.view(self.x), self.labels).backward()
        self.opt.step()
        self.clamp()


class _AuthorsTraining:
    """Their student: views made image by image with PIL and torchvision, labelled by all observers in every step.

    `shipped` has the slip of their CIFAR-10 script, `with no_grad() and autocast`, which means autocast alone: the
    loss is propagated back through the observers too. The other scripts are free of it. (They also write a
    checkpoint each epoch.)"""
    def __init__(self, images, labels, teachers, dataset, student, device, shipped):
        self.teachers, self.device, self.shipped = teachers, device, shipped
        self.model = build_model(student, dataset.num_classes, dataset.size, seed=0).to(device)
        groups = [[p for p in self.model.parameters() if (p.dim() > 1) == big] for big in (True, False)]
        self.opt = torch.optim.AdamW([dict(params=ps, weight_decay=d) for ps, d in zip(groups, (.01, 0.))], lr=1e-3)
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.view = T.Compose([T.RandAugment(), T.ToTensor(), T.RandomResizedCrop(dataset.size, (.08, 1.)),
                               T.RandomHorizontalFlip(),
                               T.Normalize(dataset.mean, dataset.std)])
        self.files, self.labels = [io.BytesIO() for _ in images], labels.tolist()
        for f, im in zip(self.files, images): Image.fromarray(im.permute(1, 2, 0).cpu().numpy()).save(f, 'PNG')
        self.loader = torch.utils.data.DataLoader(self, 25, shuffle=True)

    def __len__(self): return len(self.files)

    def __getitem__(self, i): return self.view(Image.open(self.files[i]).convert('RGB')), self.labels[i]

    def label(self, x):
        amp = torch.autocast('cuda', torch.float16) if self.device.type == 'cuda' else contextlib.nullcontext()
        with amp if self.shipped else torch.no_grad(): return sum(m(x).float()
            for m in self.teachers) / len(self.teachers)

    def epoch(self):
        self.model.train()
        for x, y in self.loader:
            x, y = x.to(self.device), y.to(self.device)
            half, (a, b) = int(x.shape[-1] * math.sqrt(1 - np.random.beta(1.,
                1.))) // 2, np.random.randint(x.shape[-1], size=2)
            box = (..., slice(max(a - half, 0), a + half), slice(max(b - half, 0), b + half))
            x[box] = x[torch.randperm(len(x), device=x.device)][box]
            soft, z = self.label(x), self.model(x)
            loss = F.mse_loss(z, soft) + .025 * F.cross_entropy(z, y)
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            for e, p in zip(self.average, self.model.parameters()): e.mul_(.99).add_(p.data, alpha=.01)
            loss.item()


# Measuring

def tabulate(rows, key, *ratios):
    "CPU seconds of each contender, and ratios of CPU and of wall seconds, each named 'contender/contender'."
    def line(r):
        out = {f'{k}, s': v[0] for k, v in r.items()}
        for i, wall in enumerate(('', ' (wall)')):
            out |= {q + wall: r[a][i] / r[b][i] for q in ratios for a, b in [q.split('/')]}
        return out
    return pd.DataFrame({name: line(r) for name, r in rows.items()}).T.rename_axis(key)


def total(rows): return rows | {'all': {k: sum(r[k] for r in rows.values()) for k in next(iter(rows.values()))}}


class Bench:
    "The data, the observers, and the three jobs; each job returns its tables by name."
    def __init__(self, args):
        self.args, self.run, self.gaps = args, make_runtime(args.device, args.precision, progress=False), []
        root = os.environ.get('EDC_NB_DATA')
        if root and (images := Path(root) / 'cifar10').exists():
            data = open_dataset(EDC.replace({'data.per_class': 50, 'data.test_per_class': 1}).data, images,
                                progress=False)
        else:
            sets = [ImageSet(torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n) % 10)
                    for n in (500, 10)]
            data = Dataset('noise', *sets, [str(c) for c in range(10)], (.5,) * 3, (.3,) * 3)
        self.data = data.to(self.run.device)
        some = torch.randperm(500, generator=generator(0, 'some'))[:64 if args.quick else 128]
        self.some = replace(self.data, train=self.data.train.subset(some))
        self.models = {n: build_model(n, 10, 32, seed=0).to(self.run.device) for n in EDC.synthesize.observers}
        for m in self.models.values():
            recalibrate(m, [self.data.normalize(self.data.train.images[::2])])
            m.eval()

    def race(self, contenders, per=1):
        "{name: array (CPU seconds, wall seconds)}, the best of several turns; in a turn everyone runs once."
        best = {}
        for _ in range(self.args.repeats):
            for name, f in contenders.items():
                start = time.process_time(), time.perf_counter()
                f()
                if self.run.device.type == 'cuda': torch.cuda.synchronize()
                spent = np.array([time.process_time(), time.perf_counter()]) - start
                best[name] = np.minimum(spent, best.get(name, spent))
        return {name: spent / per for name, spent in best.items()}

    def agree(self, what, ours, theirs):
        "Both do the same job, up to a difference relative to the largest number."
        self.gaps.append(((ours - theirs).abs().max() / theirs.abs().max()).item())
        if not self.gaps[-1] < (1e-3 if self.run.precision == 'fp32' else 5e-2):
            raise SystemExit(f"{what}: ours and the authors' differ by {self.gaps[-1]:.1e}; "
                             "timing them would mean nothing")

    def images(self, ipc):
        index = sample_per_class(self.data.train.labels.cpu(), ipc, generator(0, 'images'))
        return self.data.train.batch(index), self.data.train.labels[index.to(self.run.device)]

    def views(self, name): return stream(self.some, train_views(EDC.squeeze), 64, generator(0, 'statistics', name),
                                         self.run)

    def collect(self, name): return collect_statistics(self.models[name], self.some, EDC.matching, EDC.squeeze,
        run=self.run, name=name)

    def prepare(self):
        "Statistics by both sides, which agree."
        self.theirs, self.stats = {n: _AuthorsObserver(m, self.some) for n, m in self.models.items()}, {}
        for n, theirs in self.theirs.items():
            theirs.statistics(self.views(n))
            s = self.stats[n] = self.collect(n)
            conv = theirs.vector(lambda h: [torch.full_like(g, h.conv) for g in h.goal]).bool()
            self.agree(f'{n}, class statistics', torch.cat([s.mean, s.within], 1),
                       theirs.vector(lambda h: h.class_goal))
            self.agree(f'{n}, global statistics', torch.cat([s.pooled()[0], s.batch_var])[conv],
                       theirs.vector(lambda h: h.goal)[conv])

    def statistics(self):
        "Seconds for 64 images, and whether the authors' side is as slow as in the fact sheet."
        rows = {}
        for n, model in self.models.items():
            forward = lambda: [model(x).shape for x, _ in self.views(n)]
            rows[n] = self.race({'forward': torch.inference_mode()(forward), 'with graph': forward,
                                 'ours': lambda: self.collect(n),
                                 'authors': lambda: self.theirs[n].statistics(self.views(n))},
                                len(self.some.train) / 64)
        return {'statistics, 64 images': tabulate(total(rows), 'observer', 'ours/forward', 'authors/ours'),
                "validity of the authors' side (hooks: their cost in plain forwards of ResNet-18)": validity(rows)}

    def synthesis(self):
        """Seconds of an iteration; 'ours, edc' is the paper's recipe: targets per class, and the flatness term, one
        more forward."""
        return {f'synthesis, one iteration, batch {10 * ipc}': self.iterations(ipc)
                for ipc in ((1,) if self.args.quick else (10, 1))}

    def iterations(self, ipc):
        images, labels = self.images(ipc)
        x, turns, rows = self.data.normalize(images), 1 if ipc > 1 else 5, {}
        leaf = x.clone().requires_grad_()
        for n, model in self.models.items():
            def contender(r):
                o = Observer(n, model, self.stats[n], 32, r.matching)
                o.matcher.start(labels)
                return o, ImageOptimizer(x, labels, self.data, r.synthesize, r.matching, self.run)
            (same, a), (edc, b), theirs, c = contender(SAME), contender(EDC), self.theirs[n], _AuthorsSynthesis(x,
                labels, self.data)
            for h in theirs.hooks: h.average = [0.] * len(h.average)
            losses = a.total(a.losses(same, leaf, lambda v: v, None)), theirs.loss(leaf, labels)
            self.agree(f'{n}, loss', *losses)
            self.agree(f'{n}, gradient', *(torch.autograd.grad(loss, leaf)[0] for loss in losses))
            steps = {'plain': lambda t: torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf),
                     'ours': lambda t: a.step(t, same, generator(0, t)),
                     'ours, edc': lambda t: b.step(t, edc, generator(0, t)), 'authors': lambda t: c.step(t, theirs)}
            rows[n] = self.race({k: lambda step=step: [step(t) for t in range(turns)] for k,
                                 step in steps.items()}, turns)
        table = tabulate(total(rows), 'observer', 'ours/plain', 'authors/ours', 'authors/ours, edc')
        if ipc == 10: table['authors, s, fact sheet'] = [SHEET_STEP[n] for n in rows] + [sum(SHEET_STEP.values())]
        return table

    def evaluation(self):
        """Seconds of an epoch at IPC 10: our label pass and student, and the authors' loop; one student, and three
        that share the labels."""
        images, labels = self.images(10)
        s, name, store, epochs = EDC.evaluate, self.args.student, [], 2 if self.args.quick else 10
        views = ViewStream(images, labels, self.data, EDC.augment, 25, run=self.run)
        teachers = Teachers(list(self.models.values()), EDC.relabel, self.run)
        for m in self.models.values(): m.requires_grad_(True)          # as they come from training
        mended, shipped = (_AuthorsTraining(images, labels, teachers.models, self.data, name, self.run.device, b)
                           for b in (False, True))
        student = to_device(build_model(name, 10, 32, seed=0), self.run).train()
        opt, average = make_optimizer(_groups(student, s), s.optimizer, s.lr, s.momentum, s.weight_decay,
                                      self.run.device), Average(student, s)
        best = self.race({'label pass': lambda: store.append(make_labels(views, teachers, epochs)),
                          'student': lambda: _student_epoch(student, opt, average, LOSSES[s.loss],
                              student_batches(views, Labels(views, store[-1]), 0), s, self.run),
                          'authors, mended': mended.epoch, 'authors, as shipped': shipped.epoch})
        best['label pass'] /= epochs
        self.agree('soft labels', store[-1].epoch(0, self.run.device),
                   mended.label(torch.cat([v for _, v, _, _ in views.chunks(0)])))
        rows = {f'{n} student(s)': {'ours': best['label pass'] + n * best['student'],
                                    **{k: n * best[k] for k in best if k.startswith('authors')}} for n in (1, 3)}
        return {f'evaluation, one epoch, its parts ({name})': pd.DataFrame(best,
            index=['CPU s', 'wall s']).T.rename_axis('part'),
                'evaluation, one epoch': tabulate(rows, 'for', 'authors, mended/ours', 'authors, as shipped/ours')}


def validity(rows):
    """Is the authors' side as slow as the authors' code? Expected: 3-4 plain forwards of ResNet-18 and 10 of
    ShuffleNet, within 15 %.

    The fact sheet's ShuffleNet forward of .095 s kept autograd's graph (so it is with torch 2.13); without, it
    takes half as long, and the ratio is twice as large. So the hooks' own cost is compared too, in plain forwards
    of ResNet-18, within a third."""
    out, (unit, _), verdict = {}, SHEET_FORWARD['resnet18'], {True: 'PASS', False: 'FAIL'}
    for n, (low, high) in dict(resnet18=(3, 4), shufflenet_v2=(10, 10)).items():
        r, (forward, hooked) = {k: v[0] for k, v in rows[n].items()}, SHEET_FORWARD[n]
        ratio, hooks, sheet = r['authors'] / r['forward'], (
            r['authors'] - r['forward']) / rows['resnet18']['forward'][0], (hooked - forward) / unit
        out[n] = {'authors/forward': ratio, 'authors/with graph': r['authors'] / r['with graph'],
                  'fact sheet': hooked / forward,
                  'ratio': verdict[bool(.85 * low < ratio < 1.15 * high)], 'hooks': hooks,
                  'hooks, fact sheet': sheet, 'cost': verdict[bool(.75 < hooks / sheet < 1.33)]}
    return pd.DataFrame(out).T.rename_axis('observer')


def expectations(tables):
    "What issue 2 expects on the CPU, and what came out."
    rows = []
    def expect(what, goal, table, row, column):
        cpu, wall = (tables[table].loc[row, column + w] for w in ('', ' (wall)'))
        rows.append({'what': what, 'expected': f"{'<=' if column == 'ours/forward' else '>='} {goal}", 'CPU': cpu,
                     'wall': wall,
                     'met': 'yes' if (cpu <= goal if column == 'ours/forward' else cpu >= goal) else 'NO'})
    for name in tables:
        if name.startswith('statistics'):
            expect('statistics: ours / plain forward', 1.4, name, 'all', 'ours/forward')
            expect('statistics: authors / ours', 4., name, 'all', 'authors/ours')
        if name.startswith('synthesis'): expect(f'{name}: authors / ours', 1.8, name, 'all', 'authors/ours')
        if name == 'evaluation, one epoch':
            for n, goal in ((1, 1.6), (3, 2.)):
                for k in ('as shipped', 'mended'): expect(f'labels and {n} student(s): authors {k} / ours', goal,
                    name, f'{n} student(s)', f'authors, {k}/ours')
    return pd.DataFrame(rows).set_index('what')


def machine(run):
    "Where this was measured."
    info = Path('/proc/cpuinfo')
    names = [line.split(':')[1].strip() for line in info.read_text().splitlines()
             if line.startswith('model name')] if info.exists() else []
    return dict(cpu=names[0] if names else platform.processor(), cores=os.cpu_count(),
                threads=torch.get_num_threads(), load=round(os.getloadavg()[0], 1),
                device=torch.cuda.get_device_name() if run.device.type == 'cuda' else str(run.device),
                precision=run.precision,
                torch=torch.__version__, python=platform.python_version())


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument('--threads', type=int, default=1, help='CPU threads')
    p.add_argument('--repeats', type=int, default=3, help='turns, of which the best counts')
    p.add_argument('--quick', action='store_true', help='fewer images, two turns, batch 10 only, student wrn16_2')
    p.add_argument('--only', choices=('statistics', 'synthesis', 'evaluation'), help='one of the jobs')
    p.add_argument('--student', help='architecture of the student (resnet18, with --quick wrn16_2)')
    p.add_argument('--device', default='auto', help='auto, cpu or cuda')
    p.add_argument('--precision', default='fp32', help="of our side (fp32, bf16 or auto); the authors' is fp32")
    p.add_argument('--out', type=Path, help='JSON file for machine and tables')
    args = p.parse_args()
    args.student = args.student or ('wrn16_2' if args.quick else 'resnet18')
    if args.quick: args.repeats = min(args.repeats, 2)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    bench, tables, start = Bench(args), {}, time.perf_counter()
    about = machine(bench.run) | dict(data=bench.data.name)
    print(', '.join(f'{k}: {v}' for k, v in about.items()), flush=True)
    if args.only != 'evaluation': bench.prepare()
    for job in ('statistics', 'synthesis', 'evaluation'):
        if args.only in (None, job):
            for name, table in getattr(bench, job)().items():
                tables[name] = table
                print(f"\n{name}\n{table.to_string(float_format='{:.3g}'.format)}", flush=True)
    name = 'expectations of issue 2 (CPU)'
    tables[name] = expectations(tables)
    print(f"\n{name}\n{tables[name].to_string(float_format='{:.2f}'.format)}")
    seconds, load = time.perf_counter() - start, os.getloadavg()[0]
    print(f"\nours and the authors' agree to {max(bench.gaps):.0e}; {seconds:.0f} s, load {load:.1f}")
    if args.out: args.out.write_text(json.dumps(dict(machine=about, agree=max(bench.gaps),
        **{k: t.reset_index().to_dict('records') for k, t in tables.items()}), indent=1))


if __name__ == '__main__':
    main()
