"""Pictures of failures: what the camera saw, what was taken for it, what would have been right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.figures import FAINT, NEUTRAL, RIGHT, STYLE, WRONG, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from training.evaluate_views import Task
    from training.views_metrics import Ranking

SHOWN = 6
PICTURE, CAPTION, BETWEEN, TITLE = 1.2, 0.3, 0.08, 0.45  # inches


def write_failures(
    path: Path, task: Task, views: NDArray[np.uint8], ranking: Ranking, *, shown: int = SHOWN
) -> None:
    """Draw the first failure of up to `shown` scenes, evenly spread; nothing without a failure.

    The scenes have no licence that lets them be published: the pictures are for those who have
    them.
    """
    rows = choose_failures(task.places.scenes, ranking.ranks, shown=shown)
    if not len(rows):
        return
    import matplotlib
    from matplotlib.figure import Figure

    heads = ('what the camera saw', 'taken for it', 'the right tile')
    width = len(rows) * (PICTURE + BETWEEN) + BETWEEN + 0.25
    height = TITLE + len(heads) * (PICTURE + CAPTION)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150)
        failed = int((ranking.ranks > 0).sum())
        title = (
            f'{path.stem.replace("_", " ")}: {failed} of {len(ranking.ranks)} queries fail; some'
        )
        figure.text(0.25 / width, 1 - 0.1 / height, title, va='top', size=9, weight='bold')
        for line, head in enumerate(heads):
            bottom = height - TITLE - (line + 1) * PICTURE - line * CAPTION
            turned = {'rotation': 90, 'ha': 'center', 'va': 'center'}
            figure.text(0.13 / width, (bottom + PICTURE / 2) / height, head, **turned)
            for column, row in enumerate(rows.tolist()):
                left = 0.25 + column * (PICTURE + BETWEEN)
                box = left / width, bottom / height, PICTURE / width, PICTURE / height
                _draw(figure.add_axes(box), line, row, task, views, ranking)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def choose_failures(
    scenes: NDArray[np.int64], ranks: NDArray[np.int64], *, shown: int
) -> NDArray[np.int64]:
    """Return rows of failed queries, one a scene, evenly spread over those that have any."""
    failed = np.flatnonzero(ranks > 0)
    _, first = np.unique(scenes[failed], return_index=True)
    candidates = failed[first]
    spread = np.linspace(0, len(candidates) - 1, min(shown, len(candidates)))
    return candidates[np.round(spread).astype(int)]


def _draw(
    axes: Axes, line: int, row: int, task: Task, views: NDArray[np.uint8], ranking: Ranking
) -> None:
    wrong, right = int(ranking.wrong[row]), int(ranking.right[row])
    name = task.scenes.names
    color, image, caption = (
        (NEUTRAL, views[row], Path(name[task.places.scenes[row]]).stem),
        (
            WRONG,
            task.tiles.images[wrong],
            f'{Path(name[task.tiles.scenes[wrong]]).stem}  {ranking.wrong_similarity[row]:.2f}',
        ),
        (
            RIGHT,
            task.tiles.images[right],
            f'rank {ranking.ranks[row] + 1:,}  {ranking.right_similarity[row]:.2f}',
        ),
    )[line]
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=2)
    axes.set_xlabel(caption, size=7, color=FAINT if line == 0 else color, labelpad=3)
