"""BNext, the binary backbone of the paper, in four sizes and a half-width `nano`.

A network is a full-precision stem and a row of blocks. Block ``i`` (counted from 1) is one 3x3
unit and one 1x1 unit; where it widens, two parallel 1x1 units are concatenated. The 3x3 unit of an
even block multiplies element-wise with its residual (`ElementwiseUnit`).

The float twin of a network has the same layers, but its convolutions take activations and weights
as they are. It is not for flying: trained beside the network, it shows what the signs cost.

References
----------
Guo et al. 2022, "Join the High Accuracy Club on ImageNet with A Binary Neural Network Ticket".
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.backbone import Backbone
from training.models.binary import BinaryConv2d, binary_activation
from training.models.prelu import ChannelPReLU

SE_REDUCTION = 8

CHANNELS: dict[str, tuple[int, ...]] = {
    'nano': (16, 32, 64, 64, 128, 128, *[256] * 6, 512, 512),
    'tiny': (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024),
    'small': (48, 96, 192, 192, 384, 384, *[768] * 6, 1536, 1536),
    'middle': (48, 96, *[192] * 4, *[384] * 4, *[768] * 8, *[1536] * 4),
    'large': (64, 128, *[256] * 4, *[512] * 4, *[1024] * 16, *[2048] * 4),
}


class LearnableBias(nn.Module):
    """Add one learnable offset per channel, so that the threshold of the sign can move."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + bias`` for ``x`` of shape (N, C, H, W)."""
        return x + self.bias


class SqueezeExcite(nn.Module):
    """Gate of one value in (0, 1) per channel: pool, 1x1 to C/8, ReLU, 1x1 to C, sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // SE_REDUCTION, 1)
        self.expand = nn.Conv2d(channels // SE_REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate (N, C, 1, 1) of ``x`` (N, C, H, W)."""
        # On one pixel a 1x1 convolution is a linear map, and several times as fast as one.
        pooled = x.mean(dim=(2, 3))
        hidden = F.relu(F.linear(pooled, self.reduce.weight.flatten(1), self.reduce.bias))
        gate = F.linear(hidden, self.expand.weight.flatten(1), self.expand.bias)
        return torch.sigmoid(gate)[:, :, None, None]


class BinaryUnit(nn.Module):
    """Bias, sign, binary convolution, BN, PReLU, recoupled squeeze-excite gate, BN, shortcut.

    Parameters
    ----------
    channels : int
        Channels in and out.
    kernel : int
        1 or 3, in pixels.
    stride : int
        1 or 2; at 2 the shortcut is average-pooled 2x2, so the input's sides must be even.
    binary : bool
        False: the float twin.
    """

    elementwise = False

    def __init__(
        self, channels: int, *, kernel: int, stride: int = 1, binary: bool = True
    ) -> None:
        super().__init__()
        self.stride = stride
        self.binary = binary
        self.move = LearnableBias(channels)
        self.conv = _convolution(channels, kernel=kernel, stride=stride, binary=binary)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act = ChannelPReLU(channels)
        self.scale = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))
        self.se = SqueezeExcite(channels)
        self.norm2 = nn.BatchNorm2d(channels)

    def _pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.stride == 2 else x

    def _residual(self, x: Tensor) -> Tensor:
        return self._pool(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / stride, W / stride)."""
        residual = self._residual(x)
        moved = self.move(x)
        y = self.act(self.norm1(self.conv(binary_activation(moved) if self.binary else moved)))
        # scale * pool(x) + (1 - scale) * y enters the gate through its mean alone; averaging first
        # gives the same number and saves a full-size tensor.
        mean_in = x.mean(dim=(2, 3), keepdim=True)
        mean_out = y.mean(dim=(2, 3), keepdim=True)
        y = self.se(mean_out + self.scale * (mean_in - mean_out)) * y
        if self.elementwise:
            y = y * residual
        return self.norm2(y) + residual

    @torch.no_grad()
    def clamp_parameters(self) -> None:
        """Keep latent weights within +-1.5, the recoupling scale within [0, 1], if they train."""
        if isinstance(self.conv, BinaryConv2d) and self.conv.weight.requires_grad:
            self.conv.clamp_latent()
        if self.scale.requires_grad:
            self.scale.clamp_(0.0, 1.0)


class ElementwiseUnit(BinaryUnit):
    """The unit with element-wise attention: output times residual, which is PReLU(input)."""

    elementwise = True

    def __init__(
        self, channels: int, *, kernel: int, stride: int = 1, binary: bool = True
    ) -> None:
        super().__init__(channels, kernel=kernel, stride=stride, binary=binary)
        self.act_residual = ChannelPReLU(channels)

    def _residual(self, x: Tensor) -> Tensor:
        return self._pool(self.act_residual(x))


def _convolution(
    channels: int, *, kernel: int, stride: int, binary: bool
) -> nn.Conv2d | BinaryConv2d:
    if binary:
        return BinaryConv2d(channels, channels, kernel=kernel, stride=stride)
    padding = kernel // 2
    return nn.Conv2d(channels, channels, kernel, stride=stride, padding=padding, bias=False)


class Block(nn.Module):
    """One 3x3 unit, then one 1x1 unit, or two parallel 1x1 units where the channels double.

    Parameters
    ----------
    channels_in, channels_out : int
        Equal, or ``channels_out == 2 * channels_in``.
    stride : int
        Stride of the 3x3 unit.
    elementwise : bool
        True: the 3x3 unit is an `ElementwiseUnit`.
    binary : bool
        False: the float twin.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        stride: int,
        elementwise: bool,
        binary: bool = True,
    ) -> None:
        super().__init__()
        if channels_out not in (channels_in, 2 * channels_in):
            raise ValueError(
                f'a block keeps or doubles its channels, found {channels_in} -> {channels_out}'
            )
        kind = ElementwiseUnit if elementwise else BinaryUnit
        self.unit3x3 = kind(channels_in, kernel=3, stride=stride, binary=binary)
        branches = channels_out // channels_in
        self.units1x1 = nn.ModuleList(
            BinaryUnit(channels_in, kernel=1, binary=binary) for _ in range(branches)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        x = self.unit3x3(x)
        outputs = [unit(x) for unit in self.units1x1]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


class BNext(Backbone):
    """Backbone: image to feature vector.

    Parameters
    ----------
    channels : tuple of int
        Output channels of the stem, then of every block.
    binary : bool
        False: the float twin.

    Attributes
    ----------
    feature_dim : int
        Length of the feature vector, ``channels[-1]``.
    """

    def __init__(self, channels: tuple[int, ...], *, binary: bool = True) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.binary = binary
        self.feature_dim = channels[-1]
        self.stem = nn.Conv2d(3, channels[0], 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels[0])
        self.blocks = nn.ModuleList(
            Block(
                channels[i - 1],
                channels[i],
                stride=2 if i > 1 and channels[i] != channels[i - 1] else 1,
                elementwise=i % 2 == 0,
                binary=binary,
            )
            for i in range(1, len(channels))
        )
        self.act = ChannelPReLU(channels[-1])

    def feature_map(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last map (N, C, H / 32, W / 32), its PReLU included."""
        x = self.stem_norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.act(x)

    def stages(self) -> list[nn.Module]:
        """Return five parts: the stem with the first block, then the blocks of each width.

        The last PReLU belongs to the last part.
        """
        parts: list[nn.ModuleList] = [nn.ModuleList([self.stem, self.stem_norm, self.blocks[0]])]
        for i, block in enumerate(self.blocks[1:], start=2):
            if self.channels[i] != self.channels[i - 1]:
                parts.append(nn.ModuleList())
            parts[-1].append(block)
        parts[-1].append(self.act)
        return list(parts)

    def clamp_parameters(self) -> None:
        """Clamp all latent weights and recoupling scales; call after each optimiser step."""
        for module in self.modules():
            if isinstance(module, BinaryUnit):
                module.clamp_parameters()


def make_bnext(size: str) -> BNext:
    """Build a BNext by size name.

    Parameters
    ----------
    size : str
        One of 'nano', 'tiny', 'small', 'middle', 'large'; with '_float' behind it, its float
        twin.

    Returns
    -------
    BNext
        Freshly initialised from torch's global random state.

    Raises
    ------
    ValueError
        If the size is unknown.
    """
    name, _, kind = size.partition('_')
    if name not in CHANNELS or kind not in ('', 'float'):
        raise ValueError(f'unknown size {size!r}: choose one of {", ".join(CHANNELS)}')
    return BNext(CHANNELS[name], binary=not kind)
