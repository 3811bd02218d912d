"""Sheets that show what the simulated views do: each effect alone, all of them, the strengths.

python -m training.data.views_picture --scenes FOLDER --out docs/images

writes views_effects.jpg (a tile, and every effect alone, four times), views_pairs.jpg
(tiles and queries as training draws them) and views_strengths.jpg (all changes of the world at
once, in the three strengths of the evaluation).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.data.maps import open_maps
from training.data.sensor import apply_sensor
from training.data.view_config import GEOMETRY_CHANGES, ViewConfig, only
from training.data.views import CHANGES, Place, look, view_pair
from training.data.world import STRENGTHS, apply_world, change_world

Image = NDArray[np.uint8]

GAP_PX, LABEL_PX = 4, 15
DRAWS = 4
JPEG_QUALITY = 72


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sheets; return the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.data.views_picture',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--scenes', type=Path, required=True, help='folder of overhead images')
    parser.add_argument(
        '--scene-m',
        type=float,
        default=0.0,
        help='side of the squares that georeferenced rasters are cut into; else every image is '
        'one scene',
    )
    parser.add_argument('--out', type=Path, required=True, help='folder for the sheets')
    parser.add_argument('--side-px', type=int, default=100, help='side of a view')
    parser.add_argument('--seed', type=int, default=0, help='of everything random')
    options = parser.parse_args(arguments)
    try:
        write_sheets(
            options.scenes,
            options.out,
            scene_m=options.scene_m,
            side_px=options.side_px,
            seed=options.seed,
        )
    except BiCrossNetError as error:
        print(f'views_picture: {error}', file=sys.stderr)
        return 2
    return 0


def write_sheets(
    folder: Path, out: Path, *, scene_m: float = 0.0, side_px: int = 128, seed: int = 0
) -> None:
    """Draw the sheets of the images in a folder.

    Raises
    ------
    ConfigError
        If there are no scenes.
    """
    scenes = _read(folder, scene_m, 3 * side_px)
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(scenes))
    sheets = {
        'views_effects.jpg': effects_sheet(scenes[order[0]], side_px=side_px, seed=seed),
        'views_pairs.jpg': pairs_sheet(scenes[order], rng, side_px=side_px),
        'views_strengths.jpg': strengths_sheet(scenes[order], rng, side_px=side_px),
    }
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    for name, sheet in sheets.items():
        cv2.imwrite(str(out / name), sheet[..., ::-1], options)


def effects_sheet(scene: Image, *, side_px: int, seed: int) -> Image:
    """Draw a tile and every effect alone, each with its own generator.

    Geometry is drawn at random, with any heading; the tilt is removed in the first half of the
    draws, as well as the product can, and left in the second. Strengths of the rest rise from
    left to right up to the largest that training draws by default.
    """
    place = _middle(scene)
    tile = look(scene, place, side_px)
    strips = [_labelled([tile] * DRAWS, 'the tile, four times', side_px)]
    config = ViewConfig(heading_error_deg=180)
    for number, name in enumerate(CHANGES):
        views = []
        for draw in range(DRAWS):
            rng = np.random.default_rng((seed, number, draw))
            if name in GEOMETRY_CHANGES:
                left = float(draw >= DRAWS // 2)
                alone = only(name, config=dataclasses.replace(config, full_tilt_share=left))
                views.append(view_pair(scene, place, rng, size_px=side_px, config=alone)[1])
                continue
            drawn = {name: getattr(config, name) * (draw + 1) / DRAWS}
            views.append(apply_sensor(apply_world(tile, rng, drawn), rng, drawn))
        strips.append(_labelled(views, name, side_px))
    return _columns(strips, 2)


def pairs_sheet(scenes: Image, rng: np.random.Generator, *, side_px: int) -> Image:
    """Draw pairs of tile and query, three of a place, as training with the defaults draws them."""
    strips = []
    for scene in _some(scenes, 8):
        views: list[Image] = []
        for _ in range(3):
            views += view_pair(scene, _middle(scene), rng, size_px=side_px, config=ViewConfig())
        strips.append(_labelled(views, 'three times tile, query', side_px))
    return _columns(strips, 1)


def strengths_sheet(scenes: Image, rng: np.random.Generator, *, side_px: int) -> Image:
    """Draw scenes and all changes of the world at once, mild, medium and strong, twice each."""
    strips = []
    for scene in _some(scenes, 4):
        tile = look(scene, _middle(scene), side_px)
        views = [tile]
        for strength in STRENGTHS.values():
            views += [change_world(tile, rng, strength=strength) for _ in range(2)]
        strips.append(
            _labelled(views, f'unchanged, then twice each: {", ".join(STRENGTHS)}', side_px)
        )
    return _columns(strips, 1)


def _read(folder: Path, scene_m: float, scene_px: int) -> Image:
    from training.config import DataConfig

    images = open_maps(
        folder, DataConfig(source='maps', scene_m=scene_m, scene_px=scene_px)
    ).images
    if not len(images):
        raise ConfigError(f'{folder}: no scene; expected overhead images')
    return images


def _some(scenes: Image, count: int) -> Image:
    return scenes[np.arange(count) % len(scenes)]


def _middle(scene: Image) -> Place:
    middle = (len(scene) - 1) / 2
    return Place(row_px=middle, col_px=middle, side_px=0.45 * len(scene), rotation_rad=0.0)


def _labelled(views: Sequence[Image], label: str, side_px: int) -> Image:
    """Put views side by side below a label."""
    sheet = np.full(
        (side_px + LABEL_PX + GAP_PX, len(views) * (side_px + GAP_PX), 3), 255, np.uint8
    )
    for number, view in enumerate(views):
        col = number * (side_px + GAP_PX)
        sheet[LABEL_PX : LABEL_PX + side_px, col : col + side_px] = view
    cv2.putText(
        sheet, label, (1, LABEL_PX - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0,) * 3, 1, cv2.LINE_AA
    )
    return sheet


def _columns(strips: Sequence[Image], columns: int) -> Image:
    """Stack strips from top to bottom in columns."""
    rows = -(-len(strips) // columns)
    blank = np.full_like(strips[0], 255)
    padded = [*strips, *[blank] * (rows * columns - len(strips))]
    gap = np.full((rows * len(blank), 3 * GAP_PX, 3), 255, np.uint8)
    parts: list[Image] = []
    for column in range(columns):
        parts += [gap, np.vstack(padded[column * rows : (column + 1) * rows])]
    return np.hstack([*parts[1:], gap[:, :GAP_PX]])


if __name__ == '__main__':
    sys.exit(main())
