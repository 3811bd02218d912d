"""Views: their geometry is the promised one, their randomness is seeded."""

import math

import cv2
import numpy as np
import pytest

from training.data.view_config import ViewConfig, only
from training.data.views import Place, look, sample_places, view_pair

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
