"""A ground patch against the map: offset, rotation, scale and inliers, or a refusal with numbers.

Two steps: a similarity finds the place, because two matches determine it and few are right; a
homography then follows what tilt remains. Both by plain RANSAC: OpenCV 5.0's USAC_MAGSAC was seen
to lose good homographies.

All geometry is in metres: source points are (east, north) of the patch as it was believed to lie,
target points (east, north) of the map, both relative to an origin near them.

References
----------
Fischler and Bolles, Random sample consensus (1981).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.camera import apply
from bicrossnet_ros.config import RegistrationConfig
from bicrossnet_ros.features import Features, match
from bicrossnet_ros.types import FloatArray, Reason

RANSAC_ITERATIONS = 2000
RANSAC_CONFIDENCE = 0.999
# The similarity ignores what tilt remains, so its inliers may lie this much further off.
COARSE_FACTOR = 4.0
GRID_CELLS = 4


@dataclass(frozen=True)
class Expectation:
    """What a believable alignment looks like.

    Parameters
    ----------
    min_scale, max_scale : float
        Map metres per metre of the patch.
    max_rotation_deg : float
        Largest difference from `rotation_deg`; 180 if the heading is unknown.
    max_stretch : float
        Largest ratio of the two principal scales at the patch's middle; a patch whose tilt was
        taken away is nearly a similar picture of the map.
    rotation_deg : float
        Turn clockwise from the heading that the patch was made with to the one that is known.
    """

    min_scale: float
    max_scale: float
    max_rotation_deg: float = 180.0
    max_stretch: float = 1.35
    rotation_deg: float = 0.0


@dataclass(frozen=True)
class Similarity:
    """A turn, scale and shift that several matches agree on.

    Parameters
    ----------
    matrix : ndarray of shape (3, 3)
        Target from source.
    inliers : int
    matches : int
        Matches that had a say.
    agreeing : ndarray of shape (inliers,)
        Rows of the source features that agree.
    """

    matrix: FloatArray
    inliers: int
    matches: int
    agreeing: NDArray[np.int64]

    @property
    def scale(self) -> float:
        """Target metres per source metre."""
        return math.hypot(self.matrix[0, 0], self.matrix[1, 0])

    @property
    def rotation_deg(self) -> float:
        """Turn clockwise from source to target."""
        return -math.degrees(math.atan2(self.matrix[1, 0], self.matrix[0, 0]))


@dataclass(frozen=True)
class Registration:
    """An alignment that passed every check.

    Parameters
    ----------
    homography : ndarray of shape (3, 3)
        Map metres relative to `origin_m` from patch metres.
    origin_m : ndarray of shape (2,)
        (east, north) that the homography's target is relative to.
    source_m, target_m : ndarrays of shape (N, 2)
        Inlier matches: patch metres, and (east, north) relative to `origin_m`.
    matches : int
        Matches that had a say.
    rotation_deg : float
        Turn clockwise from the patch to the map, at its middle.
    scale : float
        Map metres per patch metre, at its middle.
    """

    homography: FloatArray
    origin_m: FloatArray
    source_m: FloatArray
    target_m: FloatArray
    matches: int
    rotation_deg: float
    scale: float

    @property
    def inliers(self) -> int:
        """Number of matches that agree."""
        return len(self.source_m)

    def to_map(self, points: FloatArray) -> FloatArray:
        """Patch metres (N, 2) to absolute (east, north)."""
        return np.asarray(apply(self.homography, points) + self.origin_m, np.float64)


@dataclass(frozen=True)
class Refusal:
    """Why there is no registration, with the numbers that decided."""

    reason: Reason
    detail: str
    inliers: int = 0


def coarse_similarity(
    source: Features,
    target: Features,
    config: RegistrationConfig,
    expectation: Expectation,
) -> Similarity | None:
    """Quick look whether a patch may lie in a piece of map; the shape must be believable."""
    pairs = match(source, target, ratio=config.ratio)
    found = fit_similarity(source, target, pairs, config)
    if found is None or refused_shape(found.scale, found.rotation_deg, expectation):
        return None
    return found


def fit_similarity(
    source: Features, target: Features, pairs: NDArray[np.int64], config: RegistrationConfig
) -> Similarity | None:
    """Similarity by RANSAC from matched rows (M, 2), None if there is none."""
    if len(pairs) < 4:
        return None
    matrix, inliers = cv2.estimateAffinePartial2D(
        source.points[pairs[:, 0]],
        target.points[pairs[:, 1]],
        method=cv2.RANSAC,
        ransacReprojThreshold=COARSE_FACTOR * config.threshold_m,
        maxIters=RANSAC_ITERATIONS,
        confidence=RANSAC_CONFIDENCE,
    )
    if matrix is None or not np.isfinite(matrix).all():
        return None
    full = np.vstack([matrix, [0.0, 0.0, 1.0]])
    agreeing = pairs[inliers.ravel() > 0, 0]
    return Similarity(full, len(agreeing), len(pairs), agreeing)


def register(
    source: Features,
    target: Features,
    origin_m: FloatArray,
    config: RegistrationConfig,
    expectation: Expectation,
) -> Registration | Refusal:
    """Align a patch with a piece of map.

    Parameters
    ----------
    source : Features
        Of the patch; points in patch metres.
    target : Features
        Of the map; points are (east, north) relative to `origin_m`.
    origin_m : ndarray of shape (2,)
        A place near the target points.
    config : RegistrationConfig
        Thresholds.
    expectation : Expectation
        What is known about scale, rotation and tilt.

    Returns
    -------
    Registration or Refusal
        A refusal says which check failed, with its numbers.
    """
    pairs = match(source, target, ratio=config.ratio)
    source_m, target_m = source.points[pairs[:, 0]], target.points[pairs[:, 1]]
    similarity = fit_similarity(source, target, pairs, config)
    if similarity is None or similarity.inliers < config.min_inliers:
        count = 0 if similarity is None else similarity.inliers
        return Refusal(
            Reason.FEW_INLIERS,
            f'{count} of {len(pairs)} matches agree; {config.min_inliers} are needed',
            count,
        )
    problem = refused_shape(similarity.scale, similarity.rotation_deg, expectation)
    if problem:
        return Refusal(Reason.IMPLAUSIBLE, problem, similarity.inliers)
    homography, inliers = _fit_homography(source_m, target_m, similarity, config)
    return _verify(homography, source_m, target_m, inliers, origin_m, config, expectation)


def _fit_homography(
    source_m: FloatArray,
    target_m: FloatArray,
    similarity: Similarity,
    config: RegistrationConfig,
) -> tuple[FloatArray | None, FloatArray]:
    """Homography by RANSAC among the matches near the similarity, and who agrees with it."""
    none = np.zeros(len(source_m), bool)
    distance = np.linalg.norm(apply(similarity.matrix, source_m) - target_m, axis=1)
    near = np.flatnonzero(distance < 2 * COARSE_FACTOR * config.threshold_m)
    if len(near) < max(4, config.min_inliers):
        return None, none
    homography, _ = cv2.findHomography(
        source_m[near],
        target_m[near],
        method=cv2.RANSAC,
        ransacReprojThreshold=config.threshold_m,
        maxIters=RANSAC_ITERATIONS,
        confidence=RANSAC_CONFIDENCE,
    )
    if homography is None:
        return None, none
    residual = np.linalg.norm(apply(homography, source_m) - target_m, axis=1)
    return np.asarray(homography, np.float64), residual < config.threshold_m


def _verify(
    homography: FloatArray | None,
    source_m: FloatArray,
    target_m: FloatArray,
    inliers: FloatArray,
    origin_m: FloatArray,
    config: RegistrationConfig,
    expectation: Expectation,
) -> Registration | Refusal:
    count, total = int(inliers.sum()), len(source_m)
    if homography is None or count < config.min_inliers:
        return Refusal(
            Reason.FEW_INLIERS,
            f'{count} of {total} matches agree; {config.min_inliers} are needed',
            count,
        )
    if count < config.min_inlier_share * total:
        return Refusal(
            Reason.FEW_INLIERS,
            f'{count} of {total} matches agree, {count / total:.2f}; '
            f'a share of {config.min_inlier_share:g} is needed',
            count,
        )
    agreed = source_m[inliers]
    jacobian = jacobian_at(homography, agreed.mean(axis=0))
    scale = math.sqrt(abs(float(np.linalg.det(jacobian))))
    turn = jacobian[1, 0] - jacobian[0, 1], jacobian[0, 0] + jacobian[1, 1]
    rotation_deg = -math.degrees(math.atan2(*turn))
    problem = refused_shape(scale, rotation_deg, expectation) or _degenerate(
        homography, jacobian, agreed, source_m, expectation
    )
    if problem:
        return Refusal(Reason.IMPLAUSIBLE, problem, count)
    return Registration(
        homography, origin_m, agreed, target_m[inliers], total, rotation_deg, scale
    )


def refused_shape(scale: float, rotation_deg: float, expectation: Expectation) -> str:
    """Why a scale and rotation cannot be; empty if they can."""
    if not expectation.min_scale <= scale <= expectation.max_scale:
        return (
            f'the scale is {scale:.2f} of what the height says; expected '
            f'{expectation.min_scale:.2f} to {expectation.max_scale:.2f}'
        )
    off_deg = (rotation_deg - expectation.rotation_deg + 180.0) % 360.0 - 180.0
    if abs(off_deg) > expectation.max_rotation_deg:
        return (
            f'the frame would have to be turned by {off_deg:.0f} deg against its heading; '
            f'expected at most {expectation.max_rotation_deg:.0f}'
        )
    return ''


def _degenerate(
    homography: FloatArray,
    jacobian: FloatArray,
    agreed: FloatArray,
    source_m: FloatArray,
    expectation: Expectation,
) -> str:
    """Why a homography is no picture of flat ground seen from above; empty if it may be."""
    if np.linalg.det(jacobian) <= 0:
        return 'the alignment mirrors the patch'
    long, short = np.linalg.svd(jacobian, compute_uv=False)
    if long > expectation.max_stretch * short:
        return (
            f'the alignment stretches the patch by {long / short:.2f}; '
            f'expected at most {expectation.max_stretch:.2f}'
        )
    w = np.column_stack([agreed, np.ones(len(agreed))]) @ homography[2]
    if w.min() <= 0 or w.max() > 2.0 * w.min():
        return 'the alignment has an impossible perspective'
    cells = _occupied_cells(agreed, source_m)
    if cells < GRID_CELLS:
        return (
            f'the agreeing matches lie in {cells} of {GRID_CELLS**2} parts of the patch; '
            f'{GRID_CELLS} are needed'
        )
    return ''


def _occupied_cells(agreed: FloatArray, source_m: FloatArray) -> int:
    """In how many cells of a 4 x 4 grid over all matched points the agreeing ones lie."""
    low, high = source_m.min(axis=0), source_m.max(axis=0)
    cells = np.floor(GRID_CELLS * (agreed - low) / np.maximum(high - low, 1e-9))
    return len(np.unique(np.clip(cells, 0, GRID_CELLS - 1), axis=0))


def jacobian_at(homography: FloatArray, point: FloatArray) -> FloatArray:
    """Derivative (2, 2) of a homography at a point (2,)."""
    lifted = homography @ [point[0], point[1], 1.0]
    image = lifted[:2] / lifted[2]
    return np.asarray(
        (homography[:2, :2] - np.outer(image, homography[2, :2])) / lifted[2], np.float64
    )
