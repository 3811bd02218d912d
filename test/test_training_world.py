"""Changes of the world: each does what its name says, at any size, and nothing at strength 0."""

import warnings

import cv2
import numpy as np
import pytest

from bicrossnet_ros.errors import ConfigError, ImageError
from training.data import objects, world
from training.data.world import STRENGTHS, WORLD_CHANGES, change_world

DARKENING = ('shadows', 'clouds')
LOCAL = ('fields', 'roofs', 'missing', 'moved')


@pytest.fixture(autouse=True)
def _no_warning():
    """NaN and overflow come with warnings; none may come."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def ground(height=96, width=128, seed=0):
    """A landscape: meadow and soil, some trees, a grey road, bright even roofs."""
    rng = np.random.default_rng(seed)
    side = min(height, width)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (96, 124, 72)
    image[:, width // 2 :] = (150, 128, 104)
    image[height // 2 : height // 2 + side // 12] = (120, 120, 122)
    for row, col in rng.uniform(0, 1, (14, 2)):
        center = (int(col * width), int(row * height))
        cv2.circle(image, center, max(2, side // 24), (40, 62, 36), -1)
    for row, col in rng.uniform(0, 1, (8, 2)):
        corner = np.array([col * width, row * height]).astype(int)
        cv2.rectangle(image, corner.tolist(), (corner + side // 9).tolist(), (205, 200, 190), -1)
    grain = rng.normal(0, 5, (height, width, 1))
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def change(image, kind, *, seed=0, strength=1.0):
    return change_world(image, np.random.default_rng(seed), kinds=[kind], strength=strength)


def difference(one, other):
    return np.abs(one.astype(int) - other)


@pytest.mark.parametrize('kind', WORLD_CHANGES)
class TestEveryChange:
    def test_follows_from_the_seed_and_changes_something(self, kind):
        image = ground()
        before = image.copy()
        views = [change(image, kind, seed=seed) for seed in (0, 0, 1)]
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(views[0], views[1])
        assert not np.array_equal(views[0], views[2])
        assert difference(views[0], image).max() > 20

    def test_strength_zero_is_unchanged_and_a_copy(self, kind):
        image = ground()
        same = change(image, kind, strength=0)
        np.testing.assert_array_equal(same, image)
        assert not np.shares_memory(same, image)

    def test_next_to_no_strength_changes_next_to_nothing(self, kind):
        faint = np.mean(
            [
                difference(change(ground(), kind, seed=k, strength=0.01), ground()).mean()
                for k in range(4)
            ]
        )
        assert faint < 2

    def test_grows_with_the_strength(self, kind):
        image = ground()
        sizes = [
            np.mean(
                [
                    difference(change(image, kind, seed=k, strength=s), image).mean()
                    for k in range(24)
                ]
            )
            for s in STRENGTHS.values()
        ]
        assert sizes[0] < sizes[1] < sizes[2]

    @pytest.mark.parametrize('size', [(32, 32), (33, 77), (120, 64), (192, 256)])
    def test_takes_any_size_and_any_memory_order(self, kind, size):
        image = ground(*size)
        for seed, view in enumerate((image, image[::-1, ::-1], np.asfortranarray(image))):
            changed = change(view, kind, seed=seed)
            assert changed.shape == image.shape
            assert changed.dtype == np.uint8
            straight = change(np.ascontiguousarray(view), kind, seed=seed)
            np.testing.assert_array_equal(changed, straight)

    def test_flat_and_extreme_images_are_no_trouble(self, kind):
        for level in (0, 1, 128, 255):
            image = np.full((40, 48, 3), level, np.uint8)
            for seed in range(4):
                assert change(image, kind, seed=seed).dtype == np.uint8
        sparks = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (40, 48, 3))
        assert change(sparks, kind).shape == sparks.shape


@pytest.mark.parametrize('kind', [*LOCAL, 'shadows', 'clouds'])
def test_sizes_are_relative_to_the_image(kind):
    """A frame is changed in about the same part of its area as a small view."""
    shares = []
    for size in ((96, 128), (288, 384)):
        image = ground(*size)
        changed = [difference(change(image, kind, seed=k), image).max(axis=-1) for k in range(30)]
        shares.append(np.mean([(one > 8).mean() for one in changed]))
    assert 0.6 < shares[1] / shares[0] < 1.6


@pytest.mark.parametrize('kind', LOCAL)
def test_changed_objects_leave_most_of_the_ground(kind):
    image = ground(192, 256)
    for seed in range(10):
        assert (difference(change(image, kind, seed=seed), image).max(axis=-1) > 0).mean() < 0.65


@pytest.mark.parametrize('kind', DARKENING)
def test_shadows_only_darken_and_leave_some_light(kind):
    image = ground()
    for seed in range(10):
        shaded = change(image, kind, seed=seed)
        assert (shaded <= image).all()
        assert shaded.mean() > 0.35 * image.mean()


def test_cloud_shadows_are_soft_and_building_shadows_hard():
    flat = np.full((96, 96, 3), 180, np.uint8)
    steps = {
        kind: np.median(
            [
                np.abs(np.diff(change(flat, kind, seed=k)[..., 1].astype(int))).max()
                for k in range(15)
            ]
        )
        for kind in DARKENING
    }
    assert steps['shadows'] > 3 * steps['clouds']


def test_tones_keep_the_order_of_greys():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, -1)
    for seed in range(10):
        changed = change(ramp, 'tones', seed=seed).astype(int)
        assert (np.diff(changed, axis=1) >= 0).all()
        assert np.ptp(changed[..., 1]) > 80


def test_vegetation_is_what_is_green():
    colors = [(96, 124, 72), (40, 62, 36), (120, 120, 122), (150, 128, 104), (30, 45, 60)]
    image = np.array([colors], np.uint8)
    meadow, tree, road, soil, water = world.vegetation(image)[0]
    assert min(meadow, tree) > 0.8
    assert max(road, soil, water) < 0.25


def test_season_turns_the_plants_and_not_the_road():
    image = ground()
    road, meadow = np.s_[50:54, 10:60], np.s_[5:45, 5:60]
    hues = []
    for seed in range(20):
        changed = change(image, 'season', seed=seed).astype(float)
        assert np.abs(np.diff(changed[road].mean((0, 1)))).max() < 40
        color = changed[meadow].mean((0, 1))
        hues.append((color[1] - color[0]) / color.sum())
    # From green to red: among the seasons are autumn and lush spring.
    assert min(hues) < -0.05
    assert max(hues) > 0.08


def test_snow_bleaches_open_ground_and_not_the_trees():
    image = ground()
    trees = (image[..., 1] < 90).nonzero()
    open_ground = (image[..., 1] > 110).nonzero()
    snowy = change(image, 'snow')
    assert snowy[open_ground].mean() > image[open_ground].mean() + 40
    assert difference(snowy[trees], image[trees]).mean() < 40
    assert np.ptp(snowy[open_ground].mean(axis=0)) < 30


def test_haze_takes_contrast_and_adds_light():
    image = ground()
    for seed in range(5):
        hazy = change(image, 'haze', seed=seed)
        assert hazy.std() < 0.75 * image.std()
        assert hazy.mean() > image.mean()


def test_infrared_makes_plants_bright_more_often_than_not():
    """Against the road, as in near infrared; permuted and grey channels are among the draws."""
    image = ground()
    brighter = 0
    for seed in range(40):
        light = change(image, 'infrared', seed=seed).max(axis=-1)
        brighter += np.median(light[5:45, 5:60]) > 1.2 * np.median(light[50:54, 10:60])
    assert brighter > 18


def test_a_furrowed_field_has_stripes():
    even = np.full((128, 128, 3), (100, 130, 80), np.uint8)
    field = change(even, 'fields', seed=1)
    changed = difference(field, even).max(axis=-1) > 10
    assert 0.02 < changed.mean() < 0.6
    rows, cols = changed.nonzero()
    middle = field[..., 1][rows.min() : rows.max(), cols.min() : cols.max()].astype(float)
    spectrum = np.abs(np.fft.fft2(middle - middle.mean()))
    spectrum[:3, :3] = spectrum[:3, -2:] = spectrum[-2:, :3] = spectrum[-2:, -2:] = 0
    assert spectrum.max() > 12 * np.median(spectrum)


def test_missing_objects_give_way_to_the_ground_beside_them():
    image = np.full((96, 96, 3), (110, 120, 90), np.uint8)
    for row, col in np.ndindex(3, 3):
        image[15 + 30 * row :, 15 + 30 * col :][:5, :5] = 255
    left = []
    for seed in range(40):
        changed = change(image, 'missing', seed=seed)
        left.append((changed.min(axis=-1) > 200).mean() / (image[..., 0] == 255).mean())
        assert changed.min() >= 90
    assert np.mean(left) < 0.93


def test_a_moved_object_is_still_there():
    image = np.full((96, 96, 3), (110, 120, 90), np.uint8)
    image[40:46, 50:56] = 255
    moved = 0
    for seed in range(40):
        bright = (change(image, 'moved', seed=seed).min(axis=-1) > 200).nonzero()
        if len(bright[0]) > 5:
            moved += abs(np.mean(bright[0]) - 42.5) + abs(np.mean(bright[1]) - 52.5) > 4
    assert moved > 5


def test_an_even_roof_takes_another_colour():
    image = ground()
    image[20:38, 70:92] = (210, 70, 60)
    seed = next(
        k
        for k in range(200)
        if difference(change(image, 'roofs', seed=k)[22:36, 72:90], image[22:36, 72:90]).min() > 10
    )
    roof = change(image, 'roofs', seed=seed)[22:36, 72:90].astype(float)
    assert np.ptp(roof.mean((0, 1))) < 140


def test_all_together_in_any_order_of_naming():
    image = ground(96, 128)
    one = change_world(image, np.random.default_rng(3), strength=2 / 3)
    other = change_world(
        image, np.random.default_rng(3), kinds=WORLD_CHANGES[::-1], strength=2 / 3
    )
    np.testing.assert_array_equal(one, other)
    assert difference(one, image).mean() > 10


def test_the_table_names_what_the_issue_names():
    assert len(set(WORLD_CHANGES)) == len(WORLD_CHANGES) == 12
    assert list(STRENGTHS.values()) == sorted(STRENGTHS.values())
    assert STRENGTHS['strong'] == 1.0


def test_wrong_input_is_told():
    image = ground()
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match='no such change of the world: rain; expected some of'):
        change_world(image, rng, kinds=['rain', 'snow'])
    with pytest.raises(ConfigError, match=r'strength is 1\.5; expected 0 to 1'):
        change_world(image, rng, strength=1.5)
    with pytest.raises(ImageError, match='float64 of shape'):
        change_world(image / 255, rng)
    with pytest.raises(ImageError, match=r'uint8 of shape \(96, 128\)'):
        change_world(image[..., 0], rng)
    with pytest.raises(ImageError, match='20 x 96 px; expected 32 px or more'):
        change_world(image[:, :20], rng)


def test_a_spot_is_chosen_where_something_is():
    image = np.full((96, 96, 3), 100, np.uint8)
    image[:, 48:] = np.random.default_rng(0).integers(0, 256, (96, 48, 3))
    rng = np.random.default_rng(1)
    cols = [objects._spot(image, rng, 1.0)[1] for _ in range(40)]
    assert np.mean(np.array(cols) > 36) > 0.85
