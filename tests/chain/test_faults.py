"""What can go wrong while a run works: SIGKILL, a full disk, damaged files, foreign weights, NaN, two processes in one
folder."""
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch

from edc_nb.core.files import load_tensors
from edc_nb.core.settings import EdcError
from edc_nb.data.open import open_dataset
from edc_nb.models.registry import build_model
from edc_nb.models.weights import save_weights
from edc_nb.recipes.registry import recipe
from edc_nb.run.folder import condense, load_condensed
from edc_nb.run.report import evaluate
from edc_nb.stages.initialize import initialize
from edc_nb.stages.matching import collect_statistics
from edc_nb.stages.squeeze import train_observer
from edc_nb.stages.synthesize import Observer, synthesize
from kit import CHECKPOINTED, edc_environment, finish, sets, start, without_warnings


def tiny(**changes):
    return recipe('edc', 'digits', ipc=2).replace(CHECKPOINTED | changes)


def series(folder, *kills):
    """The same run started and killed again and again ('' lets it end), in forks of one process; yields after each
    start."""
    server = start(folder, 'serve', stdin=subprocess.PIPE)
    for kill in kills:
        server.stdin.write(kill + '\n')
        server.stdin.flush()
        assert server.stdout.readline().strip() == str(-signal.SIGKILL if kill else 0), f'{kill}: {finish(server)}'
        yield kill
    assert finish(server)[0] == 0


def payloads(run):
    "{place: content} of all results: tensors with their metadata (dates aside), and what students reached."
    found = {}
    files = [f for f in sorted((run / 'store').glob('*/*/*')) if f.parts[-3] != 'partial']
    for f in [f for f in files if f.suffix == '.safetensors']:
        tensors, meta = load_tensors(f)
        (meta.get('card') or {}).pop('date', None)
        found[str(f.relative_to(run))] = tensors, meta
    for f in [f for f in files if f.name == 'result.json']:
        found[str(f.relative_to(run))] = {}, json.loads(f.read_text())
    return found


def same(a, b):
    "All payloads of two runs, bit by bit."
    a, b = payloads(a), payloads(b)
    assert a.keys() == b.keys() and a
    for place in a:
        (ta, ma), (tb, mb) = a[place], b[place]
        assert ma == mb, place
        assert ta.keys() == tb.keys(), place
        for k in ta:
            assert ta[k].dtype == tb[k].dtype and ta[k].shape == tb[k].shape, (place, k)
            assert ta[k].numpy().tobytes() == tb[k].numpy().tobytes(), (place, k)


def finished(run):
    "{manifest: (inode, time)} of the stages that are finished."
    return {str(f.relative_to(run)): (f.stat().st_ino, f.stat().st_mtime_ns)
            for f in (run / 'store').glob('*/*/manifest.json') if 'partial' not in f.parts}


def leftovers(run):
    "Unfinished work and temporary files."
    return sorted(str(f.relative_to(run)) for f in run.rglob('*') if f.name.endswith('.tmp')
                  or 'partial' in f.relative_to(run).parts[:-1])


def one_sentence(text, *words):
    text = text.strip()
    assert '\n' not in text and 'Traceback' not in text and len(text) < 500, text
    for w in words:
        assert str(w) in text, (w, text)
    return text


def refused(f, *words):
    with pytest.raises(EdcError) as e:
        f()
    return one_sentence(str(e.value), *words)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The folder of an uninterrupted run."
    folder = tmp_path_factory.mktemp('whole')
    code, out, err = finish(start(folder))
    assert code == 0, err
    return folder / 'run'


@pytest.fixture
def copied(whole, tmp_path):
    "A copy of it to damage."
    shutil.copytree(whole, tmp_path / 'copy')
    was = json.loads((tmp_path / 'copy' / 'run.json').read_text())
    (tmp_path / 'copy' / 'run.json').write_text(json.dumps(was | dict(store=str(tmp_path / 'copy' / 'store'))))
    return tmp_path / 'copy'


# ---- SIGKILL

# An observer saves four times an epoch, its statistics four times; 10 classes x 2 images: synthesis saves six times
# in each of the first two batches (the sixth time between batches) and five times in the last. Places count from
# where the last kill left off.
KILLS = ['observer:saved:2', 'observer:saved:2', 'observer:torn:3', 'observer:payload:2', 'statistics:saved:2',
         'statistics:payload:1', 'statistics:manifest:2',
         'initialize:saved:3', 'initialize:payload:1', 'synthesize:saved:3', 'synthesize:torn:1',
         'synthesize:saved:3', 'synthesize:saved:3', 'synthesize:manifest:1',
         'relabel:saved:2', 'relabel:payload:1', 'evaluate:saved:4', 'evaluate:torn:1', 'evaluate:payload:1',
         'ensemble:payload:1']


def test_killed_at_every_stage_and_resumed_is_the_same_run(whole, tmp_path):
    """One run, killed at one place after another; a stage that was finished is never written again, a checkpoint is
    taken up."""
    before = {}
    for kill in series(tmp_path, *KILLS, ''):
        now = finished(tmp_path / 'run')
        assert before.items() <= now.items(), f'{kill}: a finished stage was done again'
        before = now
    same(whole, tmp_path / 'run')
    manifests = [json.loads(f.read_text()) for f in (tmp_path / 'run' / 'store').glob('*/*/manifest.json')]
    resumed = {m['stage'] for m in manifests if m['resumed']}
    # they went on, they did not begin anew
    assert {'observer', 'statistics', 'initialize', 'synthesize', 'relabel', 'evaluate'} <= resumed
    assert len((tmp_path / 'run' / 'ledger.jsonl').read_text().splitlines()) == 1
    assert not [f for f in leftovers(tmp_path / 'run') if f.endswith('.pt')]


def test_what_a_killed_run_left_behind_is_swept_up(tmp_path):
    "Half-written folders and files of dead processes would fill a disk, a network at a time."
    for kill in series(tmp_path, 'observer:torn:2', 'observer:payload:2', 'synthesize:payload:1', ''):
        assert leftovers(tmp_path / 'run') or not kill
    assert leftovers(tmp_path / 'run') == []


def test_killed_synthesis_goes_on_from_its_last_step(tmp_path):
    "It saves after each step: killed at the ninth save and again at the next, it stands at the tenth step."
    at = []
    for _ in series(tmp_path, 'synthesize:saved:9', 'synthesize:saved:1'):
        state = torch.load(next((tmp_path / 'run' / 'store' / 'partial').glob('synthesize-*.pt')), weights_only=True)
        at.append((state['turn'], len(state['history'])))
    assert at == [(9, 9), (10, 10)]


def test_an_unreadable_checkpoint_costs_its_stage_not_the_run(whole, tmp_path):
    for kill in series(tmp_path, 'synthesize:saved:5', ''):
        if kill:
            checkpoint = next((tmp_path / 'run' / 'store' / 'partial').glob('synthesize-*.pt'))
            checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    same(whole, tmp_path / 'run')


@pytest.mark.full
def test_killed_twenty_five_times_at_random(whole, tmp_path):
    "Kills fall wherever the clock wants; every third start is left a little more time, so that the run gets somewhere."
    rng, kills = random.Random(0), 0
    while kills < 25:
        process = start(tmp_path)
        killer = threading.Timer(rng.uniform(2, 5) + 2 * (kills % 3 == 2), process.kill)
        killer.start()
        code, _, err = finish(process)
        killer.cancel()
        if code == 0:
            break
        assert code == -signal.SIGKILL, err
        kills += 1
    code, _, err = finish(start(tmp_path))
    assert code == 0, err
    assert kills >= 5, kills
    print(f'{kills} kills')
    same(whole, tmp_path / 'run')


# ---- a full disk

def command(out, *more):
    "A small `edc run` whose second observer is the only large file (2.8 MB)."
    changes = sets(CHECKPOINTED | {'squeeze.epochs': 1, 'initialize.method': 'real'})
    return ['run', 'edc', '--dataset', 'digits', '--ipc', '2', '--out', str(out), '--quiet', *changes, *more]


def test_a_file_too_large_for_the_limit_stops_in_one_sentence_and_resumes(tmp_path, edc):
    """RLIMIT_FSIZE: the small observer is kept, the large one leaves nothing behind, and the same command finishes
    later."""
    limit = 1_000_000
    blocked = subprocess.run([sys.executable, '-m', 'edc_nb', *command(tmp_path / 'run')], env=edc_environment(),
                             capture_output=True, text=True, timeout=180,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert blocked.returncode == 2, blocked.stderr
    one_sentence(blocked.stderr, 'disk is full or a file-size limit', 'run the same command again')
    kept = finished(tmp_path / 'run')
    assert len(kept) == 1 and not leftovers(tmp_path / 'run')
    free = edc(*command(tmp_path / 'run'))
    assert free.returncode == 0, free.stderr
    assert kept.items() <= finished(tmp_path / 'run').items()


def test_a_checkpoint_too_large_for_the_limit_stops_in_one_sentence_and_resumes(whole, tmp_path):
    limit = (1_000_000, 1_000_000)
    code, _, err = finish(start(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)))
    # the script has no command line's exit code; the sentence is the last line
    assert code == 1 and 'EdcError' in err
    one_sentence(err.strip().splitlines()[-1], 'disk is full or a file-size limit')
    assert not [f for f in leftovers(tmp_path / 'run') if f.endswith('.tmp')]
    code, _, err = finish(start(tmp_path))
    assert code == 0, err
    same(whole, tmp_path / 'run')


# KiB: of 3300; the large observer does not fit, or only what comes late
@pytest.mark.parametrize('room', [1500, 3100])
def test_a_full_file_system_stops_in_one_sentence_and_resumes(room, tmp_path, edc):
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={room}k', 'tmpfs', disk]
    if not hasattr(os, 'geteuid') or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('needs the right to mount a small file system')
    try:
        full = edc(*command(disk / 'run'))
        assert full.returncode == 2, full.stderr + full.stdout
        one_sentence(full.stderr, 'full')
        assert not [f for f in leftovers(disk / 'run') if not f.endswith('.pt')]
        kept = finished(disk / 'run')
        subprocess.run(['mount', '-o', 'remount,size=40m', disk], check=True)
        free = edc(*command(disk / 'run'))
        assert free.returncode == 0, free.stderr
        assert kept.items() <= finished(disk / 'run').items()
    finally:
        subprocess.run(['umount', disk], check=True)


# ---- damaged files

def again(run):
    return evaluate(load_condensed(run, device='cpu', progress=False))


def test_the_copy_is_sound(copied):
    before = finished(copied)
    assert len(again(copied).records) == 1
    assert finished(copied) == before


# a student's weights are not read back, only its result
@pytest.mark.parametrize('damage,stage', [(d, s) for d in ('truncated', 'garbage', 'missing', 'manifest', 'schema')
                                          for s in ('observer', 'statistics', 'initialize', 'synthesize',
                                              'relabel', 'evaluate') if (d, s) != ('garbage', 'evaluate')])
def test_damaged_results_are_refused_by_name(stage, damage, copied):
    payload = next((copied / 'store' / stage).rglob('*.safetensors'))
    manifest = payload.parent / 'manifest.json'
    if damage == 'truncated':
        payload.write_bytes(payload.read_bytes()[:-100])
    elif damage == 'garbage':      # of the right length
        payload.write_bytes(os.urandom(payload.stat().st_size))
    elif damage == 'missing':
        payload.unlink()
    elif damage == 'manifest':
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | dict(schema=99)))
    if stage in ('statistics', 'initialize') and damage == 'garbage':      # read when synthesis is computed
        shutil.rmtree(copied / 'store' / 'synthesize')
    text = refused(lambda: again(copied), payload.parent.name)
    assert {'manifest': 'manifest.json', 'schema': 'schema 99'}.get(damage, payload.name) in text


@pytest.mark.parametrize('name', ['run.json', 'recipe.yaml'])
@pytest.mark.parametrize('damage', ['truncated', 'missing', 'garbage'])
def test_damaged_descriptions_are_refused_by_name(name, damage, copied):
    "run.json and recipe.yaml say what a folder holds; without a sound copy nothing is computed."
    path = copied / name
    if damage == 'missing':
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60] if damage == 'truncated' else b'\x00\xff' * 50)
    refused(lambda: again(copied), copied.name, *([] if damage == 'missing' and name == 'run.json' else [name]))


def test_an_unfinished_ledger_line_is_skipped_and_the_next_record_is_whole(copied):
    ledger = copied / 'ledger.jsonl'
    ledger.write_text(ledger.read_text()[:-30])
    assert len(again(copied).records) == 1
    lines = ledger.read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[1])['student'] == 'convnet_d1'


# ---- weights made elsewhere

def card(name, acc, classes=10):
    return dict(card=dict(observer=name, classes=classes, test_accuracy=acc))


def foreign(tmp_path, kind):
    path = tmp_path / 'teacher.safetensors'
    if kind == 'missing':
        return tmp_path / 'nowhere.safetensors'
    if kind.endswith('pt'):
        path = tmp_path / 'teacher.pt'
        torch.save(build_model('wrn16_2', 10, 8).state_dict(), path)
    else:
        name, classes, size = dict(architecture=('convnet_d2', 10, 8), classes=('wrn16_2', 7, 8),
                                   size=('wrn16_2', 10, 32)).get(kind, ('wrn16_2', 10, 8))
        save_weights(build_model(name, classes, size), path, card(name, .97, classes))
    if kind.startswith('truncated'):
        path.write_bytes(path.read_bytes()[:5000])
    return path


@pytest.mark.parametrize('kind,words', [('truncated', ['teacher.safetensors', 'truncated']),
                                        ('truncated pt', ['teacher.pt', 'truncated']),
                                        ('missing', ['nowhere.safetensors']),
                                        ('architecture', ['teacher.safetensors', 'convnet_d2', 'wrn16_2']),
                                        ('classes', ['teacher.safetensors', '7', '10']),
                                        ('size', ['teacher.safetensors', '32', '8']),
                                        ('untrained', ['wrn16_2', '97.0%'])])
def test_weights_that_do_not_belong_are_refused(kind, words, tmp_path):
    path = foreign(tmp_path, kind)
    refused(lambda: condense(tiny(), out=tmp_path / 'run', weights={'wrn16_2': path}, progress=False), *words)
    assert not list((tmp_path / 'run' / 'store').glob('synthesize*'))


def test_a_card_need_not_say_more_than_an_accuracy(tmp_path):
    path = tmp_path / 'teacher.safetensors'
    save_weights(build_model('wrn16_2', 10, 8), path, dict(card=dict(test_accuracy=.97)))
    refused(lambda: condense(tiny(), out=tmp_path / 'run', weights={'wrn16_2': path}, progress=False), 'wrn16_2',
            '97.0%')


@pytest.mark.parametrize('kind', ['pt', 'safetensors'])
def test_weights_of_the_own_chain_are_accepted_from_outside(kind, whole, tmp_path):
    "A trained observer given as a file: the same images as the run that trained it."
    source = next(f for f in (whole / 'store' / 'observer').rglob('weights.safetensors')
                  if load_tensors(f)[1]['name'] == 'wrn16_2')
    path = tmp_path / f'teacher.{kind}'
    shutil.copy(source, path) if kind == 'safetensors' else torch.save(load_tensors(source)[0], path)
    c = condense(tiny(), out=tmp_path / 'run', weights={'wrn16_2': path}, progress=False, labels=False)
    images = load_tensors(next((whole / 'store' / 'synthesize').rglob('*.safetensors')))[0]['images']
    assert c.images.equal(images)


def test_the_command_line_refuses_weights_with_exit_code_2(tmp_path, edc):
    for item, words in ((f"wrn16_2={foreign(tmp_path, 'classes')}", ['teacher.safetensors', '7', '10']),
                        ('teacher.safetensors', ['NAME=FILE'])):
        done = edc(*command('run', '--weights', item))
        assert done.returncode == 2
        one_sentence(done.stderr, *words)


def test_weights_for_an_observer_that_takes_no_part_are_refused(tmp_path):
    "A mistyped name would otherwise train an observer silently."
    path = foreign(tmp_path, 'untrained')
    refused(lambda: condense(tiny(), out=tmp_path / 'run', weights={'wrn16': path}, progress=False), 'wrn16')


# ---- a resume that is another run

def test_a_folder_keeps_to_its_run(copied):
    for changes, kw, words in (({'synthesize.iterations': 7}, {}, ['synthesize.iterations']),
                               ({'evaluate.lr': .1, 'matching.alpha': .1}, {}, ['evaluate.lr', 'matching.alpha']),
                               ({}, dict(seed=1), ['seed']), ({'data.per_class': 19}, {}, ['data.per_class'])):
        before = payloads(copied)
        refused(lambda: condense(tiny(**changes), out=copied, progress=False, **kw), copied, *words)
        assert payloads(copied).keys() == before.keys()


def test_a_folder_keeps_to_its_data(tmp_path):
    d, other = (open_dataset(tiny().data, seed=s) for s in (0, 1))
    condense(tiny(**{'synthesize.iterations': 0, 'initialize.method': 'real', 'relabel.labels': 'hard',
                     'evaluate.loss': 'ce'}), d, tmp_path / 'run', progress=False)
    refused(lambda: condense(tiny(**{'synthesize.iterations': 0, 'initialize.method': 'real',
                                     'relabel.labels': 'hard', 'evaluate.loss': 'ce'}), other, tmp_path / 'run',
                             progress=False),
            'data_hash')


def test_a_folder_keeps_to_its_weights_and_precision(copied, tmp_path):
    "Both change every image; a contact sheet of one and a ledger of the other must not meet in a folder."
    path = foreign(tmp_path, 'pt')
    refused(lambda: condense(tiny(), out=copied, weights={'wrn16_2': path}, progress=False), copied, 'weights')
    refused(lambda: condense(tiny(), out=copied, precision='bf16', progress=False), copied, 'precision')


# ---- losses that are not finite

@pytest.mark.parametrize('changes,words',
                         [({'squeeze.lr': 1e30}, ['squeeze convnet_d1', 'epoch 1', 'step', 'squeeze.lr']),
                                           ({'matching.weight': 1e38},
                                            ['synthesize', 'batch 0, iteration 1', 'observer wrn16_2',
                                             'synthesize.lr']),
                                           ({'matching.weight': 1e38, 'synthesize.iterations': 1},
                                            ['synthesize', 'batch 0']),
                                           ({'evaluate.lr': 1e30, 'evaluate.schedule': 'smoothing',
                                             'evaluate.optimizer': 'sgd'},
                                            ['student convnet_d1', 'epoch', 'step', 'evaluate.lr'])],
                         ids=['squeeze', 'synthesize', 'last iteration', 'evaluate'])
def test_losses_that_are_not_finite_name_stage_and_step(changes, words, tmp_path):
    r = tiny(**{'initialize.method': 'real'} | changes)
    refused(lambda: evaluate(condense(r, out=tmp_path / 'run', progress=False)), *words)
    stage = words[0].split()[0].replace('student', 'evaluate').replace('squeeze', 'observer')
    assert not [m for m in finished(tmp_path / 'run') if stage in m]


# ---- places that cannot be used

def test_two_processes_in_one_folder(tmp_path, edc, whole):
    "The second is refused while the first holds the folder, even stopped; the first is not disturbed."
    first = start(tmp_path, 'synthesize:saved:2', env=dict(ONLY_STOP='1'))
    try:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        code, _, err = finish(start(tmp_path))
        assert code == 1
        one_sentence(err.strip().splitlines()[-1], 'another process is working in', tmp_path / 'run')
    finally:
        first.send_signal(signal.SIGCONT)
    code, out, err = finish(first)
    assert code == 0, err
    same(whole, tmp_path / 'run')


def test_two_runs_at_work_on_the_same_stage_of_a_shared_store(whole, tmp_path):
    "The slower one finds the stage finished when it is about to: what others may be reading stays as it is."
    for k in 'ab':
        (tmp_path / k).mkdir()
    slow = start(tmp_path / 'a', 'observer:manifest:1', env=dict(ONLY_STOP='1', STORE=str(tmp_path / 'run' / 'store')))
    try:
        os.waitid(os.P_PID, slow.pid, os.WSTOPPED | os.WNOWAIT)
        code, _, err = finish(start(tmp_path / 'b', env=dict(STORE=str(tmp_path / 'run' / 'store'))))
        assert code == 0, err
        before = finished(tmp_path / 'run')
    finally:
        slow.send_signal(signal.SIGCONT)
    code, _, err = finish(slow)
    assert code == 0, err
    same(whole, tmp_path / 'run')
    assert finished(tmp_path / 'run') == before
    a, b = (json.loads((tmp_path / k / 'run' / 'ledger.jsonl').read_text()) for k in 'ab')
    assert all(a[k] == b[k] for k in ('images_hash', 'last', 'best', 'curve', 'recipe_hash'))


def test_a_doubt_about_the_run_is_one_line_of_its_own(tmp_path, edc):
    done = edc(*command(tmp_path / 'run'))
    assert done.returncode == 0, done.stderr
    doubts = [line for line in done.stderr.splitlines() if line.startswith('edc: warning: ')]
    assert len(doubts) == 1 and 'evaluate.ema_rate' in doubts[0] and 'UserWarning' not in done.stderr


@pytest.mark.parametrize('option', ['--out', '--store', '--ledger'])
def test_a_file_in_the_way_of_a_folder(option, tmp_path, edc):
    "Root may write anywhere, but not below a file."
    (tmp_path / 'file').write_text('in the way')
    args = command(tmp_path / 'run')
    if option == '--out':
        args[args.index('--out') + 1] = str(tmp_path / 'file' / 'run')
    else:
        args += [option, str(tmp_path / 'file' / 'x')]
    done = edc(*args)
    assert done.returncode == 2, done.stderr
    one_sentence(without_warnings(done.stderr), tmp_path / 'file')
    assert (tmp_path / 'file').read_text() == 'in the way'


def test_a_folder_in_the_way_of_a_file(tmp_path, edc):
    (tmp_path / 'ledger').mkdir()
    done = edc(*command(tmp_path / 'run', '--ledger', tmp_path / 'ledger'))
    assert done.returncode == 2, done.stderr
    one_sentence(without_warnings(done.stderr), tmp_path / 'ledger')


# ---- looking

def test_looking_does_not_change_a_run(whole, tmp_path):
    "Progress bars, snapshots and other readings: the same images, labels and student."
    c = condense(tiny(), out=tmp_path / 'bars', progress=True)
    evaluate(c)
    same(whole, tmp_path / 'bars')
    blind = condense(tiny(**{'synthesize.snapshots': []}), out=tmp_path / 'blind', progress=False)
    assert blind.images.equal(c.images) and not blind.synthetic.snapshots and list(c.synthetic.snapshots) == [2, 6]
    other = evaluate(blind, changes={'evaluate.checks': 5}).records[0]
    assert other['last'] == json.loads(next((whole / 'store' / 'evaluate').rglob('result.json')).read_text())['last']


@pytest.mark.parametrize('flatness', ['logits', 'statistics', 'sam'])
def test_a_watcher_that_looks_hard_does_not_change_the_images(flatness):
    "It draws random numbers, runs the observers in between and looks at the matching loss."
    r = tiny(**{'initialize.method': 'real', 'synthesize.flatness': flatness})
    d = open_dataset(r.data)
    models = [train_observer(n, d, r.squeeze)[0] for n in r.synthesize.observers]
    stats = [collect_statistics(m, d, r.matching, r.squeeze, name=n) for n, m in zip(r.synthesize.observers, models)]
    first, seen = initialize(d, r.initialize, 2), []

    def run(watch=None):
        observers = [Observer(n, m, s, d.size, r.matching) for n, m, s in zip(r.synthesize.observers, models, stats)]

        def look(batch, iteration, images, observer):
            torch.manual_seed(len(seen))
            torch.rand(5)
            for o in observers:
                _, mean, var = o.taps(images)
                o.matcher(mean, var, freeze=True)
            seen.append((batch, iteration))
        return synthesize(first, observers, d, r.synthesize, r.matching, watch=look if watch else None)
    a, b = run(), run(True)
    assert a.images.equal(b.images) and a.history.equal(b.history)
    assert seen == [(b, t) for b in range(3) for t in range(6)]
