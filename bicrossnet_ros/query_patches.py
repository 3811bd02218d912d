"""A frame cut into patches of the gallery's tile size that can vote for one place together.

References
----------
Hausler, Garg, Xu, Milford, Fischer, "Patch-NetVLAD" (CVPR 2021): pieces of one picture that agree
on one displacement recognise a place better than one descriptor of the whole. Here attitude and
height say where on the ground each piece lies, so that nothing has to be searched but the place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bicrossnet_ros.camera import GroundView, top_heading_deg
from bicrossnet_ros.hypotheses import Hypothesis
from bicrossnet_ros.patch import FramePyramid, ground_patch
from bicrossnet_ros.tile_index import Int64Array
from bicrossnet_ros.types import FloatArray, ImageArray

# Patches closer than this share of a tile show much the same ground.
STEP = 0.5
# Ground seen more slantingly than this is a smear at the resolution of the map.
MAX_SLANT_DEG = 60.0
# Patches lie at most so many tiles from the middle, along each axis: an error of 10 deg
# in heading or 15 % in height then moves them by a quarter of a tile.
MAX_OFFSET = 1.5
# A patch that sees less ground than this says more about its edge than about the ground.
MIN_SHARE = 0.4


@dataclass(frozen=True)
class Ballot:
    """Who votes: where the patches of a frame lie, and what they count.

    Parameters
    ----------
    offsets_m : ndarray of shape (Q, 2)
        (east, north) of a patch's middle from the ground point at the image's middle.
    weights : ndarray of shape (Q,)
        Above 0.
    hypothesis : ndarray of shape (Q,), int64
        Which hypothesis a patch was cut under; patches of one hypothesis stand together.
    guesses : tuple of (heading_deg, agl_m)
        Of the hypotheses.
    """

    offsets_m: FloatArray
    weights: FloatArray
    hypothesis: Int64Array
    guesses: tuple[tuple[float, float], ...]

    def members(self, hypothesis: int) -> Int64Array:
        """The patches of a hypothesis."""
        return np.flatnonzero(self.hypothesis == hypothesis)

    @property
    def reach_m(self) -> float:
        """How far patches lie from the image's middle at most."""
        return float(np.linalg.norm(self.offsets_m, axis=1).max(initial=0.0))


def cut_patches(
    pyramid: FramePyramid,
    hypotheses: Sequence[Hypothesis],
    *,
    tile_px: int,
    gsd_m: float,
    limit: int,
) -> tuple[ImageArray, Ballot]:
    """All patches of a frame under all hypotheses.

    Parameters
    ----------
    pyramid : FramePyramid
    hypotheses : sequence of Hypothesis
    tile_px, gsd_m
        Of the gallery.
    limit : int
        Most patches a hypothesis; 1: one around the image's middle.

    Returns
    -------
    patches : ndarray of shape (Q, tile_px, tile_px, 3), uint8
        North up.
    ballot : Ballot
        Patches that see little ground weigh less; those that see next to none are left out.
    """
    images, offsets, weights, owners = [], [], [], []
    for number, guess in enumerate(hypotheses):
        middle = guess.view.center_m
        seen = []
        for offset in patch_offsets(guess.view, tile_m=tile_px * gsd_m, limit=limit):
            patch = ground_patch(
                pyramid,
                guess.view,
                size_px=(tile_px, tile_px),
                gsd_m=gsd_m,
                middle_m=middle + offset,
            )
            seen.append((float(patch.mask.mean()), patch.image, offset))
        least = min(MIN_SHARE, max(share for share, _, _ in seen))
        for share, image, offset in seen:
            if share >= least:
                images.append(image)
                offsets.append(offset)
                weights.append(max(share, 1e-3))
                owners.append(number)
    ballot = Ballot(
        np.array(offsets).reshape(-1, 2),
        np.array(weights),
        np.array(owners, np.int64),
        tuple((guess.heading_deg, guess.agl_m) for guess in hypotheses),
    )
    return np.stack(images), ballot


def patch_offsets(view: GroundView, *, tile_m: float, limit: int) -> FloatArray:
    """Middles of patches, (N, 2) as (east, north) from the ground at the image's middle.

    They stand in rows along the frame's axes, spread over what it sees of the ground; one in the
    middle if that is hardly larger than a tile.
    """
    turn = math.radians(top_heading_deg(view.rotation))
    right = np.array([math.cos(turn), -math.sin(turn)])
    up = np.array([math.sin(turn), math.cos(turn)])
    axes = np.stack([right, up])
    footprint = view.footprint_m()
    far = np.linalg.norm(footprint, axis=1) / (view.agl_m * math.tan(math.radians(MAX_SLANT_DEG)))
    footprint = footprint / np.maximum(far, 1.0)[:, None]
    ground = (footprint - view.center_m) @ axes.T
    reach_m = (MAX_OFFSET + 0.5) * tile_m
    low, high = np.clip((ground.min(axis=0), ground.max(axis=0)), -reach_m, reach_m)
    columns, rows = _counts(high - low - tile_m, tile_m=tile_m, limit=limit)
    if columns * rows == 1:
        return np.zeros((1, 2))
    across = _spread(low[0], high[0], columns, tile_m)
    along = _spread(low[1], high[1], rows, tile_m)
    grid = np.stack(np.meshgrid(across, along), axis=-1).reshape(-1, 2)
    return np.asarray(grid @ axes, np.float64)


def _counts(room_m: FloatArray, *, tile_m: float, limit: int) -> tuple[int, int]:
    """Columns and rows of patches, as many as are apart, at most `limit`: the closest go first."""
    room = np.maximum(room_m, 0.0)
    counts = np.minimum(1 + np.floor(room / (STEP * tile_m)), limit).astype(int)
    while counts.prod() > limit:
        apart = np.where(counts > 1, room / np.maximum(counts - 1, 1), np.inf)
        counts[int(np.argmin(apart))] -= 1
    return int(counts[0]), int(counts[1])


def _spread(low: float, high: float, count: int, tile_m: float) -> FloatArray:
    if count == 1:
        return np.array([0.5 * (low + high)])
    return np.linspace(low + 0.5 * tile_m, high - 0.5 * tile_m, count)
