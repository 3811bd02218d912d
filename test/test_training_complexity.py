"""What networks cost, against the published counts and against formulas of the channel table."""

import dataclasses
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bicrossnet_ros.engine.architecture import float_shapes, packed_shapes, units
from bicrossnet_ros.errors import ConfigError
from training.checkpoint import save_checkpoint
from training.complexity import complexity_of, main, parse_shape
from training.config import ModelConfig, TrainConfig
from training.config_files import config_to_dict
from training.models.bnext import CHANNELS
from training.models.names import BACKBONES
from training.models.network import make_backbone, make_network

TWO_AT_256 = (2, 3, 256, 256)
ONE_AT_384 = (1, 3, 384, 384)


@pytest.fixture(scope='module')
def count():
    """`complexity_of`, each case once."""
    known = {}

    def counted(name, shape, classes=None, accounting=None):
        key = (name, shape, classes, accounting)
        if key not in known:
            known[key] = complexity_of(
                name, input_shape=shape, classes=classes, accounting=accounting
            )
        return known[key]

    return counted


@pytest.mark.parametrize(
    ('size', 'accounting', 'classes', 'parameters_m', 'disk_mb'),
    [
        ('tiny', 'released', None, 29.84, 9.87),
        ('tiny', 'classifier', None, 30.862, None),
        ('tiny', 'paper', 701, 33.519, 24.59),
        ('tiny', 'paper', 120, 32.625, 21.02),
        ('middle', 'released', None, None, 42.69),
        ('middle', 'classifier', None, 134.502, None),
        ('middle', 'paper', 701, 137.945, 62.61),
    ],
)
def test_parameters_and_disk_to_the_last_digit(
    count, size, accounting, classes, parameters_m, disk_mb
):
    found = count(f'bnext_{size}', TWO_AT_256, classes, accounting)
    assert round(found.binary_parameters / 1e6, 3) == {'tiny': 28.253, 'middle': 126.238}[size]
    if parameters_m is not None:
        digits = len(str(parameters_m).split('.')[1])
        assert round(found.parameters / 1e6, digits) == parameters_m
    if disk_mb is not None:
        assert round(found.disk_bytes / 1e6, 2) == disk_mb


def test_other_sizes_of_the_released_networks(count):
    """132.96 M of the notes is 132.965 M cut off, not rounded."""
    assert round(count('bnext_tiny', TWO_AT_256, None, 'released').disk_half_bytes / 1e6, 2) == 6.7
    middle = count('bnext_middle', TWO_AT_256, None, 'released')
    assert middle.parameters == 132_964_974


def test_a_megabyte_is_a_million_bytes(count):
    """In units of 2**20 bytes, none of the published sizes comes out."""
    found = count('bnext_tiny', TWO_AT_256, 120, 'paper')
    assert round(found.disk_bytes / 2**20, 2) == 20.04


@pytest.mark.parametrize(
    ('size', 'shape', 'binary_g', 'float_g'),
    [
        ('tiny', TWO_AT_256, 12.583, 0.162),
        ('tiny', ONE_AT_384, 14.156, 0.177),
        ('middle', TWO_AT_256, 52.47, 0.351),
        ('middle', ONE_AT_384, 59.03, 0.382),
    ],
)
def test_operations_to_the_last_digit(count, size, shape, binary_g, float_g):
    found = count(f'bnext_{size}', shape, 701, 'paper')
    assert round(found.binops / 1e9, 3 if size == 'tiny' else 2) == binary_g
    assert round(found.flops / 1e9, 3) == float_g
    assert found.ops == found.flops + found.binops / 64


@pytest.mark.parametrize('size', ['tiny', 'middle'])
@pytest.mark.parametrize('shape', [TWO_AT_256, ONE_AT_384])
def test_hooks_agree_with_formulas_of_the_channel_table(count, size, shape):
    found = count(f'bnext_{size}', shape)
    channels = CHANNELS[size]
    images, _, height, width = shape
    area = images * height * width // 4
    stem = area * channels[0] * 27
    binops, macs, flops = 0, stem, stem + 2 * area * channels[0]
    for unit in units(channels):
        c, before = unit.channels, area
        area //= unit.stride**2
        binops += area * c * c * unit.kernel**2
        gate = images * 2 * c * (c // 8)
        macs += gate
        norms, activation, pooled = 2 * 2 * area * c, 2 * area * c, 2 * area * c
        # Within the gate: both biases and a ReLU.
        flops += gate + images * (c // 8 + c) + 2 * images * (c // 8) + norms + activation + pooled
        flops += 2 * before * c if unit.elementwise else 0
        flops += 2 * 2 * before * c if unit.stride == 2 else 0
    flops += 2 * area * channels[-1]
    assert (found.binops, found.macs, found.flops) == (binops, macs, flops)


@pytest.mark.parametrize('size', ['tiny', 'middle'])
def test_heads_add_what_their_formula_says(count, size):
    alone, whole = (count(f'bnext_{size}', TWO_AT_256, *rest) for rest in ((), (701, 'paper')))
    c, side = CHANNELS[size][-1], 8
    attention, reduction = 2 * (49 * 2) * side * c, 3 * 512 * c
    norms = 2 * (2 * side * c + 3 * 512)
    assert whole.macs - alone.macs == 2 * (attention + reduction)
    assert whole.flops - alone.flops == 2 * (attention + reduction + 3 * 512 + norms)
    assert whole.binops == alone.binops


SMALL = [
    name for name in BACKBONES if name.removeprefix('bnext_') not in ('small', 'middle', 'large')
]


@pytest.mark.parametrize('name', SMALL)
def test_products_agree_with_torchs_own_counter(name):
    """No convolution or linear layer is missed: torch counts operators, two a product."""
    shape = (1, 3, 64, 64)
    found = complexity_of(name, input_shape=shape)
    network = make_backbone(name).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(shape))
    assert counter.get_total_flops() == 2 * (found.binops + found.macs)
    assert sum(p.numel() for p in network.parameters()) == found.parameters


def test_layers_sum_to_the_totals(count):
    found = count('bnext_tiny', TWO_AT_256)
    for key in ('parameters', 'binary_parameters', 'norm_statistics', 'binops', 'macs', 'flops'):
        assert sum(getattr(layer, key) for layer in found.layers) == getattr(found, key)
    convolution = next(layer for layer in found.layers if layer.binops)
    assert convolution.name == 'backbone.blocks.0.unit3x3.conv'
    assert convolution.output_shape == (2, 32, 128, 128)
    assert convolution.binops == 2 * 128 * 128 * 32 * 32 * 9


def test_tensors_of_the_model_file(count):
    """What the exporter writes, by the file format's own list of tensors."""
    channels, found = CHANNELS['tiny'], count('bnext_tiny', TWO_AT_256)
    packed = sum(torch.Size(shape).numel() for shape in packed_shapes(channels).values())
    floats = sum(torch.Size(shape).numel() for shape in float_shapes(channels).values())
    assert found.tensor_bytes == packed + 4 * floats


@pytest.mark.parametrize(
    ('name', 'parameters_m', 'ops_g', 'tolerance'),
    [('resnet34_xnor', 23.68, 0.50, 0.08), ('resnet34_recu', 23.72, 0.53, 0.005)],
)
def test_ablation_backbones_are_near_the_papers(count, name, parameters_m, ops_g, tolerance):
    found = count(name, TWO_AT_256, 701)
    assert found.parameters / 1e6 == pytest.approx(parameters_m, rel=2e-3)
    assert found.ops / 1e9 == pytest.approx(ops_g, rel=tolerance)


@pytest.mark.parametrize(('classes', 'published_m'), [(701, 30.85), (120, 29.96)])
def test_convnext_has_the_published_parameters_of_mccg(count, classes, published_m):
    found = count('convnext_tiny', ONE_AT_384, classes)
    assert round(found.parameters / 1e6, 2) == published_m
    assert 2 * found.ops == pytest.approx(26.37e9, rel=2e-3)


def test_ninety_fold_is_forty_five_fold_like_for_like(count):
    """Table 2: FSRA's 35.44 G counts twice what BiCrossNet's 0.39 G counts once."""
    assert round(35.44 / 0.39, 2) == 90.87
    assert round(35.44 / 2 / 0.39, 2) == 45.44
    ops = count('bnext_tiny', ONE_AT_384, 120).ops
    assert round(35.44e9 / 2 / ops, 1) == 44.5


def test_no_numbers_are_computed_and_none_kept(count):
    """Counting `large` at 384 x 384 touches no memory of its size."""
    before = torch.get_rng_state()
    found = count('bnext_large', ONE_AT_384)
    assert found.parameters == 324_455_912
    assert torch.equal(torch.get_rng_state(), before)


def test_model_file(tmp_path, capsys):
    from training.export import main as export

    path = tmp_path / 'nano.safetensors'
    assert export(['--untrained', 'nano', '--input-px', '64', '--out', str(path)]) == 0
    capsys.readouterr()
    assert main([str(path), '--json', '--accounting', 'deployable']) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found['input_shape'] == [1, 3, 64, 64]
    assert found['file_bytes'] == path.stat().st_size
    assert 0 < found['file_bytes'] - found['tensor_bytes'] < 60_000
    assert found['ops'] == complexity_of('bnext_nano', input_shape=(1, 3, 64, 64)).ops


def test_checkpoint(tmp_path):
    """The backbone of a checkpoint is counted, whatever its own heads are."""
    config = TrainConfig(model=ModelConfig(name='bnext_nano'))
    network = make_network(config.model, classes=3)
    path = tmp_path / 'final.pt'
    state = {'config': config_to_dict(config), 'classes': ['a', 'b', 'c']}
    save_checkpoint(path, {**state, 'network': network.state_dict()})
    found = complexity_of(str(path), input_shape=(1, 3, 64, 64))
    named = complexity_of('bnext_nano', input_shape=(1, 3, 64, 64))
    assert dataclasses.replace(found, name=named.name) == named
    assert found.file_bytes is None


def test_command_prints_the_table(capsys):
    assert main(['bnext_nano', '--input', '2x3x64x64', '--layers']) == 0
    out = capsys.readouterr().out
    assert '| bnext_nano | paper, 701 | 9.868 M (7.063 M) | 12.10 MB |' in out
    assert '| backbone.blocks.0.unit3x3.conv | BinaryConv2d | 2x16x32x32 | 2,304 |' in out


def test_several_networks_are_compared_as_they_fly(capsys):
    assert main(['bnext_nano', 'convnext_femto', '--input', '1x3x64x64', '--json']) == 0
    nano, femto = json.loads(capsys.readouterr().out)
    assert nano['accounting'] == femto['accounting'] == 'deployable'
    assert femto['binary_parameters'] == femto['binops'] == 0
    assert 'layers' not in nano


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['bnext_huge'], 'bnext_huge: no backbone and no file this can count'),
        (['bnext_nano', '--input', '2x3x64'], 'expected NxCxHxW'),
        (['bnext_nano', '--input', '1x3x64x70'], 'input is 1x3x64x70; expected Nx3xHxW'),
        (['bnext_nano', '--input', '1x1x64x64'], 'input is 1x1x64x64'),
        (['bnext_nano', '--input', '0x3x64x64'], 'input is 0x3x64x64'),
        (['bnext_nano', '--classes', '0'], "'paper' with 0 classes"),
        (['absent.safetensors'], 'no such model file'),
        (['absent.pt'], 'no such checkpoint'),
    ],
)
def test_known_errors_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: ')
    assert message in err
    assert err.count('\n') == 1


def test_shapes_are_read_strictly():
    assert parse_shape('2x3x256X128') == (2, 3, 256, 128)
    with pytest.raises(ConfigError, match='-1x3x32x32'):
        parse_shape('-1x3x32x32')


def test_unknown_accounting():
    with pytest.raises(ConfigError, match="accounting is 'whole'"):
        complexity_of('bnext_nano', input_shape=(1, 3, 32, 32), accounting='whole')
