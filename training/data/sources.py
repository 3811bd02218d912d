"""From a configuration and a folder to what is trained on and tested with."""

from __future__ import annotations

from pathlib import Path

from training.config import TrainConfig
from training.data.places import PairSource, RetrievalTask


def make_sources(config: TrainConfig, root: Path) -> tuple[PairSource, PairSource | None]:
    """Open the training places and the held-out ones.

    Every `config.data.holdout`-th place, in the order of the names, is held out.

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
        Never augmented; None if `holdout` is 0.

    Raises
    ------
    ConfigError
        If the folder is missing or not laid out as the source expects, or has too few places.
    """
    raise NotImplementedError


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
        If a folder is missing, has no images or its name is no number.
    """
    raise NotImplementedError
