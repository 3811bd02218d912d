"""What a network costs: parameters, disk, binary and floating-point operations.

python -m training.complexity bnext_tiny --input 2x3x256x256
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.models.binary import BinaryConv2d
from training.models.network import make_backbone

BINARY_OPERATIONS_PER_FLOP = 64

InputShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Complexity:
    """Cost of one forward pass and size of the network; counts are whole numbers.

    Attributes
    ----------
    name : str
        Backbone, or the file that was counted.
    input_shape : tuple of int
        (N, 3, H, W) of the pass; operations are for all N images together.
    classes : int or None
        Classes of the paper's accounting; None: the deployable network.
    parameters, binary_parameters : int
        All parameters, and those of one bit among them.
    binops, flops : int
        Binary and floating-point operations, a multiply-accumulate counted as one.
    """

    name: str
    input_shape: InputShape
    classes: int | None
    parameters: int
    binary_parameters: int
    binops: int
    flops: int

    @property
    def float_parameters(self) -> int:
        """Parameters of full precision."""
        return self.parameters - self.binary_parameters

    @property
    def ops(self) -> float:
        """FLOPs + BinOps / 64, the paper's unit."""
        return self.flops + self.binops / BINARY_OPERATIONS_PER_FLOP

    @property
    def disk_bytes(self) -> float:
        """Size with one bit per binary weight and 32 bits for all other parameters."""
        return self.binary_parameters / 8 + self.float_parameters * 4

    @property
    def disk_half_bytes(self) -> float:
        """Size with one bit per binary weight and 16 bits for all other parameters."""
        return self.binary_parameters / 8 + self.float_parameters * 2


def complexity_of(name: str, *, input_shape: InputShape, classes: int | None = None) -> Complexity:
    """Count a backbone by its name.

    Parameters
    ----------
    name : str
        One of `training.models.names.BACKBONES`.
    input_shape : tuple of int
        (N, 3, H, W); H and W are multiples of 32.
    classes : int or None
        None: the deployable network. Else the paper's accounting, with heads of that many classes.

    Raises
    ------
    ConfigError
        If there is no such backbone.
    """
    with torch.device('meta'):
        network = make_backbone(name).eval()
    binops, flops = _count(network, input_shape)
    return Complexity(
        name=name,
        input_shape=input_shape,
        classes=classes,
        parameters=sum(p.numel() for p in network.parameters()),
        binary_parameters=sum(
            m.weight.numel() for m in network.modules() if isinstance(m, BinaryConv2d)
        ),
        binops=binops,
        flops=flops,
    )


def _count(network: nn.Module, input_shape: InputShape) -> tuple[int, int]:
    counts = {True: 0, False: 0}

    def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        binary = isinstance(module, BinaryConv2d)
        if binary or isinstance(module, (nn.Conv2d, nn.Linear)):
            counts[binary] += output.numel() * module.weight[0].numel()

    handles = [module.register_forward_hook(hook) for module in network.modules()]
    with torch.no_grad():
        network(torch.zeros(input_shape, device='meta'))
    for handle in handles:
        handle.remove()
    return counts[True], counts[False]
