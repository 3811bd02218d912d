"""Optimisers and their learning rates: Bi-Partitioned Optimization, and single ones.

Bi-partitioned, latent binary weights are moved by Lion, whose steps have the size of the learning
rate whatever the gradient's, and all others by Adam. The learning rates are a pure function of the
epoch, so nothing of a schedule needs saving.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, sections 3.6 and 4.2.
Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms" (Lion).
"""

from __future__ import annotations

import math
from typing import Any

from lion_pytorch import Lion
from torch import Tensor, nn, optim

from training.config import OptimizerConfig, UnfreezingConfig
from training.models.network import GeoNetwork
from training.models.partition import partition
from training.unfreezing import first_binary_epoch

ADAM_BETAS = (0.9, 0.999)
ADAM_EPS = 1e-8
LION_BETAS = (0.9, 0.99)
# Share of the learning rate at which a warm-up begins.
WARMUP_START = 0.01

FLOAT, BINARY, ALL = 'float', 'binary', 'all'


def make_optimizers(
    network: GeoNetwork, loss: nn.Module, config: OptimizerConfig
) -> dict[str, optim.Optimizer]:
    """Make the optimisers of a network and of the loss's own parameters.

    Parameters
    ----------
    network : GeoNetwork
        All its parameters get an optimiser, frozen ones too: without a gradient they are passed
        over, so frozen weights need ``grad is None`` (`apply_phase`, ``zero_grad``).
    loss : nn.Module
        Its parameters train with the head.
    config : OptimizerConfig
        Strategy, rates and decay.

    Returns
    -------
    dict
        ``{'float': ..., 'binary': ...}`` if bi-partitioned (without 'binary' if the network has no
        binary weights), else ``{'all': ...}``. A group's ``factor`` scales its learning rate.
    """
    parts = partition(network)
    matrices = _float_matrices(network, set(parts.binary)) | _float_matrices(loss, set())
    head = [*parts.head.values(), *loss.parameters()]
    float_groups = [
        *_groups(head, matrices, factor=1.0, weight_decay=config.weight_decay),
        *_groups(
            list(parts.float_backbone.values()),
            matrices,
            factor=config.backbone_factor,
            weight_decay=config.weight_decay,
        ),
    ]
    binary_groups = _groups(list(parts.binary.values()), set(), factor=1.0, weight_decay=0.0)
    if config.strategy != 'bi_partitioned':
        groups = [*float_groups, *binary_groups]
        return {ALL: _make(config.strategy, groups, config.learning_rate, config)}
    made = {FLOAT: _make(config.float_optimizer, float_groups, config.learning_rate, config)}
    if binary_groups:
        made[BINARY] = _make('lion', binary_groups, config.binary_learning_rate, config)
    return made


def _float_matrices(module: nn.Module, latent: set[str]) -> set[Tensor]:
    """Weights of convolutions and linear layers: the only ones that decay.

    A latent weight is a sign in the making, decay only brings it nearer to flipping; norms,
    biases and scales have no reason to be small.
    """
    return {
        layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and f'{name}.weight' not in latent
    }


def _groups(
    parameters: list[nn.Parameter],
    matrices: set[Tensor],
    *,
    factor: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Parameter groups, those that decay first; empty ones are left out."""
    groups = [
        {
            'params': [p for p in parameters if (p in matrices) == decays],
            'weight_decay': weight_decay if decays else 0.0,
            'factor': factor,
        }
        for decays in (True, False)
    ]
    return [group for group in groups if group['params']]


def _make(
    kind: str, groups: list[dict[str, Any]], rate: float, config: OptimizerConfig
) -> optim.Optimizer:
    optimizer: optim.Optimizer
    if kind == 'adam':
        optimizer = optim.Adam(groups, lr=rate, betas=ADAM_BETAS, eps=ADAM_EPS)
    elif kind == 'adamw':
        optimizer = optim.AdamW(groups, lr=rate, betas=ADAM_BETAS, eps=ADAM_EPS)
    elif kind == 'sgd':
        nesterov = config.momentum > 0
        optimizer = optim.SGD(groups, lr=rate, momentum=config.momentum, nesterov=nesterov)
    else:
        # Lion's constructor refuses a learning rate of 0, its steps do not.
        optimizer = Lion(groups, lr=rate or 1.0, betas=LION_BETAS)
    for group in optimizer.param_groups:
        group['lr'] = rate * group['factor']
    return optimizer


def learning_rates(
    config: OptimizerConfig, unfreezing: UnfreezingConfig, *, epoch: float, epochs: int
) -> dict[str, float]:
    """Return the learning rate of each optimiser.

    Parameters
    ----------
    config : OptimizerConfig
        Rates and schedule.
    unfreezing : UnfreezingConfig
        If the optimisers are bi-partitioned and ``config.delay_binary``, the schedule of the
        binary weights begins in the first epoch that trains any; before, they have the rate that
        it begins with.
    epoch : float
        Epochs done, a fraction within an epoch: ``step / steps_per_epoch``.
    epochs : int
        Length of the training.

    Returns
    -------
    dict of str to float
        Keys as of `make_optimizers` (with 'binary' for every bi-partitioned configuration).
    """
    share = _schedule(config, age=epoch, length=epochs)
    if config.strategy != 'bi_partitioned':
        return {ALL: config.learning_rate * share}
    delay = first_binary_epoch(unfreezing) if config.delay_binary else 0
    binary_share = _schedule(config, age=max(0.0, epoch - delay), length=epochs - delay)
    return {
        FLOAT: config.learning_rate * share,
        BINARY: config.binary_learning_rate * binary_share,
    }


def _schedule(config: OptimizerConfig, *, age: float, length: float) -> float:
    """Share of the full learning rate, `age` of `length` epochs after a schedule's beginning."""
    if age < config.warmup_epochs:
        return WARMUP_START + (1 - WARMUP_START) * age / config.warmup_epochs
    if config.schedule == 'multistep':
        return float(config.gamma ** sum(age >= milestone for milestone in config.milestones))
    if config.schedule == 'cosine':
        done = (age - config.warmup_epochs) / max(length - config.warmup_epochs, 1e-9)
        half = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return config.final_factor + (1 - config.final_factor) * half
    return 1.0


def set_learning_rates(optimizers: dict[str, optim.Optimizer], rates: dict[str, float]) -> None:
    """Set what `learning_rates` returned, times each group's factor."""
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            group['lr'] = rates[name] * group['factor']
