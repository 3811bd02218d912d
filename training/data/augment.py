"""Random changes to the two photographs of a place: shift, mirror, turn, colour, erase."""

from __future__ import annotations

import math

import cv2
import numpy as np

from training.config import AugmentConfig
from training.data.autoaugment import auto_augment
from training.data.places import Image

# Mean colour of ImageNet: what is erased becomes 0 in the network's input.
ERASED = (124, 116, 104)


def augment_pair(
    satellite: Image, drone: Image, rng: np.random.Generator, config: AugmentConfig
) -> tuple[Image, Image]:
    """Augment the two views of a place.

    Parameters
    ----------
    satellite, drone : ndarray of uint8, shape (S, S, 3)
        RGB, of the size of the network's input; they are kept as they are.
    rng : numpy Generator
        Source of every random choice.
    config : AugmentConfig
        What is done.

    Returns
    -------
    satellite, drone : ndarray of uint8, shape (S, S, 3)
    """
    mirror = rng.random(2) < config.flip_share
    if config.paired_flip:
        mirror[1] = mirror[0]
    if config.drone_auto_augment:
        drone = auto_augment(drone, rng)
    drone = shift(drone, rng, config.pad_px)
    if config.satellite_rotation_deg:
        satellite = rotate_shift(satellite, rng, config.satellite_rotation_deg, config.pad_px)
    else:
        satellite = shift(satellite, rng, config.pad_px)
    if config.satellite_quarter_turns:
        satellite = quarter_turns(satellite, int(rng.integers(4)))
    if mirror[0]:
        satellite = np.asarray(cv2.flip(satellite, 1), np.uint8)
    if mirror[1]:
        drone = np.asarray(cv2.flip(drone, 1), np.uint8)
    if rng.random() < config.drone_erasing_share:
        drone = erase(drone, rng)
    return satellite, drone


def shift(image: Image, rng: np.random.Generator, pad_px: int) -> Image:
    """Repeat the edges `pad_px` outwards and cut the old size out at random."""
    if not pad_px:
        return image
    height, width = image.shape[:2]
    row, col = rng.integers(0, 2 * pad_px + 1, 2)
    padded = cv2.copyMakeBorder(image, pad_px, pad_px, pad_px, pad_px, cv2.BORDER_REPLICATE)
    return np.asarray(padded[row : row + height, col : col + width], np.uint8)


def rotate_shift(image: Image, rng: np.random.Generator, largest_deg: float, pad_px: int) -> Image:
    """Turn about the centre by up to `largest_deg` either way, then `shift`; corners are black."""
    height, width = image.shape[:2]
    row, col = rng.integers(0, 2 * pad_px + 1, 2)
    padded = cv2.copyMakeBorder(image, pad_px, pad_px, pad_px, pad_px, cv2.BORDER_REPLICATE)
    center = ((padded.shape[1] - 1) / 2, (padded.shape[0] - 1) / 2)
    matrix = cv2.getRotationMatrix2D(center, rng.uniform(-largest_deg, largest_deg), 1)
    matrix[:, 2] -= col, row
    return np.asarray(cv2.warpAffine(padded, matrix, (width, height)), np.uint8)


def quarter_turns(image: Image, turns: int) -> Image:
    """Turn counter-clockwise by a multiple of 90 degrees."""
    return np.rot90(image, turns)


def erase(image: Image, rng: np.random.Generator) -> Image:
    """Paint a random rectangle in the mean colour of ImageNet.

    References
    ----------
    Zhong et al. 2020, Random Erasing Data Augmentation, AAAI, algorithm 1: 2 % to 40 % of the
    image, sides in a ratio of 0.3 to 1 / 0.3.
    """
    height, width = image.shape[:2]
    # A rectangle that does not fit is drawn anew; nearly all do, so a few attempts suffice.
    for _ in range(100):
        area = rng.uniform(0.02, 0.4) * height * width
        ratio = rng.uniform(0.3, 1 / 0.3)
        rows, cols = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < rows < height and 0 < cols < width:
            row, col = rng.integers(height - rows + 1), rng.integers(width - cols + 1)
            image = image.copy()
            image[row : row + rows, col : col + cols] = ERASED
            break
    return image
