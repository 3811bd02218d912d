"""Several processes learn what one learns from the same global batch, and none waits in vain."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from photo_sets import picture, write
from torch import nn

from bicrossnet_ros.errors import ConfigError
from training.checkpoint import load_checkpoint
from training.config_files import config_from_dict, load_config, with_changes
from training.data.loader import Batch
from training.distributed import GlobalBatchNorm, Team, join_team
from training.learner import Learner
from training.train import main, train

PLACES = 6
CONFIG = config_from_dict(
    {
        'data': {'places_per_step': PLACES},
        'model': {'name': 'bnext_nano', 'input_px': 32, 'bottleneck': 8, 'dropout': 0},
        'losses': {'info_nce': 1},
        'unfreezing': {'head_epochs': 1, 'partial_epochs': 1},
        'optimizer': {'strategy': 'sgd', 'learning_rate': 0.01, 'clip_norm': 3},
        'run': {'epochs': 3, 'threads': 1},
    },
    source='test',
)
CLASSES = tuple(f'{number:04d}' for number in range(10))


def make_data(root: Path) -> Path:
    for place in range(10):
        write(root / f'train/satellite/{place:04d}/{place:04d}.jpg', picture(place))
        write(root / f'train/drone/{place:04d}/image-01.jpeg', picture(place))
    return root


SMALL = [
    'model.name=bnext_nano',
    'model.input_px=32',
    'data.places_per_step=4',
    'unfreezing.strategy=none',
    'run.epochs=2',
    'run.evaluate_every=1',
    'run.device=cpu',
]


def global_batch(step: int) -> Batch:
    rng = np.random.default_rng(step)
    views = torch.from_numpy(rng.integers(0, 256, (2, PLACES, 32, 32, 3), np.uint8))
    labels = torch.from_numpy(rng.permutation(len(CLASSES))[:PLACES])
    return Batch(views[0], views[1], labels, skipped=0)


def share(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.satellite[rows], batch.drone[rows], batch.labels[rows], skipped=0)


def learn(team: Team, cuts: list[int]) -> dict:
    """Take an epoch of one step in each phase; `cuts` bound the processes' rows."""
    torch.set_num_threads(1)
    learner = Learner(CONFIG, classes=CLASSES, team=team)
    # In double precision no sign hangs on a rounding, so the whole of it can be compared.
    learner.network.double()
    # A channel whose (whole) sums are equal for all images stands on the kink of its PReLU as
    # long as the bias is exactly 0; there one rounding decides between two gradients.
    torch.manual_seed(7)
    for name, parameter in learner.network.named_parameters():
        if name.endswith('norm1.bias'):
            nn.init.normal_(parameter, std=0.1)
    learner.loss.double()
    single = learner.images
    learner.images = lambda batch: single(batch).double()
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    terms = []
    for step in range(3):
        learner.begin_epoch(step)
        learner.set_rates(step)
        rows = slice(cuts[team.rank], cuts[team.rank + 1])
        terms.append(learner.step(share(global_batch(step), rows), step=step))
    return {
        'before': before,
        'network': learner.network.state_dict(),
        'loss': learner.loss.state_dict(),
        'terms': terms,
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def join_rows(team: Team) -> dict:
    own = torch.arange(6.0).reshape(3, 2)[: team.rank + 1] + 10 * team.rank
    own.requires_grad_()
    left, right = team.gather_rows([own, 2 * own])
    (left.sum() + 3 * right.sum()).backward()
    return {
        'left': left.detach(),
        'right': right.detach(),
        'gradient': own.grad,
        'labels': team.gather_labels(torch.arange(team.rank + 1) + 2**40),
        'sums': team.sum_numbers([1, team.rank]),
        'shared': team.share({'rank': team.rank}),
    }


# The second: skipped images leave the processes with different numbers of places.
CUTS = ([0, 3, 6], [0, 1, 6])


def work(rank: int, world: int, ports: list[int], folder: Path) -> None:
    """Do in one process all that is compared below; starting processes is what takes time."""
    os.environ |= {
        'MASTER_ADDR': '127.0.0.1',
        'RANK': str(rank),
        'WORLD_SIZE': str(world),
        'LOCAL_RANK': str(rank),
    }
    os.environ['MASTER_PORT'] = str(ports[0])
    with join_team('cpu') as team:
        result = {'learnt': [learn(team, cuts) for cuts in CUTS], 'rows': join_rows(team)}
    torch.save(result, folder / f'{rank}.pt')
    os.environ['MASTER_PORT'] = str(ports[1])
    config = load_config(folder / 'run' / 'config.yaml')
    config = with_changes(config, ['run.epochs=2'])
    train(config, data=folder / 'data', out=folder / 'run', resume=True)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where two processes left what they did, and a run that one began and two ended."""
    folder = tmp_path_factory.mktemp('team')
    data, config = make_data(folder / 'data'), folder / 'config.yaml'
    config.write_text('run: {threads: 1, norm_steps: 1, average_decay: 0.5}\n')
    arguments = [str(config), '--data', str(data), '--out', str(folder / 'run'), '--set', *SMALL]
    assert main([*arguments, 'data.holdout=5', 'run.epochs=1']) == 0
    mp.spawn(work, (2, [free_port(), free_port()], folder), nprocs=2)
    return folder


@pytest.fixture(scope='module')
def results(folder):
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


@pytest.fixture(scope='module')
def alone():
    return learn(Team(torch.device('cpu')), [0, PLACES])


@pytest.mark.parametrize('case', range(len(CUTS)))
def test_two_processes_learn_what_one_learns(alone, results, case):
    first, second = (result['learnt'][case] for result in results)
    for name, value in first['network'].items():
        assert torch.equal(value, second['network'][name]), name
        moved = (alone['network'][name] - alone['before'][name]).abs().max().item()
        # A step moves a weight by its gradient, so this is the tolerance of the gradient.
        torch.testing.assert_close(
            value, alone['network'][name], rtol=0, atol=1e-12 + 1e-8 * moved, msg=name
        )
    assert torch.equal(first['loss']['info_nce.log_scale'], second['loss']['info_nce.log_scale'])
    torch.testing.assert_close(first['loss'], alone['loss'], rtol=1e-6, atol=0)
    for ours, theirs in zip(first['terms'], alone['terms'], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rows_are_joined_in_order_and_gradients_stay_at_home(results):
    for rank in range(2):
        result = results[rank]['rows']
        expected = torch.tensor([[0.0, 1.0], [10.0, 11.0], [12.0, 13.0]])
        assert torch.equal(result['left'], expected)
        assert torch.equal(result['right'], 2 * expected)
        assert torch.equal(result['gradient'], torch.full((rank + 1, 2), 7.0))
        # Labels are whole numbers beyond what a float32 holds.
        assert result['labels'].tolist() == [2**40, 2**40, 2**40 + 1]
        assert result['sums'] == [2, 1]
        assert result['shared'] == {'rank': 0}


def test_two_processes_go_on_with_what_one_began(folder):
    out = folder / 'run'
    lines = [json.loads(line) for line in (out / 'history.jsonl').read_text().splitlines()]
    assert [line['epoch'] for line in lines] == [1, 1, 2, 2]
    assert [lines[k]['validation']['places'] for k in (1, 3)] == [2, 2]
    starts = [json.loads(line) for line in (out / 'starts.jsonl').read_text().splitlines()]
    assert [(start['processes'], start['step']) for start in starts] == [(1, 0), (2, 2)]
    for name in ('checkpoint.pt', 'final.pt'):
        assert load_checkpoint(out / name)['step'] == 4


@pytest.mark.parametrize('kind', [nn.BatchNorm1d, nn.BatchNorm2d])
@pytest.mark.parametrize('momentum', [0.1, None])
def test_global_norm_of_one_process_is_batch_norm(kind, momentum, tmp_path):
    """Against torch's; alone, a sum over all processes is the sum of one."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        shape = (6, 4) if kind is nn.BatchNorm1d else (6, 4, 3, 5)
        theirs = kind(4, momentum=momentum)
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
        ours = GlobalBatchNorm.like(copy.deepcopy(theirs))
        for _ in range(3):
            inputs = [(100 + 3 * torch.randn(shape)).requires_grad_()]
            inputs.append(inputs[0].detach().clone().requires_grad_())
            outputs = [norm(x) for norm, x in zip((ours, theirs), inputs, strict=True)]
            torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
            for output in outputs:
                (output**3).sum().backward()
            torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-3)
        ours.load_state_dict(theirs.state_dict())
        assert torch.equal(ours.eval()(inputs[0]), theirs.eval()(inputs[0]))
    finally:
        torch.distributed.destroy_process_group()


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    program = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2']
    return subprocess.run(
        [*program, '--master-port', str(free_port()), '-m', 'training.train', *arguments],
        cwd=Path(__file__).parents[1],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=300,  # not a measure of speed: a hang must end somehow
        check=False,
    )


def test_a_process_that_fails_ends_the_others(tmp_path):
    data, config = make_data(tmp_path / 'data'), tmp_path / 'config.yaml'
    config.write_text('{}\n')
    # One place in ten: only the process that draws it finds it broken.
    (data / 'train/drone/0004/image-01.jpeg').write_bytes(b'no image')
    changes = [*SMALL, 'data.unreadable=fail', 'run.epochs=50', 'run.tensorboard=false']
    out = tmp_path / 'run'
    result = torchrun(str(config), '--data', str(data), '--out', str(out), '--set', *changes)
    assert result.returncode != 0
    assert result.stderr.count('\nerror: ') + result.stderr.startswith('error: ') == 1
    assert 'image-01.jpeg' in result.stderr
    assert result.stdout.count('places to train on') == 1
    assert not (out / 'final.pt').exists()


def test_a_process_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    message = 'process 0 of this machine needs a GPU of its own'
    with pytest.raises(ConfigError, match=message), join_team('cuda'):
        pass
    with join_team('auto') as team:
        assert (team.device.type, team.rank, team.world, team.leads) == ('cpu', 0, 1, True)
