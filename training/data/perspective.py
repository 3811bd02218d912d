"""A pinhole camera over flat ground, and the patch that the product makes of its frame.

The product knows the camera's attitude and height only nearly. It projects the frame to the
ground with what it believes; the patch then shows the ground through the true camera seen
through the believed one. With a small attitude error most of the tilt is gone; where the
attitude is unknown the product takes the camera to look straight down and all of it remains.

Axes as in a patch: x along the columns, y along the rows, z down; lengths are shares of the
patch's side. Homographies map homogeneous (x, y, 1).

References
----------
Hartley and Zisserman 2004, Multiple View Geometry in Computer Vision, section 8.1.1: the image of
a plane in a pinhole camera is a homography.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from training.data.view_config import ViewConfig

Matrix = NDArray[np.float64]

# Frames of mapping cameras, width by height.
ASPECTS = (4 / 3, 3 / 2, 16 / 9)
# The product ignores what it believes to see flatter than 15 deg above the ground; views stay
# clear of that, so that the reach of one patch remains near its place.
MAX_RAY_DEG = 60.0


@dataclass(frozen=True)
class Camera:
    """A camera above the origin of flat ground.

    Parameters
    ----------
    height : float
        Above the ground, in sides of the patch.
    tilt_rad : float
        Angle between the optical axis and the vertical.
    azimuth_rad : float
        Direction on the ground in which the camera looks when tilted, from x towards y.
    heading_rad : float
        Turn of the camera about its own axis, from x towards y.
    """

    height: float
    tilt_rad: float
    azimuth_rad: float
    heading_rad: float

    @cached_property
    def rotation(self) -> Matrix:
        """Axes of the camera (right, down the frame, forward) as columns, on the ground's axes.

        A turn by the heading about z, then the tilt of z towards the azimuth, multiplied out:
        this runs for every view of a training.
        """
        cos, sin = math.cos(self.heading_rad), math.sin(self.heading_rad)
        east, south = math.cos(self.azimuth_rad), math.sin(self.azimuth_rad)
        lean, upright = math.sin(self.tilt_rad), math.cos(self.tilt_rad)
        short = upright - 1
        xx, xy, yy = 1 + short * east * east, short * east * south, 1 + short * south * south
        return np.array(
            [
                [xx * cos + xy * sin, xy * cos - xx * sin, lean * east],
                [xy * cos + yy * sin, yy * cos - xy * sin, lean * south],
                [
                    -lean * (east * cos + south * sin),
                    lean * (east * sin - south * cos),
                    upright,
                ],
            ]
        )

    @property
    def frame_from_ground(self) -> Matrix:
        """Homography from the ground to the plane at distance 1 before the camera."""
        return self.rotation.T * (1.0, 1.0, self.height)

    @property
    def ground_from_frame(self) -> Matrix:
        """Its inverse."""
        return self.rotation / np.array([[1.0], [1.0], [self.height]])


@dataclass(frozen=True)
class Shot:
    """One frame and the patch that is taken from it.

    Parameters
    ----------
    true, believed : Camera
        As it was, and as the product takes it to have been.
    half_frame : (float, float)
        Half width and half height of the frame, at distance 1 before the camera.
    aim : (float, float)
        Point of the frame, at distance 1 before the camera, that shows the middle of the patch.
    edged : bool
        Whether the frame ends at its edge; else it is taken to go on.
    """

    true: Camera
    believed: Camera
    half_frame: tuple[float, float]
    aim: tuple[float, float]
    edged: bool

    @cached_property
    def frame_from_patch(self) -> Matrix:
        """Homography from the patch, its middle (0, 0) and its sides 1 long, to the frame."""
        middle = _apply(self.believed.ground_from_frame, self.aim)
        return self.believed.frame_from_ground @ _shift(*middle)

    @property
    def ground_from_patch(self) -> Matrix:
        """Homography from the patch to the true ground, with the patch's middle at the origin."""
        homography = self.true.ground_from_frame @ self.frame_from_patch
        middle = _apply(homography, (0.0, 0.0))
        return _shift(-middle[0], -middle[1]) @ homography


def draw_view(rng: np.random.Generator, config: ViewConfig) -> tuple[Shot, Matrix]:
    """Draw all of a query's geometry, before anything else is drawn from the generator.

    Returns
    -------
    shot : Shot
    ground_from_patch : ndarray of shape (3, 3)
        Homography from the unit patch to the place, whose middle is (0, 0) and whose sides are 1;
        the patch's middle lies off by the drawn offset.
    """
    shot = draw_shot(rng, config)
    row, col = rng.uniform(-config.offset, config.offset, 2)
    return shot, _shift(col, row) @ shot.ground_from_patch


def draw_shot(rng: np.random.Generator, config: ViewConfig) -> Shot:
    """Draw a camera, what the product believes of it, and where in the frame the patch lies."""
    fov, aspect, frame_share, height_error = rng.random(4)
    half_width = math.tan(
        math.radians(config.min_fov_deg + fov * (config.max_fov_deg - config.min_fov_deg)) / 2
    )
    half_frame = half_width, half_width / ASPECTS[int(aspect * len(ASPECTS))]
    side = config.min_frame_share + frame_share * (config.max_frame_share - config.min_frame_share)
    limit = math.log(config.scale_ratio)
    # The patch's side is `side` times the frame's height, which is 2 half_frame[1] height.
    height = 0.5 / (side * half_frame[1])
    heading = math.tau * rng.random()
    error = math.radians(config.heading_error_deg) * rng.uniform(-1, 1)
    tilt = math.radians(config.tilt_deg) * rng.random()
    azimuth = math.tau * rng.random()
    true = Camera(height * math.exp(limit * (2 * height_error - 1)), tilt, azimuth, heading)
    if rng.random() < config.full_tilt_share:
        believed = Camera(height, 0.0, 0.0, heading + error)
    else:
        # Roll and pitch are known against the body: an error of the heading turns the tilt along.
        lean = _disturbed(tilt, azimuth + error, math.radians(config.attitude_error_deg), rng)
        believed = Camera(height, *lean, heading + error)
    edged = bool(rng.random() < config.edge_share) and config.edge > 0
    over = config.edge if edged else 0.0
    aim = _draw_aim(rng, true, half_frame, 0.5 / height, over=over)
    return Shot(true, believed, half_frame, aim, edged)


def _disturbed(
    tilt_rad: float, azimuth_rad: float, limit_rad: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Add an error in any direction to a small tilt, taken as a vector on the ground."""
    size, direction = limit_rad * rng.random(), math.tau * rng.random()
    x = tilt_rad * math.cos(azimuth_rad) + size * math.cos(direction)
    y = tilt_rad * math.sin(azimuth_rad) + size * math.sin(direction)
    return math.hypot(x, y), math.atan2(y, x)


def _draw_aim(
    rng: np.random.Generator,
    camera: Camera,
    half_frame: tuple[float, float],
    half_side: float,
    *,
    over: float,
) -> tuple[float, float]:
    """Draw where in the frame the middle of the patch is seen.

    At most `over` of its side lies beyond the edge of the frame, measured straight ahead; towards
    the horizon the middle is drawn back to the middle of the frame.
    """
    free = [max(0.0, half - half_side * (1 - 2 * over)) for half in half_frame]
    aim = rng.uniform(-1, 1, 2) * free
    down = camera.rotation[2]
    for _ in range(8):
        ray = np.array([aim[0], aim[1], 1.0])
        if down @ ray >= math.cos(math.radians(MAX_RAY_DEG)) * math.hypot(*ray):
            break
        aim *= 0.7
    return float(aim[0]), float(aim[1])


def seen(shot: Shot, patch_from_view: Matrix, size_px: int) -> NDArray[np.bool_] | None:
    """Tell which pixels of a view the frame shows.

    Parameters
    ----------
    shot : Shot
    patch_from_view : ndarray of shape (3, 3)
        Affine map from pixels (x, y) of the view to the patch.
    size_px : int
        Side of the view.

    Returns
    -------
    ndarray of bool, shape (size_px, size_px), or None
        None where the frame shows all of them.
    """
    if not shot.edged:
        return None
    homography = shot.frame_from_patch @ patch_from_view
    last = size_px - 1.0
    corners = homography @ np.array([[0, last, last, 0], [0, 0, last, last], [1, 1, 1, 1]])
    if _inside(*corners, shot.half_frame).all():
        return None
    axis = np.arange(size_px, dtype=np.float64)
    x, y, w = (row[0] * axis + (row[1] * axis + row[2])[:, None] for row in homography)
    return _inside(x, y, w, shot.half_frame)


def _inside(x: Matrix, y: Matrix, w: Matrix, half_frame: tuple[float, float]) -> NDArray[np.bool_]:
    # With w > 0 a point lies before the camera and |x| <= half w says what |x / w| <= half does.
    return (w > 0) & (np.abs(x) <= half_frame[0] * w) & (np.abs(y) <= half_frame[1] * w)


def _apply(homography: Matrix, point: tuple[float, float]) -> tuple[float, float]:
    x, y, w = homography @ (point[0], point[1], 1.0)
    return float(x / w), float(y / w)


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
