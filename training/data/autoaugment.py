"""AutoAugment's ImageNet policy on uint8 images: two random operations from one of 25 recipes.

References
----------
Cubuk et al. 2019, AutoAugment: Learning Augmentation Strategies from Data, CVPR, table 9 (the
policy) and table 6 (ranges of the operations). A magnitude of 0..9 spans the range; operations
with a direction take either one at random.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.places import Image

# What a rotation or a shear uncovers, as in the authors' code.
FILL = (128, 128, 128)

# Operation, probability, magnitude; twice.
POLICY = (
    (('posterize', 0.4, 8), ('rotate', 0.6, 9)),
    (('solarize', 0.6, 5), ('auto_contrast', 0.6, 5)),
    (('equalize', 0.8, 8), ('equalize', 0.6, 3)),
    (('posterize', 0.6, 7), ('posterize', 0.6, 6)),
    (('equalize', 0.4, 7), ('solarize', 0.2, 4)),
    (('equalize', 0.4, 4), ('rotate', 0.8, 8)),
    (('solarize', 0.6, 3), ('equalize', 0.6, 7)),
    (('posterize', 0.8, 5), ('equalize', 1.0, 2)),
    (('rotate', 0.2, 3), ('solarize', 0.6, 8)),
    (('equalize', 0.6, 8), ('posterize', 0.4, 6)),
    (('rotate', 0.8, 8), ('color', 0.4, 0)),
    (('rotate', 0.4, 9), ('equalize', 0.6, 2)),
    (('equalize', 0.0, 7), ('equalize', 0.8, 8)),
    (('invert', 0.6, 4), ('equalize', 1.0, 8)),
    (('color', 0.6, 4), ('contrast', 1.0, 8)),
    (('rotate', 0.8, 8), ('color', 1.0, 2)),
    (('color', 0.8, 8), ('solarize', 0.8, 7)),
    (('sharpness', 0.4, 7), ('invert', 0.6, 8)),
    (('shear_x', 0.6, 5), ('equalize', 1.0, 9)),
    (('color', 0.4, 0), ('equalize', 0.6, 3)),
    (('equalize', 0.4, 7), ('solarize', 0.2, 4)),
    (('solarize', 0.6, 5), ('auto_contrast', 0.6, 5)),
    (('invert', 0.6, 4), ('equalize', 1.0, 8)),
    (('color', 0.6, 4), ('contrast', 1.0, 8)),
    (('equalize', 0.8, 8), ('equalize', 0.6, 3)),
)


def auto_augment(image: Image, rng: np.random.Generator) -> Image:
    """Apply one recipe of the policy to an image, (H, W, 3) RGB; the image itself is kept."""
    for name, probability, magnitude in POLICY[rng.integers(len(POLICY))]:
        if rng.random() < probability:
            sign = 1 if rng.random() < 0.5 else -1
            image = OPERATIONS[name](image, magnitude / 9, sign)
    return image


def _posterize(image: Image, strength: float, _sign: int) -> Image:
    return posterize(image, 8 - round(4 * strength))


def posterize(image: Image, bits: int) -> Image:
    """Keep the highest `bits` bits."""
    return image & np.uint8(0xFF << (8 - bits) & 0xFF)


def _solarize(image: Image, strength: float, _sign: int) -> Image:
    return solarize(image, 256 - 256 * strength)


def solarize(image: Image, threshold: float) -> Image:
    """Invert what is not below the threshold."""
    values = np.arange(256)
    return _look_up(image, np.where(values < threshold, values, 255 - values))


def invert(image: Image) -> Image:
    """Return the negative."""
    return np.asarray(cv2.bitwise_not(image), np.uint8)


def auto_contrast(image: Image) -> Image:
    """Stretch every channel to 0..255."""
    tables = np.empty((256, 3), np.int64)
    for channel in range(3):
        low, high, *_ = cv2.minMaxLoc(image[..., channel])
        scale = 255 / (high - low) if high > low else 1.0
        tables[:, channel] = (np.arange(256) - (low if high > low else 0)) * scale
    return _look_up(image, tables)


def equalize(image: Image) -> Image:
    """Spread the histogram of every channel evenly."""
    tables = np.empty((256, 3), np.int64)
    for channel in range(3):
        histogram = np.bincount(image[..., channel].ravel(), minlength=256)
        # The last value that occurs is left out, so that it comes to lie at 255.
        step = (histogram.sum() - histogram[histogram.nonzero()[0][-1]]) // 255
        below = np.cumsum(histogram) - histogram
        tables[:, channel] = (step // 2 + below) // step if step else np.arange(256)
    return _look_up(image, tables)


def color(image: Image, factor: float) -> Image:
    """Blend with the gray image; factor 1 keeps the colours, 0 leaves none."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(image, factor, gray, 1 - factor, 0), np.uint8)


def contrast(image: Image, factor: float) -> Image:
    """Scale the distances from the mean brightness."""
    mean = np.rint(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
    return _look_up(image, mean + factor * (np.arange(256) - mean))


def sharpness(image: Image, factor: float) -> Image:
    """Blend with a smoothed image; factor 1 keeps it as it is. The outermost pixels stay."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(image, -1, kernel)
    result = np.asarray(cv2.addWeighted(image, factor, smooth, 1 - factor, 0), np.uint8)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        result[edge] = image[edge]
    return result


def _rotate(image: Image, strength: float, sign: int) -> Image:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), sign * 30 * strength, 1)
    return _warp(image, matrix)


def _shear_x(image: Image, strength: float, sign: int) -> Image:
    return _warp(image, np.array([[1, sign * 0.3 * strength, 0], [0, 1, 0]]))


def _warp(image: Image, matrix: NDArray[np.float64]) -> Image:
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.warpAffine(image, matrix, size, borderValue=FILL), np.uint8)


def _look_up(image: Image, table: NDArray[np.generic]) -> Image:
    """Map values through one table, (256,), or one a channel, (256, 3); cut off, not rounded."""
    clipped = np.clip(table, 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(image, clipped.reshape(1, 256, -1)), np.uint8)


def _factor(
    operation: Callable[[Image, float], Image],
) -> Callable[[Image, float, int], Image]:
    """Make an operation with a factor of 0.1..1.9 out of strength and direction."""
    return lambda image, strength, sign: operation(image, 1 + sign * 0.9 * strength)


OPERATIONS: dict[str, Callable[[Image, float, int], Image]] = {
    'posterize': _posterize,
    'solarize': _solarize,
    'invert': lambda image, _strength, _sign: invert(image),
    'auto_contrast': lambda image, _strength, _sign: auto_contrast(image),
    'equalize': lambda image, _strength, _sign: equalize(image),
    'color': _factor(color),
    'contrast': _factor(contrast),
    'sharpness': _factor(sharpness),
    'rotate': _rotate,
    'shear_x': _shear_x,
}
