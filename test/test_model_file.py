"""The model file: packing, round trip, and every kind of damage."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bicrossnet_ros.engine.architecture import float_shapes, make_blocks, packed_shapes
from bicrossnet_ros.engine.bits import pack_weights, unpack_weights
from bicrossnet_ros.engine.model_file import (
    METADATA_KEY,
    Model,
    ModelMetadata,
    file_sha256,
    read_model,
    write_model,
)
from bicrossnet_ros.errors import ModelError
from bicrossnet_ros.preprocess import Preprocessing

CHANNELS = (8, 16, 16)


def small_model(seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.integers(0, 256, shape, np.uint8)
        for name, shape in packed_shapes(CHANNELS).items()
    } | {name: rng.random(shape, np.float32) for name, shape in float_shapes(CHANNELS).items()}
    metadata = ModelMetadata(
        name='small',
        architecture='bnext',
        channels=CHANNELS,
        embedding_dim=16,
        preprocessing=Preprocessing(32, 64),
        training={'seed': 3, 'validation': {'recall_at_1': 0.5}},
    )
    return Model(metadata, tensors)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'small.safetensors'
    write_model(path, small_model())
    return path


def test_bit_order_is_the_documented_one():
    weights = -np.ones((1, 16, 3, 3), np.float32)
    weights[0, 0, 0, 0] = 1  # channel 0 -> byte 0, bit 0
    weights[0, 11, 1, 2] = 1  # channel 11 -> byte 1, bit 3
    packed = pack_weights(weights)
    assert packed.shape == (1, 3, 3, 2)
    assert packed.dtype == np.uint8
    assert packed[0, 0, 0].tolist() == [1, 0]
    assert packed[0, 1, 2].tolist() == [0, 8]
    assert packed.sum() == 9


def test_zero_and_negative_zero_are_plus_one():
    weights = np.array([0.0, -0.0, 1e-30, -1e-30, 2, -2, 0, 0]).reshape(1, 8, 1, 1)
    assert unpack_weights(pack_weights(weights)).ravel().tolist() == [1, 1, 1, -1, 1, -1, 1, 1]


def test_channels_that_do_not_fill_bytes_are_refused():
    with pytest.raises(ValueError, match='multiple of 8'):
        pack_weights(np.zeros((4, 12, 3, 3)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_packing_round_trip(outputs, input_bytes, kernel, seed):
    shape = (outputs, 8 * input_bytes, kernel, kernel)
    weights = np.random.default_rng(seed).standard_normal(shape)
    np.testing.assert_array_equal(
        unpack_weights(pack_weights(weights)), np.where(weights >= 0, 1, -1)
    )


def test_blocks_of_tiny():
    blocks = make_blocks((32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024))
    assert len(blocks) == 13
    assert sum(len(block.units1x1) for block in blocks) == 18
    assert [i for i, b in enumerate(blocks, 1) if b.unit3x3.stride == 2] == [2, 4, 6, 12]
    assert [i for i, b in enumerate(blocks, 1) if b.unit3x3.elementwise] == [2, 4, 6, 8, 10, 12]


def test_file_round_trip(path):
    model = read_model(path)
    expected = small_model()
    assert model.metadata == expected.metadata
    assert model.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(model.tensors[name], tensor)
        assert model.tensors[name].dtype == tensor.dtype


def test_writing_is_reproducible_and_leaves_nothing_else(path):
    again = path.with_name('again.safetensors')
    write_model(again, small_model())
    assert file_sha256(again) == file_sha256(path)
    write_model(again, small_model(seed=1))
    assert file_sha256(again) != file_sha256(path)
    assert sorted(p.name for p in path.parent.iterdir()) == [again.name, path.name]


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match='no such model file'):
        read_model(tmp_path / 'none.safetensors')


@pytest.mark.parametrize('share', [0.0, 0.0005, 0.3, 0.999])
def test_truncated_file(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match='not a readable safetensors file'):
        read_model(path)


def test_any_flipped_byte_is_found(path):
    data = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        path.write_bytes(bytes(damaged))
        with pytest.raises(ModelError, match=r'small\.safetensors'):
            read_model(path)


def test_random_bytes_and_another_kind_of_file(tmp_path):
    path = tmp_path / 'x.safetensors'
    for content in (np.random.default_rng(0).bytes(5000), b'PK\x03\x04 a zip', b'{}'):
        path.write_bytes(content)
        with pytest.raises(ModelError, match='not a readable safetensors file'):
            read_model(path)


def test_a_safetensors_file_of_someone_else(tmp_path):
    path = tmp_path / 'other.safetensors'
    save_file({'weight': np.zeros(3, np.float32)}, path)
    with pytest.raises(ModelError, match='not a model of this project'):
        read_model(path)


def test_metadata_without_checksum(path):
    model = read_model(path)
    for entry in ('{', '[]', '{"model": {}}', model.metadata.to_json()):
        save_file(dict(model.tensors), path, metadata={METADATA_KEY: entry})
        with pytest.raises(ModelError, match='its metadata is incomplete'):
            read_model(path)


def rewrite_metadata(path, **changes):
    """Change the metadata in place, checksum included: a file of another version, not damage."""
    from bicrossnet_ros.engine import model_file

    model = read_model(path)
    values = json.loads(model.metadata.to_json()) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    entry = model_file._seal(json.dumps(kept, sort_keys=True), model.tensors)
    save_file(dict(model.tensors), path, metadata={METADATA_KEY: entry})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'format_version': 99}, 'model format 99, this version reads 1'),
        ({'name': ...}, "expected .*'name'"),
        ({'colour': 'red'}, "metadata has .*'colour'"),
        ({'channels': 5}, 'channels are no list'),
        ({'channels': [8, 24]}, '8 -> 24'),
        ({'channels': [12, 12]}, 'multiple of 8'),
        ({'channels': ['8', 16]}, 'expected at least two whole numbers'),
        ({'channels': [8, 16]}, 'has unknown tensors'),
        ({'embedding_dim': 32}, 'embedding_dim is 32 but the last block has 16 channels'),
        ({'embedding_dim': 'many'}, "embedding_dim is 'many'"),
        ({'architecture': 'resnet'}, "architecture 'resnet'"),
        ({'preprocessing': {}}, 'expected the keys'),
        ({'preprocessing': Preprocessing(33, 32).to_dict()}, 'expected multiples of 32'),
        ({'training': 'long'}, 'training is no mapping'),
    ],
)
def test_wrong_metadata(path, changes, message):
    rewrite_metadata(path, **changes)
    with pytest.raises(ModelError, match=message):
        read_model(path)


@pytest.mark.parametrize(
    ('name', 'value', 'message'),
    [
        ('stem.weight', None, r"lacks tensors \['stem.weight'\]"),
        ('extra', np.zeros(1, np.float32), r"unknown tensors \['extra'\]"),
        ('act.weight', np.zeros(4, np.float32), r'act.weight is float32 \(4,\), expected'),
        ('act.weight', np.zeros(16, np.float64), 'act.weight is float64'),
        ('act.weight', np.full(16, np.nan, np.float32), 'not finite'),
        ('stem_norm.running_var', np.full(8, -1, np.float32), 'negative variance'),
    ],
)
def test_wrong_tensors_are_not_written(tmp_path, name, value, message):
    model = small_model()
    tensors = {key: tensor for key, tensor in model.tensors.items() if key != name}
    if value is not None:
        tensors[name] = value
    path = tmp_path / 'wrong.safetensors'
    with pytest.raises(ModelError, match=message):
        write_model(path, dataclasses.replace(model, tensors=tensors))
    assert not path.exists()


def test_metadata_that_is_no_json():
    with pytest.raises(ModelError, match='no JSON'):
        ModelMetadata.from_json('{', source='x')
    with pytest.raises(ModelError, match='model format None'):
        ModelMetadata.from_json('[]', source='x')


def test_a_header_that_promises_too_much(path):
    data = path.read_bytes()
    path.write_bytes(struct.pack('<Q', 2**40) + data[8:])
    with pytest.raises(ModelError, match='not a readable safetensors file'):
        read_model(path)
