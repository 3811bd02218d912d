"""Which places, and which drone image of each, stand in which batch of an epoch.

An order is made for a whole epoch at once and follows from (seed, epoch) alone; so a run can go
on from any step, on any number of processes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError
from training.config import DataConfig
from training.data.places import PairSource

# Orders of places never share random numbers with images: their keys begin with the stream.
ORDER_STREAM = 2**31 - 1
ANY_VIEW = -1


def steps_per_epoch(source: PairSource, config: DataConfig) -> int:
    """Return the number of full batches in an epoch; a short last batch is skipped.

    Raises
    ------
    ConfigError
        If there are fewer places than one batch takes.
    """
    places = len(source.names)
    if places < config.places_per_step:
        raise ConfigError(
            f'found {places} places for training, but a batch takes {config.places_per_step}; '
            'lower data.places_per_step or add places'
        )
    if _by_place(source, config):
        return places // source.group // (config.places_per_step // source.group)
    return _pair_steps(np.asarray(source.views), config.places_per_step)


def epoch_order(
    source: PairSource, config: DataConfig, *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Draw the batches of an epoch.

    Returns
    -------
    ndarray of int64, shape (steps, places_per_step, 2)
        Place and drone image; `ANY_VIEW`: a random image of the place. No place stands twice in a
        batch.
    """
    steps = steps_per_epoch(source, config)
    rng = np.random.default_rng((seed, ORDER_STREAM, epoch))
    if _by_place(source, config):
        return _order_by_place(source, steps, config.places_per_step, rng)
    return _order_by_pair(np.asarray(source.views), steps, config.places_per_step, rng)


def _by_place(source: PairSource, config: DataConfig) -> bool:
    """Places that are tied into groups have one view each: both samplers are the same there."""
    return config.sampler == 'places' or source.group > 1


def _order_by_place(
    source: PairSource, steps: int, places_per_step: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    groups = rng.permutation(len(source.names) // source.group)
    places = groups[:, None] * source.group + np.arange(source.group)
    chosen = places.reshape(-1)[: steps * places_per_step].reshape(steps, places_per_step)
    return np.stack([chosen, np.full_like(chosen, ANY_VIEW)], axis=2)


def _pair_steps(views: NDArray[np.int64], places_per_step: int) -> int:
    """Return the largest number of full batches without a place twice in one.

    K batches exist if and only if the sum of min(views, K) is at least K times the batch: a place
    gives at most one image to each.
    """
    steps = int(views.sum()) // places_per_step
    while (fewer := int(np.minimum(views, steps).sum()) // places_per_step) < steps:
        steps = fewer
    return steps


def _order_by_pair(
    views: NDArray[np.int64], steps: int, places_per_step: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw every batch in proportion to the images that its places have left.

    A place with as many images left as batches remain must be in each of them; with these taken
    first the last batches come out full, and every image that fits is seen exactly once.
    """
    left = _trimmed(views, steps, places_per_step, rng)
    images = [rng.permutation(count) for count in views]
    order = np.empty((steps, places_per_step, 2), np.int64)
    for step in range(steps):
        with np.errstate(divide='ignore'):
            # The largest of log(weight) + Gumbel noise: a draw without replacement by weight.
            rank = np.log(left) + rng.gumbel(size=len(left))
        rank[left == steps - step] = np.inf
        chosen = np.argpartition(-rank, places_per_step - 1)[:places_per_step]
        left[chosen] -= 1
        order[step, :, 0] = chosen
        order[step, :, 1] = [images[place][left[place]] for place in chosen]
    return order


def _trimmed(
    views: NDArray[np.int64], steps: int, places_per_step: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Images to use of every place: at most one a batch, and as many as fill the batches."""
    left = np.minimum(views, steps)
    slots = np.repeat(np.arange(len(left)), left)
    excess = len(slots) - steps * places_per_step
    dropped = rng.choice(slots, excess, replace=False)
    return left - np.bincount(dropped, minlength=len(left))
