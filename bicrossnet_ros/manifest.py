"""`gallery.json`: what a gallery is made of, and the proof that it is unchanged.

The file is canonical: the same manifest always gives the same bytes, and the last key is the
SHA-256 of what stands before it. So any changed byte is found, in this file as in the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bicrossnet_ros.descriptor import SIZE as DESCRIPTOR_SIZE
from bicrossnet_ros.errors import ConfigError, GalleryError
from bicrossnet_ros.geodesy import check_map_crs, metric_crs
from bicrossnet_ros.geopackage_format import Grid
from bicrossnet_ros.tile_index import INDEX_TYPES, stores_signs

FORMAT_VERSION = 2  # the highest that this software reads
# What the index holds of a tile, and the version that came with it: the lowest that reads it.
EMBEDDING_KINDS = {'float32': 1, 'float256': 2, 'packed': 2}
MANIFEST_NAME = 'gallery.json'
MAP_NAME = 'map.gpkg'
INDEX_NAME = 'index.faiss'
REBUILD = 'rebuild the gallery from its maps'


@dataclass(frozen=True)
class Manifest:
    """The description of a gallery.

    Parameters
    ----------
    format_version : int
        Of `EMBEDDING_KINDS`: galleries that older software can read keep the older version.
    crs : str
        Projected CRS in metres, such as 'EPSG:32617'.
    tile_px : int
        Side of a retrieval tile.
    gsd_m : float
        Metres per pixel of the map's finest level.
    overlap : float
        Share of a tile's side that it has in common with the next one.
    tile_count : int
        Number of tiles: rows of the index and of the tile table.
    bounds_m : tuple of float
        (west, south, east, north) of the map in `crs`.
    embedding_dim : int
        Number of elements that are stored of a tile.
    embedding_kind : str
        'float32', the model's embeddings; 'float256', their projection to 256 elements; 'packed',
        the signs of that, one bit each. See `bicrossnet_ros.descriptor`.
    model_id, model_name : str
        SHA-256 of the model file that made the embeddings, and its name.
    preprocessing : dict
        How the model's input was made from a tile.
    sources : tuple of dict
        One a map: name, sha256, date, licence, and how its values became 8 bit (scaling).
    accuracy_m : float
        1-sigma horizontal accuracy of the map itself, per axis.
    ground_ellipsoid_m : float or None
        Mean height of the ground above the WGS84 ellipsoid, where it is known.
    index : dict
        FAISS index: type ('flat' or 'ivf') and its parameters.
    files : dict
        SHA-256 of every other file of the gallery, by name.
    tool_version : str
        Version of this package that built it.
    """

    format_version: int
    crs: str
    tile_px: int
    gsd_m: float
    overlap: float
    tile_count: int
    bounds_m: tuple[float, float, float, float]
    embedding_dim: int
    embedding_kind: str
    model_id: str
    model_name: str
    preprocessing: dict[str, Any]
    sources: tuple[dict[str, Any], ...]
    accuracy_m: float
    ground_ellipsoid_m: float | None
    index: dict[str, Any]
    files: dict[str, str]
    tool_version: str

    @property
    def tile_bytes(self) -> int:
        """Bytes that the index holds of a tile: its vector and, in clusters, its number."""
        bits = 1 if self.embedding_kind == 'packed' else 32
        return self.embedding_dim * bits // 8 + (8 if self.index['type'] == 'ivf' else 0)

    @property
    def grid(self) -> Grid:
        """Where the pixels of the map lie."""
        west_m, south_m, east_m, north_m = self.bounds_m
        return Grid(
            west_m=west_m,
            north_m=north_m,
            gsd_m=self.gsd_m,
            width_px=round((east_m - west_m) / self.gsd_m),
            height_px=round((north_m - south_m) / self.gsd_m),
        )

    def to_json(self) -> str:
        """The text of `gallery.json`, checksum included."""
        body = {
            item.name: getattr(self, item.name)  # asdict would copy the nested values
            for item in dataclasses.fields(self)
        }
        body['checksum'] = hashlib.sha256(_dump(body).encode('ascii')).hexdigest()
        return _dump(body)

    @classmethod
    def from_json(cls, text: str, *, source: str = MANIFEST_NAME) -> Manifest:
        """Parse and check the text of `gallery.json`.

        Raises
        ------
        GalleryError
            If it is not JSON, of another format version, has missing, unknown or impossible
            entries, was changed after it was written, or lies where its CRS is distorted.
        """
        body = _parse(text, source)
        _check_version(body, source)
        names = [item.name for item in dataclasses.fields(cls)]
        _check_keys(body, [*names, 'checksum'], source)
        body.pop('checksum')
        for name in names:
            _check_value(name, body[name], source)
        _check_kind(body, source)
        manifest = cls(
            **{
                **body,
                'bounds_m': tuple(float(value) for value in body['bounds_m']),
                'sources': tuple(body['sources']),
            }
        )
        if manifest.to_json() != text:
            raise GalleryError(
                f'{source} was changed after it was written: its checksum does not fit its '
                f'content; {REBUILD}'
            )
        try:
            check_map_crs(manifest.crs, manifest.bounds_m)
        except ConfigError as error:
            raise GalleryError(f'{source}: {error}; {REBUILD} with --crs') from error
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read `gallery.json` of a gallery folder.

    Raises
    ------
    GalleryError
        If the folder is not a gallery or its manifest is damaged.
    """
    path = folder / MANIFEST_NAME
    try:
        if not folder.exists():
            raise GalleryError(
                f'gallery {folder} does not exist; build one with '
                '`python -m gallery_builder build MAP.tif --out NAME.gallery`'
            )
        text = path.read_bytes().decode('ascii')
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GalleryError(
            f'{folder} is not a gallery: it has no {MANIFEST_NAME}; expected the folder that '
            '`python -m gallery_builder build` wrote'
        ) from error
    except UnicodeDecodeError as error:
        raise GalleryError(f'{path} is damaged: it is not ASCII text; {REBUILD}') from error
    except OSError as error:
        raise GalleryError(_unreadable(path, error)) from error
    return Manifest.from_json(text, source=str(path))


def file_problems(folder: Path, manifest: Manifest, *, checksums: bool) -> list[str]:
    """What is wrong with the files of a gallery, one sentence each; empty if nothing is."""
    problems = []
    expected = {MANIFEST_NAME, *manifest.files}
    try:
        found = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        return [_unreadable(folder, error)]
    for name in sorted(expected - found):
        problems.append(f'{folder / name} is missing; {REBUILD}')
    for name in sorted(found - expected):
        problems.append(
            f'{folder / name} does not belong to the gallery; move it elsewhere (a -wal or '
            '-journal file means that a program has the map open for writing)'
        )
    if not checksums:
        return problems
    for name, digest in sorted(manifest.files.items()):
        if name not in found:
            continue
        try:
            actual = sha256_of(folder / name)
        except OSError as error:
            problems.append(_unreadable(folder / name, error))
            continue
        if actual != digest:
            problems.append(
                f'{folder / name} is damaged: its SHA-256 is {actual}, gallery.json says '
                f'{digest}; {REBUILD}'
            )
    return problems


def sha256_of(path: Path, *, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hexadecimal; `advance` is told the bytes read, piece by piece."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            if advance is not None:
                advance(len(piece))
    return digest.hexdigest()


def _unreadable(path: Path, error: OSError) -> str:
    return (
        f'{path} cannot be read: {error.strerror or error}; check the path, its permissions and '
        'the disk or card that it lies on'
    )


def _dump(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=1, ensure_ascii=True, allow_nan=False) + '\n'


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise GalleryError(f'{source} is damaged: not JSON ({error}); {REBUILD}') from error
    if not isinstance(body, dict):
        raise GalleryError(f'{source} is damaged: expected a JSON object; {REBUILD}')
    return body


def _check_version(body: dict[str, Any], source: str) -> None:
    found = body.get('format_version')
    if _is_whole(1, FORMAT_VERSION)(found):
        return
    raise GalleryError(
        f'{source} has format version {found!r}, this software reads 1 to {FORMAT_VERSION}; '
        'rebuild the gallery with this version, or take the software that built it'
    )


def _check_keys(body: dict[str, Any], known: list[str], source: str) -> None:
    missing = [name for name in known if name not in body]
    unknown = sorted(name for name in body if name not in known)
    if missing or unknown:
        raise GalleryError(
            f'{source} is damaged: missing entries {missing}, unknown entries {unknown}; {REBUILD}'
        )


def _check_value(name: str, value: Any, source: str) -> None:
    test, expected = _CHECKS[name]
    if not test(value):
        raise GalleryError(f'{source}: {name} is {value!r}; expected {expected}; {REBUILD}')


def _check_kind(body: dict[str, Any], source: str) -> None:
    """Check what the kind of embeddings says about other entries."""
    kind = body['embedding_kind']
    expected = {'format_version': EMBEDDING_KINDS[kind]}
    if kind != 'float32':
        expected['embedding_dim'] = DESCRIPTOR_SIZE
    wrong = [name for name, value in expected.items() if body[name] != value]
    if wrong:
        name = wrong[0]
        raise GalleryError(
            f'{source}: {name} is {body[name]}; embeddings of the kind {kind!r} have '
            f'{expected[name]}; {REBUILD}'
        )
    if stores_signs(body['index']) != (kind == 'packed'):
        raise GalleryError(
            f'{source}: index is {body["index"]} but embedding_kind {kind!r}; {REBUILD}'
        )


def _is_whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    )


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch('[0-9a-f]{64}', value) is not None


def _is_crs(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        metric_crs(value)
    except ConfigError:
        return False
    return True


def _is_bounds(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return False
    if not all(_is_number(element) for element in value):
        return False
    west, south, east, north = value
    return bool(west < east and south < north)


def _is_sources(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(
        isinstance(entry, dict)
        and isinstance(entry.get('name'), str)
        and _is_hash(entry.get('sha256'))
        and all(isinstance(entry.get(key), (str, type(None))) for key in ('date', 'licence'))
        for entry in value
    )


def _is_files(value: Any) -> bool:
    names = {MAP_NAME, INDEX_NAME}
    return isinstance(value, dict) and set(value) == names and all(map(_is_hash, value.values()))


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'format_version': (_is_whole(1, FORMAT_VERSION), f'1 to {FORMAT_VERSION}'),
    'crs': (_is_crs, 'a projected CRS in metres such as EPSG:32617'),
    'tile_px': (_is_whole(16, 4096), 'a whole number from 16 to 4096'),
    'gsd_m': (lambda value: _is_number(value) and value > 0, 'a number above 0'),
    'overlap': (lambda value: _is_number(value) and 0 <= value < 1, 'a number from 0 to below 1'),
    'tile_count': (_is_whole(1, 1 << 40), 'a whole number above 0'),
    'bounds_m': (_is_bounds, '[west, south, east, north] in metres'),
    'embedding_dim': (_is_whole(1, 1 << 20), 'a whole number above 0'),
    'embedding_kind': (
        lambda value: isinstance(value, str) and value in EMBEDDING_KINDS,
        f'one of {", ".join(EMBEDDING_KINDS)}',
    ),
    'model_id': (_is_hash, 'a SHA-256 in hexadecimal'),
    'model_name': (lambda value: isinstance(value, str), 'a text'),
    'preprocessing': (lambda value: isinstance(value, dict), 'a mapping'),
    'sources': (_is_sources, 'a list of maps with name, sha256, date, licence'),
    'accuracy_m': (lambda value: _is_number(value) and value > 0, 'a number above 0'),
    'ground_ellipsoid_m': (lambda value: value is None or _is_number(value), 'a number or null'),
    'index': (
        lambda value: isinstance(value, dict) and value.get('type') in INDEX_TYPES,
        f'a mapping whose type is one of {INDEX_TYPES}',
    ),
    'files': (_is_files, f'the SHA-256 of {MAP_NAME} and {INDEX_NAME}'),
    'tool_version': (lambda value: isinstance(value, str), 'a text'),
}
