"""The total loss: views, branches, weights, what is left out, what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F

from bicrossnet_ros.errors import ConfigError, ModelError
from training.config import LossConfig
from training.contrastive import SymmetricInfoNCE, cross_view_triplet, soft_likeness
from training.distillation import similarity_divergence
from training.losses import TotalLoss
from training.models.network import Outputs

N, DIM, BRANCHES, CLASSES = 6, 8, 3, 5
LABELS = torch.tensor([0, 3, 3, 1, 4, 2])
TERMS = (
    'cross_entropy',
    'triplet',
    'info_nce',
    'logit_distillation',
    'feature_distillation',
    'similarity_distillation',
)


def outputs(seed, *, dim=DIM, classes=CLASSES, branches=BRANCHES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def draw(width):
        return torch.randn(N, width, generator=generator).to(dtype)

    return Outputs(
        draw(dim),
        tuple(draw(4) for _ in range(branches)),
        tuple(draw(classes) for _ in range(branches)),
    )


SATELLITE, DRONE = outputs(0), outputs(1)
TEACHER = (outputs(2, dim=7), outputs(3, dim=7))


def only(**weights):
    return LossConfig(**{**dict.fromkeys(TERMS, 0.0), 'teacher': 't.pt', **weights})


def make(config, *, teacher_dim=None):
    torch.manual_seed(0)
    return TotalLoss(config, embedding_dim=DIM, teacher_dim=teacher_dim)


def test_cross_entropy_is_the_mean_of_branches_and_the_sum_of_views():
    value = make(only(cross_entropy=1.0))(SATELLITE, DRONE, LABELS)['cross_entropy']
    expected = 0.0
    for view in (SATELLITE, DRONE):
        for logits in view.logits:
            for row, label in zip(logits.tolist(), LABELS.tolist(), strict=True):
                share = math.exp(row[label]) / sum(math.exp(x) for x in row)
                expected -= math.log(share) / N / BRANCHES
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_triplet_is_the_mean_of_branches():
    value = make(only(triplet=1.0, triplet_margin=0.5))(SATELLITE, DRONE, LABELS)['triplet']
    pairs = zip(SATELLITE.features, DRONE.features, strict=True)
    each = [cross_view_triplet(s, d, LABELS, margin=0.5).item() for s, d in pairs]
    assert value.item() == pytest.approx(sum(each) / BRANCHES, abs=1e-6)


def test_info_nce_compares_the_embeddings_with_the_configured_options():
    config = only(info_nce=1.0, info_nce_temperature=0.2, label_smoothing=0.1)
    loss = make(config)
    value = loss(SATELLITE, DRONE, LABELS)['info_nce']
    expected = SymmetricInfoNCE(0.2, label_smoothing=0.1)(
        SATELLITE.embedding, DRONE.embedding, LABELS
    )
    assert value.item() == expected.item()
    assert [name for name, _ in loss.named_parameters()] == ['info_nce.log_scale']


@pytest.mark.parametrize(('reduction', 'factor'), [('element', 1), ('sample', CLASSES)])
def test_logit_distillation_is_the_mean_of_branches_and_the_sum_of_views(reduction, factor):
    config = only(logit_distillation=1.0, logit_reduction=reduction)
    value = make(config, teacher_dim=7)(SATELLITE, DRONE, LABELS, TEACHER)['logit_distillation']
    expected = 0.0
    for view, guide in zip((SATELLITE, DRONE), TEACHER, strict=True):
        for own, other in zip(view.logits, guide.logits, strict=True):
            expected += F.mse_loss(own, other).item() / BRANCHES * factor
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_feature_distillation_sums_the_views_and_learns_its_projection():
    loss = make(only(feature_distillation=1.0), teacher_dim=7)
    value = loss(SATELLITE, DRONE, LABELS, TEACHER)['feature_distillation']
    expected = 0.0
    for view, guide in zip((SATELLITE, DRONE), TEACHER, strict=True):
        projected = view.embedding @ loss.feature_distillation.projection.weight.T
        expected += 1 - F.cosine_similarity(projected, guide.embedding).mean().item()
    assert value.item() == pytest.approx(expected, abs=1e-6)
    value.backward()
    (parameter,) = loss.parameters()
    assert parameter.shape == (7, DIM)
    assert parameter.grad.abs().sum() > 0


def test_the_total_is_the_weighted_sum_of_what_weighs_in():
    weights = dict(zip(TERMS, (1.0, 0.5, 2.0, 0.25, 3.0, 1.5), strict=True))
    values = make(only(**weights), teacher_dim=7)(SATELLITE, DRONE, LABELS, TEACHER)
    assert set(values) == {*TERMS, 'total'}
    expected = sum(weights[name] * values[name].item() for name in TERMS)
    assert values['total'].item() == pytest.approx(expected, rel=1e-6)


def test_the_papers_loss_without_a_teacher_leaves_distillation_out():
    values = make(LossConfig())(SATELLITE, DRONE, LABELS)
    assert set(values) == {'cross_entropy', 'triplet', 'total'}


def test_the_order_of_the_rows_does_not_matter():
    """A gathered global batch may come in any order of its parts."""
    order = torch.tensor([3, 5, 0, 1, 4, 2])

    def turned(view):
        return Outputs(
            view.embedding[order],
            tuple(x[order] for x in view.features),
            tuple(x[order] for x in view.logits),
        )

    loss = make(only(**dict.fromkeys(TERMS, 1.0)), teacher_dim=7)
    straight = loss(SATELLITE, DRONE, LABELS, TEACHER)
    teacher = (turned(TEACHER[0]), turned(TEACHER[1]))
    mixed = loss(turned(SATELLITE), turned(DRONE), LABELS[order], teacher)
    for name, value in straight.items():
        assert mixed[name].item() == pytest.approx(value.item(), abs=1e-5), name


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_mixed_precision_outputs_are_compared_in_float32(dtype):
    halves = [outputs(seed, dtype=dtype) for seed in range(4)]
    wholes = [
        Outputs(
            half.embedding.float(),
            tuple(x.float() for x in half.features),
            tuple(x.float() for x in half.logits),
        )
        for half in halves
    ]
    loss = make(only(**dict.fromkeys(TERMS, 1.0)), teacher_dim=DIM)
    with torch.autocast('cpu', torch.bfloat16):
        values = loss(halves[0], halves[1], LABELS, (halves[2], halves[3]))
    expected = loss(wholes[0], wholes[1], LABELS, (wholes[2], wholes[3]))
    for name, value in values.items():
        assert value.dtype == torch.float32
        assert value.item() == expected[name].item(), name


def test_a_network_without_branches_is_refused_by_the_terms_that_need_them():
    bare = outputs(0, branches=0)
    for name in ('cross_entropy', 'triplet'):
        with pytest.raises(ModelError, match=f'{name} needs classifier branches'):
            make(only(**{name: 1.0}))(bare, bare, LABELS)
    assert make(only(info_nce=1.0))(bare, bare, LABELS)['total'].item() > 0


def test_a_teacher_with_another_number_of_classes():
    other = outputs(2, classes=9)
    loss = make(LossConfig(teacher='t.pt'), teacher_dim=DIM)
    with pytest.raises(ModelError, match='tells 5 classes apart and the teacher 9'):
        loss(SATELLITE, DRONE, LABELS, (other, other))


@pytest.mark.parametrize(
    'config',
    [only(), only(logit_distillation=1.0)],
)
def test_a_loss_without_a_term_is_refused(config):
    with pytest.raises(ConfigError, match='no term of the loss has a weight'):
        make(config)


def test_feature_distillation_without_a_teacher_is_refused():
    with pytest.raises(ConfigError, match='needs a teacher'):
        make(only(feature_distillation=1.0))


def test_similarities_are_compared_at_the_configured_temperature():
    config = only(similarity_distillation=1.0, similarity_temperature=0.4)
    values = make(config, teacher_dim=7)(SATELLITE, DRONE, LABELS, TEACHER)
    expected = similarity_divergence(
        (SATELLITE.embedding, DRONE.embedding),
        (TEACHER[0].embedding, TEACHER[1].embedding),
        temperature=0.4,
    )
    assert values['similarity_distillation'].item() == expected.item() > 0


def test_soft_positives_go_by_the_ground():
    rows = torch.arange(6, dtype=torch.float64)[:, None]
    ground = torch.cat([rows // 3, 4 * rows, *[0 * rows, 0 * rows + 10] * 2, rows * 0], dim=1)
    ground[:, 4:] = ground[:, 1:4]
    config = only(info_nce=1.0, soft_positives=0.5, soft_positives_from=0.4)
    value = make(config)(SATELLITE, DRONE, LABELS, ground=ground)['info_nce']
    likeness = soft_likeness(ground, weight=0.5, least=0.4)
    assert (likeness > 0).sum() == 6 + 8
    expected = SymmetricInfoNCE(0.07)(SATELLITE.embedding, DRONE.embedding, LABELS, likeness)
    assert value.item() == expected.item()
    with pytest.raises(ConfigError, match='needs places of which it is known where they lie'):
        make(config)(SATELLITE, DRONE, LABELS)


def test_a_teacher_is_neither_forgotten_nor_ignored():
    with pytest.raises(ValueError, match='made with a teacher'):
        make(LossConfig(), teacher_dim=7)(SATELLITE, DRONE, LABELS)
    with pytest.raises(ValueError, match='made without a teacher'):
        make(LossConfig())(SATELLITE, DRONE, LABELS, TEACHER)
