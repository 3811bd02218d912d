"""Boxes that stand on a rendered scene, so that oblique views have parallax and hidden ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.orbit import Matrix, Pose, plane_homography, project
from training.data.places import Image

_ROOFS = ((140, 88, 70), (112, 112, 116), (188, 184, 176), (84, 80, 78), (150, 120, 98))
_SHADE = 0.5  # of the ground in a shadow


@dataclass(frozen=True, eq=False)
class Box:
    """A building.

    Parameters
    ----------
    corners : ndarray of float, shape (4, 2)
        On the ground, counter-clockwise seen from above, in tile sides (x east, y north).
    height : float
        In tile sides.
    roof, wall : tuple of int
        RGB.
    """

    corners: Matrix
    height: float
    roof: tuple[int, int, int]
    wall: tuple[int, int, int]

    def at(self, height: float) -> Matrix:
        """The corners lifted to a height, shape (4, 3)."""
        return np.column_stack([self.corners, np.full(4, height)])


def draw_boxes(rng: np.random.Generator, most: int) -> list[Box]:
    """Draw up to `most` boxes that do not overlap, all within the satellite tile."""
    direction_rad = rng.uniform(0, math.pi / 2)
    boxes: list[Box] = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(rng.integers(most // 2, most + 1)):
        sides = rng.uniform(0.06, 0.16, 2)
        radius = float(np.hypot(*sides)) / 2
        x, y = rng.uniform(radius - 0.45, 0.45 - radius, 2)
        if any(math.hypot(x - a, y - b) < radius + r for a, b, r in taken):
            continue
        taken.append((x, y, radius))
        cos, sin = math.cos(direction_rad), math.sin(direction_rad)
        unit = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
        corners = unit * sides @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
        roof = np.clip(np.array(_ROOFS[rng.integers(len(_ROOFS))]) + rng.normal(0, 6, 3), 20, 235)
        wall = rng.uniform(110, 210) * np.array([1.0, 0.96, 0.9])
        boxes.append(
            Box(
                corners,
                float(rng.uniform(0.02, 0.08)),
                tuple(roof.astype(int).tolist()),
                tuple(wall.astype(int).tolist()),
            )
        )
    return boxes


def paint_shadows(scene: Image, boxes: list[Box], ground_to_scene: Matrix, sun: Matrix) -> Image:
    """Draw the boxes' shadows on the ground.

    Parameters
    ----------
    scene : ndarray of uint8, shape (S, S, 3)
    boxes : list of Box
    ground_to_scene : ndarray, shape (3, 3)
        From (x, y, 1) on the ground to pixels.
    sun : ndarray, shape (2,)
        Shift of a shadow on the ground for a unit of height.
    """
    shaded = np.zeros(scene.shape[:2], np.uint8)
    for box in boxes:
        both = np.concatenate([box.corners, box.corners + box.height * sun])
        hull = cv2.convexHull(_pixels(ground_to_scene, both))
        cv2.fillConvexPoly(shaded, hull, 255, cv2.LINE_AA)
    light = 1 - (1 - _SHADE) * cv2.GaussianBlur(shaded, (0, 0), 0.7)[..., None] / 255.0
    return np.asarray(scene * light, np.uint8)


def paint_roofs(
    scene: Image, boxes: list[Box], ground_to_scene: Matrix, *, margin_px: int
) -> Image:
    """Draw the boxes' roofs as seen from straight above, wider by a margin."""
    painted = scene.copy()
    for box in boxes:
        mask = np.zeros(scene.shape[:2], np.uint8)
        outline = _pixels(ground_to_scene, box.corners)
        cv2.fillConvexPoly(mask, outline, 255, cv2.LINE_AA)
        if margin_px:
            cv2.polylines(mask, [outline], True, 255, 2 * margin_px + 1)
        ridge = _pixels(ground_to_scene, (box.corners + np.roll(box.corners, -1, 0))[[1, 3]] / 2)
        # The photograph shows through: a roof of one colour would be too easy.
        roof = np.asarray(0.6 * np.array(box.roof) + 0.4 * scene, np.uint8)
        dark = tuple(int(0.75 * value) for value in box.roof)
        cv2.line(roof, ridge[0].tolist(), ridge[1].tolist(), dark, 1, cv2.LINE_AA)
        weight = mask[..., None] / 255.0
        painted = np.asarray(weight * roof + (1 - weight) * painted, np.uint8)
    return painted


def raise_boxes(
    view: Image, roofs: Image, boxes: list[Box], pose: Pose, scene_to_ground: Matrix
) -> Image:
    """Draw walls and roofs over a rendered view of the ground, the farthest box first.

    `roofs` is the scene with roofs that are painted a little too wide: what is cut out of it has
    no ground along its edges.

    Boxes are convex and do not overlap on the ground, so the order of their distances decides
    who hides whom (for boxes of similar size; exactly so for points).
    """
    size_px = len(view)
    center = pose.center
    for box in sorted(boxes, key=lambda box: -np.hypot(*(box.corners.mean(0) - center[:2]))):
        ground, top = (project(pose, box.at(z), size_px) for z in (0.0, box.height))
        for first in range(4):
            second = (first + 1) % 4
            edge = box.corners[second] - box.corners[first]
            outward = np.array([edge[1], -edge[0]])
            if outward @ (center[:2] - box.corners[first]) <= 0:
                continue
            # Walls differ in light: brightest to the south-east.
            facing = outward @ np.array([0.7, -0.7]) / np.hypot(*outward)
            shade = tuple(int(value * (0.75 + 0.25 * facing)) for value in box.wall)
            quad = np.array([ground[first], ground[second], top[second], top[first]])
            cv2.fillConvexPoly(view, np.rint(quad).astype(np.int32), shade, cv2.LINE_AA)
        matrix = plane_homography(pose, size_px, height=box.height) @ scene_to_ground
        roof = cv2.warpPerspective(roofs, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR)
        mask = np.zeros((size_px, size_px), np.uint8)
        cv2.fillConvexPoly(mask, np.rint(top).astype(np.int32), 255)
        view = np.where(mask[..., None] > 0, roof, view)
    return view


def _pixels(matrix: Matrix, points: Matrix) -> NDArray[np.int32]:
    homogeneous = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return np.asarray(np.rint(homogeneous[:, :2] / homogeneous[:, 2:]), np.int32)
