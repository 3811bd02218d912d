"""The view evaluation: what is right, what is ranked where, and the command that measures it."""

import json
import math

import cv2
import numpy as np
import pytest
from views_fixture import draw_scene, write_scenes

from bicrossnet_ros.descriptor import Projection
from bicrossnet_ros.encoder import default_model_path
from bicrossnet_ros.errors import ConfigError
from training.data.views import CHANGES
from training.evaluate_views import KEYS, Evaluation, main, make_task
from training.flight_rows import RowFile
from training.views_metrics import by_group, figures, rank
from training.views_models import open_model, parse_models
from training.views_pictures import choose_failures
from training.views_queries import choose_conditions, conditions, draw_places, render, turned
from training.views_scenes import (
    LEAST_OVERLAP,
    MIDDLE,
    SIDE,
    TestScenes,
    cut_tiles,
    land_use,
    load_test_scenes,
    overlap,
    right_tiles,
    scale,
    tile_px,
)

NAMES = ('rsscn7/aGrass/a001.jpg', 'rsscn7/cIndustry/c250.jpg', 'neon/ABBY_1.png')


@pytest.fixture(scope='module')
def scenes():
    return TestScenes(NAMES, np.stack([draw_scene(seed) for seed in range(len(NAMES))]))


@pytest.fixture(scope='module')
def plain():
    return choose_conditions(['plain'])[0]


def test_scenes_by_land_use_and_scale(scenes):
    assert scenes.land_uses == ('Grass', 'Industry', 'neon')
    assert scenes.scales == ('1', '3', 'other')
    assert [scale(f'x/b{number:03d}.jpg') for number in (100, 101, 300, 301, 400, 401, 0)] == [
        *'12344',
        'other',
        'other',
    ]
    assert land_use('a001.jpg') == 'other'


def test_overlap_counts_common_pixels():
    rng = np.random.default_rng(0)
    side, canvas = 40, 200
    corners = rng.integers(0, canvas - side, (6, 2))
    corners[1] = corners[0] + (side, 3)  # touches
    corners[2] = corners[0]
    centers = (corners + side / 2) * SIDE / side
    masks = np.zeros((6, canvas + side, canvas + side), bool)
    for mask, (row, col) in zip(masks, corners, strict=True):
        mask[row : row + side, col : col + side] = True
    counted = [[(a & b).sum() / side**2 for b in masks] for a in masks]
    np.testing.assert_allclose(overlap(centers, centers), counted, atol=1e-12)


def test_tiles_are_cut_where_they_say(scenes):
    tiles = cut_tiles(scenes)
    side, scene_px = tile_px(200), 200
    assert tiles.images.shape == (3 * 16, side, side, 3)
    for image, scene, center in zip(tiles.images, tiles.scenes, tiles.centers, strict=True):
        row, col = np.round(center * scene_px - side / 2).astype(int)
        np.testing.assert_array_equal(
            image, scenes.images[scene][row : row + side, col : col + side]
        )
    steps = np.unique(np.diff(np.unique(tiles.centers[:, 0])).round(9))
    assert steps == pytest.approx([SIDE / 2])


def test_every_place_of_the_middle_has_a_right_tile(scenes):
    tiles = cut_tiles(scenes)
    axis = np.linspace(*MIDDLE, 15)
    centers = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    right = right_tiles(np.ones(len(centers), int), centers, tiles)
    assert right.sum(axis=1).min() >= 1
    assert right.sum(axis=1).max() <= 5
    assert not right[:, tiles.scenes != 1].any()
    # The nearest tile shows (1 - 1/4)^2 of the ground or more.
    assert overlap(centers, tiles.centers[:16]).max(axis=1).min() >= 0.75**2 - 1e-9
    assert LEAST_OVERLAP < 0.75**2


def test_a_plain_view_of_a_tiles_place_is_the_tile(scenes, plain):
    tiles = cut_tiles(scenes)
    places = draw_places(scenes, per_scene=1, seed=0)
    places.centers[:] = tiles.centers[[5, 16 + 6, 32 + 10]]
    views = render(scenes, places, plain, seed=0)
    np.testing.assert_array_equal(views, tiles.images[[5, 16 + 6, 32 + 10]])


def test_views_depend_on_seed_scene_and_condition_alone(scenes):
    condition = choose_conditions(['typical'])[0]
    views = render(scenes, draw_places(scenes, per_scene=2, seed=3), condition, seed=3)
    fewer = TestScenes(NAMES[1:2], scenes.images[1:2])
    again = render(fewer, draw_places(fewer, per_scene=2, seed=3), condition, seed=3)
    np.testing.assert_array_equal(views[2:4], again)
    other = render(fewer, draw_places(fewer, per_scene=2, seed=3), condition, seed=4)
    assert (other != again).any()


def test_every_change_stands_alone_once():
    names = [condition.name for condition in conditions()]
    assert len(set(names)) == len(names)
    alone = [c.name for c in conditions() if c.group in ('geometry', 'sensor', 'world')]
    assert sorted(alone) == sorted(set(CHANGES) - {'offset'})
    assert all(c.views.offset == 0 for c in conditions())
    with pytest.raises(ConfigError, match="condition 'rain' is unknown; expected some of plain"):
        choose_conditions(['rain'])


@pytest.mark.parametrize('name', [c.name for c in conditions()])
def test_every_condition_changes_the_view(scenes, plain, name):
    if name == 'plain':
        return
    condition = choose_conditions([name])[0]
    places = draw_places(scenes, per_scene=1, seed=0)
    views = render(scenes, places, condition, seed=0)
    if condition.any_heading:
        assert views.shape[1] >= math.sqrt(2) * tile_px(200)
        views = turned(views, size_px=tile_px(200), headings=1)[:, 0]
    changed = views.astype(int) - render(scenes, places, plain, seed=0)
    assert np.abs(changed).mean() > 0.1


def test_turned_views():
    view = draw_scene(0, 101)
    squares = turned(view[None], size_px=41, headings=4)[0]
    middle = view[30:71, 30:71]
    for guess in range(4):
        np.testing.assert_array_equal(squares[guess], np.rot90(middle, guess))
    fine = turned(view[None], size_px=41, headings=12)[0]
    np.testing.assert_array_equal(fine[3], np.rot90(middle))


def slow_rank(query, gallery, right):
    """Sort all tiles, the wrong ones first among equals; the place of the first right one."""
    similarity = [max(float(guess @ tile) for guess in query) for tile in gallery]
    order = sorted(range(len(gallery)), key=lambda k: (-similarity[k], right[k]))
    wrong = next(k for k in order if not right[k])
    first = next(k for k in order if right[k])
    return order.index(first) - sum(right[k] for k in order[: order.index(first)]), wrong, first


@pytest.mark.parametrize('guesses', [1, 3])
def test_ranks_agree_with_sorting(guesses):
    rng = np.random.default_rng(1)
    # Few small whole numbers: many ties.
    gallery = rng.integers(-1, 2, (40, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (300, guesses, 4)).astype(np.float32)
    right = rng.random((300, 40)) < 0.1
    right[:, 0] = True
    found = rank(queries, gallery, right)
    slow = [slow_rank(q, gallery, r) for q, r in zip(queries, right, strict=True)]
    np.testing.assert_array_equal(found.ranks, [one[0] for one in slow])
    best = np.einsum('qkd,gd->qkg', queries, gallery).max(axis=1)
    rows = np.arange(300)
    for tiles, values, column in (
        (found.wrong, found.wrong_similarity, 1),
        (found.right, found.right_similarity, 2),
    ):
        expected = best[rows, [one[column] for one in slow]]
        np.testing.assert_array_equal(best[rows, tiles], expected)
        np.testing.assert_array_equal(values, expected)
    assert not right[rows, found.wrong].any()
    assert right[rows, found.right].all()


def test_figures_of_ranks():
    ranks = np.array([0, 0, 3, 4, 5, 0, 17, 1, 0, 0])
    row = figures(ranks)
    assert (row['queries'], row['recall_at_1'], row['recall_at_5']) == (10, 0.5, 0.8)
    # Wilson 1927 at z = 1.96.
    assert row['interval_at_1'] == pytest.approx([0.2366, 0.7634], abs=1e-4)
    assert row['interval_at_5'] == pytest.approx([0.4902, 0.9433], abs=1e-4)
    groups = by_group(ranks, list('aaaaabbbbb'))
    assert list(groups) == ['a', 'b']
    assert (groups['a']['recall_at_1'], groups['b']['recall_at_1']) == (0.4, 0.6)
    assert groups['b']['queries'] == 5


def test_failures_are_of_different_scenes():
    rows = choose_failures(np.array([0, 0, 1, 1, 2, 3]), np.array([0, 2, 1, 9, 0, 4]), shown=2)
    assert rows.tolist() == [1, 5]
    assert len(choose_failures(np.array([0, 1]), np.array([0, 0]), shown=2)) == 0


SIDES = {
    'rsscn7/aGrass/a001.jpg': 'test',
    'rsscn7/bField/b101.jpg': 'test',
    'rsscn7/bField/b102.jpg': 'train',
    'rsscn7/gParking/g399.jpg': 'test',
    'rsscn7/gParking/g400.jpg': 'validation',
}


@pytest.fixture
def folder(tmp_path):
    write_scenes(tmp_path, sides=SIDES)
    return tmp_path


def test_the_command_measures_and_goes_on(folder, capsys):
    out = folder / 'views.json'
    command = [
        *('--data', str(folder), '--split', str(folder / 'split.csv'), '--scene-px', '200'),
        *('--models', f'nano={default_model_path()}', '--out', str(out)),
        *('--pictures', str(folder / 'pictures'), '--conditions'),
    ]
    assert main([*command, 'plain', 'typical_any_heading', 'everything']) == 0
    results = json.loads(out.read_text())
    # The shipped model has a projection: single looks are compared by its descriptors as well.
    whole = [row for row in results['rows'] if row['descriptor'] == 'float']
    assert len(results['rows']) == len(whole) + 2 * 2
    assert [(row['condition'], row['guesses']) for row in whole] == [
        ('plain', 1),
        ('typical_any_heading', 1),
        ('typical_any_heading', 12),
        ('everything', 1),
    ]
    assert results['command'].startswith('python -m training.evaluate_views --data')
    assert [row['queries'] for row in whole] == [6, 3, 3, 6]
    row = whole[0]
    assert (row['queries'], row['gallery']) == (6, 48)
    assert row['recall_at_1'] > 1 / 3
    assert set(row['by_land_use']) == {'Grass', 'Field', 'Parking'}
    assert set(row['by_scale']) == {'1', '2', '4'}
    everything = (folder / 'pictures' / 'views_nano_everything.jpg').read_bytes()
    assert cv2.imdecode(np.frombuffer(everything, np.uint8), 1).std() > 10
    assert 'recall@1' in capsys.readouterr().err

    # What is there stays; what is missing is added.
    assert main([*command, 'plain', 'tilt']) == 0
    count = len(results['rows'])
    assert json.loads(out.read_text())['rows'][:count] == results['rows']
    assert json.loads(out.read_text())['rows'][count]['condition'] == 'tilt'
    said = capsys.readouterr().err
    assert 'tilt  ' in said
    assert 'plain  ' not in said

    # Another seed makes other queries, so other rows.
    assert main([*command, 'plain', '--seed', '1']) == 0
    rows = json.loads(out.read_text())['rows']
    assert len(rows) == count + 1
    assert rows[0]['fingerprint'] != results['rows'][0]['fingerprint']


class Colours:
    """Embeds a patch as the colours of a grid of cells; with a projection to descriptors."""

    model_id = 'colours'
    projection = Projection(
        np.full(48, 0.1, np.float32),
        np.random.default_rng(0).normal(size=(48, 256)).astype(np.float16),
    )

    def encode(self, patches):
        cells = [cv2.resize(patch, (4, 4), interpolation=cv2.INTER_AREA) for patch in patches]
        rows = np.stack(cells).reshape(len(patches), -1).astype(np.float32) - 100
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_compressed_descriptors_are_compared_as_in_a_gallery(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr('training.evaluate_views.open_model', lambda path: Colours())
    rows = RowFile(tmp_path / 'v.json', command='', revision='', keys=KEYS)
    task = make_task(scenes, per_scene=4, seed=0)
    typical = choose_conditions(['typical', 'noise'])
    Evaluation(task, {'colours': tmp_path}, rows).run(typical)
    found = {(row['condition'], row['descriptor']): row['recall_at_1'] for row in rows.rows}
    assert sorted(found) == [
        ('noise', 'float'),
        ('typical', 'float'),
        ('typical', 'packed'),
        ('typical', 'projected'),
    ]
    views = render(scenes, task.places, typical[0], seed=0)
    apply = Colours.projection.apply
    tiles, queries = (apply(Colours().encode(x)) for x in (task.tiles.images, views))
    for descriptor, stored in (('projected', tiles), ('packed', np.where(tiles >= 0, 1, -1))):
        best = (queries @ stored.T).argmax(axis=1)
        hits = task.right[np.arange(len(views)), best].mean()
        assert found['typical', descriptor] == pytest.approx(hits)


def test_known_errors_take_one_line(folder, capsys):
    def said(*changed):
        command = {
            '--data': str(folder),
            '--split': str(folder / 'split.csv'),
            '--models': f'nano={default_model_path()}',
            '--out': str(folder / 'views.json'),
            **dict(changed),
        }
        assert main([word for pair in command.items() for word in pair]) == 2
        error = capsys.readouterr().err
        assert error.startswith('error: ')
        assert error.count('\n') == 1
        return error

    assert 'expected NAME=FILE' in said(('--models', 'nano'))
    assert 'no such file, seen from' in said(('--models', 'nano=nowhere.onnx'))
    assert 'no such folder' in said(('--data', str(folder / 'nowhere')))
    assert "condition 'rain' is unknown" in said(('--conditions', 'rain'))
    (folder / 'rsscn7/bField/b101.jpg').unlink()
    message = said(('--data', str(folder)))
    assert (
        '1 of the 3 test scenes of the split are not there (first: rsscn7/bField/b101' in message
    )
    (folder / 'views.json').write_text('{}')
    assert 'no results of this tool' in said()


def test_models_have_names_of_their_own(folder):
    file = default_model_path()
    assert parse_models([f'a={file}', f'b={file}']) == {'a': file, 'b': file}
    with pytest.raises(ConfigError, match='a is given twice'):
        parse_models([f'a={file}', f'a={file}'])


def test_a_checkpoint_embeds_as_its_model_file(tmp_path):
    torch = pytest.importorskip('torch')
    from bicrossnet_ros.engine.model_file import write_model
    from training.checkpoint import save_checkpoint
    from training.config_files import config_from_dict, config_to_dict
    from training.export import from_checkpoint
    from training.models.network import make_network

    losses = {'cross_entropy': 0, 'triplet': 0, 'logit_distillation': 0}
    model = {'name': 'bnext_nano', 'input_px': 32, 'branches': False}
    config = config_from_dict({'model': model, 'losses': losses}, source='test')
    torch.manual_seed(0)
    network = make_network(config.model, classes=0)
    state = {'config': config_to_dict(config), 'network': network.state_dict(), 'classes': []}
    state |= {'step': 0, 'epoch': 0, 'figures': {}, 'git_revision': ''}
    save_checkpoint(tmp_path / 'final.pt', state)
    write_model(
        tmp_path / 'm.safetensors', from_checkpoint(tmp_path / 'final.pt', name='m', record={})
    )
    patches = np.stack([draw_scene(seed, 72) for seed in range(4)])
    trained = open_model(tmp_path / 'final.pt').encode(patches)
    flying = open_model(tmp_path / 'm.safetensors').encode(patches)
    np.testing.assert_allclose(np.linalg.norm(trained, axis=1), 1, atol=1e-5)
    assert (np.sum(trained * flying, axis=1) > 0.98).all()


def test_a_task_has_places_in_every_scene(folder):
    scenes = load_test_scenes(folder, split=folder / 'split.csv', scene_px=200)
    assert scenes.names == tuple(name for name, side in SIDES.items() if side == 'test')
    task = make_task(scenes, per_scene=2, seed=0)
    assert task.places.scenes.tolist() == [0, 0, 1, 1, 2, 2]
    assert task.right.shape == (6, 48)
    assert task.right.any(axis=1).all()
