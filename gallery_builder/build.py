"""The build: sources -> pixels -> tiles -> embeddings -> index -> manifest -> a whole gallery."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

import bicrossnet_ros
from bicrossnet_ros.descriptor import HOW_TO_FIT
from bicrossnet_ros.descriptor import SIZE as DESCRIPTOR_SIZE
from bicrossnet_ros.errors import GalleryError, MapError, ModelError
from bicrossnet_ros.gallery import normalised
from bicrossnet_ros.geopackage import GeoPackage
from bicrossnet_ros.manifest import (
    EMBEDDING_KINDS,
    INDEX_NAME,
    MANIFEST_NAME,
    MAP_NAME,
    Manifest,
    sha256_of,
)
from bicrossnet_ros.tile_index import (
    Float32Array,
    build_index,
    index_parameters,
    write_index,
)
from bicrossnet_ros.types import ImageArray
from gallery_builder.mosaic import Mosaic
from gallery_builder.options import BuildOptions
from gallery_builder.plan import Plan, block_total, check_disk, plan_build
from gallery_builder.progress import Progress
from gallery_builder.raster import write_finest, write_overviews
from gallery_builder.sources import Source, describe
from gallery_builder.tiles import (
    ambiguity,
    embed,
    neighbour_reach,
    read_tile,
    require_tiles,
    select_tiles,
)
from gallery_builder.workplace import (
    Workplace,
    clear_published,
    open_workplace,
    partial_of,
)

if TYPE_CHECKING:
    from bicrossnet_ros.encoder import Encoder

_GDAL_CACHE_MB = 128
_AMBIGUITY_CHUNK = 1024
_EXISTS = '{} exists already; give --force to replace it'


def build(options: BuildOptions, encoder: Encoder, *, say: Callable[[str], None] = print) -> Path:
    """Build a gallery, or finish one whose build was interrupted.

    Parameters
    ----------
    options : BuildOptions
    encoder : Encoder
        The model whose queries the gallery will answer.
    say : callable
        Is told what will be made and what was made, in plain sentences.

    Returns
    -------
    Path
        The gallery.

    Raises
    ------
    MapError, GalleryError, ModelError, ConfigError
        If it cannot be built; work done so far is kept and resumed by the next call.
    """
    if options.out.exists() and not (options.out / MANIFEST_NAME).is_file():
        raise GalleryError(f'{options.out} exists and is not a gallery; choose another --out')
    if options.out.exists() and not options.force and not partial_of(options.out).exists():
        raise GalleryError(_EXISTS.format(options.out))
    sources = _describe_sources(options)
    size = _stored_size(options, encoder)
    plan = plan_build(sources, options, embedding_dim=size)
    for source in sources:
        if source.scaling is not None:
            low, high = source.scaling
            say(f'{source.path.name}: {source.dtype} values {low:g} to {high:g} become 0 to 255')
    say(plan.describe(options))
    fingerprint = _fingerprint(options, sources, encoder)
    if clear_published(options.out, fingerprint) and not options.force:
        say(f'{options.out} is complete')
        return options.out
    if options.out.exists() and not options.force:
        raise GalleryError(_EXISTS.format(options.out))
    check_disk(plan, options.out.resolve().parent)
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_MB),
            open_workplace(options.out, fingerprint, restart=options.restart) as work,
        ):
            try:
                manifest = _Build(options, encoder, sources, plan, work).run()
            except (MapError, ModelError):
                work.discard()  # the same command would fail again: there is nothing to resume
                raise
            work.publish()
    except (OSError, sqlite3.OperationalError) as error:
        raise GalleryError(
            f'{partial_of(options.out)} cannot be written: {error}; free space or choose another '
            '--out, and run the same command again: it goes on where it stopped'
        ) from error
    size_mb = sum(path.stat().st_size for path in options.out.iterdir()) / 1e6
    say(f'{options.out}: {manifest.tile_count} tiles, {size_mb:.1f} MB')
    return options.out


class _Build:
    """The steps of one build; each looks up what an earlier run did."""

    def __init__(
        self,
        options: BuildOptions,
        encoder: Encoder,
        sources: list[Source],
        plan: Plan,
        work: Workplace,
    ) -> None:
        self._options = options
        self._encoder = encoder
        self._sources = sources
        self._plan = plan
        self._work = work

    def run(self) -> Manifest:
        """All steps in order; afterwards the workplace's gallery folder is complete."""
        with self._open_map() as raster:
            self._write_pixels(raster)
            tile_count = self._write_tiles(raster)
            self._embed(raster, tile_count)
            index, parameters = self._write_index(raster, tile_count)
            self._write_ambiguity(raster, index, parameters, tile_count)
        return self._write_manifest(tile_count, parameters)

    def _open_map(self) -> GeoPackage:
        path = self._work.gallery / MAP_NAME
        plan = self._plan
        if self._work.done('created'):
            return GeoPackage.open(path, grid=plan.grid, crs=plan.crs, write=True)
        shutil.rmtree(self._work.gallery, ignore_errors=True)
        self._work.gallery.mkdir()
        changed = datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.000Z')
        raster = GeoPackage.create(path, crs=plan.crs, grid=plan.grid, changed=changed)
        self._work.mark('created', 1)
        return raster

    def _write_pixels(self, raster: GeoPackage) -> None:
        finest, coarser = block_total(self._plan.grid)
        rows, cols = raster.grid.blocks_at(raster.grid.max_zoom)
        done = self._work.done(f'zoom {raster.grid.max_zoom}')
        if done < rows:
            with (
                Mosaic(self._sources, crs=self._plan.crs, grid=self._plan.grid) as mosaic,
                Progress('map', finest, done=done * cols, unit='block') as progress,
            ):
                write_finest(mosaic, raster, self._work, progress.advance)
        if raster.grid.max_zoom > 0 and not self._work.done('overviews'):
            with Progress('overviews', coarser, unit='block') as progress:
                write_overviews(raster, self._work, progress.advance)
        self._work.mark('overviews', 1)

    def _write_tiles(self, raster: GeoPackage) -> int:
        if not self._work.done('tiles'):
            tiles = select_tiles(
                raster,
                tile_px=self._options.tile_px,
                stride_px=self._options.stride_px,
                min_valid=self._options.min_valid,
            )
            raster.connection.execute('BEGIN')
            raster.delete_tiles()
            raster.write_tiles(tiles)
            raster.connection.execute('COMMIT')
            require_tiles(
                raster.count_tiles(),
                min_valid=self._options.min_valid,
                has_pixels=raster.count_blocks() > 0,
            )
            self._work.mark('tiles', 1)
        return raster.count_tiles()

    def _embed(self, raster: GeoPackage, tile_count: int) -> None:
        size, done = self._options.batch, self._work.count('embeddings')
        tiles = islice(raster.read_tiles(), done * size, None)
        with Progress(
            'embeddings', tile_count, done=min(done * size, tile_count), unit='tile'
        ) as progress:
            while batch := list(islice(tiles, size)):
                images = np.stack(
                    [read_tile(raster, tile, self._options.tile_px) for tile in batch]
                )
                self._work.store('embeddings', done, self._descriptors(images))
                done += 1
                progress.advance(len(batch))

    def _descriptors(self, images: ImageArray) -> Float32Array:
        """What is compared of tiles: of packed ones the floats, whose signs the index takes."""
        embeddings = embed(self._encoder, images)
        if self._options.embedding_kind == 'float32':
            return embeddings
        assert self._encoder.projection is not None, 'checked before anything was written'
        return self._encoder.projection.apply(embeddings)

    def _write_index(self, raster: GeoPackage, tile_count: int) -> tuple[Any, dict[str, Any]]:
        import faiss

        faiss.omp_set_num_threads(self._options.threads)
        self._embeddings: Float32Array = self._work.embeddings(
            tile_count, _stored_size(self._options, self._encoder)
        )
        packed = self._options.embedding_kind == 'packed'
        parameters = index_parameters(self._options.index, tile_count, packed=packed)
        index = build_index(self._embeddings, parameters)
        write_index(index, self._work.gallery / INDEX_NAME)
        return index, parameters

    def _write_ambiguity(
        self, raster: GeoPackage, index: Any, parameters: dict[str, Any], tile_count: int
    ) -> None:
        if self._work.done('ambiguity'):
            return
        centers_m = np.array([(tile.east_m, tile.north_m) for tile in raster.read_tiles()])
        tile_px = self._options.tile_px
        reach = neighbour_reach(tile_px=tile_px, stride_px=self._options.stride_px)
        first = self._work.count('ambiguity')
        starts = range(first * _AMBIGUITY_CHUNK, tile_count, _AMBIGUITY_CHUNK)
        with Progress('ambiguity', tile_count, done=starts.start, unit='tile') as progress:
            for number, start in enumerate(starts, first):
                rows = range(start, min(start + _AMBIGUITY_CHUNK, tile_count))
                values = ambiguity(
                    index,
                    self._embeddings,
                    centers_m,
                    rows,
                    parameters=parameters,
                    tile_size_m=tile_px * self._plan.grid.gsd_m,
                    reach=reach,
                )
                self._work.store('ambiguity', number, values)
                progress.advance(len(rows))
        raster.connection.execute('BEGIN')
        raster.set_ambiguity(self._work.ambiguity())
        raster.connection.execute('COMMIT')
        self._work.mark('ambiguity', 1)

    def _write_manifest(self, tile_count: int, parameters: dict[str, Any]) -> Manifest:
        options, encoder, folder = self._options, self._encoder, self._work.gallery
        manifest = Manifest(
            format_version=EMBEDDING_KINDS[options.embedding_kind],
            crs=self._plan.crs,
            tile_px=options.tile_px,
            gsd_m=self._plan.grid.gsd_m,
            overlap=options.overlap,
            tile_count=tile_count,
            bounds_m=self._plan.grid.bounds_m,
            embedding_dim=_stored_size(options, encoder),
            embedding_kind=options.embedding_kind,
            model_id=encoder.model_id,
            model_name=encoder.model_name,
            preprocessing=normalised(encoder.preprocessing.to_dict()),
            sources=tuple(source.record(options.licence) for source in self._sources),
            accuracy_m=options.accuracy_m,
            ground_ellipsoid_m=options.ground_ellipsoid_m,
            index=parameters,
            files={name: sha256_of(folder / name) for name in (MAP_NAME, INDEX_NAME)},
            tool_version=bicrossnet_ros.__version__,
        )
        text = manifest.to_json()
        (folder / MANIFEST_NAME).write_text(text, encoding='ascii')
        Manifest.from_json(text)  # what we write, we can read
        return manifest


def _stored_size(options: BuildOptions, encoder: Encoder) -> int:
    """Elements that the gallery stores of a tile; GalleryError if the model cannot make them."""
    if options.embedding_kind == 'float32':
        return encoder.embedding_dim
    if encoder.projection is None:
        raise GalleryError(
            f'--descriptor {options.descriptor} needs a model with a descriptor, which '
            f'{encoder.model_name} has not: {HOW_TO_FIT}; or build with --descriptor float'
        )
    return DESCRIPTOR_SIZE


def _describe_sources(options: BuildOptions) -> list[Source]:
    total = sum(path.stat().st_size for path in options.maps if path.is_file())
    with Progress('reading maps', total, unit='B') as progress:
        return [
            describe(
                path,
                bands=options.bands,
                assume_crs=options.assume_crs,
                advance=progress.advance,
            )
            for path in options.maps
        ]


def _fingerprint(options: BuildOptions, sources: list[Source], encoder: Encoder) -> dict[str, Any]:
    return {
        **options.shaping(),
        'maps': [[source.path.name, source.sha256] for source in sources],
        'model': encoder.model_id,
        'preprocessing': encoder.preprocessing.to_dict(),
        'format_version': EMBEDDING_KINDS[options.embedding_kind],
        'tool_version': bicrossnet_ros.__version__,
    }
