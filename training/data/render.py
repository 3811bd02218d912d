"""Render a data set in the layout of University-1652 or SUES-200 from aerial images.

    python -m training.data render IMAGES OUT --layout university1652 --places 40 --seed 0

It lets the whole recipe run where the published data sets are not at hand. Each image is one
place: its middle is the satellite tile, and a pinhole camera circles above it (`orbit`), with
boxes for buildings (`buildings`), another light than the tile's, blur, noise and compression. The
camera never sees beyond the image. The ground is flat, and nothing but the boxes hides anything:
results on such data tell whether training works, not how good it is on photographs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bicrossnet_ros.errors import ConfigError
from training.config import HEIGHTS_M
from training.data.orbit import Pose, circle, spiral
from training.data.places import Image
from training.data.rendered_scene import HALF_SIDE, Scene
from training.data.scenes import list_scenes, read_square
from training.data.sues200 import TEST_PLACES
from training.progress import counted

LAYOUTS = ('university1652', 'sues200')
RECORD = 'rendered.json'
_SATELLITE_QUALITY = 92
_DRONE_QUALITY = (60, 95)
# After the random streams of `rendered_scene`.
_POSES, _CHOICE = 4, 5


@dataclass(frozen=True)
class RenderOptions:
    """What is rendered.

    Parameters
    ----------
    layout : str
        'university1652' or 'sues200'.
    places, test_places : int
        Places to train on, and places that queries show.
    distractors : int
        University-1652: further places of the test's galleries. SUES-200 has none of its own: its
        galleries hold the training places as well.
    drones : int
        Drone images of a place; SUES-200: at each of the four heights.
    size_px : int
        Side of all images.
    buildings : int
        Largest number of boxes on a place; 0: bare ground.
    seed : int
        Of every choice.
    """

    layout: str = 'university1652'
    places: int = 40
    test_places: int = 20
    distractors: int = 10
    drones: int = 18
    size_px: int = 256
    buildings: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ConfigError(f'layout is {self.layout!r}; expected one of {", ".join(LAYOUTS)}')
        limits = {
            'places': (1, 9999),
            'test_places': (1, 9999),
            'distractors': (0, 9999),
            'drones': (1, 99),
            'size_px': (32, 2048),
            'buildings': (0, 50),
            'seed': (0, 2**31 - 1),
        }
        if self.layout == 'sues200':
            # The split of SUES-200 is fixed, and all it has are 200 places.
            training = 200 - len(TEST_PLACES)
            limits |= {'places': (1, training), 'test_places': (1, len(TEST_PLACES))}
            limits |= {'distractors': (0, 0)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f'{name} is {value}; expected {low} to {high} in the layout {self.layout}'
                )


@dataclass(frozen=True)
class PlacePlan:
    """The files of one place, relative to the data set's folder.

    Parameters
    ----------
    satellite : tuple of Path
        Files of the tile, all alike.
    flights : dict
        By height, as a share of the largest (0: a descending spiral): for each drone image its
        files, all alike.
    empty : tuple of Path
        Folders of the layout for which there is nothing.
    """

    satellite: tuple[Path, ...]
    flights: dict[float, list[tuple[Path, ...]]]
    empty: tuple[Path, ...] = ()


def render_dataset(images: Path, out: Path, options: RenderOptions) -> int:
    """Render a data set from the aerial images below a folder.

    Parameters
    ----------
    images : Path
        Each image becomes at most one place; which, is drawn by the seed.
    out : Path
        A new or an empty folder. ``rendered.json`` in it says, when all is done, how it was made;
        what was broken off before cannot be taken up again.
    options : RenderOptions
        What is rendered.

    Returns
    -------
    int
        Images written.

    Raises
    ------
    ConfigError
        If there are too few images, or `out` holds something or cannot be written.
    ImageError
        If an image cannot be read, or is too small.
    """
    if not images.is_dir():
        raise ConfigError(f'{images}: no such folder; name the folder of the aerial images')
    try:
        _check_empty(out)
        return _render(images, out, options)
    except OSError as error:
        raise ConfigError(
            f'{out}: cannot be written ({error}); name a folder that you may write to, with room'
        ) from error


def _check_empty(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    remedy = 'name a new one'
    if out.is_dir() and not (out / RECORD).exists():
        remedy = (
            f'it has no {RECORD}: if a rendering was broken off there, delete it and start again '
            '(it cannot be taken up again), else name a new one'
        )
    raise ConfigError(f'{out}: is not an empty folder; {remedy}')


def _render(images: Path, out: Path, options: RenderOptions) -> int:
    rng = np.random.default_rng((options.seed, _CHOICE))
    plans = (plan_university if options.layout == 'university1652' else plan_sues)(options, rng)
    paths = list_scenes(images)
    if len(paths) < len(plans):
        raise ConfigError(
            f'{images}: found {len(paths)} image(s), but {len(plans)} places are wanted; add '
            'images or ask for fewer places'
        )
    chosen = rng.permutation(len(paths))
    out.mkdir(parents=True, exist_ok=True)  # if that fails, then before the work
    written = 0
    for number, plan in enumerate(counted(plans, 'rendering places', len(plans))):
        key = (options.seed, number + 1)
        image = read_square(paths[chosen[number]])
        scene = Scene(image, key, size_px=options.size_px, buildings=options.buildings)
        written += _render_place(scene, plan, out, key)
    record = {'made_by': 'training.data.render', **dataclasses.asdict(options)}
    (out / RECORD).write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')
    return written


def plan_university(options: RenderOptions, rng: np.random.Generator) -> list[PlacePlan]:
    """Plan University-1652: ids of four digits with gaps; query and gallery files are alike.

    The folders of street views and of web photographs stay empty: nothing of them can be rendered
    from above.
    """
    counts = (options.places, options.test_places, options.distractors)
    ids = rng.choice(max(1652, 2 * sum(counts)), sum(counts), replace=False)
    train, test, distractors = (np.sort(part) for part in np.split(ids, np.cumsum(counts)[:2]))
    train_only = ('train/{}',)
    folders = {
        **{f'{place:04d}': train_only for place in train},
        **{f'{place:04d}': ('test/query_{}', 'test/gallery_{}') for place in test},
        **{f'{place:04d}': ('test/gallery_{}',) for place in distractors},
    }
    return [
        PlacePlan(
            satellite=tuple(Path(f.format('satellite'), place, f'{place}.jpg') for f in roots),
            flights={
                0.0: [
                    tuple(
                        Path(f.format('drone'), place, f'image-{number:02d}.jpeg') for f in roots
                    )
                    for number in range(1, options.drones + 1)
                ]
            },
            empty=tuple(
                Path('train', f, place) for f in ('street', 'google') if roots == train_only
            ),
        )
        for place, roots in folders.items()
    ]


def plan_sues(options: RenderOptions, rng: np.random.Generator) -> list[PlacePlan]:
    """Plan SUES-200 as it is published before any split: four heights of every place."""
    test = sorted(TEST_PLACES)
    train = sorted({f'{place:04d}' for place in range(1, 201)} - TEST_PLACES)
    parts = ((train, options.places), (test, options.test_places))
    places = sorted(str(i) for ids, count in parts for i in rng.choice(ids, count, replace=False))
    return [
        PlacePlan(
            satellite=(Path('satellite-view', place, '0.png'),),
            flights={
                height_m / max(HEIGHTS_M): [
                    (Path('drone_view_512', place, str(height_m), f'{number}.jpg'),)
                    for number in range(options.drones)
                ]
                for height_m in HEIGHTS_M
            },
        )
        for place in places
    ]


def _render_place(scene: Scene, plan: PlacePlan, out: Path, key: tuple[int, ...]) -> int:
    for folder in plan.empty:
        (out / folder).mkdir(parents=True)
    written = _write(scene.satellite(), out, plan.satellite, quality=_SATELLITE_QUALITY)
    for number, (height_share, files) in enumerate(plan.flights.items(), 1):
        rng = np.random.default_rng((*key, _POSES, number))
        poses = _poses(rng, len(files), height_share)
        for view, targets in zip(scene.flight(poses, number), files, strict=True):
            written += _write(view, out, targets, quality=int(rng.integers(*_DRONE_QUALITY)))
    return written


def _poses(rng: np.random.Generator, count: int, height_share: float) -> list[Pose]:
    if not height_share:
        return spiral(rng, count, half_side=HALF_SIDE)
    return circle(rng, count, height_share=height_share, half_side=HALF_SIDE)


def _write(image: Image, out: Path, targets: tuple[Path, ...], *, quality: int) -> int:
    """Write one image to several files; returns their number."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    suffix = targets[0].suffix
    done, data = cv2.imencode(suffix, image[..., ::-1], settings if suffix != '.png' else [])
    assert done, f'OpenCV cannot write {suffix}'
    for target in targets:
        (out / target).parent.mkdir(parents=True, exist_ok=True)
        (out / target).write_bytes(data.tobytes())
    return len(targets)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``python -m training.data render``."""
    default = RenderOptions()
    parser.add_argument('images', type=Path, help='folder of aerial images, each one a place')
    parser.add_argument('out', type=Path, help='new folder for the data set')
    parser.add_argument('--layout', choices=LAYOUTS, default=default.layout)
    helps = {
        'places': 'places to train on',
        'test_places': 'places that queries show',
        'drones': 'drone images of a place (sues200: at each height)',
        'size_px': 'side of the images',
        'buildings': 'largest number of boxes on a place',
        'seed': 'of every choice',
    }
    for name, text in helps.items():
        value = getattr(default, name)
        parser.add_argument(
            f'--{name.replace("_", "-")}', type=int, default=value, help=f'{text} ({value})'
        )
    parser.add_argument(
        '--distractors',
        type=int,
        help=f'places that only galleries hold ({default.distractors}; sues200: none)',
    )


def run(options: argparse.Namespace) -> int:
    """Render as the command line says; returns the exit code."""
    distractors = options.distractors
    if distractors is None:
        distractors = 0 if options.layout == 'sues200' else RenderOptions.distractors
    names = [item.name for item in dataclasses.fields(RenderOptions)]
    wanted = {name: getattr(options, name) for name in names if name != 'distractors'}
    written = render_dataset(
        options.images, options.out, RenderOptions(distractors=distractors, **wanted)
    )
    print(f'{options.out}: {written} images in the layout of {options.layout}')
    return 0
