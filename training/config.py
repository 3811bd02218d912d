"""Every choice of a training run: frozen dataclasses, loaded from YAML, unknown keys refused."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from bicrossnet_ros.config import check_keys, parameter, section_from_dict, validate
from bicrossnet_ros.errors import ConfigError
from training.models import CHANNELS

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ViewConfig:
    """How two views of one place differ. Shares are probabilities, ranges are half-widths."""

    min_side: float = parameter(0.35, 'smallest side of a place, share of the scene', 0.1, 1)
    max_side: float = parameter(0.5, 'largest side of a place, share of the scene', 0.1, 1)
    heading_error_deg: float = parameter(20.0, 'heading of the query against the tile', 0, 180)
    scale_ratio: float = parameter(1.4, 'largest ratio of the scales of query and tile', 1, 4)
    offset: float = parameter(0.25, 'offset of the centres per axis, share of the side', 0, 1)
    tilt: float = parameter(0.12, 'perspective terms over the unit patch', 0, 0.9)
    illumination: float = parameter(0.25, 'brightness ramp across the patch', 0, 1)
    illumination_share: float = parameter(0.4, 'views with such a ramp', 0, 1)
    brightness: float = parameter(0.15, 'shift, of full scale', 0, 1)
    contrast: float = parameter(0.4, 'natural logarithm of the gain', 0, 2)
    gamma: float = parameter(0.4, 'natural logarithm of the exponent', 0, 2)
    gray_share: float = parameter(0.15, 'views turned gray', 0, 1)
    permute_share: float = parameter(0.2, 'views with permuted channels', 0, 1)
    mix_share: float = parameter(0.25, 'views whose channels are random mixtures (NIR-like)', 0, 1)
    blur_share: float = parameter(0.3, 'views that are blurred', 0, 1)
    blur_px: float = parameter(1.2, 'largest sigma of the blur', 0, 10)
    noise_share: float = parameter(0.3, 'views with sensor noise', 0, 1)
    noise: float = parameter(0.04, 'largest sigma of the noise, of full scale', 0, 1)
    jpeg_share: float = parameter(0.2, 'views compressed by JPEG', 0, 1)
    jpeg_quality: int = parameter(30, 'lowest JPEG quality', 1, 95)
    missing_share: float = parameter(0.15, 'views with a corner missing', 0, 1)
    missing: float = parameter(0.3, 'largest part of a side that is missing', 0, 0.9)

    def __post_init__(self) -> None:
        validate(self)
        if self.min_side > self.max_side:
            raise ConfigError(
                f'ViewConfig.min_side is {self.min_side}; expected at most max_side, '
                f'{self.max_side}'
            )


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model: str = parameter('nano', 'size of the network')
    input_px: int = parameter(96, 'side of the network input; a multiple of 32', 32, 1024)
    scene_px: int = parameter(256, 'side to which the scenes are reduced when loaded', 64, 2048)
    holdout: int = parameter(8, 'every how many-th scene is for validation', 2, 1000)
    steps: int = parameter(1500, 'optimiser steps', 1, 10_000_000)
    scenes_per_step: int = parameter(40, 'different scenes in a step', 1, 10000)
    places_per_scene: int = parameter(2, 'disjoint places taken from a scene', 1, 2)
    learning_rate: float = parameter(1e-3, 'peak learning rate', 0, 1)
    final_learning_rate: float = parameter(1e-6, 'learning rate at the end', 0, 1)
    warmup_steps: int = parameter(60, 'steps of linear warm-up', 0, 1_000_000)
    weight_decay: float = parameter(1e-2, 'of the float matrices alone', 0, 1)
    clip_norm: float = parameter(5.0, 'largest norm of the gradient', 0, 1000)
    temperature: float = parameter(0.07, 'initial temperature of the loss', 0.005, 10)
    seed: int = parameter(0, 'of weights, views and batches', 0, 2**31 - 1)
    threads: int = parameter(2, 'CPU threads', 1, 256)
    bfloat16: bool = parameter(True, 'bfloat16 arithmetic in training (never in evaluation)')
    evaluate_every: int = parameter(150, 'steps between validations', 1, 10_000_000)
    checkpoint_every: int = parameter(25, 'steps between checkpoints', 1, 10_000_000)
    norm_steps: int = parameter(
        30, 'batches for re-estimating BatchNorm at the end; 0: not', 0, 10000
    )
    views: ViewConfig = field(default_factory=ViewConfig)

    def __post_init__(self) -> None:
        validate(self)
        if self.model not in CHANNELS:
            raise ConfigError(f'model is {self.model!r}; expected one of {", ".join(CHANNELS)}')
        if self.input_px % 32:
            raise ConfigError(f'input_px is {self.input_px}; expected a multiple of 32')


def config_from_dict(data: Any, *, source: str) -> TrainConfig:
    """Make a `TrainConfig` from nested dictionaries; missing keys keep their defaults.

    Raises
    ------
    ConfigError
        On an unknown key or an impossible value.
    """
    check_keys(data, {item.name: None for item in dataclasses.fields(TrainConfig)}, source)
    values = dict(data)
    values['views'] = section_from_dict(ViewConfig, data.get('views') or {}, f'{source}: views')
    return TrainConfig(**values)


def load_config(path: Path) -> TrainConfig:
    """Read a `TrainConfig` from a YAML file; see `config_from_dict`."""
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f'{path}: not readable as YAML: {error}') from error
    return config_from_dict(data, source=str(path))
