"""Losses between the two views: batch-hard triplet and symmetric InfoNCE.

Row k of the satellite features and row k of the drone features show the place ``labels[k]``. A
place may stand in several rows: its other images are no negatives. Computed in float32, whatever
the precision of the features; features are normalised here.

References
----------
Hermans et al. 2017, "In Defense of the Triplet Loss for Person Re-Identification".
van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SCALE = 100.0
# Two unit vectors closer than this, squared, pull at each other no more: the gradient of the
# square root is infinite at 0.
MIN_SQUARED_DISTANCE = 1e-12


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
        Scalar: mean hinge of all anchors; 0 if all rows show one place.

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
    # Rows of one place alone have no negative, any other batch has one for every anchor.
    return hinges.mean() * (~same).any()


def _hinges(
    anchors: Tensor, others: Tensor, similarity: Tensor, same: Tensor, *, margin: float
) -> Tensor:
    """Hinge (N,) of every anchor; meaningless without a negative.

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


def soft_likeness(ground: Tensor, *, weight: float, least: float) -> Tensor:
    """Weigh for each query how much every tile of a batch is the one it looks for.

    A query's own tile has weight 1. Another tile of the same scene that shows the share r of what
    the own tile shows of the query's ground has weight ``weight * r`` if ``r >= least``; all
    others have 0 and are negatives.

    Parameters
    ----------
    ground : Tensor
        (N, 7), columns of `training.data.near_misses.Ground`: scene, then row, column and side of
        the tile and of the query, squares of parallel sides.
    weight : float
        Of a neighbour that shows as much of the query as its own tile.
    least : float
        Smallest share that counts.

    Returns
    -------
    Tensor
        (N, N) in the dtype of `ground`: query i, tile j.

    References
    ----------
    Thoma et al. 2020, "Soft Contrastive Learning for Visual Localization": positives weighed by
    where their images were taken.
    """
    scene, row, col, side, query_row, query_col, query_side = ground.unbind(dim=1)
    common = _common_length(query_row, query_side, row, side) * _common_length(
        query_col, query_side, col, side
    )
    share = common / common.diagonal()[:, None].clamp_min(1e-9)
    neighbour = (scene[:, None] == scene[None, :]) & (share >= least)
    likeness = torch.where(neighbour, weight * share, torch.zeros_like(share))
    return likeness.fill_diagonal_(1.0)


def _common_length(at_a: Tensor, side_a: Tensor, at_b: Tensor, side_b: Tensor) -> Tensor:
    """Length (N, M) that intervals, given by their middles and lengths, have in common."""
    high = torch.minimum((at_a + side_a / 2)[:, None], (at_b + side_b / 2)[None, :])
    low = torch.maximum((at_a - side_a / 2)[:, None], (at_b - side_b / 2)[None, :])
    return (high - low).clamp_min(0)


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

    def forward(
        self,
        satellite: Tensor,
        drone: Tensor,
        labels: Tensor | None = None,
        likeness: Tensor | None = None,
    ) -> Tensor:
        """Return the mean of both directions' losses.

        Parameters
        ----------
        satellite, drone : Tensor
            (N, D), normalised here; row k matches row k.
        labels : Tensor of int64 or None
            (N,). Other rows with the same label are left out of a row's candidates. None: every
            row is a place of its own.
        likeness : Tensor or None
            (N, N), 0 or more, 1 on the diagonal: by how much drone image i shows what satellite
            image j shows (see `soft_likeness`). A row's target is spread in proportion to it.
            None: the identity.
        """
        # Clamped in place: beyond a clamp in the graph the gradient is zero and the scale stuck.
        with torch.no_grad():
            self.log_scale.clamp_(max=self.max_log_scale)
        satellite, drone = F.normalize(satellite.float()), F.normalize(drone.float())
        logits = self.log_scale.exp() * (drone @ satellite.T)
        left_out = torch.zeros_like(logits, dtype=torch.bool)
        if labels is not None:
            left_out = (labels[:, None] == labels[None, :]).fill_diagonal_(False)
        if likeness is None:
            likeness = torch.eye(len(logits), device=logits.device)
        return 0.5 * (
            self._find(logits, left_out, likeness) + self._find(logits.T, left_out, likeness.T)
        )

    def _find(self, logits: Tensor, left_out: Tensor, likeness: Tensor) -> Tensor:
        """Cross-entropy of each row. torch's smoothing is infinite with left-out candidates."""
        log_share = F.log_softmax(logits.masked_fill(left_out, -math.inf), dim=1)
        wanted = F.normalize(likeness.masked_fill(left_out, 0.0).to(logits.dtype), p=1.0)
        right = (wanted * log_share.masked_fill(left_out, 0.0)).sum(dim=1)
        if not self.label_smoothing:
            return -right.mean()
        candidates = (~left_out).sum(dim=1)
        even = log_share.masked_fill(left_out, 0.0).sum(dim=1) / candidates
        return -torch.lerp(right, even, self.label_smoothing).mean()
