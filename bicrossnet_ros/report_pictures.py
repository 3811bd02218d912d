"""Pictures of the report: the map under the track, frames, and the map window beside each."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import cv2
import numpy as np

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.fix_record import FixRecord
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.geodesy import grid_convergence_deg, to_projected
from bicrossnet_ros.report_map import MapPicture, position, true_position
from bicrossnet_ros.types import ImageArray, Intrinsics, MaskArray

MAP_SIDE_PX = 1200
FRAME_WIDTH_PX = 400
OUTSIDE_RGB = (34, 38, 43)
DEFAULT_FOOTPRINT_M = 100.0


def data_uri(image: ImageArray, *, quality: int = 78) -> str:
    """An RGB image as a JPEG that stands in the page itself."""
    _, encoded = cv2.imencode('.jpg', image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return 'data:image/jpeg;base64,' + base64.b64encode(encoded.tobytes()).decode('ascii')


def map_picture(gallery: Gallery, records: Sequence[FixRecord]) -> MapPicture:
    """The part of the map around the track and the fixes; the whole map if that is empty.

    Parameters
    ----------
    gallery : Gallery
        Its map.
    records : sequence of FixRecord
        Scored; what is shown of them decides the extent, within the map's bounds.
    """
    west, south, east, north = _extent_m(gallery, records)
    side_m = max(east - west, north - south)
    window = gallery.window(
        0.5 * (west + east), 0.5 * (south + north), size_m=side_m, gsd_m=side_m / MAP_SIDE_PX
    )
    image = _on_background(window.image, window.mask)
    top = max(round((window.north_m - north) / window.gsd_m), 0)
    left = max(round((west - window.west_m) / window.gsd_m), 0)
    height = max(round((north - south) / window.gsd_m), 1)
    width = max(round((east - west) / window.gsd_m), 1)
    image = image[top : top + height, left : left + width]
    scale = min(1.0, MAP_SIDE_PX / max(image.shape[:2]))
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return MapPicture(
        data_uri=data_uri(small),
        width_px=size[0],
        height_px=size[1],
        west_m=window.west_m + left * window.gsd_m,
        north_m=window.north_m - top * window.gsd_m,
        gsd_m=window.gsd_m * image.shape[1] / size[0],
        crs=gallery.crs,
    )


def _extent_m(
    gallery: Gallery, records: Sequence[FixRecord], *, margin: float = 0.1, least_m: float = 100.0
) -> tuple[float, float, float, float]:
    """(west, south, east, north) to show."""
    places = []
    for record in records:
        for place in (position(record), true_position(record)):
            if all(map(math.isfinite, place)):
                try:
                    places.append(to_projected(gallery.crs, *place))
                except ConfigError:
                    continue
    west, south, east, north = gallery.manifest.bounds_m
    inside = [(e, n) for e, n in places if west <= e <= east and south <= n <= north]
    if not inside:
        return west, south, east, north
    points = np.array(inside)
    low, high = points.min(axis=0), points.max(axis=0)
    pad = np.maximum(margin * (high - low).max(), 0.5 * (least_m - (high - low)))
    low, high = low - np.maximum(pad, 30.0), high + np.maximum(pad, 30.0)
    return (
        max(float(low[0]), west),
        max(float(low[1]), south),
        min(float(high[0]), east),
        min(float(high[1]), north),
    )


def _on_background(image: ImageArray, mask: MaskArray) -> ImageArray:
    shown = image.copy()
    shown[~mask] = OUTSIDE_RGB
    return shown


def frame_picture(image: ImageArray) -> ImageArray:
    """The frame as it was taken, small."""
    height = max(round(FRAME_WIDTH_PX * image.shape[0] / image.shape[1]), 1)
    small = cv2.resize(image, (FRAME_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def footprint_width_m(
    camera: Intrinsics | None, agl_m: float | None, shape: tuple[int, ...]
) -> float:
    """Ground width of a frame that looks straight down; a default where that is unknown."""
    if camera is None or agl_m is None or not math.isfinite(agl_m) or agl_m <= 0.0:
        return DEFAULT_FOOTPRINT_M
    focal_px = camera.fx_px * shape[1] / camera.width_px
    return agl_m * shape[1] / focal_px


def map_beside(
    gallery: Gallery,
    center: tuple[float, float],
    *,
    heading_deg: float,
    width_m: float,
    shape: tuple[int, int],
) -> ImageArray:
    """The map around a position, turned so that it lies like the frame.

    Parameters
    ----------
    center : (lat_deg, lon_deg)
        What is in the middle.
    heading_deg : float
        Direction of the picture's top, clockwise from true north.
    width_m : float
        Width on the ground.
    shape : (int, int)
        (H, W) of the result.
    """
    east_m, north_m = to_projected(gallery.crs, *center)
    height_px, width_px = shape
    step_m = width_m / width_px
    diagonal_m = step_m * math.hypot(width_px, height_px)
    window = gallery.window(east_m, north_m, size_m=diagonal_m, gsd_m=step_m)
    turn = math.radians(heading_deg + grid_convergence_deg(gallery.crs, *center))
    # From a pixel of the result (col, row) to the ground, then to the window's pixels.
    right = np.array([math.cos(turn), -math.sin(turn)]) * step_m
    down = np.array([-math.sin(turn), -math.cos(turn)]) * step_m
    corner = (
        np.array([east_m, north_m]) - right * 0.5 * (width_px - 1) - down * 0.5 * (height_px - 1)
    )
    to_window = np.array(
        [
            [right[0], down[0], corner[0] - window.west_m],
            [-right[1], -down[1], window.north_m - corner[1]],
        ]
    )
    to_window /= window.gsd_m
    to_window[:, 2] -= 0.5
    warped = cv2.warpAffine(
        _on_background(window.image, window.mask),
        to_window,
        (width_px, height_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=OUTSIDE_RGB,
    )
    return np.asarray(warped, np.uint8)
