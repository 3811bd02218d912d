"""BatchNorm as one multiplication and one addition: the form in which every runtime takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.engine.architecture import BATCH_NORM_EPSILON
from bicrossnet_ros.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def fold_norm(
    tensors: Mapping[str, NDArray[Any]], prefix: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fold a BatchNorm, in double precision.

    Parameters
    ----------
    tensors : mapping
        Tensors of a model by name.
    prefix : str
        Name of the norm.

    Returns
    -------
    gain, offset : ndarray of float32, shape (C,)
        So that ``norm(x) = x * gain + offset``.

    Raises
    ------
    ModelError
        If one of them is no float32.
    """
    weight, bias, mean, variance = (
        tensors[f'{prefix}.{part}'].astype(np.float64)
        for part in ('weight', 'bias', 'running_mean', 'running_var')
    )
    gain = weight / np.sqrt(variance + BATCH_NORM_EPSILON)
    offset = bias - mean * gain
    largest = np.finfo(np.float32).max
    if max(np.abs(gain).max(), np.abs(offset).max()) > largest:
        raise ModelError(
            f'{prefix}: its gain or offset exceeds {largest:.1e}, the largest number of the '
            'engine; the training diverged: train the model again'
        )
    return gain.astype(np.float32), offset.astype(np.float32)
