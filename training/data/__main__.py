"""`python -m training.data check | render`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bicrossnet_ros.errors import BiCrossNetError
from training.data import render


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for an error that the user can mend)."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.action(options))
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130


def _check(options: argparse.Namespace) -> int:
    from training.data.check import check

    report = check(
        options.root,
        source=options.source,
        decode=options.decode,
        threads=options.threads,
        scene_m=options.scene_m,
    )
    print(report)
    return report.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m training.data', description=__doc__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    command = commands.add_parser(
        'check',
        help='say what a data set holds beside what was published',
        description='Count places and images beside the published numbers. Exit status: 0 they '
        'match, 1 they differ, 2 neither training nor tests are possible.',
    )
    command.add_argument('root', type=Path, metavar='ROOT', help='folder of the data set')
    command.add_argument(
        '--source',
        choices=('university1652', 'sues200', 'maps'),
        help='kind of data set; default: which of the first two it is, is found out',
    )
    command.add_argument('--decode', action='store_true', help='decode every image too')
    command.add_argument(
        '--threads',
        type=int,
        default=os.cpu_count() or 1,
        metavar='N',
        help='images decoded at a time; default: one a core',
    )
    command.add_argument(
        '--scene-m',
        type=float,
        default=0.0,
        metavar='M',
        help='maps: side of the squares that rasters are cut into, as data.scene_m; default: '
        'every image is one scene',
    )
    command.set_defaults(action=_check)
    command = commands.add_parser('render', help='make a data set of views of aerial images')
    render.add_arguments(command)
    command.set_defaults(action=render.run)
    return parser


if __name__ == '__main__':
    sys.exit(main())
