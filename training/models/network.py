"""The network that is trained: a backbone and, while training, the Multiple Classifier Branch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bicrossnet_ros.errors import ConfigError
from training.config import ModelConfig
from training.models.backbone import Backbone
from training.models.bnext import make_bnext
from training.models.branches import MultipleClassifierBranch
from training.models.convnext import make_convnext
from training.models.efficientnet import EfficientNetLite
from training.models.names import BACKBONES
from training.models.resnet import make_resnet


@dataclass
class Outputs:
    """What a network says of N images.

    Attributes
    ----------
    embedding : Tensor
        (N, C), the backbone's pooled feature: what the deployed network returns. Not normalised.
    features : tuple of Tensor
        Of each branch (N, bottleneck); empty without branches.
    logits : tuple of Tensor
        Of each branch (N, classes); empty without branches.
    """

    embedding: Tensor
    features: tuple[Tensor, ...] = ()
    logits: tuple[Tensor, ...] = ()


class GeoNetwork(nn.Module):
    """A backbone with the training head.

    Parameters
    ----------
    backbone : Backbone
        Image to feature map to vector.
    branches : MultipleClassifierBranch or None
        None: embeddings alone.

    Attributes
    ----------
    classes : tuple of str
        Names of the places in the order of the logits, where a checkpoint told them.
    """

    def __init__(self, backbone: Backbone, branches: MultipleClassifierBranch | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.branches = branches
        self.classes: tuple[str, ...] = ()

    @property
    def embedding_dim(self) -> int:
        """Length of an embedding."""
        return self.backbone.feature_dim

    def forward(self, x: Tensor) -> Outputs:
        """Map normalised images (N, 3, H, W) to `Outputs`."""
        feature_map = self.backbone.feature_map(x)
        embedding = self.backbone.pool(feature_map)
        if self.branches is None:
            return Outputs(embedding)
        return Outputs(embedding, *self.branches(feature_map, embedding))

    def clamp_parameters(self) -> None:
        """Bring parameters back into their ranges; call after every optimiser step."""
        self.backbone.clamp_parameters()

    def set_temperature(self, temperature: float, *, in_evaluation: bool = False) -> None:
        """Set the temperature of all binary weights; 0 makes them signs, in evaluation always.

        With `in_evaluation` they are as soft there as in training.
        """
        self.backbone.set_temperature(temperature, in_evaluation=in_evaluation)

    def set_progress(self, share: float) -> None:
        """Tell which share of the training is done, 0 to 1; see `Backbone.set_progress`."""
        self.backbone.set_progress(share)


def make_backbone(name: str) -> Backbone:
    """Build a backbone, freshly initialised from torch's global random state.

    Parameters
    ----------
    name : str
        One of `training.models.names.BACKBONES`.

    Raises
    ------
    ConfigError
        If there is no such backbone.
    """
    family, _, kind = name.partition('_')
    if name not in BACKBONES:
        raise ConfigError(f'there is no backbone {name!r}; expected one of {", ".join(BACKBONES)}')
    match family:
        case 'bnext':
            return make_bnext(kind)
        case 'resnet34':
            return make_resnet(kind)
        case 'efficientnet':
            return EfficientNetLite(kind)
        case _:
            return make_convnext(kind)


def make_network(config: ModelConfig, *, classes: int) -> GeoNetwork:
    """Build the network of a configuration for a number of classes.

    Parameters
    ----------
    config : ModelConfig
        ``config.pretrained`` is not read here; see `training.models.pretrained.load_backbone`.
    classes : int
        Places of the training set; without branches it is not used.
    """
    backbone = make_backbone(config.name)
    if not config.branches:
        return GeoNetwork(backbone, None)
    branches = MultipleClassifierBranch(
        backbone.feature_dim, classes, bottleneck=config.bottleneck, dropout=config.dropout
    )
    return GeoNetwork(backbone, branches)
