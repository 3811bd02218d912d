"""Binary building blocks: the sign with its straight-through gradients, the convolution.

The sign follows the paper's equation 2: ``sign(0) = +1``, for activations and weights alike
(``torch.sign`` maps zero to zero, which no bit can hold).

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, equation 2.
Guo et al. 2022, "Join the High Accuracy Club on ImageNet with A Binary Neural Network Ticket".
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.config import LOWEST_TEMPERATURE

ACTIVATION_GRADIENT_RANGE = 1.5
LATENT_LIMIT = 1.5
LATENT_INITIAL_STD = 1e-3


class _SignActivation(torch.autograd.Function):
    """Sign whose gradient is 1 where ``abs(x) <= limit`` and 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x)
        # The kernel of the gradient leaves out the limit itself; the next number includes it.
        step = math.ldexp(torch.finfo(x.dtype).eps, math.frexp(limit)[1] - 1)
        ctx.limit = (math.floor(limit / step) + 1) * step
        return _sign(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad = grad_outputs[0].to(x.dtype)
        return torch.ops.aten.hardtanh_backward(grad, x, -ctx.limit, ctx.limit), None


class _SignWeight(torch.autograd.Function):
    """Sign, or soft sign, whose gradient is the identity everywhere (straight-through)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, temperature: float) -> Tensor:
        if temperature > LOWEST_TEMPERATURE:
            return (weight / temperature).clamp_(-1.0, 1.0)
        return _sign(weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def _sign(x: Tensor) -> Tensor:
    # A comparison that writes floats at once: on a CPU six times as fast as one that makes
    # booleans and converts them. In mixed precision it writes what the convolution will read.
    kind = x.device.type
    narrow = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if narrow else x.dtype
    result = torch.empty_like(x, dtype=dtype)
    torch.ge(x, 0, out=result)
    return result.mul_(2.0).sub_(1.0)


def binary_activation(x: Tensor, *, limit: float = ACTIVATION_GRADIENT_RANGE) -> Tensor:
    """Binarise activations.

    Parameters
    ----------
    x : Tensor
        Any shape, floating point.
    limit : float
        Half-width of the range in which the gradient passes.

    Returns
    -------
    Tensor
        +1 where ``x >= 0`` (zero included), -1 elsewhere; same shape and dtype (in mixed
        precision the narrow one). The gradient passes unchanged where ``abs(x) <= limit`` and is
        zero elsewhere.
    """
    result: Tensor = _SignActivation.apply(x, limit)
    return result


def binary_weight(weight: Tensor, *, temperature: float = 0.0) -> Tensor:
    """Binarise latent weights: +1 where ``weight >= 0``, else -1; the gradient is the identity.

    Parameters
    ----------
    weight : Tensor
        Latent weights, any shape.
    temperature : float
        Above 1e-7 the result is soft, ``clamp(weight / temperature, -1, 1)``. Its gradient stays
        the identity, as in the public BNext: the true one is 1 / temperature near zero and
        nothing beyond, so that a cooling network would stop learning long before it is binary.
    """
    result: Tensor = _SignWeight.apply(weight, temperature)
    return result


class BinaryConv2d(nn.Module):
    """Convolution with binary weights and zero padding; no bias, no channel scale.

    The module binarises its latent weights only; its input is binarised by the unit that owns it.
    Training and evaluation compute the same function unless a temperature is set; in evaluation
    the weights are binary unless `soft_in_evaluation` says otherwise.

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
        Above 1e-7, training uses the soft weights ``clamp(weight / temperature, -1, 1)``. At 0,
        the default, it uses the signs. Not in the state: training sets it every epoch.
    soft_in_evaluation : bool
        Whether evaluation uses the soft weights too: in the first of two stages, where weights
        are yet to become signs (Martinez et al. 2020, "Training Binary Neural Networks with
        Real-to-Binary Convolutions"). Not in the state either.
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
        self.soft_in_evaluation = False

    @property
    def present_temperature(self) -> float:
        """Temperature of the weights in the present mode."""
        return self.temperature if self.training or self.soft_in_evaluation else 0.0

    def effective_weight(self) -> Tensor:
        """Return the weights that convolve: signs, or soft ones while training hot."""
        return binary_weight(self.weight, temperature=self.present_temperature)

    @torch.no_grad()
    def positive(self) -> Tensor:
        """Return which weights are +1: bool, in the shape of ``weight``."""
        return self.weight >= 0

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (N, C_in, H, W) of +-1 with the binary weights."""
        return F.conv2d(x, self.effective_weight(), stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def clamp_latent(self) -> None:
        """Keep the latent weights within +-1.5; call after every optimiser step."""
        self.weight.clamp_(-LATENT_LIMIT, LATENT_LIMIT)
