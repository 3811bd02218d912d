"""Binary ResNet-34 in two older manners, against which the paper compares its backbone.

The stem and the 1x1 convolutions of the shortcuts keep full precision; the 32 convolutions of 3x3
are binary. Modules are named as in the public code of ReCU (and in torchvision), so that its
checkpoints load.

References
----------
He et al. 2016, "Deep Residual Learning for Image Recognition".
Rastegari et al. 2016, "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural
Networks".
Xu et al. 2021, "ReCU: Reviving the Dead Weights in Binary Neural Networks".
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.backbone import Backbone
from training.models.binary import BinaryConv2d, binary_activation, binary_weight

WIDTHS = (64, 128, 256, 512)
DEPTHS = (3, 4, 6, 3)
XNOR_LATENT_LIMIT = 1.0
RECU_TAU_FIRST = 0.85
RECU_TAU_LAST = 0.99
EPSILON = 1e-5


class XnorConv2d(BinaryConv2d):
    """Binary convolution whose weights are scaled per output channel by their mean magnitude.

    ``W ~ alpha * sign(W)`` with ``alpha = mean(abs(W))``, equation 6 of XNOR-Net. The gradient
    passes through alpha and, straight-through, through the sign. XNOR-Net's scale K of the
    activations is left out: it costs a full-precision convolution an image, the authors find its
    effect small beside alpha's (section 4.3), and their released code leaves it out too.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel=3, stride=stride)
        nn.init.kaiming_normal_(self.weight)

    def effective_weight(self) -> Tensor:
        """Return the scaled signs."""
        scale = self.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
        return super().effective_weight() * scale

    @torch.no_grad()
    def clamp_latent(self) -> None:
        """Centre the latent weights over the input channels and keep them within +-1.

        As the released code does before every step.
        """
        self.weight.sub_(self.weight.mean(dim=1, keepdim=True))
        self.weight.clamp_(-XNOR_LATENT_LIMIT, XNOR_LATENT_LIMIT)


class _PolynomialSign(torch.autograd.Function):
    """Sign with the gradient ``max(0, 2 - 2 * abs(x))`` of Bi-Real Net."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return binary_activation(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * (2.0 - 2.0 * x.abs()).clamp_(min=0.0)


class RecuConv2d(BinaryConv2d):
    """Binary convolution of ReCU: it binarises its input too, and scales its output.

    The latent weights are centred, standardised and clamped to their ``tau`` and ``1 - tau``
    quantiles (of a Laplace distribution), which pulls in outliers that would never flip; then
    the sign, straight-through. The input is divided by its standard deviation per image, which
    moves nothing but the gradient of its sign. No latent limit: the standardisation is one.

    Attributes
    ----------
    alpha : nn.Parameter
        (channels_out, 1, 1), learnable scale of the output.
    tau : float
        Quantile, from 0.85 to 0.99 over a training; no influence on the sign.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, kernel=3, stride=stride)
        nn.init.kaiming_normal_(self.weight)
        self.alpha = nn.Parameter(torch.rand(channels_out, 1, 1))
        self.tau = RECU_TAU_FIRST

    def _centred(self) -> Tensor:
        return self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)

    def effective_weight(self) -> Tensor:
        """Return the signs of the rectified latent weights."""
        centred = self._centred()
        deviation = (centred.var(dim=(1, 2, 3), keepdim=True) + EPSILON).sqrt()
        standard = centred * (2.0 * math.sqrt(2.0)) / deviation
        limit = standard.detach().abs().mean() * -math.log(2.0 - 2.0 * self.tau)
        return binary_weight(standard.clamp(-limit, limit), temperature=self.present_temperature)

    @torch.no_grad()
    def positive(self) -> Tensor:
        """Return which weights are +1: bool, in the shape of ``weight``."""
        return self._centred() >= 0

    def forward(self, x: Tensor) -> Tensor:
        """Binarise and convolve ``x`` (N, C_in, H, W) of real values; scale the result."""
        if self.training:
            x = x / (x.var(dim=(1, 2, 3), keepdim=True) + EPSILON).sqrt()
        signs: Tensor = _PolynomialSign.apply(x)
        return super().forward(signs) * self.alpha

    def clamp_latent(self) -> None:
        """Do nothing: what the convolution sees is standardised anyway."""


def _shortcut(channels_in: int, channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels_in == channels:
        return None
    conv = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class XnorBlock(nn.Module):
    """Twice BatchNorm, sign, binary convolution; one shortcut over both."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = XnorConv2d(channels_in, channels, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = XnorConv2d(channels, channels)
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C, H / stride, W / stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        y = self.conv1(binary_activation(self.bn1(x), limit=XNOR_LATENT_LIMIT))
        y = self.conv2(binary_activation(self.bn2(y), limit=XNOR_LATENT_LIMIT))
        return y + residual


class RecuBlock(nn.Module):
    """Twice binary convolution, BatchNorm, own shortcut, clamp to +-1 (Hardtanh).

    The gains of the norms start at zero, so that a block starts as its shortcut: at one, 32 clamps
    in a row saturate and the network does not learn. (The released code starts every norm at
    1e-8, the stem's too.)
    """

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = RecuConv2d(channels_in, channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = RecuConv2d(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        for norm in (self.bn1, self.bn2):
            nn.init.zeros_(norm.weight)
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C, H / stride, W / stride)."""
        residual = x if self.downsample is None else self.downsample(x)
        x = F.hardtanh(self.bn1(self.conv1(x)) + residual)
        return F.hardtanh(self.bn2(self.conv2(x)) + x)


class BinaryResNet(Backbone):
    """ResNet-34 with binary 3x3 convolutions.

    Parameters
    ----------
    block : type
        `XnorBlock` or `RecuBlock`. The first works before activations, so its stem ends with a
        ReLU and a BatchNorm with ReLU follows the last block; the second clamps to +-1.
    """

    def __init__(self, block: type[XnorBlock | RecuBlock]) -> None:
        super().__init__()
        self.feature_dim = WIDTHS[-1]
        self.before_activation = block is XnorBlock
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        before = WIDTHS[0]
        for i, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            blocks = []
            for k in range(depth):
                blocks.append(block(before, width, stride=2 if i and not k else 1))
                before = width
            self.add_module(f'layer{i + 1}', nn.Sequential(*blocks))
        self.last_norm = nn.BatchNorm2d(before) if self.before_activation else None

    def _layers(self) -> list[nn.Module]:
        return [self.get_submodule(f'layer{i + 1}') for i in range(len(WIDTHS))]

    def feature_map(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last map (N, 512, H / 32, W / 32), activated."""
        x = self.bn1(self.conv1(x))
        x = F.relu(x) if self.before_activation else F.hardtanh(x)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for layer in self._layers():
            x = layer(x)
        return x if self.last_norm is None else F.relu(self.last_norm(x))

    def stages(self) -> list[nn.Module]:
        """Return five parts: the stem, then the four rows of blocks."""
        *first, last = self._layers()
        tail = nn.ModuleList([last] if self.last_norm is None else [last, self.last_norm])
        return [nn.ModuleList([self.conv1, self.bn1]), *first, tail]

    def set_progress(self, share: float) -> None:
        """Move ReCU's quantile from 0.85 to 0.99, as e to the share of the training done.

        References
        ----------
        Xu et al. 2021, section 3.4: the quantile grows exponentially with the epochs.
        """
        if not 0 <= share <= 1:
            raise ValueError(f'share must be within 0 and 1, found {share}')
        grown = (math.exp(share) - 1.0) / (math.e - 1.0)
        for module in self.modules():
            if isinstance(module, RecuConv2d):
                module.tau = RECU_TAU_FIRST + (RECU_TAU_LAST - RECU_TAU_FIRST) * grown


def make_resnet(manner: str) -> BinaryResNet:
    """Build a binary ResNet-34 in the manner 'xnor' or 'recu'.

    Raises
    ------
    ValueError
        If the manner is unknown.
    """
    blocks: dict[str, type[XnorBlock | RecuBlock]] = {'xnor': XnorBlock, 'recu': RecuBlock}
    if manner not in blocks:
        raise ValueError(f'unknown manner {manner!r}: choose one of {", ".join(blocks)}')
    return BinaryResNet(blocks[manner])
