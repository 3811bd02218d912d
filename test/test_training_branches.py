"""The Multiple Classifier Branch, the network around it, and the division of its parameters."""

import pytest
import torch

from bicrossnet_ros.errors import ConfigError
from training.config import ModelConfig
from training.models.binary import BinaryConv2d
from training.models.branches import (
    BranchClassifier,
    MultipleClassifierBranch,
    TripletAttentionPool,
)
from training.models.names import BACKBONES
from training.models.network import make_backbone, make_network
from training.models.partition import binary_layers, partition


def network(name='bnext_nano', *, classes=5, **options):
    torch.manual_seed(0)
    return make_network(ModelConfig(name=name, input_px=64, **options), classes=classes)


@pytest.mark.parametrize(('axis', 'order'), [(2, (0, 2, 1, 3)), (3, (0, 3, 2, 1))])
@pytest.mark.parametrize('training', [True, False])
def test_attention_follows_its_definition(axis, order, training):
    """Permute, stack [max, mean], convolve, normalise, gate, permute back, average."""
    torch.manual_seed(0)
    branch = TripletAttentionPool(axis).train(training)
    x = torch.randn(3, 12, 5, 4)
    turned = x.permute(order)
    stacked = torch.stack([turned.max(dim=1).values, turned.mean(dim=1)], dim=1)
    scores = torch.conv2d(stacked, branch.conv.weight, padding=3)
    if training:
        mean, var = scores.mean(), scores.var(unbiased=False)
    else:
        mean, var = branch.norm.running_mean, branch.norm.running_var
    gate = torch.sigmoid((scores - mean) / torch.sqrt(var + 1e-5))
    expected = (turned * gate).permute(order).mean(dim=(2, 3))
    torch.testing.assert_close(branch(x), expected, rtol=1e-5, atol=1e-6)


def test_attention_has_no_bias_and_a_slow_norm():
    branch = TripletAttentionPool(2)
    assert branch.conv.weight.shape == (1, 2, 7, 7)
    assert branch.conv.bias is None
    assert branch.norm.momentum == 0.01
    with pytest.raises(ValueError, match='axis must be 2 or 3, found 1'):
        TripletAttentionPool(1)


def test_classifier_starts_as_the_notes_say():
    torch.manual_seed(0)
    classifier = BranchClassifier(256, 701, bottleneck=512, dropout=0.5)
    # Kaiming over the fan-out, 512 outputs: variance 2 / 512.
    assert classifier.reduce.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)
    assert classifier.classifier.weight.std().item() == pytest.approx(1e-3, rel=0.01)
    assert not classifier.reduce.bias.any()
    assert not classifier.classifier.bias.any()


def test_feature_is_taken_after_the_dropout():
    torch.manual_seed(0)
    classifier = BranchClassifier(16, 3, bottleneck=64, dropout=0.5).train()
    feature, logits = classifier(torch.randn(32, 16))
    assert 0.4 < (feature == 0).float().mean().item() < 0.6
    torch.testing.assert_close(logits, classifier.classifier(feature))
    feature, _ = classifier.eval()(torch.ones(2, 16))
    assert (feature != 0).all()


def test_branch_features_come_from_the_map_and_the_pooled_vector():
    torch.manual_seed(0)
    head = MultipleClassifierBranch(8, 5, bottleneck=16, dropout=0.0).eval()
    feature_map, pooled = torch.randn(2, 8, 4, 4), torch.randn(2, 8)
    features, logits = head(feature_map, pooled)
    assert [tuple(f.shape) for f in features] == [(2, 16)] * 3
    assert [tuple(z.shape) for z in logits] == [(2, 5)] * 3
    inputs = [head.attentions[0](feature_map), head.attentions[1](feature_map), pooled]
    for classifier, x, feature, z in zip(head.classifiers, inputs, features, logits, strict=True):
        torch.testing.assert_close(classifier(x), (feature, z))


def test_outputs():
    found = network(bottleneck=24)(torch.randn(3, 3, 64, 64))
    assert found.embedding.shape == (3, 512)
    assert [tuple(f.shape) for f in found.features] == [(3, 24)] * 3
    assert [tuple(z.shape) for z in found.logits] == [(3, 5)] * 3


def test_without_branches():
    plain = network(branches=False).eval()
    found = plain(torch.randn(2, 3, 64, 64))
    assert (found.features, found.logits) == ((), ())
    assert partition(plain).head == {}


def test_the_embedding_is_what_the_deployed_network_returns():
    trained = network().eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(trained(x).embedding, trained.backbone(x))


@pytest.mark.parametrize('name', BACKBONES)
def test_parameters_are_divided_without_rest(name):
    with torch.device('meta'):
        whole = network(name)
    groups = partition(whole)
    names = [*groups.head, *groups.float_backbone, *groups.binary]
    parameters = dict(whole.named_parameters())
    assert len(names) == len(set(names)) == len(parameters)
    for group in (groups.head, groups.float_backbone, groups.binary):
        assert all(parameters[key] is value for key, value in group.items())
    assert all(key.startswith('branches.') for key in groups.head)
    layers = binary_layers(whole)
    assert [f'{key}.weight' for key in layers] == list(groups.binary)
    assert all(isinstance(layer, BinaryConv2d) for layer in layers.values())
    expected = {'bnext_nano': 31, 'bnext_tiny': 31, 'resnet34_xnor': 32, 'resnet34_recu': 32}
    if not name.startswith(('bnext_small', 'bnext_middle', 'bnext_large')):
        assert len(layers) == expected.get(name, 0)


@pytest.mark.parametrize('name', BACKBONES)
def test_stages_hold_every_parameter_once(name):
    with torch.device('meta'):
        backbone = make_backbone(name)
    stages = backbone.stages()
    held = [parameter for stage in stages for parameter in stage.parameters()]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in backbone.parameters()}
    assert len(stages) == (9 if name.startswith('efficientnet') else 5)


def test_stages_of_bnext_follow_its_widths():
    with torch.device('meta'):
        backbone = make_backbone('bnext_tiny')
    blocks = [
        [m for m in stage.modules() if type(m).__name__ == 'Block'] for stage in backbone.stages()
    ]
    # 64, then 2 of 128, 2 of 256, 6 of 512, 2 of 1024 channels: the ratios 1 : 1 : 3 : 1.
    assert [len(group) for group in blocks] == [1, 2, 2, 6, 2]
    assert backbone.act in list(backbone.stages()[-1])


@pytest.mark.parametrize(
    'name', [n for n in BACKBONES if n not in ('bnext_small', 'bnext_middle', 'bnext_large')]
)
def test_every_backbone_keeps_the_protocol(name):
    torch.manual_seed(0)
    backbone = make_backbone(name).eval()
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        feature_map = backbone.feature_map(x)
        assert feature_map.shape == (2, backbone.feature_dim, 2, 1)
        assert torch.equal(backbone.pool(feature_map), backbone(x))
        backbone.clamp_parameters()
        backbone.set_temperature(0.5)
        backbone.set_progress(0.5)
        backbone(x)


def test_unknown_backbone():
    with pytest.raises(ConfigError, match="no backbone 'vgg'; expected one of bnext_nano"):
        make_backbone('vgg')
