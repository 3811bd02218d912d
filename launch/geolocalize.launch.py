"""Start the node geolocalizer, configured and activated.

    ros2 launch bicrossnet_ros geolocalize.launch.py gallery:=/maps/field.gallery image:=/cam/image

The same file serves Humble, Jazzy and Kilted.
"""

# ruff: noqa: I001 (beside a folder named launch the package launch looks like one of ours)

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

PACKAGE = 'bicrossnet_ros'

# name: (default, description); an empty value leaves what the parameter file says
ARGUMENTS = {
    'gallery': ('', 'folder NAME.gallery that is searched; empty: as in params_file'),
    'model': ('', 'model file NAME.safetensors; empty: as in params_file, else the shipped one'),
    'params_file': ('', 'YAML file of parameters; empty: config/geolocalizer.yaml of the package'),
    'namespace': ('', 'namespace of the node and its topics'),
    'image': ('', 'topic of the camera image; empty: image'),
    'camera_info': ('', 'topic of the camera info; empty: camera_info'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
    'use_sim_time': ('', 'true to take the time from /clock; empty: as in params_file'),
}


def start_node(context):
    """Make the node from the arguments; what is empty is not passed, so that YAML values stay."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    config = Path(get_package_share_directory(PACKAGE)) / 'config'

    parameters = [given['params_file'] or str(config / 'geolocalizer.yaml')]
    # As text, whatever it looks like: launch would make a number of a folder named 2024.
    chosen = {
        name: ParameterValue(given[name], value_type=str)
        for name in ('gallery', 'model')
        if given[name]
    }
    if given['use_sim_time']:
        chosen['use_sim_time'] = given['use_sim_time'].lower() in ('true', '1', 'yes', 'on')
    if chosen:
        parameters.append(chosen)

    remappings = [(name, given[name]) for name in ('image', 'camera_info') if given[name]]
    if given['image']:
        # The compressed topic stands beside the raw one, as image_transport names them.
        remappings.append(('image/compressed', given['image'] + '/compressed'))

    node = LifecycleNode(
        package=PACKAGE,
        executable='geolocalizer',
        name='geolocalizer',
        namespace=given['namespace'],
        parameters=parameters,
        remappings=remappings,
        arguments=['--ros-args', '--log-level', given['log_level']],
        output='screen',
    )
    configure = EmitEvent(
        event=ChangeState(
            lifecycle_node_matcher=matches_action(node),
            transition_id=Transition.TRANSITION_CONFIGURE,
        )
    )
    activate = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=node,
            start_state='configuring',
            goal_state='inactive',
            handle_once=True,  # whoever configures it anew later decides about activating
            entities=[
                EmitEvent(
                    event=ChangeState(
                        lifecycle_node_matcher=matches_action(node),
                        transition_id=Transition.TRANSITION_ACTIVATE,
                    )
                )
            ],
        )
    )
    environment = [
        SetEnvironmentVariable(name, str(config / 'fastdds.xml'))
        for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
        if not os.environ.get(name)
    ]
    # The handler must be listening before the transition happens.
    return [*environment, activate, node, configure]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments and start the node."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(name, default_value=default, description=description)
            for name, (default, description) in ARGUMENTS.items()
        ]
        + [OpaqueFunction(function=start_node)]
    )
