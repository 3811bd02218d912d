"""Which parameter is what: head, float weights of the backbone, latent binary weights.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, sections 3.5 and 3.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from training.models.binary import BinaryConv2d
from training.models.network import GeoNetwork


@dataclass(frozen=True)
class Partition:
    """Parameters of a network by name, each in one group.

    Attributes
    ----------
    head : dict of nn.Parameter
        Of the Multiple Classifier Branch.
    float_backbone : dict of nn.Parameter
        Full-precision ones of the backbone.
    binary : dict of nn.Parameter
        Latent weights of the binary convolutions.
    """

    head: dict[str, nn.Parameter]
    float_backbone: dict[str, nn.Parameter]
    binary: dict[str, nn.Parameter]


def binary_layers(network: nn.Module) -> dict[str, BinaryConv2d]:
    """Return the binary convolutions by the name of the module, in the order of the network."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, BinaryConv2d)
    }


def partition(network: GeoNetwork) -> Partition:
    """Divide the parameters of a network by the names of ``network.named_parameters()``."""
    latent = {f'{name}.weight' for name in binary_layers(network)}
    groups = Partition({}, {}, {})
    for name, parameter in network.named_parameters():
        if name in latent:
            groups.binary[name] = parameter
        elif name.startswith('backbone.'):
            groups.float_backbone[name] = parameter
        else:
            groups.head[name] = parameter
    return groups
