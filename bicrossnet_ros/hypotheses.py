"""What a frame says about itself, checked, and what is tried where it says nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bicrossnet_ros.camera import (
    GroundView,
    check_agl,
    check_attitude,
    check_image,
    check_view,
    rotation_camera_from_world,
)
from bicrossnet_ros.config import CameraConfig, LocalizerConfig
from bicrossnet_ros.errors import ImageError
from bicrossnet_ros.geodesy import check_position
from bicrossnet_ros.lens import assumed_intrinsics, check_intrinsics, scaled_intrinsics
from bicrossnet_ros.registration import Expectation
from bicrossnet_ros.types import Attitude, Frame, Intrinsics, Prior

# Without an attitude the tilt stays in the patch; a homography of 35 deg stretches by 1.5.
LEVEL_STRETCH = 1.35
UNKNOWN_TILT_STRETCH = 1.6
# Lenses of 40 to 97 deg differ from the assumed 65 deg by this factor in scale.
UNKNOWN_LENS_SCALE = 1.75


@dataclass(frozen=True)
class Hypothesis:
    """One guess of heading and height.

    Parameters
    ----------
    heading_deg : float
        Of the nose, from true north.
    agl_m : float
    view : GroundView
        The camera under this guess, in the axes of the map's grid.
    """

    heading_deg: float
    agl_m: float
    view: GroundView


@dataclass(frozen=True)
class Knowledge:
    """What is known of a frame beyond its pixels.

    Parameters
    ----------
    intrinsics : Intrinsics
        For the frame's size; assumed if `lens_known` is False.
    lens_known, attitude_known, agl_known : bool
    heading_deg : float or None
        That the frame came with, in [0, 360).
    hypotheses : tuple of Hypothesis
        All that must be tried; one if everything is known.
    """

    intrinsics: Intrinsics
    lens_known: bool
    attitude_known: bool
    heading_deg: float | None
    agl_known: bool
    hypotheses: tuple[Hypothesis, ...]

    def expectation(self, tried: Hypothesis, config: LocalizerConfig) -> Expectation:
        """What an alignment of the patch made under one hypothesis must look like.

        A height or a heading that was guessed may be off by as much as the guesses differ.
        """
        error = 1.0 + config.registration.max_scale_error
        if not self.lens_known:
            error *= UNKNOWN_LENS_SCALE
        heights = [other.agl_m for other in self.hypotheses]
        low, high = min(heights) / tried.agl_m, max(heights) / tried.agl_m
        turn_deg, limit_deg = 0.0, 180.0
        if self.heading_deg is not None:
            turn_deg = self.heading_deg - tried.heading_deg
            limit_deg = config.registration.max_heading_error_deg
        return Expectation(
            min_scale=low / error,
            max_scale=high * error,
            max_rotation_deg=limit_deg,
            rotation_deg=turn_deg,
            max_stretch=LEVEL_STRETCH if self.attitude_known else UNKNOWN_TILT_STRETCH,
        )


def heading_sigma_deg(knowledge: Knowledge, config: LocalizerConfig) -> float:
    """1-sigma of the heading that retrieval chose: anything between the ones that were tried."""
    count = config.camera.known_headings
    if knowledge.heading_deg is None:
        step_deg = 360.0 / config.camera.unknown_headings
    else:
        step_deg = 2.0 * config.camera.heading_spread_deg / (count - 1) if count > 1 else 0.0
    return max(step_deg / math.sqrt(12.0), config.integrity.attitude_sigma_deg)


def interpret(frame: Frame, config: CameraConfig, *, convergence_deg: float) -> Knowledge:
    """Check a frame and list the hypotheses to try.

    Parameters
    ----------
    frame : Frame
    config : CameraConfig
    convergence_deg : float
        Grid convergence of the map, see `geodesy.grid_convergence_deg`.

    Raises
    ------
    ImageError
        Naming what is wrong with the image, the intrinsics, the attitude, the height or the prior.
    """
    check_image(frame.image)
    if not math.isfinite(frame.stamp_s):
        raise ImageError(f'stamp is {frame.stamp_s} s; expected a finite time')
    if frame.prior is not None:
        check_prior(frame.prior)
    if frame.intrinsics is None:
        intrinsics = assumed_intrinsics(frame.image.shape, config.assumed_hfov_deg)
    else:
        check_intrinsics(frame.intrinsics)
        intrinsics = scaled_intrinsics(frame.intrinsics, frame.image.shape)
    attitude = frame.attitude or Attitude()
    check_attitude(attitude)
    if frame.agl_m is not None:
        check_agl(frame.agl_m, config)
    heights = config.assumed_agl_m if frame.agl_m is None else (frame.agl_m,)
    hypotheses = []
    for heading_deg in _headings(attitude, config):
        rotation = rotation_camera_from_world(
            attitude, config, grid_heading_deg=heading_deg + convergence_deg
        )
        hypotheses += [
            Hypothesis(heading_deg, agl_m, GroundView(intrinsics, rotation, agl_m))
            for agl_m in heights
        ]
    check_view(hypotheses[0].view, config)
    return Knowledge(
        intrinsics=intrinsics,
        lens_known=frame.intrinsics is not None,
        attitude_known=frame.attitude is not None,
        heading_deg=None if attitude.heading_deg is None else attitude.heading_deg % 360.0,
        agl_known=frame.agl_m is not None,
        hypotheses=tuple(hypotheses),
    )


def check_prior(prior: Prior) -> None:
    """Raise ConfigError or ImageError unless the prior is a position and a radius."""
    check_position(prior.lat_deg, prior.lon_deg)
    if not (math.isfinite(prior.radius_m) and prior.radius_m > 0):
        raise ImageError(
            f'prior has a radius of {prior.radius_m} m; expected a positive number, or no prior'
        )


def _headings(attitude: Attitude, config: CameraConfig) -> list[float]:
    """Headings to try, the one that is known first."""
    if attitude.heading_deg is None:
        count = config.unknown_headings
        return [360.0 * index / count for index in range(count)]
    spread_deg, count = config.heading_spread_deg, config.known_headings
    offsets = [0.0]
    if count > 1 and spread_deg > 0:
        # An even number lacks the middle, the known heading.
        offsets = sorted(np.linspace(-spread_deg, spread_deg, count).tolist(), key=abs)
    return [(attitude.heading_deg + offset) % 360.0 for offset in offsets]
