"""The two binary ResNets of the ablations, against their definitions written out."""

import math

import numpy as np
import pytest
import torch

from training.config import ModelConfig
from training.models.names import BACKBONES
from training.models.network import make_network
from training.models.resnet import (
    BinaryResNet,
    RecuBlock,
    RecuConv2d,
    XnorBlock,
    XnorConv2d,
    make_resnet,
)


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


def test_xnor_scales_by_the_mean_magnitude():
    torch.manual_seed(0)
    layer = XnorConv2d(4, 3, stride=2)
    weight = layer.weight.detach().numpy()
    expected = np.where(weight >= 0, 1.0, -1.0)
    for i in range(3):
        expected[i] *= np.abs(weight[i]).sum() / weight[i].size
    np.testing.assert_allclose(layer.effective_weight().detach(), expected, rtol=1e-6)
    x = sign(torch.randn(2, 4, 6, 6))
    found = torch.conv2d(x, torch.from_numpy(expected).float(), stride=2, padding=1)
    torch.testing.assert_close(layer(x), found)
    np.testing.assert_array_equal(layer.positive(), weight >= 0)


def test_xnor_scale_is_the_best_one():
    """Equation 6 of XNOR-Net: no other scale is nearer to the latent weights."""
    torch.manual_seed(0)
    layer = XnorConv2d(4, 3)
    weight = layer.weight.detach()
    best = (weight - layer.effective_weight()).square().sum()
    for factor in (0.99, 1.01):
        assert (weight - factor * layer.effective_weight()).square().sum() > best


def test_xnor_latents_are_centred_then_clamped():
    torch.manual_seed(0)
    layer = XnorConv2d(4, 3)
    with torch.no_grad():
        layer.weight.mul_(5).add_(0.3)
    expected = layer.weight.detach().numpy().copy()
    expected -= expected.mean(axis=1, keepdims=True)
    layer.clamp_latent()
    assert layer.weight.abs().max() == 1
    np.testing.assert_allclose(layer.weight.detach(), expected.clip(-1, 1), atol=1e-6)


@pytest.mark.parametrize('channels', [(8, 8, 1), (8, 16, 2)])
def test_xnor_block_follows_its_definition(channels):
    torch.manual_seed(0)
    before, after, stride = channels
    block = XnorBlock(before, after, stride=stride).eval()
    x = torch.randn(2, before, 6, 6)
    with torch.no_grad():
        y = torch.conv2d(sign(block.bn1(x)), block.conv1.effective_weight(), None, stride, 1)
        y = torch.conv2d(sign(block.bn2(y)), block.conv2.effective_weight(), None, 1, 1)
        shortcut = x if stride == 1 else block.downsample(x)
        torch.testing.assert_close(block(x), y + shortcut, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('tau', [0.85, 0.95, 0.99])
def test_recu_pulls_outliers_to_the_quantiles(tau):
    """Equation 9 of ReCU, with the quantiles of a Laplace distribution fitted by its scale."""
    torch.manual_seed(0)
    layer = RecuConv2d(64, 2)
    rng = np.random.default_rng(0)
    weight = rng.laplace(scale=0.05, size=layer.weight.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    layer.tau = tau
    layer.temperature = 1e6
    layer.train()
    rectified = layer.effective_weight().detach().numpy() * 1e6
    for i in range(2):
        centred = weight[i] - weight[i].mean()
        standard = centred / (np.sqrt(centred.var(ddof=1) + 1e-5) / 2 / math.sqrt(2))
        limit = np.abs(rectified).max()
        np.testing.assert_allclose(rectified[i], standard.clip(-limit, limit), atol=1e-3)
        assert np.quantile(standard, tau) == pytest.approx(limit, rel=0.12)


def test_recu_signs_do_not_depend_on_the_quantile():
    torch.manual_seed(0)
    layer = RecuConv2d(8, 4)
    with torch.no_grad():
        layer.weight.add_(0.05)
    expected = sign(layer.weight - layer.weight.mean(dim=(1, 2, 3), keepdim=True))
    for tau in (0.85, 0.99):
        layer.tau = tau
        assert torch.equal(layer.effective_weight(), expected)
    assert torch.equal(layer.positive(), expected > 0)
    assert not torch.equal(layer.positive(), layer.weight >= 0)


def test_recu_computes_the_same_in_training_and_evaluation():
    torch.manual_seed(0)
    layer = RecuConv2d(8, 4, stride=2)
    x = torch.randn(2, 8, 6, 6)
    expected = torch.conv2d(sign(x), layer.effective_weight(), stride=2, padding=1) * layer.alpha
    torch.testing.assert_close(layer.train()(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)


@pytest.mark.parametrize('channels', [(8, 8, 1), (8, 16, 2)])
def test_recu_block_follows_its_definition(channels):
    torch.manual_seed(0)
    before, after, stride = channels
    block = RecuBlock(before, after, stride=stride).eval()
    x = torch.randn(2, before, 6, 6)
    with torch.no_grad():
        shortcut = x if stride == 1 else block.downsample(x)
        torch.testing.assert_close(block(x), shortcut.clamp(-1, 1))
        block.bn1.weight.uniform_(0, 1)
        block.bn2.weight.uniform_(0, 1)
        shortcut = x if stride == 1 else block.downsample(x)
        y = (block.bn1(block.conv1(x)) + shortcut).clamp(-1, 1)
        expected = (block.bn2(block.conv2(y)) + y).clamp(-1, 1)
        torch.testing.assert_close(block(x), expected)


def test_the_quantile_grows_over_the_training():
    torch.manual_seed(0)
    backbone = make_resnet('recu')
    layer = backbone.get_submodule('layer3.0.conv1')
    assert layer.tau == 0.85
    found = []
    for share in (0.0, 0.5, 1.0):
        backbone.set_progress(share)
        found.append(layer.tau)
    half = (math.sqrt(math.e) - 1) / (math.e - 1)
    assert found == pytest.approx([0.85, 0.85 + 0.14 * half, 0.99])
    with pytest.raises(ValueError, match='share must be within 0 and 1, found 2'):
        backbone.set_progress(2)


@pytest.mark.parametrize(
    ('name', 'backbone', 'with_heads'),
    # With the unused classifier of 1000 classes, and for ReCU the BatchNorm before it, the second
    # column reads 23.668 and 23.676 M; the paper's table 8 says 23.68 and 23.72 M.
    [('resnet34_xnor', 21_284_800, 23_154_879), ('resnet34_recu', 21_292_224, 23_162_303)],
)
def test_parameter_counts(name, backbone, with_heads):
    with torch.device('meta'):
        network = make_network(ModelConfig(name=name), classes=701)
    assert sum(p.numel() for p in network.backbone.parameters()) == backbone
    assert sum(p.numel() for p in network.parameters()) == with_heads


@pytest.mark.parametrize('manner', ['xnor', 'recu'])
def test_layers_are_those_of_resnet34(manner):
    with torch.device('meta'):
        backbone = make_resnet(manner)
    binary = [m for m in backbone.modules() if isinstance(m, XnorConv2d | RecuConv2d)]
    assert len(binary) == 32
    assert sum(m.weight.numel() for m in binary) == 21_086_208
    floats = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(m.kernel_size) for m in floats] == [(7, 7)] + [(1, 1)] * 3
    assert sum(m.stride == 2 for m in binary) == 3


@pytest.mark.parametrize('manner', ['xnor', 'recu'])
def test_it_learns(manner):
    """Four steps on four images bring the loss of their classes down."""
    torch.manual_seed(0)
    backbone: BinaryResNet = make_resnet(manner)
    network = torch.nn.Sequential(backbone, torch.nn.Linear(512, 4)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        backbone.clamp_parameters()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


def test_unknown_manner():
    with pytest.raises(ValueError, match="unknown manner 'bireal': choose one of xnor, recu"):
        make_resnet('bireal')
    assert {'resnet34_xnor', 'resnet34_recu'} <= set(BACKBONES)
