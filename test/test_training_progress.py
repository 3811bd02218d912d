"""What a run tells: means that refuse NaN, a line for its stream, a history that resumes."""

import io
import json
import sys

import pytest
import torch

from bicrossnet_ros.errors import ConfigError
from training import progress
from training.distributed import Team
from training.progress import ProgressLine, RunLog, Tally, clock

ALONE = Team(torch.device('cpu'))


def terms(value: float) -> dict:
    return {'triplet': torch.tensor(value), 'total': torch.tensor(2 * value)}


def test_means_over_the_steps_that_counted():
    tally = Tally()
    tally.add(terms(1.0), images=16, skipped=0)
    tally.add({}, images=2, skipped=7)  # too few places were left: no step
    tally.add(terms(2.0), images=14, skipped=1)
    assert tally.means() == {'triplet': 1.5, 'total': 3.0}
    assert (tally.steps, tally.images, tally.skipped) == (2, 32, 8)
    tally.reset()
    assert tally.means() == {}


def test_a_restored_tally_goes_on_exactly():
    whole, first = Tally(), Tally()
    values = (0.1, 0.7, 1e-9, 3.3)
    for k, value in enumerate(values):
        whole.add(terms(value), images=2, skipped=k)
        if k < 2:
            first.add(terms(value), images=2, skipped=k)
    second, other = Tally(), Tally()
    second.load_state_dict(first.state_dict(), ALONE)
    other.load_state_dict(first.state_dict(), Team(torch.device('cpu'), rank=1, world=2))
    assert (second.skipped, other.skipped) == (1, 0)
    for k, value in enumerate(values[2:], 2):
        second.add(terms(value), images=2, skipped=k)
    assert second.means() == whole.means()
    assert second.skipped == whole.skipped


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_term_that_is_not_finite_is_named(value):
    tally = Tally()
    tally.add({'triplet': torch.tensor(1.0), 'total': torch.tensor(value)}, images=2, skipped=0)
    with pytest.raises(ConfigError, match=r'\(in: total\); lower optimizer\.learning_rate'):
        tally.means()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    time_s = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: time_s[0])
    return time_s


def test_a_log_file_gets_a_line_a_minute(now):
    stream = io.StringIO()
    line = ProgressLine(first=100, last=400, stream=stream)
    for step in range(100, 221):
        now[0] += 1
        if line.due():
            line.show(step, epoch='1.0/4', text='loss 1.0', images_per_s=16.0)
    assert stream.getvalue().splitlines() == [
        'epoch 1.0/4 step 159/400 loss 1.0 16.0 images/s elapsed 0:01:00 left 0:04:05',
        'epoch 1.0/4 step 219/400 loss 1.0 16.0 images/s elapsed 0:02:00 left 0:03:02',
    ]


def test_a_terminal_gets_one_line_that_is_redrawn(now):
    stream = Terminal()
    line = ProgressLine(first=0, last=10, stream=stream)
    now[0] += 0.4
    assert not line.due()
    now[0] += 0.2
    assert line.due()
    line.show(1, epoch='0.5/5', text='loss 10.25', images_per_s=1.0)
    line.show(2, epoch='1.0/5', text='loss 9', images_per_s=1.0)
    line.say('done')
    first, second, blank, rest = stream.getvalue().split('\r')[1:]
    assert (len(first), rest) == (len(second), 'done\n')
    assert blank.strip() == ''
    assert len(blank) >= len(second.rstrip())


def test_clock():
    assert [clock(s) for s in (0, 59.9, 61, 3600 * 30 + 1)] == [
        '0:00:00',
        '0:00:59',
        '0:01:01',
        '30:00:01',
    ]


def test_history_drops_what_will_come_again(tmp_path):
    log = RunLog(tmp_path, step=0, tensorboard=False)
    for step in (2, 4, 6):
        log.add({'epoch': step // 2, 'step': step})
    with (tmp_path / 'history.jsonl').open('a') as file:
        file.write('{"epoch": 4, "st')  # killed while writing
    RunLog(tmp_path, step=4, tensorboard=False).add({'epoch': 3, 'step': 6, 'again': True})
    lines = [json.loads(line) for line in (tmp_path / 'history.jsonl').read_text().splitlines()]
    assert lines == [
        {'epoch': 1, 'step': 2},
        {'epoch': 2, 'step': 4},
        {'epoch': 3, 'step': 6, 'again': True},
    ]


def test_missing_tensorboard_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(ConfigError, match=r'set run\.tensorboard: false'):
        RunLog(tmp_path, step=0, tensorboard=True)
