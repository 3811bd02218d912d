"""A model file's content to a ``.tflite`` for Larq Compute Engine; needs the extra ``lce``.

The network is written down in TensorFlow's operators, without Keras, in the forms that the
converter knows. Where it does not know a form it converts to floats, and where it knows better it
changes the padding, both without a word; the comments say where, and `count_binary` is checked.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # before the import; its own errors stay

import larq_compute_engine
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema

from bicrossnet_ros.engine.architecture import (
    TOTAL_STRIDE_PX,
    Unit,
    make_blocks,
    units,
)
from bicrossnet_ros.engine.bits import unpack_weights
from bicrossnet_ros.engine.folding import fold_norm
from bicrossnet_ros.engine.lce_runtime import open_graph, pack
from bicrossnet_ros.engine.model_file import Model
from bicrossnet_ros.errors import ModelError

BINARY_CONVOLUTION = b'LceBconv2d'
# Measured: its fast kernels correct the padding wrongly where a map is smaller than the kernel.
SMALLEST_MAP_PX = 3


def build_lce(model: Model) -> bytes:
    """Convert a whole model.

    Parameters
    ----------
    model : Model
        As `bicrossnet_ros.engine.model_file.read_model` returned it.

    Returns
    -------
    bytes
        A ``.tflite`` with the model's metadata: input float32 (1, H, W, 3), prepared by
        `bicrossnet_ros.preprocess`; output float32 (1, D), not normalised.

    Raises
    ------
    ModelError
        If Larq could not run the network as it is, or the converter left a binary convolution in
        floats.
    """
    metadata = model.metadata
    size = (metadata.preprocessing.input_height_px, metadata.preprocessing.input_width_px)
    if min(size) < SMALLEST_MAP_PX * TOTAL_STRIDE_PX:
        raise ModelError(
            f'{metadata.name}: its input is {size[0]} x {size[1]} px; Larq computes wrong '
            'convolutions of the smallest maps then; use at least '
            f'{SMALLEST_MAP_PX * TOTAL_STRIDE_PX} px, or another format'
        )
    network = _Network(model, units(metadata.channels))
    graph = _convert(network, network.embedding, (1, *size, 3))
    _check_binary(graph, len(units(metadata.channels)), metadata.name)
    return pack(graph, metadata)


def build_unit_lce(model: Model, unit: Unit, *, height: int, width: int) -> bytes:
    """Convert one unit alone, to compare it with another implementation.

    Its input is float32 (1, height, width, C), its sides even at stride 2.

    Raises
    ------
    ModelError
        If the converter left the binary convolution in floats.
    """
    network = _Network(model, [unit])
    graph = _convert(network, lambda x: network.unit(x, unit), (1, height, width, unit.channels))
    _check_binary(graph, 1, unit.prefix)
    return graph


def run_unit_lce(model: Model, unit: Unit, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert one unit and run it on float32 (N, C, H, W)."""
    graph = build_unit_lce(model, unit, height=x.shape[2], width=x.shape[3])
    interpreter = open_graph(graph, threads=1, source=unit.prefix)
    maps = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    outputs = [interpreter.predict([image[None]])[0] for image in maps]
    return np.concatenate(outputs).transpose(0, 3, 1, 2)


def count_binary(graph: bytes) -> int:
    """Count the binary convolutions of a ``.tflite``."""
    model = schema.Model.GetRootAs(graph)
    codes = [model.OperatorCodes(k).CustomCode() for k in range(model.OperatorCodesLength())]
    main = model.Subgraphs(0)
    operators = (main.Operators(k) for k in range(main.OperatorsLength()))
    return sum(codes[operator.OpcodeIndex()] == BINARY_CONVOLUTION for operator in operators)


class _Network:
    """Operators on maps (1, H, W, C); weights are constants under the model file's names."""

    def __init__(self, model: Model, used: Iterable[Unit]) -> None:
        self.tensors = model.tensors
        self.blocks = make_blocks(model.metadata.channels)
        # Variables: a saved graph would hold constants twice, and no more than 2 GB of them.
        self.weights = {unit.prefix: self.binary_weight(unit) for unit in used}

    def binary_weight(self, unit: Unit) -> tf.Variable:
        """Weights +-1 of a unit in TensorFlow's order (K, K, C_in, C_out)."""
        weight = unpack_weights(self.tensors[f'{unit.prefix}.conv.bits'])
        return tf.Variable(weight.transpose(2, 3, 1, 0), trainable=False)

    def embedding(self, images: tf.Tensor) -> tf.Tensor:
        """Prepared images (1, H, W, 3) to (1, D)."""
        weight = self.tensors['stem.weight'].transpose(2, 3, 1, 0)
        # The converter turns a padding of (1, 1) with VALID into SAME, which pads (0, 1) instead.
        x = tf.pad(images, [[0, 0], [1, 0], [1, 0], [0, 0]])
        x = self.norm(tf.nn.conv2d(x, weight, strides=2, padding='VALID'), 'stem_norm')
        for block in self.blocks:
            x = self.unit(x, block.unit3x3)
            outputs = [self.unit(x, unit) for unit in block.units1x1]
            x = outputs[0] if len(outputs) == 1 else tf.concat(outputs, axis=-1)
        return tf.reduce_mean(self.prelu(x, 'act'), axis=(1, 2))

    def unit(self, x: tf.Tensor, unit: Unit) -> tf.Tensor:
        """One binary unit, in the order of `training.models.bnext.BinaryUnit.forward`."""
        pooled = _pool(x, unit)
        residual = pooled
        if unit.elementwise:
            residual = _pool(self.prelu(x, f'{unit.prefix}.act_residual'), unit)
        y = self.prelu(self.convolution(x, unit), f'{unit.prefix}.act')
        y = y * self.gate(pooled, y, unit)
        if unit.elementwise:
            y = y * residual
        return self.norm(y, f'{unit.prefix}.norm2') + residual

    def convolution(self, x: tf.Tensor, unit: Unit) -> tf.Tensor:
        """Binary convolution with a padding of exact zeros, and the norm behind it."""
        height, width = x.shape[1] // unit.stride, x.shape[2] // unit.stride
        if unit.stride == 2:
            # SAME pads an even side by (0, 1), but an odd one by (1, 1), as PyTorch does. What is
            # added here reaches one row and one column of the output, which are cut off again.
            x = tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]])
        # tf.sign would stay in floats; this form is known, and sign(0) = +1.
        moved = x + self.tensors[f'{unit.prefix}.move.bias']
        signs = tf.where(moved >= 0, tf.constant(1.0), tf.constant(-1.0))
        y = tf.nn.conv2d(signs, self.weights[unit.prefix], strides=unit.stride, padding='SAME')
        y = self.norm(y, f'{unit.prefix}.norm1')
        return y[:, :height, :width]

    def gate(self, pooled: tf.Tensor, y: tf.Tensor, unit: Unit) -> tf.Tensor:
        """Squeeze-excite of the recoupled mixture, of which only its mean is needed."""
        scale = self.tensors[f'{unit.prefix}.scale']
        mean_in, mean_out = (tf.reduce_mean(part, axis=(1, 2)) for part in (pooled, y))
        x = tf.nn.relu(self.dense(mean_in * scale + mean_out * (1 - scale), unit, 'reduce'))
        gate = tf.sigmoid(self.dense(x, unit, 'expand'))
        return tf.reshape(gate, (1, 1, 1, unit.channels))

    def dense(self, x: tf.Tensor, unit: Unit, name: str) -> tf.Tensor:
        """Fully connected layer of the gate on (1, C)."""
        weight = self.tensors[f'{unit.prefix}.se.{name}.weight'].T
        return tf.matmul(x, weight) + self.tensors[f'{unit.prefix}.se.{name}.bias']

    def norm(self, x: tf.Tensor, prefix: str) -> tf.Tensor:
        """BatchNorm as one multiplication and one addition, which the convolution takes in."""
        gain, offset = fold_norm(self.tensors, prefix)
        return x * gain + offset

    def prelu(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """PReLU in the form that becomes one operator."""
        return tf.nn.relu(x) + -self.tensors[f'{name}.weight'] * tf.nn.relu(-x)


def _pool(x: tf.Tensor, unit: Unit) -> tf.Tensor:
    return x if unit.stride == 1 else tf.nn.avg_pool2d(x, 2, 2, 'VALID')


def _convert(
    network: _Network, forward: Callable[[tf.Tensor], tf.Tensor], shape: tuple[int, ...]
) -> bytes:
    module = tf.Module()
    specification = tf.TensorSpec(shape, tf.float32, name='input')
    module.run = tf.function(forward, input_signature=[specification])
    signature = module.run.get_concrete_function()
    module.weights = network.weights
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signature)
        return larq_compute_engine.convert_saved_model(folder)


def _check_binary(graph: bytes, expected: int, name: str) -> None:
    found = count_binary(graph)
    if found != expected:
        raise ModelError(
            f'{name}: Larq made {found} of {expected} convolutions binary and left the others in '
            'floats; use the versions of constraints-lce.txt'
        )
