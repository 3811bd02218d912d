"""Binary convolutions of every back end are exact, against a slow reference in numpy."""

import functools

import numpy as np
import pytest
from engine_models import layer_shapes, reference_convolution, signs_of

from bicrossnet_ros.engine import native

BACKENDS = native.backends()
EDGES = (1, 2, 63, 64, 65, 127, 128, 129)  # pixels; the engine works in chunks of 64
ODD = (24, 40, 72, 104, 136, 200, 264, 328, 520)  # channels: no word of 64 is full at the end


@functools.cache
def case(channels_in, channels_out, kernel, stride, height, width, fill='random'):
    """Weights, map and the exact result; the same for every back end."""
    rng = np.random.default_rng([channels_in, channels_out, kernel, stride, height, width])
    bits = rng.integers(0, 256, (channels_out, kernel, kernel, channels_in // 8), np.uint8)
    x = rng.integers(0, 256, (height, width, channels_in // 8), np.uint8)
    if fill != 'random':
        x[:] = 255 if fill.startswith('+') else 0
        bits[:] = 255 if fill.endswith('+') else 0
    return bits, x, reference_convolution(bits, x, stride=stride)


def check(backend, channels_in, channels_out, kernel, stride, height, width, fill='random'):
    bits, x, expected = case(channels_in, channels_out, kernel, stride, height, width, fill)
    convolution = native.BinaryConvolution(
        bits, stride=stride, height=height, width=width, backend=backend
    )
    actual = convolution.run(x)
    assert actual.dtype == np.int16
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(('kernel', 'stride'), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize(('height', 'width'), [(6, 8), (7, 5), (1, 1), (1, 9)])
def test_reference_is_the_convolution_of_torch(kernel, stride, height, width):
    torch = pytest.importorskip('torch')
    bits, x, expected = case(24, 16, kernel, stride, height, width)
    actual = torch.nn.functional.conv2d(
        torch.from_numpy(signs_of(x).transpose(2, 0, 1)[None].copy()),
        torch.from_numpy(signs_of(bits).transpose(0, 3, 1, 2).copy()),
        stride=stride,
        padding=kernel // 2,
    )
    np.testing.assert_array_equal(actual[0].numpy().transpose(1, 2, 0), expected)


@pytest.mark.parametrize('shape', layer_shapes(), ids=str)
@pytest.mark.parametrize('backend', BACKENDS)
def test_layers_of_all_sizes(backend, shape):
    channels, kernel, stride = shape
    check(backend, channels, channels, kernel, stride, 3 * stride, 5 * stride)


@pytest.mark.parametrize(
    ('channels', 'kernel', 'stride', 'height', 'width'),
    [
        (16, 3, 1, 48, 48),  # nano, 96 px
        (32, 3, 2, 48, 48),
        (256, 3, 1, 6, 6),
        (512, 1, 1, 3, 3),
        (32, 3, 1, 128, 128),  # tiny, 256 px
        (32, 1, 1, 128, 128),
        (64, 3, 2, 128, 128),
        (512, 3, 1, 16, 16),
        (1024, 3, 1, 8, 8),
        (48, 3, 1, 64, 96),  # small, 128 x 192 px
        (96, 3, 2, 64, 96),
    ],
)
@pytest.mark.parametrize('backend', BACKENDS)
def test_maps_as_they_fly(backend, channels, kernel, stride, height, width):
    check(backend, channels, channels, kernel, stride, height, width)


@pytest.mark.parametrize(('kernel', 'stride'), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize('backend', BACKENDS)
def test_channels_that_fill_no_word(backend, kernel, stride):
    for channels in (8, 16, *ODD):
        check(backend, channels, channels, kernel, stride, 5, 6)
        check(backend, channels, 8, kernel, stride, 3, 4)
        check(backend, 8, channels, kernel, stride, 4, 3)


@pytest.mark.parametrize('channels', [40, 64])
@pytest.mark.parametrize('kernel', [1, 3])
@pytest.mark.parametrize('backend', BACKENDS)
def test_chunks_and_maps_one_pixel_wide(backend, kernel, channels):
    for count in EDGES:
        check(backend, channels, channels, kernel, 1, 1, count)
        check(backend, channels, channels, kernel, 1, count, 1)
    for height, width in ((9, 7), (5, 13), (2, 32), (32, 2), (8, 8), (3, 43)):
        check(backend, channels, channels, kernel, 1, height, width)


@pytest.mark.parametrize('backend', BACKENDS)
def test_stride_2_at_odd_and_narrow_maps(backend):
    for height, width in ((1, 1), (2, 1), (1, 2), (3, 3), (1, 129), (129, 1), (15, 17), (17, 16)):
        for channels in (16, 48, 128):
            check(backend, channels, channels, 3, 2, height, width)


@pytest.mark.parametrize('fill', ['++', '+-', '-+', '--'])
@pytest.mark.parametrize(('channels', 'kernel'), [(2048, 3), (2048, 1), (1032, 3), (24, 3)])
@pytest.mark.parametrize('backend', BACKENDS)
def test_largest_sums(backend, channels, kernel, fill):
    """Nothing overflows: neither the counters inside nor the 16 bits of the result."""
    check(backend, channels, 16, kernel, 1, 3, 4, fill)
    _, _, expected = case(channels, 16, kernel, 1, 3, 4, fill)
    assert np.abs(expected).max() == channels * kernel * kernel


@pytest.mark.parametrize('backend', BACKENDS)
def test_nothing_is_left_from_the_call_before(backend):
    bits, x, expected = case(24, 40, 3, 1, 7, 11)
    convolution = native.BinaryConvolution(bits, stride=1, height=7, width=11, backend=backend)
    for fill in (0, 255, 0x55):
        other = np.full_like(x, fill)
        np.testing.assert_array_equal(
            convolution.run(other), reference_convolution(bits, other, stride=1)
        )
        np.testing.assert_array_equal(convolution.run(x), expected)


@pytest.mark.parametrize('backend', BACKENDS)
def test_any_memory_layout(backend):
    """Maps that are unaligned, reversed or strided views; read-only weights."""
    bits, x, expected = case(48, 48, 3, 1, 6, 5)
    bits = bits.copy()
    bits.flags.writeable = False
    convolution = native.BinaryConvolution(bits, stride=1, height=6, width=5, backend=backend)
    unaligned = np.zeros(x.size + 1, np.uint8)[1:].reshape(x.shape)
    unaligned[:] = x
    strided = np.zeros((6, 10, 12), np.uint8)[:, ::2, ::2]
    strided[:] = x
    for same in (unaligned, strided, np.asfortranarray(x)):
        np.testing.assert_array_equal(convolution.run(same), expected)
