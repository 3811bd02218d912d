"""Places of photographs on disk: one satellite image and many drone images each."""

from __future__ import annotations

import math
import mmap
import multiprocessing
from pathlib import Path

import numpy as np

from bicrossnet_ros.preprocess import Preprocessing, resize
from training.config import AugmentConfig
from training.data.augment import augment_pair
from training.data.images import read_image
from training.data.places import Folders, Image

# Up to here the satellite images are kept once decoded; 701 of 256 x 256 px take 0.13 GiB.
CACHE_BYTES = 2**30

# Validation sees photographs as the vehicle does.
UNCHANGED = AugmentConfig(pad_px=0, flip_share=0.0)


class PhotoSource:
    """A `training.data.places.PairSource` of photographs.

    Parameters
    ----------
    satellite, drone : mapping of str to tuple of Path
        The images of every place; equal keys, in the order of the labels. Of several satellite
        images the first is taken.
    input_px : int
        Side of the views.
    augment : AugmentConfig
        What is changed at random.
    """

    def __init__(
        self, satellite: Folders, drone: Folders, *, input_px: int, augment: AugmentConfig
    ) -> None:
        assert list(satellite) == list(drone)
        self.names = tuple(satellite)
        self.views = tuple(map(len, drone.values()))
        self.group = 1
        self._satellite = [paths[0] for paths in satellite.values()]
        self._drone = list(drone.values())
        self._size = Preprocessing(input_px, input_px)
        self._augment = augment
        self._cache = _Cache(len(self.names), input_px)

    def sample(self, place: int, view: int | None, *, key: tuple[int, ...]) -> tuple[Image, Image]:
        """Read and augment the two views of a place; see `PairSource`."""
        # The last number is no 0: numpy seeds (a, b) and (a, b, 0) alike.
        rng = np.random.default_rng((*key, place, 1 if view is None else view + 2))
        paths = self._drone[place]
        chosen = rng.integers(len(paths)) if view is None else view
        satellite = self._cache.get(place)
        if satellite is None:
            satellite = self._cache.put(place, self._read(self._satellite[place]))
        return augment_pair(satellite, self._read(paths[chosen]), rng, self._augment)

    def _read(self, path: Path) -> Image:
        """Read an image at the size of the network's input, by the rule of `prepare`."""
        return resize(read_image(path, at_least_px=self._size.input_height_px), self._size)


class _Cache:
    """Decoded images in memory that the worker processes share, as far as `CACHE_BYTES` go."""

    def __init__(self, count: int, size_px: int) -> None:
        self._arguments = count, size_px
        shape = (count, size_px, size_px, 3)
        size = math.prod(shape)
        self._images: Image | None = None
        if size > CACHE_BYTES:
            return
        # Processes that are forked see the same pages; only what is written takes memory.
        memory = np.frombuffer(mmap.mmap(-1, size + count), np.uint8)
        self._images, self._known = memory[:size].reshape(shape), memory[size:]
        self._lock = multiprocessing.Lock()

    def __reduce__(self) -> tuple[type[_Cache], tuple[int, int]]:
        return _Cache, self._arguments

    def get(self, index: int) -> Image | None:
        """Return an image, not to be written to, or None if it is not there yet."""
        if self._images is None:
            return None
        # The lock makes the pixels visible before the flag that tells of them.
        with self._lock:
            known = bool(self._known[index])
        return self._images[index] if known else None

    def put(self, index: int, image: Image) -> Image:
        """Keep an image; two processes that do so at once write the same pixels."""
        if self._images is not None:
            self._images[index] = image
            with self._lock:
                self._known[index] = 1
        return image
