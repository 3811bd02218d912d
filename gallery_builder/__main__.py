"""`python -m gallery_builder build | inspect | verify | simulate`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bicrossnet_ros.errors import BiCrossNetError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for an error that the user can mend)."""
    chosen = _parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in {'rasterio', 'tqdm'}:  # a fault of ours, with its traceback
            raise
        print(
            f"error: {error.name} is not installed; pip install '.[builder]' in the checkout "
            'brings what makes galleries',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on where this one stopped', file=sys.stderr)
        return 130


def _build(chosen: argparse.Namespace) -> int:
    from bicrossnet_ros.encoder import default_model_path, open_encoder
    from gallery_builder.build import build
    from gallery_builder.options import BuildOptions, parse_bands

    options = BuildOptions(
        maps=tuple(chosen.maps),
        out=chosen.out,
        gsd_m=chosen.gsd_m,
        tile_px=chosen.tile_px,
        overlap=chosen.overlap,
        crs=chosen.crs,
        assume_crs=chosen.assume_crs,
        min_valid=chosen.min_valid,
        bands=None if chosen.bands is None else parse_bands(chosen.bands),
        accuracy_m=chosen.accuracy_m,
        ground_ellipsoid_m=chosen.ground_ellipsoid_m,
        licence=chosen.licence,
        batch=chosen.batch,
        threads=chosen.threads,
        index=chosen.index,
        descriptor=chosen.descriptor,
        force=chosen.force,
        restart=chosen.restart,
    )
    encoder = open_encoder(chosen.model or default_model_path(), threads=chosen.threads)
    build(options, encoder)
    return 0


def _inspect(chosen: argparse.Namespace) -> int:
    from gallery_builder.inspect import inspect

    print(inspect(chosen.gallery, as_json=chosen.json))
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    from gallery_builder.inspect import problems

    found = list(problems(chosen.gallery))
    for problem in found:
        print(f'error: {problem}', file=sys.stderr)
    if found:
        return 2
    print(f'{chosen.gallery}: whole')
    return 0


def _simulate(chosen: argparse.Namespace) -> int:
    from tqdm import tqdm

    from gallery_builder.flight_plan import FlightPlan
    from gallery_builder.mosaic import MapSources
    from gallery_builder.simulate import simulate

    plan = FlightPlan(
        frames=chosen.frames,
        min_agl_m=chosen.agl_m[0],
        max_agl_m=chosen.agl_m[1],
        hz=chosen.hz,
        width_px=chosen.size_px[0],
        height_px=chosen.size_px[1],
        hfov_deg=chosen.hfov_deg,
        wobble_deg=chosen.wobble_deg,
        seed=chosen.seed,
    )
    made = simulate(MapSources(chosen.maps), chosen.out, plan)
    count = sum(1 for _ in tqdm(made, total=plan.frames, unit='frame', disable=None))
    print(f'{chosen.out}: {count} of {plan.frames} frames see enough map')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m gallery_builder',
        description='Make galleries from georeferenced maps, look into them, check them; '
        'simulate flights over the maps.',
    )
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    _add_build(commands.add_parser('build', help='make a gallery; resumes an interrupted build'))
    inspect = commands.add_parser('inspect', help='describe a gallery')
    inspect.add_argument('gallery', type=Path)
    inspect.add_argument('--json', action='store_true', help='print the manifest as JSON')
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser('verify', help='check every byte of a gallery')
    verify.add_argument('gallery', type=Path)
    verify.set_defaults(run=_verify)
    simulate = commands.add_parser('simulate', help='render a flight over a map, with its truth')
    _add_simulate(simulate)
    return parser


def _add_build(build: argparse.ArgumentParser) -> None:
    add = build.add_argument
    add(
        'maps',
        type=Path,
        nargs='+',
        metavar='MAP',
        help='rasters; the first wins',
    )
    add('--out', type=Path, required=True, metavar='NAME.gallery', help='folder to make')
    add('--model', type=Path, help='model file; default the one that is installed')
    add('--gsd-m', type=float, help='metres per pixel; default the finest map, at least 0.25')
    add('--tile-px', type=int, default=128, help='side of a tile (%(default)s)')
    add('--overlap', type=float, default=0.75, help='share of a tile (%(default)s)')
    add('--crs', help='projected CRS true to scale, such as EPSG:32617; default UTM')
    add('--assume-crs', help='CRS of maps that name none')
    add('--min-valid', type=float, default=0.8, help='share of valid pixels (%(default)s)')
    add('--bands', help='red,green,blue bands, such as 3,2,1, or one for grey')
    add('--accuracy-m', type=float, default=1.0, help='1 sigma of the maps (%(default)s)')
    add('--ground-ellipsoid-m', type=float, help='height of the ground over the ellipsoid')
    add('--licence', help='licence of the maps, for the record')
    add('--batch', type=int, default=32, help='tiles embedded at once (%(default)s)')
    add('--threads', type=int, default=1, help='of the network and FAISS (%(default)s)')
    add('--index', default='flat', choices=('flat', 'ivf'), help='(%(default)s)')
    add(
        '--descriptor',
        default='float',
        choices=('float', 'float256', 'packed'),
        help='stored of a tile: the embedding, its projection to 256 floats, or the 256 signs '
        'of that, 32 bytes (%(default)s)',
    )
    add('--force', action='store_true', help='replace a gallery of the same name')
    add('--restart', action='store_true', help='throw away an unfinished build')
    build.set_defaults(run=_build)


def _add_simulate(simulate: argparse.ArgumentParser) -> None:
    add = simulate.add_argument
    add('maps', type=Path, nargs='+', metavar='MAP', help='rasters that are flown over')
    add('--out', type=Path, required=True, metavar='FLIGHT', help='flight folder to make')
    add('--frames', type=int, default=40, help='exposures (%(default)s)')
    add(
        '--agl-m',
        type=float,
        nargs=2,
        default=(60.0, 120.0),
        metavar=('MIN', 'MAX'),
        help='height above ground, which swings between the two (60 120)',
    )
    add('--hz', type=float, default=1.0, help='exposures a second (%(default)s)')
    add(
        '--size-px',
        type=int,
        nargs=2,
        default=(640, 480),
        metavar=('WIDTH', 'HEIGHT'),
        help='of a frame (640 480)',
    )
    add('--hfov-deg', type=float, default=50.0, help='horizontal field of view (%(default)s)')
    add('--wobble-deg', type=float, default=4.0, help='of roll and pitch (%(default)s)')
    add('--seed', type=int, default=1, help='of everything random (%(default)s)')
    simulate.set_defaults(run=_simulate)


if __name__ == '__main__':
    sys.exit(main())
