"""The text of config/geolocalizer.yaml, made from the configuration so that it cannot disagree.

python -m bicrossnet_ros.nodes.yaml_file > config/geolocalizer.yaml
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

from bicrossnet_ros.config import LocalizerConfig
from bicrossnet_ros.nodes.settings import NodeSettings

WIDTH = 99
HEAD = """\
# Every parameter of the node geolocalizer with its default; what is left out keeps it.
# Ranges: ros2 param describe /geolocalizer NAME. Written by bicrossnet_ros.nodes.yaml_file.
/**:
  ros__parameters:
"""


def default_yaml() -> str:
    """The parameter file with all defaults, each with its description."""
    lines = _section(NodeSettings, indent=4)
    for stage in dataclasses.fields(LocalizerConfig):
        lines += ['', f'    {stage.name}:']
        lines += _section(getattr(LocalizerConfig(), stage.name), indent=6)
    return HEAD + '\n'.join(lines) + '\n'


def _section(config: Any, *, indent: int) -> list[str]:
    space = ' ' * indent
    lines: list[str] = []
    for item in dataclasses.fields(config):
        entry = f'{space}{item.name}: {_text(item.default)}'
        comment = f'# {item.metadata["description"]}'
        if len(entry) + 2 + len(comment) <= WIDTH:
            lines.append(f'{entry}  {comment}')
            continue
        lines += textwrap.wrap(
            comment, WIDTH, initial_indent=space, subsequent_indent=f'{space}# '
        )
        lines.append(entry)
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, tuple):
        return '[' + ', '.join(str(float(element)) for element in value) + ']'
    return str(value)


if __name__ == '__main__':
    print(default_yaml(), end='')
