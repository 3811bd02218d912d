"""What a descriptor is fitted to and measured on: tiles and simulated views, and their retrieval.

The task is the one of the trainer: a view must find its own tile among the tiles of all places;
two places a scene, side by side, so that every tile has a neighbour that looks like it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bicrossnet_ros.descriptor import Projection, signs
from bicrossnet_ros.errors import ConfigError
from training.data.scenes import read_scene
from training.data.view_config import ViewConfig
from training.data.views import Place, sample_places, view_pair
from training.progress import counted
from training.splits import load_split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bicrossnet_ros.encoder import Encoder

SCENE_PX = 400
PLACES_PER_SCENE = 2
RANKS = (1, 5)
_BATCH = 64


@dataclass(frozen=True, eq=False)
class EmbeddedPairs:
    """Embeddings of places, float32 (N, D) each: row n of both shows place n."""

    tiles: NDArray[np.float32]
    queries: NDArray[np.float32]


def scenes_of(root: Path, side: str, *, split: Path | None = None) -> list[Path]:
    """List the images of one side of a split that are below a folder.

    Raises
    ------
    ConfigError
        If there is none.
    """
    wanted = [root / name for name, where in load_split(split).items() if where == side]
    found = [path for path in wanted if path.is_file()]
    if not found:
        raise ConfigError(
            f'{root}: none of the {len(wanted)} {side} scenes of the split is there; expected '
            'the folder that python -m training.data.gather makes'
        )
    if len(found) < len(wanted):
        print(f'{root}: {len(wanted) - len(found)} of {len(wanted)} {side} scenes are not there')
    return found


def embed_pairs(
    encoder: Encoder, scenes: list[Path], *, places: int, seed: int, views: ViewConfig, what: str
) -> EmbeddedPairs:
    """Render and embed places, the same number of each scene as far as that goes.

    Parameters
    ----------
    encoder : Encoder
    scenes : list of Path
        Images.
    places : int
        Places wanted.
    seed : int
        Everything random follows from it.
    views : ViewConfig
        How a view differs from its tile.
    what : str
        For the progress bar.
    """
    tiles, queries = [], []
    pairs = _render(encoder, scenes, places=places, seed=seed, views=views)
    batch: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
    for number, pair in enumerate(counted(pairs, what, places), 1):
        batch.append(pair)
        if len(batch) == _BATCH or number == places:
            tiles.append(encoder.encode(np.stack([tile for tile, _ in batch])))
            queries.append(encoder.encode(np.stack([query for _, query in batch])))
            batch.clear()
    return EmbeddedPairs(np.concatenate(tiles), np.concatenate(queries))


def _render(
    encoder: Encoder, scenes: list[Path], *, places: int, seed: int, views: ViewConfig
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    size_px = encoder.preprocessing.input_height_px
    # Which scenes have a place more than others is left to chance.
    order = np.random.default_rng(seed).permutation(len(scenes)).tolist()
    for position, row in enumerate(order):
        count = places // len(scenes) + (position < places % len(scenes))
        rng = np.random.default_rng((seed, row))
        if not count:
            continue
        image = read_scene(scenes[row], scene_px=SCENE_PX)
        drawn: list[Place] = []
        for _ in range(count):
            drawn = drawn or sample_places(
                rng, scene_px=SCENE_PX, places=PLACES_PER_SCENE, config=views
            )
            yield view_pair(image, drawn.pop(), rng, size_px=size_px, config=views)


def similarities(
    tiles: NDArray[np.float32], queries: NDArray[np.float32], *, kind: str
) -> NDArray[np.float32]:
    """Compare all queries with all tiles as a gallery of a kind would, (Q, T).

    Parameters
    ----------
    tiles, queries : ndarray of shape (T, B) and (Q, B), float32
        Embeddings, or descriptors.
    kind : str
        'float'; 'asymmetric', floats against signs; 'hamming', signs against signs.
    """
    match kind:
        case 'float':
            return queries @ tiles.T
        case 'asymmetric':
            return queries @ signs(tiles).T
        case 'hamming':
            return signs(queries) @ signs(tiles).T
        case _:
            raise ValueError(f'kind {kind!r}: expected float, asymmetric or hamming')


def recall(scores: NDArray[np.float32]) -> dict[str, float]:
    """Share of queries whose own tile (the same row) is among the best; ties count half.

    Parameters
    ----------
    scores : ndarray of shape (N, N), float32

    Returns
    -------
    dict of str to float
        'recall_at_1' and 'recall_at_5'.
    """
    own = np.diag(scores)[:, None]
    better = (scores > own).sum(axis=1) + 0.5 * ((scores == own).sum(axis=1) - 1)
    return {f'recall_at_{rank}': float((better < rank).mean()) for rank in RANKS}


def recalls(pairs: EmbeddedPairs, projection: Projection) -> dict[str, dict[str, float]]:
    """Recall of every way to compare: the embeddings, then the descriptors of a projection."""
    tiles, queries = projection.apply(pairs.tiles), projection.apply(pairs.queries)
    return {
        'float': recall(similarities(pairs.tiles, pairs.queries, kind='float')),
        'float256': recall(similarities(tiles, queries, kind='float')),
        'packed': recall(similarities(tiles, queries, kind='asymmetric')),
        'packed, Hamming': recall(similarities(tiles, queries, kind='hamming')),
    }
