"""ConvNeXt against timm's: the same function, the same parameters."""

import math

import numpy as np
import pytest
import torch

from training.models.convnext import LAYOUTS, make_convnext

# Computed with timm 1.0.31 from the weights of `fill` and the images of `waves`: the first six
# numbers of both pooled and normalised features, and the Euclidean norm of the pair.
GOLDEN = {
    'tiny': (
        (-1.375329, 0.889918, 0.952439, 0.398665, 0.743660, 1.572188),
        (-0.694599, 0.822288, 0.948601, 0.253403, 0.731594, 1.543072),
        39.964887,
    ),
    'femto': (
        (0.777993, -0.324502, 0.425836, -0.325941, -1.337457, -0.865168),
        (0.793983, -0.294867, 0.354385, -0.180105, -1.270271, -1.015148),
        27.272126,
    ),
}


def timm_name(name):
    return name.replace('trunk.', 'stages.')


def fill(network):
    """Set weights by a formula of their position and of timm's name."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            key = timm_name(name)
            phase = sum((i + 1) * ord(c) for i, c in enumerate(key)) % 97
            k = torch.arange(value.numel(), dtype=torch.float64)
            wave = torch.sin(1e-2 * (k + 100 * phase) ** 1.5)
            scale = 1.5 / math.sqrt(value[0].numel()) if value.ndim > 1 else 0.1
            centre = 1.0 if key.endswith(('gamma', 'norm.weight')) else 0.0
            value.copy_((wave * scale + centre).reshape(value.shape))


def waves():
    """Two images of 64 px with all frequencies."""
    k = np.arange(2 * 3 * 64 * 64, dtype=np.float64)
    return torch.from_numpy(np.sin(1e-3 * k**1.5)).float().reshape(2, 3, 64, 64)


@pytest.mark.parametrize('size', GOLDEN)
def test_equals_timm(size):
    network = make_convnext(size).eval()
    fill(network)
    with torch.no_grad():
        feature = network(waves())
    first, second, norm = GOLDEN[size]
    np.testing.assert_allclose(feature[0, :6], first, rtol=0, atol=2e-5)
    np.testing.assert_allclose(feature[1, :6], second, rtol=0, atol=2e-5)
    assert feature.norm().item() == pytest.approx(norm, abs=1e-4)


@pytest.mark.parametrize(('size', 'parameters'), [('tiny', 27_820_128), ('femto', 4_832_784)])
def test_parameter_counts(size, parameters):
    with torch.device('meta'):
        network = make_convnext(size)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.feature_dim == LAYOUTS[size].channels[-1]


def test_names_are_those_of_timm():
    with torch.device('meta'):
        names = [timm_name(n) for n in make_convnext('tiny').state_dict()]
    assert len(names) == 180
    block = [
        n.removeprefix('stages.2.blocks.8.') for n in names if n.startswith('stages.2.blocks.8')
    ]
    assert sorted(block) == sorted(
        [
            'gamma',
            *(
                f'{m}.{kind}'
                for m in ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2')
                for kind in ('weight', 'bias')
            ),
        ]
    )
    assert 'stem.0.weight' in names
    assert 'stages.1.downsample.1.weight' in names
    assert 'stages.0.downsample.0.weight' not in names
    assert names[-2:] == ['head.norm.weight', 'head.norm.bias']


def test_the_map_is_not_normalised_and_the_pooled_vector_is():
    torch.manual_seed(0)
    network = make_convnext('femto').eval()
    with torch.no_grad():
        feature_map = network.feature_map(waves())
        pooled = network.pool(feature_map)
    mean = feature_map.mean(dim=(2, 3))
    assert mean.std(dim=1).min() < 0.9
    torch.testing.assert_close(pooled, torch.layer_norm(mean, (384,), eps=1e-6))


def test_weights_start_as_in_the_paper():
    torch.manual_seed(0)
    network = make_convnext('femto')
    block = network.trunk[2].blocks[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not block.mlp.fc1.bias.any()
    assert (block.gamma == 1e-6).all()


def test_unknown_size():
    with pytest.raises(ValueError, match="unknown size 'huge': choose one of femto, tiny"):
        make_convnext('huge')
