"""What every backbone offers: a last feature map, its pooled vector, its stages."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from training.models.binary import BinaryConv2d


class Backbone(nn.Module, ABC):
    """Image to feature map to feature vector.

    Attributes
    ----------
    feature_dim : int
        Channels C of the last feature map and length of the feature vector.
    """

    feature_dim: int

    @abstractmethod
    def feature_map(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to the last feature map (N, C, H / 32, W / 32)."""

    @abstractmethod
    def stages(self) -> list[nn.Module]:
        """Return the parts from the stem to the last; each parameter belongs to exactly one.

        The containers are made anew at every call, the modules in them are the network's own.
        """

    def pool(self, feature_map: Tensor) -> Tensor:
        """Average the feature map (N, C, h, w) over its area: (N, C)."""
        return feature_map.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to feature vectors (N, C)."""
        return self.pool(self.feature_map(x))

    def clamp_parameters(self) -> None:
        """Bring parameters that train back into their ranges; call after every optimiser step.

        Frozen ones stay as they were loaded, in range or not.
        """
        for module in self.modules():
            if isinstance(module, BinaryConv2d) and module.weight.requires_grad:
                module.clamp_latent()

    def set_temperature(self, temperature: float, *, in_evaluation: bool = False) -> None:
        """Set temperature and `soft_in_evaluation` of all binary weights; see `BinaryConv2d`."""
        if not temperature >= 0:
            raise ValueError(f'temperature must be 0 or positive, found {temperature}')
        for module in self.modules():
            if isinstance(module, BinaryConv2d):
                module.temperature = temperature
                module.soft_in_evaluation = in_evaluation

    def set_progress(self, share: float) -> None:
        """Tell which share of the training is done, 0 to 1; ReCU's quantile follows it."""
