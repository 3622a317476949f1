"""The command line as its users meet it: help, listings, a run from start to table, and one sentence for every
mistake."""
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from edc_nb.cli import app
from edc_nb.core.settings import Recipe, setting_names
from edc_nb.paper.tables import paper, table_names
from edc_nb.recipes.registry import RECIPES, register_recipe
from edc_nb.run.ledger import load_measurement
from kit import edc_environment, one_sentence, sets

COMMANDS = [c.name or c.callback.__name__ for c in app.registered_commands]
# one small observer, which is the student too: seconds instead of minutes
TINY = {'squeeze.epochs': 1, 'synthesize.iterations': 2, 'evaluate.epochs': 2, 'evaluate.checks': 1,
        'evaluate.student': 'convnet_w32',
        'synthesize.observers': ['convnet_w32'], 'relabel.observers': ['convnet_w32']}


def tiny(recipe='edc', dataset='digits', ipc=2, **more):
    return ['run', recipe, *(['--dataset', dataset] if dataset else []), '--ipc', ipc, '--quiet', '--device',
            'cpu', *sets(TINY | more)]


def ok(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(folder):
    return [json.loads(line) for line in (folder / 'ledger.jsonl').read_text().splitlines()]


def snapshot(folder):
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.read_bytes())
            for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}


# --- help and listings

@pytest.mark.parametrize('command', [None, *COMMANDS])
def test_help_reads_well(here, command):
    code, out, err = here(*filter(None, [command]), '--help')
    assert (code, err) == (0, '') and f"Usage: edc {command or ''}".rstrip() in out
    assert all(c in out for c in COMMANDS) if command is None else len(
        out.split('\n\n')[1].split()) >= 4, 'says what it does'
    assert 'Traceback' not in out and max(map(len, out.splitlines())) <= 120


def test_the_commands_are_those_we_know():
    assert set(COMMANDS) >= {'run', 'sweep', 'reproduce', 'tables', 'quickstart', 'recipes', 'show', 'doctor'}


def test_tables_lists_every_table_with_its_rows(here):
    code, out, _ = here('tables')
    listed = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0 and list(listed) == table_names()
    assert f"{len(paper('table5'))} cells" in listed['table5'] and 'imagenet1k' in listed['table5']
    assert '0 with a recipe' in listed['table22']


def test_recipes_lists_every_recipe_with_a_sentence(here):
    code, out, _ = here('recipes')
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0 and set(rows) == set(RECIPES) and all(len(about.split()) > 3 for about in rows.values())


def test_a_recipe_of_ones_own_is_listed_and_printed(here):
    @register_recipe('mine', about='of ten iterations and no more')
    def mine(base, ipc):
        return {'synthesize.iterations': 10}
    try:
        assert 'mine               of ten iterations and no more\n' in here('recipes')[1]
        assert yaml.safe_load(here('recipes', 'mine', '--yaml')[1])['synthesize']['iterations'] == 10
    finally:
        RECIPES.remove('mine')


@pytest.mark.parametrize('name', list(RECIPES))
def test_a_recipe_prints_every_setting_and_round_trips_as_yaml(here, name):
    _, out, _ = here('recipes', name, '--dataset', 'digits', '--ipc', 3)
    assert set(setting_names()) <= {line.split()[0] for line in out.splitlines()}
    _, text, _ = here('recipes', name, '--dataset', 'digits', '--ipc', 3, '--yaml')
    r = Recipe.from_yaml(text)
    assert (r.name, r.ipc, r.data.name) == (name, 3, 'digits') and r.to_yaml().strip() == text.strip()


@pytest.mark.parametrize('other', ['edc-released', 'random-real-hard'])
def test_against_prints_just_the_differences(here, other):
    def flat(name):
        d = yaml.safe_load(here('recipes', name, '--yaml')[1])
        return {f'{room}.{k}': v for room, kw in d.items() if isinstance(kw, dict) for k, v in kw.items()}
    a, b = flat('edc'), flat(other)
    out = here('recipes', 'edc', '--against', other)[1]
    printed = {line.split()[0] for line in out.splitlines() if '.' in line.split()[0]}
    assert printed == {k for k in a if a[k] != b[k]} and len(printed) > 2 and other in out


def test_doctor_tells_versions_and_device(here):
    code, out, _ = here('doctor')
    assert code == 0 and re.search(rf'torch +{re.escape(torch.__version__.split("+")[0])}', out)
    assert ('cuda:0' in out) == torch.cuda.is_available() and 'CPU threads' in out


# --- a run

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "A finished run on digits: its folder, the command's arguments and what it printed."
    out = tmp_path_factory.mktemp('run') / 'out'
    args = [*map(str, tiny()), '--out', str(out)]
    done = subprocess.run([sys.executable, '-m', 'edc_nb', *args], env=edc_environment(), capture_output=True,
                          text=True, timeout=180)
    return out, args, ok(done)


def test_run_prints_a_table_and_says_where_everything_is(finished):
    out, _, text = finished
    rec, = records(out)
    assert (rec['recipe'], rec['dataset'], rec['ipc'], rec['student'], rec['images']) == ('edc', 'digits', 2,
        'convnet_w32', 20)
    header, row = text.splitlines()[:2]
    cells = dict(zip(header.replace('last sd', 'last_sd').replace('best sd', 'best_sd').split(), row.split(),
                     strict=True))
    assert (cells['recipe'], cells['ipc'], cells['student']) == ('edc', '2', 'convnet_w32')
    assert float(cells['last']) == pytest.approx(100 * rec['last'], abs=.006)
    assert f"convnet_w32 {rec['observers']['convnet_w32']:.1%}" in text and 'test images: 500 of the 1,797' in text
    for name in ('contact_sheet.png', 'ledger.jsonl', 'recipe.yaml', 'run.json'):
        assert (out / name).is_file()
    Image.open(out / 'contact_sheet.png').verify()
    places = dict(part.split(': ') for part in text.splitlines()[-1].split('   '))
    assert set(places) == {'images', 'condensed set', 'ledger'} and all(map(os.path.exists, places.values()))


def test_show_tells_the_run_without_changing_it(finished, edc):
    out, _, _ = finished
    before = snapshot(out)
    text = ok(edc('show', out))
    assert 'edc' in text and 'IPC 2' in text and '8 pixels' in text and 'convnet_w32' in text
    assert 'contact_sheet.png' in text
    assert f"{100 * records(out)[0]['last']:.1f}" in text
    assert snapshot(out) == before


def test_the_same_command_again_does_nothing_twice(finished, edc):
    out, args, text = finished
    before = snapshot(out)
    assert ok(edc(*args)) == text
    assert snapshot(out) == before


def test_a_recipe_file_is_the_same_as_its_name(finished, edc, tmp_path):
    out, args, text = finished
    (tmp_path / 'f.yaml').write_text(ok(edc('recipes', 'edc', '--dataset', 'digits', '--ipc', 2, '--yaml')))
    before = snapshot(out)
    assert ok(edc(*tiny('f.yaml', dataset=None), '--out', out)) == text
    assert snapshot(out) == before


def test_more_seeds_and_a_second_ledger_add_to_the_run(finished, edc, tmp_path):
    out, args, _ = finished
    ok(edc(*args, '--seeds', 2, '--ledger', tmp_path / 'all.jsonl'))
    mine = {r['seed']: r['last'] for r in records(out)}
    assert sorted(mine) == [0, 1]
    assert {r['seed']: r['last'] for r in map(json.loads, (tmp_path / 'all.jsonl').read_text().splitlines())} == mine


def test_another_recipe_does_not_take_over_the_folder(finished, here):
    out, args, _ = finished
    before = snapshot(out)
    code, _, err = here(*args, '--set', 'synthesize.lr=0.1')
    assert code == 2 and 'synthesize.lr' in err and snapshot(out) == before


@pytest.mark.full
def test_a_study_keeps_its_parts_and_writes_its_measurements(edc, tmp_path):
    command = ['diagnose', 'hessian', '--scale', 'tiny', '--seeds', 1, '--device', 'cpu', '--quiet', '--out',
               tmp_path / 'study', '--save']
    first = ok(edc(*command, tmp_path / 'a.json'))
    before = snapshot(tmp_path / 'study')
    assert ok(edc(*command, tmp_path / 'b.json')) == first and snapshot(tmp_path / 'study') == before
    a, b = (load_measurement(tmp_path / f'{n}.json') for n in 'ab')
    assert a.equals(b) and set(a.arm) == {'off', 'logits', 'statistics', 'SAM'} and (a.norm > 0).all()
    assert a.attrs['how'] == b.attrs['how'] and {'recipe': 'edc', 'dataset': 'digits', 'scale': 'tiny',
                                                 'seeds': 1}.items() <= a.attrs['how'].items()


@pytest.fixture(scope='module')
def own_images(tmp_path_factory):
    "root/CLASS/i.png: three classes, two sizes, grey, colour, palette and transparent images."
    root, rng = tmp_path_factory.mktemp('mine'), np.random.default_rng(0)
    for c, name in enumerate(('apple', 'bee', 'cat')):
        (root / name).mkdir()
        for i, mode in enumerate(('RGB', 'L', 'RGB', 'P', 'RGBA', 'L')):
            size = (30, 40) if i % 2 else (52, 36)
            pixels = rng.normal(60 + 60 * c, 25, (*size[::-1], 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f'{i}.png')
    return root


def test_own_images_go_through_and_the_held_out_split_is_named(own_images, edc, tmp_path):
    text = ok(edc(*tiny(dataset='mine', ipc=2), '--data', own_images, '--out', 'out'))
    rec, = records(tmp_path / 'out')
    assert (rec['dataset'], rec['classes'], rec['size'], rec['images']) == ('mine', 3, 32, 6)
    # a tenth of six is less than the one image that each class gives
    assert (rec['train_images'], rec['test_images']) == (15, 3)
    split = re.search(r'^test images: (.+)$', text, re.M)[1]
    assert '10%' in split and 'held out with seed 0' in split
    assert split in ok(edc('show', 'out')) and 'apple' in (tmp_path / 'out' / 'run.json').read_text()


# --- mistakes

MISTAKES = {   # what is wrong: (arguments, what the sentence names)
    'unknown recipe': (tiny('edcc'), "'edcc'", 'edc-released'),
    'unknown dataset': (tiny(dataset='cifar11'), "'cifar11'", 'cifar10', '--data'),
    'no dataset': (tiny(dataset=None), '--dataset', 'digits'),
    'unknown student': ([*tiny(), '--student', 'resnet19'], "'resnet19'", 'resnet18'),
    'unknown observer': (tiny(**{'synthesize.observers': ['convnet_w33']}), "'convnet_w33'", 'convnet_w32'),
    'unknown setting': (tiny(**{'synthesize.iteration': 3}), "'synthesize.iteration'", 'synthesize.iterations'),
    'setting of another type': (tiny(**{'synthesize.iterations': 'many'}), 'synthesize.iterations', "'many'",
                                'whole number'),
    'setting out of range': (tiny(**{'matching.alpha': 1.5}), 'matching.alpha', '1.5', 'from 0.0 to 1.0'),
    'setting without a choice': (tiny(**{'relabel.codec': 'fp64'}), 'relabel.codec', "'fp64'", 'fp16'),
    'setting without a value': ([*tiny(), '--set', 'synthesize.lr'], "'synthesize.lr'", 'section.setting=value'),
    'setting that is no YAML': ([*tiny(), '--set', 'synthesize.observers=[a'], 'synthesize.observers=[a'),
    'unknown loss': (tiny(**{'evaluate.loss': 'mse'}), "'mse'", 'mse_ce'),
    'soft loss on hard labels': (tiny(**{'relabel.labels': 'hard'}), 'evaluate.loss', 'relabel.labels'),
    'IPC too large': (tiny(ipc=500), 'ipc', '500', 'at most'),
    'IPC of zero': (tiny(ipc=0), 'ipc', '0', 'at least 1'),
    'missing path': ([*tiny(dataset='mine'), '--data', 'nowhere/at/all'], 'nowhere/at/all', 'does not exist'),
    'empty path': ([*tiny(dataset='mine'), '--data', 'empty'], 'empty'),
    'folder without images': ([*tiny(dataset='mine'), '--data', 'texts'], 'texts'),
    'class without images': ([*tiny(dataset='mine'), '--data', 'hollow'], 'hollow', "'bee'"),
    'truncated image': ([*tiny(dataset='mine', ipc=1), '--data', 'torn'], 'torn', '1.png'),
    'digits with data': ([*tiny(), '--data', 'empty'], 'digits'),
    'ImageNet without data': (tiny(dataset='imagenet10'), 'imagenet10', '--data'),
    'unknown device': ([*tiny(), '--device', 'gpu'], "'gpu'", 'auto, cpu'),
    'unknown precision': ([*tiny(), '--precision', 'fp8'], "'fp8'", 'bf16'),
    'missing recipe file': (tiny('none.yaml'), 'none.yaml', 'does not exist'),
    'recipe file that is no YAML': (tiny('bad.yaml'), 'not valid YAML'),
    'recipe file that is no recipe': (tiny('list.yaml'), 'mapping'),
    'recipe file that is no text': (tiny('binary.yaml'), 'binary.yaml'),
    'weights without a name': ([*tiny(), '--weights', 'teacher.pt'], "'teacher.pt'", 'NAME=FILE'),
    'missing weights': ([*tiny(), '--weights', 'convnet_w32=teacher.pt'], 'teacher.pt'),
    'no out': (tiny(), '--out'),
    'out is a file': ([*tiny(), '--out', 'note.txt'], 'note.txt'),
    'IPC is no number': (tiny(ipc='ten'), '--ipc', 'integer'),
    'no seeds': ([*tiny(), '--seeds', 0], '--seeds', '1'),
    'unknown option': ([*tiny(), '--epochs', 3], '--epochs'),
    'unknown command': (['condense'], "'condense'"),
    'show of nothing': (['show', 'nowhere'], 'nowhere', 'run.json'),
    'recipes of an unknown one': (['recipes', 'edcc'], "'edcc'", "'edc'"),
    'unknown study': (['diagnose', 'hessians'], "'hessians'", 'hessian, gradients'),
    'unknown scale of a study': (['diagnose', 'hessian', '--scale', 'big'], "'big'", 'subset, tiny'),
    'study of images that are not there': (['diagnose', 'gradients', '--data', 'nowhere/at/all'], 'nowhere/at/all',
                                           'does not exist'),
    'study without seeds': (['diagnose', 'landscape', '--scale', 'tiny', '--seeds', 0], '--seeds', '1'),
    'against an unknown one': (['recipes', 'edc', '--against', 'edcc'], "'edcc'"),
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    "A working folder with everything that can be wrong with files."
    monkeypatch.chdir(tmp_path)
    blob = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(blob, 'png')
    for folder in ('empty', 'texts/a', 'hollow/apple', 'hollow/bee', 'torn/apple', 'torn/bee'):
        (tmp_path / folder).mkdir(parents=True)
    for n in range(3):
        for name in ('hollow/apple', 'torn/apple', 'torn/bee'):
            (tmp_path / name / f'{n}.png').write_bytes(blob.getvalue())
    (tmp_path / 'torn/bee/1.png').write_bytes(blob.getvalue()[:-900])
    (tmp_path / 'texts/a/note.txt').write_text('no image')
    (tmp_path / 'note.txt').write_text('no folder')
    (tmp_path / 'bad.yaml').write_text('name: [edc\n')
    (tmp_path / 'list.yaml').write_text('- edc\n')
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00\x81')
    return tmp_path


@pytest.mark.parametrize('what', MISTAKES)
def test_a_mistake_gets_one_sentence_and_leaves_nothing_behind(here, places, what):
    args, *named = MISTAKES[what]
    if args[0] == 'run' and what != 'no out' and '--out' not in args:
        args = [*args, '--out', 'out']
    before = sorted(places.rglob('*'))
    one_sentence(*here(*args), *named)
    left = [str(p.relative_to(places)) for p in sorted(places.rglob('*')) if p not in before]
    # wrong weights come to light when they are loaded, in a run that has begun
    assert not [p for p in left if what != 'missing weights' or p.endswith(('.safetensors', '.tmp', '.pt'))], left


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
@pytest.mark.parametrize('device', ['cuda', 'cuda:3'])
def test_cuda_that_is_not_there_gets_one_sentence(here, places, device):
    one_sentence(*here(*tiny(), '--device', device, '--out', 'out'), f"'{device}'", 'edc doctor')
    assert not (places / 'out').exists()


def test_a_mistake_gets_one_sentence_from_a_shell_too(edc):
    done = edc(*tiny('edcc'), '--out', 'out')
    one_sentence(done.returncode, done.stdout, done.stderr, 'edcc')


def test_no_arguments_print_the_help(edc):
    done = edc()
    assert 'quickstart' in done.stdout + done.stderr and 'Traceback' not in done.stdout + done.stderr
    assert done.returncode in (0, 2)


# --- Ctrl-C

@pytest.mark.skipif(os.name != 'posix', reason='SIGINT')
def test_ctrl_c_says_how_to_go_on(tmp_path):
    out = tmp_path / 'out'
    command = [sys.executable, '-m', 'edc_nb',
               *map(str, tiny(**{'evaluate.epochs': 100_000, 'relabel.mode': 'online'})), '--out', str(out)]
    # a shell's background job ignores SIGINT and hands that down: the child must not inherit it
    child = subprocess.Popen(command, env=edc_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        limit = time.monotonic() + 120
        # from then on it trains the student, for hours
        while not list(out.glob('store/synthesize/*/manifest.json')):
            assert child.poll() is None and time.monotonic() < limit, child.stderr.read() if child.poll(
                ) is not None else 'too slow'
            time.sleep(.05)
        made = snapshot(out / 'store' / 'synthesize')
        child.send_signal(signal.SIGINT)
        stdout, err = child.communicate(timeout=60)
    finally:
        child.kill()
    # 130 to a shell either way: Python ends itself by the signal if it was interrupted within code that C had started
    assert child.returncode in (130, -signal.SIGINT), err
    # a destructor that was interrupted may have complained before that
    assert err.strip().endswith(
        'edc: interrupted; run the same command again to resume') and 'Traceback' not in stdout, err
    assert snapshot(out / 'store' / 'synthesize') == made and not list(out.rglob('*.tmp'))


@pytest.mark.parametrize('args', [
    ['run', 'edcc', '--dataset', 'digits', '--out', 'x'],
    ['run', 'edc', '--dataset', 'cifar11', '--out', 'x'],
    ['run', 'edc', '--dataset', 'digits', '--out', 'x', '--set', 'synthesize.iteration=3'],
    ['sweep', 'edc', '--dataset', 'digits', '--out', 'x', '--vary', 'matching.alpha=1'],
    ['protocol', 'edcc', '--dataset', 'digits', '--out', 'x'], ['recipes', 'edcc'], ['show', 'nowhere']],
    ids=lambda args: ' '.join(args))
def test_a_wrong_name_is_answered_before_torch_is_loaded(args, tmp_path):
    code = 'import sys\nfrom edc_nb.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code, *args], env=edc_environment(), capture_output=True, text=True,
                          cwd=tmp_path)
    one_sentence(done.returncode, '', done.stderr)
    assert not {'torch', 'torchvision', 'pandas'} & set(done.stdout.split())
