"""The loss of a training step: a weighted sum of terms over the two views of N places.

Row k of the satellite outputs and row k of the drone outputs show the place ``labels[k]``. A
place may stand in several rows: its other images are neither negatives of the triplet nor of
InfoNCE. All terms are computed in float32, whatever the precision of the outputs.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, equations 5 to 8.
Hermans et al. 2017, "In Defense of the Triplet Loss for Person Re-Identification".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bicrossnet_ros.errors import ConfigError, ModelError
from training.config import LossConfig
from training.models.network import Outputs

MAX_SCALE = 100.0
# Two unit vectors closer than this, squared, pull at each other no more: the gradient of the
# square root is infinite at 0.
MIN_SQUARED_DISTANCE = 1e-12

Teacher = tuple[Outputs, Outputs]


def cross_view_triplet(
    satellite: Tensor, drone: Tensor, labels: Tensor, *, margin: float
) -> Tensor:
    """Batch-hard triplet loss between the views: one joint term over all 2 N anchors.

    Each satellite feature is an anchor against the drone features and the reverse. An anchor's
    positive is the farthest feature of its place in the other view, its negative the nearest of
    another place there.

    Parameters
    ----------
    satellite, drone : Tensor
        (N, D), normalised here.
    labels : Tensor of int64
        (N,), place of both rows k.
    margin : float
        By how much the negative must be farther than the positive, in Euclidean distance of
        unit vectors.

    Returns
    -------
    Tensor
        Scalar: mean hinge of the anchors that have a negative; 0 if none has.

    References
    ----------
    Fontana et al. 2025, equation 6; Hermans et al. 2017, equation 5.
    """
    satellite, drone = F.normalize(satellite.float()), F.normalize(drone.float())
    same = labels[:, None] == labels[None, :]
    with torch.no_grad():
        similarity = satellite @ drone.T
    hinges = torch.stack(
        [
            _hinges(satellite, drone, similarity, same, margin=margin),
            _hinges(drone, satellite, similarity.T, same, margin=margin),
        ]
    )
    has_negative = (~same).any(dim=1).expand_as(hinges)
    return (hinges * has_negative).sum() / has_negative.sum().clamp_min(1)


def _hinges(
    anchors: Tensor, others: Tensor, similarity: Tensor, same: Tensor, *, margin: float
) -> Tensor:
    """Hinge (N,) of every anchor; meaningless for an anchor without a negative.

    Mined on similarities, measured on differences: ``2 - 2 cos`` loses all digits where the
    features almost agree, which is where the loss wants them.
    """
    positive = similarity.masked_fill(~same, math.inf).argmin(dim=1)
    negative = similarity.masked_fill(same, -math.inf).argmax(dim=1)
    to_positive = _distance(anchors, others[positive])
    to_negative = _distance(anchors, others[negative])
    return F.relu(to_positive - to_negative + margin)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(dim=1).clamp_min(MIN_SQUARED_DISTANCE).sqrt()


class SymmetricInfoNCE(nn.Module):
    """Cross-entropy of finding each drone image's satellite image among all, and the reverse.

    Parameters
    ----------
    temperature : float
        Initial temperature; its inverse, the scale, is learnt as a logarithm and kept at most
        100 (or at its initial value, if that is more).
    label_smoothing : float
        Share of the target that is spread evenly over all candidates, the right one included.

    References
    ----------
    van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", eq. 4.
    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    Deuser et al. 2023, "Sample4Geo: Hard Negative Sampling For Cross-View Geo-Localisation".
    """

    def __init__(self, temperature: float, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.max_log_scale = math.log(max(MAX_SCALE, 1 / temperature))
        self.label_smoothing = label_smoothing

    def forward(self, satellite: Tensor, drone: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of both directions' losses.

        Parameters
        ----------
        satellite, drone : Tensor
            (N, D), normalised here; row k matches row k.
        labels : Tensor of int64 or None
            (N,). Other rows with the same label are left out of a row's candidates. None: every
            row is a place of its own.
        """
        # Clamped in place: beyond a clamp in the graph the gradient is zero and the scale stuck.
        with torch.no_grad():
            self.log_scale.clamp_(max=self.max_log_scale)
        satellite, drone = F.normalize(satellite.float()), F.normalize(drone.float())
        logits = self.log_scale.exp() * (drone @ satellite.T)
        left_out = torch.zeros_like(logits, dtype=torch.bool)
        if labels is not None:
            left_out = (labels[:, None] == labels[None, :]).fill_diagonal_(False)
        return 0.5 * (self._find(logits, left_out) + self._find(logits.T, left_out))

    def _find(self, logits: Tensor, left_out: Tensor) -> Tensor:
        """Cross-entropy of column k in row k. torch's smoothing is infinite with left-out ones."""
        log_share = F.log_softmax(logits.masked_fill(left_out, -math.inf), dim=1)
        right = log_share.diagonal()
        if not self.label_smoothing:
            return -right.mean()
        candidates = (~left_out).sum(dim=1)
        even = log_share.masked_fill(left_out, 0.0).sum(dim=1) / candidates
        return -torch.lerp(right, even, self.label_smoothing).mean()


class TotalLoss(nn.Module):
    """The weighted sum of all terms of a `LossConfig`.

    Terms of a single view (cross-entropy, both distillations) are summed over the two views, as
    equation 7 does; terms on branches are averaged over the branches.

    Parameters
    ----------
    config : LossConfig
        Weights of the terms; those with weight 0 are not computed.
    embedding_dim : int
        Length of the network's embedding.
    teacher_dim : int or None
        Length of the teacher's embedding; None without a teacher.

    Raises
    ------
    ConfigError
        If no term is left, or feature distillation is asked for without a teacher.

    References
    ----------
    Fontana et al. 2025, equation 7 (with one joint triplet term for both views).
    """

    def __init__(self, config: LossConfig, *, embedding_dim: int, teacher_dim: int | None) -> None:
        super().__init__()
        self.config = config
        self.teacher_dim = teacher_dim
        _check_terms(config, teacher_dim)
        self.info_nce = (
            SymmetricInfoNCE(config.info_nce_temperature, label_smoothing=config.label_smoothing)
            if config.info_nce
            else None
        )
        self.projection = (
            nn.Linear(embedding_dim, teacher_dim, bias=False)
            if config.feature_distillation and teacher_dim
            else None
        )

    def forward(
        self, satellite: Outputs, drone: Outputs, labels: Tensor, teacher: Teacher | None = None
    ) -> dict[str, Tensor]:
        """Compute the terms on a (global) batch of N places.

        Parameters
        ----------
        satellite, drone : Outputs
            Of the network, N rows each.
        labels : Tensor of int64
            (N,), class of row k in both views.
        teacher : pair of Outputs or None
            Of the teacher for the same images, satellite first. Without it the distillation of
            logits is left out.

        Returns
        -------
        dict of str to Tensor
            Scalars: each term before its weight, and their weighted sum ``total``.

        Raises
        ------
        ModelError
            If the outputs lack what a term needs or do not fit the teacher's.
        """
        with torch.autocast(satellite.embedding.device.type, enabled=False):
            terms = {
                name: term(satellite, drone, labels, teacher)
                for name, term in self._terms(teacher).items()
            }
            total = torch.stack([getattr(self.config, name) * terms[name] for name in terms]).sum()
        return {**terms, 'total': total}

    def _terms(self, teacher: Teacher | None) -> dict[str, Callable[..., Tensor]]:
        """Terms that weigh in, by the name of their weight in the configuration."""
        terms: dict[str, Callable[..., Tensor]] = {
            'cross_entropy': self._cross_entropy,
            'triplet': self._triplet,
            'info_nce': self._info_nce,
            'logit_distillation': self._logit_distillation,
            'feature_distillation': self._feature_distillation,
        }
        if teacher is None:
            del terms['logit_distillation']
        return {name: term for name, term in terms.items() if getattr(self.config, name)}

    def _cross_entropy(
        self, satellite: Outputs, drone: Outputs, labels: Tensor, teacher: Teacher | None
    ) -> Tensor:
        return sum_views(
            mean_branches(
                'cross_entropy',
                [F.cross_entropy(logits.float(), labels) for logits in view.logits],
            )
            for view in (satellite, drone)
        )

    def _triplet(
        self, satellite: Outputs, drone: Outputs, labels: Tensor, teacher: Teacher | None
    ) -> Tensor:
        margin = self.config.triplet_margin
        pairs = zip(satellite.features, drone.features, strict=True)
        return mean_branches(
            'triplet', [cross_view_triplet(s, d, labels, margin=margin) for s, d in pairs]
        )

    def _info_nce(
        self, satellite: Outputs, drone: Outputs, labels: Tensor, teacher: Teacher | None
    ) -> Tensor:
        assert self.info_nce is not None
        value: Tensor = self.info_nce(satellite.embedding, drone.embedding, labels)
        return value

    def _logit_distillation(
        self, satellite: Outputs, drone: Outputs, labels: Tensor, teacher: Teacher
    ) -> Tensor:
        return sum_views(
            logit_distance(view, guide, reduction=self.config.logit_reduction)
            for view, guide in zip((satellite, drone), teacher, strict=True)
        )

    def _feature_distillation(
        self, satellite: Outputs, drone: Outputs, labels: Tensor, teacher: Teacher | None
    ) -> Tensor:
        assert self.projection is not None
        if teacher is None:
            raise ValueError('feature distillation needs the outputs of the teacher')
        distances = []
        for view, guide in zip((satellite, drone), teacher, strict=True):
            if guide.embedding.shape[1] != self.teacher_dim:
                raise ModelError(
                    f"the teacher's embedding has {guide.embedding.shape[1]} values, expected "
                    f'{self.teacher_dim}; build the loss for this teacher'
                )
            projected = self.projection(view.embedding.float())
            target = guide.embedding.detach().float()
            distances.append(1 - F.cosine_similarity(projected, target).mean())
        return sum_views(distances)


def logit_distance(student: Outputs, teacher: Outputs, *, reduction: str) -> Tensor:
    """Squared difference of the logits of one view, averaged over the branches.

    Parameters
    ----------
    student, teacher : Outputs
        With the same number of branches and classes; no gradient flows into the teacher.
    reduction : str
        'element': mean over samples and classes; 'sample': sum over classes, mean over samples
        (equation 8 as printed).

    Raises
    ------
    ModelError
        If the branches or the classes differ.
    """
    if len(student.logits) != len(teacher.logits):
        raise ModelError(
            f'the student has {len(student.logits)} classifier branches and the teacher '
            f'{len(teacher.logits)}; logit distillation compares them one by one: give both '
            'model.branches: true, or set losses.logit_distillation: 0'
        )
    distances = []
    for own, guide in zip(student.logits, teacher.logits, strict=True):
        if own.shape[1] != guide.shape[1]:
            raise ModelError(
                f'the student tells {own.shape[1]} classes apart and the teacher '
                f'{guide.shape[1]}; train the teacher on the same places, or set '
                'losses.logit_distillation: 0'
            )
        squared = (own.float() - guide.detach().float()).square()
        distances.append(squared.mean() if reduction == 'element' else squared.sum(dim=1).mean())
    return mean_branches('logit_distillation', distances)


def mean_branches(term: str, values: list[Tensor]) -> Tensor:
    """Mean over the branches of a term.

    Raises
    ------
    ModelError
        If there is no branch.
    """
    if not values:
        raise ModelError(
            f'losses.{term} needs classifier branches, but the network has none; set '
            f'model.branches: true or losses.{term}: 0'
        )
    return torch.stack(values).mean()


def sum_views(values: Iterable[Tensor]) -> Tensor:
    """Sum over the two views."""
    return torch.stack(list(values)).sum()


def _check_terms(config: LossConfig, teacher_dim: int | None) -> None:
    guided = bool(config.teacher) or teacher_dim is not None
    if config.feature_distillation and teacher_dim is None:
        raise ConfigError(
            'losses.feature_distillation needs the length of the teacher embedding, but there is '
            'no teacher; set losses.teacher, or losses.feature_distillation: 0'
        )
    plain = config.cross_entropy or config.triplet or config.info_nce
    if (
        not plain
        and not config.feature_distillation
        and not (guided and config.logit_distillation)
    ):
        raise ConfigError(
            'no term of the loss has a weight (logit_distillation counts with a teacher only); '
            'set losses.cross_entropy, losses.triplet or losses.info_nce'
        )
