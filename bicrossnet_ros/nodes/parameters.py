"""ROS 2 parameters made from the configuration dataclasses, and back.

Stages become dotted names (`registration.min_inliers`), the node's own settings plain ones. Type,
default, description and range stand in the dataclasses alone.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from bicrossnet_ros.config import LocalizerConfig, config_from_dict, section_from_dict
from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.nodes.settings import NodeSettings

_UNBOUNDED = 1e18


@dataclass(frozen=True)
class Declared:
    """One parameter: its ROS name, where it goes, and the dataclass field that describes it."""

    name: str
    section: str
    field: dataclasses.Field[Any]

    @property
    def default(self) -> Any:
        """Default value in the form that ROS stores."""
        value = self.field.default
        return list(value) if isinstance(value, tuple) else value


def all_parameters() -> Iterator[Declared]:
    """Every parameter of the node, its own settings first."""
    for item in dataclasses.fields(NodeSettings):
        yield Declared(item.name, '', item)
    for stage in dataclasses.fields(LocalizerConfig):
        for item in dataclasses.fields(getattr(LocalizerConfig(), stage.name)):
            yield Declared(f'{stage.name}.{item.name}', stage.name, item)


def describe(declared: Declared) -> ParameterDescriptor:
    """ROS descriptor with description, range and, for words, the choices."""
    metadata = declared.field.metadata
    descriptor = ParameterDescriptor(description=metadata['description'])
    low, high = metadata['low'], metadata['high']
    value = declared.field.default
    if metadata.get('choices'):
        descriptor.additional_constraints = f'one of {list(metadata["choices"])}'
    elif isinstance(value, tuple):
        descriptor.additional_constraints = f'each from {low} to {high}'
    elif isinstance(value, bool | str) or (low is None and high is None):
        pass
    elif isinstance(value, int):
        descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    else:
        descriptor.floating_point_range = [
            FloatingPointRange(
                from_value=float(-_UNBOUNDED if low is None else low),
                to_value=float(_UNBOUNDED if high is None else high),
                step=0.0,
            )
        ]
    return descriptor


def refusal(parameters: Iterable[Parameter], *, is_configured: bool) -> str:
    """Why these values cannot be set now; empty if they can. Ranges are rclpy's business."""
    own = {declared.name: declared for declared in all_parameters()}
    for parameter in parameters:
        declared = own.get(parameter.name)
        if declared is None:
            continue
        if is_configured and parameter.name != 'gallery':
            return (
                f'{parameter.name} is read when the node is configured: '
                'deactivate and clean up first'
            )
        choices = declared.field.metadata.get('choices')
        if choices and parameter.value not in choices:
            return f'{parameter.name} is {parameter.value!r}; expected one of {list(choices)}'
    return ''


class NodeParameters:
    """Declares the parameters of a node and reads them back as configuration.

    A value that cannot be used does not stop the node from starting: it is kept as a problem
    that `read` reports, so that configuring fails with a message and the node stays alive.

    Parameters
    ----------
    node : Node
        The node on which to declare.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._problems: dict[str, str] = {}
        # rclpy takes overrides for parameters that nobody declares without a word; a misspelt
        # name would fly with a default. They are only to be seen in this attribute.
        overrides: dict[str, Parameter] = dict(getattr(node, '_parameter_overrides', {}))
        for declared in all_parameters():
            self._declare(declared, overrides.pop(declared.name, None))
        self._find_unknown(overrides)

    def _declare(self, declared: Declared, override: Parameter | None) -> None:
        descriptor = describe(declared)
        value = declared.default if override is None else _widened(override, declared.default)
        try:
            if type(value) is not type(declared.default):
                raise ConfigError(
                    f'parameter {declared.name} is {value!r}; expected '
                    f'{_kind(declared.default)} ({declared.field.metadata["description"]})'
                )
            self._node.declare_parameter(declared.name, value, descriptor, ignore_override=True)
        except (
            ConfigError,
            InvalidParameterTypeException,
            InvalidParameterValueException,
        ) as error:
            self._problems[declared.name] = str(error)
            self._node.declare_parameter(
                declared.name, declared.default, descriptor, ignore_override=True
            )

    def _find_unknown(self, overrides: dict[str, Parameter]) -> None:
        known = sorted(declared.name for declared in all_parameters())
        for name in sorted(overrides):
            if self._node.has_parameter(name) or name.startswith('qos_overrides.'):
                continue
            near = [item for item in known if item.rpartition('.')[2] == name.rpartition('.')[2]]
            near += difflib.get_close_matches(name, known, n=1)
            hint = f'did you mean {near[0]}?' if near else 'see config/geolocalizer.yaml'
            self._problems[name] = f'parameter {name} is unknown; {hint}'

    def forget_problem(self, name: str) -> None:
        """A parameter was set anew: what was wrong with its first value no longer matters."""
        self._problems.pop(name, None)

    def read(self) -> tuple[NodeSettings, LocalizerConfig]:
        """The present values as configuration.

        Raises
        ------
        ConfigError
            If any value is impossible or any name unknown, with all that is wrong.
        """
        if self._problems:
            raise ConfigError('; '.join(self._problems.values()))
        own: dict[str, Any] = {}
        stages: dict[str, dict[str, Any]] = {}
        for declared in all_parameters():
            value = self._node.get_parameter(declared.name).value
            section = stages.setdefault(declared.section, {}) if declared.section else own
            section[declared.field.name] = (
                list(value) if isinstance(declared.default, list) else value
            )
        settings = section_from_dict(NodeSettings, own, 'parameters')
        return settings, config_from_dict(stages, source='parameters')


def _widened(override: Parameter, default: Any) -> Any:
    """The override's value; whole numbers become real where a real number is expected."""
    value = override.value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, list):
        if type(value) in (int, float):
            return [float(value)]
        if isinstance(value, str | bytes) or not hasattr(value, '__iter__'):
            return value
        elements = list(value)
        if all(type(element) in (int, float) for element in elements):
            return [float(element) for element in elements]
        return tuple(elements)
    return value


def _kind(default: Any) -> str:
    names = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a text'}
    return names.get(type(default), 'a list of numbers')
