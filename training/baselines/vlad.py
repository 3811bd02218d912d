"""SIFT features of a picture gathered into one vector (VLAD): an encoder without a network.

References
----------
Jegou, Douze, Schmid, Perez, Aggregating local descriptors into a compact image representation
(2010), equations 1 and 2, and section 3.2 on principal components. Arandjelovic and Zisserman,
Three things everyone should know to improve object retrieval (2012), section 3: RootSIFT. Jegou,
Perronnin et al., Aggregating local image descriptors into compact codes (2012), equation 15: the
power law.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.features import DESCRIPTOR_SIZE, extract
from bicrossnet_ros.tile_index import Float32Array
from bicrossnet_ros.types import ImageArray

WORDS = 64
COMPONENTS = 1024
FEATURES_PER_IMAGE = 300
K_MEANS_ROUNDS = 25


@dataclass(frozen=True, eq=False)
class Vlad:
    """A vocabulary, and the axes that a long vector is shortened to; made by `learn_vlad`.

    Parameters
    ----------
    words : ndarray of float32, shape (K, 128)
    mean : ndarray of float32, shape (K * 128,)
    axes : ndarray of float32, shape (D, K * 128)
        Principal axes of the vectors of the training images.
    """

    words: Float32Array
    mean: Float32Array
    axes: Float32Array
    model_name: str = 'SIFT + VLAD'

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return len(self.axes)

    @property
    def model_id(self) -> str:
        """SHA-256 of the vocabulary and the axes."""
        digest = hashlib.sha256()
        for part in (self.words, self.mean, self.axes):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def encode(self, patches: ImageArray) -> Float32Array:
        """Embed patches uint8 RGB (N, H, W, 3): unit rows (N, D), zeros without any feature."""
        long = np.stack([vlad(descriptors_of(patch), self.words) for patch in patches])
        featureless = ~long.any(axis=1)
        short = (long - self.mean) @ self.axes.T
        short[featureless] = 0.0
        return unit_rows(short)

    def save(self, path: Path) -> None:
        """Write a file for `load_vlad`."""
        with path.open('wb') as stream:
            np.savez(stream, words=self.words, mean=self.mean, axes=self.axes)


def load_vlad(path: Path) -> Vlad:
    """Read what `Vlad.save` wrote.

    Raises
    ------
    ConfigError
        If it is no such file.
    """
    try:
        with np.load(path) as parts:
            return Vlad(parts['words'], parts['mean'], parts['axes'])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ConfigError(f'{path}: no vocabulary ({error}); delete it to learn one') from error


def descriptors_of(image: ImageArray) -> Float32Array:
    """RootSIFT rows (N, 128) of unit length of an RGB image, as registration finds them."""
    everywhere = np.ones(image.shape[:2], bool)
    found = extract(image, everywhere, max_features=FEATURES_PER_IMAGE)
    return unit_rows(found.descriptors.astype(np.float32))


def vlad(descriptors: Float32Array, words: Float32Array) -> Float32Array:
    """Unit vector (K * 128,): sums of the differences to the nearest word, under a square root.

    Parameters
    ----------
    descriptors : ndarray of float32, shape (N, 128)
        N may be 0: the vector is zero.
    words : ndarray of float32, shape (K, 128)
    """
    sums = np.zeros_like(words)
    if len(descriptors):
        # |d - w|^2 without |d|^2, which is the same for all words.
        nearest = ((words**2).sum(axis=1) - 2.0 * descriptors @ words.T).argmin(axis=1)
        np.add.at(sums, nearest, descriptors - words[nearest])
    powered = np.sign(sums) * np.sqrt(np.abs(sums))
    return unit_rows(powered.reshape(1, -1))[0]


def learn_vlad(
    images: Iterable[ImageArray], *, words: int = WORDS, components: int = COMPONENTS, seed: int
) -> Vlad:
    """Learn a vocabulary and the principal axes from images of other places.

    Parameters
    ----------
    images : iterable of ndarray, uint8 (H, W, 3)
        Of the size that will be embedded.
    words : int
    components : int
        Length of an embedding; fewer if the images span fewer.
    seed : int
        Of the clustering.

    Raises
    ------
    ConfigError
        If the images have too few features.
    """
    found = [descriptors_of(image) for image in images]
    count = sum(map(len, found))
    if count < 10 * words:
        raise ConfigError(
            f'{len(found)} training images have {count} SIFT features; expected at least '
            f'{10 * words} for {words} words: give more images'
        )
    centers = _k_means(np.concatenate(found), words, seed)
    long = np.stack([vlad(one, centers) for one in found])
    mean = long.mean(axis=0)
    _, strength, axes = np.linalg.svd(long - mean, full_matrices=False)
    kept = min(components, int((strength > 1e-5 * strength[0]).sum()))
    return Vlad(centers, mean, np.ascontiguousarray(axes[:kept], np.float32))


def unit_rows(rows: NDArray[np.float32]) -> Float32Array:
    """Rows of unit length; zeros stay zeros."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)


def _k_means(rows: Float32Array, count: int, seed: int) -> Float32Array:
    import faiss

    means = faiss.Kmeans(DESCRIPTOR_SIZE, count, niter=K_MEANS_ROUNDS, seed=seed)
    means.train(np.ascontiguousarray(rows))
    return np.asarray(means.centroids, np.float32)
