"""Retrieval among held-out places: the share of queries that find their own tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from bicrossnet_ros.preprocess import Preprocessing, prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

BATCH = 128


def recall_at(
    tiles: NDArray[np.float32], queries: NDArray[np.float32], ks: tuple[int, ...] = (1, 5, 20)
) -> dict[str, float]:
    """Share of queries whose own tile is among the k most similar.

    Parameters
    ----------
    tiles, queries : ndarray of float32, shape (N, D)
        Unit length; row k of both is the same place.
    ks : tuple of int
        Ranks to report.

    Returns
    -------
    dict
        ``{'recall_at_1': share, ...}``. A tie with a wrong tile counts against the query.
    """
    similarity = queries @ tiles.T
    own = np.diagonal(similarity)[:, None]
    rank = (similarity >= own).sum(axis=1) - 1
    return {f'recall_at_{k}': float(np.mean(rank < k)) for k in ks}


@torch.no_grad()
def embed(
    model: nn.Module, patches: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Embed patches (N, H, W, 3) in evaluation mode, float32; returns (N, D) of unit length."""
    was_training = model.training
    model.eval()
    rows = [
        F.normalize(
            model(torch.from_numpy(prepare(patches[i : i + BATCH], preprocessing)))
        ).numpy()
        for i in range(0, len(patches), BATCH)
    ]
    model.train(was_training)
    return np.concatenate(rows)
