"""SUES-200 on disk: as published, or split into folders by the authors' benchmark code.

References
----------
Zhu, Yin, Yang, Yan, Zhang 2023, SUES-200: A Multi-Height Multi-Scene Cross-View Image Benchmark
Across Drone and Satellite, IEEE TCSVT. 200 places, 50 drone images each at four heights.
"""

from __future__ import annotations

from pathlib import Path

from bicrossnet_ros.errors import ConfigError
from training.config import HEIGHTS_M
from training.data.folders import locate, scan
from training.data.places import Folders

# The split is fixed, and not by the order of the places; all others are for training.
TEST_PLACES = frozenset(
    f'{place:04d}'
    for place in (
        *(8, 12, 14, 17, 18, 19, 22, 23, 35, 38, 40, 41, 42, 46, 47, 48, 49, 50, 52, 53, 54, 59),
        *(61, 62, 63, 65, 68, 71, 72, 75, 78, 79, 83, 92, 93, 95, 98, 99, 107, 108, 109, 110),
        *(111, 112, 114, 115, 117, 121, 122, 124, 128, 130, 131, 133, 135, 136, 138, 140, 143),
        *(144, 150, 153, 154, 161, 162, 164, 165, 170, 172, 173, 175, 176, 177, 178, 181, 188),
        *(189, 190, 194, 195),
    )
)
_PLACES = {'train': 120, 'query': 80, 'gallery': 200}
_IMAGES = 50

_DRONE, _SATELLITE = 'drone_view_512', 'satellite-view'
SPLIT_FOLDERS = {
    'train_drone': ('Training', 'drone'),
    'train_satellite': ('Training', 'satellite'),
    'query_drone': ('Testing', 'query_drone'),
    'query_satellite': ('Testing', 'query_satellite'),
    'gallery_drone': ('Testing', 'gallery_drone'),
    'gallery_satellite': ('Testing', 'gallery_satellite'),
}


class Sues200:
    """SUES-200; a `training.data.folders.PhotoSet`.

    Parameters
    ----------
    root : Path
        The folder with ``drone_view_512`` and ``satellite-view``, or that with ``Training`` and
        ``Testing``; the one above it or one of these will do.

    Raises
    ------
    ConfigError
        If the data set is not there.
    """

    source = 'sues200'
    title = 'SUES-200'
    heights: tuple[int, ...] = HEIGHTS_M

    def __init__(self, root: Path) -> None:
        self.root = locate(
            root,
            title=self.title,
            recognise=recognise,
            markers=(_DRONE, _SATELLITE, 'Training', 'Testing'),
            expected=f'{_DRONE}/<place>/<height>/*.jpg and {_SATELLITE}/<place>/*.png, or '
            'Training/<height>/drone/<place>/*.jpg, Testing/<height>/query_drone, ...',
        )
        self._raw = _is_raw(self.root)
        self.layout = f'{_DRONE}, {_SATELLITE}' if self._raw else 'Training, Testing'

    def read(self, part: str, height_m: int = 0) -> Folders:
        """List the images of a part at a height, or at all of them. See `PhotoSet`."""
        if height_m:
            return self._read(part, height_m)
        pooled: dict[str, tuple[Path, ...]] = {}
        for height in HEIGHTS_M:
            for place, paths in self._read(part, height).items():
                # One satellite image a place, which the heights share.
                known = pooled.get(place, ())
                pooled[place] = known + paths if part.endswith('drone') else known or paths
        return dict(sorted(pooled.items()))

    def published(self, part: str, height_m: int = 0) -> tuple[int, int]:
        """Return the published numbers of places and images. See `PhotoSet`."""
        purpose, view = part.split('_')
        places = _PLACES[purpose]
        heights = 1 if height_m else len(HEIGHTS_M)
        return places, places * _IMAGES * heights if view == 'drone' else places

    def _read(self, part: str, height_m: int) -> Folders:
        if height_m not in HEIGHTS_M:
            raise ConfigError(
                f'height_m is {height_m}; SUES-200 has 150, 200, 250 and 300, 0: all'
            )
        if not self._raw:
            purpose, view = SPLIT_FOLDERS[part]
            return scan(self.root / purpose / str(height_m) / view)
        purpose, view = part.split('_')
        if view == 'drone':
            places = scan(self.root / _DRONE, str(height_m))
        else:
            places = scan(self.root / _SATELLITE)
        return {name: paths for name, paths in places.items() if _belongs(name, purpose)}


def _belongs(place: str, purpose: str) -> bool:
    return purpose == 'gallery' or (place in TEST_PLACES) == (purpose == 'query')


def _is_raw(folder: Path) -> bool:
    return (folder / _DRONE).is_dir() or (folder / _SATELLITE).is_dir()


def recognise(folder: Path) -> bool:
    """Tell whether a folder holds SUES-200, or a part of it."""
    split = ('Training', 'Testing')
    return _is_raw(folder) or any(
        (folder / name / str(height)).is_dir() for name in split for height in HEIGHTS_M
    )
