"""Augmentation: geometry by hand, AutoAugment beside Pillow, erasing by its definition."""

import numpy as np
import pytest
from photo_sets import picture

from training.config import AugmentConfig
from training.data import autoaugment
from training.data.augment import ERASED, augment_pair, erase, rotate_shift, shift

NONE = AugmentConfig(pad_px=0, flip_share=0.0)


def pair() -> tuple[np.ndarray, np.ndarray]:
    return picture(1, size_px=40), picture(2, size_px=40)


def many(config: AugmentConfig, count: int = 200) -> list[tuple[np.ndarray, np.ndarray]]:
    return [augment_pair(*pair(), np.random.default_rng(k), config) for k in range(count)]


def mirrored(image: np.ndarray, original: np.ndarray) -> bool:
    if np.array_equal(image, original):
        return False
    assert np.array_equal(image, original[:, ::-1])
    return True


def test_nothing_is_done_when_nothing_is_asked_for():
    for satellite, drone in many(NONE, 5):
        assert np.array_equal(satellite, pair()[0])
        assert np.array_equal(drone, pair()[1])


def test_the_same_generator_gives_the_same_views():
    config = AugmentConfig(
        satellite_rotation_deg=90.0,
        satellite_quarter_turns=True,
        drone_auto_augment=True,
        drone_erasing_share=0.5,
    )
    views = [(*augment_pair(*pair(), np.random.default_rng(k // 2), config),) for k in range(40)]
    for first, second in zip(views[::2], views[1::2], strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({drone.tobytes() for _, drone in views}) == 20


def test_views_are_mirrored_each_on_its_own_or_together():
    single = many(AugmentConfig(pad_px=0, flip_share=0.5))
    flips = np.array([[mirrored(a, b) for a, b in zip(v, pair(), strict=True)] for v in single])
    # 200 coins: four standard deviations are 28.
    assert np.all(np.abs(flips.sum(0) - 100) < 28)
    assert abs((flips[:, 0] == flips[:, 1]).sum() - 100) < 28
    together = many(AugmentConfig(pad_px=0, flip_share=0.5, paired_flip=True))
    flips = np.array([[mirrored(a, b) for a, b in zip(v, pair(), strict=True)] for v in together])
    assert np.all(flips[:, 0] == flips[:, 1])
    assert abs(flips[:, 0].sum() - 100) < 28


def test_shift_repeats_the_edge_and_reaches_every_offset():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2)
    seen = set()
    for seed in range(300):
        moved = shift(image, np.random.default_rng(seed), 2)
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode='edge')
        at = [
            (row, col)
            for row in range(5)
            for col in range(5)
            if np.array_equal(moved, padded[row : row + 8, col : col + 8])
        ]
        assert len(at) == 1
        seen.update(at)
    assert len(seen) == 25


def test_only_the_satellite_view_is_turned():
    config = AugmentConfig(pad_px=0, flip_share=0.0, satellite_quarter_turns=True)
    turns = []
    for satellite, drone in many(config, 60):
        assert np.array_equal(drone, pair()[1])
        turns += [k for k in range(4) if np.array_equal(satellite, np.rot90(pair()[0], k))]
    assert len(turns) == 60
    assert set(turns) == {0, 1, 2, 3}


def test_rotation_is_about_the_centre_within_its_limit():
    rng = np.random.default_rng(0)
    size_px = 41
    ray = np.zeros((size_px, size_px, 3), np.uint8)
    ray[19:22, 20:] = 255
    rows, cols = np.mgrid[:size_px, :size_px] - 20
    angles = []
    for _ in range(100):
        weights = rotate_shift(ray, rng, 90.0, 0)[..., 0].astype(float)
        assert weights[20, 20] > 200
        angles.append(np.degrees(np.arctan2(-(weights * rows).sum(), (weights * cols).sum())))
    assert np.all(np.abs(angles) < 91)
    assert max(angles) > 70
    assert min(angles) < -70


def test_erasing_paints_one_rectangle_of_the_published_size():
    image = np.full((60, 60, 3), 7, np.uint8)
    shares = []
    for seed in range(200):
        erased = (erase(image, np.random.default_rng(seed)) == ERASED).all(2)
        rows, cols = np.flatnonzero(erased.any(1)), np.flatnonzero(erased.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(cols) + 1
        assert erased.sum() == height * width
        # Sides are rounded to whole pixels.
        assert 0.3 * 0.85 < height / width < 1.15 / 0.3
        shares.append(height * width / 3600)
    assert 0.015 < min(shares) < 0.06
    assert 0.33 < max(shares) < 0.42
    assert np.all(image == 7)


def test_erasing_and_auto_augment_spare_the_satellite_view():
    config = AugmentConfig(
        pad_px=0, flip_share=0.0, drone_auto_augment=True, drone_erasing_share=0.5
    )
    views = many(config)
    assert all(np.array_equal(satellite, pair()[0]) for satellite, _ in views)
    erased = sum((drone == ERASED).all(2).sum() > 20 for _, drone in views)
    assert abs(erased - 100) < 28


def test_the_policy_has_25_recipes_of_known_operations():
    assert len(autoaugment.POLICY) == 25
    for recipe in autoaugment.POLICY:
        assert len(recipe) == 2
        for name, probability, magnitude in recipe:
            assert name in autoaugment.OPERATIONS
            assert 0 <= probability <= 1
            assert 0 <= magnitude <= 9
    image = picture(1)
    copy = image.copy()
    results = {
        autoaugment.auto_augment(image, np.random.default_rng(k)).tobytes() for k in range(200)
    }
    assert len(results) > 30
    assert np.array_equal(image, copy)


def pillow():
    """Pillow defines what the authors' operations do: they called it."""
    return pytest.importorskip('PIL.Image'), pytest.importorskip('PIL.ImageOps')


@pytest.mark.parametrize('low_contrast', [False, True])
@pytest.mark.parametrize(
    ('operation', 'argument', 'reference'),
    [
        ('posterize', 4, 'posterize'),
        ('posterize', 6, 'posterize'),
        ('posterize', 8, 'posterize'),
        ('solarize', 0, 'solarize'),
        ('solarize', 113.8, 'solarize'),
        ('solarize', 256, 'solarize'),
        ('invert', None, 'invert'),
        ('auto_contrast', None, 'autocontrast'),
        ('equalize', None, 'equalize'),
    ],
)
def test_operations_on_values_equal_those_of_pillow(operation, argument, reference, low_contrast):
    image_module, ops = pillow()
    image = picture(3, size_px=64)
    if low_contrast:
        image = image // 3 + np.array([0, 50, 100], np.uint8)
    arguments = () if argument is None else (argument,)
    ours = getattr(autoaugment, operation)(image, *arguments)
    theirs = getattr(ops, reference)(image_module.fromarray(image), *arguments)
    assert np.array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize('name', ['auto_contrast', 'equalize'])
def test_an_image_of_one_colour_stays(name):
    image = np.full((8, 8, 3), (0, 100, 255), np.uint8)
    assert np.array_equal(getattr(autoaugment, name)(image), image)


@pytest.mark.parametrize('factor', [0.1, 0.6, 1.0, 1.4, 1.9])
@pytest.mark.parametrize('name', ['color', 'contrast', 'sharpness'])
def test_blends_equal_those_of_pillow_but_for_rounding(name, factor):
    image_module, _ = pillow()
    enhance = pytest.importorskip('PIL.ImageEnhance')
    image = picture(3, size_px=64)
    ours = getattr(autoaugment, name)(image, factor)
    theirs = getattr(enhance, name.capitalize())(image_module.fromarray(image)).enhance(factor)
    difference = np.abs(ours.astype(int) - np.asarray(theirs))
    assert difference.max() <= 2
    assert difference.mean() < 0.6


def test_strength_and_direction_span_the_published_ranges():
    image = np.zeros((101, 101, 3), np.uint8)
    image[48:53, 50:] = 255
    rows, cols = np.mgrid[:101, :101] - 50
    for sign in (1, -1):
        turned = autoaugment.OPERATIONS['rotate'](image, 1.0, sign)[..., 0].astype(float)
        turned[turned == autoaugment.FILL[0]] = 0
        angle = np.degrees(np.arctan2(-(turned * rows).sum(), (turned * cols).sum()))
        assert angle == pytest.approx(30 * sign, abs=1.0)
    column = np.zeros((101, 101, 3), np.uint8)
    column[:, 30:33] = 255
    sheared = autoaugment.OPERATIONS['shear_x'](column, 1.0, 1)[..., 0].astype(float)
    sheared[sheared == autoaugment.FILL[0]] = 0
    moved = (sheared * np.arange(101)).sum(1) / np.maximum(sheared.sum(1), 1)
    assert moved[100] - moved[0] == pytest.approx(30, abs=1)
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert len(np.unique(autoaugment.OPERATIONS['posterize'](values, 1.0, 1))) == 16
    assert np.array_equal(autoaugment.OPERATIONS['solarize'](values, 0.0, 1), values)
    assert np.array_equal(autoaugment.OPERATIONS['solarize'](values, 1.0, 1), 255 - values)
