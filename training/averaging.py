"""Averages over a training: of its weights, and of BatchNorm's statistics at its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bicrossnet_ros.errors import ConfigError, ModelError


class WeightAverage:
    """Exponential moving average of all weights (latent ones too) and floating-point buffers.

    The first updates average with a smaller decay, ``(1 + n) / (10 + n)`` at update n, so that
    the random initial weights are soon forgotten.

    Parameters
    ----------
    network : nn.Module
        The average begins with its present values.
    decay : float
        Share of the old average that an update keeps, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f'average_decay is {decay}; expected more than 0 and less than 1')
        self.network = network
        self.decay = decay
        self.updates = 0
        self._average = _copies(network.state_dict().items())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights; call after every step."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        values = self.network.state_dict()
        floating = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self._average[name] for name in floating],
            [values[name] for name in floating],
            1 - keep,
        )
        for name in values.keys() - set(floating):
            self._average[name].copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {'updates': self.updates, 'average': dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        ModelError
            If it is of another network.
        """
        saved = state['average']
        for name in sorted(self._average.keys() | saved.keys()):
            own, found = (
                tuple(values[name].shape) if name in values else 'nothing'
                for values in (self._average, saved)
            )
            if own != found:
                raise ModelError(
                    f'the saved average is of another network: {name} is {found}, expected '
                    f'{own}; resume with the configuration of the run'
                )
        for name, value in self._average.items():
            value.copy_(saved[name])
        self.updates = int(state['updates'])


@torch.no_grad()
def reestimate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace BatchNorm's running statistics by their plain average over some batches.

    The norms alone run in training mode: all else is as it will be in use (binary weights are
    signs, nothing is dropped). Modes and momenta are as before afterwards.

    Parameters
    ----------
    network : nn.Module
        With BatchNorm layers of any dimension; changed in place.
    batches : iterable of Tensor
        Float32 (N, 3, H, W) with N > 1, normalised, on the network's device.

    Raises
    ------
    ConfigError
        If there is no batch. After this or any other error the statistics are as before.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    before = [(norm.momentum, _copies(norm.named_buffers())) for norm in norms]
    modes = {module: module.training for module in network.modules()}
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        # None: torch averages all batches alike.
        norm.momentum = None
        norm.train()
    empty = True
    try:
        for batch in batches:
            empty = False
            with torch.autocast(batch.device.type, enabled=False):
                network(batch.float())
        if empty:
            raise ConfigError(
                'there is no batch to re-estimate BatchNorm with; expected at least one full '
                'batch of places'
            )
    except BaseException:
        for norm, (_, buffers) in zip(norms, before, strict=True):
            norm.load_state_dict(buffers, strict=False)
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _copies(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors}
