"""A recorded flight, whatever it was recorded into: frames in order, what was known, the truth.

`open_flight` reads a flight folder (`flight_folder`) or a rosbag2 (`flight_bag`). The format is
described for people in docs/flight_format.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bicrossnet_ros.errors import FlightError, ImageError
from bicrossnet_ros.types import Attitude, Frame, ImageArray, Intrinsics, Prior

HEADINGS = ('recorded', 'unknown', 'truth')


@dataclass(frozen=True)
class FlightRecord:
    """One exposure: its image, what the aircraft knew, and where it really was.

    Parameters
    ----------
    file : str
        Name of the frame, as the table gives it; for a bag, made from the stamp.
    stamp_s : float
        Exposure time, seconds since the Unix epoch; NaN where the record has none.
    lat_deg, lon_deg, ellipsoid_m : float
        Recorded position of the camera (GNSS), WGS84; NaN where unknown.
    agl_m, roll_deg, pitch_deg, heading_deg : float or None
        Height above ground and attitude of the aircraft, as recorded; None where unknown.
    truth_lat_deg, truth_lon_deg : float
        True position of the camera; NaN where unknown.
    truth_center_lat_deg, truth_center_lon_deg : float
        True position of the ground point seen at the image centre; NaN where unknown.
    truth_heading_deg : float or None
        True heading of the aircraft; None where unknown.
    row : int
        Line of the table (the header is line 1), or number of the message in a bag.
    problem : str
        Why this record cannot be used, naming row and column; empty if it can.
    """

    file: str
    stamp_s: float
    lat_deg: float = math.nan
    lon_deg: float = math.nan
    ellipsoid_m: float = math.nan
    agl_m: float | None = None
    roll_deg: float | None = None
    pitch_deg: float | None = None
    heading_deg: float | None = None
    truth_lat_deg: float = math.nan
    truth_lon_deg: float = math.nan
    truth_center_lat_deg: float = math.nan
    truth_center_lon_deg: float = math.nan
    truth_heading_deg: float | None = None
    row: int = 0
    problem: str = ''

    @property
    def has_position(self) -> bool:
        """Whether a position was recorded."""
        return math.isfinite(self.lat_deg) and math.isfinite(self.lon_deg)

    @property
    def has_truth(self) -> bool:
        """Whether the true position of the camera is known."""
        return math.isfinite(self.truth_lat_deg) and math.isfinite(self.truth_lon_deg)

    @property
    def has_center_truth(self) -> bool:
        """Whether the true position of the image centre on the ground is known."""
        return math.isfinite(self.truth_center_lat_deg) and math.isfinite(
            self.truth_center_lon_deg
        )


class Flight:
    """Records of one flight in order of exposure; images are read when asked for.

    Parameters
    ----------
    name : str
        For people.
    records : tuple of FlightRecord
        At least one.
    read_image : callable
        Takes a record and returns its image, uint8 RGB (H, W, 3); raises ImageError.
    camera : Intrinsics or None
        Of all frames; None if the flight does not say.
    truth_is_map_relative : bool
        Whether the truth was found by matching to the map itself. The map's own absolute
        accuracy is then no part of the error.
    """

    def __init__(
        self,
        name: str,
        records: tuple[FlightRecord, ...],
        read_image: Callable[[FlightRecord], ImageArray],
        *,
        camera: Intrinsics | None = None,
        truth_is_map_relative: bool = False,
    ) -> None:
        self.name = name
        self.records = records
        self.camera = camera
        self.truth_is_map_relative = truth_is_map_relative
        self._read_image = read_image

    def __len__(self) -> int:
        return len(self.records)

    def image(self, record: FlightRecord) -> ImageArray:
        """Read the image of a record: uint8 RGB (H, W, 3).

        Raises
        ------
        ImageError
            If the image is missing or cannot be decoded.
        """
        return self._read_image(record)

    def frame(
        self,
        record: FlightRecord,
        *,
        heading: str = 'recorded',
        radius_m: float | None = None,
    ) -> Frame:
        """Everything the localizer may know about one exposure.

        Parameters
        ----------
        heading : {'recorded', 'unknown', 'truth'}
            Which heading goes into the attitude. A record without the one asked for has none.
        radius_m : float, optional
            Search only within this distance of the recorded position. Without a recorded
            position the whole map is searched.

        Raises
        ------
        FlightError
            If the record has a problem, or `heading` or `radius_m` is impossible.
        ImageError
            If the image is missing or cannot be decoded.
        """
        if record.problem:
            raise FlightError(record.problem)
        prior = None
        if radius_m is not None:
            if not radius_m > 0.0 or not math.isfinite(radius_m):
                raise FlightError(f'search radius is {radius_m} m; expected more than 0')
            if record.has_position:
                prior = Prior(record.lat_deg, record.lon_deg, radius_m)
        return Frame(
            image=self.image(record),
            stamp_s=record.stamp_s,
            intrinsics=self.camera,
            attitude=_attitude(record, heading),
            agl_m=record.agl_m,
            prior=prior,
            name=record.file,
        )


def _attitude(record: FlightRecord, heading: str) -> Attitude | None:
    """The attitude with the chosen heading; None when nothing at all is known."""
    if heading not in HEADINGS:
        raise FlightError(f'heading {heading!r} is unknown; expected one of {list(HEADINGS)}')
    chosen = {
        'recorded': record.heading_deg,
        'unknown': None,
        'truth': record.truth_heading_deg,
    }[heading]
    if record.roll_deg is None and record.pitch_deg is None and chosen is None:
        return None
    return Attitude(
        roll_deg=record.roll_deg or 0.0, pitch_deg=record.pitch_deg or 0.0, heading_deg=chosen
    )


def open_flight(path: str | Path, *, config: str | Path | None = None) -> Flight:
    """Open a flight folder or a rosbag2.

    Parameters
    ----------
    path : path
        A folder with `flight.csv`, or a rosbag2 (its folder with `metadata.yaml`, or an
        `.mcap` or `.db3` file).
    config : path, optional
        A `flight.yaml` that is used instead of the folder's own.

    Raises
    ------
    FlightError
        If there is no flight, or its table, camera file or configuration is malformed. A bad row
        does not raise: it becomes a record with a `problem`.
    """
    path = Path(path)
    settings = Path(config) if config is not None else None
    if path.suffix in {'.mcap', '.db3'} or (path / 'metadata.yaml').is_file():
        from bicrossnet_ros.flight_bag import open_bag

        return open_bag(path, config=settings)
    from bicrossnet_ros.flight_folder import open_folder

    return open_folder(path, config=settings)


def decode_image(data: bytes, source: str) -> ImageArray:
    """Decode an encoded image (JPEG, PNG, TIFF ...) to uint8 RGB (H, W, 3).

    The pixels are taken as stored: an EXIF orientation is ignored, because intrinsics and mount
    belong to the sensor.

    Raises
    ------
    ImageError
        If `data` is empty or not an image.
    """
    import cv2

    if not data:
        raise ImageError(f'{source}: the image is empty (0 bytes)')
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f'{source}: not decodable as an image: {error}') from error
    if image is None:
        raise ImageError(f'{source}: not decodable as an image; expected JPEG, PNG or TIFF')
    return np.ascontiguousarray(image[:, :, ::-1])
