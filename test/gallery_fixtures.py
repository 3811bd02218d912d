"""Small georeferenced rasters and a small deterministic encoder, for the tests of galleries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from bicrossnet_ros.preprocess import Preprocessing, prepare


@dataclass(frozen=True)
class ProjectionEncoder:
    """A real, small embedding: the prepared image, projected on fixed random directions.

    It has the interface of `bicrossnet_ros.encoder.Encoder` and needs no model file, for tests
    whose subject is not the network.
    """

    model_name: str = 'projection'
    embedding_dim: int = 24
    seed: int = 7
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(16, 16))

    @property
    def model_id(self) -> str:
        return hashlib.sha256(f'{self.embedding_dim} {self.seed}'.encode()).hexdigest()

    def encode(self, patches):
        inputs = prepare(patches, self.preprocessing).reshape(len(patches), -1)
        inputs = inputs - inputs.mean(axis=1, keepdims=True)
        rng = np.random.default_rng(self.seed)
        directions = rng.standard_normal((inputs.shape[1], self.embedding_dim))
        # One row at a time: BLAS rounds differently for other batch sizes.
        rows = np.stack([row @ directions for row in inputs.astype(np.float64)])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def textured(height_px: int, width_px: int, *, seed: int = 1) -> np.ndarray:
    """A smooth random uint8 RGB picture (H, W, 3): resampling changes it little."""
    import cv2

    rng = np.random.default_rng(seed)
    total = np.zeros((height_px, width_px, 3), np.float32)
    for cell_px, weight in ((64, 70.0), (24, 40.0), (10, 15.0)):
        shape = (height_px // cell_px + 3, width_px // cell_px + 3, 3)
        coarse = rng.uniform(-1, 1, shape).astype(np.float32)
        total += weight * cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
    return np.clip(total + 128, 5, 250).astype(np.uint8)


def write_map(
    path: Path,
    image: np.ndarray,
    *,
    crs: str | None = 'EPSG:32617',
    west_m: float = 305900.0,
    north_m: float = 4545700.0,
    gsd_m: float = 0.5,
    mask: np.ndarray | None = None,
    transform=None,
    **profile,
) -> Path:
    """Write (H, W), or (H, W, B) pixels as a GeoTIFF; `mask` (H, W) becomes its mask band."""
    bands = image[:, :, None] if image.ndim == 2 else image
    colours = profile.pop('colorinterp', None)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path,
            'w',
            driver='GTiff',
            height=bands.shape[0],
            width=bands.shape[1],
            count=bands.shape[2],
            dtype=bands.dtype,
            crs=crs,
            transform=transform or from_origin(west_m, north_m, gsd_m, gsd_m),
            **profile,
        ) as dataset,
    ):
        if colours is not None:
            dataset.colorinterp = colours
        dataset.write(bands.transpose(2, 0, 1))
        if mask is not None:
            dataset.write_mask(mask)
    return path


def build_gallery(out: Path, *maps: Path, encoder=None, say=lambda text: None, **options) -> Path:
    """Build a gallery of small tiles (64 px, half overlapping, 0.5 m) with few words."""
    from gallery_builder.build import build
    from gallery_builder.options import BuildOptions

    chosen = {'gsd_m': 0.5, 'tile_px': 64, 'overlap': 0.5, **options}
    return build(
        BuildOptions(maps=maps, out=out, **chosen), encoder or ProjectionEncoder(), say=say
    )


def finest(gallery) -> tuple[np.ndarray, np.ndarray]:
    """All pixels and the mask of an open gallery's map at full resolution."""
    from bicrossnet_ros.geopackage import GeoPackage
    from bicrossnet_ros.manifest import MAP_NAME

    grid = gallery.manifest.grid
    with GeoPackage.open(gallery.path / MAP_NAME, grid=grid, crs=gallery.crs) as raster:
        return raster.read(grid.max_zoom, 0, 0, grid.height_px, grid.width_px)
