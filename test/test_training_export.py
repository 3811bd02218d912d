"""A checkpoint becomes the model file that flies, and computes there what it computed here."""

import json

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from networks import randomise

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine import native
from bicrossnet_ros.engine.model_file import Model, read_model
from bicrossnet_ros.engine.onnx_graph import build_onnx
from bicrossnet_ros.errors import ModelError
from bicrossnet_ros.preprocess import Preprocessing
from training.agreement import images_below, structured_images
from training.checkpoint import network_from_checkpoint, save_checkpoint
from training.config_files import config_from_dict, config_to_dict
from training.data.loader import normalise
from training.export import from_checkpoint, main, network_from_model, write_formats
from training.float_onnx import build_float_onnx, write_float_onnx
from training.models.convnext import ConvNeXtBlock
from training.models.network import make_backbone, make_network

CLASSES = ['0001', '0002', '0004']


def write_checkpoint(path, name: str, *, input_px: int = 64, **changes) -> None:
    model = {'name': name, 'input_px': input_px, 'bottleneck': 8}
    config = config_from_dict({'model': model, 'run': {'seed': 5}}, source='test')
    torch.manual_seed(1)
    network = make_network(config.model, classes=len(CLASSES))
    if name.startswith('bnext'):
        randomise(network.backbone)
    state = {
        'config': config_to_dict(config),
        'classes': CLASSES,
        'network': network.state_dict(),
        'step': 30,
        'epoch': 3,
        'figures': {'recall_at_1': 0.5},
        'git_revision': 'a' * 40,
        'variant': 'average of the weights',
    }
    save_checkpoint(path, {**state, **changes})


def randomise_convnext(network) -> None:
    """Let the blocks count: their scales begin at 1e-6, and hide everything behind them."""
    for module in network.modules():
        if isinstance(module, ConvNeXtBlock):
            torch.nn.init.normal_(module.gamma)
            torch.nn.init.normal_(module.norm.bias)


def randomised_state(name: str) -> dict:
    """State of a float network with branches whose statistics and scales are not the first."""
    config = config_from_dict({'model': {'name': name, 'bottleneck': 8}}, source='test')
    torch.manual_seed(2)
    network = make_network(config.model, classes=len(CLASSES))
    randomise_convnext(network)
    for module in network.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.05, 0.3)  # less: chaos, more: all alike
    return network.state_dict()


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    'size',
    [
        'tiny',
        'small',
        pytest.param('middle', marks=pytest.mark.slow),
        pytest.param('large', marks=pytest.mark.slow),
    ],
)
def test_torch_model_file_and_onnx_agree(size, tmp_path):
    """Rounding flips single signs that cascade, so whole networks are compared by cosine."""
    write_checkpoint(tmp_path / 'final.pt', f'bnext_{size}')
    path = tmp_path / f'{size}.safetensors'
    assert main([str(tmp_path / 'final.pt'), '--out', str(path)]) == 0
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 64, 64, 3), np.uint8)
    network = network_from_checkpoint(tmp_path / 'final.pt')
    model = read_model(path)
    inputs = normalise(torch.from_numpy(images), model.metadata.preprocessing)
    with torch.no_grad():
        expected = network(inputs).embedding
        assert torch.equal(network_from_model(model)(inputs), expected)
    del network
    expected = unit_rows(expected.numpy())
    apart = expected @ expected.T
    session = onnxruntime.InferenceSession(
        build_onnx(model).SerializeToString(), providers=['CPUExecutionProvider']
    )
    onnx = unit_rows(session.run(None, {'input': inputs.numpy()})[0])
    encoded = open_encoder(path).encode(images)
    for rows in (onnx, encoded):
        cosines = rows @ expected.T
        assert np.diagonal(cosines).min() > 0.98
        # The agreement says something only because different images differ by more.
        assert np.diagonal(cosines).min() > apart[~np.eye(3, dtype=bool)].max()


def test_the_record_tells_where_the_weights_come_from(tmp_path, capsys):
    write_checkpoint(tmp_path / 'final.pt', 'bnext_nano')
    path = tmp_path / 'small.safetensors'
    options = ['--data', 'noise', '--licence', 'none', '--note', 'a test']
    assert main([str(tmp_path / 'final.pt'), '--out', str(path), *options]) == 0
    assert 'small.safetensors: 2.' in capsys.readouterr().out
    record = json.loads(path.with_suffix('.json').read_text())
    assert record == read_model(path).metadata.training
    assert (record['data'], record['licence'], record['note']) == ('noise', 'none', 'a test')
    assert (record['steps'], record['epochs'], record['places']) == (30, 3, 3)
    assert record['images_seen'] == 30 * 8 * 2
    assert (record['seed'], record['git_revision']) == (5, 'a' * 40)
    assert record['validation'] == {'recall_at_1': 0.5}
    assert record['weights'] == 'average of the weights'
    assert record['config']['model']['name'] == 'bnext_nano'
    # No teacher: the weight of distillation counts for nothing and is not told.
    assert record['recipe'] == (
        'training.train on university1652: cross_entropy x 1 + triplet x 1; '
        'unfreezing bi_gradual, optimiser bi_partitioned'
    )


def test_untrained_models(tmp_path, capsys):
    assert main(['--untrained', 'nano', '--out', str(tmp_path / 'u.safetensors')]) == 0
    assert open_encoder(tmp_path / 'u.safetensors').model_name == 'u'
    like, out = tmp_path / 'u.safetensors', tmp_path / 'v.safetensors'
    assert main(['--untrained', str(like), '--seed', '1', '--out', str(out)]) == 0
    first, second = read_model(like), read_model(out)
    assert first.metadata.channels == second.metadata.channels
    assert first.metadata.preprocessing == second.metadata.preprocessing
    assert any(not np.array_equal(first.tensors[k], second.tensors[k]) for k in first.tensors)
    assert main(['--untrained', 'huge', '--out', str(tmp_path / 'w.safetensors')]) == 2
    assert 'expected one of nano, tiny' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('resnet34_xnor', {}, 'its backbone is resnet34_xnor, but a model file holds a BNext'),
        ('bnext_nano', {'classes': CLASSES[:2]}, 'its weights do not fit the network'),
        ('bnext_nano', {'network': {}}, 'its weights do not fit the network'),
    ],
)
def test_checkpoints_that_do_not_fly(name, changes, message, tmp_path, capsys):
    path = tmp_path / 'final.pt'
    write_checkpoint(path, name, **changes)
    out = tmp_path / 'model.safetensors'
    assert main([str(path), '--out', str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1
    assert not out.exists()


def test_wrong_arguments(tmp_path, capsys):
    assert main([str(tmp_path / 'none.pt'), '--out', str(tmp_path / 'x.safetensors')]) == 2
    said = capsys.readouterr().err
    assert 'no such checkpoint' in said
    assert '--resume' not in said  # that belongs to the trainer
    write_checkpoint(tmp_path / 'final.pt', 'bnext_nano')
    arguments = [str(tmp_path / 'final.pt'), '--out']
    assert main([*arguments, str(tmp_path / 'x.pt')]) == 2
    said = capsys.readouterr().err
    assert 'expected a name that ends in .safetensors or .onnx or .tflite\n' in said
    assert main([*arguments, str(tmp_path / 'x.onnx'), '--formats', 'safetensors']) == 2
    said = capsys.readouterr().err
    assert 'expected a name that ends in .safetensors, as --formats says' in said
    model = from_checkpoint(tmp_path / 'final.pt', name='given', record={})
    assert model.metadata.name == 'given'


def test_formats_beside_each_other(tmp_path, capsys):
    write_checkpoint(tmp_path / 'final.pt', 'bnext_nano')
    out = tmp_path / 'small.onnx'
    arguments = [str(tmp_path / 'final.pt'), '--out', str(out)]
    assert main([*arguments, '--formats', 'safetensors', 'onnx', 'onnx']) == 0
    said = capsys.readouterr().out
    assert said.count('every unit within') == (2 if native.backends() else 1)
    assert '.safetensors in ' in said
    assert '.onnx in ONNX Runtime' in said
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {'final.pt', 'small.onnx', 'small.safetensors', 'small.json'}
    encoders = [open_encoder(out), open_encoder(out.with_suffix('.safetensors'))]
    assert [encoder.model_name for encoder in encoders] == ['small', 'small']
    images = structured_images(4, size_px=80)
    first, second = (encoder.encode(images) for encoder in encoders)
    assert np.median((first * second).sum(axis=1)) > 0.999


def test_the_suffix_says_the_format(tmp_path):
    write_checkpoint(tmp_path / 'final.pt', 'bnext_nano')
    assert main([str(tmp_path / 'final.pt'), '--out', str(tmp_path / 'a.onnx')]) == 0
    assert open_encoder(tmp_path / 'a.onnx').model_name == 'a'
    assert not (tmp_path / 'a.safetensors').exists()


@pytest.mark.parametrize('name', ['efficientnet_lite0', 'efficientnet_lite2', 'convnext_femto'])
def test_float_networks_fly_as_onnx(name, tmp_path, capsys):
    write_checkpoint(tmp_path / 'final.pt', name, network=randomised_state(name))
    out = tmp_path / 'float.onnx'
    arguments = [str(tmp_path / 'final.pt'), '--data', 'noise', '--out']
    assert main([*arguments, str(out)]) == 0
    assert '.onnx in ONNX Runtime' in capsys.readouterr().out
    encoder = open_encoder(out)
    assert (encoder.model_name, encoder.preprocessing.input_height_px) == ('float', 64)
    assert json.loads(out.with_suffix('.json').read_text())['data'] == 'noise'
    images = structured_images(3, size_px=64)
    backbone = network_from_checkpoint(tmp_path / 'final.pt').backbone
    with torch.no_grad():
        inputs = normalise(torch.from_numpy(images), Preprocessing(64, 64))
        expected = unit_rows(backbone(inputs).numpy())
    np.testing.assert_allclose(encoder.encode(images), expected, atol=2e-4)
    assert (expected @ expected.T).min() < 0.99
    assert main([*arguments, str(tmp_path / 'float.safetensors')]) == 2
    assert 'which flies as ONNX alone; give --out' in capsys.readouterr().err


def test_a_float_graph_that_disagrees_is_not_written(tmp_path):
    torch.manual_seed(3)
    networks = [make_backbone('convnext_femto').eval() for _ in range(2)]
    for network in networks:
        randomise_convnext(network)
    proto = build_float_onnx(
        networks[0], name='a', architecture='convnext_femto', input_px=32, training={}
    )
    images = structured_images(3, size_px=32)
    path = tmp_path / 'a.onnx'
    with pytest.raises(ModelError, match='does not agree with the network it was made from'):
        write_float_onnx(path, proto, networks[1], images)
    assert not path.exists()
    assert len(write_float_onnx(path, proto, networks[0], images)) == 1
    assert path.exists()


def test_where_the_engine_is_not_wanted(tmp_path, capsys, monkeypatch):
    """The check takes what will run the file here."""
    monkeypatch.setenv('BICROSSNET_BACKEND', 'onnxruntime')
    out = str(tmp_path / 'a.safetensors')
    arguments = ['--untrained', 'nano', '--input-px', '32', '--out', out]
    assert main(arguments) == 0
    assert 'ONNX Runtime: every unit within' in capsys.readouterr().out


def test_images_of_a_folder_are_compared(tmp_path, capsys):
    write_checkpoint(tmp_path / 'final.pt', 'bnext_nano')
    arguments = [str(tmp_path / 'final.pt'), '--out', str(tmp_path / 'a.safetensors')]
    folder = tmp_path / 'images'
    folder.mkdir()
    arguments += ['--check-images', str(folder)]
    assert main(arguments) == 2
    assert 'found no image below it' in capsys.readouterr().err
    for k, image in enumerate(structured_images(3, size_px=90)):
        cv2.imwrite(str(folder / f'{k}.png'), image)
        if k == 0:
            assert main(arguments) == 2
            assert 'one image; expected two or more' in capsys.readouterr().err
    assert not (tmp_path / 'a.safetensors').exists()
    assert main(arguments) == 0
    images = images_below(folder, size_px=64)
    assert images.shape == (3, 64, 64, 3)


def damage_bits(model: Model) -> None:
    model.tensors['blocks.3.unit3x3.conv.bits'][5, 1, 2, 3] ^= 4


def damage_gate(model: Model) -> None:
    model.tensors['blocks.9.units1x1.0.se.reduce.bias'][:] += 0.5


def damage_stem(model: Model) -> None:
    model.tensors['stem.weight'][:] = model.tensors['stem.weight'][:, ::-1]


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (damage_bits, 'unit blocks.3.unit3x3 in .* differs from PyTorch by'),
        (damage_gate, 'unit blocks.9.units1x1.0 in .* differs from PyTorch by'),
        (damage_stem, 'does not agree with the network it was made from: .* median cosine'),
    ],
)
@pytest.mark.parametrize('name', ['x.safetensors', 'x.onnx'])
def test_formats_that_disagree_are_not_written(damage, message, name, tmp_path):
    """Even one wrong bit of 2.7 million is seen."""
    write_checkpoint(tmp_path / 'final.pt', 'bnext_nano')
    network = network_from_checkpoint(tmp_path / 'final.pt').backbone
    model = from_checkpoint(tmp_path / 'final.pt', name='x', record={})
    model = Model(model.metadata, {key: value.copy() for key, value in model.tensors.items()})
    damage(model)
    path = tmp_path / name
    path.write_bytes(b'of before')
    with pytest.raises(ModelError, match=message):
        write_formats(model, network, [path], structured_images(4, size_px=64))
    assert path.read_bytes() == b'of before'
    assert len(list(tmp_path.iterdir())) == 2


def test_structured_images_differ():
    images = structured_images(4, size_px=70)
    assert images.shape == (4, 70, 70, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, structured_images(4, size_px=70))
    assert len({image.tobytes() for image in images}) == 4
    spectrum = np.abs(np.fft.fft2(images[..., 0].astype(float) - images[..., 0].mean()))
    assert spectrum[:, 1:4].mean() > 4 * spectrum[:, 20:35].mean()


def test_a_folder_that_is_not_there(tmp_path, capsys):
    out = tmp_path / 'nowhere' / 'x.safetensors'
    assert main(['--untrained', 'nano', '--out', str(out)]) == 2
    assert capsys.readouterr().err == (
        f'error: {out}: cannot be written (No such file or directory)\n'
    )
