"""Configurations as people write them: YAML files, and changes on the command line.

Unknown keys are refused. A file may name another as its ``base`` and state only what differs.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from bicrossnet_ros.config import check_keys, section_from_dict
from bicrossnet_ros.errors import ConfigError
from training.config import AugmentConfig, TrainConfig, ViewConfig


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those that people write: 1e-3 is one (YAML 1.1 wants 1.0e-3)."""


_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
    list('-+.0123456789'),
)

NESTED = {'augment': AugmentConfig, 'views': ViewConfig}


def config_from_dict(data: Any, *, source: str) -> TrainConfig:
    """Make a `TrainConfig` from nested dictionaries; missing keys keep their defaults.

    Raises
    ------
    ConfigError
        On an unknown key or an impossible value.
    """
    sections: dict[str, Any] = {
        item.name: item.default_factory for item in dataclasses.fields(TrainConfig)
    }
    check_keys(data, sections, source)
    made = {}
    for name, values in data.items():
        values = dict(values) if isinstance(values, dict) else values or {}
        if name == 'data':
            for key, kind in NESTED.items():
                if key in values:
                    nested = f'{source}: {name}.{key}'
                    values[key] = section_from_dict(kind, values[key] or {}, nested)
        made[name] = section_from_dict(sections[name], values, f'{source}: {name}')
    return TrainConfig(**made)


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return what `config_from_dict` takes, ready for YAML and JSON (tuples become lists)."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def load_config(path: Path) -> TrainConfig:
    """Read a `TrainConfig` from a YAML file and its bases; see `config_from_dict`."""
    return config_from_dict(_read_with_base(path, seen=()), source=str(path))


def with_changes(config: TrainConfig, changes: list[str]) -> TrainConfig:
    """Apply changes such as ``run.epochs=3`` or ``data.views.tilt_deg=2`` to a configuration."""
    data = config_to_dict(config)
    for change in changes:
        key, separator, text = change.partition('=')
        if not separator:
            raise ConfigError(f'--set {change}: expected SECTION.KEY=VALUE')
        *path, last = key.split('.')
        inner: Any = data
        for part in path:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise ConfigError(f'--set {change}: there is no {key} in the configuration')
        # YAML takes no text for null; here it is the empty text, as of a path that is not given.
        inner[last] = _value(change, text) if text else ''
    return config_from_dict(data, source='--set')


def _value(change: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f'--set {change}: the value is not readable as YAML') from error


def _read_with_base(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f'{path}: names itself as its base')
    try:
        data = yaml.load(path.read_text(encoding='utf-8'), _Loader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(f'{path}: not readable as YAML: {reason}') from error
    if not isinstance(data, dict) or 'base' not in data:
        return data
    source = path.parent / str(data.pop('base'))
    base = _read_with_base(source, seen=(*seen, path))
    if not isinstance(base, dict):
        raise ConfigError(f'{source}: found {type(base).__name__}; expected a mapping')
    return _merge(base, data)


def _merge(base: Any, change: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    merged = dict(base)
    for key, value in change.items():
        merged[key] = _merge(base[key], value) if key in base else value
    return merged
