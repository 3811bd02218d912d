"""A small data set in the layout of University-1652, for tests of training and evaluation."""

from pathlib import Path

import cv2
import numpy as np
from conftest import data_root

from training.data.render import RenderOptions, render_dataset


def university_dataset(out: Path, **options) -> Path:
    """Render a data set into `out` / 'university' and return that folder.

    The ground is the real overhead scenes of RSSCN7 where they are at hand, else drawn.

    Parameters
    ----------
    out : Path
        A temporary folder.
    **options
        Of `RenderOptions`, in place of 24 + 10 places and 4 distractors with 6 drone images of
        64 px each.
    """
    settings = {'places': 24, 'test_places': 10, 'distractors': 4, 'drones': 6, 'size_px': 64}
    chosen = RenderOptions(**settings | options)
    images = data_root() / 'rsscn7'
    if not images.is_dir():
        count = chosen.places + chosen.test_places + chosen.distractors
        images = drawn_scenes(out / 'scenes', count)
    render_dataset(images, out / 'university', chosen)
    return out / 'university'


def drawn_scenes(folder: Path, count: int, *, size_px: int = 256, seed: int = 0) -> Path:
    """Write aerial scenes as scene_000.png, ... and return their folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng((seed, number + 1))
        cv2.imwrite(str(folder / f'scene_{number:03d}.png'), draw_scene(rng, size_px)[..., ::-1])
    return folder


def draw_scene(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Draw fields, a road, trees and roofs; no two draws are alike.

    Returns
    -------
    ndarray of uint8, shape (size_px, size_px, 3)
        RGB.
    """
    image = _fields(rng, size_px)
    for _ in range(rng.integers(1, 3)):
        road = _polyline(rng, size_px)
        cv2.polylines(image, [road], False, (150, 145, 140), int(size_px * 0.035), cv2.LINE_AA)
        cv2.polylines(image, [road], False, (230, 230, 225), 1, cv2.LINE_AA)
    for _ in range(rng.integers(5, 30)):
        center = rng.integers(0, size_px, 2).tolist()
        radius = int(rng.uniform(0.008, 0.025) * size_px) + 1
        cv2.circle(image, center, radius, (40, int(rng.integers(60, 100)), 40), -1, cv2.LINE_AA)
    for _ in range(rng.integers(3, 15)):
        _roof(image, rng, size_px)
    noise = rng.normal(0, 5, image.shape) + 8 * _clouds(rng, size_px)[..., None]
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _fields(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Cells about random points, each of one colour with furrows of its own."""
    points = rng.uniform(0, size_px, (int(rng.integers(4, 12)), 2))
    rows, cols = np.mgrid[:size_px, :size_px]
    distances = [(rows - row) ** 2 + (cols - col) ** 2 for row, col in points]
    cell = np.argmin(distances, axis=0)
    colors = rng.uniform((70, 80, 40), (170, 160, 110), (len(points), 3))
    angles, periods = rng.uniform(0, np.pi, len(points)), rng.uniform(4, 16, len(points))
    phase = (rows * np.sin(angles)[cell] + cols * np.cos(angles)[cell]) / periods[cell]
    furrows = 12 * np.sin(2 * np.pi * phase)[..., None]
    return np.clip(colors[cell] + furrows, 0, 255).astype(np.uint8)


def _polyline(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """From edge to edge with two bends, in either direction."""
    along = np.array([-0.05, 0.3, 0.7, 1.05])
    across = rng.uniform(0.1, 0.9) + rng.normal(0, 0.12, 4)
    points = np.column_stack([along, across] if rng.random() < 0.5 else [across, along])
    return (points * size_px).astype(np.int32)


def _roof(image: np.ndarray, rng: np.random.Generator, size_px: int) -> None:
    center, sides = rng.uniform(0, size_px, 2), rng.uniform(0.04, 0.14, 2) * size_px
    rectangle = (center.tolist(), sides.tolist(), float(rng.uniform(0, 90)))
    corners = cv2.boxPoints(rectangle)
    color = rng.choice([(150, 80, 60), (200, 195, 185), (95, 95, 100), (60, 60, 65)]).tolist()
    cv2.fillConvexPoly(image, (corners + 0.02 * size_px).astype(np.int32), (45, 50, 45))
    cv2.fillConvexPoly(image, corners.astype(np.int32), color, cv2.LINE_AA)


def _clouds(rng: np.random.Generator, size_px: int) -> np.ndarray:
    coarse = rng.standard_normal((8, 8)).astype(np.float32)
    return cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
