"""open_encoder: every kind of model file, and every kind of wrong one."""

import dataclasses
import gc
import json
import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bicrossnet_ros import encoder as encoder_module
from bicrossnet_ros.encoder import _warn_once, default_model_path, open_encoder
from bicrossnet_ros.engine import native, native_runtime
from bicrossnet_ros.engine.model_file import (
    METADATA_KEY,
    Model,
    ModelMetadata,
    file_sha256,
    read_model,
    write_model,
)
from bicrossnet_ros.engine.onnx_graph import build_onnx
from bicrossnet_ros.engine.runtime import FreeList
from bicrossnet_ros.errors import ConfigError, ImageError, ModelError
from bicrossnet_ros.preprocess import Preprocessing


def ground(count: int, *, seed: int = 0, size_px: int = 200) -> np.ndarray:
    """Different smooth coloured textures, standing for places."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 12, 12, 3), np.uint8)
    fine = rng.integers(-25, 26, (count, 60, 60, 3))
    return np.stack(
        [
            np.clip(
                cv2.resize(c, (size_px, size_px), interpolation=cv2.INTER_CUBIC).astype(int)
                + cv2.resize(f.astype(np.float32), (size_px, size_px)),
                0,
                255,
            ).astype(np.uint8)
            for c, f in zip(coarse, fine, strict=True)
        ]
    )


@pytest.fixture(scope='module')
def encoder():
    return open_encoder(default_model_path())


@pytest.fixture(scope='module')
def onnx_path(tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'model.onnx'
    path.write_bytes(build_onnx(read_model(default_model_path())).SerializeToString())
    return path


def test_shipped_model_says_what_it_is(encoder):
    assert default_model_path().stat().st_size < 12e6
    assert encoder.model_id == file_sha256(default_model_path())
    assert encoder.model_name == 'bnext_nano_96'
    assert encoder.embedding_dim == 512
    assert encoder.preprocessing == Preprocessing(96, 96)


def test_shipped_model_has_its_training_record():
    record = json.loads(default_model_path().with_suffix('.json').read_text())
    assert record == read_model(default_model_path()).metadata.training
    assert {'data', 'licence', 'recipe', 'config', 'seed', 'git_revision'} <= record.keys()
    assert record['images_seen'] > 0
    assert 0 < record['validation']['recall_at_1'] <= record['validation']['recall_at_5'] <= 1


def test_embeddings_have_unit_length(encoder):
    patches = ground(20)
    embeddings = encoder.encode(patches)
    assert embeddings.shape == (20, 512)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(encoder):
    patches = ground(18)  # more than one internal batch
    alone = np.concatenate([encoder.encode(patch[None]) for patch in patches])
    np.testing.assert_allclose(encoder.encode(patches), alone, atol=1e-4)


def test_no_patches(encoder):
    embeddings = encoder.encode(np.empty((0, 50, 60, 3), np.uint8))
    assert embeddings.shape == (0, 512)
    assert embeddings.dtype == np.float32


def test_black_patches_are_finite(encoder):
    assert np.isfinite(encoder.encode(np.zeros((2, 96, 96, 3), np.uint8))).all()


def test_wrong_patches(encoder):
    with pytest.raises(ImageError, match='expected uint8'):
        encoder.encode(np.zeros((1, 96, 96, 3), np.float32))
    with pytest.raises(ImageError, match='add a leading axis'):
        encoder.encode(np.zeros((96, 96, 3), np.uint8))


def test_onnx_and_model_file_embed_alike(encoder, onnx_path):
    patches = ground(8)
    from_onnx = open_encoder(onnx_path, threads=2)
    assert from_onnx.model_id == file_sha256(onnx_path) != encoder.model_id
    assert from_onnx.preprocessing == encoder.preprocessing
    cosines = (from_onnx.encode(patches) * encoder.encode(patches)).sum(axis=1)
    assert cosines.min() > 0.999


def test_several_threads_may_encode(encoder):
    patches = ground(4)
    expected = encoder.encode(patches)
    results = {}
    threads = [
        threading.Thread(target=lambda k=k: results.update({k: encoder.encode(patches)}))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results.values():
        np.testing.assert_array_equal(result, expected)


def test_retrieval_agrees_with_torch(encoder):
    """End to end on the shipped weights: both runtimes retrieve the same places."""
    from training.embedding import embed
    from training.export import network_from_model
    from training.metrics import recall_at

    network = network_from_model(read_model(default_model_path()))
    tiles = ground(60)
    rng = np.random.default_rng(1)
    queries = np.stack([np.roll(tile, rng.integers(-20, 21, 2), (0, 1)) for tile in tiles])
    noise = rng.normal(0, 8, queries.shape)
    queries = np.clip(queries + noise, 0, 255).astype(np.uint8)
    by_torch = [embed(network, patches, encoder.preprocessing) for patches in (tiles, queries)]
    by_encoder = [encoder.encode(patches) for patches in (tiles, queries)]
    for one, other in zip(by_torch, by_encoder, strict=True):
        cosines = (one * other).sum(axis=1)
        assert np.median(cosines) > 0.999
        assert cosines.min() > 0.98
    best = [(queries @ tiles.T).argmax(axis=1) for tiles, queries in (by_torch, by_encoder)]
    assert np.mean(best[0] == best[1]) >= 0.95
    for tiles, queries in (by_torch, by_encoder):
        assert recall_at(tiles, queries)['recall_at_1'] > 0.3


def test_retrieval_agrees_with_torch_on_real_scenes(encoder, rsscn7):
    from training.config import ViewConfig
    from training.data.scenes import list_scenes, read_scene
    from training.data.views import sample_places, view_pair
    from training.embedding import embed
    from training.export import network_from_model
    from training.metrics import recall_at

    rng, config = np.random.default_rng(0), ViewConfig()
    pairs = [
        view_pair(read_scene(path, scene_px=256), place, rng, size_px=96, config=config)
        for path in list_scenes(rsscn7)[::56]  # of the validation split
        for place in sample_places(rng, scene_px=256, places=2, config=config)
    ]
    views = [np.stack(side) for side in zip(*pairs, strict=True)]
    network = network_from_model(read_model(default_model_path()))
    by_torch = [embed(network, patches, encoder.preprocessing) for patches in views]
    by_encoder = [encoder.encode(patches) for patches in views]
    figures = [recall_at(tiles, queries) for tiles, queries in (by_torch, by_encoder)]
    for name in figures[0]:
        assert abs(figures[0][name] - figures[1][name]) <= 0.02, name
    assert figures[1]['recall_at_1'] > 0.15  # untrained: 0.06; chance: 0.01
    assert np.median((by_torch[1] * by_encoder[1]).sum(axis=1)) > 0.999


def test_model_files_fly_in_the_native_engine():
    """And import neither ONNX Runtime nor onnx, which would double the time to start."""
    if not native.backends():
        pytest.skip('the engine is not built')
    code = """
import sys
import numpy as np
from bicrossnet_ros.encoder import default_model_path, open_encoder
encoder = open_encoder(default_model_path())
encoder.encode(np.zeros((1, 96, 96, 3), np.uint8))
print(encoder.runtime, sorted({'onnx', 'onnxruntime', 'torch', 'faiss'} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout == f'native {native.default_backend()} []\n'
    assert run.stderr == ''


@pytest.mark.parametrize('backend', native.backends())
def test_every_back_end_gives_the_same_embeddings(backend, encoder, monkeypatch):
    monkeypatch.setenv('BICROSSNET_BACKEND', backend)
    forced = open_encoder(default_model_path())
    assert forced.runtime == f'native {backend}'
    np.testing.assert_array_equal(forced.encode(ground(2)), encoder.encode(ground(2)))


@pytest.mark.parametrize(
    ('name', 'value', 'reason'),
    [
        ('BICROSSNET_BACKEND', 'onnxruntime', 'unset it to use the engine'),
        ('BICROSSNET_ENGINE_LIBRARY', '/nowhere/engine.so', 'engine.so: no such file'),
    ],
)
def test_onnx_runtime_stands_in_for_the_engine(name, value, reason, encoder, monkeypatch, caplog):
    if not native.backends():
        pytest.skip('the engine is not built')
    _warn_once.cache_clear()
    monkeypatch.setenv(name, value)
    for _ in range(2):
        stand_in = open_encoder(default_model_path())
    assert stand_in.runtime.startswith('ONNX Runtime ')
    assert stand_in.model_id == encoder.model_id
    (record,) = caplog.records
    assert record.levelname == 'WARNING'
    assert 'ONNX Runtime, which is slower, stands in' in record.getMessage()
    assert reason in record.getMessage()
    cosines = (stand_in.encode(ground(8)) * encoder.encode(ground(8))).sum(axis=1)
    assert np.median(cosines) > 0.999


@pytest.mark.parametrize('library', ['', '/nowhere/engine.so'])
def test_a_back_end_that_was_asked_for_by_name_is_that_one_or_an_error(library, monkeypatch):
    """Who forces one measures or tests it: another one in its place would be a wrong answer."""
    if not library and not native.backends():
        pytest.skip('the engine is not built')
    monkeypatch.setenv('BICROSSNET_BACKEND', 'mmx')
    monkeypatch.setenv('BICROSSNET_ENGINE_LIBRARY', library)
    reason = 'engine.so: no such file' if library else "'mmx': no such back end"
    with pytest.raises(ModelError, match=rf'{reason}.*\(BICROSSNET_BACKEND=mmx forces the engine'):
        open_encoder(default_model_path())


def test_file_that_changes_while_it_is_opened(tmp_path, monkeypatch, encoder):
    """Weights must never go under the identity of others: galleries are checked by it."""
    other = read_model(default_model_path())
    tensors = {name: tensor[::-1].copy() for name, tensor in other.tensors.items()}
    path = Path(shutil.copy(default_model_path(), tmp_path / 'model.safetensors'))
    hashed = encoder_module.file_sha256

    def hash_and_replace(path):
        found = hashed(path)
        write_model(path, Model(other.metadata, tensors))
        return found

    monkeypatch.setattr(encoder_module, 'file_sha256', hash_and_replace)
    native_runtime._shared.clear()
    with pytest.raises(ModelError, match='changed while it was opened; open it again'):
        open_encoder(path)
    monkeypatch.undo()
    again = open_encoder(default_model_path())
    np.testing.assert_array_equal(again.encode(ground(1)), encoder.encode(ground(1)))


def test_encoders_of_one_file_share_its_weights(tmp_path):
    if not native.backends():
        pytest.skip('the engine is not built')
    path = shutil.copy(default_model_path(), tmp_path / 'copy.safetensors')
    first, second = open_encoder(path), open_encoder(default_model_path(), threads=2)
    weights = weakref.ref(first._runtime._weights)
    assert second._runtime._weights is weights()
    np.testing.assert_array_equal(first.encode(ground(1)), second.encode(ground(1)))
    key = (first.model_id, native.default_backend())
    assert key in native_runtime._shared


def test_weights_go_with_the_last_encoder(tmp_path):
    if not native.backends():
        pytest.skip('the engine is not built')
    model = read_model(default_model_path())
    metadata = dataclasses.replace(model.metadata, name='another')
    write_model(tmp_path / 'another.safetensors', Model(metadata, model.tensors))
    encoder = open_encoder(tmp_path / 'another.safetensors')
    weights = weakref.ref(encoder._runtime._weights)
    assert weights() is not None
    del encoder
    gc.collect()
    assert weights() is None


def test_free_list_makes_another_only_when_all_are_lent():
    made = []
    items = FreeList(lambda: made.append(None) or len(made))
    assert len(made) == 1
    with items.lend() as first, items.lend() as second:
        assert {first, second} == {1, 2}
    with pytest.raises(KeyError), items.lend():
        raise KeyError
    with items.lend() as one, items.lend() as other:
        assert {one, other} == {1, 2}


def test_free_list_leaves_behind_what_a_fork_cuts_off():
    items = FreeList(object)
    with items.lend() as before:
        pass
    items._process -= 1  # as in a forked process, whose number is another
    with items.lend() as after:
        assert after is not before


def test_wrong_threads():
    for threads in (0, -1, 1000, 1.5, True):
        with pytest.raises(ConfigError, match='threads is'):
            open_encoder(default_model_path(), threads=threads)


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='needs Linux to count threads')
def test_no_more_threads_than_cpus_are_started():
    """Those beyond only wait for one another: 64 on two cores take 0.6 s where one takes 1 ms."""
    code = """
import os
import numpy as np
from bicrossnet_ros.encoder import default_model_path, open_encoder
before = len(os.listdir('/proc/self/task'))
encoder = open_encoder(default_model_path(), threads=256)
encoder.encode(np.zeros((1, 96, 96, 3), np.uint8))
print(1 + len(os.listdir('/proc/self/task')) - before, len(os.sched_getaffinity(0)))
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    threads, cpus = map(int, run.stdout.split())
    assert threads <= min(cpus, 256)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(ModelError, match='no such model file'):
        open_encoder(tmp_path / 'none.onnx')
    path = tmp_path / 'model.pt'
    path.write_bytes(b'x')
    with pytest.raises(ModelError, match=r'a \.pt file; expected a \.safetensors, \.onnx or'):
        open_encoder(path)


@pytest.mark.skipif(not Path('/proc/self/mem').exists(), reason='needs a file that is unreadable')
def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / 'model.safetensors'
    path.symlink_to('/proc/self/mem')  # unreadable at its beginning, even to root
    with pytest.raises(ModelError, match=r'cannot be read \(.*\); check its permissions'):
        open_encoder(path)


def test_damaged_files(tmp_path, onnx_path):
    path = tmp_path / 'damaged.safetensors'
    path.write_bytes(default_model_path().read_bytes()[:-1000])
    with pytest.raises(ModelError, match='not a readable safetensors'):
        open_encoder(path)
    path = tmp_path / 'damaged.onnx'
    path.write_bytes(onnx_path.read_bytes()[:100_000])
    with pytest.raises(ModelError, match='ONNX Runtime cannot load it'):
        open_encoder(path)
    shutil.copy(default_model_path(), path)
    with pytest.raises(ModelError, match='ONNX Runtime cannot load it'):
        open_encoder(path)


def flat_network(path, metadata: ModelMetadata | None, *, batch='n', dim=4, outputs=1):
    """Write a tiny ONNX that averages its input's pixels into `dim` values."""
    size = ['n' if batch == 'n' else batch, 3, 32, 32]
    weight = helper.make_tensor('w', TensorProto.FLOAT, [3, dim], [0.5] * 3 * dim)
    nodes = [
        helper.make_node('GlobalAveragePool', ['x'], ['pooled']),
        helper.make_node('Flatten', ['pooled'], ['flat']),
        *(helper.make_node('MatMul', ['flat', 'w'], [f'y{k}']) for k in range(outputs)),
    ]
    graph = helper.make_graph(
        nodes,
        'flat',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, size)],
        [
            helper.make_tensor_value_info(f'y{k}', TensorProto.FLOAT, [size[0], dim])
            for k in range(outputs)
        ],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)])
    proto.ir_version = 8
    if metadata is not None:
        helper.set_model_props(proto, {METADATA_KEY: metadata.to_json()})
    onnx.save(proto, path)
    return path


FLAT = ModelMetadata('flat', 'someone_elses', (), 4, Preprocessing(32, 32))


@pytest.mark.parametrize('std', [1e-25, 1e-37])
def test_embeddings_without_a_length_are_refused(tmp_path, std):
    """Not finite themselves, or so large that their length is not: no zeros in their place."""
    metadata = ModelMetadata('m', 'other', (), 4, Preprocessing(32, 32, (0.5,) * 3, (std,) * 3))
    flat_network(tmp_path / 'm.onnx', metadata)
    with pytest.raises(ModelError, match='m: embeddings are not finite'):
        open_encoder(tmp_path / 'm.onnx').encode(np.full((1, 32, 32, 3), 255, np.uint8))


def test_any_onnx_with_metadata_flies(tmp_path):
    encoder = open_encoder(flat_network(tmp_path / 'flat.onnx', FLAT))
    assert encoder.model_name == 'flat'
    assert encoder.encode(ground(3)).shape == (3, 4)


@pytest.mark.parametrize(
    ('metadata', 'options', 'message'),
    [
        (None, {}, "no metadata entry 'bicrossnet'"),
        (FLAT, {'dim': 5}, r"output is .*5.*expected float \['N', 4\]"),
        (FLAT, {'batch': 1}, 'free batch size'),
        (FLAT, {'outputs': 2}, '1 inputs and 2 outputs'),
        (
            ModelMetadata('flat', 'other', (), 4, Preprocessing(64, 32)),
            {},
            r"input is .*expected float \['N', 3, 64, 32\]",
        ),
    ],
)
def test_onnx_that_contradicts_its_metadata(tmp_path, metadata, options, message):
    path = flat_network(tmp_path / 'flat.onnx', metadata, **options)
    with pytest.raises(ModelError, match=message):
        open_encoder(path)
