"""Binary convolutions of random shapes are exact on every back end."""

import numpy as np
import pytest
from engine_models import reference_convolution

from bicrossnet_ros.engine import native

hypothesis = pytest.importorskip('hypothesis')
st = hypothesis.strategies

channels = st.integers(1, 40).map(lambda count: 8 * count)


@pytest.mark.parametrize('backend', native.backends())
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    channels_in=channels,
    channels_out=channels,
    layer=st.sampled_from([(1, 1), (3, 1), (3, 2)]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    density=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_shapes(backend, channels_in, channels_out, layer, height, width, density, seed):
    kernel, stride = layer
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, (channels_out, kernel, kernel, channels_in // 8), np.uint8)
    x = np.packbits(rng.random((height, width, channels_in)) < density, axis=-1)
    actual = native.BinaryConvolution(
        bits, stride=stride, height=height, width=width, backend=backend
    ).run(x)
    np.testing.assert_array_equal(actual, reference_convolution(bits, x, stride=stride))
