"""Pairs from maps: reproducible, the ground is where it should be, bad files are told of."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
from test_training_views import STILL

from bicrossnet_ros.errors import ConfigError, ImageError
from training.config import ViewConfig
from training.config_files import config_from_dict
from training.data import scene_array
from training.data.maps import MapsSource, Scenes, make_sources, open_maps
from training.data.scenes import central_square, read_scene


def config(**data):
    views = data.pop('views', {})
    data = {'source': 'maps', 'scene_px': 64, 'views': dataclasses.asdict(ViewConfig()) | views}
    return config_from_dict({'data': data, 'model': {'input_px': 32}}, source='test')


def with_data(**changes):
    base = config()
    return dataclasses.replace(base, data=dataclasses.replace(base.data, **changes))


def coded_scene(size_px=256):
    """Red is the column, green the row."""
    axis = np.arange(size_px) * (255 / (size_px - 1))
    scene = np.zeros((size_px, size_px, 3), np.uint8)
    scene[..., 0], scene[..., 1] = np.rint(axis), np.rint(axis)[:, None]
    return scene


def coded_source(places_per_scene, views=STILL, count=3):
    images = np.stack([coded_scene()] * count)
    names = tuple(f'scene {k}' for k in range(count))
    return MapsSource(
        Scenes(names, images, tuple(range(count))),
        range(count),
        places_per_scene=places_per_scene,
        input_px=33,
        views=views,
    )


def write_images(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        image = cv2.resize(coarse, (90, 70), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f'{number:02d}.jpg'), image)
    return folder


def test_halves_come_from_one_placement():
    """Their centres, decoded from the colours, lie 1.1 sides apart about the scene's middle."""
    source = coded_source(2)
    for scene in range(3):
        tiles = [source.sample(2 * scene + half, None, key=(7, 0, 3))[0] for half in (0, 1)]
        centers = np.array([tile[16, 16, :2] for tile in tiles], float)
        np.testing.assert_allclose(centers.mean(0), 127.5, atol=1.5)
        corners = tiles[0][[0, 0], [0, -1], :2].astype(float)
        side = math.dist(*corners) * 33 / 32
        assert math.dist(*centers) == pytest.approx(1.1 * side, rel=0.06)


def test_still_views_show_the_same_ground_and_moved_ones_others():
    still = coded_source(1)
    satellite, drone = still.sample(0, 0, key=(0, 0, 0))
    np.testing.assert_array_equal(satellite, drone)
    moved = coded_source(1, dataclasses.replace(STILL, offset=0.2))
    satellite, drone = moved.sample(0, 0, key=(0, 0, 0))
    assert not np.array_equal(satellite, drone)


def test_everything_random_follows_from_key_and_place():
    source = coded_source(2, ViewConfig())
    views = source.sample(3, None, key=(0, 0, 0))
    source.sample(1, None, key=(0, 0, 0))
    for one, again in zip(views, source.sample(3, 0, key=(0, 0, 0)), strict=True):
        np.testing.assert_array_equal(one, again)
        assert one.shape == (33, 33, 3)
        assert one.dtype == np.uint8
    for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        assert not np.array_equal(source.sample(3, None, key=key)[1], views[1])
    with pytest.raises(IndexError, match='one view'):
        source.sample(0, 1, key=(0, 0, 0))


def test_streams_of_scenes_and_halves_do_not_meet():
    """All scenes are alike here: only the randomness may tell the places apart."""
    source = coded_source(2, ViewConfig(), count=4)
    views = [source.sample(k, None, key=(0, 0, 0))[1].tobytes() for k in range(8)]
    assert len(set(views)) == 8


def test_names_views_and_group():
    one, two = coded_source(1), coded_source(2)
    assert one.names == ('scene 0', 'scene 1', 'scene 2')
    assert two.names[:3] == ('scene 0 a', 'scene 0 b', 'scene 1 a')
    assert (one.group, two.group) == (1, 2)
    assert one.views == (1,) * 3
    assert two.views == (1,) * 6


def test_sources_split_as_the_scenes_do(tmp_path):
    folder = write_images(tmp_path, 10)
    training, held_out = make_sources(with_data(holdout=4, places_per_scene=1), folder)
    paths = sorted(folder.iterdir())
    assert held_out.names == tuple(path.name for path in paths[::4])
    assert training.names == tuple(path.name for path in paths if path not in paths[::4])
    everything, nothing = make_sources(with_data(holdout=0, places_per_scene=1), folder)
    assert len(everything.names) == 10
    assert nothing is None


def test_the_scene_of_a_name_is_its_image(tmp_path):
    folder = write_images(tmp_path, 5)
    settings = with_data(holdout=2, places_per_scene=1, views=STILL)
    for source in make_sources(settings, folder):
        scene = read_scene(folder / source.names[0], scene_px=64)
        alone = MapsSource(
            Scenes(('alone',), scene[None], (0,)),
            [0],
            places_per_scene=1,
            input_px=32,
            views=STILL,
        )
        for view, expected in zip(
            source.sample(0, None, key=(0, 0, 0)),
            alone.sample(0, None, key=(0, 0, 0)),
            strict=True,
        ):
            np.testing.assert_array_equal(view, expected)


def test_a_scene_is_the_central_square(tmp_path):
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = coded_scene(40)
    cv2.imwrite(str(tmp_path / 'wide.png'), image[..., ::-1])
    np.testing.assert_array_equal(read_scene(tmp_path / 'wide.png', scene_px=40), coded_scene(40))
    tall = np.ascontiguousarray(image.transpose(1, 0, 2))
    assert central_square(tall).shape == (40, 40, 3)
    np.testing.assert_array_equal(central_square(tall), tall[30:70])


def test_a_bad_image_is_skipped_and_moves_no_other_scene(tmp_path, capsys):
    folder = write_images(tmp_path, 9)
    settings = with_data(holdout=3, places_per_scene=1)
    before = make_sources(settings, folder)
    data = (folder / '04.jpg').read_bytes()
    (folder / '04.jpg').write_bytes(data[: len(data) // 2])
    after = make_sources(settings, folder)
    assert after[0].names == tuple(name for name in before[0].names if name != '04.jpg')
    assert after[1].names == before[1].names
    assert '8 scenes; left out: 1 unreadable (first: 04.jpg)' in capsys.readouterr().err


def test_an_image_of_a_few_pixels_is_no_scene(tmp_path, capsys):
    folder = write_images(tmp_path, 4)
    cv2.imwrite(str(folder / '02.jpg'), np.full((1, 400, 3), 90, np.uint8))
    training, _ = make_sources(with_data(holdout=4), folder)
    assert {name[:6] for name in training.names} == {'01.jpg', '03.jpg'}
    assert '3 scenes; left out: 1 unreadable (first: 02.jpg)' in capsys.readouterr().err
    with pytest.raises(ImageError, match=r'02\.jpg: its shorter side has 1 px; expected 32'):
        make_sources(with_data(unreadable='fail'), folder)


def test_a_small_scene_of_a_large_image_is_none_of_a_small_image(tmp_path):
    cv2.imwrite(str(tmp_path / 'large.jpg'), np.full((128, 128, 3), 90, np.uint8))
    assert read_scene(tmp_path / 'large.jpg', scene_px=16).shape == (16, 16, 3)


def test_a_bad_image_is_fatal_by_option(tmp_path):
    folder = write_images(tmp_path, 3)
    (folder / '01.jpg').write_bytes(b'')
    with pytest.raises(ImageError, match=r'01\.jpg'):
        make_sources(with_data(unreadable='fail'), folder)


def test_folders_that_cannot_be_used(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match='no such folder'):
        make_sources(with_data(), tmp_path / 'absent')
    with pytest.raises(ConfigError, match='no image below'):
        make_sources(with_data(), tmp_path)
    bad = tmp_path / 'bad'
    bad.mkdir()
    (bad / 'a.jpg').write_bytes(b'nothing')
    with pytest.raises(ConfigError, match=r'no usable scene; left out: 1 unreadable'):
        make_sources(with_data(), bad)
    few = write_images(tmp_path / 'few', 1)
    with pytest.raises(ConfigError, match='0 to train on and 1 to hold out'):
        make_sources(with_data(holdout=4), few)
    monkeypatch.setattr(scene_array, 'MEMORY_LIMIT_BYTES', 64 * 64 * 3)
    assert len(open_maps(few, with_data().data).names) == 1
    write_images(few, 2)
    with pytest.raises(ConfigError, match=r'2 scenes of 64 px take .* lower data\.scene_px'):
        open_maps(few, with_data().data)
