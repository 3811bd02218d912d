"""Image files to RGB arrays; a file that is not whole is an error, never a gray picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from bicrossnet_ros.errors import ImageError
from training.data.places import Image

SUFFIXES = {'.jpg', '.jpeg', '.png', '.tif', '.tiff', '.bmp', '.webp'}

# Markers of a JPEG (ITU T.81, table B.1). In the compressed data a byte 0xFF is always followed
# by 0x00 or a restart marker, so what looks like a marker there is one.
_JPEG = b'\xff\xd8'
_END_OF_IMAGE = b'\xff\xd9'
_START_OF_SCAN = b'\xff\xda'
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PNG = b'\x89PNG\r\n\x1a\n'

_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)


def read_image(path: Path, *, at_least_px: int | None = None) -> Image:
    """Read an image file.

    Parameters
    ----------
    path : Path
        Any format that OpenCV reads; its EXIF orientation is applied.
    at_least_px : int, optional
        A JPEG may be decoded at a half, a quarter or an eighth of its size if its shorter side
        then has this many pixels, or twice as many or more.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        RGB.

    Raises
    ------
    ImageError
        If the file cannot be read, is empty, cut off, or no image.

    Notes
    -----
    A JPEG is decoded at 1/2 by leaving out the upper frequencies of its blocks, which is a good
    low-pass filter and saves most of the inverse transform. Measured on 48 aerial JPEGs of 512
    px, reduced to 256 px: 53.5 dB from area averaging of the whole image, 43.7 dB from Pillow's
    bicubic with its low-pass (area averaging: 43.9 dB; OpenCV's bicubic without one: 36.2 dB),
    and the shipped network's embeddings as near (cosine 0.994) as between any two of these. Where
    a fractional reduction remains to be done the second filter blurs (512 to 224 px: 38.9 dB
    instead of 46.0 dB), hence the condition.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f'{path}: {error.strerror or error}; expected an image file') from error
    if not data:
        raise ImageError(f'{path}: is empty; replace or remove it')
    if not _is_whole(data):
        raise ImageError(f'{path}: is cut off after {len(data)} bytes; replace or remove it')
    flag = cv2.IMREAD_COLOR if at_least_px is None else _reduction(data, at_least_px)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(f'{path}: not readable as an image; replace or remove it')
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image), np.uint8)


def _is_whole(data: bytes) -> bool:
    """Decoders fill what is missing of a JPEG with gray and succeed; so its end is looked for."""
    if data.startswith(_JPEG):
        # The last scan must be followed by an end; one further up is that of a thumbnail.
        return data.rfind(_END_OF_IMAGE) > data.rfind(_START_OF_SCAN) > 0
    if data.startswith(_PNG):
        return b'IEND' in data[-64:]
    return True


def _reduction(data: bytes, at_least_px: int) -> int:
    """Return the flag of the strongest reduction that a JPEG may be decoded with."""
    shorter_px = min(_jpeg_shape(data), default=0)
    for factor, flag in _REDUCED:
        # The decoder rounds up.
        reduced_px = -(-shorter_px // factor)
        if reduced_px == at_least_px or reduced_px >= 2 * at_least_px:
            return flag
    return cv2.IMREAD_COLOR


def _jpeg_shape(data: bytes) -> tuple[int, ...]:
    """Return (H, W) from the header of a JPEG; empty for anything else."""
    at = 2
    while data.startswith(_JPEG) and at + 9 < len(data) and data[at] == 0xFF:
        if data[at + 1] in _START_OF_FRAME:
            return (
                int.from_bytes(data[at + 5 : at + 7], 'big'),
                int.from_bytes(data[at + 7 : at + 9], 'big'),
            )
        at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return ()
