"""What a folder holds of a data set, beside what its authors published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bicrossnet_ros.errors import ConfigError
from training.data.check_maps import check_maps
from training.data.folders import PARTS, PhotoSet
from training.data.images import read_image
from training.data.places import Folders
from training.data.report import Report, Row, named, undecodable
from training.data.sources import find_photo_set, open_photo_set, retrieval_tasks
from training.data.sues200 import TEST_PLACES, Sues200

HINT = 'add --source maps for aerial images without drone views'


def check(
    root: Path,
    *,
    source: str | None = None,
    decode: bool = False,
    threads: int = 1,
    scene_m: float = 0.0,
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
    scene_m : float
        Source 'maps': side of the squares that rasters are cut into; 0: every image is a scene.

    Raises
    ------
    ConfigError
        If the folder is missing, holds nothing of the data set, or `threads` is below 1.
    """
    if threads < 1:
        raise ConfigError(f'threads is {threads}; expected at least 1')
    if source == 'maps':
        return check_maps(root, decode=decode, threads=threads, scene_m=scene_m)
    photos = open_photo_set(root, source) if source else find_photo_set(root, hint=HINT)
    report = Report(f'{photos.title} in {photos.root} ({photos.layout})')
    paths: set[Path] = set()
    for height_m in photos.heights:
        _check_height(photos, height_m, report, paths)
    if decode:
        report.problems += undecodable(sorted(paths), read_image, threads=threads)
    return report


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
    _add_uses(report, parts, photos, height_m)


def _oddities(folders: Folders, row: Row) -> list[str]:
    """Name the places that make the counts of a part differ."""
    found = []
    empty = [name for name, images in folders.items() if not images]
    if empty:
        found.append(f'{named(empty)} without images')
    counts = Counter(map(len, folders.values()))
    if not row.matches and len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = [
            f'{name} ({len(images)})'
            for name, images in folders.items()
            if len(images) not in (0, usual)
        ]
        if odd:
            found.append(f'{named(odd)} with another number of images than {usual}')
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
        training = full['train_drone'] | full['train_satellite']
        queries = full['query_drone'] | full['query_satellite']
        wrong = (queries - TEST_PLACES) | (training & TEST_PLACES)
        checks.append(('split', wrong, 'not on the side of the published split'))
        absent = set(TEST_PLACES) - training - queries if queries else set()
        checks.append(('tests', absent, 'of the published test are absent'))
    return [f'{what}: {named(sorted(names))} {text}' for what, names, text in checks if names]


def _add_uses(report: Report, parts: dict[str, Folders], photos: PhotoSet, height_m: int) -> None:
    """Add what the data can be used for at a height, and what forbids the tests."""
    prefix = f'{height_m} m ' if height_m else ''
    if any(
        parts['train_satellite'].get(name) for name, paths in parts['train_drone'].items() if paths
    ):
        report.uses.append(f'{prefix}training')
    try:
        retrieval_tasks(photos.root, source=photos.source, height_m=height_m, protocol='full')
    except ConfigError as error:
        if str(error) not in report.problems:
            report.problems.append(str(error))
    else:
        report.uses.append(f'{prefix}retrieval tests')
