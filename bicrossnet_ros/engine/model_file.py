"""The model file ``NAME.safetensors``: packed binary weights, floats and one JSON entry.

Tensors: for every binary convolution ``<unit>.conv.bits`` (uint8, order in
`bicrossnet_ros.engine.bits`), everything else float32 under the names of
`bicrossnet_ros.engine.architecture`; BatchNorm is stored as trained, not folded. Two more,
``descriptor.mean`` and ``descriptor.matrix`` (`bicrossnet_ros.descriptor`), may follow. The file's
metadata has the single key ``bicrossnet``, whose value is JSON: ``model``, the `ModelMetadata`,
and ``sha256``, the digest of that and of every tensor (safetensors itself has no checksum). One
key only: safetensors writes several in random order, and equal models must be equal files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.descriptor import MATRIX_NAME, MEAN_NAME, Projection, projection_from
from bicrossnet_ros.engine.architecture import (
    TOTAL_STRIDE_PX,
    float_shapes,
    make_blocks,
    packed_shapes,
)
from bicrossnet_ros.errors import ModelError
from bicrossnet_ros.preprocess import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FORMAT_VERSION = 1
METADATA_KEY = 'bicrossnet'
ARCHITECTURE = 'bnext'


@dataclass(frozen=True)
class ModelMetadata:
    """What a model file or an ONNX file says about itself.

    Parameters
    ----------
    name : str
        Name of the model, for people.
    architecture : str
        'bnext' for a network of this project; anything else flies as ONNX only.
    channels : tuple of int
        Channels of a 'bnext', see `bicrossnet_ros.engine.architecture`; else empty.
    embedding_dim : int
        Length of an embedding.
    preprocessing : Preprocessing
        What the network expects of its input.
    training : dict
        Record of the training: data, recipe, seed, revision, measured figures. JSON values.
    format_version : int
        Version of this metadata.
    """

    name: str
    architecture: str
    channels: tuple[int, ...]
    embedding_dim: int
    preprocessing: Preprocessing
    training: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ModelError(f'model metadata: name is {self.name!r}; expected a text')
        if not isinstance(self.training, dict):
            raise ModelError('model metadata: training is no mapping; export the model again')
        dim = self.embedding_dim
        if isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= 65536:
            raise ModelError(
                f'model metadata: embedding_dim is {dim!r}; expected a whole number '
                'from 1 to 65536'
            )
        if self.architecture == ARCHITECTURE:
            self._check_bnext()

    def _check_bnext(self) -> None:
        make_blocks(self.channels)
        if self.channels[-1] != self.embedding_dim:
            raise ModelError(
                f'model metadata: embedding_dim is {self.embedding_dim} but the last block has '
                f'{self.channels[-1]} channels; export the model again'
            )
        size = (self.preprocessing.input_height_px, self.preprocessing.input_width_px)
        if any(side % TOTAL_STRIDE_PX for side in size):
            raise ModelError(
                f'model metadata: the input is {size} px; expected multiples of {TOTAL_STRIDE_PX}'
            )

    def to_json(self) -> str:
        """Return the metadata as JSON."""
        values = asdict(self) | {'preprocessing': self.preprocessing.to_dict()}
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> ModelMetadata:
        """Read what `to_json` wrote.

        Parameters
        ----------
        text : str
            JSON.
        source : str
            Where it was found, for the message of an error.

        Raises
        ------
        ModelError
            If it is damaged, incomplete or of another version.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f'{source}: its metadata is no JSON ({error}); {_REMEDY}') from error
        version = values.get('format_version') if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ModelError(
                f'{source}: model format {version}, this version reads {FORMAT_VERSION}; {_REMEDY}'
            )
        expected = {item.name for item in fields(cls)}
        if set(values) != expected:
            raise ModelError(
                f'{source}: metadata has {sorted(values)}, expected {sorted(expected)}; {_REMEDY}'
            )
        if not isinstance(values['channels'], list):
            raise ModelError(f'{source}: channels are no list; {_REMEDY}')
        values['channels'] = tuple(values['channels'])
        try:
            values['preprocessing'] = Preprocessing.from_dict(values['preprocessing'])
            return cls(**values)
        except ModelError as error:
            raise ModelError(f'{source}: {error}') from error


_REMEDY = 'export the model again with this version (python -m training.export)'


@dataclass(frozen=True)
class Model:
    """A model in memory: its metadata and its tensors by name, as the file holds them."""

    metadata: ModelMetadata
    tensors: Mapping[str, NDArray[Any]]

    @property
    def network_tensors(self) -> dict[str, NDArray[Any]]:
        """The tensors of the network alone, without those of a descriptor."""
        own = {MEAN_NAME, MATRIX_NAME}
        return {name: tensor for name, tensor in self.tensors.items() if name not in own}

    @property
    def projection(self) -> Projection | None:
        """The projection to compressed descriptors, if the model has one."""
        return projection_from(
            self.tensors, embedding_dim=self.metadata.embedding_dim, source=self.metadata.name
        )


def check_tensors(model: Model, *, source: str) -> None:
    """Check names, dtypes, shapes and values of all tensors against the architecture.

    Raises
    ------
    ModelError
        Naming the first tensor that is missing, unknown or wrong.
    """
    if model.metadata.architecture != ARCHITECTURE:
        raise ModelError(
            f'{source}: architecture {model.metadata.architecture!r}; a model file holds '
            f'{ARCHITECTURE!r} only, other networks fly as .onnx'
        )
    channels = model.metadata.channels
    packed, floats = packed_shapes(channels), float_shapes(channels)
    given = model.network_tensors
    missing = sorted((packed.keys() | floats.keys()) - given.keys())
    unknown = sorted(given.keys() - packed.keys() - floats.keys())
    if missing or unknown:
        raise ModelError(
            f'{source}: lacks tensors {missing[:3]}, has unknown tensors {unknown[:3]}; {_REMEDY}'
        )
    for shapes, dtype in ((packed, np.uint8), (floats, np.float32)):
        for name, shape in shapes.items():
            tensor = model.tensors[name]
            if tensor.dtype != dtype or tensor.shape != shape:
                raise ModelError(
                    f'{source}: {name} is {tensor.dtype} {tensor.shape}, '
                    f'expected {np.dtype(dtype)} {shape}; {_REMEDY}'
                )
    for name in floats:
        if not np.isfinite(model.tensors[name]).all():
            raise ModelError(f'{source}: {name} holds values that are not finite; {_REMEDY}')
        if name.endswith('running_var') and model.tensors[name].min() < 0:
            raise ModelError(f'{source}: {name} holds a negative variance; {_REMEDY}')
    projection_from(model.tensors, embedding_dim=model.metadata.embedding_dim, source=source)


def write_model(path: str | Path, model: Model) -> None:
    """Write a model file; an interrupted write leaves the old file.

    Raises
    ------
    ModelError
        If the tensors do not fit the metadata.
    """
    from safetensors.numpy import save

    path = Path(path)
    check_tensors(model, source=str(path))
    tensors = {name: np.ascontiguousarray(value) for name, value in model.tensors.items()}
    data = save(tensors, metadata={METADATA_KEY: _seal(model.metadata.to_json(), tensors)})
    partial = path.with_name(path.name + '.partial')
    partial.write_bytes(data)
    partial.replace(path)


def read_model(path: str | Path) -> Model:
    """Read and check a model file.

    Raises
    ------
    ModelError
        If the file is missing, damaged, or no model of this project.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not is_file(path):
        raise ModelError(f'{path}: no such model file; give the path of a NAME.safetensors')
    try:
        with safe_open(str(path), framework='numpy') as file:
            entries = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f'{path}: not a readable safetensors file ({error}); copy it again or {_REMEDY}'
        ) from error
    if METADATA_KEY not in entries:
        raise ModelError(
            f'{path}: a safetensors file without the entry {METADATA_KEY!r}, so not a model of '
            f'this project; {_REMEDY}'
        )
    text = _unseal(entries[METADATA_KEY], tensors, source=str(path))
    model = Model(ModelMetadata.from_json(text, source=str(path)), tensors)
    check_tensors(model, source=str(path))
    return model


def _seal(text: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """Join the metadata's JSON with the digest of itself and the tensors."""
    return json.dumps({'model': json.loads(text), 'sha256': _digest(text, tensors)})


def _unseal(entry: str, tensors: Mapping[str, NDArray[Any]], *, source: str) -> str:
    """Return the metadata's JSON; ModelError if the digest does not fit."""
    try:
        values = json.loads(entry)
        text, digest = json.dumps(values['model'], sort_keys=True), values['sha256']
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f'{source}: its metadata is incomplete ({error!r}); {_REMEDY}') from error
    if digest != _digest(text, tensors):
        raise ModelError(f'{source}: its checksum does not fit its content; copy it again')
    return text


def _digest(text: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).view(np.uint8).data)
    return digest.hexdigest()


def is_file(path: Path) -> bool:
    """Return whether a file is there; a name that no file system takes is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits: the identity of a model."""
    with Path(path).open('rb') as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
