"""Every parameter validates itself; files and dictionaries say what is wrong with them."""

import dataclasses
import math

import pytest

from bicrossnet_ros.config import (
    CameraConfig,
    IntegrityConfig,
    LocalizerConfig,
    RegistrationConfig,
    RetrievalConfig,
    config_from_dict,
    load_config,
)
from bicrossnet_ros.errors import ConfigError

STAGES = (CameraConfig, RetrievalConfig, RegistrationConfig, IntegrityConfig)
PARAMETERS = [(stage, item) for stage in STAGES for item in dataclasses.fields(stage)]
NAMES = [f'{stage.__name__}.{item.name}' for stage, item in PARAMETERS]


def as_default(item, value):
    """A number in the container that the parameter wants."""
    return (value,) if isinstance(item.default, tuple) else value


@pytest.mark.parametrize(('stage', 'item'), PARAMETERS, ids=NAMES)
def test_every_parameter_is_described_and_refuses_nonsense(stage, item):
    assert len(item.metadata['description']) > 10
    with pytest.raises(ConfigError, match=rf'{stage.__name__}\.{item.name} is'):
        stage(**{item.name: 'nonsense'})
    with pytest.raises(ConfigError, match=item.name):
        stage(**{item.name: None})
    if isinstance(item.default, bool):
        return
    with pytest.raises(ConfigError, match=f'{item.name} is True'):
        stage(**{item.name: as_default(item, True)})
    low, high = item.metadata['low'], item.metadata['high']
    assert low < high
    assert dataclasses.replace(stage(), **{item.name: as_default(item, low)})
    assert dataclasses.replace(stage(), **{item.name: as_default(item, high)})
    for outside in (low - 1, high + 1):
        with pytest.raises(ConfigError, match=f'from {low} to {high}'):
            stage(**{item.name: as_default(item, outside)})
    for value in (math.nan, math.inf):
        with pytest.raises(ConfigError, match=item.name):
            stage(**{item.name: as_default(item, value)})


def test_whole_numbers_stay_whole():
    with pytest.raises(ConfigError, match=r'max_windows is 2\.5; expected a whole number'):
        RegistrationConfig(max_windows=2.5)
    assert CameraConfig(max_tilt_deg=40).max_tilt_deg == 40


def test_an_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / 'empty.yaml'
    path.write_text('')
    assert load_config(path) == LocalizerConfig()


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path):
    path = tmp_path / 'some.yaml'
    path.write_text(
        'camera: {assumed_agl_m: [50, 100]}\nregistration:\nintegrity:\n  inflation: 2.5\n'
    )
    config = load_config(path)
    assert config.camera == CameraConfig(assumed_agl_m=(50, 100))
    assert config.integrity == IntegrityConfig(inflation=2.5)
    assert config.registration == RegistrationConfig()
    assert config.retrieval == RetrievalConfig()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'camera: {focal: 3}',
            r"camera: unknown key\(s\) \['focal'\]; known are \['assumed_agl_m'",
        ),
        ('cameras: {}', r"unknown key\(s\) \['cameras'\]"),
        ('[1, 2]', 'found list; expected a mapping'),
        ('camera: 3', 'camera: found int; expected a mapping'),
        ('camera: {max_tilt_deg: 90}', r'max_tilt_deg is 90; expected a number from 0 to 75'),
        ('camera: {max_tilt_deg: .nan}', 'max_tilt_deg is nan'),
        ('camera: {assumed_agl_m: 50}', 'assumed_agl_m is 50; expected a list of numbers'),
        ('camera: {assumed_agl_m: [a]}', "assumed_agl_m is 'a'"),
        ('registration: {enabled: 1}', 'enabled is 1; expected bool'),
        ('camera: [', 'not readable as YAML'),
        ('camera: !!python/object:os.system {}', 'not readable as YAML'),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / 'wrong.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r'none\.yaml: not readable as YAML'):
        load_config(tmp_path / 'none.yaml')
    path = tmp_path / 'binary.yaml'
    path.write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(ConfigError, match='not readable as YAML'):
        load_config(path)


def test_sections_of_a_dictionary_are_the_fields():
    names = [item.name for item in dataclasses.fields(LocalizerConfig)]
    assert config_from_dict(dict.fromkeys(names)) == LocalizerConfig()
