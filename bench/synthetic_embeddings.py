"""Embeddings of a map that does not exist, as a gallery of up to a million tiles would hold them.

Random unit vectors are a bad model: no two of them are alike, and every index does well or badly
on them for the wrong reason. Here a map is a smooth random field over a square grid of tiles: the
embeddings' mean, the spectrum of their covariance and the likeness of overlapping tiles were
measured on real imagery (`--fit FOLDER` measures them again):

    python bench/synthetic_embeddings.py --fit ../shared/data/rsscn7
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

Floats = NDArray[np.float32]

# Shipped weights, 2100 crops of RSSCN7: squared length of the mean embedding, and the share of
# the variance that the principal component of a rank holds.
MEAN_SQUARED = 0.30
SPECTRUM = {
    1: 0.138,
    2: 0.0966,
    4: 0.0650,
    8: 0.0366,
    16: 0.0129,
    32: 0.00379,
    64: 0.00131,
    128: 0.000386,
    256: 0.000072,
}
RANK = max(SPECTRUM)  # holds 99.5 % of the variance
# Tiles overlap by 3/4, so neighbours are a quarter of a tile apart. Their correlation is that of
# ground of two scales; (share, sigma in tiles of the grid) fits 0.86, 0.69, 0.54 at 1, 2, 3.
SCALES = ((0.55, 1.0), (0.45, 8.0))
STRIDE_M = 16.0
TILE_M = 4 * STRIDE_M
# Noise of a query, as a multiple of the standard deviation of tiles: 43 % of queries find their
# place among 458 tiles, and 65 % within five, as the shipped weights do on the Seneca flight (44 %
# and 68 %). EfficientNet-Lite0, with 66 to 76 % there, is like 1.2.
QUERY_NOISE = 1.75


@dataclass(frozen=True)
class SyntheticMap:
    """Tiles (T, R) and queries (Q, R) in principal components, and how they become embeddings."""

    tiles: Floats  # (R, T): one smooth field a component
    queries: Floats  # (Q, R)
    true_ids: NDArray[np.int64]  # (Q,)
    basis: Floats  # (R, D)
    mean: Floats  # (D,)

    def embeddings(self, begin: int, end: int) -> Floats:
        """Unit embeddings (end - begin, D) of tiles."""
        return self._embed(self.tiles[:, begin:end].T)

    def query_embeddings(self) -> Floats:
        """Unit embeddings (Q, D) of the queries."""
        return self._embed(self.queries)

    def _embed(self, components: Floats) -> Floats:
        rows = components @ self.basis + self.mean
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def positions_m(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """East and north of the centres of `count` tiles, in rows of a square grid."""
    row, col = np.divmod(np.arange(count), side_of(count))
    return col * STRIDE_M, -row * STRIDE_M


def side_of(count: int) -> int:
    """Tiles in a row of the grid."""
    return int(np.ceil(count**0.5))


def spectrum() -> NDArray[np.float64]:
    """Variances of the `RANK` components, interpolated between those measured."""
    ranks, shares = np.array(list(SPECTRUM), float), np.array(list(SPECTRUM.values()))
    share = np.exp(np.interp(np.log(np.arange(1, RANK + 1)), np.log(ranks), np.log(shares)))
    return share / share.sum() * (1 - MEAN_SQUARED)


def make_map(
    count: int, dim: int, *, queries: int, noise: float = QUERY_NOISE, seed: int = 0
) -> SyntheticMap:
    """Draw a map of `count` tiles with embeddings of `dim` elements, and queries into it.

    A query is the embedding of a tile plus noise with the covariance of tiles, `noise` times as
    large: what changes between two flights lies where tiles differ, too.
    """
    rng = np.random.default_rng(seed)
    rank = min(RANK, dim - 1)  # one direction is the mean's
    deviations = np.sqrt(spectrum()[:rank]).astype(np.float32)
    tiles = np.empty((rank, count), np.float32)
    for component, deviation in zip(tiles, deviations, strict=True):
        component[:] = deviation * _field(side_of(count), rng).ravel()[:count]
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, rank + 1)))
    directions = np.ascontiguousarray(rotation.T, np.float32)
    true_ids = rng.integers(0, count, queries)
    changes = rng.standard_normal((queries, rank), dtype=np.float32) * deviations
    return SyntheticMap(
        tiles=tiles,
        queries=tiles[:, true_ids].T + noise * changes,
        true_ids=true_ids,
        basis=directions[:rank],
        mean=directions[rank] * np.float32(MEAN_SQUARED**0.5),
    )


def _field(side: int, rng: np.random.Generator) -> Floats:
    """A random field (side, side) of variance 1 with the correlations of `SCALES`."""
    total = np.zeros((side, side), np.float32)
    for share, sigma in SCALES:
        step = max(1, int(sigma) // 2)  # smooth noise needs no more samples than this
        margin = 4
        wide = side // step + 2 * margin + 1
        small = rng.standard_normal((wide, wide), dtype=np.float32)
        smooth = cv2.GaussianBlur(small, (0, 0), sigma / step)
        if step > 1:
            smooth = cv2.resize(smooth, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        cut = smooth[margin * step :, margin * step :][:side, :side]
        # The expected deviation of blurred noise: 1 / (2 sigma sqrt(pi)).
        total += cut * np.float32(share**0.5 * 2 * (sigma / step) * np.pi**0.5)
    return total


def fit(folder: Path) -> None:
    """Print what the constants above were taken from."""
    from bicrossnet_ros.encoder import default_model_path, open_encoder

    encoder = open_encoder(default_model_path())
    images = [cv2.imread(str(path))[..., ::-1] for path in sorted(folder.rglob('*.jpg'))[::8]]
    size = 160

    def embed(corners: list[tuple[int, int]]) -> Floats:
        crops = [[image[r : r + size, c : c + size] for r, c in corners] for image in images]
        return np.stack([encoder.encode(np.stack(group)) for group in crops])

    spread = embed([(r, c) for r in (0, 120, 240) for c in (0, 240)]).reshape(
        -1, encoder.embedding_dim
    )
    values = np.linalg.eigvalsh(np.cov(spread.T))[::-1]
    mean = spread.mean(axis=0)
    print(f'{len(spread)} crops; squared length of the mean {mean @ mean:.3f}')
    for rank in SPECTRUM:
        print(f'  rank {rank}: {values[rank - 1] / values.sum():.3g}')
    row = embed([(120, 20 + step * size // 4) for step in range(5)])
    for step in range(1, 5):
        cosine = float((row[:, 0] * row[:, step]).sum(axis=1).mean())
        correlation = (cosine - mean @ mean) / (1 - mean @ mean)
        print(f'  {step} strides apart: cosine {cosine:.3f}, correlation {correlation:.2f}')


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--fit', type=Path, required=True, metavar='FOLDER', help='of JPEGs')
    fit(parser.parse_args().fit)


if __name__ == '__main__':
    main()
