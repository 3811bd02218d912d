"""What the tests of nodes and packaging share: a map, frames cut from it, an installation."""

from __future__ import annotations

import atexit
import csv
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from command_line import REPOSITORY, run_module

from bicrossnet_ros.geodesy import to_wgs84
from bicrossnet_ros.types import Intrinsics

CRS = 'EPSG:32617'
WEST_M, NORTH_M, GSD_M, SIDE_PX = 320_000.0, 4_560_000.0, 0.25, 1200
AGL_M = 100.0
WIDTH_PX, HEIGHT_PX = 400, 300
# One pixel of the camera is one pixel of the map.
CAMERA = Intrinsics(
    width_px=WIDTH_PX,
    height_px=HEIGHT_PX,
    fx_px=AGL_M / GSD_M,
    fy_px=AGL_M / GSD_M,
    cx_px=(WIDTH_PX - 1) / 2,
    cy_px=(HEIGHT_PX - 1) / 2,
)


@functools.cache
def texture(seed: int = 7) -> np.ndarray:
    """An image that looks alike nowhere: blurred noise of several sizes and boxes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((SIDE_PX, SIDE_PX, 3), np.float32)
    for size in (4, 12, 40, 120):
        cells = SIDE_PX // size + 2
        noise = rng.uniform(0, 1, (cells, cells, 3)).astype(np.float32)
        grown = cv2.resize(noise, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
        image += grown * size**0.3
    image = np.clip(255 * (image - image.min()) / np.ptp(image), 0, 255).astype(np.uint8)
    for _ in range(250):
        corner = rng.integers(0, SIDE_PX, 2)
        other = corner + rng.integers(8, 60, 2)
        color = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.rectangle(image, corner.tolist(), other.tolist(), color, -1)
    return image


def scene_gallery(folder: Path) -> Path:
    """Build a gallery of `texture()` with the model that is shipped."""
    pytest.importorskip('rasterio', reason='needs the extra builder')
    from gallery_fixtures import write_map

    chart = write_map(
        folder / 'map.tif', texture(), crs=CRS, west_m=WEST_M, north_m=NORTH_M, gsd_m=GSD_M
    )
    out = folder / 'test.gallery'
    done = run_module('gallery_builder', 'build', chart, '--out', out, '--overlap', 0.5)
    assert done.returncode == 0, done.stderr
    return out


def frame_at(row: int, col: int, *, heading_deg: int = 0) -> tuple[np.ndarray, float, float]:
    """What a level camera sees above a pixel corner of the map, and where that is.

    The heading is a multiple of 90 degrees, so that no pixel is invented.
    """
    upright = heading_deg % 180 == 0
    height, width = (HEIGHT_PX, WIDTH_PX) if upright else (WIDTH_PX, HEIGHT_PX)
    crop = texture()[row - height // 2 : row + height // 2, col - width // 2 : col + width // 2]
    # Turning counter-clockwise brings east to the top.
    image = np.ascontiguousarray(np.rot90(crop, heading_deg // 90))
    lat_deg, lon_deg = to_wgs84(CRS, WEST_M + col * GSD_M, NORTH_M - row * GSD_M)
    return image, lat_deg, lon_deg


def distance_m(
    lat_deg: float, lon_deg: float, other_lat_deg: float, other_lon_deg: float
) -> float:
    """Between two close positions."""
    north_m = (lat_deg - other_lat_deg) * 111_200.0
    east_m = (lon_deg - other_lon_deg) * 111_320.0 * np.cos(np.radians(lat_deg))
    return float(np.hypot(north_m, east_m))


def write_flight(folder: Path, pixels: list[tuple[int, int]], *, hz: float = 2.0) -> None:
    """A flight folder (docs/flight_format.md) over some pixels of the map."""
    (folder / 'frames').mkdir(parents=True)
    rows = []
    for number, (row, col) in enumerate(pixels):
        image, lat_deg, lon_deg = frame_at(row, col)
        name = f'frames/{number:03d}.png'
        cv2.imwrite(str(folder / name), image[:, :, ::-1])
        rows.append(
            {
                'file': name,
                'stamp_s': f'{1_700_000_000 + number / hz:.3f}',
                'lat_deg': f'{lat_deg:.9f}',
                'lon_deg': f'{lon_deg:.9f}',
                'agl_m': AGL_M,
                'roll_deg': 0.0,
                'pitch_deg': 0.0,
                'heading_deg': 0.0,
            }
        )
    with (folder / 'flight.csv').open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    camera = {
        'image_width': WIDTH_PX,
        'image_height': HEIGHT_PX,
        'distortion_model': 'plumb_bob',
        'distortion_coefficients': {'rows': 1, 'cols': 5, 'data': [0.0] * 5},
        'camera_matrix': {
            'rows': 3,
            'cols': 3,
            'data': [
                *(CAMERA.fx_px, 0.0, CAMERA.cx_px),
                *(0.0, CAMERA.fy_px, CAMERA.cy_px),
                *(0.0, 0.0, 1.0),
            ],
        },
    }
    (folder / 'camera.yaml').write_text(yaml.safe_dump(camera), encoding='utf-8')


@functools.cache
def shared_install() -> Path:
    """The package, built once with colcon in a workspace of its own; where it was installed."""
    for module in ('colcon_core', 'colcon_ros', 'ament_package'):
        pytest.importorskip(module, reason='needs colcon (the extra dev)')
    folder = Path(tempfile.mkdtemp(prefix='test_colcon_'))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = folder / 'src' / 'bicrossnet_ros'
    shutil.copytree(
        REPOSITORY,
        source,
        ignore=shutil.ignore_patterns(
            '.*', 'build', 'install', 'log', 'out', 'test', 'training', 'bench', '*.egg-info'
        ),
    )
    result = subprocess.run(
        [sys.executable, '-m', 'colcon', 'build'],
        cwd=folder,
        env={**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / 'install' / 'bicrossnet_ros'
