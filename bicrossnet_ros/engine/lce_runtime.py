"""Networks in Larq Compute Engine: a ``.tflite`` with our metadata appended as a zip archive.

TensorFlow Lite's own way to put files into a model: the archive stands behind the graph, which
begins with its own offsets and does not see it (``unzip -p NAME.tflite bicrossnet.json``). Its one
entry, ``bicrossnet.json``, holds ``model``, the `ModelMetadata`, and ``sha256``, the digest of
that and of the graph: the interpreter trusts what it reads, so damage must not come to it.

References
----------
TensorFlow Lite, "Adding metadata to TensorFlow Lite models", section "Pack metadata and
associated files into the model".
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import io
import json
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.engine.model_file import ModelMetadata
from bicrossnet_ros.engine.runtime import FreeList
from bicrossnet_ros.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENTRY = 'bicrossnet.json'
_REMEDY = 'export the model again (python -m training.export CHECKPOINT --formats lce)'
_INTERPRETER = 'larq_compute_engine.tflite.python.interpreter_wrapper_lite'


@dataclass(frozen=True)
class LceRuntime:
    """A `bicrossnet_ros.engine.runtime.Runtime`; made by `open_lce`."""

    name: str
    _interpreters: FreeList[Any]

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared images (N, 3, H, W); returns (N, D)."""
        images = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        with self._interpreters.lend() as interpreter:
            # The converter fixes the batch at one.
            rows = [interpreter.predict([image[None]])[0] for image in images]
        return np.concatenate(rows)


def open_lce(path: Path, *, threads: int) -> tuple[ModelMetadata, LceRuntime]:
    """Load a ``.tflite`` that carries this project's metadata.

    Raises
    ------
    ModelError
        If the file is damaged, of another kind, contradicts its own metadata, or Larq Compute
        Engine is not installed.
    """
    metadata, graph = unpack(path.read_bytes(), source=str(path))
    interpreters = FreeList(lambda: open_graph(graph, threads=threads, source=str(path)))
    with interpreters.lend() as interpreter:
        _check_interpreter(interpreter, metadata, path)
    return metadata, LceRuntime(_name(), interpreters)


def open_graph(graph: bytes, *, threads: int, source: str) -> Any:
    """Open a graph without metadata: its ``predict`` maps a list of arrays to another.

    Raises
    ------
    ModelError
        If Larq Compute Engine is not installed, or refuses it.
    """
    module = _import_interpreter(source)
    try:
        # Not the reference kernels; the indirect ones: five times as fast as the direct ones on
        # x86-64; not XNNPACK.
        return module.LiteInterpreter(graph, threads, False, True, False)
    except Exception as error:  # pybind11 turns what C++ throws into various classes
        raise ModelError(
            f'{source}: Larq Compute Engine cannot load it ({_line(error)}); {_REMEDY}'
        ) from error


def pack(graph: bytes, metadata: ModelMetadata) -> bytes:
    """Append metadata to a graph; equal ones give equal bytes."""
    text = metadata.to_json()
    entry = json.dumps({'model': json.loads(text), 'sha256': _digest(text, graph)})
    buffer = io.BytesIO(graph)
    with zipfile.ZipFile(buffer, 'a') as archive:
        archive.writestr(zipfile.ZipInfo(ENTRY), entry)
    return buffer.getvalue()


def unpack(data: bytes, *, source: str) -> tuple[ModelMetadata, bytes]:
    """Undo `pack`: return the metadata and the graph.

    Parameters
    ----------
    data : bytes
        Content of a ``.tflite``.
    source : str
        Where it was found, for the message of an error.

    Raises
    ------
    ModelError
        If there is no metadata, or they or the graph are damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            graph = data[: archive.infolist()[0].header_offset]
            values = json.loads(archive.read(ENTRY))
        text, digest = json.dumps(values['model'], sort_keys=True), values['sha256']
    except Exception as error:  # damage makes zipfile and decompressors raise a dozen classes
        raise ModelError(
            f'{source}: no readable entry {ENTRY!r} behind its graph ({error!r}), so its '
            f'preprocessing is unknown; copy it again or {_REMEDY}'
        ) from error
    if digest != _digest(text, graph):
        raise ModelError(f'{source}: its checksum does not fit its content; copy it again')
    return ModelMetadata.from_json(text, source=source), graph


def _digest(text: str, graph: bytes) -> str:
    return hashlib.sha256(text.encode() + graph).hexdigest()


def _import_interpreter(source: str) -> ModuleType:
    """Import the interpreter alone: its package would import TensorFlow, which it does not use."""
    if _INTERPRETER in sys.modules:
        return sys.modules[_INTERPRETER]
    package = importlib.util.find_spec('larq_compute_engine')
    folders = (package.submodule_search_locations if package else None) or []
    stem = Path(*_INTERPRETER.split('.')[1:])
    for folder in folders:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            file = Path(folder, f'{stem}{suffix}')
            spec = importlib.util.spec_from_file_location(_INTERPRETER, file)
            if file.is_file() and spec is not None and spec.loader is not None:
                try:
                    module = importlib.util.module_from_spec(spec)
                    spec.loader.exec_module(module)
                except ImportError as error:
                    raise ModelError(
                        f'{source}: Larq Compute Engine cannot be loaded ({_line(error)}); '
                        'install it again (docs/larq.md)'
                    ) from error
                sys.modules[_INTERPRETER] = module
                return module
    raise ModelError(
        f'{source}: Larq Compute Engine is not installed; on x86-64 `pip install '
        "'bicrossnet_ros[lce]'`, on ARM see docs/larq.md, or use the .safetensors of the same "
        'network, which needs neither'
    )


def _name() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f'Larq Compute Engine {version("larq-compute-engine")}'
    except PackageNotFoundError:  # its files alone, without the wheel's record
        return 'Larq Compute Engine'


def _line(error: Exception) -> str:
    """Text of an error in one line."""
    return ' '.join(str(error).split())


def _check_interpreter(interpreter: Any, metadata: ModelMetadata, path: Path) -> None:
    """Check inputs and outputs against the metadata, and that an image goes through."""
    size = (metadata.preprocessing.input_height_px, metadata.preprocessing.input_width_px)
    found = (
        [tuple(shape) for shape in interpreter.input_shapes],
        [tuple(shape) for shape in interpreter.output_shapes],
        {np.dtype(kind) for kind in (*interpreter.input_types, *interpreter.output_types)},
    )
    expected = ([(1, *size, 3)], [(1, metadata.embedding_dim)], {np.dtype(np.float32)})
    if found != expected:
        raise ModelError(
            f'{path}: inputs, outputs and types are {found}; its metadata imply {expected}; '
            f'{_REMEDY}'
        )
    try:
        interpreter.predict([np.zeros((1, *size, 3), np.float32)])
    except Exception as error:  # of pybind11
        raise ModelError(
            f'{path}: Larq Compute Engine cannot run it ({_line(error)}); its last release runs '
            f'nothing with numpy 2, here is {np.__version__}: install numpy<2 (docs/larq.md)'
        ) from error
