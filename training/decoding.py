"""Image files decoded by threads ahead of the network, each content once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from bicrossnet_ros.errors import ImageError
from training.data.images import read_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The digest of a file's content, and its image, or why there is none, or None if it was seen.
Decoded = tuple[bytes, 'NDArray[np.uint8] | ImageError | None']


def decode_ahead(
    paths: Sequence[Path],
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    *,
    ahead: int,
    workers: int | None = None,
) -> Generator[Decoded, None, None]:
    """Read image files in order.

    Parameters
    ----------
    paths : sequence of Path
        JPEG, PNG, ...
    change : callable
        Applied to each RGB image (H, W, 3) in the thread that decoded it.
    ahead : int
        Images that may wait to be taken.
    workers : int, optional
        Threads; by default `cores()`.

    Yields
    ------
    tuple
        The digest of the content, and the changed image; or an ImageError if it could not be
        decoded; or None if an equal file has been decoded (or has failed) already. That other
        one may come later, but never more than `ahead` images.
    """
    waiting: deque[Future[Decoded]] = deque()
    seen: set[bytes] = set()
    lock = Lock()
    with ThreadPoolExecutor(workers or cores()) as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(_load, path, change, seen, lock))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """Return the number of cores that this process may use, 16 at most."""
    return min(16, len(os.sched_getaffinity(0)))


def resize_bicubic(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize RGB (H, W, 3) bicubically, antialiased where it shrinks, as torchvision does PIL."""
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _load(
    path: Path,
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    seen: set[bytes],
    lock: Lock,
) -> Decoded:
    try:
        content = blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError:
        content = str(path).encode()  # `read_image` says what is wrong with it
    with lock:
        if content in seen:
            return content, None
        seen.add(content)
    try:
        return content, change(read_image(path))
    except ImageError as error:
        return content, error
