"""Data sets on disk: their layouts, what is trained on, what is searched among what."""

import shutil

import numpy as np
import pytest
from photo_sets import SUES_TEST, picture, sues_raw, sues_split, university, write

from bicrossnet_ros.errors import ConfigError
from training.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from training.data.sources import make_sources, retrieval_tasks
from training.data.sues200 import TEST_PLACES

QUIET = AugmentConfig(pad_px=0, flip_share=0.0)


def config(**data) -> TrainConfig:
    return TrainConfig(data=DataConfig(**data), model=ModelConfig(input_px=32))


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Places 0, 3, 6, ... for training, 1, 4, 7 as queries, 2 and 5 as distractors."""
    root = tmp_path_factory.mktemp('university') / 'University-Release'
    return university(root, train=[3, 6, 9, 12, 15], query=[0, 4, 7], extra=[2, 5], drone=4)


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    return sues_raw(tmp_path_factory.mktemp('raw') / 'SUES-200-512x512', drone=2)


@pytest.fixture(scope='module')
def split(tmp_path_factory):
    return sues_split(tmp_path_factory.mktemp('split') / 'SUES', drone=2)


def by_name(tasks):
    return {task.name: task for task in tasks}


def test_university_trains_on_its_places_sorted_by_folder(small):
    source, held_out = make_sources(config(), small)
    assert source.names == ('0003', '0006', '0009', '0012', '0015')
    assert source.views == (4,) * 5
    assert source.group == 1
    assert held_out is None


def test_every_nth_place_is_held_out_and_not_augmented(small):
    source, held_out = make_sources(config(holdout=2), small)
    assert held_out.names == ('0003', '0009', '0015')
    assert source.names == ('0006', '0012')
    first, again = (held_out.sample(0, 1, key=(0, 0, epoch)) for epoch in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    first, again = (source.sample(0, 1, key=(0, 0, epoch)) for epoch in (0, 1))
    assert not np.array_equal(first[0], again[0])


def test_university_searches_both_ways(small):
    tasks = by_name(retrieval_tasks(small, source='university1652', height_m=0, protocol='full'))
    there, back = tasks['drone_to_satellite'], tasks['satellite_to_drone']
    assert there.query_labels.tolist() == [0] * 5 + [4] * 4 + [7] * 4
    assert there.gallery_labels.tolist() == [0, 2, 4, 5, 7]
    assert back.query_labels.tolist() == [0, 4, 7]
    assert back.gallery_labels.tolist() == [0] * 5 + [2] * 4 + [4] * 4 + [5] * 4 + [7] * 4
    for task in tasks.values():
        assert task.query_labels.dtype == task.gallery_labels.dtype == np.int64
        for paths, labels in (
            (task.query_paths, task.query_labels),
            (task.gallery_paths, task.gallery_labels),
        ):
            assert [int(path.parent.name) for path in paths] == labels.tolist()


def test_reduced_protocol_drops_the_distractors_alone(small):
    tasks = by_name(
        retrieval_tasks(small, source='university1652', height_m=0, protocol='reduced')
    )
    assert tasks['drone_to_satellite'].gallery_labels.tolist() == [0, 4, 7]
    assert tasks['satellite_to_drone'].gallery_labels.tolist() == [0] * 5 + [4] * 4 + [7] * 4
    assert len(tasks['drone_to_satellite'].query_labels) == 13


@pytest.mark.parametrize('below', ['..', 'train', 'test'])
def test_a_level_up_or_down_is_found_and_said(small, below, tmp_path, caplog):
    # The parent of the fixture also holds the folder of its linked files.
    source, _ = make_sources(config(), small / below if below != '..' else small.parent)
    assert len(source.names) == 5
    assert f'University-1652 is in {small}' in caplog.text


def test_the_test_places_of_sues_are_the_published_80():
    assert {f'{place:04d}' for place in SUES_TEST} == TEST_PLACES
    assert len(TEST_PLACES) == 80


@pytest.mark.parametrize('layout', ['raw', 'split'])
@pytest.mark.parametrize('height_m', [0, 250])
def test_both_layouts_of_sues_are_one_data_set(layout, height_m, raw, split):
    root, heights = {'raw': raw, 'split': split}[layout], 1 if height_m else 4
    source, _ = make_sources(config(source='sues200', height_m=height_m), root)
    assert len(source.names) == 120
    assert not TEST_PLACES & set(source.names)
    assert source.views == (2 * heights,) * 120
    full = by_name(retrieval_tasks(root, source='sues200', height_m=height_m, protocol='full'))
    there, back = full['drone_to_satellite'], full['satellite_to_drone']
    assert (len(there.query_labels), len(there.gallery_labels)) == (160 * heights, 200)
    assert (len(back.query_labels), len(back.gallery_labels)) == (80, 400 * heights)
    assert sorted(set(there.query_labels.tolist())) == sorted(SUES_TEST)
    reduced = by_name(
        retrieval_tasks(root, source='sues200', height_m=height_m, protocol='reduced')
    )
    assert len(reduced['drone_to_satellite'].gallery_labels) == 80
    assert len(reduced['satellite_to_drone'].gallery_labels) == 160 * heights
    if height_m:
        assert all(str(height_m) in path.parts for path in there.query_paths)


def test_a_place_with_one_view_is_left_out_or_fatal(small, tmp_path, caplog):
    root = shutil.copytree(small, tmp_path / 'data')
    (root / 'train/satellite/0009/0009.jpg').unlink()
    shutil.rmtree(root / 'train/drone/0012')
    source, _ = make_sources(config(), root)
    assert source.names == ('0003', '0006', '0015')
    assert '2 of 5 training places have no pair of views; the first, 0009, has 0' in caplog.text
    with pytest.raises(ConfigError, match='0009, has 0 satellite and 4 drone images; expected'):
        make_sources(config(unreadable='fail'), root)


def test_a_place_that_turns_bad_moves_no_other_to_the_other_side(small, tmp_path):
    root = shutil.copytree(small, tmp_path / 'data')
    shutil.rmtree(root / 'train/drone/0003')
    source, held_out = make_sources(config(holdout=2), root)
    assert held_out.names == ('0009', '0015')
    assert source.names == ('0006', '0012')


def test_satellite_and_drone_views_are_those_of_the_place(tmp_path):
    for place in range(3):
        write(tmp_path / f'train/satellite/{place:04d}/{place:04d}.png', picture(place))
        for view in range(2):
            image = picture(10 + 2 * place + view)
            write(tmp_path / f'train/drone/{place:04d}/image-{view + 1:02d}.png', image)
    full_size = TrainConfig(data=DataConfig(augment=QUIET), model=ModelConfig(input_px=32))
    source, _ = make_sources(full_size, tmp_path)
    from bicrossnet_ros.preprocess import Preprocessing, resize

    for place in range(3):
        for view in range(2):
            # Twice: the second time the satellite view comes from memory.
            for _ in range(2):
                satellite, drone = source.sample(place, view, key=(0, 0, 0))
                assert np.array_equal(satellite, resize(picture(place), Preprocessing(32, 32)))
                expected = picture(10 + 2 * place + view)
                assert np.array_equal(drone, resize(expected, Preprocessing(32, 32)))
    seen = {source.sample(0, None, key=(0, 0, epoch))[1].tobytes() for epoch in range(20)}
    assert len(seen) == 2


@pytest.mark.parametrize(
    ('missing', 'message'),
    [
        ('test/gallery_drone', 'gallery_drone: No such file'),
        ('test/gallery_drone/0004', 'lacks 1 places of the queries, the first: 0004'),
    ],
)
def test_what_a_test_lacks_is_named(small, tmp_path, missing, message):
    root = shutil.copytree(small, tmp_path / 'data')
    shutil.rmtree(root / missing)
    with pytest.raises(ConfigError, match=message):
        retrieval_tasks(root, source='university1652', height_m=0, protocol='full')


def test_empty_galleries_and_odd_names_are_errors(small, tmp_path):
    root = shutil.copytree(small, tmp_path / 'data')
    for name in ('harbour', '9' * 20):
        folder = root / 'test/gallery_satellite' / name
        folder.mkdir()
        assert retrieval_tasks(root, source='university1652', height_m=0, protocol='full')
        write(folder / 'a.jpg', picture(0))
        with pytest.raises(ConfigError, match=f'the folder {name} is not named by a number of at'):
            retrieval_tasks(root, source='university1652', height_m=0, protocol='full')
        shutil.rmtree(folder)
    shutil.rmtree(root / 'test/gallery_satellite')
    (root / 'test/gallery_satellite/0000').mkdir(parents=True)
    with pytest.raises(ConfigError, match='found no image in 1 folders'):
        retrieval_tasks(root, source='university1652', height_m=0, protocol='full')


def test_wrong_folders_are_named_with_what_they_hold(small, tmp_path):
    with pytest.raises(ConfigError, match='nowhere: no such folder; expected University-1652'):
        make_sources(config(), tmp_path / 'nowhere')
    (tmp_path / 'other').mkdir()
    with pytest.raises(ConfigError, match='this is not SUES-200; found other, expected drone_v'):
        make_sources(config(source='sues200'), tmp_path)
    for name in ('a', 'b'):
        (tmp_path / name / 'train/drone').mkdir(parents=True)
    with pytest.raises(ConfigError, match='holds University-1652 more than once'):
        make_sources(config(), tmp_path)


def test_too_few_places_for_a_split(small):
    with pytest.raises(ConfigError, match='5 complete training places, of which'):
        make_sources(config(holdout=1), small)


def test_unknown_protocol_height_and_source(small, raw):
    with pytest.raises(ConfigError, match="protocol is 'easy'; expected one of full, reduced"):
        retrieval_tasks(small, source='university1652', height_m=0, protocol='easy')
    with pytest.raises(ConfigError, match='height_m is 175; SUES-200 has 150'):
        retrieval_tasks(raw, source='sues200', height_m=175, protocol='full')
    with pytest.raises(ConfigError, match="source is 'maps'; expected one of university1652"):
        retrieval_tasks(small, source='maps', height_m=0, protocol='full')


def test_files_that_are_no_images_and_hidden_ones_are_passed_over(small, tmp_path):
    root = shutil.copytree(small, tmp_path / 'data')
    (root / 'train/drone/.cache').mkdir()
    (root / 'train/drone/0003/Thumbs.db').touch()
    (root / 'train/drone/0003/._image-01.jpeg').touch()
    source, _ = make_sources(config(), root)
    assert source.names[0] == '0003'
    assert source.views[0] == 4
