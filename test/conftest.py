"""Fixtures that several test modules share."""

import os
import signal
from pathlib import Path

import pytest

# Two threads that wait for each other cost more than they gain in tests of small networks.
os.environ.setdefault('OMP_NUM_THREADS', '1')

# A shell starts what runs in its background deaf to Ctrl-C, and so would be all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


def data_root() -> Path:
    """Folder of the real imagery: $BICROSSNET_DATA, else ../shared/data beside the checkout."""
    return Path(os.environ.get('BICROSSNET_DATA', REPOSITORY.parent / 'shared' / 'data'))


def _real(name: str) -> Path:
    folder = data_root() / name
    if not folder.is_dir():
        pytest.skip(f'real imagery not found: {folder} (set BICROSSNET_DATA)')
    return folder


@pytest.fixture(scope='session')
def seneca() -> Path:
    """The real Seneca flight: map.tif, queries/, flight.csv, camera.yaml."""
    return _real('seneca')


@pytest.fixture(scope='session')
def rsscn7() -> Path:
    """The real overhead scenes of RSSCN7."""
    return _real('rsscn7')


@pytest.fixture(scope='session')
def gallery(tmp_path_factory) -> Path:
    """A gallery of `nodes_scene.texture()` with the model that is shipped."""
    from nodes_scene import scene_gallery

    return scene_gallery(tmp_path_factory.mktemp('scene'))


@pytest.fixture
def world(tmp_path):
    """A ROS domain of this test alone; its processes end with the test."""
    from nodes_harness import World

    world = World(tmp_path)
    yield world
    world.close()
