"""Data sets of photographs as folders: one folder a place, named by its number."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from bicrossnet_ros.errors import ConfigError
from training.data.images import SUFFIXES
from training.data.places import Folders

logger = logging.getLogger(__name__)

# What a data set consists of, whatever its folders are called.
PARTS = (
    'train_drone',
    'train_satellite',
    'query_drone',
    'query_satellite',
    'gallery_drone',
    'gallery_satellite',
)


class PhotoSet(Protocol):
    """A data set on disk.

    Attributes
    ----------
    source : str
        Its name in a configuration.
    title : str
        Its name.
    root : Path
        Where it was found.
    layout : str
        Which of its known layouts it has.
    heights : tuple of int
        Heights of the drone in metres that are kept apart; (0,) if none are.
    """

    source: str
    title: str
    root: Path
    layout: str
    heights: tuple[int, ...]

    def read(self, part: str, height_m: int = 0) -> Folders:
        """List the images of one of `PARTS`; height 0: of all heights.

        Raises
        ------
        ConfigError
            If its folder is missing.
        """
        ...

    def published(self, part: str, height_m: int = 0) -> tuple[int, int]:
        """Return the number of places and of images that its authors state."""
        ...


def scan(folder: Path, below: str = '') -> Folders:
    """List the images of every place, empty places included.

    Parameters
    ----------
    folder : Path
        Holds one folder a place. Hidden entries and other files are passed over.
    below : str
        Where in a place's folder its images lie.

    Raises
    ------
    ConfigError
        If the folder is missing or cannot be read.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        return {name: _images(folder / name / below) for name in names if not name.startswith('.')}
    except OSError as error:
        raise ConfigError(
            f'{folder}: {error.strerror or error}; expected a folder with one folder a place'
        ) from error


def _images(folder: Path) -> tuple[Path, ...]:
    """List the images of a folder by name; none if it does not exist."""
    if not folder.is_dir():
        return ()
    names = sorted(
        name
        for name in os.listdir(folder)  # noqa: PTH208 - names alone are several times faster
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith('.')  # noqa: PTH122
    )
    return tuple(folder / name for name in names)


def locate(
    root: Path,
    *,
    title: str,
    recognise: Callable[[Path], bool],
    markers: Iterable[str],
    expected: str,
) -> Path:
    """Find a data set in a folder, one level below it, or around it.

    Parameters
    ----------
    root : Path
        What the user named.
    title : str
        Name of the data set, for messages.
    recognise : callable
        Whether a folder holds the data set.
    markers : iterable of str
        Folders of the data set itself; only below one of these is the parent looked at.
    expected : str
        What the folder should hold, for messages.

    Raises
    ------
    ConfigError
        If it is not there, or there more than once.
    """
    if not root.is_dir():
        raise ConfigError(f'{root}: no such folder; expected {title}: {expected}')
    if recognise(root):
        return root
    inner = sorted(entry for entry in root.iterdir() if entry.is_dir())
    found = [entry for entry in inner if recognise(entry)]
    parent = root.resolve().parent
    if root.resolve().name in markers and recognise(parent):
        found = [parent]
    if len(found) > 1:
        raise ConfigError(
            f'{root}: holds {title} more than once, {found[0]} and {found[1]}; name one'
        )
    if not found:
        names = ', '.join(entry.name for entry in inner[:6]) or 'no folder'
        raise ConfigError(f'{root}: this is not {title}; found {names}, expected {expected}')
    logger.warning('%s: %s is in %s, taken from there', root, title, found[0])
    return found[0]
