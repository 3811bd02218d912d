"""What a network costs: parameters, disk, binary and floating-point operations.

    python -m training.complexity bnext_tiny --input 2x3x256x256
    python -m training.complexity bnext_tiny --input 1x3x384x384 --classes 120 --json
    python -m training.complexity bnext_tiny convnext_tiny --layers
    python -m training.complexity NAME.safetensors

The network is run once on the meta device: shapes without numbers. ``docs/complexity.md`` says
what is counted and why, and compares with the paper.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, section 4.1.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bicrossnet_ros.engine.architecture import TOTAL_STRIDE_PX
from bicrossnet_ros.engine.model_file import read_model
from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.checkpoint import network_from_checkpoint
from training.complexity_table import layer_table, table
from training.models.bnext import BinaryUnit, BNext
from training.models.branches import MultipleClassifierBranch
from training.models.names import BACKBONES
from training.models.network import GeoNetwork, make_backbone
from training.operations import Layer, count_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.models.backbone import Backbone

BINARY_OPERATIONS_PER_FLOP = 64
IMAGENET_CLASSES = 1000
PAPER_CLASSES = 701
LARGEST_SIDE_PX = 8192
ACCOUNTINGS = ('deployable', 'released', 'classifier', 'paper')

InputShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Complexity:
    """Cost of one forward pass and size of the network; counts are whole numbers.

    Attributes
    ----------
    name : str
        Backbone, or the file that was counted.
    accounting : str
        'deployable': what flies. 'released': with the PReLUs that the public code declares and
        never uses. 'classifier': and with its 1000-way classifier. 'paper': and with the three
        heads of the Multiple Classifier Branch.
    input_shape : tuple of int
        (N, 3, H, W) of the pass; operations are for all N images together.
    classes : int or None
        Classes of the three heads; None without them.
    parameters, binary_parameters : int
        All parameters, and those of one bit among them.
    norm_statistics : int
        Running means and variances of BatchNorm: in the model file, no parameters.
    binops : int
        Multiply-accumulates of binary convolutions.
    macs : int
        Multiply-accumulates of the other convolutions and linear layers.
    flops : int
        The paper's FLOPs: `macs` and norms, activations and pooling; see `training.operations`.
    file_bytes : int or None
        Size of the counted model file.
    layers : tuple of Layer
        The same module by module; their sums are the totals, but for parameters that are in no
        module of this project ('released' and 'classifier').
    """

    name: str
    accounting: str
    input_shape: InputShape
    classes: int | None
    parameters: int
    binary_parameters: int
    norm_statistics: int
    binops: int
    macs: int
    flops: int
    file_bytes: int | None
    layers: tuple[Layer, ...]

    @property
    def float_parameters(self) -> int:
        """Parameters of full precision."""
        return self.parameters - self.binary_parameters

    @property
    def ops(self) -> float:
        """FLOPs + BinOps / 64, the paper's unit."""
        return self.flops + self.binops / BINARY_OPERATIONS_PER_FLOP

    @property
    def disk_bytes(self) -> float:
        """Parameters with one bit per binary one and 32 bits per other one."""
        return self.binary_parameters / 8 + self.float_parameters * 4

    @property
    def disk_half_bytes(self) -> float:
        """Parameters with one bit per binary one and 16 bits per other one."""
        return self.binary_parameters / 8 + self.float_parameters * 2

    @property
    def tensor_bytes(self) -> float:
        """Tensors of the model file: `disk_bytes` and the statistics of BatchNorm in 32 bits.

        The file itself is longer by its header: names of tensors, training record.
        """
        return self.disk_bytes + self.norm_statistics * 4

    def to_dict(self, *, layers: bool = False) -> dict[str, Any]:
        """Return all numbers, the derived ones included; on request with the layers."""
        values = asdict(self)
        if not layers:
            del values['layers']
        derived = ('float_parameters', 'ops', 'disk_bytes', 'disk_half_bytes', 'tensor_bytes')
        return {key: getattr(self, key) for key in derived} | values


def complexity_of(
    name: str,
    *,
    input_shape: InputShape,
    classes: int | None = None,
    accounting: str | None = None,
) -> Complexity:
    """Count a backbone by its name, or the network of a file.

    Parameters
    ----------
    name : str
        One of `training.models.names.BACKBONES`, a model file ``.safetensors`` or a checkpoint
        ``.pt``.
    input_shape : tuple of int
        (N, 3, H, W); H and W are multiples of 32.
    classes : int or None
        Classes of the heads in the accounting 'paper'.
    accounting : str or None
        See `Complexity`. None: 'paper' if `classes` are given, else 'deployable'.

    Raises
    ------
    ConfigError
        If there is no such backbone or accounting, or the shape does not fit.
    ModelError
        If a file cannot be read.
    """
    accounting = accounting or ('paper' if classes else 'deployable')
    _check(accounting, input_shape, classes)
    return _count(
        name, input_shape=input_shape, classes=classes if accounting == 'paper' else None
    )[accounting]


def _count(name: str, *, input_shape: InputShape, classes: int | None) -> dict[str, Complexity]:
    """Count by all accountings; 'paper' stands alone and needs the classes."""
    backbone = _open(name)
    unused = _unused_activations(backbone)
    classifier = IMAGENET_CLASSES * (backbone.feature_dim + 1)
    branches = None
    if classes is not None:
        with torch.device('meta'):
            branches = MultipleClassifierBranch(backbone.feature_dim, classes)
    layers = count_layers(GeoNetwork(backbone, branches).eval(), input_shape)
    counted = Complexity(
        name=name,
        accounting='deployable',
        input_shape=input_shape,
        classes=classes,
        parameters=sum(layer.parameters for layer in layers),
        binary_parameters=sum(layer.binary_parameters for layer in layers),
        norm_statistics=sum(layer.norm_statistics for layer in layers),
        binops=sum(layer.binops for layer in layers),
        macs=sum(layer.macs for layer in layers),
        flops=sum(layer.flops for layer in layers),
        file_bytes=Path(name).stat().st_size if name.endswith('.safetensors') else None,
        layers=tuple(layers),
    )
    released = _with_more(counted, unused, accounting='released')
    classifying = _with_more(released, classifier, accounting='classifier')
    if classes is not None:
        return {'paper': replace(classifying, accounting='paper')}
    return {c.accounting: c for c in (counted, released, classifying)}


def _with_more(complexity: Complexity, parameters: int, *, accounting: str) -> Complexity:
    return replace(
        complexity,
        accounting=accounting,
        parameters=complexity.parameters + parameters,
        file_bytes=None,
    )


def _check(accounting: str, input_shape: InputShape, classes: int | None) -> None:
    if accounting not in ACCOUNTINGS:
        raise ConfigError(f'accounting is {accounting!r}; expected one of {ACCOUNTINGS}')
    if accounting == 'paper' and (classes is None or not 1 <= classes <= 1_000_000):
        raise ConfigError(
            f"accounting 'paper' with {classes} classes; expected 1 to 1000000, the paper has 701 "
            'for University-1652 and 120 for SUES-200'
        )
    images, channels, *sides = input_shape
    fits = all(side % TOTAL_STRIDE_PX == 0 and 0 < side <= LARGEST_SIDE_PX for side in sides)
    if images < 1 or channels != 3 or len(sides) != 2 or not fits:
        raise ConfigError(
            f'input is {"x".join(map(str, input_shape))}; expected Nx3xHxW with H and W multiples '
            f'of {TOTAL_STRIDE_PX} up to {LARGEST_SIDE_PX}'
        )


def _open(name: str) -> Backbone:
    """Build the backbone of a name or file without its numbers."""
    if name.endswith('.pt'):
        return network_from_checkpoint(Path(name)).backbone.to('meta')
    if name.endswith('.safetensors'):
        channels = read_model(name).metadata.channels
        with torch.device('meta'):
            return BNext(channels)
    if name not in BACKBONES:
        raise ConfigError(
            f'{name}: no backbone and no file this can count; expected one of '
            f'{", ".join(BACKBONES)}, a .safetensors model file or a .pt checkpoint'
        )
    with torch.device('meta'):
        return make_backbone(name)


def _unused_activations(backbone: nn.Module) -> int:
    """PReLU parameters that the public BNext declares and never uses.

    One PReLU in the stem, and one in every unit without element-wise attention.
    """
    if not isinstance(backbone, BNext):
        return 0
    plain = [m for m in backbone.modules() if isinstance(m, BinaryUnit) and not m.elementwise]
    return backbone.channels[0] + sum(unit.act.weight.numel() for unit in plain)


def parse_shape(text: str) -> InputShape:
    """Read ``2x3x256x256``; ConfigError if it is no such shape."""
    parts = text.lower().split('x')
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f'--input {text}: expected NxCxHxW, such as 2x3x256x256')
    images, channels, height, width = map(int, parts)
    return images, channels, height, width


def default_input(name: str) -> str:
    """Return one image of 256 x 256, or of the size that a model file is made for."""
    if not name.endswith('.safetensors'):
        return '1x3x256x256'
    size = read_model(name).metadata.preprocessing
    return f'1x3x{size.input_height_px}x{size.input_width_px}'


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.complexity',
        description='Parameters, disk and operations of a network.',
        epilog=f'backbones: {", ".join(BACKBONES)}',
    )
    parser.add_argument('networks', nargs='+', help='backbone, .safetensors or .pt file')
    parser.add_argument(
        '--input', help="NxCxHxW (1x3x256x256; one image of a model file's own size)"
    )
    parser.add_argument(
        '--classes', type=int, default=PAPER_CLASSES, help="of the paper's heads (%(default)s)"
    )
    parser.add_argument(
        '--accounting',
        choices=(*ACCOUNTINGS, 'all'),
        help='default: all for one network, deployable for several',
    )
    parser.add_argument('--layers', action='store_true', help='layer by layer')
    parser.add_argument('--json', action='store_true', help='whole numbers, as JSON')
    options = parser.parse_args(arguments)
    several = len(options.networks) > 1
    accounting = options.accounting or ('deployable' if several else 'all')
    try:
        shape = parse_shape(options.input or default_input(options.networks[0]))
        _check('paper', shape, options.classes)
        rows = [
            row
            for name in options.networks
            for row in _rows(name, shape=shape, accounting=accounting, classes=options.classes)
        ]
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([row.to_dict(layers=options.layers) for row in rows], indent=2))
        return 0
    size = 'x'.join(map(str, shape))
    print(f'one pass over {size}; multiply-accumulates count as one; 1 MB = 1e6 bytes\n')
    print(table(rows))
    for row in rows if options.layers else ():
        print(f'\n{row.name}, {row.accounting}\n\n{layer_table(row)}')
    return 0


def _rows(name: str, *, shape: InputShape, accounting: str, classes: int) -> list[Complexity]:
    rows: dict[str, Complexity] = {}
    if accounting != 'paper':
        rows |= _count(name, input_shape=shape, classes=None)
    if accounting in ('paper', 'all'):
        rows |= _count(name, input_shape=shape, classes=classes)
    return list(rows.values()) if accounting == 'all' else [rows[accounting]]


if __name__ == '__main__':
    sys.exit(main())
