"""Binary building blocks: the sign with its straight-through gradients, the convolution.

The sign follows the paper's equation 2: ``sign(0) = +1``, for activations and weights alike
(``torch.sign`` maps zero to zero, which no bit can hold).

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, equation 2.
Guo et al. 2022, "Join the High Accuracy Club on ImageNet with A Binary Neural Network Ticket".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATION_GRADIENT_RANGE = 1.5
LATENT_LIMIT = 1.5
LATENT_INITIAL_STD = 1e-3
LOWEST_TEMPERATURE = 1e-7


class _SignActivation(torch.autograd.Function):
    """Sign whose gradient is 1 where ``abs(x) <= 1.5`` and 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() <= ACTIVATION_GRADIENT_RANGE)
        return _sign(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (passes,) = ctx.saved_tensors
        return grad_outputs[0] * passes


class _SignWeight(torch.autograd.Function):
    """Sign whose gradient is the identity everywhere (straight-through, not clipped)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return _sign(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0]


def _sign(x: Tensor) -> Tensor:
    return (x >= 0).to(x.dtype).mul_(2.0).sub_(1.0)


def binary_activation(x: Tensor) -> Tensor:
    """Binarise activations.

    Parameters
    ----------
    x : Tensor
        Any shape, floating point.

    Returns
    -------
    Tensor
        +1 where ``x >= 0`` (zero included), -1 elsewhere; same shape and dtype. The gradient
        passes unchanged where ``abs(x) <= 1.5`` and is zero elsewhere.
    """
    result: Tensor = _SignActivation.apply(x)
    return result


def binary_weight(weight: Tensor) -> Tensor:
    """Binarise latent weights: +1 where ``weight >= 0``, else -1; the gradient is the identity."""
    result: Tensor = _SignWeight.apply(weight)
    return result


class BinaryConv2d(nn.Module):
    """Convolution with binary weights and zero padding; no bias, no channel scale.

    The module binarises its latent weights only; its input is binarised by the unit that owns it.
    Training and evaluation compute the same function unless a temperature is set; in evaluation
    the weights are binary always.

    Parameters
    ----------
    channels_in, channels_out : int
        Number of channels.
    kernel : int
        Odd side of the kernel, in pixels; the padding is ``kernel // 2``.
    stride : int
        Stride of the convolution, in pixels.

    Attributes
    ----------
    weight : nn.Parameter
        Latent weights, float (channels_out, channels_in, kernel, kernel), drawn from
        N(0, 1) * 0.001 and kept within +-1.5 by `clamp_latent`.
    temperature : float
        Above 1e-7, training uses the soft weights ``clamp(weight / temperature, -1, 1)``, with
        their true gradient. At 0, the default, it uses the signs.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int, stride: int = 1
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f'kernel must be odd, found {kernel}')
        self.stride = stride
        self.padding = kernel // 2
        shape = (channels_out, channels_in, kernel, kernel)
        self.weight = nn.Parameter(torch.randn(shape) * LATENT_INITIAL_STD)
        self.temperature = 0.0

    def effective_weight(self) -> Tensor:
        """Return the weights that convolve: signs, or soft ones while training hot."""
        if self.training and self.temperature > LOWEST_TEMPERATURE:
            return (self.weight / self.temperature).clamp(-1.0, 1.0)
        return binary_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (N, C_in, H, W) of +-1 with the binary weights."""
        return F.conv2d(x, self.effective_weight(), stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def clamp_latent(self) -> None:
        """Keep the latent weights within +-1.5; call after every optimiser step."""
        self.weight.clamp_(-LATENT_LIMIT, LATENT_LIMIT)
