"""The ground of the view evaluation: the test scenes, their gallery of tiles, and what is right.

Every scene is a map of its own, covered by tiles that overlap by half; the gallery is all tiles of
all scenes. A query looks at a place anywhere in the middle of its scene. A tile is a right answer
if it shows at least half of that place's ground: the nearest tile is off by a quarter of a tile
at most in either direction and shows 56 % or more, its neighbours may be right as well.

All lengths are shares of a scene's side, which a tile takes up by the share that places have in
training.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bicrossnet_ros.errors import ConfigError
from training.data.scenes import read_scene
from training.progress import counted
from training.splits import TEST, load_split

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCENE_PX = 400
SIDE = 0.36
STRIDE = SIDE / 2
TILES_PER_SIDE = 4
# Where the centres of queries lie: a view of 1.4 times the side, turned by any angle, then hardly
# leaves the scene, and the gallery's tiles reach around all of them.
MIDDLE = (0.36, 0.64)
LEAST_OVERLAP = 0.5

# RSSCN7 numbers the images of a class from 001 to 400, a hundred for each of four scales.
_NUMBERED = re.compile(r'[a-g](\d{3})$')
SCALES = ('1', '2', '3', '4')
OTHER = 'other'


@dataclass(frozen=True, eq=False)
class TestScenes:
    """Scenes that no training has seen.

    Attributes
    ----------
    names : tuple of str
        Paths below the data folder.
    images : ndarray of uint8, shape (N, S, S, 3)
        RGB, the largest square of each.
    """

    __test__ = False  # no test case, whatever pytest takes its name for

    names: tuple[str, ...]
    images: NDArray[np.uint8]

    @property
    def land_uses(self) -> tuple[str, ...]:
        """Of each scene the folder it lies in, without the letter that RSSCN7 puts before it."""
        return tuple(land_use(name) for name in self.names)

    @property
    def scales(self) -> tuple[str, ...]:
        """Of each scene one of `SCALES`, or `OTHER` for images without the numbers of RSSCN7."""
        return tuple(scale(name) for name in self.names)


@dataclass(frozen=True, eq=False)
class Tiles:
    """The gallery.

    Attributes
    ----------
    images : ndarray of uint8, shape (G, T, T, 3)
        RGB, cut from the scenes as they are.
    scenes : ndarray of int64, shape (G,)
        Which scene each shows.
    centers : ndarray of float64, shape (G, 2)
        Where: (row, col), shares of the scene's side.
    """

    images: NDArray[np.uint8]
    scenes: NDArray[np.int64]
    centers: NDArray[np.float64]


def load_test_scenes(
    root: Path, *, split: Path | None = None, scene_px: int = SCENE_PX
) -> TestScenes:
    """Read the scenes that a split sets aside for testing.

    Parameters
    ----------
    root : Path
        The data folder, as `training.data.gather` lays it out.
    split : Path, optional
        See `training.splits.load_split`.
    scene_px : int
        Side S to which scenes are reduced.

    Raises
    ------
    ConfigError
        If the folder, or a scene, is not there.
    ImageError
        If an image cannot be read.
    """
    names = [name for name, side in load_split(split).items() if side == TEST]
    if not root.is_dir():
        raise ConfigError(f'{root}: no such folder; name the folder of the overhead scenes')
    missing = [name for name in names if not (root / name).is_file()]
    if missing or not names:
        raise ConfigError(
            f'{root}: {len(missing)} of the {len(names)} test scenes of the split are not there '
            f'(first: {missing[0] if missing else "none"}); expected the folder that '
            'python -m training.data.gather makes'
        )
    paths = [root / name for name in names]
    images = np.empty((len(paths), scene_px, scene_px, 3), np.uint8)
    for row, path in enumerate(counted(paths, 'loading test scenes', len(paths))):
        images[row] = read_scene(path, scene_px=scene_px)
    return TestScenes(tuple(names), images)


def cut_tiles(scenes: TestScenes) -> Tiles:
    """Cover every scene with `TILES_PER_SIDE` squared tiles about its middle."""
    scene_px = scenes.images.shape[1]
    side_px = tile_px(scene_px)
    offsets = (np.arange(TILES_PER_SIDE) - (TILES_PER_SIDE - 1) / 2) * STRIDE
    starts = np.round((0.5 + offsets) * scene_px - side_px / 2).astype(int).tolist()
    corners = [(row, col) for row in starts for col in starts]
    images = [
        scene[row : row + side_px, col : col + side_px]
        for scene in scenes.images
        for row, col in corners
    ]
    centers = (np.asarray(corners, np.float64) + side_px / 2) / scene_px
    count = len(scenes.names)
    return Tiles(
        np.stack(images),
        np.repeat(np.arange(count), len(corners)),
        np.tile(centers, (count, 1)),
    )


def tile_px(scene_px: int) -> int:
    """Side of a tile in pixels."""
    return round(SIDE * scene_px)


def overlap(centers: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of a tile's ground that another one shows, both north-up and of side `SIDE`.

    Parameters
    ----------
    centers, others : ndarrays of float64, shapes (Q, 2), (G, 2)
        (row, col), shares of the scene's side.

    Returns
    -------
    ndarray of float64, shape (Q, G)
        0 to 1.
    """
    apart = np.abs(centers[:, None] - others[None, :]) / SIDE
    return np.asarray(np.clip(1 - apart, 0, None).prod(axis=2))


def right_tiles(
    scenes: NDArray[np.int64], centers: NDArray[np.float64], tiles: Tiles
) -> NDArray[np.bool_]:
    """Tell which tiles are right answers to queries.

    Parameters
    ----------
    scenes, centers : ndarrays, shapes (Q,), (Q, 2)
        Where the queries look.
    tiles : Tiles
        The gallery.

    Returns
    -------
    ndarray of bool, shape (Q, G)
    """
    same = scenes[:, None] == tiles.scenes[None, :]
    return np.asarray(same & (overlap(centers, tiles.centers) >= LEAST_OVERLAP))


def land_use(name: str) -> str:
    """Land use of a scene: its folder, ``rsscn7/aGrass/a001.jpg`` to ``Grass``."""
    folder = Path(name).parent.name
    return (folder[1:] if _NUMBERED.match(Path(name).stem) else folder) or OTHER


def scale(name: str) -> str:
    """Scale of a scene of RSSCN7: '1', the finest, for the numbers 001 to 100, up to '4'."""
    found = _NUMBERED.match(Path(name).stem)
    number = int(found[1]) if found else 0
    return SCALES[(number - 1) // 100] if 1 <= number <= 400 else OTHER
