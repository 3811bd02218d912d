"""The Multiple Classifier Branch: three features of one map, each with its classifier.

It guides training and is left out of the deployed network.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, section 3.2.
Shen et al. 2023, "MCCG: A ConvNeXt-based Multiple-Classifier Method for Cross-view
Geo-localization".
Misra et al. 2021, "Rotate to Attend: Convolutional Triplet Attention Module".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BRANCHES = 3
GATE_KERNEL = 7
GATE_NORM_MOMENTUM = 0.01
LOGIT_INITIAL_STD = 1e-3


class TripletAttentionPool(nn.Module):
    """One branch of triplet attention, averaged over the area.

    The map is reduced along one spatial axis to [max, mean]; a 7x7 convolution over the other
    axis and the channels, a BatchNorm and a sigmoid make the gate. The gate does not vary along
    the reduced axis, so the average of map times gate needs the mean along that axis alone: no
    tensor of the map's size is made.

    Parameters
    ----------
    axis : int
        The axis that takes the channels' place: 2 (rows) or 3 (columns).
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        if axis not in (2, 3):
            raise ValueError(f'axis must be 2 or 3, found {axis}')
        self.axis = axis
        self.conv = nn.Conv2d(2, 1, GATE_KERNEL, padding=GATE_KERNEL // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=GATE_NORM_MOMENTUM)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C)."""
        mean = feature_map.mean(dim=self.axis)
        planes = torch.stack([feature_map.amax(dim=self.axis), mean], dim=1)
        if self.axis == 3:
            # Exchanging channels and columns leaves the channels last: (N, 2, h, C).
            planes, mean = planes.transpose(2, 3), mean.transpose(1, 2)
            return (torch.sigmoid(self.norm(self.conv(planes))).squeeze(1) * mean).mean(dim=1)
        return (torch.sigmoid(self.norm(self.conv(planes))).squeeze(1) * mean).mean(dim=2)


class BranchClassifier(nn.Module):
    """Linear, BatchNorm, dropout: the branch feature; a linear layer on it: the logits."""

    def __init__(self, channels: int, classes: int, *, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, bottleneck)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(bottleneck, classes)
        nn.init.kaiming_normal_(self.reduce.weight, mode='fan_out')
        nn.init.zeros_(self.reduce.bias)
        nn.init.normal_(self.classifier.weight, std=LOGIT_INITIAL_STD)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, channels) to the feature (N, bottleneck) and the logits (N, classes)."""
        feature = self.dropout(self.norm(self.reduce(x)))
        return feature, self.classifier(feature)


class MultipleClassifierBranch(nn.Module):
    """Two triplet-attention features and the pooled one, each with its own classifier.

    Parameters
    ----------
    channels : int
        Channels of the last feature map.
    classes : int
        Number of places to tell apart.
    bottleneck : int
        Length of a branch feature.
    dropout : float
        Share of a branch feature that is dropped while training.
    """

    def __init__(
        self, channels: int, classes: int, *, bottleneck: int = 512, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([TripletAttentionPool(2), TripletAttentionPool(3)])
        self.classifiers = nn.ModuleList(
            BranchClassifier(channels, classes, bottleneck=bottleneck, dropout=dropout)
            for _ in range(BRANCHES)
        )

    def forward(
        self, feature_map: Tensor, pooled: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Compute the three features and their logits.

        Parameters
        ----------
        feature_map : Tensor
            (N, channels, h, w), the backbone's last map.
        pooled : Tensor
            (N, channels), as the backbone pools it.

        Returns
        -------
        features : tuple of Tensor
            Three times (N, bottleneck), after the dropout.
        logits : tuple of Tensor
            Three times (N, classes).
        """
        inputs = [*(attention(feature_map) for attention in self.attentions), pooled]
        pairs = [classifier(x) for classifier, x in zip(self.classifiers, inputs, strict=True)]
        features, logits = zip(*pairs, strict=True)
        return features, logits
