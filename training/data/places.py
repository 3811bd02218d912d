"""What training and tests are made of: places seen twice, and who searches among whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from training.data.near_misses import Ground

Image = NDArray[np.uint8]
# The images of every place, by the name of its folder, sorted.
Folders = Mapping[str, tuple[Path, ...]]


class PairSource(Protocol):
    """Places, each with one satellite view and at least one drone view.

    Attributes
    ----------
    names : tuple of str
        Of the places, sorted; the label of a place is its position here.
    views : tuple of int
        Number of drone images of every place.
    group : int
        So many consecutive places stand in one batch together, or not at all; 1: no such tie.
    """

    names: tuple[str, ...]
    views: tuple[int, ...]
    group: int

    def sample(self, place: int, view: int | None, *, key: tuple[int, ...]) -> tuple[Image, Image]:
        """Return the two views of a place as the network shall see them.

        Parameters
        ----------
        place : int
            Label of the place.
        view : int or None
            Which drone image; None: a random one.
        key : tuple of int
            Every random choice follows from (*key, place, view).

        Returns
        -------
        satellite, drone : ndarray of uint8, shape (S, S, 3)
            RGB, of the side that the source was made for.

        Raises
        ------
        ImageError
            If one of the two images cannot be decoded.
        """
        ...


@runtime_checkable
class GroundSource(PairSource, Protocol):
    """Places of which it is known where they lie, so that one knows which overlap."""

    def ground(self, place: int, *, key: tuple[int, ...]) -> Ground | None:
        """Tell where the two views lie that `sample` returns for this key.

        None if no two places of the source have any ground in common.
        """
        ...


@dataclass(frozen=True)
class RetrievalTask:
    """One direction of a retrieval test.

    Parameters
    ----------
    name : str
        'drone_to_satellite' or 'satellite_to_drone'.
    protocol : str
        'full': the published gallery, with places that no query shows; 'reduced': without them.
    query_paths, gallery_paths : tuple of Path
        Image files.
    query_labels, gallery_labels : ndarray of int64, shape (Q,), (G,)
        The folder names as integers; equal where both show the same place.
    """

    name: str
    protocol: str
    query_paths: tuple[Path, ...]
    query_labels: NDArray[np.int64]
    gallery_paths: tuple[Path, ...]
    gallery_labels: NDArray[np.int64]
