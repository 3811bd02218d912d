"""Larq Compute Engine computes what PyTorch computes: `make test-lce`; skipped elsewhere."""

import dataclasses
import functools
import threading

import numpy as np
import pytest
import torch
from networks import network_and_model
from test_training_export import write_checkpoint

from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.engine.architecture import units
from bicrossnet_ros.engine.lce_runtime import open_graph, pack, unpack
from bicrossnet_ros.engine.model_file import Model, ModelMetadata, file_sha256, read_model
from bicrossnet_ros.errors import ModelError
from bicrossnet_ros.preprocess import Preprocessing
from training.agreement import compare, structured_images
from training.embedding import embed, open_embedder
from training.export import main, network_from_model
from training.models.bnext import CHANNELS

pytest.importorskip(
    'larq_compute_engine',
    reason='Larq is not installed here: make test-lce has its own environment',
)
from training import lce

UNITS = [('nano', k) for k in range(len(units(CHANNELS['nano'])))]
# Of the larger sizes the shapes that nano lacks; a conversion takes a second.
UNITS += [('tiny', k) for k in (3, 24, 28, 29)] + [('small', 3)]


def at_size(model: Model, size_px: int) -> Model:
    preprocessing = Preprocessing(size_px, size_px)
    return Model(dataclasses.replace(model.metadata, preprocessing=preprocessing), model.tensors)


@functools.cache
def nano_at_96() -> tuple[Model, bytes]:
    model = at_size(network_and_model('nano')[1], 96)
    return model, lce.build_lce(model)


@pytest.fixture(scope='module')
def nano_path(tmp_path_factory):
    path = tmp_path_factory.mktemp('lce') / 'nano.tflite'
    path.write_bytes(nano_at_96()[1])
    return path


@pytest.mark.parametrize(('size', 'index'), UNITS)
def test_unit_equals_torch(size, index):
    network, model = network_and_model(size)
    unit = units(model.metadata.channels)[index]
    rng = np.random.default_rng(index)
    x = rng.standard_normal((2, unit.channels, 6, 8), np.float32)
    x[:, :, 0, 0] = -model.tensors[f'{unit.prefix}.move.bias']  # sign(0) = +1 in both
    with torch.no_grad():
        expected = network.get_submodule(unit.prefix)(torch.from_numpy(x)).numpy()
    actual = lce.run_unit_lce(model, unit, x)
    assert actual.shape == (2, unit.channels, 6 // unit.stride, 8 // unit.stride)
    assert expected.std() > 0.1
    assert np.abs(actual - expected).max() < 1e-4


@pytest.mark.parametrize(('height', 'width'), [(3, 3), (3, 5), (4, 3), (7, 9)])
def test_padding_of_small_and_odd_maps(height, width):
    network, model = network_and_model('nano')
    unit = units(model.metadata.channels)[0]
    x = np.random.default_rng(0).standard_normal((1, unit.channels, height, width), np.float32)
    with torch.no_grad():
        expected = network.get_submodule(unit.prefix)(torch.from_numpy(x)).numpy()
    assert np.abs(lce.run_unit_lce(model, unit, x) - expected).max() < 1e-4


def test_maps_that_larq_pads_wrongly_are_refused():
    network, model = network_and_model('nano')
    unit = units(model.metadata.channels)[0]
    x = np.random.default_rng(0).standard_normal((1, unit.channels, 2, 4), np.float32)
    with torch.no_grad():
        expected = network.get_submodule(unit.prefix)(torch.from_numpy(x)).numpy()
    # If this fails, Larq was mended, and SMALLEST_MAP_PX can go.
    assert np.abs(lce.run_unit_lce(model, unit, x) - expected).max() > 0.1
    with pytest.raises(ModelError, match=r'its input is 64 x 64 px; .* use at least 96 px'):
        lce.build_lce(at_size(model, 64))


@pytest.mark.parametrize(('size', 'size_px'), [('nano', 96), ('tiny', 128)])
def test_whole_network_agrees_with_torch(size, size_px, tmp_path):
    network, model = network_and_model(size)
    model = at_size(model, size_px)
    data = nano_at_96()[1] if size == 'nano' else lce.build_lce(model)
    path = tmp_path / 'model.tflite'
    path.write_bytes(data)
    _, graph = unpack(data, source='test')
    assert lce.count_binary(graph) == len(units(model.metadata.channels))
    images = structured_images(6, size_px=size_px)
    found = compare(
        'lce',
        open_encoder(path).encode(images),
        embed(network, images, Preprocessing(*[size_px] * 2)),
    )
    assert found.median > 0.999, found
    assert found.confused == 0, found


def test_shipped_network_agrees_with_the_engine(tmp_path):
    model = read_model(default_model_path())
    path = tmp_path / 'shipped.tflite'
    path.write_bytes(lce.build_lce(model))
    images = structured_images(8, size_px=96)
    by_torch = embed(network_from_model(model), images, model.metadata.preprocessing)
    for encoder in (open_encoder(path), open_encoder(default_model_path())):
        found = compare(encoder.runtime, encoder.encode(images), by_torch)
        assert found.median > 0.999, found
        assert found.confused == 0, found


def test_encoder_of_a_tflite(nano_path):
    model, _ = nano_at_96()
    encoder = open_encoder(nano_path)
    assert encoder.runtime.startswith('Larq Compute Engine 0.')
    assert encoder.model_id == file_sha256(nano_path)
    assert (encoder.model_name, encoder.embedding_dim) == ('nano', 512)
    assert encoder.preprocessing == model.metadata.preprocessing
    images = structured_images(5, size_px=70)
    embeddings = encoder.encode(images)
    assert embeddings.shape == (5, 512)
    np.testing.assert_array_equal(encoder.encode(images[3:4]), embeddings[3:4])
    assert encoder.encode(images[:0]).shape == (0, 512)
    assert open_embedder(nano_path).model_id == encoder.model_id


def test_several_threads_may_encode(nano_path):
    encoder, images = open_encoder(nano_path, threads=2), structured_images(3, size_px=96)
    expected = open_encoder(nano_path).encode(images)
    results = {}
    threads = [
        threading.Thread(target=lambda k=k: results.update({k: encoder.encode(images)}))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        np.testing.assert_array_equal(results[k], expected)


def test_metadata_that_contradict_the_graph(tmp_path):
    model, data = nano_at_96()
    _, graph = unpack(data, source='test')
    path = tmp_path / 'wrong.tflite'
    wrong = ModelMetadata('wrong', 'other', (), 512, Preprocessing(64, 96))
    path.write_bytes(pack(graph, wrong))
    with pytest.raises(ModelError, match=r'inputs, outputs and types are .*\(1, 96, 96, 3\)'):
        open_encoder(path)
    path.write_bytes(pack(b'no graph at all', model.metadata))
    with pytest.raises(ModelError, match='Larq Compute Engine cannot load it'):
        open_encoder(path)


def test_a_convolution_left_in_floats_is_noticed(monkeypatch):
    _, model = network_and_model('nano')
    unit = units(model.metadata.channels)[0]
    bits = lce.unpack_weights

    def with_a_zero(packed):
        weights = bits(packed)
        weights[0, 0, 0, 0] = 0  # one is enough for the converter to give up
        return weights

    monkeypatch.setattr(lce, 'unpack_weights', with_a_zero)
    with pytest.raises(ModelError, match='made 0 of 1 convolutions binary'):
        lce.build_unit_lce(model, unit, height=6, width=6)


def test_equal_models_give_graphs_that_compute_alike():
    model, data = nano_at_96()
    image = np.random.default_rng(0).standard_normal((1, 96, 96, 3), np.float32)
    outputs = [
        open_graph(unpack(each, source='test')[1], threads=1, source='test').predict([image])[0]
        for each in (data, lce.build_lce(model))
    ]
    np.testing.assert_array_equal(*outputs)


def test_all_formats_in_one_command(tmp_path, capsys):
    write_checkpoint(tmp_path / 'final.pt', 'bnext_nano', input_px=96)
    out = tmp_path / 'small.safetensors'
    arguments = [str(tmp_path / 'final.pt'), '--out', str(out)]
    assert main([*arguments, '--formats', 'safetensors', 'onnx', 'lce']) == 0
    said = capsys.readouterr().out
    assert 'Larq Compute Engine: every unit within' in said
    assert '.tflite in Larq Compute Engine 0.16.0: median cosine with PyTorch' in said
    images = structured_images(4, size_px=96)
    first, *others = (
        open_encoder(out.with_suffix(suffix)) for suffix in ('.safetensors', '.onnx', '.tflite')
    )
    for other in others:
        assert other.model_name == first.model_name
        assert other.preprocessing == first.preprocessing
        assert np.median((other.encode(images) * first.encode(images)).sum(axis=1)) > 0.999
