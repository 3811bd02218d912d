"""Drawn overhead scenes in the layout of the data folder, with a split of their own."""

from pathlib import Path

import cv2
import numpy as np

from training.splits import write_split


def draw_scene(seed: int, size_px: int = 200) -> np.ndarray:
    """Blotches of several sizes and colours, unlike in every scene, with edges."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size_px, size_px, 3), np.float32)
    for cells in (4, 10, 24):
        noise = rng.uniform(0, 85, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        row, col, *sides = rng.integers(0, size_px, 4).tolist()
        color = rng.uniform(0, 255, 3).tolist()
        cv2.rectangle(image, (col, row), (col + sides[0] // 5, row + sides[1] // 5), color, -1)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_scenes(folder: Path, *, sides: dict[str, str]) -> Path:
    """Write a scene for each name and the split; returns the split's path."""
    for seed, name in enumerate(sides):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_scene(seed)[..., ::-1])
    split = folder / 'split.csv'
    write_split(sides, split)
    return split
