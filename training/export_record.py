"""A checkpoint opened for export, and the record of its training that goes with the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.checkpoint import checkpoint_config, load_checkpoint, network_from_state

if TYPE_CHECKING:
    from pathlib import Path

    from training.config import TrainConfig
    from training.models.backbone import Backbone


@dataclass(frozen=True)
class Trained:
    """What a checkpoint holds of a model that is to fly.

    Attributes
    ----------
    backbone : Backbone
        On the CPU, in evaluation mode.
    config : TrainConfig
        That it was trained with.
    training : dict
        Record of the training, for the model's metadata.
    """

    backbone: Backbone
    config: TrainConfig
    training: dict[str, Any]


def open_trained(path: Path, record: dict[str, Any]) -> Trained:
    """Load a checkpoint; `record` is added to what it says of its training.

    Raises
    ------
    ModelError
        If the checkpoint cannot be used.
    """
    state = load_checkpoint(path)
    config = checkpoint_config(state, source=path)
    training = {
        **record,
        'recipe': _recipe(config),
        'config': state['config'],
        'seed': config.run.seed,
        'git_revision': state['git_revision'],
        'steps': state['step'],
        'epochs': state['epoch'],
        'places': len(state['classes']),
        'images_seen': state['step'] * config.data.places_per_step * 2,
        'validation': state['figures'],
        'weights': state.get('variant', 'last weights'),
    }
    return Trained(network_from_state(state, source=path).backbone, config, training)


def _recipe(config: TrainConfig) -> str:
    """Say in a line what was trained on what."""
    losses = config.losses
    terms = [
        f'{name} x {weight:g}'
        for name in (
            'cross_entropy',
            'triplet',
            'info_nce',
            'logit_distillation',
            'feature_distillation',
            'similarity_distillation',
        )
        if (weight := getattr(losses, name)) and ('distillation' not in name or losses.teacher)
    ]
    return (
        f'training.train on {config.data.source}: {" + ".join(terms)}; '
        f'unfreezing {config.unfreezing.strategy}, optimiser {config.optimizer.strategy}'
    )
