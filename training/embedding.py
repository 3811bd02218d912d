"""Images to embeddings, from a checkpoint or from any exported model file.

A checkpoint (``.pt``) gives two features: ``backbone``, the pooled feature that is deployed, and
``branches``, the benchmark codes' test feature: the three branch features (after BatchNorm,
without dropout) of the image plus those of its mirror image, each branch of unit length, joined
and divided by sqrt(3). A model file (``.safetensors``, ``.onnx``) holds no branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine.model_file import (
    METADATA_KEY,
    ModelMetadata,
    file_sha256,
    read_model,
)
from bicrossnet_ros.errors import ConfigError, ImageError, ModelError
from bicrossnet_ros.preprocess import Preprocessing, check_patches, prepare
from bicrossnet_ros.preprocess import resize as resize_deployed
from training.config import TrainConfig, config_from_dict
from training.decoding import cores, decode_ahead, resize_bicubic

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from training.models.network import Outputs

BATCH = 64
FEATURES = ('backbone', 'branches')
RESIZES = ('deployed', 'bicubic')

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

    def embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed RGB images (N, H, W, 3), N >= 1; returns the first feature, (N, D), unit length.

        Raises
        ------
        ImageError
            If the dtype or the shape is another one, or there is no image.
        """
        check_patches(images)
        if not len(images):
            raise ImageError('no images were given; expected at least one')
        batches = [
            self._forward(np.stack([self._resized(image) for image in images[i : i + BATCH]]))
            for i in range(0, len(images), BATCH)
        ]
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

        Files of equal content, as the benchmarks' queries and galleries hold many, are decoded
        and embedded once.

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
        images: list[NDArray[np.uint8]] = []
        number: dict[bytes, int] = {}  # of each content that could be decoded
        errors: dict[bytes, tuple[int, ImageError]] = {}
        contents: list[bytes] = []
        files = decode_ahead(paths, self._resized, ahead=2 * BATCH, workers=workers)
        bar = tqdm(total=len(paths), disable=not progress, unit='image')
        with bar, closing(files):
            for row, (content, image) in enumerate(files):
                bar.update()
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


def open_embedder(
    path: str | Path,
    *,
    feature: str | tuple[str, ...] | None = 'backbone',
    device: str = 'auto',
    resize: str = 'deployed',
) -> Embedder:
    """Load a network for evaluation.

    Parameters
    ----------
    path : str or Path
        A checkpoint ``.pt`` of this project, or a model file ``.safetensors`` or ``.onnx``.
    feature : str, tuple of str or None
        One or more of `FEATURES`, several at the cost of one decoding; None: all that the file
        has.
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
    features = (feature,) if isinstance(feature, str) else feature
    if features is not None and (not features or set(features) - set(FEATURES)):
        raise ConfigError(f'feature is {feature!r}; expected one of {", ".join(FEATURES)}')
    if resize not in RESIZES:
        raise ConfigError(f'resize is {resize!r}; expected one of {", ".join(RESIZES)}')
    if path.suffix in ('.safetensors', '.onnx'):
        return _from_model_file(path, features or ('backbone',), resize)
    if path.suffix == '.pt':
        return _from_checkpoint(path, features, resize, _device(device))
    kind = 'a folder' if path.is_dir() else f'a {path.suffix or "nameless"} file'
    raise ModelError(
        f'{path}: {kind}; expected a checkpoint .pt or a model file .safetensors or .onnx'
    )


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
    encoder = open_encoder(path, threads=cores())

    def forward(images: NDArray[np.uint8]) -> Vectors:
        return {'backbone': encoder.encode(images)}

    backbone, config = _provenance(path)
    return Embedder(
        path,
        encoder.model_id,
        features,
        encoder.preprocessing,
        resize,
        backbone,
        config,
        forward,
    )


def _provenance(path: Path) -> tuple[str | None, TrainConfig | None]:
    """Return backbone and configuration of a model file, as far as it tells."""
    from training.models.bnext import CHANNELS

    if path.suffix == '.safetensors':
        metadata = read_model(path).metadata
    else:
        import onnx

        model = onnx.load(path, load_external_data=False)
        entries = {entry.key: entry.value for entry in model.metadata_props}
        metadata = ModelMetadata.from_json(entries[METADATA_KEY], source=str(path))
    names = [
        f'bnext_{size}' for size, channels in CHANNELS.items() if channels == metadata.channels
    ]
    try:
        record = metadata.training.get('config')
        config = config_from_dict(record, source=str(path)) if record else None
    except ConfigError:  # of an older version: nothing to compare with, but a model all the same
        config = None
    return (names[0] if names else None), config


def _from_checkpoint(
    path: Path, features: tuple[str, ...] | None, resize: str, device: torch.device
) -> Embedder:
    from training.checkpoint import checkpoint_config, load_checkpoint, network_from_state
    from training.data.loader import normalise

    state = load_checkpoint(path)
    config = checkpoint_config(state, source=path)
    network = network_from_state(state, source=path).to(device).eval()
    if features is None:
        features = FEATURES if network.branches is not None else ('backbone',)
    if 'branches' in features and network.branches is None:
        raise ModelError(
            f'{path}: was trained without branches (model.branches: false); use the feature '
            'backbone'
        )
    preprocessing = Preprocessing(config.model.input_px, config.model.input_px)

    @torch.no_grad()
    def forward(images: NDArray[np.uint8]) -> Vectors:
        inputs = normalise(torch.from_numpy(images).to(device), preprocessing)
        outputs = network(inputs)
        vectors = {}
        if 'backbone' in features:
            vectors['backbone'] = F.normalize(outputs.embedding)
        if 'branches' in features:
            vectors['branches'] = branch_feature(outputs, network(inputs.flip(3)))
        return {name: vector.float().cpu().numpy() for name, vector in vectors.items()}

    return Embedder(
        path,
        file_sha256(path),
        features,
        preprocessing,
        resize,
        config.model.name,
        config,
        forward,
    )


def _device(name: str) -> torch.device:
    if name not in ('auto', 'cpu', 'cuda'):
        raise ConfigError(f'device is {name!r}; expected auto, cpu or cuda')
    if name == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('device is cuda but there is no usable GPU; choose auto or cpu')
    return torch.device('cuda' if name != 'cpu' and torch.cuda.is_available() else 'cpu')
