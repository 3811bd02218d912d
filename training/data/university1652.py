"""University-1652 on disk.

References
----------
Zheng, Wei, Yang 2020, University-1652: A Multi-view Multi-source Benchmark for Drone-based
Geo-localization, ACM Multimedia. 54 drone images a place; place 0000 of the test has 55.
"""

from __future__ import annotations

from pathlib import Path

from training.data.folders import locate, scan
from training.data.places import Folders

FOLDERS = {
    'train_drone': 'train/drone',
    'train_satellite': 'train/satellite',
    'query_drone': 'test/query_drone',
    'query_satellite': 'test/query_satellite',
    'gallery_drone': 'test/gallery_drone',
    'gallery_satellite': 'test/gallery_satellite',
}

PUBLISHED = {
    'train_drone': (701, 37_854),
    'train_satellite': (701, 701),
    'query_drone': (701, 37_855),
    'query_satellite': (701, 701),
    'gallery_drone': (951, 51_355),
    'gallery_satellite': (951, 951),
}


class University1652:
    """University-1652; a `training.data.folders.PhotoSet`.

    Street and Google views are not used; their folders may be empty or missing.

    Parameters
    ----------
    root : Path
        The folder with ``train`` and ``test``; the one above it or one of these two will do.

    Raises
    ------
    ConfigError
        If the data set is not there.
    """

    source = 'university1652'
    title = 'University-1652'
    layout = 'train, test'
    heights: tuple[int, ...] = (0,)

    def __init__(self, root: Path) -> None:
        self.root = locate(
            root,
            title=self.title,
            recognise=recognise,
            markers=('train', 'test'),
            expected='train/drone/<place>/*.jpeg, train/satellite, test/query_drone, ...',
        )

    def read(self, part: str, height_m: int = 0) -> Folders:
        """List the images of a part; the height plays no role. See `PhotoSet`."""
        return scan(self.root / FOLDERS[part])

    def published(self, part: str, height_m: int = 0) -> tuple[int, int]:
        """Return the published numbers of places and images. See `PhotoSet`."""
        return PUBLISHED[part]


def recognise(folder: Path) -> bool:
    """Tell whether a folder holds University-1652, or a part of it."""
    return any((folder / name).is_dir() for name in FOLDERS.values())
