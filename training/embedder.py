"""A network ready to embed image files, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bicrossnet_ros.errors import ConfigError, ImageError
from bicrossnet_ros.preprocess import Preprocessing
from bicrossnet_ros.preprocess import resize as resize_deployed
from training.config import TrainConfig
from training.decoding import decode_ahead, resize_bicubic
from training.progress import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 64
FEATURES = ('backbone', 'branches')

# Of each feature an array (N, D).
Vectors = dict[str, 'NDArray[np.float32]']
Forward = Callable[['NDArray[np.uint8]'], Vectors]


@dataclass(frozen=True)
class PathEmbeddings:
    """Embeddings of image files.

    Attributes
    ----------
    vectors : dict
        Of each feature a float32 array (M, D), rows of unit length, one for each image that could
        be read.
    rows : ndarray of int64, shape (M,)
        Which of the given paths they belong to, ascending.
    unreadable : tuple of str
        A message for each of the others.
    different : int
        Number of different contents among the M files.
    """

    vectors: Vectors
    rows: NDArray[np.int64]
    unreadable: tuple[str, ...]
    different: int


@dataclass(frozen=True)
class Embedder:
    """A network ready to embed images; made by `training.embedding.open_embedder`.

    Attributes
    ----------
    path : Path
        The file it was read from.
    model_id : str
        SHA-256 of that file.
    features : tuple of str
        What it computes, of `FEATURES`.
    preprocessing : Preprocessing
        How images are prepared.
    resize : str
        'deployed': the rule of `preprocessing`; 'bicubic': the paper's, antialiased.
    backbone : str or None
        Its name among `training.models.names.BACKBONES`; None if the file does not tell.
    config : TrainConfig or None
        How it was trained; None if the file does not tell.
    """

    path: Path
    model_id: str
    features: tuple[str, ...]
    preprocessing: Preprocessing
    resize: str
    backbone: str | None
    config: TrainConfig | None
    _forward: Forward = field(repr=False)

    def embed_paths(
        self,
        paths: Sequence[Path],
        *,
        unreadable: str = 'fail',
        workers: int | None = None,
    ) -> PathEmbeddings:
        """Embed image files, with progress on stderr; threads decode ahead of the network.

        Files of equal content, as the benchmarks' queries and galleries hold many, are decoded
        and embedded once.

        Parameters
        ----------
        paths : sequence of Path
            JPEG, PNG, ...; any sizes.
        unreadable : str
            'fail': raise at the first image that cannot be decoded; 'skip': leave it out and say
            so in the result.
        workers : int, optional
            Threads that decode; by default one a core, 16 at most.

        Raises
        ------
        ImageError
            If an image cannot be decoded and `unreadable` is 'fail', or if none can.
        """
        if unreadable not in ('fail', 'skip'):
            raise ConfigError(f'unreadable is {unreadable!r}; expected fail or skip')
        parts: list[Vectors] = []
        images: list[NDArray[np.uint8]] = []
        number: dict[bytes, int] = {}  # of each content that could be decoded
        errors: dict[bytes, tuple[int, ImageError]] = {}
        contents: list[bytes] = []
        files = decode_ahead(paths, self._resized, ahead=2 * BATCH, workers=workers)
        with closing(files):
            for row, (content, image) in enumerate(counted(files, 'embedding', len(paths))):
                contents.append(content)
                if isinstance(image, ImageError):
                    if unreadable == 'fail':
                        raise image
                    errors[content] = row, image
                elif image is not None:
                    number[content] = len(number)
                    images.append(image)
                if len(images) == BATCH:
                    parts.append(self._forward(np.stack(images)))
                    images = []
        if images:
            parts.append(self._forward(np.stack(images)))
        messages = [
            str(error) if row == first else f'{paths[row]}: equal to another: {error}'
            for row, content in enumerate(contents)
            if content in errors
            for first, error in [errors[content]]
        ]
        if not parts:
            reason = messages[0] if messages else 'no paths were given'
            raise ImageError(f'none of {len(paths)} images could be embedded: {reason}')
        rows = [row for row, content in enumerate(contents) if content in number]
        order = [number[contents[row]] for row in rows]
        vectors = {
            name: np.concatenate([part[name] for part in parts])[order] for name in self.features
        }
        return PathEmbeddings(vectors, np.asarray(rows, np.int64), tuple(messages), len(number))

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.resize == 'deployed':
            return resize_deployed(image, self.preprocessing)
        size = self.preprocessing.input_height_px, self.preprocessing.input_width_px
        return resize_bicubic(image, *size)
