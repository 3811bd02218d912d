"""The patch tried against several places of the map: the one that fits, if only one does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bicrossnet_ros.camera import GroundView, apply, clockwise, top_heading_deg
from bicrossnet_ros.config import RegistrationConfig
from bicrossnet_ros.features import Features, MapFeatures, extract
from bicrossnet_ros.patch import FramePyramid, ground_patch
from bicrossnet_ros.query_patches import patch_offsets
from bicrossnet_ros.ranking import Circle, Place
from bicrossnet_ros.registration import (
    Expectation,
    Refusal,
    Registration,
    coarse_similarity,
    register,
)
from bicrossnet_ros.retrieval import PlaceSearch, look_alikes
from bicrossnet_ros.types import FloatArray, Reason
from bicrossnet_ros.uniqueness import count_elsewhere, find_witnesses

# Looks are made with the strongest features only.
LOOK_FEATURES = 400
# A look with fewer inliers than this is chance: any two matches make a similarity. With this many
# the place is taken for found, and others are only asked whether they explain it as well.
MIN_LOOK_INLIERS = 4
STRONG_LOOK_INLIERS = 30
MAX_CLOSE_LOOKS = 3
# A close look needs the map that the patch covers, and this much around it.
CLOSE_MARGIN = 1.2
# The map has no coarser level for a patch with more pixels than this times `patch_px`: it sees
# far more ground than there is map, and time and memory would grow with its area.
MAX_PATCH_FACTOR = 2.0
# Map tiles that stand for the frame's footprint where the map is asked for its like.
FOOTPRINT_TILES = 8


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
    offsets_m : ndarray of shape (P, 2)
        Middles of tiles that show the footprint, from the ground point at the image's middle.
    """

    features: Features
    offsets_m: FloatArray
    center_m: FloatArray
    reach_m: float
    gsd_m: float


@dataclass(frozen=True)
class Look:
    """What a quick look at one place found.

    Parameters
    ----------
    place : Place
    center_m : ndarray of shape (2,)
        (east, north) where it puts the image's middle.
    scale : float
        Map metres per metre of the patch.
    inliers : int
    """

    place: Place
    center_m: FloatArray
    scale: float
    inliers: int


@dataclass(frozen=True)
class Alignment:
    """A registration, and the place whose window it was found in."""

    registration: Registration
    place: Place


class Aligner:
    """Aligns patches with a gallery's map; keeps features of the map between frames.

    Parameters
    ----------
    search : PlaceSearch
        Of the gallery.
    config : RegistrationConfig
    """

    def __init__(self, search: PlaceSearch, config: RegistrationConfig) -> None:
        self._search = search
        gallery = search.gallery
        self._manifest = gallery.manifest
        self._tile_m = gallery.tile_size_m
        self._slack_m = 0.75 * gallery.tile_size_m
        self._config = config
        self._map = MapFeatures(gallery, config)

    @property
    def apart_m(self) -> float:
        """Distance between places whose windows share most of their map."""
        return self._slack_m

    def query(self, pyramid: FramePyramid, view: GroundView) -> Query | Refusal:
        """Features of everything the frame sees of the ground, if the map has a level for it."""
        offsets_m = patch_offsets(view, tile_m=self._tile_m, limit=FOOTPRINT_TILES)
        # Features are found whichever way the patch is turned: with the image's top up it has no
        # empty corners, half the pixels of a north-up one at worst.
        turn = clockwise(top_heading_deg(view.rotation))
        view = GroundView(view.intrinsics, view.rotation @ turn, view.agl_m)
        footprint = view.footprint_m()
        low, high = footprint.min(axis=0), footprint.max(axis=0)
        side_m = float((high - low).max())
        gsd_m = self._level_gsd_m(side_m)
        limit_m = MAX_PATCH_FACTOR * self._config.patch_px * gsd_m
        if side_m > limit_m:
            return Refusal(
                Reason.IMPLAUSIBLE,
                f'the frame would see {side_m:.0f} m of ground; expected at most {limit_m:.0f} m '
                f'at the coarsest level of this map, {gsd_m:g} m per pixel',
            )
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
            offsets_m=offsets_m,
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
        self,
        query: Query,
        places: list[Place],
        expectation: Expectation,
        *,
        others: list[Place],
        circle: Circle | None,
    ) -> Alignment | Refusal:
        """The best place that fits, unless another one fits nearly as well.

        Parameters
        ----------
        query : Query
        places : list of Place
            Where to look.
        expectation : Expectation
            What a believable alignment looks like.
        others : list of Place
            Places where nothing was found, but that may rival what is found now.
        circle : Circle or None
            Where the image's middle may be; a place like the found one counts only there.
        """
        asked = places + others
        looks: list[Look] = []
        strongest = query.features.strongest(LOOK_FEATURES)
        for place in places:
            looks.append(self._look(query, strongest, place, expectation))
            if looks[-1].inliers >= STRONG_LOOK_INLIERS:
                result = self._register(query, looks[-1], expectation)
                if isinstance(result, Registration):
                    return self._unless_ambiguous(
                        result, looks[-1], query, asked, expectation, circle
                    )
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
            result = self._register(query, look, expectation)
            if isinstance(result, Registration):
                return self._unless_ambiguous(result, look, query, asked, expectation, circle)
            if result.inliers > refusal.inliers or result.reason is Reason.IMPLAUSIBLE:
                refusal = result
        return refusal

    def _target(self, query: Query, center_m: FloatArray, half_size_m: float) -> Features:
        """Features of the map around a point, relative to it."""
        found = self._map.near(
            float(center_m[0]), float(center_m[1]), half_size_m=half_size_m, gsd_m=query.gsd_m
        )
        return Features(found.points - center_m, found.descriptors)

    def _look(
        self, query: Query, features: Features, place: Place, expectation: Expectation
    ) -> Look:
        origin = np.array([place.east_m, place.north_m])
        target = self._target(query, origin, query.reach_m + self._slack_m)
        found = coarse_similarity(features, target, self._config, expectation)
        if found is None:
            return Look(place, origin, 1.0, 0)
        center = apply(found.matrix, query.center_m[None])[0] + origin
        return Look(place, center, found.scale, found.inliers)

    def _register(
        self, query: Query, look: Look, expectation: Expectation
    ) -> Registration | Refusal:
        half_size_m = CLOSE_MARGIN * query.reach_m * look.scale
        target = self._target(query, look.center_m, half_size_m)
        return register(query.features, target, look.center_m, self._config, expectation)

    def _unless_ambiguous(
        self,
        registration: Registration,
        found: Look,
        query: Query,
        asked: list[Place],
        expectation: Expectation,
        circle: Circle | None,
    ) -> Alignment | Refusal:
        """The alignment, unless what fits there fits another place nearly as well."""
        features = query.features.strongest(LOOK_FEATURES)
        witnesses = find_witnesses(
            features,
            apply(registration.homography, features.points),
            self._target(query, found.center_m, CLOSE_MARGIN * query.reach_m * found.scale),
            self._config,
        )
        if len(witnesses) < self._config.min_inliers:
            return Refusal(
                Reason.AMBIGUOUS,
                f'{len(witnesses)} features can tell this place from another; '
                f'{self._config.min_inliers} are needed',
                registration.inliers,
            )
        near = None
        if circle is not None:
            east_m, north_m = circle[0] - registration.origin_m
            near = ((float(east_m), float(north_m)), circle[1])
        found_m = registration.to_map(query.center_m[None])[0]
        for place in self._rivals(found_m, query.offsets_m, asked, circle):
            center = np.array([place.east_m, place.north_m])
            around = self._target(query, center, query.reach_m + self._slack_m)
            # Relative to a point nearby: single precision has no room for a northing.
            target = Features(around.points + (center - registration.origin_m), around.descriptors)
            rival = count_elsewhere(
                witnesses,
                target,
                self._config,
                expectation,
                center_m=query.center_m,
                circle=near,
            )
            if len(witnesses) < self._config.min_lead * rival:
                return Refusal(
                    Reason.AMBIGUOUS,
                    f'{len(witnesses)} features fit one place and {rival} of them another as '
                    f'well; {self._config.min_lead:g} times as many are needed',
                    registration.inliers,
                )
        return Alignment(registration, found.place)

    def _rivals(
        self,
        center_m: FloatArray,
        offsets_m: FloatArray,
        asked: list[Place],
        circle: Circle | None,
    ) -> list[Place]:
        """What the map takes for the place itself, and what the frame resembled as well."""
        alike = look_alikes(
            self._search,
            center_m,
            offsets_m,
            apart_m=self.apart_m,
            count=self._config.rivals,
            circle=circle,
        )
        return alike + [
            place
            for place in asked
            if all(
                math.hypot(place.east_m - other.east_m, place.north_m - other.north_m)
                > 0.5 * self.apart_m
                for other in alike
            )
        ]
