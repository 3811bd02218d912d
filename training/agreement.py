"""Whether the files of one network, each in its own runtime, compute what PyTorch computes.

Two checks, because rounding flips single signs that cascade through a binary network, in any
runtime, and so embeddings cannot be compared number by number:

- Unit by unit, all fed the same activations, nothing can cascade: outputs must be equal but for
  rounding. This finds every mistake in a unit, however small.
- Whole networks by cosine: the median image may hardly move, and every image must stay nearest to
  itself. This finds what lies between the units. An untrained network is spared it: without
  statistics in its norms its activations grow until rounding rules the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine import native
from bicrossnet_ros.engine.architecture import Unit, units
from bicrossnet_ros.engine.model_file import Model
from bicrossnet_ros.errors import ConfigError, ModelError
from bicrossnet_ros.preprocess import prepare
from training.data.scenes import list_scenes, read_scene
from training.embedding import embed
from training.models.bnext import BNext
from training.precision import true_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT_TOLERANCE = 1e-4
"""Largest difference of a unit's output; relative where its channel's largest value is over 1.

Measured on random weights of all sizes: below 2e-5. A wrong sign, weight or padding changes an
integer of at most some thousands by 2 or more.
"""

LEAST_MEDIAN = 0.998
"""Least cosine of the median image. Measured by rounding alone: 0.9999 or more."""

SHARE = 0.05
"""And at most this part of what parts different images, where they are hardly parted.

Measured: at most 0.015 by rounding; 0.25 by one wrong convolution at the end of the network.
"""

IMAGES = 8
UNTRAINED = 'untrained'  # the recipe of a network that was only initialised

# One unit of a model on float32 (N, C, H, W).
RunUnit = Callable[[Model, Unit, 'NDArray[np.float32]'], 'NDArray[np.float32]']


@dataclass(frozen=True)
class Agreement:
    """How a runtime's embeddings compare with PyTorch's.

    Attributes
    ----------
    runtime : str
        What ran the network.
    median, least : float
        Cosine between the two embeddings of an image, over the images.
    needed : float
        What `median` must reach.
    confused : int
        Images whose nearest neighbour among PyTorch's embeddings is another one.
    """

    runtime: str
    median: float
    least: float
    needed: float
    confused: int

    def __str__(self) -> str:
        return (
            f'{self.runtime}: median cosine with PyTorch {self.median:.6f} (needed: '
            f'{self.needed:.6f}), least {self.least:.6f}, {self.confused} images confused'
        )


def check_files(
    model: Model, network: BNext, paths: list[Path], images: NDArray[np.uint8]
) -> list[str]:
    """Check model files against the network that they were made from.

    Parameters
    ----------
    model : Model
        Their common content.
    network : BNext
        The network in PyTorch.
    paths : list of Path
        ``.safetensors``, ``.onnx``, ``.tflite``.
    images : ndarray of uint8, shape (N, H, W, 3)
        At least two, all different.

    Returns
    -------
    list of str
        What was found, for people.

    Raises
    ------
    ModelError
        If one does not agree, with the numbers.
    """
    preprocessing = model.metadata.preprocessing
    runners = dict(_unit_runner(path.suffix) for path in paths)
    report = check_units(model, network, prepare(images[:1], preprocessing), runners)
    if model.metadata.training.get('recipe') == UNTRAINED:
        return [*report, 'untrained, so rounding rules its embeddings: they were not compared']
    expected = embed(network, images, preprocessing)
    for path in paths:
        encoder = open_encoder(path)
        found = compare(encoder.runtime, encoder.encode(images), expected)
        if found.median < found.needed or found.confused:
            raise ModelError(
                f'{path.suffix} does not agree with the network it was made from: {found}; '
                'nothing was written: please report it with the checkpoint'
            )
        report.append(f'{path.suffix} in {found}')
    return report


def compare(runtime: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> Agreement:
    """Compare unit rows (N, D) of a runtime with those of PyTorch."""
    cosines = found @ expected.T
    own = np.diagonal(cosines)
    others = (expected @ expected.T)[~np.eye(len(expected), dtype=bool)]
    return Agreement(
        runtime=runtime,
        median=float(np.median(own)),
        least=float(own.min()),
        needed=max(LEAST_MEDIAN, 1 - SHARE * (1 - float(np.median(others)))),
        confused=int((cosines.argmax(axis=1) != np.arange(len(own))).sum()),
    )


def check_units(
    model: Model,
    network: BNext,
    inputs: NDArray[np.float32],
    runners: Mapping[str, RunUnit],
) -> list[str]:
    """Feed every unit of a model what it gets in PyTorch, and compare what it gives.

    Parameters
    ----------
    inputs : ndarray of float32, shape (N, 3, H, W)
        Prepared images.
    runners : mapping of str to callable
        By name: the ways to run one unit.

    Returns
    -------
    list of str
        The worst difference of each, for people.

    Raises
    ------
    ModelError
        At the first unit that differs by more than `UNIT_TOLERANCE`.
    """
    worst = dict.fromkeys(runners, 0.0)
    for unit, x, expected in _activations(network, inputs):
        scale = np.abs(expected).max(axis=(0, 2, 3), keepdims=True).clip(min=1)
        for name, run in runners.items():
            difference = float((np.abs(run(model, unit, x) - expected) / scale).max())
            if not difference <= UNIT_TOLERANCE:
                raise ModelError(
                    f'unit {unit.prefix} in {name} differs from PyTorch by {difference:.2e}, '
                    f'allowed are {UNIT_TOLERANCE:.0e}; nothing was written: please report it '
                    'with the checkpoint'
                )
            worst[name] = max(worst[name], difference)
    return [f'{name}: every unit within {value:.1e} of PyTorch' for name, value in worst.items()]


def structured_images(count: int, *, size_px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Make different images (count, size_px, size_px, 3) with structure of all sizes.

    Sums of random colour fields of 2, 4, 8, ... cells, weaker the finer: about the spectrum of
    the ground from above. On plain noise all images are alike to a network.
    """
    rng = np.random.default_rng(seed)
    images = np.zeros((count, size_px, size_px, 3), np.float32)
    for image in images:
        cells, strength = 2, 70.0
        while cells <= size_px:
            field = rng.standard_normal((cells, cells, 3), np.float32) * np.float32(strength)
            image += cv2.resize(field, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
            cells, strength = 2 * cells, strength * 0.7
    return np.clip(images + 128, 0, 255).astype(np.uint8)


def images_below(folder: Path, *, size_px: int) -> NDArray[np.uint8]:
    """Read `IMAGES` images spread evenly over those below a folder, (N, size_px, size_px, 3).

    Raises
    ------
    ConfigError
        If there are not two.
    ImageError
        If one cannot be read.
    """
    paths = list_scenes(folder)
    if len(paths) < 2:
        raise ConfigError(f'{folder}: one image; expected two or more, which differ')
    chosen = paths[:: max(1, len(paths) // IMAGES)][:IMAGES]
    return np.stack([read_scene(path, scene_px=size_px) for path in chosen])


@torch.no_grad()
@true_float32()
def _activations(
    network: BNext, inputs: NDArray[np.float32]
) -> list[tuple[Unit, NDArray[np.float32], NDArray[np.float32]]]:
    """Return every unit with an input and its output.

    The input is the unit's own, brought down to a root mean square of 1: an untrained network's
    grow so large that its gates are ill-conditioned.
    """
    seen: dict[str, torch.Tensor] = {}
    found = units(network.channels)
    hooks = [
        network.get_submodule(unit.prefix).register_forward_pre_hook(
            lambda _, x, name=unit.prefix: seen.update({name: x[0]})
        )
        for unit in found
    ]
    try:
        network(torch.from_numpy(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    pairs = []
    for unit in found:
        x = seen[unit.prefix]
        x = x / x.double().square().mean().sqrt().clamp(min=1).float()
        pairs.append((unit, x.numpy(), network.get_submodule(unit.prefix)(x).numpy()))
    return pairs


def _unit_runner(suffix: str) -> tuple[str, RunUnit]:
    """Return what runs single units as the file of a suffix is run here, and its name."""
    if suffix == '.tflite':
        from training.lce import run_unit_lce

        return 'Larq Compute Engine', run_unit_lce
    if suffix == '.safetensors':
        try:
            native.default_backend()
        except native.EngineUnavailable:
            return 'ONNX Runtime', _run_onnx
        return 'the native engine', _run_native
    return 'ONNX Runtime', _run_onnx


def _run_native(model: Model, unit: Unit, x: NDArray[np.float32]) -> NDArray[np.float32]:
    maps = x.transpose(0, 2, 3, 1)
    outputs = [native.run_unit(model, unit, np.ascontiguousarray(image)) for image in maps]
    return np.stack(outputs).transpose(0, 3, 1, 2)


def _run_onnx(model: Model, unit: Unit, x: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    from bicrossnet_ros.engine.onnx_graph import INPUT, build_unit_onnx

    session = onnxruntime.InferenceSession(
        build_unit_onnx(model, unit).SerializeToString(), providers=['CPUExecutionProvider']
    )
    return np.asarray(session.run(None, {INPUT: x})[0])
