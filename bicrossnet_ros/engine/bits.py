"""Packing of binary weights: one bit a weight, channels innermost.

A weight tensor (C_out, C_in, K, K) becomes uint8 (C_out, K, K, C_in / 8). Bit ``b`` (least
significant first) of byte ``j`` is input channel ``8 * j + b``; 1 stands for +1, 0 for -1. Eight
consecutive bytes read as a little-endian 64-bit word therefore hold 64 channels in order, which
is what a popcount kernel wants. C_in is a multiple of 8, so there are no padding bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_weights(weights: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack the signs of weights, zero counting as +1.

    Parameters
    ----------
    weights : ndarray of float, shape (C_out, C_in, K, K)
        Latent or binary weights; C_in a multiple of 8.

    Returns
    -------
    ndarray of uint8, shape (C_out, K, K, C_in // 8)
    """
    if weights.ndim != 4 or weights.shape[1] % 8:
        raise ValueError(
            f'weights have shape {weights.shape}; expected (C_out, C_in, K, K) with C_in '
            'a multiple of 8'
        )
    bits = weights.transpose(0, 2, 3, 1) >= 0
    return np.packbits(bits, axis=-1, bitorder='little')


def unpack_weights(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Undo `pack_weights`: uint8 (C_out, K, K, B) to float32 +-1 (C_out, 8 * B, K, K)."""
    bits = np.unpackbits(packed, axis=-1, bitorder='little')
    signs = bits.astype(np.float32) * 2 - 1
    return np.ascontiguousarray(signs.transpose(0, 3, 1, 2))
