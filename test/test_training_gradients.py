"""Gradients of the binary layers: the rules at the sign exactly, all else by finite differences.

A sign has no useful derivative, so training uses a rule. That rule is the derivative of a network
in which every sign is replaced by its straight line through the present point: the slope is 1
within the rule's range and 0 beyond, or what the rule says. The gradient of the true network must
equal that of the replaced one, and along random directions its central difference.
"""

import re

import pytest
import torch

from training.models import binary as binary_module
from training.models import bnext
from training.models import resnet as resnet_module
from training.models.binary import BinaryConv2d, binary_activation, binary_weight
from training.models.bnext import BinaryUnit, ElementwiseUnit, make_bnext
from training.models.branches import MultipleClassifierBranch
from training.models.convnext import ConvNeXtBlock
from training.models.network import GeoNetwork
from training.models.resnet import RecuBlock, RecuConv2d, XnorBlock, XnorConv2d


class Lines:
    """Stands for a sign: its line through the point of the first pass, call by call."""

    def __init__(self, slope):
        self.slope = slope
        self.points = []
        self.call = 0

    def __call__(self, x, **_):
        if self.call == len(self.points):
            self.points.append((x.detach().clone(), torch.where(x >= 0, 1.0, -1.0).detach()))
        point, sign = self.points[self.call]
        self.call += 1
        return sign.to(x.dtype) + self.slope(point) * (x - point)


def within(limit):
    return lambda x: (x.abs() <= limit).to(x.dtype)


def check_gradients(module, x, monkeypatch, *, activation_limit=1.5, step=1e-6, only=''):
    """Compare the gradient of a module with differences of the module of straight lines."""
    torch.manual_seed(1)
    module = module.double()
    x = x.double().requires_grad_()
    tensors = {'x': x, **dict(module.named_parameters())}
    direction_out = torch.randn_like(module(x))

    def loss():
        return (module(x) * direction_out).sum()

    gradients = torch.autograd.grad(loss(), list(tensors.values()))
    lines = {
        'activation': Lines(within(activation_limit)),
        'weight': Lines(torch.ones_like),
        'polynomial': Lines(lambda z: (2 - 2 * z.abs()).clamp(min=0)),
    }
    for place in (bnext, resnet_module):
        monkeypatch.setattr(place, 'binary_activation', lines['activation'])
    for place in (binary_module, resnet_module):
        monkeypatch.setattr(place, 'binary_weight', lines['weight'])
    monkeypatch.setattr(resnet_module._PolynomialSign, 'apply', lines['polynomial'])

    def line_loss():
        for line in lines.values():
            line.call = 0
        return loss()

    with torch.no_grad():
        line_loss()
    by_lines = torch.autograd.grad(line_loss(), list(tensors.values()))
    for (name, tensor), gradient, line in zip(tensors.items(), gradients, by_lines, strict=True):
        size = gradient.norm().item()
        torch.testing.assert_close(gradient, line, rtol=1e-9, atol=1e-12 * (1 + size), msg=name)
        if not re.match(only, name):
            continue
        direction = torch.randn_like(tensor)
        start = tensor.detach().clone()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.copy_(start + sign * step * direction)
                values.append(line_loss().item())
        with torch.no_grad():
            tensor.copy_(start)
        expected = (values[0] - values[1]) / (2 * step)
        found = (gradient * direction).sum().item()
        scale = size * direction.norm().item()
        assert abs(found - expected) <= 1e-6 * max(scale, 1.0), (name, found, expected)


def spread(module):
    """Move every parameter away from its initial value, so that none is 0 or all alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def wide(*shape):
    """Activations on both sides of the limit of the straight-through gradient."""
    torch.manual_seed(2)
    return torch.randn(shape) * 1.5


@pytest.mark.parametrize('kind', [BinaryUnit, ElementwiseUnit])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('training', [True, False])
def test_units_of_bnext(kind, stride, training, monkeypatch):
    unit = spread(kind(8, kernel=3, stride=stride)).train(training)
    check_gradients(unit, wide(2, 8, 4, 4), monkeypatch)


def test_whole_bnext(monkeypatch):
    """Through 31 signs in a row, from the last PReLU to the stem."""
    torch.manual_seed(0)
    network = make_bnext('nano')
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BinaryUnit):
                module.move.bias.normal_(std=0.3)
                # A channel whose few integer sums agree is normalised to 0, the PReLU's kink.
                module.norm1.bias.normal_(std=0.3)
    # The stem moves the whole network's PReLUs over their kinks unless the step is tiny.
    check_gradients(
        network, wide(2, 3, 64, 32) / 1.5, monkeypatch, step=1e-9, only='x|stem.weight'
    )


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('channels', [(8, 8, 1), (8, 16, 2)])
def test_blocks_of_xnor(channels, training, monkeypatch):
    before, after, stride = channels
    block = spread(XnorBlock(before, after, stride=stride)).train(training)
    check_gradients(block, wide(2, before, 4, 4), monkeypatch, activation_limit=1.0)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('channels', [(8, 8, 1), (8, 16, 2)])
def test_blocks_of_recu(channels, training, monkeypatch):
    before, after, stride = channels
    block = spread(RecuBlock(before, after, stride=stride)).train(training)
    # The clamp of the latent weights follows the mean of their magnitudes without a gradient.
    for layer in (block.conv1, block.conv2):
        layer.tau = 0.999999
    check_gradients(block, wide(2, before, 4, 4), monkeypatch)


def test_recu_gives_outliers_no_gradient():
    torch.manual_seed(0)
    layer = RecuConv2d(8, 8)
    layer.tau = 0.9
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = 50 * layer.weight.abs().max()
    standard = layer.weight.detach()[0]
    standard = (standard - standard.mean()) / standard.std()
    assert standard[0, 0, 0] > 5
    signs = layer.effective_weight()
    (gradient,) = torch.autograd.grad(signs[0, 0, 0, 0], layer.weight)
    assert gradient.abs().max() == 0


def test_float_parts(monkeypatch):
    block = spread(ConvNeXtBlock(8))
    check_gradients(block, wide(2, 8, 4, 4), monkeypatch)


def test_head(monkeypatch):
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = MultipleClassifierBranch(8, 5, bottleneck=6, dropout=0.0)

        def forward(self, x):
            features, logits = self.head(x, x.mean(dim=(2, 3)))
            return torch.cat([*features, *logits], dim=1)

    check_gradients(spread(Logits()), wide(4, 8, 5, 6), monkeypatch)


@pytest.mark.parametrize('limit', [1.0, 1.5])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_limit_itself_passes_and_the_next_number_does_not(limit, dtype):
    beyond = limit + torch.finfo(dtype).eps  # of the numbers from 1 to 2, the next
    x = torch.tensor([-beyond, -limit, 0, limit, beyond], dtype=dtype, requires_grad=True)
    assert x[4] > limit
    binary_activation(x, limit=limit).backward(torch.arange(1, 6, dtype=dtype))
    assert x.grad.tolist() == [0, 2, 3, 4, 0]


def test_polynomial_rule():
    x = torch.tensor([-2.0, -1.0, -0.75, 0.0, 0.5, 1.0], requires_grad=True)
    y = resnet_module._PolynomialSign.apply(x)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1]
    y.sum().backward()
    assert x.grad.tolist() == [0, 0, 0.5, 2, 1, 0]


def test_soft_weights_follow_the_temperature():
    weight = torch.tensor([-1.0, -0.2, -0.05, 0.0, 0.05, 0.3], requires_grad=True)
    soft = binary_weight(weight, temperature=0.1)
    assert soft.tolist() == pytest.approx([-1, -1, -0.5, 0, 0.5, 1])
    soft.backward(torch.arange(6.0))
    assert weight.grad.tolist() == [0, 1, 2, 3, 4, 5]
    assert binary_weight(weight, temperature=1e-8).tolist() == [-1, -1, -1, 1, 1, 1]


def test_at_temperature_one_the_rule_is_the_true_gradient():
    torch.manual_seed(0)
    layer = BinaryConv2d(4, 4, kernel=3).double()
    with torch.no_grad():
        layer.weight.uniform_(-0.9, 0.9)
    layer.temperature = 1.0
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda weight: torch.func.functional_call(layer, {'weight': weight}, x), layer.weight
    )


def test_temperature_matters_in_training_alone():
    torch.manual_seed(0)
    network = GeoNetwork(make_bnext('nano'), None)
    layer = network.backbone.blocks[3].unit3x3.conv
    signs = layer.effective_weight().detach()
    assert signs.abs().eq(1).all()
    network.set_temperature(0.01)
    assert layer.effective_weight().abs().max() < 1
    assert torch.equal(layer.eval().effective_weight(), signs)
    network.set_temperature(0)
    assert torch.equal(layer.train().effective_weight(), signs)
    assert 'temperature' not in ' '.join(network.state_dict())
    with pytest.raises(ValueError, match='temperature must be 0 or positive, found -1'):
        network.set_temperature(-1)


def test_temperature_is_honoured_by_the_scaled_layers():
    torch.manual_seed(0)
    xnor, recu = XnorConv2d(8, 8), RecuConv2d(8, 8)
    xnor.temperature = recu.temperature = 1e3
    alpha = xnor.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(xnor.effective_weight(), xnor.weight / 1e3 * alpha)
    assert recu.effective_weight().abs().max() < 0.1
    assert recu.eval().effective_weight().abs().eq(1).all()


def test_mixed_precision_keeps_signs_and_gradients():
    """Signs are exact in any float type; the gradient differs by the rounding of bfloat16."""
    torch.manual_seed(0)
    unit = BinaryUnit(16, kernel=3).train()
    x = torch.randn(4, 16, 8, 8)
    gradients = []
    for enabled in (False, True):
        unit.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            y = unit(x)
        y.float().square().sum().backward()
        gradients.append(unit.conv.weight.grad.clone())
    assert gradients[1].dtype == torch.float32
    assert torch.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.99
    with torch.autocast('cpu', torch.bfloat16):
        assert binary_activation(x).dtype == torch.bfloat16
        assert torch.equal(binary_activation(x).float(), torch.where(x >= 0, 1.0, -1.0))
