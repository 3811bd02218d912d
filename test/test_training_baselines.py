import numpy as np
import pytest
from localizer_scene import GSD_M, NORTH_M, WEST_M, Shot, ground_texture, render

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.features import Features, extract, match
from bicrossnet_ros.types import Frame
from training.baselines.brute_force import BruteForce, match_everywhere
from training.baselines.vlad import Vlad, descriptors_of, learn_vlad, load_vlad, vlad


def slow_vlad(descriptors, words):
    """Jegou et al. 2010, equation 1, one descriptor at a time; then square root and length."""
    total = np.zeros(words.shape, np.float64)
    for descriptor in descriptors.astype(np.float64):
        distances = [np.linalg.norm(descriptor - word) for word in words]
        word = int(np.argmin(distances))
        total[word] += descriptor - words[word]
    powered = [np.sign(x) * abs(x) ** 0.5 for x in total.ravel()]
    length = np.sqrt(sum(x * x for x in powered))
    return np.array(powered) / length


@pytest.fixture(scope='module')
def scenes():
    return [ground_texture(128, 128, seed=seed) for seed in range(12)]


@pytest.fixture(scope='module')
def learnt(scenes):
    return learn_vlad(scenes, words=8, components=10, seed=3)


def test_vlad_is_its_definition(scenes, learnt):
    descriptors = descriptors_of(scenes[0])
    assert len(descriptors) > 50
    found = vlad(descriptors, learnt.words)
    np.testing.assert_allclose(found, slow_vlad(descriptors, learnt.words), atol=1e-5)
    assert found.shape == (8 * 128,)
    assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-5)


def test_vlad_embeds_like_its_parts(scenes, learnt):
    rows = learnt.encode(np.stack(scenes))
    assert rows.shape == (12, learnt.embedding_dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
    long = slow_vlad(descriptors_of(scenes[4]), learnt.words)
    short = learnt.axes.astype(np.float64) @ (long - learnt.mean)
    np.testing.assert_allclose(rows[4], short / np.linalg.norm(short), atol=1e-4)


def test_vlad_knows_a_scene_again(scenes, learnt):
    rng = np.random.default_rng(0)
    again = [np.clip(one * 0.8 + rng.normal(20, 6, one.shape), 0, 255) for one in scenes]
    found = learnt.encode(np.stack(again).astype(np.uint8)) @ learnt.encode(np.stack(scenes)).T
    assert (found.argmax(axis=1) == np.arange(12)).all()


def test_an_image_without_features_is_like_nothing(learnt):
    flat = np.full((2, 64, 64, 3), 90, np.uint8)
    assert not learnt.encode(flat).any()


def test_vlad_depends_on_the_seed_alone(scenes, learnt, tmp_path):
    same = learn_vlad(scenes, words=8, components=10, seed=3)
    other = learn_vlad(scenes, words=8, components=10, seed=4)
    assert same.model_id == learnt.model_id != other.model_id
    learnt.save(tmp_path / 'words.npz')
    assert load_vlad(tmp_path / 'words.npz').model_id == learnt.model_id


def test_vlad_needs_features(tmp_path):
    with pytest.raises(ConfigError, match='0 SIFT features; expected at least 640'):
        learn_vlad([np.zeros((64, 64, 3), np.uint8)], seed=0)
    (tmp_path / 'words.npz').write_bytes(b'nothing')
    with pytest.raises(ConfigError, match=r'no vocabulary .* delete it'):
        load_vlad(tmp_path / 'words.npz')


def test_components_are_no_more_than_the_images_span(scenes):
    learnt = learn_vlad(scenes, words=8, components=1000, seed=0)
    assert isinstance(learnt, Vlad)
    assert learnt.embedding_dim == 11  # 12 images around their mean


def whole(image):
    return extract(image, np.ones(image.shape[:2], bool), max_features=400)


@pytest.mark.parametrize('rows_at_once', [7, 1000])
def test_matching_in_pieces_is_matching_at_once(monkeypatch, rows_at_once):
    monkeypatch.setattr('training.baselines.brute_force.ROWS_AT_ONCE', rows_at_once)
    ground = ground_texture(400, 400, seed=1)
    query = whole(np.ascontiguousarray(np.rot90(ground[100:260, 60:260])))
    blocks = [whole(ground[:200]), whole(ground[200:]), whole(ground_texture(200, 200, seed=2))]
    rows, found = match_everywhere(query, blocks, ratio=0.8)
    together = Features(
        np.concatenate([block.points for block in blocks]),
        np.concatenate([block.descriptors for block in blocks]),
    )
    pairs = match(query, together, ratio=0.8)
    assert len(pairs) > 30
    np.testing.assert_array_equal(rows, pairs[:, 0])
    np.testing.assert_array_equal(found.points, together.points[pairs[:, 1]])
    np.testing.assert_array_equal(found.descriptors, together.descriptors[pairs[:, 1]])


def test_a_repeated_block_is_never_distinctive():
    block = whole(ground_texture(200, 200, seed=2))
    assert len(match_everywhere(block, [block], ratio=0.8)[0]) > 50
    assert len(match_everywhere(block, [block, block], ratio=0.8)[0]) == 0


def test_nothing_matches_nothing():
    block = whole(ground_texture(200, 200, seed=2))
    assert len(match_everywhere(block.strongest(0), [block], ratio=0.8)[0]) == 0
    assert len(match_everywhere(block, [block.strongest(0)], ratio=0.8)[0]) == 0


@pytest.fixture(scope='module')
def ground():
    return ground_texture(500, 500, seed=5)


@pytest.fixture(scope='module')
def matcher(ground):
    found = whole_map(ground)
    return BruteForce([found], gsd_m=GSD_M)


def whole_map(ground):
    found = extract(ground, np.ones(ground.shape[:2], bool), max_features=6000)
    east = WEST_M + (found.points[:, 0] + 0.5) * GSD_M
    north = NORTH_M - (found.points[:, 1] + 0.5) * GSD_M
    return Features(np.stack([east, north], axis=1), found.descriptors)


@pytest.mark.parametrize(('heading_deg', 'pitch_deg'), [(0.0, 0.0), (205.0, 6.0)])
def test_brute_force_finds_a_frame(ground, matcher, heading_deg, pitch_deg):
    shot = Shot(
        WEST_M + 120, NORTH_M - 140, agl_m=75.0, heading_deg=heading_deg, pitch_deg=pitch_deg
    )
    frame = Frame(render(ground, shot), 0.0, intrinsics=shot.lens, agl_m=shot.agl_m)
    answer = matcher.locate(frame)
    assert answer.center_m is not None, answer.detail
    assert np.linalg.norm(answer.center_m - shot.center) < 1.0
    assert answer.inliers >= 12
    assert answer.total_ms > 0


def test_brute_force_abstains_off_the_map(matcher):
    elsewhere = ground_texture(500, 500, seed=99)
    shot = Shot(WEST_M + 120, NORTH_M - 140, agl_m=75.0)
    frame = Frame(render(elsewhere, shot), 0.0, intrinsics=shot.lens, agl_m=shot.agl_m)
    answer = matcher.locate(frame)
    assert answer.center_m is None
    assert answer.reason == 'few_inliers'
    assert 'matches agree' in answer.detail
