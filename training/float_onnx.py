"""Float backbones that fly, as ONNX: EfficientNet-Lite0 and ConvNeXt, checked against PyTorch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine.model_file import METADATA_KEY, ModelMetadata
from bicrossnet_ros.errors import ModelError
from bicrossnet_ros.preprocess import Preprocessing
from training.agreement import compare
from training.convnext_onnx import build_convnext
from training.embedding import embed
from training.export_efficientnet import build_efficientnet_onnx, preprocessing
from training.models.convnext import ConvNeXt
from training.models.efficientnet import EfficientNetLite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from training.models.backbone import Backbone

LEAST_COSINE = 0.9999
"""Least cosine of any image. Nothing cascades in a float network: measured 0.999999."""


def is_float_backbone(backbone: Backbone) -> bool:
    """Whether a backbone is one of those that `build_float_onnx` can write."""
    return isinstance(backbone, EfficientNetLite | ConvNeXt)


def build_float_onnx(
    backbone: Backbone, *, name: str, architecture: str, input_px: int, training: dict[str, Any]
) -> onnx.ModelProto:
    """Write a float backbone as a model that flies.

    Parameters
    ----------
    backbone : EfficientNetLite or ConvNeXt
    name : str
        Name of the model, for people.
    architecture : str
        What the network is called in configurations.
    input_px : int
        Side S of the input.
    training : dict
        Record of the training.

    Returns
    -------
    onnx.ModelProto
        Input float32 (N, 3, S, S), output float32 (N, D), not normalised, with metadata.
    """
    if isinstance(backbone, EfficientNetLite):
        tensors = {key: value.cpu().numpy() for key, value in backbone.state_dict().items()}
        proto = build_efficientnet_onnx(tensors, kind=backbone.kind, input_px=input_px)
        prepared = preprocessing(input_px)
    else:
        assert isinstance(backbone, ConvNeXt), 'see is_float_backbone'
        proto, prepared = build_convnext(backbone), Preprocessing(input_px, input_px)
    metadata = ModelMetadata(
        name=name,
        architecture=architecture,
        channels=(),
        embedding_dim=backbone.feature_dim,
        preprocessing=prepared,
        training=training,
    )
    onnx.helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
    return proto


def write_float_onnx(
    path: Path, proto: onnx.ModelProto, backbone: Backbone, images: NDArray[np.uint8]
) -> list[str]:
    """Write a model to a file if it agrees with the network that it was made from.

    Parameters
    ----------
    path : Path
        ``NAME.onnx``.
    proto : onnx.ModelProto
        From `build_float_onnx`.
    backbone : Backbone
    images : ndarray of uint8, shape (N, H, W, 3)
        On which they must agree.

    Returns
    -------
    list of str
        What the check found, for people.

    Raises
    ------
    ModelError
        If it does not agree; then no file has changed.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export-') as folder:
        draft = Path(folder, path.name)
        draft.write_bytes(proto.SerializeToString())
        encoder = open_encoder(draft)
        # The backbone takes what the trainer feeds it; what the file takes stands in it.
        size_px = encoder.preprocessing.input_height_px
        expected = embed(backbone, images, Preprocessing(size_px, size_px))
        found = compare(encoder.runtime, encoder.encode(images), expected)
        if found.least < LEAST_COSINE:
            raise ModelError(
                f'the ONNX does not agree with the network it was made from: {found}; nothing '
                'was written: please report it with the checkpoint'
            )
        draft.replace(path)
    return [f'{path.suffix} in {found}']
