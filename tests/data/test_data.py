"""Data: real sets, the official archives in miniature, streaming, and everything that can be wrong with the input."""
import hashlib
import io
import json
import pickle
import random
import shutil
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from edc_nb.core.settings import DataSettings, EdcError
from edc_nb.data import open as D
from edc_nb.data import readers
from edc_nb.data.images import Dataset, ImageSet, StreamSet, sample_per_class
from edc_nb.data.open import find_data, open_dataset
from edc_nb.data.sources import decode_image

TEN = 'n02869837 n01749939 n02488291 n02107142 n13037406 n02091831 n04517823 n04589890 n03062245 n01773797'.split()


def blob(im, fmt='png', **kw):
    b = io.BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


def noise(rng, w=20, h=20):
    return Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))


def folder(root, counts, seed=0, **kw):
    "root/CLASS/i.png"
    rng = np.random.default_rng(seed)
    for name, n in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (root / name / f'{i}.png').write_bytes(blob(noise(rng, **kw)))
    return root


def parquet(path, blobs, labels, names=None, image='image', label='label', group=7):
    struct_type = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    t = pa.table({image: pa.array([b if isinstance(b, dict) else dict(bytes=b, path=None) for b in blobs],
                                  struct_type), label: labels})
    if names:
        meta = dict(info=dict(features={image: dict(_type='Image'),
                                        label: dict(names=list(names), _type='ClassLabel')}))
        t = t.replace_schema_metadata({'huggingface': json.dumps(meta)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(t, path, row_group_size=group)
    return path


def load(data, name='mine', seed=0, memory_limit=8 * 2**30, **kw):
    return open_dataset(DataSettings(name=name, **kw), data, seed, memory_limit=memory_limit)


def complaint(data, *words, name='mine', **kw):
    "The one sentence with which these data are refused; it must hold all the words."
    with pytest.raises(EdcError) as e:
        load(data, name, **kw)
    text = str(e.value)
    assert '\n' not in text and len(text) < 400, text
    for w in words:
        assert str(w) in text, (w, text)
    return text


# ---- real data

@pytest.fixture(scope='module')
def cifar(data_root):
    path = data_root('cifar10')
    start = time.time()
    d = open_dataset(DataSettings(name='cifar10'), path)
    print(f'CIFAR-10 read in {time.time() - start:.1f} s')
    return d, path


def test_cifar10(cifar):
    d, path = cifar
    assert (len(d.train), len(d.test), d.size, d.num_classes) == (50000, 10000, 32, 10)
    assert d.train.labels.bincount().tolist() == [5000] * 10 and d.test.labels.bincount().tolist() == [1000] * 10
    assert d.classes[0] == 'airplane' and d.classes[9] == 'truck'
    mean, std = D.channel_statistics(d.train)
    np.testing.assert_allclose(mean, d.mean, atol=1e-4)
    np.testing.assert_allclose(std, d.std, atol=1e-4)
    for split, part in (('train', d.train), ('test', d.test)):
        at = 0
        for f in sorted(path.glob(f'{split}-*.parquet')):
            t = pq.read_table(f)
            for i in random.Random(0).sample(range(len(t)), 5):
                im = Image.open(io.BytesIO(t['img'][i]['bytes'].as_py()))
                assert np.array_equal(part.images[at + i].permute(1, 2, 0).numpy(), np.asarray(im.convert('RGB')))
                assert part.labels[at + i] == t['label'][i].as_py()
            at += len(t)
        assert at == len(part)
    idx = sample_per_class(d.train.labels, 50, torch.Generator().manual_seed(0))
    assert d.train.labels[idx].view(10, 50).eq(torch.arange(10)[:, None]).all() and len(idx.unique()) == 500
    assert sum(map(len, d.by_class)) == 50000 and all((d.train.labels[i] == c).all() for c, i in enumerate(d.by_class))


def test_cifar10_settings(cifar):
    d, path = cifar
    v = load(path, 'cifar10', validation=500, per_class=20)
    assert (len(v.train), len(v.test)) == (200, 500) and v.test.labels.bincount().tolist() == [50] * 10
    every = {bytes(i.numpy()) for i in d.train.images.flatten(1)}
    assert all(bytes(i.numpy()) in every for i in v.test.images.flatten(1))             # from the training set
    w = load(path, 'cifar10', seed=3, validation=500, per_class=20)
    assert torch.equal(v.test.images, w.test.images) and v.hash != w.hash               # fixed split, caps by seed
    c = load(path, 'cifar10', classes=(9, 0), per_class=3, test_per_class=2, size=16, normalisation='cifar100')
    assert (c.classes, len(c.train), len(c.test), c.size) == (['truck', 'airplane'], 6, 4, 16)
    assert c.mean == (0.5071, 0.4867, 0.4408)


def test_tiny_imagenet_20(data_root):
    path = data_root('tiny_imagenet_20')
    d = load(path, 'tiny_imagenet')
    assert (len(d.train), len(d.test), d.size, d.num_classes) == (10000, 1000, 64, 20)
    assert d.mean == (0.485, 0.456, 0.406) and 'valid' in d.info['split']
    assert any('20 classes' in n for n in d.info['notes'])
    t = pq.read_table(next(path.glob('valid-*')))
    for i in (0, 500, 999):
        assert np.array_equal(d.test.images[i].permute(1, 2, 0).numpy(),
                              np.asarray(Image.open(io.BytesIO(t['image'][i]['bytes'].as_py())).convert('RGB')))
    s = load(path, 'tiny_imagenet', memory_limit=20_000_000)                            # train is streamed, test is not
    assert isinstance(s.train, StreamSet) and isinstance(s.test, ImageSet)
    order = torch.randperm(10000, generator=torch.Generator().manual_seed(0))[:300]
    for (i, x, y), (j, u, v) in zip(d.train.batches(64, order), s.train.batches(64, order), strict=True):
        assert torch.equal(i, j) and torch.equal(x, u) and torch.equal(y, v)
    assert s.hash == d.hash


def test_imagenet_one_per_class(data_root):
    path = data_root('imagenet1k_one_per_class')
    d = load(path, 'imagenet1k', size=64, classes=tuple(range(0, 1000, 100)))
    assert (len(d.train), len(d.test), d.size, d.num_classes) == (10, 10, 64, 10)
    # nothing can be held out, and it says so
    assert torch.equal(d.train.images, d.test.images) and d.info['split'].startswith('none')
    ten = load(path, 'imagenet10')
    assert [c[:9] for c in ten.classes] == TEN and ten.size == 224 and len(ten.train) == 10
    t = pq.read_table(next(path.glob('*.parquet')))
    encoded = t['image'][t['label'].to_pylist().index(452)]['bytes'].as_py()            # a bonnet, the first of the ten
    want = T.Compose([T.Resize(256), T.CenterCrop(224)])(Image.open(io.BytesIO(encoded)).convert('RGB'))
    assert np.array_equal(ten.train.images[ten.train.labels == 0][0].permute(1, 2, 0).numpy(), np.asarray(want))
    names = json.loads(pq.read_schema(
        next(path.glob('*.parquet'))).metadata[b'huggingface'])['info']['features']['label']['names']
    # the places used for copies named in words
    assert [names[i][:9] for i in readers.IMAGENET10.values()] == TEN == list(readers.IMAGENET10)


# ---- archives in miniature

def tiny_zip(path, method=zipfile.ZIP_DEFLATED):
    "Tiny-ImageNet's zip with three classes."
    rng = np.random.default_rng(0)
    images = {}
    with zipfile.ZipFile(path, 'w', method) as z:
        z.writestr('tiny-imagenet-200/wnids.txt', '')
        z.writestr('tiny-imagenet-200/words.txt', '')
        lines = []
        for c, syn in enumerate(['n01', 'n02', 'n03']):
            z.writestr(f'tiny-imagenet-200/train/{syn}/{syn}_boxes.txt', 'x')
            for i in range(4):
                images[syn, i] = blob(noise(rng, 64, 64))
                z.writestr(f'tiny-imagenet-200/train/{syn}/images/{syn}_{i}.JPEG', images[syn, i])
        for i, syn in enumerate(['n03', 'n01', 'n02', 'n03', 'n01', 'n02']):
            images['val', i] = blob(noise(rng, 64, 64))
            z.writestr(f'tiny-imagenet-200/val/images/val_{i}.JPEG', images['val', i])
            lines.append(f'val_{i}.JPEG\t{syn}\t0\t0\t62\t57')
        z.writestr('tiny-imagenet-200/val/val_annotations.txt', '\n'.join(lines) + '\n')
        z.writestr('tiny-imagenet-200/test/images/test_0.JPEG', blob(noise(rng, 64, 64)))
    return images


@pytest.mark.parametrize('method', [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_tiny_imagenet_download(tmp_path, monkeypatch, method):
    zip_path, cache = tmp_path / 'web' / 'tiny-imagenet-200.zip', tmp_path / 'cache'
    zip_path.parent.mkdir()
    images = tiny_zip(zip_path, method)
    monkeypatch.setenv('EDC_NB_CACHE', str(cache))
    md5 = hashlib.md5(zip_path.read_bytes()).hexdigest()
    known = dict(D.KNOWN['tiny_imagenet'], url=zip_path.as_uri())
    assert known['md5'] == '90528d7ca1a48142e341f4ef8d21d0de'
    monkeypatch.setitem(D.KNOWN, 'tiny_imagenet', known)
    complaint(None, md5, known['md5'], '--data', name='tiny_imagenet')                  # a checksum that is wrong
    assert not list(cache.iterdir())
    monkeypatch.setitem(D.KNOWN, 'tiny_imagenet', dict(known, md5=md5))
    d = load(None, 'tiny_imagenet')
    assert (len(d.train), len(d.test), d.size, d.classes) == (12, 6, 64, ['n01', 'n02', 'n03'])
    assert [p.name for p in cache.iterdir()] == ['tiny-imagenet-200.zip']
    assert np.array_equal(d.train.images[5].permute(1, 2, 0).numpy(),
                          np.asarray(Image.open(io.BytesIO(images['n02', 1]))))
    assert d.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(d.test.images[4].permute(1, 2, 0).numpy(),
                          np.asarray(Image.open(io.BytesIO(images['val', 0]))))
    zip_path.unlink()
    assert load(None, 'tiny_imagenet').hash == d.hash                                   # from the cache
    with zipfile.ZipFile(cache / 'tiny-imagenet-200.zip') as z:
        z.extractall(tmp_path / 'unpacked')
    assert load(tmp_path / 'unpacked', 'tiny_imagenet').hash == d.hash
    assert load(tmp_path / 'unpacked' / 'tiny-imagenet-200', 'tiny_imagenet', memory_limit=1).hash == d.hash
    cut = tmp_path / 'cut.zip'
    cut.write_bytes((cache / 'tiny-imagenet-200.zip').read_bytes()[:5000])
    complaint(cut, 'cut.zip', name='tiny_imagenet')


def test_download_fails(tmp_path, monkeypatch):
    monkeypatch.setenv('EDC_NB_CACHE', str(tmp_path))
    for name in ('cifar10', 'cifar100', 'tiny_imagenet'):
        monkeypatch.setitem(D.KNOWN, name, dict(D.KNOWN[name], url=(tmp_path / 'gone.tar.gz').as_uri()))
        complaint(None, name, 'could not be downloaded', '--data', name=name)
    for name in ('imagenet10', 'imagenet1k'):
        complaint(None, name, '--data', name=name)
    assert not list(tmp_path.iterdir())


class Python2(pickle._Pickler):
    "Pickles as Python 2 did: byte strings, and numpy's old module names."
    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, obj):
        if isinstance(obj, str):
            obj = obj.encode()
        self.write(b'T' + struct.pack('<i', len(obj)) + obj)
        self.memoize(obj)
    dispatch[bytes] = dispatch[str] = save_bytes


def py2(obj):
    b = io.BytesIO()
    Python2(b, 2).dump(obj)
    return b.getvalue().replace(b'numpy._core.', b'numpy.core.')


def cifar_tar(path, hundred=False):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (30, 3072), dtype=np.uint8), (np.arange(30) % 5).tolist()
    if hundred:
        files = {f'cifar-100-python/{k}': py2({'data': x[s], 'fine_labels': y[s], 'coarse_labels': y[s]}) for k,
                 s in (('train', slice(0, 20)), ('test', slice(20, 30)))}
        files['cifar-100-python/meta'] = py2({'fine_label_names': list('abcde'), 'coarse_label_names': list('xy')})
    else:
        files = {f'cifar-10-batches-py/data_batch_{i + 1}': py2({'data': x[4 * i:4 * i + 4],
            'labels': y[4 * i:4 * i + 4], 'batch_label': 'x'}) for i in range(5)}
        files |= {'cifar-10-batches-py/test_batch': py2({'data': x[20:], 'labels': y[20:]}),
                  'cifar-10-batches-py/readme.html': b'hello',
                  'cifar-10-batches-py/batches.meta': py2({'label_names': list('abcde'), 'num_vis': 3072})}
    with tarfile.open(path, 'w:gz') as tar:
        for name, b in files.items():
            m = tarfile.TarInfo(name)
            m.size = len(b)
            tar.addfile(m, io.BytesIO(b))
    return x.reshape(-1, 3, 32, 32), np.array(y)


@pytest.mark.parametrize('name,file', [('cifar10', 'cifar-10-python.tar.gz'), ('cifar100', 'cifar-100-python.tar.gz')])
def test_cifar_archive(tmp_path, name, file):
    x, y = cifar_tar(tmp_path / file, name == 'cifar100')
    for where in (tmp_path / file, tmp_path):
        d = load(where, name)
        assert np.array_equal(d.train.images.numpy(), x[:20]) and np.array_equal(d.test.images.numpy(), x[20:])
        assert np.array_equal(d.train.labels.numpy(), y[:20]) and d.classes == list('abcde')
    with tarfile.open(tmp_path / file) as tar:
        # Python before 3.11.4 knows no filters
        tar.extractall(tmp_path / 'out', **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
    assert load(tmp_path / 'out', name).hash == d.hash and load(next((tmp_path / 'out').iterdir()), name,
        memory_limit=1).hash == d.hash
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:500])
    complaint(tmp_path / file, file, name=name)


def test_cifar_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'written'), 'w'))
    (tmp_path / 'cifar-10-batches-py').mkdir()
    for f in ('data_batch_1', 'test_batch', 'batches.meta'):
        (tmp_path / 'cifar-10-batches-py' / f).write_bytes(pickle.dumps(Evil()))
    complaint(tmp_path, 'not allowed', name='cifar10')
    assert not (tmp_path / 'written').exists()


def tar_of(files, path=None):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode='w') as tar:
        for name, content in files.items():
            m = tarfile.TarInfo(name)
            m.size = len(content)
            tar.addfile(m, io.BytesIO(content))
    if path:
        path.write_bytes(b.getvalue())
    return b.getvalue()


def write_validation_labels(tmp_path, labels, synsets, val, rng):
    "The class of each validation image, in one of the forms that people have."
    if labels == 'kaggle':
        (tmp_path / 'LOC_val_solution.csv').write_text('ImageId,PredictionString\n' + ''.join(
            f'ILSVRC2012_val_{i + 1:08d},{s} 1 2 3 4 {s} 5 6 7 8\n' for i, s in enumerate(val)))
    elif labels == 'synsets':
        (tmp_path / 'imagenet_2012_validation_synset_labels.txt').write_text('\n'.join(val))
    else:
        savemat = pytest.importorskip('scipy.io').savemat
        kit, ids = tmp_path / 'ILSVRC2012_devkit_t12', rng.permutation(12) + 1
        (kit / 'data').mkdir(parents=True)
        savemat(kit / 'data' / 'meta.mat',
                {'synsets': np.array([(int(i), s) for i, s in zip(ids, synsets)],
                                     dtype=[('ILSVRC2012_ID', 'O'), ('WNID', 'O')])})
        truth = '\n'.join(str(ids[synsets.index(s)]) for s in val)
        (kit / 'data' / 'ILSVRC2012_validation_ground_truth.txt').write_text(truth)
        if labels == 'devkit.tar.gz':
            with tarfile.open(tmp_path / 'ILSVRC2012_devkit_t12.tar.gz', 'w:gz') as tar:
                tar.add(kit, 'ILSVRC2012_devkit_t12')
            shutil.rmtree(kit)


@pytest.mark.parametrize('labels', ['kaggle', 'synsets', 'devkit', 'devkit.tar.gz'])
def test_imagenet_archives(tmp_path, labels):
    rng = np.random.default_rng(0)
    synsets = sorted(TEN + ['n00000001', 'n99999999'])
    train = {s: {f'{s}_{i}.JPEG': blob(noise(rng, 40, 30), 'jpeg') for i in range(2)} for s in synsets}
    val = [synsets[i] for i in rng.permutation(12)]
    tar_of({f'{s}.tar': tar_of(f) for s, f in train.items()}, tmp_path / 'ILSVRC2012_img_train.tar')
    tar_of({f'ILSVRC2012_val_{i + 1:08d}.JPEG': blob(noise(rng, 40, 30), 'jpeg') for i in range(12)},
           tmp_path / 'ILSVRC2012_img_val.tar')
    complaint(tmp_path, 'ILSVRC2012_img_val.tar', 'no labels', name='imagenet1k')
    write_validation_labels(tmp_path, labels, synsets, val, rng)
    d = load(tmp_path, 'imagenet1k', size=32)
    assert d.classes == synsets and (len(d.train), len(d.test)) == (24, 12)
    assert np.array_equal(d.train.images[2].permute(1, 2, 0).numpy(),
                          decode_image(train[synsets[1]][f'{synsets[1]}_0.JPEG'], 32))
    with tarfile.open(tmp_path / 'ILSVRC2012_img_val.tar') as tar:
        for c, s in enumerate(synsets):
            want = decode_image(tar.extractfile(f'ILSVRC2012_val_{val.index(s) + 1:08d}.JPEG').read(), 32)
            assert np.array_equal(d.test.images[c].permute(1, 2, 0).numpy(), want)
    ten = load(tmp_path, 'imagenet10', size=32, memory_limit=1)
    assert ten.classes == TEN and (len(ten.train), len(ten.test)) == (20, 10) and ten.train.streamed
    for c, s in enumerate(TEN):
        want = d.train.images[d.train.labels == synsets.index(s)]
        assert torch.equal(ten.train.batch((ten.train.labels == c).nonzero().flatten()), want)


# ---- own data

def test_formats_agree(tmp_path):
    folder(tmp_path / 'f' / 'train', {'b': 5, 'a': 9}, w=30, h=50)
    folder(tmp_path / 'f' / 'test', {'b': 2, 'a': 3}, seed=1, w=30, h=50)
    d = load(tmp_path / 'f')
    assert d.classes == ['a', 'b'] and d.train.labels.tolist() == [0] * 9 + [1] * 5 and d.size == 32
    assert d.info['licence'] and d.info['counts'] == dict(train=[9, 5], test=[3, 2])
    json.dumps(d.info)
    for split, word in (('train', 'train-0'), ('test', 'test-0')):
        files = [tmp_path / 'f' / split / c / f'{i}.png' for c,
                 n in zip('ab', d.info['counts'][split]) for i in range(n)]
        blobs, labels = [f.read_bytes() for f in files], [0 if f.parent.name == 'a' else 1 for f in files]
        parquet(tmp_path / 'hf' / f'{word}.parquet', blobs, labels, 'ab')
        parquet(tmp_path / 'fine' / 'data' / f'{word}.parquet', blobs, labels, 'ab', 'img', 'fine_label')
        parquet(tmp_path / 'named' / f'{word}.parquet', blobs, ['ab'[y] for y in labels])
        parquet(tmp_path / 'paths' / f'{word}.parquet', [dict(bytes=None, path=str(f)) for f in files], labels, 'ab')
        parquet(tmp_path / 'convert' / split / '0000.parquet', blobs, labels, 'ab')
    for other in ('hf', 'fine', 'named', 'paths', 'convert'):
        assert load(tmp_path / other).hash == d.hash, other
        assert load(tmp_path / other, memory_limit=1).hash == d.hash, other
    assert load(tmp_path / 'hf' / 'train-0.parquet').info['split'].startswith('10%')


def test_split_is_drawn_by_seed(tmp_path):
    folder(tmp_path, {'many': 30, 'few': 3, 'one': 1})
    a, b, c = load(tmp_path), load(tmp_path), load(tmp_path, seed=1)
    assert a.hash == b.hash != c.hash
    assert a.info['counts'] == dict(train=[2, 27, 1], test=[1, 3, 0])
    assert '10%' in a.info['split'] and any('single image' in n for n in a.info['notes'])
    assert load(tmp_path, test_share=0.5).info['counts'] == dict(train=[1, 15, 1], test=[2, 15, 0])
    # the same test images with fewer classes
    sub = load(tmp_path, classes=(1,))
    assert torch.equal(sub.test.images, a.test.images[a.test.labels == 1])
    assert len(load(tmp_path, per_class=1000, test_per_class=1000).train) == 30         # caps above the class are fine
    assert load(tmp_path, per_class=2).info['counts']['train'] == [2, 2, 1]


def test_extra_files_and_hidden_splits(tmp_path):
    folder(tmp_path / 'f' / 'train', {'a': 3, 'b': 3})
    folder(tmp_path / 'f' / 'valid', {'a': 1, 'b': 1})
    (tmp_path / 'f' / 'test').mkdir()
    (tmp_path / 'f' / 'test' / '0.png').write_bytes(blob(noise(np.random.default_rng(0))))   # unlabelled
    (tmp_path / 'f' / 'train' / 'a' / '.DS_Store').write_bytes(b'x')
    (tmp_path / 'f' / 'train' / 'a' / 'notes.txt').write_text('x')
    d = load(tmp_path / 'f')
    assert (len(d.train), len(d.test)) == (6, 2) and len(d.info['skipped']) == 2 and 'valid' in d.info['split']
    b = [blob(noise(np.random.default_rng(0)))] * 4
    parquet(tmp_path / 'hf' / 'train-0.parquet', b, [0, 1, 0, 1], 'ab')
    parquet(tmp_path / 'hf' / 'validation-0.parquet', b[:2], [1, 0], 'ab')
    parquet(tmp_path / 'hf' / 'test-0.parquet', b, [-1] * 4, 'ab')                      # as ImageNet on the hub
    d = load(tmp_path / 'hf')
    assert d.test.labels.tolist() == [1, 0] and 'validation' in d.info['split'] and 'unlabeled' in d.info['skipped'][0]


def test_statistics(tmp_path):
    folder(tmp_path, {'a': 6, 'b': 4}, w=32, h=32)
    d = load(tmp_path, test_share=0.2)
    x = d.train.images.double().numpy() / 255
    np.testing.assert_allclose(d.mean, x.mean((0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(d.std, x.std((0, 2, 3)), atol=1e-12)
    n = d.normalize(d.train.images)
    assert n.mean().abs() < 1e-5 and (d.denormalize(n) * 255 - d.train.images).abs().max() < 1e-3
    for f in tmp_path.glob('*/*'):
        Image.new('RGB', (32, 32), 'white').save(f)
    assert torch.isfinite(load(tmp_path).normalize(torch.ones(1, 3, 32, 32))).all()     # constant images


@pytest.mark.parametrize('side,size', [(8, 32), (40, 32), (50, 64), (140, 64), (150, 224), (500, 224)])
def test_native_size(tmp_path, side, size):
    folder(tmp_path, {'a': 2, 'b': 2}, w=side + 10, h=side)
    assert load(tmp_path).size == size


def test_streamed_interface(tmp_path):
    folder(tmp_path, {'a': 20, 'b': 13})
    m, s = load(tmp_path), load(tmp_path, memory_limit=1)
    assert not m.train.streamed and s.train.streamed and len(m.train) == len(s.train)
    before = torch.random.get_rng_state()
    for batch in (1, 7, 1000):
        for (i, x, y), (j, u, v) in zip(m.train.batches(batch), s.train.batches(batch), strict=True):
            assert torch.equal(i, j) and torch.equal(x, u) and torch.equal(y, v)
    assert torch.equal(before, torch.random.get_rng_state())
    idx = torch.tensor([3, 3, 0])
    assert torch.equal(m.train.batch(idx), s.train.batch(idx))
    assert torch.equal(m.train.subset(idx).images, s.train.subset(idx).batch(torch.arange(3)))
    for part in (m.train.subset(idx[:0]), s.train.subset(idx[:0])):
        assert len(part) == 0 and list(part.batches(4)) == [] and part.batch(idx[:0]).shape == (0, 3, 32, 32)
    walk = s.train.batches(2)
    next(walk)
    walk.close()                                                                        # left early: threads end
    assert len(s.by_class) == 2 and s.describe()['train'].tolist() == [18, 12]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda(tmp_path):
    folder(tmp_path, {'a': 20, 'b': 13})
    m = load(tmp_path)
    for limit in (1, 2**30):
        d = load(tmp_path, memory_limit=limit).to('cuda')
        assert d.hash == m.hash
        order = torch.randperm(len(d.train), generator=torch.Generator().manual_seed(0))
        got = torch.cat([x for _, x, _ in d.train.batches(5, order)])
        assert got.is_cuda and torch.equal(got.cpu(), m.train.batch(order)) and d.train.labels.is_cuda


def test_find_data(tmp_path, monkeypatch):
    monkeypatch.delenv('EDC_NB_DATA', raising=False)
    assert find_data('cifar10') is None
    monkeypatch.setenv('EDC_NB_DATA', str(tmp_path))
    assert find_data('cifar10') is None
    (tmp_path / 'cifar10').mkdir()
    assert find_data('cifar10') == tmp_path / 'cifar10'


# ---- what is refused

def test_bad_names(tmp_path):
    complaint(None, "unknown dataset 'cifar'", 'cifar10', '--data', name='cifar')
    complaint(tmp_path / 'nowhere', 'nowhere', 'does not exist')
    complaint(tmp_path, 'digits', name='digits')
    (tmp_path / 'x.csv').write_text('a')
    complaint(tmp_path / 'x.csv', 'x.csv', '.parquet')
    complaint(tmp_path, 'nothing readable')


def test_bad_folders(tmp_path):
    folder(tmp_path / 'empty_class', {'a': 2, 'b': 0})
    complaint(tmp_path / 'empty_class', "'b'", 'no training images')
    folder(tmp_path / 'mismatch' / 'train', {'a': 2, 'b': 2})
    folder(tmp_path / 'mismatch' / 'test', {'a': 2, 'c': 2})
    complaint(tmp_path / 'mismatch', 'only in test (c)', 'only in train (b)')
    folder(tmp_path / 'no_train' / 'test', {'a': 2, 'b': 2})
    complaint(tmp_path / 'no_train', 'no train folder')
    (tmp_path / 'flat').mkdir()
    (tmp_path / 'flat' / '0.png').write_bytes(b'x')
    complaint(tmp_path / 'flat', 'CLASS/*.png')
    (tmp_path / 'loop').mkdir()
    folder(tmp_path / 'loop', {'a': 2, 'b': 2})
    (tmp_path / 'loop' / 'a' / 'again').symlink_to(tmp_path / 'loop')
    assert len(load(tmp_path / 'loop').train) == 2


def test_bad_images(tmp_path):
    good = blob(noise(np.random.default_rng(0), 60, 60))
    jpeg = blob(noise(np.random.default_rng(0), 60, 60), 'jpeg')
    bad = dict(truncated=good[:len(good) // 2], jpeg=jpeg[:len(jpeg) // 2], text=b'hello', empty=b'')
    for kind, b in bad.items():
        folder(tmp_path / kind, {'a': 5, 'b': 5})
        (tmp_path / kind / 'a' / '3.png').write_bytes(b)
        text = complaint(tmp_path / kind, Path('a') / '3.png', size=32)
        assert 'images cannot be read' not in text
        (tmp_path / kind / 'a' / '4.png').write_bytes(b)
        complaint(tmp_path / kind, '2 of', size=32, test_share=0.01)
        rows = [good, good, b, b]
        parquet(tmp_path / f'{kind}_rows' / 'train-0.parquet', rows[:2], [0, 1], 'ab')
        parquet(tmp_path / f'{kind}_rows' / 'train-1.parquet', rows, [0, 1, 0, 1], 'ab')
        complaint(tmp_path / f'{kind}_rows', 'row 2', 'train-1.parquet', test_share=0.01)
        # streamed: refused when reached
        s = load(tmp_path / kind, size=32, memory_limit=1, normalisation='imagenet', test_share=0.01)
        with pytest.raises(EdcError, match='3.png|4.png'):
            s.hash


def test_bad_parquet(tmp_path):
    b = [blob(noise(np.random.default_rng(0)))] * 4
    parquet(tmp_path / 'range' / 'train-0.parquet', b, [0, 1, 7, 9], 'ab')
    complaint(tmp_path / 'range', 'label out of range: 7', 'row 2', '2 classes')
    parquet(tmp_path / 'negative' / 'train-0.parquet', b, [0, 1, -2, 1])
    complaint(tmp_path / 'negative', 'label out of range: -2', 'row 2')
    parquet(tmp_path / 'missing' / 'train-0.parquet', b, [0, 1, 2, 1], 'abcd')
    complaint(tmp_path / 'missing', "'d'", 'no training images')
    parquet(tmp_path / 'null' / 'train-0.parquet', b, pa.array([0, 1, None, 1]), 'ab')
    complaint(tmp_path / 'null', 'row 2', 'no label')
    parquet(tmp_path / 'float' / 'train-0.parquet', b, pa.array([0., 1., 0., 1.]))
    complaint(tmp_path / 'float', 'whole numbers')
    parquet(tmp_path / 'columns' / 'train-0.parquet', b, [0, 1, 0, 1], 'ab', label='target')
    complaint(tmp_path / 'columns', 'target', "'label'")
    parquet(tmp_path / 'only_test' / 'test-0.parquet', b, [0, 1, 0, 1], 'ab')
    complaint(tmp_path / 'only_test', 'train-*.parquet')
    parquet(tmp_path / 'other' / 'train-0.parquet', b, [0, 1, 0, 1], 'ab')
    parquet(tmp_path / 'other' / 'test-0.parquet', b, [0, 1, 0, 1], 'ba')
    complaint(tmp_path / 'other', 'test-0.parquet', 'other columns or classes')
    whole = (tmp_path / 'other' / 'train-0.parquet').read_bytes()
    for n in (0, 10, len(whole) // 2):
        (tmp_path / 'other' / 'train-0.parquet').write_bytes(whole[:n])
        complaint(tmp_path / 'other', 'train-0.parquet', 'no readable parquet')


def test_bad_settings(tmp_path):
    folder(tmp_path, {'a': 4, 'b': 4})
    complaint(tmp_path, 'data.classes', '0 to 1', classes=(0, 2))
    complaint(tmp_path, 'data.classes', classes=(1, 1))
    complaint(tmp_path, 'data.classes', classes=())
    complaint(tmp_path, 'data.validation', 'at most 4', validation=5)
    with pytest.raises(EdcError, match='ipc: got 9, but class 0 \\(a\\) has 3'):
        d = load(tmp_path)
        sample_per_class(d.train.labels, 9, torch.Generator(), classes=d.classes)
    with pytest.raises(EdcError, match='images: got'):
        ImageSet(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.zeros(2))
    assert isinstance(d, Dataset)
