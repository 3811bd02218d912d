"""Whole networks in the engine: the chain of their units bit for bit, the same bits always."""

import ctypes
import gc
import hashlib
import platform
import threading

import numpy as np
import pytest
from engine_models import CHANNELS, ODD_CHANNELS, random_images, random_model

from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.engine import build, native
from bicrossnet_ros.engine.architecture import BATCH_NORM_EPSILON, make_blocks
from bicrossnet_ros.engine.model_file import Model, read_model

BACKENDS = native.backends()
pytestmark = pytest.mark.skipif(not BACKENDS, reason='the engine is not built')
# Of `random_model(ODD_CHANNELS)` on `random_images(3, 64, 96)`; stored, not computed.
GOLDEN = '791e21bbb8e06d5d30c56622cd997a9a1135061f791ba0fb1ffcb5f006d238f3'


def embed(model: Model, images: np.ndarray, *, backend=None, threads: int = 1) -> np.ndarray:
    session = native.NativeNetwork(model, backend=backend).session(
        *images.shape[2:], threads=threads
    )
    return session.run(images)


def stem(model: Model, image: np.ndarray) -> np.ndarray:
    """The engine's stem in numpy: float32, one tap after the other; (3, H, W) to (H/2, W/2, C)."""
    weight = model.tensors['stem.weight']
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    total = np.zeros((height // 2, width // 2, len(weight)), np.float32)
    for tap in np.ndindex(3, 3, 3):
        plane, row, col = tap
        seen = padded[plane, row : row + height : 2, col : col + width : 2]
        total += seen[..., None] * weight[:, plane, row, col]
    gamma, beta, mean, variance = (
        model.tensors[f'stem_norm.{name}'].astype(np.float64)
        for name in ('weight', 'bias', 'running_mean', 'running_var')
    )
    gain = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    offset = beta - mean * gain
    return total * gain.astype(np.float32) + offset.astype(np.float32)


def chain(model: Model, image: np.ndarray) -> np.ndarray:
    """Embed an image unit by unit; each unit is tested against torch elsewhere."""
    x = stem(model, image)
    for block in make_blocks(model.metadata.channels):
        x = native.run_unit(model, block.unit3x3, x)
        branches = [native.run_unit(model, unit, x) for unit in block.units1x1]
        x = np.concatenate(branches, axis=-1)
    x = x.astype(np.float64)
    return np.where(x >= 0, x, x * model.tensors['act.weight']).mean(axis=(0, 1))


@pytest.mark.parametrize(
    ('channels', 'height', 'width'),
    [
        (ODD_CHANNELS, 64, 64),
        (ODD_CHANNELS, 32, 160),
        ((8, 8, 16, 16), 96, 32),
        ((8, 16), 32, 32),  # the last map is larger than any that a unit alone writes
        ((40, 80, 80, 160), 32, 64),
        (CHANNELS['nano'], 96, 96),
        (CHANNELS['nano'], 32, 32),
        (CHANNELS['nano'], 128, 64),
        (CHANNELS['tiny'], 64, 32),
    ],
)
def test_network_is_the_chain_of_its_units(channels, height, width):
    model = random_model(channels)
    image = random_images(1, height, width)
    # The last sum alone is of another precision; one flipped sign would show in the first digits.
    np.testing.assert_allclose(
        embed(model, image)[0], chain(model, image[0]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ('channels', 'height', 'width', 'team_sizes'),
    [
        (ODD_CHANNELS, 64, 96, (1, 2, 3, 7)),
        (ODD_CHANNELS, 32, 32, (1, 3)),
        (CHANNELS['nano'], 96, 96, (1, 3)),
        (CHANNELS['nano'], 160, 32, (1, 2)),
    ],
)
def test_same_bits_whatever_the_back_end_the_threads_and_the_batch(
    channels, height, width, team_sizes
):
    model, images = random_model(channels), random_images(5, height, width)
    expected = embed(model, images, backend='scalar')
    assert expected.shape == (5, channels[-1])
    assert expected.dtype == np.float32
    assert np.isfinite(expected).all()
    for backend in BACKENDS:
        network = native.NativeNetwork(model, backend=backend)
        for threads in team_sizes:
            session = network.session(height, width, threads=threads)
            np.testing.assert_array_equal(session.run(images), expected)
            alone = [session.run(image[None])[0] for image in images[::-1]]
            np.testing.assert_array_equal(alone, expected[::-1])
        assert session.run(images[:0]).shape == (0, channels[-1])


@pytest.mark.parametrize(
    ('size', 'height', 'width'), [('tiny', 96, 64), ('small', 64, 64), ('middle', 32, 64)]
)
def test_larger_networks_have_the_same_bits_everywhere(size, height, width):
    model, images = random_model(CHANNELS[size]), random_images(2, height, width)
    expected = embed(model, images, backend=BACKENDS[-1])
    for backend in BACKENDS[:-1]:
        np.testing.assert_array_equal(embed(model, images, backend=backend, threads=2), expected)


@pytest.mark.slow
@pytest.mark.parametrize(('size', 'side'), [('tiny', 256), ('middle', 256), ('large', 64)])
def test_networks_as_they_fly_have_the_same_bits_everywhere(size, side):
    test_larger_networks_have_the_same_bits_everywhere(size, side, side)


@pytest.mark.parametrize('backend', BACKENDS)
def test_golden_embedding(backend):
    """The bits of an embedding, the same on every machine, compiler and architecture."""
    embeddings = embed(random_model(ODD_CHANNELS), random_images(3, 64, 96), backend=backend)
    assert hashlib.sha256(embeddings.astype('<f4').tobytes()).hexdigest() == GOLDEN


def test_compilers_that_would_give_other_bits_are_refused(tmp_path):
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    with pytest.raises(build.BuildError, match='not compiled with -ffast-math'):
        build.build_library(tmp_path / 'engine.so', compiler=(*compiler, '-ffast-math'))


@pytest.mark.parametrize('threads', [1, 2])
def test_float_mode_of_the_caller_does_not_count(threads):
    """Another library may have changed how this thread, and those it starts, round."""
    upward = {'x86_64': 0x800, 'aarch64': 0x400000}.get(platform.machine())
    if upward is None:
        pytest.skip('only on x86-64 and ARM the engine sets the mode')
    mathematics = ctypes.CDLL('libm.so.6')
    model, images = random_model(ODD_CHANNELS), random_images(3, 64, 96)
    expected = embed(model, images, threads=threads)
    network = native.NativeNetwork(model)
    session = network.session(64, 96, threads=threads)
    assert mathematics.fesetround(upward) == 0
    try:
        found = [session.run(images), network.session(64, 96, threads=threads).run(images)]
        kept = mathematics.fegetround()
    finally:
        mathematics.fesetround(0)
    assert kept == upward
    for embeddings in found:
        np.testing.assert_array_equal(embeddings, expected)


def test_repeated_runs_leave_nothing_behind():
    model = random_model(CHANNELS['nano'])
    images = random_images(2, 96, 96)
    session = native.NativeNetwork(model).session(96, 96, threads=2)
    expected = session.run(images)
    for noise in (random_images(3, 96, 96, seed=1), np.full_like(images, np.nan)):
        session.run(noise)
        np.testing.assert_array_equal(session.run(images), expected)


@pytest.mark.parametrize('threads', [1, 2])
def test_sessions_of_one_network_run_at_once(threads):
    network = native.NativeNetwork(random_model(CHANNELS['nano']))
    batches = [random_images(3, 96, 96, seed=seed) for seed in range(4)]
    expected = [network.session(96, 96).run(batch) for batch in batches]
    sessions = [network.session(96, 96, threads=threads) for _ in batches]
    results = [[] for _ in batches]

    def work(k: int) -> None:
        results[k].extend(sessions[k].run(batches[k]) for _ in range(10))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for found, wanted in zip(results, expected, strict=True):
        assert len(found) == 10
        for embeddings in found:
            np.testing.assert_array_equal(embeddings, wanted)


def test_sessions_outlive_their_network():
    model, images = random_model(ODD_CHANNELS), random_images(2, 32, 64)
    network = native.NativeNetwork(model)
    session = network.session(32, 64)
    expected = session.run(images)
    del network
    gc.collect()
    np.testing.assert_array_equal(session.run(images), expected)


def test_what_is_not_finite_in_an_image_shows_in_its_embedding_alone():
    model = random_model(CHANNELS['nano'])
    images = random_images(3, 96, 96)
    expected = embed(model, images)
    for value in (np.nan, np.inf, -np.inf):
        spoilt = images.copy()
        spoilt[1, 2, 50, 60] = value
        for backend in BACKENDS:
            actual = embed(model, spoilt, backend=backend)
            np.testing.assert_array_equal(actual[::2], expected[::2])
            assert not np.isfinite(actual[1]).any()


def test_extreme_images():
    model = random_model(CHANNELS['nano'])
    for value in (0.0, 1e30, -1e-40):
        images = np.full((1, 3, 96, 96), value, np.float32)
        first, *others = (embed(model, images, backend=name) for name in BACKENDS)
        assert np.isfinite(first).all()
        for other in others:
            np.testing.assert_array_equal(other, first)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    return (one * other).sum(axis=1)


def test_trained_network_agrees_with_torch_and_onnx_runtime(rsscn7):
    """On real scenes; a rounding flips a sign now and then, which moves an embedding a little."""
    torch = pytest.importorskip('torch')
    cv2 = pytest.importorskip('cv2')
    from bicrossnet_ros.engine.onnx_runtime import from_model
    from bicrossnet_ros.preprocess import prepare
    from training.export import network_from_model

    path = default_model_path()
    model = read_model(path)
    files = sorted(rsscn7.glob('*/*.jpg'))[::70]
    assert len(files) >= 20
    patches = [
        cv2.resize(cv2.imread(str(file))[..., ::-1], (96, 96), interpolation=cv2.INTER_AREA)
        for file in files
    ]
    images = prepare(np.stack(patches), model.metadata.preprocessing)
    with torch.no_grad():
        by_torch = network_from_model(model)(torch.from_numpy(images)).numpy()
    _, onnx = from_model(model, source=path, threads=1)
    by_engine = embed(model, images)
    # bench/agreement.py, 215 images: lowest 0.9987, median 1.00000 (other images: 0.32).
    for found in (cosines(by_engine, by_torch), cosines(by_engine, onnx.run(images))):
        assert found.min() > 0.99
        assert np.median(found) > 0.999999
    assert cosines(by_torch[1:], by_torch[:-1]).max() < 0.95


def test_encoder_uses_the_engine():
    encoder = open_encoder(default_model_path())
    assert encoder.runtime == f'native {native.default_backend()}'
    patches = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
    from bicrossnet_ros.preprocess import prepare

    rows = embed(read_model(default_model_path()), prepare(patches, encoder.preprocessing))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_array_equal(encoder.encode(patches), rows)
