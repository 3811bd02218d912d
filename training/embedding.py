"""Images to embeddings, from a checkpoint or from any exported model file.

A checkpoint (``.pt``) gives two features: ``backbone``, the pooled feature that is deployed, and
``branches``, the benchmark codes' test feature: the three branch features (after BatchNorm,
without dropout) of the image plus those of its mirror image, each branch of unit length, joined
and divided by sqrt(3). A model file (``.safetensors``, ``.onnx``, ``.tflite``) holds no branches.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine.lce_runtime import unpack
from bicrossnet_ros.engine.model_file import (
    METADATA_KEY,
    ModelMetadata,
    file_sha256,
    read_model,
)
from bicrossnet_ros.errors import ConfigError, ModelError
from bicrossnet_ros.preprocess import Preprocessing, prepare
from training.checkpoint import checkpoint_config, load_checkpoint, network_from_state
from training.config import TrainConfig
from training.config_files import config_from_dict
from training.data.loader import normalise
from training.decoding import cores
from training.embedder import BATCH, FEATURES, Embedder, Vectors
from training.models.bnext import CHANNELS
from training.precision import true_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from training.models.network import Outputs

RESIZES = ('deployed', 'bicubic')
MODEL_SUFFIXES = ('.safetensors', '.onnx', '.tflite')


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
        A checkpoint ``.pt`` of this project, or a model file ``.safetensors``, ``.onnx`` or
        ``.tflite``.
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
    if path.suffix in MODEL_SUFFIXES:
        return _from_model_file(path, features or ('backbone',), resize)
    if path.suffix == '.pt':
        return _from_checkpoint(path, features, resize, _device(device))
    kind = 'a folder' if path.is_dir() else f'a {path.suffix or "nameless"} file'
    raise ModelError(
        f'{path}: {kind}; expected a checkpoint .pt or a model file {" or ".join(MODEL_SUFFIXES)}'
    )


@torch.no_grad()
@true_float32()
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
    if path.suffix == '.safetensors':
        metadata = read_model(path).metadata
    elif path.suffix == '.tflite':
        metadata, _ = unpack(path.read_bytes(), source=str(path))
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
    @true_float32()
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
