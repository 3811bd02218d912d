"""Two views of one place: what a map tile and a drone's patch of the same ground look like.

The geometry mimics the task: the patch is roughly north-up, so tile and query share a random base
rotation and differ by a heading error, a scale ratio, an offset of the centres and a tilt. The
radiometry differs by light, sensor (channel mixtures), blur, noise and compression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.config import ViewConfig

Generator = np.random.Generator


@dataclass(frozen=True)
class Place:
    """A square of ground in a scene: centre (row, col) and side in pixels, rotation in radians."""

    row_px: float
    col_px: float
    side_px: float
    rotation_rad: float


def sample_places(
    rng: Generator, *, scene_px: int, places: int, config: ViewConfig
) -> list[Place]:
    """Draw one place about the centre of a scene, or two that hardly overlap, side by side."""
    side = scene_px * rng.uniform(config.min_side, config.max_side)
    direction = rng.uniform(0, 2 * math.pi)
    # Two centres 1.1 sides apart: neighbours on one map, the hardest negatives there are.
    distance = 0.55 * side if places == 2 else rng.uniform(0, 0.5 * (scene_px - side))
    center = (scene_px - 1) / 2
    return [
        Place(
            row_px=center + sign * distance * math.sin(direction),
            col_px=center + sign * distance * math.cos(direction),
            side_px=side,
            rotation_rad=rng.uniform(0, 2 * math.pi),
        )
        for sign in (1, -1)[:places]
    ]


def view_pair(
    scene: NDArray[np.uint8], place: Place, rng: Generator, *, size_px: int, config: ViewConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render a place as a map tile and as a drone's patch.

    Parameters
    ----------
    scene : ndarray of uint8, shape (S, S, 3)
        RGB.
    place : Place
        Where, how large and how turned.
    rng : numpy Generator
        Source of every random choice.
    size_px : int
        Side of the two views.
    config : ViewConfig
        How much they may differ.

    Returns
    -------
    tile, query : ndarray of uint8, shape (size_px, size_px, 3)
    """
    tile = radiometry(_look(scene, place, size_px), rng, config)
    limit = math.log(config.scale_ratio)
    offset_px = rng.uniform(-config.offset, config.offset, 2) * place.side_px
    seen = Place(
        row_px=place.row_px + offset_px[0],
        col_px=place.col_px + offset_px[1],
        side_px=place.side_px * math.exp(rng.uniform(-limit, limit)),
        rotation_rad=place.rotation_rad
        + math.radians(rng.uniform(-config.heading_error_deg, config.heading_error_deg)),
    )
    tilt = rng.uniform(-config.tilt, config.tilt, 2).tolist()
    query = radiometry(_look(scene, seen, size_px, tilt), rng, config)
    return tile, query


def _look(
    scene: NDArray[np.uint8], place: Place, size_px: int, tilt: Sequence[float] = (0.0, 0.0)
) -> NDArray[np.uint8]:
    """Render a place; where the scene is much finer than the view, from averages of its pixels."""
    finer = max(1, round(place.side_px / size_px))
    view = warp(scene, _matrix(place, finer * size_px, tilt), finer * size_px)
    if finer == 1:
        return view
    return np.asarray(cv2.resize(view, (size_px, size_px), interpolation=cv2.INTER_AREA))


def _matrix(place: Place, size_px: int, tilt: Sequence[float] = (0.0, 0.0)) -> NDArray[np.float64]:
    """Homography from view pixels (x, y) to scene pixels (x, y)."""
    half = (size_px - 1) / 2
    unit = np.array([[1, 0, -half], [0, 1, -half], [0, 0, size_px]]) / size_px
    perspective = np.array([[1, 0, 0], [0, 1, 0], [tilt[0], tilt[1], 1]])
    cos, sin = (f(place.rotation_rad) * place.side_px for f in (math.cos, math.sin))
    ground = np.array([[cos, -sin, place.col_px], [sin, cos, place.row_px], [0, 0, 1]])
    return np.asarray(ground @ perspective @ unit)


def warp(scene: NDArray[np.uint8], matrix: NDArray[np.float64], size_px: int) -> NDArray[np.uint8]:
    """Sample a scene through a homography (view to scene); beyond its edge it is mirrored."""
    return np.asarray(
        cv2.warpPerspective(
            scene,
            matrix,
            (size_px, size_px),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
    )


def radiometry(image: NDArray[np.uint8], rng: Generator, config: ViewConfig) -> NDArray[np.uint8]:
    """Change light, sensor, sharpness, noise, compression and completeness of a view."""
    x = image.astype(np.float32) / 255
    if rng.random() < config.illumination_share:
        x *= _ramp(rng, len(x), config.illumination)
    x = _mix_channels(x, rng, config)
    x = np.clip(x, 0, 1) ** math.exp(rng.uniform(-config.gamma, config.gamma))
    gain = math.exp(rng.uniform(-config.contrast, config.contrast))
    mean = x.mean()
    x = (x - mean) * gain + mean + rng.uniform(-config.brightness, config.brightness)
    if rng.random() < config.blur_share:
        x = cv2.GaussianBlur(x, (0, 0), max(0.1, rng.uniform(0, config.blur_px)))
    if rng.random() < config.noise_share:
        x = x + rng.standard_normal(x.shape, np.float32) * rng.uniform(0, config.noise)
    result = (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < config.jpeg_share:
        result = _jpeg(result, int(rng.integers(config.jpeg_quality, 96)))
    if rng.random() < config.missing_share:
        _remove_corner(result, rng, config.missing)
    return result


def _ramp(rng: Generator, size_px: int, strength: float) -> NDArray[np.float32]:
    """Brightness that changes linearly across the view, or with the distance from its centre."""
    axis = np.linspace(-1, 1, size_px, dtype=np.float32)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * math.pi)
        shape = axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)
    else:
        shape = (axis[None, :] ** 2 + axis[:, None] ** 2) - 0.66
    ramp = 1 + shape * rng.uniform(-strength, strength)
    return np.asarray(ramp, np.float32)[..., None]


def _mix_channels(
    x: NDArray[np.float32], rng: Generator, config: ViewConfig
) -> NDArray[np.float32]:
    choice = rng.random()
    if (choice := choice - config.gray_share) < 0:
        weights = np.tile(rng.dirichlet((1, 1, 1)), (3, 1))
    elif (choice := choice - config.permute_share) < 0:
        weights = np.eye(3)[rng.permutation(3)]
    elif choice < config.mix_share:
        # Rows of sum 1 with small negative parts: NIR and false colour are outside the RGB cone.
        weights = rng.dirichlet((0.5, 0.5, 0.5), 3) * 1.5 - 0.5 / 3
    else:
        return x
    return np.asarray(x @ weights.T.astype(np.float32))


def _jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    _, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def _remove_corner(image: NDArray[np.uint8], rng: Generator, largest: float) -> None:
    """Blank a triangle at a random corner, in place: black or the mean colour."""
    size = len(image)
    rows, cols = rng.uniform(0, largest, 2) * 2 * size
    corners = np.array([[0, 0], [cols, 0], [0, rows]])
    for axis in (0, 1):
        if rng.random() < 0.5:
            corners[:, axis] = size - 1 - corners[:, axis]
    color = (0, 0, 0) if rng.random() < 0.5 else tuple(image.mean((0, 1)).round().tolist())
    cv2.fillConvexPoly(image, corners.round().astype(np.int32), color)
