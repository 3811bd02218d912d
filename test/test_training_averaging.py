"""Averages of weights and of BatchNorm statistics: definitions, restoring, resumption."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from bicrossnet_ros.errors import ConfigError, ModelError
from training.averaging import WeightAverage, reestimate_norms
from training.models.binary import BinaryConv2d
from training.models.bnext import BNext
from training.models.branches import MultipleClassifierBranch
from training.models.network import GeoNetwork
from training.models.partition import binary_layers

DECAY = 0.8


def make(seed=0, *, channels=(8, 16, 16, 32)):
    torch.manual_seed(seed)
    branches = MultipleClassifierBranch(channels[-1], 3, bottleneck=16)
    return GeoNetwork(BNext(channels), branches)


def copies(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def disturb(network, seed):
    """Change all parameters and the norms' statistics, as a training step does."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter))
    network.train()
    network(torch.randn(4, 3, 32, 32))


def assert_equal(state, other):
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


def batches(count, *, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(size, 3, 32, 32, generator=generator) + 1 for _ in range(count)]


def test_the_average_equals_the_recursion_in_double_precision():
    network = make()
    average = WeightAverage(network, DECAY)
    expected = {name: value.double() for name, value in copies(network).items()}
    for step in range(1, 40):
        disturb(network, step)
        average.update()
        keep = min(DECAY, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * value.double()
    assert DECAY < (1 + 39) / (10 + 39)  # both branches of min were seen
    latent = {f'{name}.weight' for name in binary_layers(network)}
    values = average.state_dict()['average']
    assert latent <= values.keys()
    for name, value in values.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name].float(), atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(value, network.state_dict()[name])


def test_the_first_updates_forget_the_initial_weights_soon():
    layer = nn.Linear(1, 1, bias=False)
    average = WeightAverage(layer, 0.999)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    for _ in range(20):
        average.update()
    average_weight = average.state_dict()['average']['weight']
    assert average_weight.item() == pytest.approx(5.0, abs=1e-3)


def test_the_average_is_resumed_bit_exactly():
    network = make()
    average = WeightAverage(network, DECAY)
    for step in range(3):
        disturb(network, step)
        average.update()
    file = io.BytesIO()
    torch.save({'network': network.state_dict(), 'average': average.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = make(seed=9)
    resumed = WeightAverage(other, DECAY)
    other.load_state_dict(state['network'])
    resumed.load_state_dict(state['average'])
    for one, its in ((network, average), (other, resumed)):
        disturb(one, 7)
        its.update()
    assert average.updates == resumed.updates == 4
    assert_equal(average.state_dict()['average'], resumed.state_dict()['average'])


def test_an_average_of_another_network_is_refused():
    average = WeightAverage(make(), DECAY)
    other = WeightAverage(make(channels=(8, 16, 16, 16)), DECAY).state_dict()
    with pytest.raises(ModelError, match=r'is of another network: .* expected'):
        average.load_state_dict(other)
    lacking = average.state_dict()
    del lacking['average']['backbone.stem.weight']
    with pytest.raises(ModelError, match=r'backbone\.stem\.weight is nothing, expected \(8, 3'):
        average.load_state_dict(lacking)


@pytest.mark.parametrize('decay', [0.0, 1.0, -0.1])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ConfigError, match='average_decay'):
        WeightAverage(nn.Linear(1, 1), decay)


def test_statistics_are_the_average_of_the_batches():
    network = make()
    images = batches(4)
    reestimate_norms(network, images)
    norm = network.backbone.stem_norm
    with torch.no_grad():
        maps = [network.backbone.stem(batch).double().numpy() for batch in images]
    mean = np.mean([x.mean(axis=(0, 2, 3)) for x in maps], axis=0)
    # Unbiased, as torch's running variance is.
    variance = np.mean(
        [np.var(x.swapaxes(0, 1).reshape(x.shape[1], -1), axis=1, ddof=1) for x in maps], axis=0
    )
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4)
    assert norm.num_batches_tracked.item() == 4


def test_the_norms_of_the_branches_are_averaged_too():
    network = make()
    images = batches(3, size=4)
    reestimate_norms(network, images)
    norm = network.branches.classifiers[2].norm
    assert isinstance(norm, nn.BatchNorm1d)
    inputs = []
    norm.register_forward_hook(lambda module, given, out: inputs.append(given[0]))
    reestimate_norms(network, images)
    mean = torch.stack([x.mean(dim=0) for x in inputs]).mean(dim=0)
    variance = torch.stack([x.var(dim=0) for x in inputs]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)


def test_what_the_statistics_were_before_does_not_matter():
    network = make()
    reestimate_norms(network, batches(2))
    first = copies(network)
    disturbed = make()
    for step in range(3):
        with torch.no_grad():
            disturbed.train()(batches(1, seed=5 + step)[0])
    reestimate_norms(disturbed, batches(2))
    assert_equal(disturbed.state_dict(), first)


def test_modes_and_momenta_stay_and_weights_do_not_move():
    network = make().train()
    network.backbone.blocks[1].eval()
    momenta = [getattr(module, 'momentum', None) for module in network.modules()]
    modes = [module.training for module in network.modules()]
    weights = {name: value.clone() for name, value in network.named_parameters()}
    reestimate_norms(network, batches(2))
    assert [getattr(module, 'momentum', None) for module in network.modules()] == momenta
    assert network.branches.attentions[0].norm.momentum == 0.01
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in network.named_parameters())
    assert all(value.grad is None for value in network.parameters())


def test_statistics_are_those_of_signs_without_dropout_in_float32():
    """As the network will be in use, though it trains hot, with dropout, in bfloat16."""
    plain, hot = make(), make()
    hot.train().set_temperature(0.5)
    reestimate_norms(plain.eval(), batches(2))
    with torch.autocast('cpu', torch.bfloat16):
        reestimate_norms(hot, batches(2))
    assert_equal(hot.state_dict(), plain.state_dict())
    layer = next(iter(binary_layers(hot).values()))
    assert isinstance(layer, BinaryConv2d)
    assert len(layer.effective_weight().unique()) > 2  # it is hot still


def test_the_batches_may_come_one_by_one():
    network, other = make(), make()
    reestimate_norms(network, batches(3))
    reestimate_norms(other, (batch for batch in batches(3)))
    assert_equal(network.state_dict(), other.state_dict())


def test_without_a_batch_the_statistics_stay():
    network = make()
    disturb(network, 0)
    before = copies(network)
    with pytest.raises(ConfigError, match='no batch to re-estimate'):
        reestimate_norms(network, [])
    assert_equal(network.state_dict(), before)
    assert network.backbone.stem_norm.momentum == 0.1


def test_a_batch_that_fails_leaves_the_statistics_as_they_were():
    def failing():
        yield batches(1)[0]
        raise OSError('gone')

    network = make()
    disturb(network, 0)
    before = copies(network)
    modes = [module.training for module in network.modules()]
    with pytest.raises(OSError, match='gone'):
        reestimate_norms(network, failing())
    assert_equal(network.state_dict(), before)
    assert [module.training for module in network.modules()] == modes
