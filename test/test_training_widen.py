"""Widening: the wide network computes what the narrow one does, then its copies part."""

import pytest
import torch
import torch.nn.functional as F

from bicrossnet_ros.errors import ConfigError, ModelError
from training.models.bnext import BNext, make_bnext
from training.models.convnext import make_convnext
from training.models.partition import binary_layers
from training.models.widen import widen, widen_backbone

# A BNext as deep as two widenings with strides need; nano has the same parts, more often.
CHANNELS = (16, 32, 64, 64, 128)


def lived_in(channels=CHANNELS, seed=0):
    """A network whose every parameter matters: nothing is left at its neutral initial value."""
    torch.manual_seed(seed)
    network = BNext(channels)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if 'conv' not in name and 'stem.' not in name and 'se.' not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    for _ in range(20):
        network.train()(torch.randn(16, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope='module')
def pair():
    narrow = lived_in()
    wide = BNext(tuple(2 * count for count in CHANNELS)).eval()
    return narrow, wide, widen(narrow, wide, seed=1)


def test_the_wide_embedding_repeats_the_narrow_one(pair):
    narrow, wide, origin = pair
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        small, large = narrow(images), wide(images)
    assert large.shape[1] == 2 * small.shape[1]
    assert origin.bincount().tolist() == [2] * small.shape[1]
    expected = F.normalize(small)[:, origin] / 2**0.5
    assert (F.normalize(large) - expected).abs().max() < 1e-4
    assert small.std(dim=0).min() > 1e-3


def test_training_statistics_are_the_narrow_ones_too(pair):
    """Norms that take the batch's own statistics; their epsilon is all that differs."""
    narrow, wide, origin = pair
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    states = [{k: v.clone() for k, v in network.state_dict().items()} for network in pair[:2]]
    with torch.no_grad():
        small, large = (F.normalize(network.train()(images)) for network in (narrow, wide))
    for network, state in zip(pair[:2], states, strict=True):
        network.eval().load_state_dict(state)
    cosines = F.cosine_similarity(small[:, origin], large)
    assert cosines.min() > 0.999


def test_latents_keep_their_signs_and_their_copies_differ(pair):
    narrow, wide, _ = pair
    for name, layer in binary_layers(narrow).items():
        twin = binary_layers(wide)[name].weight
        count = len(layer.weight)
        mean = layer.weight.abs().mean().item()
        assert twin.abs().mean().item() == pytest.approx(mean, rel=0.05)
        if len(twin) == 2 * CHANNELS[0]:  # before the first widening the order is plain
            torch.testing.assert_close(twin[:count] >= 0, twin[count:] >= 0)
            assert (twin[:count] != twin[count:]).float().mean() > 0.99
    again = BNext(tuple(2 * count for count in CHANNELS))
    widen(narrow, again, seed=1)
    for value, other in zip(again.parameters(), wide.parameters(), strict=True):
        assert torch.equal(value, other)


def test_copies_grow_apart_in_training(pair):
    narrow, _, origin = pair
    wide = BNext(tuple(2 * count for count in CHANNELS))
    widen(narrow, wide, seed=1)
    optimizer = torch.optim.AdamW(wide.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(7)
    for _ in range(6):
        loss = wide.train()(torch.randn(8, 3, 64, 64, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        values = wide.eval()(torch.randn(4, 3, 64, 64, generator=generator))
    first, second = values[:, origin.argsort(stable=True)].view(4, -1, 2).unbind(dim=2)
    assert (first - second).abs().mean() > 1e-3 * values.abs().mean()


def test_a_file_of_nano_becomes_tiny(tmp_path):
    torch.manual_seed(3)
    nano, tiny = make_bnext('nano').eval(), make_bnext('tiny').eval()
    torch.save(nano.state_dict(), tmp_path / 'nano.pt')
    report = widen_backbone(tiny, tmp_path / 'nano.pt', seed=0)
    assert report.complete
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        small, large = F.normalize(nano(images)), F.normalize(tiny(images))
    torch.testing.assert_close(large @ large.T, small @ small.T, atol=1e-4, rtol=0)


def test_what_cannot_be_widened(tmp_path):
    torch.save(make_bnext('nano').state_dict(), tmp_path / 'nano.pt')
    with pytest.raises(ConfigError, match='only a binary BNext can be widened'):
        widen_backbone(make_convnext('femto'), tmp_path / 'nano.pt', seed=0)
    with pytest.raises(ConfigError, match='only a binary BNext can be widened'):
        widen_backbone(make_bnext('tiny_float'), tmp_path / 'nano.pt', seed=0)
    with pytest.raises(ModelError, match='not those of a BNext'):
        widen_backbone(make_bnext('small'), tmp_path / 'nano.pt', seed=0)
