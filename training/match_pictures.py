"""Pictures of single queries with the top of their rankings (figure 3 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from training.data.images import read_image
from training.data.places import RetrievalTask
from training.figures import FAINT, NEUTRAL, RIGHT, STYLE, WRONG
from training.metrics import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# The layout in inches.
PICTURE, CAPTION, BETWEEN, GAP, LEFT, TITLE, HEAD = 1.1, 0.3, 0.07, 0.16, 0.3, 0.3, 0.2
THUMBNAIL_PX = 256
SMALL: dict[str, Any] = {'size': 6.5, 'color': FAINT}


@dataclass(frozen=True)
class Match:
    """A gallery image in the ranking of a query; `rank` counts from 0."""

    path: Path
    place: int
    similarity: float
    rank: int
    correct: bool


@dataclass(frozen=True)
class Example:
    """A query with the top of its ranking and, if it is not among that, its first true match."""

    query: Path
    place: int
    matches: tuple[Match, ...]
    true_match: Match | None

    @property
    def is_hit(self) -> bool:
        """Whether the first match is a true one."""
        return self.matches[0].correct


def choose_examples(
    task: RetrievalTask,
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    best: NDArray[np.int64],
    *,
    hits: int = 3,
    misses: int = 3,
    top: int = 5,
    seed: int = 0,
) -> list[Example]:
    """Draw queries at random, hits before misses, of different places as far as there are.

    Parameters
    ----------
    task : RetrievalTask
        The paths and labels of the embeddings' rows.
    query, gallery : ndarray of float32, shapes (Q, D), (G, D)
        Unit length.
    best : ndarray of int64, shape (Q,)
        0-based rank of each query's first true match (`HitRanks.best`).
    hits, misses : int
        How many of both kinds, if there are as many.
    top : int
        How many matches of each.
    seed : int
        Of the choice.
    """
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for wanted, pool in ((hits, best == 0), (misses, (best > 0) & (best < len(gallery)))):
        shuffled = rng.permutation(np.flatnonzero(pool))
        _, first = np.unique(task.query_labels[shuffled], return_index=True)
        others = np.setdiff1d(np.arange(len(shuffled)), first)
        chosen += shuffled[np.concatenate([np.sort(first), others])][:wanted].tolist()
    if not chosen:
        return []
    _, rows = nearest(query[chosen], gallery, k=top)
    return [
        _example(task, q, found.tolist(), query[q], gallery, int(best[q]))
        for q, found in zip(chosen, rows, strict=True)
    ]


def _example(
    task: RetrievalTask,
    q: int,
    rows: list[int],
    vector: NDArray[np.float32],
    gallery: NDArray[np.float32],
    best: int,
) -> Example:
    place = int(task.query_labels[q])

    def match(row: int, rank: int) -> Match:
        label = int(task.gallery_labels[row])
        similarity = float(gallery[row] @ vector)
        return Match(task.gallery_paths[row], label, similarity, rank, label == place)

    true_match = None
    if best >= len(rows):
        true_rows = np.flatnonzero(task.gallery_labels == place)
        true_match = match(int(true_rows[(gallery[true_rows] @ vector).argmax()]), best)
    matches = tuple(match(row, rank) for rank, row in enumerate(rows))
    return Example(task.query_paths[q], place, matches, true_match)


def match_figure(examples: Sequence[Example], *, title: str) -> Figure:
    """Draw a row for each example: the query, the top of its ranking, and its true match.

    A green frame with a tick marks the query's place, a red one with a cross another place; below
    stand the id of the place and the cosine similarity.
    """
    import matplotlib
    from matplotlib.figure import Figure

    top = max(len(example.matches) for example in examples)
    lefts = [LEFT + k * (PICTURE + BETWEEN) + GAP * ((k > 0) + (k > top)) for k in range(top + 2)]
    heads = ['query', *map(str, range(1, top + 1)), 'first true match']
    if not any(example.true_match for example in examples):
        lefts, heads = lefts[:-1], heads[:-1]
    width = lefts[-1] + PICTURE + 0.08
    height = TITLE + HEAD + len(examples) * (PICTURE + CAPTION)
    bottoms = [
        height - TITLE - HEAD - PICTURE - row * (PICTURE + CAPTION) for row in range(len(examples))
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        figure.text(LEFT / width, 1 - 0.07 / height, title, va='top', size=9.5, weight='bold')
        legend = 'number: place; at right: cosine similarity'
        figure.text(1 - 0.08 / width, 1 - 0.09 / height, legend, va='top', ha='right', **SMALL)
        for left, head in zip(lefts, heads, strict=True):
            place = (left + PICTURE / 2) / width, (height - TITLE - HEAD + 0.05) / height
            figure.text(*place, head, ha='center', size=8, color=NEUTRAL)
        for example, bottom in zip(examples, bottoms, strict=True):
            for column, path, match in _columns(example, top):
                box = lefts[column] / width, bottom / height, PICTURE / width, PICTURE / height
                _draw(figure.add_axes(box), path, example.place, match, far=column > top)
        for is_hit, group in groupby(zip(examples, bottoms, strict=True), lambda x: x[0].is_hit):
            ends = [bottom for _, bottom in group]
            middle = (ends[0] + PICTURE + ends[-1]) / 2
            name, color = ('hits', RIGHT) if is_hit else ('misses', WRONG)
            text = {'rotation': 90, 'ha': 'center', 'va': 'center', 'weight': 'bold'}
            figure.text(0.15 / width, middle / height, name, color=color, size=9, **text)
    return figure


def _columns(example: Example, top: int) -> Iterator[tuple[int, Path, Match | None]]:
    yield 0, example.query, None
    for match in example.matches:
        yield 1 + match.rank, match.path, match
    if example.true_match:
        yield 1 + top, example.true_match.path, example.true_match


def _draw(axes: Axes, path: Path, place: int, match: Match | None, *, far: bool) -> None:
    """Show one image with its frame and caption; `match` is None for the query."""
    image = read_image(path)
    scale = THUMBNAIL_PX / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    color = NEUTRAL if match is None else RIGHT if match.correct else WRONG
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=1.2 if match is None else 2.6)
    if match is None:
        axes.set_xlabel(f'{place:04d}', size=8, color=color, labelpad=3)
        return
    sign = '✓' if match.correct else '✗'
    ranked = f'rank {match.rank + 1:,}   ' if far else ''
    axes.set_xlabel(f'{sign} {match.place:04d}', size=8, color=color, labelpad=3, loc='left')
    where = {'transform': axes.transAxes, 'ha': 'right', 'va': 'top'}
    axes.text(1, -0.055, f'{ranked}{match.similarity:.2f}', **where, **SMALL)
