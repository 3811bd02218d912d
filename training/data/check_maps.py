"""What a folder of aerial images holds: scenes to train on."""

from __future__ import annotations

from pathlib import Path

from bicrossnet_ros.errors import ConfigError, ImageError
from training.config import DataConfig
from training.data.rasters import MISSING_LIMIT, SUFFIXES, RasterGrid, raster_grid
from training.data.report import Report, Row, undecodable
from training.data.scenes import list_scenes, read_scene

SCENE_PX = DataConfig().scene_px


def check_maps(root: Path, *, decode: bool, threads: int, scene_m: float) -> Report:
    """Count the scenes of the source `maps`; see `training.data.check.check`.

    Raises
    ------
    ConfigError
        If the folder is missing or holds no image.
    """
    if not root.is_dir():
        raise ConfigError(f'{root}: no such folder; expected one with aerial images')
    if scene_m:
        return _check_rasters(root, decode, scene_m)
    paths = list_scenes(root)
    report = Report(f'aerial images in {root}, each one a scene')
    if decode:
        report.problems += undecodable(
            paths, lambda path: read_scene(path, scene_px=SCENE_PX), threads=threads
        )
    usable = len(paths) - len(report.problems)
    report.rows.append(Row('scenes', usable or None, len(paths), None))
    if usable:
        report.uses.append('training')
    return report


def _check_rasters(root: Path, decode: bool, scene_m: float) -> Report:
    """Count the squares of every raster; decoded, those with too large gaps are left out."""
    report = Report(f'rasters in {root}, cut into squares of {scene_m:g} m')
    for path in list_scenes(root, suffixes=SUFFIXES):
        name = path.relative_to(root).as_posix()
        squares = 0
        try:
            grid = raster_grid(path, side_m=scene_m, side_px=SCENE_PX)
            squares = _squares(grid, decode)
        except (ImageError, ConfigError) as error:
            report.problems.append(str(error))
        else:
            if not squares:
                report.problems.append(f'{path}: has no square of {scene_m:g} m without gaps')
        report.rows.append(Row(name, squares or None, 1, None))
    if any(row.places for row in report.rows):
        report.uses.append('training')
    return report


def _squares(grid: RasterGrid, decode: bool) -> int:
    if not decode:
        return grid.rows * grid.cols
    return sum(missing <= MISSING_LIMIT for *_, missing in grid.read())
