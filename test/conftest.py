"""Fixtures that several test modules share."""

import os
from pathlib import Path

import pytest

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
