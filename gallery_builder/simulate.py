"""A flight over a map, rendered: what a downward camera would see, with the truth beside it.

It rehearses a mission before take-off (where would the map fail?) and feeds `make demo`. The
camera is a pinhole over a flat ground; attitude wobbles; light, blur and noise differ from the
map's. What the instruments recorded (attitude, height, GNSS) carries errors of its own, and the
flight folder holds both.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import yaml

from bicrossnet_ros import geodesy
from bicrossnet_ros.errors import ConfigError, MapError
from bicrossnet_ros.types import FloatArray, ImageArray, MaskArray
from gallery_builder.flight_plan import FlightPlan, Pose, fly, ground_center_m, ground_to_pixel
from gallery_builder.mosaic import MapSources


def render(plan: FlightPlan, pose: Pose, maps: MapSources) -> tuple[ImageArray, MaskArray]:
    """What the camera sees before light and noise: image (H, W, 3) and where there is map.

    The map is read at half a frame pixel on the ground at the finest, the frame rendered at twice
    its size and averaged down: no aliasing.
    """
    radius_m = 1.3 * plan.footprint_radius_m(pose.agl_m)
    gsd_m = max(maps.native_gsd_m, 0.5 * pose.agl_m / plan.focal_px)
    size_px = math.ceil(2.0 * radius_m / gsd_m)
    image, mask = maps.read(
        west_m=pose.east_m - radius_m,
        north_m=pose.north_m + radius_m,
        gsd_m=gsd_m,
        width_px=size_px,
        height_px=size_px,
    )
    corner_m = radius_m - 0.5 * gsd_m
    ground_from_map = np.array([[gsd_m, 0, -corner_m], [0, -gsd_m, corner_m], [0, 0, 1]])
    double = np.array([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 1.0]])
    homography = double @ ground_to_pixel(plan, pose) @ ground_from_map
    size = (2 * plan.width_px, 2 * plan.height_px)
    frame = cv2.warpPerspective(image, homography, size, flags=cv2.INTER_LINEAR)
    valid = cv2.warpPerspective(mask.astype(np.uint8), homography, size, flags=cv2.INTER_NEAREST)
    small = (plan.width_px, plan.height_px)
    return (
        np.asarray(cv2.resize(frame, small, interpolation=cv2.INTER_AREA), np.uint8),
        np.asarray(cv2.resize(valid, small, interpolation=cv2.INTER_AREA) > 0),
    )


def expose(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Another day and an ordinary lens: tint, gamma, haze, vignette, blur, motion, noise."""
    linear = (image.astype(np.float32) / 255.0) ** rng.uniform(0.75, 1.3)
    linear = (
        linear * rng.uniform(0.85, 1.15, 3).astype(np.float32) * np.float32(rng.uniform(0.7, 1.15))
    )
    haze = np.float32(rng.uniform(0.0, 0.12))
    linear = linear * (1.0 - haze) + haze * np.float32(0.8)
    rows, cols = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(np.float32)
    radius = np.hypot(rows / image.shape[0] - 0.5, cols / image.shape[1] - 0.5)
    linear *= (1.0 - rng.uniform(0.1, 0.35) * radius**2)[..., None]
    linear = cv2.GaussianBlur(linear, (0, 0), float(rng.uniform(0.4, 1.1)))
    linear = cv2.filter2D(linear, -1, _streak(rng.uniform(1.0, 4.0), rng.random() < 0.5))
    linear = linear + rng.normal(0.0, rng.uniform(0.005, 0.02), linear.shape).astype(np.float32)
    return np.asarray(np.clip(linear * 255.0 + 0.5, 0, 255), np.uint8)


def _streak(length_px: float, mirrored: bool) -> FloatArray:
    """Motion blur along a diagonal, symmetric about the middle of the exposure, shape (5, 5)."""
    weights = np.clip(length_px / 2.0 + 0.5 - np.abs(np.arange(-2, 3)), 0.0, 1.0)
    kernel = np.diag(weights / weights.sum())
    return np.ascontiguousarray(kernel[:, ::-1] if mirrored else kernel)


COLUMNS = (
    'file', 'stamp_s', 'lat_deg', 'lon_deg', 'agl_m', 'roll_deg', 'pitch_deg', 'heading_deg',
    'truth_lat_deg', 'truth_lon_deg', 'truth_center_lat_deg', 'truth_center_lon_deg',
)  # fmt: skip


def simulate(maps: MapSources, out: Path, plan: FlightPlan) -> Iterator[str]:
    """Write a flight folder (docs/flight_format.md); yields each frame's file name when done.

    Frames that would see less than 90 % map are left out.

    Raises
    ------
    MapError
        If the map is too small, or no frame sees enough of it.
    ConfigError
        If `out` already holds something.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f'{out} is not empty; name a new folder')
    (out / 'frames').mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([plan.seed, 1])
    rows: list[dict[str, str]] = []
    for pose in fly(plan, maps.bounds_m):
        image, mask = render(plan, pose, maps)
        if mask.mean() < 0.9:
            continue
        name = f'{len(rows):05d}.jpg'
        encoded = cv2.cvtColor(expose(image, rng), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(out / 'frames' / name), encoded, [cv2.IMWRITE_JPEG_QUALITY, 85])
        rows.append(_row(name, plan, pose, maps.crs, rng))
        yield name
    if not rows:
        raise MapError(
            'no frame would see enough of the map; fly lower or take a map with fewer gaps'
        )
    _write_camera(out / 'camera.yaml', plan)
    settings = {'name': 'simulated flight', 'truth_is_map_relative': True}
    (out / 'flight.yaml').write_text(yaml.safe_dump(settings), encoding='utf-8')
    with (out / 'flight.csv').open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _row(
    name: str, plan: FlightPlan, pose: Pose, crs: str, rng: np.random.Generator
) -> dict[str, str]:
    """One line of flight.csv: the truth, and what instruments with errors would have recorded."""
    lat_deg, lon_deg = geodesy.to_wgs84(crs, pose.east_m, pose.north_m)
    center_lat_deg, center_lon_deg = geodesy.to_wgs84(crs, *ground_center_m(plan, pose))
    gnss_m = rng.normal(0.0, 2.5, 2)
    gnss = geodesy.to_wgs84(crs, pose.east_m + gnss_m[0], pose.north_m + gnss_m[1])
    heading_deg = pose.grid_heading_deg - geodesy.grid_convergence_deg(crs, lat_deg, lon_deg)
    return {
        'file': name,
        'stamp_s': datetime.fromtimestamp(pose.stamp_s, timezone.utc).isoformat(
            timespec='microseconds'
        ),
        'lat_deg': f'{gnss[0]:.8f}',
        'lon_deg': f'{gnss[1]:.8f}',
        'agl_m': f'{pose.agl_m * (1.0 + rng.normal(0.0, 0.02)):.2f}',
        'roll_deg': f'{pose.roll_deg + rng.normal(0.0, 1.0):.2f}',
        'pitch_deg': f'{pose.pitch_deg + rng.normal(0.0, 1.0):.2f}',
        'heading_deg': f'{(heading_deg + rng.normal(0.0, 5.0)) % 360.0:.2f}',
        'truth_lat_deg': f'{lat_deg:.8f}',
        'truth_lon_deg': f'{lon_deg:.8f}',
        'truth_center_lat_deg': f'{center_lat_deg:.8f}',
        'truth_center_lon_deg': f'{center_lon_deg:.8f}',
    }


def _write_camera(path: Path, plan: FlightPlan) -> None:
    """Write the intrinsics as a ROS camera_info YAML."""
    matrix = plan.camera_matrix
    projection = np.hstack([matrix, np.zeros((3, 1))])
    camera = {
        'image_width': plan.width_px,
        'image_height': plan.height_px,
        'camera_name': 'simulated',
        'camera_matrix': {'rows': 3, 'cols': 3, 'data': matrix.ravel().tolist()},
        'distortion_model': 'plumb_bob',
        'distortion_coefficients': {'rows': 1, 'cols': 5, 'data': [0.0] * 5},
        'rectification_matrix': {'rows': 3, 'cols': 3, 'data': np.eye(3).ravel().tolist()},
        'projection_matrix': {'rows': 3, 'cols': 4, 'data': projection.ravel().tolist()},
    }
    path.write_text(yaml.safe_dump(camera, sort_keys=False), encoding='utf-8')
