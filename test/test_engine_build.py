"""How the engine is built: what is compiled, for which machine, and what is said when it fails."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bicrossnet_ros.engine import build, native, native_library
from bicrossnet_ros.engine.build import BuildError, build_library, find_compiler, main

SOURCES = build.SOURCE_FOLDER

try:
    find_compiler()
    has_compiler = True
except BuildError:
    has_compiler = False
needs_compiler = pytest.mark.skipif(not has_compiler, reason='no C++ compiler')

CORE = """
#include "number.h"
extern "C" {
__attribute__((visibility("default"))) int bcn_number() { return NUMBER; }
__attribute__((visibility("default"))) int bcn_avx512_is_in() {
#ifdef BCN_NO_AVX512
  return 0;
#else
  return 1;
#endif
}
__attribute__((visibility("default"))) int other() { return 3; }
}
"""


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A small engine with all names of the real one: compiled in no time."""
    folder = tmp_path / 'small'
    folder.mkdir()
    (folder / 'core.cpp').write_text(CORE)
    (folder / 'number.h').write_text('#define NUMBER 7\n')
    shutil.copy(SOURCES / 'exports.map', folder)
    for path in SOURCES.glob('backend_*.cpp'):
        (folder / path.name).write_text('')
    monkeypatch.setattr(build, 'SOURCE_FOLDER', folder)
    return folder


def script(path: Path, text: str) -> Path:
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return path


def names_of(folder: Path) -> set[str]:
    return {re.sub(r'-\w+\.o$', '', path.name) for path in folder.glob('*.o')}


@needs_compiler
def test_only_what_changed_is_compiled(small, tmp_path):
    out, objects = tmp_path / 'lib' / 'a.so', tmp_path / 'objects'
    assert build_library(out, objects=objects) == out
    assert ctypes.CDLL(str(out)).bcn_number() == 7
    first = {path: path.stat().st_mtime_ns for path in objects.iterdir()}
    build_library(out, objects=objects)
    assert {path: path.stat().st_mtime_ns for path in objects.iterdir()} == first
    (small / 'core.cpp').write_text(CORE + '\n// another\n')
    build_library(out, objects=objects)
    (new,) = set(objects.iterdir()) - first.keys()
    assert new.name.startswith('core-')
    (small / 'number.h').write_text('#define NUMBER 8\n')
    build_library(tmp_path / 'b.so', objects=objects)  # a.so is loaded under its name
    assert ctypes.CDLL(str(tmp_path / 'b.so')).bcn_number() == 8
    assert [path.name for path in out.parent.iterdir()] == ['a.so']


@needs_compiler
def test_nothing_but_the_interface_is_shown(small, tmp_path):
    library = ctypes.CDLL(str(build_library(tmp_path / 'a.so')))
    assert library.bcn_number() == 7
    assert not hasattr(library, 'other')


@needs_compiler
def test_each_machine_gets_its_back_ends(small, tmp_path):
    compiler = shutil.which(find_compiler()[0])
    expected = {
        '__x86_64__': {'scalar', 'x86_64_v2', 'avx2', 'avx512'},
        '__aarch64__': {'scalar', 'neon', 'neon_dot'},
        '__riscv': {'scalar'},
    }
    for macro, backends in expected.items():
        # A compiler of this machine that says it is one of another and knows that one's flags.
        fake = script(
            tmp_path / f'cxx{macro}',
            f'case "$*" in *-dM*) echo "#define {macro} 1"; exit;; *probe.cpp*) exit;; esac\n'
            'for word; do shift; case "$word" in -march=armv8*) ;; *) set -- "$@" "$word"; esac; '
            f'done\nexec {compiler} "$@"',
        )
        objects = tmp_path / f'objects{macro}'
        build_library(tmp_path / f'{macro}.so', compiler=[str(fake)], objects=objects)
        assert names_of(objects) == {'core', *(f'backend_{name}' for name in backends)}


@needs_compiler
def test_flags_that_a_compiler_refuses_leave_a_back_end_out(small, tmp_path, caplog):
    if build.target_architecture(find_compiler()) != 'x86_64':
        pytest.skip('needs a compiler for x86-64')
    old = script(
        tmp_path / 'old',
        'case "$*" in *vpopcntdq*) echo "unknown option vpopcntdq"; exit 1;; esac\n'
        f'exec {shutil.which(find_compiler()[0])} "$@"',
    )
    out = build_library(tmp_path / 'a.so', compiler=[str(old)], objects=tmp_path / 'o')
    assert 'backend_avx512' not in names_of(tmp_path / 'o')
    assert 'backend_avx2' in names_of(tmp_path / 'o')
    assert ctypes.CDLL(str(out)).bcn_avx512_is_in() == 0
    assert 'without its back end avx512' in caplog.text
    assert 'unknown option vpopcntdq' in caplog.text
    assert ctypes.CDLL(str(build_library(tmp_path / 'b.so'))).bcn_avx512_is_in() == 1


@needs_compiler
def test_an_error_in_a_source_is_an_error(small, tmp_path):
    (small / 'backend_avx2.cpp').write_text('int main() { return nonsense; }\n')
    (small / 'backend_neon.cpp').write_text('int main() { return nonsense; }\n')
    with pytest.raises(BuildError, match=r'(?s)-ffp-contract=off.*nonsense.*apt install g\+\+'):
        build_library(tmp_path / 'a.so')
    assert not (tmp_path / 'a.so').exists()


@needs_compiler
def test_a_symbol_that_is_missing_is_found_when_it_is_linked(small, tmp_path):
    """Not when an aircraft loads the library."""
    (small / 'core.cpp').write_text(
        'int elsewhere(); extern "C" __attribute__((visibility("default"))) '
        'int bcn_number() { return elsewhere(); }'
    )
    with pytest.raises(BuildError, match='elsewhere'):
        build_library(tmp_path / 'a.so')


def test_no_compiler(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(BuildError, match=r'no C\+\+ compiler .* \(sudo apt install g\+\+\)'):
        find_compiler()
    monkeypatch.setenv('CXX', 'ccache my-g++ -v')
    with pytest.raises(BuildError, match=r"CXX is 'ccache my-g\+\+ -v', but 'ccache' is no"):
        find_compiler()
    monkeypatch.setenv('CXX', 'g++ "-I')
    with pytest.raises(BuildError, match='which is no command: No closing quotation'):
        find_compiler()
    assert main(['--out', str(tmp_path / 'a.so')]) == 2
    assert 'the native engine is not built: CXX is' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_compiler_of_the_environment(monkeypatch, tmp_path):
    script(tmp_path / 'my-c++', 'exit 3')
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    monkeypatch.setenv('CXX', "my-c++ -target 'a b'")
    assert find_compiler() == ('my-c++', '-target', 'a b')
    with pytest.raises(BuildError, match=r"my-c\+\+ -target 'a b' .*\nfailed with exit status 3"):
        build_library(tmp_path / 'a.so')


def test_sanitizers_never_take_the_place_of_the_library(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['--sanitize', 'address'])
    assert caught.value.code == 2
    assert '--sanitize needs --out' in capsys.readouterr().err


def test_without_sources(monkeypatch, tmp_path):
    """As in an installed package."""
    if not has_compiler:
        pytest.skip('no C++ compiler')
    monkeypatch.setattr(build, 'SOURCE_FOLDER', tmp_path / 'src')
    with pytest.raises(BuildError, match='sources are not there'):
        build_library(tmp_path / 'a.so')


def test_stale_is_older_than_a_source(small, tmp_path):
    library = tmp_path / 'a.so'
    library.touch()
    os.utime(library, ns=(0, 10**18))
    for path in small.iterdir():
        os.utime(path, ns=(0, 10**18 - 5))
    assert not build.is_stale(library)
    os.utime(small / 'number.h', ns=(0, 10**18 + 5))
    assert build.is_stale(library)


def test_the_library_of_this_checkout_is_of_these_sources():
    library = SOURCES.parent / build.LIBRARY_NAME
    if not library.is_file():
        pytest.skip('the native engine is not built')
    assert not build.is_stale(library), 'run: python -m bicrossnet_ros.engine.build'


def test_builds_before_anything_is_installed():
    """The file alone, without its package, in a Python without site-packages."""
    program = (
        'import importlib.util, sys\n'
        f'spec = importlib.util.spec_from_file_location("build", {build.__file__!r})\n'
        'module = importlib.util.module_from_spec(spec)\n'
        'spec.loader.exec_module(module)\n'
        'assert not {"numpy", "bicrossnet_ros"} & set(sys.modules)\n'
        'print(len(module.source_files()))\n'
    )
    done = subprocess.run(
        [sys.executable, '-I', '-S', '-c', program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == len(build.source_files()) > 10


def test_every_back_end_has_a_source_and_every_source_a_back_end():
    named = {one.source for backends in build._BACKENDS.values() for one in backends}
    assert named | {'backend_scalar.cpp'} == {path.name for path in SOURCES.glob('backend_*.cpp')}


def test_names_are_the_same_everywhere():
    assert build.LIBRARY_NAME == native_library.LIBRARY_NAME
    header = (SOURCES / 'bicrossnet_engine.h').read_text(encoding='utf-8')
    assert f'#define BCN_ABI_VERSION {native_library.ABI_VERSION}\n' in header


@pytest.mark.skipif(not native.backends(), reason='the native engine is not built')
def test_the_library_shows_its_c_interface_and_nothing_else():
    if importlib.util.find_spec('elftools') is None:
        pytest.skip('needs pyelftools (the extra test)')
    from elftools.elf.elffile import ELFFile

    header = (SOURCES / 'bicrossnet_engine.h').read_text(encoding='utf-8')
    promised = set(re.findall(r'^BCN_API [^(]*?(bcn_\w+)\(', header, re.M))
    with native.library_path().open('rb') as file:
        symbols = ELFFile(file).get_section_by_name('.dynsym').iter_symbols()
        shown = {symbol.name for symbol in symbols if symbol['st_shndx'] != 'SHN_UNDEF'}
    assert len(promised) > 15
    assert shown - {''} == promised
