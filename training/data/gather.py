"""Make the data folder of the default models from what is at hand.

    python -m training.data.gather OUT --rsscn7 DIR [--neon DIR]

OUT then holds ``rsscn7/<class>/<file>`` (2,800 overhead scenes, seven land uses, four scales; Zou
et al. 2015, no licence stated: research use) and, where the Python package ``deepforest`` is
installed (``pip install --no-deps deepforest==2.1.0`` is enough, nothing of it is run) or its
folder of images is named by ``--neon``, ``neon/<file>``: the three 40 m squares of the NEON
airborne survey at 0.1 m that it carries. Its Yellowstone (YELL) images are left out by name: they
are a test flight of this project. Files are linked where the file system can, else copied; what is
there already and the same stays.

References
----------
Zou, Ni, Zhang, Wang 2015, "Deep Learning Based Feature Selection for Remote Sensing Scene
Classification", IEEE GRSL 12(11).
Weinstein et al. 2019, "Individual Tree-Crown Detection in RGB Imagery Using Semi-Supervised Deep
Learning Neural Networks", Remote Sensing 11(11).
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.data.scenes import list_scenes

RSSCN7, NEON = 'rsscn7', 'neon'
# Site and plot of the NEON squares; OSBS_029.tif is the same image as OSBS_029.png.
NEON_FILES = ('OSBS_029.png', 'SOAP_031.png', 'SOAP_061.png')


def gather(out: Path, *, rsscn7: Path, neon: Path | None = None) -> dict[str, int]:
    """Fill the data folder.

    Parameters
    ----------
    out : Path
        Made if need be.
    rsscn7 : Path
        Folder of the classes (``aGrass`` ...).
    neon : Path, optional
        Folder of the NEON images; None: without them.

    Returns
    -------
    dict of str to int
        Scenes of each origin.

    Raises
    ------
    ConfigError
        If a source is not there, or OUT holds another file of a scene's name.
    """
    if not rsscn7.is_dir():
        raise ConfigError(f'{rsscn7}: no such folder; give that of RSSCN7 with --rsscn7')
    counts = {RSSCN7: 0, NEON: 0}
    for path in list_scenes(rsscn7):
        _place(path, out / RSSCN7 / path.relative_to(rsscn7))
        counts[RSSCN7] += 1
    for path in _neon_images(neon) if neon else ():
        _place(path, out / NEON / path.name)
        counts[NEON] += 1
    return counts


def installed_neon() -> Path | None:
    """Return where the installed package deepforest keeps its images; it is not imported."""
    package = importlib.util.find_spec('deepforest')
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / 'data'


def _neon_images(folder: Path) -> list[Path]:
    paths = [folder / name for name in NEON_FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ConfigError(
            f'{folder}: lacks {", ".join(missing)}; expected the folder deepforest/data of '
            'deepforest 2.1.0 (pip install --no-deps deepforest==2.1.0)'
        )
    return paths


def _place(source: Path, target: Path) -> None:
    """Link a file, or copy it; leave it if it is there."""
    if target.exists():
        if target.stat().st_size != source.stat().st_size:
            raise ConfigError(f'{target}: is not {source}; remove it or choose an empty folder')
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.data.gather',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('out', type=Path, metavar='OUT', help='the data folder to make')
    parser.add_argument('--rsscn7', type=Path, required=True, help='folder of RSSCN7')
    parser.add_argument(
        '--neon', type=Path, help="folder of the NEON images; default: the installed package's"
    )
    options = parser.parse_args(arguments)
    try:
        neon = options.neon or installed_neon()
        counts = gather(options.out, rsscn7=options.rsscn7, neon=neon)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(', '.join(f'{count} scenes of {origin}' for origin, count in counts.items()))
    if neon is None:
        print('without the NEON squares: deepforest is not installed', file=sys.stderr)
    return 0


if __name__ == '__main__':
    sys.exit(main())
