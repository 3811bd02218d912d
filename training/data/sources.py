"""From a configuration and a folder to what is trained on and tested with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError
from training.config import TrainConfig
from training.data.folders import PhotoSet
from training.data.photos import UNCHANGED, PhotoSource
from training.data.places import Folders, PairSource, RetrievalTask
from training.data.sues200 import Sues200
from training.data.university1652 import University1652

logger = logging.getLogger(__name__)

PHOTO_SETS: dict[str, Callable[[Path], PhotoSet]] = {
    kind.source: kind for kind in (University1652, Sues200)
}
PROTOCOLS = ('full', 'reduced')
# Labels are int64.
_DIGITS = 18


def open_photo_set(root: Path, source: str) -> PhotoSet:
    """Open the data set of a folder; `source` is 'university1652' or 'sues200'.

    Raises
    ------
    ConfigError
        If it is not there, or there is no such source of photographs.
    """
    if source not in PHOTO_SETS:
        raise ConfigError(f'source is {source!r}; expected one of {", ".join(PHOTO_SETS)}')
    return PHOTO_SETS[source](root)


def find_photo_set(root: Path, *, hint: str = '') -> PhotoSet:
    """Open the data set of a folder, whichever it is.

    Raises
    ------
    ConfigError
        If it is none of them (the message ends with `hint`), or two.
    """
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
        reasons = [*errors, *([hint] if hint else [])] if root.is_dir() else errors[:1]
        raise ConfigError('; '.join(reasons))
    return found[0]


def make_sources(config: TrainConfig, root: Path) -> tuple[PairSource, PairSource | None]:
    """Open the training places and the held-out ones.

    Every `config.data.holdout`-th place, in the order of the names and from the first, is held
    out.

    Parameters
    ----------
    config : TrainConfig
        Its sections `data` and `model`.
    root : Path
        Folder of the data set.

    Returns
    -------
    training : PairSource
        Augmented as configured.
    validation : PairSource or None
        Photographs are not augmented; None if `holdout` is 0.

    Raises
    ------
    ConfigError
        If the folder is missing or not laid out as the source expects, if a place has one view
        only and `unreadable` is 'fail', or if the split leaves one side empty.
    """
    data = config.data
    if data.source == 'maps':
        from training.data import maps

        return maps.make_sources(config, root)
    photos = open_photo_set(root, data.source)
    satellite = photos.read('train_satellite', data.height_m)
    drone = photos.read('train_drone', data.height_m)
    # Places left out below count too: one that turns bad moves no other to the other side.
    held_out = set(sorted({*satellite, *drone})[:: data.holdout] if data.holdout else ())
    satellite, drone = _complete(
        satellite, drone, where=photos.root, fail=data.unreadable == 'fail'
    )
    held_out &= set(drone)
    if not drone or len(held_out) == len(drone) or (data.holdout and not held_out):
        raise ConfigError(
            f'{photos.root}: found {len(drone)} complete training places, of which '
            f'data.holdout: {data.holdout} keeps {len(held_out)}; expected some on both sides'
        )

    def part(held: bool) -> PhotoSource:
        chosen = [name for name in drone if (name in held_out) == held]
        return PhotoSource(
            {name: satellite[name] for name in chosen},
            {name: drone[name] for name in chosen},
            input_px=config.model.input_px,
            augment=UNCHANGED if held else data.augment,
        )

    return part(False), part(True) if held_out else None


def retrieval_tasks(
    root: Path, *, source: str, height_m: int, protocol: str
) -> list[RetrievalTask]:
    """List the retrieval tests of a data set: drone to satellite, then satellite to drone.

    Parameters
    ----------
    root : Path
        Folder of the data set.
    source : str
        'university1652' or 'sues200'.
    height_m : int
        SUES-200: height of the drone; 0: all four pooled. Ignored for University-1652.
    protocol : str
        'full' or 'reduced'; see `RetrievalTask`.

    Raises
    ------
    ConfigError
        If a folder is missing or has no images, the name of a place is no number, or a query shows
        a place that the gallery lacks.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f'protocol is {protocol!r}; expected one of {", ".join(PROTOCOLS)}')
    photos = open_photo_set(root, source)
    tasks = []
    for query, gallery in (('drone', 'satellite'), ('satellite', 'drone')):
        queries = photos.read(f'query_{query}', height_m)
        candidates = photos.read(f'gallery_{gallery}', height_m)
        name = f'{query}_to_{gallery}'
        if protocol == 'reduced':
            candidates = {place: candidates[place] for place in candidates if queries.get(place)}
        query_paths, query_labels = _labelled(queries, f'{photos.root}: queries of {name}')
        paths, labels = _labelled(candidates, f'{photos.root}: gallery of {name}')
        lost = np.setdiff1d(query_labels, labels)
        if len(lost):
            raise ConfigError(
                f'{photos.root}: {name}: the gallery lacks {len(lost)} places of the queries, the '
                f'first: {lost[0]:04d}; complete the data set'
            )
        tasks.append(RetrievalTask(name, protocol, query_paths, query_labels, paths, labels))
    return tasks


def _complete(
    satellite: Folders, drone: Folders, *, where: Path, fail: bool
) -> tuple[Folders, Folders]:
    """Leave out the places that have one view only, with a warning."""
    names = sorted({*satellite, *drone})
    lonely = [name for name in names if not (satellite.get(name) and drone.get(name))]
    if lonely:
        first = lonely[0]
        text = (
            f'{where}: {len(lonely)} of {len(names)} training places have no pair of views; the '
            f'first, {first}, has {len(satellite.get(first, ()))} satellite and '
            f'{len(drone.get(first, ()))} drone images'
        )
        if fail:
            raise ConfigError(f'{text}; expected at least one of each: add or remove them')
        logger.warning('%s; left out', text)
    whole = [name for name in names if name not in set(lonely)]
    return {name: satellite[name] for name in whole}, {name: drone[name] for name in whole}


def _labelled(folders: Folders, what: str) -> tuple[tuple[Path, ...], NDArray[np.int64]]:
    """List all images with the numbers of their places."""
    full = {name: images for name, images in folders.items() if images}
    if not full:
        raise ConfigError(f'{what}: found no image in {len(folders)} folders')
    for name in full:
        if not (name.isascii() and name.isdigit() and len(name) <= _DIGITS):
            raise ConfigError(
                f'{what}: the folder {name} is not named by a number of at most {_DIGITS} digits'
            )
    paths = [path for images in full.values() for path in images]
    counts = [len(images) for images in full.values()]
    return tuple(paths), np.repeat(np.array([*map(int, full)], np.int64), counts)
