"""Ground patches to embeddings: one way in for every kind of model file, by its suffix.

- ``.safetensors``, a model of this project: the native engine, `bicrossnet_ros.engine.native`.
  Where that cannot run, ONNX Runtime takes its graph instead, and the log says why. The
  environment variable BICROSSNET_BACKEND forces a back end of the engine, which then runs or is
  an error, or ``onnxruntime``.
- ``.onnx``, any embedding network whose metadata says how its input is prepared: ONNX Runtime.
- ``.tflite``, as `training.export` writes it: Larq Compute Engine (extra ``lce``).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bicrossnet_ros.descriptor import Projection
from bicrossnet_ros.engine.model_file import (
    ModelMetadata,
    file_sha256,
    is_file,
    read_model,
)
from bicrossnet_ros.engine.runtime import BACKEND_VARIABLE, ONNX_RUNTIME, Runtime
from bicrossnet_ros.errors import ConfigError, ModelError
from bicrossnet_ros.preprocess import Preprocessing, check_patches, prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

Opened: TypeAlias = tuple[ModelMetadata, Runtime, Projection | None]

logger = logging.getLogger(__name__)

DEFAULT_MODEL = 'bnext_nano_96.safetensors'
MAX_BATCH = 16  # bounds the memory of a call; larger batches are not faster


def default_model_path() -> Path:
    """Return the path of the model file that comes with the package.

    Raises
    ------
    ModelError
        If the installation lacks it.
    """
    path = Path(__file__).parent / 'models' / DEFAULT_MODEL
    if not path.is_file():
        raise ModelError(f'{path}: the shipped model is missing; install the package again')
    return path


@dataclass(frozen=True)
class Encoder:
    """A loaded network; made by `open_encoder`. `encode` may be called from several threads.

    Attributes
    ----------
    model_id : str
        SHA-256 of the model file, 64 hexadecimal digits.
    model_name : str
        Name of the model, for people.
    embedding_dim : int
        Length D of an embedding.
    preprocessing : Preprocessing
        How patches are prepared.
    projection : Projection or None
        From embeddings to compressed descriptors, where the model file has one: what galleries
        that store descriptors compare, see `bicrossnet_ros.gallery.Gallery.descriptor`.
    """

    model_id: str
    model_name: str
    embedding_dim: int
    preprocessing: Preprocessing
    _runtime: Runtime = field(repr=False)
    projection: Projection | None = field(default=None, repr=False)

    @property
    def runtime(self) -> str:
        """What runs the network, for people: 'native avx2', 'ONNX Runtime 1.31.1'."""
        return self._runtime.name

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed patches.

        Parameters
        ----------
        patches : ndarray of uint8, shape (N, H, W, 3)
            RGB, north up; any size; N may be 0.

        Returns
        -------
        ndarray of float32, shape (N, embedding_dim)
            Rows of unit length, so that a dot product is the cosine similarity.

        Raises
        ------
        ImageError
            If the dtype or the shape is another one.
        ModelError
            If the network returns values that are not finite.
        """
        check_patches(patches)
        embeddings = np.empty((len(patches), self.embedding_dim), np.float32)
        for start in range(0, len(patches), MAX_BATCH):
            batch = prepare(patches[start : start + MAX_BATCH], self.preprocessing)
            embeddings[start : start + MAX_BATCH] = self._runtime.run(batch)
        with np.errstate(over='ignore', invalid='ignore'):
            norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        # Of finite values, too, if they are huge: divided by it they would be zeros.
        if not np.isfinite(norms).all():
            raise ModelError(
                f'{self.model_name}: embeddings are not finite; the model is unusable'
            )
        return np.asarray(embeddings / np.maximum(norms, np.finfo(np.float32).tiny))


def open_encoder(model_path: str | Path, *, threads: int = 1) -> Encoder:
    """Load a network.

    Parameters
    ----------
    model_path : str or Path
        ``NAME.safetensors`` (a model of this project), ``NAME.onnx`` (any embedding network
        with this project's metadata: `bicrossnet_ros.engine.model_file.ModelMetadata` as JSON in
        ``metadata_props['bicrossnet']``) or ``NAME.tflite`` (the same for Larq, see
        `bicrossnet_ros.engine.lce_runtime`).
    threads : int
        CPU threads of one call of `Encoder.encode`, 1 to 256; of those, as many as there are CPUs
        for this process. The result does not depend on it.

    Returns
    -------
    Encoder

    Raises
    ------
    ModelError
        If the file is missing, damaged, of another kind, contradicts its own metadata, or nothing
        installed can run it; or the back end that BICROSSNET_BACKEND names cannot.
    ConfigError
        If `threads` is impossible.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 256:
        raise ConfigError(f'threads is {threads!r}; expected a whole number from 1 to 256')
    path = Path(model_path)
    if not is_file(path):
        raise ModelError(f'{path}: no such model file; expected {_EXPECTED}')
    if path.suffix not in _OPENERS:
        raise ModelError(f'{path}: a {path.suffix or "nameless"} file; expected {_EXPECTED}')
    before = _state(path)
    try:
        model_id = file_sha256(path)
    except OSError as error:
        raise ModelError(
            f'{path}: cannot be read ({error.strerror}); check its permissions and its disk'
        ) from error
    metadata, runtime, projection = _OPENERS[path.suffix](path, model_id, min(threads, _cpus()))
    if _state(path) != before:
        del runtime  # and its weights: other encoders would take them for those of `model_id`
        raise ModelError(f'{path}: it changed while it was opened; open it again')
    return Encoder(
        model_id=model_id,
        model_name=metadata.name,
        embedding_dim=metadata.embedding_dim,
        preprocessing=metadata.preprocessing,
        _runtime=runtime,
        projection=projection,
    )


def _cpus() -> int:
    """Return how many CPUs this process may use: a thread beyond only keeps others waiting."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what tells whether a file was written or replaced; None: it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


# Each imports its runtime only when it is wanted: ONNX Runtime alone takes longer to import than
# the engine takes from the file to the first embedding.


def _open_model_file(path: Path, model_id: str, threads: int) -> Opened:
    from bicrossnet_ros.engine.native import EngineUnavailable

    asked = os.environ.get(BACKEND_VARIABLE)
    if asked == ONNX_RUNTIME:
        _warn_once(f'{BACKEND_VARIABLE}={ONNX_RUNTIME} asks for it; unset it to use the engine')
    else:
        from bicrossnet_ros.engine.native_runtime import open_native

        try:
            return open_native(path, model_id=model_id, threads=threads)
        except EngineUnavailable as error:
            if asked:  # who forces one measures or tests it: no other may pass for it
                raise ModelError(
                    f'{error} ({BACKEND_VARIABLE}={asked} forces the engine; where it is not set, '
                    'ONNX Runtime stands in)'
                ) from error
            _warn_once(str(error))
    from bicrossnet_ros.engine.onnx_runtime import from_model

    model = read_model(path)
    return *from_model(model, source=path, threads=threads), model.projection


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning('ONNX Runtime, which is slower, stands in for the native engine: %s', reason)


def _open_onnx(path: Path, model_id: str, threads: int) -> Opened:
    from bicrossnet_ros.engine.onnx_runtime import open_onnx

    return open_onnx(path, threads=threads)


def _open_lce(path: Path, model_id: str, threads: int) -> Opened:
    from bicrossnet_ros.engine.lce_runtime import open_lce

    return *open_lce(path, threads=threads), None


_OPENERS: dict[str, Callable[[Path, str, int], Opened]] = {
    '.safetensors': _open_model_file,
    '.onnx': _open_onnx,
    '.tflite': _open_lce,
}
_EXPECTED = 'a .safetensors, .onnx or .tflite file'
