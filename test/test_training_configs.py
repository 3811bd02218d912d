"""The configuration files: each loads, and differs from its row's neighbours in what it varies."""

from pathlib import Path

import pytest

import training.train
from training.config import TrainConfig
from training.config_files import config_to_dict, load_config, with_changes
from training.run_folder import _flat

FOLDER = Path(training.train.__file__).parent / 'configs'
HEIGHTS = (150, 200, 250, 300)


def load(name: str) -> TrainConfig:
    return load_config(FOLDER / f'{name}.yaml')


def difference(first: str, second: str) -> dict:
    """What `second` says otherwise than `first`."""
    before, after = (_flat(config_to_dict(load(name))) for name in (first, second))
    return {key: after[key] for key in after if after[key] != before[key]}


@pytest.mark.parametrize('path', sorted(FOLDER.glob('*.yaml')), ids=lambda path: path.stem)
def test_every_file_loads_and_says_what_it_is_for(path):
    load_config(path)
    assert path.read_text().startswith('# ')


def test_the_tiny_row_is_the_defaults():
    config = _flat(config_to_dict(load('university1652_tiny')))
    defaults = _flat(config_to_dict(TrainConfig()))
    assert {key: config[key] for key in config if config[key] != defaults[key]} == {
        'model.pretrained': 'weights/bnext_tiny.pth',
        'losses.teacher': 'runs/university1652_teacher/final.pt',
    }


def test_the_teacher_is_trained_as_in_the_notes():
    config = load('university1652_teacher')
    assert config.model.name == 'convnext_tiny'
    assert config.model.branches
    optimizer = config.optimizer
    assert (optimizer.strategy, optimizer.learning_rate, optimizer.momentum) == ('sgd', 0.01, 0.9)
    assert (optimizer.backbone_factor, optimizer.weight_decay) == (0.3, 5e-4)
    assert (optimizer.milestones, optimizer.gamma) == ((80, 120), 0.1)
    assert config.run.epochs == 200
    assert (config.unfreezing.strategy, config.losses.logit_distillation) == ('none', 0)


MIDDLE = {'model.name': 'bnext_middle', 'model.pretrained': 'weights/bnext_middle.pth'}
NO_TEACHER = {'losses.logit_distillation': 0, 'losses.teacher': ''}


@pytest.mark.parametrize(
    ('first', 'second', 'expected'),
    [
        # Table 3.
        ('university1652_tiny', 'university1652_middle', MIDDLE),
        # Table 4: the rows with distillation, and what the rows without it leave out.
        (
            'university1652_tiny',
            'ablation_kd_tiny_kd',
            {'unfreezing.strategy': 'none', 'optimizer.strategy': 'adam'},
        ),
        ('ablation_kd_tiny_kd', 'ablation_kd_middle_kd', MIDDLE),
        (
            'ablation_kd_tiny_kd',
            'ablation_kd_recu_kd',
            {'model.name': 'resnet34_recu', 'model.pretrained': ''},
        ),
        *(
            (f'ablation_kd_{name}_kd', f'ablation_kd_{name}_none', NO_TEACHER)
            for name in ('tiny', 'middle', 'recu')
        ),
        # Table 5.
        ('ablation_kd_tiny_kd', 'ablation_unfreezing_none', {}),
        (
            'ablation_unfreezing_none',
            'ablation_unfreezing_gradual',
            {'unfreezing.strategy': 'gradual'},
        ),
        (
            'ablation_unfreezing_none',
            'ablation_unfreezing_bi_gradual',
            {'unfreezing.strategy': 'bi_gradual'},
        ),
        # Table 6.
        ('ablation_kd_tiny_kd', 'ablation_optimizer_adam', {}),
        (
            'ablation_optimizer_adam',
            'ablation_optimizer_sgd',
            {'optimizer.strategy': 'sgd', 'optimizer.learning_rate': 0.01},
        ),
        (
            'ablation_optimizer_adam',
            'ablation_optimizer_adamw',
            {'optimizer.strategy': 'adamw', 'optimizer.weight_decay': 0.01},
        ),
        (
            'ablation_optimizer_adam',
            'ablation_optimizer_lion',
            {'optimizer.strategy': 'lion', 'optimizer.learning_rate': 1e-3},
        ),
        (
            'ablation_optimizer_adam',
            'ablation_optimizer_bi_partitioned',
            {'optimizer.strategy': 'bi_partitioned'},
        ),
        # Table 7; the last row is no unfreezing at all, spelt as the table spells it.
        ('university1652_tiny', 'ablation_epochs_a', {}),
        ('ablation_epochs_a', 'ablation_epochs_b', {'unfreezing.partial_epochs': 10}),
        ('ablation_epochs_a', 'ablation_epochs_c', {'unfreezing.partial_epochs': 30}),
        ('ablation_epochs_a', 'ablation_epochs_d', {'run.epochs': 200}),
        ('ablation_epochs_a', 'ablation_epochs_e', {'run.epochs': 300}),
        ('ablation_epochs_a', 'ablation_epochs_f', {'unfreezing.head_epochs': 10}),
        (
            'ablation_epochs_a',
            'ablation_epochs_g',
            {'unfreezing.head_epochs': 0, 'unfreezing.partial_epochs': 0},
        ),
        # Table 8: as the rows of table 4 without distillation, and XNOR-Net.
        ('ablation_kd_tiny_none', 'ablation_backbone_tiny', {}),
        ('ablation_kd_middle_none', 'ablation_backbone_middle', {}),
        ('ablation_kd_recu_none', 'ablation_backbone_recu', {}),
        ('ablation_backbone_recu', 'ablation_backbone_xnor', {'model.name': 'resnet34_xnor'}),
        # Table 2.
        *(
            (
                'university1652_tiny',
                f'sues200_{height}_tiny',
                {
                    'data.source': 'sues200',
                    'data.height_m': height,
                    'losses.teacher': f'runs/sues200_{height}_teacher/final.pt',
                },
            )
            for height in HEIGHTS
        ),
        *(
            (
                'university1652_teacher',
                f'sues200_{height}_teacher',
                {'data.source': 'sues200', 'data.height_m': height},
            )
            for height in HEIGHTS
        ),
    ],
)
def test_rows_differ_in_what_the_table_varies(first, second, expected):
    assert difference(first, second) == expected


def test_a_path_can_be_taken_away():
    config = with_changes(load('university1652_tiny'), ['model.pretrained=', 'losses.teacher='])
    assert (config.model.pretrained, config.losses.teacher) == ('', '')


def test_a_teacher_is_where_its_own_run_puts_it():
    teachers = {load(path.stem).losses.teacher for path in FOLDER.glob('*.yaml')} - {''}
    names = {Path(teacher).parent.name for teacher in teachers}
    others = ('university1652_teacher', 'default_teacher')
    assert names == {*others, *(f'sues200_{h}_teacher' for h in HEIGHTS)}
    for teacher in teachers:
        path = Path(teacher)
        assert (path.parts[0], path.name) == ('runs', 'final.pt')
        assert (FOLDER / f'{path.parent.name}.yaml').exists()


def test_the_default_models_go_on_from_each_other():
    before = {
        path.stem: {config.model.pretrained, config.model.widen_from} - {'', 'imagenet'}
        for path in FOLDER.glob('default*.yaml')
        for config in [load(path.stem)]
    }
    assert before == {
        'default': set(),
        'default_teacher': set(),
        'default_bound': set(),
        'default_convnext': set(),
        'default_nano_start': set(),
        'default_nano': {'runs/default_nano_start/final.pt'},
        'default_nano_heading_free': {'runs/default_nano/final.pt'},
        'default_nano_finish': {'runs/default_nano/final.pt'},
        'default_tiny': {'runs/default_nano_finish/final.pt'},
        'default_tiny_heading_free': {'runs/default_nano_heading_free/final.pt'},
    }


def test_the_modern_recipe_needs_no_classes():
    config = load('university1652_infonce')
    assert not config.model.branches
    assert (config.data.sampler, config.data.places_per_step) == ('pairs', 128)
    losses = config.losses
    assert (losses.info_nce, losses.feature_distillation, losses.label_smoothing) == (1, 1, 0.1)
