"""The engine's library: where it is, how it is loaded, and how its functions are called."""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.engine.model_file import is_file
from bicrossnet_ros.engine.runtime import BACKEND_VARIABLE, ONNX_RUNTIME
from bicrossnet_ros.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ABI_VERSION = 1
LIBRARY_NAME = 'libbicrossnet_engine.so'
LIBRARY_VARIABLE = 'BICROSSNET_ENGINE_LIBRARY'

_ERROR_BYTES = 512
FLOATS = ctypes.POINTER(ctypes.c_float)


class EngineUnavailable(ModelError):  # noqa: N818 (a state, not a fault)
    """The engine cannot be used here, or not for this network; ONNX Runtime can."""


def library_path() -> Path:
    """Return where the library is, or would be."""
    named = os.environ.get(LIBRARY_VARIABLE)
    # Absolute: a bare name would be looked up among the libraries of the system.
    return Path(named).absolute() if named else Path(__file__).parent / LIBRARY_NAME


def backends() -> tuple[str, ...]:
    """Return the back ends that this CPU runs, best first; none when the library is missing."""
    try:
        library = load()
    except EngineUnavailable:
        return ()
    return tuple(name for name in built_in(library) if library.bcn_backend_runs(name.encode()))


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
    library = load()
    here = backends()
    if not asked:
        return here[0]
    if asked not in here:
        reason = 'this CPU does not run it' if asked in built_in(library) else 'no such back end'
        raise EngineUnavailable(
            f'{BACKEND_VARIABLE} is {asked!r}: {reason}; expected one of {", ".join(here)}, '
            f'or {ONNX_RUNTIME}'
        )
    return asked


def pointer(array: NDArray[np.float32]) -> Any:
    """Pointer to the floats of a contiguous, aligned array."""
    return array.ctypes.data_as(FLOATS)


def bytes_pointer(array: NDArray[np.uint8]) -> Any:
    """Pointer to the bytes of a contiguous array."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def int32(value: int) -> int:
    """Bring a size into what the C interface takes; it refuses what is too large."""
    return max(-(2**31), min(2**31 - 1, int(value)))


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Call a function of the engine that can fail; its message becomes an error."""
    message = ctypes.create_string_buffer(_ERROR_BYTES)
    if function(*arguments, message, _ERROR_BYTES) != 0:
        text = message.value.decode(errors='replace')
        raise EngineUnavailable(f'the engine refused: {text}')


def release_with(owner: object, release: Callable[[Any], None], handle: ctypes.c_void_p) -> None:
    """Release what a handle stands for when its owner goes; but not at exit, see `_release`."""
    finalizer = weakref.finalize(owner, _release, release, handle, os.getpid())
    # At exit another thread may be in the middle of a call; the memory goes with the process.
    finalizer.atexit = False


def _release(release: Callable[[Any], None], handle: ctypes.c_void_p, process: int) -> None:
    # The threads of a session do not come along into a forked process: none to wait for there.
    if os.getpid() == process:
        release(handle)


def built_in(library: ctypes.CDLL) -> tuple[str, ...]:
    """Return the back ends that were compiled in, best first."""
    names: list[str] = []
    while name := library.bcn_backend_name(len(names)):
        names.append(name.decode())
    return tuple(names)


def load() -> ctypes.CDLL:
    """Return the library, loaded once.

    Raises
    ------
    EngineUnavailable
        If it is missing, of another version, or cannot be loaded.
    """
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
