"""How the two views of a place may differ: one switch and one strength for every effect.

`training.data.views` renders the geometry, `training.data.world` changes the ground and the
light, `training.data.sensor` the picture. docs/views.md explains every effect with a picture.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from bicrossnet_ros.config import parameter
from bicrossnet_ros.errors import ConfigError
from training.choices import check, choice

GEOMETRY_CHANGES = ('tilt', 'heading', 'scale', 'offset', 'edge')


@dataclass(frozen=True)
class ViewConfig:
    """How two rendered views of one place differ (source `maps`).

    A field ``NAME_share`` is the probability of an effect on a query of middling busyness (0:
    never, 1: always, see `busyness`); the field ``NAME`` is its largest strength. Strengths
    without a unit run from 0, no change, to 1. Lengths of `blur` and `motion` are shares of the
    side of the view, so that one number serves every size.
    """

    min_side: float = parameter(0.35, 'smallest side of a place, share of the scene', 0.1, 1)
    max_side: float = parameter(0.5, 'largest side of a place, share of the scene', 0.1, 1)
    spacing: float = parameter(1.1, 'distance of neighbouring places of a scene, in sides', 0.1, 2)

    heading_error_deg: float = parameter(20.0, 'heading of the query against the tile', 0, 180)
    scale_ratio: float = parameter(1.4, 'largest ratio of the scales of query and tile', 1, 4)
    offset: float = parameter(0.25, 'offset of the centres per axis, share of the side', 0, 1)
    tilt_deg: float = parameter(30.0, 'largest tilt of the camera, in any direction', 0, 45)
    attitude_error_deg: float = parameter(
        4.0, 'largest error of the attitude by which the tilt is removed', 0, 20
    )
    full_tilt_share: float = parameter(0.15, 'queries whose tilt is not removed at all', 0, 1)
    min_fov_deg: float = parameter(50.0, 'smallest field of view, along the width', 10, 120)
    max_fov_deg: float = parameter(85.0, 'largest field of view, along the width', 10, 120)
    min_frame_share: float = parameter(
        0.4, "smallest side of a patch, share of the frame's height on the ground", 0.1, 2
    )
    max_frame_share: float = parameter(0.9, 'largest side of a patch, likewise', 0.1, 2)
    edge_share: float = parameter(0.25, 'queries that may reach over the edge of the frame', 0, 1)
    edge: float = parameter(0.3, 'by how much of their side they do', 0, 0.5)

    blur_share: float = parameter(0.25, 'queries out of focus', 0, 1)
    blur: float = parameter(0.01, 'largest sigma of the blur, share of the side', 0, 0.1)
    motion_share: float = parameter(0.15, 'queries blurred by motion', 0, 1)
    motion: float = parameter(0.04, 'longest smear, share of the side', 0, 0.3)
    noise_share: float = parameter(0.3, 'queries with sensor noise', 0, 1)
    noise: float = parameter(0.06, 'largest sigma of the noise, of full scale', 0, 1)
    vignette_share: float = parameter(0.2, 'queries darker towards the edges of the frame', 0, 1)
    vignette: float = parameter(0.6, 'largest loss of light in the corners', 0, 1)
    jpeg_share: float = parameter(0.25, 'queries compressed by JPEG', 0, 1)
    jpeg: float = parameter(0.8, 'strength of the compression; 1: quality 10', 0, 1)

    tones_share: float = parameter(0.8, 'queries of other light and colour curves', 0, 1)
    tones: float = parameter(0.8, 'strength of those curves', 0, 1)
    season_share: float = parameter(0.3, 'queries of another season', 0, 1)
    season: float = parameter(1.0, 'strength of the season', 0, 1)
    infrared_share: float = parameter(0.25, 'queries with near-infrared-like channel mixes', 0, 1)
    infrared: float = parameter(1.0, 'strength of the mix', 0, 1)
    haze_share: float = parameter(0.15, 'queries in haze', 0, 1)
    haze: float = parameter(0.8, 'density of the haze', 0, 1)
    clouds_share: float = parameter(0.15, 'queries under soft shadows of clouds', 0, 1)
    clouds: float = parameter(0.9, 'darkness of those shadows', 0, 1)
    shadows_share: float = parameter(0.15, 'queries with hard shadows', 0, 1)
    shadows: float = parameter(0.9, 'darkness and length of those shadows', 0, 1)
    gradient_share: float = parameter(0.3, 'queries with a brightness gradient', 0, 1)
    gradient: float = parameter(0.7, 'strength of the gradient', 0, 1)
    snow_share: float = parameter(0.08, 'queries bleached as by snow', 0, 1)
    snow: float = parameter(0.9, 'cover of the snow', 0, 1)
    moved_share: float = parameter(0.2, 'queries whose objects have moved', 0, 1)
    moved: float = parameter(1.0, 'how many and how large', 0, 1)
    missing_share: float = parameter(0.2, 'queries whose objects are missing', 0, 1)
    missing: float = parameter(1.0, 'how many and how large', 0, 1)
    fields_share: float = parameter(0.12, 'queries with ploughed fields', 0, 1)
    fields: float = parameter(0.8, 'how large and how opaque', 0, 1)
    roofs_share: float = parameter(0.2, 'queries with replaced roofs', 0, 1)
    roofs: float = parameter(1.0, 'how many, how large and how unlike', 0, 1)

    busyness: float = parameter(
        1.0, '1: most queries get few effects and some get many; 0: all alike', 0, 1
    )
    false_color_share: float = parameter(
        0.2, 'places that map and camera alike see in false colour, through one channel mix', 0, 1
    )
    map_views: str = choice(
        'mild',
        'clean: the tile is the imagery itself; mild: a little light, blur, noise and JPEG; '
        'same: the tile changes as much as the query does',
        ('clean', 'mild', 'same'),
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ('side', 'fov_deg', 'frame_share'):
            low, high = getattr(self, f'min_{name}'), getattr(self, f'max_{name}')
            if low > high:
                raise ConfigError(
                    f'ViewConfig.min_{name} is {low}; expected at most max_{name}, {high}'
                )


def switches() -> tuple[str, ...]:
    """Names of all effects that have a share of their own."""
    names = [item.name for item in dataclasses.fields(ViewConfig)]
    return tuple(name for name in names if f'{name}_share' in names)


def only(*effects: str, config: ViewConfig | None = None) -> ViewConfig:
    """A configuration with these effects in every query, all others off and clean tiles.

    Parameters
    ----------
    *effects : str
        Names out of `training.data.views.CHANGES`; none: the query is the tile.
    config : ViewConfig, optional
        Where the strengths of the effects and the sizes of places are taken from; the default
        otherwise.

    Raises
    ------
    ConfigError
        If an effect is not known.
    """
    known = (*GEOMETRY_CHANGES[:-1], *switches())
    if unknown := set(effects) - set(known):
        raise ConfigError(f'no such effect: {sorted(unknown)}; expected some of {known}')
    changes: dict[str, Any] = {f'{name}_share': float(name in effects) for name in switches()}
    changes['false_color_share'] = 0.0
    off: dict[str, tuple[tuple[str, float], ...]] = {
        'tilt': (('tilt_deg', 0.0), ('attitude_error_deg', 0.0), ('full_tilt_share', 0.0)),
        'heading': (('heading_error_deg', 0.0),),
        'scale': (('scale_ratio', 1.0),),
        'offset': (('offset', 0.0),),
    }
    for name, fields in off.items():
        if name not in effects:
            changes.update(fields)
    return dataclasses.replace(config or ViewConfig(), **changes, busyness=0.0, map_views='clean')
