"""Build the engine: the one list of its sources, their flags and the way they are linked.

    python -m bicrossnet_ros.engine.build [--out FILE] [--sanitize address,undefined | thread]

Needs a C++17 compiler and nothing else. Imports the standard library alone, because setup.py
loads this file by its path before anything else is installed.

The compiler is ``$CXX`` (with any flags it carries, such as a target or a system root), else the
first of c++, g++ and clang++. What is built follows from the machine that the compiler compiles
for, not from the one that runs it.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

LIBRARY_NAME = 'libbicrossnet_engine.so'
SOURCE_FOLDER = Path(__file__).resolve().parent / 'src'

COMMON_FLAGS = (
    *('-std=c++17', '-O3', '-fPIC', '-fvisibility=hidden', '-pthread', '-Wall', '-Wextra'),
    # All back ends round alike: no compiler may fuse a product and a sum.
    '-ffp-contract=off',
)
# Nothing but the C interface leaves the library, not even a C++ library that was linked in.
LINK_FLAGS = ('-shared', '-pthread', f'-Wl,--version-script={SOURCE_FOLDER / "exports.map"}')
SANITIZER_FLAGS = ('-fno-sanitize-recover=all', '-fno-omit-frame-pointer', '-g', '-O0')


class _Backend(NamedTuple):
    """One back end beside the scalar one: its source is backend_NAME.cpp."""

    name: str
    flags: tuple[str, ...]
    header: str

    @property
    def source(self) -> str:
        return f'backend_{self.name}.cpp'

    @property
    def left_out(self) -> str:
        return f'-DBCN_NO_{self.name.upper()}'


# What -march=x86-64-v2 means, in words that g++ before 11 knows too. The rest of that level
# (cmpxchg16b, lahf) is of no use here.
_V2 = ('-msse4.2', '-mpopcnt')
_AVX512 = tuple(f'-mavx512{part}' for part in ('f', 'bw', 'dq', 'vl', 'vpopcntdq'))

_BACKENDS = {
    'x86_64': (
        _Backend('x86_64_v2', _V2, 'immintrin.h'),
        _Backend('avx2', (*_V2, '-mavx2'), 'immintrin.h'),
        _Backend('avx512', (*_V2, '-mavx2', *_AVX512), 'immintrin.h'),
    ),
    'aarch64': (
        _Backend('neon', (), 'arm_neon.h'),
        # Needs no flag: its only instruction beyond the baseline stands in inline assembly.
        _Backend('neon_dot', (), 'arm_neon.h'),
    ),
}

_log = logging.getLogger(__name__)


class BuildError(Exception):
    """The engine cannot be built here; the message says why and what to do."""


def build_library(
    out: Path,
    *,
    compiler: Sequence[str] | None = None,
    extra_flags: Sequence[str] = (),
    objects: Path | None = None,
) -> Path:
    """Compile what changed and link the engine.

    Parameters
    ----------
    out : Path
        The library to write; replaced at once, so that a process that runs the old one goes on.
    compiler : sequence of str, optional
        The compiler's command; default: `find_compiler`.
    extra_flags : sequence of str
        Added to every compilation and to the linking, after all others.
    objects : Path, optional
        Folder of object files. They are named after everything that they come from, so any
        number of builds may share it. Default: a temporary folder.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    BuildError
        If there is no compiler, or it fails.
    """
    command = tuple(compiler or find_compiler())
    if objects is None:
        with tempfile.TemporaryDirectory(prefix='bicrossnet-engine-') as temporary:
            return build_library(
                out, compiler=command, extra_flags=extra_flags, objects=Path(temporary)
            )
    for folder in (objects, out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    sources = _sources_with_flags(command)
    identity = _run((*command, '--version')) + _headers()

    def compile_one(source: Path, flags: tuple[str, ...]) -> Path:
        return _compile((*command, *COMMON_FLAGS, *flags, *extra_flags), source, identity, objects)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(compile_one, sources.keys(), sources.values()))
    partial = out.with_name(f'{out.name}.{os.getpid()}.partial')
    # Names stay, for profilers. What sanitizers need comes from the process that loads it.
    usual = () if '-g' in extra_flags else ('-Wl,--no-undefined', '-Wl,--strip-debug')
    try:
        _run(
            (*command, *map(str, compiled), '-o', str(partial), *LINK_FLAGS, *usual, *extra_flags)
        )
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def find_compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler: ``$CXX``, else the first that is there.

    Raises
    ------
    BuildError
        If there is none.
    """
    wanted = os.environ.get('CXX', '')
    try:
        commands = [shlex.split(wanted)] if wanted.strip() else [['c++'], ['g++'], ['clang++']]
    except ValueError as error:
        raise BuildError(f'CXX is {wanted!r}, which is no command: {error}') from error
    for command in commands:
        if shutil.which(command[0]):
            return tuple(command)
    if wanted.strip():
        raise BuildError(f'CXX is {wanted!r}, but {commands[0][0]!r} is no command here')
    raise BuildError(
        'no C++ compiler (c++, g++ or clang++) is installed; install one '
        '(sudo apt install g++) or name one in the environment variable CXX'
    )


def target_architecture(compiler: Sequence[str]) -> str:
    """Return what a compiler compiles for: 'x86_64', 'aarch64' or 'other'."""
    # Not -dumpmachine: that disregards flags such as -m32, and zig's compiler fails at it.
    macros = _run((*compiler, '-dM', '-E', '-x', 'c++', os.devnull))
    found = (name for name in _BACKENDS if f'#define __{name}__ ' in macros)
    return next(found, 'other')


def is_stale(library: Path) -> bool:
    """Return whether a source is newer than a library: only where sources are, so in a checkout.

    Parameters
    ----------
    library : Path
        A library that exists.
    """
    built = library.stat().st_mtime_ns
    return any(path.stat().st_mtime_ns > built for path in source_files())


def source_files() -> list[Path]:
    """Return all sources and headers, for every machine; empty in an installed package."""
    return sorted(
        path for pattern in ('*.cpp', '*.h', '*.map') for path in SOURCE_FOLDER.glob(pattern)
    )


def _sources_with_flags(compiler: tuple[str, ...]) -> dict[Path, tuple[str, ...]]:
    """Every source to compile with its own flags; unknown flags leave a back end out."""
    backends = _BACKENDS.get(target_architecture(compiler), ())
    known = [backend for backend in backends if _knows(compiler, backend)]
    switches = tuple(backend.left_out for backend in backends if backend not in known)
    core = sorted({*SOURCE_FOLDER.glob('*.cpp')} - {*SOURCE_FOLDER.glob('backend_*.cpp')})
    if not core:
        raise BuildError(f'{SOURCE_FOLDER}: the sources are not there; install from a checkout')
    sources = dict.fromkeys((*core, SOURCE_FOLDER / 'backend_scalar.cpp'), switches)
    return sources | {
        SOURCE_FOLDER / backend.source: (*switches, *backend.flags) for backend in known
    }


def _knows(compiler: tuple[str, ...], backend: _Backend) -> bool:
    """Return whether the compiler and its assembler know the flags of a back end."""
    if not (SOURCE_FOLDER / backend.source).is_file():
        _log.warning('%s is not there; the engine goes without that back end', backend.source)
        return False
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / 'probe.cpp'
        probe.write_text(f'#include <{backend.header}>\nint probe() {{ return 0; }}\n')
        try:
            _run((*compiler, *backend.flags, '-c', str(probe), '-o', str(probe) + '.o'))
        except BuildError as error:
            _log.warning('the engine goes without its back end %s: %s', backend.name, error)
            return False
    return True


def _headers() -> str:
    return ''.join(path.read_text('utf-8') for path in sorted(SOURCE_FOLDER.glob('*.h')))


def _compile(command: tuple[str, ...], source: Path, identity: str, objects: Path) -> Path:
    """Compile one source, unless the object file of exactly this is there."""
    parts = (*command, identity, source.read_text('utf-8'))
    digest = hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]
    compiled = objects / f'{source.stem}-{digest}.o'
    if compiled.is_file():
        return compiled
    partial = compiled.with_suffix(f'.{os.getpid()}.partial.o')
    try:
        output = _run((*command, '-c', str(source), '-o', str(partial)))
        if output.strip():
            _log.warning('%s', output.strip())
        partial.replace(compiled)
    finally:
        partial.unlink(missing_ok=True)
    return compiled


def _run(command: Sequence[str]) -> str:
    """Run a command of the compiler; return what it printed."""
    try:
        done = subprocess.run(
            command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding='utf-8',
            errors='replace',
        )
    except OSError as error:
        raise BuildError(f'{command[0]} cannot be run ({error}); {_REMEDY}') from error
    if done.returncode:
        last = '\n'.join(done.stdout.strip().splitlines()[-20:])
        raise BuildError(
            f'{shlex.join(command)}\nfailed with exit status {done.returncode}:\n{last}\n{_REMEDY}'
        )
    return done.stdout


_REMEDY = (
    'needed are a C++17 compiler (sudo apt install g++, or name another one in CXX) and a folder '
    'to write to'
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: build the library of this checkout, or one with sanitizers."""
    parser = argparse.ArgumentParser(
        prog='python -m bicrossnet_ros.engine.build', description='Build the native engine.'
    )
    parser.add_argument('--out', type=Path, help=f'default: {LIBRARY_NAME} in the package')
    parser.add_argument(
        '--sanitize', metavar='KINDS', help='address,undefined or thread; needs --out'
    )
    options = parser.parse_args(arguments)
    if options.sanitize and not options.out:
        parser.error('--sanitize needs --out: such a library must not take the place of the usual')
    logging.basicConfig(format='%(message)s')
    flags = (f'-fsanitize={options.sanitize}', *SANITIZER_FLAGS) if options.sanitize else ()
    out = options.out or SOURCE_FOLDER.parent / LIBRARY_NAME
    try:
        build_library(out, extra_flags=flags, objects=_objects_of_checkout())
    except BuildError as error:
        print(f'the native engine is not built: {error}', file=sys.stderr)
        return 2
    print(out)
    return 0


def _objects_of_checkout() -> Path | None:
    """Where a checkout keeps object files between builds."""
    root = SOURCE_FOLDER.parents[2]
    return root / 'build' / 'engine' if (root / 'setup.py').is_file() else None


if __name__ == '__main__':
    sys.exit(main())
