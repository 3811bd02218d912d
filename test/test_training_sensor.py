"""The sensor: each flaw by its definition, and the corners that no frame saw."""

import math

import cv2
import numpy as np
import pytest

from bicrossnet_ros.camera import GroundView
from bicrossnet_ros.patch import FramePyramid, ground_patch
from bicrossnet_ros.types import Intrinsics
from training.data.sensor import (
    SENSOR_CHANGES,
    apply_sensor,
    blur,
    fill_unseen,
    jpeg,
    motion,
    noise,
    vignette,
)

STRENGTHS = {'vignette': 0.6, 'blur': 0.02, 'motion': 0.06, 'noise': 0.06, 'jpeg': 0.8}


def picture(height=64, width=64, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def spread(image):
    """Covariance (2, 2) of the positions (x, y) of the light, in square pixels."""
    weights = image[..., 1].astype(float) / image[..., 1].sum()
    y, x = np.indices(weights.shape) - (len(weights) // 2)
    return np.array([[(weights * a * b).sum() for a in (x, y)] for b in (x, y)])


@pytest.mark.parametrize('kind', SENSOR_CHANGES)
@pytest.mark.parametrize('size', [(64, 64), (48, 80), (192, 256)])
def test_every_flaw_is_seeded_and_keeps_the_kind(kind, size):
    image = picture(*size)
    before = image.copy()
    one, again = (
        apply_sensor(image, np.random.default_rng(5), {kind: STRENGTHS[kind]}) for _ in '12'
    )
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(image, before)
    assert one.shape == image.shape
    assert one.dtype == np.uint8
    assert not np.array_equal(one, image)
    same = apply_sensor(image, np.random.default_rng(5), {kind: 0.0})
    np.testing.assert_array_equal(same, image)


def test_blur_spreads_light_by_its_sigma():
    # A line, as a dot would dim to a few levels and rounding would show.
    line = np.zeros((101, 101, 3), np.uint8)
    line[:, 50] = 255
    assert math.sqrt(spread(blur(line, 0.02))[0, 0]) == pytest.approx(2.02, rel=0.05)


@pytest.mark.parametrize('angle_deg', [0, 30, 90, 135])
def test_motion_smears_along_its_line_alone(angle_deg):
    image = np.zeros((101, 101, 3), np.uint8)
    image[48:53, 48:53] = 255
    angle = math.radians(angle_deg)
    added = spread(motion(image, 0.12, angle)) - spread(image)
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    # A line of length l has the variance l^2 / 12; bilinear dots add at most 1/4 pixel.
    assert along @ added @ along == pytest.approx(12.12**2 / 12, rel=0.08)
    assert abs(across @ added @ across) < 0.4


def test_motion_keeps_the_light():
    flat = np.full((40, 50, 3), 137, np.uint8)
    np.testing.assert_array_equal(motion(flat, 0.1, 0.7), flat)


def test_noise_has_its_sigma_at_mid_grey_and_grows_with_light():
    rng = np.random.default_rng(0)
    sigmas = {
        level: np.std(noise(np.full((200, 200, 3), level, np.uint8), rng, 0.04).astype(float))
        for level in (64, 128, 180)
    }
    assert sigmas[128] == pytest.approx(0.04 * 255, rel=0.02)
    for level, sigma in sigmas.items():
        expected = 0.04 * 255 * math.sqrt(0.5 + level / 255)
        assert sigma == pytest.approx(expected, rel=0.03)


def test_vignette_leaves_the_middle_and_takes_its_share_in_the_corners():
    flat = np.full((101, 101, 3), 200, np.uint8)
    dark = vignette(flat, 0.5)
    assert dark[50, 50, 0] == 200
    # The outermost pixels' centres lie half a pixel within the corner.
    assert dark[0, 0, 0] == pytest.approx(200 * (1 - 0.5 * (100 / 101) ** 2), abs=1)
    assert dark[0, 50, 0] == pytest.approx(200 * (1 - 0.25 * (100 / 101) ** 2), abs=1)


def test_vignette_follows_the_frame_not_the_patch():
    flat = np.full((64, 64, 3), 200, np.uint8)
    shifted = np.array([[1.0, 0, 1.5], [0, 1, 0], [0, 0, 1]])
    dark = vignette(flat, 0.6, shifted, (2.0, 1.5)).astype(int)
    assert (np.diff(dark[..., 0], axis=1) <= 0).all()
    assert dark[32, 63, 0] == pytest.approx(200 * (1 - 0.6 * (1.5 + 0.492) ** 2 / 6.25), abs=1)


def test_jpeg_of_lower_quality_errs_more():
    image = picture()
    image = noise(image, np.random.default_rng(0), 0.05)
    errors = [np.abs(jpeg(image, q).astype(int) - image).mean() for q in (95, 50, 10)]
    assert errors == sorted(errors)
    assert errors[0] < 4
    # The channels stay where they are.
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 220
    assert (jpeg(red, 90)[..., 0] > 200).all()


def test_unseen_ground_gets_the_mean_as_the_product_gives_it():
    """A frame half off the patch, by the product; its fill by the simulator must be the same."""
    intrinsics = Intrinsics(
        width_px=80, height_px=60, fx_px=70.0, fy_px=70.0, cx_px=39.5, cy_px=29.5
    )
    cos, sin = math.cos(0.3), math.sin(0.3)
    north_up = np.diag([1.0, -1.0, -1.0]) @ [[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]
    view = GroundView(intrinsics, north_up, 70.0)
    patch = ground_patch(
        FramePyramid(picture(60, 80)),
        view,
        size_px=(48, 48),
        gsd_m=1.0,
        middle_m=view.center_m + 25,
    )
    assert 0.2 < patch.mask.mean() < 0.9
    image = patch.image.copy()
    image[~patch.mask] = 7
    np.testing.assert_array_equal(fill_unseen(image, patch.mask), patch.image)


def test_nothing_is_filled_where_all_or_nothing_is_seen():
    image = picture()
    for mask in (None, np.ones((64, 64), bool), np.zeros((64, 64), bool)):
        np.testing.assert_array_equal(fill_unseen(image.copy(), mask), image)
