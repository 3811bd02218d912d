"""Views: their geometry is the promised one, their randomness is seeded."""

import dataclasses
import itertools
import math

import cv2
import numpy as np
import pytest

from bicrossnet_ros.errors import ConfigError
from training.config_files import config_from_dict
from training.data import views_picture
from training.data.sensor import SENSOR_CHANGES
from training.data.view_config import GEOMETRY_CHANGES, ViewConfig, only, switches
from training.data.views import CHANGES, Place, draw_changes, look, sample_places, view_pair
from training.data.world import WORLD_CHANGES

STILL = only()


def scene(size_px: int = 128, seed: int = 0, cells: int = 16) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), np.uint8)
    return cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_CUBIC)


def test_unit_place_is_the_scene_itself():
    image = scene(64)
    place = Place(row_px=31.5, col_px=31.5, side_px=64, rotation_rad=0)
    np.testing.assert_array_equal(look(image, place, 64), image)


def test_quarter_turn_and_offset():
    image = scene(64)
    place = Place(row_px=31.5, col_px=31.5, side_px=64, rotation_rad=math.pi / 2)
    np.testing.assert_array_equal(look(image, place, 64), np.rot90(image))
    place = Place(row_px=20.5, col_px=36.5, side_px=16, rotation_rad=0)
    np.testing.assert_array_equal(look(image, place, 16), image[13:29, 29:45])


def test_two_places_lie_side_by_side():
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = sample_places(rng, scene_px=200, places=2, config=ViewConfig())
        distance = math.hypot(one.row_px - other.row_px, one.col_px - other.col_px)
        assert distance == pytest.approx(1.1 * one.side_px)
        assert 70 <= one.side_px <= 100
        assert (one.row_px + other.row_px) / 2 == pytest.approx(99.5)


@pytest.mark.parametrize('places', [3, 4])
def test_more_places_are_corners_of_a_square(places):
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = sample_places(rng, scene_px=200, places=places, config=ViewConfig(spacing=0.8))
        assert len(drawn) == places
        centers = np.array([(place.row_px, place.col_px) for place in drawn])
        for one, other in itertools.pairwise(centers):
            assert math.dist(one, other) == pytest.approx(0.8 * drawn[0].side_px)
        assert centers.min() > 15
        assert centers.max() < 185
    with pytest.raises(ValueError, match='places is 5; expected 1 to 4'):
        sample_places(rng, scene_px=200, places=5, config=ViewConfig())


def test_clean_still_views_are_equal():
    rng = np.random.default_rng(0)
    (place,) = sample_places(rng, scene_px=128, places=1, config=STILL)
    tile, query = view_pair(scene(), place, rng, size_px=48, config=STILL)
    np.testing.assert_array_equal(tile, query)


def test_fine_patterns_are_averaged_not_aliased():
    rows, cols = np.mgrid[:512, :512]
    checkers = np.where((rows + cols) % 2, 200, 50).astype(np.uint8)
    image = np.repeat(checkers[..., None], 3, -1)
    place = Place(row_px=255.5, col_px=255.5, side_px=384, rotation_rad=0.3)
    for view in view_pair(image, place, np.random.default_rng(0), size_px=96, config=STILL):
        np.testing.assert_allclose(view, 125, atol=20)


def test_moved_views_share_most_of_their_ground():
    """The query's geometry stays within its limits: found again by registration."""
    rng = np.random.default_rng(3)
    config = only('heading', 'scale', 'offset', 'tilt')
    place = Place(row_px=255.5, col_px=255.5, side_px=200, rotation_rad=0.4)
    image = scene(512, cells=80)
    for _ in range(10):
        tile, query = view_pair(image, place, rng, size_px=128, config=config)
        sift = cv2.SIFT_create()
        keys, descriptors = zip(
            *(
                sift.detectAndCompute(cv2.cvtColor(v, cv2.COLOR_RGB2GRAY), None)
                for v in (tile, query)
            ),
            strict=True,
        )
        pairs = cv2.BFMatcher(crossCheck=True).match(*descriptors)
        source = np.float32([keys[0][m.queryIdx].pt for m in pairs])
        target = np.float32([keys[1][m.trainIdx].pt for m in pairs])
        similarity, inliers = cv2.estimateAffinePartial2D(
            source, target, ransacReprojThreshold=4.0
        )
        assert inliers.sum() >= 12
        scale = math.hypot(similarity[0, 0], similarity[1, 0])
        angle_deg = math.degrees(math.atan2(similarity[1, 0], similarity[0, 0]))
        assert 1 / 1.7 < scale < 1.7
        assert abs(angle_deg) < config.heading_error_deg + 8


def test_views_follow_from_the_seed():
    def pair(seed):
        rng = np.random.default_rng(seed)
        (place,) = sample_places(rng, scene_px=128, places=1, config=ViewConfig())
        return view_pair(scene(), place, rng, size_px=32, config=ViewConfig())

    for one, again, other in zip(pair(0), pair(0), pair(1), strict=True):
        np.testing.assert_array_equal(one, again)
        assert not np.array_equal(one, other)


def pair(config, seed=0, size_px=64):
    image = scene(128, cells=32)
    place = Place(row_px=63, col_px=66, side_px=60, rotation_rad=0.4)
    return view_pair(image, place, np.random.default_rng(seed), size_px=size_px, config=config)


def test_the_table_of_changes_is_complete():
    assert (*GEOMETRY_CHANGES, *SENSOR_CHANGES, *WORLD_CHANGES) == CHANGES
    assert set(switches()) == set(CHANGES) - {'tilt', 'heading', 'scale', 'offset'}


@pytest.mark.parametrize('name', CHANGES)
def test_each_switch_changes_the_query_alone(name):
    """Some draw must differ, and none of the tiles may."""
    changed = 0
    for seed in range(6):
        tile, query = pair(only(name), seed)
        np.testing.assert_array_equal(tile, pair(only(), seed)[0])
        assert query.dtype == np.uint8
        assert query.shape == tile.shape
        changed += not np.array_equal(tile, query)
    assert changed >= (1 if name == 'edge' else 4)


@pytest.mark.parametrize('name', CHANGES)
def test_no_strength_is_no_change(name):
    zero = {
        'tilt': {'tilt_deg': 0.0, 'attitude_error_deg': 0.0},
        'heading': {'heading_error_deg': 0.0},
        'scale': {'scale_ratio': 1.0},
    }.get(name, {name: 0.0})
    for seed in range(4):
        tile, query = pair(dataclasses.replace(only(name), **zero), seed)
        np.testing.assert_array_equal(tile, query)


def test_shares_and_busyness():
    rng = np.random.default_rng(0)
    names = (*SENSOR_CHANGES, *WORLD_CHANGES)
    half = ViewConfig(**{f'{name}_share': 0.3 for name in names})
    counts = {}
    for busyness in (0.0, 1.0):
        config = dataclasses.replace(half, busyness=busyness)
        counts[busyness] = np.array([len(draw_changes(rng, config)) for _ in range(600)])
    assert counts[0.0].mean() == pytest.approx(0.3 * len(names), rel=0.06)
    assert counts[1.0].std() > 2 * counts[0.0].std()
    assert np.median(counts[1.0]) < counts[0.0].mean()
    sure = ViewConfig(**{f'{name}_share': 1.0 for name in names})
    assert all(len(draw_changes(rng, sure)) == len(names) for _ in range(50))
    never = ViewConfig(**{f'{name}_share': 0.0 for name in names})
    assert not any(draw_changes(rng, never) for _ in range(50))


def test_strengths_keep_to_their_largest():
    rng = np.random.default_rng(0)
    config = ViewConfig(haze_share=1, haze=0.4)
    drawn = [draw_changes(rng, config)['haze'] for _ in range(200)]
    assert 0 < min(drawn) < 0.1
    assert 0.38 < max(drawn) <= 0.4


def test_tiles_change_as_the_map_allows():
    errors = {}
    for map_views in ('clean', 'mild', 'same'):
        config = ViewConfig(map_views=map_views, false_color_share=0)
        tiles = [pair(config, seed)[0].astype(int) for seed in range(30)]
        clean = pair(only())[0]
        errors[map_views] = np.mean([np.abs(tile - clean).mean() for tile in tiles])
    assert errors['clean'] == 0
    assert 1 < errors['mild'] < 0.5 * errors['same']


def test_map_and_camera_share_a_false_colour():
    clean, _ = pair(only())
    for seed in range(3):
        tile, query = pair(dataclasses.replace(only(), false_color_share=1.0), seed)
        np.testing.assert_array_equal(tile, query)
        assert np.abs(tile.astype(int) - clean).mean() > 5


def test_most_queries_remain_recognisable():
    """Geometry aside, the default changes must leave the ground: its gradients correlate."""
    still = {
        'heading_error_deg': 0,
        'scale_ratio': 1,
        'offset': 0,
        'tilt_deg': 0,
        'attitude_error_deg': 0,
        'edge_share': 0,
    }
    image = scene(128, cells=12)
    place = Place(row_px=63, col_px=66, side_px=60, rotation_rad=0.4)
    found = []
    for seed in range(60):
        tile, query = (
            cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(float)
            for view in view_pair(
                image, place, np.random.default_rng(seed), size_px=64, config=ViewConfig(**still)
            )
        )
        found.append(abs(np.corrcoef(tile.ravel(), query.ravel())[0, 1]))
    assert np.median(found) > 0.7
    assert np.mean(np.array(found) > 0.3) > 0.75


def test_wrong_settings_are_told():
    with pytest.raises(ConfigError, match=r'ViewConfig\.min_fov_deg is 90.*at most max_fov_deg'):
        ViewConfig(min_fov_deg=90)
    with pytest.raises(ConfigError, match=r'ViewConfig\.snow is 1\.5'):
        ViewConfig(snow=1.5)
    with pytest.raises(ConfigError, match='clean, mild, same'):
        ViewConfig(map_views='dirty')
    with pytest.raises(ConfigError, match=r"no such effect: \['rain'\]"):
        only('rain')
    with pytest.raises(ConfigError, match='blur_px'):
        config_from_dict({'data': {'views': {'blur_px': 1.0}}}, source='test')


def test_sheets_are_drawn(tmp_path, capsys):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f'{number}.png'), scene(96, seed=number))
    out = tmp_path / 'out'
    arguments = ['--scenes', str(tmp_path), '--out', str(out), '--side-px', '32']
    assert views_picture.main(arguments) == 0
    names = ['views_effects.jpg', 'views_pairs.jpg', 'views_strengths.jpg']
    assert sorted(path.name for path in out.iterdir()) == names
    sheet = cv2.imread(str(out / names[0]))
    strips = -(-(len(CHANGES) + 1) // 2)
    assert sheet.shape[0] == strips * (32 + views_picture.LABEL_PX + views_picture.GAP_PX)
    assert sheet.std() > 30
    assert views_picture.main(['--scenes', str(tmp_path / 'no'), '--out', str(out)]) == 2
    assert 'no such folder' in capsys.readouterr().err
