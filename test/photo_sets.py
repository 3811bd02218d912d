"""Data sets of photographs as their authors lay them out, of any size."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

HEIGHTS_M = (150, 200, 250, 300)
SUES_TEST = [
    *(8, 12, 14, 17, 18, 19, 22, 23, 35, 38, 40, 41, 42, 46, 47, 48, 49, 50, 52, 53, 54, 59, 61),
    *(62, 63, 65, 68, 71, 72, 75, 78, 79, 83, 92, 93, 95, 98, 99, 107, 108, 109, 110, 111, 112),
    *(114, 115, 117, 121, 122, 124, 128, 130, 131, 133, 135, 136, 138, 140, 143, 144, 150, 153),
    *(154, 161, 162, 164, 165, 170, 172, 173, 175, 176, 177, 178, 181, 188, 189, 190, 194, 195),
]


def picture(seed: int, *, size_px: int = 48) -> np.ndarray:
    """Smooth random colours, other ones for every seed; RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


class Places:
    """Folders of places that are links to a few real ones: counts are real, the disk is spared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.real: dict[tuple[str, ...], Path] = {}

    def add(self, folder: Path, names: list[str]) -> None:
        """Make a folder that holds images of these names, which may have folders in them."""
        key = tuple(names)
        if key not in self.real:
            self.real[key] = self.folder / str(len(self.real))
            for seed, name in enumerate(names):
                write(self.real[key] / name, picture(seed))
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(self.real[key], target_is_directory=True)


def university(root: Path, *, train: list[int], query: list[int], extra: list[int], drone: int):
    """University-1652: `drone` images a place, one more for place 0000; `extra`: distractors."""
    links = Places(root.parent / f'{root.name}-files')

    def part(folder: str, places: list[int]) -> None:
        for place in places:
            if folder.endswith('satellite'):
                names = [f'{place:04d}.jpg']
            else:
                names = [f'image-{k:02d}.jpeg' for k in range(1, drone + 1 + (place == 0))]
            links.add(root / folder / f'{place:04d}', names)

    part('train/drone', train)
    part('train/satellite', train)
    for place in train:
        (root / 'train/google' / f'{place:04d}').mkdir(parents=True)
    part('test/query_drone', query)
    part('test/query_satellite', query)
    part('test/gallery_drone', sorted(query + extra))
    part('test/gallery_satellite', sorted(query + extra))
    return root


def sues_raw(root: Path, *, drone: int, places: int = 200) -> Path:
    links = Places(root.parent / f'{root.name}-files')
    for place in range(1, places + 1):
        names = [f'{height}/{k}.jpg' for height in HEIGHTS_M for k in range(drone)]
        links.add(root / 'drone_view_512' / f'{place:04d}', names)
        links.add(root / 'satellite-view' / f'{place:04d}', ['0.png'])
    return root


def sues_split(root: Path, *, drone: int) -> Path:
    """The folders that the authors' benchmark code makes."""
    links = Places(root.parent / f'{root.name}-files')
    everything = list(range(1, 201))
    train = [place for place in everything if place not in SUES_TEST]
    parts = {
        'Training/{}/drone': train,
        'Training/{}/satellite': train,
        'Testing/{}/query_drone': SUES_TEST,
        'Testing/{}/query_satellite': SUES_TEST,
        'Testing/{}/gallery_drone': everything,
        'Testing/{}/gallery_satellite': everything,
    }
    for height in HEIGHTS_M:
        for folder, places in parts.items():
            names = [f'{k}.jpg' for k in range(drone)] if 'drone' in folder else ['0.png']
            for place in places:
                links.add(root / folder.format(height) / f'{place:04d}', names)
    return root
