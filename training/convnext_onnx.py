"""ConvNeXt as an ONNX graph that suits ONNX Runtime: the strong float network, for comparison.

What a deployer would do by hand is done here: the scale of a block and the affine part of its
LayerNorm are folded into the layers beside them, GELU is one operator, and the pixels' channels
stay innermost between the depthwise convolution and the shortcut.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from training.models.convnext import NORM_EPSILON, ChannelNorm, ConvNeXt, ConvNeXtBlock

OPSET, IR_VERSION = 20, 9  # the first with Gelu
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.float32]) -> str:
        name = f'c{len(self.constants)}'
        array = np.ascontiguousarray(value, np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f'n{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def norm(self, x: str, gain: NDArray[np.float32], offset: NDArray[np.float32]) -> str:
        """LayerNorm over the last axis."""
        constants = self.constant(gain), self.constant(offset)
        return self.node('LayerNormalization', x, *constants, epsilon=NORM_EPSILON)

    def channel_norm(self, x: str, module: ChannelNorm) -> str:
        x = self.node('Transpose', x, perm=TO_LAST)
        x = self.norm(x, _array(module.weight), _array(module.bias))
        return self.node('Transpose', x, perm=TO_FIRST)

    def convolution(self, x: str, module: nn.Conv2d, **attributes: object) -> str:
        weight, bias = _array(module.weight), _array(module.bias)
        constants = self.constant(weight), self.constant(bias)
        shape = list(weight.shape[2:])
        return self.node('Conv', x, *constants, kernel_shape=shape, **attributes)

    def block(self, x: str, module: ConvNeXtBlock) -> str:
        norm, fc1, fc2 = module.norm, module.mlp.fc1, module.mlp.fc2
        first, second = _array(fc1.weight), _array(fc2.weight)
        scale = _array(module.gamma)
        channels = len(scale)
        y = self.convolution(x, module.conv_dw, group=channels, pads=[3] * 4)
        y = self.node('Transpose', y, perm=TO_LAST)
        y = self.norm(y, np.ones(channels, np.float32), np.zeros(channels, np.float32))
        y = self.node('MatMul', y, self.constant((first * _array(norm.weight)).T))
        bias = _array(fc1.bias) + first @ _array(norm.bias)
        y = self.node('Gelu', self.node('Add', y, self.constant(bias)))
        y = self.node('MatMul', y, self.constant((second * scale[:, None]).T))
        y = self.node('Add', y, self.constant(_array(fc2.bias) * scale))
        return self.node('Add', x, self.node('Transpose', y, perm=TO_FIRST))


def _array(parameter: Tensor | None) -> NDArray[np.float32]:
    assert parameter is not None, 'every layer of a ConvNeXt has a bias'
    values: NDArray[np.float32] = parameter.detach().cpu().numpy()
    return values


def build_convnext(network: ConvNeXt) -> onnx.ModelProto:
    """Build the graph: input float32 (N, 3, H, W), output the embedding (N, D)."""
    graph = _Graph()
    x = graph.convolution('input', network.stem[0], strides=[4, 4])
    x = graph.channel_norm(x, network.stem[1])
    for stage in network.trunk:
        if len(list(stage.downsample.children())):
            x = graph.channel_norm(x, stage.downsample[0])
            x = graph.convolution(x, stage.downsample[1], strides=[2, 2])
        for block in stage.blocks:
            x = graph.block(x, block)
    x = graph.node('Flatten', graph.node('GlobalAveragePool', x))
    head = network.head.norm
    x = graph.node('Identity', graph.norm(x, _array(head.weight), _array(head.bias)))
    sizes = ['n', 3, 'h', 'w'], ['n', network.feature_dim]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in zip(('input', x), sizes, strict=True)
    ]
    proto = helper.make_graph(graph.nodes, 'convnext', values[:1], values[1:], graph.constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid('', OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model
