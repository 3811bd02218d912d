"""Binding of the engine: a packed-binary network in C++, loaded with ctypes.

The library is built with the package (see `bicrossnet_ros.engine.build`). It chooses the best back
end that the CPU runs; ``BICROSSNET_BACKEND`` forces one, ``BICROSSNET_ENGINE_LIBRARY`` names
another library. Every back end, number of threads and batch gives the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.engine.architecture import Unit, units
from bicrossnet_ros.engine.folding import fold_norm
from bicrossnet_ros.engine.model_file import check_tensors, is_file
from bicrossnet_ros.engine.runtime import BACKEND_VARIABLE, ONNX_RUNTIME
from bicrossnet_ros.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bicrossnet_ros.engine.model_file import Model

ABI_VERSION = 1
LIBRARY_NAME = 'libbicrossnet_engine.so'
LIBRARY_VARIABLE = 'BICROSSNET_ENGINE_LIBRARY'

_ERROR_BYTES = 512
_FLOATS = ctypes.POINTER(ctypes.c_float)


class EngineUnavailable(ModelError):  # noqa: N818 (a state, not a fault)
    """The engine cannot be used here, or not for this network; ONNX Runtime can."""


class _Unit(ctypes.Structure):
    """``bcn_unit`` of bicrossnet_engine.h."""

    _fields_ = (
        ('channels', ctypes.c_int32),
        ('kernel', ctypes.c_int32),
        ('stride', ctypes.c_int32),
        ('elementwise', ctypes.c_int32),
        ('bits', ctypes.POINTER(ctypes.c_uint8)),
        ('threshold', _FLOATS),
        ('gain1', _FLOATS),
        ('offset1', _FLOATS),
        ('slope', _FLOATS),
        ('mix', _FLOATS),
        ('reduce_weight', _FLOATS),
        ('reduce_bias', _FLOATS),
        ('expand_weight', _FLOATS),
        ('expand_bias', _FLOATS),
        ('gain2', _FLOATS),
        ('offset2', _FLOATS),
        ('residual_slope', _FLOATS),
    )


class _Network(ctypes.Structure):
    """``bcn_network_description`` of bicrossnet_engine.h."""

    _fields_ = (
        ('stem_channels', ctypes.c_int32),
        ('stem_weight', _FLOATS),
        ('stem_gain', _FLOATS),
        ('stem_offset', _FLOATS),
        ('unit_count', ctypes.c_int32),
        ('units', ctypes.POINTER(_Unit)),
        ('last_slope', _FLOATS),
    )


def library_path() -> Path:
    """Return where the library is, or would be."""
    named = os.environ.get(LIBRARY_VARIABLE)
    # Absolute: a bare name would be looked up among the libraries of the system.
    return Path(named).absolute() if named else Path(__file__).parent / LIBRARY_NAME


def backends() -> tuple[str, ...]:
    """Return the back ends that this CPU runs, best first; none when the library is missing."""
    try:
        library = _library()
    except EngineUnavailable:
        return ()
    return tuple(name for name in _built_in(library) if library.bcn_backend_runs(name.encode()))


def default_backend() -> str:
    """Return the back end in use: ``BICROSSNET_BACKEND``, else the best that this CPU runs.

    Raises
    ------
    EngineUnavailable
        If there is no library, or it has no such back end, or the CPU does not run it, or the
        variable asks for ONNX Runtime.
    """
    asked = os.environ.get(BACKEND_VARIABLE)
    if asked == ONNX_RUNTIME:
        raise EngineUnavailable(f'{BACKEND_VARIABLE}={ONNX_RUNTIME} is set; unset it')
    library = _library()
    here = backends()
    if not asked:
        return here[0]
    if asked not in here:
        reason = 'this CPU does not run it' if asked in _built_in(library) else 'no such back end'
        raise EngineUnavailable(
            f'{BACKEND_VARIABLE} is {asked!r}: {reason}; expected one of {", ".join(here)}, '
            f'or {ONNX_RUNTIME}'
        )
    return asked


class NativeNetwork:
    """A network's weights, packed for one back end. Immutable: any number of sessions share it.

    Parameters
    ----------
    model : Model
        As `bicrossnet_ros.engine.model_file.read_model` returned it.
    backend : str, optional
        One of `backends`; by default `default_backend`.

    Attributes
    ----------
    backend : str
        The back end that runs it.
    nbytes : int
        Memory of the weights.
    embedding_dim : int
        Length D of an embedding.
    unit_count : int
        Number of binary units.

    Raises
    ------
    EngineUnavailable
        If the engine is missing, lacks the back end, or cannot run such a network.
    ModelError
        If the tensors do not fit the channels.
    """

    def __init__(self, model: Model, *, backend: str | None = None) -> None:
        library = _library()
        name = backend or default_backend()
        # The engine reads as many values as the channels say.
        check_tensors(model, source=model.metadata.name)
        description, alive = _describe(model)
        self.unit_count = int(description.unit_count)
        self._handle = ctypes.c_void_p()
        _call(
            library.bcn_network_create,
            ctypes.byref(description),
            name.encode(),
            ctypes.byref(self._handle),
        )
        del alive  # the engine has copied what it needs
        _release_with(self, library.bcn_network_release, self._handle)
        self.backend: str = library.bcn_network_backend(self._handle).decode()
        self.nbytes = int(library.bcn_network_bytes(self._handle))
        self.embedding_dim = int(library.bcn_network_embedding_dim(self._handle))

    def session(self, height_px: int, width_px: int, *, threads: int = 1) -> NativeSession:
        """Make the buffers and threads for images of one size.

        Parameters
        ----------
        height_px, width_px : int
            Of the input; multiples of 32.
        threads : int
            CPU threads of one call, 1 to 256.

        Raises
        ------
        EngineUnavailable
            If the size or the number of threads is impossible, or memory is short.
        """
        return NativeSession(self, height_px, width_px, threads=threads)


class NativeSession:
    """Runs a `NativeNetwork` on images of one size; see `NativeNetwork.session`.

    A session runs one call at a time: a second thread waits. Threads that shall run at once take
    a session each.

    Attributes
    ----------
    nbytes : int
        Memory of the buffers.
    """

    def __init__(
        self, network: NativeNetwork, height_px: int, width_px: int, *, threads: int
    ) -> None:
        library = _library()
        self._handle = ctypes.c_void_p()
        _call(
            library.bcn_session_create,
            network._handle,
            _int32(height_px),
            _int32(width_px),
            _int32(threads),
            ctypes.byref(self._handle),
        )
        _release_with(self, library.bcn_session_release, self._handle)
        self.nbytes = int(library.bcn_session_bytes(self._handle))
        self._library = library
        self._network = network
        self._shape = (3, height_px, width_px)
        self._lock = threading.Lock()
        self._process = os.getpid()

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared images.

        Parameters
        ----------
        images : ndarray of float32, shape (N, 3, H, W)
            Prepared by `bicrossnet_ros.preprocess`; N may be 0.

        Returns
        -------
        ndarray of float32, shape (N, D)
            Not normalised.
        """
        images = self._checked(images, (len(images), *self._shape))
        embeddings = np.empty((len(images), self._network.embedding_dim), np.float32)
        with self._lock:
            self._library.bcn_session_run(
                self._handle, _pointer(images), len(images), _pointer(embeddings)
            )
        return embeddings

    def profile(self, image: NDArray[np.float32]) -> NDArray[np.int64]:
        """Measure one image.

        Parameters
        ----------
        image : ndarray of float32, shape (3, H, W)

        Returns
        -------
        ndarray of int64, shape (1 + 3 * units,)
            Nanoseconds: the stem; then of every unit the convolution with its channel sums, the
            gate, and the last pass.
        """
        image = self._checked(image, self._shape)
        embedding = np.empty(self._network.embedding_dim, np.float32)
        times = np.zeros(1 + 3 * self._network.unit_count, np.int64)
        with self._lock:
            self._library.bcn_session_profile(
                self._handle,
                _pointer(image),
                _pointer(embedding),
                times.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)),
            )
        return times

    def _checked(self, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
        if array.dtype != np.float32 or array.shape != shape:
            raise ValueError(f'images are {array.dtype} {array.shape}, expected float32 {shape}')
        if os.getpid() != self._process:
            raise RuntimeError(
                'the session was made before this process was forked and its threads did not '
                'come along: make a session in this process'
            )
        return np.require(array, requirements=['C', 'A'])


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
    description = _describe_unit(model, unit, arrays)
    y = np.empty((height // unit.stride, width // unit.stride, channels), np.float32)
    _call(
        _library().bcn_unit_run,
        ctypes.byref(description),
        (backend or default_backend()).encode(),
        _pointer(arrays[0]),
        height,
        width,
        _pointer(y),
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
        library = _library()
        channels_out, kernel, _, channel_bytes = bits.shape
        self._handle = ctypes.c_void_p()
        _call(
            library.bcn_convolution_create,
            *map(_int32, (channel_bytes * 8, channels_out, kernel, stride, height, width)),
            _bytes_pointer(bits),
            (backend or default_backend()).encode(),
            ctypes.byref(self._handle),
        )
        _release_with(self, library.bcn_convolution_release, self._handle)
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
            self._handle, _bytes_pointer(x), out.ctypes.data_as(ctypes.POINTER(ctypes.c_int16))
        )
        return out


def clock_hz() -> float:
    """Measure the cycles per second of this core, now, with a chain of dependent additions."""
    return float(_library().bcn_clock_hz())


def _describe(model: Model) -> tuple[_Network, list[Any]]:
    """Describe a network to the engine; also what must stay alive while it is read."""
    alive: list[Any] = []
    all_units = units(model.metadata.channels)
    unit_array = (_Unit * len(all_units))(
        *(_describe_unit(model, unit, alive) for unit in all_units)
    )
    alive.append(unit_array)
    tensors = model.tensors
    gain, offset = fold_norm(tensors, 'stem_norm')
    description = _Network(
        stem_channels=model.metadata.channels[0],
        stem_weight=_keep(tensors['stem.weight'], alive),
        stem_gain=_keep(gain, alive),
        stem_offset=_keep(offset, alive),
        unit_count=len(all_units),
        units=unit_array,
        last_slope=_keep(tensors['act.weight'], alive),
    )
    return description, alive


def _describe_unit(model: Model, unit: Unit, alive: list[Any]) -> _Unit:
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
    return _Unit(
        channels=unit.channels,
        kernel=unit.kernel,
        stride=unit.stride,
        elementwise=int(unit.elementwise),
        bits=_bytes_pointer(bits),
        **{name: _keep(values, alive) for name, values in floats.items()},
    )


def _keep(values: NDArray[Any], alive: list[Any]) -> Any:
    array = np.require(values, np.float32, ['C', 'A'])
    alive.append(array)
    return _pointer(array)


def _pointer(array: NDArray[np.float32]) -> Any:
    return array.ctypes.data_as(_FLOATS)


def _bytes_pointer(array: NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _int32(value: int) -> int:
    """Bring a size into what the C interface takes; it refuses what is too large."""
    return max(-(2**31), min(2**31 - 1, int(value)))


def _call(function: Callable[..., int], *arguments: Any) -> None:
    """Call a function of the engine that can fail; its message becomes an error."""
    message = ctypes.create_string_buffer(_ERROR_BYTES)
    if function(*arguments, message, _ERROR_BYTES) != 0:
        text = message.value.decode(errors='replace')
        raise EngineUnavailable(f'the engine refused: {text}')


def _release_with(owner: object, release: Callable[[Any], None], handle: ctypes.c_void_p) -> None:
    """Release what a handle stands for when its owner goes; but not at exit, see `_release`."""
    finalizer = weakref.finalize(owner, _release, release, handle, os.getpid())
    # At exit another thread may be in the middle of a call; the memory goes with the process.
    finalizer.atexit = False


def _release(release: Callable[[Any], None], handle: ctypes.c_void_p, process: int) -> None:
    # The threads of a session do not come along into a forked process: none to wait for there.
    if os.getpid() == process:
        release(handle)


def _built_in(library: ctypes.CDLL) -> tuple[str, ...]:
    names: list[str] = []
    while name := library.bcn_backend_name(len(names)):
        names.append(name.decode())
    return tuple(names)


def _library() -> ctypes.CDLL:
    return _load_library(str(library_path()))


@functools.cache
def _load_library(path: str) -> ctypes.CDLL:
    if not is_file(Path(path)):
        if os.environ.get(LIBRARY_VARIABLE):
            raise EngineUnavailable(
                f'{path}: no such file; {LIBRARY_VARIABLE} names it: correct or unset that'
            )
        raise EngineUnavailable(
            f'{path}: the engine was not built; install a C++ compiler (sudo apt install g++), '
            'then install this package again'
        )
    try:
        library = ctypes.CDLL(path)
        version = library.bcn_abi_version()
        if version == ABI_VERSION:
            _declare(library)
    except (OSError, AttributeError) as error:
        raise EngineUnavailable(
            f'{path}: cannot be loaded ({error}); install this package again on this machine'
        ) from error
    if version != ABI_VERSION:
        raise EngineUnavailable(
            f'{path}: version {version} of the engine, this package needs {ABI_VERSION}; '
            'install this package again'
        )
    return library


def _declare(library: ctypes.CDLL) -> None:
    """Tell ctypes what goes in and out: without it, it cuts pointers to 32 bits."""
    pointer, number, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
    failing = (text, number)
    for name, result, arguments in (
        ('bcn_backend_name', text, (number,)),
        ('bcn_backend_runs', number, (text,)),
        ('bcn_network_create', number, (pointer, text, pointer, *failing)),
        ('bcn_network_release', None, (pointer,)),
        ('bcn_network_backend', text, (pointer,)),
        ('bcn_network_bytes', ctypes.c_int64, (pointer,)),
        ('bcn_network_embedding_dim', number, (pointer,)),
        ('bcn_session_create', number, (pointer, number, number, number, pointer, *failing)),
        ('bcn_session_release', None, (pointer,)),
        ('bcn_session_bytes', ctypes.c_int64, (pointer,)),
        ('bcn_session_run', None, (pointer, pointer, number, pointer)),
        ('bcn_session_profile', None, (pointer, pointer, pointer, pointer)),
        ('bcn_unit_run', number, (pointer, text, pointer, number, number, pointer, *failing)),
        (
            'bcn_convolution_create',
            number,
            (*[number] * 6, pointer, text, pointer, *failing),
        ),
        ('bcn_convolution_run', None, (pointer, pointer, pointer)),
        ('bcn_convolution_release', None, (pointer,)),
        ('bcn_clock_hz', ctypes.c_double, ()),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
