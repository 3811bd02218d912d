"""The training configuration as people write it: numbers, bases, changes, mistakes."""

import pytest

from bicrossnet_ros.errors import ConfigError
from training.config import TrainConfig
from training.config_files import config_from_dict, config_to_dict, load_config, with_changes


@pytest.mark.parametrize(
    ('text', 'value'), [('1e-3', 1e-3), ('2E+0', 2.0), ('.5e-2', 0.005), ('3', 3), ('0.01', 0.01)]
)
def test_numbers_as_people_write_them(tmp_path, text, value):
    path = tmp_path / 'run.yaml'
    path.write_text(f'optimizer: {{learning_rate: {text}}}\n')
    assert load_config(path).optimizer.learning_rate == value
    changed = with_changes(TrainConfig(), [f'optimizer.learning_rate={text}'])
    assert changed.optimizer.learning_rate == value


def test_a_file_says_what_differs_from_its_base(tmp_path):
    (tmp_path / 'base.yaml').write_text('run: {epochs: 60, seed: 3}\nmodel: {input_px: 64}\n')
    (tmp_path / 'run.yaml').write_text('base: base.yaml\nrun: {seed: 4}\n')
    config = load_config(tmp_path / 'run.yaml')
    assert (config.run.epochs, config.run.seed, config.model.input_px) == (60, 4, 64)


def test_dictionaries_round_trip():
    config = with_changes(TrainConfig(), ['data.views.tilt_deg=3', 'optimizer.milestones=[1, 2]'])
    assert config_from_dict(config_to_dict(config), source='test') == config


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ('run.epochs', r'expected SECTION\.KEY=VALUE'),
        ('run.epoch=3', r'there is no run\.epoch'),
        ('run=3', 'expected a mapping|found int'),
        ('model.name=resnet', 'expected one of bnext_nano'),
        ('model.input_px=100', 'multiple of 32'),
        ('run.epochs=10', r'unfreezing lasts 40 epochs'),
        ('model.branches=false', 'need the branches'),
        ('model.temperature_decay=0.95', 'of 2.8e-06 in the last of 250 .* 316 .* run.norm_steps'),
        ('losses.feature_distillation=1', 'needs a teacher'),
        ('data.height_m=175', '150, 200, 250'),
        ('run.seed=abc', 'a whole number'),
        ('optimizer.milestones=[1', 'the value is not readable as YAML'),
    ],
)
def test_impossible_changes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        with_changes(TrainConfig(), [change])


def test_annealing_ends_with_signs_or_statistics_of_signs():
    cooling = ['model.temperature_decay=0.9', 'unfreezing.strategy=none']
    with_changes(TrainConfig(), [*cooling, 'run.epochs=154'])
    with pytest.raises(ConfigError, match=r'set run.epochs to 154 or more'):
        with_changes(TrainConfig(), [*cooling, 'run.epochs=153'])
    with_changes(TrainConfig(), [*cooling, 'run.epochs=4', 'run.norm_steps=1'])


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('base: run.yaml', 'names itself'),
        ('base: nowhere.yaml', 'not readable'),
        ('run: [', 'not readable as YAML'),
        ('runs: {}', 'unknown key'),
        ('run: {epoch: 3}', 'unknown key'),
        ('[1, 2]', 'expected a mapping'),
        ('base: list.yaml', 'list.yaml: found list; expected a mapping'),
    ],
)
def test_unusable_files_are_refused(tmp_path, text, message):
    path = tmp_path / 'run.yaml'
    path.write_text(text)
    (tmp_path / 'list.yaml').write_text('[1, 2]')
    with pytest.raises(ConfigError, match=message):
        load_config(path)
