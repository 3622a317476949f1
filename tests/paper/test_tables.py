"""Printed tables: each cell has a recipe or a reason, recipes are those of the captions, ledgers fill the tables."""
import json
import math
import os
import statistics
from pathlib import Path

import pytest
import torch

import edc_nb.paper.reproduce as module
from edc_nb.core.settings import flat
from edc_nb.paper.reproduce import compare, ledger_files, reproduce, rows, searched, table_text, tables_text
from edc_nb.paper.tables import paper, table_names
from edc_nb.recipes.scales import SCALES
from edc_nb.run.checks import check_recipe
from edc_nb.run.ledger import Ledger
from kit import count, small_changes, stages, without_warnings


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('table', table_names())
def test_each_row_has_a_recipe_or_a_reason(table, scale):
    found = rows(table, scale)
    assert len(found) == len(paper(table)) > 0
    for row in found:
        r, printed = row.recipe, row.printed
        assert bool(r) != bool(row.why), printed
        if r is None:
            continue
        check_recipe(r)
        dataset = dict(full=printed['dataset'], subset='cifar10', tiny='digits')[scale]
        assert (r.ipc, r.data.name) == (printed['ipc'], dataset)
        if scale == 'full':
            assert r.evaluate.student == printed['student']
    if scale == 'full':
        assert {r.printed['top1'] for r in found} == set(paper(table)['top1'])


def test_rows_of_a_table_that_differ_in_print_differ_in_recipe():
    """Two settings of one table, data set, IPC and student: two recipes.

    Table 3's right half prints settings that name the same thing twice."""
    for table in (f'table{i}' for i in (4, 5, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)):
        seen = {}
        for row in rows(table):
            if row.recipe:
                place = row.printed['dataset'], row.printed['ipc'], row.printed['student']
                seen.setdefault(place, []).append(row.recipe.hash)
        assert seen and all(len(set(v)) == len(v) for v in seen.values()), table


# ---- the paper

@pytest.fixture(scope='module')
def printed():
    "The paper's tables as they were copied from it: $EDC_NB_REFERENCE/paper_tables.json."
    folder = os.environ.get('EDC_NB_REFERENCE')
    if not folder:
        pytest.skip('needs the printed tables: set EDC_NB_REFERENCE to the folder that holds paper_tables.json')
    return json.loads((Path(folder) / 'paper_tables.json').read_text(encoding='utf-8'))


def test_printed_numbers_are_the_papers(printed):
    other = {'3-left': 'table3-left', '3-right': 'table3-right', '1-camera-ready': 'table1-corrected',
             '22-camera-ready': 'table22', '23-camera-ready': 'figure1', 'figure-4-slimming': 'figure4',
             'later work': 'later'}
    order = list(dict.fromkeys(str(r['table']) for r in printed))
    assert {other.get(t, f'table{t}') for t in order} <= set(table_names()) and len(order) >= 22
    for theirs in order:
        ours = other.get(theirs, f'table{theirs}')
        df, expected = paper(ours), [r for r in printed if str(r['table']) == theirs]
        for col in ('dataset', 'ipc', 'method', 'student', 'top1', 'std'):
            found = [None if isinstance(v, float) and math.isnan(v) else v for v in df[col]]
            assert found == [r[col] for r in expected], (ours, col)


IN4 = ('resnet18', 'mobilenet_v2', 'efficientnet_b0', 'shufflenet_v2')
GVBSM5 = ('resnet18', 'convnet_w128', 'mobilenet_v2', 'wrn16_2', 'shufflenet_v2')
# table -> [(what is printed, what the recipe must hold)]: written from the paper's captions, not from the library
ROWS = {
    'table3-left': [
        (dict(method='config_c', student='resnet101', zeta=1.),
         {'evaluate.zeta': 1., 'evaluate.schedule': 'smoothing', 'initialize.method': 'rded',
          'synthesize.iterations': 2000, 'synthesize.flatness': 'off', 'matching.alpha': 1.,
          'evaluate.student': 'resnet101'})],
    'table3-right': [
        (dict(method='rded', choices=[], student='resnet18'),
         {'evaluate.zeta': 1., 'evaluate.batch_size': 1024, 'synthesize.iterations': 0, 'initialize.method': 'rded'}),
        (dict(method='rded', choices=['small_batch', 'smoothing_lr'], student='resnet18'),
         {'evaluate.zeta': 2., 'evaluate.batch_size': 100, 'synthesize.iterations': 0}),
        (dict(method='gvbsm', choices=['real_init'], student='resnet50'),
         {'initialize.method': 'rded', 'evaluate.zeta': 1., 'evaluate.batch_size': 1024, 'synthesize.flatness': 'off'}),
        (dict(method='gvbsm', choices=['real_init', 'smoothing_lr', 'small_batch'], student='resnet18'),
         {'initialize.method': 'rded', 'evaluate.zeta': 2., 'evaluate.batch_size': 100, 'evaluate.ema_rate': 0.})],
    'table4': [
        (dict(loss='sam', student='resnet18'),
         {'synthesize.flatness': 'sam', 'synthesize.flatness_weight': .25, 'evaluate.zeta': 1.5, 'matching.alpha': 1.}),
        (dict(loss='fr_statistics', weight=.025, student='resnet18'),
         {'synthesize.flatness': 'statistics', 'synthesize.flatness_weight': .025, 'synthesize.flatness_decay': .999,
          'synthesize.flatness_temperature': 4.}),
        (dict(loss='fr_logits', tau=1, student='densenet121'),
         {'synthesize.flatness': 'logits', 'synthesize.flatness_temperature': 1., 'synthesize.flatness_decay': .99,
          'evaluate.student': 'densenet121'}),
        (dict(loss=None, student='resnet18'), {'synthesize.flatness': 'off', 'evaluate.zeta': 1.5})],
    'table5': [
        (dict(printed_alpha=0., weak_augmentation=False, ema_evaluation=False, student='resnet18', zeta=2.),
         {'matching.alpha': 1., 'synthesize.crop_scale': (.08, 1.), 'evaluate.ema_rate': 0., 'evaluate.zeta': 2.,
          'evaluate.batch_size': 100}),
        (dict(weak_augmentation=True, ema_evaluation=True, student='resnet18'),
         {'synthesize.crop_scale': (.5, 1.), 'evaluate.ema_rate': .99})],
    'table11': [
        (dict(method='gvbsm, 5 backbones', student='resnet18'),
         {'relabel.observers': GVBSM5, 'synthesize.observers': GVBSM5, 'initialize.method': 'noise'}),
        (dict(method='gvbsm, 8 backbones', student='resnet18'),
         {'synthesize.observers': (*GVBSM5, 'convnet_d1', 'convnet_d2', 'convnet_w32'), 'initialize.method': 'noise'})],
    'table12': [
        (dict(student='resnet18', top1=39.),
         {'synthesize.observers': (*IN4, 'alexnet'), 'evaluate.zeta': 1.5, 'initialize.method': 'rded'}),
        (dict(student='resnet18', top1=37.4), {'synthesize.observers': (*IN4, 'wrn50_2', 'alexnet')})],
    'table13': [
        (dict(student='resnet18', top1=12.8),
         {'relabel.observers': ('resnet18', 'mobilenet_v2', 'shufflenet_v2', 'alexnet'), 'evaluate.zeta': 2., 'ipc': 1,
          'synthesize.observers': ('resnet18', 'mobilenet_v2', 'shufflenet_v2', 'efficientnet_b0', 'alexnet')})],
    'table14': [
        (dict(zeta=2.5),
         {'evaluate.zeta': 2.5, 'evaluate.student': 'mobilenet_v2', 'evaluate.schedule': 'smoothing',
          'synthesize.flatness': 'off'})],
    'table15': [
        (dict(gamma=.99775, student='resnet50'),
         {'evaluate.schedule': 'alrs', 'evaluate.alrs_gamma': .99775, 'evaluate.student': 'resnet50',
          'synthesize.crop_scale': (.08, 1.)})],
    'table16': [
        (dict(scheduler='ssrs', student='resnet18'), {'evaluate.schedule': 'ssrs', 'ipc': 40, 'evaluate.zeta': 2.})],
    'table17': [
        (dict(ema_rate=.9999), {'evaluate.ema_rate': .9999, 'synthesize.crop_scale': (.08, 1.), 'matching.alpha': .5})],
    'table18': [
        (dict(iterations=125),
         {'synthesize.iterations': 125, 'synthesize.observers': ('resnet18',), 'relabel.observers': ('resnet18',),
          'evaluate.loss': 'kl', 'evaluate.epochs': 300, 'evaluate.ema_rate': 0., 'matching.alpha': .5,
          'initialize.method': 'real'})],
    'table19': [
        (dict(synthesis_observers_pretrained=False, label_observers_pretrained=True, student='resnet18'),
         {'squeeze.start': 'scratch', 'squeeze.label_start': 'pretrained', 'evaluate.batch_size': 50,
          'evaluate.schedule': 'smoothing', 'evaluate.zeta': 2.}),
        (dict(synthesis_observers_pretrained=True, label_observers_pretrained=False, student='resnet18'),
         {'squeeze.start': 'pretrained', 'squeeze.label_start': 'scratch'})],
    'table20': [
        (dict(ema_rate=.999, batch_size=50, student='resnet18'),
         {'evaluate.ema_rate': .999, 'evaluate.batch_size': 50, 'evaluate.schedule': 'smoothing',
          'evaluate.epochs': 1000}),
        (dict(batch_size=10, student='resnet18'), {'evaluate.ema_rate': .99, 'evaluate.batch_size': 10})],
    'table21': [
        (dict(scheduler='multistep gamma=0.25 milestones=800,900,950', student='resnet18'),
         {'evaluate.schedule': 'multistep', 'evaluate.gamma': .25, 'evaluate.milestones': (.8, .9, .95),
          'evaluate.batch_size': 25}),
        (dict(scheduler='smoothing zeta=3', student='resnet18'),
         {'evaluate.schedule': 'smoothing', 'evaluate.zeta': 3.})],
}


def rows_with(table, wanted):
    "Rows in which all of this is printed."
    def matches(row):
        shown = row.printed | row.printed['setting']
        return all(shown.get(k, 'none') == v for k, v in wanted.items())
    return [r for r in rows(table) if matches(r)]


@pytest.mark.parametrize('table', ROWS)
def test_a_row_is_the_recipe_that_its_caption_describes(table):
    def unordered(k, v): return set(v) if k == 'synthesize.observers' else v
    for wanted, holds in ROWS[table]:
        assert rows_with(table, wanted), wanted
        for row in rows_with(table, wanted):
            values = flat(row.recipe)
            assert {k: unordered(k, values[k]) for k in holds} == {k: unordered(k, v) for k, v in holds.items()}, wanted


@pytest.mark.parametrize('table', ROWS)
def test_a_row_is_printed_in_the_paper(table, printed):
    for wanted, _ in ROWS[table]:
        ours = rows_with(table, wanted)[0].printed
        assert any(all(p[k] == ours[k] for k in ('top1', 'student', 'setting')) for p in printed), wanted


# ---- ours beside it

def record_of(r, seed, last, best, data_hash='d', chain_seed=0, date='2031-02-03T04:05:06+00:00', **more):
    "A ledger record as a GPU would have left it."
    return dict(recipe=r.name, recipe_hash=r.hash, settings=r.to_dict(), dataset=r.data.name, data_hash=data_hash,
                train_images=50000, test_images=10, ipc=r.ipc, student=r.evaluate.student,
                seed=seed, chain_seed=chain_seed, last=last, best=best, images_hash='i',
                environment=dict(device='cuda', device_name='a device', date=date)) | more


EMPTY = ('last', 'last sd', 'best', 'best sd', 'difference', 'seeds', 'used', 'our student', 'device', 'date')


def test_compare_shows_what_is_in_the_ledger_and_nothing_else(tmp_path):
    rs, rng = rows('table4'), torch.Generator().manual_seed(3)
    ledger, expected = Ledger(tmp_path / 'ledger.jsonl'), {}
    for i in (0, 5, 7):
        v = torch.rand(3 if i else 1, 2, generator=rng).tolist()
        for seed, (last, best) in enumerate(v):
            ledger.append(record_of(rs[i].recipe, seed, last, best))
        expected[i] = v
    ledger.append(record_of(rs[0].recipe.replace({'evaluate.zeta': 1.75}), 0, .9, .9))       # belongs to no row
    df = compare('table4', ledger=tmp_path / 'ledger.jsonl')
    assert len(df) == len(rs)
    for i, row in df.iterrows():
        assert row['paper'] == rs[i].printed['top1'] and row['student'] == rs[i].printed['student']
        if i not in expected:
            assert all(row[k] == '' for k in EMPTY), i
            continue
        last, best = ([100 * x[k] for x in expected[i]] for k in (0, 1))
        assert row['last'] == pytest.approx(statistics.fmean(last), abs=.006)
        assert row['best'] == pytest.approx(statistics.fmean(best), abs=.006)
        same = row['our student'] == row['student']
        assert row['difference'] == (pytest.approx(statistics.fmean(last) - row['paper'], abs=.011) if same else '')
        assert row['last sd'] == ('' if len(last) == 1 else pytest.approx(statistics.stdev(last), abs=.006))
        assert row['seeds'] == len(last) and row['used'].startswith('imagenet1k, 50,000')
        assert row['our student'] == rs[i].recipe.evaluate.student
        assert (row['device'], row['date']) == ('a device', '2031-02-03')
    assert (compare('table4', ledger=tmp_path / 'none.jsonl')['last'] == '').all()
    of_resnet50 = [r for r in rs if r.printed['student'] == 'resnet50']
    assert len(compare('table4', ledger=tmp_path, student='resnet50')) == len(of_resnet50)


def test_compare_does_not_mix_data(tmp_path):
    "The same recipe on two data sets (a part of the images, and all of them): the newest is shown, by itself."
    r, ledger = rows('table16')[0].recipe, Ledger(tmp_path / 'ledger.jsonl')
    for seed, last in ((0, .1), (1, .2), (2, .3)):
        ledger.append(record_of(r, seed, last, last, 'part', train_images=100))
    for seed, last in ((0, .6), (1, .8)):
        ledger.append(record_of(r, seed, last, last, 'whole', date='2031-02-04T00:00:00+00:00'))
    row = compare('table16', ledger=tmp_path / 'ledger.jsonl').iloc[0]
    assert (row['last'], row['seeds'], row['used']) == (pytest.approx(70.), 2, 'imagenet1k, 50,000 images')


def test_compare_counts_a_seed_once(tmp_path):
    "Ledgers that hold copies of the same record, and a record that was made anew."
    r = rows('table16')[0].recipe
    for f in 'ab':
        for seed in (0, 1):
            Ledger(tmp_path / f'{f}.jsonl').append(record_of(r, seed, .25 + .5 * seed, .9))
    row = compare('table16', ledger=tmp_path).iloc[0]
    assert (row['last'], row['seeds']) == (50., 2)


def one_record(tmp_path, table, which=0, **more):
    r = rows(table)[which].recipe
    Ledger(tmp_path / 'ledger.jsonl').append(record_of(r, 0, .5, .5, **more))
    return compare(table, ledger=tmp_path / 'ledger.jsonl').iloc[which]


@pytest.mark.parametrize('other', [{}, dict(dataset='digits'), dict(ipc=1), dict(student='convnet_d1')])
def test_a_difference_is_given_for_the_printed_experiment_alone(tmp_path, other):
    row = one_record(tmp_path, 'table16', **other)
    assert row['last'] == 50.
    assert row['difference'] == ('' if other else pytest.approx(50. - row['paper']))


def test_a_part_of_the_data_is_not_the_printed_experiment(tmp_path):
    r = rows('table19', 'subset')[1].recipe
    assert r.data.per_class
    Ledger(tmp_path / 'ledger.jsonl').append(record_of(r, 0, .5, .5, student=rows('table19')[1].printed['student']))
    row = compare('table19', 'subset', ledger=tmp_path / 'ledger.jsonl').iloc[1]
    assert row['last'] == 50. and row['difference'] == ''


@pytest.mark.parametrize('table', table_names())
def test_a_printed_table_fits_and_hides_what_is_empty(table, tmp_path):
    for scale in ('full', 'tiny'):
        df = compare(table, scale)
        text = table_text(df)
        assert max(map(len, text.splitlines())) <= 100, table
        title, where = text.splitlines()[:2]
        assert table in title and scale in title and 'searched' in where
        for k in ('last', 'best'):
            assert (f' {k}' in text.split('\n\n')[1]) == (df[k] != '').any()
        for value in df['paper']:
            assert f'{value:.2f}' in text
    assert max(map(len, tables_text().splitlines())) <= 100


def test_a_printed_table_counts_seeds_in_whole_numbers(tmp_path):
    for seed in range(3):     # one of the rows has records, the others none
        Ledger(tmp_path / 'ledger.jsonl').append(record_of(rows('table16')[0].recipe, seed, .5, .5))
    text = ' '.join(table_text(compare('table16', ledger=tmp_path / 'ledger.jsonl')).split())
    assert ' 3 seeds,' in text and '3.0 seeds' not in text


def test_it_is_said_where_records_were_searched(tmp_path, monkeypatch):
    "The checkout's results, or what is named: never results/ or runs/ of the working folder."
    for folder in ('results/records/tiny', 'runs'):
        (tmp_path / folder).mkdir(parents=True)
        Ledger(tmp_path / folder / 'ledger.jsonl').append(record_of(rows('table16')[0].recipe, 0, .5, .5))
    monkeypatch.chdir(tmp_path)
    assert 'results/records' in searched() and ledger_files()
    monkeypatch.setattr(module, 'results_folder', lambda: None)
    assert ledger_files() == [] and searched().startswith('No records were searched: this package is installed')
    # the text is wrapped
    assert (compare('table16')['last'] == '').all() and searched() in ' '.join(table_text(compare('table16')).split())
    assert 'runs (1 files)' in searched('runs') and 'none.jsonl (does not exist)' in searched(['runs', 'none.jsonl'])
    assert compare('table16', ledger='runs')['last'][0] == 50.


def test_a_table_is_reproduced_and_compared_by_the_command_line(here, tmp_path, monkeypatch):
    "At its tiny scale, one student; a second time nothing is run."
    monkeypatch.chdir(tmp_path)
    cell = ['table17', '--scale', 'tiny', '--student', 'resnet18']
    args = ['reproduce', *cell, '--seeds', 1, '--out', 'out', '--quiet']
    code, first, err = here(*args)
    assert (code, without_warnings(err)) == (0, '')
    records, store = Ledger(tmp_path / 'out' / 'ledger.jsonl').records(), tmp_path / 'out' / 'store'
    assert [r['recipe_hash'] for r in records] == [r.recipe.hash for r in rows('table17', 'tiny')]
    assert {(r['dataset'], r['ipc'], r['chain_seed'], r['seed']) for r in records} == {('digits', 10, 0, 0)}
    assert count(store)['synthesize'] == count(store)['relabel'] == 1      # averages alone differ
    was = stages(store)
    assert here(*args)[1] == first and stages(store) == was
    text = here('tables', *cell, '--ledger', 'out/ledger.jsonl')[1]
    assert max(map(len, text.splitlines())) <= 100 and 'out/ledger.jsonl' in text and 'table17' in text
    for r in records:
        assert f"{100 * r['last']:.2f}" in text
    assert 'digits' in text and len(first.splitlines()) == 5


def test_reproduce_with_other_settings_is_a_sweep_of_its_own(tmp_path):
    few = {k: v for k, v in small_changes().items() if not k.startswith(('initialize.', 'evaluate.student'))}
    table = reproduce('table14', 'tiny', out=tmp_path, seeds=1, changes=few, progress=False)
    records = Ledger(tmp_path / 'ledger.jsonl').records()
    zetas = sorted(r['settings']['evaluate']['zeta'] for r in records)
    assert zetas == list(table['evaluate.zeta']) == [1., 1.5, 2., 2.5, 3.] and count(tmp_path / 'store')['relabel'] == 1
    assert list(table['last']) == [pytest.approx(100 * r['last'], abs=.006) for r in records]
    asked_for = compare('table14', 'tiny', ledger=tmp_path / 'ledger.jsonl')
    assert (asked_for['last'] == '').all()        # other settings than the table's
