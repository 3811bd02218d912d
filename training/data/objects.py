"""Objects that changed since the map was made: moved, missing, ploughed over, roofed anew.

Each change takes and returns a uint8 RGB image of any size; lengths are shares of its shorter
side. Only the changed spots are touched, so the cost hardly grows with the image.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Generator = np.random.Generator

# Ploughed, dry and wet soils, stubble, young crops; RGB.
SOILS = np.array(
    [[116, 94, 72], [146, 124, 100], [88, 72, 60], [174, 158, 126], [98, 112, 72], [122, 90, 74]],
    np.float32,
)
# Clay tiles, slate, metal, tar, bright membrane, painted steel; RGB.
ROOFS = np.array(
    [[150, 92, 72], [92, 96, 104], [176, 182, 188], [62, 60, 60], [228, 226, 220], [96, 112, 138]],
    np.float32,
)
# Least brightness of a surface in the sun, as a share of the image's mean.
LIT = 0.75
# Furrows of fewer pixels would alias to a pattern that no field has.
MIN_PERIOD_PX = 2.5


def moved_objects(image: Image, rng: Generator, strength: float) -> Image:
    """Move the contents of some spots elsewhere and close the gaps from beside them."""
    image = image.copy()
    for _ in range(1 + round(strength * 5)):
        spot = _spot(image, rng, strength)
        height, width = spot[2:]
        held = _cut(image, spot).copy()
        _close(image, spot, rng)
        angle, far = rng.uniform(0, math.tau), rng.uniform(1.2, 3)
        row = spot[0] + round(far * height * math.sin(angle))
        col = spot[1] + round(far * width * math.cos(angle))
        _paste(image, held, _inside(image, row, col, height, width))
    return image


def missing_objects(image: Image, rng: Generator, strength: float) -> Image:
    """Take away what is in some spots; the ground beside them takes its place."""
    image = image.copy()
    for _ in range(1 + round(strength * 7)):
        _close(image, _spot(image, rng, strength), rng)
    return image


def ploughed_fields(image: Image, rng: Generator, strength: float) -> Image:
    """Plough one field or two where the ground is even; what grew there just shows through."""
    image = image.copy()
    side = min(image.shape[:2])
    for _ in range(1 + int(rng.random() < 0.5 * strength)):
        half = side * rng.uniform(0.12, 0.18 + 0.2 * strength, 2)
        center = _even_ground(image, rng, half)
        angle = rng.uniform(0, math.pi)
        corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * rng.uniform(0.75, 1.1, (4, 2))
        corners = center + corners * half @ _turn(angle)
        spot = _bounds(image, corners)
        if spot is None:
            continue
        field = _furrows(rng, spot, angle + rng.choice([0, math.pi / 2]), side)
        area = _cut(image, spot)
        old = cv2.cvtColor(area, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
        field = field + 0.35 * (old - old.mean())
        _lay(area, field, corners - spot[1::-1], 0.6 + 0.4 * strength)
    return image


def replaced_roofs(image: Image, rng: Generator, strength: float) -> Image:
    """Give roofs another colour: even surfaces that are there, or new ones with two slopes."""
    image = image.copy()
    side = min(image.shape[:2])
    angle = rng.uniform(0, math.pi)
    for _ in range(1 + round(strength * 4)):
        color = ROOFS[rng.integers(len(ROOFS))] * rng.uniform(0.8, 1.1)
        if _recolor(image, rng, color, 0.5 + 0.5 * strength):
            continue
        half = side * rng.uniform(0.025, 0.045 + 0.045 * strength, 2)
        center = rng.uniform(0, 1, 2) * image.shape[1::-1]
        slope = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * half
        for sign, light in ((0.5, 1.12), (-0.5, 0.82)):
            part = slope * (1, 0.5) + (0, sign * half[1])
            corners = center + part @ _turn(angle)
            spot = _bounds(image, corners)
            if spot is not None:
                area = _cut(image, spot)
                _lay(area, color * light, corners - spot[1::-1], 0.6 + 0.4 * strength)
    return image


Spot = tuple[int, int, int, int]  # first row, first column, rows, columns


def _spot(image: Image, rng: Generator, strength: float) -> Spot:
    """Choose a spot that holds something: of four at random the one that varies most."""
    side = min(image.shape[:2])
    height, width = (max(3, round(side * (0.05 + 0.1 * strength * rng.random()))) for _ in '12')
    best, found = -1.0, (0, 0, height, width)
    for row, col in rng.random((4, 2)):
        spot = _inside(
            image, round(row * image.shape[0]), round(col * image.shape[1]), height, width
        )
        spread = float(cv2.meanStdDev(_cut(image, spot))[1].sum())
        if spread > best:
            best, found = spread, spot
    return found


def _even_ground(image: Image, rng: Generator, half: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose a centre (x, y) for a field: of four at random that with the least on it."""
    width, height = (max(2, int(length)) for length in half)
    centers = rng.random((4, 2)) * image.shape[1::-1]
    spreads = []
    for x, y in centers.astype(int).tolist():
        spot = _inside(image, y - height // 2, x - width // 2, height, width)
        spreads.append(cv2.meanStdDev(_cut(image, spot))[1].sum())
    return np.asarray(centers[int(np.argmin(spreads))])


def _inside(image: Image, row: int, col: int, height: int, width: int) -> Spot:
    return (
        min(max(row, 0), image.shape[0] - height),
        min(max(col, 0), image.shape[1] - width),
        height,
        width,
    )


def _cut(image: Image, spot: Spot) -> Image:
    row, col, height, width = spot
    return image[row : row + height, col : col + width]


def _close(image: Image, spot: Spot, rng: Generator) -> None:
    """Cover a spot with a neighbour of its size."""
    row, col, height, width = spot
    angle = rng.uniform(0, math.tau)
    beside = _inside(
        image,
        row + round(1.3 * height * math.sin(angle)),
        col + round(1.3 * width * math.cos(angle)),
        height,
        width,
    )
    _paste(image, _cut(image, beside).copy(), spot)


def _paste(image: Image, content: Image, spot: Spot) -> None:
    """Blend content into an oval of the spot."""
    area = _cut(image, spot)
    area[:] = cv2.blendLinear(area.copy(), content, *_oval(spot[2], spot[3]))


@lru_cache(maxsize=1024)
def _oval(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights of what lies outside and inside an oval with a soft edge."""
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    weight = np.clip((1.15 - np.sqrt(x * x + y * y)) * 3, 0, 1)
    return 1 - weight, weight


def _bounds(image: Image, corners: NDArray[np.float64]) -> Spot | None:
    """Return the box of the corners (x, y) within the image, if it is not empty."""
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, image.shape[1::-1])
    cols, rows = (high - low).tolist()
    if cols < 2 or rows < 2:
        return None
    return int(low[1]), int(low[0]), rows, cols


def _furrows(rng: Generator, spot: Spot, angle: float, side: int) -> NDArray[np.float32]:
    """Soil with parallel furrows, float32 (rows, cols, 3)."""
    period = max(MIN_PERIOD_PX, side * rng.uniform(0.015, 0.04))
    x = np.arange(spot[3], dtype=np.float32) * np.float32(math.tau / period * math.cos(angle))
    y = np.arange(spot[2], dtype=np.float32) * np.float32(math.tau / period * math.sin(angle))
    phase = x + (y + np.float32(rng.uniform(0, math.tau)))[:, None]
    soil = SOILS[rng.integers(len(SOILS))] * np.float32(rng.uniform(0.75, 1.2))
    # No two furrows are alike, and the soil has its clods.
    depth = rng.uniform(5, 15) * np.sin(phase) + 5 * np.sin(0.37 * phase + rng.uniform(0, 6))
    depth += 5 * rng.standard_normal(phase.shape, np.float32)
    return np.asarray(soil + depth[..., None], np.float32)


def _lay(
    area: Image, surface: NDArray[np.floating], corners: NDArray[np.float64], opacity: float
) -> None:
    """Lay a surface over the convex polygon of the corners (x, y) of an area."""
    mask = np.zeros(area.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.rint(corners * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
    _mingle(area, surface, mask, opacity)


def _mingle(area: Image, surface: NDArray[np.floating], mask: Image, opacity: float) -> None:
    new = np.broadcast_to(np.clip(surface, 0, 255), area.shape).astype(np.uint8)
    weight = mask.astype(np.float32) * np.float32(opacity / 255)
    area[:] = cv2.blendLinear(area.copy(), np.ascontiguousarray(new), 1 - weight, weight)


def _recolor(image: Image, rng: Generator, color: NDArray[np.float32], opacity: float) -> bool:
    """Recolour one even surface of the size of a roof, if a few trials find one."""
    height, width = image.shape[:2]
    lit = LIT * sum(cv2.mean(image))
    for row, col in rng.random((3, 2)):
        seed = (int(col * width), int(row * height))
        # A dark even surface is the shadow of something, not its roof.
        if sum(image[seed[1], seed[0]].tolist()) < lit:
            continue
        mask = np.zeros((height + 2, width + 2), np.uint8)
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (255 << 8)
        count, _, _, box = cv2.floodFill(image, mask, seed, 0, (22,) * 3, (22,) * 3, flags)
        share = count / (height * width)
        # Smaller is a speck, larger or ragged is no roof but a meadow or a road.
        if not 0.003 < share < 0.06 or count < 0.55 * box[2] * box[3]:
            continue
        spot = (box[1], box[0], box[3], box[2])
        area = _cut(image, spot)
        old = cv2.cvtColor(area, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
        shape = cv2.morphologyEx(_cut(mask[1:-1, 1:-1], spot), cv2.MORPH_CLOSE, np.ones((3, 3)))
        _mingle(area, color + 0.8 * (old - old.mean()), shape, opacity)
        return True
    return False


def _turn(angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]])
