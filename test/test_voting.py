"""Patches that vote for places: geometry of the patches, the two ways to the scores, borders."""

import math

import numpy as np
import pytest
from gallery_fixtures import ProjectionEncoder, build_gallery, textured, write_map
from localizer_scene import LENS, Shot

from bicrossnet_ros.camera import GroundView, rotation_camera_from_world, top_heading_deg
from bicrossnet_ros.config import CameraConfig
from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.gallery import open_gallery
from bicrossnet_ros.hypotheses import interpret
from bicrossnet_ros.patch import FramePyramid
from bicrossnet_ros.query_patches import MIN_SHARE, Ballot, cut_patches, patch_offsets
from bicrossnet_ros.ranking import distinct_places
from bicrossnet_ros.retrieval import PlaceSearch, look_alikes
from bicrossnet_ros.tile_grid import NO_TILE, TileGrid, hat
from bicrossnet_ros.tile_index import build_index
from bicrossnet_ros.types import Attitude, Frame
from bicrossnet_ros.voting import Block, vote_at_places, vote_over_block

# Clear of the hole in the map.
PLACE_M = np.array([305962.0, 4545631.0])
OFFSETS_M = np.array([(-21.0, -9.0), (-7.5, 13.0), (6.0, -10.0), (20.0, 8.0)])


def view_of(*, heading_deg=0.0, agl_m=90.0, pitch_deg=0.0, lens=LENS):
    attitude = Attitude(0.0, pitch_deg, heading_deg)
    rotation = rotation_camera_from_world(attitude, CameraConfig(), grid_heading_deg=heading_deg)
    return GroundView(lens, rotation, agl_m)


def ballot_of(*, headings=(0.0, 40.0), offsets_m=OFFSETS_M, seed=0):
    """The same patches under several headings, turned with them."""
    rng = np.random.default_rng(seed)
    turned = []
    for heading in np.radians(headings):
        right, up = (np.cos(heading), -np.sin(heading)), (np.sin(heading), np.cos(heading))
        turned.append(offsets_m @ np.array([right, up]))
    count = len(offsets_m)
    return Ballot(
        np.concatenate(turned),
        rng.uniform(0.2, 1.0, count * len(headings)),
        np.repeat(np.arange(len(headings)), count),
        tuple((heading, 90.0) for heading in headings),
    )


@pytest.fixture(scope='module')
def gallery(tmp_path_factory):
    """Tiles of 32 m every 8 m, the last row and column closer, and a hole in the middle."""
    folder = tmp_path_factory.mktemp('voting')
    picture = textured(413, 507, seed=4)
    mask = np.full(picture.shape[:2], 255, np.uint8)
    mask[180:240, 200:290] = 0
    path = write_map(folder / 'map.tif', picture, mask=mask)
    options = {'tile_px': 64, 'overlap': 0.75, 'min_valid': 0.9}
    with open_gallery(build_gallery(folder / 'map.gallery', path, **options)) as opened:
        yield opened


@pytest.fixture(scope='module')
def asked(gallery):
    """Descriptors of eight patches of the map itself, at the offsets of a ballot around a place.

    Under the second heading the patches lie as the ballot says; under the first they do not.
    """
    ballot = ballot_of()
    place = PLACE_M
    encoder = ProjectionEncoder()
    tiles = [
        gallery.window(*(place + offset), size_m=gallery.tile_size_m).image
        for offset in np.tile(ballot.offsets_m[4:], (2, 1))
    ]
    return place, ballot, encoder.encode(np.stack(tiles))


# The grid


def test_hat_is_linear_interpolation_between_neighbours():
    axis_m = np.array([10.0, 18.0, 26.0, 34.0])
    at_m = np.array([10.0, 12.0, 18.0, 25.0, 34.0])
    index, weight = hat(axis_m, at_m, 8.0)
    assert (axis_m[index] * weight).sum(axis=1) == pytest.approx(at_m)
    assert weight.sum(axis=1) == pytest.approx(np.ones(5))


def test_hat_fades_out_at_the_end_and_does_not_reach_over_a_gap():
    axis_m = np.array([0.0, 8.0, 100.0, 105.0])
    _, weight = hat(axis_m, np.array([-4.0, -8.0, 54.0, 103.0, 109.0, 200.0]), 8.0)
    assert weight.sum(axis=1) == pytest.approx([0.5, 0.0, 0.0, 1.0, 0.5, 0.0])
    # Closer neighbours than a stride share the whole between them.
    assert weight[3] == pytest.approx([(1 - 3 / 8) / (11 / 8), (1 - 2 / 8) / (11 / 8)])


def test_the_grid_knows_every_tile_and_no_other(gallery):
    grid = TileGrid.of(gallery)
    assert (np.diff(grid.columns_m) > 0).all()
    assert (grid.tiles_at(grid.row, grid.column) == np.arange(len(grid.ids))).all()
    everywhere = grid.tiles_at(*np.mgrid[0 : len(grid.rows_m), 0 : len(grid.columns_m)])
    assert len(grid.ids) < everywhere.size, 'the hole'
    assert (np.sort(everywhere[everywhere != NO_TILE]) == np.arange(len(grid.ids))).all()
    centers = np.stack([gallery.tile_east_m, gallery.tile_north_m], axis=1)
    assert (grid.nearest(centers + 1.9, limit_m=2.0) == np.arange(len(centers))).all()
    assert (grid.nearest(centers + 1e5, limit_m=2.0) == NO_TILE).all()


def test_a_point_on_a_tile_is_surrounded_by_it_alone(gallery):
    grid = TileGrid.of(gallery)
    tiles, weights = grid.surrounding(
        np.array([[gallery.tile_east_m[9], gallery.tile_north_m[9]]])
    )
    assert weights.sum() == pytest.approx(1.0)
    assert tiles[0, int(weights.argmax())] == 9
    assert weights.max() == pytest.approx(1.0)


# The patches


def test_a_frame_hardly_larger_than_a_tile_gives_one_patch_in_its_middle():
    offsets = patch_offsets(view_of(agl_m=36.0), tile_m=32.0, limit=8)
    assert offsets == pytest.approx(np.zeros((1, 2)))
    assert len(patch_offsets(view_of(agl_m=400.0), tile_m=32.0, limit=1)) == 1


@pytest.mark.parametrize('limit', [2, 5, 8, 12, 40])
@pytest.mark.parametrize('agl_m', [60.0, 90.0, 130.0, 800.0])
def test_patches_are_apart_and_inside_of_what_a_level_frame_sees(agl_m, limit):
    view = view_of(agl_m=agl_m)
    offsets = patch_offsets(view, tile_m=32.0, limit=limit)
    assert 1 < len(offsets) <= limit
    half_m = agl_m * np.array([LENS.width_px / LENS.fx_px, LENS.height_px / LENS.fy_px]) / 2
    assert (np.abs(offsets) <= half_m - 16.0 + agl_m * 0.02).all()
    assert np.abs(offsets).max() <= 1.5 * 32.0 + 1e-9
    apart = np.linalg.norm(offsets[:, None] - offsets, axis=2) + 1e9 * np.eye(len(offsets))
    assert apart.min() >= 16.0 - 1e-9


def test_patches_turn_with_the_frame():
    level, turned = view_of(), view_of(heading_deg=70.0)
    turn = math.radians(top_heading_deg(turned.rotation))
    back = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    there = patch_offsets(turned, tile_m=32.0, limit=8)
    assert there @ back.T == pytest.approx(patch_offsets(level, tile_m=32.0, limit=8), abs=1e-6)


def test_patches_that_see_less_weigh_less_or_fall_out():
    image = textured(240, 320)
    shot = Shot(0.0, 0.0, 50.0, 35.0, 30.0)
    frame = Frame(image, 0.0, LENS, shot.attitude, shot.agl_m)
    hypotheses = interpret(frame, CameraConfig(), convergence_deg=0.0).hypotheses
    patches, ballot = cut_patches(FramePyramid(image), hypotheses, tile_px=48, gsd_m=0.5, limit=60)
    assert patches.shape == (len(ballot.weights), 48, 48, 3)
    assert len(ballot.guesses) == CameraConfig().known_headings
    assert (np.diff(ballot.hypothesis) >= 0).all()
    assert ballot.weights.min() >= MIN_SHARE
    assert ballot.weights.max() <= 1.0
    assert np.ptp(ballot.weights) > 0.1, 'corners of a tilted frame see less'
    everything = sum(len(patch_offsets(one.view, tile_m=24.0, limit=60)) for one in hypotheses)
    assert len(patches) < everything, 'some see next to nothing'


# The scores


def one_by_one(gallery, descriptors, average, ballot):
    """Scores (H, T) from the definition, a place, a patch and a tile at a time."""
    stride_m = 8.0
    embeddings = gallery.embeddings(np.arange(len(gallery.tile_east_m)))
    centers = np.stack([gallery.tile_east_m, gallery.tile_north_m], axis=1)
    scores = np.full((len(ballot.guesses), len(centers)), -np.inf)
    for hypothesis in range(len(ballot.guesses)):
        members = [q for q in range(len(descriptors)) if ballot.hypothesis[q] == hypothesis]
        whole = sum(ballot.weights[q] for q in members)
        squares = sum(ballot.weights[q] ** 2 for q in members)
        mean = sum(ballot.weights[q] * average[q] for q in members) / whole
        for place, center in enumerate(centers):
            total = present = 0.0
            for q in members:
                point = center + ballot.offsets_m[q]
                support = value = 0.0
                for tile in np.flatnonzero((np.abs(centers - point) < stride_m).all(axis=1)):
                    weight = 1.0
                    for axis in (0, 1):
                        lines = np.unique(centers[:, axis])
                        # The nearest lines on either side, no further than a stride.
                        below = lines[lines <= point[axis]].max(initial=-np.inf)
                        above = lines[lines > point[axis]].min(initial=np.inf)
                        pair = {
                            line: max(0.0, 1 - abs(line - point[axis]) / stride_m)
                            for line in (below, above)
                        }
                        own = pair.get(centers[tile, axis], 0.0)
                        weight *= own / max(1.0, sum(pair.values()))
                    support += weight
                    value += weight * (float(embeddings[tile] @ descriptors[q]) - average[q])
                if support >= 0.25 - 1e-6:
                    total += ballot.weights[q] * value / support
                    present += ballot.weights[q] ** 2
            if present:
                scores[hypothesis, place] = mean + total / (whole * math.sqrt(present / squares))
    return scores


def test_a_block_and_single_places_follow_the_definition(gallery, asked):
    _, ballot, descriptors = asked
    grid = TileGrid.of(gallery)
    count = len(gallery.tile_east_m)
    average = np.linspace(-0.2, 0.3, len(descriptors))
    expected = one_by_one(gallery, descriptors, average, ballot)
    block = Block.cut(grid, np.full(2, -np.inf), np.full(2, np.inf), limit=10**6)
    similarities = descriptors @ gallery.embeddings(block.tiles[block.there]).T
    scores = vote_over_block(block, similarities, average, ballot)
    assert np.isneginf(scores[:, ~block.there]).all()
    dense = np.zeros((2, count))
    dense[:, block.tiles[block.there]] = scores[:, block.there]
    assert dense == pytest.approx(expected, abs=1e-5)
    centers = np.stack([gallery.tile_east_m, gallery.tile_north_m], axis=1)
    for hypothesis in (0, 1):
        single = vote_at_places(
            grid,
            centers,
            descriptors,
            average,
            ballot,
            hypothesis=hypothesis,
            embeddings_of=gallery.embeddings,
        )
        assert single == pytest.approx(expected[hypothesis], abs=1e-5)


@pytest.mark.parametrize('circle', [None, ((305970.0, 4545625.0), 60.0)])
def test_proposals_lead_to_the_scores_of_the_whole_map(gallery, asked, circle):
    place, ballot, descriptors = asked
    dense = PlaceSearch(gallery).rank(descriptors, ballot, count=10**6, circle=circle)
    sparse = PlaceSearch(gallery, dense_cells=0).rank(
        descriptors, ballot, count=10**6, circle=circle
    )
    score_of = dict(zip(dense.tiles.tolist(), dense.similarity.tolist(), strict=True))
    assert 20 < len(sparse) <= len(dense)
    assert (sparse.tiles[:5] == dense.tiles[:5]).all()
    assert sparse.similarity[:5] == pytest.approx(dense.similarity[:5], abs=1e-5)
    assert all(
        one <= score_of[tile] + 1e-5
        for tile, one in zip(sparse.tiles.tolist(), sparse.similarity.tolist(), strict=True)
    )
    best = dense.matches(1)[0]
    assert np.hypot(best.east_m - place[0], best.north_m - place[1]) < 6.0
    assert best.heading_deg == 40.0
    assert len(set(dense.tiles.tolist())) == len(dense)
    assert (np.diff(dense.similarity) <= 0).all()
    if circle is not None:
        assert np.linalg.norm(dense.centers_m - circle[0], axis=1).max() <= 60.0


def test_a_similarity_is_the_weighted_mean_of_cosines(gallery):
    """Patches that are tiles, at a place where every offset is a tile."""
    grid = TileGrid.of(gallery)
    center = int(grid.tiles_at(np.array(3), np.array(7)))
    row, column = np.array([1, 1, 5, 5]), np.array([4, 10, 4, 10])
    tiles = grid.tiles_at(row, column)
    centers = np.stack([gallery.tile_east_m, gallery.tile_north_m], axis=1)
    ballot = Ballot(
        centers[tiles] - centers[center],
        np.array([1.0, 0.5, 0.25, 0.25]),
        np.zeros(4, np.int64),
        ((0.0, 90.0),),
    )
    queries = gallery.embeddings(tiles)
    queries[3] = gallery.embeddings(tiles[:1])[0]
    expected = 0.875 + 0.125 * float(queries[3] @ gallery.embeddings(tiles[3:])[0])
    found = PlaceSearch(gallery).rank(queries, ballot, count=1)
    assert found.tiles[0] == center
    assert found.similarity[0] == pytest.approx(expected, abs=1e-5)


def test_one_patch_in_the_middle_ranks_as_a_search_does(gallery, asked):
    _, _, descriptors = asked
    ballot = Ballot(np.zeros((1, 2)), np.ones(1), np.zeros(1, np.int64), ((0.0, 90.0),))
    matches = PlaceSearch(gallery).rank(descriptors[:1], ballot, count=7).matches()
    similarity, tiles = gallery.search(descriptors[:1], k=7)
    assert [match.tile_id for match in matches] == tiles[0].tolist()
    assert [match.similarity for match in matches] == pytest.approx(similarity[0], abs=1e-5)


def test_a_circle_off_the_map_holds_no_place(gallery, asked):
    _, ballot, descriptors = asked
    for search in (PlaceSearch(gallery), PlaceSearch(gallery, dense_cells=0)):
        ranking = search.rank(descriptors, ballot, count=5, circle=((0.0, 0.0), 100.0))
        assert len(ranking) == 0
        assert distinct_places(ranking, apart_m=10.0, count=3) == []


def test_the_border_is_neither_favoured_nor_lost_by_chance():
    """Over noise the winner lies near the border as often as that has places."""
    rng = np.random.default_rng(1)
    side, stride_m, rounds = 24, 8.0, 300
    axis_m = stride_m * np.arange(side)
    tiles = np.arange(side * side).reshape(side, side)
    block = Block(axis_m, axis_m, tiles, stride_m)
    offsets_m = np.array([(x, y) for x in (-32.0, -16.0, 16.0, 32.0) for y in (-24.0, 24.0)])
    ballot = Ballot(offsets_m, np.ones(8), np.zeros(8, np.int64), ((0.0, 90.0),))
    near = np.zeros((side, side), bool)
    near[:3], near[-3:], near[:, :4], near[:, -4:] = True, True, True, True
    wins = 0
    for _ in range(rounds):
        noise = rng.normal(0.0, 0.1, (8, side * side)).astype(np.float32)
        scores = vote_over_block(block, noise, np.zeros(8), ballot)[0]
        wins += bool(near.ravel()[int(scores.argmax())])
    share = near.mean()
    sigma = math.sqrt(share * (1 - share) / rounds)
    assert abs(wins / rounds - share) < 5 * sigma


@pytest.mark.parametrize('corner', [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_place_in_the_corner_of_the_map_is_found(gallery, corner):
    grid = TileGrid.of(gallery)
    place = np.array([grid.columns_m[corner[1]], grid.rows_m[corner[0]]])
    rng = np.random.default_rng(2)
    tiles = grid.nearest(place + OFFSETS_M, limit_m=4.0)
    noise = rng.standard_normal((len(OFFSETS_M), gallery.manifest.embedding_dim))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    queries = np.where(
        (tiles == NO_TILE)[:, None], noise, gallery.embeddings(np.maximum(tiles, 0))
    )
    ballot = Ballot(OFFSETS_M, np.ones(4), np.zeros(4, np.int64), ((0.0, 90.0),))
    for search in (PlaceSearch(gallery), PlaceSearch(gallery, dense_cells=0)):
        ranking = search.rank(queries.astype(np.float32), ballot, count=5)
        off_m = np.abs(ranking.centers_m - place).max(axis=1)
        assert off_m.min() <= 8.0


@pytest.mark.parametrize('dense_cells', [10**6, 0])
def test_look_alikes_of_a_place_begin_with_itself(gallery, dense_cells):
    search = PlaceSearch(gallery, dense_cells=dense_cells)
    places = look_alikes(search, PLACE_M, OFFSETS_M, apart_m=24.0, count=5, circle=None)
    assert len(places) == 5
    assert np.hypot(places[0].east_m - PLACE_M[0], places[0].north_m - PLACE_M[1]) < 12.0


def test_a_copy_is_the_look_alike_however_the_map_is_searched(tmp_path):
    half = textured(300, 300, seed=8)
    path = write_map(tmp_path / 'map.tif', np.hstack([half, half]))
    out = build_gallery(tmp_path / 'map.gallery', path, tile_px=64, overlap=0.75)
    with open_gallery(out) as twins:
        place = np.array([twins.tile_east_m.min() + 56.0, twins.tile_north_m.min() + 56.0])
        for dense_cells in (10**6, 0):
            search = PlaceSearch(twins, dense_cells=dense_cells)
            two = look_alikes(search, place, OFFSETS_M, apart_m=24.0, count=2, circle=None)
            found = sorted(np.hypot(one.east_m - place[0], one.north_m - place[1]) for one in two)
            assert found[0] < 12.0
            assert found[1] == pytest.approx(150.0, abs=12.0)


def test_as_many_look_alikes_as_wanted_are_found_among_closely_spaced_tiles(tmp_path):
    """Every place has 200 neighbours then, which must not fill the list."""
    picture = textured(240, 480, seed=8)
    path = write_map(tmp_path / 'map.tif', picture)
    with open_gallery(build_gallery(tmp_path / 'm.gallery', path, tile_px=64, overlap=0.9)) as one:
        place = np.array([one.tile_east_m.min() + 40.0, one.tile_north_m.min() + 40.0])
        for dense_cells in (10**6, 0):
            search = PlaceSearch(one, dense_cells=dense_cells)
            places = look_alikes(search, place, OFFSETS_M, apart_m=24.0, count=16, circle=None)
            assert len(places) == 16


@pytest.mark.parametrize('dense_cells', [10**6, 0])
def test_embeddings_that_are_not_finite_are_named(tmp_path, dense_cells):
    """They pass where a gallery is opened without verification; they are no lack of map."""
    path = write_map(tmp_path / 'map.tif', textured(200, 200, seed=8))
    folder = build_gallery(tmp_path / 'map.gallery', path, tile_px=64, overlap=0.75)
    with open_gallery(folder) as one:
        query = one.embeddings(np.array([7]))
        rows = one.embeddings(np.arange(one.manifest.tile_count))
        rows[5] = np.nan
        one._index = build_index(rows, one.manifest.index)
        ballot = Ballot(np.zeros((1, 2)), np.ones(1), np.zeros(1, np.int64), ((0.0, 90.0),))
        with pytest.raises(GalleryError, match='that are not finite; rebuild the gallery'):
            PlaceSearch(one, dense_cells=dense_cells).rank(query, ballot, count=3)
