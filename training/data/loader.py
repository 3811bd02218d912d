"""Batches of image pairs: decoded and augmented by worker processes, the same for any number.

The batch of a step is a pure function of (seed, stream, step): a run that is resumed, or one with
other workers, sees the same images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bicrossnet_ros.errors import ConfigError, ImageError
from bicrossnet_ros.preprocess import Preprocessing
from training.config import DataConfig
from training.data.places import GroundSource, Image, PairSource
from training.data.samplers import ANY_VIEW, epoch_order, steps_per_epoch
from training.data.workers import alive

logger = logging.getLogger(__name__)

# Ends the keys of the order in which other images of a place are tried. It is no 0: numpy seeds
# (a, b) and (a, b, 0) alike.
_RETRIES = 2**31 - 1
# Stands where others have the place, in the keys of the order in which other places are tried.
_SPARES = 2**31 - 2


@dataclass
class Batch:
    """Pairs of views of different places; row k of both shows the same place.

    Parameters
    ----------
    satellite, drone : Tensor of uint8, shape (N, S, S, 3)
        RGB.
    labels : Tensor of int64, shape (N,)
        Labels of the places.
    skipped : int
        Places that were left out because no pair of images of theirs could be decoded, also where
        others stand in for them.
    problems : tuple of str
        What could not be decoded, also where another image of the place took its part.
    ground : Tensor of float64, shape (N, 7), or None
        Where the places lie, in the columns of `training.data.near_misses.Ground`; None where no
        two of them overlap.
    """

    satellite: Tensor
    drone: Tensor
    labels: Tensor
    skipped: int
    problems: tuple[str, ...] = ()
    ground: Tensor | None = None

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a GPU copies while it computes."""
        return Batch(
            self.satellite.pin_memory(),
            self.drone.pin_memory(),
            self.labels.pin_memory(),
            self.skipped,
            self.problems,
            None if self.ground is None else self.ground.pin_memory(),
        )


def batches(
    source: PairSource,
    config: DataConfig,
    *,
    seed: int,
    stream: int,
    first_step: int,
    last_step: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Make the batches of the steps from `first_step` to before `last_step`.

    One call may span many epochs; its workers live until it ends, so call it once for a run.

    Parameters
    ----------
    source : PairSource
        Where places come from.
    config : DataConfig
        Sampler, size of the global batch, workers, and what to do about unreadable images.
    seed, stream : int
        With the step, they decide every random choice; streams never share random numbers.
    first_step, last_step : int
        Steps counted from the start of the run; epoch = step // steps_per_epoch.
    rank, world : int
        This process and the number of processes: each gets its share of every global batch.

    Yields
    ------
    Batch
        Fewer rows than asked for if places were left out, never none: for a share of which no
        place can be read stands one that is not in the global batch.

    Raises
    ------
    ConfigError
        If there are too few places, or the global batch does not divide by `world`.
    ImageError
        If `unreadable` is 'fail' and an image cannot be decoded, or if no place of a share can be
        read and none is left to stand in for it.
    WorkerError
        If a worker process was killed.
    """
    if config.places_per_step % (world * source.group):
        raise ConfigError(
            f'data.places_per_step is {config.places_per_step}; expected a multiple of '
            f'{world * source.group} ({world} processes, {source.group} places a group)'
        )
    steps_per_epoch(source, config)
    steps = _Steps(source, config, seed, stream, rank, world)
    loader: DataLoader[Batch | ImageError] = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=config.workers,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        # Without one of its own it would draw from torch's, and a resumed run would differ.
        generator=torch.Generator(),
    )
    return _reported(loader)


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn images into network input where they are; equal to `bicrossnet_ros.preprocess.prepare`.

    Parameters
    ----------
    images : Tensor of uint8, shape (N, H, W, 3)
        RGB, of the input's size.
    preprocessing : Preprocessing
        What the network expects.

    Returns
    -------
    Tensor of float32, shape (N, 3, H, W)

    Raises
    ------
    ImageError
        If the dtype or the size is another one.
    """
    height, width = preprocessing.input_height_px, preprocessing.input_width_px
    if images.dtype != torch.uint8 or images.shape[1:] != (height, width, 3):
        raise ImageError(
            f'images are {images.dtype} of shape {tuple(images.shape)}; expected uint8 of shape '
            f'(N, {height}, {width}, 3), the size that the network takes'
        )
    # The same two float32 operations as in `prepare`, so that the results are equal bit by bit.
    std = np.asarray(preprocessing.std, np.float32)
    gain = np.float32(1 / 255) / std
    offset = -np.asarray(preprocessing.mean, np.float32) / std
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.mul_(_planes(gain, images)).add_(_planes(offset, images))


def _planes(values: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device).view(1, 3, 1, 1)


class _Steps(Dataset[Batch | ImageError]):
    """Batches by the number of their step.

    A fatal error is returned, not raised: a worker process would wrap it in its own traceback.
    """

    def __init__(
        self,
        source: PairSource,
        config: DataConfig,
        seed: int,
        stream: int,
        rank: int,
        world: int,
    ) -> None:
        self.source, self.config, self.seed, self.stream = source, config, seed, stream
        self.rank, self.share = rank, config.places_per_step // world
        self.steps = steps_per_epoch(source, config)
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, step: int) -> Batch | ImageError:
        try:
            return self._batch(step)
        except ImageError as error:
            return error.with_traceback(None)

    def _batch(self, step: int) -> Batch:
        epoch, index = divmod(step, self.steps)
        key = (self.seed, self.stream, epoch)
        order = self._order(epoch)[index]
        pairs, problems = self._read(self._rows(order, self.rank), key)
        skipped = self.share - len(pairs)
        if not pairs:
            pairs, more = self._stand_in(order, key, index)
            problems += more
        if not pairs:
            raise ImageError(
                f'none of the {self.share} places of step {step} could be read, and no place is '
                f'left to stand in; replace their images, or lower data.places_per_step; the '
                f'first: {problems[0]}'
            )
        satellite, drone = (
            torch.from_numpy(np.stack(views)) for views in zip(*pairs.values(), strict=True)
        )
        labels = torch.tensor(list(pairs))
        return Batch(satellite, drone, labels, skipped, tuple(problems), self._ground(pairs, key))

    def _ground(self, places: Iterable[int], key: tuple[int, ...]) -> Tensor | None:
        if not isinstance(self.source, GroundSource):
            return None
        grounds = [self.source.ground(place, key=key) for place in places]
        known = [astuple(ground) for ground in grounds if ground is not None]
        return torch.tensor(known, dtype=torch.float64) if known else None

    def _rows(self, order: NDArray[np.int64], rank: int) -> list[tuple[int, int]]:
        """Return the places and views of a process in a global batch."""
        share = order[rank * self.share : (rank + 1) * self.share]
        return [(place, view) for place, view in share.tolist()]

    def _read(
        self, rows: Iterable[tuple[int, int]], key: tuple[int, ...]
    ) -> tuple[dict[int, tuple[Image, Image]], list[str]]:
        """Make the views of all places that can be read; tell what cannot."""
        problems: list[str] = []
        pairs = {place: self._pair(place, view, key, problems) for place, view in rows}
        return {place: pair for place, pair in pairs.items() if pair is not None}, problems

    def _stand_in(
        self, order: NDArray[np.int64], key: tuple[int, ...], index: int
    ) -> tuple[dict[int, tuple[Image, Image]], list[str]]:
        """Make views of a group of places that is not in the global batch, for an empty share.

        No two processes take the same: each leaves one to every empty share before its own.
        """
        before = [self._read(self._rows(order, rank), key)[0] for rank in range(self.rank)]
        taken = sum(not pairs for pairs in before)
        size, problems = self.source.group, list[str]()
        others = np.setdiff1d(np.arange(len(self.source.names) // size), order[:, 0] // size)
        rng = np.random.default_rng((*key, _SPARES, index + 1))
        for group in rng.permutation(others).tolist():
            places = range(group * size, (group + 1) * size)
            pairs, more = self._read([(place, ANY_VIEW) for place in places], key)
            problems += more
            if pairs and not taken:
                return pairs, problems
            taken -= bool(pairs)
        return {}, problems

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._epoch is None or self._epoch[0] != epoch:
            order = epoch_order(self.source, self.config, seed=self.seed, epoch=epoch)
            self._epoch = epoch, order
        return self._epoch[1]

    def _pair(
        self, place: int, view: int, key: tuple[int, ...], problems: list[str]
    ) -> tuple[Image, Image] | None:
        """Make the two views of a place, from another drone image if need be."""
        first = None if view == ANY_VIEW else view
        try:
            return self.source.sample(place, first, key=key)
        except ImageError as error:
            if self.config.unreadable == 'fail':
                raise
            problems.append(str(error))
        rng = np.random.default_rng((*key, place, _RETRIES))
        for other in rng.permutation(self.source.views[place]).tolist():
            try:
                return self.source.sample(place, other, key=key)
            except ImageError as error:
                if str(error) not in problems:
                    problems.append(str(error))
        return None


def _start_worker(_worker: int) -> None:
    """One thread a worker: the workers are the parallelism."""
    cv2.setNumThreads(0)


def _reported(loader: DataLoader[Batch | ImageError]) -> Iterator[Batch]:
    """Pass batches on and warn once of every image that could not be decoded."""
    seen: set[str] = set()
    for batch in alive(loader):
        if isinstance(batch, ImageError):
            raise batch
        for problem in batch.problems:
            if problem not in seen:
                seen.add(problem)
                logger.warning('%s; skipped', problem)
        yield batch
