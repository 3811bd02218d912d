"""The patch tried against several places of the map: the one that fits, if only one does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bicrossnet_ros.camera import (
    FramePyramid,
    GroundView,
    apply,
    clockwise,
    ground_patch,
    top_heading_deg,
)
from bicrossnet_ros.config import RegistrationConfig
from bicrossnet_ros.features import Features, MapFeatures, extract
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.registration import (
    COARSE_FACTOR,
    Expectation,
    Refusal,
    Registration,
    coarse_similarity,
    register,
)
from bicrossnet_ros.retrieval import Place
from bicrossnet_ros.types import FloatArray, Reason

# A look with fewer inliers than this is chance: any two matches make a similarity.
MIN_LOOK_INLIERS = 4
MAX_CLOSE_LOOKS = 3


@dataclass(frozen=True)
class Query:
    """The features of a frame's ground patch.

    Parameters
    ----------
    features : Features
        Points are (east, north) in metres from the point below the camera.
    center_m : ndarray of shape (2,)
        Ground point at the image's middle, in the same axes.
    reach_m : float
        How far the footprint reaches from there.
    gsd_m : float
        Resolution to look at the map with.
    """

    features: Features
    center_m: FloatArray
    reach_m: float
    gsd_m: float


@dataclass(frozen=True)
class Look:
    """What a quick look at one place found; `center_m` is where it puts the image's middle."""

    place: Place
    inliers: int
    center_m: FloatArray


@dataclass(frozen=True)
class Alignment:
    """A registration, and the place whose window it was found in."""

    registration: Registration
    place: Place


class Aligner:
    """Aligns patches with a gallery's map; keeps features of the map between frames.

    Parameters
    ----------
    gallery : Gallery
    config : RegistrationConfig
    """

    def __init__(self, gallery: Gallery, config: RegistrationConfig) -> None:
        self._manifest = gallery.manifest
        self._slack_m = 0.75 * gallery.tile_size_m
        self._config = config
        self._map = MapFeatures(gallery, config)

    @property
    def apart_m(self) -> float:
        """Distance between places whose windows share most of their map."""
        return 0.5 * self._manifest.tile_px * self._manifest.gsd_m

    def query(self, pyramid: FramePyramid, view: GroundView) -> Query:
        """Features of everything the frame sees of the ground."""
        # Features are found whichever way the patch is turned: with the image's top up it has no
        # empty corners, half the pixels of a north-up one at worst.
        turn = clockwise(top_heading_deg(view.rotation))
        view = GroundView(view.intrinsics, view.rotation @ turn, view.agl_m)
        footprint = view.footprint_m()
        low, high = footprint.min(axis=0), footprint.max(axis=0)
        gsd_m = self._level_gsd_m(float((high - low).max()))
        size_px = np.ceil((high - low) / gsd_m).astype(int)
        patch = ground_patch(
            pyramid,
            view,
            size_px=(int(size_px[1]), int(size_px[0])),
            gsd_m=gsd_m,
            middle_m=0.5 * (low + high),
        )
        found = extract(patch.image, patch.mask, max_features=self._config.max_features)
        points = apply(turn @ patch.ground_from_patch, found.points)
        center = view.center_m
        return Query(
            features=Features(points, found.descriptors),
            center_m=turn[:2, :2] @ center,
            reach_m=float(np.linalg.norm(footprint - center, axis=1).max()),
            gsd_m=gsd_m,
        )

    def _level_gsd_m(self, side_m: float) -> float:
        """The finest level of the map at which the patch keeps to `patch_px`."""
        finest_m = self._manifest.gsd_m
        steps = math.ceil(math.log2(max(side_m / (self._config.patch_px * finest_m), 1.0)))
        return finest_m * 2.0 ** min(steps, self._manifest.grid.max_zoom)

    def align(
        self, query: Query, places: list[Place], expectation: Expectation
    ) -> Alignment | Refusal:
        """The best place that fits, unless another one fits nearly as well.

        Parameters
        ----------
        query : Query
        places : list of Place
            Where to look.
        expectation : Expectation
            What a believable alignment looks like.
        """
        looks = [self._look(query, place, expectation) for place in places]
        looks.sort(key=lambda look: -look.inliers)
        best = looks[0].inliers if looks else 0
        refusal = Refusal(
            Reason.FEW_INLIERS,
            f'none of {len(places)} map windows fits: at best {best} matches agree; '
            f'{self._config.min_inliers} are needed',
            best,
        )
        for look in looks[:MAX_CLOSE_LOOKS]:
            if look.inliers < MIN_LOOK_INLIERS:
                break
            result = self._register(query, look.place, expectation)
            if isinstance(result, Registration):
                return self._unless_ambiguous(Alignment(result, look.place), query, looks)
            if result.inliers > refusal.inliers or result.reason is Reason.IMPLAUSIBLE:
                refusal = result
        return refusal

    def _target(self, query: Query, place: Place) -> tuple[Features, FloatArray]:
        origin = np.array([place.east_m, place.north_m])
        found = self._map.near(
            place.east_m,
            place.north_m,
            half_size_m=query.reach_m + self._slack_m,
            gsd_m=query.gsd_m,
        )
        return Features(found.points - origin, found.descriptors), origin

    def _look(self, query: Query, place: Place, expectation: Expectation) -> Look:
        target, origin = self._target(query, place)
        found = coarse_similarity(query.features, target, self._config, expectation)
        if found is None:
            return Look(place, 0, origin)
        center = apply(found.matrix, query.center_m[None])[0] + origin
        return Look(place, found.inliers, np.asarray(center, np.float64))

    def _register(
        self, query: Query, place: Place, expectation: Expectation
    ) -> Registration | Refusal:
        target, origin = self._target(query, place)
        return register(query.features, target, origin, self._config, expectation)

    def _unless_ambiguous(
        self, alignment: Alignment, query: Query, looks: list[Look]
    ) -> Alignment | Refusal:
        """The alignment, unless a quick look elsewhere found nearly as many matches as here."""
        center = alignment.registration.to_map(query.center_m[None])[0]
        near_m = 2.0 * COARSE_FACTOR * self._config.threshold_m
        here, elsewhere = 0, 0
        for look in looks:
            if np.linalg.norm(look.center_m - center) <= near_m:
                here = max(here, look.inliers)
            else:
                elsewhere = max(elsewhere, look.inliers)
        if here >= self._config.min_lead * elsewhere:
            return alignment
        return Refusal(
            Reason.AMBIGUOUS,
            f'{here} matches agree on one place and {elsewhere} on another; '
            f'{self._config.min_lead:g} times as many are needed',
            alignment.registration.inliers,
        )
