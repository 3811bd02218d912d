"""Fit the projection of a compressed descriptor: PCA, whitening in part, and a rotation (ITQ).

The rotation changes no float descriptor's cosine: it turns the axes so that the signs say as much
as they can, which they do where every axis has much the same variance.

References
----------
Gong and Lazebnik 2011, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes",
section 3 (rotation).
Jegou and Chum 2012, "Negative Evidences and Co-occurrences in Image Retrieval: the Benefit of PCA
and Whitening".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bicrossnet_ros.descriptor import SIZE, Projection
from bicrossnet_ros.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ITERATIONS = 50  # as in the paper
# Directions that hold no more of the variance than this are rounding.
_LEAST_VARIANCE = 1e-10


def fit_projection(
    embeddings: NDArray[np.float32], *, whitening: float, seed: int, iterations: int = ITERATIONS
) -> Projection:
    """Fit a projection to embeddings that are typical of the model.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D), float32
        Of unit length; D and N above 256, N better ten times that.
    whitening : float
        Each principal component is divided by this power of its standard deviation: 0 is PCA
        alone, 1 whitens.
    seed : int
        Of the rotation that the iteration starts from.
    iterations : int
        Of ITQ; 0 leaves the random rotation.

    Raises
    ------
    ModelError
        If there are too few embeddings, or they vary in fewer than 256 directions.
    """
    count, dim = embeddings.shape
    if min(count, dim) <= SIZE:
        raise ModelError(
            f'{count} embeddings of {dim}; a descriptor of {SIZE} needs more of both: fit it on '
            'more places, or fly this model with float galleries'
        )
    mean = embeddings.mean(axis=0, dtype=np.float64)
    centred = embeddings.astype(np.float64) - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / count)
    variances, axes = variances[::-1][:SIZE], axes[:, ::-1][:, :SIZE]
    if variances[-1] <= _LEAST_VARIANCE * variances[0]:
        raise ModelError(
            f'the embeddings vary in fewer than {SIZE} directions; fit the descriptor on more '
            'places, or look for a fault of the model'
        )
    matrix = axes * variances ** (-0.5 * whitening)
    rows = centred @ matrix
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    matrix = matrix @ itq_rotation(rows, seed=seed, iterations=iterations)
    matrix /= np.abs(matrix).max()  # the scale is free; float16 is finest below 1
    return Projection(mean.astype(np.float32), matrix.astype(np.float16))


def itq_rotation(rows: NDArray[np.float64], *, seed: int, iterations: int) -> NDArray[np.float64]:
    """Turn rows (N, B) so that they lie close to their signs.

    Returns
    -------
    ndarray of shape (B, B), float64
        An orthogonal matrix R: ``rows @ R`` has the smaller distance to ``sign(rows @ R)``.

    References
    ----------
    Gong and Lazebnik 2011, equations 2 and 3: signs for a fixed rotation, then the rotation that
    brings the rows closest to these signs (orthogonal Procrustes), in turn.
    """
    size = rows.shape[1]
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((size, size)))[0]
    for _ in range(iterations):
        turned = rows @ rotation
        left, _, right = np.linalg.svd(rows.T @ np.where(turned >= 0, 1.0, -1.0))
        rotation = left @ right
    return np.asarray(rotation)
