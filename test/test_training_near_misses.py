"""Near misses: as far from each other as is said, and their ground is where the pixels are."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from test_training_maps import coded_scene, coded_source

from training.config import DataConfig
from training.data.loader import batches
from training.data.near_misses import FARTHEST, NEAREST, Ground, ground_of, near_places
from training.data.view_config import ViewConfig, only
from training.data.views import Place, look, view_pair


@pytest.mark.parametrize('places', [1, 2, 3, 4])
def test_places_of_a_scene_are_near_each_other_and_tiles_of_one_map(places):
    config = ViewConfig()
    reached = []
    for seed in range(300):
        drawn = near_places(
            np.random.default_rng(seed), scene_px=256, places=places, config=config
        )
        assert len(drawn) == places
        assert len({(place.side_px, place.rotation_rad) for place in drawn}) == 1
        side = drawn[0].side_px
        assert config.min_side * 256 <= side <= config.max_side * 256
        for one, two in itertools.combinations(drawn, 2):
            reached.append(math.dist((one.row_px, one.col_px), (two.row_px, two.col_px)) / side)
        for place in drawn:
            assert np.abs(np.array([place.row_px, place.col_px]) - 127.5).max() < 128
    if reached:
        assert NEAREST <= min(reached) < NEAREST + 0.05
        assert FARTHEST - 0.1 < max(reached) <= FARTHEST + 1e-9


@pytest.mark.parametrize(
    'views', [ViewConfig(), ViewConfig(heading_error_deg=180), ViewConfig(tilt_deg=0)]
)
def test_the_ground_of_a_query_is_what_its_middle_shows(views):
    """The scene codes its rows and columns as colours; they are read in the query's middle."""
    config = only('tilt', 'heading', 'scale', 'offset', config=views)
    config = dataclasses.replace(config, false_color_share=0.0)
    scene = coded_scene()
    for seed in range(20):
        (place,) = near_places(np.random.default_rng(seed), scene_px=256, places=1, config=config)
        place = dataclasses.replace(place, row_px=120.0, col_px=135.0)
        _, query = view_pair(
            scene, place, np.random.default_rng((seed, 1)), size_px=65, config=config
        )
        ground = ground_of(3, place, np.random.default_rng((seed, 1)), config=config)
        cos, sin = math.cos(place.rotation_rad), math.sin(place.rotation_rad)
        col = cos * ground.query_col - sin * ground.query_row
        row = sin * ground.query_col + cos * ground.query_row
        assert (ground.scene, ground.side) == (3, place.side_px)
        np.testing.assert_allclose(query[32, 32, :2], (col, row), atol=2.5)
        tile = sin * ground.col + cos * ground.row, cos * ground.col - sin * ground.row
        np.testing.assert_allclose(tile, (place.row_px, place.col_px), atol=1e-9)


def test_the_side_of_a_query_follows_the_height():
    """Without tilt the scene's colours change across the query as its side says."""
    config = dataclasses.replace(only('scale', 'offset'), false_color_share=0.0)
    place = Place(127.5, 127.5, 80.0, 0.0)
    sides = []
    for seed in range(20):
        _, query = view_pair(
            coded_scene(), place, np.random.default_rng(seed), size_px=64, config=config
        )
        ground = ground_of(0, place, np.random.default_rng(seed), config=config)
        across = (float(query[32, 60, 0]) - float(query[32, 4, 0])) * 64 / 56
        assert ground.query_side == pytest.approx(abs(across), rel=0.05)
        sides.append(ground.query_side)
    assert min(sides) < 70
    assert max(sides) > 90


def test_a_source_tells_the_ground_of_its_near_misses_alone():
    assert coded_source(2).ground(0, key=(0, 0, 0)) is None
    source = coded_source(4)
    grounds = [source.ground(place, key=(5, 0, 2)) for place in range(12)]
    assert [ground.scene for ground in grounds] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(grounds)) == 12
    for place, ground in enumerate(grounds):
        tile, _ = source.sample(place, None, key=(5, 0, 2))
        angle = math.atan2(
            float(tile[16, 28, 1]) - float(tile[16, 4, 1]),
            float(tile[16, 28, 0]) - float(tile[16, 4, 0]),
        )
        row = math.sin(angle) * ground.col + math.cos(angle) * ground.row
        col = math.cos(angle) * ground.col - math.sin(angle) * ground.row
        np.testing.assert_allclose(tile[16, 16, :2], (col, row), atol=8)


def test_batches_carry_the_ground_in_the_order_of_their_rows():
    source = coded_source(4, count=5)
    config = DataConfig(source='maps', places_per_step=8, places_per_scene=4, scene_px=64)
    for batch in batches(source, config, seed=3, stream=0, first_step=0, last_step=2):
        rows = [Ground(int(row[0]), *row[1:]) for row in batch.ground.tolist()]
        assert rows == [source.ground(k, key=(3, 0, 0)) for k in batch.labels.tolist()]
    pairs = coded_source(2, count=5)
    config = DataConfig(source='maps', places_per_step=8, places_per_scene=2, scene_px=64)
    for batch in batches(pairs, config, seed=3, stream=0, first_step=0, last_step=1):
        assert batch.ground is None


def test_what_a_place_shows_alone_is_its_tile():
    scene, place = coded_scene(), Place(100.0, 140.0, 60.0, 0.4)
    np.testing.assert_array_equal(
        look(scene, place, 33),
        view_pair(scene, place, np.random.default_rng(0), size_px=33, config=only())[0],
    )
