"""Networks that can be trained: backbones, their binary building blocks, the training head."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = ('backbone', 'binary', 'bnext')


def __getattr__(name: str) -> Any:
    """Import torch only for who takes more from here than the names of the networks."""
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f'{__name__}.{module}'))
            if name in found:
                return found[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
