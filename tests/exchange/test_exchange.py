"""Export and import of condensed sets: round trips that change nothing, foreign folders, wrong inputs, half exports."""
import io
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from edc_nb.core.files import load_tensors, read_json, save_tensors
from edc_nb.core.settings import DataSettings, EdcError
from edc_nb.data.images import Dataset, ImageSet
from edc_nb.data.known import NORMALIZATIONS
from edc_nb.data.open import open_dataset
from edc_nb.exchange import layouts
from edc_nb.exchange.package import LAYOUTS, Package, match_classes, register_layout
from edc_nb.exchange.transfer import export_condensed, import_condensed, stored_seeds
from edc_nb.recipes.registry import recipe
from edc_nb.run.folder import condense, load_condensed
from edc_nb.run.report import evaluate
from kit import edc_environment
from kit import said as refused

TWO = ['convnet_w32', 'convnet_d1']
TINY = {'squeeze.epochs': 1, 'synthesize.observers': TWO, 'relabel.observers': TWO, 'initialize.observer': TWO[0],
        'synthesize.iterations': 4, 'synthesize.snapshots': [0], 'evaluate.student': 'convnet_w32',
        'evaluate.epochs': 6, 'evaluate.ema_rate': .9, 'evaluate.checks': 2, 'evaluate.batch_size': 10}
LOOSE = [k for k in LAYOUTS if k not in ('huggingface', 'rethinkdc')]      # without labels, and for any data


def tiny(**more):
    return recipe('edc', 'digits', ipc=2).replace(TINY | more)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "(condensed set, its report for seeds 0 and 1, folder with an export in every layout that digits can have)."
    root = tmp_path_factory.mktemp('exchange')
    c = condense(tiny(), out=root / 'run', seed=3, progress=False)
    report = evaluate(c, seeds=2)
    for k in ('huggingface', *LOOSE):
        export_condensed(c, root / k, k, method='EDC')
    return c, report, root


def stages(out):
    return {p.name for p in (out / 'store').iterdir() if p.name != 'partial' and any(p.iterdir())}


def python(code, returncode=0):
    "What this program prints."
    program = [sys.executable, '-c', code]
    done = subprocess.run(program, env=edc_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == returncode, done.stderr
    return done.stdout


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def save_folder(root, images, labels, names, suffix='png'):
    "An image folder as others release it."
    for k, (im, y) in enumerate(zip(images, labels.tolist())):
        (root / names[y]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(im.permute(1, 2, 0).numpy()).save(root / names[y] / f'class{y:03d}_id{k:03d}.{suffix}')
    return root


# ---- round trips

def test_huggingface_round_trip_trains_the_same_students_and_no_observer(run, tmp_path):
    c, report, root = run
    assert stored_seeds(c) == [0, 1] and read_json(root / 'huggingface' / 'export.json')['labels'] == [0, 1]
    back = import_condensed(root / 'huggingface', out=tmp_path / 'back', progress=False)
    assert back.images.equal(c.images) and back.labels.equal(c.labels)
    again = evaluate(back, seeds=2)
    assert stages(tmp_path / 'back') == {'synthesize', 'relabel', 'evaluate'}      # neither observer nor statistics
    assert again.last == report.last and [r['curve'] for r in again.records] == [r['curve'] for r in report.records]
    for seed in (0, 1):
        a, b = (load_tensors(x.chain.student(seed)[1] / 'student.safetensors')[0] for x in (c, back))
        assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    assert again.records[0]['observers'] == {} and again.records[0]['images_hash'] == report.records[0]['images_hash']


def test_in_a_process_with_other_threads_too(run, tmp_path):
    c, report, root = run
    code = ("import sys, torch; torch.set_num_threads(2)\n"
            "from edc_nb import evaluate, import_condensed\n"
            f"back = import_condensed({str(root / 'huggingface')!r}, out={str(tmp_path / 'b')!r}, progress=False)\n"
            "print(evaluate(back).last[0])")
    assert float(python(code)) == report.last[0]


def test_the_public_functions_know_the_layouts_by_themselves(run, tmp_path):
    "In a process that imports nothing else."
    c, _, _ = run
    code = ("from edc_nb import export_condensed, load_condensed\n"
            f"c = load_condensed({str(c.out)!r}, progress=False)\n"
            f"print(export_condensed(c, {str(tmp_path / 'set')!r}, 'ddranking'))")
    assert python(code).strip() == str(tmp_path / 'set') and (tmp_path / 'set' / 'images.pt').is_file()


def test_folder_round_trip_is_relabeled_by_the_same_observers(run, tmp_path):
    c, report, root = run
    back = import_condensed(root / 'folder', out=tmp_path / 'back', progress=False)
    again = evaluate(back)
    assert {'observer', 'relabel'} <= stages(tmp_path / 'back') and 'initialize' not in stages(tmp_path / 'back')
    assert again.last[0] == report.last[0] and again.records[0]['observers'] == report.records[0]['observers']
    a, b = (load_tensors(x.chain.student(0)[1] / 'student.safetensors')[0] for x in (c, back))
    assert all(a[k].equal(b[k]) for k in a)


@pytest.mark.parametrize('layout', LOOSE)
def test_other_layouts_give_the_images_back(run, tmp_path, layout):
    c, _, root = run
    back = import_condensed(root / layout, out=tmp_path / 'back', progress=False)
    assert (back.images.int() - c.images.int()).abs().max() <= 1 and back.labels.equal(c.labels)
    assert back.recipe.ipc == 2 and back.recipe.name == 'edc (imported)'
    assert read_json(tmp_path / 'back' / 'import.json')['export']['layout'] == layout


def test_a_round_trip_of_a_round_trip(run, tmp_path):
    c, report, root = run
    back = import_condensed(root / 'huggingface', out=tmp_path / 'back', progress=False)
    export_condensed(back, tmp_path / 'again', 'huggingface')
    twice = import_condensed(tmp_path / 'again', out=tmp_path / 'twice', progress=False)
    assert twice.images.equal(c.images) and evaluate(twice).last[0] == report.last[0]
    assert twice.recipe.name == 'edc (imported)' and 'made elsewhere' in (tmp_path / 'again' / 'README.md').read_text()


def test_an_import_can_be_repeated_and_reopened(run, tmp_path):
    _, report, root = run
    out = tmp_path / 'back'
    evaluate(import_condensed(root / 'huggingface', out=out, progress=False))
    before = {p: p.stat().st_mtime_ns for p in (out / 'store').rglob('*') if p.is_file()}
    import_condensed(root / 'huggingface', out=out, progress=False)
    assert evaluate(load_condensed(out, progress=False)).last[0] == report.last[0]
    assert before == {p: p.stat().st_mtime_ns for p in (out / 'store').rglob('*') if p.is_file()}
    refused(lambda: import_condensed(root / 'huggingface', out=out, labels=False, progress=False),
            'holds another run', 'given')


def test_reopened_without_naming_the_data_again(tmp_path):
    "A set of the user's own: where the real images are is recorded by the import."
    data = open_dataset(DataSettings('digits'))
    images, labels = data.train.images, data.train.labels
    real = save_folder(tmp_path / 'real', images[:200], labels[:200], [f'digit {k}' for k in range(10)])
    made = save_folder(tmp_path / 'made', images[200:260], labels[200:260], [f'{k:05d}' for k in range(10)])
    r = tiny(**{'data.name': 'mine', 'data.size': 8, 'relabel.labels': 'hard', 'evaluate.loss': 'ce'})
    c = import_condensed(made, r, real, tmp_path / 'out', progress=False)
    assert c.classes[0] == 'digit 0'
    assert load_condensed(tmp_path / 'out', progress=False).images.equal(c.images)
    assert stages(tmp_path / 'out') == {'synthesize'} and np.isfinite(evaluate(c).last).all()


# ---- what is written

def test_the_parquet_file_is_an_ordinary_dataset(run):
    c, _, root = run
    df = pd.read_parquet(root / 'huggingface' / 'data')
    assert list(df) == ['image', 'label'] and df.label.tolist() == c.labels.tolist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(x['bytes']))) for x in df.image])
    assert (pixels.transpose(0, 3, 1, 2) == c.images.numpy()).all() and len({x['path'] for x in df.image}) == len(df)
    # our own loader, by the files' metadata
    d = open_dataset(DataSettings('hub', size=8, test_share=.5), root / 'huggingface')
    assert d.classes == c.classes and sorted(torch.cat([d.train.labels, d.test.labels]).tolist()) == c.labels.tolist()
    block, meta = load_tensors(root / 'huggingface' / 'images.safetensors')
    assert block['images'].equal(c.images) and block['images'].dtype == torch.uint8 and meta['classes'] == c.classes


def test_large_sets_are_cut_into_shards(run, tmp_path):
    c, _, _ = run
    layouts._write_parquet(c.images, c.labels, c.classes, tmp_path / 'data', most=7 * 3 * 8 * 8)
    names = sorted(p.name for p in (tmp_path / 'data').iterdir())
    assert names == [f'train-0000{i}-of-00003.parquet' for i in range(3)]
    assert pd.concat(pd.read_parquet(tmp_path / 'data' / n) for n in names).label.tolist() == c.labels.tolist()


def test_the_card_has_what_the_ledger_has(run):
    c, report, root = run
    _, front, body = (root / 'huggingface' / 'README.md').read_text(encoding='utf-8').split('---\n', 2)
    front = yaml.safe_load(front)
    assert front['license'] == 'other' and front['size_categories'] == ['n<1K']
    assert front['task_categories'] == ['image-classification']
    last, env = 100 * np.array(report.last), report.records[0]['environment']
    sizes = 'seed 0: 2,400 bytes, seed 1: 2,400 bytes'      # 6 epochs, 20 images, 10 classes, fp16
    machine = env['device_name'], env['date'][:10], env['torch']
    for words in (f'{last.mean():.2f} ± {last.std(ddof=1):.2f}', c.recipe.hash, 'seed 3', *machine, sizes,
                  '0.30528', 'cutmix', *TWO):
        assert words in body, words


def test_the_code_on_the_card_runs(run, tmp_path, monkeypatch):
    "With the names of the folders that a reader would put in."
    _, report, root = run
    code = (root / 'huggingface' / 'README.md').read_text(encoding='utf-8').split('```python\n')[1].split('\n\n')[0]
    code = code.replace("'this folder'", repr(str(root / 'huggingface'))).replace(
        "data='the real images, unless they can be downloaded'", 'progress=False')
    monkeypatch.chdir(tmp_path)
    assert float(python(code.replace('\nevaluate(c)', '\nprint(evaluate(c).last[0])'))) == report.last[0]


def test_torch_and_torchvision_read_what_the_toolkits_read(run):
    c, _, root = run
    x = torch.load(root / 'ddranking' / 'images.pt', weights_only=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225)))
    torch.testing.assert_close(x, (c.images / 255 - mean) / std)
    assert c.labels.tolist() == sorted(c.labels.tolist())      # class-major, as DD-Ranking takes for granted
    for folder in ('ddranking/images', 'folder'):
        f = torchvision.datasets.ImageFolder(root / folder)
        pixels = np.stack([np.asarray(im) for im, _ in f]).transpose(0, 3, 1, 2)
        assert [y for _, y in f] == c.labels.tolist() and (pixels == c.images.numpy()).all()
    assert (root / 'ddranking' / 'images' / '00009' / '00001.png').is_file()
    assert json.loads((root / 'folder' / 'classes.json').read_text()) == c.classes
    note = yaml.safe_load((root / 'ddranking' / 'ddranking.yaml').read_text())
    assert note == dict(dataset='digits', ipc=2, im_size=[8, 8])
    inner = root / 'dcbench' / 'distilled_results' / 'EDC' / 'digits' / 'IPC2'
    images, labels = (torch.load(inner / f, weights_only=True) for f in ('images_best.pt', 'labels_best.pt'))
    torch.testing.assert_close(images, c.chain.dataset.normalize(c.images))
    assert labels.equal(c.labels)


@pytest.mark.parametrize('name, stats', [
    ('cifar100', ((.4914, .4822, .4465), (.2023, .1994, .2010))),
    ('tiny_imagenet', ((.485, .456, .406), (.229, .224, .225)))])
def test_ddranking_has_its_own_normalisation(name, stats):
    assert layouts._ddranking_stats(name) == stats


def test_every_byte_survives_every_normalisation():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    both = layouts._cifar10, layouts._dcbench['cifar100'][1]
    for stats in (*both, NORMALIZATIONS['imagenet'], NORMALIZATIONS['digits']):
        assert layouts._to_levels(layouts._to_floats(levels, stats), stats, 'x', 16).equal(levels)


def test_labels_are_made_for_the_seeds_that_are_asked_for(run, tmp_path):
    _, _, root = run
    c = condense(tiny(), out=tmp_path / 'run', store=root / 'run' / 'store', seed=3, progress=False)
    export_condensed(c, tmp_path / 'e', 'huggingface', seeds=[2], licence='cc-by-4.0')
    assert sorted(p.name for p in (tmp_path / 'e').glob('labels-*')) == ['labels-seed2.safetensors']
    card = (tmp_path / 'e' / 'README.md').read_text()
    assert 'license: cc-by-4.0' in card and 'No student has been evaluated' in card
    online = condense(tiny(**{'relabel.mode': 'online'}), out=tmp_path / 'online', store=root / 'run' / 'store', seed=3,
                      progress=False)
    assert stored_seeds(online) == []
    refused(lambda: export_condensed(online, tmp_path / 'f', 'huggingface', seeds=[0]), 'online')
    refused(lambda: export_condensed(online, tmp_path / 'f', 'folder', seeds=[0]), 'folder', 'huggingface')


# ---- sets made elsewhere

@pytest.fixture(scope='module')
def digits():
    return open_dataset(DataSettings('digits'))


@pytest.mark.parametrize('names', [[form(k) for k in range(10)] for form in (
    'new{:03d}'.format, '{:05d}'.format, lambda k: f'n{14000000 + 7 * k}', str)])
def test_releases_by_index_or_synset(digits, tmp_path, names):
    images, labels = digits.train.images[:60], digits.train.labels[:60]
    save_folder(tmp_path / 'release' / 'syn' / 'ipc', images, labels, names)
    (tmp_path / 'release' / 'readme.txt').write_text('made by others')
    (tmp_path / 'release' / 'sheet.png').write_bytes(next((tmp_path / 'release').rglob('*.png')).read_bytes())
    c = import_condensed(tmp_path / 'release', tiny(), digits, tmp_path / 'out', progress=False)
    order = labels.argsort(stable=True)
    assert c.images.equal(images[order]) and c.labels.equal(labels[order])
    assert c.recipe.ipc == labels.bincount().max()      # unequal numbers per class
    assert c.recipe.name == 'release (imported)'


def test_class_names_win_over_their_order(tmp_path, digits):
    names = ['zebra', 'ant', 'fire truck', *(f'kind {k}' for k in range(7))]
    data = Dataset('mine', digits.train, digits.test, names, digits.mean, digits.std)
    images, labels = digits.train.images[:60], digits.train.labels[:60]
    for form in ('{n}', '{k:03d}_{n}'):
        folders = [form.format(n=n.replace(' ', '_'), k=9 - i) for i, n in enumerate(names)]
        root = save_folder(tmp_path / form[1:2] / 'x', images, labels, folders)
        c = import_condensed(root, tiny(), data, tmp_path / form[1:2] / 'out', progress=False)
        order = labels.argsort(stable=True)
        assert c.images.equal(images[order]) and c.labels.equal(labels[order])


def test_zip_and_jpeg_and_a_class_called_train(tmp_path, digits):
    names = ['train', *(f'thing{chr(97 + k)}' for k in range(9))]
    data = Dataset('mine', digits.train, digits.test, names, digits.mean, digits.std)
    images, labels = digits.train.images[:60], digits.train.labels[:60]
    save_folder(tmp_path / 'set', images, labels, names, 'jpg')
    shutil.make_archive(tmp_path / 'set', 'zip', tmp_path / 'set')
    a, b = (import_condensed(tmp_path / p, tiny(), data, tmp_path / f'out-{p}', progress=False)
            for p in ('set', 'set.zip'))
    assert a.images.equal(b.images) and a.labels.equal(labels.sort().values)
    assert (a.images.int() - images[labels.argsort(stable=True)].int()).abs().float().mean() < 12      # JPEG


def test_foreign_tensors_by_file(run, tmp_path):
    c, _, root = run
    of_dcbench = [next((root / 'dcbench').rglob(name)) for name in ('images_best.pt', 'IPC2')]
    for path in (root / 'ddranking' / 'images.pt', *of_dcbench):
        back = import_condensed(path, tiny(), out=tmp_path / path.stem / path.parent.name, progress=False)
        assert back.images.equal(c.images) and back.labels.equal(c.labels)


def test_matching_of_classes_against_the_definition():
    rng = np.random.default_rng()
    classes = [f'name {w}' for w in rng.permutation(200)]
    names = sorted(c.replace(' ', '_') for c in classes)
    assert [classes[i].replace(' ', '_') for i in match_classes(names, classes)] == names
    for width in (1, 5):
        names = sorted(f'{i:0{width}d}' for i in range(200))
        assert match_classes(names, classes) == [int(n) for n in names]


def test_numbers_that_may_be_two_classes_are_refused():
    "An image folder's classes are sorted as text, so that label 1 of twelve is the class called 10."
    classes = sorted(map(str, range(12)))
    assert match_classes([f'new{k:03d}' for k in range(12)], classes) == list(range(12))      # an index by its prefix
    assert match_classes([f'{k:05d}' for k in range(100, 112)], classes) == list(range(12))   # none of the classes
    refused(lambda: match_classes([f'{k:05d}' for k in range(12)], classes, 'set'), "'00002'", "class '2'", "'10'")
    assert match_classes([f'{k:05d}' for k in range(12)], [str(k) for k in range(12)]) == list(range(12))


# ---- the registry

def test_a_layouts_name_is_taken_once():
    built_in = LAYOUTS['rethinkdc']

    def mine(p, folder):
        (folder / 'mine').touch()
    refused(lambda: register_layout('rethinkdc', None, 'mine')(mine), "'rethinkdc'", 'replace=True')
    assert LAYOUTS['rethinkdc'] is built_in
    register_layout('rethinkdc', None, 'mine', replace=True)(mine)
    try:
        assert LAYOUTS['rethinkdc'] is mine and LAYOUTS.needs('rethinkdc').about == 'mine'
    finally:
        LAYOUTS.remove('rethinkdc')
    assert LAYOUTS['rethinkdc'] is built_in


def test_a_layout_without_a_reader_is_written_and_not_read(run, tmp_path):
    c, _, root = run

    def names(p, folder):
        (folder / 'names').write_text(' '.join(p.classes))
    register_layout('names', None, 'the classes')(names)
    try:
        assert (export_condensed(c, tmp_path / 'set', 'names') / 'names').read_text() == ' '.join(c.classes)
        refused(lambda: import_condensed(tmp_path / 'set', data=root, out=tmp_path / 'back'), 'names', 'written')
    finally:
        LAYOUTS.remove('names')


# ---- refused

def test_wrong_sets_are_named(tmp_path, digits, run):
    images, labels = digits.train.images[:60], digits.train.labels[:60]
    good = save_folder(tmp_path / 'good', images, labels, [f'{k:03d}' for k in range(10)])
    out = tmp_path / 'out'

    def changed(name, change):
        shutil.copytree(good, tmp_path / name)
        change(tmp_path / name)
        return lambda **kw: import_condensed(tmp_path / name, tiny(), digits, out, progress=False, **kw)
    refused(changed('fewer', lambda p: shutil.rmtree(p / '004')), '9 classes', '10')
    refused(changed('empty', lambda p: [f.unlink() for f in (p / '004').iterdir()]), "'004' holds no images")
    refused(changed('odd', lambda p: (p / '004').rename(p / 'giraffe')), "'giraffe'")
    refused(changed('two', lambda p: shutil.copytree(good, p / 'inner')), 'several places')
    refused(changed('none', lambda p: [shutil.rmtree(q) for q in p.iterdir()]), 'no condensed set')
    victim = sorted((good / '003').iterdir())[0].name
    refused(changed('cut', lambda p: (p / '003' / victim).write_bytes((p / '003' / victim).read_bytes()[:90])), victim)
    refused(changed('text', lambda p: (p / '003' / victim).write_text('hello')), victim, 'unreadable')
    refused(changed('larger', lambda p: Image.new('RGB', (16, 16)).save(p / '003' / victim)), victim, '16 x 16')
    refused(lambda: import_condensed(good, tiny(**{'data.size': 16}), out=out, progress=False),
            '8 x 8', '16 x 16', 'data.size=8')
    refused(lambda: import_condensed(good, out=out), 'recipe.yaml')
    refused(lambda: import_condensed(tmp_path / 'nowhere', tiny(), out=out), 'nowhere does not exist')
    refused(lambda: import_condensed(good, tiny(), out=out, layout='hub'), "'hub'", 'huggingface')
    refused(lambda: import_condensed(good, tiny(), out=out, device='cuda:77'), 'cuda:77')
    assert not out.exists()


def test_wrong_tensors_are_named(run, tmp_path):
    c, _, root = run
    out = tmp_path / 'out'

    def tensors(change, file='images_best.pt'):
        folder = shutil.copytree(root / 'dcbench', tmp_path / str(len(list(tmp_path.iterdir()))))
        path = next(folder.rglob(file))
        change(path)
        return lambda: import_condensed(folder, out=out, progress=False)

    def save(f): return lambda p: torch.save(f(torch.load(p, weights_only=True)), p)
    refused(tensors(lambda p: p.write_bytes(p.read_bytes()[:500])), 'images_best.pt', 'truncated')
    refused(tensors(save(lambda x: x[:, :1])), '[20, 1, 8, 8]')
    refused(tensors(save(lambda x: x[..., :4])), '4 x 8')
    refused(tensors(save(lambda x: x.where(torch.arange(20).view(-1, 1, 1, 1) != 7, torch.nan))), 'image 7', 'finite')
    refused(tensors(save(lambda y: y + 1), 'labels_best.pt'), 'label 10', '10 classes')
    refused(tensors(save(lambda y: y[:-1]), 'labels_best.pt'), 'labels [19]', '20 images')
    refused(tensors(save(lambda y: torch.nn.functional.one_hot(y).float()), 'labels_best.pt'), 'class index')
    refused(tensors(lambda p: p.unlink(), 'labels_best.pt'), 'does not exist')
    refused(tensors(save(lambda y: y.clamp(max=8)), 'labels_best.pt'), "class '9' has no images")


def test_no_pickle_is_run(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / 'owned'),)
    torch.save(Evil(), tmp_path / 'images.pt')
    refused(lambda: import_condensed(tmp_path / 'images.pt', tiny(), out=tmp_path / 'out'), 'images.pt')
    assert not (tmp_path / 'owned').exists()


def test_labels_that_do_not_belong_are_refused(run, tmp_path):
    c, _, root = run
    hub, out = root / 'huggingface', tmp_path / 'out'
    narrow = {'augment.crop_scale': [.9, 1]}
    for change, word in ((narrow, 'augment'), ({'evaluate.epochs': 9}, '6 epochs'),
                         ({'evaluate.batch_size': 5}, 'batch_size'), ({'relabel.observers': TWO[:1]}, TWO[1])):
        refused(lambda: import_condensed(hub, c.recipe.replace(change), out=out, progress=False), word, 'labels=False')
    alone = import_condensed(hub, c.recipe.replace(narrow), out=tmp_path / 'alone', labels=False, progress=False)
    assert alone.chain.imported['labels'] == {}
    changed = shutil.copytree(hub, tmp_path / 'changed')
    t, m = load_tensors(changed / 'images.safetensors')
    t['images'][5, 0, 0, 0] ^= 1
    save_tensors(changed / 'images.safetensors', t, **m)
    refused(lambda: import_condensed(changed, out=out, progress=False), 'other images')
    shutil.copy(hub / 'images.safetensors', changed / 'labels-seed0.safetensors')
    refused(lambda: import_condensed(changed, out=out, progress=False), 'no soft labels')
    for name in ('images.safetensors', 'labels-seed0.safetensors', 'export.json', 'recipe.yaml'):
        cut = shutil.copytree(hub, tmp_path / f'cut-{name}')
        (cut / name).write_bytes((hub / name).read_bytes()[:-40] if name != 'recipe.yaml' else b'name: [')
        refused(lambda: import_condensed(cut, out=out, progress=False))
    assert not out.exists()


def test_rethinkdc_is_imagenet1k_at_224_pixels(run, tmp_path):
    c, _, _ = run
    refused(lambda: export_condensed(c, tmp_path / 'x', 'rethinkdc'), 'ImageNet-1k at 224', 'digits', 'folder')
    assert not list(tmp_path.iterdir())
    classes = [f'n{10000000 + 3 * k} word' for k in range(1000)]      # one gray image a class: the layout alone counts
    images = torch.arange(1000).view(-1, 1, 1, 1).expand(-1, 3, 224, 224).remainder(256).to(torch.uint8)
    one = ImageSet(images[:1], torch.tensor([0]))
    data = Dataset('imagenet1k', one, one, classes, (.5,) * 3, (.5,) * 3)
    chain = SimpleNamespace(dataset=data)
    made = SimpleNamespace(images=images, labels=torch.arange(1000), classes=classes, chain=chain)
    layouts.write_rethinkdc(Package(made, {}, [], {}, 'edc', 'unknown'), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [c[:9] for c in classes]
    back, labels = layouts.read_folder(tmp_path, data, {})
    assert back.equal(images) and labels.tolist() == list(range(1000))


# ---- whole or not at all

def test_only_own_exports_are_replaced(run, tmp_path):
    c, _, root = run
    mine = tmp_path / 'mine'
    mine.mkdir()
    export_condensed(c, mine)                                   # an empty folder is free
    first = tree(mine)
    export_condensed(c, mine, 'dcbench')                        # its own export is not in the way
    assert not set(first) & (set(tree(mine)) - {'recipe.yaml', 'export.json'})
    (mine / 'distilled_results' / 'note.txt').write_text('keep')
    before = tree(mine)
    refused(lambda: export_condensed(c, mine), 'added or removed')
    (mine / '.git').mkdir()
    refused(lambda: export_condensed(c, mine), '.git')
    assert tree(mine) == before
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'thesis.tex').write_text('important')
    refused(lambda: export_condensed(c, other), 'no export of edc_nb')
    refused(lambda: export_condensed(c, other / 'thesis.tex'), 'not a folder')
    refused(lambda: export_condensed(c, other / 'thesis.tex' / 'x'), 'cannot write')
    refused(lambda: export_condensed(c, c.out), 'no export of edc_nb')
    assert tree(other) == {'thesis.tex': b'important'}


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), EdcError('half-way'), KeyboardInterrupt()])
def test_an_export_that_fails_half_way_leaves_what_was_there(run, tmp_path, error):
    c, _, _ = run
    export_condensed(c, tmp_path / 'set')
    before = tree(tmp_path)

    def half(p, folder):
        (folder / 'images').mkdir()
        (folder / 'images' / 'a.png').write_bytes(b'half')
        raise error
    register_layout('half', None, 'fails')(half)
    try:
        for place in ('set', 'new'):
            with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else EdcError):
                export_condensed(c, tmp_path / place, 'half')
    finally:
        LAYOUTS.remove('half')
    assert tree(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ['set']


def test_a_killed_export_leaves_nothing_under_the_name_and_is_swept_up(run, tmp_path):
    c, _, root = run
    code = ("import os\n"
            "from edc_nb.exchange.transfer import LAYOUTS, export_condensed\n"
            "from edc_nb.run.folder import load_condensed\n"
            f"c = load_condensed({str(c.out)!r}, progress=False)\n"
            "write = LAYOUTS['folder']\n"
            "def die(p, folder): write(p, folder); os.kill(os.getpid(), 9)\n"
            "LAYOUTS.register('folder', die, replace=True)\n"
            f"export_condensed(c, {str(tmp_path / 'set')!r})")
    python(code, returncode=-9)
    assert not (tmp_path / 'set').exists() and len(list(tmp_path.iterdir())) == 1
    export_condensed(c, tmp_path / 'set')
    assert [p.name for p in tmp_path.iterdir()] == ['set']
