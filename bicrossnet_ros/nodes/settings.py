"""What the node itself can be told, beside the parameters of the stages. No ROS in here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from bicrossnet_ros.config import parameter, validate
from bicrossnet_ros.errors import ConfigError

UNKNOWN_GROUND_M = -9999.0
"""Value of `ground_ellipsoid_m` that stands for: take the gallery's."""


def choice(default: str, description: str, choices: tuple[str, ...]) -> Any:
    """A dataclass field that takes one of a few words."""
    text = f'{description}: {" | ".join(choices)}'
    return field(
        default=default,
        metadata={'description': text, 'low': None, 'high': None, 'choices': choices},
    )


@dataclass(frozen=True)
class NodeSettings:
    """Parameters of the node `geolocalizer` that belong to no stage of the pipeline."""

    gallery: str = parameter('', 'folder NAME.gallery that is searched (required)')
    model: str = parameter('', 'model file NAME.safetensors; empty: the one that is shipped')
    encoder_threads: int = parameter(
        1, 'threads of the network; more pay off only for a large one and on idle cores', 1, 64
    )
    autostart: bool = parameter(
        False, 'configure and activate by itself, for use without a launch file'
    )
    frame_id: str = parameter('', 'frame of the fix, the camera; empty: that of the image message')
    map_frame_id: str = parameter(
        'map', 'frame of pose and candidates: east, north, up at the origin of the gallery'
    )
    ground_ellipsoid_m: float = parameter(
        UNKNOWN_GROUND_M,
        'height of the ground above the WGS84 ellipsoid, for the altitude of the fix; '
        '-9999: as the gallery says, where it does',
        UNKNOWN_GROUND_M,
        9000,
    )
    altitude_sigma_m: float = parameter(
        10.0, '1-sigma of the altitude of the fix, where there is one', 0.1, 1000
    )
    max_age_s: float = parameter(
        1.0,
        'a frame older than this when its turn comes gives no fix; 0: any age',
        0,
        3600,
    )
    max_future_s: float = parameter(
        0.2,
        'a frame stamped further ahead of the clock than this gives no fix; '
        'not looked at with max_age_s 0',
        0,
        60,
    )

    image_transport: str = choice('raw', 'image topic', ('raw', 'compressed'))
    image_reliability: str = choice(
        'best_effort',
        'reliable asks the camera to send lost frames again (its publisher must offer that)',
        ('best_effort', 'reliable'),
    )
    attitude_source: str = choice(
        'auto',
        'orientation of the aircraft; auto: imu where it is there, else unknown',
        ('auto', 'imu', 'none'),
    )
    imu_heading: str = choice(
        'known',
        'whether the yaw of the imu is the heading from true north',
        ('known', 'unknown'),
    )
    imu_max_gap_s: float = parameter(
        0.1, 'orientation further than this from the exposure is not taken', 0.001, 10
    )
    height_source: str = choice('range', 'height above ground', ('range', 'odom', 'fixed', 'none'))
    height_max_gap_s: float = parameter(
        0.5, 'height further than this from the exposure is not taken', 0.001, 60
    )
    fixed_agl_m: float = parameter(
        100.0, 'height above ground with height_source fixed', 0.1, 20000
    )
    odom_ground_z_m: float = parameter(
        0.0, 'z of the ground in the frame of the odometry', -10000, 10000
    )
    range_is_vertical: bool = parameter(
        False,
        'whether the rangefinder hangs level; else it is fixed to the body, '
        'and its reading times the cosine of the tilt is the height',
    )
    sync_wait_s: float = parameter(
        0.05, 'how long a frame waits for the orientation and height of its moment', 0, 1
    )

    prior_source: str = choice(
        'none',
        'only map near this position is searched',
        ('none', 'gps', 'odom', 'last_fix'),
    )
    prior_min_radius_m: float = parameter(100.0, 'smallest radius of that search', 1, 100000)
    prior_max_age_s: float = parameter(
        60.0, 'after this time the position is dropped and the whole map searched', 0.1, 86400
    )
    prior_max_speed_mps: float = parameter(
        30.0, 'growth of the radius with the age of a gps position or last fix', 0, 400
    )
    prior_odom_drift: float = parameter(
        0.2, 'growth of the radius per metre moved since the last fix, with odom', 0.01, 2
    )

    def __post_init__(self) -> None:
        validate(self)
        for item in dataclasses.fields(self):
            choices = item.metadata.get('choices')
            value = getattr(self, item.name)
            if choices and value not in choices:
                raise ConfigError(
                    f'NodeSettings.{item.name} is {value!r}; expected one of {list(choices)}'
                )
