"""Load a backbone's weights from a file: own checkpoints and models, and published releases."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bicrossnet_ros.engine.bits import unpack_weights
from bicrossnet_ros.engine.model_file import METADATA_KEY, read_model
from bicrossnet_ros.errors import ModelError
from training.models.backbone import Backbone
from training.models.releases import NESTED, not_needed, our_name, strip_wrappers

# A model file holds signs; training wants latent weights. At +-1 no weight would flip for a
# thousand of the paper's steps (Lion moves each by its rate, 1e-3); at a value as small as the
# initial spread, 1e-3, the first gradient would undo what was learnt. Ten such steps lie between.
LATENT_FROM_BITS = 0.01
LISTED = 12

# How a file of torch starts: a ZIP archive, or a pickle as before torch 1.6.
TORCH_STARTS = (b'PK\x03\x04', b'\x80')
# Files may lack these, and nobody misses them: they count the batches that a norm has seen.
_COUNTERS = 'num_batches_tracked'

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What of a file went into a backbone.

    Attributes
    ----------
    source : str
        The file.
    loaded : tuple of str
        Tensors of the backbone that fit; here and in `missing` without the batch counters of
        norms.
    missing : tuple of str
        Tensors of the backbone that the file lacks.
    unexpected : tuple of str
        Tensors of the file that the backbone does not know.
    mismatched : dict
        Tensors in both whose shapes differ: name to (shape in the file, shape expected).
    unused : tuple of str
        Tensors of the file that a backbone does not need: classifiers, training heads, parameters
        that the release declares and never uses.
    notes : tuple of str
        What else a user should know.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if every tensor of the backbone fits and none in the file is unknown."""
        return not self.missing and not self.mismatched and not self.unexpected

    def __str__(self) -> str:
        expected = len(self.loaded) + len(self.missing) + len(self.mismatched)
        lines = [f'{self.source}: {len(self.loaded)} of {expected} tensors fit']
        lines += _listed('missing in the file', self.missing)
        lines += _listed(
            'of another shape',
            [f'{n}: {f} in the file, {e} expected' for n, (f, e) in self.mismatched.items()],
        )
        lines += _listed('unknown, left out', self.unexpected)
        lines += _listed('not needed, left out', self.unused)
        return '\n'.join([*lines, *(f'  {note}' for note in self.notes)])


def _listed(title: str, names: tuple[str, ...] | list[str]) -> list[str]:
    if not names:
        return []
    shown = [f'    {name}' for name in names[:LISTED]]
    if len(names) > LISTED:
        shown.append(f'    and {len(names) - LISTED} more')
    return [f'  {title} ({len(names)}):', *shown]


def load_backbone(backbone: Backbone, path: Path) -> LoadReport:
    """Load weights into a backbone; nothing is changed if that fails.

    Understood are checkpoints and model files of this project, the releases of BNext
    (hpi-xnor/BNext), of ConvNeXt (the authors' and timm's), of ReCU and of EfficientNet-Lite0, as
    torch files or safetensors, nested, wrapped for data-parallel training, or inside the network
    of the paper's release.

    Parameters
    ----------
    backbone : Backbone
        Its tensors are overwritten in place.
    path : Path
        A torch file (any suffix) or a .safetensors file.

    Returns
    -------
    LoadReport
        What fitted, what was left out, and what else to know.

    Raises
    ------
    ModelError
        If the file cannot be read, holds impossible values or a name twice, or is of another
        architecture: a parameter or a norm's statistic of the backbone is missing or of another
        shape, or one of the backbone's parts has more tensors in the file.

    Notes
    -----
    Of a model file only the signs of binary weights are left. They come back as latents of
    +-0.01, so that every one of them may still turn, soon: Lion moves a latent by its learning
    rate at each step, whatever the gradient's size, and at the paper's 1e-3 ten steps of one
    direction turn any sign. Fine-tune such a backbone at a rate of 1e-4 or less (a hundred
    steps), or with a warm-up, or frozen; with the paper's rate it is an initial value and no
    more. Where the checkpoint is at hand, load that: it has the latents as they were trained.
    """
    path = Path(path)
    found, notes = _read(path)
    fitting, report = _match(backbone, found, path)
    parts = {name for name, _ in backbone.named_children()}
    foreign = [
        raw
        for raw in report.unexpected
        if our_name(backbone, strip_wrappers(raw)).split('.')[0] in parts
    ]
    if report.missing or report.mismatched or foreign:
        raise _another_network(report, backbone, foreign=len(foreign))
    _check_values(fitting, report.source)
    backbone.load_state_dict(fitting, strict=False)
    return replace(report, notes=(*notes, *_heat(found)))


def _match(
    backbone: Backbone, found: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], LoadReport]:
    """Sort the tensors of a file; returns those that fit, under the backbone's names."""
    own = backbone.state_dict()
    fitting: dict[str, Tensor] = {}
    mismatched: dict[str, tuple[Shape, Shape]] = {}
    unexpected, unused = [], []
    origin: dict[str, str] = {}
    for raw, value in found.items():
        stripped = strip_wrappers(raw)
        name = our_name(backbone, stripped)
        if not_needed(backbone, stripped, own):
            unused.append(raw)
        elif name not in own:
            unexpected.append(raw)
        elif (first := origin.setdefault(name, raw)) != raw:
            raise ModelError(
                f'{path}: {name} stands in it twice, as {first} and as {raw}; keep one of them'
            )
        elif (fitted := _fit(value, own[name])) is None:
            mismatched[name] = (tuple(value.shape), tuple(own[name].shape))
        else:
            fitting[name] = fitted
    return fitting, LoadReport(
        str(path),
        _without_counters(fitting),
        _without_counters(name for name in own if name not in origin),
        tuple(unexpected),
        mismatched,
        tuple(unused),
    )


def _without_counters(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.endswith(_COUNTERS))


def _another_network(report: LoadReport, backbone: Backbone, *, foreign: int) -> ModelError:
    size = sum(parameter.numel() for parameter in backbone.parameters())
    return ModelError(
        f'{report.source}: its weights are not those of a {type(backbone).__name__} with '
        f'{size:,} parameters: of the tensors {len(report.missing)} are missing, '
        f'{len(report.mismatched)} of another shape and {foreign} too many; nothing was loaded; '
        f'give a checkpoint of the same architecture and size\n{report}'
    )


def _check_values(tensors: Mapping[str, Tensor], source: str) -> None:
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ModelError(f'{source}: {name} holds values that are not finite')
        if name.endswith('running_var') and (value < 0).any():
            raise ModelError(
                f'{source}: {name} holds {value.min():.3g}; a variance is 0 or more: the file is '
                'damaged, take it from its origin again'
            )


def _fit(value: Tensor, own: Tensor) -> Tensor | None:
    """Return the value in the shape of our own tensor, or None.

    Axes of length one may differ: releases hold 1x1 convolutions where we hold linear layers.
    """
    if [n for n in value.shape if n != 1] != [n for n in own.shape if n != 1]:
        return None
    return value.reshape(own.shape).to(own.dtype)


def _heat(found: Mapping[str, Tensor]) -> list[str]:
    """Note a BNext release whose weights were still soft."""
    heats = [v.item() for n, v in found.items() if re.search(r'binary_conv\.temperature$', n)]
    if not heats or max(heats) < 1e-7:
        return []
    return [
        f'its binary weights were still soft (temperature {max(heats):.3g}); here they are signs, '
        'so it computes something else until it is trained on'
    ]


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file by name, and notes about it."""
    if not path.is_file():
        raise ModelError(f'{path}: no such file; give the path of a checkpoint or model file')
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    try:
        with path.open('rb') as file:
            start = file.read(8)
    except OSError as error:
        raise ModelError(f'{path}: cannot be read ({error.strerror or error})') from error
    if not start.startswith(TORCH_STARTS):
        what = f'starts with {start!r}' if start else 'is empty'
        raise ModelError(
            f'{path}: not a checkpoint: it {what}; expected a file of torch.save, or of '
            'safetensors with the suffix .safetensors'
        )
    try:
        # Published checkpoints often hold the options of their training beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        raise ModelError(
            f'{path}: not a checkpoint that can be read without executing code in it '
            f'({_first_line(error)}); save its state_dict alone and give that'
        ) from error
    return _tensors(content, source=str(path)), []


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework='pt') as file:
            if METADATA_KEY not in (file.metadata() or {}):
                return {name: file.get_tensor(name) for name in file.keys()}, []  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f'{path}: not a readable safetensors file ({error})') from error
    tensors: dict[str, Tensor] = {}
    for name, value in read_model(path).network_tensors.items():
        if name.endswith('.bits'):
            signs = torch.from_numpy(unpack_weights(value))
            tensors[name.removesuffix('bits') + 'weight'] = signs * LATENT_FROM_BITS
        else:
            tensors[name] = torch.from_numpy(value.copy())
    return tensors, [f'its bits became latent weights of +-{LATENT_FROM_BITS}']


def _tensors(content: Any, *, source: str) -> dict[str, Tensor]:
    """Find the dictionary of tensors in what a torch file holds."""
    while isinstance(content, dict):
        inner = next((content[k] for k in NESTED if isinstance(content.get(k), dict)), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, dict):
        tensors = {n: v for n, v in content.items() if isinstance(v, Tensor)}
        nameless = next((n for n in tensors if not isinstance(n, str)), None)
        if nameless is not None:
            raise ModelError(
                f'{source}: one of its tensors has the key {nameless!r}; expected names, as in a '
                'state_dict'
            )
        if tensors:
            return tensors
    raise ModelError(
        f'{source}: no dictionary of weights in it; expected a state_dict, alone or under one of '
        f'{", ".join(NESTED)}'
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
