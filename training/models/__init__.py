"""Networks that can be trained: backbones, their binary building blocks, the training head."""

from training.models.backbone import Backbone
from training.models.binary import BinaryConv2d, binary_activation, binary_weight
from training.models.bnext import CHANNELS, BNext, make_bnext

__all__ = [
    'CHANNELS',
    'BNext',
    'Backbone',
    'BinaryConv2d',
    'binary_activation',
    'binary_weight',
    'make_bnext',
]
