"""True float32 on a GPU."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def true_float32() -> Iterator[None]:
    """Multiply float32 as float32; a context, or a decorator.

    Left alone, torch convolves float32 on a GPU as TF32, with 10 bits of fraction. The signs of a
    binary network turn such a rounding into other bits, and these into other features.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    try:
        convolutions.allow_tf32 = products.allow_tf32 = False
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
