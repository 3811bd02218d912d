"""Parts of the engine alone, for tests and measurements: a unit, a convolution, the clock."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.engine.architecture import Unit
from bicrossnet_ros.engine.native_description import describe_unit
from bicrossnet_ros.engine.native_library import (
    bytes_pointer,
    call,
    default_backend,
    int32,
    load,
    pointer,
    release_with,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bicrossnet_ros.engine.model_file import Model


def run_unit(
    model: Model, unit: Unit, x: NDArray[np.float32], *, backend: str | None = None
) -> NDArray[np.float32]:
    """Run one unit alone, to compare it with another implementation.

    Parameters
    ----------
    model : Model
        Where its tensors are.
    unit : Unit
        One of `bicrossnet_ros.engine.architecture.units`.
    x : ndarray of float32, shape (H, W, C)
        Even sides at stride 2.
    backend : str, optional
        One of `backends`; by default `default_backend`.

    Returns
    -------
    ndarray of float32, shape (H / stride, W / stride, C)
    """
    height, width, channels = x.shape
    if channels != unit.channels or x.dtype != np.float32:
        raise ValueError(f'x is {x.dtype} {x.shape}, expected float32 (H, W, {unit.channels})')
    arrays: list[NDArray[Any]] = [np.require(x, requirements=['C', 'A'])]
    description = describe_unit(model, unit, arrays)
    y = np.empty((height // unit.stride, width // unit.stride, channels), np.float32)
    call(
        load().bcn_unit_run,
        ctypes.byref(description),
        (backend or default_backend()).encode(),
        pointer(arrays[0]),
        height,
        width,
        pointer(y),
    )
    return y


class BinaryConvolution:
    """One binary convolution alone, for tests and measurements.

    Parameters
    ----------
    bits : ndarray of uint8, shape (C_out, K, K, C_in // 8)
        Weights, see `bicrossnet_ros.engine.bits`.
    stride : int
        1 or 2.
    height, width : int
        Of the input map; the padding is ``K // 2`` zeros.
    backend : str, optional
        One of `backends`; by default `default_backend`.
    """

    def __init__(
        self,
        bits: NDArray[np.uint8],
        *,
        stride: int,
        height: int,
        width: int,
        backend: str | None = None,
    ) -> None:
        if bits.dtype != np.uint8 or bits.ndim != 4 or bits.shape[1] != bits.shape[2]:
            raise ValueError(f'bits are {bits.dtype} {bits.shape}; expected uint8 (O, K, K, I/8)')
        bits = np.ascontiguousarray(bits)
        library = load()
        channels_out, kernel, _, channel_bytes = bits.shape
        self._handle = ctypes.c_void_p()
        call(
            library.bcn_convolution_create,
            *map(int32, (channel_bytes * 8, channels_out, kernel, stride, height, width)),
            bytes_pointer(bits),
            (backend or default_backend()).encode(),
            ctypes.byref(self._handle),
        )
        release_with(self, library.bcn_convolution_release, self._handle)
        self._library = library
        self._in_shape = (height, width, channel_bytes)
        out_height, out_width = (height - 1) // stride + 1, (width - 1) // stride + 1
        self._out_shape = (out_height, out_width, channels_out)

    def run(self, x: NDArray[np.uint8], out: NDArray[np.int16] | None = None) -> NDArray[np.int16]:
        """Convolve a map of bits.

        Parameters
        ----------
        x : ndarray of uint8, shape (H, W, C_in // 8)
            Packed like the weights.
        out : ndarray of int16, optional
            Written and returned, where given.

        Returns
        -------
        ndarray of int16, shape (ceil(H / stride), ceil(W / stride), C_out)
        """
        if x.dtype != np.uint8 or x.shape != self._in_shape:
            raise ValueError(f'x is {x.dtype} {x.shape}, expected uint8 {self._in_shape}')
        if out is None:
            out = np.empty(self._out_shape, np.int16)
        if out.dtype != np.int16 or out.shape != self._out_shape or not out.flags.c_contiguous:
            raise ValueError(f'out is {out.dtype} {out.shape}, expected int16 {self._out_shape}')
        x = np.ascontiguousarray(x)
        self._library.bcn_convolution_run(
            self._handle, bytes_pointer(x), out.ctypes.data_as(ctypes.POINTER(ctypes.c_int16))
        )
        return out


def clock_hz() -> float:
    """Measure the cycles per second of this core, now, with a chain of dependent additions."""
    return float(load().bcn_clock_hz())
