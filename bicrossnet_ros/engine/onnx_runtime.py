"""Networks in ONNX Runtime: any ``.onnx`` with our metadata, or the graph of a model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from bicrossnet_ros.descriptor import DESCRIPTOR_KEY, Projection, projection_from_text
from bicrossnet_ros.engine.model_file import METADATA_KEY, Model, ModelMetadata
from bicrossnet_ros.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class OnnxRuntime:
    """A `bicrossnet_ros.engine.runtime.Runtime`; made by `open_onnx` or `from_model`."""

    _session: Any
    _input_name: str

    @property
    def name(self) -> str:
        """'ONNX Runtime' and its version."""
        return f'ONNX Runtime {onnxruntime.__version__}'

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared images (N, 3, H, W); returns (N, D)."""
        (output,) = self._session.run(None, {self._input_name: batch})
        return np.asarray(output)


def open_onnx(path: Path, *, threads: int) -> tuple[ModelMetadata, OnnxRuntime, Projection | None]:
    """Load an ``.onnx`` that carries this project's metadata.

    Raises
    ------
    ModelError
        If the file is damaged, of another kind, or contradicts its own metadata.
    """
    session = _open_session(str(path), path, threads)
    entries = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in entries:
        raise ModelError(
            f'{path}: no metadata entry {METADATA_KEY!r}, so its preprocessing is unknown; '
            'write ModelMetadata.to_json() into its metadata_props first'
        )
    metadata = ModelMetadata.from_json(entries[METADATA_KEY], source=str(path))
    _check_session(session, metadata, path)
    projection = projection_from_text(
        entries.get(DESCRIPTOR_KEY), embedding_dim=metadata.embedding_dim, source=str(path)
    )
    return metadata, OnnxRuntime(session, session.get_inputs()[0].name), projection


def from_model(model: Model, *, source: Path, threads: int) -> tuple[ModelMetadata, OnnxRuntime]:
    """Build the graph of a model file in memory and load it.

    Raises
    ------
    ModelError
        If ONNX Runtime refuses it.
    """
    from bicrossnet_ros.engine.onnx_graph import INPUT, build_onnx

    session = _open_session(build_onnx(model).SerializeToString(), source, threads)
    return model.metadata, OnnxRuntime(session, INPUT)


def _open_session(graph: str | bytes, path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores from the camera and the filter.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try:
        return onnxruntime.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # its exceptions share no base class but Exception
        raise ModelError(
            f'{path}: ONNX Runtime cannot load it ({error}); copy or export it again'
        ) from error


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
