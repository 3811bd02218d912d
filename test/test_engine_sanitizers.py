"""The engine's own tests against libraries that watch memory, undefined behaviour and races.

The library is instrumented, Python is not: the sanitizer's run time is preloaded into a Python of
its own, which runs the tests with ``BICROSSNET_ENGINE_LIBRARY``.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import REPOSITORY

from bicrossnet_ros.engine import build

HERE = Path(__file__).parent
FLAGS = build.SANITIZER_FLAGS
RUN_TIMES = {'address,undefined': 'libasan.so', 'thread': 'libtsan.so'}
OPTIONS = {
    # Python itself keeps memory to its end; leaks of the engine: test_engine_memory.py.
    'ASAN_OPTIONS': 'detect_leaks=0',
    'UBSAN_OPTIONS': 'print_stacktrace=1',
    'TSAN_OPTIONS': 'exitcode=66',
    'OMP_NUM_THREADS': '1',
}


@functools.cache
def preloads(kinds: str) -> str:
    """Libraries that must be in the process first; skips where the compiler has none."""
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    found = []
    # The C++ library too: the sanitizer looks for the real exceptions as soon as it starts.
    for name in (RUN_TIMES[kinds], 'libstdc++.so'):
        path = build._run((*compiler, f'-print-file-name={name}')).strip()
        if not Path(path).is_absolute():
            pytest.skip(f'{compiler[0]} has no {name}')
        found.append(path)
    return ' '.join(found)


def run_with(kinds: str, library: Path, *command: object) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        **OPTIONS,
        'LD_PRELOAD': preloads(kinds),
        'BICROSSNET_ENGINE_LIBRARY': str(library),
    }
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def sanitized(kinds: str, folder: Path) -> Path:
    """Build, or take from the checkout's object files what was compiled before."""
    preloads(kinds)
    flags = (f'-fsanitize={kinds}', *FLAGS)
    return build.build_library(
        folder / 'engine.so', extra_flags=flags, objects=build._objects_of_checkout()
    )


def run_tests(kinds: str, folder: Path, *arguments: object) -> None:
    pytest_command = ('-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--no-header')
    done = run_with(kinds, sanitized(kinds, folder), *pytest_command, *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert re.search(r'\d+ passed', done.stdout), done.stdout
    assert 'native engine is not built' not in done.stdout
    for sign in ('runtime error:', 'Sanitizer'):
        assert sign not in done.stdout + done.stderr, done.stderr[-5000:]


def test_memory_and_undefined_behaviour(tmp_path):
    """Impossible calls, all shapes of convolutions, whole networks; on every back end."""
    files = [HERE / f'test_engine_{name}.py' for name in ('fuzz', 'convolution_shapes', 'network')]
    chosen = 'interface or shapes or chain or finite or outlive'
    run_tests('address,undefined', tmp_path, *files, '-k', chosen)


@pytest.mark.slow
def test_memory_and_undefined_behaviour_of_everything(tmp_path):
    names = ('fuzz', 'native', 'convolution', 'convolution_shapes', 'units', 'network')
    files = [HERE / f'test_engine_{name}.py' for name in names]
    run_tests('address,undefined', tmp_path, *files)


@pytest.mark.slow
def test_races(tmp_path):
    """Threads of a team, and several sessions of one network at once."""
    files = [HERE / f'test_engine_{name}.py' for name in ('network', 'native')]
    chosen = 'channels1 or channels3 or once or outlive or repeated or several_threads'
    run_tests('thread', tmp_path, *files, '-k', chosen)


FAULTS = {
    'address': 'int* values = new int[4](); volatile int i = 4 + n; return values[i];',
    'undefined': 'volatile int large = 2147483647; return large + 1 + n;',
    'thread': (
        'int shared = n; auto work = [&] { for (int i = 0; i < 1000; ++i) ++shared; }; '
        'std::thread a(work), b(work); a.join(); b.join(); return shared;'
    ),
}
SIGNS = {
    'address': 'AddressSanitizer: heap-buffer-overflow',
    'undefined': 'runtime error: signed integer overflow',
    'thread': 'ThreadSanitizer: data race',
}


@pytest.mark.parametrize('kind', list(FAULTS))
def test_a_fault_would_be_seen(tmp_path, kind):
    """Without this, a sanitizer that is not at work would pass everything."""
    kinds = next(one for one in RUN_TIMES if kind in one)
    preloads(kinds)
    source, library = tmp_path / 'fault.cpp', tmp_path / 'fault.so'
    source.write_text(
        f'#include <thread>\nextern "C" int fault(int n) {{ {FAULTS[kind]} }}\n', 'utf-8'
    )
    build._run(
        (
            *(*build.find_compiler(), '-std=c++17', '-shared', '-fPIC', '-pthread'),
            *(f'-fsanitize={kinds}', *FLAGS, str(source), '-o', str(library)),
        )
    )
    program = f'import ctypes; ctypes.CDLL({str(library)!r}).fault(0)'
    done = run_with(kinds, library, '-c', program)
    assert done.returncode != 0
    assert SIGNS[kind] in done.stderr
