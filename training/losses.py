"""The loss of a training step: a weighted sum of terms over the two views of N places.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, section 3.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bicrossnet_ros.errors import ConfigError, ModelError
from training.config import LossConfig
from training.contrastive import SymmetricInfoNCE, cross_view_triplet, soft_likeness
from training.distillation import FeatureDistillation, logit_distance, similarity_divergence
from training.models.network import Outputs


class TotalLoss(nn.Module):
    """The weighted sum of all terms of a `LossConfig`.

    Terms of a single view (cross-entropy, both distillations) are summed over the two views, as
    equation 7 does; terms on branches are averaged over the branches. The triplet term, InfoNCE
    and the distillation of similarities join both views.

    Parameters
    ----------
    config : LossConfig
        Weights of the terms; those with weight 0 are not computed.
    embedding_dim : int
        Length of the network's embedding.
    teacher_dim : int or None
        Length of the teacher's embedding; None without a teacher: the distillation of logits is
        then left out, whatever its weight.

    Raises
    ------
    ConfigError
        If no term is left, or feature distillation is asked for without a teacher.

    References
    ----------
    Fontana et al. 2025, equation 7.
    """

    def __init__(self, config: LossConfig, *, embedding_dim: int, teacher_dim: int | None) -> None:
        super().__init__()
        self.config = config
        self.guided = teacher_dim is not None
        self.info_nce: SymmetricInfoNCE | None = None
        self.feature_distillation: FeatureDistillation | None = None
        _check_terms(config, guided=self.guided)
        if config.info_nce:
            self.info_nce = SymmetricInfoNCE(
                config.info_nce_temperature, label_smoothing=config.label_smoothing
            )
        if config.feature_distillation and teacher_dim is not None:
            self.feature_distillation = FeatureDistillation(embedding_dim, teacher_dim)

    def forward(
        self,
        satellite: Outputs,
        drone: Outputs,
        labels: Tensor,
        teacher: tuple[Outputs, Outputs] | None = None,
        ground: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the terms on a (global) batch.

        Parameters
        ----------
        satellite, drone : Outputs
            Of the network, N rows each; row k of both shows the place ``labels[k]``.
        labels : Tensor of int64
            (N,), classes. One place may stand in several rows.
        teacher : pair of Outputs or None
            Of the teacher for the same images, satellite first.
        ground : Tensor or None
            (N, 7), where the places lie (`training.data.near_misses.Ground`); soft positives need
            it.

        Returns
        -------
        dict of str to Tensor
            Float32 scalars: each term before its weight, and their weighted sum ``total``.

        Raises
        ------
        ModelError
            If the outputs lack what a term needs or do not fit the teacher's.
        """
        if self.guided != (teacher is not None):
            raise ValueError(
                f'the loss was made {"with" if self.guided else "without"} a teacher; '
                f'found {"no" if teacher is None else "the"} outputs of one'
            )
        # In the half precision of autocast, differences of nearly equal features vanish.
        with torch.autocast(satellite.embedding.device.type, enabled=False):
            terms = self._between_views(satellite, drone, labels, ground)
            terms |= self._of_teacher((satellite, drone), teacher)
            total = torch.stack([getattr(self.config, name) * terms[name] for name in terms])
        return {**terms, 'total': total.sum()}

    def _between_views(
        self, satellite: Outputs, drone: Outputs, labels: Tensor, ground: Tensor | None
    ) -> dict[str, Tensor]:
        """Terms that need no teacher."""
        terms = {}
        if self.config.cross_entropy:
            values = [F.cross_entropy(x.float(), labels) for x in satellite.logits + drone.logits]
            # The mean over branches and views, times the number of views.
            terms['cross_entropy'] = 2 * _mean('cross_entropy', values)
        if self.config.triplet:
            terms['triplet'] = _mean(
                'triplet',
                [
                    cross_view_triplet(*pair, labels, margin=self.config.triplet_margin)
                    for pair in zip(satellite.features, drone.features, strict=True)
                ],
            )
        if self.info_nce is not None:
            terms['info_nce'] = self.info_nce(
                satellite.embedding, drone.embedding, labels, self._likeness(ground)
            )
        return terms

    def _likeness(self, ground: Tensor | None) -> Tensor | None:
        weight, least = self.config.soft_positives, self.config.soft_positives_from
        if not weight:
            return None
        if ground is None:
            raise ConfigError(
                'losses.soft_positives needs places of which it is known where they lie; set '
                'data.source: maps and data.places_per_scene: 3 or 4, or soft_positives: 0'
            )
        return soft_likeness(ground, weight=weight, least=least)

    def _of_teacher(
        self, views: tuple[Outputs, Outputs], teacher: tuple[Outputs, Outputs] | None
    ) -> dict[str, Tensor]:
        """Terms that compare each view with the teacher's outputs for it."""
        if teacher is None:
            return {}
        pairs = list(zip(views, teacher, strict=True))
        terms = {}
        if self.config.logit_distillation:
            reduction = self.config.logit_reduction
            values = [logit_distance(o.logits, t.logits, reduction=reduction) for o, t in pairs]
            terms['logit_distillation'] = torch.stack(values).sum()
        if self.feature_distillation is not None:
            values = [self.feature_distillation(o.embedding, t.embedding) for o, t in pairs]
            terms['feature_distillation'] = torch.stack(values).sum()
        if self.config.similarity_distillation:
            student, guide = ((each[0].embedding, each[1].embedding) for each in (views, teacher))
            terms['similarity_distillation'] = similarity_divergence(
                student, guide, temperature=self.config.similarity_temperature
            )
        return terms


def _mean(term: str, values: list[Tensor]) -> Tensor:
    if not values:
        raise ModelError(
            f'losses.{term} needs classifier branches, but the network has none; set '
            f'model.branches: true or losses.{term}: 0'
        )
    return torch.stack(values).mean()


def _check_terms(config: LossConfig, *, guided: bool) -> None:
    for name in ('feature_distillation', 'similarity_distillation'):
        if getattr(config, name) and not guided:
            raise ConfigError(
                f'losses.{name} needs a teacher, but there is none; set losses.teacher to its '
                f'checkpoint, or losses.{name}: 0'
            )
    alone = config.cross_entropy or config.triplet or config.info_nce
    from_teacher = (
        config.logit_distillation or config.feature_distillation or config.similarity_distillation
    )
    if not alone and not (guided and from_teacher):
        raise ConfigError(
            'no term of the loss has a weight (distillation counts with a teacher only); set '
            'one of losses.cross_entropy, losses.triplet and losses.info_nce'
        )
