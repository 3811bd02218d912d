"""The values that pass from one stage to the next. Units are part of every name.

Conventions, once for the whole package:

- images are uint8 RGB of shape (H, W, 3); masks are bool of shape (H, W), True where valid;
- pixels are (row, col); the centre of the first pixel is (0, 0);
- east and north are metres in the gallery's projected CRS (grid north);
- headings are degrees clockwise from TRUE north;
- attitude is that of the aircraft: roll right-wing-down, pitch nose-up, as autopilots report it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ImageArray = NDArray[np.uint8]
MaskArray = NDArray[np.bool_]


class _Word(str, enum.Enum):
    """An enumeration whose members read as their value .

    `enum.StrEnum` needs Python 3.11 and ROS 2 Humble has 3.10.
    """

    def __str__(self) -> str:
        return str(self.value)


class Status(_Word):
    """Whether an estimate may be used as a position."""

    FIX = 'fix'
    NO_FIX = 'no_fix'


class Reason(_Word):
    """Why there is no fix; `NONE` beside a fix."""

    NONE = ''
    BAD_INPUT = 'bad_input'
    NO_MAP_HERE = 'no_map_here'
    LOW_SIMILARITY = 'low_similarity'
    AMBIGUOUS = 'ambiguous'
    FEW_INLIERS = 'few_inliers'
    IMPLAUSIBLE = 'implausible'
    STALE = 'stale'


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera with the distortion models of ROS `sensor_msgs/CameraInfo`.

    Parameters
    ----------
    width_px, height_px : int
        Image size that the other numbers belong to.
    fx_px, fy_px, cx_px, cy_px : float
        Focal lengths and principal point.
    distortion : tuple of float
        `plumb_bob` (k1, k2, p1, p2, k3), `rational_polynomial` (8 values) or `equidistant`
        (k1..k4); may be empty.
    model : str
        Name of the distortion model.
    """

    width_px: int
    height_px: int
    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    distortion: tuple[float, ...] = ()
    model: str = 'plumb_bob'

    def __post_init__(self) -> None:
        # A list or an array would do, but for what is remembered of a lens.
        object.__setattr__(self, 'distortion', tuple(self.distortion))


@dataclass(frozen=True)
class Attitude:
    """Orientation of the aircraft; `heading_deg` is None when nothing knows it."""

    roll_deg: float = 0.0
    pitch_deg: float = 0.0
    heading_deg: float | None = None


@dataclass(frozen=True)
class Prior:
    """Where the aircraft is believed to be: only map within `radius_m` of it is searched."""

    lat_deg: float
    lon_deg: float
    radius_m: float


@dataclass(frozen=True)
class Frame:
    """One exposure and what was known at that moment. Everything but the image may be missing."""

    image: ImageArray
    stamp_s: float
    intrinsics: Intrinsics | None = None
    attitude: Attitude | None = None
    agl_m: float | None = None
    prior: Prior | None = None
    name: str = ''


@dataclass(frozen=True)
class TileMatch:
    """A place of the map that looks like the frame, under one hypothesis of heading and height.

    The place is the centre of a gallery tile. `similarity` is the mean cosine similarity of the
    frame's patches to the map where they would lie if its middle saw this place.
    """

    tile_id: int
    east_m: float
    north_m: float
    lat_deg: float
    lon_deg: float
    similarity: float
    heading_deg: float = 0.0
    agl_m: float = 0.0


@dataclass(frozen=True)
class PositionEstimate:
    """What the localizer says about one frame.

    Parameters
    ----------
    lat_deg, lon_deg : float
        The camera's position, WGS84; NaN without a fix.
    east_m, north_m : float
        The same in the gallery's CRS.
    covariance_m2 : ndarray of shape (2, 2)
        Of (east, north), including the map's own accuracy; NaN without a fix, never zero with one.
    center_lat_deg, center_lon_deg, center_east_m, center_north_m, center_covariance_m2
        The same for the ground point seen at the image centre.
    agl_m : float
        Height above ground: the registration's where it gives one, else the input's, else NaN.
    heading_deg : float
        Direction of the image's top, clockwise from true north, as registered; NaN if unknown.
    similarity : float
        Of the best candidate, see `TileMatch`.
    inliers : int
        Feature matches that agree with the registration; 0 without one.
    tile_id : int
        The tile that the fix rests on, else the best candidate; -1 if there is none.
    candidates : tuple of TileMatch
        The best places by retrieval alone, best first.
    timings_ms : dict
        Milliseconds per stage, in order.
    detail : str
        One sentence for people: what was found and what would have been needed.
    """

    stamp_s: float
    status: Status
    reason: Reason
    detail: str = ''
    lat_deg: float = float('nan')
    lon_deg: float = float('nan')
    east_m: float = float('nan')
    north_m: float = float('nan')
    covariance_m2: FloatArray = field(default_factory=lambda: np.full((2, 2), np.nan))
    center_lat_deg: float = float('nan')
    center_lon_deg: float = float('nan')
    center_east_m: float = float('nan')
    center_north_m: float = float('nan')
    center_covariance_m2: FloatArray = field(default_factory=lambda: np.full((2, 2), np.nan))
    agl_m: float = float('nan')
    heading_deg: float = float('nan')
    similarity: float = float('nan')
    inliers: int = 0
    tile_id: int = -1
    candidates: tuple[TileMatch, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def is_fix(self) -> bool:
        """Whether this may be used as a position."""
        return self.status is Status.FIX

    @property
    def sigma_m(self) -> float:
        """Largest 1-sigma half axis of the position's error ellipse."""
        if not np.isfinite(self.covariance_m2).all():
            return float('nan')
        return float(np.sqrt(np.linalg.eigvalsh(self.covariance_m2)[-1]))
