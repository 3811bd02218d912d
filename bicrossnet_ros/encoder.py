"""Ground patches to embeddings: one way in for every kind of model file.

``.safetensors`` is a model of this project (its ONNX graph is built in memory); ``.onnx`` may be
any embedding network whose metadata says how its input is prepared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.engine.model_file import (
    METADATA_KEY,
    ModelMetadata,
    file_sha256,
    read_model,
)
from bicrossnet_ros.errors import ConfigError, ModelError
from bicrossnet_ros.preprocess import Preprocessing, check_patches, prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    """

    model_id: str
    model_name: str
    embedding_dim: int
    preprocessing: Preprocessing
    _session: Any = field(repr=False)
    _input_name: str = field(repr=False)

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
            (output,) = self._session.run(None, {self._input_name: batch})
            embeddings[start : start + MAX_BATCH] = output
        if not np.isfinite(embeddings).all():
            raise ModelError(
                f'{self.model_name}: embeddings are not finite; the model is unusable'
            )
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return np.asarray(embeddings / np.maximum(norms, np.finfo(np.float32).tiny))


def open_encoder(model_path: str | Path, *, threads: int = 1) -> Encoder:
    """Load a network.

    Parameters
    ----------
    model_path : str or Path
        ``NAME.safetensors`` (a model of this project) or ``NAME.onnx`` (any embedding network
        with this project's metadata: `bicrossnet_ros.engine.model_file.ModelMetadata` as JSON in
        ``metadata_props['bicrossnet']``).
    threads : int
        CPU threads of one call of `Encoder.encode`, 1 to 256.

    Returns
    -------
    Encoder

    Raises
    ------
    ModelError
        If the file is missing, damaged, of another kind, or contradicts its own metadata.
    ConfigError
        If `threads` is impossible.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 256:
        raise ConfigError(f'threads is {threads!r}; expected a whole number from 1 to 256')
    path = Path(model_path)
    if not path.is_file():
        raise ModelError(f'{path}: no such model file; expected a .safetensors or .onnx file')
    if path.suffix == '.safetensors':
        from bicrossnet_ros.engine.onnx_graph import build_onnx

        source: str | bytes = build_onnx(read_model(path)).SerializeToString()
    elif path.suffix == '.onnx':
        source = str(path)
    else:
        raise ModelError(
            f'{path}: a {path.suffix or "nameless"} file; expected .safetensors or .onnx'
        )
    session = _open_session(source, path, threads)
    metadata = _read_metadata(session, path)
    _check_session(session, metadata, path)
    return Encoder(
        model_id=file_sha256(path),
        model_name=metadata.name,
        embedding_dim=metadata.embedding_dim,
        preprocessing=metadata.preprocessing,
        _session=session,
        _input_name=session.get_inputs()[0].name,
    )


def _open_session(source: str | bytes, path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the camera and the filter.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try:
        return onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # its exceptions share no base class but Exception
        raise ModelError(
            f'{path}: ONNX Runtime cannot load it ({error}); copy or export it again'
        ) from error


def _read_metadata(session: Any, path: Path) -> ModelMetadata:
    entries = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in entries:
        raise ModelError(
            f'{path}: no metadata entry {METADATA_KEY!r}, so its preprocessing is unknown; '
            'write ModelMetadata.to_json() into its metadata_props first'
        )
    return ModelMetadata.from_json(entries[METADATA_KEY], source=str(path))


def _check_session(session: Any, metadata: ModelMetadata, path: Path) -> None:
    """Check the graph's input and output against the metadata, without running it."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f'{path}: {len(inputs)} inputs and {len(outputs)} outputs; expected one of each'
        )
    size = [metadata.preprocessing.input_height_px, metadata.preprocessing.input_width_px]
    _check_shape(f'{path}: input', inputs[0], [None, 3, *size])
    _check_shape(f'{path}: output', outputs[0], [None, metadata.embedding_dim])


def _check_shape(what: str, value: Any, expected: list[int | None]) -> None:
    fits = len(value.shape) == len(expected) and all(
        isinstance(found, str) or found is None or found == wanted
        for found, wanted in zip(value.shape[1:], expected[1:], strict=True)
    )
    dynamic = bool(value.shape) and not isinstance(value.shape[0], int)
    if value.type != 'tensor(float)' or not fits or not dynamic:
        raise ModelError(
            f'{what} is {value.type} {value.shape}; expected float {["N", *expected[1:]]} '
            'with a free batch size; export the model again'
        )
