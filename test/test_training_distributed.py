"""Several processes learn what one learns from the same global batch, and none waits in vain."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from training.config import config_from_dict
from training.data.loader import Batch
from training.distributed import Team, join_team
from training.learner import Learner

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


def work(rank: int, world: int, port: int, cuts: list[int], folder: str) -> None:
    os.environ |= {
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
        'RANK': str(rank),
        'WORLD_SIZE': str(world),
        'LOCAL_RANK': str(rank),
    }
    with join_team('cpu') as team:
        torch.save(learn(team, cuts), Path(folder) / f'{rank}.pt')


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture(scope='module')
def alone():
    return learn(Team(torch.device('cpu')), [0, PLACES])


# The second: skipped images leave the processes with different numbers of places.
@pytest.mark.parametrize('cuts', [[0, 3, 6], [0, 1, 6]])
def test_two_processes_learn_what_one_learns(alone, cuts, tmp_path):
    mp.spawn(work, (2, free_port(), cuts, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
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
