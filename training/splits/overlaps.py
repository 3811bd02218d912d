"""Scenes that show the same ground: what must not stand on two sides of a split.

Two scenes may be cut from one picture, a little apart, or one from the same place in a picture of
twice the scale. Whitened cross-correlation finds the shift that fits best of every pair, and the
correlation of what then lies upon each other decides.

References
----------
Kuglin and Hines 1975, "The Phase Correlation Image Alignment Method".
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.progress import counted

Gray = NDArray[np.uint8]

# Side of the gray images that are compared.
SIDE_PX = 100
# A pair whose whitened correlation peaks lower is not looked at. Most that are looked at are of
# plain fields; the correlation of the ground itself parts them: of the 220 pairs found in RSSCN7
# 192 have 0.8 or more.
LEAST_PEAK = 0.105
LEAST_CORRELATION = 0.5
# An overlap of fewer rows or columns than this says nothing.
LEAST_OVERLAP_PX = 15
# Blur that is taken off, so that brightness alone is no likeness.
_BLUR_PX = 6.0

Pair = tuple[int, int, float]


def overlapping(gray: Gray) -> list[Pair]:
    """Find the pairs of scenes of one scale that overlap, shifted but not turned.

    Parameters
    ----------
    gray : ndarray of uint8, shape (N, SIDE_PX, SIDE_PX)

    Returns
    -------
    list of (int, int, float)
        Rows of a pair, the first the smaller, and the correlation of their common part.
    """
    fine = _high_pass(gray)
    spectra = _whitened(fine, 2 * SIDE_PX)
    # Candidates are found at half the size, in a quarter of the time.
    coarse = _whitened(F.avg_pool2d(_tensor(gray), 2), SIDE_PX)
    pairs = []
    for first, second, _ in _peaks(coarse, coarse, SIDE_PX):
        if second > first:
            shift = next(_peaks(spectra[[first]], spectra[[second]], 2 * SIDE_PX, least=0.0))[2]
            pairs.append((first, second, _correlation(fine[first], fine[second], shift)))
    return [pair for pair in pairs if pair[2] >= LEAST_CORRELATION]


def within(fine: Gray, coarse: Gray) -> list[Pair]:
    """Find the scenes of one scale that lie in scenes of twice as much ground a side.

    Parameters
    ----------
    fine, coarse : ndarray of uint8, shape (N, SIDE_PX, SIDE_PX) and (M, SIDE_PX, SIDE_PX)

    Returns
    -------
    list of (int, int, float)
        Row of `fine`, row of `coarse`, and the correlation of their common part.
    """
    half = (SIDE_PX // 2, SIDE_PX // 2)
    shrunk = np.stack([cv2.resize(x, half, interpolation=cv2.INTER_AREA) for x in fine])
    small, large = _high_pass(shrunk), _high_pass(coarse)
    # Shifts that this size confuses have less in common than LEAST_OVERLAP_PX or nearly so.
    size = 128
    pairs = [
        (first, second, _correlation(small[first], large[second], shift))
        for first, second, shift in _peaks(_whitened(small, size), _whitened(large, size), size)
    ]
    return [pair for pair in pairs if pair[2] >= LEAST_CORRELATION]


def _peaks(
    first: Tensor, second: Tensor, size: int, *, least: float = LEAST_PEAK
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Rows of two stacks of spectra that correlate, and the shift from the first to the second."""
    rows = range(len(first))
    for one in counted(rows, 'comparing scenes', len(rows)) if len(rows) > 1 else rows:
        surfaces = torch.fft.irfft2(second * first[one].conj(), s=(size, size)).flatten(1)
        peaks, places = surfaces.max(1)
        for other in torch.nonzero(peaks > least)[:, 0].tolist():
            shift = divmod(int(places[other]), size)
            yield one, other, (_signed(shift[0], size), _signed(shift[1], size))


def _signed(shift: int, size: int) -> int:
    return shift - size if shift > 5 * size // 8 else shift


def _correlation(first: Tensor, second: Tensor, shift: tuple[int, int]) -> float:
    """Correlation of two images upon each other, the best within a pixel of a shift."""
    around = [(shift[0] + row, shift[1] + col) for row in (-1, 0, 1) for col in (-1, 0, 1)]
    return max(_shifted(first.numpy(), second.numpy(), *each) for each in around)


def _shifted(a: NDArray[np.float32], b: NDArray[np.float32], rows: int, cols: int) -> float:
    """Correlation of ``a[r, c]`` with ``b[r + rows, c + cols]`` where both exist; 0 if too few."""
    first, second = [], []
    for shift in (rows, cols):
        start, end = max(0, -shift), min(len(a), len(b) - shift)
        if end - start < LEAST_OVERLAP_PX:
            return 0.0
        first.append(slice(start, end))
        second.append(slice(start + shift, end + shift))
    x, y = a[tuple(first)], b[tuple(second)]
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-6))


def _tensor(gray: Gray) -> Tensor:
    images = torch.from_numpy(gray.astype(np.float32))
    return images - images.mean((1, 2), keepdim=True)


def _high_pass(gray: Gray) -> Tensor:
    images = gray.astype(np.float32)
    return torch.from_numpy(
        np.stack([image - cv2.GaussianBlur(image, (0, 0), _BLUR_PX) for image in images])
    )


def _whitened(images: Tensor, size: int) -> Tensor:
    """Spectra (N, size, size / 2 + 1) of windowed images (N, S, S), of even magnitude."""
    window = torch.hann_window(images.shape[1] + 2, periodic=False)[1:-1].sqrt()
    spectra = torch.fft.rfft2(images * window[:, None] * window, s=(size, size))
    magnitude = spectra.abs()
    return spectra / (magnitude + 1e-3 * magnitude.mean((1, 2), keepdim=True))
