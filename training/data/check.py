"""What a folder holds of a data set, beside what its authors published."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
from tqdm import tqdm

from bicrossnet_ros.errors import ConfigError, ImageError
from training.data.folders import PARTS, PhotoSet
from training.data.images import read_image
from training.data.places import Folders
from training.data.scenes import list_scenes, read_scene
from training.data.sources import PHOTO_SETS, open_photo_set, retrieval_tasks
from training.data.sues200 import TEST_PLACES, Sues200

MATCHES, DIFFERS, UNUSABLE = 0, 1, 2
# So many names stand in a message.
NAMED = 5


@dataclass(frozen=True)
class Row:
    """One part of a data set: what was found (None: nothing) and what was published."""

    name: str
    places: int | None
    images: int | None
    published: tuple[int, int] | None

    @property
    def matches(self) -> bool:
        """Whether both numbers are the published ones."""
        return self.published in (None, (self.places, self.images))


@dataclass
class Report:
    """The result of a check.

    Parameters
    ----------
    title : str
        Data set, folder and layout.
    rows : list of Row
        Its parts.
    problems : list of str
        What differs or is damaged, in words.
    uses : list of str
        What the data can be used for.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """`MATCHES`, `DIFFERS` or `UNUSABLE`: the exit status of the command line tool."""
        if not self.uses:
            return UNUSABLE
        return DIFFERS if self.problems or not all(row.matches for row in self.rows) else MATCHES

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [self.title, '', f'{"part":{width}}   places  published   images  published']
        for row in self.rows:
            found = ['-' if count is None else count for count in (row.places, row.images)]
            stated = row.published or ('-', '-')
            verdict = 'missing' if row.places is None else '' if row.matches else 'differs'
            lines.append(
                f'{row.name:{width}} {found[0]:>8} {stated[0]:>10} {found[1]:>8} {stated[1]:>10}'
                f'  {verdict}'.rstrip()
            )
        lines += ['', *(f'problem: {problem}' for problem in self.problems)]
        words = {
            MATCHES: 'complete',
            DIFFERS: 'not what was published',
            UNUSABLE: 'of no use as it is',
        }
        return '\n'.join([*lines, f'{words[self.status]}; can be used for: {self._uses()}'])

    def _uses(self) -> str:
        return ', '.join(self.uses) or 'nothing'


def check(
    root: Path, *, source: str | None = None, decode: bool = False, threads: int = 1
) -> Report:
    """Look a data set through.

    Parameters
    ----------
    root : Path
        Its folder.
    source : str, optional
        'university1652', 'sues200' or 'maps'; None: whichever of the first two it is.
    decode : bool
        Decode every image too; a few minutes for 100,000.
    threads : int
        That decode at a time.

    Raises
    ------
    ConfigError
        If the folder is missing, holds nothing of the data set, or `threads` is below 1.
    """
    if threads < 1:
        raise ConfigError(f'threads is {threads}; expected at least 1')
    if source == 'maps':
        return _check_maps(root, decode, threads)
    photos = _detect(root) if source is None else open_photo_set(root, source)
    report = Report(f'{photos.title} in {photos.root} ({photos.layout})')
    paths: set[Path] = set()
    for height_m in photos.heights:
        _check_height(photos, height_m, report, paths)
    if decode:
        report.problems += _undecodable(sorted(paths), threads, scenes=False)
    return report


def _detect(root: Path) -> PhotoSet:
    found, errors = [], []
    for source in PHOTO_SETS:
        try:
            found.append(open_photo_set(root, source))
        except ConfigError as error:
            errors.append(str(error))
    if len(found) > 1:
        raise ConfigError(
            f'{root}: holds both {found[0].title} and {found[1].title}; add --source'
        )
    if not found:
        hint = 'add --source maps for aerial images without drone views'
        raise ConfigError('; '.join([*errors, hint]) if root.is_dir() else errors[0])
    return found[0]


def _check_height(photos: PhotoSet, height_m: int, report: Report, paths: set[Path]) -> None:
    """Add the rows and problems of one height to a report, and its images to `paths`."""
    prefix = f'{height_m} m ' if height_m else ''
    parts: dict[str, Folders] = {}
    for part in PARTS:
        try:
            folders = photos.read(part, height_m)
        except ConfigError as error:
            report.problems.append(str(error))
            folders = {}
        parts[part] = folders
        paths.update(path for images in folders.values() for path in images)
        places = sum(map(bool, folders.values()))
        images = sum(map(len, folders.values()))
        published = photos.published(part, height_m)
        row = Row(f'{prefix}{part}', places or None, images if places else None, published)
        report.rows.append(row)
        report.problems += [f'{row.name}: {text}' for text in _oddities(folders, row)]
    report.problems += [prefix + text for text in _contradictions(parts, photos)]
    report.uses += [prefix + use for use in _uses(parts, photos, height_m)]


def _oddities(folders: Folders, row: Row) -> list[str]:
    """Name the places that make the counts of a part differ."""
    found = []
    empty = [name for name, images in folders.items() if not images]
    if empty:
        found.append(f'{_named(empty)} without images')
    counts = Counter(map(len, folders.values()))
    if not row.matches and len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = [
            f'{name} ({len(images)})'
            for name, images in folders.items()
            if len(images) not in (0, usual)
        ]
        if odd:
            found.append(f'{_named(odd)} with another number of images than {usual}')
    return found


def _contradictions(parts: dict[str, Folders], photos: PhotoSet) -> list[str]:
    """Name the places that are where they should not be, or not where they should."""
    full = {part: {name for name in parts[part] if parts[part][name]} for part in PARTS}
    checks = [
        ('training', full['train_drone'] ^ full['train_satellite'], 'with one view only'),
        (
            'split',
            (full['train_drone'] | full['train_satellite'])
            & (full['query_drone'] | full['query_satellite']),
            'both in training and among the queries',
        ),
    ]
    for query, gallery in (('drone', 'satellite'), ('satellite', 'drone')):
        lost = full[f'query_{query}'] - full[f'gallery_{gallery}']
        text = f'of query_{query} missing in gallery_{gallery}'
        checks.append(('tests', lost, text))
    if isinstance(photos, Sues200):
        wrong = full['query_drone'] ^ TEST_PLACES if full['query_drone'] else set()
        checks.append(('split', wrong, 'not on the side of the published split'))
    return [f'{what}: {_named(sorted(names))} {text}' for what, names, text in checks if names]


def _uses(parts: dict[str, Folders], photos: PhotoSet, height_m: int) -> list[str]:
    uses = []
    if any(
        parts['train_satellite'].get(name) for name, paths in parts['train_drone'].items() if paths
    ):
        uses.append('training')
    try:
        retrieval_tasks(photos.root, source=photos.source, height_m=height_m, protocol='full')
    except ConfigError:
        return uses
    return [*uses, 'retrieval tests']


def _check_maps(root: Path, decode: bool, threads: int) -> Report:
    if not root.is_dir():
        raise ConfigError(f'{root}: no such folder; expected one with aerial images')
    paths = list_scenes(root)
    report = Report(f'aerial images in {root}', uses=['training'])
    report.rows.append(Row('images', len(paths), len(paths), None))
    if decode:
        report.problems += _undecodable(paths, threads, scenes=True)
        if len(report.problems) == len(paths):
            report.uses.clear()
    return report


def _undecodable(paths: Sequence[Path], threads: int, *, scenes: bool) -> list[str]:
    """Decode every image, with progress on stderr; return what went wrong."""

    def problem(path: Path) -> str | None:
        try:
            if scenes:
                read_scene(path, scene_px=64)
            else:
                read_image(path)
        except ImageError as error:
            return str(error)
        return None

    # The threads here are the parallelism; those of OpenCV would only get in their way.
    cv2.setNumThreads(0)
    with ThreadPoolExecutor(threads) as pool:
        bar = tqdm(
            pool.map(problem, paths), 'decoding', len(paths), mininterval=1, file=sys.stderr
        )
        return [text for text in bar if text is not None]


def _named(names: Sequence[str]) -> str:
    more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
    noun = 'place' if len(names) == 1 else 'places'
    return f'{len(names)} {noun} ({", ".join(names[:NAMED])}{more})'
