"""One place as its satellite tile and as the images of flights above it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from training.data.buildings import Box, draw_boxes, paint_roofs, paint_shadows, raise_boxes
from training.data.orbit import Matrix, Pose, plane_homography
from training.data.places import Image
from training.data.scenes import central_square

TILE_SHARE = 0.45  # side of the satellite tile, share of the scene's side

# Of the ground that a camera may see, half the side, in tile sides; less than 0.5 / TILE_SHARE so
# that resampling does not reach over the edge.
HALF_SIDE = 0.985 * 0.5 / TILE_SHARE

# Random streams of a place. None is 0: numpy seeds (a, b) and (a, b, 0) alike.
_SCENE, _SATELLITE, _FLIGHT = 1, 2, 3


class Scene:
    """The ground of one place, its buildings and its light.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB; its central square is the ground.
    key : tuple of int
        Everything random follows from it.
    size_px : int
        Side of the images that will be rendered.
    buildings : int
        Largest number of boxes.
    """

    def __init__(
        self, image: Image, key: tuple[int, ...], *, size_px: int, buildings: int
    ) -> None:
        self._key = key
        self._size_px = size_px
        square = central_square(image)
        # Finer ground than twice the tile's would alias in the drone views.
        finest_px = math.ceil(2 * size_px / TILE_SHARE)
        if len(square) > finest_px:
            square = cv2.resize(square, (finest_px, finest_px), interpolation=cv2.INTER_AREA)
        self._to_scene = ground_to_scene(len(square))
        self._to_ground = np.asarray(np.linalg.inv(self._to_scene), np.float64)
        rng = np.random.default_rng((*key, _SCENE))
        self._boxes: list[Box] = draw_boxes(rng, buildings) if buildings else []
        angle_rad = rng.uniform(0, 2 * math.pi)
        sun = rng.uniform(0.3, 1.0) * np.array([math.cos(angle_rad), math.sin(angle_rad)])
        shaded = paint_shadows(square, self._boxes, self._to_scene, sun)
        self.ground = paint_roofs(shaded, self._boxes, self._to_scene, margin_px=0)
        self._roofs = paint_roofs(shaded, self._boxes, self._to_scene, margin_px=2)

    def satellite(self) -> Image:
        """Look at the tile from straight above, north up."""
        rng = np.random.default_rng((*self._key, _SATELLITE))
        size_px = self._size_px
        grid = (size_px - 1) / 2
        view = np.array([[size_px, 0, grid], [0, -size_px, grid], [0, 0, 1]])
        tile = self._warp(view @ self._to_ground, size_px)
        return expose(tile, Light.draw(rng, strength=0.4), rng)

    def flight(self, poses: list[Pose], number: int) -> Iterator[Image]:
        """Render the views of one flight; its light stays as it is from image to image."""
        rng = np.random.default_rng((*self._key, _FLIGHT, number))
        light = Light.draw(rng, strength=1.0)
        for pose in poses:
            yield expose(self.view(pose), light, rng)

    def view(self, pose: Pose) -> Image:
        """What a clean camera sees."""
        size_px = 2 * self._size_px  # averaged down afterwards: no aliasing
        view = self._warp(plane_homography(pose, size_px) @ self._to_ground, size_px)
        view = raise_boxes(view, self._roofs, self._boxes, pose, self._to_ground)
        small = (self._size_px, self._size_px)
        return np.asarray(cv2.resize(view, small, interpolation=cv2.INTER_AREA))

    def _warp(self, matrix: Matrix, size_px: int) -> Image:
        return np.asarray(
            cv2.warpPerspective(self.ground, matrix, (size_px, size_px), flags=cv2.INTER_CUBIC)
        )


def ground_to_scene(scene_px: int) -> Matrix:
    """Matrix from (x, y, 1) on the ground, in tile sides, to pixels (x, y, 1) of the scene."""
    scale, middle = TILE_SHARE * scene_px, (scene_px - 1) / 2
    return np.array([[scale, 0, middle], [0, -scale, middle], [0, 0, 1]])


@dataclass(frozen=True)
class Light:
    """Day and camera: channel gains, exponent, haze and vignette."""

    gains: tuple[float, float, float]
    gamma: float
    haze: float
    vignette: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, strength: float) -> Light:
        """Draw one; `strength` 1 is another day and another camera, 0 no change."""
        exposure = math.exp(strength * rng.uniform(-0.25, 0.25))
        gains = exposure * np.exp(strength * rng.uniform(-0.12, 0.12, 3))
        return cls(
            tuple(gains.tolist()),
            gamma=math.exp(strength * rng.uniform(-0.3, 0.3)),
            haze=strength * rng.uniform(0, 0.15),
            vignette=strength * rng.uniform(0, 0.4),
        )


def expose(image: Image, light: Light, rng: np.random.Generator) -> Image:
    """Apply a light, and a lens and a sensor of their own for every image."""
    x = (image.astype(np.float32) / 255) ** np.float32(light.gamma)
    gains = np.array(light.gains, np.float32)
    x = x * gains * np.float32(1 - light.haze) + np.float32(0.85 * light.haze)
    axis = np.linspace(-1, 1, len(x), dtype=np.float32) ** 2
    x *= (1 - np.float32(light.vignette) * (axis[:, None] + axis) / 2)[..., None]
    x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.3, 0.9)))
    x += rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(0.004, 0.02))
    return np.asarray(np.clip(x * 255 + 0.5, 0, 255), np.uint8)
