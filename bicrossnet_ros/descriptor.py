"""The compressed descriptor of a model: its embeddings projected to 256 numbers, or their signs.

The projection is an affine map that `training.descriptor` fits and the model file carries. The
signs of a tile take 32 bytes. A query keeps its 256 floats and is compared with the signs of the
tiles, so that only one side of the comparison loses anything.

References
----------
Gong and Lazebnik 2011, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes".
Gordo et al. 2014, "Asymmetric Distances for Binary Embeddings".
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ModelError

SIZE = 256
DESCRIPTOR_KEY = 'bicrossnet_descriptor'  # of an ONNX file's metadata
MEAN_NAME, MATRIX_NAME = 'descriptor.mean', 'descriptor.matrix'
HOW_TO_FIT = 'python -m training.descriptor MODEL --data SCENES --out MODEL2 fits one'


@dataclass(frozen=True)
class Projection:
    """Embeddings to descriptors: ``(embedding - mean) @ matrix``, scaled to unit length.

    Parameters
    ----------
    mean : ndarray of shape (D,), float32
    matrix : ndarray of shape (D, 256), float16
        Half the file; `apply` computes in float32.

    Raises
    ------
    ModelError
        If a shape or dtype is another one, or a value is not finite.
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float16]

    def __post_init__(self) -> None:
        found = [(str(array.dtype), array.shape) for array in (self.mean, self.matrix)]
        dim = self.mean.size
        expected = [('float32', (dim,)), ('float16', (dim, SIZE))]
        if found != expected or dim == 0:
            raise ModelError(
                f'descriptor: mean and matrix are {found}; expected {expected}; {_REMEDY}'
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.matrix).all()):
            raise ModelError(f'descriptor: it holds values that are not finite; {_REMEDY}')

    @property
    def embedding_dim(self) -> int:
        """Length D of the embeddings that it takes."""
        return len(self.mean)

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project embeddings (N, D) of unit length to descriptors (N, 256) of unit length.

        Raises
        ------
        ModelError
            If they have another length than the projection takes, or the result is not finite.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ModelError(
                f'embeddings have shape {embeddings.shape}; the descriptor takes '
                f'(N, {self.embedding_dim})'
            )
        with np.errstate(over='ignore', invalid='ignore'):
            rows = (embeddings.astype(np.float32) - self.mean) @ self.matrix.astype(np.float32)
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            raise ModelError(
                f'descriptors are not finite: the embeddings or the descriptor are bad; {_REMEDY}'
            )
        return np.asarray(rows / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays under the names that they have in a model file."""
        return {MEAN_NAME: self.mean, MATRIX_NAME: self.matrix}


def projection_from(
    tensors: Mapping[str, NDArray[Any]], *, embedding_dim: int, source: str
) -> Projection | None:
    """Take the projection out of a model file's tensors; None if there is none.

    Raises
    ------
    ModelError
        If half of it is missing, or it does not fit the embeddings.
    """
    found = {MEAN_NAME, MATRIX_NAME} & tensors.keys()
    if not found:
        return None
    if len(found) == 1:
        raise ModelError(f'{source}: of its descriptor only {found} is there; {_REMEDY}')
    try:
        projection = Projection(tensors[MEAN_NAME], tensors[MATRIX_NAME])
    except ModelError as error:
        raise ModelError(f'{source}: {error}') from error
    if projection.embedding_dim != embedding_dim:
        raise ModelError(
            f'{source}: its descriptor takes embeddings of {projection.embedding_dim}, the '
            f'network makes {embedding_dim}; {_REMEDY}'
        )
    return projection


def projection_to_text(projection: Projection) -> str:
    """The projection as text, for the metadata of an ONNX file: base64 of a safetensors file."""
    from safetensors.numpy import save

    return base64.b64encode(save(projection.tensors())).decode('ascii')


def projection_from_text(
    text: str | None, *, embedding_dim: int, source: str
) -> Projection | None:
    """Read what `projection_to_text` wrote; None if there is nothing.

    Raises
    ------
    ModelError
        If it is damaged or does not fit the embeddings.
    """
    if text is None:
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(base64.b64decode(text, validate=True))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f'{source}: its descriptor is damaged ({error}); {_REMEDY}') from error
    projection = projection_from(tensors, embedding_dim=embedding_dim, source=source)
    if projection is None or len(tensors) > 2:
        raise ModelError(
            f'{source}: its descriptor holds {sorted(tensors)}; expected '
            f'{[MEAN_NAME, MATRIX_NAME]}; {_REMEDY}'
        )
    return projection


def signs(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signs of descriptors (N, B) scaled to rows of unit length; the sign of 0 is +1."""
    unit = np.float32(descriptors.shape[1] ** -0.5)
    return np.where(descriptors >= 0, unit, -unit)


_REMEDY = f'fit it again: {HOW_TO_FIT}'
