"""Scenes that show the same ground: what must not stand on two sides of a split.

Two scenes of one scale may be cut from one picture, a little apart. Whitened cross-correlation
finds the shift that fits best of every pair, and the correlation of what then lies upon each other
decides.

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

# Side of the grey images that are compared, and of the halves of it that find candidates.
SIDE_PX = 100
# Of the 2,800 scenes of RSSCN7 some 3,000 pairs have a peak above it, most of plain fields. The
# correlation parts them: 26 pairs have 0.76 to 0.99 (they overlap by 36 to 97%), one 0.53, no
# other more than 0.47.
LEAST_PEAK = 0.13
LEAST_CORRELATION = 0.5
# An overlap of fewer rows or columns than this says nothing.
LEAST_OVERLAP_PX = 15


def overlapping(gray: NDArray[np.uint8]) -> list[tuple[int, int, float]]:
    """Find the pairs of scenes that overlap, shifted but neither turned nor scaled.

    Parameters
    ----------
    gray : ndarray of uint8, shape (N, SIDE_PX, SIDE_PX)
        Scenes of one scale, gray.

    Returns
    -------
    list of (int, int, float)
        Rows of a pair, the first the smaller, and the correlation of their common part.
    """
    fine = np.stack([_high_pass(image) for image in gray])
    spectra = _whitened(torch.from_numpy(fine))
    found = []
    for first, second in _candidates(torch.from_numpy(gray.astype(np.float32))):
        correlation = _correlation(fine, spectra, first, second)
        if correlation >= LEAST_CORRELATION:
            found.append((first, second, correlation))
    return found


def _candidates(gray: Tensor) -> Iterator[tuple[int, int]]:
    halves = F.avg_pool2d(gray[:, None], 2)[:, 0]
    spectra = _whitened(halves - halves.mean((1, 2), keepdim=True))
    rows = range(len(gray) - 1)
    for first in counted(rows, 'comparing scenes', len(rows)):
        peaks = _correlate(spectra[first], spectra[first + 1 :]).flatten(1).amax(1)
        for second in torch.nonzero(peaks > LEAST_PEAK)[:, 0].tolist():
            yield first, first + 1 + second


def _correlation(fine: NDArray[np.float32], spectra: Tensor, first: int, second: int) -> float:
    """Correlation of two images shifted upon each other, the best within a pixel of the peak."""
    surface = _correlate(spectra[first], spectra[second : second + 1])[0]
    row, col = divmod(int(surface.argmax()), surface.shape[1])
    size = len(surface)
    peak = [at - size if at > size // 2 else at for at in (row, col)]
    around = [(peak[0] + row, peak[1] + col) for row in (-1, 0, 1) for col in (-1, 0, 1)]
    return max(_shifted(fine[first], fine[second], *shift) for shift in around)


def _shifted(a: NDArray[np.float32], b: NDArray[np.float32], rows: int, cols: int) -> float:
    """Correlation of ``a[r, c]`` with ``b[r + rows, c + cols]`` where both exist; 0 if too few."""
    side = len(a)
    if side - max(abs(rows), abs(cols)) < LEAST_OVERLAP_PX:
        return 0.0
    x = a[max(0, -rows) : side - max(0, rows), max(0, -cols) : side - max(0, cols)]
    y = b[max(0, rows) : side + min(0, rows), max(0, cols) : side + min(0, cols)]
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-6))


def _high_pass(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    x = image.astype(np.float32)
    return x - cv2.GaussianBlur(x, (0, 0), 6)


def _whitened(images: Tensor) -> Tensor:
    """Spectra (N, 2 S, S + 1) of windowed images (N, S, S), of even magnitude."""
    side = images.shape[1]
    window = torch.hann_window(side + 2, periodic=False)[1:-1].sqrt()
    spectra = torch.fft.rfft2(images * window[:, None] * window, s=(2 * side, 2 * side))
    magnitude = spectra.abs()
    return spectra / (magnitude + 1e-3 * magnitude.mean((1, 2), keepdim=True))


def _correlate(one: Tensor, others: Tensor) -> Tensor:
    """Correlation surfaces (N, 2 S, 2 S) of a spectrum with others."""
    side = 2 * (others.shape[2] - 1)
    return torch.fft.irfft2(others * one.conj(), s=(side, side))
