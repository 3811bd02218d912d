"""Images to embeddings, from a checkpoint or from any exported model file.

A checkpoint (``.pt``) gives two features: ``backbone``, the pooled feature that is deployed, and
``branches``, the benchmark codes' test feature: the three branch features (after BatchNorm,
without dropout) of the image plus those of its mirror image, each branch of unit length, joined
and divided by sqrt(3). A model file (``.safetensors``, ``.onnx``) holds no branches.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine.model_file import file_sha256
from bicrossnet_ros.errors import ConfigError, ImageError, ModelError
from bicrossnet_ros.preprocess import Preprocessing, check_patches, prepare, resize

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from training.models.network import Outputs

BATCH = 128
FEATURES = ('backbone', 'branches')
RESIZES = ('deployed', 'bicubic')
AHEAD = 2  # batches that are decoded before they are needed

Vectors = dict[str, 'NDArray[np.float32]']


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
    """

    vectors: Vectors
    rows: NDArray[np.int64]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Embedder:
    """A network ready to embed images; made by `open_embedder`.

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
    """

    path: Path
    model_id: str
    features: tuple[str, ...]
    preprocessing: Preprocessing
    resize: str
    _forward: Callable[[NDArray[np.uint8]], Vectors] = field(repr=False)

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed RGB images (N, H, W, 3); returns the first feature, (N, D) of unit length.

        Raises
        ------
        ImageError
            If the dtype or the shape is another one.
        """
        check_patches(images)
        batches = [
            self._forward(np.stack([self._resized(image) for image in images[i : i + BATCH]]))
            for i in range(0, max(1, len(images)), BATCH)
            if len(images)
        ]
        if not batches:
            size = self.preprocessing.input_height_px, self.preprocessing.input_width_px
            blank = self._forward(np.zeros((1, *size, 3), np.uint8))
            return blank[self.features[0]][:0]
        return np.concatenate([batch[self.features[0]] for batch in batches])

    def embed_paths(
        self,
        paths: Sequence[Path],
        progress: bool = True,
        *,
        unreadable: str = 'fail',
        workers: int | None = None,
    ) -> PathEmbeddings:
        """Embed image files; threads decode ahead of the network.

        Parameters
        ----------
        paths : sequence of Path
            JPEG, PNG, ...; any sizes.
        progress : bool
            Show a bar on stderr.
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
        from tqdm import tqdm

        if unreadable not in ('fail', 'skip'):
            raise ConfigError(f'unreadable is {unreadable!r}; expected fail or skip')
        parts: list[Vectors] = []
        rows: list[int] = []
        messages: list[str] = []
        images: list[NDArray[np.uint8]] = []
        with tqdm(total=len(paths), disable=not progress, unit='image') as bar:
            for row, image in enumerate(self._decoded(paths, workers or _cores())):
                bar.update()
                if isinstance(image, ImageError):
                    if unreadable == 'fail':
                        raise image
                    messages.append(str(image))
                    continue
                rows.append(row)
                images.append(image)
                if len(images) == BATCH:
                    parts.append(self._forward(np.stack(images)))
                    images = []
        if images:
            parts.append(self._forward(np.stack(images)))
        if not parts:
            reason = messages[0] if messages else 'no images were given'
            raise ImageError(f'none of {len(paths)} images could be embedded: {reason}')
        vectors = {name: np.concatenate([part[name] for part in parts]) for name in self.features}
        return PathEmbeddings(vectors, np.asarray(rows, np.int64), tuple(messages))

    def _decoded(
        self, paths: Sequence[Path], workers: int
    ) -> Iterator[NDArray[np.uint8] | ImageError]:
        """Yield each image resized to the input, or its error, in the order of the paths."""
        waiting: deque[Any] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for path in paths:
                    waiting.append(pool.submit(self._load, path))
                    if len(waiting) > AHEAD * BATCH:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, path: Path) -> NDArray[np.uint8] | ImageError:
        from training.data.images import read_image

        try:
            return self._resized(read_image(path))
        except ImageError as error:
            return error

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.resize == 'deployed':
            return resize(image, self.preprocessing)
        size = self.preprocessing.input_height_px, self.preprocessing.input_width_px
        return image if image.shape[:2] == size else resize_bicubic(image, *size)


def open_embedder(
    path: str | Path,
    *,
    feature: str | tuple[str, ...] = 'backbone',
    device: str = 'auto',
    resize: str = 'deployed',
) -> Embedder:
    """Load a network for evaluation.

    Parameters
    ----------
    path : str or Path
        A checkpoint ``.pt`` of this project, or a model file ``.safetensors`` or ``.onnx``.
    feature : str or tuple of str
        One or more of `FEATURES`; several cost one pass.
    device : str
        'auto' (the GPU if there is one), 'cpu' or 'cuda'; model files run on the CPU.
    resize : str
        'deployed': area where the image shrinks, bilinear where it grows, as on the vehicle;
        'bicubic': as the paper's code resizes.

    Raises
    ------
    ModelError
        If the file is no model, damaged, or has no such feature.
    ConfigError
        If an option is impossible.
    """
    path = Path(path)
    features = (feature,) if isinstance(feature, str) else tuple(feature)
    unknown = sorted(set(features) - set(FEATURES))
    if unknown or not features:
        raise ConfigError(f'feature is {feature!r}; expected one of {", ".join(FEATURES)}')
    if resize not in RESIZES:
        raise ConfigError(f'resize is {resize!r}; expected one of {", ".join(RESIZES)}')
    if path.suffix in ('.safetensors', '.onnx'):
        return _from_model_file(path, features, resize)
    if path.suffix == '.pt':
        return _from_checkpoint(path, features, resize, device)
    kind = 'a folder' if path.is_dir() else f'a {path.suffix or "nameless"} file'
    raise ModelError(
        f'{path}: {kind}; expected a checkpoint .pt or a model file .safetensors or .onnx'
    )


def resize_bicubic(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize RGB (H, W, 3) bicubically, antialiased where it shrinks, as torchvision does PIL."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


@torch.no_grad()
def embed(
    model: nn.Module, patches: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Embed patches (N, H, W, 3) in evaluation mode, float32; returns (N, D) of unit length.

    `model` is a backbone or a `training.models.network.GeoNetwork`, on any device; every module
    gets back the mode that it was in.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    device = next(model.parameters()).device
    rows = []
    for i in range(0, len(patches), BATCH):
        inputs = torch.from_numpy(prepare(patches[i : i + BATCH], preprocessing))
        outputs = model(inputs.to(device))
        rows.append(F.normalize(getattr(outputs, 'embedding', outputs).float()).cpu().numpy())
    for module, was_training in modes:
        module.training = was_training
    return np.concatenate(rows)


def branch_feature(outputs: Outputs, mirrored: Outputs) -> Tensor:
    """Join the branch features of images and of their mirror images, (N, 3 * bottleneck)."""
    sums = [a + b for a, b in zip(outputs.features, mirrored.features, strict=True)]
    joined = torch.cat([F.normalize(branch) for branch in sums], dim=1)
    return joined / len(sums) ** 0.5


def _from_model_file(path: Path, features: tuple[str, ...], resize: str) -> Embedder:
    if 'branches' in features:
        raise ModelError(
            f'{path}: a model file holds no branches, they are not deployed; evaluate the '
            'checkpoint (.pt) or use the feature backbone'
        )
    encoder = open_encoder(path, threads=_cores())

    def forward(images: NDArray[np.uint8]) -> Vectors:
        return {'backbone': encoder.encode(images)}

    return Embedder(path, encoder.model_id, features, encoder.preprocessing, resize, forward)


def _from_checkpoint(path: Path, features: tuple[str, ...], resize: str, device: str) -> Embedder:
    from training.checkpoint import load_checkpoint, network_from_checkpoint
    from training.data.loader import normalise

    config = load_checkpoint(path)['config']
    network = network_from_checkpoint(path)
    if 'branches' in features and network.branches is None:
        raise ModelError(
            f'{path}: was trained without branches (model.branches: false); use the feature '
            'backbone'
        )
    where = _device(device)
    network.to(where).eval()
    side = int(config['model']['input_px'])
    preprocessing = Preprocessing(side, side)

    @torch.no_grad()
    def forward(images: NDArray[np.uint8]) -> Vectors:
        inputs = normalise(torch.from_numpy(images).to(where), preprocessing)
        outputs = network(inputs)
        vectors = {}
        if 'backbone' in features:
            vectors['backbone'] = F.normalize(outputs.embedding)
        if 'branches' in features:
            vectors['branches'] = branch_feature(outputs, network(inputs.flip(3)))
        return {name: vector.float().cpu().numpy() for name, vector in vectors.items()}

    return Embedder(path, file_sha256(path), features, preprocessing, resize, forward)


def _device(name: str) -> torch.device:
    if name not in ('auto', 'cpu', 'cuda'):
        raise ConfigError(f'device is {name!r}; expected auto, cpu or cuda')
    if name == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('device is cuda but there is no usable GPU; choose auto or cpu')
    return torch.device('cuda' if name != 'cpu' and torch.cuda.is_available() else 'cpu')


def _cores() -> int:
    return min(16, len(os.sched_getaffinity(0)))
