"""Networks of random weights and slow, obvious references for the engine's tests; without torch.

Random values come from integers and uniform floats alone, and are formed by additions and
multiplications: those are the same bits on every machine, so that embeddings can be as well.
"""

import functools
import itertools

import numpy as np

from bicrossnet_ros.engine.architecture import (
    BATCH_NORM_EPSILON,
    Unit,
    float_shapes,
    packed_shapes,
    units,
)
from bicrossnet_ros.engine.model_file import ARCHITECTURE, Model, ModelMetadata
from bicrossnet_ros.preprocess import Preprocessing

# The sizes of training.models.bnext, which needs torch; a test keeps the two equal.
CHANNELS = {
    'nano': (16, 32, 64, 64, 128, 128, *[256] * 6, 512, 512),
    'tiny': (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024),
    'small': (48, 96, 192, 192, 384, 384, *[768] * 6, 1536, 1536),
    'middle': (48, 96, *[192] * 4, *[384] * 4, *[768] * 8, *[1536] * 4),
    'large': (64, 128, *[256] * 4, *[512] * 4, *[1024] * 16, *[2048] * 4),
}
# No channels here are a multiple of 64, and rows of bits are 3, 6 or 12 bytes.
ODD_CHANNELS = (24, 48, 96, 96, 192)


def layer_shapes() -> list[tuple[int, int, int]]:
    """All different (channels, kernel, stride) of the binary convolutions of all sizes."""
    every = itertools.chain.from_iterable(units(channels) for channels in CHANNELS.values())
    return sorted({(unit.channels, unit.kernel, unit.stride) for unit in every})


@functools.cache
def random_model(channels: tuple[int, ...], *, seed: int = 0, input_px: int = 64) -> Model:
    """Make a model whose every parameter has a value that would show a mistake.

    Outputs of the units stay near 1. Gains have either sign, slopes are below 0, between and
    above 1.
    """
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.integers(0, 256, shape, np.uint8)
        for name, shape in packed_shapes(channels).items()
    }
    for name, shape in float_shapes(channels).items():
        tensors[name] = _random_tensor(rng, name, shape)
    metadata = ModelMetadata(
        'random', ARCHITECTURE, channels, channels[-1], Preprocessing(input_px, input_px)
    )
    return Model(metadata, tensors)


def _random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith('running_var'):
        fan_in = (9 if '3x3' in name else 1) * shape[0] if 'norm1' in name else 1
        return uniform(rng, shape, 0.5, 1.5) * np.float32(fan_in)
    if 'norm' in name and name.endswith('weight'):
        signs = (rng.integers(0, 2, shape) * 2 - 1).astype(np.float32)
        return uniform(rng, shape, 0.5, 1.5) * signs
    if name.endswith(('act.weight', 'act_residual.weight')):
        return uniform(rng, shape, -0.25, 1.25)
    if name.endswith('scale'):
        return uniform(rng, shape, 0, 1)
    if len(shape) > 1:
        reach = float(np.sqrt(3 / np.prod(shape[1:])))
        return uniform(rng, shape, -reach, reach)
    return uniform(rng, shape, -0.5, 0.5)


def uniform(rng: np.random.Generator, shape, low: float, high: float) -> np.ndarray:
    """Float32 values between `low` and `high`."""
    return rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)


def random_images(count: int, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Float32 (count, 3, height, width), about as a prepared photograph."""
    return uniform(np.random.default_rng(seed), (count, 3, height, width), -2, 2)


def signs_of(bits: np.ndarray) -> np.ndarray:
    """Unpack the last axis: bit 1 is +1, bit 0 is -1, least significant first; float32."""
    return np.unpackbits(bits, axis=-1, bitorder='little').astype(np.float32) * 2 - 1


def reference_convolution(bits: np.ndarray, x: np.ndarray, *, stride: int) -> np.ndarray:
    """Slow reference: a sum over taps, where a tap outside the map counts as zero.

    Parameters
    ----------
    bits : ndarray of uint8, shape (C_out, K, K, C_in / 8)
        Weights.
    x : ndarray of uint8, shape (H, W, C_in / 8)
        The map.
    stride : int
        Of the convolution.

    Returns
    -------
    ndarray of int32, shape (ceil(H / stride), ceil(W / stride), C_out)
    """
    # Every partial sum is a whole number below 2 ** 24, so float32 is exact in any order.
    weights, signs = signs_of(bits), signs_of(x)
    kernel, (height, width, channels) = bits.shape[1], signs.shape
    reach = kernel // 2
    padded = np.zeros((height + 2 * reach, width + 2 * reach, channels), np.float32)
    padded[reach : reach + height, reach : reach + width] = signs
    total = np.zeros((-(-height // stride), -(-width // stride), len(bits)), np.float32)
    for row, col in itertools.product(range(kernel), range(kernel)):
        tap = padded[row : row + height : stride, col : col + width : stride]
        total += tap @ weights[:, row, col].T
    return total.astype(np.int32)


def reference_unit(model: Model, unit: Unit, x: np.ndarray) -> np.ndarray:
    """One unit in float64, step by step as `training.models.bnext.BinaryUnit.forward` has it.

    Takes (H, W, C), returns (H / stride, W / stride, C).
    """

    def tensor(name: str) -> np.ndarray:
        return model.tensors[f'{unit.prefix}.{name}'].astype(np.float64)

    def norm(values: np.ndarray, name: str) -> np.ndarray:
        std = np.sqrt(tensor(f'{name}.running_var') + BATCH_NORM_EPSILON)
        scaled = (values - tensor(f'{name}.running_mean')) / std
        return scaled * tensor(f'{name}.weight') + tensor(f'{name}.bias')

    def prelu(values: np.ndarray, name: str) -> np.ndarray:
        return np.where(values >= 0, values, values * tensor(f'{name}.weight'))

    positive = x + model.tensors[f'{unit.prefix}.move.bias'] >= 0  # in float32, as trained
    packed = np.packbits(positive, axis=-1, bitorder='little')
    bits = model.tensors[f'{unit.prefix}.conv.bits']
    dots = reference_convolution(bits, packed, stride=unit.stride)
    x = x.astype(np.float64)
    y = prelu(norm(dots.astype(np.float64), 'norm1'), 'act')
    scale = tensor('scale')
    mixed = scale * x.mean(axis=(0, 1)) + (1 - scale) * y.mean(axis=(0, 1))
    hidden = tensor('se.reduce.weight') @ mixed + tensor('se.reduce.bias')
    gate = tensor('se.expand.weight') @ np.maximum(hidden, 0) + tensor('se.expand.bias')
    y = y / (1 + np.exp(-gate))
    residual = prelu(x, 'act_residual') if unit.elementwise else x
    if unit.stride == 2:
        height, width, channels = x.shape
        residual = residual.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))
    if unit.elementwise:
        y = y * residual
    return norm(y, 'norm2') + residual
