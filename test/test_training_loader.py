"""Batches: which places, the same for any workers and ranks, and what damaged images do."""

import multiprocessing
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_sets import picture, write

from bicrossnet_ros.errors import ConfigError, ImageError
from bicrossnet_ros.preprocess import Preprocessing, prepare
from training.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from training.data.loader import batches, normalise
from training.data.samplers import ANY_VIEW, epoch_order, steps_per_epoch
from training.data.sources import make_sources
from training.data.workers import WorkerError

STRONG = AugmentConfig(
    pad_px=3,
    satellite_rotation_deg=90.0,
    satellite_quarter_turns=True,
    drone_auto_augment=True,
    drone_erasing_share=0.5,
)


class Counts:
    """A source of which only the counts matter."""

    def __init__(self, views: list[int], group: int = 1) -> None:
        self.names = tuple(f'{k:04d}' for k in range(len(views)))
        self.views = tuple(views)
        self.group = group

    def sample(self, place, view, *, key):
        raise AssertionError('no images here')


def order(source, *, epoch: int = 0, seed: int = 0, **data) -> np.ndarray:
    config = DataConfig(**data)
    drawn = epoch_order(source, config, seed=seed, epoch=epoch)
    assert drawn.shape == (steps_per_epoch(source, config), config.places_per_step, 2)
    for batch in drawn[..., 0]:
        assert len(set(batch.tolist())) == config.places_per_step
    return drawn


@pytest.mark.parametrize(('places', 'steps'), [(701, 87), (120, 15)])
def test_the_sampler_of_the_paper_has_its_number_of_steps(places, steps):
    drawn = order(Counts([54] * places), places_per_step=8)
    assert len(drawn) == steps
    assert np.all(drawn[..., 1] == ANY_VIEW)
    assert max(Counter(drawn[..., 0].ravel().tolist()).values()) == 1


def test_orders_follow_from_seed_and_epoch():
    source = Counts([3] * 40)
    for sampler in ('places', 'pairs'):
        first = order(source, sampler=sampler)
        assert np.array_equal(first, order(source, sampler=sampler))
        assert not np.array_equal(first, order(source, sampler=sampler, epoch=1))
        assert not np.array_equal(first, order(source, sampler=sampler, seed=1))


def test_every_place_is_left_out_by_the_short_last_batch_equally():
    seen = Counter()
    for epoch in range(300):
        seen.update(
            order(Counts([1] * 11), epoch=epoch, places_per_step=8)[..., 0].ravel().tolist()
        )
    # 300 draws of 8 in 11: four standard deviations are 31.
    assert all(abs(seen[place] - 300 * 8 / 11) < 31 for place in range(11))


@pytest.mark.parametrize(
    ('views', 'places_per_step', 'steps'),
    [
        ([54] * 701, 128, 295),
        ([55] + [54] * 700, 8, 4731),
        ([3, 3, 3, 3], 2, 6),
        ([9, 1, 1, 1], 2, 3),  # the first place must be in every batch
        ([100, 2, 2, 2], 3, 3),
        ([5, 4, 3, 2, 1], 5, 1),
        ([1] * 10, 4, 2),
    ],
)
def test_pairs_are_seen_once_in_as_many_batches_as_there_can_be(views, places_per_step, steps):
    drawn = order(Counts(views), sampler='pairs', places_per_step=places_per_step)
    assert len(drawn) == steps
    pairs = [tuple(pair) for pair in drawn.reshape(-1, 2).tolist()]
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= view < views[place] for place, view in pairs)


def most_batches(views: list[int], size: int) -> int:
    """Fill batches greedily from the fullest places: known to be optimal, and slow."""
    left, count = sorted(views), 0
    while sum(value > 0 for value in left) >= size:
        left = sorted(left[:-size] + [value - 1 for value in left[-size:]])
        count += 1
    return count


def test_the_number_of_batches_of_pairs_is_the_greatest_possible():
    rng = np.random.default_rng(0)
    for _ in range(200):
        views = rng.integers(1, rng.integers(2, 30), rng.integers(2, 12)).tolist()
        size = int(rng.integers(2, len(views) + 1))
        drawn = order(Counts(views), sampler='pairs', places_per_step=size)
        assert len(drawn) == most_batches(views, size)


def test_pairs_of_places_meet_evenly():
    drawn = order(Counts([50] * 20), sampler='pairs', places_per_step=5)
    met = np.zeros((20, 20), int)
    for batch in drawn[..., 0]:
        met[np.ix_(batch, batch)] += 1
    others = met[~np.eye(20, dtype=bool)]
    # 200 batches; a given pair is expected in 200 * (5 * 4) / (20 * 19) = 10.5 of them.
    assert others.mean() == pytest.approx(10.5, abs=0.1)
    assert others.min() >= 1
    assert others.max() <= 25


def test_places_of_a_group_stay_together():
    for sampler in ('places', 'pairs'):
        source = Counts([1] * 30, group=2)
        drawn = order(source, sampler=sampler, places_per_step=8)
        assert len(drawn) == 3
        assert np.all(drawn[:, ::2, 0] % 2 == 0)
        assert np.array_equal(drawn[:, 1::2, 0], drawn[:, ::2, 0] + 1)


def test_too_few_places_for_a_batch():
    with pytest.raises(ConfigError, match='found 5 places for training, but a batch takes 8'):
        steps_per_epoch(Counts([9] * 5), DataConfig())


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp('photos'))


def make_photos(root: Path, *, places: int = 9, views: int = 3) -> Path:
    for place in range(places):
        name = f'{7 * place:04d}'
        write(root / 'train/satellite' / name / f'{name}.jpg', picture(100 + place))
        for view in range(views):
            image = picture(1000 + views * place + view)
            write(root / 'train/drone' / name / f'image-{view + 1:02d}.jpeg', image)
    return root


def draw(
    root: Path,
    first: int,
    last: int,
    *,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    stream: int = 0,
    **data,
):
    settings = {'places_per_step': 4, 'augment': STRONG, **data}
    config = TrainConfig(data=DataConfig(**settings), model=ModelConfig(input_px=32))
    source, _ = make_sources(config, root)
    return list(
        batches(
            source,
            config.data,
            seed=seed,
            stream=stream,
            first_step=first,
            last_step=last,
            rank=rank,
            world=world,
        )
    )


def same(one, other) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ('satellite', 'drone', 'labels')
    )


def all_same(ones, others) -> bool:
    return all(same(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize('sampler', ['places', 'pairs'])
def test_any_number_of_workers_gives_the_same_batches(photos, sampler):
    alone = draw(photos, 0, 9, sampler=sampler)
    assert len(alone) == 9
    for batch in alone:
        assert batch.satellite.shape == batch.drone.shape == (4, 32, 32, 3)
        assert batch.satellite.dtype == batch.drone.dtype == torch.uint8
        assert batch.labels.dtype == torch.int64
        assert (batch.skipped, batch.problems) == (0, ())
    for workers in (1, 2):
        assert all_same(draw(photos, 0, 9, sampler=sampler, workers=workers), alone)


def test_a_step_does_not_depend_on_where_a_run_began(photos):
    whole = draw(photos, 0, 9)
    assert all_same(draw(photos, 5, 9), whole[5:])
    assert all_same(draw(photos, 5, 6, workers=2), whole[5:6])


@pytest.mark.parametrize('workers', [0, 1])
def test_drawing_leaves_the_random_state_of_torch_and_numpy_alone(photos, workers):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw(photos, 0, 2, workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_seeds_streams_and_epochs_differ(photos):
    first = draw(photos, 0, 2)
    assert not same(first[0], draw(photos, 0, 1, seed=1)[0])
    other_stream = draw(photos, 0, 2, stream=1)
    assert torch.equal(first[0].labels, other_stream[0].labels)
    assert not same(first[0], other_stream[0])
    assert not same(first[0], draw(photos, 2, 3)[0])


@pytest.mark.parametrize('sampler', ['places', 'pairs'])
def test_ranks_share_the_global_batch_in_order(photos, sampler):
    whole = draw(photos, 0, 3, sampler=sampler)
    shares = [draw(photos, 0, 3, sampler=sampler, rank=rank, world=2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        for name in ('satellite', 'drone', 'labels'):
            parts = [getattr(share[step], name) for share in shares]
            assert torch.equal(torch.cat(parts), getattr(batch, name))


def test_a_global_batch_that_does_not_divide_is_refused(photos):
    with pytest.raises(ConfigError, match='places_per_step is 4; expected a multiple of 3'):
        draw(photos, 0, 1, world=3)


def test_labels_are_positions_among_the_sorted_names(photos):
    config = TrainConfig(
        data=DataConfig(places_per_step=4, augment=AugmentConfig(pad_px=0, flip_share=0.0)),
        model=ModelConfig(input_px=32),
    )
    source, _ = make_sources(config, photos)
    (batch,) = draw(photos, 0, 1, augment=config.data.augment)
    for row, label in enumerate(batch.labels.tolist()):
        satellite, _ = source.sample(label, 0, key=(0, 0, 0))
        assert np.array_equal(batch.satellite[row].numpy(), satellite)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_another_drone_image_takes_the_part_of_a_damaged_one(tmp_path, caplog):
    root = make_photos(tmp_path, places=4)
    victim = root / 'train/drone/0007/image-02.jpeg'
    truncate(victim)
    alone = draw(root, 0, 3, sampler='pairs')
    assert all(batch.skipped == 0 and len(batch.labels) == 4 for batch in alone)
    problems = {problem for batch in alone for problem in batch.problems}
    assert problems == {f'{victim}: is cut off after 200 bytes; replace or remove it'}
    assert caplog.text.count('cut off') == 1
    assert all_same(draw(root, 0, 3, sampler='pairs', workers=2), alone)


@pytest.mark.parametrize('victims', ['train/satellite/0014/*', 'train/drone/0014/*'])
def test_a_place_that_cannot_be_read_is_left_out_and_counted(tmp_path, victims):
    root = make_photos(tmp_path, places=4)
    for path in root.glob(victims):
        path.write_bytes(b'')
    for workers in (0, 2):
        drawn = draw(root, 0, 4, workers=workers)
        assert [batch.skipped for batch in drawn] == [1] * 4
        for batch in drawn:
            assert sorted(batch.labels.tolist()) == [0, 1, 3]
            assert len(batch.satellite) == len(batch.drone) == 3
            assert len(batch.problems) == (1 if 'satellite' in victims else 3)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_damaged_image_is_fatal_by_option(tmp_path, workers):
    root = make_photos(tmp_path, places=4)
    truncate(root / 'train/satellite/0014/0014.jpg')
    # One line, whichever process met the error.
    message = r'^[^\n]*0014\.jpg: is cut off after 200 bytes; replace or remove it$'
    with pytest.raises(ImageError, match=message):
        draw(root, 0, 4, unreadable='fail', workers=workers)


def test_a_batch_of_which_nothing_is_left_is_an_error(tmp_path):
    root = make_photos(tmp_path, places=4)
    for path in root.glob('train/satellite/*/*'):
        path.write_bytes(b'')
    with pytest.raises(
        ImageError, match=r'none of the 4 places of step 0 could be read, and no .* empty'
    ):
        draw(root, 0, 4)


@pytest.mark.parametrize('bad', [[2], [0, 3], [1, 2, 4, 5]])
def test_another_place_stands_in_for_a_share_without_any(tmp_path, bad):
    root = make_photos(tmp_path, places=8)
    victims = [f'{7 * place:04d}' for place in bad]
    for name in victims:
        (root / f'train/satellite/{name}/{name}.jpg').write_bytes(b'')
    steps = 4
    shares = [draw(root, 0, steps, rank=rank, world=4) for rank in range(4)]
    whole = draw(root, 0, steps)
    stood_in = 0
    for step in range(steps):
        labels = [share[step].labels.tolist() for share in shares]
        assert [len(own) for own in labels] == [1] * 4
        together = [label for own in labels for label in own]
        assert len(set(together)) == 4
        assert not set(together) & set(bad)
        assert set(together) >= set(whole[step].labels.tolist())
        assert sum(share[step].skipped for share in shares) == whole[step].skipped
        stood_in += whole[step].skipped
        for share in shares:
            assert bool(share[step].skipped) == bool(share[step].problems)
    assert stood_in
    again = draw(root, 2, steps, rank=1, world=4, workers=1)
    assert all_same(again, shares[1][2:])


def test_a_share_for_which_no_place_is_left_is_an_error(tmp_path):
    root = make_photos(tmp_path, places=4)
    (root / 'train/satellite/0014/0014.jpg').write_bytes(b'')
    config = DataConfig(places_per_step=4)
    source, _ = make_sources(TrainConfig(data=config, model=ModelConfig(input_px=32)), root)
    emptied = epoch_order(source, config, seed=0, epoch=0)[0, :, 0].tolist().index(2)
    for rank in range(4):
        if rank != emptied:
            assert draw(root, 0, 1, rank=rank, world=4)[0].skipped == 0
    with pytest.raises(ImageError, match='no place is left to stand in'):
        draw(root, 0, 1, rank=emptied, world=4)


def test_a_worker_that_is_killed_is_a_known_error(photos):
    config = TrainConfig(
        data=DataConfig(places_per_step=4, workers=1), model=ModelConfig(input_px=32)
    )
    source, _ = make_sources(config, photos)
    stream = batches(source, config.data, seed=0, stream=0, first_step=0, last_step=10_000)
    next(stream)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    with pytest.raises(WorkerError, match=r'killed or crashed.*data\.workers.*--resume'):
        list(stream)


def test_a_source_can_be_sent_to_another_process(photos):
    config = TrainConfig(data=DataConfig(), model=ModelConfig(input_px=32))
    source, _ = make_sources(config, photos)
    before = source.sample(3, 1, key=(0, 0, 0))
    after = pickle.loads(pickle.dumps(source)).sample(3, 1, key=(0, 0, 0))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_satellites_are_the_same_with_and_without_memory_for_them(photos, monkeypatch):
    kept = draw(photos, 0, 6)
    monkeypatch.setattr('training.data.photos.CACHE_BYTES', 0)
    assert all_same(draw(photos, 0, 6), kept)


def test_normalise_equals_prepare_bit_by_bit():
    preprocessing = Preprocessing(24, 32, mean=(0.1, 0.5, 0.406), std=(0.229, 0.3, 0.225))
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)
    ours = normalise(torch.from_numpy(images), preprocessing)
    theirs = prepare(images, preprocessing)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert np.array_equal(ours.numpy(), theirs)


def test_normalise_refuses_other_sizes_and_types():
    preprocessing = Preprocessing(32, 32)
    for images in (torch.zeros(2, 32, 24, 3, dtype=torch.uint8), torch.zeros(2, 32, 32, 3)):
        with pytest.raises(ImageError, match=r'expected uint8 of shape \(N, 32, 32, 3\)'):
            normalise(images, preprocessing)
