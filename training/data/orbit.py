"""A pinhole camera that circles a place: poses, the plane's homography, what ground it sees.

Ground coordinates (x east, y north, z up) have the target at (0, 0, 0); their unit is the side of
the satellite tile. Camera axes are x right, y down, z forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

FIELD_OF_VIEW_DEG = 30.0


@dataclass(frozen=True)
class Pose:
    """A camera that looks at a point on the ground.

    Parameters
    ----------
    azimuth_rad : float
        Where the camera stands as seen from the target, counter-clockwise from east.
    off_nadir_rad : float
        Between the optical axis and straight down; 0 <= off_nadir_rad < pi / 2.
    distance : float
        From the camera to the target, in tile sides.
    roll_rad : float
        About the optical axis.
    target : tuple of float
        Ground point (x, y) in the middle of the picture, in tile sides.
    """

    azimuth_rad: float
    off_nadir_rad: float
    distance: float
    roll_rad: float = 0.0
    target: tuple[float, float] = (0.0, 0.0)

    @property
    def height(self) -> float:
        """Height over the ground, in tile sides."""
        return self.distance * math.cos(self.off_nadir_rad)

    @property
    def center(self) -> Matrix:
        """Position of the camera, shape (3,)."""
        aside = self.distance * math.sin(self.off_nadir_rad)
        x, y = self.target
        return np.array(
            [
                x + aside * math.cos(self.azimuth_rad),
                y + aside * math.sin(self.azimuth_rad),
                self.height,
            ]
        )

    @property
    def rotation(self) -> Matrix:
        """Ground to camera axes, shape (3, 3): rows are right, down and forward."""
        sin_a, cos_a = math.sin(self.azimuth_rad), math.cos(self.azimuth_rad)
        sin_o, cos_o = math.sin(self.off_nadir_rad), math.cos(self.off_nadir_rad)
        forward = -np.array([sin_o * cos_a, sin_o * sin_a, cos_o])
        right = np.array([-sin_a, cos_a, 0.0])
        axes = np.stack([right, np.cross(forward, right), forward])
        sin_r, cos_r = math.sin(self.roll_rad), math.cos(self.roll_rad)
        roll = np.array([[cos_r, sin_r, 0], [-sin_r, cos_r, 0], [0, 0, 1]])
        return np.asarray(roll @ axes)


def intrinsics(size_px: int) -> Matrix:
    """Camera matrix of a square picture whose principal point is its middle."""
    focal_px = 0.5 * size_px / math.tan(math.radians(FIELD_OF_VIEW_DEG) / 2)
    middle = (size_px - 1) / 2
    return np.array([[focal_px, 0, middle], [0, focal_px, middle], [0, 0, 1]])


def project(pose: Pose, points: Matrix, size_px: int) -> Matrix:
    """Points (N, 3) to pixel coordinates (N, 2) as (x, y)."""
    rays = (points - pose.center) @ pose.rotation.T @ intrinsics(size_px).T
    return np.asarray(rays[:, :2] / rays[:, 2:])


def plane_homography(pose: Pose, size_px: int, *, height: float = 0.0) -> Matrix:
    """Homography from (x, y, 1) on the horizontal plane at `height` to pixels (x, y, 1).

    References
    ----------
    Hartley and Zisserman 2004, Multiple View Geometry, 2nd ed., section 8.1.1.
    """
    x, y, z = pose.center
    plane = np.array([[1, 0, -x], [0, 1, -y], [0, 0, height - z]])
    return np.asarray(intrinsics(size_px) @ pose.rotation @ plane)


def footprint(pose: Pose) -> Matrix:
    """The ground corners of the picture, shape (4, 2); all rays must meet the ground."""
    edge = math.tan(math.radians(FIELD_OF_VIEW_DEG) / 2)
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    rays = np.column_stack([signs * edge, np.ones(4)]) @ pose.rotation
    if rays[:, 2].max() >= 0:
        raise ValueError(f'{pose} sees the horizon')
    return np.asarray(pose.center[:2] - rays[:, :2] / rays[:, 2:] * pose.height)


def come_closer(pose: Pose, *, half_side: float) -> Pose:
    """Shorten the distance until the camera sees nothing beyond a square about the origin.

    The footprint about the target grows in proportion to the distance.
    """
    target = np.array(pose.target)
    reach = footprint(pose) - target
    room = np.where(reach > 0, half_side - target, half_side + target)
    factor = float((room / np.maximum(np.abs(reach), 1e-12)).min())
    if factor >= 1:
        return pose
    return Pose(
        pose.azimuth_rad, pose.off_nadir_rad, pose.distance * factor, pose.roll_rad, pose.target
    )


def largest_distance(off_nadir_rad: float, *, half_side: float) -> float:
    """Distance at which the footprint touches the circle of radius `half_side`."""
    corners = footprint(Pose(0.0, off_nadir_rad, 1.0))
    return half_side / float(np.hypot(*corners.T).max())


def spiral(rng: np.random.Generator, count: int, *, half_side: float) -> list[Pose]:
    """Descending spiral of three turns about a place, after University-1652.

    It begins far and oblique (40 to 50 degrees off nadir) and ends lower and near nadir (5 to 15
    degrees), at most `half_side` of ground seen to any side.

    References
    ----------
    Zheng, Wei and Yang 2020, University-1652, section 3 (a spiral of three rounds, descending).
    """
    first_rad, last_rad = np.radians([rng.uniform(40, 50), rng.uniform(5, 15)])
    high = rng.uniform(0.92, 1.0) * math.cos(first_rad)
    high *= largest_distance(first_rad, half_side=half_side)
    low = high * rng.uniform(0.75, 0.9)
    start_rad, way = rng.uniform(0, 2 * math.pi), rng.choice([-1, 1])
    poses = []
    for share in np.linspace(0, 1, count):
        off_nadir_rad = first_rad + share * (last_rad - first_rad) + rng.normal(0, 0.02)
        height = high + share * (low - high)
        pose = Pose(
            azimuth_rad=start_rad + way * share * 6 * math.pi,
            off_nadir_rad=off_nadir_rad,
            distance=height / math.cos(off_nadir_rad),
            roll_rad=rng.normal(0, 0.03),
            target=tuple(rng.normal(0, 0.02, 2).tolist()),
        )
        poses.append(come_closer(pose, half_side=half_side))
    return poses


def circle(
    rng: np.random.Generator, count: int, *, height_share: float, half_side: float
) -> list[Pose]:
    """A circle at one height, after SUES-200; `height_share` 1 is the highest that fits.

    References
    ----------
    Zhu et al. 2023, SUES-200, IEEE Trans. Circuits Syst. Video Technol.
    """
    off_nadir_rad = math.radians(rng.uniform(35, 45))
    distance = height_share * largest_distance(off_nadir_rad, half_side=half_side)
    start_rad = rng.uniform(0, 2 * math.pi)
    return [
        come_closer(
            Pose(
                azimuth_rad=start_rad + 2 * math.pi * number / count,
                off_nadir_rad=off_nadir_rad + rng.normal(0, 0.03),
                distance=distance,
                roll_rad=rng.normal(0, 0.03),
                target=tuple(rng.normal(0, 0.02, 2).tolist()),
            ),
            half_side=half_side,
        )
        for number in range(count)
    ]
