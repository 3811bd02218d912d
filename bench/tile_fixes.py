"""The thresholds for fixes without registration, from flights and from pictures of other places.

    python -m bench.tile_fixes GALLERY FLIGHT [--model FILE] [--elsewhere DIR] [--world 0.333]

Every frame of the flight (heading as recorded, and unknown) and every picture of the folder, which
shows no place of the map, is ranked by retrieval alone. A fix needs a lead over every place
elsewhere (`retrieval.min_margin`) and a similarity (`retrieval.min_tile_similarity`). Printed are,
for a grid of both, the share of frames that get a fix, how many fixes are wrong by more than 25 m
and how many pictures of elsewhere get one; then the pair with the most fixes and none wrong, and
how often the 95 % ellipse holds the truth where the best place is right.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from bicrossnet_ros.config import (
    IntegrityConfig,
    LocalizerConfig,
    RegistrationConfig,
    RetrievalConfig,
)
from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.evaluation import CHI2_95, FALSE_FIX_M, record_from_estimate, score
from bicrossnet_ros.flight import open_flight
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.integrity import lead_over_elsewhere
from bicrossnet_ros.localizer import Localizer
from bicrossnet_ros.types import Attitude, Frame

CONFIG = LocalizerConfig(
    retrieval=RetrievalConfig(candidates=500, min_margin=0.0, min_tile_similarity=-1.0),
    registration=RegistrationConfig(enabled=False),
    integrity=IntegrityConfig(map_accuracy_m=0.0),
)


def on_map(flight, localizer, *, world: float) -> np.ndarray:
    """Similarity, lead, error in metres and normalised squared error of every frame, (N, 4)."""
    rows = []
    for heading in ('recorded', 'unknown'):
        for number, truth in enumerate(flight.records):
            frame = flight.frame(truth, heading=heading)
            if world:
                from training.data.world import change_world

                rng = np.random.default_rng(number)
                frame = replace(frame, image=change_world(frame.image, rng, strength=world))
            estimate = localizer.localize(frame)
            record = score(record_from_estimate(estimate, ''), truth, crs=localizer.gallery.crs)
            rows.append(
                (*evidence(estimate, localizer), record.center_error_m, record.center_nees)
            )
    return np.array(rows)


def elsewhere(folder: Path, localizer, like: Frame, *, step: int) -> np.ndarray:
    """Similarity and lead of pictures that show no place of the map, (N, 2)."""
    rows = []
    height, width = like.image.shape[:2]
    for path in sorted(folder.rglob('*.jpg'))[::step]:
        image = cv2.imread(str(path))
        scale = max(width / image.shape[1], height / image.shape[0])
        image = cv2.resize(image, None, fx=scale, fy=scale)[:height, :width, ::-1]
        image = np.ascontiguousarray(image)
        frame = replace(like, image=image, attitude=Attitude(0.0, 0.0, 40.0))
        rows.append(evidence(localizer.localize(frame), localizer))
    return np.array(rows).reshape(-1, 2)


def evidence(estimate, localizer) -> tuple[float, float]:
    """Similarity of the best place and its lead over every place elsewhere."""
    matches = list(estimate.candidates)
    lead = lead_over_elsewhere(matches, tile_size_m=localizer.gallery.tile_size_m)
    return matches[0].similarity, lead


def main() -> int:
    """Print the grid and the pair to take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('gallery', type=Path)
    add('flight', type=Path)
    add('--model', type=Path, default=default_model_path())
    add('--elsewhere', type=Path, help='folder of pictures (.jpg) of other places')
    add('--step', type=int, default=10, help='every so manyth of those pictures')
    add('--world', type=float, default=0.0, help='strength of changes of the world, 0 to 1')
    options = parser.parse_args()
    encoder = open_encoder(options.model)
    flight = open_flight(options.flight)
    with open_gallery(options.gallery, encoder=encoder) as gallery:
        localizer = Localizer(gallery, encoder, CONFIG)
        known = on_map(flight, localizer, world=options.world)
        like = flight.frame(flight.records[0])
        other = np.zeros((0, 2))
        if options.elsewhere:
            other = elsewhere(options.elsewhere, localizer, like, step=options.step)
    report(known, other)
    return 0


def report(known: np.ndarray, other: np.ndarray) -> None:
    """Print the grid, the pair that gives most fixes and none wrong, and the containment."""
    wrong = ~(known[:, 2] <= FALSE_FIX_M)
    print('| min_margin | min_tile_similarity | fixes | wrong | of elsewhere |')
    print('|---|---|---|---|---|')
    best = (0.0, 0.0, 0.0)
    for margin in np.arange(0.0, 0.3001, 0.01):
        for similarity in np.arange(0.3, 0.951, 0.05):
            fixed = (known[:, 1] >= margin) & (known[:, 0] >= similarity)
            foreign = int(((other[:, 1] >= margin) & (other[:, 0] >= similarity)).sum())
            false = int((fixed & wrong).sum())
            if round(margin * 100) % 4 == 0 and fixed.any():
                counts = f'{fixed.mean():.0%} | {false} | {foreign}'
                print(f'| {margin:.2f} | {similarity:.2f} | {counts} |')
            if not false and not foreign and fixed.mean() > best[0]:
                best = (float(fixed.mean()), float(margin), float(similarity))
    print(
        f'{len(known)} frames, {wrong.mean():.0%} of their best places wrong; '
        f'{len(other)} pictures of elsewhere. Most fixes and none wrong: {best[0]:.0%} '
        f'with min_margin {best[1]:.2f}, min_tile_similarity {best[2]:.2f}; add a reserve.'
    )
    inside = known[~wrong, 3] <= CHI2_95
    print(f'95 % ellipse around right places: {inside.mean():.0%} of {len(inside)}')


if __name__ == '__main__':
    sys.exit(main())
