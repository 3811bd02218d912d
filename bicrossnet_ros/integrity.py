"""How much an estimate can be trusted: covariances that contain the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np

from bicrossnet_ros.config import IntegrityConfig
from bicrossnet_ros.types import FloatArray, TileMatch


def map_sigma_m(config: IntegrityConfig, gallery_accuracy_m: float) -> float:
    """1-sigma of the map per axis: the configuration's if it gives one, else the gallery's."""
    return config.map_accuracy_m if config.map_accuracy_m >= 0 else gallery_accuracy_m


def inflated(
    covariance_m2: FloatArray, config: IntegrityConfig, *, map_accuracy_m: float
) -> FloatArray:
    """Covariance (2, 2) to report for one that the residuals suggest.

    Residuals of neighbouring features are not independent (relief, lens and map errors are
    smooth), so the sigma that they suggest is too small: it is multiplied by `inflation`. The
    map's own accuracy and a floor are added, so that the result is never zero.
    """
    floor = config.min_sigma_m**2 + map_accuracy_m**2
    symmetric = 0.5 * (covariance_m2 + covariance_m2.T)
    return np.asarray(config.inflation**2 * symmetric + floor * np.eye(2), np.float64)


def tilt_covariance(height_m: float, tilt_sigma_deg: float) -> FloatArray:
    """Covariance (2, 2) of camera minus image centre when the tilt is only known this well."""
    sigma_m = height_m * math.tan(math.radians(tilt_sigma_deg))
    return np.asarray(sigma_m**2 * np.eye(2), np.float64)


def guess_covariance(
    offset_m: FloatArray, *, heading_sigma_deg: float, height_sigma: float
) -> FloatArray:
    """Covariance (2, 2) of camera minus image centre when heading and height were guessed.

    Nothing for a camera that looks straight down; for one that looks ahead, the way from the
    image centre back to the camera turns with the heading and grows with the height.

    Parameters
    ----------
    offset_m : ndarray of shape (2,)
        Camera minus image centre, (east, north).
    heading_sigma_deg : float
    height_sigma : float
        1-sigma of the height as a share of it.
    """
    across = math.radians(heading_sigma_deg) * np.array([-offset_m[1], offset_m[0]])
    along = height_sigma * offset_m
    return np.asarray(np.outer(across, across) + np.outer(along, along), np.float64)


def disagreement_covariance(
    *, height_m: float, given_m: float, offset_m: FloatArray
) -> FloatArray:
    """Covariance (2, 2) of the camera when the height solved for is not the one that was given.

    Either the height that was given is wrong, which harms nothing, or the lens is. A focal length
    that is wrong by a factor makes the height and the tangent of the tilt, which shows as
    convergence per pixel, wrong by that factor each; so the camera's way from the image centre is
    wrong by its square. Half of what the way is then wrong by is taken for one sigma: the 95 %
    ellipse contains the truth in either case.

    Parameters
    ----------
    height_m, given_m : float
        Above ground.
    offset_m : ndarray of shape (2,)
        Camera minus image centre as solved for, (east, north).
    """
    wrong_by = (given_m / height_m) ** 2 - 1.0
    return np.asarray((0.5 * wrong_by) ** 2 * float(offset_m @ offset_m) * np.eye(2), np.float64)


def tile_covariance(
    matches: list[TileMatch], *, tile_size_m: float, spacing_m: float
) -> FloatArray:
    """Covariance (2, 2) of a position that is only the centre of the most similar tile.

    The spread of the neighbours that are nearly as similar, and a part of the tile's size: what
    lies a third of a tile away still looks much the same.
    """
    best = matches[0]
    near = [
        match
        for match in matches
        if math.hypot(match.east_m - best.east_m, match.north_m - best.north_m) <= tile_size_m
    ]
    offset = np.array(
        [(match.east_m - best.east_m, match.north_m - best.north_m) for match in near]
    )
    similarity = np.array([match.similarity for match in near])
    weight = np.exp((similarity - best.similarity) / 0.05)
    weight /= weight.sum()
    spread = np.einsum('n,na,nb->ab', weight, offset, offset)
    floor = (tile_size_m / 4.0) ** 2 + spacing_m**2 / 12.0
    return np.asarray(spread + floor * np.eye(2), np.float64)


def lead_over_elsewhere(matches: list[TileMatch], *, tile_size_m: float) -> float:
    """Similarity of the best tile minus that of the best one a tile or more away; inf if none."""
    best = matches[0]
    for match in matches:
        distance = math.hypot(match.east_m - best.east_m, match.north_m - best.north_m)
        if distance > tile_size_m:
            return best.similarity - match.similarity
    return math.inf
