"""The work of `training.evaluate_flight`: rows, growth and failures of one set of options."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.flight import open_flight
from training.baselines.brute_force import BruteForce
from training.checkpoint import git_revision
from training.flight_conditions import parse_condition, some_frames, with_heading
from training.flight_estimate import estimate_lines
from training.flight_failures import write_failures
from training.flight_growth import GROWTH_KEYS, Growth
from training.flight_plan import ALONE, PIPELINE, Job, Wishes, check_conditions, list_jobs
from training.flight_retrieval import answers, brute_force_answers, config_for, require_truth
from training.flight_rows import (
    RowFile,
    fingerprint_of,
    latency_figures,
    pipeline_figures,
    recall_figures,
)
from training.flight_workshop import Workshop, plain_values

REPOSITORY = Path(__file__).resolve().parents[1]


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
            config_for(job.searched, heading=job.heading),
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
            config=plain_values(config_for(job.searched, heading=job.heading)),
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
