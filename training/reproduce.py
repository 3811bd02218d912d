"""Train and evaluate the rows of the paper's tables, and print ours beside the paper's.

    python -m training.reproduce --university /data/University-1652 --sues /data/SUES-200-512x512
    python -m training.reproduce --university /data/University-1652 --tables 3 --dry-run

Every row is a configuration in ``training/configs/``; teachers come first, rows that train alike
are trained once. Runs stand in ``runs/``, results in ``results/``, both below the working
directory, the tables in ``results/tables.md``. A repeated command goes on where the last stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.config import TrainConfig
from training.config_files import load_config
from training.paper import DIRECTIONS, ROWS, PaperFigures, PaperRow
from training.paper_configs import CONFIGS, ROWS_OF_CONFIGS

RUNS, RESULTS = Path('runs'), Path('results')
ARROWS = dict(zip(DIRECTIONS, ('D->S', 'S->D'), strict=True))


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes
    ----------
    name : str
        Of its configuration, and of its folder in ``runs/``.
    config : TrainConfig
        As resolved.
    lines : tuple of (int, str, str or None)
        What it answers to: table, configuration, key of the paper's row. Empty for a teacher.
    """

    name: str
    config: TrainConfig
    lines: tuple[tuple[int, str, str | None], ...]


def plan(tables: Sequence[int]) -> list[Job]:
    """List the trainings that some tables need, each before those that it teaches."""
    jobs: dict[str, Job] = {}
    for table in tables:
        for name, row in ROWS_OF_CONFIGS[table].items():
            _add(jobs, name, (table, name, row))
    return list(jobs.values())


def _add(jobs: dict[str, Job], name: str, line: tuple[int, str, str | None] | None) -> None:
    config = load_config(CONFIGS / f'{name}.yaml')
    # The same training under two names (table 7's A is table 3's tiny) is done once.
    same = next((job for job in jobs.values() if job.config == config), None)
    if same:
        lines = (*same.lines, line) if line else same.lines
        jobs[same.name] = Job(same.name, config, lines)
        return
    if teacher := _teacher(config):
        _add(jobs, teacher, None)
    jobs[name] = Job(name, config, (line,) if line else ())


def _teacher(config: TrainConfig) -> str | None:
    """Name the training that makes a configuration's teacher, ``runs/NAME/final.pt``."""
    return Path(config.losses.teacher).parent.name if config.losses.teacher else None


def commands(
    job: Job, data: Path, *, changes: Sequence[str], processes: int
) -> list[tuple[str, list[str]]]:
    """Return what is to be run for a job: the file that each command makes, and the command."""
    run = RUNS / job.name
    launcher = ['torch.distributed.run', f'--nproc-per-node={processes}', '-m']
    train = [*(launcher if processes > 1 else []), 'training.train']
    train += [str(CONFIGS / f'{job.name}.yaml'), '--data', str(data), '--out', str(run)]
    train += ['--resume'] if (run / 'checkpoint.pt').exists() else []
    train += ['--set', *changes] if changes else []
    steps = [(str(run / 'final.pt'), train)]
    if job.lines:
        out = RESULTS / job.name
        row = next((row for *_, row in job.lines if row), None)
        test = ['training.evaluate', str(run / 'final.pt'), '--data', str(data)]
        test += ['--out', str(out), '--feature', 'backbone', 'branches']
        test += ['--paper-row', row or 'none']
        if job.config.data.height_m:
            test += ['--height', str(job.config.data.height_m)]
        steps.append((str(out / 'results.json'), test))
    return [(made, [sys.executable, '-m', *step]) for made, step in steps]


def table_text(jobs: Sequence[Job], tables: Sequence[int]) -> str:
    """Write what has been evaluated so far as Markdown, ours beside the paper's."""
    parts = []
    for table in tables:
        lines = [f'## Table {table}', '', '| run | direction | R@1 | paper | AP | paper |']
        lines.append('|---|---|---|---|---|---|')
        for job in jobs:
            for number, name, key in job.lines:
                if number == table:
                    lines += _lines(job, name, ROWS[key] if key else None)
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def _lines(job: Job, name: str, row: PaperRow | None) -> list[str]:
    path = RESULTS / job.name / 'results.json'
    results = json.loads(path.read_text())['models'][0]['results'] if path.exists() else []
    lines = []
    for direction in DIRECTIONS:
        paper = row.figures.get((direction, job.config.data.height_m)) if row else None
        ours = next((r['figures'] for r in results if _is_the_papers(r, direction)), None)
        cells = [_percent(ours, 'recall_at_1'), _paper(paper, 'recall_at_1')]
        cells += [_percent(ours, 'ap'), _paper(paper, 'ap')]
        lines.append(f'| {name} | {ARROWS[direction]} | ' + ' | '.join(cells) + ' |')
    return lines


def _is_the_papers(result: dict[str, Any], direction: str) -> bool:
    wanted = {'direction': direction, 'protocol': 'full', 'feature': 'backbone'}
    return all(result[key] == value for key, value in wanted.items())


def _percent(figures: dict[str, float] | None, key: str) -> str:
    return f'{100 * figures[key]:.2f}' if figures else 'not yet'


def _paper(figures: PaperFigures | None, key: str) -> str:
    return f'{getattr(figures, key):.2f}' if figures else '-'


def reproduce(options: argparse.Namespace) -> int:
    """Carry out the plan; returns the exit code, 1 if a row failed."""
    roots = {'university1652': options.university, 'sues200': options.sues}
    jobs = [job for job in plan(options.tables) if roots[job.config.data.source]]
    if not jobs:
        raise ConfigError(
            f'tables {options.tables}: no data set was given for them; name --university '
            '(tables 3 to 8) or --sues (table 2)'
        )
    failed: list[str] = []
    for number, job in enumerate(jobs, 1):
        if _teacher(job.config) in failed:
            failed.append(job.name)
            continue
        root = roots[job.config.data.source]
        steps = commands(job, root, changes=options.set, processes=options.processes)
        for made, command in steps:
            if Path(made).exists():
                continue
            print(f'[{number}/{len(jobs)}] {shlex.join(command[1:])}', flush=True)
            if options.dry_run:
                continue
            if _run(command):
                # What fails (its weights are missing, say) keeps back only what it teaches.
                failed.append(job.name)
                break
    if options.dry_run:
        return 0
    RESULTS.mkdir(exist_ok=True)
    text = table_text(jobs, options.tables)
    (RESULTS / 'tables.md').write_text(text, encoding='utf-8')
    print(text)
    if failed:
        print(f'failed, see above: {", ".join(failed)}', file=sys.stderr)
    return 1 if failed else 0


def _run(command: Sequence[str]) -> int:
    """Run a command to its end; what interrupts us ends it too, orderly, with its processes."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _terminated(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.reproduce',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--university', type=Path, help='folder of University-1652')
    parser.add_argument('--sues', type=Path, help='folder of SUES-200')
    parser.add_argument(
        '--tables',
        type=int,
        nargs='+',
        choices=sorted(ROWS_OF_CONFIGS),
        default=[2, 3, 4, 5, 6, 7, 8],
    )
    parser.add_argument('--processes', type=int, default=1, help='one a GPU, under torchrun')
    parser.add_argument('--set', nargs='+', default=[], metavar='KEY=VALUE', help='for all rows')
    parser.add_argument('--dry-run', action='store_true', help='print the commands alone')
    try:
        return reproduce(parser.parse_args(arguments))
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        return 130


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
