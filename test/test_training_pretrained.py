"""Weights from files: releases imitated by renaming, own files, and everything that is wrong."""

import argparse
import pickle

import pytest
import torch
from safetensors.torch import save_file

from bicrossnet_ros.engine.model_file import write_model
from bicrossnet_ros.errors import ModelError
from training.config import ModelConfig
from training.export import make_model
from training.models.bnext import BinaryUnit, make_bnext
from training.models.convnext import make_convnext
from training.models.network import make_network
from training.models.pretrained import LATENT_FROM_BITS, LoadReport, load_backbone
from training.models.resnet import make_resnet


@pytest.fixture(scope='module')
def nano():
    torch.manual_seed(1)
    network = make_bnext('nano')
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BinaryUnit):
                module.norm1.running_mean.normal_()
                module.norm2.bias.normal_()
    return network


@pytest.fixture(scope='module')
def femto():
    torch.manual_seed(1)
    return make_convnext('femto')


def released_bnext(network, *, temperature=0.0):
    """The state of a BNext under the names of hpi-xnor/BNext, with all that it holds besides."""
    renamed = {}
    for name, value in network.state_dict().items():
        parts = name.split('.')
        if parts[0] == 'stem':
            parts = ['feature', '0', 'conv1', *parts[1:]]
        elif parts[0] == 'stem_norm':
            parts = ['feature', '0', 'bn1', *parts[1:]]
        elif parts[0] == 'act':
            parts[0] = 'prelu'
        else:
            block = network.blocks[int(parts[1])]
            if parts[2] == 'unit3x3':
                unit, rest = 'Attention', parts[3:]
            elif len(block.units1x1) == 1:
                unit, rest = 'FFN', parts[4:]
            else:
                unit, rest = f'FFN_{int(parts[3]) + 1}', parts[4:]
            inner = {
                'conv': ['binary_conv'],
                'act': ['activation2'],
                'act_residual': ['activation1'],
            }.get(rest[0], [rest[0]])
            if rest[0] == 'se':
                inner, rest = ['se', 'se', {'reduce': '1', 'expand': '3'}[rest[1]]], rest[1:]
            parts = ['feature', str(int(parts[1]) + 1), unit, *inner, *rest[1:]]
        renamed['.'.join(parts)] = value.clone()
    for name in list(renamed):
        if name.endswith('binary_conv.weight'):
            unit = name.removesuffix('binary_conv.weight')
            renamed[f'{unit}binary_conv.temperature'] = torch.tensor([temperature])
            renamed[f'{unit}binary_activation.temperature'] = torch.ones(1)
            renamed.setdefault(f'{unit}activation1.weight', torch.full((8,), 0.25))
    renamed['feature.0.prelu.weight'] = torch.ones(16)
    renamed |= {'fc.weight': torch.ones(1000, 512), 'fc.bias': torch.ones(1000)}
    return renamed


def released_convnext(network):
    """The state of a ConvNeXt under the names of facebookresearch/ConvNeXt."""
    renamed = {'head.weight': torch.ones(1000, 384), 'head.bias': torch.ones(1000)}
    for name, value in network.state_dict().items():
        parts = name.split('.')
        if parts[0] == 'stem':
            parts = ['downsample_layers', '0', *parts[1:]]
        elif parts[0] == 'head':
            parts = parts[1:]
        elif parts[2] == 'downsample':
            parts = ['downsample_layers', parts[1], *parts[3:]]
        else:
            parts = ['stages', parts[1], parts[3], *parts[4:]]
        renamed['.'.join(parts).replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv')] = value
    return renamed


def timm_femto(network):
    """The state of a ConvNeXt under timm's names; its femto holds 1x1 convolutions."""
    renamed = {'head.fc.weight': torch.ones(1000, 384), 'head.fc.bias': torch.ones(1000)}
    for name, value in network.state_dict().items():
        wide = value.ndim == 2 and 'mlp' in name
        renamed[name.replace('trunk.', 'stages.')] = value[:, :, None, None] if wide else value
    return renamed


def saved(tmp_path, content, name='weights.pth.tar'):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def assert_equal_states(found, expected):
    expected = expected.state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize('wrap', ['plain', 'module', 'nested', 'release'])
def test_released_bnext(nano, wrap, tmp_path):
    state = released_bnext(nano)
    if wrap != 'plain':
        prefix = 'model_1.convnext.' if wrap == 'release' else 'module.'
        state = {prefix + name: value for name, value in state.items()}
    content = {'state_dict': state, 'epoch': 511} if wrap == 'nested' else state
    if wrap == 'release':
        content |= {'model_1.classifier1.add_block.0.bias': torch.ones(512)}
        content |= {'model_1.tri_layer.cw.conv.bn.bias': torch.ones(1)}
    found = make_bnext('nano')
    report = load_backbone(found, saved(tmp_path, content))
    assert_equal_states(found, nano)
    assert report.complete
    assert report.notes == ()
    # 2 of the classifier, 2 * 31 temperatures, the stem's dead PReLU and those of 25 plain units.
    assert len(report.unused) == 2 + 62 + 1 + 25 + (2 if wrap == 'release' else 0)
    assert 'not needed, left out' in str(report)
    assert 'and 78 more' in str(report) or wrap == 'release'


def test_soft_bnext_is_told(nano, tmp_path):
    found = make_bnext('nano')
    report = load_backbone(found, saved(tmp_path, released_bnext(nano, temperature=0.3)))
    assert 'still soft (temperature 0.3)' in str(report)
    assert_equal_states(found, nano)


@pytest.mark.parametrize('names', [released_convnext, timm_femto])
@pytest.mark.parametrize('kind', ['torch', 'safetensors'])
def test_released_convnext(femto, names, kind, tmp_path):
    state = names(femto)
    if kind == 'torch':
        path = saved(tmp_path, {'model': state, 'args': argparse.Namespace(lr=0.1)})
    else:
        path = tmp_path / 'model.safetensors'
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    found = make_convnext('femto')
    report = load_backbone(found, path)
    assert_equal_states(found, femto)
    assert report.complete
    assert len(report.unused) == 2


def test_recu_names_are_those_of_its_release(tmp_path):
    torch.manual_seed(1)
    source, found = make_resnet('recu'), make_resnet('recu')
    state = source.state_dict() | {'fc.weight': torch.ones(1000, 512), 'bn2.bias': torch.ones(512)}
    state |= {f'{n}.tau': torch.tensor(0.99) for n, _ in source.named_modules() if 'conv' in n}
    report = load_backbone(found, saved(tmp_path, {'state_dict': state}))
    assert report.complete
    assert {'fc.weight', 'bn2.bias', 'layer1.0.conv1.tau'} <= set(report.unused)
    assert_equal_states(found, source)


def test_own_checkpoint(tmp_path):
    torch.manual_seed(1)
    network = make_network(ModelConfig(name='bnext_nano'), classes=4)
    content = {'checkpoint_version': 2, 'network': network.state_dict(), 'loss': {}, 'step': 3}
    found = make_bnext('nano')
    report = load_backbone(found, saved(tmp_path, content, 'final.pt'))
    assert_equal_states(found, network.backbone)
    assert report.complete
    assert all(name.startswith('branches.') for name in report.unused)


def test_own_model_file(nano, tmp_path):
    path = tmp_path / 'model.safetensors'
    write_model(path, make_model(nano, name='nano', input_px=64, training={}))
    found = make_bnext('nano')
    report = load_backbone(found, path)
    assert report.complete
    latent = found.blocks[4].unit3x3.conv.weight
    assert latent.abs().unique().tolist() == pytest.approx([LATENT_FROM_BITS])
    assert f'latent weights of +-{LATENT_FROM_BITS}' in str(report)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(found.eval()(x), nano.eval()(x))


def test_ten_steps_of_the_paper_flip_a_weight_from_a_model_file(nano, tmp_path):
    path = tmp_path / 'model.safetensors'
    write_model(path, make_model(nano, name='nano', input_px=64, training={}))
    found = make_bnext('nano')
    load_backbone(found, path)
    layer = found.blocks[0].unit3x3.conv
    before = layer.positive()
    for step in range(1, 12):
        with torch.no_grad():
            layer.weight.sub_(1e-3 * torch.where(before, 1.0, -1.0))
        if step == 9:
            assert torch.equal(layer.positive(), before)
    assert torch.equal(layer.positive(), ~before)


def unchanged(backbone, path, match):
    """Refuse to load, and change nothing; returns the message."""
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ModelError, match=match) as error:
        load_backbone(backbone, path)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])
    return str(error.value)


def test_what_does_not_fit_is_listed(femto, tmp_path):
    state = femto.state_dict()
    del state['head.norm.bias']
    state['stem.0.bias'] = torch.ones(7)
    state['surprise'] = torch.ones(2)
    path = saved(tmp_path, state)
    message = unchanged(make_convnext('femto'), path, '1 are missing, 1 of another shape and 0 ')
    assert message.splitlines()[1:] == [
        f'{path}: 124 of 126 tensors fit',
        '  missing in the file (1):',
        '    head.norm.bias',
        '  of another shape (1):',
        '    stem.0.bias: (7,) in the file, (48,) expected',
        '  unknown, left out (1):',
        '    surprise',
    ]


def test_what_stands_beside_the_backbone_is_told(femto, tmp_path):
    state = femto.state_dict() | {'surprise': torch.ones(2), 'head.fc1.weight': torch.ones(2)}
    report = load_backbone(make_convnext('femto'), saved(tmp_path, state))
    assert not report.complete
    assert report.unexpected == ('surprise',)
    assert report.unused == ('head.fc1.weight',)
    assert 'unknown, left out (1):\n    surprise' in str(report)


@pytest.mark.parametrize(('file', 'backbone'), [('xnor', 'recu'), ('recu', 'xnor')])
def test_the_binary_resnets_are_two(file, backbone, tmp_path):
    """Nearly all their values have the same names and shapes; what differs is small."""
    path = saved(tmp_path, make_resnet(file).state_dict())
    message = unchanged(make_resnet(backbone), path, 'not those of a BinaryResNet')
    missing, too_many = {
        'recu': ('layer1.0.conv1.alpha', 'last_norm.weight'),
        'xnor': ('last_norm.weight', 'layer1.0.conv1.alpha'),
    }[backbone]
    assert missing in message.split('unknown')[0]
    assert too_many in message.split('unknown')[1]


@pytest.mark.parametrize(
    'lost', ['stem_norm.running_var', 'running_mean', 'blocks.3.unit3x3.se.reduce.bias', 'stem.w']
)
def test_every_parameter_and_statistic_is_needed(nano, lost, tmp_path):
    state = {name: value for name, value in nano.state_dict().items() if lost not in name}
    gone = len(nano.state_dict()) - len(state)
    message = unchanged(make_bnext('nano'), saved(tmp_path, state), f' {gone} are missing, 0 of')
    assert f'missing in the file ({gone}):' in message


def test_batch_counters_are_neither_needed_nor_counted(nano, tmp_path):
    state = {n: v for n, v in nano.state_dict().items() if not n.endswith('batches_tracked')}
    report = load_backbone(make_bnext('nano'), saved(tmp_path, state))
    assert report.complete
    assert len(report.loaded) == len(state)
    path = saved(tmp_path, nano.state_dict())
    assert load_backbone(make_bnext('nano'), path).loaded == report.loaded


def test_variances_are_not_negative(nano, tmp_path):
    state = nano.state_dict() | {'stem_norm.running_var': torch.full((16,), -0.5)}
    path = saved(tmp_path, state)
    unchanged(make_bnext('nano'), path, r'stem_norm\.running_var holds -0\.5; a variance is 0 or')


def test_a_name_may_stand_once(nano, tmp_path):
    state = nano.state_dict()
    path = saved(tmp_path, state | {f'module.{n}': v + 1 for n, v in state.items()})
    unchanged(make_bnext('nano'), path, r'twice, as stem\.weight and as module\.stem\.weight')


def test_half_precision_is_widened(femto, tmp_path):
    state = {name: value.half() for name, value in femto.state_dict().items()}
    found = make_convnext('femto')
    load_backbone(found, saved(tmp_path, state))
    assert found.stem[0].weight.dtype == torch.float32
    assert torch.equal(found.stem[0].weight, femto.stem[0].weight.half().float())


def test_another_architecture_changes_nothing(nano, femto, tmp_path):
    path = saved(tmp_path, nano.state_dict())
    message = unchanged(femto, path, 'not those of a ConvNeXt with 4,832,784 parameters')
    assert '0 of 126 tensors fit' in message
    assert 'stem.weight' in message


def test_another_size(nano, tmp_path):
    with torch.device('meta'):
        tiny = make_bnext('tiny')
    with pytest.raises(
        ModelError, match=r'stem.weight: \(16, 3, 3, 3\) in the file, \(32, 3, 3'
    ) as error:
        load_backbone(tiny, saved(tmp_path, nano.state_dict()))
    assert ': 0 of ' in str(error.value)


def test_a_deeper_network_is_no_match(femto, tmp_path):
    """ConvNeXt-small holds all that tiny has; taking a part of it would be another network."""
    state = femto.state_dict()
    stage = {n: v for n, v in state.items() if n.startswith('trunk.3.blocks.1.')}
    state |= {n.replace('blocks.1.', 'blocks.2.'): v for n, v in stage.items()}
    message = unchanged(
        make_convnext('femto'), saved(tmp_path, state), f'0 of another shape and {len(stage)} too'
    )
    assert 'unknown, left out' in message


def test_values_that_are_not_finite(femto, tmp_path):
    state = {name: value.clone() for name, value in femto.state_dict().items()}
    state['stem.0.bias'][3] = float('nan')
    with pytest.raises(ModelError, match=r'stem\.0\.bias holds values that are not finite'):
        load_backbone(make_convnext('femto'), saved(tmp_path, state))


class Executed:
    def __reduce__(self):
        return print, ('executed',)


def test_files_that_are_no_checkpoints(femto, tmp_path, capsys):
    with pytest.raises(ModelError, match='no such file'):
        load_backbone(femto, tmp_path / 'nothing.pt')
    for name in ('text.pt', 'text.safetensors'):
        (tmp_path / name).write_text('no weights')
        with pytest.raises(ModelError, match=r'text.*not a (readable|checkpoint)'):
            load_backbone(femto, tmp_path / name)
    with pytest.raises(ModelError, match='no dictionary of weights in it'):
        load_backbone(femto, saved(tmp_path, {'state_dict': {'epoch': 3}}))
    with pytest.raises(ModelError, match=r"starts with b'no weigh'; expected a file of torch"):
        load_backbone(femto, tmp_path / 'text.pt')
    (tmp_path / 'empty.pt').touch()
    with pytest.raises(ModelError, match=r'empty\.pt: not a checkpoint: it is empty'):
        load_backbone(femto, tmp_path / 'empty.pt')
    with pytest.raises(ModelError, match='one of its tensors has the key 1; expected names'):
        load_backbone(femto, saved(tmp_path, {1: torch.ones(2), **femto.state_dict()}))
    (tmp_path / 'evil.pt').write_bytes(pickle.dumps({'state_dict': Executed()}, protocol=2))
    with pytest.raises(ModelError, match='without executing code'):
        load_backbone(femto, tmp_path / 'evil.pt')
    assert 'executed' not in capsys.readouterr().out


def test_long_lists_are_cut():
    report = LoadReport('file', (), missing=tuple(f'name{i}' for i in range(20)))
    assert 'missing in the file (20)' in str(report)
    assert '    and 8 more' in str(report)
    assert 'name12' not in str(report)
