"""Under which conditions a flight is replayed: what is known of the heading, what changed.

A condition never changes a `Flight` in place: it makes another one, whose frames and headings
depend on the seed and the frame's name alone, so that all models see the same ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.flight import Flight, FlightRecord
from bicrossnet_ros.types import ImageArray

# Our name of a kind of heading: what `Flight.frame` calls it.
HEADINGS = {'truth15': 'truth', 'autopilot': 'recorded', 'unknown': 'unknown'}
TRUTH_NOISE_DEG = 15.0
PLAIN, DISTRACTORS = 'plain', 'distractors'


@dataclass(frozen=True)
class Condition:
    """What is different from the flight as it was recorded.

    Parameters
    ----------
    name : str
        'plain', 'distractors', 'mild', 'medium', 'strong', or STRENGTH:KIND.
    distractors : bool
        Whether the gallery holds the test scenes too.
    kinds : tuple of str
        World changes applied to the frames.
    strength : float
        Of all of them.
    """

    name: str
    distractors: bool = False
    kinds: tuple[str, ...] = ()
    strength: float = 0.0


def parse_condition(name: str) -> Condition:
    """The condition of a name.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    from training.data.world import STRENGTHS, WORLD_CHANGES

    if name == PLAIN:
        return Condition(PLAIN)
    if name == DISTRACTORS:
        return Condition(DISTRACTORS, distractors=True)
    strength, _, kind = name.partition(':')
    if strength not in STRENGTHS or (kind and kind not in WORLD_CHANGES):
        raise ConfigError(
            f'condition {name!r} is unknown; expected {PLAIN}, {DISTRACTORS}, one of '
            f'{list(STRENGTHS)}, or one of these with a kind, such as medium:{WORLD_CHANGES[0]} '
            f'({", ".join(WORLD_CHANGES)})'
        )
    kinds = (kind,) if kind else tuple(WORLD_CHANGES)
    return Condition(name, kinds=kinds, strength=float(STRENGTHS[strength]))


def each_kind(strength: str) -> list[str]:
    """Names of the conditions that change one kind of thing alone."""
    from training.data.world import WORLD_CHANGES

    return [f'{strength}:{kind}' for kind in WORLD_CHANGES]


def under(flight: Flight, condition: Condition, *, seed: int) -> Flight:
    """The flight whose frames show the changed world; frames are kept in memory once made."""
    kept: dict[str, ImageArray] = {}

    def read(record: FlightRecord) -> ImageArray:
        if record.file not in kept:
            kept[record.file] = _changed(flight.image(record), record.file, condition, seed)
        return kept[record.file]

    return _like(flight, flight.records, read)


def with_heading(flight: Flight, heading: str, *, seed: int) -> Flight:
    """The flight for one of `HEADINGS`: for 'truth15' its true headings carry the noise.

    The noise is uniform within 15 degrees to either side.
    """
    if heading not in HEADINGS:
        raise ConfigError(f'heading {heading!r} is unknown; expected one of {list(HEADINGS)}')
    if heading != 'truth15':
        return flight
    if all(record.truth_heading_deg is None for record in flight.records):
        raise ConfigError(
            f'{flight.name} has no true heading, which the heading truth15 is made from; '
            'leave it out of --headings'
        )
    records = tuple(_noisy(record, seed) for record in flight.records)
    return _like(flight, records, flight.image)


def some_frames(flight: Flight, count: int | None) -> Flight:
    """The flight with `count` of its frames, spread evenly; all for None."""
    if count is None or count >= len(flight):
        return flight
    rows = np.linspace(0, len(flight) - 1, count).round().astype(int)
    return _like(flight, tuple(flight.records[row] for row in rows), flight.image)


def _changed(image: ImageArray, file: str, condition: Condition, seed: int) -> ImageArray:
    if not condition.kinds:
        return image
    from training.data.world import change_world

    # One stream a frame: whatever is left out or comes first, a frame looks the same.
    rng = np.random.default_rng([seed, zlib.crc32(file.encode())])
    return np.asarray(
        change_world(image, rng, kinds=condition.kinds, strength=condition.strength), np.uint8
    )


def _noisy(record: FlightRecord, seed: int) -> FlightRecord:
    if record.truth_heading_deg is None:
        return record
    rng = np.random.default_rng([seed, zlib.crc32(record.file.encode()), 15])
    error_deg = rng.uniform(-TRUTH_NOISE_DEG, TRUTH_NOISE_DEG)
    return replace(record, truth_heading_deg=(record.truth_heading_deg + error_deg) % 360.0)


def _like(
    flight: Flight,
    records: tuple[FlightRecord, ...],
    read: Callable[[FlightRecord], ImageArray],
) -> Flight:
    return Flight(
        flight.name,
        records,
        read,
        camera=flight.camera,
        truth_is_map_relative=flight.truth_is_map_relative,
    )
