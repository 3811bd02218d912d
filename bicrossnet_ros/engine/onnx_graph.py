"""ONNX graphs made from a model file, without torch: weights stay bits inside the file.

Every binary weight tensor is an initialiser of packed bytes, unpacked to +-1 by standard
operators (BitShift, BitwiseAnd, Cast, opset 18); ONNX Runtime folds them once when it loads, so
they cost nothing per image. BatchNorm is folded here into one multiplication and one addition.

    python -m bicrossnet_ros.engine.onnx_graph MODEL.safetensors --out MODEL.onnx
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bicrossnet_ros.descriptor import DESCRIPTOR_KEY, projection_to_text
from bicrossnet_ros.engine.architecture import Unit, make_blocks
from bicrossnet_ros.engine.folding import fold_norm
from bicrossnet_ros.engine.model_file import METADATA_KEY, Model, read_model
from bicrossnet_ros.errors import BiCrossNetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

OPSET = 18
IR_VERSION = 8  # the first that carries opset 18; older runtimes on vehicles still read it
INPUT, OUTPUT = 'input', 'embedding'


class _Graph:
    """Nodes and initialisers of a graph under construction; methods return value names."""

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.tensors = tensors
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.initializers:
            array = np.ascontiguousarray(value)
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def channelwise(self, name: str, value: NDArray[Any]) -> str:
        """Constant of one float per channel, shaped (C, 1, 1) to act on (N, C, H, W)."""
        return self.constant(name, value.astype(np.float32).reshape(-1, 1, 1))

    def norm(self, x: str, prefix: str) -> tuple[str, str]:
        """BatchNorm of `x` as names of its (multiplied value, constant still to be added)."""
        gain, offset = fold_norm(self.tensors, prefix)
        gained = self.node('Mul', [x, self.channelwise(f'{prefix}.gain', gain)], f'{prefix}/mul')
        return gained, self.channelwise(f'{prefix}.offset', offset)

    def prelu(self, x: str, name: str) -> str:
        slope = self.channelwise(f'{name}.weight', self.tensors[f'{name}.weight'])
        return self.node('PRelu', [x, slope], f'{name}/prelu')

    def signs(self, name: str) -> str:
        """Unpack bits (C_out, K, K, B) into weights +-1 (C_out, 8 * B, K, K)."""
        packed = self.tensors[name]
        shape = np.array([*packed.shape[:3], packed.shape[3] * 8], np.int64)
        shifts = self.constant('unpack.shifts', np.arange(8, dtype=np.uint8))
        one = self.constant('unpack.one', np.array(1, np.uint8))
        x = self.constant(name, packed)
        x = self.node('Unsqueeze', [x, self.constant('unpack.axis', np.array([-1]))], f'{name}/0')
        x = self.node('BitShift', [x, shifts], f'{name}/1', direction='RIGHT')
        x = self.node('BitwiseAnd', [x, one], f'{name}/2')
        x = self.node('Cast', [x], f'{name}/3', to=TensorProto.FLOAT)
        x = self.node('Mul', [x, self.constant('two', np.array(2, np.float32))], f'{name}/4')
        x = self.node('Sub', [x, self.constant('one', np.array(1, np.float32))], f'{name}/5')
        x = self.node('Reshape', [x, self.constant(f'{name}.shape', shape)], f'{name}/6')
        return self.node('Transpose', [x], f'{name}/7', perm=[0, 3, 1, 2])

    def unit(self, x: str, unit: Unit) -> str:
        """One binary unit, in the order of `training.models.bnext.BinaryUnit.forward`."""
        p, t = unit.prefix, self.tensors
        pooled = self._pool(x, unit, f'{p}/pooled')
        residual = pooled
        if unit.elementwise:
            residual = self._pool(self.prelu(x, f'{p}.act_residual'), unit, f'{p}/residual')
        y = self._binary_conv(x, unit)
        y, offset = self.norm(y, f'{p}.norm1')
        y = self.prelu(self.node('Add', [y, offset], f'{p}.norm1/add'), f'{p}.act')
        y = self.node('Mul', [y, self._gate(pooled, y, unit, t)], f'{p}/gated')
        if unit.elementwise:
            y = self.node('Mul', [y, residual], f'{p}/attended')
        y, offset = self.norm(y, f'{p}.norm2')
        y = self.node('Add', [y, offset], f'{p}.norm2/add')
        return self.node('Add', [y, residual], f'{p}/out')

    def _pool(self, x: str, unit: Unit, name: str) -> str:
        if unit.stride == 1:
            return x
        return self.node('AveragePool', [x], name, kernel_shape=[2, 2], strides=[2, 2])

    def _binary_conv(self, x: str, unit: Unit) -> str:
        p = unit.prefix
        # sign(x + bias), sign(0) = +1: x + bias >= 0 exactly where x >= -bias, in floats too.
        threshold = self.channelwise(f'{p}.threshold', -self.tensors[f'{p}.move.bias'])
        positive = self.node('GreaterOrEqual', [x, threshold], f'{p}/positive')
        plus = self.constant('one', np.array(1, np.float32))
        minus = self.constant('minus_one', np.array(-1, np.float32))
        signs = self.node('Where', [positive, plus, minus], f'{p}/signs')
        return self.node(
            'Conv',
            [signs, self.signs(f'{p}.conv.bits')],
            f'{p}/conv',
            kernel_shape=[unit.kernel] * 2,
            strides=[unit.stride] * 2,
            pads=[unit.kernel // 2] * 4,
        )

    def _gate(self, pooled: str, y: str, unit: Unit, t: Mapping[str, NDArray[Any]]) -> str:
        """Squeeze-excite of the recoupled mixture, of which only its mean is needed."""
        p = unit.prefix
        scale = t[f'{p}.scale'].astype(np.float64)
        mean_in = self.node('GlobalAveragePool', [pooled], f'{p}/mean_in')
        mean_out = self.node('GlobalAveragePool', [y], f'{p}/mean_out')
        part_in = self.node('Mul', [mean_in, self.channelwise(f'{p}.scale', scale)], f'{p}/mix0')
        rest = self.channelwise(f'{p}.scale_rest', 1 - scale)
        part_out = self.node('Mul', [mean_out, rest], f'{p}/mix1')
        x = self.node('Add', [part_in, part_out], f'{p}/mix')
        x = self.node('Relu', [self._conv1x1(x, f'{p}.se.reduce')], f'{p}.se/relu')
        return self.node('Sigmoid', [self._conv1x1(x, f'{p}.se.expand')], f'{p}.se/gate')

    def _conv1x1(self, x: str, name: str) -> str:
        weight = self.constant(f'{name}.weight', self.tensors[f'{name}.weight'][:, :, None, None])
        bias = self.constant(f'{name}.bias', self.tensors[f'{name}.bias'])
        return self.node('Conv', [x, weight, bias], f'{name}/conv', kernel_shape=[1, 1])

    def finish(
        self, output: str, *, input_shape: Sequence[Any], output_shape: Sequence[Any]
    ) -> onnx.ModelProto:
        """Close the graph between `INPUT` and `output` and check it."""
        self.node('Identity', [output], OUTPUT)
        graph = helper.make_graph(
            self.nodes,
            'bnext',
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, output_shape)],
            list(self.initializers.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)])
        model.ir_version = IR_VERSION
        model.producer_name = 'bicrossnet_ros'
        onnx.checker.check_model(model)
        return model


def build_onnx(model: Model) -> onnx.ModelProto:
    """Build the graph of a whole model.

    Parameters
    ----------
    model : Model
        As `bicrossnet_ros.engine.model_file.read_model` returned it.

    Returns
    -------
    onnx.ModelProto
        Input ``input``: float32 (N, 3, H, W), prepared by `bicrossnet_ros.preprocess`; output
        ``embedding``: float32 (N, D), not normalised. ``metadata_props['bicrossnet']`` carries
        the model's metadata, another entry its descriptor if it has one.
    """
    metadata, tensors = model.metadata, model.tensors
    graph = _Graph(tensors)
    weight = graph.constant('stem.weight', tensors['stem.weight'])
    x = graph.node(
        'Conv', [INPUT, weight], 'stem/conv', kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    x, offset = graph.norm(x, 'stem_norm')
    x = graph.node('Add', [x, offset], 'stem_norm/add')
    for number, block in enumerate(make_blocks(metadata.channels)):
        x = graph.unit(x, block.unit3x3)
        outputs = [graph.unit(x, unit) for unit in block.units1x1]
        x = outputs[0]
        if len(outputs) > 1:
            x = graph.node('Concat', outputs, f'blocks.{number}/concat', axis=1)
    x = graph.node('GlobalAveragePool', [graph.prelu(x, 'act')], 'pool')
    x = graph.node('Flatten', [x], 'flatten')
    size = [metadata.preprocessing.input_height_px, metadata.preprocessing.input_width_px]
    proto = graph.finish(
        x, input_shape=['n', 3, *size], output_shape=['n', metadata.embedding_dim]
    )
    entries = {METADATA_KEY: metadata.to_json()}
    if model.projection is not None:
        entries[DESCRIPTOR_KEY] = projection_to_text(model.projection)
    helper.set_model_props(proto, entries)
    return proto


def build_unit_onnx(model: Model, unit: Unit) -> onnx.ModelProto:
    """Build the graph of one unit alone, to compare it with another implementation.

    Its input and output are float32 (N, C, H, W) of any H and W (even ones at stride 2).
    """
    graph = _Graph(model.tensors)
    output = graph.unit(INPUT, unit)
    return graph.finish(
        output,
        input_shape=['n', unit.channels, 'h', 'w'],
        output_shape=['n', unit.channels, 'h_out', 'w_out'],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m bicrossnet_ros.engine.onnx_graph',
        description='Make the ONNX of a model file.',
    )
    parser.add_argument('model', type=Path, help='NAME.safetensors')
    parser.add_argument('--out', type=Path, required=True, help='NAME.onnx')
    options = parser.parse_args(arguments)
    try:
        data = build_onnx(read_model(options.model)).SerializeToString()
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    options.out.write_bytes(data)
    print(f'{options.out}: {len(data) / 1e6:.2f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
