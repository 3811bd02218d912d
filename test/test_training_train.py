"""The trainer: resumes exactly, learns, splits by scene, refuses what it cannot use."""

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.errors import ConfigError, ImageError, ModelError
from training import train as trainer
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import TrainConfig, ViewConfig, config_from_dict, load_config
from training.evaluate import recall_at
from training.export import main as export_main
from training.losses import SymmetricInfoNCE
from training.models import BinaryConv2d, make_bnext
from training.data.scenes import list_scenes, load_scenes, split_scenes

SMALL = TrainConfig(
    model='nano',
    input_px=32,
    scene_px=64,
    holdout=4,
    steps=4,
    scenes_per_step=4,
    warmup_steps=1,
    threads=1,
    bfloat16=False,
    evaluate_every=2,
    checkpoint_every=2,
    norm_steps=2,
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    rng = np.random.default_rng(0)
    for number in range(12):
        image = cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (80, 80))
        (folder / f'class{number % 2}').mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f'class{number % 2}' / f'{number:02d}.png'), image)
    return folder


@pytest.fixture(scope='module')
def whole_run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')
    figures = trainer.train(SMALL, data=data, out=out, resume=False)
    return out, figures


def test_resumed_run_equals_uninterrupted_run(data, whole_run, tmp_path, monkeypatch):
    class PowerCut(Exception):
        pass

    def save_and_die(path, state):
        save_checkpoint(path, state)
        raise PowerCut

    monkeypatch.setattr(trainer, 'save_checkpoint', save_and_die)
    with pytest.raises(PowerCut):
        trainer.train(SMALL, data=data, out=tmp_path, resume=False)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / 'checkpoint.pt')['step'] == 2
    figures = trainer.train(SMALL, data=data, out=tmp_path, resume=True)

    out, whole_figures = whole_run
    assert figures == whole_figures
    states = [load_checkpoint(folder / 'final.pt') for folder in (out, tmp_path)]
    assert states[0]['model'].keys() == states[1]['model'].keys()
    for name, value in states[0]['model'].items():
        assert torch.equal(value, states[1]['model'][name]), name


def test_run_leaves_its_record(whole_run):
    out, figures = whole_run
    assert load_config(out / 'config.yaml') == SMALL
    lines = [json.loads(line) for line in (out / 'history.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [2, 4, 4]
    state = load_checkpoint(out / 'final.pt')
    assert state['step'] == 4
    assert re.fullmatch(r'[0-9a-f]{40}(-dirty)?|unknown', state['git_revision'])
    assert state['figures'] == figures
    assert set(figures) == {'recall_at_1', 'recall_at_5', 'recall_at_20', 'step', 'tiles'}


def test_checkpoint_exports_to_a_flying_model(whole_run, tmp_path, capsys):
    out, figures = whole_run
    path = tmp_path / 'small.safetensors'
    assert export_main([str(out / 'final.pt'), '--out', str(path), '--data', 'noise']) == 0
    record = json.loads(path.with_suffix('.json').read_text())
    assert record['data'] == 'noise'
    assert record['images_seen'] == 4 * 4 * 2 * 2
    assert record['validation'] == figures
    assert open_encoder(path).encode(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 512)
    assert export_main(['--untrained', 'nano', '--out', str(tmp_path / 'u.safetensors')]) == 0
    assert open_encoder(tmp_path / 'u.safetensors').model_name == 'u'
    assert export_main(['--untrained', str(path), '--out', str(tmp_path / 'v.safetensors')]) == 0
    assert open_encoder(tmp_path / 'v.safetensors').preprocessing.input_width_px == 32
    assert export_main(['--untrained', 'huge', '--out', str(tmp_path / 'w.safetensors')]) == 2
    assert export_main([str(out / 'none.pt'), '--out', str(path)]) == 2
    assert export_main([str(out / 'final.pt'), '--out', str(tmp_path / 'x.onnx')]) == 2
    assert 'no such checkpoint' in capsys.readouterr().err


def test_training_steps_reduce_the_loss_on_one_batch():
    torch.manual_seed(0)
    config = replace(SMALL, learning_rate=2e-3)
    model, loss = make_bnext('nano'), SymmetricInfoNCE(0.07)
    optimizer = trainer.make_optimizer(model, loss, config)
    rng = np.random.default_rng(0)
    views = tuple(rng.integers(0, 256, (2, 8, 32, 32, 3), np.uint8))
    views = (views[0], np.clip(views[0] + views[1] // 8, 0, 255).astype(np.uint8))
    values = [
        trainer.train_step(model, loss, optimizer, views, trainer.Preprocessing(32, 32), config)
        for _ in range(12)
    ]
    assert values[-1] < 0.5 * values[0]
    latents = [m.weight for m in model.modules() if isinstance(m, BinaryConv2d)]
    assert max(w.abs().max().item() for w in latents) <= 1.5


def test_decay_spares_binary_latents_and_vectors():
    model, loss = make_bnext('nano'), SymmetricInfoNCE(0.07)
    decayed, others = trainer.make_optimizer(model, loss, SMALL).param_groups
    assert (decayed['weight_decay'], others['weight_decay']) == (SMALL.weight_decay, 0)
    latents = {id(m.weight) for m in model.modules() if isinstance(m, BinaryConv2d)}
    assert not latents & {id(p) for p in decayed['params']}
    assert all(p.ndim == 4 for p in decayed['params'])
    everything = [*model.parameters(), *loss.parameters()]
    grouped = [*decayed['params'], *others['params']]
    assert sorted(map(id, grouped)) == sorted(map(id, everything))


def test_learning_rate_schedule():
    config = TrainConfig(
        steps=110, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1, scenes_per_step=1
    )
    rates = [trainer.learning_rate(step, config) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_info_nce_against_its_definition():
    torch.manual_seed(0)
    tiles, queries = torch.nn.functional.normalize(torch.randn(2, 5, 7), dim=-1)
    loss = SymmetricInfoNCE(0.2)
    logits = (queries @ tiles.T / 0.2).double()
    picks = torch.arange(5)
    rows = -(logits[picks, picks] - logits.logsumexp(1)).mean()
    cols = -(logits[picks, picks] - logits.logsumexp(0)).mean()
    assert loss(tiles, queries).item() == pytest.approx(0.5 * (rows + cols).item(), abs=1e-5)
    with torch.no_grad():
        loss.log_scale.fill_(50.0)
    assert loss(tiles, queries).isfinite()


def test_recall_counts_ties_against_the_query():
    eye = np.eye(4, dtype=np.float32)
    assert recall_at(eye, eye) == {'recall_at_1': 1, 'recall_at_5': 1, 'recall_at_20': 1}
    same = np.ones((10, 1), np.float32)
    assert recall_at(same, same, (1, 10)) == {'recall_at_1': 0, 'recall_at_10': 1}
    swapped = eye[[1, 0, 2, 3]]
    assert recall_at(eye, swapped, (1, 2))['recall_at_1'] == 0.5


def test_split_is_by_scene_and_fixed(data):
    paths = list_scenes(data)
    assert [p.name for p in paths] == sorted(
        (p.name for p in paths), key=lambda name: (int(name[:2]) % 2, name)
    )
    training, validation = split_scenes(paths, holdout=4)
    assert len(validation) == 3
    assert not set(training) & set(validation)
    assert sorted(training + validation) == paths
    scenes = load_scenes(validation, scene_px=32)
    assert scenes.shape == (3, 32, 32, 3)


def test_validation_views_never_change(data):
    scenes = load_scenes(list_scenes(data), scene_px=64)
    first, again = (trainer.validation_views(scenes, SMALL) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    steps = [trainer.draw_batch(scenes, SMALL, stream=0, step=k)[0] for k in (0, 1, 0)]
    assert not np.array_equal(steps[0], steps[1])
    np.testing.assert_array_equal(steps[0], steps[2])


def test_unusable_data(tmp_path):
    with pytest.raises(ConfigError, match='found no image below it'):
        list_scenes(tmp_path)
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    with pytest.raises(ImageError, match=r'broken\.jpg: not readable as an image'):
        load_scenes(list_scenes(tmp_path), scene_px=32)


def test_a_run_is_never_overwritten_or_mixed(data, whole_run):
    out, _ = whole_run
    with pytest.raises(ConfigError, match='holds a run already'):
        trainer.train(SMALL, data=data, out=out, resume=False)
    with pytest.raises(ConfigError, match='another seed'):
        trainer.train(replace(SMALL, seed=1), data=data, out=out, resume=True)


def test_unusable_checkpoints(tmp_path, data):
    with pytest.raises(ModelError, match='start the training without --resume'):
        trainer.train(SMALL, data=data, out=tmp_path, resume=True)
    path = tmp_path / 'checkpoint.pt'
    path.write_bytes(b'x' * 100)
    with pytest.raises(ModelError, match='not a readable checkpoint'):
        load_checkpoint(path)
    torch.save({'checkpoint_version': 0}, path)
    with pytest.raises(ModelError, match='checkpoint version 0, expected 1'):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'speed': 1}, r"unknown key\(s\) \['speed'\]"),
        ({'views': {'fog': 1}}, r"views: unknown key\(s\) \['fog'\]"),
        ({'model': 'huge'}, "model is 'huge'; expected one of nano, tiny"),
        ({'input_px': 100}, 'input_px is 100; expected a multiple of 32'),
        ({'steps': 0}, 'steps is 0'),
        ({'learning_rate': 'fast'}, "learning_rate is 'fast'"),
        ({'views': {'min_side': 0.6}}, 'min_side is 0.6; expected at most'),
    ],
)
def test_wrong_configuration(values, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(values, source='test')


def test_configuration_files(tmp_path):
    config = load_config(trainer.Path(trainer.__file__).parent / 'configs' / 'first_weights.yaml')
    assert (config.model, config.input_px, config.views) == ('nano', 96, ViewConfig())
    path = tmp_path / 'broken.yaml'
    path.write_text('a: [')
    with pytest.raises(ConfigError, match='not readable as YAML'):
        load_config(path)


def test_command_line_reports_a_known_error_in_one_line(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('speed: 1\n')
    command = [sys.executable, '-m', 'training.train', '--config', str(path)]
    result = subprocess.run(
        [*command, '--data', str(tmp_path), '--out', str(tmp_path / 'out')],
        capture_output=True,
        text=True,
        check=False,
        cwd=trainer.Path(trainer.__file__).parents[1],
        env=os.environ | {'OMP_NUM_THREADS': '1'},
    )
    assert result.returncode == 2
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
