"""Operations of a network, module by module, counted while it runs without numbers.

Two counts of floating-point work are kept apart:

- MACs: multiply-accumulates of full-precision convolutions and linear layers;
- FLOPs as ptflops, the paper's tool, counts them: the MACs, one for each added bias, and
  `FLOPS_PER_ELEMENT` for each element that a norm or an activation writes or a pooling reads. The
  tool sees an activation or a pooling twice, as a module and as the function that the module
  calls; two are therefore counted here.

In neither: additions and products element by element, the sign, sigmoids, Hardtanh, the mean over
the last map, maximum and mean within the branches. BinOps are multiply-accumulates of binary
convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from training.models.binary import BinaryConv2d
from training.models.bnext import BinaryUnit
from training.models.branches import BranchClassifier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from training.models.network import GeoNetwork

FLOPS_PER_ELEMENT = 2
PRODUCTS = ('conv2d', 'linear')
# Without hardtanh: the tool does not count it.
WRITING = ('batch_norm', 'layer_norm', 'prelu', 'relu', 'relu6', 'gelu')
READING = ('avg_pool2d', 'max_pool2d', 'adaptive_avg_pool2d')


@dataclass
class Layer:
    """Own cost of one module, that of its children excluded.

    Attributes
    ----------
    name : str
        As in ``named_modules()``.
    kind : str
        Class of the module.
    output_shape : tuple of int
        Of its last run; empty if it did not run or returned no single tensor.
    parameters, binary_parameters, norm_statistics, binops, macs, flops : int
        See `training.complexity.Complexity`.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] = ()
    parameters: int = 0
    binary_parameters: int = 0
    norm_statistics: int = 0
    binops: int = 0
    macs: int = 0
    flops: int = 0


class _Counter(TorchFunctionMode):
    """Adds every counted function to the layer in whose forward it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[tuple[nn.Module, Layer]] = []

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, '__name__', '')
        if self.running and name in PRODUCTS:
            weight, bias = args[1], args[2] if len(args) > 2 else None
            self._add_products(result, weight, bias)
        elif self.running and name in (*WRITING, *READING):
            module, layer = self.running[-1]
            if name in WRITING:
                layer.flops += FLOPS_PER_ELEMENT * result.numel()
            elif not isinstance(module, BinaryUnit):
                layer.flops += FLOPS_PER_ELEMENT * args[0].numel()
        return result

    def _add_products(self, result: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        module, layer = self.running[-1]
        products = result.numel() * weight[0].numel()
        if isinstance(module, BinaryConv2d):
            layer.binops += products
            return
        layer.macs += products
        layer.flops += products + (0 if bias is None else result.numel())


def count_layers(network: GeoNetwork, input_shape: tuple[int, int, int, int]) -> list[Layer]:
    """Count every module of a network in one forward pass.

    Parameters
    ----------
    network : GeoNetwork
        In evaluation mode, on the meta device.
    input_shape : tuple of int
        (N, 3, H, W).

    Returns
    -------
    list of Layer
        The modules that have parameters or do counted work, in the order of the network. The
        classifiers of the branches do none: retrieval does not run them.
    """
    layers = {module: _at_rest(name, module) for name, module in network.named_modules()}
    counter = _Counter()

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counter.running.append((module, layers[module]))

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        counter.running.pop()
        if isinstance(output, Tensor):
            layers[module].output_shape = tuple(output.shape)
            if isinstance(module, BinaryUnit):
                layers[module].flops += _pooling(module, inputs[0], output)

    handles = [module.register_forward_pre_hook(enter) for module in layers]
    handles += [module.register_forward_hook(leave) for module in layers]
    try:
        with torch.no_grad(), counter:
            network(torch.empty(input_shape, device='meta'))
    finally:
        for handle in handles:
            handle.remove()
    _forget_training_classifiers(network, layers)
    return [layer for layer in layers.values() if layer.parameters or layer.flops or layer.binops]


def _pooling(unit: BinaryUnit, x: Tensor, output: Tensor) -> int:
    """Pooling of a unit as it is defined; this project's forward rearranges and saves some.

    The mixture is pooled in front of the gate; at stride 2, the mixture's input and the residual
    are pooled 2x2.
    """
    strided = 2 * x.numel() if unit.stride == 2 else 0
    return FLOPS_PER_ELEMENT * (output.numel() + strided)


def _at_rest(name: str, module: nn.Module) -> Layer:
    """Count what a module holds itself."""
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    statistics = sum(
        buffer.numel()
        for key, buffer in module.named_buffers(recurse=False)
        if key in ('running_mean', 'running_var')
    )
    return Layer(
        name=name,
        kind=type(module).__name__,
        parameters=parameters,
        binary_parameters=module.weight.numel() if isinstance(module, BinaryConv2d) else 0,
        norm_statistics=statistics,
    )


def _forget_training_classifiers(network: nn.Module, layers: dict[nn.Module, Layer]) -> None:
    for module in network.modules():
        if isinstance(module, BranchClassifier):
            layers[module.classifier].macs = layers[module.classifier].flops = 0
