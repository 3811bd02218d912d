"""Read a flight folder: flight.csv, frames, camera.yaml and an optional flight.yaml."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bicrossnet_ros.errors import FlightError, ImageError
from bicrossnet_ros.flight import Flight, FlightRecord, decode_image
from bicrossnet_ros.flight_columns import (
    CANONICAL,
    MAP_RELATIVE,
    NUMBERS,
    PAIRS,
    find_columns,
    parse_number,
    parse_stamp_s,
)
from bicrossnet_ros.lens import check_intrinsics
from bicrossnet_ros.types import ImageArray, Intrinsics

IMAGE_FOLDERS = ('', 'frames', 'images', 'queries')


@dataclass(frozen=True)
class FlightConfig:
    """What a flight.yaml says; every key is optional.

    Parameters
    ----------
    name : str
        Of the flight, for people.
    table, camera : str
        File names in the folder.
    images : str or None
        Folder of the frames, relative to the flight; None: looked for.
    columns : mapping
        Canonical column name to the name in the table.
    truth_is_map_relative : bool or None
        None: true if the truth comes from columns that are known to be made so.
    topics : mapping
        Of a rosbag2: what (`image`, `camera_info`, ...) to topic.
    range_is_vertical : bool
        Of a rosbag2: whether the rangefinder hangs level; else it is fixed to the body.
    """

    name: str = ''
    table: str = 'flight.csv'
    camera: str = 'camera.yaml'
    images: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    truth_is_map_relative: bool | None = None
    topics: Mapping[str, str] = field(default_factory=dict)
    range_is_vertical: bool = False


def load_flight_config(path: Path) -> FlightConfig:
    """Read a flight.yaml.

    Raises
    ------
    FlightError
        If it is missing or not YAML, or has an unknown key or a value of the wrong kind.
    """
    data = _yaml(path)
    kinds: dict[str, tuple[type, ...]] = {
        'name': (str,),
        'table': (str,),
        'camera': (str,),
        'images': (str, type(None)),
        'columns': (dict,),
        'truth_is_map_relative': (bool, type(None)),
        'topics': (dict,),
        'range_is_vertical': (bool,),
    }
    unknown = sorted(str(key) for key in data if key not in kinds)
    if unknown:
        raise FlightError(f'{path}: unknown key(s) {unknown}; known are {sorted(kinds)}')
    for key, value in data.items():
        if not isinstance(value, kinds[key]):
            raise FlightError(
                f'{path}: {key} is {value!r}; expected {kinds[key][0].__name__.lower()}'
            )
    columns = data.get('columns', {})
    strange = sorted(str(key) for key in columns if key not in CANONICAL)
    if strange:
        raise FlightError(f'{path}: columns: unknown {strange}; known are {list(CANONICAL)}')
    for key in ('columns', 'topics'):
        for name, value in data.get(key, {}).items():
            if not isinstance(value, str):
                raise FlightError(f'{path}: {key}: {name} is {value!r}; expected a text')
    return FlightConfig(**data)


def open_folder(path: Path, *, config: Path | None = None) -> Flight:
    """Open a flight folder; see `flight.open_flight`."""
    if not path.is_dir():
        what = 'is a file' if path.exists() else 'does not exist'
        raise FlightError(f'{path}: {what}; expected a flight folder with flight.csv, or a bag')
    own = path / 'flight.yaml'
    if config is None and own.is_file():
        config = own
    settings = load_flight_config(config) if config is not None else FlightConfig()
    if settings.images is not None and not (path / settings.images).is_dir():
        raise FlightError(f'{path}: the image folder {settings.images!r} does not exist')
    folders = IMAGE_FOLDERS if settings.images is None else (settings.images,)
    table = path / settings.table
    records, columns = _read_table(path, table, settings, folders)
    camera = path / settings.camera
    if not camera.is_file() and settings.camera != FlightConfig.camera:
        raise FlightError(f'{camera}: the camera file named in the configuration does not exist')

    def read_image(record: FlightRecord) -> ImageArray:
        return _read_image(path, record.file, folders)

    relative = settings.truth_is_map_relative
    if relative is None:
        relative = any(
            columns.get(name) in MAP_RELATIVE for name in NUMBERS if NUMBERS[name].is_truth
        )
    return Flight(
        settings.name or path.resolve().name,
        records,
        read_image,
        camera=read_camera(camera) if camera.is_file() else None,
        truth_is_map_relative=relative,
    )


def _read_table(
    path: Path, table: Path, settings: FlightConfig, folders: tuple[str, ...]
) -> tuple[tuple[FlightRecord, ...], dict[str, str]]:
    """All rows as records, and which column each quantity came from."""
    records: list[FlightRecord] = []
    previous_s = -math.inf
    try:
        with table.open(encoding='utf-8-sig', newline='') as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or []]
            if not header:
                raise FlightError(f'{table}: is empty; expected a header and one row per frame')
            reader.fieldnames = header
            columns = find_columns(header, settings.columns, str(table))
            for cells in reader:
                record = _parse_row(cells, columns, reader.line_num, previous_s)
                if not record.problem and find_image(path, record.file, folders) is None:
                    record = _with_problem(
                        record,
                        f'row {record.row}, column {columns["file"]}: image {record.file!r} '
                        f'not found under {path}',
                    )
                if math.isfinite(record.stamp_s):
                    previous_s = record.stamp_s
                records.append(record)
    except FileNotFoundError:
        raise FlightError(f'{table}: not found; a flight folder needs it') from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlightError(f'{table}: not readable as CSV in UTF-8: {error}') from error
    if not records:
        raise FlightError(f'{table}: has a header but no row; expected one row per frame')
    return tuple(records), columns


def _parse_row(
    cells: Mapping[str | None, Any], columns: Mapping[str, str], row: int, previous_s: float
) -> FlightRecord:
    """One row as a record; what is wrong with it goes into `problem`, the rest is kept."""
    problems: list[str] = []
    texts = {name: cells.get(actual) for name, actual in columns.items()}

    def complain(name: str, what: str) -> None:
        problems.append(f'row {row}, column {columns[name]}: {what}')

    if None in cells:
        problems.append(f'row {row}: has more cells than the header')
    elif None in texts.values():
        problems.append(f'row {row}: has fewer cells than the header')
    file = (texts['file'] or '').strip()
    if not file:
        complain('file', 'is empty; expected the name of an image')
    stamp_s = math.nan
    try:
        stamp_s = parse_stamp_s(texts['stamp_s'] or '')
    except ValueError as error:
        complain('stamp_s', str(error))
    if stamp_s < previous_s:
        complain(
            'stamp_s', f'the clock goes backwards by {previous_s - stamp_s:g} s; sort the table'
        )
    values: dict[str, Any] = {}
    for name in NUMBERS:
        try:
            value = parse_number(texts.get(name) or '', name)
        except ValueError as error:
            complain(name, str(error))
            continue
        if value is not None:
            values[name] = value
    for one, other in PAIRS:
        if (one in values) != (other in values) and not problems:
            complain(other if one in values else one, 'is empty, but the other half is given')
    record = FlightRecord(file=file, stamp_s=stamp_s, row=row, **values)
    return _with_problem(record, '; '.join(problems)) if problems else record


def _with_problem(record: FlightRecord, problem: str) -> FlightRecord:
    return replace(record, problem=problem)


def find_image(path: Path, file: str, folders: tuple[str, ...]) -> Path | None:
    """The first of the folders that holds the image, or None."""
    return next(
        (path / folder / file for folder in folders if (path / folder / file).is_file()), None
    )


def _read_image(path: Path, file: str, folders: tuple[str, ...]) -> ImageArray:
    found = find_image(path, file, folders)
    if found is None:
        raise ImageError(f'image {file!r} not found under {path}')
    try:
        data = found.read_bytes()
    except OSError as error:
        raise ImageError(f'{found}: not readable: {error}') from error
    return decode_image(data, str(found))


def read_camera(path: Path) -> Intrinsics:
    """Read a camera file in the YAML of ROS `camera_info`.

    Raises
    ------
    FlightError
        If it is not YAML, or a needed key is missing or impossible.
    """
    data = _yaml(path)
    try:
        matrix = [float(value) for value in data['camera_matrix']['data']]
        width_px, height_px = int(data['image_width']), int(data['image_height'])
        distortion = data.get('distortion_coefficients') or {'data': []}
        coefficients = tuple(float(value) for value in distortion['data'])
    except (KeyError, TypeError, ValueError) as error:
        raise FlightError(
            f'{path}: not a ROS camera_info file: {type(error).__name__} {error}; expected '
            'image_width, image_height, camera_matrix.data, distortion_coefficients.data'
        ) from error
    if len(matrix) != 9:
        raise FlightError(
            f'{path}: camera_matrix.data has {len(matrix)} numbers; expected 9, row by row'
        )
    intrinsics = Intrinsics(
        width_px,
        height_px,
        fx_px=matrix[0],
        fy_px=matrix[4],
        cx_px=matrix[2],
        cy_px=matrix[5],
        distortion=coefficients,
        model=str(data.get('distortion_model') or 'plumb_bob'),
    )
    try:
        check_intrinsics(intrinsics)
    except ImageError as error:
        raise FlightError(f'{path}: {error}') from error
    return intrinsics


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FlightError(f'{path}: not readable as YAML: {error}') from error
    if not isinstance(data, dict):
        raise FlightError(f'{path}: found {type(data).__name__}; expected a mapping of keys')
    return data
