"""The paper's figures: what is drawn is what the file says, empty frames say what to run, sheets keep their images."""
import math
import random
import statistics

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

matplotlib.use('Agg')

import edc_nb.paper.figures as figures
from edc_nb.core.settings import EdcError
from edc_nb.diagnostics.initializations import initialization_study
from edc_nb.paper.figures import (
    FIGURES,
    GRIDS,
    Sheet,
    configurations,
    figure,
    figure_1,
    figure_2a,
    figure_2b,
    figure_2c,
    figure_3,
    figure_5,
    figure_6,
    figure_9,
    figure_initialization,
    grid_figure,
    sheet_of_methods,
    sheet_of_run,
    sheet_of_starts,
    toy_classes,
)
from edc_nb.paper.reproduce import rows
from edc_nb.paper.tables import paper
from edc_nb.run.ledger import Ledger, save_measurement

SEED = random.randrange(10**6)


@pytest.fixture
def gen():
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def bare(tmp_path, monkeypatch):
    "A checkout without results."
    monkeypatch.setattr(figures, '_results', lambda: tmp_path / 'results')


def texts(fig):
    "Every text in a figure."
    return ' '.join(' '.join(t.get_text().split()) for t in fig.findobj(matplotlib.text.Text))


@pytest.mark.parametrize('ending', ['.png', '.jpg'])
def test_sheets_keep_images_and_description(tmp_path, gen, ending):
    n, S = int(torch.randint(1, 6, (), generator=gen)), int(torch.randint(8, 40, (), generator=gen))
    coarse = torch.rand(3 * n, 3, 4, 4, generator=gen)
    smooth = torch.nn.functional.interpolate(coarse, (S, S), mode='bilinear').mul(255).byte()
    how = dict(dataset='x', classes=7, nested=dict(lr=.1))
    sheet = Sheet(dict(zip(('a', 'ζ = 2', 'c'), smooth.split(n))), [f'column {i}' for i in range(n)], how)
    back = Sheet.load(sheet.save(tmp_path / f'sheet{ending}', quality=95))
    assert list(back.rows) == list(sheet.rows) and back.columns == sheet.columns
    assert back.how['nested'] == dict(lr=.1) and 'torch' in back.how['environment']
    for k in sheet.rows:
        assert back.rows[k].shape == sheet.rows[k].shape and back.rows[k].dtype == torch.uint8
        error = (back.rows[k].int() - sheet.rows[k].int()).abs()
        assert error.max() == 0 if ending == '.png' else error.float().mean() < 6, (SEED, error.float().mean())
    with Image.open(tmp_path / f'sheet{ending}') as im:
        assert im.size == (n * S, 3 * S)       # an ordinary picture


def test_sheets_refuse(tmp_path):
    ok = Sheet({'x': torch.zeros(2, 3, 8, 8).byte()}, [])
    Image.new('RGB', (16, 8)).save(tmp_path / 'plain.png')
    (tmp_path / 'text.png').write_text('no picture')
    cut = ok.save(tmp_path / 'whole.png')
    (tmp_path / 'cut.png').write_bytes(cut.read_bytes()[:60])
    black = torch.zeros(2, 3, 8, 8)
    refusals = (
        ('not a sheet', lambda: Sheet.load(tmp_path / 'plain.png')),
        ('not a sheet', lambda: Sheet.load(tmp_path / 'text.png')),
        ('not a sheet', lambda: Sheet.load(tmp_path / 'cut.png')),
        ('does not exist', lambda: Sheet.load(tmp_path / 'none.png')),
        ("unknown ending of a sheet '.gif'", lambda: ok.save(tmp_path / 'x.gif')),
        ('expected uint8 rows of one shape', lambda: Sheet({'x': black}, []).save(tmp_path / 'x.png')),
        ('expected uint8 rows of one shape',
         lambda: Sheet({'x': black.byte(), 'y': black[:1].byte()}, []).save(tmp_path / 'x.png')),
        ('got 1 names for 2 columns', lambda: Sheet(ok.rows, ['one']).save(tmp_path / 'x.png')))
    for match, call in refusals:
        with pytest.raises(EdcError, match=match) as e:
            call()
        assert '\n' not in str(e.value)


def test_without_runs_frames_are_empty_and_say_the_command(bare, tmp_path):
    commands = {'2b': 'edc diagnose landscape', '2c': 'edc diagnose hessian', '3': 'sheet_of_starts',
                '5': 'sheet_of_methods', 'initialization': 'edc diagnose initialization'}
    commands |= {str(k): f'--dataset {name}' for k, (name, _, _) in GRIDS.items()}
    for name, command in commands.items():
        said = texts(figure(name))
        assert 'not run yet' in said and command in said, name
    for k, (_, classes, _) in GRIDS.items():
        said = texts(figure(str(k)))
        assert f'{classes} classes' in said and f'results/images/figure_{k}.jpg' in said     # where the figure looks
    for scale in ('full', 'subset', 'tiny'):
        said = texts(figure_1(scale))
        assert 'not run yet' in said and f'edc reproduce figure1 --scale {scale}' in said
    for name in ('1', '2a', '6'):
        assert 'not run yet' not in texts(figure(name))


def test_every_figure_is_a_figure_of_moderate_size(tmp_path):
    for name in FIGURES:
        fig = figure(name, tmp_path / f'{name}.png')
        assert isinstance(fig, matplotlib.figure.Figure)
        assert (tmp_path / f'{name}.png').stat().st_size <= 300_000, name
        for ax in fig.axes:        # axes have names, with units where there are numbers
            if ax.lines and len(ax.get_xticks()) and not ax.images:
                assert ax.get_xlabel() or ax.get_ylabel(), name
    figure('6', tmp_path / 'six.svg')
    assert '<svg' in (tmp_path / 'six.svg').read_text()
    with pytest.raises(EdcError, match="unknown figure '4'"):
        figure('4')
    with pytest.raises(EdcError, match='accepted endings'):
        figure('6', tmp_path / 'six.docx')
    assert not list(tmp_path.glob('.six*'))


def test_figure_1_is_the_papers_table():
    fig, printed = figure_1(), paper('figure1')
    heights = [p.get_height() for p in fig.axes[0].patches]
    assert heights == printed.top1.tolist() and "the paper's values (not ours)" in texts(fig)
    assert fig.axes[1].lines[0].get_ydata().tolist() == printed.synthesis_hours.tolist()
    assert '1000 classes' in texts(fig) and fig.axes[1].get_ylabel() == 'synthesis (hours)'


def test_figure_1_from_records(tmp_path):
    r = random.Random(SEED)
    which = {i: [r.uniform(.2, .6) for _ in range(3)] for i in (0, 2, 6)}
    recs = []
    for i, row in enumerate(rows('figure1', 'tiny')):
        about = dict(recipe=row.recipe.name, recipe_hash=row.recipe.hash, settings=row.recipe.to_dict(),
                     dataset='digits', classes=10, data_hash='d', chain_seed=0)
        seconds = dict(synthesize=10. * (i + 1), evaluate=3.)
        recs += [about | dict(seed=s, last=a, best=a, seconds=seconds) for s, a in enumerate(which.get(i, ()))]
    r.shuffle(recs)
    Ledger(tmp_path / 'l.jsonl').add(recs + recs[:2])
    df = configurations('tiny', tmp_path / 'l.jsonl')
    for i in range(7):
        if i not in which:
            assert math.isnan(df.accuracy[i])
            continue
        assert df.accuracy[i] == pytest.approx(100 * statistics.mean(which[i]))
        assert df.sd[i] == pytest.approx(100 * statistics.stdev(which[i]))
        assert df.students[i] == 3 and df.time[i] == 10 * (i + 1)
    fig = figure_1('tiny', tmp_path / 'l.jsonl')
    assert [p.get_height() for p in fig.axes[0].patches] == pytest.approx([df.accuracy[i] for i in which])
    assert texts(fig).count('not run') == 4 and '10 classes' in texts(fig) and 'digits' in texts(fig)
    with pytest.raises(EdcError, match="unknown scale 'large'"):
        figure_1('large')


def test_figure_2a_form_2_separates_the_classes():
    x, c = toy_classes(seed=SEED)
    fig = figure_2a(seed=SEED)
    ends = [ax for ax in fig.axes if ax.get_title() == 'iteration 300']
    assert len(fig.axes) == 8 and len(ends) == 2
    def off(ax):       # distance of each class's drawn points from the class's mean
        points = [p.get_offsets().data for p in ax.collections]
        return max(np.linalg.norm(points[2 * k + 1].mean(0) - x[c == k].mean(0).numpy()) for k in range(3))
    assert off(ends[1]) < .05 < 1 < off(ends[0])
    moving = figure_2a(iterations=20, animated=True)
    assert type(moving).__name__ == 'FuncAnimation'
    moving._draw_was_started = True      # not shown here, on purpose


def test_figure_6_is_eq_33():
    fig = figure_6()
    for ax, jump in zip(fig.axes, (False, True)):
        for line, zeta in zip(ax.lines, (1., 1.5, 2.)):
            e = np.arange(300)
            want = 5e-4 * (1 + np.cos(np.pi * e / (zeta * 300)))
            if jump:
                want = np.where(e <= 250, want, 5e-4 * (1 + np.cos(5 * np.pi / (6 * zeta))) * (1 - e / 300))
            np.testing.assert_allclose(line.get_ydata(), want, rtol=1e-9, atol=1e-15)
        assert ax.get_xlabel() == 'epoch'
    assert fig.axes[0].get_ylabel() == 'learning rate'


def test_grids_draw_the_sheets_images(tmp_path, gen):
    images = torch.randint(0, 256, (2, 3, 3, 12, 12), generator=gen).byte()
    how = dict(dataset='tiny_imagenet', classes=20, ipc=5)
    sheet = Sheet({'first': images[0], 'second': images[1]}, list('xyz'), how)
    fig = figure_9(sheet.save(tmp_path / 's.png'))
    drawn = fig.axes[0].images[0].get_array()
    for name, row, column in (('first', 0, 1), ('second', 13, 2)):
        cell = drawn[row:row + 12, 13 * column:13 * column + 12]
        assert (cell[..., :3] == sheet.rows[name][column].permute(1, 2, 0).numpy()).all()
        assert (cell[..., 3] == 255).all() and (drawn[row + 12, :, 3] == 0).all()      # the gap is transparent
    said = texts(fig)
    assert 'tiny_imagenet, 20 classes, 5 per class' in said and 'first' in said and 'z' in said
    split = grid_figure(sheet, 'two groups', split=1).axes[0].images[0].get_array()
    assert split.shape[0] > drawn.shape[0]


def measured(tmp_path, name, df, **how):
    return save_measurement(tmp_path / f'{name}.json', df, **how)


def test_figures_2b_2c_draw_their_tables(tmp_path):
    how = dict(dataset='cifar10', classes=10, train_images=3000, command='x')
    land = pd.DataFrame([
        dict(model='m', arm=a, zeta=1., ema=0., seed=s, on=on, distance=x, loss=k + s + x * x, accuracy=.5, sd=0.,
             last=.5)
        for k, a in enumerate(('ζ = 1, raw', 'ζ = 2, raw')) for s in (0, 1) for on in ('test', 'condensed')
        for x in (-.5, 0., .5)])
    fig = figure_2b(measured(tmp_path, 'land', land, **how))
    assert [l.get_ydata().tolist() for l in fig.axes[0].lines] == [[.75, .5, .75], [1.75, 1.5, 1.75]]
    assert '10 classes' in texts(fig) and '3,000 training images' in texts(fig)
    hess = pd.DataFrame([
        dict(arm=a, seed=s, batch=0, iteration=i, observer=o, norm=i + k + s, norm_se=0., trace=0., trace_se=0.,
             loss=0., gradient=0.)
        for k, a in enumerate(('off', 'logits')) for s in (0, 1) for i in (0, 40, 80) for o in ('wrn16_2', 'mean')])
    grad = pd.DataFrame([
        {'model': 'm', 'source': n, 'labels': l, 'init': i, 'batch size': b, 'cosine': .1 * b + .01 * i, 'low': 0.,
         'high': 1., 'length': 1.}
        for n in ('original', 'edc') for l in ('hard', 'soft') for i in (0, 1) for b in (1, 2, 4)])
    fig = figure_2c(measured(tmp_path, 'hess', hess, **how), measured(tmp_path, 'grad', grad, **how))
    assert fig.axes[0].lines[0].get_ydata().tolist() == [.5, 40.5, 80.5]
    np.testing.assert_allclose(np.asarray(fig.axes[1].lines[0].get_ydata(), float), [.105, .205, .405])
    assert '10 classes' in texts(fig)
    with pytest.raises(EdcError, match="unknown labels 'none'"):
        figure_2c(hess, grad, labels='none')
    (tmp_path / 'junk.json').write_text('{}')
    with pytest.raises(EdcError, match='not a table of measurements'):
        figure_2b(tmp_path / 'junk.json')


def test_sheets_from_runs(tmp_path):
    made = sheet_of_methods(tmp_path / 'm.png', out=tmp_path / 'runs', scale='tiny', methods=('rded', 'edc'), ipc=2,
                            classes=(7, 2), command='this test')
    assert list(made.rows) == ['rded', 'edc'] and made.columns == ['7', '2']
    assert made.how['methods']['edc']['start'] == 'real'
    assert 'digits, 10 classes' in texts(figure_5(tmp_path / 'm.png'))
    run = next((tmp_path / 'runs').glob('edc-*'))
    grid = sheet_of_run(run, tmp_path / 'g.png', per_class=2, classes=(2, 7))
    for k, name in enumerate(('7', '2')): assert grid.rows[name][0].equal(made.rows['edc'][k])      # the same images
    refusals = (
        ('classes: got 10', lambda: sheet_of_run(run, tmp_path / 'g.png', classes=(10,))),
        ('is not the folder of a run', lambda: sheet_of_run(tmp_path, tmp_path / 'g.png')),
        ("unknown recipe 'none'",
         lambda: sheet_of_methods(tmp_path / 'x.png', out=tmp_path, scale='tiny', methods=('none',))))
    for match, call in refusals:
        with pytest.raises(EdcError, match=match):
            call()
    kw = dict(store=tmp_path / 'runs' / 'store')
    ini = initialization_study('tiny', out=tmp_path / 'ini', starts=('noise', 'real'), iterations=(8, 4), ipc=2,
                               seeds=1, device='cpu', progress=False, **kw)
    kept = sorted(p.name for p in (tmp_path / 'ini').iterdir())
    starts = sheet_of_starts(tmp_path / 'ini', tmp_path / 's.png', scale='tiny', iterations=8, at=(1, 4, None), ipc=2,
                             classes=(0, 4), **kw)
    assert list(starts.rows) == [f'{m}, iteration {k}' for m in ('noise', 'real') for k in (1, 4, 8)]
    assert sorted(p.name for p in (tmp_path / 'ini').iterdir()) == kept      # nothing was computed again
    assert 'real, iteration 8' in texts(figure_3(tmp_path / 's.png'))
    with pytest.raises(EdcError, match='at: got 3, accepted: 0, 1, 4, 8'):
        sheet_of_starts(tmp_path / 'ini', tmp_path / 's.png', scale='tiny', iterations=8, at=(3,), ipc=2, **kw)
    fig = figure_initialization(measured(tmp_path, 'ini', ini, dataset='digits', classes=10))
    assert len(fig.axes) == ini.observer.nunique() and 'digits, 10 classes' in texts(fig)
    one = ini[(ini.iterations == 8) & (ini.observer == fig.axes[0].get_title()) & (ini.start == 'real')]
    np.testing.assert_allclose(fig.axes[0].lines[1].get_ydata(), one.matching)
