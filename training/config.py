"""Every choice of a training run: frozen dataclasses that check themselves.

The defaults are the paper's. `training.config_files` reads them from YAML.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, section 4.2.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from bicrossnet_ros.config import parameter, validate
from bicrossnet_ros.errors import ConfigError
from training.models.names import BACKBONES

# Heights of the drone that SUES-200 keeps apart.
HEIGHTS_M = (150, 200, 250, 300)
# At or below it a binary weight is a sign, above it soft.
LOWEST_TEMPERATURE = 1e-7


def choice(default: str, description: str, options: tuple[str, ...]) -> Any:
    """A text field that takes one of `options`."""
    return field(default=default, metadata={'description': description, 'options': options})


def _check(config: Any) -> None:
    """Check types and ranges of a section, and its choices."""
    validate(config)
    for item in dataclasses.fields(config):
        options = item.metadata.get('options')
        value = getattr(config, item.name)
        if options and value not in options:
            name = f'{type(config).__name__}.{item.name}'
            raise ConfigError(f'{name} is {value!r}; expected one of {", ".join(options)}')


@dataclass(frozen=True)
class ViewConfig:
    """How two rendered views of one place differ (source `maps`).

    Shares are probabilities, ranges are half-widths.
    """

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
        _check(self)
        if self.min_side > self.max_side:
            raise ConfigError(
                f'ViewConfig.min_side is {self.min_side}; expected at most max_side, '
                f'{self.max_side}'
            )


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of photographs (University-1652, SUES-200).

    The paper names padding, cropping and flipping; the rest is what the public release does
    besides, and is off by default.
    """

    pad_px: int = parameter(10, 'edge padding before the random crop, in input pixels', 0, 512)
    flip_share: float = parameter(0.5, 'views mirrored left to right, each on its own', 0, 1)
    paired_flip: bool = parameter(False, 'mirror both views of a place together, or neither')
    satellite_rotation_deg: float = parameter(
        0.0, 'random rotation of the satellite view; the release: 90', 0, 180
    )
    satellite_quarter_turns: bool = parameter(
        False, 'turn the satellite view by a random multiple of 90 degrees'
    )
    drone_auto_augment: bool = parameter(
        False, "AutoAugment's ImageNet policy on the drone view; the release: yes"
    )
    drone_erasing_share: float = parameter(
        0.0, 'drone views with a random rectangle erased; the release: 0.5', 0, 1
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class DataConfig:
    """What is learnt from, and how batches are drawn from it."""

    source: str = choice(
        'university1652',
        'kind of data set below the data folder',
        ('university1652', 'sues200', 'maps'),
    )
    height_m: int = parameter(0, 'SUES-200: one of 150, 200, 250, 300; 0: all pooled', 0, 300)
    holdout: int = parameter(0, 'every how many-th place is kept for validation; 0: none', 0, 1000)
    sampler: str = choice(
        'places',
        'places: each place once an epoch with a random drone image (the paper); '
        'pairs: each drone image once an epoch, no place twice in a batch',
        ('places', 'pairs'),
    )
    places_per_step: int = parameter(8, 'different places in a global batch', 2, 100_000)
    workers: int = parameter(
        0, 'processes that decode and augment; 0: in the training process', 0, 256
    )
    unreadable: str = choice(
        'skip', 'an image that cannot be decoded: skip and count it, or fail', ('skip', 'fail')
    )
    scene_px: int = parameter(256, 'maps: side to which scenes are reduced when loaded', 64, 2048)
    scene_m: float = parameter(
        0.0,
        'maps: side of the squares that georeferenced rasters are cut into; 0: every image '
        'is one scene',
        0,
        100_000,
    )
    places_per_scene: int = parameter(2, 'maps: disjoint places taken from a scene', 1, 2)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    views: ViewConfig = field(default_factory=ViewConfig)

    def __post_init__(self) -> None:
        _check(self)
        if self.height_m not in (0, *HEIGHTS_M):
            raise ConfigError(
                f'DataConfig.height_m is {self.height_m}; expected 0, 150, 200, 250 or 300'
            )
        if self.source == 'maps' and self.places_per_step % self.places_per_scene:
            raise ConfigError(
                f'DataConfig.places_per_step is {self.places_per_step}; expected a multiple of '
                f'places_per_scene, {self.places_per_scene}'
            )


@dataclass(frozen=True)
class ModelConfig:
    """The network and its training head."""

    name: str = choice('bnext_tiny', 'backbone', BACKBONES)
    input_px: int = parameter(256, 'side of the network input; a multiple of 32', 32, 1024)
    branches: bool = parameter(
        True, 'the Multiple Classifier Branch; needed by every loss on classes'
    )
    bottleneck: int = parameter(512, 'width of a branch feature', 8, 8192)
    dropout: float = parameter(0.5, 'dropout of a branch feature', 0, 0.95)
    pretrained: str = parameter(
        '', 'checkpoint or model file whose backbone is taken at the start; empty: random'
    )
    temperature_decay: float = parameter(
        1.0, 'factor an epoch on the temperature of soft binary weights; 1: always binary', 0.1, 1
    )

    def __post_init__(self) -> None:
        _check(self)
        if self.input_px % 32:
            raise ConfigError(
                f'ModelConfig.input_px is {self.input_px}; expected a multiple of 32'
            )


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of the loss; 0 leaves a term out."""

    cross_entropy: float = parameter(1.0, 'equation 5, mean of the branches, both views', 0, 1e4)
    triplet: float = parameter(1.0, 'equation 6, cross-view batch-hard', 0, 1e4)
    triplet_margin: float = parameter(0.3, 'margin of the triplet loss', 0, 10)
    logit_distillation: float = parameter(1.0, 'equation 8; needs a teacher', 0, 1e4)
    logit_reduction: str = choice(
        'element',
        'mean over samples and classes, or over samples only (equation 8 as printed)',
        ('element', 'sample'),
    )
    info_nce: float = parameter(0.0, 'symmetric InfoNCE between the embeddings', 0, 1e4)
    info_nce_temperature: float = parameter(0.07, 'its initial temperature', 0.005, 10)
    label_smoothing: float = parameter(0.0, 'label smoothing of InfoNCE', 0, 0.9)
    feature_distillation: float = parameter(
        0.0, 'cosine distance of the projected embedding to the teacher embedding', 0, 1e4
    )
    teacher: str = parameter('', 'checkpoint of the teacher; empty: none')

    def __post_init__(self) -> None:
        _check(self)
        if self.feature_distillation and not self.teacher:
            raise ConfigError(
                'LossConfig.feature_distillation needs a teacher; set losses.teacher to its '
                'checkpoint'
            )


@dataclass(frozen=True)
class UnfreezingConfig:
    """Which weights train when."""

    strategy: str = choice(
        'bi_gradual',
        'bi_gradual: head, then float weights, then all; gradual: head, then stage by stage from '
        'the last; none: all from the start',
        ('bi_gradual', 'gradual', 'none'),
    )
    head_epochs: int = parameter(20, 'n1: the head alone', 0, 100_000)
    partial_epochs: int = parameter(
        20, 'n2: float weights of the backbone too; gradual: until the stem is free', 0, 100_000
    )

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimisers and their schedules. `float` weights are all that are not latent binary ones."""

    strategy: str = choice(
        'bi_partitioned',
        'bi_partitioned: Adam (or float_optimizer) for float weights, Lion for latent binary '
        'ones; else one optimiser for all',
        ('bi_partitioned', 'adam', 'adamw', 'sgd', 'lion'),
    )
    float_optimizer: str = choice(
        'adam', 'of the float weights when bi_partitioned', ('adam', 'adamw')
    )
    learning_rate: float = parameter(6e-3, 'of the float weights, or of all', 0, 10)
    binary_learning_rate: float = parameter(1e-3, 'of the latent weights (bi_partitioned)', 0, 10)
    backbone_factor: float = parameter(
        1.0, "on the learning rate of the backbone's float weights; the teacher: 0.3", 0, 1
    )
    weight_decay: float = parameter(
        0.0, 'of float matrices; never of latent weights, norms and biases', 0, 1
    )
    momentum: float = parameter(0.9, 'Nesterov momentum of SGD', 0, 0.999)
    schedule: str = choice(
        'multistep',
        'multistep: times gamma at the milestones; cosine: down to final_factor at the end',
        ('multistep', 'cosine', 'constant'),
    )
    milestones: tuple[float, ...] = parameter(
        (80.0, 120.0, 200.0), 'epochs after which the learning rate falls', 0, 1e6
    )
    gamma: float = parameter(0.1, 'factor at a milestone', 0, 1)
    delay_binary: bool = parameter(
        True, "the latent weights' milestones count from the epoch that frees them"
    )
    warmup_epochs: float = parameter(0.0, 'epochs of linear warm-up, may be a fraction', 0, 1e5)
    final_factor: float = parameter(1e-3, 'cosine: last learning rate, share of the first', 0, 1)
    clip_norm: float = parameter(0.0, 'largest norm of the gradient; 0: not clipped', 0, 1e6)

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class RunConfig:
    """How a run is carried out."""

    epochs: int = parameter(250, 'passes over the places', 1, 1_000_000)
    seed: int = parameter(0, 'of weights, batches and augmentation', 0, 2**31 - 1)
    device: str = choice('auto', 'auto: the GPU if there is one', ('auto', 'cpu', 'cuda'))
    threads: int = parameter(0, 'CPU threads of torch; 0: as torch decides', 0, 256)
    precision: str = choice(
        'float32',
        'arithmetic of training; evaluation is float32',
        ('float32', 'bfloat16', 'float16'),
    )
    deterministic: bool = parameter(
        False, "torch's deterministic algorithms: equal runs, slower on a GPU"
    )
    sync_norms: bool = parameter(True, 'BatchNorm over all processes, when there are several')
    checkpoint_every: int = parameter(100, 'steps between checkpoints', 1, 10_000_000)
    evaluate_every: int = parameter(10, 'epochs between validations', 1, 1_000_000)
    norm_steps: int = parameter(
        0, 'batches that re-estimate BatchNorm at the end; kept if not worse; 0: not', 0, 10_000
    )
    average_decay: float = parameter(
        0.0, 'exponential moving average of the weights, per step; 0: none', 0, 0.999999
    )
    tensorboard: bool = parameter(True, 'write TensorBoard logs')

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    unfreezing: UnfreezingConfig = field(default_factory=UnfreezingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        losses = self.losses
        on_classes = losses.cross_entropy or losses.triplet
        if not self.model.branches and on_classes:
            raise ConfigError(
                'model.branches is false, but losses.cross_entropy or losses.triplet are not 0; '
                'they need the branches'
            )
        if self.unfreezing.strategy != 'none':
            frozen = self.unfreezing.head_epochs + self.unfreezing.partial_epochs
            if frozen > self.run.epochs:
                raise ConfigError(
                    f'unfreezing lasts {frozen} epochs (head_epochs + partial_epochs), but '
                    f'run.epochs is {self.run.epochs}; shorten it or set strategy: none'
                )
        self._check_temperature()

    def _check_temperature(self) -> None:
        """See that BatchNorm ends with statistics of signs, which are what evaluation takes."""
        decay, epochs = self.model.temperature_decay, self.run.epochs
        if decay == 1 or self.run.norm_steps:
            return
        last = decay ** (epochs - 1)
        if last > LOWEST_TEMPERATURE:
            needed = 1 + math.ceil(math.log(LOWEST_TEMPERATURE) / math.log(decay))
            raise ConfigError(
                f'model.temperature_decay {decay} leaves a temperature of {last:.2g} in the last '
                f'of {epochs} epochs: evaluation takes signs, but BatchNorm would have the '
                f'statistics of soft weights; set run.epochs to {needed} or more, or '
                'run.norm_steps above 0, which re-estimates them'
            )
