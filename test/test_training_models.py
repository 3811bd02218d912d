"""The networks: definitions, gradients, and the parameter counts of the literature."""

import numpy as np
import pytest
import torch

from bicrossnet_ros.engine.architecture import units
from training.models.binary import BinaryConv2d, binary_activation, binary_weight
from training.models.bnext import CHANNELS, BinaryUnit, make_bnext
from training.models.prelu import ChannelPReLU


def count(network, kind=None):
    """Number of parameters, or of binary weights."""
    if kind == 'binary':
        return sum(m.weight.numel() for m in network.modules() if isinstance(m, BinaryConv2d))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ('size', 'backbone', 'binary'),
    [
        ('nano', 7_480_218, 7_063_296),
        ('tiny', 29_828_276, 28_253_184),
        ('small', 67_044_174, 63_569_664),
        ('middle', 132_942_894, 126_238_464),
        ('large', 324_455_912, 308_310_016),
    ],
)
def test_parameter_counts(size, backbone, binary):
    with torch.device('meta'):
        network = make_bnext(size)
    assert count(network) == backbone
    assert count(network, 'binary') == binary


def test_tiny_has_13_large_and_18_small_binary_convolutions():
    with torch.device('meta'):
        network = make_bnext('tiny')
    kernels = [m.weight.shape[-1] for m in network.modules() if isinstance(m, BinaryConv2d)]
    assert (kernels.count(3), kernels.count(1)) == (13, 18)
    assert sum(m.elementwise for m in network.modules() if isinstance(m, BinaryUnit)) == 6


@pytest.mark.parametrize('size', CHANNELS)
def test_structure_matches_the_model_file(size):
    """The flying structure and the trained one are written down twice; they must be one."""
    with torch.device('meta'):
        network = make_bnext(size)
    found = {
        name: (m.conv.weight.shape[0], m.conv.weight.shape[-1], m.stride, m.elementwise)
        for name, m in network.named_modules()
        if isinstance(m, BinaryUnit)
    }
    assert found == {
        u.prefix: (u.channels, u.kernel, u.stride, u.elementwise) for u in units(CHANNELS[size])
    }


def test_unknown_size():
    with pytest.raises(ValueError, match="unknown size 'huge': choose one of nano, tiny"):
        make_bnext('huge')


def test_activation_sign_and_gradient():
    x = torch.tensor([-2.0, -1.5, -0.1, -0.0, 0.0, 0.1, 1.5, 1.6], requires_grad=True)
    y = binary_activation(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    (y * torch.arange(8.0)).sum().backward()
    assert x.grad.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]


def test_weight_sign_and_gradient():
    weight = torch.tensor([-9.0, -0.1, 0.0, 0.1, 9.0], requires_grad=True)
    signs = binary_weight(weight)
    assert signs.tolist() == [-1, -1, 1, 1, 1]
    (signs * torch.arange(5.0)).sum().backward()
    assert weight.grad.tolist() == [0, 1, 2, 3, 4]


def test_latents_start_small_and_stay_clamped():
    torch.manual_seed(0)
    conv = BinaryConv2d(64, 64, kernel=3)
    assert conv.weight.std().item() == pytest.approx(1e-3, rel=0.02)
    with torch.no_grad():
        conv.weight.mul_(1e5)
    conv.clamp_latent()
    assert conv.weight.abs().max().item() == 1.5


def test_scales_are_clamped():
    unit = BinaryUnit(8, kernel=1)
    assert (unit.scale == 0.5).all()
    with torch.no_grad():
        unit.scale.copy_(torch.linspace(-1, 2, 8).reshape(1, 8, 1, 1))
    unit.clamp_parameters()
    assert (unit.scale.min().item(), unit.scale.max().item()) == (0, 1)


@pytest.mark.parametrize('training', [True, False])
def test_convolution_is_truly_binary(training):
    torch.manual_seed(0)
    conv = BinaryConv2d(8, 4, kernel=3).train(training)
    x = torch.where(torch.randn(1, 8, 5, 5) >= 0, 1.0, -1.0)
    y = conv(x)
    assert torch.equal(y, y.round())
    with torch.no_grad():
        conv.weight.copy_(torch.where(conv.weight >= 0, 1.0, -1.0))
    assert torch.equal(conv(x), y)


@pytest.mark.parametrize('elementwise', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
def test_unit_follows_its_definition(elementwise, stride):
    """The unit against the definition written out step by step, the mixture in full."""
    from training.models.bnext import ElementwiseUnit

    torch.manual_seed(0)
    unit = (ElementwiseUnit if elementwise else BinaryUnit)(16, kernel=3, stride=stride).eval()
    with torch.no_grad():
        for parameter in (unit.move.bias, unit.norm1.bias, unit.norm2.bias):
            parameter.normal_()
        unit.scale.uniform_(0, 1)
        unit.norm1.running_var.fill_(100)
        x = torch.randn(2, 16, 6, 6)
        pool = torch.nn.AvgPool2d(2) if stride == 2 else torch.nn.Identity()
        residual = pool(unit.act_residual(x)) if elementwise else pool(x)
        signs = torch.where(x + unit.move.bias >= 0, 1.0, -1.0)
        weights = torch.where(unit.conv.weight >= 0, 1.0, -1.0)
        y = torch.conv2d(signs, weights, stride=stride, padding=1)
        y = unit.act(unit.norm1(y))
        mix = unit.scale * pool(x) + (1 - unit.scale) * y
        y = unit.se(mix) * y
        y = unit.norm2(y * residual if elementwise else y) + residual
        torch.testing.assert_close(unit(x), y, rtol=1e-5, atol=1e-5)


def test_network_shapes_and_gradients():
    torch.manual_seed(0)
    network = make_bnext('nano')
    feature = network(torch.randn(2, 3, 64, 32))
    assert feature.shape == (2, 512)
    feature.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_block_keeps_or_doubles():
    from training.models.bnext import Block

    with pytest.raises(ValueError, match='16 -> 48'):
        Block(16, 48, stride=1, elementwise=False)


def test_seed_decides_the_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(make_bnext('nano').state_dict())
    for name, value in states[0].items():
        np.testing.assert_array_equal(value.numpy(), states[1][name].numpy())


def test_fast_prelu_equals_torch():
    """The same bits forward and back, zero included."""
    torch.manual_seed(0)
    fast, plain = ChannelPReLU(5), torch.nn.PReLU(5)
    with torch.no_grad():
        fast.weight.uniform_(-1, 1)
        plain.weight.copy_(fast.weight)
    x = torch.randn(3, 5, 4, 6)
    x[0, :, 0, :2] = torch.tensor([0.0, -0.0])
    grad = torch.randn(3, 5, 4, 6)
    found = []
    for act in (fast, plain):
        y = act(z := x.clone().requires_grad_())
        y.backward(grad)
        found.append((y, z.grad, act.weight.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x))
