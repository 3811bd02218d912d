"""The compressed descriptor: in the model file, in the index, in a gallery."""

import dataclasses
import shutil

import numpy as np
import onnx
import pytest
from gallery_fixtures import ProjectionEncoder, build_gallery, textured, write_map
from safetensors.numpy import save

from bicrossnet_ros import sign_index
from bicrossnet_ros.descriptor import (
    DESCRIPTOR_KEY,
    MATRIX_NAME,
    MEAN_NAME,
    SIZE,
    Projection,
    projection_from,
    projection_from_text,
    projection_to_text,
    signs,
)
from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.engine.model_file import METADATA_KEY, Model, _seal, read_model, write_model
from bicrossnet_ros.engine.onnx_graph import build_onnx
from bicrossnet_ros.errors import GalleryError, ModelError
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.manifest import Manifest
from bicrossnet_ros.tile_index import (
    build_index,
    index_parameters,
    read_embeddings,
    read_index,
    search_index,
    write_index,
)

DIM = 300


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_projection(dim: int = DIM, *, seed: int = 5) -> Projection:
    rng = np.random.default_rng(seed)
    mean = 0.01 * rng.standard_normal(dim)
    matrix = rng.standard_normal((dim, SIZE)) / dim**0.5
    return Projection(mean.astype(np.float32), matrix.astype(np.float16))


@dataclasses.dataclass(frozen=True)
class DescribingEncoder(ProjectionEncoder):
    """The small encoder with a descriptor."""

    embedding_dim: int = DIM
    projection: Projection | None = dataclasses.field(default_factory=make_projection)


# --- the projection


def test_a_projection_is_its_definition():
    projection = make_projection()
    rows = unit(np.random.default_rng(1).standard_normal((3, DIM)))
    found = projection.apply(rows)
    assert (found.shape, found.dtype) == ((3, SIZE), np.float32)
    for row, descriptor in zip(rows.astype(np.float64), found, strict=True):
        expected = np.array(
            [
                sum((row - projection.mean) * projection.matrix[:, column].astype(np.float64))
                for column in range(SIZE)
            ]
        )
        np.testing.assert_allclose(descriptor, expected / np.linalg.norm(expected), atol=1e-6)
    assert projection.apply(rows[:0]).shape == (0, SIZE)


def test_the_sign_of_zero_is_plus():
    found = signs(np.array([[0.0, -0.0, -1e-30, 5.0]], np.float32))
    np.testing.assert_array_equal(found, [[0.5, 0.5, -0.5, 0.5]])


def test_impossible_projections_are_refused():
    good = make_projection()
    with pytest.raises(ModelError, match=r"expected .*'float16', \(300, 256\)"):
        Projection(good.mean, good.matrix[:, :128])
    with pytest.raises(ModelError, match='float64'):
        Projection(good.mean.astype(np.float64), good.matrix)
    with pytest.raises(ModelError, match='not finite'):
        Projection(np.full_like(good.mean, np.nan), good.matrix)
    with pytest.raises(ModelError, match=r'takes \(N, 300\)'):
        good.apply(np.ones((2, 299), np.float32))
    huge = Projection(np.full_like(good.mean, 3e38), good.matrix)
    with pytest.raises(ModelError, match='descriptors are not finite'):
        huge.apply(np.ones((2, DIM), np.float32))


# --- in model files


@pytest.fixture(scope='module')
def bare():
    """The shipped model without its descriptor, in memory."""
    model = read_model(default_model_path())
    tensors = {k: v for k, v in model.tensors.items() if k not in (MEAN_NAME, MATRIX_NAME)}
    return Model(model.metadata, tensors)


@pytest.fixture(scope='module')
def described(bare):
    """The same with another descriptor."""
    projection = make_projection(bare.metadata.embedding_dim)
    return Model(bare.metadata, {**bare.tensors, **projection.tensors()})


def test_a_model_file_carries_a_descriptor_and_its_network_is_unchanged(bare, described, tmp_path):
    path, without = tmp_path / 'described.safetensors', tmp_path / 'bare.safetensors'
    write_model(path, described)
    write_model(without, bare)
    first, second = open_encoder(without), open_encoder(path)
    assert first.projection is None
    assert second.model_id != first.model_id
    assert second.projection is not None
    np.testing.assert_array_equal(second.projection.mean, described.tensors[MEAN_NAME])
    np.testing.assert_array_equal(second.projection.matrix, described.tensors[MATRIX_NAME])
    patches = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    np.testing.assert_array_equal(first.encode(patches), second.encode(patches))
    assert path.stat().st_size - without.stat().st_size < 512 * (2 * SIZE + 4) + 1000


def test_the_onnx_of_a_model_carries_the_descriptor_too(described, tmp_path, monkeypatch):
    (tmp_path / 'a.onnx').write_bytes(build_onnx(described).SerializeToString())
    found = open_encoder(tmp_path / 'a.onnx').projection
    np.testing.assert_array_equal(found.matrix, described.tensors[MATRIX_NAME])
    write_model(tmp_path / 'a.safetensors', described)
    monkeypatch.setenv('BICROSSNET_BACKEND', 'onnxruntime')
    found = open_encoder(tmp_path / 'a.safetensors').projection
    np.testing.assert_array_equal(found.mean, described.tensors[MEAN_NAME])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({MEAN_NAME: None}, 'of its descriptor only'),
        ({MATRIX_NAME: None}, 'of its descriptor only'),
        ({MEAN_NAME: np.zeros(512, np.float64)}, 'mean and matrix are'),
        ({MEAN_NAME: np.full(512, np.inf, np.float32)}, 'not finite'),
        ({MATRIX_NAME: np.zeros((512, 128), np.float16)}, 'mean and matrix are'),
        ({MATRIX_NAME: np.zeros((0, 256), np.float16)}, 'mean and matrix are'),
        ({MATRIX_NAME: np.full((512, 256), np.nan, np.float16)}, 'not finite'),
        (make_projection(300).tensors(), 'takes embeddings of 300, the network makes 512'),
        ({MEAN_NAME: np.zeros((), np.float32)}, 'mean and matrix are'),
        ({'descriptor.bias': np.zeros(1, np.float32)}, 'has unknown tensors'),
    ],
)
def test_descriptors_that_lie_are_refused(described, change, message, tmp_path):
    tensors = {
        name: tensor
        for name, tensor in {**described.tensors, **change}.items()
        if tensor is not None
    }
    entry = _seal(described.metadata.to_json(), tensors)
    path = tmp_path / 'bad.safetensors'
    path.write_bytes(save(tensors, metadata={METADATA_KEY: entry}))
    with pytest.raises(ModelError, match=message):
        open_encoder(path)


def test_the_checksum_covers_the_descriptor(described, tmp_path):
    path = tmp_path / 'a.safetensors'
    write_model(path, described)
    data = bytearray(path.read_bytes())
    place = data.index(described.tensors[MATRIX_NAME].tobytes())
    data[place + 1001] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match='its checksum does not fit'):
        open_encoder(path)


def test_the_text_of_a_descriptor_survives_the_round_trip_and_no_damage():
    projection = make_projection()
    text = projection_to_text(projection)
    found = projection_from_text(text, embedding_dim=DIM, source='test')
    np.testing.assert_array_equal(found.matrix, projection.matrix)
    assert projection_from_text(None, embedding_dim=DIM, source='test') is None
    for bad in ('', 'ä', '!!!', text[:-8], text[:1000], 'AAAA' + text):
        with pytest.raises(ModelError, match='test: its descriptor'):
            projection_from_text(bad, embedding_dim=DIM, source='test')
    with pytest.raises(ModelError, match='the network makes 299'):
        projection_from_text(text, embedding_dim=299, source='test')


def test_a_damaged_descriptor_of_an_onnx_is_refused(described, tmp_path):
    proto = build_onnx(described)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {**entries, DESCRIPTOR_KEY: entries[DESCRIPTOR_KEY][:99]})
    (tmp_path / 'a.onnx').write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match='its descriptor is damaged'):
        open_encoder(tmp_path / 'a.onnx')


def test_a_model_without_a_descriptor_has_no_projection(bare):
    assert projection_from({}, embedding_dim=4, source='test') is None
    assert bare.projection is None


def test_the_shipped_model_has_a_descriptor():
    assert open_encoder(default_model_path()).projection is not None


# --- in the index


def brute_force(rows, queries, k, allowed=None):
    """Asymmetric similarities by definition: (Q, k) and the rows they belong to."""
    packed = np.where(rows >= 0, 1.0, -1.0) / rows.shape[1] ** 0.5
    similarities = queries.astype(np.float64) @ packed.T
    if allowed is not None:
        similarities[:, ~allowed] = -np.inf
    order = np.argsort(-similarities, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(similarities, order, axis=1), order


@pytest.fixture(scope='module', params=['flat', 'ivf'])
def packed(request, tmp_path_factory):
    """Rows, the parameters of their index, and the index as it is read back."""
    rows = unit(np.random.default_rng(3).standard_normal((3000, 64)))
    rows[5, 7] = 0.0  # and nearly zero: no rounding may turn these signs
    rows[6, 7], rows[7, 7] = 1e-30, -1e-30
    parameters = index_parameters(request.param, len(rows), packed=True)
    path = tmp_path_factory.mktemp('index') / 'index.faiss'
    write_index(build_index(rows, parameters), path)
    index = read_index(path, size=64, tile_count=len(rows), parameters=parameters)
    return rows, parameters, index, path


def test_an_index_of_signs_finds_what_brute_force_finds(packed):
    rows, parameters, index, _ = packed
    queries = unit(rows[::500] + 0.1 * np.random.default_rng(4).standard_normal((6, 64)))
    similarities, ids = search_index(index, queries, k=7, parameters=parameters, exact=True)
    expected, _ = brute_force(rows, queries, 7)
    np.testing.assert_allclose(similarities, expected, atol=1e-5)
    np.testing.assert_array_equal(ids[:, 0], np.arange(0, 3000, 500))


def test_a_restricted_search_of_signs_is_exact(packed):
    rows, parameters, index, _ = packed
    queries = unit(np.random.default_rng(5).standard_normal((4, 64)))
    allowed = np.random.default_rng(6).random(len(rows)) < 0.01
    similarities, ids = search_index(index, queries, k=5, parameters=parameters, allowed=allowed)
    expected, expected_ids = brute_force(rows, queries, 5, allowed)
    np.testing.assert_allclose(similarities, expected, atol=1e-5)
    np.testing.assert_array_equal(np.sort(ids), np.sort(expected_ids))
    few = np.zeros(len(rows), bool)
    few[[17, 2100]] = True
    similarities, ids = search_index(index, queries, k=5, parameters=parameters, allowed=few)
    assert (np.sort(ids[:, :2]) == [17, 2100]).all()
    assert (ids[:, 2:] == -1).all()
    assert (similarities[:, 2:] == -np.inf).all()
    none = search_index(index, queries, k=5, parameters=parameters, allowed=few & False)
    assert (none[1] == -1).all()


def test_an_index_of_signs_gives_back_the_signs(packed):
    rows, parameters, index, _ = packed
    wanted = np.array([0, 5, 6, 7, 2999, 5])
    found = read_embeddings(index, wanted, parameters=parameters)
    np.testing.assert_array_equal(found, np.where(rows[wanted] >= 0, 0.125, -0.125))
    assert read_embeddings(index, wanted[:0], parameters=parameters).shape == (0, 64)


def test_the_file_holds_one_bit_an_element(packed):
    rows, parameters, index, path = packed
    if parameters['type'] == 'flat':
        overhead = 4 * 256 * 64 + 1000  # the sign patterns
        assert path.stat().st_size < len(rows) * 8 + overhead
        expected = np.packbits(rows >= 0, axis=1, bitorder='little')
        np.testing.assert_array_equal(sign_index.codes(index), expected)
    else:
        overhead = 4 * 64 * (256 + parameters['nlist']) + 40 * parameters['nlist'] + 1000
        assert path.stat().st_size < len(rows) * (8 + 8) + overhead


def test_another_product_quantiser_is_not_taken_for_signs(tmp_path):
    import faiss

    rows = unit(np.random.default_rng(8).standard_normal((400, 16)))
    index = faiss.IndexPQ(16, 2, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    write_index(index, tmp_path / 'index.faiss')
    parameters = index_parameters('flat', 400, packed=True)
    with pytest.raises(GalleryError, match='does not hold signs; rebuild the gallery'):
        read_index(tmp_path / 'index.faiss', size=16, tile_count=400, parameters=parameters)
    parameters = index_parameters('flat', 400)
    with pytest.raises(GalleryError, match=r"'IndexPQ', 16, 400.*'IndexFlatIP', 16, 400"):
        read_index(tmp_path / 'index.faiss', size=16, tile_count=400, parameters=parameters)
    with pytest.raises(GalleryError, match='12 elements; expected a multiple of 8'):
        sign_index.build_flat(rows[:, :12])


# --- in galleries


@pytest.fixture(scope='module')
def chart(tmp_path_factory):
    folder = tmp_path_factory.mktemp('map')
    return write_map(folder / 'map.tif', textured(420, 640))


@pytest.fixture(scope='module', params=['float256', 'packed'])
def folder(request, chart, tmp_path_factory):
    path = tmp_path_factory.mktemp('galleries') / 'small.gallery'
    return build_gallery(path, chart, encoder=DescribingEncoder(), descriptor=request.param)


def test_a_gallery_of_descriptors_says_what_it_holds(folder):
    from gallery_builder.inspect import inspect, problems

    with open_gallery(folder, encoder=DescribingEncoder()) as gallery:
        manifest = gallery.manifest
    assert (manifest.format_version, manifest.embedding_dim) == (2, SIZE)
    bytes_per_tile = {'float256': 1024, 'packed': 32}[manifest.embedding_kind]
    assert manifest.tile_bytes == bytes_per_tile
    said = inspect(folder)
    assert f'256 x {manifest.embedding_kind}, {bytes_per_tile} bytes a tile' in said
    assert list(problems(folder)) == []


def test_float_galleries_stay_as_they_were(chart, tmp_path):
    path = build_gallery(tmp_path / 'a.gallery', chart, encoder=DescribingEncoder())
    with open_gallery(path) as gallery:
        assert gallery.manifest.format_version == 1
        assert gallery.manifest.embedding_kind == 'float32'
        assert gallery.manifest.index == {'type': 'flat', 'metric': 'inner_product'}
        assert gallery.manifest.tile_bytes == 4 * DIM
        rows = gallery.embeddings(np.array([3, 0]))
        assert rows.shape == (2, DIM)
        np.testing.assert_array_equal(gallery.descriptor(rows), rows)


def test_a_gallery_of_descriptors_is_searched_with_descriptors(folder, chart, tmp_path):
    """Against tiles embedded, projected and compared with numpy."""
    encoder = DescribingEncoder()
    path = build_gallery(tmp_path / 'a.gallery', chart, encoder=encoder)
    with open_gallery(path) as floats:
        embeddings = floats.embeddings(np.arange(floats.manifest.tile_count))
    with open_gallery(folder, encoder=encoder) as gallery:
        tiles = encoder.projection.apply(embeddings)
        if gallery.manifest.embedding_kind == 'packed':
            tiles = np.where(tiles >= 0, 1 / 16, -1 / 16)
        stored = gallery.embeddings(np.arange(len(tiles)))
        np.testing.assert_allclose(stored, tiles, atol=1e-6)
        np.testing.assert_array_equal(gallery.embedding(7), stored[7])
        noise = np.random.default_rng(9).standard_normal((20, DIM))
        queries = gallery.descriptor(unit(embeddings[:20] + 0.01 * noise))
        similarities, ids = gallery.search(queries, k=3)
        expected = -np.sort(-(queries @ tiles.T), axis=1)[:, :3]
        np.testing.assert_allclose(similarities, expected, atol=1e-5)
        # The similarity of a tile is the dot product with what is stored of it.
        products = (stored[ids] * queries[:, None]).sum(axis=2)
        np.testing.assert_allclose(similarities, products, atol=1e-5)
        assert (ids[:, 0] == np.arange(20)).mean() > 0.9
        near = {'center_m': (gallery.tile_east_m[4], gallery.tile_north_m[4]), 'radius_m': 1.0}
        assert gallery.search(queries, k=3, **near)[1].tolist() == [[4, -1, -1]] * 20
        # How alike a tile is to any elsewhere, on the scale on which queries are compared.
        apart = np.hypot(
            gallery.tile_east_m[:, None] - gallery.tile_east_m,
            gallery.tile_north_m[:, None] - gallery.tile_north_m,
        )
        floats = encoder.projection.apply(embeddings)
        alike = np.where(apart > gallery.tile_size_m, floats @ tiles.T, -np.inf).max(axis=1)
        np.testing.assert_allclose(gallery.tile_ambiguity, alike, atol=1e-5)


def test_embeddings_are_no_descriptors(folder):
    with open_gallery(folder, encoder=DescribingEncoder()) as gallery:
        embeddings = unit(np.ones((1, DIM)))
        with pytest.raises(GalleryError, match='search with what Gallery'):
            gallery.search(embeddings, k=1)
        with pytest.raises(ModelError, match=r'the descriptor takes \(N, 300\)'):
            gallery.descriptor(embeddings[:, :256])
        with pytest.raises(GalleryError, match='tile 9999 is not in the gallery'):
            gallery.embeddings(np.array([0, 9999]))
        assert gallery.embeddings(np.array([], int)).shape == (0, SIZE)
    with (
        open_gallery(folder) as gallery,
        pytest.raises(GalleryError, match='open it with the encoder that made them'),
    ):
        gallery.descriptor(embeddings)


def test_an_encoder_without_the_projection_is_refused_with_the_remedy(folder, chart, tmp_path):
    bare = DescribingEncoder(projection=None)
    with pytest.raises(GalleryError, match=r'has no projection .*python -m training\.descriptor'):
        open_gallery(folder, encoder=bare)
    out = tmp_path / 'a.gallery'
    with pytest.raises(GalleryError, match='--descriptor packed needs a model with a descriptor'):
        build_gallery(out, chart, encoder=bare, descriptor='packed')
    assert not list(tmp_path.iterdir())


def test_a_large_gallery_of_signs_is_clustered(chart, tmp_path):
    path = build_gallery(
        tmp_path / 'a.gallery',
        chart,
        encoder=DescribingEncoder(),
        descriptor='packed',
        index='ivf',
    )
    with open_gallery(path, encoder=DescribingEncoder()) as gallery:
        assert gallery.manifest.index['type'] == 'ivf'
        assert gallery.manifest.tile_bytes == 32 + 8
        stored = gallery.embeddings(np.arange(gallery.manifest.tile_count))
        everywhere = {'center_m': (0.0, 0.0), 'radius_m': 1e9}
        _, ids = gallery.search(stored, k=1, **everywhere)
        np.testing.assert_array_equal(ids[:, 0], np.arange(len(stored)))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'format_version': 1}, 'format_version is 1; embeddings of the kind .* have 2'),
        ({'embedding_dim': 128}, 'embedding_dim is 128; .* have 256'),
        ({'embedding_kind': 'int8'}, 'expected one of float32, float256, packed'),
        ({'index': {'type': 'flat', 'codes': 'other'}}, 'but embedding_kind'),
    ],
)
def test_manifests_that_cannot_be_true_are_refused(folder, changes, message, tmp_path):
    copy = tmp_path / 'copy.gallery'
    shutil.copytree(folder, copy)
    path = copy / 'gallery.json'
    manifest = Manifest.from_json(path.read_text())
    if 'index' in changes and manifest.embedding_kind == 'float256':
        changes = {'index': {'type': 'flat', 'codes': 'signs'}}
    path.chmod(0o644)
    path.write_text(dataclasses.replace(manifest, **changes).to_json())
    with pytest.raises(GalleryError, match=message):
        open_gallery(copy)


def test_what_is_seen_finds_its_place_in_every_kind_of_gallery(folder):
    """The way of the localizer: pixels, embedding, descriptor, search."""
    encoder = DescribingEncoder()
    with open_gallery(folder, encoder=encoder) as gallery:
        east_m, north_m = gallery.tile_east_m[30], gallery.tile_north_m[30]
        window = gallery.window(east_m, north_m, size_m=gallery.tile_size_m)
        descriptors = gallery.descriptor(encoder.encode(window.image[None]))
        assert gallery.search(descriptors, k=1)[1][0, 0] == 30
