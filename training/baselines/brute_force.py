"""A frame's SIFT features against those of the whole map: no network, no gallery, no heading.

Features and registration are the product's own (`bicrossnet_ros.registration`), but the frame
meets every feature of the map at once instead of those of a few retrieved places. The ratio test
then asks that a feature is distinctive on the whole map, which is harder the larger the map is,
and the time grows with the map's area.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.camera import apply
from bicrossnet_ros.config import CameraConfig, RegistrationConfig
from bicrossnet_ros.features import DESCRIPTOR_SCALE, Features, MapFeatures, extract, no_features
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.hypotheses import UNKNOWN_TILT_STRETCH, interpret
from bicrossnet_ros.patch import FramePyramid
from bicrossnet_ros.registration import Expectation, Refusal, register
from bicrossnet_ros.types import FloatArray, Frame

# Of a frame, the strongest first. On every 4th frame of Seneca 1000 registered no more, and took
# 1.6 times as long to match.
FRAME_FEATURES = 500
ROWS_AT_ONCE = 16384


@dataclass(frozen=True)
class Answer:
    """Where brute force puts the ground point at a frame's middle.

    Parameters
    ----------
    center_m : ndarray of shape (2,) or None
        (east, north); None: not registered.
    inliers : int
    reason, detail : str
        Why there is none, as `types.Reason` and for people.
    extract_ms, match_ms, register_ms : float
        Time of the stages.
    """

    center_m: FloatArray | None
    inliers: int
    reason: str
    detail: str
    extract_ms: float
    match_ms: float
    register_ms: float

    @property
    def total_ms(self) -> float:
        """Time of all stages."""
        return self.extract_ms + self.match_ms + self.register_ms


class BruteForce:
    """Matches frames with all features of a map.

    Parameters
    ----------
    blocks : sequence of Features
        Of the map, points (east, north) in metres; one block may stand there several times, which
        costs its time again but no memory.
    gsd_m : float
        Resolution they were found at: frames are shrunk to it.
    config : RegistrationConfig, optional
    """

    def __init__(
        self,
        blocks: Sequence[Features],
        *,
        gsd_m: float,
        config: RegistrationConfig | None = None,
    ) -> None:
        self.blocks = tuple(blocks)
        self._gsd_m = gsd_m
        self._config = config or RegistrationConfig()
        self._origin_m = np.asarray(self.blocks[0].points.mean(axis=0))

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def locate(self, frame: Frame) -> Answer:
        """Find the frame; its height and lens say its scale, its heading is not asked for."""
        times = [time.perf_counter()]
        # Where north is does not matter: it is all one picture to features that turn with it.
        view = interpret(frame, CameraConfig(), convergence_deg=0.0).hypotheses[0].view
        shrunk = FramePyramid(frame.image).at(view.gsd_m / self._gsd_m)
        source = self._features(shrunk, view.gsd_m * frame.image.shape[1] / shrunk.shape[1])
        times.append(time.perf_counter())
        rows, target = match_everywhere(source, self.blocks, ratio=self._config.ratio)
        times.append(time.perf_counter())
        # The pairs alone: each is still the other's nearest, and as distinctive as before.
        found = register(
            source.take(rows),
            Features(target.points - self._origin_m, target.descriptors),
            self._origin_m,
            self._config,
            _expected(self._config),
        )
        times.append(time.perf_counter())
        spent = 1e3 * np.diff(times)
        if isinstance(found, Refusal):
            return Answer(None, found.inliers, str(found.reason), found.detail, *spent.tolist())
        middle = apply(found.homography, np.zeros((1, 2)))[0] + found.origin_m
        return Answer(middle, found.inliers, '', '', *spent.tolist())

    def _features(self, image: NDArray[np.uint8], gsd_m: float) -> Features:
        """Points in metres right of and above the image's middle, as east and north are."""
        mask = np.ones(image.shape[:2], bool)
        found = extract(image, mask, max_features=FRAME_FEATURES)
        height, width = image.shape[:2]
        right = found.points[:, 0] - 0.5 * (width - 1)
        up = 0.5 * (height - 1) - found.points[:, 1]
        return Features(np.stack([right, up], axis=1) * gsd_m, found.descriptors)


def match_everywhere(
    query: Features, blocks: Sequence[Features], *, ratio: float
) -> tuple[NDArray[np.int64], Features]:
    """The pairs of `features.match` with the features of all blocks together, piece by piece.

    Returns
    -------
    rows : ndarray of int64, shape (M,)
        Of the query.
    found : Features
        Their M partners.
    """
    count = len(query)
    best, second = np.full(count, -1.0, np.float32), np.full(count, -1.0, np.float32)
    chosen_back = np.zeros(count, bool)
    place = np.zeros((count, 2), np.int64)
    rows = np.arange(count)
    own = _unit(query)
    for number, start, piece in _pieces(blocks):
        if count == 0:
            break
        similarity = own @ _unit(piece).T
        nearest = similarity.argmax(axis=1)
        here = similarity[rows, nearest]
        back = here >= similarity.max(axis=0)[nearest]
        similarity[rows, nearest] = -1.0
        runner_up = similarity.max(axis=1)
        better = here > best
        second = np.where(better, np.maximum(best, runner_up), np.maximum(second, here))
        best = np.where(better, here, best)
        chosen_back = np.where(better, back, chosen_back)
        place[better] = np.stack([np.full(count, number), start + nearest], axis=1)[better]
    # Distance of unit vectors: d^2 = 2 - 2 s.
    distinctive = np.maximum(1.0 - best, 0.0) < ratio**2 * (1.0 - second)
    kept = np.flatnonzero(distinctive & chosen_back)
    partners = [(blocks[number], row) for number, row in place[kept].tolist()]
    if not partners:
        return kept, no_features()
    points = np.stack([block.points[row] for block, row in partners])
    descriptors = np.stack([block.descriptors[row] for block, row in partners])
    return kept, Features(points, descriptors)


def map_features(gallery: Gallery, config: RegistrationConfig | None = None) -> list[Features]:
    """All features of a gallery's map at its finest level, found as registration finds them."""
    west, south, east, north = gallery.manifest.bounds_m
    finder = MapFeatures(gallery, config or RegistrationConfig())
    half_m = 0.5 * max(east - west, north - south)
    middle = 0.5 * (west + east), 0.5 * (south + north)
    return [finder.near(*middle, half_size_m=half_m, gsd_m=gallery.manifest.gsd_m)]


def _expected(config: RegistrationConfig) -> Expectation:
    error = 1.0 + config.max_scale_error
    return Expectation(1.0 / error, error, max_stretch=UNKNOWN_TILT_STRETCH)


def _pieces(blocks: Sequence[Features]) -> list[tuple[int, int, Features]]:
    return [
        (number, start, Features(block.points, block.descriptors[start : start + ROWS_AT_ONCE]))
        for number, block in enumerate(blocks)
        for start in range(0, len(block), ROWS_AT_ONCE)
    ]


def _unit(features: Features) -> NDArray[np.float32]:
    return features.descriptors.astype(np.float32) * np.float32(1.0 / DESCRIPTOR_SCALE)
