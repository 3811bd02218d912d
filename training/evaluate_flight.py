"""Evaluate models on a real flight: recall of retrieval, the whole pipeline, classical baselines.

    python -m training.evaluate_flight FLIGHT --map MAP --models NAME=FILE ... --out DIR

No prior position is given. The first model is the product's: it alone runs the whole pipeline,
meets every change of the world alone, grows with the map, and is shown where it fails. Every row
stands in DIR/flight.json when it is made, and is made again only if what it was made from
changed; so an interrupted run goes on where it stopped, and several runs with different options
fill one table.

Headings: `truth15` (the true one with uniform noise of up to 15 degrees), `autopilot` (as
recorded), `unknown`. Retrieval: `vote` (the product's: small patches vote for a place), `single`
(one patch of 64 m a frame, tiles every 16 m). Conditions: `plain`; `distractors` (the gallery
holds the scenes of the test split as well); `mild`, `medium`, `strong` (all changes of
`training.data.world` together on every frame); STRENGTH:KIND (one change alone).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.flight_conditions import HEADINGS
from training.flight_gallery import RETRIEVALS
from training.flight_plan import Wishes
from training.flight_run import FlightOptions, evaluate_flight
from training.flight_workshop import parse_models

CONDITIONS = ('plain', 'distractors', 'mild', 'medium', 'strong')
BASELINES = ('vlad', 'brute_force')
GROWTH = (1, 4, 16, 64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(given)
    cv2.setNumThreads(1)
    try:
        options = _options(
            parsed, command=' '.join(['python -m training.evaluate_flight', *given])
        )
        evaluate_flight(options)
    except BiCrossNetError as error:
        print('error:', ' '.join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; finished rows are kept', file=sys.stderr)
        return 130
    if not options.estimate:
        print(f'written: {options.out / "flight.json"}', file=sys.stderr)
    return 0


def _options(parsed: argparse.Namespace, *, command: str) -> FlightOptions:
    models = parse_models(parsed.models)
    strange = sorted(set(parsed.lean) - set(models))
    if strange:
        raise ConfigError(f'--lean {strange}: no such models; --models names {list(models)}')
    for name in ('map', 'flight', 'data'):
        path = getattr(parsed, name)
        if not path.exists():
            raise ConfigError(f'{path} is not there; expected the {name}')
    none_is_empty = {
        name: ()
        if 'none' in getattr(parsed, name)
        else tuple(dict.fromkeys(getattr(parsed, name)))
        for name in ('conditions', 'pipeline', 'baselines', 'descriptors', 'growth')
    }
    growth = _growth(none_is_empty.pop('growth'))
    wishes = Wishes(
        models=tuple(models),
        lean=tuple(parsed.lean),
        headings=tuple(dict.fromkeys(parsed.headings)),
        retrievals=tuple(dict.fromkeys(parsed.retrievals)),
        each_kind='' if parsed.each_kind == 'none' else parsed.each_kind,
        **none_is_empty,
    )
    names = ('flight', 'out', 'data', 'split', 'distractor_scenes', 'frames', 'growth_frames')
    names += ('failures', 'seed', 'threads', 'estimate')
    rest = {name: getattr(parsed, name) for name in names}
    return FlightOptions(
        map_path=parsed.map, models=models, wishes=wishes, growth=growth, command=command, **rest
    )


def _growth(items: Sequence[str]) -> tuple[int, ...]:
    try:
        times = tuple(sorted({int(item) for item in items}))
    except ValueError:
        times = (0,)
    if times and times[0] < 1:
        raise ConfigError(f'--growth {" ".join(items)}: expected whole numbers from 1, or none')
    return times


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} is too few')
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m training.evaluate_flight',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('flight', type=Path, metavar='FLIGHT', help='flight folder with true positions')
    add('--map', type=Path, required=True, metavar='MAP', help='georeferenced raster of the area')
    add('--models', nargs='+', required=True, metavar='NAME=FILE', help="the product's first")
    add('--out', type=Path, required=True, metavar='DIR', help='folder for the results')
    add(
        '--lean',
        nargs='+',
        default=(),
        metavar='NAME',
        help='models without the dearest rows: voting with an unknown heading, distractors, and '
        'under changes all but voting with the autopilot heading; VLAD always is',
    )
    add('--conditions', nargs='+', default=CONDITIONS, metavar='NAME', help='or none')
    add('--headings', nargs='+', default=tuple(HEADINGS), choices=tuple(HEADINGS))
    add('--retrievals', nargs='+', default=tuple(RETRIEVALS), choices=tuple(RETRIEVALS))
    add(
        '--pipeline',
        nargs='+',
        default=('plain', 'mild', 'medium', 'strong'),
        metavar='NAME',
        help="conditions of the whole pipeline with the product's model, or none",
    )
    add(
        '--descriptors',
        nargs='+',
        default=('none',),
        choices=('float256', 'packed', 'none'),
        help="compressed descriptors of the product's model in the plain condition, or none",
    )
    add(
        '--each-kind',
        default='medium',
        choices=('mild', 'medium', 'strong', 'none'),
        help="strength of the changes one by one, for the product's model (%(default)s)",
    )
    add('--baselines', nargs='+', default=BASELINES, choices=(*BASELINES, 'none'))
    add('--growth', nargs='+', default=GROWTH, metavar='TIMES', help='areas of the map, or none')
    add(
        '--growth-frames', type=_count, default=24, metavar='N', help='of the growth (%(default)s)'
    )
    add('--data', type=Path, default=FlightOptions.data, help='folder of the scenes of the split')
    add('--split', type=Path, help='division of the scenes; default the packaged one')
    add('--distractor-scenes', type=_count, metavar='N', help='default: all that are there')
    add('--frames', type=_count, metavar='N', help='only so many, spread evenly; default all')
    add('--failures', type=int, default=0, metavar='N', help='frames on sheets of failures')
    add('--seed', type=int, default=0, metavar='N', help='of headings, changes, scenes, words')
    add('--threads', type=_count, default=1, metavar='N', help='of the networks')
    add('--estimate', action='store_true', help='say how long it would take, and end')
    return parser


if __name__ == '__main__':
    sys.exit(main())
