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
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from bicrossnet_ros.flight import open_flight
from training.baselines.brute_force import BruteForce
from training.checkpoint import git_revision
from training.flight_conditions import HEADINGS, parse_condition, some_frames, with_heading
from training.flight_estimate import estimate_lines
from training.flight_failures import write_failures
from training.flight_gallery import RETRIEVALS
from training.flight_growth import GROWTH_KEYS, Growth
from training.flight_plan import (
    ALONE,
    PIPELINE,
    Job,
    Wishes,
    check_conditions,
    list_jobs,
)
from training.flight_retrieval import (
    answers,
    brute_force_answers,
    config_for,
    require_truth,
)
from training.flight_rows import (
    RowFile,
    fingerprint_of,
    latency_figures,
    pipeline_figures,
    recall_figures,
)
from training.flight_workshop import Workshop, parse_models, plain_values

REPOSITORY = Path(__file__).resolve().parents[1]
CONDITIONS = ('plain', 'distractors', 'mild', 'medium', 'strong')
BASELINES = ('vlad', 'brute_force')
GROWTH = (1, 4, 16, 64)


@dataclass(frozen=True)
class FlightOptions:
    """What `evaluate_flight` does beyond its `Wishes`; see the command line's help."""

    flight: Path
    map_path: Path
    models: dict[str, Path]
    out: Path
    wishes: Wishes
    data: Path = REPOSITORY.parent / 'shared' / 'data'
    split: Path | None = None
    distractor_scenes: int | None = None
    frames: int | None = None
    growth: tuple[int, ...] = ()
    growth_frames: int = 24
    failures: int = 0
    seed: int = 0
    threads: int = 1
    estimate: bool = False
    command: str = ''


def evaluate_flight(options: FlightOptions) -> list[dict[str, Any]]:
    """Make all rows that are missing; returns the rows of the results file.

    Raises
    ------
    BiCrossNetError
        If a flight, map, model, scene or option cannot be used.
    """
    check_conditions([*options.wishes.conditions, *options.wishes.pipeline])
    flight = some_frames(open_flight(options.flight), options.frames)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f'{options.out}: cannot be made a folder ({error.strerror}); choose another --out'
        ) from error
    for heading in options.wishes.headings:
        with_heading(flight, heading, seed=options.seed)
    rows = RowFile(options.out / 'flight.json', command=options.command, revision=git_revision())
    shop = Workshop(
        flight,
        map_path=options.map_path,
        models=options.models,
        data=options.data,
        split=options.split,
        folder=options.out / 'flight_cache',
        scenes=options.distractor_scenes,
        seed=options.seed,
        threads=options.threads,
    )
    try:
        _Run(options, shop, rows).run()
    finally:
        shop.close()
    return rows.rows


class _Run:
    """The work on one set of options."""

    def __init__(self, options: FlightOptions, shop: Workshop, rows: RowFile) -> None:
        self._options, self._shop, self._rows = options, shop, rows
        self._wishes = options.wishes

    def run(self) -> None:
        require_truth(self._shop.flight, self._shop.base('vote'))
        jobs = list_jobs(self._wishes)
        missing = [job for job in jobs if not self._rows.finished(job.key, self._print(job))]
        say(f'{len(jobs)} rows, {len(jobs) - len(missing)} of them finished')
        growth = self._growth() if self._options.growth else None
        left = growth.missing() if growth else []
        for line in estimate_lines(self._shop, missing, left):
            say(f'estimate: {line}')
        if self._options.estimate:
            return
        for number, job in enumerate(missing, 1):
            start_s = time.monotonic()
            row = self._row(job)
            self._rows.put(row)
            say(
                f'{number}/{len(missing)} {job.model}, {job.retrieval}, {job.heading}, '
                f'{job.condition}: recall@1 {100 * row["recall_at_1_25m"]:.0f} % '
                f'({time.monotonic() - start_s:.0f} s)'
            )
        if growth:
            growth.measure()
        options = self._options
        if options.failures:
            write_failures(
                self._shop,
                options.out,
                model=self._wishes.models[0],
                heading='autopilot' if 'autopilot' in self._wishes.headings else 'unknown',
                count=options.failures,
                seed=options.seed,
            )

    def _growth(self) -> Growth:
        options = self._options
        rows = RowFile(
            options.out / 'flight_growth.json',
            command=options.command,
            revision=git_revision(),
            keys=GROWTH_KEYS,
        )
        return Growth(
            self._shop,
            rows,
            model=self._wishes.models[0],
            times=options.growth,
            frames=options.growth_frames,
            picture=options.out / 'flight_growth.png',
        )

    def _row(self, job: Job) -> dict[str, Any]:
        condition = parse_condition(job.condition)
        flight = self._shop.changed(condition)
        row: dict[str, Any] = {**job.key, 'fingerprint': self._print(job)}
        label = f'{job.model} {job.retrieval} {job.heading} {job.condition}'
        if job.retrieval == ALONE:
            base = self._shop.base('vote')
            matcher = BruteForce(self._shop.features(), gsd_m=base.manifest.gsd_m)
            found = brute_force_answers(flight, matcher, crs=base.crs, label=label)
            figures = recall_figures(found, at=(1,)) | {'features': len(matcher)}
            return row | figures | pipeline_figures(found) | latency_figures(found)
        gallery = self._shop.gallery(
            job.model,
            job.searched,
            distractors=condition.distractors,
            descriptor=job.descriptor,
        )
        found = answers(
            with_heading(flight, job.heading, seed=self._options.seed),
            gallery,
            self._shop.encoder(job.model),
            config_for(job.searched),
            heading=job.heading,
            registration=job.retrieval == PIPELINE,
            label=label,
        )
        row |= recall_figures(found) | latency_figures(found)
        row |= {
            'tiles': len(gallery.tile_east_m),
            'tile_size_m': gallery.tile_size_m,
            'embedding_dim': gallery.manifest.embedding_dim,
            'tile_bytes': gallery.manifest.tile_bytes,
            'distractor_scenes': self._shop.mosaic().scenes if condition.distractors else 0,
        }
        return row | (pipeline_figures(found) if job.retrieval == PIPELINE else {})

    def _print(self, job: Job) -> str:
        """The fingerprint of all that a row depends on, but for the code."""
        condition = parse_condition(job.condition)
        tiles = self._shop.tiles(job.searched, distractors=condition.distractors)
        return fingerprint_of(
            model=None if job.retrieval == ALONE else self._shop.encoder(job.model).model_id,
            tiles=[part.fingerprint for part in tiles],
            config=plain_values(config_for(job.searched)),
            condition=[condition.name, condition.kinds, condition.strength],
            changes=_world_code() if condition.kinds else '',
            heading=job.heading,
            frames=[record.file for record in self._shop.flight.records],
            flight=_sha256(self._options.flight / 'flight.csv'),
            seed=self._options.seed,
        )


def _world_code() -> str:
    """Hash of the code that changes the world: other code, other frames."""
    from training.data import objects, world

    return ' '.join(_sha256(Path(module.__file__ or '')) for module in (world, objects))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''


def say(line: str) -> None:
    """Tell the user on standard error."""
    print(line, file=sys.stderr, flush=True)


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
