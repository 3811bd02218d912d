"""An ARM machine out of files: Debian's Python for arm64, run by qemu on this one.

Nothing is installed on the host, and no root rights are needed: packages are downloaded with a
state of apt's own and unpacked; wheels come from the package index. All of it is kept in one
folder and made again only when what is asked for changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DEBIAN_PACKAGES = ('python3', 'libstdc++6')
WHEELS = (
    *('numpy', 'opencv-python-headless', 'faiss-cpu', 'onnxruntime', 'onnx', 'pyproj'),
    *('safetensors', 'PyYAML', 'rasterio', 'tqdm', 'pytest', 'hypothesis'),
)
PLATFORMS = tuple(f'manylinux{name}_aarch64' for name in ('_2_28', '_2_17', '2014'))
KEPT = ('HOME', 'BICROSSNET_DATA')  # of the environment


class NotHere(Exception):
    """Something that the emulation needs is not installed; the message names the remedy."""


@dataclass(frozen=True)
class Machine:
    """What runs a program of the other architecture."""

    folder: Path
    python: Path

    def run(self, *arguments: str | Path, cpu: str, **environment: str) -> None:
        """Run Python in the checkout on a CPU of that name.

        Raises
        ------
        subprocess.CalledProcessError
            If it fails.
        """
        everything = {
            **{key: os.environ[key] for key in KEPT if key in os.environ},
            # No compiler of the host may be found there: what it makes would not run.
            'PATH': str(self.folder / 'no-commands'),
            'LANG': 'C.UTF-8',
            'OMP_NUM_THREADS': '1',
            'PYTHONDONTWRITEBYTECODE': '1',
            'QEMU_CPU': cpu,
            **environment,
        }
        command = [str(self.python), *map(str, arguments)]
        subprocess.run(command, check=True, cwd=REPOSITORY, env=everything)


def find_qemu() -> str:
    """The program that runs ARM programs."""
    for name in ('qemu-aarch64-static', 'qemu-aarch64'):
        found = shutil.which(name)
        if found:
            return found
    raise NotHere('qemu-aarch64 is not installed: sudo apt install qemu-user-static')


def make_machine(folder: Path) -> Machine:
    """Unpack what is missing below `folder`.

    Raises
    ------
    NotHere
        If qemu, apt or dpkg is not installed, or apt knows no packages for arm64.
    """
    qemu = find_qemu()
    for name in ('apt-get', 'dpkg'):
        if not shutil.which(name):
            raise NotHere(f'{name} is not installed; Python for ARM comes in Debian packages')
    versions = (REPOSITORY / 'constraints.txt').read_text(encoding='utf-8')
    wanted = hashlib.sha256(repr((DEBIAN_PACKAGES, WHEELS, versions)).encode()).hexdigest()
    root, stamp = folder / 'root', folder / 'made'
    if not (stamp.is_file() and stamp.read_text() == wanted):
        shutil.rmtree(root, ignore_errors=True)
        _unpack_python(root, folder / 'apt')
        _install_wheels(root)
        stamp.write_text(wanted)
    python = _write_launcher(folder / 'python', qemu, root)
    return Machine(folder, python)


def _unpack_python(root: Path, state: Path) -> None:
    """Download Python and all that it needs for arm64, and unpack it without installing."""
    print('Unpacking Python for arm64 ...', flush=True)
    archives = state / 'archives'
    for directory in (state / 'lists' / 'partial', archives / 'partial'):
        directory.mkdir(parents=True, exist_ok=True)
    settings = {
        'Dir::State::lists': state / 'lists',
        'Dir::State::status': '/dev/null',  # nothing is installed, so all is downloaded
        'Dir::Cache': state,
        'Dir::Cache::archives': archives,
        'APT::Architecture': 'arm64',
        'APT::Architectures': 'arm64',
        'APT::Sandbox::User': '',
        'Debug::NoLocking': '1',
    }
    apt = ['apt-get', '-qq', *(f'-o{name}={value}' for name, value in settings.items())]
    try:
        subprocess.run([*apt, 'update'], check=True)
        options = ('-y', '--no-install-recommends', '--download-only')
        subprocess.run([*apt, *options, 'install', *DEBIAN_PACKAGES], check=True)
    except subprocess.CalledProcessError as error:
        raise NotHere('the package sources of apt offer no Python for arm64') from error
    root.mkdir(parents=True)
    for archive in sorted(archives.glob('*.deb')):
        subprocess.run(['dpkg', '-x', str(archive), str(root)], check=True)
    # ONNX Runtime reads the CPU's files; those of the host describe another machine.
    cpus = root / 'sys/devices/system/cpu'
    cpus.mkdir(parents=True)
    for name in ('possible', 'present'):
        (cpus / name).touch()


def _install_wheels(root: Path) -> None:
    """Put wheels for ARM where Debian's Python looks for packages."""
    print('Fetching wheels for arm64 ...', flush=True)
    version = _python_of(root).name.removeprefix('python')
    subprocess.run(
        [
            *(sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check'),
            *('--target', str(_packages_of(root)), '--only-binary=:all:'),
            *('--implementation', 'cp', '--python-version', version),
            *(word for name in PLATFORMS for word in ('--platform', name)),
            *('-c', str(REPOSITORY / 'constraints.txt'), *WHEELS),
        ],
        check=True,
    )


def _python_of(root: Path) -> Path:
    found = [path for path in (root / 'usr/bin').glob('python3.*') if path.suffix[1:].isdigit()]
    if len(found) != 1:
        raise NotHere(f'expected one Python in {root}/usr/bin, found {found}')
    return found[0]


def _packages_of(root: Path) -> Path:
    return root / 'usr/lib/python3/dist-packages'


def _write_launcher(path: Path, qemu: str, root: Path) -> Path:
    """A command that is Python for ARM; also for the processes that it starts itself."""
    path.write_text(
        f'#!/bin/sh\nPYTHONHOME="{root}/usr" exec "{qemu}" -L "{root}" "{_python_of(root)}" "$@"\n'
    )
    path.chmod(0o755)
    (path.parent / 'no-commands').mkdir(exist_ok=True)
    # Lines of a .pth file: one more place to import from, and a statement.
    (_packages_of(root) / 'checkout.pth').write_text(
        f'{REPOSITORY}\nimport sys; sys.executable = {str(path)!r}\n'
    )
    return path
