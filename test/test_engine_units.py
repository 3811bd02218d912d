"""Units of the engine: near torch and a reference in float64, the same bits on every back end.

Tolerances are absolute, at outputs whose standard deviation is near 1.
"""

from dataclasses import replace

import numpy as np
import pytest
from engine_models import (
    CHANNELS,
    ODD_CHANNELS,
    random_model,
    reference_unit,
    uniform,
)

from bicrossnet_ros.engine import native
from bicrossnet_ros.engine.architecture import Unit, units
from bicrossnet_ros.engine.model_file import Model

BACKENDS = native.backends()
TOLERANCE = 1e-4
SMALL = [(size, index) for size in ('nano', 'tiny') for index in range(len(units(CHANNELS[size])))]


def distinct_units(sizes) -> list[tuple[str, int]]:
    """Size and index of one unit for each (channels, kernel, stride, elementwise)."""
    found = {
        replace(unit, prefix=''): (size, index)
        for size in sizes
        for index, unit in enumerate(units(CHANNELS[size]))
    }
    return sorted(found.values())


def run_everywhere(model: Model, unit: Unit, x: np.ndarray) -> np.ndarray:
    """Run a unit on every back end; all must give the same bits (any NaN equals any other)."""
    first, *others = (native.run_unit(model, unit, x, backend=name) for name in BACKENDS)
    assert first.dtype == np.float32
    for other in others:
        np.testing.assert_array_equal(other, first)
    return first


def input_of(unit: Unit, model: Model, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Random map whose first row meets the thresholds exactly, and misses them by one float."""
    x = uniform(np.random.default_rng(seed), (height, width, unit.channels), -2, 2)
    threshold = -model.tensors[f'{unit.prefix}.move.bias']
    x[0, 0] = threshold
    x[0, 1] = np.nextafter(threshold, np.float32(-9))
    x[0, 2] = np.nextafter(threshold, np.float32(9))
    return x


def check_against_torch(size: str, index: int, *, height: int, width: int) -> None:
    torch = pytest.importorskip('torch')
    from networks import network_and_model

    network, model = network_and_model(size)
    unit = units(model.metadata.channels)[index]
    x = input_of(unit, model, height, width, seed=index)
    with torch.no_grad():
        image = torch.from_numpy(x.transpose(2, 0, 1)[None].copy())
        expected = network.get_submodule(unit.prefix)(image)[0].numpy().transpose(1, 2, 0)
    actual = run_everywhere(model, unit, x)
    assert actual.shape == (height // unit.stride, width // unit.stride, unit.channels)
    assert 0.1 < expected.std() < 10
    assert np.abs(actual - expected).max() < TOLERANCE


@pytest.mark.parametrize(('size', 'index'), SMALL)
def test_unit_equals_torch(size, index):
    check_against_torch(size, index, height=6, width=8)


@pytest.mark.parametrize(('size', 'index'), distinct_units(['nano']))
def test_unit_of_several_chunks_equals_torch(size, index):
    check_against_torch(size, index, height=22, width=18)


@pytest.mark.slow
@pytest.mark.parametrize(('size', 'index'), distinct_units(CHANNELS))
def test_unit_of_any_size_equals_torch(size, index):
    check_against_torch(size, index, height=8, width=6)


def test_sizes_are_those_of_the_training():
    pytest.importorskip('torch')
    from training.models import bnext

    assert CHANNELS == bnext.CHANNELS


def odd_units() -> list[int]:
    return list(range(len(units(ODD_CHANNELS))))


@pytest.mark.parametrize('index', odd_units())
@pytest.mark.parametrize(('height', 'width'), [(2, 4), (10, 14)])
def test_reference_equals_torch(index, height, width):
    torch = pytest.importorskip('torch')
    from training.export import network_from_model

    model = random_model(ODD_CHANNELS)
    unit = units(ODD_CHANNELS)[index]
    x = input_of(unit, model, height, width, seed=index)
    module = network_from_model(model).double().get_submodule(unit.prefix)
    module.move.float()  # float64 would see what the sum of two float32 rounds away
    with torch.no_grad():
        image = torch.from_numpy(x.astype(np.float64).transpose(2, 0, 1)[None].copy())
        expected = module(image)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(reference_unit(model, unit, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('index', odd_units())
@pytest.mark.parametrize(
    ('height', 'width'), [(2, 4), (4, 10), (10, 14), (16, 16), (2, 66), (64, 4)]
)
def test_unit_equals_the_reference(index, height, width):
    model = random_model(ODD_CHANNELS)
    unit = units(ODD_CHANNELS)[index]
    x = input_of(unit, model, height, width, seed=index)
    expected = reference_unit(model, unit, x)
    assert np.abs(run_everywhere(model, unit, x) - expected).max() < TOLERANCE


@pytest.mark.parametrize('channels', [8, 16, 40, 56, 72, 136])
@pytest.mark.parametrize('double', [False, True])
def test_channels_that_fill_no_vector(channels, double):
    widths = (channels, *((2 * channels,) * 2 if double else (channels,) * 2))
    model = random_model(widths)
    for unit in units(widths):
        x = input_of(unit, model, 6, 12)
        expected = reference_unit(model, unit, x)
        assert np.abs(run_everywhere(model, unit, x) - expected).max() < TOLERANCE


def with_bias(model: Model, unit: Unit, bias: float) -> Model:
    name = f'{unit.prefix}.move.bias'
    return replace(model, tensors={**model.tensors, name: np.full_like(model.tensors[name], bias)})


@pytest.mark.parametrize('index', [0, 1, 6])
@pytest.mark.parametrize(
    ('bias', 'value', 'positive'),
    [
        (0.0, 0.0, True),
        (0.0, -0.0, True),
        (-0.0, -0.0, True),
        (0.0, 1e-45, True),
        (0.0, -1e-45, False),  # the smallest float below zero
        (-0.0, -1e-45, False),
        (0.3, -0.3, True),
        (0.3, np.nextafter(np.float32(-0.3), np.float32(-1)), False),
        (-0.3, np.nextafter(np.float32(0.3), np.float32(0)), False),
        (1e-45, -1e-45, True),
        (1e30, -1e30, True),
    ],
)
def test_sign_of_zero_is_plus_one(index, bias, value, positive):
    """An input of all `value` gives what one of plain +1 or -1 gives, but for the shortcut."""
    unit = units(ODD_CHANNELS)[index]
    model = with_bias(random_model(ODD_CHANNELS), unit, bias)
    # Only the signs shall count: no share of the input in the gate's mean.
    scale = f'{unit.prefix}.scale'
    tensors = {**model.tensors, scale: np.zeros_like(model.tensors[scale])}
    model = replace(model, tensors=tensors)
    x = np.full((4, 4, unit.channels), value, np.float32)
    actual = run_everywhere(model, unit, x)
    expected = reference_unit(model, unit, x)
    assert np.abs(actual - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())
    if unit.elementwise or abs(value) > 1:
        return  # there the shortcut drowns or multiplies the signs' part
    plain = with_bias(model, unit, 0.0)
    for sign, equal in ((1, positive), (-1, not positive)):
        signs_part = native.run_unit(plain, unit, np.full_like(x, sign)) - np.float32(sign)
        difference = np.abs(actual - x - signs_part).max()
        assert (difference < TOLERANCE) == equal


@pytest.mark.parametrize('index', odd_units())
@pytest.mark.parametrize('value', [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(index, value):
    """It comes out at its own pixel and channel at least, so nobody takes the result for good."""
    model = random_model(ODD_CHANNELS)
    unit = units(ODD_CHANNELS)[index]
    x = input_of(unit, model, 10, 14)
    x[7, 3, 5] = value
    x[2, 12, -1] = value
    y = run_everywhere(model, unit, x)
    for row, col, channel in ((7, 3, 5), (2, 12, -1)):
        there = y[row // unit.stride, col // unit.stride, channel]
        assert not np.isfinite(there)
        assert np.isnan(there) or not np.isnan(value)


@pytest.mark.parametrize('magnitude', [1e-42, 1e-20, 1e20, 3e38])
def test_magnitudes_at_the_ends_of_float32(magnitude):
    """All back ends agree where products underflow or overflow, too; subnormals are kept."""
    model = random_model(ODD_CHANNELS)
    for unit in units(ODD_CHANNELS):
        rng = np.random.default_rng(0)
        x = uniform(rng, (6, 8, unit.channels), -1, 1) * np.float32(magnitude)
        run_everywhere(model, unit, x)


@pytest.mark.parametrize('gate_bias', [-1e4, -100.0, -87.5, 0.0, 87.5, 100.0, 1e4])
def test_gates_that_are_wide_open_or_shut(gate_bias):
    model = random_model(ODD_CHANNELS)
    unit = units(ODD_CHANNELS)[0]
    bias = np.full(unit.channels, gate_bias, np.float32)
    model = replace(model, tensors={**model.tensors, f'{unit.prefix}.se.expand.bias': bias})
    x = input_of(unit, model, 4, 6)
    with np.errstate(over='ignore'):  # of the reference's exp, whose inverse is the zero it is
        expected = reference_unit(model, unit, x)
    assert np.abs(run_everywhere(model, unit, x) - expected).max() < TOLERANCE


def test_same_bits_every_time():
    model = random_model(ODD_CHANNELS)
    unit = units(ODD_CHANNELS)[3]
    x = input_of(unit, model, 12, 20)
    first = run_everywhere(model, unit, x)
    for _ in range(5):
        np.testing.assert_array_equal(native.run_unit(model, unit, x), first)


def test_sums_that_overflow_show():
    """A gate of a mean that is no number is none either: no embedding may hide it."""
    model = random_model(ODD_CHANNELS)
    unit = units(ODD_CHANNELS)[0]
    x = np.full((16, 16, unit.channels), 3e36, np.float32)  # finite, but not the sum of 256
    assert np.isnan(run_everywhere(model, unit, x)).all()
