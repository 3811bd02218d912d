"""Distillation: hand-worked values, no gradient to the teacher, teachers that do not fit."""

import math

import pytest
import torch

from bicrossnet_ros.errors import ModelError
from training.distillation import FeatureDistillation, logit_distance, similarity_divergence

STUDENT = (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))
TEACHER = (torch.tensor([[1.0, 0.0], [3.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
# Squares 0 4 9 1 in the first branch, 0 0 0 4 in the second.


@pytest.mark.parametrize(
    ('reduction', 'expected'),
    [('element', (14 / 4 + 4 / 4) / 2), ('sample', (14 / 2 + 4 / 2) / 2)],
)
def test_logit_distance_by_hand(reduction, expected):
    assert logit_distance(STUDENT, TEACHER, reduction=reduction).item() == pytest.approx(expected)


def test_logits_of_half_precision_are_compared_in_float32():
    student, teacher = torch.full((2, 1, 3), 300.0, dtype=torch.float16)
    value = logit_distance([student], [-teacher])
    assert value.item() == 360_000  # beyond float16, which ends at 65504


def test_no_gradient_reaches_the_teacher():
    student, teacher = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    logit_distance([student], [teacher]).backward()
    loss = FeatureDistillation(3, 3)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert loss.projection.weight.grad is not None


@pytest.mark.parametrize(
    ('teacher', 'message'),
    [
        ([torch.zeros(2, 7)] * 2, 'tells 2 classes apart and the teacher 7; train the teacher'),
        ([torch.zeros(2, 2)], 'has 2 classifier branches and the teacher 1'),
        ([], 'has 2 classifier branches and the teacher 0'),
    ],
)
def test_a_teacher_that_does_not_fit(teacher, message):
    with pytest.raises(ModelError, match=message):
        logit_distance(STUDENT, teacher)


def test_two_networks_without_branches_have_no_logits_to_compare():
    with pytest.raises(ModelError, match='branches: true'):
        logit_distance([], [])


def test_feature_distance_is_one_minus_the_cosine_after_the_projection():
    loss = FeatureDistillation(2, 3)
    with torch.no_grad():
        loss.projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    teacher = torch.tensor([[5.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 3.0]])
    assert loss(student, teacher).item() == pytest.approx((0 + 2 + 1) / 3, abs=1e-6)


def test_a_teacher_embedding_of_another_length():
    with pytest.raises(ModelError, match='has 4 values, expected 3'):
        FeatureDistillation(2, 3)(torch.ones(1, 2), torch.ones(1, 4))


def views(seed, *, rows=5, dim=4):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, rows, dim, generator=generator))


def slow_shares(tiles, queries, temperature):
    """Rows of shares: every query among the tiles, then every tile among the others."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    tiles, queries = tiles.tolist(), queries.tolist()
    kinds = (
        [[cosine(query, tile) for tile in tiles] for query in queries],
        [[cosine(a, b) for j, b in enumerate(tiles) if j != i] for i, a in enumerate(tiles)],
    )
    for rows in kinds:
        powers = [[math.exp(value / temperature) for value in row] for row in rows]
        yield [[power / sum(row) for power in row] for row in powers]


def test_similarity_divergence_equals_the_loops():
    student, teacher = views(0), views(1, dim=7)
    value = similarity_divergence(student, teacher, temperature=0.3)
    expected = 0.0
    for own, guide in zip(slow_shares(*student, 0.3), slow_shares(*teacher, 0.3), strict=True):
        for p, q in zip(own, guide, strict=True):
            expected += sum(t * math.log(t / s) for s, t in zip(p, q, strict=True)) / 5 / 2
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_a_student_that_sees_likenesses_as_the_teacher_has_nothing_to_learn():
    """A rotation and other lengths change no similarity."""
    student = views(2)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))[0]
    teacher = tuple(3 * view @ rotation for view in student)
    assert similarity_divergence(student, teacher, temperature=0.1).item() < 1e-5
    wanted = [view.clone().requires_grad_() for view in (*student, *teacher)]
    similarity_divergence(tuple(wanted[:2]), tuple(wanted[2:]), temperature=0.1).backward()
    assert wanted[0].grad.abs().max() < 1e-4
    assert wanted[2].grad is None
