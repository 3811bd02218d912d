"""Losses of contrastive training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_LOG_SCALE = math.log(100.0)


class SymmetricInfoNCE(nn.Module):
    """Cross-entropy of finding each query's tile among all tiles, and the reverse.

    Parameters
    ----------
    temperature : float
        Initial temperature; its inverse is learnt as a logarithm and kept at most 100.

    References
    ----------
    van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", eq. 4.
    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, tiles: Tensor, queries: Tensor) -> Tensor:
        """Return the scalar loss of embeddings (N, D) of unit length; row k matches row k."""
        scale = self.log_scale.clamp(max=MAX_LOG_SCALE).exp()
        logits = scale * queries @ tiles.T
        target = torch.arange(len(logits), device=logits.device)
        return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
