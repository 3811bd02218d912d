"""Structure of the BNext family: blocks, units, and the name and shape of every tensor.

The model file, the ONNX graph and the exporter all read the structure here, so that a file that
fits one fits all.

References
----------
Guo et al. 2022, "Join the High Accuracy Club on ImageNet with A Binary Neural Network Ticket".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from bicrossnet_ros.errors import ModelError

SE_REDUCTION = 8
BATCH_NORM_EPSILON = 1e-5
TOTAL_STRIDE_PX = 32

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """One binary unit: prefix of its tensor names, channels, kernel side, stride, kind."""

    prefix: str
    channels: int
    kernel: int
    stride: int
    elementwise: bool


@dataclass(frozen=True)
class Block:
    """A 3x3 unit followed by one 1x1 unit, or by two in parallel, concatenated."""

    unit3x3: Unit
    units1x1: tuple[Unit, ...]


def make_blocks(channels: tuple[int, ...]) -> tuple[Block, ...]:
    """Lay out the blocks of a network.

    Parameters
    ----------
    channels : tuple of int
        Output channels of the stem, then of every block; each is a multiple of 8 and equal to the
        one before or its double.

    Returns
    -------
    tuple of Block
        ``len(channels) - 1`` blocks.

    Raises
    ------
    ModelError
        If the channels describe no such network.
    """
    _check_channels(channels)
    blocks = []
    for i in range(1, len(channels)):
        before, after = channels[i - 1], channels[i]
        stride = 2 if i > 1 and after != before else 1
        prefix = f'blocks.{i - 1}'
        unit3x3 = Unit(f'{prefix}.unit3x3', before, 3, stride, elementwise=i % 2 == 0)
        units1x1 = tuple(
            Unit(f'{prefix}.units1x1.{k}', before, 1, 1, elementwise=False)
            for k in range(after // before)
        )
        blocks.append(Block(unit3x3, units1x1))
    return tuple(blocks)


def _check_channels(channels: tuple[int, ...]) -> None:
    if len(channels) < 2 or not all(type(c) is int and 8 <= c <= 8192 for c in channels):
        raise ModelError(
            f'channels are {channels}; expected at least two whole numbers from 8 to 8192'
        )
    for before, after in itertools.pairwise(channels):
        if after not in (before, 2 * before):
            raise ModelError(f'channels go {before} -> {after}; expected the same or the double')
    if channels[0] % 8:
        raise ModelError(f'the stem has {channels[0]} channels; expected a multiple of 8')


def units(channels: tuple[int, ...]) -> tuple[Unit, ...]:
    """List all units in the order of execution."""
    return tuple(
        unit for block in make_blocks(channels) for unit in (block.unit3x3, *block.units1x1)
    )


def packed_shapes(channels: tuple[int, ...]) -> dict[str, Shape]:
    """Name and shape of the packed binary weights (uint8); see `bicrossnet_ros.engine.bits`."""
    return {
        f'{unit.prefix}.conv.bits': (
            unit.channels,
            unit.kernel,
            unit.kernel,
            unit.channels // 8,
        )
        for unit in units(channels)
    }


def float_shapes(channels: tuple[int, ...]) -> dict[str, Shape]:
    """Name and shape of every other tensor (float32)."""
    shapes: dict[str, Shape] = {'stem.weight': (channels[0], 3, 3, 3)}
    shapes |= _norm_shapes('stem_norm', channels[0])
    for unit in units(channels):
        shapes |= _unit_shapes(unit)
    shapes['act.weight'] = (channels[-1],)
    return shapes


def _unit_shapes(unit: Unit) -> dict[str, Shape]:
    c, squeezed = unit.channels, unit.channels // SE_REDUCTION
    shapes: dict[str, Shape] = {
        f'{unit.prefix}.move.bias': (c,),
        **_norm_shapes(f'{unit.prefix}.norm1', c),
        f'{unit.prefix}.act.weight': (c,),
        f'{unit.prefix}.scale': (c,),
        f'{unit.prefix}.se.reduce.weight': (squeezed, c),
        f'{unit.prefix}.se.reduce.bias': (squeezed,),
        f'{unit.prefix}.se.expand.weight': (c, squeezed),
        f'{unit.prefix}.se.expand.bias': (c,),
        **_norm_shapes(f'{unit.prefix}.norm2', c),
    }
    if unit.elementwise:
        shapes[f'{unit.prefix}.act_residual.weight'] = (c,)
    return shapes


def _norm_shapes(prefix: str, channels: int) -> dict[str, Shape]:
    names = ('weight', 'bias', 'running_mean', 'running_var')
    return {f'{prefix}.{name}': (channels,) for name in names}
