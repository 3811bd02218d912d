"""How many binary weights change their sign: the rate of figure 4, per layer.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, figure 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bicrossnet_ros.errors import ModelError
from training.models.binary import BinaryConv2d


class FlipCounter:
    """Share of the weights of each layer whose sign changed between two calls.

    The signs of the last call are kept packed, eight to a byte, on the device of the layer.

    Parameters
    ----------
    layers : dict of BinaryConv2d
        Layers by name, as `training.models.partition.binary_layers` returns them.
    """

    def __init__(self, layers: dict[str, BinaryConv2d]) -> None:
        self.layers = dict(layers)
        self._signs = {name: packed_signs(layer) for name, layer in self.layers.items()}

    def rates(self) -> dict[str, float]:
        """Return the share of flipped weights of each layer since the last call."""
        if not self.layers:
            return {}
        shares = []
        for name, layer in self.layers.items():
            signs = packed_signs(layer)
            flips = count_bits(signs ^ self._signs[name].to(signs.device))
            shares.append(flips / layer.weight.numel())
            self._signs[name] = signs
        # One transfer for all layers.
        return dict(zip(self.layers, torch.stack(shares).tolist(), strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the packed signs by layer."""
        return dict(self._signs)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises
        ------
        ModelError
            If it is of other layers.
        """
        shapes = {name: tuple(signs.shape) for name, signs in self._signs.items()}
        found = {name: tuple(signs.shape) for name, signs in state.items()}
        if shapes != found:
            names = sorted(set(shapes.items()) ^ set(found.items()))
            raise ModelError(
                f'the saved signs are of another network: {names[0][0]} differs (found '
                f'{found.get(names[0][0])}, expected {shapes.get(names[0][0])} bytes); resume '
                'with the configuration of the run'
            )
        self._signs = {
            name: signs.to(self._signs[name].device).clone() for name, signs in state.items()
        }


@torch.no_grad()
def packed_signs(layer: BinaryConv2d) -> Tensor:
    """Return the signs of a layer's weights as bits, uint8 (ceil(weights / 8),); 1 is +1."""
    bits = layer.positive().flatten()
    padded = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (padded.to(torch.uint8) << _places(bits.device)).sum(dim=1, dtype=torch.uint8)


def count_bits(packed: Tensor) -> Tensor:
    """Return the number of ones in a uint8 tensor (N,), as an int64 scalar."""
    return (packed[:, None] >> _places(packed.device) & 1).sum()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
