"""ConvNeXt, the full-precision teacher: residual blocks of a 7x7 depthwise convolution and an MLP.

The parameters are named as in timm's ``convnext_tiny``, but for ``trunk``, which is ``stages``
there (here that is the method of every backbone).

References
----------
Liu et al. 2022, "A ConvNet for the 2020s".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.backbone import Backbone

LAYER_SCALE_INITIAL = 1e-6
WEIGHT_INITIAL_STD = 0.02
NORM_EPSILON = 1e-6
MLP_RATIO = 4


@dataclass(frozen=True)
class Layout:
    """Channels and number of blocks of the four stages."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


LAYOUTS = {
    'femto': Layout((48, 96, 192, 384), (2, 2, 6, 2)),
    'tiny': Layout((96, 192, 384, 768), (3, 3, 9, 3)),
}


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel over its channels."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Linear to four times the channels, GELU, linear back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, MLP, scale per channel, shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPSILON)
        self.mlp = Mlp(channels)
        self.gamma = nn.Parameter(torch.full((channels,), LAYER_SCALE_INITIAL))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        return x + (self.mlp(self.norm(y)) * self.gamma).permute(0, 3, 1, 2)


class ConvNeXtStage(nn.Module):
    """A 2x2 reduction (but for the first stage) and a row of blocks."""

    def __init__(self, channels_in: int, channels: int, *, depth: int) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if channels_in != channels:
            self.downsample = nn.Sequential(
                ChannelNorm(channels_in), nn.Conv2d(channels_in, channels, 2, stride=2)
            )
        self.blocks = nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C, H / 2, W / 2), or to (N, C, H, W) in the first stage."""
        return self.blocks(self.downsample(x))


class _Head(nn.Module):
    """Holds the norm of the pooled feature under timm's name, ``head.norm``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPSILON)


class ConvNeXt(Backbone):
    """Backbone without its classifier.

    The feature map is the last stage's output as it is, as in timm; `pool` averages it and
    applies the head's LayerNorm, so the embedding is what timm's classifier would see.

    Parameters
    ----------
    layout : Layout
        Channels and depths of the stages.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        channels = layout.channels
        self.feature_dim = channels[-1]
        self.stem = nn.Sequential(nn.Conv2d(3, channels[0], 4, stride=4), ChannelNorm(channels[0]))
        self.trunk = nn.ModuleList(
            ConvNeXtStage(channels[max(i - 1, 0)], channels[i], depth=depth)
            for i, depth in enumerate(layout.depths)
        )
        self.head = _Head(channels[-1])
        self.apply(_initialise)

    def feature_map(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last stage's output (N, C, H / 32, W / 32)."""
        x = self.stem(x)
        for stage in self.trunk:
            x = stage(x)
        return x

    def pool(self, feature_map: Tensor) -> Tensor:
        """Average the feature map over its area and normalise it: (N, C)."""
        pooled: Tensor = self.head.norm(super().pool(feature_map))
        return pooled

    def stages(self) -> list[nn.Module]:
        """Return five parts: the stem, then the stages; the head's norm belongs to the last."""
        *first, last = self.trunk
        return [self.stem, *first, nn.ModuleList([last, self.head])]


def _initialise(module: nn.Module) -> None:
    """Truncated normal weights and no biases, as in the paper."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=WEIGHT_INITIAL_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_convnext(size: str) -> ConvNeXt:
    """Build a ConvNeXt by size name, 'femto' or 'tiny'.

    Raises
    ------
    ValueError
        If the size is unknown.
    """
    if size not in LAYOUTS:
        raise ValueError(f'unknown size {size!r}: choose one of {", ".join(LAYOUTS)}')
    return ConvNeXt(LAYOUTS[size])
