"""The gallery contract: open, check and search a gallery, and cut windows out of its map.

A gallery is a folder with `gallery.json` (see `manifest`), `map.gpkg` (see `geopackage`) and
`index.faiss`, whose row numbers are the tile ids.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.descriptor import HOW_TO_FIT
from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.geodesy import to_wgs84
from bicrossnet_ros.geopackage import GeoPackage
from bicrossnet_ros.geopackage_format import TileRow
from bicrossnet_ros.manifest import (
    FORMAT_VERSION,
    INDEX_NAME,
    MANIFEST_NAME,
    MAP_NAME,
    REBUILD,
    Manifest,
    file_problems,
    read_manifest,
)
from bicrossnet_ros.tile_index import (
    Float32Array,
    Int64Array,
    read_embeddings,
    read_index,
    search_index,
)
from bicrossnet_ros.types import FloatArray, ImageArray, MaskArray

if TYPE_CHECKING:
    from bicrossnet_ros.descriptor import Projection
    from bicrossnet_ros.encoder import Encoder

__all__ = ['FORMAT_VERSION', 'Gallery', 'Manifest', 'MapWindow', 'open_gallery']


@dataclass(frozen=True)
class MapWindow:
    """A square piece of the map, north up.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8 RGB
    mask : ndarray of shape (H, W), bool
        False outside the map.
    west_m, north_m : float
        Outer corner of the first pixel, in the gallery's CRS.
    gsd_m : float
        Metres per pixel.
    """

    image: ImageArray
    mask: MaskArray
    west_m: float
    north_m: float
    gsd_m: float

    def to_map(self, points_px: FloatArray) -> FloatArray:
        """Pixel points (N, 2) as (col, row), OpenCV's order, to (N, 2) as (east_m, north_m).

        (0, 0) is the centre of the first pixel.
        """
        points = np.asarray(points_px, np.float64).reshape(-1, 2)
        east_m = self.west_m + (points[:, 0] + 0.5) * self.gsd_m
        north_m = self.north_m - (points[:, 1] + 0.5) * self.gsd_m
        return np.stack([east_m, north_m], axis=1)


class Gallery:
    """An open gallery. Use `open_gallery`; close it, or use it as a context manager.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    tile_east_m, tile_north_m, tile_lat_deg, tile_lon_deg : ndarray of shape (T,), float64
        Tile centres; the position in the array is the tile id.
    tile_ambiguity : ndarray of shape (T,), float64
        Highest cosine similarity to any tile further than one tile size away; NaN if none is.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        raster: GeoPackage,
        index: Any,
        *,
        projection: Projection | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._projection = projection
        self._raster = raster
        self._index = index
        columns = np.array(
            [
                (tile.east_m, tile.north_m, tile.lat_deg, tile.lon_deg, tile.ambiguity)
                for tile in _checked_tiles(raster, manifest)
            ],
            dtype=np.float64,
        ).reshape(-1, 5)
        self.tile_east_m, self.tile_north_m = columns[:, 0].copy(), columns[:, 1].copy()
        self.tile_lat_deg, self.tile_lon_deg = columns[:, 2].copy(), columns[:, 3].copy()
        self.tile_ambiguity = columns[:, 4].copy()

    @property
    def crs(self) -> str:
        """Projected CRS of all east and north values."""
        return self.manifest.crs

    @property
    def tile_size_m(self) -> float:
        """Side of a retrieval tile on the ground."""
        return self.manifest.tile_px * self.manifest.gsd_m

    @property
    def origin(self) -> tuple[float, float]:
        """(lat_deg, lon_deg) of the centre of the map's bounds."""
        west, south, east, north = self.manifest.bounds_m
        return to_wgs84(self.crs, 0.5 * (west + east), 0.5 * (south + north))

    def descriptor(self, embeddings: Float32Array) -> Float32Array:
        """What the gallery compares of embeddings: what `search` takes.

        Parameters
        ----------
        embeddings : ndarray of shape (N, E), float32
            As the encoder made them.

        Returns
        -------
        ndarray of shape (N, D), float32
            Of unit length: the embeddings themselves, or their projection where the gallery
            stores compressed descriptors. Signs are taken of tiles alone, never of queries.

        Raises
        ------
        GalleryError
            If the gallery stores compressed descriptors and was opened without its encoder.
        ModelError
            If the embeddings have another length than the projection takes.
        """
        if self.manifest.embedding_kind == 'float32':
            return np.asarray(embeddings, np.float32)
        if self._projection is None:
            raise GalleryError(
                f'{self.path} stores {self.manifest.embedding_kind} descriptors; to compare '
                'embeddings with them, open it with the encoder that made them'
            )
        return self._projection.apply(embeddings)

    def search(
        self,
        embeddings: Float32Array,
        *,
        k: int,
        center_m: tuple[float, float] | None = None,
        radius_m: float | None = None,
    ) -> tuple[Float32Array, Int64Array]:
        """The most similar tiles of each query, best first.

        Parameters
        ----------
        embeddings : ndarray of shape (Q, D), float32
            Unit length; from `descriptor`, or from `embeddings`.
        k : int
            Tiles wanted per query.
        center_m, radius_m : (east_m, north_m) and float, optional
            Only tiles whose centre lies within `radius_m` of `center_m` are searched.

        Returns
        -------
        similarities : ndarray of shape (Q, k), float32
            Cosine similarities, of packed descriptors between the query and the tile's signs;
            -inf where there are fewer than k tiles.
        tile_ids : ndarray of shape (Q, k), int64
            -1 where there are fewer than k tiles.

        Raises
        ------
        GalleryError
            If the queries have another size than the gallery's embeddings or are not finite.
        """
        if k < 1:
            raise GalleryError(f'search for {k} tiles; expected at least 1')
        queries = self.checked_queries(embeddings)
        if (center_m is None) != (radius_m is None):
            raise GalleryError('a search takes both center_m and radius_m, or neither')
        if center_m is None or radius_m is None:
            return self._search(queries, k, None)
        if not (math.isfinite(center_m[0]) and math.isfinite(center_m[1]) and radius_m >= 0):
            raise GalleryError(
                f'search radius {radius_m} m around {center_m}; expected a finite centre and a '
                'radius of at least 0 m'
            )
        distance_m = np.hypot(self.tile_east_m - center_m[0], self.tile_north_m - center_m[1])
        return self._search(queries, k, distance_m <= radius_m)

    def embedding(self, tile_id: int) -> Float32Array:
        """What the gallery stores of a tile, float32 (D,); see `embeddings`.

        Raises
        ------
        GalleryError
            If there is no such tile.
        """
        return self.embeddings(np.array([tile_id])).reshape(-1)

    def embeddings(self, tile_ids: Int64Array) -> Float32Array:
        """What the gallery stores of tiles: what the map itself looks like there.

        Parameters
        ----------
        tile_ids : ndarray of shape (N,), int

        Returns
        -------
        ndarray of shape (N, D), float32
            Of unit length; of packed descriptors the signs, each +-1/16. The dot product with
            what `descriptor` returns is the similarity that `search` returns.

        Raises
        ------
        GalleryError
            If there is no such tile.
        """
        ids, count = np.asarray(tile_ids, np.int64).reshape(-1), len(self.tile_east_m)
        outside = ids[(ids < 0) | (ids >= count)]
        if len(outside):
            raise GalleryError(
                f'tile {outside[0]} is not in the gallery; expected 0 to {count - 1}'
            )
        return read_embeddings(self._index, ids, parameters=self.manifest.index)

    def window(
        self, east_m: float, north_m: float, *, size_m: float, gsd_m: float | None = None
    ) -> MapWindow:
        """A square, north-up window of the map, centred to within half a pixel.

        Parameters
        ----------
        east_m, north_m : float
            Centre, anywhere.
        size_m : float
            Side.
        gsd_m : float, optional
            Resolution wanted: taken is the coarsest level that is at least as fine, and its
            resolution stands in the result. Default: the finest level.

        Raises
        ------
        GalleryError
            If a number is not finite, or the window would be empty or have over 16384 pixels a
            side.
        """
        numbers = (east_m, north_m, size_m, 1.0 if gsd_m is None else gsd_m)
        if not all(map(math.isfinite, numbers)) or numbers[2] <= 0 or numbers[3] <= 0:
            raise GalleryError(
                f'window of {size_m} m at ({east_m}, {north_m}) m with {gsd_m} m per pixel; '
                'expected finite numbers, size and resolution above 0'
            )
        grid = self._raster.grid
        zoom = grid.zoom_for(gsd_m)
        level_gsd_m = grid.gsd_at_m(zoom)
        size_px = max(round(size_m / level_gsd_m), 1)
        if size_px > 16384:
            raise GalleryError(
                f'window of {size_m:.0f} m at {level_gsd_m:g} m per pixel has {size_px} pixels '
                'a side; at most 16384: ask for a smaller window or a coarser gsd_m'
            )
        col_px = round((east_m - grid.west_m) / level_gsd_m - 0.5 * size_px)
        row_px = round((grid.north_m - north_m) / level_gsd_m - 0.5 * size_px)
        image, mask = self._raster.read(zoom, row_px, col_px, size_px, size_px)
        return MapWindow(
            image=image,
            mask=mask,
            west_m=grid.west_m + col_px * level_gsd_m,
            north_m=grid.north_m - row_px * level_gsd_m,
            gsd_m=level_gsd_m,
        )

    def close(self) -> None:
        """Close the map file; harmless when closed already."""
        self._raster.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def checked_queries(self, embeddings: Float32Array) -> Float32Array:
        """Queries (Q, D) as float32, if they can be compared with what the gallery stores.

        Raises
        ------
        GalleryError
            If they have another size than the gallery's embeddings or are not finite.
        """
        queries = np.ascontiguousarray(embeddings, np.float32)
        size = self.manifest.embedding_dim
        if queries.ndim != 2 or queries.shape[1] != size:
            kind = self.manifest.embedding_kind
            remedy = (
                'rebuild the gallery with the current model'
                if kind == 'float32'
                else 'search with what Gallery.descriptor makes of embeddings'
            )
            raise GalleryError(
                f'query has shape {queries.shape} but the gallery has {kind} embeddings of '
                f'{size}; {remedy}'
            )
        if not np.isfinite(queries).all():
            raise GalleryError('query embedding is not finite; the image or the model is bad')
        return queries

    def _search(
        self, queries: Float32Array, k: int, allowed: MaskArray | None
    ) -> tuple[Float32Array, Int64Array]:
        return search_index(
            self._index, queries, k=k, parameters=self.manifest.index, allowed=allowed
        )


def open_gallery(
    path: str | Path, *, encoder: Encoder | None = None, verify: bool = True
) -> Gallery:
    """Open a gallery and check that it is whole and fits the model.

    Parameters
    ----------
    path : str or Path
        The folder NAME.gallery.
    encoder : Encoder, optional
        What will make the queries: it must be the model that made the gallery.
    verify : bool
        Compare the SHA-256 of every file (reads them whole, about a second per GB).

    Raises
    ------
    GalleryError
        If anything is missing, damaged, of another version or of another model; the message
        names both values and the remedy.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if encoder is not None:
        check_encoder(manifest, encoder, source=str(folder))
    problems = file_problems(folder, manifest, checksums=verify)
    if problems:
        raise GalleryError('; '.join(problems))
    projection = None
    if encoder is not None and manifest.embedding_kind != 'float32':
        projection = encoder.projection
    index = read_index(
        folder / INDEX_NAME,
        size=manifest.embedding_dim,
        tile_count=manifest.tile_count,
        parameters=manifest.index,
    )
    raster = GeoPackage.open(folder / MAP_NAME, grid=manifest.grid, crs=manifest.crs)
    try:
        return Gallery(folder, manifest, raster, index, projection=projection)
    except GalleryError:
        raster.close()
        raise


def check_encoder(manifest: Manifest, encoder: Encoder, *, source: str) -> None:
    """Raise GalleryError unless the gallery's embeddings were made by this very model."""
    remedy = 'rebuild the gallery with this model, or take the model that built it'
    if encoder.model_id != manifest.model_id:
        raise GalleryError(
            f'{source} was built with model {manifest.model_name} ({manifest.model_id}), the '
            f'query model is {encoder.model_name} ({encoder.model_id}); {remedy}'
        )
    found = normalised(encoder.preprocessing.to_dict())
    differing = sorted(
        key
        for key in found.keys() | manifest.preprocessing.keys()
        if found.get(key) != manifest.preprocessing.get(key)
    )
    if differing:
        values = ', '.join(
            f'{key}: gallery {manifest.preprocessing.get(key)!r}, model {found.get(key)!r}'
            for key in differing
        )
        raise GalleryError(f'{source} was built with another preprocessing ({values}); {remedy}')
    if manifest.embedding_kind != 'float32':
        if encoder.projection is None:  # another software may know more than this one
            raise GalleryError(
                f'{source} stores {manifest.embedding_kind} descriptors, but the model '
                f'{encoder.model_name} has no projection to them: {HOW_TO_FIT}; then {remedy}'
            )
        return
    if encoder.embedding_dim != manifest.embedding_dim:
        raise GalleryError(
            f'{source} has embeddings of {manifest.embedding_dim}, the model makes '
            f'{encoder.embedding_dim}; {remedy}'
        )


def _checked_tiles(raster: GeoPackage, manifest: Manifest) -> list[TileRow]:
    """Rows of the tile table, whose ids must be 0, 1, ... as in the index."""
    tiles = list(raster.read_tiles())
    if [tile.tile_id for tile in tiles] != list(range(manifest.tile_count)):
        raise GalleryError(
            f'{raster.path} lists {len(tiles)} tiles; expected the ids 0 to '
            f'{manifest.tile_count - 1} of {MANIFEST_NAME}; {REBUILD}'
        )
    return tiles


def normalised(values: dict[str, Any]) -> dict[str, Any]:
    """The same values as they come back from JSON (tuples become lists)."""
    return dict(json.loads(json.dumps(values)))
