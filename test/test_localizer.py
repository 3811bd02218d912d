"""From frame to position and to refusal, over textured ground with known truth and over Seneca."""

import csv
import math
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
from gallery_fixtures import ProjectionEncoder, build_gallery, write_map
from localizer_scene import LENS, NORTH_M, WEST_M, Shot, ground_texture, render

from bicrossnet_ros.config import (
    CameraConfig,
    IntegrityConfig,
    LocalizerConfig,
    RegistrationConfig,
    RetrievalConfig,
)
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.geodesy import to_wgs84
from bicrossnet_ros.localizer import Localizer
from bicrossnet_ros.types import Attitude, Frame, Intrinsics, Prior, Reason, Status

SHOT = Shot(306100.0, 4545500.0, 90.0, 57.0, 6.0, -4.0)


@pytest.fixture(scope='module')
def ground():
    return ground_texture(800, 800, seed=3)


def gallery_of(folder, picture, **options):
    path = write_map(folder / 'map.tif', picture)
    chosen = {'tile_px': 128, 'overlap': 0.75, 'accuracy_m': 0.001, **options}
    return open_gallery(build_gallery(folder / 'map.gallery', path, **chosen))


@pytest.fixture(scope='module')
def gallery(ground, tmp_path_factory):
    with gallery_of(tmp_path_factory.mktemp('localizer'), ground) as opened:
        yield opened


@pytest.fixture(scope='module')
def localizer(gallery):
    return Localizer(gallery, ProjectionEncoder())


def frame_of(ground, shot, **changes):
    frame = Frame(render(ground, shot), 12.5, shot.lens, shot.attitude, shot.agl_m, name='frame')
    return replace(frame, **changes)


def check_fix(estimate, shot, *, center_m=0.4, camera_m=2.0):
    assert estimate.status is Status.FIX, estimate.detail
    assert estimate.reason is Reason.NONE
    center = np.array([estimate.center_east_m, estimate.center_north_m])
    assert np.linalg.norm(center - shot.center) < center_m
    camera = np.array([estimate.east_m, estimate.north_m])
    assert np.linalg.norm(camera - [shot.east_m, shot.north_m]) < camera_m
    for found, truth in (
        (estimate.covariance_m2, camera),
        (estimate.center_covariance_m2, center),
    ):
        assert np.linalg.eigvalsh(found)[0] > 0
        assert found == pytest.approx(found.T), truth
    assert to_wgs84('EPSG:32617', *camera) == pytest.approx((estimate.lat_deg, estimate.lon_deg))


def check_no_fix(estimate, *reasons):
    assert estimate.status is Status.NO_FIX
    assert estimate.reason in reasons, (estimate.reason, estimate.detail)
    assert math.isnan(estimate.lat_deg)
    assert math.isnan(estimate.center_east_m)
    assert np.isnan(estimate.covariance_m2).all()
    assert math.isnan(estimate.sigma_m)
    assert len(estimate.detail) > 10


# Fixes


@pytest.mark.parametrize(
    'shot',
    [
        Shot(306100.0, 4545500.0, 90.0),
        SHOT,
        Shot(306150.0, 4545470.0, 70.0, 200.0, -15.0, 12.0),
        Shot(306050.0, 4545550.0, 120.0, 310.0, 20.0, 5.0),
        Shot(306100.0, 4545500.0, 90.0, 57.0, 6.0, -4.0, mount=(3.0, -8.0, 90.0)),
        Shot(
            306100.0,
            4545500.0,
            90.0,
            20.0,
            8.0,
            lens=replace(LENS, distortion=(-0.21, 0.06, 0.0, 0.0, 0.0)),
        ),
        Shot(
            306100.0,
            4545500.0,
            90.0,
            20.0,
            8.0,
            lens=replace(LENS, distortion=(0.02, -0.01, 0.002, 0.0), model='equidistant'),
        ),
    ],
    ids=['level', 'tilted', 'low', 'high', 'mounted', 'plumb_bob', 'equidistant'],
)
def test_a_frame_is_found(ground, gallery, shot):
    roll, pitch, yaw = shot.mount
    camera = CameraConfig(mount_roll_deg=roll, mount_pitch_deg=pitch, mount_yaw_deg=yaw)
    localizer = Localizer(gallery, ProjectionEncoder(), LocalizerConfig(camera=camera))
    estimate = localizer.localize(frame_of(ground, shot))
    check_fix(estimate, shot)
    assert estimate.stamp_s == 12.5
    assert estimate.agl_m == pytest.approx(shot.agl_m, abs=1.0)
    turned = (estimate.heading_deg - shot.heading_deg - yaw + 180) % 360 - 180
    assert abs(turned) < (2.0 if not any(shot.mount) else 6.0)
    assert estimate.inliers >= 12
    assert list(estimate.timings_ms) == ['patch', 'encode', 'search', 'register', 'total']
    assert estimate.timings_ms['total'] >= sum(list(estimate.timings_ms.values())[:-1]) * 0.99
    tile = np.array([gallery.tile_east_m, gallery.tile_north_m])[:, estimate.tile_id]
    assert np.abs(tile - shot.center).max() <= 0.5 * gallery.tile_size_m


def test_a_resized_frame_takes_its_intrinsics_along(ground, localizer):
    frame = frame_of(ground, SHOT)
    larger = cv2.resize(frame.image, (640, 480), interpolation=cv2.INTER_CUBIC)
    check_fix(localizer.localize(replace(frame, image=larger)), SHOT)


@pytest.mark.parametrize(
    ('missing', 'camera_m'),
    [
        ({'attitude': Attitude(SHOT.roll_deg, SHOT.pitch_deg, None)}, 2.0),
        ({'attitude': None}, 3.0),
        ({'agl_m': None}, 3.0),
        ({'intrinsics': None}, 15.0),
        ({'intrinsics': None, 'attitude': None, 'agl_m': None}, 20.0),
    ],
    ids=['heading', 'attitude', 'agl', 'lens', 'all'],
)
def test_what_is_missing_is_tried(ground, localizer, missing, camera_m):
    estimate = localizer.localize(frame_of(ground, SHOT, **missing))
    check_fix(estimate, SHOT, camera_m=camera_m)
    if 'intrinsics' in missing:
        known = localizer.localize(frame_of(ground, SHOT))
        assert estimate.sigma_m > 5 * known.sigma_m


def test_a_prior_limits_the_search(ground, localizer):
    lat_deg, lon_deg = SHOT.position
    near = localizer.localize(frame_of(ground, SHOT, prior=Prior(lat_deg, lon_deg, 30.0)))
    check_fix(near, SHOT)
    centers = np.array([(match.east_m, match.north_m) for match in near.candidates])
    # Radius, what the tilt adds, and half a tile.
    assert (np.linalg.norm(centers - [SHOT.east_m, SHOT.north_m], axis=1) < 30 + 15 + 33).all()


def test_a_wrong_prior_gives_no_fix(ground, localizer):
    lat_deg, lon_deg = to_wgs84('EPSG:32617', WEST_M + 330.0, NORTH_M - 330.0)
    estimate = localizer.localize(frame_of(ground, SHOT, prior=Prior(lat_deg, lon_deg, 20.0)))
    check_no_fix(estimate, Reason.FEW_INLIERS, Reason.IMPLAUSIBLE)


def test_a_prior_off_the_map_says_so(ground, localizer):
    estimate = localizer.localize(frame_of(ground, SHOT, prior=Prior(40.0, -83.3, 100.0)))
    check_no_fix(estimate, Reason.NO_MAP_HERE)
    assert 'no tile lies within 100 m of (40.000000, -83.300000)' in estimate.detail


def test_the_accuracy_of_the_map_is_part_of_the_covariance(ground, gallery):
    frame = frame_of(ground, SHOT)
    sigma = {
        accuracy: Localizer(
            gallery,
            ProjectionEncoder(),
            LocalizerConfig(integrity=IntegrityConfig(map_accuracy_m=accuracy)),
        ).localize(frame)
        for accuracy in (0.0, 3.0)
    }
    difference = sigma[3.0].covariance_m2 - sigma[0.0].covariance_m2
    assert difference == pytest.approx(9.0 * np.eye(2), abs=1e-9)
    assert np.linalg.eigvalsh(sigma[0.0].center_covariance_m2)[0] > 0


def test_the_same_frame_gives_the_same_estimate(ground, gallery):
    frame = frame_of(ground, SHOT)
    first, second = (Localizer(gallery, ProjectionEncoder()).localize(frame) for _ in range(2))
    assert (first.lat_deg, first.lon_deg, first.inliers) == (
        second.lat_deg,
        second.lon_deg,
        second.inliers,
    )


def test_most_ellipses_contain_the_truth(ground, gallery):
    config = LocalizerConfig(integrity=IntegrityConfig(map_accuracy_m=0.0))
    localizer = Localizer(gallery, ProjectionEncoder(), config)
    rng = np.random.default_rng(8)
    inside = []
    for seed in range(12):
        east, north = rng.uniform(-60, 60, 2)
        pitch, roll = rng.normal(0, 8, 2)
        shot = Shot(306100 + east, 4545500 + north, 85.0, rng.uniform(0, 360), pitch, roll)
        attitude = Attitude(roll + rng.normal(0, 3), pitch + rng.normal(0, 3), shot.heading_deg)
        estimate = localizer.localize(
            replace(
                frame_of(ground, shot), image=render(ground, shot, seed=seed), attitude=attitude
            )
        )
        check_fix(estimate, shot)
        error = np.array([estimate.east_m - shot.east_m, estimate.north_m - shot.north_m])
        inside.append(error @ np.linalg.solve(estimate.covariance_m2, error) < 5.991)
    assert np.mean(inside) >= 0.75


@pytest.mark.parametrize('factor', [0.8, 1.25])
@pytest.mark.parametrize('wrong', ['focal', 'height'])
def test_a_wrong_lens_or_height_widens_the_ellipse_to_the_truth(ground, gallery, wrong, factor):
    config = LocalizerConfig(integrity=IntegrityConfig(map_accuracy_m=0.0))
    localizer = Localizer(gallery, ProjectionEncoder(), config)
    lens = replace(LENS, fx_px=LENS.fx_px * factor, fy_px=LENS.fy_px * factor)
    inside = []
    for seed, (pitch, roll) in enumerate(((14, 0), (-12, 8), (9, -9), (0, 15))):
        shot = Shot(306100.0, 4545500.0, 85.0, 80.0 * seed, pitch, roll)
        changes = {'intrinsics': lens} if wrong == 'focal' else {'agl_m': shot.agl_m * factor}
        estimate = localizer.localize(frame_of(ground, shot, **changes))
        check_fix(estimate, shot, center_m=0.6, camera_m=12.0)
        error = np.array([estimate.east_m - shot.east_m, estimate.north_m - shot.north_m])
        inside.append(error @ np.linalg.solve(estimate.covariance_m2, error) < 5.991)
        known = localizer.localize(frame_of(ground, shot))
        assert estimate.sigma_m > 3 * known.sigma_m
    assert all(inside)


# Refusals


def other_place(ground):
    return render(ground_texture(800, 800, seed=77), SHOT)


def noise(ground):
    return np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def waves(ground):
    rows, cols = np.mgrid[0:240, 0:320]
    wave = 127 + 60 * np.sin(cols / 4.0) * np.sin(rows / 5.0)
    return np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)


def mirrored(ground):
    return np.ascontiguousarray(render(ground, SHOT)[:, ::-1])


def black(ground):
    return np.zeros((240, 320, 3), np.uint8)


@pytest.mark.parametrize('make', [other_place, noise, waves, mirrored, black])
@pytest.mark.parametrize('heading', [SHOT.heading_deg, None], ids=['heading', 'no heading'])
def test_what_is_not_on_the_map_gets_no_fix(ground, localizer, make, heading):
    attitude = Attitude(SHOT.roll_deg, SHOT.pitch_deg, heading)
    estimate = localizer.localize(frame_of(ground, SHOT, image=make(ground), attitude=attitude))
    check_no_fix(estimate, Reason.FEW_INLIERS, Reason.IMPLAUSIBLE, Reason.AMBIGUOUS)
    assert estimate.candidates


@pytest.fixture(scope='module')
def twins(tmp_path_factory):
    """A map that shows the same 200 m of ground twice, 200 m apart."""
    half = ground_texture(400, 400, seed=5)
    picture = np.hstack([half, half])
    with gallery_of(tmp_path_factory.mktemp('twins'), picture) as opened:
        yield picture, opened


def test_two_equal_places_are_ambiguous_and_a_prior_decides(twins):
    picture, gallery = twins
    shot = Shot(WEST_M + 100.0, NORTH_M - 100.0, 80.0, 30.0, 5.0, 3.0)
    localizer = Localizer(gallery, ProjectionEncoder())
    frame = frame_of(picture, shot)
    blind = localizer.localize(frame)
    check_no_fix(blind, Reason.AMBIGUOUS)
    assert 'times as many are needed' in blind.detail
    for shift in (0.0, 200.0):
        lat_deg, lon_deg = to_wgs84('EPSG:32617', shot.east_m + shift, shot.north_m)
        decided = localizer.localize(replace(frame, prior=Prior(lat_deg, lon_deg, 40.0)))
        check_fix(decided, replace(shot, east_m=shot.east_m + shift))


def test_a_place_that_too_few_features_can_tell_from_others_is_not_believed(
    ground, gallery, monkeypatch
):
    """Without features to ask, no rival could ever be counted."""
    monkeypatch.setattr('bicrossnet_ros.uniqueness.MAX_WITNESSES', 5)
    estimate = Localizer(gallery, ProjectionEncoder()).localize(frame_of(ground, SHOT))
    check_no_fix(estimate, Reason.AMBIGUOUS)
    assert '5 features can tell this place from another' in estimate.detail


@pytest.mark.parametrize('rivals', [0, 16])
def test_a_copy_that_the_frame_does_not_lead_to_is_found_from_the_map(twins, rivals):
    """Only one window is looked at, as if the network had ranked the copy far down."""
    picture, gallery = twins
    registration = RegistrationConfig(max_windows=1, fallback_windows=0, rivals=rivals)
    localizer = Localizer(gallery, ProjectionEncoder(), LocalizerConfig(registration=registration))
    shot = Shot(WEST_M + 100.0, NORTH_M - 100.0, 80.0, 30.0, 5.0, 3.0)
    frame = frame_of(picture, shot)
    blind = localizer.localize(frame)
    if rivals == 0:
        assert blind.is_fix
        return
    check_no_fix(blind, Reason.AMBIGUOUS)
    for shift in (0.0, 200.0):
        lat_deg, lon_deg = to_wgs84('EPSG:32617', shot.east_m + shift, shot.north_m)
        decided = localizer.localize(replace(frame, prior=Prior(lat_deg, lon_deg, 40.0)))
        check_fix(decided, replace(shot, east_m=shot.east_m + shift))


@pytest.mark.parametrize('period_px', [40, 100, 160])
def test_a_pattern_that_repeats_gets_no_fix(tmp_path, period_px):
    """Rows of equal roofs: a shift by a period is as good, whether 20 m or 80 m."""
    cell = ground_texture(period_px, period_px, seed=9)
    repeats = 800 // period_px
    picture = np.tile(cell, (repeats, repeats, 1))
    with gallery_of(tmp_path, picture) as gallery:
        shot = Shot(WEST_M + 190.0, NORTH_M - 210.0, 90.0, 30.0, 5.0, 3.0)
        estimate = Localizer(gallery, ProjectionEncoder()).localize(frame_of(picture, shot))
    check_no_fix(estimate, Reason.AMBIGUOUS, Reason.FEW_INLIERS, Reason.IMPLAUSIBLE)


def test_an_attitude_that_the_picture_contradicts_gets_no_fix(ground, gallery):
    frame = frame_of(ground, SHOT, attitude=Attitude(SHOT.roll_deg + 40.0, SHOT.pitch_deg, 57.0))
    estimate = Localizer(gallery, ProjectionEncoder()).localize(frame)
    check_no_fix(estimate, Reason.IMPLAUSIBLE, Reason.FEW_INLIERS)


def test_a_height_that_the_picture_contradicts_gets_no_fix(ground, localizer):
    check_no_fix(
        localizer.localize(frame_of(ground, SHOT, agl_m=180.0)),
        Reason.IMPLAUSIBLE,
        Reason.FEW_INLIERS,
    )


def test_a_footprint_larger_than_any_level_of_the_map_gets_no_fix(ground, localizer):
    """A height glitch to 2900 m over 400 m of map, whose coarsest level has 2 m per pixel."""
    estimate = localizer.localize(frame_of(ground, SHOT, agl_m=2900.0))
    check_no_fix(estimate, Reason.IMPLAUSIBLE)
    found = re.search(r'would see (\d+) m of ground; expected at most (\d+) m', estimate.detail)
    assert found, estimate.detail
    assert int(found[1]) > 2900.0 * LENS.width_px / LENS.fx_px
    assert int(found[2]) == 2048
    check_fix(localizer.localize(frame_of(ground, SHOT)), SHOT)


def test_a_footprint_of_the_whole_map_is_still_looked_at(ground, localizer):
    """350 m of 400 m: the map has no coarse level, and needs none."""
    shot = replace(SHOT, agl_m=270.0, pitch_deg=0.0, roll_deg=0.0)
    estimate = localizer.localize(frame_of(ground, shot))
    assert 'of ground' not in estimate.detail


def test_a_map_that_lies_between_the_patches_is_still_searched(ground, tmp_path):
    """One tile of map, and two patches whose middles lie 23 m to its left and right."""
    with gallery_of(tmp_path, ground[300:428, 300:428]) as small:
        assert len(small.tile_east_m) == 1
        shot = Shot(WEST_M + 32.0, NORTH_M - 32.0, 90.0)
        image = render(ground, replace(shot, east_m=shot.east_m + 150, north_m=shot.north_m - 150))
        frame = Frame(image, 0.0, shot.lens, shot.attitude, shot.agl_m)
        estimate = Localizer(small, ProjectionEncoder()).localize(frame)
    assert [match.tile_id for match in estimate.candidates] == [0]


def test_a_heading_is_checked_against_the_one_that_was_given(ground, gallery):
    """40 deg off are found with guesses around it, and refused where less is believed."""
    attitude = replace(SHOT.attitude, heading_deg=SHOT.heading_deg - 40.0)
    frame = frame_of(ground, SHOT, attitude=attitude)
    check_fix(Localizer(gallery, ProjectionEncoder()).localize(frame), SHOT, camera_m=12.0)
    strict = LocalizerConfig(registration=RegistrationConfig(max_heading_error_deg=30.0))
    estimate = Localizer(gallery, ProjectionEncoder(), strict).localize(frame)
    check_no_fix(estimate, Reason.FEW_INLIERS, Reason.IMPLAUSIBLE)


def test_low_similarity_is_refused_before_registration(ground, gallery):
    config = LocalizerConfig(retrieval=RetrievalConfig(min_similarity=1.0))
    estimate = Localizer(gallery, ProjectionEncoder(), config).localize(frame_of(ground, SHOT))
    check_no_fix(estimate, Reason.LOW_SIMILARITY)
    assert '1 is needed' in estimate.detail
    assert estimate.similarity < 1.0


# Without registration


def tiles_only(margin, similarity=-1.0, **retrieval):
    return LocalizerConfig(
        registration=RegistrationConfig(enabled=False),
        retrieval=RetrievalConfig(min_margin=margin, min_tile_similarity=similarity, **retrieval),
    )


def test_without_registration_the_best_tile_is_the_position(ground, gallery):
    # Right above a tile's centre, so that the best tile is known.
    tile = int(np.argmin(np.hypot(gallery.tile_east_m - 306100, gallery.tile_north_m - 4545500)))
    shot = Shot(float(gallery.tile_east_m[tile]), float(gallery.tile_north_m[tile]), 110.0)
    localizer = Localizer(gallery, ProjectionEncoder(), tiles_only(0.0))
    estimate = localizer.localize(frame_of(ground, shot))
    assert estimate.is_fix, estimate.detail
    assert estimate.tile_id == tile
    assert (estimate.center_east_m, estimate.center_north_m) == (shot.east_m, shot.north_m)
    assert estimate.inliers == 0
    assert 0.2 * gallery.tile_size_m < estimate.sigma_m < gallery.tile_size_m


def test_without_registration_a_small_lead_is_ambiguous(ground, gallery):
    localizer = Localizer(gallery, ProjectionEncoder(), tiles_only(2.0))
    estimate = localizer.localize(frame_of(ground, SHOT))
    check_no_fix(estimate, Reason.AMBIGUOUS)
    assert '2 is needed' in estimate.detail


def test_without_registration_few_candidates_hide_no_rival(ground, gallery):
    """The few best tiles are neighbours of each other; the lead is over what comes after them."""
    localizer = Localizer(gallery, ProjectionEncoder(), tiles_only(2.0, candidates=1))
    estimate = localizer.localize(frame_of(ground, SHOT))
    check_no_fix(estimate, Reason.AMBIGUOUS)
    assert len(estimate.candidates) == 1


def test_without_registration_the_only_place_of_a_map_is_no_lead(ground, tmp_path):
    """Whatever flies there, no other place of the map looks more like it."""
    frame, config = frame_of(ground, SHOT), tiles_only(0.01, min_similarity=-1.0)
    with gallery_of(tmp_path, ground[:128, :128]) as small:
        assert small.manifest.tile_count == 1
        estimate = Localizer(small, ProjectionEncoder(), config).localize(frame)
        check_no_fix(estimate, Reason.AMBIGUOUS)
        assert 'no place further than 64 m' in estimate.detail


@pytest.mark.parametrize('known', [True, False])
def test_without_registration_a_camera_that_looks_ahead_is_less_certain_where_it_guesses(
    ground, gallery, known
):
    """A wrong heading or height moves the camera around, or from, the ground that it sees."""
    level = tiles_only(0.0)
    mount = replace(level.camera, mount_pitch_deg=35.0)
    shot = Shot(306100.0, 4545500.0, 100.0, 0.0, mount=(0.0, 35.0, 0.0))
    frame = frame_of(ground, shot)
    if not known:
        frame = replace(frame, attitude=Attitude(0.0, 0.0, None), agl_m=None)
    localizer = Localizer(gallery, ProjectionEncoder(), replace(level, camera=mount))
    estimate = localizer.localize(frame)
    offset = np.array([estimate.east_m, estimate.north_m])
    offset = offset - [estimate.center_east_m, estimate.center_north_m]
    added = estimate.covariance_m2 - estimate.center_covariance_m2
    distance_m = float(np.linalg.norm(offset))
    assert distance_m > 40.0
    ahead = offset / distance_m
    side = np.array([-ahead[1], ahead[0]])
    # Headings are tried every 30 deg; of a known one the compass errs by its sigma at least.
    turn_m = distance_m * math.radians(6.0 if known else 30.0 / math.sqrt(12.0))
    height_m = 0.0 if known else 0.4 * distance_m
    tilt_m2 = float(ahead @ added @ ahead) - height_m**2
    assert tilt_m2 > 0
    assert float(side @ added @ side) == pytest.approx(tilt_m2 + turn_m**2)
    assert float(ahead @ added @ side) == pytest.approx(0.0, abs=1e-6)


def test_without_registration_a_low_similarity_is_refused(ground, gallery):
    localizer = Localizer(gallery, ProjectionEncoder(), tiles_only(0.0, 1.0))
    check_no_fix(localizer.localize(frame_of(ground, SHOT)), Reason.LOW_SIMILARITY)


# Bad input


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'image': None}, 'image is NoneType'),
        ({'image': np.zeros((0, 0, 3), np.uint8)}, 'expected at least 32 x 32'),
        ({'image': np.zeros((240, 320), np.uint8)}, 'expected uint8 RGB'),
        ({'image': np.zeros((240, 320, 3), np.float64)}, 'image is float64'),
        ({'image': np.zeros((240, 300, 3), np.uint8)}, 'which is no pure scale'),
        ({'intrinsics': replace(LENS, fx_px=math.nan)}, 'focal length'),
        ({'intrinsics': replace(LENS, fy_px=-260.0)}, 'focal length'),
        ({'intrinsics': replace(LENS, cx_px=5000.0)}, 'principal point'),
        ({'intrinsics': replace(LENS, model='mystery')}, 'distortion model'),
        ({'intrinsics': Intrinsics(0, 0, 0.0, 0.0, 0.0, 0.0)}, 'focal length'),
        ({'agl_m': math.nan}, 'height above ground is nan'),
        ({'agl_m': -30.0}, 'height above ground is -30'),
        ({'agl_m': 1e6}, 'height above ground is 1000000'),
        ({'attitude': Attitude(pitch_deg=math.inf)}, 'attitude has pitch_deg = inf'),
        ({'attitude': Attitude(0.0, 0.0, math.nan)}, 'attitude has heading_deg = nan'),
        ({'attitude': Attitude(roll_deg=80.0)}, 'off the vertical'),
        ({'attitude': Attitude(roll_deg=180.0)}, 'off the vertical'),
        ({'prior': Prior(math.nan, 0.0, 10.0)}, 'is not a WGS84 latitude'),
        ({'prior': Prior(91.0, 0.0, 10.0)}, 'is not a WGS84 latitude'),
        ({'prior': Prior(41.0, -83.0, 0.0)}, 'prior has a radius of 0.0 m'),
        ({'prior': Prior(41.0, -83.0, math.nan)}, 'prior has a radius of nan m'),
        ({'stamp_s': math.nan}, 'stamp is nan s'),
    ],
)
def test_bad_input_is_named_and_never_raises(ground, localizer, changes, words):
    estimate = localizer.localize(frame_of(ground, SHOT, **changes))
    check_no_fix(estimate, Reason.BAD_INPUT)
    assert words in estimate.detail
    assert 'total' in estimate.timings_ms


def test_a_frame_that_a_library_gives_up_on_does_not_end_the_flight(ground, localizer):
    """OpenCV resamples no image of more than 32767 pixels a side through a lens."""
    lens = Intrinsics(40000, 64, 5800.0, 5800.0, 20000.0, 32.0, (0.01, 0.0, 0.0, 0.0, 0.0))
    image = np.zeros((64, 40000, 3), np.uint8)
    frame = Frame(image, 12.5, lens, Attitude(0.0, 0.0, 0.0), 2900.0)
    estimate = localizer.localize(frame)
    check_no_fix(estimate, Reason.BAD_INPUT)
    assert estimate.detail.startswith('the frame cannot be worked on (error: OpenCV')
    assert '\n' not in estimate.detail
    check_fix(localizer.localize(frame_of(ground, SHOT)), SHOT)


@pytest.mark.parametrize('model', ['plumb_bob', 'equidistant'])
def test_a_fisheye_whose_whole_border_is_near_the_horizon_does_not_end_the_flight(
    ground, gallery, model
):
    """More than half of such a frame is ground, and none of its border."""
    focal_px = 25.0 if model == 'plumb_bob' else 72.0
    lens = Intrinsics(200, 200, focal_px, focal_px, 99.5, 99.5, (), model)
    frame = Frame(ground[:200, :200], 12.5, lens, Attitude(0.0, 0.0, 30.0), 30.0)
    for config in (LocalizerConfig(), tiles_only(0.0)):
        estimate = Localizer(gallery, ProjectionEncoder(), config).localize(frame)
        assert estimate.reason is not Reason.BAD_INPUT, estimate.detail
        assert len(estimate.candidates) > 0


def test_an_encoder_that_does_not_fit_or_fails_does_not_end_the_flight(ground, gallery):
    class Broken(ProjectionEncoder):
        def encode(self, patches):
            return np.full_like(super().encode(patches), np.nan)

    frame = frame_of(ground, SHOT)
    for encoder, words in (
        (ProjectionEncoder(embedding_dim=16), 'the gallery has float32 embeddings of 24'),
        (Broken(), 'query embedding is not finite'),
    ):
        estimate = Localizer(gallery, encoder).localize(frame)
        check_no_fix(estimate, Reason.BAD_INPUT)
        assert words in estimate.detail


# The real flight


@pytest.fixture(scope='module')
def seneca_gallery(seneca, tmp_path_factory):
    from bicrossnet_ros.encoder import default_model_path, open_encoder

    encoder = open_encoder(default_model_path())
    out = tmp_path_factory.mktemp('seneca') / 'seneca.gallery'
    build_gallery(out, seneca / 'map.tif', encoder=encoder, gsd_m=0.25, tile_px=128, overlap=0.75)
    with open_gallery(out, encoder=encoder) as gallery:
        yield gallery, encoder


def seneca_frames(seneca, step, *, heading=True):
    lens = Intrinsics(1024, 768, 776.0, 776.0, 512.0, 384.0)
    with (seneca / 'flight.csv').open(encoding='utf-8') as file:
        for row in list(csv.DictReader(file))[::step]:
            image = cv2.imread(str(seneca / 'queries' / row['file']))
            value = {
                key: float(text)
                for key, text in row.items()
                if key.endswith(('_m', '_deg')) and text
            }
            attitude = Attitude(
                value['roll_deg'], value['pitch_deg'], value['heading_deg'] if heading else None
            )
            yield (
                Frame(
                    cv2.cvtColor(image, cv2.COLOR_BGR2RGB), 0.0, lens, attitude, value['agl_est_m']
                ),
                value,
            )


@pytest.mark.parametrize('heading', [True, False])
def test_seneca_is_found_without_a_false_fix(seneca, seneca_gallery, heading):
    gallery, encoder = seneca_gallery
    localizer = Localizer(gallery, encoder)
    errors, camera_errors, refused = [], [], 0
    for frame, truth in seneca_frames(seneca, 12, heading=heading):
        estimate = localizer.localize(frame)
        if not estimate.is_fix:
            refused += 1
            continue
        errors.append(
            math.hypot(
                estimate.center_east_m - truth['center_east_m'],
                estimate.center_north_m - truth['center_north_m'],
            )
        )
        camera_errors.append(
            math.hypot(
                estimate.east_m - truth['reg_cam_east_m'],
                estimate.north_m - truth['reg_cam_north_m'],
            )
        )
    assert refused <= 1
    assert max(errors) < 3.0
    assert np.median(errors) < 0.5
    assert np.median(camera_errors) < 1.5


def test_frames_of_other_places_get_no_fix_on_seneca(rsscn7, seneca_gallery):
    gallery, encoder = seneca_gallery
    localizer = Localizer(gallery, encoder)
    lens = Intrinsics(1024, 768, 776.0, 776.0, 512.0, 384.0)
    for path in sorted(rsscn7.glob('*/*.jpg'))[::400]:
        image = cv2.resize(cv2.imread(str(path)), (1024, 1024))[:768, :, ::-1]
        frame = Frame(np.ascontiguousarray(image), 0.0, lens, Attitude(), 70.0)
        estimate = localizer.localize(frame)
        assert not estimate.is_fix, path
        assert estimate.inliers < 8, path


@pytest.mark.parametrize(
    ('retrieval', 'wrong'),
    [
        (RetrievalConfig(), False),
        (RetrievalConfig(min_margin=0.02, min_tile_similarity=-1.0), True),
    ],
    ids=['defaults', 'lead alone'],
)
def test_without_registration_other_places_get_no_fix(rsscn7, seneca_gallery, retrieval, wrong):
    """A lead says nothing where no tile is like the frame at all."""
    gallery, encoder = seneca_gallery
    config = LocalizerConfig(retrieval=retrieval, registration=RegistrationConfig(enabled=False))
    localizer = Localizer(gallery, encoder, config)
    lens = Intrinsics(1024, 768, 776.0, 776.0, 512.0, 384.0)
    fixes = []
    for path in sorted(rsscn7.glob('*/*.jpg'))[::20]:
        image = cv2.resize(cv2.imread(str(path)), (1024, 1024))[:768, :, ::-1]
        frame = Frame(np.ascontiguousarray(image), 0.0, lens, Attitude(0.0, 0.0, 40.0), 70.0)
        fixes.append(localizer.localize(frame).is_fix)
    assert any(fixes) == wrong
