"""Find simulated drone views of the test scenes among the tiles of all of them.

    python -m training.evaluate_views --data SCENES --models NAME=FILE ... --out FILE.json

SCENES is the folder that `python -m training.data.gather` makes; a FILE is a model file
(.safetensors, .onnx, .tflite) or a checkpoint (.pt). One patch a query, no voting, no
registration: retrieval alone, which is what a model is trained for. All models get the same
queries: plain ones, each change of view, camera and world alone, and several together. Rows that
FILE.json holds already are made again only if the model or the pixels have changed.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from bicrossnet_ros.descriptor import Projection, signs
from bicrossnet_ros.errors import BiCrossNetError
from training.checkpoint import git_revision
from training.flight_rows import RowFile, fingerprint_of
from training.progress import counted
from training.views_metrics import Ranking, by_group, figures, rank
from training.views_models import Model, embed_all, open_model, parse_models
from training.views_pictures import write_failures
from training.views_queries import (
    Condition,
    Places,
    choose_conditions,
    draw_places,
    render,
    turned,
)
from training.views_scenes import (
    SCENE_PX,
    TestScenes,
    Tiles,
    cut_tiles,
    load_test_scenes,
    right_tiles,
    tile_px,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEYS = ('model', 'condition', 'guesses', 'descriptor')
# How tiles are stored: embeddings as they are, 256 numbers, their signs.
FLOAT, PROJECTED, PACKED = 'float', 'projected', 'packed'
PER_SCENE = 2
# Guesses of an unknown heading, every 30 degrees: of a model that knows north from south.
GUESSES = 12
# So many queries are turned at a time: they take some megabytes each.
TURNED = 20
# Of these conditions the failures are shown.
PICTURED = ('plain', 'typical', 'everything')


@dataclass(frozen=True, eq=False)
class Task:
    """What is asked of every model: the scenes, their tiles, the places of the queries."""

    scenes: TestScenes
    tiles: Tiles
    places: Places
    seed: int
    right: NDArray[np.bool_]

    @property
    def size_px(self) -> int:
        """Side of tiles and queries."""
        return tile_px(self.scenes.images.shape[1])


def make_task(scenes: TestScenes, *, per_scene: int, seed: int) -> Task:
    """Cut the gallery and draw the places."""
    tiles = cut_tiles(scenes)
    places = draw_places(scenes, per_scene=per_scene, seed=seed)
    right = right_tiles(places.scenes, places.centers, tiles)
    return Task(scenes, tiles, places, seed, right)


def first_places(task: Task) -> Task:
    """Return the task with one query a scene, the first: where each costs many embeddings."""
    first, places = task.places.numbers == 0, task.places
    fewer = Places(places.scenes[first], places.numbers[first], places.centers[first])
    return replace(task, places=fewer, right=task.right[first])


class Evaluation:
    """Models on one task; galleries are embedded when they are first needed.

    Parameters
    ----------
    task : Task
    models : dict of str to Path
        Their files.
    rows : RowFile
        Takes the rows; what it holds already is not computed again.
    pictures : Path or None
        Folder for the failures; None: none.
    """

    def __init__(
        self, task: Task, models: dict[str, Path], rows: RowFile, pictures: Path | None = None
    ) -> None:
        self.task, self.rows, self.pictures = task, rows, pictures
        self._files = models
        self._models: dict[str, Model] = {name: open_model(path) for name, path in models.items()}
        self._galleries: dict[str, NDArray[np.float32]] = {}
        self._tiles_sha = _sha(task.tiles.images)

    def run(self, conditions: Sequence[Condition]) -> None:
        """Measure all models under all conditions, one condition after the other."""
        for number, condition in enumerate(conditions, 1):
            task = first_places(self.task) if condition.any_heading else self.task
            views = render(task.scenes, task.places, condition, seed=task.seed)
            pixels = _sha(views)
            for name in self._models:
                for row in self._measure(task, name, condition, views, pixels):
                    print(
                        f'[{number}/{len(conditions)}] {_line(row)}', file=sys.stderr, flush=True
                    )

    def _measure(
        self, task: Task, name: str, condition: Condition, views: NDArray[np.uint8], pixels: str
    ) -> list[dict[str, Any]]:
        """Make the rows of a model under a condition; returns the new ones."""
        fingerprint = fingerprint_of(
            model=self._models[name].model_id,
            views=pixels,
            tiles=self._tiles_sha,
            places=task.places.centers.tolist(),
        )
        keys = list(self._keys(name, condition))
        if all(self.rows.finished(key, fingerprint) for key in keys):
            return []
        queries = self._embed_queries(name, condition, views)
        made = []
        for key in keys:
            compared = self._compared(name, queries[:, : key['guesses']], key['descriptor'])
            ranking = rank(*compared, task.right)
            row = self._row(task, key, condition, ranking, fingerprint)
            self.rows.put(row)
            made.append(row)
            if key['descriptor'] == FLOAT:
                shown = ranking
        if self.pictures and condition.name in PICTURED:
            write_failures(
                self.pictures / f'views_{name}_{condition.name}.jpg', task, views, shown
            )
        return made

    def _keys(self, name: str, condition: Condition) -> Iterator[dict[str, Any]]:
        """Name the rows of a model under a condition; compressed ones only of the main ones."""
        key = {'model': name, 'condition': condition.name}
        for guesses in (1, GUESSES) if condition.any_heading else (1,):
            yield {**key, 'guesses': guesses, 'descriptor': FLOAT}
        if condition.group in ('none', 'together') and self._projection(name):
            for descriptor in (PROJECTED, PACKED):
                yield {**key, 'guesses': 1, 'descriptor': descriptor}

    def _projection(self, name: str) -> Projection | None:
        return getattr(self._models[name], 'projection', None)

    def _compared(
        self, name: str, queries: NDArray[np.float32], descriptor: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return queries (Q, K, B) and tiles (G, B) as a gallery compares and stores them."""
        projection, gallery = self._projection(name), self._gallery(name)
        if projection is None or descriptor == FLOAT:
            return queries, gallery
        flat = projection.apply(queries.reshape(-1, queries.shape[-1]))
        gallery = projection.apply(gallery)
        return (
            flat.reshape(*queries.shape[:2], -1),
            signs(gallery) if descriptor == PACKED else gallery,
        )

    def _embed_queries(
        self, name: str, condition: Condition, views: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Embed the queries of a condition: (Q, guesses, D)."""
        model = self._models[name]
        label = f'{name}, {condition.name}'
        if not condition.any_heading:
            return embed_all(model, views, label=label)[:, None]
        size_px, parts = self.task.size_px, []
        for start in counted(range(0, len(views), TURNED), label, -(-len(views) // TURNED)):
            squares = turned(views[start : start + TURNED], size_px=size_px, headings=GUESSES)
            embedded = model.encode(squares.reshape(-1, *squares.shape[2:]))
            parts.append(embedded.reshape(len(squares), GUESSES, -1))
        return np.concatenate(parts)

    def _gallery(self, name: str) -> NDArray[np.float32]:
        if name not in self._galleries:
            self._galleries[name] = embed_all(
                self._models[name], self.task.tiles.images, label=f'{name}, gallery'
            )
        return self._galleries[name]

    def _row(
        self,
        task: Task,
        key: dict[str, Any],
        condition: Condition,
        ranking: Ranking,
        fingerprint: str,
    ) -> dict[str, Any]:
        scenes, places = task.scenes, task.places.scenes.tolist()
        return {
            **key,
            'group': condition.group,
            'gallery': len(task.tiles.scenes),
            **figures(ranking.ranks),
            'by_scale': by_group(ranking.ranks, [scenes.scales[k] for k in places]),
            'by_land_use': by_group(ranking.ranks, [scenes.land_uses[k] for k in places]),
            'file': self._files[key['model']].name,
            'model_id': self._models[key['model']].model_id,
            'fingerprint': fingerprint,
        }


def _sha(images: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


def _line(row: dict[str, Any]) -> str:
    low, high = row['interval_at_1']
    guesses = f', {row["guesses"]} guesses' if row['guesses'] > 1 else ''
    guesses += f', {row["descriptor"]}' if row['descriptor'] != FLOAT else ''
    return (
        f'{row["model"]:24} {row["condition"] + guesses:36} recall@1 {row["recall_at_1"]:6.1%} '
        f'({low:.0%} to {high:.0%})  @5 {row["recall_at_5"]:6.1%}'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.evaluate_views',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--data', type=Path, required=True, help='folder of the overhead scenes')
    parser.add_argument('--models', nargs='+', required=True, metavar='NAME=FILE')
    parser.add_argument('--out', type=Path, required=True, help='JSON file of results')
    parser.add_argument('--split', type=Path, help='instead of training/splits/overhead.csv')
    parser.add_argument('--conditions', nargs='+', help='some only; all by default')
    parser.add_argument('--per-scene', type=int, default=PER_SCENE, help='queries of a scene')
    parser.add_argument('--scene-px', type=int, default=SCENE_PX, help='side of the scenes')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--pictures', type=Path, metavar='DIR', help='show failures there')
    options = parser.parse_args(arguments)
    # Threads of its own gain nothing on small images, and disturb what else runs.
    cv2.setNumThreads(1)
    try:
        models = parse_models(options.models)
        conditions = choose_conditions(options.conditions)
        rows = RowFile(
            options.out, command=_command(arguments), revision=git_revision(), keys=KEYS
        )
        scenes = load_test_scenes(options.data, split=options.split, scene_px=options.scene_px)
        task = make_task(scenes, per_scene=options.per_scene, seed=options.seed)
        Evaluation(task, models, rows, options.pictures).run(conditions)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'interrupted; the same command goes on with {options.out}', file=sys.stderr)
        return 130
    return 0


def _command(arguments: Sequence[str] | None) -> str:
    given = sys.argv[1:] if arguments is None else arguments
    return f'python -m training.evaluate_views {shlex.join(given)}'


if __name__ == '__main__':
    sys.exit(main())
