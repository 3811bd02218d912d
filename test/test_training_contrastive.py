"""Triplet and InfoNCE: hand-worked cases, slow references, several images of a place."""

import math

import pytest
import torch
import torch.nn.functional as F

from training.contrastive import SymmetricInfoNCE, cross_view_triplet, soft_likeness

MARGIN = 0.3


def on_circle(*angles_deg, lengths=None):
    angles = torch.tensor(angles_deg).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    return points if lengths is None else points * torch.tensor(lengths)[:, None]


def chord(angle_deg):
    return 2 * math.sin(math.radians(angle_deg) / 2)


def random_case(seed, places=4, rows=9):
    generator = torch.Generator().manual_seed(seed)
    satellite, drone = 3 * torch.randn(2, rows, 5, generator=generator)
    return satellite, drone, torch.randint(places, (rows,), generator=generator)


def slow_triplet(satellite, drone, labels, margin):
    """Equation 6 by loops, in double precision."""
    views = [F.normalize(view.double()) for view in (satellite, drone)]
    hinges = []
    for anchors, others in (views, views[::-1]):
        for anchor, label in zip(anchors, labels.tolist(), strict=True):
            distances = [(anchor - other).norm() for other in others]
            pairs = list(zip(distances, labels.tolist(), strict=True))
            positives = [distance for distance, other in pairs if other == label]
            negatives = [distance for distance, other in pairs if other != label]
            if negatives:
                hinges.append((max(positives) - min(negatives) + margin).clamp_min(0))
    return torch.stack(hinges).mean()


def slow_info_nce(satellite, drone, labels, scale, smoothing):
    """Every row is asked for its partner among the partners of other places, by loops."""
    views = [F.normalize(view.double()) for view in (satellite, drone)]
    losses = []
    for anchors, others in (views, views[::-1]):
        for k, anchor in enumerate(anchors):
            candidates = [j for j in range(len(labels)) if j == k or labels[j] != labels[k]]
            exponentials = {j: (scale * anchor @ others[j]).exp() for j in candidates}
            total = sum(exponentials.values())
            logs = {j: (value / total).log() for j, value in exponentials.items()}
            even = sum(logs.values()) / len(candidates)
            losses.append(-(1 - smoothing) * logs[k] - smoothing * even)
    return torch.stack(losses).mean()


def test_triplet_by_hand():
    satellite = on_circle(0.0, 90.0, lengths=[5.0, 0.1])  # lengths do not count
    drone = on_circle(60.0, 180.0)
    hinges = [
        max(0, chord(60) - chord(180) + MARGIN),  # satellite 0: drones at 60 and 180 degrees
        max(0, chord(90) - chord(30) + MARGIN),  # satellite 1
        max(0, chord(60) - chord(30) + MARGIN),  # drone 0
        max(0, chord(90) - chord(180) + MARGIN),  # drone 1
    ]
    assert hinges[0] == hinges[3] == 0
    value = cross_view_triplet(satellite, drone, torch.tensor([7, 3]), margin=MARGIN)
    assert value.item() == pytest.approx(sum(hinges) / 4, abs=1e-6)


def test_another_image_of_a_place_is_a_positive_and_the_farthest_counts():
    satellite, drone = on_circle(0.0, 0.0, 180.0), on_circle(10.0, 40.0, 180.0)
    value = cross_view_triplet(satellite, drone, torch.tensor([0, 0, 1]), margin=1.9)
    by_satellite = [chord(40) - chord(180), chord(40) - chord(180), chord(0) - chord(140)]
    by_drone = [chord(10) - chord(170), chord(40) - chord(140), chord(0) - chord(180)]
    expected = sum(max(0, gap + 1.9) for gap in by_satellite + by_drone) / 6
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('seed', range(6))
def test_triplet_equals_the_loops_with_its_gradient(seed):
    satellite, drone, labels = random_case(seed)
    satellite.requires_grad_()
    drone.requires_grad_()
    gradients = []
    values = []
    for function in (cross_view_triplet, slow_triplet):
        value = function(satellite, drone, labels, margin=MARGIN)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, (satellite, drone)))
    assert values[0] > 0
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


def test_a_batch_of_one_place_has_no_triplet():
    satellite, drone = on_circle(0.0, 50.0), on_circle(20.0, 90.0)
    satellite.requires_grad_()
    value = cross_view_triplet(satellite, drone, torch.tensor([4, 4]), margin=MARGIN)
    assert value.item() == 0
    value.backward()
    assert torch.equal(satellite.grad, torch.zeros_like(satellite))


@pytest.mark.parametrize('spread', [0.0, 1e-7, 1e-4])
def test_collapsed_features_keep_finite_bounded_gradients(spread):
    torch.manual_seed(0)
    same = torch.ones(8, 16)
    features = (same + spread * torch.randn(8, 16)).requires_grad_()
    value = cross_view_triplet(features, same, torch.arange(8), margin=MARGIN)
    value.backward()
    assert value.item() == pytest.approx(MARGIN, abs=1e-3)
    # A distance of unit vectors changes by at most 1/length per unit of the feature; 2 of them.
    assert features.grad.norm(dim=1).max() <= 2 / 4


def test_distance_of_nearly_equal_features_keeps_its_digits():
    """2 - 2 cos in float32 would say 0 or 3.5e-4 here."""
    satellite = on_circle(0.0, 90.0)
    drone = satellite + torch.tensor([[0.0, 1e-5], [0.0, 0.0]])
    value = cross_view_triplet(satellite, drone, torch.tensor([0, 1]), margin=math.sqrt(2))
    # The pairs are 1e-5 and 0 (at least 1e-6) apart; one negative is 1e-5 / sqrt(2) nearer than
    # sqrt(2), and is the negative of satellite 1 and of drone 0.
    nearer = 1e-5 / math.sqrt(2)
    expected = (1e-5 + (1e-6 + nearer) + (1e-5 + nearer) + 1e-6) / 4
    assert value.item() == pytest.approx(expected, abs=1e-7)


def test_info_nce_by_hand():
    """Scale 2: a row's right logit is 2, its wrong one 0."""
    eye = 7 * torch.eye(2)
    value = SymmetricInfoNCE(0.5)(eye, eye)
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_info_nce_of_single_images_is_torchs_cross_entropy(smoothing):
    satellite, drone, _ = random_case(0)
    loss = SymmetricInfoNCE(0.1, label_smoothing=smoothing)
    logits = F.normalize(drone) @ F.normalize(satellite).T / 0.1
    target = torch.arange(len(logits))
    both = [F.cross_entropy(x, target, label_smoothing=smoothing) for x in (logits, logits.T)]
    expected = sum(both) / 2
    torch.testing.assert_close(loss(satellite, drone), expected)
    torch.testing.assert_close(loss(satellite, drone, target + 5), expected)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('seed', range(4))
def test_info_nce_equals_the_loops_with_several_images_of_a_place(seed, smoothing):
    satellite, drone, labels = random_case(seed)
    satellite.requires_grad_()
    loss = SymmetricInfoNCE(0.25, label_smoothing=smoothing)
    value = loss(satellite, drone, labels)
    expected = slow_info_nce(satellite, drone, labels, 4.0, smoothing)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = [torch.autograd.grad(x, satellite)[0] for x in (value, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_info_nce_of_one_place_is_zero():
    satellite, drone, _ = random_case(0)
    loss = SymmetricInfoNCE(0.1, label_smoothing=0.1)
    assert loss(satellite, drone, torch.zeros(len(satellite), dtype=torch.int64)).item() == 0


def test_the_scale_is_kept_at_most_100_and_comes_back():
    loss = SymmetricInfoNCE(0.07)
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    # The partner is the worst candidate: a smaller scale is better.
    value = loss(torch.eye(2), torch.eye(2).flip(0))
    assert value.item() == pytest.approx(100, abs=1e-3)
    value.backward()
    assert loss.log_scale.exp().item() == pytest.approx(100, rel=1e-5)
    assert loss.log_scale.grad.item() > 1


def test_a_colder_start_than_100_is_allowed():
    loss = SymmetricInfoNCE(0.005)
    loss(torch.eye(2), torch.eye(2))
    assert loss.log_scale.exp().item() == pytest.approx(200, rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_features_are_compared_in_float32(dtype):
    satellite, drone, labels = random_case(1)
    half = [view.to(dtype) for view in (satellite, drone)]
    exact = [view.float() for view in half]
    for function in (
        lambda *views: cross_view_triplet(*views, labels, margin=MARGIN),
        lambda *views: SymmetricInfoNCE(0.07)(*views, labels),
    ):
        value = function(*half)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, function(*exact), rtol=0, atol=0)


def slow_overlap(query, tile):
    """Common area of two squares (row, col, side), side by side."""
    lengths = []
    for axis in (0, 1):
        low = max(query[axis] - query[2] / 2, tile[axis] - tile[2] / 2)
        high = min(query[axis] + query[2] / 2, tile[axis] + tile[2] / 2)
        lengths.append(max(0.0, high - low))
    return lengths[0] * lengths[1]


def random_ground(seed, rows=9, scenes=3):
    """Tiles of side 40 within 60 px, queries within 12 px per axis of theirs."""
    generator = torch.Generator().manual_seed(seed)
    tile = 60 * torch.rand(rows, 2, generator=generator, dtype=torch.float64)
    query = tile + 24 * torch.rand(rows, 2, generator=generator, dtype=torch.float64) - 12
    side = 30 + 20 * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    scene = torch.randint(scenes, (rows, 1), generator=generator).double()
    return torch.cat([scene, tile, torch.full_like(side, 40.0), query, side], dim=1)


def slow_likeness(ground, weight, least):
    rows = ground.tolist()
    result = []
    for i, (scene, *tile_and_query) in enumerate(rows):
        query, own = tile_and_query[3:], slow_overlap(tile_and_query[3:], tile_and_query[:3])
        line = []
        for j, other in enumerate(rows):
            share = slow_overlap(query, other[1:4]) / own
            near = other[0] == scene and share >= least
            line.append(1.0 if i == j else weight * share if near else 0.0)
        result.append(line)
    return result


@pytest.mark.parametrize('seed', range(3))
def test_likeness_is_the_share_of_the_querys_ground(seed):
    ground = random_ground(seed)
    likeness = soft_likeness(ground, weight=0.6, least=0.3)
    expected = torch.tensor(slow_likeness(ground, 0.6, 0.3), dtype=torch.float64)
    torch.testing.assert_close(likeness, expected)
    off = likeness - torch.eye(9, dtype=torch.float64)
    assert (off > 0).any()
    assert off[off > 0].min() >= 0.6 * 0.3
    assert not torch.equal(likeness, likeness.T)
    strict = soft_likeness(ground, weight=0.6, least=1.0)
    assert (strict > 0).sum() < (likeness > 0).sum()


def test_likeness_by_hand():
    """Two tiles half a side apart; the second query lies between them."""
    ground = torch.tensor(
        [
            [0.0, 10.0, 10.0, 8.0, 10.0, 10.0, 8.0],
            [0.0, 10.0, 14.0, 8.0, 10.0, 12.0, 8.0],
            [1.0, 10.0, 10.0, 8.0, 10.0, 10.0, 8.0],
        ]
    )
    expected = [[1, 0.25, 0], [0.5, 1, 0], [0, 0, 1]]
    assert soft_likeness(ground, weight=0.5, least=0.2).tolist() == expected
    assert soft_likeness(ground, weight=0.5, least=0.6).tolist()[0] == [1, 0, 0]


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('seed', range(3))
def test_soft_info_nce_equals_the_loops(seed, smoothing):
    satellite, drone, labels = random_case(seed, places=8)
    likeness = soft_likeness(random_ground(seed), weight=0.7, least=0.2)
    loss = SymmetricInfoNCE(0.2, label_smoothing=smoothing)
    value = loss(satellite, drone, labels, likeness)
    a, b = F.normalize(satellite), F.normalize(drone)
    logits, weights = (5 * b @ a.T).tolist(), likeness.tolist()
    total = 0.0
    for _ in range(2):
        for i, row in enumerate(logits):
            seen = [j for j in range(len(row)) if j == i or labels[j] != labels[i]]
            mass = sum(weights[i][j] for j in seen)
            norm = sum(math.exp(row[j]) for j in seen)
            for j in seen:
                target = (1 - smoothing) * weights[i][j] / mass + smoothing / len(seen)
                total -= target * math.log(math.exp(row[j]) / norm) / len(logits) / 2
        logits, weights = (
            [list(column) for column in zip(*m, strict=True)] for m in (logits, weights)
        )
    assert value.item() == pytest.approx(total, rel=1e-5)


def test_likeness_of_the_identity_changes_nothing():
    satellite, drone, labels = random_case(4)
    loss = SymmetricInfoNCE(0.1)
    soft = loss(satellite, drone, labels, torch.eye(9, dtype=torch.float64))
    assert soft.item() == loss(satellite, drone, labels).item()
