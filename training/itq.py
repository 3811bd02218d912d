"""Fit the projection of a compressed descriptor: whitening, PCA, and a rotation (ITQ).

The rotation changes no float descriptor's cosine: it turns the axes so that the signs say as much
as they can, which they do where every axis has much the same variance.

References
----------
Gong and Lazebnik 2011, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes",
section 3 (rotation).
Mikolajczyk and Matas 2007, "Improving Descriptors for Fast Tree Matching by Optimal Linear
Projection" (whitening by the differences within pairs).
Jegou and Chum 2012, "Negative Evidences and Co-occurrences in Image Retrieval: the Benefit of PCA
and Whitening".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bicrossnet_ros.descriptor import SIZE, Projection
from bicrossnet_ros.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ITERATIONS = 50  # as in the paper
# Directions that hold no more of the variance than this are rounding.
_LEAST_VARIANCE = 1e-10
# Added to the differences' variance in every direction, share of their mean: few pairs know little
# of the directions in which pairs differ least. Better than 0.001 on the validation scenes.
_SHRINKAGE = 0.1


@dataclass(frozen=True)
class Recipe:
    """How a projection is fitted.

    Parameters
    ----------
    whitening : float
        Each principal component is divided by this power of its standard deviation: 0 is PCA
        alone, 1 whitens.
    paired : bool
        First whiten the differences between the two views of a place, so that directions in
        which they differ count less.
    iterations : int
        Of ITQ; 0 leaves a random rotation.
    """

    whitening: float
    paired: bool = False
    iterations: int = 0

    def __str__(self) -> str:
        first = 'differences of pairs whitened, PCA' if self.paired else 'PCA'
        rotation = 'ITQ' if self.iterations else 'a random rotation'
        return f'{first}, whitening {self.whitening:g}, {rotation}'


def fit_projection(
    tiles: NDArray[np.float32], queries: NDArray[np.float32], recipe: Recipe, *, seed: int
) -> Projection:
    """Fit a projection to embeddings that are typical of the model.

    Parameters
    ----------
    tiles, queries : ndarray of shape (N, D), float32
        Of unit length; rows n of both show one place. D and 2 N are above 256, N better ten times
        that.
    recipe : Recipe
    seed : int
        Of the rotation.

    Raises
    ------
    ModelError
        If there are too few embeddings, or they vary in fewer than 256 directions.
    """
    embeddings = np.concatenate([tiles, queries]).astype(np.float64)
    count, dim = embeddings.shape
    if min(count, dim) <= SIZE:
        raise ModelError(
            f'{count} embeddings of {dim}; a descriptor of {SIZE} needs more of both: fit it on '
            'more places, or fly this model with float galleries'
        )
    mean = embeddings.mean(axis=0)
    centred = embeddings - mean
    first = _paired_whitening(tiles, queries) if recipe.paired else np.eye(dim)
    moved = centred @ first
    variances, axes = np.linalg.eigh(moved.T @ moved / count)
    variances, axes = variances[::-1][:SIZE], axes[:, ::-1][:, :SIZE]
    if variances[-1] <= _LEAST_VARIANCE * variances[0]:
        raise ModelError(
            f'the embeddings vary in fewer than {SIZE} directions; fit the descriptor on more '
            'places, or look for a fault of the model'
        )
    matrix = first @ axes * variances ** (-0.5 * recipe.whitening)
    rows = centred @ matrix
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    matrix = matrix @ itq_rotation(rows, seed=seed, iterations=recipe.iterations)
    matrix /= np.abs(matrix).max()  # the scale is free; float16 is finest below 1
    return Projection(mean.astype(np.float32), matrix.astype(np.float16))


def _paired_whitening(
    tiles: NDArray[np.float32], queries: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The symmetric matrix (D, D) that gives the differences of pairs the same variance all round.

    References
    ----------
    Mikolajczyk and Matas 2007, section 3: the covariance of differences to the power of -1/2.
    """
    differences = tiles.astype(np.float64) - queries
    covariance = differences.T @ differences / len(differences)
    variances, axes = np.linalg.eigh(covariance)
    variances += _SHRINKAGE * variances.mean()
    return np.asarray(axes * variances**-0.5 @ axes.T)


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
