"""Parameters of every stage: one frozen dataclass each, validated on construction.

Default, description and range of a parameter stand in one place, here: the YAML loader and the
ROS 2 node's parameter descriptors are made from them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bicrossnet_ros.errors import ConfigError

T = TypeVar('T')


def parameter(
    default: Any, description: str, low: float | None = None, high: float | None = None
) -> Any:
    """A dataclass field with its description and, for numbers, its inclusive range."""
    return field(default=default, metadata={'description': description, 'low': low, 'high': high})


def validate(config: Any) -> None:
    """Check type, finiteness and range of every parameter of a stage.

    Raises
    ------
    ConfigError
        Naming the parameter, the value found and what was expected.
    """
    for item in dataclasses.fields(config):
        if not item.metadata:
            continue
        name = f'{type(config).__name__}.{item.name}'
        value = getattr(config, item.name)
        if isinstance(item.default, bool) != isinstance(value, bool):
            raise ConfigError(f'{name} is {value!r}; expected {type(item.default).__name__}')
        if isinstance(item.default, tuple):
            _check_tuple(name, value, item.metadata)
        elif isinstance(item.default, str):
            if not isinstance(value, str):
                raise ConfigError(f'{name} is {value!r}; expected a text')
        elif not isinstance(item.default, bool):
            _check_number(name, value, item.metadata, whole=isinstance(item.default, int))


def _check_tuple(name: str, value: Any, metadata: Any) -> None:
    if not isinstance(value, tuple):
        raise ConfigError(f'{name} is {value!r}; expected a list of numbers')
    for element in value:
        _check_number(name, element, metadata, whole=False)


def _check_number(name: str, value: Any, metadata: Any, *, whole: bool) -> None:
    low, high = metadata['low'], metadata['high']
    expected = f'expected {"a whole number" if whole else "a number"} from {low} to {high}'
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ConfigError(f'{name} is {value!r}; {expected}')
    if not math.isfinite(value):
        raise ConfigError(f'{name} is {value}; {expected}')
    if (low is not None and value < low) or (high is not None and value > high):
        raise ConfigError(f'{name} is {value}; {expected}')


@dataclass(frozen=True)
class CameraConfig:
    """How the camera sits in the aircraft, and what is assumed when the flight does not say."""

    mount_roll_deg: float = parameter(
        0.0,
        'camera roll in the aircraft; all three 0: looks straight down, image top to the nose',
        -180,
        180,
    )
    mount_pitch_deg: float = parameter(
        0.0, 'camera pitch; 0 straight down, positive looks towards the image top', -90, 90
    )
    mount_yaw_deg: float = parameter(
        0.0, 'direction of the image top, clockwise from the nose', -180, 360
    )
    assumed_hfov_deg: float = parameter(
        65.0, 'horizontal field of view taken when the intrinsics are unknown', 5, 150
    )
    assumed_agl_m: tuple[float, ...] = parameter(
        (60.0, 85.0, 120.0), 'heights above ground tried when the height is unknown', 1, 10000
    )
    unknown_headings: int = parameter(12, 'rotations tried when the heading is unknown', 1, 72)
    known_headings: int = parameter(
        5, 'rotations tried around a known heading, which magnets bend; 1: that alone', 1, 15
    )
    heading_spread_deg: float = parameter(
        40.0, 'how far the outermost of those are from the known heading', 0, 90
    )
    min_agl_m: float = parameter(5.0, 'lowest height above ground that is believed', 0.1, 1000)
    max_agl_m: float = parameter(
        3000.0, 'greatest height above ground that is believed', 10, 20000
    )
    max_tilt_deg: float = parameter(
        45.0, 'frames that look further off the vertical give no fix', 0, 75
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class RetrievalConfig:
    """How the gallery is searched."""

    candidates: int = parameter(20, 'places told of a frame, best first', 1, 500)
    patches: int = parameter(
        8,
        'pieces of the frame, of the size of a tile, that vote for a place; as many as fit are '
        'taken up to this; 1: one around its middle',
        1,
        64,
    )
    max_patches: int = parameter(
        216,
        'pieces over all guessed headings and heights, which share them evenly; at least one each',
        1,
        5000,
    )
    min_similarity: float = parameter(
        0.0, 'similarity of the best place below which there is no fix', -1, 1
    )
    min_margin: float = parameter(
        0.08,
        'without registration: lead over the best place elsewhere that a fix needs; twice what, '
        'with min_tile_similarity, left none wrong on a real flight with the shipped model; '
        'measure it for another model (docs/retrieval.md)',
        0,
        2,
    )
    min_tile_similarity: float = parameter(
        0.8,
        'without registration: similarity of the best place that a fix needs; chosen together '
        'with min_margin',
        -1,
        1,
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class RegistrationConfig:
    """How the ground patch is aligned with the map, and when the alignment is believed."""

    enabled: bool = parameter(
        True, 'align with the map; without it the best tile centre is the position'
    )
    patch_px: int = parameter(
        512,
        'longest side of the ground patch; coarser map levels are taken to keep to it',
        64,
        4096,
    )
    max_windows: int = parameter(8, 'map windows around the best tiles that are tried', 1, 100)
    fallback_windows: int = parameter(
        40, 'more windows tried, in the order of similarity, when those give nothing', 0, 1000
    )
    rivals: int = parameter(
        16,
        'places most like the found one, by the map alone, that must not fit as well (over the '
        'whole map, or within the prior)',
        0,
        1000,
    )
    max_features: int = parameter(1500, 'SIFT features per image', 100, 20000)
    ratio: float = parameter(0.8, "Lowe's ratio test", 0.3, 0.99)
    threshold_m: float = parameter(
        0.75, 'a match within this distance of the model is an inlier', 0.05, 50
    )
    min_inliers: int = parameter(12, 'inliers below which a registration is refused', 6, 5000)
    min_inlier_share: float = parameter(0.3, 'share of inliers below which it is refused', 0, 1)
    max_scale_error: float = parameter(
        0.35, 'deviation of the scale from the expected one beyond which it is refused', 0.01, 10
    )
    max_heading_error_deg: float = parameter(
        90.0, 'deviation from a known heading beyond which it is refused', 1, 180
    )
    min_lead: float = parameter(
        3.0, 'times the features of the best place elsewhere that a fix needs', 1, 100
    )
    cached_blocks: int = parameter(
        256, 'map blocks whose features are kept in memory (about 0.3 MB each)', 4, 100000
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class IntegrityConfig:
    """How large the reported covariance is."""

    map_accuracy_m: float = parameter(
        -1.0,
        '1-sigma accuracy of the map per axis, added to the covariance; '
        'negative: as the gallery says, 0: positions relative to the map',
        -1,
        1000,
    )
    inflation: float = parameter(
        3.0, 'factor on the 1-sigma that the residuals of the registration suggest', 1, 100
    )
    min_sigma_m: float = parameter(0.1, 'smallest 1-sigma per axis ever reported', 0.001, 100)
    attitude_sigma_deg: float = parameter(
        6.0, '1-sigma error of the roll and pitch that come with a frame', 0.1, 45
    )
    unknown_tilt_deg: float = parameter(
        10.0, '1-sigma of the camera off the vertical when the attitude is unknown', 0.1, 45
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class LocalizerConfig:
    """All stages of the pipeline."""

    camera: CameraConfig = field(default_factory=CameraConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    integrity: IntegrityConfig = field(default_factory=IntegrityConfig)


def load_config(path: str | Path) -> LocalizerConfig:
    """Read a YAML file whose sections are the fields of `LocalizerConfig`.

    Raises
    ------
    ConfigError
        If the file is not YAML, or has an unknown section or key or an impossible value.
    """
    import yaml

    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f'{path}: not readable as YAML: {error}') from error
    return config_from_dict(data, source=str(path))


def config_from_dict(data: Any, *, source: str = 'configuration') -> LocalizerConfig:
    """Make a `LocalizerConfig` from nested dictionaries; missing keys keep their defaults."""
    sections: dict[str, Any] = {
        item.name: item.default_factory for item in dataclasses.fields(LocalizerConfig)
    }
    check_keys(data, sections, source)
    return LocalizerConfig(
        **{
            name: section_from_dict(sections[name], data[name] or {}, f'{source}: {name}')
            for name in data
        }
    )


def section_from_dict(cls: type[T], data: Any, source: str) -> T:
    """Make one stage's dataclass from a dictionary; lists become tuples."""
    check_keys(data, {item.name: None for item in dataclasses.fields(cls)}, source)  # type: ignore[arg-type]
    return cls(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    )


def check_keys(data: Any, known: dict[str, Any], source: str) -> None:
    """Raise ConfigError unless `data` is a mapping whose keys are all in `known`."""
    if not isinstance(data, dict):
        raise ConfigError(
            f'{source}: found {type(data).__name__}; expected a mapping with keys {sorted(known)}'
        )
    unknown = sorted(str(key) for key in data if key not in known)
    if unknown:
        raise ConfigError(f'{source}: unknown key(s) {unknown}; known are {sorted(known)}')
