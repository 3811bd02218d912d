"""Sheets of the frames that retrieval places wrongly: what was seen, and what was taken for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.evaluation import score
from bicrossnet_ros.fix_record import record_from_estimate
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.geodesy import grid_convergence_deg, to_projected
from bicrossnet_ros.hypotheses import Hypothesis, interpret
from bicrossnet_ros.localizer import Localizer
from bicrossnet_ros.patch import FramePyramid, ground_patch
from bicrossnet_ros.query_patches import patch_offsets
from bicrossnet_ros.replay import settle_config
from bicrossnet_ros.types import FloatArray, Frame, ImageArray, TileMatch
from training.figures import FAINT, NEUTRAL, RIGHT, STYLE, WRONG
from training.flight_conditions import HEADINGS, parse_condition, with_heading
from training.flight_retrieval import config_for
from training.flight_workshop import Workshop
from training.progress import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_SHEET = 4
LISTED = 500
WRONG_M = 25.0
NEAR_M = 10.0
# Ground shown around a place: the footprint of a frame and some more.
SHOWN_M = 112.0
PICTURE = 1.75


@dataclass(frozen=True)
class Failure:
    """A frame and two pieces of map.

    Parameters
    ----------
    file : str
    frame, patch : ndarray of shape (H, W, 3), uint8
        As taken, and north up.
    best, true : ndarray of shape (H, W, 3), uint8
        Map around the best place and around the true one.
    offsets_m : ndarray of shape (P, 2)
        (east, north) of the patches from the middle.
    tile_m : float
        Side of a patch.
    best_similarity, true_similarity : float
        NaN if no tile near the true place is among those listed.
    true_rank : int
        From 1; 0 if it is not.
    distance_m : float
        From the best place to the true one.
    """

    file: str
    frame: ImageArray
    patch: ImageArray
    best: ImageArray
    true: ImageArray
    offsets_m: FloatArray
    tile_m: float
    best_similarity: float
    true_similarity: float
    true_rank: int
    distance_m: float


def write_failures(
    shop: Workshop,
    out: Path,
    *,
    model: str,
    heading: str,
    count: int,
    seed: int,
    condition: str = 'plain',
) -> list[Path]:
    """Write `failures_*.jpg` with the frames that are placed the furthest off; returns them."""
    gallery = shop.gallery(model, 'vote', distractors=False)
    flight = with_heading(shop.changed(parse_condition(condition)), heading, seed=seed)
    config = settle_config(
        config_for('vote', candidates=LISTED),
        registration=False,
        truth_is_map_relative=flight.truth_is_map_relative,
    )
    localizer = Localizer(gallery, shop.encoder(model), config)
    found = []
    for record in counted(flight.records, 'failures', len(flight)):
        if record.problem or not record.has_center_truth:
            continue
        frame = flight.frame(record, heading=HEADINGS[heading])
        estimate = localizer.localize(frame)
        distances = score(
            record_from_estimate(estimate, record.file), record, crs=gallery.crs
        ).candidate_distances_m
        if not distances or distances[0] <= WRONG_M:
            continue
        truth_m = to_projected(
            gallery.crs, record.truth_center_lat_deg, record.truth_center_lon_deg
        )
        found.append(_failure(gallery, config, frame, estimate.candidates, distances, truth_m))
    for stale in out.glob('failures_*.jpg'):
        stale.unlink()
    shown = sorted(found, key=lambda one: -one.distance_m)[:count]
    paths = []
    for number, start in enumerate(range(0, len(shown), PER_SHEET), 1):
        paths.append(out / f'failures_{number}.jpg')
        title = (
            f'{model}, heading {heading}, {condition}: the {len(shown)} furthest off of '
            f'{len(found)} frames (of {len(flight)}) placed wrongly'
        )
        _save(failure_sheet(shown[start : start + PER_SHEET], title=title), paths[-1])
    return paths


def failure_sheet(failures: Sequence[Failure], *, title: str) -> Figure:
    """Draw a row for each failure: frame, north-up patch, wrong place and true place."""
    import matplotlib
    from matplotlib.figure import Figure

    heads = ('frame', 'north up, its patches', 'best place', 'true place')
    gap, left, top, caption = 0.08, 0.08, 0.52, 0.34
    wide = PICTURE * 4 / 3
    width = left + wide + 3 * PICTURE + 3 * gap + 0.08
    height = top + len(failures) * (PICTURE + caption)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.text(left / width, 1 - 0.08 / height, title, va='top', size=9.5, weight='bold')
        for number, failure in enumerate(failures):
            bottom = height - top - number * (PICTURE + caption) - PICTURE
            x = left
            for column, head in enumerate(heads):
                size = wide if column == 0 else PICTURE
                axes = figure.add_axes(
                    (x / width, bottom / height, size / width, PICTURE / height)
                )
                if number == 0:
                    figure.text(
                        (x + size / 2) / width, (height - top + 0.06) / height, head,
                        ha='center', size=8, color=NEUTRAL,
                    )  # fmt: skip
                _draw(axes, failure, column)
                x += size + gap
    return figure


def _failure(
    gallery: Gallery,
    config: Any,
    frame: Frame,
    candidates: Sequence[TileMatch],
    distances_m: Sequence[float],
    truth_m: tuple[float, float],
) -> Failure:
    best = candidates[0]
    near = [rank for rank, distance_m in enumerate(distances_m) if distance_m <= NEAR_M]
    convergence_deg = grid_convergence_deg(gallery.crs, *gallery.origin)
    tried = interpret(frame, config.camera, convergence_deg=convergence_deg).hypotheses
    guess = min(tried, key=lambda one: _differs(one, best))
    pixels = round(SHOWN_M / gallery.manifest.gsd_m)
    patch = ground_patch(
        FramePyramid(frame.image),
        guess.view,
        size_px=(pixels, pixels),
        gsd_m=gallery.manifest.gsd_m,
    )
    offsets_m = patch_offsets(
        guess.view, tile_m=gallery.tile_size_m, limit=config.retrieval.patches
    )
    blank = np.full_like(patch.image, 235)
    return Failure(
        file=frame.name,
        frame=frame.image,
        patch=np.where(patch.mask[..., None], patch.image, blank),
        best=_map(gallery, best.east_m, best.north_m),
        true=_map(gallery, *truth_m),
        offsets_m=offsets_m,
        tile_m=gallery.tile_size_m,
        best_similarity=best.similarity,
        true_similarity=candidates[near[0]].similarity if near else math.nan,
        true_rank=near[0] + 1 if near else 0,
        distance_m=distances_m[0],
    )


def _differs(guess: Hypothesis, match: TileMatch) -> tuple[float, float]:
    return abs(guess.heading_deg - match.heading_deg), abs(guess.agl_m - match.agl_m)


def _map(gallery: Gallery, east_m: float, north_m: float) -> ImageArray:
    window = gallery.window(east_m, north_m, size_m=SHOWN_M)
    return np.where(window.mask[..., None], window.image, np.uint8(235))


def _draw(axes: Axes, failure: Failure, column: int) -> None:
    image = (failure.frame, failure.patch, failure.best, failure.true)[column]
    half = 0.5 * SHOWN_M
    extent = (0, image.shape[1], image.shape[0], 0) if column == 0 else (-half, half, -half, half)
    axes.imshow(image, extent=extent, interpolation='antialiased')
    axes.set_xticks([])
    axes.set_yticks([])
    color = (NEUTRAL, NEUTRAL, WRONG, RIGHT)[column]
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=1.4)
    if column > 0:
        _outline(axes, failure, color)
    axes.text(
        0.5, -0.03, _caption(failure, column), transform=axes.transAxes,
        ha='center', va='top', size=7, color=FAINT if column < 2 else color,
    )  # fmt: skip


def _outline(axes: Axes, failure: Failure, color: str) -> None:
    from matplotlib.patches import Rectangle

    side = failure.tile_m
    for east_m, north_m in failure.offsets_m:
        corner = east_m - 0.5 * side, north_m - 0.5 * side
        axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor='w', linewidth=0.6))
    axes.plot(0, 0, marker='+', color=color, markersize=7)
    axes.set(xlim=(-0.5 * SHOWN_M, 0.5 * SHOWN_M), ylim=(-0.5 * SHOWN_M, 0.5 * SHOWN_M))


def _caption(failure: Failure, column: int) -> str:
    if column == 0:
        return failure.file
    if column == 1:
        return f'{len(failure.offsets_m)} patches of {failure.tile_m:.0f} m'
    if column == 2:
        return f'similarity {failure.best_similarity:.3f}, {failure.distance_m:.0f} m off'
    if failure.true_rank == 0:
        return f'not among the first {LISTED}'
    return f'similarity {failure.true_similarity:.3f}, rank {failure.true_rank}'


def _save(figure: Figure, path: Path) -> None:
    """JPEG of at most 200 KB: what the repository keeps must stay small."""
    import matplotlib

    for quality in (85, 75, 60, 45):
        with matplotlib.rc_context(STYLE):
            figure.savefig(
                path, dpi=110, facecolor='white', pil_kwargs={'quality': quality, 'optimize': True}
            )
        if path.stat().st_size <= 200_000:
            return
