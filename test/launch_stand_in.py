"""A stand-in for those few classes of `launch` and `launch_ros` that our launch file uses.

`launch` is not on PyPI, so `ros2 launch` cannot run in a plain Python environment. This module
loads the unchanged launch file and says which command line, environment and transitions the real
one would produce. It knows nothing else: any other name, argument or event raises. Where a real
`ros2` is installed, test_launch.py runs that as well.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


class Context:
    """Values of the launch arguments."""

    def __init__(self, arguments: dict[str, str]) -> None:
        self.arguments = arguments


class DeclareLaunchArgument:
    def __init__(self, name: str, *, default_value: str, description: str) -> None:
        self.name, self.default_value, self.description = name, default_value, description


class LaunchConfiguration:
    def __init__(self, variable_name: str) -> None:
        self._name = variable_name

    def perform(self, context: Context) -> str:
        return context.arguments[self._name]


class OpaqueFunction:
    def __init__(self, *, function: Any) -> None:
        self.function = function


class SetEnvironmentVariable:
    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


class LaunchDescription:
    def __init__(self, entities: list[Any]) -> None:
        self.entities = entities


class ParameterValue:
    def __init__(self, value: str, *, value_type: type) -> None:
        self.value = value_type(value)


class LifecycleNode:
    def __init__(
        self,
        *,
        name: str,
        namespace: str,
        package: str,
        executable: str,
        parameters: list[Any],
        remappings: list[tuple[str, str]],
        arguments: list[str],
        output: str,
    ) -> None:
        self.name, self.namespace = name, namespace
        self.package, self.executable = package, executable
        self.parameters, self.remappings = parameters, remappings
        self.arguments = arguments
        assert output == 'screen'

    def command(self, prefix: Path, scratch: Path) -> list[str]:
        """The command line as launch_ros makes it: dictionaries become parameter files."""
        executable = prefix / 'lib' / self.package / self.executable
        namespace = self.namespace if self.namespace.startswith('/') else f'/{self.namespace}'
        command = [str(executable), *self.arguments, '--ros-args']
        command += ['-r', f'__node:={self.name}', '-r', f'__ns:={namespace}']
        for number, given in enumerate(self.parameters):
            path = given
            if isinstance(given, dict):
                plain = {
                    key: value.value if isinstance(value, ParameterValue) else value
                    for key, value in given.items()
                }
                path = scratch / f'launch_params_{number}.yaml'
                path.write_text(yaml.safe_dump({'/**': {'ros__parameters': plain}}))
            command += ['--params-file', str(path)]
        for old, new in self.remappings:
            command += ['-r', f'{old}:={new}']
        return command


@dataclass
class ChangeState:
    lifecycle_node_matcher: Any
    transition_id: int


@dataclass
class EmitEvent:
    event: Any


@dataclass
class OnStateTransition:
    target_lifecycle_node: LifecycleNode
    start_state: str
    goal_state: str
    entities: list[Any]
    handle_once: bool = False


@dataclass
class RegisterEventHandler:
    event_handler: OnStateTransition


def matches_action(action: Any) -> Any:
    return lambda other: other is action


@dataclass
class Launched:
    """What the launch file asks for, in its order."""

    node: LifecycleNode
    environment: dict[str, str] = field(default_factory=dict)
    transitions: list[ChangeState] = field(default_factory=list)
    handlers: list[OnStateTransition] = field(default_factory=list)
    order: list[str] = field(default_factory=list)


def _module(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name)

    def unknown(wanted: str) -> Any:
        if wanted.startswith('__'):
            raise AttributeError(wanted)
        raise NotImplementedError(f'the stand-in of {name} has no {wanted}')

    module.__getattr__ = unknown  # type: ignore[method-assign]
    module.__path__ = []  # a package, so that its submodules are found in sys.modules
    vars(module).update(names)
    return module


@contextmanager
def _installed(share: Path) -> Any:
    """Put the stand-in where the launch file imports it from."""
    from lifecycle_msgs.msg import Transition

    modules = [
        _module(
            'ament_index_python.packages',
            get_package_share_directory=lambda package: str(share / package),
        ),
        _module('launch', LaunchDescription=LaunchDescription),
        _module(
            'launch.actions',
            DeclareLaunchArgument=DeclareLaunchArgument,
            EmitEvent=EmitEvent,
            OpaqueFunction=OpaqueFunction,
            RegisterEventHandler=RegisterEventHandler,
            SetEnvironmentVariable=SetEnvironmentVariable,
        ),
        _module('launch.events', matches_action=matches_action),
        _module('launch.substitutions', LaunchConfiguration=LaunchConfiguration),
        _module('launch_ros'),
        _module('launch_ros.actions', LifecycleNode=LifecycleNode),
        _module('launch_ros.event_handlers', OnStateTransition=OnStateTransition),
        _module('launch_ros.events'),
        _module('launch_ros.events.lifecycle', ChangeState=ChangeState),
        _module('launch_ros.parameter_descriptions', ParameterValue=ParameterValue),
    ]
    assert Transition.TRANSITION_CONFIGURE == 1
    before = {module.__name__: sys.modules.get(module.__name__) for module in modules}
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def describe(path: Path, share: Path) -> LaunchDescription:
    """Load the launch file and call its function."""
    with _installed(share):
        spec = importlib.util.spec_from_file_location('launch_file', path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.generate_launch_description()


def launch(path: Path, share: Path, **arguments: str) -> Launched:
    """Evaluate the launch file with these arguments, as `ros2 launch FILE name:=value` would."""
    description = describe(path, share)
    declared = [one for one in description.entities if isinstance(one, DeclareLaunchArgument)]
    values = {one.name: one.default_value for one in declared}
    unknown = set(arguments) - set(values)
    if unknown:
        raise KeyError(f'no such launch argument: {unknown}')
    context = Context({**values, **arguments})
    entities: list[Any] = []
    for one in description.entities:
        if isinstance(one, OpaqueFunction):
            entities += one.function(context)
        elif not isinstance(one, DeclareLaunchArgument):
            raise NotImplementedError(type(one).__name__)
    (node,) = (one for one in entities if isinstance(one, LifecycleNode))
    launched = Launched(node)
    for one in entities:
        launched.order.append(type(one).__name__)
        if isinstance(one, SetEnvironmentVariable):
            launched.environment[one.name] = one.value
        elif isinstance(one, EmitEvent):
            assert one.event.lifecycle_node_matcher(node)
            launched.transitions.append(one.event)
        elif isinstance(one, RegisterEventHandler):
            launched.handlers.append(one.event_handler)
        elif one is not node:
            raise NotImplementedError(type(one).__name__)
    return launched
