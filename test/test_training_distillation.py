"""Distillation: hand-worked values, no gradient to the teacher, teachers that do not fit."""

import pytest
import torch

from bicrossnet_ros.errors import ModelError
from training.distillation import FeatureDistillation, logit_distance

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
