"""How long an evaluation of a flight will take, before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from bicrossnet_ros.flight import Flight
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.hypotheses import interpret
from bicrossnet_ros.patch import FramePyramid
from bicrossnet_ros.query_patches import cut_patches
from training.flight_conditions import DISTRACTORS, HEADINGS, PLAIN, parse_condition
from training.flight_gallery import FlightEncoder
from training.flight_plan import ALONE, PIPELINE, Job
from training.flight_retrieval import config_for
from training.flight_workshop import Workshop
from training.progress import clock

# Seconds of one core that frames of 1024 x 768 px and a map of 0.14 km2 took.
WARP_S = 0.0004
CHANGE_S = 0.01  # for each kind of change
REGISTER_S = {True: 0.2, False: 0.5}
BRUTE_FORCE_S = 0.12
SCENE_FEATURES_S = 0.25


def estimate_lines(shop: Workshop, missing: Sequence[Job], growth: Sequence[int]) -> list[str]:
    """Say what the missing rows will take on one core, part by part, and what could be left out.

    Parameters
    ----------
    shop : Workshop
    missing : sequence of Job
    growth : sequence of int
        Areas that are still to be measured; see `growth_seconds`.
    """
    frames = len(shop.flight)
    spent: dict[str, float] = {}
    conditions = {job.condition for job in missing}
    changes = sum(len(parse_condition(name).kinds) for name in conditions)
    if changes:
        spent['changing the frames'] = changes * frames * CHANGE_S
    for name in dict.fromkeys(job.model for job in missing):
        own = [job for job in missing if job.model == name]
        spent[name] = _model_seconds(shop, name, own, frames)
    if growth:
        spent['growth of the map'] = growth_seconds(shop, growth)
    lines = [f'{clock(seconds)} {name}' for name, seconds in spent.items()]
    if not spent:
        return ['nothing is left to do']
    return [
        *lines,
        f'{clock(sum(spent.values()))} in all on one core; to save: --lean the float models (see '
        'its help), --distractor-scenes 60, --retrievals vote, --each-kind none, --baselines '
        'none, --growth none',
    ]


def growth_seconds(shop: Workshop, times: Sequence[int]) -> float:
    """Time that areas take: features of the scenes once, then what grows with the area."""
    scenes = shop.mosaic().scenes if max(times) > 1 else 0
    return scenes * SCENE_FEATURES_S + sum(10.0 + 1.0 * area for area in times)


def _model_seconds(shop: Workshop, name: str, jobs: Sequence[Job], frames: int) -> float:
    if jobs[0].retrieval == ALONE:
        return len(jobs) * frames * BRUTE_FORCE_S
    total = 0.0
    for retrieval in dict.fromkeys(job.searched for job in jobs):
        own = [job for job in jobs if job.searched == retrieval]
        base = shop.base(retrieval)
        image_s = encode_s(shop.encoder(name), base.manifest.tile_px)
        for job in own:
            patches = patches_of_frame(shop.flight, base, retrieval, job.heading)
            total += frames * patches * (image_s + WARP_S)
            if job.retrieval == PIPELINE:
                total += frames * REGISTER_S[job.condition in (PLAIN, DISTRACTORS)]
        distractors = any(parse_condition(job.condition).distractors for job in own)
        for tiles in shop.tiles(retrieval, distractors=distractors):
            if not shop.embedded(name, retrieval, tiles):
                total += len(tiles) * image_s
    return total


def patches_of_frame(flight: Flight, gallery: Gallery, retrieval: str, heading: str) -> int:
    """How many patches of a frame are embedded, as the first usable frame has them."""
    config = config_for(retrieval)
    record = next(record for record in flight.records if not record.problem)
    frame = flight.frame(record, heading=HEADINGS[heading])
    manifest = gallery.manifest
    patches, _ = cut_patches(
        FramePyramid(frame.image),
        interpret(frame, config.camera, convergence_deg=0.0).hypotheses,
        tile_px=manifest.tile_px,
        gsd_m=manifest.gsd_m,
        limit=config.retrieval.patches,
    )
    return len(patches)


def encode_s(encoder: FlightEncoder, tile_px: int) -> float:
    """Seconds of one core that this encoder takes for an image, from the best of three tries."""
    images = np.random.default_rng(0).integers(0, 256, (8, tile_px, tile_px, 3), dtype=np.uint8)
    encoder.encode(images[:1])
    spent = []
    for _ in range(3):
        start = time.process_time()
        encoder.encode(images)
        spent.append(time.process_time() - start)
    return min(spent) / len(images)
