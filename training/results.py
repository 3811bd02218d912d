"""Results of an evaluation: what was measured, as JSON and as a table beside the paper's row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bicrossnet_ros.errors import ConfigError
from training.paper import SIZES, PaperFigures, PaperRow

ARROWS = {'drone_to_satellite': 'drone → satellite', 'satellite_to_drone': 'satellite → drone'}
METRICS = ('recall_at_1', 'recall_at_5', 'recall_at_10', 'recall_at_1_percent', 'ap')


@dataclass(frozen=True)
class Result:
    """One direction, protocol, height and feature.

    Attributes
    ----------
    direction, protocol, feature : str
        See `training.data.places.RetrievalTask` and `training.embedder.FEATURES`.
    height_m : int
        0 for University-1652, and for all heights of SUES-200 pooled.
    queries, gallery : int
        Images on both sides.
    queries_without_match : int
        Queries whose place no gallery image shows; they count as misses.
    figures : dict
        `METRICS`, in 0..1.
    """

    direction: str
    protocol: str
    height_m: int
    feature: str
    queries: int
    gallery: int
    queries_without_match: int
    figures: dict[str, float]


@dataclass(frozen=True)
class ModelResults:
    """All results of one model.

    Attributes
    ----------
    name : str
        For people.
    path : str
        The file.
    model_id : str
        Its SHA-256.
    source : str
        The data set.
    input_px : tuple of int
        (H, W) of the network input.
    resize : str
        See `training.embedding.open_embedder`.
    backbone : str or None
        Its name, where the file tells.
    ops_g : float or None
        10^9 operations for two images, as the paper counts them.
    images, different_images : int
        Files that were embedded, and contents among them.
    unreadable : tuple of str
        Files that were left out, with the reason.
    results : tuple of Result
        One for each task.
    trained_height_m : int or None
        Height of SUES-200 that it was trained at, 0 for all pooled; None where it was trained on
        another data set, or the file does not tell.
    paper_row : PaperRow or None
        What to compare with.
    """

    name: str
    path: str
    model_id: str
    source: str
    input_px: tuple[int, int]
    resize: str
    backbone: str | None
    ops_g: float | None
    images: int
    different_images: int
    unreadable: tuple[str, ...]
    results: tuple[Result, ...]
    trained_height_m: int | None
    paper_row: PaperRow | None

    @property
    def is_comparable(self) -> bool:
        """Whether all tests have the published numbers of queries and gallery images."""
        return all(self.has_published_size(result) for result in self.results)

    def has_published_size(self, result: Result) -> bool:
        """Whether a test has the published numbers of queries and gallery images."""
        key = self.source, result.direction, result.protocol, bool(result.height_m)
        return (result.queries, result.gallery) == SIZES[key]

    def paper_figures(self, result: Result) -> PaperFigures | None:
        """Return the paper's figures for a result, None if nothing like it was published.

        It published the full protocol only, and of SUES-200 a network for each height.
        """
        if self.paper_row is None or result.protocol != 'full':
            return None
        if self.trained_height_m not in (None, result.height_m):
            return None
        return self.paper_row.figures.get((result.direction, result.height_m))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        row = self.paper_row
        values = asdict(self)
        values['paper_row'] = row and {'key': row.key, 'table': row.table, 'label': row.label}
        values['comparable_with_paper'] = self.is_comparable
        for result, entry in zip(self.results, values['results'], strict=True):
            paper = self.paper_figures(result)
            entry['paper_percent'] = paper and asdict(paper)
        return values


def write_results(out: Path, models: Sequence[ModelResults], *, versions: dict[str, str]) -> None:
    """Write ``results.json`` and ``results.md`` into a folder."""
    data = {'versions': versions, 'models': [model.to_dict() for model in models]}
    texts = {
        'results.json': json.dumps(data, indent=2, allow_nan=False) + '\n',
        'results.md': markdown(models),
    }
    for name, text in texts.items():
        partial = out / f'{name}.partial'
        try:
            partial.write_text(text, encoding='utf-8')
            partial.replace(out / name)
        except OSError as error:
            raise ConfigError(f'{out / name}: could not be written ({error.strerror})') from error


def markdown(models: Sequence[ModelResults]) -> str:
    """Render a section for each model; percentages with two digits, as the paper prints them."""
    return '\n'.join(_section(model) for model in models)


def _section(model: ModelResults) -> str:
    row = model.paper_row
    cost = '' if model.ops_g is None else f', {model.ops_g:.2f} G Ops for two images'
    lines = [
        f'## {model.name}',
        '',
        f'`{model.path}` (SHA-256 {model.model_id[:12]}…) on {model.source}: input '
        f'{model.input_px[0]} x {model.input_px[1]} px, {model.resize} resize{cost}; '
        f'{model.images} image files, {model.different_images} different.',
    ]
    if model.unreadable:
        lines += ['', f'**{len(model.unreadable)} unreadable images were left out.**']
    if not model.is_comparable:
        lines += [
            '',
            '**Queries or galleries are not of the published size: these figures are not '
            'comparable with published ones.**',
        ]
    lines += ['', *_table(model)]
    if row is not None and any(model.paper_figures(result) for result in model.results):
        lines += [
            '',
            f'Paper: table {row.table}, “{row.label}” (`{row.key}`); full protocol only.',
        ]
    return '\n'.join(lines) + '\n'


def _table(model: ModelResults) -> list[str]:
    at_heights = any(result.height_m for result in model.results)
    heads = ['Direction', *['Height'] * at_heights, 'Protocol', 'Feature', 'Queries', 'Gallery']
    numbers = ['R@1', 'R@5', 'R@10', 'R@1%', 'AP']
    compared = any(model.paper_figures(result) for result in model.results)
    beside = ['Paper R@1', 'AP', 'Δ R@1', 'Δ AP'] if compared else []
    lines = [
        _line([*heads, *numbers, *beside]),
        _line(['---'] * (len(heads) - 2) + ['---:'] * (2 + len(numbers) + len(beside))),
    ]
    for result in model.results:
        cells = [
            ARROWS[result.direction],
            *[f'{result.height_m} m' if result.height_m else 'all'] * at_heights,
            result.protocol,
            result.feature,
            f'{result.queries:,}',
            f'{result.gallery:,}',
            *(f'{100 * result.figures[name]:.2f}' for name in METRICS),
        ]
        if compared:
            cells += _beside(model, result)
        lines.append(_line(cells))
    return lines


def _beside(model: ModelResults, result: Result) -> list[str]:
    """Return the paper's figures and the differences, where these mean something."""
    paper = model.paper_figures(result)
    if paper is None:
        return [''] * 4
    printed = [f'{paper.recall_at_1:.2f}', f'{paper.ap:.2f}']
    if not model.has_published_size(result):
        return [*printed, '', '']
    recall, ap = 100 * result.figures['recall_at_1'], 100 * result.figures['ap']
    return [*printed, f'{recall - paper.recall_at_1:+.2f}', f'{ap - paper.ap:+.2f}']


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
