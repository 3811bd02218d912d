"""What a user may ask of a build, checked before anything is read."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bicrossnet_ros.errors import ConfigError, GalleryError, MapError
from bicrossnet_ros.geopackage_format import srs_id_of
from bicrossnet_ros.tile_index import INDEX_TYPES

# Choices of --descriptor, and what the manifest calls them.
DESCRIPTORS = {'float': 'float32', 'float256': 'float256', 'packed': 'packed'}


@dataclass(frozen=True)
class BuildOptions:
    """Options of `python -m gallery_builder build`.

    Parameters
    ----------
    maps : tuple of Path
        Source maps; where they overlap the first wins, the others fill its gaps.
    out : Path
        The folder NAME.gallery to make.
    gsd_m : float, optional
        Metres per pixel; default the finest source's, but not below 0.25 m.
    tile_px : int
        Side of a retrieval tile.
    overlap : float
        Share of a tile's side that it has in common with the next one.
    crs : str, optional
        Projected CRS in metres; default the UTM zone of the maps' centre.
    assume_crs : str, optional
        CRS of maps that do not name one.
    min_valid : float
        Tiles with a smaller share of valid pixels are left out.
    bands : tuple of int, optional
        Bands (from 1) that are red, green and blue, or one that is grey.
    accuracy_m : float
        1-sigma horizontal accuracy of the maps, per axis.
    ground_ellipsoid_m : float, optional
        Mean height of the ground above the WGS84 ellipsoid.
    licence : str, optional
        Licence of the maps, for the record.
    batch : int
        Tiles embedded at once.
    threads : int
        Threads of the network and of FAISS.
    index : str
        'flat' or 'ivf'.
    descriptor : str
        What is stored of a tile, one of `DESCRIPTORS`; all but 'float' need a model with a
        descriptor.
    force : bool
        Replace a gallery of the same name.
    restart : bool
        Throw away an unfinished build of the same name.
    """

    maps: tuple[Path, ...]
    out: Path
    gsd_m: float | None = None
    tile_px: int = 128
    overlap: float = 0.75
    crs: str | None = None
    assume_crs: str | None = None
    min_valid: float = 0.8
    bands: tuple[int, ...] | None = None
    accuracy_m: float = 1.0
    ground_ellipsoid_m: float | None = None
    licence: str | None = None
    batch: int = 32
    threads: int = 1
    index: str = 'flat'
    descriptor: str = 'float'
    force: bool = False
    restart: bool = False

    def __post_init__(self) -> None:
        if not self.maps:
            raise MapError('no map given; name at least one georeferenced raster')
        _check_out(self.out)
        if self.gsd_m is not None:
            _check_range('--gsd-m', self.gsd_m, 0.001, 1000.0)
        _check_range('--tile-px', self.tile_px, 16, 4096)
        _check_range('--overlap', self.overlap, 0.0, 0.95)
        _check_range('--min-valid', self.min_valid, 0.01, 1.0)
        _check_range('--accuracy-m', self.accuracy_m, 0.001, 1000.0)
        if self.ground_ellipsoid_m is not None:
            _check_range('--ground-ellipsoid-m', self.ground_ellipsoid_m, -1000.0, 9500.0)
        _check_range('--batch', self.batch, 1, 4096)
        _check_range('--threads', self.threads, 1, 1024)
        if self.bands is not None and (
            len(self.bands) not in (1, 3) or any(band < 1 for band in self.bands)
        ):
            raise ConfigError(
                f'--bands is {self.bands}; expected three band numbers from 1, as 1,2,3, or one'
            )
        if self.index not in INDEX_TYPES:
            raise ConfigError(f'--index is {self.index!r}; expected one of {INDEX_TYPES}')
        if self.descriptor not in DESCRIPTORS:
            raise ConfigError(
                f'--descriptor is {self.descriptor!r}; expected one of {", ".join(DESCRIPTORS)}'
            )
        if self.crs is not None:
            srs_id_of(self.crs)

    @property
    def stride_px(self) -> int:
        """Distance of neighbouring tiles."""
        return max(1, round(self.tile_px * (1.0 - self.overlap)))

    @property
    def embedding_kind(self) -> str:
        """What the manifest calls the descriptor."""
        return DESCRIPTORS[self.descriptor]

    def shaping(self) -> dict[str, Any]:
        """The options that shape the result: a build is resumed only if all are the same."""
        names = (
            'gsd_m',
            'tile_px',
            'overlap',
            'crs',
            'assume_crs',
            'min_valid',
            'bands',
            'accuracy_m',
            'ground_ellipsoid_m',
            'licence',
            'batch',
            'index',
            'descriptor',
        )
        return {name: getattr(self, name) for name in names}


def parse_bands(text: str) -> tuple[int, ...]:
    """'1,2,3' to (1, 2, 3)."""
    if not re.fullmatch(r'\d+(,\d+)*', text):
        raise ConfigError(f'--bands is {text!r}; expected three band numbers as 1,2,3, or one')
    return tuple(int(part) for part in text.split(','))


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f'{name} is {value}; expected a value from {low} to {high}')


def _check_out(out: Path) -> None:
    if out.suffix != '.gallery':
        raise GalleryError(f'--out is {out}; expected a name that ends in .gallery')
    parent = out.resolve().parent
    if not parent.is_dir():
        raise GalleryError(f'--out {out}: the folder {parent} does not exist; make it first')
