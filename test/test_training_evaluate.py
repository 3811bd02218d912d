"""`python -m training.evaluate` from images on disk to the table, against slow computations."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from photo_sets import write

from bicrossnet_ros.encoder import default_model_path, open_encoder
from bicrossnet_ros.engine.model_file import read_model, write_model
from bicrossnet_ros.engine.onnx_graph import build_onnx
from bicrossnet_ros.errors import ConfigError, ImageError, ModelError
from bicrossnet_ros.preprocess import Preprocessing, prepare
from training.benchmark import list_tasks
from training.checkpoint import save_checkpoint
from training.config_files import config_from_dict, config_to_dict, with_changes
from training.data.images import read_image
from training.data.sources import find_photo_set
from training.decoding import resize_bicubic
from training.embedder import Embedder
from training.embedding import embed, open_embedder
from training.evaluate import main
from training.models.network import make_network
from training.paper import ROWS
from training.results import METRICS, ModelResults, Result, markdown

DRONES = 3
PX = 48


def texture(place: int) -> np.ndarray:
    rng = np.random.default_rng((8, place))
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(coarse, (PX, PX), interpolation=cv2.INTER_CUBIC)


def drone_view(place: int, view: int, *, noise: float) -> np.ndarray:
    rng = np.random.default_rng((9, place, view))
    shifted = np.roll(texture(place), rng.integers(-6, 7, 2), (0, 1))
    return np.clip(shifted + rng.normal(0, noise, shifted.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def university(tmp_path_factory):
    """University-1652 in small: 6 test places, 3 distractors, ids with gaps."""
    root = tmp_path_factory.mktemp('university')
    for place in (0, 3, 4, 11, 500, 1651, 7, 8, 9):
        distractor = place in (7, 8, 9)
        for part in ('gallery', *['query'] * (not distractor)):
            write(root / f'test/{part}_satellite/{place:04d}/{place:04d}.jpg', texture(place))
            for view in range(DRONES):
                image = drone_view(place, view, noise=60)
                write(root / f'test/{part}_drone/{place:04d}/image-{view:02d}.jpeg', image)
    return root


CONFIG = config_from_dict(
    {
        'model': {'name': 'bnext_nano', 'input_px': 32, 'bottleneck': 16},
        'unfreezing': {'strategy': 'none'},
    },
    source='test',
)


def save(path, config, *, classes=5, seed=0):
    torch.manual_seed(seed)
    network = make_network(config.model, classes=classes)
    with torch.no_grad():  # as if it had seen data: the branches' means are not all zero
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    save_checkpoint(
        path,
        {
            'config': config_to_dict(config),
            'classes': [f'{k:04d}' for k in range(classes)],
            'network': network.state_dict(),
            'step': 1,
            'epoch': 0,
            'figures': {},
            'git_revision': 'unknown',
        },
    )
    return network.eval()


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('run') / 'final.pt'
    return path, save(path, CONFIG)


def slow_metrics(query, query_labels, gallery, gallery_labels):
    """Rank by sorting, one query after the other."""
    hits, ap = dict.fromkeys((1, 5, 10), 0.0), 0.0
    for vector, label in zip(query, query_labels, strict=True):
        order = np.argsort(-(gallery @ vector))
        good = np.flatnonzero(np.asarray(gallery_labels)[order] == label)
        for k in hits:
            hits[k] += good[0] < k
        for i, rank in enumerate(good):
            ap += ((i / rank if rank else 1) + (i + 1) / (rank + 1)) / 2 / len(good)
    shares = {f'recall_at_{k}': value / len(query) for k, value in hits.items()}
    return shares | {'ap': ap / len(query)}


def slow_embedding(network, path):
    """Both features of one image, written out."""
    bgr = cv2.imread(str(path))
    inputs = torch.from_numpy(prepare(bgr[None, :, :, ::-1].copy(), Preprocessing(32, 32)))
    with torch.no_grad():
        outputs = network(torch.cat([inputs, torch.flip(inputs, dims=[3])]))
    backbone = outputs.embedding[0].numpy()
    joined = []
    for plain, mirrored in outputs.features:
        both = (plain + mirrored).numpy()
        joined.append(both / np.linalg.norm(both) / np.sqrt(3))
    return {
        'backbone': backbone / np.linalg.norm(backbone),
        'branches': np.concatenate(joined),
    }


def files(folder):
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    return paths, [int(path.parent.name) for path in paths]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def results(out):
    return json.loads((out / 'results.json').read_text())['models']


def test_checkpoint_scores_what_a_slow_computation_scores(
    university, checkpoint, tmp_path, capsys
):
    path, network = checkpoint
    out = tmp_path / 'out'
    assert run(path, '--data', university, '--out', out, '--pictures', 1, '--top', 2) == 0
    (model,) = results(out)
    assert model['source'] == 'university1652'
    assert model['backbone'] == 'bnext_nano'
    assert model['images'] == 6 * 4 + 9 * 4
    assert model['different_images'] == 9 * 4  # queries stand in the gallery again
    assert not model['comparable_with_paper']
    assert len(model['results']) == 8  # 2 features, 2 protocols, 2 directions
    paths = files(university / 'test')[0]
    different = {p.read_bytes(): p for p in paths}
    slow = {data: slow_embedding(network, p) for data, p in different.items()}
    vectors = {p: slow[p.read_bytes()] for p in paths}
    for result in model['results']:
        query, gallery = result['direction'].split('_to_')
        query_paths, query_labels = files(university / f'test/query_{query}')
        paths, labels = files(university / f'test/gallery_{gallery}')
        if result['protocol'] == 'reduced':
            kept = [k for k, label in enumerate(labels) if label in set(query_labels)]
            paths, labels = [paths[k] for k in kept], [labels[k] for k in kept]
        assert (result['queries'], result['gallery']) == (len(query_paths), len(paths))
        feature = result['feature']
        expected = slow_metrics(
            np.stack([vectors[p][feature] for p in query_paths]),
            query_labels,
            np.stack([vectors[p][feature] for p in paths]),
            labels,
        )
        found = {name: result['figures'][name] for name in expected}
        assert found == pytest.approx(expected, abs=1e-6), result
    values = {result['figures']['ap'] for result in model['results']}
    assert len(values) > 4  # the settings do differ
    printed = capsys.readouterr().out
    assert printed.strip() == (out / 'results.md').read_text().strip()
    rows = [line for line in printed.splitlines() if line.startswith('|')]
    assert len(rows) == 2 + 8
    assert len({line.count('|') for line in rows}) == 1
    assert 'not comparable' in printed
    names = {entry.name for entry in out.iterdir()}
    name = path.parent.name  # runs are told apart by their folders
    assert model['name'] == name
    assert {f'matches_{name}_drone_to_satellite.png', 'accuracy_ap.svg'} <= names


def test_model_files_score_as_their_checkpoint(university, checkpoint, tmp_path):
    from training.export import from_checkpoint

    path, _ = checkpoint
    exported = tmp_path / 'exported.safetensors'
    model = from_checkpoint(path, name='exported', record={'data': 'test', 'licence': 'none'})
    write_model(exported, model)
    onnx_path = tmp_path / 'graph.onnx'
    onnx_path.write_bytes(build_onnx(read_model(exported)).SerializeToString())
    common = ['--data', university, '--out', tmp_path / 'out', '--no-figures', '--feature']
    assert run(path, exported, onnx_path, *common, 'backbone') == 0
    first, *others = results(tmp_path / 'out')
    for other in others:
        assert other['backbone'] == 'bnext_nano'
        assert other['ops_g'] == pytest.approx(first['ops_g'])
        for one, result in zip(first['results'], other['results'], strict=True):
            assert result['figures'] == pytest.approx(one['figures'], abs=0.06)  # few queries
    query = list((university / 'test/query_drone').rglob('*.jpeg'))
    by_torch = open_embedder(path).embed_paths(query).vectors['backbone']
    for file in (exported, onnx_path):
        by_file = open_embedder(file).embed_paths(query).vectors['backbone']
        assert (by_file * by_torch).sum(axis=1).min() > 0.99


@pytest.fixture(scope='module')
def sues(tmp_path_factory):
    """SUES-200 as published, two test places and one for training; the higher, the noisier."""
    root = tmp_path_factory.mktemp('sues')
    for place in (1, 8, 12, 14, 17, 18):
        write(root / f'satellite-view/{place:04d}/0.png', texture(place))
        for height, noise in ((150, 0), (200, 90), (250, 150), (300, 2000)):
            for view in range(2):
                image = drone_view(place, view, noise=noise) if noise else texture(place)
                write(root / f'drone_view_512/{place:04d}/{height}/{view}.jpg', image)
    return root


@pytest.fixture
def tf32_seen():
    """TF32 allowed as a user may have it; which settings the networks' convolutions met."""
    backends, seen = (torch.backends.cudnn, torch.backends.cuda.matmul), set()

    def note(module, _):
        if isinstance(module, torch.nn.Conv2d):
            seen.add(tuple(backend.allow_tf32 for backend in backends))

    before = [backend.allow_tf32 for backend in backends]
    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    for backend in backends:
        backend.allow_tf32 = True
    yield seen
    left = [backend.allow_tf32 for backend in backends]
    hook.remove()
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed
    assert left == [True, True]


def test_evaluation_is_true_float32(checkpoint, university, tf32_seen):
    path, network = checkpoint
    image = university / 'test/query_drone/0003/image-00.jpeg'
    open_embedder(path, feature=None).embed_paths([image])
    assert tf32_seen == {(False, False)}
    tf32_seen.clear()
    embed(network, np.zeros((1, 32, 32, 3), np.uint8), Preprocessing(32, 32))
    assert tf32_seen == {(False, False)}


def test_heights_are_told_apart(sues, tmp_path):
    out = tmp_path / 'out'
    assert run(default_model_path(), '--data', sues, '--out', out, '--no-figures') == 0
    (model,) = results(out)
    recall = {
        (result['direction'], result['height_m']): result['figures']['recall_at_1']
        for result in model['results']
        if result['protocol'] == 'full'
    }
    assert len(recall) == 8
    for direction in ('drone_to_satellite', 'satellite_to_drone'):
        assert recall[direction, 150] == 1
        assert recall[direction, 300] < 0.7
    sizes = {(r['queries'], r['gallery']) for r in model['results'] if r['height_m'] == 200}
    assert sizes == {(10, 6), (5, 12), (10, 5), (5, 10)}
    assert (
        run(
            *(default_model_path(), '--data', sues, '--out', out, '--height', 300, 0),
            *('--protocol', 'reduced', '--no-figures'),
        )
        == 0
    )
    again = results(out)[0]['results']
    assert [(r['height_m'], r['queries']) for r in again] == [(300, 10), (300, 5), (0, 40), (0, 5)]
    assert again[0]['figures']['recall_at_1'] == pytest.approx(
        next(
            result['figures']['recall_at_1']
            for result in model['results']
            if (result['direction'], result['height_m'], result['protocol'])
            == ('drone_to_satellite', 300, 'reduced')
        )
    )


def test_row_of_the_paper_stands_beside(sues, tmp_path):
    out = tmp_path / 'out'
    arguments = [default_model_path(), '--data', sues, '--out', out, '--no-figures']
    assert run(*arguments, '--height', 150, '--paper-row', 'table2_tiny') == 0
    table = [line for line in (out / 'results.md').read_text().splitlines() if '150 m' in line]
    cells = [cell.strip() for cell in table[0].split('|')]
    assert cells[1:5] == ['drone → satellite', '150 m', 'full', 'backbone']
    assert cells[-5:-1] == ['69.41', '75.01', '', '']  # no difference to another data set
    full = results(out)[0]['results'][0]
    assert full['paper_percent']['recall_at_10'] == 81.41
    reduced = next(r for r in results(out)[0]['results'] if r['protocol'] == 'reduced')
    assert reduced['paper_percent'] is None


@pytest.mark.parametrize(
    ('source', 'trained_m', 'compared_m'),
    [
        ('sues200', 150, [150]),
        ('sues200', 300, [300]),
        ('sues200', 0, []),  # the paper pools no heights
        ('university1652', 0, [150, 300]),
    ],
)
def test_the_paper_stands_beside_the_height_of_training(
    source, trained_m, compared_m, sues, tmp_path
):
    changes = [f'data.source={source}', f'data.height_m={trained_m}']
    save(tmp_path / 'final.pt', with_changes(CONFIG, changes))
    out = tmp_path / 'out'
    arguments = [tmp_path / 'final.pt', '--data', sues, '--out', out, '--no-figures']
    more = ['--height', 150, 300, 0, '--protocol', 'full', '--paper-row', 'table2_tiny']
    assert run(*arguments, *more) == 0
    (model,) = results(out)
    assert {r['height_m'] for r in model['results']} == {0, 150, 300}
    compared = {r['height_m'] for r in model['results'] if r['paper_percent']}
    assert compared == set(compared_m)
    assert ('Paper R@1' in (out / 'results.md').read_text()) == bool(compared_m)
    assert ('Paper: table 2' in (out / 'results.md').read_text()) == bool(compared_m)


def test_differences_are_told_for_the_published_sizes_alone():
    figures = dict.fromkeys(METRICS, 0.8)

    def row(gallery):
        result = Result('drone_to_satellite', 'full', 0, 'backbone', 37_855, gallery, 0, figures)
        model = ModelResults(
            name='m',
            path='m.pt',
            model_id='0' * 64,
            source='university1652',
            input_px=(256, 256),
            resize='deployed',
            backbone='bnext_tiny',
            ops_g=0.36,
            images=1,
            different_images=1,
            unreadable=(),
            results=(result,),
            trained_height_m=None,
            paper_row=ROWS['table3_tiny'],
        )
        return markdown([model])

    assert '| 951 | 80.00 | 80.00 | 80.00 | 80.00 | 80.00 | 80.55 | 83.48 | -0.55 | -3.48 |' in (
        row(951)
    )
    assert 'not comparable' not in row(951)
    assert '| 80.55 | 83.48 |  |  |' in row(950)
    assert 'not comparable' in row(950)


def copy_of(university, tmp_path):
    shutil.copytree(university, tmp_path / 'data')
    return tmp_path / 'data'


def test_unreadable_images_are_fatal_or_counted(university, checkpoint, tmp_path, capsys):
    data = copy_of(university, tmp_path)
    broken = data / 'test/query_drone/0003/image-01.jpeg'
    broken.write_bytes(broken.read_bytes()[:200])
    (data / 'test/gallery_satellite/0007/0007.jpg').write_bytes(b'')
    (data / 'test/gallery_satellite/0008/0008.jpg').write_bytes(b'')
    common = [checkpoint[0], '--data', data, '--out', tmp_path / 'out', '--no-figures']
    assert run(*common) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ')
    assert 'image-01.jpeg: is cut off' in error
    assert run(*common, '--unreadable', 'skip') == 0
    (model,) = results(tmp_path / 'out')
    unreadable = ' '.join(model['unreadable'])
    assert len(model['unreadable']) == 3
    for name in ('image-01.jpeg', '0007.jpg', '0008.jpg'):
        assert name in unreadable
    assert (model['results'][0]['queries'], model['results'][0]['gallery']) == (17, 7)
    assert '3 unreadable images were left out' in (tmp_path / 'out/results.md').read_text()


def test_none_readable(tmp_path):
    paths = [tmp_path / f'{k}.jpg' for k in range(3)]
    paths[0].write_bytes(b'nothing')
    embedder = open_embedder(default_model_path())
    with pytest.raises(ImageError, match='none of 3 images could be embedded'):
        embedder.embed_paths(paths, unreadable='skip')
    with pytest.raises(ImageError, match='none of 0 images'):
        embedder.embed_paths([])
    with pytest.raises(ConfigError, match='expected fail or skip'):
        embedder.embed_paths(paths, unreadable='zero')


def test_kept_embeddings_serve_until_something_changes(
    university, checkpoint, tmp_path, monkeypatch
):
    data = copy_of(university, tmp_path)
    common = [checkpoint[0], '--data', data, '--out', tmp_path / 'out', '--no-figures']
    assert run(*common, '--keep-embeddings') == 0
    before = results(tmp_path / 'out')
    calls = []
    embed_paths = Embedder.embed_paths

    def counted(self, paths, *rest, **options):
        calls.append(len(paths))
        return embed_paths(self, paths, *rest, **options)

    monkeypatch.setattr(Embedder, 'embed_paths', counted)
    assert run(*common, '--keep-embeddings') == 0
    assert calls == []
    assert results(tmp_path / 'out') == before
    write(data / 'test/query_satellite/0003/0003.jpg', 255 - texture(3))
    assert run(*common, '--keep-embeddings') == 0
    assert calls == [60]
    assert results(tmp_path / 'out') != before
    (cached,) = (tmp_path / 'out/embeddings').iterdir()
    cached.write_bytes(b'damaged')
    assert run(*common, '--keep-embeddings') == 0
    assert run(*common) == 0
    assert calls == [60] * 3


def one_line_error(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith('error: ')
    assert not any('Traceback' in line for line in lines)
    return lines[-1]


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('none.pt', None, 'no such checkpoint'),
        ('text.pt', b'not a model', 'not a readable checkpoint'),
        ('text.safetensors', b'not a model', 'not a readable safetensors'),
        ('text.onnx', b'not a model', 'ONNX Runtime cannot load it'),
        ('none.onnx', None, 'no such model file'),
        ('notes.txt', b'x', r'a .txt file; expected a checkpoint .pt or a model file'),
    ],
)
def test_what_is_no_model(university, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run(tmp_path / name, '--data', university, '--out', tmp_path / 'out') == 2
    error = one_line_error(capsys)
    assert message in error
    assert name in error
    assert not (tmp_path / 'out').exists()


def test_wrong_data(university, checkpoint, tmp_path, capsys):
    out = ['--out', tmp_path / 'out']
    assert run(checkpoint[0], '--data', tmp_path / 'none', *out) == 2
    assert 'no such folder' in one_line_error(capsys)
    (tmp_path / 'empty').mkdir()
    assert run(checkpoint[0], '--data', tmp_path / 'empty', *out) == 2
    error = one_line_error(capsys)
    assert 'not University-1652' in error
    assert 'not SUES-200' in error
    write(tmp_path / 'half/train/satellite/0001/0001.jpg', texture(1))
    assert run(checkpoint[0], '--data', tmp_path / 'half', *out) == 2
    assert 'query_drone' in one_line_error(capsys)
    assert run(checkpoint[0], '--data', university, *out, '--height', 150) == 2
    assert 'university1652 has no heights' in one_line_error(capsys)


def test_wrong_options(university, checkpoint, tmp_path, capsys):
    common = ['--data', university, '--out', tmp_path / 'out']
    assert run(default_model_path(), *common, '--feature', 'branches') == 2
    assert 'holds no branches, they are not deployed' in one_line_error(capsys)
    assert run(checkpoint[0], *common, '--paper-row', 'table9_tiny') == 2
    assert "no row 'table9_tiny'" in one_line_error(capsys)
    assert run(checkpoint[0], *common, '--paper-row', 'table2_tiny') == 2
    assert 'table2_tiny is on sues200, the data is university1652' in one_line_error(capsys)
    assert run(checkpoint[0], *common, '--paper-row', 'none', 'none') == 2
    assert 'found 2 for 1 models' in one_line_error(capsys)
    (tmp_path / 'file').write_text('x')
    assert run(checkpoint[0], '--data', university, '--out', tmp_path / 'file') == 2
    assert 'choose another --out' in one_line_error(capsys)
    for option, value in (('--workers', 0), ('--top', 0), ('--pictures', -1), ('--seed', 'x')):
        with pytest.raises(SystemExit) as exited:
            run(checkpoint[0], *common, option, value)
        assert exited.value.code == 2
        assert option in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert run(checkpoint[0], *common, '--device', 'cuda') == 2
        assert 'no usable GPU' in one_line_error(capsys)


def test_checkpoint_without_branches(tmp_path):
    config = config_from_dict(
        {
            'model': {'name': 'bnext_nano', 'input_px': 32, 'branches': False},
            'losses': {'cross_entropy': 0, 'triplet': 0, 'info_nce': 1},
        },
        source='test',
    )
    path = tmp_path / 'plain.pt'
    save(path, config)
    assert open_embedder(path, feature=None).features == ('backbone',)
    with pytest.raises(ModelError, match='trained without branches'):
        open_embedder(path, feature='branches')


def test_a_network_of_nans_is_refused(university, tmp_path, capsys):
    path = tmp_path / 'nan.pt'
    save(path, CONFIG)
    state = torch.load(path, weights_only=True)
    key = next(key for key in state['network'] if key.endswith('norm2.weight'))
    state['network'][key].fill_(torch.nan)
    save_checkpoint(path, state)
    assert run(path, '--data', university, '--out', tmp_path / 'out', '--no-figures') == 2
    assert 'not of unit length' in one_line_error(capsys)


def test_both_features_in_one_pass(university, checkpoint, tmp_path):
    paths = sorted((university / 'test/query_drone').rglob('*.jpeg'))
    embedder = open_embedder(checkpoint[0], feature=('branches', 'backbone'))
    assert embedder.features == ('branches', 'backbone')
    vectors = embedder.embed_paths(paths, workers=3).vectors
    assert list(vectors) == ['branches', 'backbone']
    assert vectors['branches'].shape == (18, 48)
    for rows in vectors.values():
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    alone = open_embedder(checkpoint[0]).embed_paths(paths).vectors
    np.testing.assert_allclose(alone['backbone'], vectors['backbone'], atol=1e-5)
    mirrored = [tmp_path / f'{k:02d}.png' for k in range(len(paths))]
    for source, target in zip(paths, mirrored, strict=True):
        write(target, read_image(source)[:, ::-1])
    found = embedder.embed_paths(mirrored).vectors['branches']
    np.testing.assert_allclose(found, vectors['branches'], atol=1e-4)


def test_resizing_as_deployed_or_as_in_the_paper(university, checkpoint):
    path = next((university / 'test/query_satellite').rglob('*.jpg'))
    image = read_image(path)
    encoder = open_encoder(default_model_path())
    deployed = open_embedder(default_model_path()).embed_paths([path]).vectors['backbone']
    np.testing.assert_allclose(deployed, encoder.encode(image[None]), atol=1e-5)
    bicubic = open_embedder(default_model_path(), resize='bicubic')
    found = bicubic.embed_paths([path]).vectors['backbone']
    expected = encoder.encode(resize_bicubic(image, 96, 96)[None])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert abs(found - deployed).max() > 1e-4
    with pytest.raises(ConfigError, match='expected one of deployed, bicubic'):
        open_embedder(default_model_path(), resize='nearest')
    with pytest.raises(ConfigError, match='expected one of backbone, branches'):
        open_embedder(default_model_path(), feature='head')


def test_embed_leaves_every_mode_as_it_was(checkpoint):
    network = checkpoint[1]
    patches = np.stack([texture(k) for k in range(4)])
    network.train()
    network.backbone.eval()
    modes = [module.training for module in network.modules()]
    vectors = embed(network, patches, Preprocessing(32, 32))
    assert [module.training for module in network.modules()] == modes
    np.testing.assert_allclose(
        vectors, embed(network.backbone, patches, Preprocessing(32, 32)), atol=1e-6
    )
    network.eval()


def test_sources_are_found(university, sues):
    assert find_photo_set(university).source == 'university1652'
    assert find_photo_set(sues).source == 'sues200'
    tasks = list_tasks(sues, source='sues200', heights=None, protocols=['full'])
    assert [task.height_m for task in tasks] == [150, 150, 200, 200, 250, 250, 300, 300]
