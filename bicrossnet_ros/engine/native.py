"""Binding of the engine: a packed-binary network in C++, loaded with ctypes.

The library is built with the package (see `bicrossnet_ros.engine.build`). It chooses the best back
end that the CPU runs; ``BICROSSNET_BACKEND`` forces one, ``BICROSSNET_ENGINE_LIBRARY`` names
another library. Every back end, number of threads and batch gives the same bits.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.engine.model_file import check_tensors
from bicrossnet_ros.engine.native_description import describe_network
from bicrossnet_ros.engine.native_library import (
    EngineUnavailable,
    backends,
    call,
    default_backend,
    int32,
    library_path,
    load,
    pointer,
    release_with,
)
from bicrossnet_ros.engine.native_parts import BinaryConvolution, clock_hz, run_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bicrossnet_ros.engine.model_file import Model

__all__ = [
    'BinaryConvolution',
    'EngineUnavailable',
    'NativeNetwork',
    'NativeSession',
    'backends',
    'clock_hz',
    'default_backend',
    'library_path',
    'run_unit',
]


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
        library = load()
        name = backend or default_backend()
        # The engine reads as many values as the channels say.
        check_tensors(model, source=model.metadata.name)
        description, alive = describe_network(model)
        self.unit_count = int(description.unit_count)
        self._handle = ctypes.c_void_p()
        call(
            library.bcn_network_create,
            ctypes.byref(description),
            name.encode(),
            ctypes.byref(self._handle),
        )
        del alive  # the engine has copied what it needs
        release_with(self, library.bcn_network_release, self._handle)
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
        library = load()
        self._handle = ctypes.c_void_p()
        call(
            library.bcn_session_create,
            network._handle,
            int32(height_px),
            int32(width_px),
            int32(threads),
            ctypes.byref(self._handle),
        )
        release_with(self, library.bcn_session_release, self._handle)
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
                self._handle, pointer(images), len(images), pointer(embeddings)
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
                pointer(image),
                pointer(embedding),
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
