"""The retrieval tests of a data set: which there are, and what embeddings score in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bicrossnet_ros.errors import ConfigError
from training.data.places import RetrievalTask
from training.data.sources import open_photo_set, retrieval_tasks
from training.embedder import PathEmbeddings
from training.metrics import hit_ranks, metrics_of_ranks
from training.results import Result

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class HeightTask:
    """A task of a data set, at a height of the drone (0: all, or there is but one)."""

    height_m: int
    task: RetrievalTask


@dataclass(frozen=True)
class Ranking:
    """A task with its embeddings; `best` as in `training.metrics.HitRanks`."""

    height_m: int
    task: RetrievalTask
    query: NDArray[np.float32]
    gallery: NDArray[np.float32]
    best: NDArray[np.int64]


def list_tasks(
    root: Path, *, source: str, heights: Sequence[int] | None, protocols: Sequence[str]
) -> list[HeightTask]:
    """List the tasks of a data set in the order of the report.

    Parameters
    ----------
    root : Path
        Folder of the data set.
    source : str
        'university1652' or 'sues200'.
    heights : sequence of int or None
        SUES-200: heights of the drone in metres, 0 for all pooled; None: each of the four.
    protocols : sequence of str
        Of `training.data.sources.PROTOCOLS`.

    Raises
    ------
    ConfigError
        If the folder has no such tests, or University-1652 is asked for a height.
    """
    known = open_photo_set(root, source).heights
    if heights and known == (0,) and set(heights) != {0}:
        raise ConfigError(f'--height {heights[0]}: {source} has no heights; leave it out')
    return [
        HeightTask(height, task)
        for protocol in protocols
        for height in heights or known
        for task in retrieval_tasks(root, source=source, height_m=height, protocol=protocol)
    ]


def measure(
    embeddings: PathEmbeddings, paths: Sequence[Path], tasks: Sequence[HeightTask]
) -> tuple[list[Result], list[Ranking]]:
    """Compute every task's metrics for every feature.

    Parameters
    ----------
    embeddings : PathEmbeddings
        Of `paths`; images that could not be read are left out of queries and galleries.
    paths : sequence of Path
        All images of all tasks.
    tasks : sequence of HeightTask
        What to compute.

    Returns
    -------
    results : list of Result
        Feature by feature.
    rankings : list of Ranking
        Of the first feature, under the first protocol.
    """
    row_of = {paths[row]: k for k, row in enumerate(embeddings.rows.tolist())}
    first_protocol = tasks[0].task.protocol
    results, rankings = [], []
    for feature, vectors in embeddings.vectors.items():
        for item in tasks:
            task = _readable(item.task, row_of)
            query = vectors[[row_of[path] for path in task.query_paths]]
            gallery = vectors[[row_of[path] for path in task.gallery_paths]]
            ranks = hit_ranks(query, task.query_labels, gallery, task.gallery_labels)
            results.append(
                Result(
                    task.name,
                    task.protocol,
                    item.height_m,
                    feature,
                    len(query),
                    len(gallery),
                    int((ranks.counts == 0).sum()),
                    metrics_of_ranks(ranks),
                )
            )
            if feature == next(iter(embeddings.vectors)) and task.protocol == first_protocol:
                rankings.append(Ranking(item.height_m, task, query, gallery, ranks.best))
    return results, rankings


def _readable(task: RetrievalTask, row_of: dict[Path, int]) -> RetrievalTask:
    """Leave out of a task what could not be read."""
    query = [k for k, path in enumerate(task.query_paths) if path in row_of]
    gallery = [k for k, path in enumerate(task.gallery_paths) if path in row_of]
    return RetrievalTask(
        task.name,
        task.protocol,
        tuple(task.query_paths[k] for k in query),
        task.query_labels[query],
        tuple(task.gallery_paths[k] for k in gallery),
        task.gallery_labels[gallery],
    )
