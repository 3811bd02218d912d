"""Run the engine's tests, the gallery reader's and a short flight on an emulated ARM CPU.

    python test/arm/run.py [--folder build/arm] [pytest's arguments]

An emulator shows that results are right, never how fast they come. Exits 0 and says why where it
cannot run: without qemu, a cross compiler, or apt.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from machine import REPOSITORY, Machine, NotHere, make_machine

DOT_CPU, PLAIN_CPU = 'cortex-a76', 'cortex-a53'
TESTS = ('test_gallery.py',)
# These compile for the host.
ELSEWHERE = ('test_engine_build.py', 'test_engine_sanitizers.py')
# These read /proc, which tells of the host and of qemu; `check_backends` asks the first one here.
OF_THE_HOST = (
    'test/test_engine_native.py::test_back_ends_are_those_of_the_cpu',
    'test/test_engine_native.py::test_a_machine_that_is_short_of_memory',
)
# Positions are registered with OpenCV, which need not round alike on both machines.
POSITION_TOLERANCE_M = 0.05
METERS_PER_DEGREE = 111_320.0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, default=REPOSITORY / 'build' / 'arm')
    options, pytest_arguments = parser.parse_known_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        compiler = find_cross_compiler()
        machine = make_machine(folder)
        library = build(compiler, folder / 'engine.so')
        halves = build(compiler, folder / 'engine-halves.so', '-DBCN_LOADS_IN_HALVES')
        check_backends(machine, library)
        fly_on_both(machine, library, folder / 'flight')
        run_tests(machine, library, pytest_arguments)
        run_tests_of_in_order_cores(machine, halves)
    except NotHere as reason:
        print(f'skipped: {reason}')
        return 0
    except subprocess.CalledProcessError as error:
        print(f'failed: {shlex.join(map(str, error.cmd))}', file=sys.stderr)
        return 1
    except AssertionError as error:
        print(f'failed: {error}', file=sys.stderr)
        return 1
    print('ARM: all well')
    return 0


def find_cross_compiler() -> tuple[str, ...]:
    """The command of a C++ compiler for ARM."""
    asked = os.environ.get('CXX_ARM', '')
    if asked:
        return tuple(shlex.split(asked))
    if shutil.which('aarch64-linux-gnu-g++'):
        return ('aarch64-linux-gnu-g++',)
    zig = (sys.executable, '-m', 'ziglang')
    if subprocess.run([*zig, 'version'], check=False, capture_output=True).returncode == 0:
        return (*zig, 'c++', '-target', 'aarch64-linux-gnu.2.28')
    raise NotHere(
        'no C++ compiler for ARM is installed: sudo apt install g++-aarch64-linux-gnu '
        '(or .venv/bin/pip install ziglang, or name one in CXX_ARM)'
    )


def build(compiler: tuple[str, ...], out: Path, *flags: str) -> Path:
    """Compile the engine for ARM."""
    from bicrossnet_ros.engine.build import build_library

    print(f'Building {out.name} with {shlex.join(compiler)} ...', flush=True)
    objects = REPOSITORY / 'build' / 'engine'
    return build_library(out, compiler=compiler, extra_flags=flags, objects=objects)


def engine_environment(library: Path) -> dict[str, str]:
    """What makes Python load that library."""
    return {'BICROSSNET_ENGINE_LIBRARY': str(library)}


def check_backends(machine: Machine, library: Path) -> None:
    """Each CPU is offered what it runs, and takes the best of it."""
    program = 'import sys; from bicrossnet_ros.engine import native; ' + (
        'assert ",".join(native.backends()) == sys.argv[1], native.backends()'
    )
    for cpu, expected in ((DOT_CPU, 'neon_dot,neon,scalar'), (PLAIN_CPU, 'neon,scalar')):
        machine.run('-c', program, expected, cpu=cpu, **engine_environment(library))
        print(f'{cpu}: {expected}', flush=True)


def run_tests(machine: Machine, library: Path, arguments: list[str]) -> None:
    """The engine's tests on all its back ends, and the gallery reader's."""
    folder = REPOSITORY / 'test'
    engine = sorted(path for path in folder.glob('test_engine_*.py') if path.name not in ELSEWHERE)
    files = engine + [folder / name for name in TESTS]
    deselected = (f'--deselect={test}' for test in OF_THE_HOST)
    run_pytest(machine, library, DOT_CPU, *map(str, files), *deselected, *arguments)


def run_tests_of_in_order_cores(machine: Machine, library: Path) -> None:
    """The products once more in the way of Cortex-A53 and A55, which qemu may not know."""
    path = REPOSITORY / 'test' / 'test_engine_convolution.py'
    chosen = 'neon and (word or chunks or stride_2 or sums)'
    run_pytest(machine, library, DOT_CPU, str(path), '-k', chosen)


def run_pytest(machine: Machine, library: Path, cpu: str, *arguments: str) -> None:
    """Run pytest there; nothing of it is left in the checkout."""
    options = ('-m', 'pytest', '-q', '-m', 'not slow', '-p', 'no:cacheprovider')
    machine.run(*options, *arguments, cpu=cpu, **engine_environment(library))


def fly_on_both(machine: Machine, library: Path, folder: Path) -> None:
    """Replay one short flight here and there, and compare embeddings and positions."""
    print('Flying on both machines ...', flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    program = Path(__file__).with_name('flight.py')
    paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / 'test')))
    environment = {**os.environ, 'PYTHONPATH': paths, 'OMP_NUM_THREADS': '1'}
    for words in (('make', folder), ('fly', folder, folder / 'host')):
        command = [sys.executable, str(program), *map(str, words)]
        subprocess.run(command, check=True, cwd=REPOSITORY, env=environment)
    machine.run(
        *(program, 'fly', folder, folder / 'arm'), cpu=DOT_CPU, **engine_environment(library)
    )
    compare_embeddings(folder)
    compare_fixes(folder)


def compare_embeddings(folder: Path) -> None:
    """The engine promises the same bits on every back end."""
    with (
        np.load(folder / 'host/embeddings.npz') as host,
        np.load(folder / 'arm/embeddings.npz') as arm,
    ):
        assert {'neon', 'neon_dot'} <= set(arm.files), f'back ends on ARM: {arm.files}'
        expected = host['scalar']
        assert np.ptp(expected, axis=0).max() > 0, 'all embeddings are alike'
        for machine, answers in (('this machine', host), ('ARM', arm)):
            for name in answers.files:
                same = answers[name].tobytes() == expected.tobytes()
                assert same, f'{name} on {machine} differs from scalar on this machine'
                print(f'{name} on {machine}: {expected.size} values, the same bits', flush=True)


def compare_fixes(folder: Path) -> None:
    """The same frames have a fix, in the same place."""
    host, arm = (
        json.loads((folder / name / 'fixes.json').read_text(encoding='utf-8'))
        for name in ('host', 'arm')
    )
    assert arm['machine'] == 'aarch64', arm['machine']
    assert arm['runtime'] == 'native neon_dot', arm['runtime']
    assert [one['file'] for one in host['fixes']] == [one['file'] for one in arm['fixes']]
    assert any(one['status'] == 'fix' for one in host['fixes']), host['fixes']
    for mine, theirs in zip(host['fixes'], arm['fixes'], strict=True):
        assert mine['status'] == theirs['status'], (mine, theirs)
        if mine['status'] != 'fix':
            continue
        apart_m = distance_m(mine, theirs)
        assert apart_m <= POSITION_TOLERANCE_M, f'{mine["file"]}: {apart_m:.3f} m apart'
        print(f'{mine["file"]}: fixes {apart_m:.6f} m apart', flush=True)


def distance_m(a: dict[str, float], b: dict[str, float]) -> float:
    """Metres between two positions that are close."""
    north_m = (a['lat_deg'] - b['lat_deg']) * METERS_PER_DEGREE
    east_m = (a['lon_deg'] - b['lon_deg']) * METERS_PER_DEGREE * np.cos(np.radians(a['lat_deg']))
    return float(np.hypot(north_m, east_m))


if __name__ == '__main__':
    sys.exit(main())
