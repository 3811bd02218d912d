"""Would the picture fit elsewhere as well? The test that a place must pass before it is believed.

The ratio test that registration rests on drops features that repeat, so where the ground repeats
(equal roofs, orchards, a copied piece of map) the few that survive by accident would look unique.
Here every feature that fits at the found place is asked for its look-alikes elsewhere, without a
ratio test; if those agree on another place, nobody can tell which one is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.camera import apply
from bicrossnet_ros.config import RegistrationConfig
from bicrossnet_ros.features import Features, similarities
from bicrossnet_ros.ranking import Circle
from bicrossnet_ros.registration import (
    COARSE_FACTOR,
    Expectation,
    fit_similarity,
    refused_shape,
)
from bicrossnet_ros.types import FloatArray

# A match counts as nearly as good if its descriptor distance is within this factor (1 / 0.8).
NEARLY = 1.25
MAX_WITNESSES = 128
LOOK_ALIKES = 4


@dataclass(frozen=True)
class Witnesses:
    """Query features that fit at the found place.

    Parameters
    ----------
    features : Features
        Points in patch metres.
    places_m : ndarray of shape (W, 2)
        Where on the map they are, from the same origin as the map's features.
    distance : ndarray of shape (W,)
        Squared descriptor distance to the map there, halved.
    """

    features: Features
    places_m: FloatArray
    distance: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.features)


def find_witnesses(
    query: Features, places_m: FloatArray, target: Features, config: RegistrationConfig
) -> Witnesses:
    """The query features whose match at the found place is about the best there is around.

    Parameters
    ----------
    query : Features
    places_m : ndarray of shape (N, 2)
        Where the registration puts them.
    target : Features
        Of the map around, from the same origin.
    config : RegistrationConfig
    """
    if len(query) == 0 or len(target) == 0:
        return Witnesses(query.strongest(0), places_m[:0], np.zeros(0, np.float32))
    distance = 1.0 - similarities(query, target)
    here = _within(places_m, target.points, 1.5 * config.threshold_m)
    own = np.where(here, distance, np.inf).min(axis=1)
    kept = np.flatnonzero(own <= NEARLY**2 * distance.min(axis=1))[:MAX_WITNESSES]
    return Witnesses(query.take(kept), places_m[kept], own[kept].astype(np.float32))


def count_elsewhere(
    witnesses: Witnesses,
    target: Features,
    config: RegistrationConfig,
    expectation: Expectation,
    *,
    center_m: FloatArray,
    circle: Circle | None = None,
) -> int:
    """How many witnesses agree on one other place among the features of a piece of map.

    Parameters
    ----------
    witnesses : Witnesses
    target : Features
        Of the piece of map, from the same origin as the witnesses' places.
    config : RegistrationConfig
    expectation : Expectation
    center_m : ndarray of shape (2,)
        The image's middle, in patch metres.
    circle : Circle, optional
        From the same origin; a place that puts the image's middle outside does not count.
    """
    if len(witnesses) < 2 or len(target) < 2:
        return 0
    distance = 1.0 - similarities(witnesses.features, target)
    near_m = 2.0 * COARSE_FACTOR * config.threshold_m
    distance[_within(witnesses.places_m, target.points, near_m)] = np.inf
    limit = NEARLY**2 * witnesses.distance
    rows = np.arange(len(witnesses))
    pairs = []
    for _ in range(LOOK_ALIKES):
        nearest = distance.argmin(axis=1)
        alike = np.flatnonzero(distance[rows, nearest] <= limit)
        if len(alike) == 0:
            break
        pairs.append(np.stack([alike, nearest[alike]], axis=1))
        distance[rows, nearest] = np.inf
    if not pairs:
        return 0
    found = fit_similarity(witnesses.features, target, np.concatenate(pairs), config)
    if found is None or refused_shape(found.scale, found.rotation_deg, expectation):
        return 0
    if circle is not None:
        off_m = apply(found.matrix, center_m[None])[0] - circle[0]
        if float(np.linalg.norm(off_m)) > circle[1]:
            return 0
    return len(np.unique(found.agreeing))


def _within(places_m: FloatArray, points: FloatArray, limit_m: float) -> NDArray[np.bool_]:
    """Which points (M, 2) lie in a square of twice the limit around each place (N, 2): (N, M)."""
    places, others = places_m.astype(np.float32), points.astype(np.float32)
    east = np.abs(places[:, None, 0] - others[None, :, 0]) <= limit_m
    return np.asarray(east & (np.abs(places[:, None, 1] - others[None, :, 1]) <= limit_m))
