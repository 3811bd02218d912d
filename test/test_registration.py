"""Features, matching, alignment and camera pose, each against what is known to be true."""

import math
from dataclasses import replace

import numpy as np
import pytest
from localizer_scene import LENS, Shot, ground_texture

from bicrossnet_ros.camera import apply, rotation_camera_from_world
from bicrossnet_ros.config import CameraConfig, RegistrationConfig
from bicrossnet_ros.features import Features, MapFeatures, extract, match, no_features
from bicrossnet_ros.gallery import MapWindow
from bicrossnet_ros.pose import ground_point, solve_pose
from bicrossnet_ros.registration import (
    Expectation,
    Refusal,
    Registration,
    coarse_similarity,
    jacobian_at,
    refused_shape,
    register,
)
from bicrossnet_ros.types import Reason

CONFIG = RegistrationConfig()
EXPECTATION = Expectation(min_scale=0.74, max_scale=1.35, max_rotation_deg=90.0)


def similarity(rotation_deg=0.0, scale=1.0, east_m=0.0, north_m=0.0):
    """Turn clockwise, scale and shift, (3, 3)."""
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    return np.array(
        [
            [scale * cos, scale * sin, east_m],
            [-scale * sin, scale * cos, north_m],
            [0.0, 0.0, 1.0],
        ]
    )


def descriptors_like(rng, count):
    """RootSIFT-like rows: unit length times 512, as bytes."""
    rows = rng.gamma(0.6, 1.0, (count, 128))
    rows /= rows.sum(axis=1, keepdims=True)
    return np.clip(np.round(512 * np.sqrt(rows)), 0, 255).astype(np.uint8)


def synthetic(homography, *, good=150, bad=100, noise_m=0.1, seed=0, size_m=40.0):
    """Features of which `good` agree with a homography and `bad` match at random places."""
    rng = np.random.default_rng(seed)
    total = good + bad
    source = rng.uniform(-size_m, size_m, (total, 2))
    target = apply(homography, source) + rng.normal(0, noise_m, (total, 2))
    target[good:] = rng.uniform(-2 * size_m, 2 * size_m, (bad, 2))
    descriptors = descriptors_like(rng, total)
    order = rng.permutation(total)
    return Features(source, descriptors), Features(target[order], descriptors[order])


# Features and matching


@pytest.fixture(scope='module')
def picture():
    return ground_texture(300, 400, seed=11)


def test_features_come_strongest_first_and_within_the_mask(picture):
    mask = np.zeros((300, 400), bool)
    mask[50:250, 80:300] = True
    found = extract(picture, mask, max_features=300)
    assert 100 < len(found) <= 310  # OpenCV keeps ties
    cols, rows = found.points.T
    assert mask[rows.round().astype(int), cols.round().astype(int)].all()
    everywhere = np.ones((300, 400), bool)
    found = extract(picture, everywhere, max_features=300)
    fewer = extract(picture, everywhere, max_features=100)
    strongest = {tuple(point) for point in found.strongest(100).points}
    common = strongest & {tuple(point) for point in fewer.points}
    assert len(common) > 0.9 * len(strongest)  # ties may fall either way


def test_nothing_to_see_gives_no_features(picture):
    assert len(extract(picture, np.zeros((300, 400), bool), max_features=100)) == 0
    gray = np.full((200, 200, 3), 90, np.uint8)
    assert len(extract(gray, np.ones((200, 200), bool), max_features=100)) == 0


def test_matching_is_the_mutual_ratio_test():
    rng = np.random.default_rng(2)
    left = Features(rng.uniform(size=(60, 2)), descriptors_like(rng, 60))
    noisy = np.clip(left.descriptors[::-1].astype(int) + rng.integers(-25, 26, (60, 128)), 0, 255)
    right = Features(rng.uniform(size=(60, 2)), noisy.astype(np.uint8))
    a, b = left.descriptors.astype(float) / 512, right.descriptors.astype(float) / 512
    expected = set()
    for row in range(60):
        similar = a[row] @ b.T
        best, second = np.argsort(-similar)[:2]
        if 1 - similar[best] < 0.8**2 * (1 - similar[second]) and (a @ b[best]).argmax() == row:
            expected.add((row, int(best)))
    assert set(map(tuple, match(left, right, ratio=0.8).tolist())) == expected


def test_two_equal_references_are_not_distinctive():
    rng = np.random.default_rng(3)
    one = descriptors_like(rng, 20)
    query = Features(np.zeros((20, 2)), one)
    assert len(match(query, Features(np.zeros((40, 2)), np.vstack([one, one])), ratio=0.8)) == 0


def test_nothing_matches_nothing():
    assert match(no_features(), no_features(), ratio=0.8).shape == (0, 2)


class PictureMap:
    """A picture as a map, with a count of how often it is read."""

    def __init__(self, picture, gsd_m=0.5):
        self.picture, self.gsd_m, self.reads = picture, gsd_m, 0

    def window(self, east_m, north_m, *, size_m, gsd_m):
        self.reads += 1
        size = round(size_m / gsd_m)
        image = np.zeros((size, size, 3), np.uint8)
        mask = np.zeros((size, size), bool)
        col0 = round(east_m / gsd_m - size / 2)
        row0 = round(-north_m / gsd_m - size / 2)
        height, width = self.picture.shape[:2]
        rows = slice(max(0, row0), min(height, row0 + size))
        cols = slice(max(0, col0), min(width, col0 + size))
        if rows.start < rows.stop and cols.start < cols.stop:
            inner = (
                slice(rows.start - row0, rows.stop - row0),
                slice(cols.start - col0, cols.stop - col0),
            )
            image[inner], mask[inner] = self.picture[rows, cols], True
        return MapWindow(image, mask, col0 * gsd_m, -row0 * gsd_m, gsd_m)


def test_blocks_cover_the_map_once_and_are_kept():
    source = PictureMap(ground_texture(900, 900, seed=5))
    features = MapFeatures(source, CONFIG)
    found = features.near(225.0, -225.0, half_size_m=120.0, gsd_m=0.5)
    assert len(found) > 500
    assert (np.abs(found.points - [225.0, -225.0]) <= 120.0).all()
    assert len(np.unique(np.column_stack([found.points, found.descriptors]), axis=0)) == len(found)
    reads = source.reads
    again = features.near(225.0, -225.0, half_size_m=120.0, gsd_m=0.5)
    assert source.reads == reads
    assert np.array_equal(found.points, again.points)
    # The features are where the picture has them: those of the picture itself, in metres.
    whole = extract(source.picture, np.ones((900, 900), bool), max_features=20000)
    east, north = (whole.points[:, 0] + 0.5) * 0.5, -(whole.points[:, 1] + 0.5) * 0.5
    gaps = [np.hypot(east - x, north - y).min() for x, y in found.points[:100]]
    assert np.mean(np.array(gaps) < 0.1) > 0.9


def test_memory_is_bounded():
    source = PictureMap(ground_texture(900, 900, seed=5))
    features = MapFeatures(source, RegistrationConfig(cached_blocks=4))
    features.near(225.0, -225.0, half_size_m=220.0, gsd_m=0.5)
    assert len(features._blocks) == 4


# Alignment


@pytest.mark.parametrize('rotation', [-80.0, 0.0, 33.0])
@pytest.mark.parametrize('scale', [0.8, 1.0, 1.25])
def test_a_similarity_is_found(rotation, scale):
    truth = similarity(rotation, scale, 12.0, -7.0)
    source, target = synthetic(truth)
    found = coarse_similarity(source, target, CONFIG, EXPECTATION)
    assert found is not None
    assert found.rotation_deg == pytest.approx(rotation, abs=0.5)
    assert found.scale == pytest.approx(scale, abs=0.01)
    assert set(found.agreeing.tolist()) >= set(range(140))


def test_a_registration_follows_the_perspective():
    truth = similarity(20.0, 1.1, 5.0, 3.0)
    truth[2, :2] = 0.0012, -0.0007
    origin = np.array([306000.0, 4545000.0])
    source, target = synthetic(truth)
    found = register(source, target, origin, CONFIG, EXPECTATION)
    assert isinstance(found, Registration)
    assert found.inliers >= 145
    assert found.matches >= 240
    probe = np.array([[0.0, 0.0], [30.0, -20.0]])
    assert found.to_map(probe) - origin == pytest.approx(apply(truth, probe), abs=0.15)
    assert found.rotation_deg == pytest.approx(20.0, abs=1.0)


def refusal(homography, *, expectation=EXPECTATION, config=CONFIG, **options):
    source, target = synthetic(homography, **options)
    found = register(source, target, np.zeros(2), config, expectation)
    assert isinstance(found, Refusal), found
    return found


def test_few_matches_are_refused_with_their_number():
    found = refusal(similarity(), good=9, bad=40)
    assert found.reason is Reason.FEW_INLIERS
    assert 'matches agree; 12 are needed' in found.detail


def test_a_small_share_is_refused():
    found = refusal(similarity(), good=40, bad=300)
    assert found.reason is Reason.FEW_INLIERS
    assert 'a share of 0.3 is needed' in found.detail


def test_chance_is_refused():
    for seed in range(20):
        assert refusal(similarity(), good=0, bad=300, seed=seed).inliers < 12


@pytest.mark.parametrize('scale', [0.6, 1.6])
def test_an_impossible_scale_is_refused(scale):
    found = refusal(similarity(scale=scale))
    assert found.reason is Reason.IMPLAUSIBLE
    assert 'expected 0.74 to 1.35' in found.detail


@pytest.mark.parametrize(('turn', 'refused'), [(20.0, False), (110.0, False), (-70.0, True)])
def test_a_turn_counts_from_the_known_heading_not_from_the_one_tried(turn, refused):
    tried_beside = replace(EXPECTATION, rotation_deg=25.0)
    assert bool(refused_shape(1.0, turn, tried_beside)) == refused
    assert not refused_shape(1.0, 170.0, replace(EXPECTATION, rotation_deg=-170.0))


def test_a_turn_against_a_known_heading_is_refused():
    found = refusal(similarity(rotation_deg=140.0))
    assert found.reason is Reason.IMPLAUSIBLE
    assert 'turned by 140 deg against its heading; expected at most 90' in found.detail
    source, target = synthetic(similarity(rotation_deg=140.0))
    free = Expectation(min_scale=0.74, max_scale=1.35)
    assert isinstance(register(source, target, np.zeros(2), CONFIG, free), Registration)


def test_a_mirrored_patch_is_refused():
    refusal(np.diag([-1.0, 1.0, 1.0]))


def test_a_stretched_patch_is_refused():
    found = refusal(np.diag([1.0, 0.66, 1.0]), config=RegistrationConfig(threshold_m=6.0))
    assert found.reason is Reason.IMPLAUSIBLE
    assert 'stretches the patch by 1.5' in found.detail


def test_matches_in_one_corner_are_refused():
    """A car park's worth of matches says little about the rest of the picture."""
    rng = np.random.default_rng(1)
    source, target = synthetic(similarity(), good=40, bad=12, seed=4)
    points = source.points.copy()
    points[:40] = rng.uniform(24, 38, (40, 2))
    order = [
        int(np.flatnonzero((target.descriptors == d).all(axis=1))[0]) for d in source.descriptors
    ]
    goals = target.points.copy()
    goals[np.array(order)[:40]] = points[:40]
    found = register(
        Features(points, source.descriptors),
        Features(goals, target.descriptors),
        np.zeros(2),
        CONFIG,
        EXPECTATION,
    )
    assert isinstance(found, Refusal)
    assert 'of 16 parts of the patch; 4 are needed' in found.detail


def test_the_jacobian_is_the_derivative():
    homography = similarity(20.0, 1.1, 5.0, 3.0)
    homography[2, :2] = 0.002, -0.001
    point, step = np.array([7.0, -4.0]), 1e-6
    for axis in range(2):
        ahead = point + step * np.eye(2)[axis]
        slope = (apply(homography, ahead[None]) - apply(homography, point[None]))[0] / step
        assert jacobian_at(homography, point)[:, axis] == pytest.approx(slope, abs=1e-4)


# Camera pose


def pose_problem(*, noise_px, seed, shot):
    rng = np.random.default_rng(seed)
    pixels = rng.uniform([0, 0], [LENS.width_px, LENS.height_px], (200, 2))
    ground = shot.ground(pixels) - [shot.east_m, shot.north_m]
    pixels = pixels + rng.normal(0, noise_px, pixels.shape)
    believed = rotation_camera_from_world(
        Shot(0, 0, pitch_deg=shot.pitch_deg + 3, roll_deg=shot.roll_deg - 4).attitude,
        CameraConfig(),
        grid_heading_deg=shot.grid_heading_deg + 2,
    )
    start = np.array([4.0, -3.0, 1.1 * shot.agl_m])
    return solve_pose(
        LENS, pixels, ground, rotation=believed, position_m=start, tilt_sigma_deg=6.0
    )


@pytest.mark.parametrize(('heading', 'pitch', 'roll'), [(0, 0, 0), (120, 12, -8), (250, -20, 15)])
def test_a_pose_is_recovered_exactly_without_noise(heading, pitch, roll):
    shot = Shot(306100.0, 4545500.0, 80.0, heading, pitch, roll)
    pose = pose_problem(noise_px=0.0, seed=0, shot=shot)
    assert pose is not None
    # The prior on the tilt is 4 deg off and weighs next to nothing.
    assert pose.position_m == pytest.approx([0.0, 0.0, 80.0], abs=0.02)
    center, _ = ground_point(pose, LENS, np.array([159.5, 119.5]))
    truth = shot.center - [shot.east_m, shot.north_m]
    assert center == pytest.approx(truth, abs=1e-3)


def test_the_covariance_of_a_pose_is_that_of_repeated_trials():
    shot = Shot(306100.0, 4545500.0, 80.0, 40.0, 10.0, 5.0)
    poses = [pose_problem(noise_px=0.8, seed=seed, shot=shot) for seed in range(120)]
    errors = np.array([pose.position_m[:2] for pose in poses])
    claimed = np.mean([pose.covariance[3:5, 3:5] for pose in poses], axis=0)
    measured = errors.T @ errors / len(errors)
    # Independent noise: the clustered term repeats the plain one, so about twice the variance.
    ratio = np.linalg.eigvals(np.linalg.solve(measured, claimed)).real
    assert ratio.min() > 1.0
    assert ratio.max() < 4.0
    centers = [ground_point(pose, LENS, np.array([159.5, 119.5])) for pose in poses]
    truth = shot.center - [shot.east_m, shot.north_m]
    spread = np.array([center - truth for center, _ in centers])
    claimed = np.mean([covariance for _, covariance in centers], axis=0)
    ratio = np.linalg.eigvals(np.linalg.solve(spread.T @ spread / len(spread), claimed)).real
    assert ratio.min() > 1.0
    assert ratio.max() < 4.0


def test_a_start_below_the_ground_gives_no_pose():
    shot = Shot(306100.0, 4545500.0, 80.0)
    pixels = np.random.default_rng(0).uniform(0, 200, (30, 2))
    rotation = rotation_camera_from_world(shot.attitude, CameraConfig(), grid_heading_deg=0.0)
    assert (
        solve_pose(
            LENS,
            pixels,
            shot.ground(pixels) - [shot.east_m, shot.north_m],
            rotation=rotation,
            position_m=np.array([0.0, 0.0, -80.0]),
            tilt_sigma_deg=5.0,
        )
        is None
    )
