"""A checkpoint becomes the model file that flies, and computes there what it computed here."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from test_onnx_graph import randomise

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine.model_file import read_model
from bicrossnet_ros.engine.onnx_graph import build_onnx
from training.checkpoint import network_from_checkpoint, save_checkpoint
from training.config_files import config_from_dict, config_to_dict
from training.data.loader import normalise
from training.export import from_checkpoint, main, network_from_model
from training.models.network import make_network

CLASSES = ['0001', '0002', '0004']


def write_checkpoint(path, name: str, **changes) -> None:
    model = {'name': name, 'input_px': 64, 'bottleneck': 8}
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
    native = open_encoder(path).encode(images)
    for rows in (onnx, native):
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
    assert 'no such checkpoint' in capsys.readouterr().err
    write_checkpoint(tmp_path / 'final.pt', 'bnext_nano')
    assert main([str(tmp_path / 'final.pt'), '--out', str(tmp_path / 'x.onnx')]) == 2
    assert 'expected a name that ends in .safetensors' in capsys.readouterr().err
    model = from_checkpoint(tmp_path / 'final.pt', name='given', record={})
    assert model.metadata.name == 'given'


def test_a_folder_that_is_not_there(tmp_path, capsys):
    out = tmp_path / 'nowhere' / 'x.safetensors'
    assert main(['--untrained', 'nano', '--out', str(out)]) == 2
    assert capsys.readouterr().err == (
        f'error: {out}: cannot be written (No such file or directory)\n'
    )
