"""Retrieval among the held-out places while training: drone to satellite, one satellite each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bicrossnet_ros.errors import ConfigError, ImageError
from bicrossnet_ros.preprocess import Preprocessing
from training.embedding import embed
from training.metrics import recall_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.config import TrainConfig
    from training.data.places import PairSource
    from training.distributed import Team
    from training.models.network import GeoNetwork

VALIDATION_STREAM = 1
RANKS = (1, 5, 10)
# Drone images of a place that are asked for; more of the same place say little new.
VIEWS = 4


class Validation:
    """The held-out places in memory, the same views at every validation of a run.

    Parameters
    ----------
    source : PairSource
        The held-out places.
    config : TrainConfig
        Its seed decides the views; ``data.unreadable`` whether a broken image is fatal.
    team : Team
        Every process embeds its share of the places.

    Raises
    ------
    ImageError
        If an image cannot be decoded and ``data.unreadable`` is 'fail'.
    ConfigError
        If no place can be shown.
    """

    def __init__(self, source: PairSource, config: TrainConfig, team: Team) -> None:
        self._team = team
        side = config.model.input_px
        self._preprocessing = Preprocessing(side, side)
        key = (config.run.seed, VALIDATION_STREAM, 0)
        fatal = config.data.unreadable == 'fail'
        shown = [
            _views(source, place, key=key, fatal=fatal)
            for place in range(team.rank, len(source.names), team.world)
        ]
        pairs = [place for place in shown if place]
        count = min(VIEWS, max(source.views))
        shape = (0, side, side, 3)
        self._tiles = _stack([place[0][0] for place in pairs], shape)
        self._queries = [
            _stack([place[view % len(place)][1] for place in pairs], shape)
            for view in range(count)
        ]
        self.places = int(team.sum_numbers([len(pairs)])[0])
        if not self.places:
            raise ConfigError('no held-out place can be read; replace its images')

    def figures(self, network: GeoNetwork) -> dict[str, float]:
        """Return recall_at_1, _5, _10 (means over the views) and the number of places."""
        # Without run.sync_norms the processes' BatchNorm statistics differ; rank 0's are kept.
        self._team.share_weights(network)
        tiles = self._embedded(network, self._tiles)
        recalls = [
            recall_at(tiles, self._embedded(network, queries), RANKS) for queries in self._queries
        ]
        means = {name: float(np.mean([r[name] for r in recalls])) for name in recalls[0]}
        return {**means, 'places': float(self.places)}

    def _embedded(self, network: GeoNetwork, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = (
            embed(network, images, self._preprocessing)
            if len(images)
            else np.zeros((0, network.embedding_dim), np.float32)
        )
        gathered = self._team.gather_rows([torch.from_numpy(rows).to(self._team.device)])[0]
        return gathered.cpu().numpy()


def _views(
    source: PairSource, place: int, *, key: tuple[int, ...], fatal: bool
) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pairs of a place, its drone images evenly chosen; without those that cannot be decoded."""
    count = source.views[place]
    pairs = []
    for view in np.linspace(0, count, min(VIEWS, count), endpoint=False).astype(int).tolist():
        try:
            pairs.append(source.sample(place, view, key=key))
        except ImageError:
            if fatal:
                raise
    return pairs


def _stack(images: list[NDArray[np.uint8]], empty: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.stack(images) if images else np.zeros(empty, np.uint8)
