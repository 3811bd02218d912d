"""Which weights train in which epoch: Bi-Gradual Unfreezing, and what it is compared with.

Frozen parts are in evaluation mode too: the running statistics of a BatchNorm whose weights are
frozen would otherwise move with the new images.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, section 3.5 and algorithm 1.
Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from bicrossnet_ros.errors import ConfigError
from training.config import UnfreezingConfig
from training.models.network import GeoNetwork
from training.models.partition import binary_layers


@dataclass(frozen=True)
class Phase:
    """What trains besides the head.

    Attributes
    ----------
    name : str
        For logs.
    stages : int
        Stages of the backbone that train, counted from the last one.
    binary : bool
        Whether the latent binary weights of these stages train too.
    """

    name: str
    stages: int
    binary: bool


def phase_of(config: UnfreezingConfig, epoch: int, stages: int) -> Phase:
    """Return the phase of an epoch.

    Parameters
    ----------
    config : UnfreezingConfig
        Strategy and lengths. ``bi_gradual``: head, then float weights, then all. ``gradual``:
        the head, then a stage more at even distances, the last one first; the stem is free from
        epoch ``head_epochs + partial_epochs``. ``none``: all.
    epoch : int
        Counted from 0.
    stages : int
        Stages of the backbone.
    """
    everything = Phase('all', stages, binary=True)
    since_head = epoch - config.head_epochs
    if config.strategy == 'none' or since_head >= config.partial_epochs:
        return everything
    if since_head < 0:
        return Phase('head', 0, binary=False)
    if config.strategy == 'bi_gradual':
        return Phase('float', stages, binary=False)
    free = 1 + since_head * (stages - 1) // config.partial_epochs
    return everything if free == stages else Phase(f'last {free} of {stages}', free, binary=True)


def first_binary_epoch(config: UnfreezingConfig) -> int:
    """Return the first epoch in which any latent binary weight trains."""
    if config.strategy == 'none':
        return 0
    if config.strategy == 'gradual':
        return config.head_epochs
    return config.head_epochs + config.partial_epochs


def apply_phase(network: GeoNetwork, phase: Phase) -> None:
    """Set `requires_grad` and the mode of every module; call it in place of ``network.train()``.

    The gradients of what is frozen are dropped: an optimiser would go on applying them.

    Raises
    ------
    ConfigError
        If the head alone is to train and the network has none.
    """
    if phase.stages == 0 and network.branches is None:
        raise ConfigError(
            'unfreezing begins with the head alone, but the network has no branches; set '
            'unfreezing.head_epochs: 0 or unfreezing.strategy: none'
        )
    network.train()
    network.requires_grad_(True)
    stages = network.backbone.stages()
    for stage in stages[: len(stages) - phase.stages]:
        stage.eval()
        stage.requires_grad_(False)
    if phase.stages == 0:
        # Modules of the backbone that own no parameter and hence belong to no stage.
        network.backbone.eval()
    if not phase.binary:
        for layer in binary_layers(network).values():
            layer.weight.requires_grad_(False)
            # A layer may have float parameters beside its latent weights; these train.
            layer.train(any(parameter.requires_grad for parameter in layer.parameters()))
    for parameter in network.parameters():
        if not parameter.requires_grad:
            parameter.grad = None
