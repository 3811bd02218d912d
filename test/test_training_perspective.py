"""The drone's camera: against rays that are followed one by one, and within its limits."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from training.data.perspective import Camera, draw_shot, draw_view, seen
from training.data.view_config import ViewConfig, only
from training.data.views import Place, drone_view

GEOMETRY = only('tilt', 'heading', 'scale', 'offset', 'edge')


def turned(axis, angle_rad):
    return cv2.Rodrigues(np.asarray(axis, float) * angle_rad)[0]


def axes(camera):
    """Right, down and forward of a camera on the ground's axes (x, y, down), by two turns."""
    lean = turned(
        (-math.sin(camera.azimuth_rad), math.cos(camera.azimuth_rad), 0), camera.tilt_rad
    )
    return [lean @ turned((0, 0, 1), camera.heading_rad) @ unit for unit in np.eye(3)]


def ground_of(camera, u, v):
    """Follow the ray through the frame's point (u, v) down to the ground."""
    right, down, forward = axes(camera)
    ray = u * right + v * down + forward
    assert ray[2] > 0
    return ray[:2] * camera.height / ray[2]


def frame_of(camera, x, y):
    """Look from the camera at a point of the ground."""
    right, down, forward = axes(camera)
    ray = np.array([x, y, camera.height])
    return ray @ right / (ray @ forward), ray @ down / (ray @ forward)


def by_rays(shot, x, y):
    """Ground that the patch shows at (x, y), from its middle, and where the frame has it."""
    middle = ground_of(shot.believed, *shot.aim)
    u, v = frame_of(shot.believed, middle[0] + x, middle[1] + y)
    return ground_of(shot.true, u, v) - ground_of(shot.true, *shot.aim), (u, v)


def shots(config, count=20, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_shot(rng, config) for _ in range(count)]


def shown(homography, x, y):
    u, v, w = homography @ (x, y, 1)
    return np.array([u, v]) / w


@pytest.mark.parametrize('full_tilt_share', [0.0, 1.0])
def test_patch_shows_what_rays_hit(full_tilt_share):
    for shot in shots(dataclasses.replace(GEOMETRY, full_tilt_share=full_tilt_share)):
        for x in (-0.5, 0.1, 0.5):
            for y in (-0.5, -0.2, 0.5):
                ground, frame = by_rays(shot, x, y)
                np.testing.assert_allclose(shown(shot.ground_from_patch, x, y), ground, atol=1e-9)
                np.testing.assert_allclose(shown(shot.frame_from_patch, x, y), frame, atol=1e-9)


def test_rendered_pixels_are_the_ground_that_rays_hit():
    """Red codes the column and green the row; every pixel is decoded and compared."""
    size_px, scene_px = 33, 256
    scene = np.zeros((scene_px, scene_px, 3), np.uint8)
    scene[..., 0], scene[..., 1] = np.arange(256), np.arange(256)[:, None]
    place = Place(row_px=130, col_px=125, side_px=60, rotation_rad=0.7)
    config = dataclasses.replace(GEOMETRY, full_tilt_share=0.5, min_fov_deg=40, max_fov_deg=60)
    filled = 0
    for seed in range(4):
        view = drone_view(
            scene, place, np.random.default_rng(seed), size_px=size_px, config=config
        )
        rng = np.random.default_rng(seed)
        shot, offset = draw_shot(rng, config), rng.uniform(-config.offset, config.offset, 2)
        known = np.zeros((size_px, size_px), bool)
        for row, col in np.ndindex(size_px, size_px):
            x, y = ((k - (size_px - 1) / 2) / size_px for k in (col, row))
            ground, frame = by_rays(shot, x, y)
            known[row, col] = all(
                abs(k) <= half for k, half in zip(frame, shot.half_frame, strict=True)
            )
            if not known[row, col]:
                continue
            right, down = (ground + offset[::-1]) * place.side_px
            cos, sin = math.cos(place.rotation_rad), math.sin(place.rotation_rad)
            expected = (
                place.col_px + cos * right - sin * down,
                place.row_px + sin * right + cos * down,
            )
            if min(expected) > 1 and max(expected) < 254:
                np.testing.assert_allclose(view[row, col, :2], expected, atol=1.01)
        filled += not known.all()
        if not known.all():
            mean = np.rint(view[known].mean(axis=0))
            np.testing.assert_array_equal(view[~known], np.tile(mean, ((~known).sum(), 1)))
    assert filled >= 1


def test_a_known_attitude_removes_all_of_the_tilt():
    config = dataclasses.replace(GEOMETRY, attitude_error_deg=0, full_tilt_share=0)
    for shot in shots(config):
        homography = shot.ground_from_patch / shot.ground_from_patch[2, 2]
        ratio = shot.true.height / shot.believed.height
        error = shot.true.heading_rad - shot.believed.heading_rad
        turn = ratio * turned((0, 0, 1), error)[:2, :2]
        np.testing.assert_allclose(homography[:2, :2], turn, atol=1e-9)
        np.testing.assert_allclose(homography[2, :2], 0, atol=1e-9)


def test_without_attitude_the_far_side_shows_more_ground():
    config = dataclasses.replace(only('tilt'), full_tilt_share=1, tilt_deg=30)
    for shot in shots(config):
        assert shot.believed.tilt_rad == 0
        ahead = 0.4 * np.array([math.cos(shot.true.azimuth_rad), math.sin(shot.true.azimuth_rad)])
        far = np.linalg.norm(shown(shot.ground_from_patch, *ahead))
        near = np.linalg.norm(shown(shot.ground_from_patch, *-ahead))
        assert far > near or shot.true.tilt_rad < 1e-3


def test_what_is_drawn_keeps_to_the_limits_and_uses_them():
    config = ViewConfig(heading_error_deg=30, full_tilt_share=0.3)
    drawn = shots(config, count=400)
    ratios = np.array([shot.true.height / shot.believed.height for shot in drawn])
    errors = np.degrees([shot.believed.heading_rad - shot.true.heading_rad for shot in drawn])
    tilts = np.degrees([shot.true.tilt_rad for shot in drawn])
    fov = np.degrees([2 * math.atan(shot.half_frame[0]) for shot in drawn])
    # The vertical in the camera's own axes is what an attitude tells without a heading.
    lean = np.degrees(
        [math.acos(min(1, shot.true.rotation[2] @ shot.believed.rotation[2])) for shot in drawn]
    )
    for values, low, high in (
        (ratios, 1 / 1.4, 1.4),
        (errors, -30, 30),
        (tilts, 0, 30),
        (fov, 50, 85),
    ):
        tenth = (high - low) / 10
        assert low <= values.min() + 1e-9 < low + tenth
        assert high - tenth < values.max() <= high + 1e-9
    full = np.array([shot.believed.tilt_rad == 0 for shot in drawn])
    assert full.mean() == pytest.approx(0.3, abs=0.08)
    np.testing.assert_allclose(lean[full], tilts[full], atol=1e-6)
    # The attitude error is added on the ground; on the sphere it is as large to a hundredth.
    assert 3.5 < lean[~full].max() < 4.04


def test_tilt_leans_in_every_direction():
    azimuths = [shot.true.azimuth_rad for shot in shots(ViewConfig(), count=200)]
    assert np.histogram(azimuths, bins=4, range=(0, math.tau))[0].min() > 25


def test_offset_is_within_its_share_of_the_side():
    rng = np.random.default_rng(1)
    config = only('offset')
    middles = np.array([shown(draw_view(rng, config)[1], 0, 0) for _ in range(200)])
    assert np.abs(middles).max() <= 0.25
    assert (middles.max(axis=0) > 0.22).all()
    assert (middles.min(axis=0) < -0.22).all()


def test_only_the_edge_of_the_frame_hides_ground():
    size_px = 24
    patch_from_view = (
        np.array([[1, 0, -(size_px - 1) / 2], [0, 1, -(size_px - 1) / 2], [0, 0, size_px]])
        / size_px
    )
    masks = [seen(shot, patch_from_view, size_px) for shot in shots(only('edge'), count=80)]
    shares = [mask.mean() for mask in masks if mask is not None]
    assert len(shares) > 20
    # Up to 0.3 of the side over both edges, and the corners of turned patches besides.
    assert 0.35 < min(shares) < 0.75
    assert all(share < 1 for share in shares)
    for shot in shots(only('tilt'), count=20):
        assert seen(shot, patch_from_view, size_px) is None


def test_straight_down_is_the_plain_pinhole():
    camera = Camera(height=2.0, tilt_rad=0.0, azimuth_rad=1.0, heading_rad=0.0)
    np.testing.assert_allclose(shown(camera.frame_from_ground, 3.0, -1.0), (1.5, -0.5), atol=1e-12)
