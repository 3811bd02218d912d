"""A BNext of twice the width that computes what a trained one does, to train on from there.

Every channel stands twice in the wide network: what makes channels (rows of weights, norms,
biases, PReLUs, gates) is repeated; what sums over channels is halved where weights are floats.
Binary weights cannot be halved, so their sums double, and the norm behind each takes its mean
doubled and its variance fourfold. The embedding is the narrow one with every value twice: all
cosines are the same. The copies of a latent weight differ in magnitude, not in sign, so that
training turns one before the other and they grow apart.

References
----------
Chen, Goodfellow, Shlens 2016, "Net2Net: Accelerating Learning via Knowledge Transfer", section
2.2, Net2WiderNet.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bicrossnet_ros.errors import ConfigError
from training.models.backbone import Backbone
from training.models.bnext import BinaryUnit, Block, BNext, ElementwiseUnit
from training.models.pretrained import LoadReport, load_backbone

# Copies of a latent weight are it times 1 - SPREAD to 1 + SPREAD.
SPREAD = 0.5


def widen_backbone(wide: Backbone, path: Path, *, seed: int) -> LoadReport:
    """Fill a BNext from the file of one of half its width; see `load_backbone` for files.

    Parameters
    ----------
    wide : Backbone
        A BNext; overwritten in place.
    path : Path
        Checkpoint or model file.
    seed : int
        Of the magnitudes of the latent weights.

    Returns
    -------
    LoadReport
        Of the narrow network.

    Raises
    ------
    ConfigError
        If `wide` is no binary BNext.
    ModelError
        If the file cannot be read or is of another network than one of half the width.
    """
    if not isinstance(wide, BNext) or not wide.binary:
        raise ConfigError(
            f'model.widen_from is {path}, but the network is a {type(wide).__name__}; only a '
            "binary BNext can be widened: set model.name: bnext_tiny, or widen_from: ''"
        )
    narrow = BNext(tuple(count // 2 for count in wide.channels))
    report = load_backbone(narrow, path)
    widen(narrow, wide, seed=seed)
    return report


@torch.no_grad()
def widen(narrow: BNext, wide: BNext, *, seed: int) -> Tensor:
    """Copy a network into one of twice its width.

    Returns
    -------
    Tensor of int64, shape (2 C,)
        Which value of the narrow embedding each of the wide one repeats.
    """
    generator = torch.Generator().manual_seed(seed)
    # Narrow channel of every wide one; where a block doubles its channels, so does this.
    origin = torch.arange(narrow.channels[0]).repeat(2)
    wide.stem.weight.copy_(narrow.stem.weight[origin])
    _copy_norm(narrow.stem_norm, wide.stem_norm, origin)
    for block, target in zip(narrow.blocks, wide.blocks, strict=True):
        assert isinstance(block, Block)
        assert isinstance(target, Block)
        _widen_unit(block.unit3x3, target.unit3x3, origin, generator)
        for unit, twin in zip(block.units1x1, target.units1x1, strict=True):
            _widen_unit(unit, twin, origin, generator)
        count = len(origin) // 2
        origin = torch.cat([origin + count * k for k in range(len(block.units1x1))])
    wide.act.weight.copy_(narrow.act.weight[origin])
    return origin


def _widen_unit(
    unit: nn.Module, target: nn.Module, origin: Tensor, generator: torch.Generator
) -> None:
    assert isinstance(unit, BinaryUnit)
    assert isinstance(target, BinaryUnit)
    target.move.bias.copy_(unit.move.bias[:, origin])
    target.conv.weight.copy_(_latents(unit.conv.weight[origin][:, origin], generator))
    _copy_norm(unit.norm1, target.norm1, origin, factor=2.0)
    target.act.weight.copy_(unit.act.weight[origin])
    target.scale.copy_(unit.scale[:, origin])
    hidden = torch.arange(len(unit.se.reduce.weight)).repeat(2)
    for layer, twin, rows, columns in (
        (unit.se.reduce, target.se.reduce, hidden, origin),
        (unit.se.expand, target.se.expand, origin, hidden),
    ):
        assert layer.bias is not None
        assert twin.bias is not None
        twin.weight.copy_(layer.weight[rows][:, columns] / 2)
        twin.bias.copy_(layer.bias[rows])
    _copy_norm(unit.norm2, target.norm2, origin)
    if isinstance(unit, ElementwiseUnit) and isinstance(target, ElementwiseUnit):
        target.act_residual.weight.copy_(unit.act_residual.weight[origin])


def _latents(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Latent weights of the same signs and, on average, magnitudes."""
    factor = 1 + SPREAD * (2 * torch.rand(weight.shape, generator=generator) - 1)
    return weight * factor.to(weight)


def _copy_norm(
    norm: nn.BatchNorm2d, target: nn.BatchNorm2d, origin: Tensor, *, factor: float = 1.0
) -> None:
    """Repeat a norm whose input is now `factor` times what it was."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert target.running_mean is not None
    assert target.running_var is not None
    target.weight.copy_(norm.weight[origin])
    target.bias.copy_(norm.bias[origin])
    target.running_mean.copy_(factor * norm.running_mean[origin])
    target.running_var.copy_(factor**2 * norm.running_var[origin])
    if norm.num_batches_tracked is not None and target.num_batches_tracked is not None:
        target.num_batches_tracked.copy_(norm.num_batches_tracked)
