"""Flip rates: counted by hand and against numpy, whatever the layer, and resumable."""

import io

import numpy as np
import pytest
import torch

from bicrossnet_ros.errors import ModelError
from training.flips import FlipCounter, count_bits, packed_signs
from training.models.binary import BinaryConv2d
from training.models.bnext import BNext
from training.models.partition import binary_layers
from training.models.resnet import RecuConv2d


def layer_of(*values):
    """A 1x1 layer of one input channel with the given latent weights."""
    layer = BinaryConv2d(1, len(values), kernel=1)
    put(layer, *values)
    return layer


@torch.no_grad()
def put(layer, *values):
    layer.weight.copy_(torch.tensor(values).view_as(layer.weight))


def network(seed=0):
    torch.manual_seed(seed)
    return BNext((8, 16, 16, 32))


@torch.no_grad()
def shake(layers, seed):
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        layer.weight.add_(1e-3 * torch.randn(layer.weight.shape, generator=generator))


def test_share_of_changed_signs_by_hand():
    layer = layer_of(0.5, -0.5, 1.0, -1.0, 0.2)
    counter = FlipCounter({'conv': layer})
    put(layer, -0.5, -0.1, 1.0, 1.5, 0.3)
    assert counter.rates() == {'conv': pytest.approx(2 / 5)}
    assert counter.rates() == {'conv': 0}  # since the last call
    put(layer, 0.5, -0.5, 1.0, -1.0, 0.2)  # and back
    assert counter.rates() == {'conv': pytest.approx(2 / 5)}


def test_zero_is_positive_with_either_sign_of_its_own():
    layer = layer_of(0.0, -0.0, -1e-30, 1.0)
    counter = FlipCounter({'conv': layer})
    put(layer, 1.0, 1.0, 1.0, 0.0)
    assert counter.rates() == {'conv': 0.25}


def test_two_flips_between_calls_are_none():
    layer = layer_of(1.0, 1.0)
    counter = FlipCounter({'conv': layer})
    put(layer, -1.0, 1.0)
    put(layer, 1.0, 1.0)
    assert counter.rates() == {'conv': 0}


@pytest.mark.parametrize('count', [1, 7, 8, 9, 64, 1001])
def test_bits_equal_numpys(count):
    weights = np.random.default_rng(count).normal(size=count).astype(np.float32)
    packed = packed_signs(layer_of(*weights.tolist()))
    assert packed.dtype == torch.uint8
    expected = np.packbits(weights >= 0, bitorder='little')
    assert np.array_equal(packed.numpy(), expected)
    assert count_bits(packed).item() == (weights >= 0).sum()


def test_rates_of_a_network_equal_a_plain_comparison():
    layers = binary_layers(network())
    counter = FlipCounter(layers)
    before = {name: layer.weight.detach() >= 0 for name, layer in layers.items()}
    before = {name: value.clone() for name, value in before.items()}
    shake(layers, 1)
    rates = counter.rates()
    assert list(rates) == list(layers)
    for name, layer in layers.items():
        expected = ((layer.weight >= 0) != before[name]).double().mean().item()
        assert 0.1 < expected < 0.4
        assert rates[name] == pytest.approx(expected, abs=1e-6), name


def test_soft_weights_flip_where_their_latent_ones_do():
    layers = binary_layers(network())
    counter, hot = (FlipCounter(layers) for _ in range(2))
    shake(layers, 2)
    expected = counter.rates()
    for layer in layers.values():
        layer.temperature = 1e-4
        layer.train()
    assert hot.rates() == expected


def test_a_layer_that_centres_its_weights_flips_where_its_signs_do():
    layer = RecuConv2d(4, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.weight[0, 0] = 1.0
        counter = FlipCounter({'conv': layer})
        before = layer.eval().effective_weight()
        layer.weight[0, 1] = 9.0  # the mean passes the other two quarters
        assert (layer.weight > 0).all()
        changed = (layer.effective_weight() != before).float().mean().item()
    assert counter.rates() == {'conv': 0.5} == {'conv': changed}


def test_counting_keeps_no_graph_and_eight_signs_a_byte():
    layers = binary_layers(network())
    counter = FlipCounter(layers)
    for name, signs in counter.state_dict().items():
        assert not signs.requires_grad
        assert signs.nbytes == -(-layers[name].weight.numel() // 8)


def test_a_resumed_counter_goes_on_where_it_was():
    layers = binary_layers(network())
    counter = FlipCounter(layers)
    shake(layers, 1)
    counter.rates()
    shake(layers, 2)  # half an epoch
    file = io.BytesIO()
    torch.save(counter.state_dict(), file)
    shake(layers, 3)
    expected = counter.rates()
    file.seek(0)
    resumed = FlipCounter(layers)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.rates() == expected
    assert resumed.rates() != expected


def test_a_saved_state_is_not_changed_by_counting_on():
    layers = binary_layers(network())
    counter = FlipCounter(layers)
    state = counter.state_dict()
    saved = {name: signs.clone() for name, signs in state.items()}
    shake(layers, 1)
    counter.rates()
    assert all(torch.equal(state[name], saved[name]) for name in saved)


def test_signs_of_another_network_are_refused():
    counter = FlipCounter(binary_layers(network()))
    other = FlipCounter(binary_layers(BNext((8, 16, 16, 16)))).state_dict()
    with pytest.raises(ModelError, match=r'another network: blocks\.2\..* differs'):
        counter.load_state_dict(other)


def test_a_network_without_binary_layers_has_no_rates():
    counter = FlipCounter({})
    assert counter.rates() == {}
    counter.load_state_dict(counter.state_dict())
