"""Rendered data sets: a true camera, nothing but the scene, and the published folder layouts."""

import dataclasses
import errno
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from university_fixture import draw_scene, drawn_scenes, university_dataset

from bicrossnet_ros.errors import ConfigError, ImageError
from training.config import TrainConfig
from training.data.__main__ import main
from training.data.buildings import Box, draw_boxes, raise_boxes
from training.data.orbit import (
    Pose,
    circle,
    come_closer,
    footprint,
    intrinsics,
    plane_homography,
    project,
    spiral,
)
from training.data.render import RenderOptions, render_dataset
from training.data.rendered_scene import HALF_SIDE, TILE_SHARE, Light, Scene, expose
from training.data.sources import make_sources, retrieval_tasks
from training.data.sues200 import TEST_PLACES

SMALL = RenderOptions(places=4, test_places=3, distractors=2, drones=3, size_px=32)
TILTED = Pose(0.7, 0.6, 1.3, 0.1, (0.05, -0.02))


def random_pose(rng):
    return Pose(
        azimuth_rad=rng.uniform(0, 2 * math.pi),
        off_nadir_rad=rng.uniform(0, 0.8),
        distance=rng.uniform(0.5, 2),
        roll_rad=rng.uniform(-0.3, 0.3),
        target=tuple(rng.uniform(-0.1, 0.1, 2)),
    )


def apply(matrix, points):
    mapped = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return mapped[:, :2] / mapped[:, 2:]


def test_the_camera_is_opencvs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        pose = random_pose(rng)
        points = np.column_stack([rng.uniform(-0.3, 0.3, (10, 2)), rng.uniform(0, 0.1, 10)])
        rotation, _ = cv2.Rodrigues(pose.rotation)
        shift = -pose.rotation @ pose.center
        expected, _ = cv2.projectPoints(points, rotation, shift, intrinsics(200), None)
        np.testing.assert_allclose(project(pose, points, 200), expected[:, 0], atol=1e-6)
        assert np.linalg.det(pose.rotation) == pytest.approx(1)


def test_the_target_is_in_the_middle_and_up_is_away_from_the_camera():
    rng = np.random.default_rng(1)
    for _ in range(20):
        pose = dataclasses.replace(random_pose(rng), roll_rad=0.0)
        ahead = np.array(pose.target) - pose.center[:2]
        points = np.array([[*pose.target, 0], [*(np.array(pose.target) + 0.1 * ahead), 0]])
        middle, beyond = project(pose, points, 101)
        np.testing.assert_allclose(middle, 50)
        np.testing.assert_allclose(beyond[0], 50)
        assert beyond[1] <= 50 + 1e-9
        slope = (pose.center - [*pose.target, 0]) / pose.distance
        assert slope[2] == pytest.approx(math.cos(pose.off_nadir_rad))


def test_homography_agrees_with_projection_on_every_plane():
    rng = np.random.default_rng(2)
    for height in (0.0, 0.07):
        points = rng.uniform(-0.3, 0.3, (10, 2))
        expected = project(TILTED, np.column_stack([points, np.full(10, height)]), 64)
        mapped = apply(plane_homography(TILTED, 64, height=height), points)
        np.testing.assert_allclose(mapped, expected, atol=1e-9)


def test_footprint_is_what_the_corners_of_the_picture_see():
    corners = apply(plane_homography(TILTED, 64), footprint(TILTED))
    edge = [-0.5, 63.5]
    expected = [(edge[0], edge[0]), (edge[1], edge[0]), (edge[1], edge[1]), (edge[0], edge[1])]
    np.testing.assert_allclose(corners, expected, atol=1e-9)
    with pytest.raises(ValueError, match='horizon'):
        footprint(dataclasses.replace(TILTED, off_nadir_rad=1.4))


def test_a_camera_comes_just_close_enough():
    far = dataclasses.replace(TILTED, distance=50.0)
    near = come_closer(far, half_side=1.0)
    assert np.abs(footprint(near)).max() == pytest.approx(1.0)
    assert come_closer(near, half_side=1.01) == near


@pytest.mark.parametrize('seed', range(5))
def test_spiral_descends_from_oblique_to_nadir_through_three_turns(seed):
    poses = spiral(np.random.default_rng(seed), 54, half_side=HALF_SIDE)
    heights = np.array([pose.height for pose in poses])
    angles = np.degrees([pose.off_nadir_rad for pose in poses])
    azimuths = np.unwrap([pose.azimuth_rad for pose in poses])
    assert np.all(np.diff(heights) < 0)
    assert 0.7 < heights[-1] / heights[0] < 0.92
    assert 37 < angles[0] < 53
    assert 2 < angles[-1] < 18
    assert abs(azimuths[-1] - azimuths[0]) == pytest.approx(6 * math.pi)
    assert max(np.abs(footprint(pose)).max() for pose in poses) <= HALF_SIDE + 1e-9


def test_circles_keep_their_height():
    rng = np.random.default_rng(0)
    for share in (0.5, 1.0):
        poses = circle(rng, 40, height_share=share, half_side=HALF_SIDE)
        heights = np.array([pose.height for pose in poses])
        assert heights.std() / heights.mean() < 0.06
        assert max(np.abs(footprint(pose)).max() for pose in poses) <= HALF_SIDE + 1e-9
        turns = np.diff([pose.azimuth_rad for pose in poses])
        np.testing.assert_allclose(turns, 2 * math.pi / 40)


def test_no_view_reaches_beyond_the_scene():
    """What lies beyond would be black."""
    scene = Scene(np.full((150, 150, 3), 255, np.uint8), (0,), size_px=48, buildings=0)
    rng = np.random.default_rng(0)
    poses = spiral(rng, 30, half_side=HALF_SIDE)
    poses += circle(rng, 10, height_share=1.0, half_side=HALF_SIDE)
    assert min(scene.view(pose).min() for pose in poses) == 255


def test_every_pixel_of_a_view_shows_the_ground_its_ray_meets():
    """Red and green of the scene are its column and row; each ray is followed on its own."""
    size_px, scene_px = 24, 256
    image = np.zeros((scene_px, scene_px, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(scene_px), np.arange(scene_px)[:, None]
    scene = Scene(image, (0,), size_px=size_px, buildings=0)
    pose = come_closer(TILTED, half_side=HALF_SIDE)
    view = scene.view(pose)
    for row in range(size_px):
        for col in range(size_px):
            ray = np.linalg.inv(intrinsics(size_px)) @ [col, row, 1] @ pose.rotation
            ground = pose.center - ray * pose.center[2] / ray[2]
            # The scene was reduced to twice the tile's detail; its extent is the same.
            expected_col = (0.5 + TILE_SHARE * ground[0]) * scene_px - 0.5
            expected_row = (0.5 - TILE_SHARE * ground[1]) * scene_px - 0.5
            assert view[row, col, 0] == pytest.approx(expected_col, abs=1.6)
            assert view[row, col, 1] == pytest.approx(expected_row, abs=1.6)


def test_the_tile_is_the_middle_of_the_scene_north_up():
    image = draw_scene(np.random.default_rng(0), 200)
    scene = Scene(image, (0,), size_px=90, buildings=0)
    tile = scene._warp(_tile_matrix(scene, 90), 90)
    np.testing.assert_array_equal(tile, image[55:145, 55:145])
    seen = scene.satellite()
    assert seen.shape == (90, 90, 3)
    correlation = np.corrcoef(seen.mean(-1).ravel(), tile.mean(-1).ravel())[0, 1]
    assert correlation > 0.9


def _tile_matrix(scene, size_px):
    middle = (size_px - 1) / 2
    return np.array([[size_px, 0, middle], [0, -size_px, middle], [0, 0, 1]]) @ scene._to_ground


def test_view_and_tile_register_to_the_true_homography():
    """Seen by features alone, the drone's view is a projective image of the tile."""
    cells = np.random.default_rng(3).integers(0, 256, (100, 100, 3), np.uint8)
    image = cv2.resize(cells, (512, 512), interpolation=cv2.INTER_CUBIC)
    scene = Scene(image, (1,), size_px=256, buildings=0)
    poses = spiral(np.random.default_rng(0), 9, half_side=HALF_SIDE)
    tile = scene.satellite()
    sift = cv2.SIFT_create()
    for pose, view in zip(poses[2:], list(scene.flight(poses, 1))[2:], strict=True):
        (keys, one), (others, two) = (
            sift.detectAndCompute(cv2.cvtColor(v, cv2.COLOR_RGB2GRAY), None) for v in (tile, view)
        )
        pairs = cv2.BFMatcher(crossCheck=True).match(one, two)
        source = np.array([keys[pair.queryIdx].pt for pair in pairs])
        target = np.array([others[pair.trainIdx].pt for pair in pairs])
        truth = plane_homography(pose, 256) @ np.linalg.inv(
            _tile_matrix(scene, 256) @ scene._to_scene
        )
        errors = np.hypot(*(apply(truth, source) - target).T)
        assert (errors < 2.5).sum() >= 25


BOX = Box(
    np.array([[-0.1, -0.1], [0.1, -0.1], [0.1, 0.1], [-0.1, 0.1]]), 0.1, (200, 0, 0), (0, 200, 0)
)


def _raise(boxes, pose, size_px=128):
    scene = np.full((size_px, size_px, 3), 90, np.uint8)
    black = np.zeros((size_px, size_px, 3), np.uint8)
    to_ground = np.array([[0.01, 0, -0.64], [0, -0.01, 0.64], [0, 0, 1]])
    return raise_boxes(black, scene, boxes, pose, to_ground)


def test_boxes_cover_exactly_their_hull():
    pose = Pose(0.3, 0.7, 1.5)
    drawn = _raise([BOX], pose).any(-1)
    points = project(pose, np.concatenate([BOX.at(0.0), BOX.at(BOX.height)]), 128)
    hull = np.zeros((128, 128), np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.rint(points).astype(np.int32)), 1)
    assert (drawn & (cv2.dilate(hull, np.ones((3, 3))) == 0)).sum() == 0
    assert (~drawn & (cv2.erode(hull, np.ones((3, 3))) > 0)).sum() == 0


def test_roofs_lean_away_from_the_nadir_and_near_walls_show():
    pose = Pose(0.0, 0.7, 1.5)  # the camera stands in the east
    base, top = (project(pose, BOX.at(z), 128).mean(0) for z in (0.0, BOX.height))
    assert top[1] < base[1] - 3
    view = _raise([BOX], pose)
    row, col = np.rint(top[::-1]).astype(int)
    assert tuple(view[row, col]) == (90, 90, 90)
    east = project(pose, np.array([[0.1, 0.0, 0.03]]), 128)[0]
    assert view[round(east[1]), round(east[0]), 1] > 100
    west = project(pose, np.array([[-0.1, 0.0, 0.03]]), 128)[0]
    assert view[round(west[1]), round(west[0]), 1] <= 90


def test_a_near_box_hides_a_far_one():
    pose = Pose(0.0, 0.9, 1.5)
    far = dataclasses.replace(BOX, wall=(0, 0, 200))
    near = dataclasses.replace(BOX, corners=BOX.corners + np.array([0.22, 0]), height=0.3)
    both = _raise([near, far], pose)
    np.testing.assert_array_equal(both, _raise([far, near], pose))
    assert (both[..., 2] > 100).sum() < 0.5 * (_raise([far], pose)[..., 2] > 100).sum()


def test_boxes_do_not_overlap_and_stay_on_the_tile():
    for seed in range(20):
        boxes = draw_boxes(np.random.default_rng(seed), 8)
        masks = np.zeros((len(boxes), 500, 500), np.uint8)
        for mask, box in zip(masks, boxes, strict=True):
            assert np.abs(box.corners).max() < 0.5
            cv2.fillConvexPoly(mask, np.rint(box.corners * 500 + 250).astype(np.int32), 1)
        assert masks.sum(0).max() <= 1
        assert cv2.contourArea(boxes[0].corners.astype(np.float32), oriented=True) > 0


def test_light_changes_the_picture_but_not_what_is_seen():
    image = draw_scene(np.random.default_rng(0), 96)
    rng = np.random.default_rng(0)
    for _ in range(10):
        seen = expose(image, Light.draw(rng, strength=1.0), rng)
        assert not np.array_equal(seen, image)
        assert np.corrcoef(seen.mean(-1).ravel(), image.mean(-1).ravel())[0, 1] > 0.75


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return drawn_scenes(tmp_path_factory.mktemp('render') / 'scenes', 12, size_px=128)


def test_layout_of_university_1652(scenes, tmp_path):
    out = tmp_path / 'out'
    written = render_dataset(scenes, out, SMALL)
    assert written == len(files(out)) - 1 == 4 * 4 + 3 * 2 * 4 + 2 * 4
    names = {part: sorted(p.name for p in (out / part).iterdir()) for part in (
        'train/drone', 'train/satellite', 'train/street', 'train/google', 'test/query_drone',
        'test/query_satellite', 'test/gallery_drone', 'test/gallery_satellite',
    )}  # fmt: skip
    train = names['train/drone']
    assert len(train) == 4
    assert names['train/satellite'] == names['train/street'] == names['train/google'] == train
    query, gallery = names['test/query_drone'], names['test/gallery_drone']
    assert len(query) == 3
    assert len(gallery) == 5
    assert set(query) < set(gallery)
    assert not set(train) & set(gallery)
    assert names['test/query_satellite'] == query
    assert names['test/gallery_satellite'] == gallery
    assert all(len(name) == 4 and name.isdigit() for name in [*train, *gallery])
    assert np.diff(sorted(map(int, [*train, *gallery]))).max() > 1
    drone = [path.name for path in sorted((out / 'test/query_drone' / query[0]).iterdir())]
    assert drone == ['image-01.jpeg', 'image-02.jpeg', 'image-03.jpeg']
    for part, name in (('drone', 'image-02.jpeg'), ('satellite', f'{query[0]}.jpg')):
        one, other = (
            out / f'test/{kind}_{part}' / query[0] / name for kind in ('query', 'gallery')
        )
        assert one.read_bytes() == other.read_bytes()
        assert cv2.imread(str(one)).shape == (32, 32, 3)
    assert json.loads((out / 'rendered.json').read_text())['places'] == 4


def test_layout_of_sues_200(scenes, tmp_path):
    out = tmp_path / 'out'
    options = dataclasses.replace(SMALL, layout='sues200', distractors=0)
    written = render_dataset(scenes, out, options)
    assert written == 7 * (1 + 4 * 3)
    places = sorted(path.name for path in (out / 'satellite-view').iterdir())
    assert len(set(places) & TEST_PLACES) == 3
    assert all(1 <= int(place) <= 200 for place in places)
    expected = {f'satellite-view/{place}/0.png' for place in places} | {
        f'drone_view_512/{place}/{height}/{number}.jpg'
        for place in places
        for height in (150, 200, 250, 300)
        for number in range(3)
    }
    assert files(out) == expected | {'rendered.json'}


def test_rendering_follows_from_its_seed(scenes, tmp_path):
    options = dataclasses.replace(SMALL, places=2, test_places=1, distractors=1)
    for name, seed in (('one', 0), ('again', 0), ('other', 1)):
        render_dataset(scenes, tmp_path / name, dataclasses.replace(options, seed=seed))
    one, again, other = (files(tmp_path / name) for name in ('one', 'again', 'other'))
    assert one == again != other
    for name in one:
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'again' / name).read_bytes()


def test_rendered_data_sets_are_read_as_the_published_ones(tmp_path):
    root = university_dataset(tmp_path, places=6, test_places=3, distractors=2, drones=3)
    config = TrainConfig()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source='university1652'),
        model=dataclasses.replace(config.model, input_px=64),
    )
    source, _ = make_sources(config, root)
    assert source.views == (3,) * 6
    assert source.sample(0, None, key=(0, 0, 0))[0].shape == (64, 64, 3)
    tasks = {
        (task.name, protocol): task
        for protocol in ('full', 'reduced')
        for task in retrieval_tasks(root, source='university1652', height_m=0, protocol=protocol)
    }
    full = tasks['drone_to_satellite', 'full']
    assert (len(full.query_paths), len(full.gallery_paths)) == (9, 5)
    reduced = tasks['satellite_to_drone', 'reduced']
    assert (len(reduced.query_paths), len(reduced.gallery_paths)) == (3, 9)


def test_what_cannot_be_rendered_is_told(scenes, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(ConfigError, match='no such folder'):
        render_dataset(tmp_path / 'absent', out, SMALL)
    with pytest.raises(ConfigError, match=r'found 12 image\(s\), but 105 places are wanted'):
        render_dataset(scenes, out, dataclasses.replace(SMALL, places=100))
    assert not out.exists()
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').touch()
    with pytest.raises(
        ConfigError,
        match=r'not an empty folder; it has no rendered\.json: if a .*'
        'broken off there, delete it and start again',
    ):
        render_dataset(scenes, tmp_path / 'full', SMALL)
    (tmp_path / 'full' / 'rendered.json').touch()
    with pytest.raises(ConfigError, match=r'not an empty folder; name a new one$'):
        render_dataset(scenes, tmp_path / 'full', SMALL)
    broken = tmp_path / 'broken'
    broken.mkdir()
    for number in range(9):
        (broken / f'{number}.jpg').write_bytes(b'no image')
    with pytest.raises(ImageError, match=r'broken/\d\.jpg'):
        render_dataset(broken, out, SMALL)


def test_a_folder_that_cannot_be_written_is_told_in_a_line(scenes, tmp_path, capsys, monkeypatch):
    (tmp_path / 'file').touch()
    arguments = ['render', str(scenes), str(tmp_path / 'file' / 'out'), '--places', '2']
    arguments += ['--test-places', '1', '--distractors', '0', '--drones', '1', '--size-px', '32']
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: {tmp_path}/file/out: cannot be written (')

    def full(path, data):
        raise OSError(errno.ENOSPC, 'No space left on device', str(path))

    monkeypatch.setattr(Path, 'write_bytes', full)
    arguments[2] = str(tmp_path / 'out')
    assert main(arguments) == 2
    assert 'No space left on device' in capsys.readouterr().err.splitlines()[-1]


def test_an_image_of_a_few_pixels_is_no_place(tmp_path):
    folder = drawn_scenes(tmp_path / 'scenes', 2, size_px=20)
    options = dataclasses.replace(SMALL, places=1, test_places=1, distractors=0)
    with pytest.raises(ImageError, match='shorter side has 20 px; expected 32'):
        render_dataset(folder, tmp_path / 'out', options)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'layout': 'vigor'}, "layout is 'vigor'"),
        ({'drones': 0}, 'drones is 0; expected 1 to 99'),
        ({'layout': 'sues200'}, 'distractors is 2; expected 0 to 0 in the layout sues200'),
        ({'layout': 'sues200', 'distractors': 0, 'test_places': 81}, 'expected 1 to 80'),
    ],
)
def test_impossible_options(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_command_line(scenes, tmp_path, capsys):
    arguments = ['render', str(scenes), str(tmp_path / 'out'), '--layout', 'sues200']
    arguments += ['--places', '2', '--test-places', '1', '--drones', '2', '--size-px', '32']
    assert main(arguments) == 0
    assert '27 images in the layout of sues200' in capsys.readouterr().out
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f'error: {tmp_path}/out: is not an empty folder')
