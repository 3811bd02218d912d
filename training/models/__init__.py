"""Networks that can be trained: the BNext family and its binary building blocks."""

from training.models.binary import BinaryConv2d, binary_activation, binary_weight
from training.models.bnext import CHANNELS, BNext, make_bnext

__all__ = ['CHANNELS', 'BNext', 'BinaryConv2d', 'binary_activation', 'binary_weight', 'make_bnext']
