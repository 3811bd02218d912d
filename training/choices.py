"""Configuration sections that check themselves: fields with options, and the check."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

from bicrossnet_ros.config import validate
from bicrossnet_ros.errors import ConfigError


def choice(default: str, description: str, options: tuple[str, ...]) -> Any:
    """A text field that takes one of `options`."""
    return field(default=default, metadata={'description': description, 'options': options})


def check(config: Any) -> None:
    """Check types and ranges of a section, and its choices.

    Raises
    ------
    ConfigError
        Naming the field, the value found and what was expected.
    """
    validate(config)
    for item in dataclasses.fields(config):
        options = item.metadata.get('options')
        value = getattr(config, item.name)
        if options and value not in options:
            name = f'{type(config).__name__}.{item.name}'
            raise ConfigError(f'{name} is {value!r}; expected one of {", ".join(options)}')
