"""Divide the scenes of a data folder into train, validation and test; made ``overhead.csv``.

    python -m training.splits.divide DATA OUT [--previous FILE]

Of every stratum of RSSCN7 (a land use at one of the four scales, which the file numbers 001-100,
101-200, 201-300 and 301-400 of a class tell; 100 scenes) 80 go to train, 10 to validation and 10
to test, drawn with a fixed seed. Scenes that share ground with another (`overlaps`) all go to
train, and the others of their stratum fill the other sides. RSSCN7 has 220 such pairs among 391
scenes: 35 within a scale, and 185 of a scene and one of the next scale that shows twice the ground
a side, of which it is often the very middle. What is not looked for: overlaps of less than about a
third, scenes that are turned, and scales that are two steps apart. The few squares of other origin
(NEON) go to train.

A split that networks were trained with may only change by scenes that move to train; with
``--previous`` all others stay where they are. That happened to ``overhead.csv``: first drawn when
only 27 of the pairs, all of one scale, had been found, it lost the held-out scenes of the other
pairs to train. So 6 to 10 scenes of each stratum validate and 7 to 10 test, not 10.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.data.gather import RSSCN7
from training.data.scenes import list_scenes, read_scene
from training.splits import TEST, TRAIN, VALIDATION, load_split, write_split
from training.splits.overlaps import SIDE_PX, overlapping, within

SEED = 20
# Of the 100 scenes of a stratum.
HELD_OUT_SHARE = 0.1
SCALES = 4
_SCENES_A_SCALE = 100


def stratum(scene: str) -> tuple[str, int]:
    """Return land use and scale (0 the finest to 3) of a scene 'rsscn7/<class>/<letter><n>.jpg'.

    Raises
    ------
    ConfigError
        If the name is none of RSSCN7's.
    """
    parts = scene.split('/')
    number = Path(scene).stem[1:]
    if parts[0] != RSSCN7 or len(parts) != 3 or not number.isdigit():
        raise ConfigError(f'{scene}: expected {RSSCN7}/<class>/<letter><number>.jpg')
    scale = (int(number) - 1) // _SCENES_A_SCALE
    if scale not in range(SCALES):
        raise ConfigError(f'{scene}: expected a number from 1 to {SCALES * _SCENES_A_SCALE}')
    return parts[1], scale


def divide(scenes: Sequence[str], *, overlaps: set[str], seed: int = SEED) -> dict[str, str]:
    """Put every scene on a side.

    Parameters
    ----------
    scenes : sequence of str
        Names below the data folder.
    overlaps : set of str
        Those that share ground with another: they train.
    seed : int
        Of the draw.

    Returns
    -------
    dict of str to str
        In the order of `scenes`.
    """
    split = dict.fromkeys(scenes, TRAIN)
    strata: dict[tuple[str, int], list[str]] = {}
    for scene in sorted(scenes):
        if scene.startswith(f'{RSSCN7}/'):
            strata.setdefault(stratum(scene), []).append(scene)
    rng = np.random.default_rng(seed)
    for members in strata.values():
        count = round(HELD_OUT_SHARE * len(members))
        free = [scene for scene in members if scene not in overlaps]
        drawn = rng.permutation(free).tolist()
        split.update(dict.fromkeys(drawn[:count], VALIDATION))
        split.update(dict.fromkeys(drawn[count : 2 * count], TEST))
    return split


def keep(previous: dict[str, str], scenes: Sequence[str], *, overlaps: set[str]) -> dict[str, str]:
    """Return a split in which scenes that share ground, and new ones, train; others stay."""
    return {scene: TRAIN if scene in overlaps else previous.get(scene, TRAIN) for scene in scenes}


def find_overlaps(root: Path, scenes: Sequence[str]) -> list[tuple[str, str, float]]:
    """Find pairs of RSSCN7's scenes that share ground, and how well it agrees (a correlation).

    Compared are scenes of one scale, and those of each scale with those of the next, which show
    twice the ground a side.
    """
    scales = [
        [s for s in scenes if s.startswith(f'{RSSCN7}/') and stratum(s)[1] == scale]
        for scale in range(SCALES)
    ]
    gray = [np.stack([_gray(root / scene) for scene in names]) for names in scales]
    pairs = []
    for scale, names in enumerate(scales):
        found = [(names[a], names[b], value) for a, b, value in overlapping(gray[scale])]
        if scale + 1 < SCALES:
            larger = scales[scale + 1]
            inside = within(gray[scale], gray[scale + 1])
            found += [(names[a], larger[b], value) for a, b, value in inside]
        pairs += found
    return pairs


def _gray(path: Path) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(read_scene(path, scene_px=SIDE_PX), cv2.COLOR_RGB2GRAY))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.splits.divide',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('data', type=Path, help='what training.data.gather made')
    parser.add_argument('out', type=Path, help='CSV file to write')
    parser.add_argument(
        '--previous', type=Path, help='split that networks were trained with; see above'
    )
    options = parser.parse_args(arguments)
    try:
        names = [p.relative_to(options.data).as_posix() for p in list_scenes(options.data)]
        pairs = find_overlaps(options.data, names)
        shared = {scene for pair in pairs for scene in pair[:2]}
        if options.previous:
            split = keep(load_split(options.previous), names, overlaps=shared)
        else:
            split = divide(names, overlaps=shared)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for first, second, correlation in pairs:
        print(f'{first} and {second} share ground (correlation {correlation:.2f})')
    write_split(split, options.out)
    counts = Counter(split.values())
    print(', '.join(f'{count} {side}' for side, count in sorted(counts.items())))
    return 0


if __name__ == '__main__':
    sys.exit(main())
