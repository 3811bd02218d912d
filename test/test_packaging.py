"""One setup.py for pip and colcon: what is installed where, and what is said about it."""

import ast
import configparser
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest
from nodes_scene import REPOSITORY, shared_install

import bicrossnet_ros
from bicrossnet_ros.engine import build

NAME = 'bicrossnet_ros'
ENGINE = f'{NAME}/engine/{build.LIBRARY_NAME}'
EXECUTABLES = {'geolocalizer', 'flight_player', 'bicrossnet-replay', 'bicrossnet-gallery'}


@pytest.fixture(scope='module')
def package():
    parser = pytest.importorskip('catkin_pkg.package', reason='needs catkin_pkg')
    return parser.parse_package(str(REPOSITORY / 'package.xml'))


def test_package_xml_is_valid(package):
    package.validate()
    assert package.package_format == 3
    assert package.get_build_type() == 'ament_python'
    assert [str(licence) for licence in package.licenses] == ['Apache-2.0']


def test_one_version_everywhere(package):
    assert package.version == bicrossnet_ros.__version__


def test_package_xml_names_every_ros_package_that_is_imported(package):
    ros = re.compile(
        r'(rclpy|launch|launch_ros|builtin_interfaces|\w+_msgs|\w+_srvs|\w+_interfaces)$'
    )
    imported = set()
    files = [*(REPOSITORY / NAME / 'nodes').glob('*.py'), *(REPOSITORY / 'launch').glob('*.py')]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                imported.add(node.module.split('.')[0])
            elif isinstance(node, ast.Import):
                imported.update(alias.name.split('.')[0] for alias in node.names)
    needed = {name for name in imported if ros.match(name)} | {'ros2launch'}
    # std_msgs comes with every message package; it is named all the same.
    assert needed <= {depend.name for depend in package.exec_depends}


def test_scripts_go_where_ros2_run_looks():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / 'setup.cfg')
    assert settings['develop']['script_dir'] == f'$base/lib/{NAME}'
    assert settings['install']['install_scripts'] == f'$base/lib/{NAME}'


def test_dds_profile_fits_images_into_shared_memory():
    space = {'dds': 'http://www.eprosima.com'}
    root = ET.parse(REPOSITORY / 'config' / 'fastdds.xml').getroot()
    kinds = {one.text for one in root.iterfind('.//dds:type', space)}
    assert kinds == {'SHM', 'UDPv4'}
    segment = int(root.find('.//dds:segment_size', space).text)
    assert segment >= int(root.find('.//dds:maxMessageSize', space).text) >= 1920 * 1080 * 3
    named = {one.text for one in root.iterfind('.//dds:userTransports/dds:transport_id', space)}
    defined = {
        one.text for one in root.iterfind('.//dds:transport_descriptor/dds:transport_id', space)
    }
    assert named == defined


def test_the_shipped_parameters_are_those_of_the_configuration():
    from bicrossnet_ros.nodes.yaml_file import default_yaml

    shipped = (REPOSITORY / 'config' / 'geolocalizer.yaml').read_text(encoding='utf-8')
    assert shipped == default_yaml(), (
        'run: python -m bicrossnet_ros.nodes.yaml_file > config/geolocalizer.yaml'
    )


# A build leaves files behind in its tree, so it gets a copy, without what was built before.
LEFT_OUT = shutil.ignore_patterns(
    '.git', '.venv', 'build', 'dist', 'install', 'log', 'out', '.*_cache', '*.so'
)


def build_in(folder: Path, command: str, **environment: str) -> Path:
    """Run a hook of setuptools in a copy of the repository; return what it made."""
    source = folder / 'source'
    if not source.is_dir():
        shutil.copytree(REPOSITORY, source, ignore=LEFT_OUT)
    program = f'import setuptools.build_meta as b; print(b.{command}({str(folder)!r}))'
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / 'log').write_text(done.stdout + done.stderr, encoding='utf-8')
    return folder / done.stdout.splitlines()[-1]


def has_compiler() -> bool:
    try:
        build.find_compiler()
    except build.BuildError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason='no C++ compiler')


@pytest.fixture(scope='module')
def plain_wheel(tmp_path_factory) -> Path:
    """Built where no compiler is, over what an earlier build with one left."""
    folder = tmp_path_factory.mktemp('wheel')
    shutil.copytree(REPOSITORY, folder / 'source', ignore=LEFT_OUT)
    folder_name = f'lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}'
    for place in ('.', f'build/{folder_name}', 'build/lib'):
        stale = folder / 'source' / place / ENGINE
        stale.parent.mkdir(parents=True, exist_ok=True)
        stale.write_bytes(b'a library of yesterday')
    return build_in(folder, 'build_wheel', CXX='/no/such/compiler')


def test_wheel_has_model_scripts_and_shared_files(plain_wheel):
    with zipfile.ZipFile(plain_wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(
            next(name for name in names if name.endswith('entry_points.txt'))
        ).decode()
        metadata = archive.read(next(name for name in names if name.endswith('METADATA'))).decode()
    assert any(re.fullmatch(rf'{NAME}/models/.*\.safetensors', name) for name in names)
    assert f'{NAME}/py.typed' in names
    assert 'gallery_builder/__main__.py' in names
    assert not any(name.startswith(('training/', 'test/', 'bench/')) for name in names)
    for shared in (
        f'ament_index/resource_index/packages/{NAME}',
        f'{NAME}/package.xml',
        f'{NAME}/launch/geolocalize.launch.py',
        f'{NAME}/config/geolocalizer.yaml',
        f'{NAME}/config/fastdds.xml',
    ):
        assert any(name.endswith(f'data/share/{shared}') for name in names), shared
    assert set(re.findall(r'^([\w-]+) = ', entry_points, re.M)) == EXECUTABLES
    ros = [line for line in metadata.splitlines() if line.startswith('Requires-Dist: ros-')]
    assert ros
    assert all('platform_machine == "x86_64"' in line and 'extra ==' in line for line in ros)
    needed = [line for line in metadata.splitlines() if line.startswith('Requires-Dist')]
    always = [line for line in needed if 'extra ==' not in line]
    assert not any(re.search(r'torch|rasterio|ros-', line) for line in always)


def test_wheel_without_a_compiler_is_for_every_machine_and_says_so(plain_wheel):
    assert plain_wheel.name.endswith('-py3-none-any.whl')
    with zipfile.ZipFile(plain_wheel) as archive:
        assert not any(name.endswith('.so') for name in archive.namelist())
    log = (plain_wheel.parent / 'log').read_text(encoding='utf-8')
    assert 'the native engine is NOT built' in log
    assert 'networks will run on ONNX Runtime' in log
    assert "'/no/such/compiler' is no command here" in log


def test_a_package_for_others_can_insist_on_the_engine(plain_wheel):
    done = subprocess.run(
        [sys.executable, 'setup.py', 'build_ext'],
        cwd=plain_wheel.parent / 'source',
        env={**os.environ, 'CXX': '/no/such/compiler', 'BICROSSNET_REQUIRE_ENGINE': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "error: the native engine is not built: CXX is '/no/such/compiler'" in done.stderr


@needs_compiler
def test_wheel_with_the_engine_is_for_one_machine_and_every_python(tmp_path):
    sources = build_in(tmp_path, 'build_sdist')
    with tarfile.open(sources) as archive:
        packed = {name.partition('/')[2] for name in archive.getnames()}
    needed = {str(path.relative_to(REPOSITORY)) for path in build.source_files()}
    assert len(needed) > 10
    assert needed <= packed
    quick = tmp_path / 'quick-c++'  # optimising takes most of the time
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(build.find_compiler())} "$@" -O0\n')
    quick.chmod(0o755)
    wheel = build_in(tmp_path, 'build_wheel', CXX=str(quick))
    assert re.search(r'-py3-none-(linux|macosx)_\w+\.whl$', wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert [name for name in names if name.endswith('.so')] == [ENGINE]
        assert not any(name.endswith(('.cpp', '.h', '.map')) for name in names)
        archive.extract(ENGINE, tmp_path / 'wheel')
    program = 'from bicrossnet_ros.engine import native; print(*native.backends())'
    done = subprocess.run(
        [sys.executable, '-c', program],
        env={**os.environ, 'BICROSSNET_ENGINE_LIBRARY': str(tmp_path / 'wheel' / ENGINE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 'scalar' in done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize('machine', ['x86_64', 'aarch64'])
def test_wheels_for_others_need_little_of_their_machines(tmp_path, machine):
    """The recipe of `make wheels`: no C++ library, and a glibc of 2018 at most."""
    pytest.importorskip('ziglang', reason='needs ziglang (make wheels installs it)')
    elffile = pytest.importorskip('elftools.elf.elffile', reason='needs pyelftools')
    shutil.copytree(REPOSITORY, tmp_path / 'source', ignore=LEFT_OUT)
    tag = f'manylinux_2_28_{machine}'
    done = subprocess.run(
        [sys.executable, 'setup.py', 'bdist_wheel', '--plat-name', tag],
        cwd=tmp_path / 'source',
        env={
            **os.environ,
            'CXX': f'{sys.executable} -m ziglang c++ -target {machine}-linux-gnu.2.28',
            'BICROSSNET_REQUIRE_ENGINE': '1',
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / 'source' / 'dist').iterdir()
    assert wheel.name.endswith(f'-py3-none-{tag}.whl')
    with zipfile.ZipFile(wheel) as archive:
        library = Path(archive.extract(ENGINE, tmp_path))
    with library.open('rb') as file:
        elf = elffile.ELFFile(file)
        assert elf.get_machine_arch() == {'x86_64': 'x64', 'aarch64': 'AArch64'}[machine]
        needed = {
            entry.needed for entry in elf.get_section_by_name('.dynamic').iter_tags('DT_NEEDED')
        }
        versions = {
            version.name
            for _, one in elf.get_section_by_name('.gnu.version_r').iter_versions()
            for version in one
        }
    assert all(re.match(r'lib(c|m|dl|pthread)\.so|ld-linux', name) for name in needed), needed
    assert all(name.startswith('GLIBC_') for name in versions), versions
    newest = max(tuple(map(int, name[6:].split('.'))) for name in versions)
    assert newest <= (2, 28)
    if machine == platform.machine():
        program = 'from bicrossnet_ros.engine import native; print(*native.backends())'
        run = [sys.executable, '-c', program]
        theirs = {**os.environ, 'BICROSSNET_ENGINE_LIBRARY': str(library)}
        found = subprocess.run(run, env=theirs, capture_output=True, text=True, check=True)
        ours = subprocess.run(run, capture_output=True, text=True, check=True)
        assert found.stdout == ours.stdout


@pytest.fixture(scope='module')
def installed() -> Path:
    return shared_install()


@pytest.mark.ros
def test_colcon_installs_executables_where_ros2_run_looks(installed):
    found = {path.name for path in (installed / 'lib' / NAME).iterdir()}
    assert found == EXECUTABLES
    for name in EXECUTABLES:
        assert os.access(installed / 'lib' / NAME / name, os.X_OK)
    marker = installed / 'share' / 'ament_index' / 'resource_index' / 'packages' / NAME
    assert marker.is_file()
    share = installed / 'share' / NAME
    assert (share / 'package.xml').is_file()
    assert (share / 'launch' / 'geolocalize.launch.py').is_file()
    assert (share / 'config' / 'geolocalizer.yaml').is_file()
    engines = list(installed.rglob(build.LIBRARY_NAME))
    assert len(engines) == has_compiler()


@pytest.mark.ros
def test_installed_executables_start(installed):
    for name in ('flight_player', 'bicrossnet-gallery', 'bicrossnet-replay'):
        command = f'. {installed.parent}/setup.sh && {installed}/lib/{NAME}/{name} --help'
        result = subprocess.run(
            ['bash', '-c', command],
            env={**os.environ, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert 'usage' in result.stdout


@pytest.mark.parametrize('name', ['geolocalizer', 'flight_player'])
def test_without_ros_an_executable_says_what_to_install(name):
    program = (
        'import sys\n'
        'sys.modules["rclpy"] = None\n'  # importing it now raises, as if it were not there
        'from bicrossnet_ros.nodes import entry\n'
        f'sys.exit(entry.{name}())\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f'{name} needs ROS 2' in done.stderr
    assert 'Traceback' not in done.stderr
