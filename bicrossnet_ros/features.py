"""Local features: SIFT found, kept for the map block by block, and matched.

The map is cut into square blocks of a fixed grid. A block's features are computed once, when a
frame first needs them, and kept; so a flight pays for each piece of map once, and no point of the
map is in two blocks, which keeps the ratio test fair across them.

References
----------
Lowe, Distinctive image features from scale-invariant keypoints (2004), section 7.1: ratio test.
Arandjelovic and Zisserman, Three things everyone should know to improve object retrieval (2012),
section 3: RootSIFT.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.config import RegistrationConfig
from bicrossnet_ros.types import FloatArray, ImageArray, MaskArray

DESCRIPTOR_SIZE = 128
# RootSIFT rows have unit length and entries below about 0.5: 512 fills a byte.
DESCRIPTOR_SCALE = 512.0
BLOCK_PX = 384
BLOCK_MARGIN_PX = 32
MASK_MARGIN_PX = 4
# Bare fields have little contrast: on the Seneca flight at 0.3 m per pixel OpenCV's defaults
# registered 75 of 95 frames, local contrast made equal and this lower threshold 95 of 95.
CONTRAST_THRESHOLD = 0.01
LOCAL_PX = 25
LOCAL_GAIN = 40.0
NOISE_FLOOR = 3.0


@dataclass(frozen=True)
class Features:
    """Points with descriptors, strongest first.

    Parameters
    ----------
    points : ndarray of shape (N, 2), float64
        (col, row) of an image or (east, north) in metres, as the maker says.
    descriptors : ndarray of shape (N, 128), uint8
        RootSIFT rows times 512.
    """

    points: FloatArray
    descriptors: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.points)

    def strongest(self, count: int) -> Features:
        """The first `count` of them."""
        return Features(self.points[:count], self.descriptors[:count])

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Features:
        """Some of them."""
        return Features(self.points[rows], self.descriptors[rows])


def no_features() -> Features:
    """Features of a place without any."""
    return Features(np.zeros((0, 2)), np.zeros((0, DESCRIPTOR_SIZE), np.uint8))


class Window(Protocol):
    """What this module needs of a map window; see `gallery.MapWindow`."""

    @property
    def image(self) -> ImageArray:
        """Pixels (H, W, 3)."""

    @property
    def mask(self) -> MaskArray:
        """Where there is map (H, W)."""

    @property
    def west_m(self) -> float:
        """Outer edge of the first column."""

    @property
    def north_m(self) -> float:
        """Outer edge of the first row."""

    @property
    def gsd_m(self) -> float:
        """Metres per pixel."""


class Map(Protocol):
    """What this module needs of a gallery."""

    def window(self, east_m: float, north_m: float, *, size_m: float, gsd_m: float) -> Window:
        """A square of map around a point."""


def extract(image: ImageArray, mask: MaskArray, *, max_features: int) -> Features:
    """SIFT features of an RGB image where `mask` is True; points are (col, row)."""
    eroded = cv2.erode(
        mask.astype(np.uint8),
        np.ones((2 * MASK_MARGIN_PX + 1,) * 2, np.uint8),
        borderType=cv2.BORDER_REPLICATE,
    )
    if not eroded.any():
        return no_features()
    # Without precise upscaling all points lie a quarter pixel off along the image's axes: a bias
    # that no longer cancels when patch and map are turned differently (0.14 m instead of 0.06 m on
    # a simulated flight at 0.25 m per pixel).
    sift = cv2.SIFT.create(
        nfeatures=max_features,
        contrastThreshold=CONTRAST_THRESHOLD,
        enable_precise_upscale=True,
    )
    keypoints, descriptors = sift.detectAndCompute(equal_contrast(image), eroded)
    if descriptors is None or len(keypoints) == 0:
        return no_features()
    order = np.argsort([-point.response for point in keypoints], kind='stable')
    points = np.array([point.pt for point in keypoints], np.float64)[order]
    return Features(points, _root_sift(descriptors[order]))


def equal_contrast(image: ImageArray) -> NDArray[np.uint8]:
    """Grey image (H, W) whose neighbourhoods all have the same mean and deviation.

    Takes away shading and lets faint furrows count as much as a road; deviations below the noise
    floor stay small.
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.boxFilter(gray, -1, (LOCAL_PX, LOCAL_PX))
    square = cv2.boxFilter(gray * gray, -1, (LOCAL_PX, LOCAL_PX))
    deviation = np.sqrt(np.maximum(square - mean * mean, NOISE_FLOOR**2))
    equal = np.clip(128.0 + LOCAL_GAIN * (gray - mean) / deviation, 0, 255)
    return np.asarray(equal, np.uint8)


def _root_sift(descriptors: NDArray[np.float32]) -> NDArray[np.uint8]:
    total = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6)
    scaled = np.sqrt(descriptors / total) * DESCRIPTOR_SCALE
    return np.asarray(np.clip(np.round(scaled), 0, 255), np.uint8)


def match(query: Features, reference: Features, *, ratio: float) -> NDArray[np.int64]:
    """Pairs (M, 2) of rows of `query` and `reference` that pick each other and are distinctive.

    A pair holds if each is the other's nearest and the second nearest reference is further than
    the nearest divided by `ratio`.
    """
    if len(query) == 0 or len(reference) < 2:
        return np.zeros((0, 2), np.int64)
    similarity = similarities(query, reference)
    rows = np.arange(len(query))
    nearest = similarity.argmax(axis=1)
    best = similarity[rows, nearest]
    similarity[rows, nearest] = -1.0
    second = similarity.max(axis=1)
    # Distance of unit vectors: d^2 = 2 - 2 s.
    kept = np.flatnonzero(np.maximum(1.0 - best, 0.0) < ratio**2 * (1.0 - second))
    # Only the few distinctive ones are asked whether they are chosen back: columns are slow.
    similarity[rows, nearest] = best
    kept = kept[best[kept] >= similarity[:, nearest[kept]].max(axis=0)]
    return np.stack([kept, nearest[kept]], axis=1)


def similarities(query: Features, reference: Features) -> NDArray[np.float32]:
    """Cosine similarities (N, M) of all descriptors; of distance d it is 1 - d^2 / 2."""
    return np.asarray(_rows(query.descriptors) @ _rows(reference.descriptors).T, np.float32)


def _rows(descriptors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of unit length, but for what rounding to bytes changed (below 1 %)."""
    return descriptors.astype(np.float32) * np.float32(1.0 / DESCRIPTOR_SCALE)


class MapFeatures:
    """Features of the map, found when first asked for and kept while there is room.

    Parameters
    ----------
    gallery : Gallery
        The map.
    config : RegistrationConfig
        Feature limits and the number of blocks kept.
    """

    def __init__(self, gallery: Map, config: RegistrationConfig) -> None:
        self._gallery = gallery
        self._config = config
        self._blocks: OrderedDict[tuple[float, int, int], Features] = OrderedDict()

    def near(self, east_m: float, north_m: float, *, half_size_m: float, gsd_m: float) -> Features:
        """Features of the map within a square around a point; points are (east, north) metres."""
        block_m = BLOCK_PX * gsd_m
        columns = range(
            math.floor((east_m - half_size_m) / block_m),
            math.floor((east_m + half_size_m) / block_m) + 1,
        )
        rows = range(
            math.floor((north_m - half_size_m) / block_m),
            math.floor((north_m + half_size_m) / block_m) + 1,
        )
        blocks = [self._block(gsd_m, column, row) for column in columns for row in rows]
        points = np.concatenate([block.points for block in blocks])
        inside = (np.abs(points - [east_m, north_m]) <= half_size_m).all(axis=1)
        descriptors = np.concatenate([block.descriptors for block in blocks])
        return Features(points[inside], descriptors[inside])

    def _block(self, gsd_m: float, column: int, row: int) -> Features:
        key = (gsd_m, column, row)
        if key not in self._blocks:
            self._blocks[key] = self._extract_block(gsd_m, column, row)
            while len(self._blocks) > self._config.cached_blocks:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def _extract_block(self, gsd_m: float, column: int, row: int) -> Features:
        block_m = BLOCK_PX * gsd_m
        window = self._gallery.window(
            (column + 0.5) * block_m,
            (row + 0.5) * block_m,
            size_m=(BLOCK_PX + 2 * BLOCK_MARGIN_PX) * gsd_m,
            gsd_m=gsd_m,
        )
        found = extract(window.image, window.mask, max_features=2 * self._config.max_features)
        east = window.west_m + (found.points[:, 0] + 0.5) * window.gsd_m
        north = window.north_m - (found.points[:, 1] + 0.5) * window.gsd_m
        own = (np.floor(east / block_m) == column) & (np.floor(north / block_m) == row)
        kept = np.flatnonzero(own)[: self._config.max_features]
        return Features(np.stack([east, north], axis=1)[kept], found.descriptors[kept])
