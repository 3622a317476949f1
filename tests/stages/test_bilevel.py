"""DM and DC: a killed run ends as a whole one does."""
import json
import signal

import pytest

from edc_nb.recipes.registry import recipe
from edc_nb.run.folder import condense
from edc_nb.stages.synthesize import to_bytes
from kit import finish, start


@pytest.mark.parametrize('method', ['dm', 'dc'])
def test_bilevel_methods_killed_and_resumed_are_the_same(method, tmp_path):
    changes = {'data.per_class': 20, 'data.test_per_class': 5,
               'synthesize.method': method, 'synthesize.iterations': 6, 'synthesize.snapshots': [3],
               'bilevel.network': 'wrn16_2' if method == 'dm' else 'convnet_d1', 'bilevel.real_batch': 8,
               'bilevel.outer_steps': 2,
               'relabel.labels': 'hard', 'evaluate.loss': 'ce', 'evaluate.student': 'convnet_d1', 'evaluate.epochs': 2}
    killed = start(tmp_path, 'synthesize:saved:3', changes)
    code, _, err = finish(killed)
    assert code == -signal.SIGKILL and list((tmp_path / 'run' / 'store' / 'partial').glob('synthesize-*.pt')), err
    r = recipe('edc', 'digits', ipc=2).replace(changes)
    c, whole = (condense(r, out=tmp_path / folder, progress=False) for folder in ('run', 'whole'))
    assert [json.loads((x.folder / 'manifest.json').read_text())['resumed'] for x in (c, whole)] == [True, False]
    assert c.images.equal(whole.images) and c.synthetic.history.equal(whole.synthetic.history)
    assert c.synthetic.snapshots[3].equal(whole.synthetic.snapshots[3])
    assert len(c.synthetic.history) == 6 and not c.images.equal(to_bytes(c.chain.initial().images, c.chain.dataset))
