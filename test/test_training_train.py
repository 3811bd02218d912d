"""The trainer: resumes exactly, learns, distils, records, and says what it cannot use."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_sets import picture, write

from bicrossnet_ros.errors import ConfigError, ImageError, ModelError
from training.checkpoint import (
    load_checkpoint,
    network_from_checkpoint,
    network_from_state,
    save_checkpoint,
)
from training.config import TrainConfig
from training.config_files import config_from_dict, load_config, with_changes
from training.data.loader import Batch, batches
from training.data.sources import make_sources
from training.distributed import Team
from training.final_weights import choose_weights
from training.learner import Learner
from training.models.binary import BinaryConv2d
from training.run_folder import claim_folder
from training.train import main, train
from training.validation import Validation

ALONE = Team(torch.device('cpu'))
# Two steps an epoch: head, float weights, then all, with everything on that has a state.
SMALL = config_from_dict(
    {
        'data': {'places_per_step': 4, 'holdout': 4},
        'model': {'name': 'bnext_nano', 'input_px': 32, 'bottleneck': 8},
        'losses': {'info_nce': 1},
        'unfreezing': {'head_epochs': 1, 'partial_epochs': 1},
        'optimizer': {'clip_norm': 5, 'milestones': [3]},
        'run': {
            'epochs': 4,
            'threads': 1,
            'checkpoint_every': 3,
            'evaluate_every': 2,
            'average_decay': 0.9,
            'norm_steps': 2,
        },
    },
    source='test',
)
SHORT = ['run.epochs=2', 'run.average_decay=0', 'run.norm_steps=0', 'run.tensorboard=false']
BRIEF = with_changes(SMALL, SHORT)


def make_data(root: Path, *, places: range = range(1, 12), drones: int = 3) -> Path:
    for place in places:
        image = picture(place)
        write(root / f'train/satellite/{place:04d}/{place:04d}.jpg', image)
        for view in range(1, drones + 1):
            shifted = np.roll(image, 3 * view, axis=1)
            write(root / f'train/drone/{place:04d}/image-{view:02d}.jpeg', shifted)
    return root


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('places'))


@pytest.fixture(scope='module')
def whole_run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole') / 'run'
    figures = train(SMALL, data=data, out=out)
    return out, figures


def history(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / 'history.jsonl').read_text().splitlines()]


def without_speed(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k != 'images_per_s'} for line in lines]


def assert_equal_states(first: dict, second: dict, *, path: str = '') -> None:
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_equal_states(first[key], second[key], path=f'{path}/{key}')
    elif isinstance(first, list):
        assert len(first) == len(second), path
        for k, pair in enumerate(zip(first, second, strict=True)):
            assert_equal_states(*pair, path=f'{path}/{k}')
    else:
        assert first == second, path


def command(config: Path, data: Path, out: Path, *more: str) -> list[str]:
    program = [sys.executable, '-m', 'training.train', str(config)]
    return [*program, '--data', str(data), '--out', str(out), *more]


def start(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        arguments,
        cwd=Path(__file__).parents[1],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_resumes_bit_by_bit(data, whole_run, tmp_path):
    out, figures = whole_run
    for attempt in range(5):  # a busy machine may let the run end before it can be killed
        killed = tmp_path / str(attempt)
        process = start(command(out / 'config.yaml', data, killed))
        while not (killed / 'checkpoint.pt').exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if load_checkpoint(killed / 'checkpoint.pt')['step'] < 8:
            break
    step = load_checkpoint(killed / 'checkpoint.pt')['step']
    assert step in (3, 6)  # between two checkpoints, and in the middle of an epoch or a phase

    assert train(SMALL, data=data, out=killed, resume=True) == figures
    for name in ('checkpoint.pt', 'final.pt'):
        states = [load_checkpoint(folder / name) for folder in (out, killed)]
        assert_equal_states(*states)
    assert without_speed(history(killed)) == without_speed(history(out))
    starts = [json.loads(line) for line in (killed / 'starts.jsonl').read_text().splitlines()]
    assert [line['step'] for line in starts] == [0, step]


def test_a_run_leaves_its_record(whole_run):
    out, figures = whole_run
    assert load_config(out / 'config.yaml') == SMALL
    epochs = [line for line in history(out) if 'loss' in line]
    assert [(line['epoch'], line['step']) for line in epochs] == [(1, 2), (2, 4), (3, 6), (4, 8)]
    assert [line['phase'] for line in epochs] == ['head', 'float', 'all', 'all']
    terms = {'cross_entropy', 'triplet', 'info_nce', 'total'}
    for line in epochs:
        assert set(line['loss']) == terms
        assert line['skipped'] == 0
        assert line['images_per_s'] > 0
    # The binary weights move in the last phase alone; Adam's milestone is after epoch 3, Lion's
    # counts from the epoch that frees them.
    assert [max(line['flips'].values()) > 0 for line in epochs] == [False, False, True, True]
    rates = [line['learning_rate'] for line in epochs]
    assert [rate['float'] for rate in rates] == pytest.approx([6e-3, 6e-3, 6e-3, 6e-4])
    assert [rate['binary'] for rate in rates] == pytest.approx([1e-3] * 4)
    validations = [line for line in history(out) if 'validation' in line]
    assert [line['epoch'] for line in validations] == [2, 4]

    final = load_checkpoint(out / 'final.pt')
    assert (final['step'], final['epoch']) == (8, 4)
    assert final['classes'] == [f'{place:04d}' for place in (2, 3, 4, 6, 7, 8, 10, 11)]
    assert re.fullmatch(r'[0-9a-f]{40}(-dirty)?|unknown', final['git_revision'])
    recalls = {'recall_at_1', 'recall_at_5', 'recall_at_10', 'places'}
    assert set(final['figures']) == recalls
    assert figures == {'step': 8, 'epoch': 4, **final['figures']}
    assert figures['places'] == 3
    [start] = [json.loads(line) for line in (out / 'starts.jsonl').read_text().splitlines()]
    assert (start['seed'], start['git_revision']) == (0, final['git_revision'])


def test_tensorboard_shows_the_curves(whole_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole_run[0] / 'tensorboard'))
    events.Reload()
    tags = set(events.Tags()['scalars'])
    assert {'loss/total', 'learning_rate/float', 'learning_rate/binary', 'images_per_s'} <= tags
    assert {'validation/recall_at_1', 'flips/backbone.blocks.0.unit3x3.conv'} <= tags
    assert 'phase/text_summary' in events.Tags()['tensors']
    lines = [line for line in history(whole_run[0]) if 'loss' in line]
    curve = [(point.step, point.value) for point in events.Scalars('loss/total')]
    assert curve == [(line['step'], pytest.approx(line['loss']['total'])) for line in lines]


def batch_of(data: Path, config: TrainConfig) -> tuple[tuple[str, ...], Batch]:
    source, _ = make_sources(config, data)
    [batch] = batches(source, config.data, seed=0, stream=0, first_step=0, last_step=1)
    return source.names, batch


def test_steps_reduce_the_loss_on_one_batch(data):
    config = with_changes(BRIEF, ['unfreezing.strategy=none', 'model.dropout=0'])
    names, batch = batch_of(data, config)
    learner = Learner(config, classes=names, team=ALONE)
    learner.begin_epoch(0)
    learner.set_rates(0)
    totals = [float(learner.step(batch, step=step)['total']) for step in range(16)]
    assert totals[-1] < 0.7 * totals[0]
    latents = [m.weight for m in learner.network.modules() if isinstance(m, BinaryConv2d)]
    assert max(weight.abs().max().item() for weight in latents) <= 1.5


def test_bfloat16_computes_about_the_same(data):
    names, batch = batch_of(data, BRIEF)
    terms = []
    for precision in ('float32', 'bfloat16'):
        config = with_changes(BRIEF, [f'run.precision={precision}'])
        learner = Learner(config, classes=names, team=ALONE)
        learner.begin_epoch(0)
        terms.append(learner.step(batch, step=0))
        assert {p.dtype for p in learner.network.parameters()} == {torch.float32}
    assert terms[1]['total'].dtype == torch.float32
    assert terms[0]['total'] != terms[1]['total']
    torch.testing.assert_close(
        terms[1]['cross_entropy'], terms[0]['cross_entropy'], rtol=0.02, atol=0
    )
    config = with_changes(BRIEF, ['run.precision=float16'])
    with pytest.raises(ConfigError, match='float16, which needs a GPU'):
        Learner(config, classes=names, team=ALONE)


def test_scaled_gradients_move_the_weights_as_plain_ones(data):
    """What float16 needs on a GPU; a scale is a power of two, so nothing is rounded."""
    names, batch = batch_of(data, BRIEF)
    # In the first phase one of the two optimisers has nothing to do; the last one moves all.
    states = []
    for scaled in (False, True):
        learner = Learner(BRIEF, classes=names, team=ALONE)
        learner.scaler = torch.amp.GradScaler('cpu', enabled=scaled)
        for step in (0, 2):
            learner.begin_epoch(step)
            learner.set_rates(step)
            learner.step(batch, step=step)
        states.append(dict(learner.network.state_dict()))
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
    before = {name: value.clone() for name, value in learner.network.named_parameters()}
    learner.scaler = torch.amp.GradScaler('cpu', init_scale=2.0**126, enabled=True)
    learner.step(batch, step=3)
    # The gradients overflow: no step is taken, and the scale falls.
    assert_equal_states(before, dict(learner.network.named_parameters()))
    assert learner.scaler.get_scale() == 2.0**125


def test_temperature_cools_with_the_epochs(data):
    cooling = ['model.temperature_decay=0.5', 'run.norm_steps=1', 'unfreezing.strategy=none']
    config = with_changes(BRIEF, cooling)
    learner = Learner(config, classes=('a', 'b'), team=ALONE)
    layer = next(m for m in learner.network.modules() if isinstance(m, BinaryConv2d))
    learner.begin_epoch(3)
    assert layer.temperature == 0.125
    learner = Learner(BRIEF, classes=('a', 'b'), team=ALONE)
    layer = next(m for m in learner.network.modules() if isinstance(m, BinaryConv2d))
    learner.begin_epoch(3)
    assert layer.temperature == 0


def test_float32_is_not_rounded_to_tf32(data, tmp_path):
    seen, cudnn = set(), torch.backends.cudnn
    before = cudnn.allow_tf32
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda *_: seen.add(cudnn.allow_tf32)
    )
    cudnn.allow_tf32 = True
    try:
        train(with_changes(BRIEF, ['run.norm_steps=1']), data=data, out=tmp_path / 'run')
        assert cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = before
        hook.remove()
    assert seen == {False}


def test_deterministic_algorithms_suffice(data, tmp_path):
    config = with_changes(BRIEF, ['run.deterministic=true', 'run.average_decay=0.5'])
    try:
        train(config, data=data, out=tmp_path / 'run')
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_full_disk_keeps_the_checkpoint_for_a_longer_run(data, tmp_path):
    longer, out = with_changes(BRIEF, ['run.epochs=3']), tmp_path / 'run'
    train(BRIEF, data=data, out=out)
    before = (out / 'checkpoint.pt').read_bytes()
    # Linux' device that is always full, where the trainer writes first.
    (out / 'checkpoint.partial').symlink_to('/dev/full')
    message = r'\(No space left on device\); checkpoint.pt of before is intact; .* --resume'
    with pytest.raises(ModelError, match=message):
        train(longer, data=data, out=out, resume=True)
    assert (out / 'checkpoint.pt').read_bytes() == before
    assert not (out / 'checkpoint.partial').is_symlink()

    figures = train(longer, data=data, out=out, resume=True)
    assert figures == train(longer, data=data, out=tmp_path / 'at once')
    states = [load_checkpoint(folder / 'final.pt') for folder in (out, tmp_path / 'at once')]
    assert_equal_states(*states)
    with pytest.raises(ConfigError, match=r'has done 6 steps already, run\.epochs ends it at 4'):
        train(BRIEF, data=data, out=out, resume=True)


def test_a_run_whose_schedule_ends_with_it_gets_no_longer(data, whole_run, tmp_path):
    state = load_checkpoint(whole_run[0] / 'checkpoint.pt')
    state['config']['optimizer']['schedule'] = 'cosine'
    save_checkpoint(tmp_path / 'checkpoint.pt', state)
    longer = with_changes(SMALL, ['optimizer.schedule=cosine', 'run.epochs=5'])
    with pytest.raises(ConfigError, match=r'run\.epochs was 4, now 5'):
        train(longer, data=data, out=tmp_path, resume=True)


def test_a_first_checkpoint_that_does_not_fit_leaves_nothing(tmp_path):
    (tmp_path / 'checkpoint.partial').symlink_to('/dev/full')
    with pytest.raises(ModelError, match=r'none was written before; .* start it again'):
        save_checkpoint(tmp_path / 'checkpoint.pt', {'step': 0})
    assert list(tmp_path.iterdir()) == []


# What is refused ------------------------------------------------------------------------------


def test_a_run_is_never_overwritten_or_mixed(data, whole_run, tmp_path):
    out, _ = whole_run
    with pytest.raises(ConfigError, match='holds a run already'):
        train(SMALL, data=data, out=out)
    before = (out / 'config.yaml').read_text()
    for change, message in [
        ('run.seed=1', 'run.seed was 0, now 1'),
        ('model.name=bnext_tiny', "model.name was 'bnext_nano', now 'bnext_tiny'"),
        ('optimizer.milestones=[2]', r'optimizer.milestones was \[3\], now \[2\]'),
    ]:
        with pytest.raises(ConfigError, match=message):
            train(with_changes(SMALL, [change]), data=data, out=out, resume=True)
    other = make_data(tmp_path / 'other', places=range(2, 13))
    with pytest.raises(ConfigError, match=r'now --data shows 8 \(2 steps\); 0002 is in one'):
        train(SMALL, data=other, out=out, resume=True)
    assert (out / 'config.yaml').read_text() == before
    with pytest.raises(ModelError, match='start the training without --resume'):
        train(SMALL, data=data, out=tmp_path / 'nothing', resume=True)
    assert not (tmp_path / 'nothing').exists()


def test_two_runs_never_share_a_folder(data, whole_run, tmp_path):
    out = tmp_path / 'run'
    config = whole_run[0] / 'config.yaml'
    first = start(command(config, data, out, '--set', 'run.epochs=1000'))
    while not (out / 'checkpoint.pt').exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    before = (out / 'config.yaml').read_text()
    with pytest.raises(ConfigError, match='another process is training here'):
        train(SMALL, data=data, out=out, resume=True)
    assert (out / 'config.yaml').read_text() == before
    first.kill()
    first.communicate()
    with claim_folder(out, resume=True):
        pass


@pytest.mark.parametrize('name', ['file', 'file/run'])
def test_a_folder_that_cannot_be_made_is_said(data, whole_run, tmp_path, capsys, name):
    (tmp_path / 'file').write_text('')
    arguments = [str(whole_run[0] / 'config.yaml'), '--data', str(data)]
    assert main([*arguments, '--out', str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {tmp_path / name}: cannot be written as a folder (')
    assert error.count('\n') == 1


def test_an_interrupted_run_says_how_it_goes_on(data, whole_run, tmp_path):
    out = tmp_path / 'run'
    process = start(command(whole_run[0] / 'config.yaml', data, out, '--set', 'run.epochs=1000'))
    while not (out / 'checkpoint.pt').exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[1] == f'interrupted: {out}: go on with --resume\n'
    assert process.returncode == 130


def test_a_full_disk_keeps_the_configuration(data, whole_run, tmp_path):
    out = tmp_path / 'run'
    shutil.copytree(whole_run[0], out)
    before = (out / 'config.yaml').read_text()
    (out / 'config.partial').symlink_to('/dev/full')
    with pytest.raises(OSError, match='No space left'):
        train(SMALL, data=data, out=out, resume=True)
    assert (out / 'config.yaml').read_text() == before


def test_a_final_pt_is_not_resumed(data, whole_run, tmp_path):
    out = tmp_path / 'run'
    out.mkdir()
    shutil.copy(whole_run[0] / 'final.pt', out / 'checkpoint.pt')
    with pytest.raises(ModelError, match='no checkpoint of an unfinished run, it lacks tally'):
        train(SMALL, data=data, out=out, resume=True)
    assert not (out / 'config.yaml').exists()


@pytest.mark.filterwarnings('error')
def test_files_that_are_no_checkpoints(whole_run, tmp_path):
    path = tmp_path / 'some.pt'
    path.write_bytes(b'')
    with pytest.raises(ModelError, match='the file is empty'):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({'a': tmp_path}))
    with pytest.raises(ModelError, match='objects other than tensors'):
        load_checkpoint(path)
    path.write_bytes((whole_run[0] / 'final.pt').read_bytes()[:5000])
    with pytest.raises(ModelError, match='damaged or cut short'):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match='not a checkpoint of this trainer'):
        load_checkpoint(path)
    state = load_checkpoint(whole_run[0] / 'final.pt')
    for odd in ({'classes': 3}, {'network': [1]}):
        with pytest.raises(ModelError, match='do not fit the network'):
            network_from_state({**state, **odd}, source=path)


def test_unusable_checkpoints(whole_run, tmp_path):
    path = tmp_path / 'checkpoint.pt'
    path.write_bytes(b'x' * 100)
    with pytest.raises(ModelError, match='not a readable checkpoint'):
        load_checkpoint(path)
    torch.save({'checkpoint_version': 1}, path)
    with pytest.raises(ModelError, match='checkpoint version 1, expected 2'):
        load_checkpoint(path)
    state = load_checkpoint(whole_run[0] / 'final.pt')
    state['config']['model']['name'] = 'bnext_tiny'
    with pytest.raises(ModelError, match='its weights do not fit the network'):
        network_from_state(state, source=path)


def test_a_network_comes_back_from_its_checkpoint(whole_run):
    network = network_from_checkpoint(whole_run[0] / 'final.pt')
    assert not network.training
    assert len(network.classes) == 8
    outputs = network(torch.zeros(1, 3, 32, 32))
    assert outputs.logits[0].shape == (1, 8)


def test_a_full_disk_under_the_history_ends_in_one_line(data, whole_run, tmp_path, capsys):
    out = tmp_path / 'run'
    out.mkdir()
    (out / 'starts.jsonl').symlink_to('/dev/full')
    config = whole_run[0] / 'config.yaml'
    assert main([str(config), '--data', str(data), '--out', str(out)]) == 2
    assert capsys.readouterr().err == (
        f'error: {out}: No space left on device; make room, then start it again\n'
    )


def broken_teacher(source: Path, path: Path, **changes: object) -> str:
    state = load_checkpoint(source / 'final.pt')
    save_checkpoint(path, {**state, **changes})
    return f'losses.teacher={path}'


def test_a_teacher_of_other_places_is_refused(data, whole_run, tmp_path):
    out, _ = whole_run
    classes = load_checkpoint(out / 'final.pt')['classes']

    def distil(change: str, *more: str) -> None:
        train(with_changes(BRIEF, [change, *more]), data=data, out=tmp_path / 'run')

    renamed = broken_teacher(out, tmp_path / 'a.pt', classes=[*classes[:-1], '9999'])
    with pytest.raises(ModelError, match="teacher's class 7 is '9999', the student's '0011'"):
        distil(renamed)
    fewer = with_changes(BRIEF, ['data.holdout=2'])
    train(fewer, data=data, out=tmp_path / 'fewer')
    with pytest.raises(ModelError, match='the teacher knows 5 places, the student 8'):
        distil(f'losses.teacher={tmp_path / "fewer" / "final.pt"}')
    with pytest.raises(ConfigError, match=r'losses.teacher is nowhere.pt, but there is no such'):
        distil('losses.teacher=nowhere.pt')
    with pytest.raises(ConfigError, match=r'model.pretrained is nowhere.pth, but there is no'):
        distil('model.pretrained=nowhere.pth')
    bare = ['model.branches=false', 'losses.cross_entropy=0', 'losses.triplet=0']
    with pytest.raises(ModelError, match='the student has no branches'):
        distil(f'losses.teacher={out / "final.pt"}', *bare)


def test_a_teacher_of_another_input_size_is_told(data, whole_run, capsys):
    teacher = f'losses.teacher={whole_run[0] / "final.pt"}'
    names, _ = batch_of(data, BRIEF)
    Learner(with_changes(BRIEF, [teacher]), classes=names, team=ALONE)
    assert not capsys.readouterr().out
    Learner(with_changes(BRIEF, [teacher, 'model.input_px=64']), classes=names, team=ALONE)
    assert capsys.readouterr().out == (
        f'{whole_run[0] / "final.pt"}: the teacher was trained at 32 px, '
        "it will see the student's 64 px\n"
    )


def test_a_teacher_of_numbers_that_are_none_is_refused(data, whole_run, tmp_path):
    network = load_checkpoint(whole_run[0] / 'final.pt')['network']
    broken = {**network, 'backbone.stem.weight': network['backbone.stem.weight'] * float('nan')}
    teacher = broken_teacher(whole_run[0], tmp_path / 'teacher.pt', network=broken)
    with pytest.raises(ModelError, match=r'not finite \(first: backbone.stem.weight\)'):
        train(with_changes(BRIEF, [teacher]), data=data, out=tmp_path / 'run')


def test_a_teacher_guides_and_stays_as_it_is(data, whole_run, tmp_path, capsys):
    out, _ = whole_run
    terms = ['losses.feature_distillation=0.5', 'losses.logit_distillation=2']
    config = with_changes(BRIEF, [f'losses.teacher={out / "final.pt"}', *terms])
    names, batch = batch_of(data, config)
    learner = Learner(config, classes=names, team=ALONE)
    before = {k: v.clone() for k, v in learner.teacher.state_dict().items()}
    learner.begin_epoch(0)
    learner.set_rates(0)
    first = learner.step(batch, step=0)
    assert float(first['logit_distillation']) > 0
    assert float(first['feature_distillation']) > 0
    weights = config.losses
    total = sum(getattr(weights, name) * first[name] for name in first if name != 'total')
    torch.testing.assert_close(first['total'], total)
    assert_equal_states(before, dict(learner.teacher.state_dict()))
    assert not learner.teacher.training

    # Without a teacher the run goes on without distillation, and says so.
    train(BRIEF, data=data, out=tmp_path / 'run')
    assert 'losses.teacher is empty: training without knowledge dist' in capsys.readouterr().out


def test_pretrained_weights_are_where_a_run_starts(data, whole_run, tmp_path, capsys):
    path = whole_run[0] / 'final.pt'
    frozen = ['unfreezing.head_epochs=2', 'unfreezing.partial_epochs=0']
    config = with_changes(BRIEF, [f'model.pretrained={path}', *frozen])
    train(config, data=data, out=tmp_path / 'run')
    assert f'{path}: ' in capsys.readouterr().out  # what fitted, and what did not
    ours = load_checkpoint(tmp_path / 'run' / 'final.pt')['network']
    theirs = load_checkpoint(path)['network']
    backbone = [name for name in ours if name.startswith('backbone.')]
    assert all(torch.equal(ours[name], theirs[name]) for name in backbone)
    assert not torch.equal(
        ours['branches.classifiers.0.classifier.weight'],
        theirs['branches.classifiers.0.classifier.weight'],
    )


def test_broken_images_are_counted_or_fatal(tmp_path):
    data = make_data(tmp_path / 'data', drones=1)
    (data / 'train/drone/0003/image-01.jpeg').write_bytes(b'no image')
    config = with_changes(BRIEF, ['data.holdout=0'])
    train(config, data=data, out=tmp_path / 'skip')
    # Eleven places, two steps of four: an epoch leaves three out at random.
    skipped = [line['skipped'] for line in history(tmp_path / 'skip')]
    assert max(skipped) == 1
    fatal = with_changes(config, ['data.unreadable=fail', 'run.epochs=4'])
    with pytest.raises(ImageError, match=r'0003/image-01\.jpeg'):
        train(fatal, data=data, out=tmp_path / 'fail')


def test_a_loss_that_is_not_finite_ends_the_run(data, tmp_path):
    changes = ['optimizer.strategy=sgd', 'optimizer.learning_rate=10', 'optimizer.clip_norm=0']
    config = with_changes(BRIEF, [*changes, 'unfreezing.strategy=none', 'run.epochs=20'])
    with pytest.raises(ConfigError, match=r'the (loss is|weights are) not finite'):
        train(config, data=data, out=tmp_path / 'run')
    state = load_checkpoint(tmp_path / 'run' / 'checkpoint.pt')
    assert all(value.isfinite().all() for value in state['network'].values())


def test_nothing_below_the_data_folder(tmp_path, capsys):
    config = tmp_path / 'config.yaml'
    config.write_text('{}')
    code = main([str(config), '--data', str(tmp_path / 'none'), '--out', str(tmp_path / 'run')])
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert str(tmp_path / 'none') in error


# The end of a run, and validation -------------------------------------------------------------


class Scripted:
    """A validation whose recalls are given; it looks at the network not at all."""

    def __init__(self, *recalls: float) -> None:
        self.recalls = list(recalls)

    def figures(self, network):
        return {'recall_at_1': self.recalls.pop(0)}


@pytest.mark.parametrize(
    ('recalls', 'variant'),
    [
        ((0.5, 0.4, 0.3, 0.2), 'last weights'),
        ((0.5, 0.6, 0.3, 0.2), 'last weights with BatchNorm re-estimated'),
        ((0.5, 0.4, 0.5, 0.2), 'average of the weights'),
        (None, 'average of the weights with BatchNorm re-estimated'),
    ],
)
def test_the_best_weights_are_kept(data, recalls, variant):
    config = with_changes(BRIEF, ['run.average_decay=0.5', 'run.norm_steps=1'])
    source, _ = make_sources(config, data)
    learner = Learner(config, classes=source.names, team=ALONE)
    weight = learner.network.backbone.stem.weight
    norm = learner.network.backbone.stem_norm
    average = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
        last = weight.clone()
    found, figures = choose_weights(learner, source, Scripted(*recalls) if recalls else None)
    assert found == variant
    assert figures == ({'recall_at_1': max(recalls)} if recalls else {})
    assert torch.equal(weight, average if 'average' in variant else last)
    assert (norm.num_batches_tracked == 1) == ('re-estimated' in variant)


def test_validation_never_changes_and_knows_chance_from_sight(data):
    source, held_out = make_sources(SMALL, data)
    learner = Learner(SMALL, classes=source.names, team=ALONE)
    learner.begin_epoch(2)
    first, again = (Validation(held_out, SMALL, ALONE).figures(learner.network) for _ in range(2))
    assert first == again
    assert learner.network.training
    assert first['places'] == 3

    class Blind(torch.nn.Module):
        """Sees the same in every image: all ties, and a tie counts as a miss."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, 4))

        def forward(self, x):
            return self.weight.expand(len(x), 4)

    assert Validation(held_out, SMALL, ALONE).figures(Blind())['recall_at_1'] == 0


def test_the_command_line_changes_the_configuration(data, tmp_path, capsys):
    config = tmp_path / 'config.yaml'
    config.write_text('run: {threads: 1}\n')
    small = ['model.name=bnext_nano', 'model.input_px=32', 'data.places_per_step=4']
    schedule = ['run.epochs=1', 'unfreezing.strategy=none', 'run.tensorboard=false']
    arguments = [str(config), '--data', str(data), '--out', str(tmp_path / 'run')]
    assert main([*arguments, '--set', *small, '--set', *schedule]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {'step': 2, 'epoch': 1}
    saved = load_config(tmp_path / 'run' / 'config.yaml')
    assert saved == replace(saved, model=replace(saved.model, name='bnext_nano', input_px=32))
    assert main([*arguments, '--set', 'run.speed=1']) == 2
    assert 'there is no run.speed' in capsys.readouterr().err
