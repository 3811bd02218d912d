"""One setup.py for pip and colcon: what is installed where, and what is said about it."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from nodes_scene import REPOSITORY, shared_install

import bicrossnet_ros

NAME = 'bicrossnet_ros'
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


def test_wheel_has_model_scripts_and_shared_files(tmp_path):
    """Built from a copy: a build leaves files behind in the tree."""
    import zipfile

    source = tmp_path / 'source'
    shutil.copytree(
        REPOSITORY,
        source,
        ignore=shutil.ignore_patterns(
            '.git', '.venv', 'build', 'install', 'log', 'out', '.*_cache'
        ),
    )
    subprocess.run(
        [
            *(sys.executable, '-c', 'import setuptools.build_meta as b; b.build_wheel("dist")'),
        ],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = (source / 'dist').glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
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
