"""Networks described to the engine: the structures of bicrossnet_engine.h, filled from a model."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.engine.architecture import Unit, units
from bicrossnet_ros.engine.folding import fold_norm
from bicrossnet_ros.engine.native_library import FLOATS, bytes_pointer, pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bicrossnet_ros.engine.model_file import Model


class UnitDescription(ctypes.Structure):
    """``bcn_unit`` of bicrossnet_engine.h."""

    _fields_ = (
        ('channels', ctypes.c_int32),
        ('kernel', ctypes.c_int32),
        ('stride', ctypes.c_int32),
        ('elementwise', ctypes.c_int32),
        ('bits', ctypes.POINTER(ctypes.c_uint8)),
        ('threshold', FLOATS),
        ('gain1', FLOATS),
        ('offset1', FLOATS),
        ('slope', FLOATS),
        ('mix', FLOATS),
        ('reduce_weight', FLOATS),
        ('reduce_bias', FLOATS),
        ('expand_weight', FLOATS),
        ('expand_bias', FLOATS),
        ('gain2', FLOATS),
        ('offset2', FLOATS),
        ('residual_slope', FLOATS),
    )


class NetworkDescription(ctypes.Structure):
    """``bcn_network_description`` of bicrossnet_engine.h."""

    _fields_ = (
        ('stem_channels', ctypes.c_int32),
        ('stem_weight', FLOATS),
        ('stem_gain', FLOATS),
        ('stem_offset', FLOATS),
        ('unit_count', ctypes.c_int32),
        ('units', ctypes.POINTER(UnitDescription)),
        ('last_slope', FLOATS),
    )


def describe_network(model: Model) -> tuple[NetworkDescription, list[Any]]:
    """Describe a network to the engine; also what must stay alive while it is read."""
    alive: list[Any] = []
    all_units = units(model.metadata.channels)
    unit_array = (UnitDescription * len(all_units))(
        *(describe_unit(model, unit, alive) for unit in all_units)
    )
    alive.append(unit_array)
    tensors = model.tensors
    gain, offset = fold_norm(tensors, 'stem_norm')
    description = NetworkDescription(
        stem_channels=model.metadata.channels[0],
        stem_weight=_keep(tensors['stem.weight'], alive),
        stem_gain=_keep(gain, alive),
        stem_offset=_keep(offset, alive),
        unit_count=len(all_units),
        units=unit_array,
        last_slope=_keep(tensors['act.weight'], alive),
    )
    return description, alive


def describe_unit(model: Model, unit: Unit, alive: list[Any]) -> UnitDescription:
    """Describe one unit; what must stay alive while it is read is added to `alive`."""
    tensors, prefix = model.tensors, unit.prefix
    bits = np.ascontiguousarray(tensors[f'{prefix}.conv.bits'])
    alive.append(bits)
    gain1, offset1 = fold_norm(tensors, f'{prefix}.norm1')
    gain2, offset2 = fold_norm(tensors, f'{prefix}.norm2')
    floats = {
        # sign(x + bias) with sign(0) = +1: x + bias >= 0 exactly where x >= -bias, in floats too.
        'threshold': -tensors[f'{prefix}.move.bias'],
        'gain1': gain1,
        'offset1': offset1,
        'slope': tensors[f'{prefix}.act.weight'],
        'mix': tensors[f'{prefix}.scale'],
        'reduce_weight': tensors[f'{prefix}.se.reduce.weight'],
        'reduce_bias': tensors[f'{prefix}.se.reduce.bias'],
        'expand_weight': tensors[f'{prefix}.se.expand.weight'],
        'expand_bias': tensors[f'{prefix}.se.expand.bias'],
        'gain2': gain2,
        'offset2': offset2,
    }
    if unit.elementwise:
        floats['residual_slope'] = tensors[f'{prefix}.act_residual.weight']
    return UnitDescription(
        channels=unit.channels,
        kernel=unit.kernel,
        stride=unit.stride,
        elementwise=int(unit.elementwise),
        bits=bytes_pointer(bits),
        **{name: _keep(values, alive) for name, values in floats.items()},
    )


def _keep(values: NDArray[Any], alive: list[Any]) -> Any:
    array = np.require(values, np.float32, ['C', 'A'])
    alive.append(array)
    return pointer(array)
