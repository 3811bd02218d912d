"""The recipe of the default models in little: split, teacher, two stages, widening."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bicrossnet_ros.errors import ConfigError
from training.checkpoint import load_checkpoint, network_from_checkpoint
from training.config_files import config_from_dict, with_changes
from training.data.maps import make_sources
from training.data.scene_array import open_split
from training.distributed import Team
from training.learner import Learner
from training.models.partition import binary_layers
from training.splits import write_split
from training.train import train

ALONE = Team(torch.device('cpu'))


def make_scenes(folder, count=12):
    rng = np.random.default_rng(0)
    for number in range(count):
        image = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (96, 96))
        (folder / 'a').mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / 'a' / f'{number:02d}.png'), image)
    names = [f'a/{number:02d}.png' for number in range(count)]
    sides = ['train'] * 8 + ['validation'] * 2 + ['test'] * 2
    return dict(zip(names, sides, strict=True))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('overhead') / 'scenes'
    write_split(make_scenes(folder), folder.parent / 'split.csv')
    return folder


@pytest.fixture(scope='module')
def config(data):
    return config_from_dict(
        {
            'data': {
                'source': 'maps',
                'split': str(data.parent / 'split.csv'),
                'scene_px': 64,
                'places_per_step': 16,
                'places_per_scene': 4,
            },
            'model': {'name': 'bnext_nano', 'input_px': 32, 'branches': False},
            'losses': {
                'cross_entropy': 0,
                'triplet': 0,
                'logit_distillation': 0,
                'info_nce': 1,
                'soft_positives': 0.5,
            },
            'unfreezing': {'strategy': 'none'},
            'optimizer': {'strategy': 'adamw', 'learning_rate': 1e-3},
            'run': {'epochs': 2, 'threads': 1, 'tensorboard': False, 'evaluate_every': 1},
        },
        source='test',
    )


@pytest.fixture(scope='module')
def teacher(config, data, tmp_path_factory):
    """The final checkpoint of a run of one epoch."""
    out = tmp_path_factory.mktemp('teacher') / 'run'
    train(with_changes(config, ['run.epochs=1']), data=data, out=out)
    return out / 'final.pt'


def test_the_split_says_which_scenes_train(config, data, capsys):
    training, validation = make_sources(config, data)
    assert {name.split()[0] for name in training.names} == {f'a/{k:02d}.png' for k in range(8)}
    assert len(training.names) == 32
    assert {name.split()[0] for name in validation.names} == {'a/08.png', 'a/09.png'}
    scenes = open_split(data, config.data, sides=('test',))['test']
    assert scenes.names == ('a/10.png', 'a/11.png')
    image = cv2.imread(str(data / 'a/11.png'))[..., ::-1]
    expected = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(scenes.images[1], expected)
    assert 'left out' not in capsys.readouterr().err


def test_where_folder_and_split_differ_is_told(config, data, tmp_path, capsys):
    split = {
        'a/00.png': 'train',
        'a/08.png': 'validation',
        'b/77.png': 'train',
        'b/78.png': 'test',
    }
    write_split(split, tmp_path / 'split.csv')
    changed = with_changes(config, [f'data.split={tmp_path / "split.csv"}'])
    training, _ = make_sources(changed, data)
    assert {name.split()[0] for name in training.names} == {'a/00.png'}
    told = capsys.readouterr().err
    assert '2 scenes of' in told
    assert 'are not there (first: b/77.png); left out' in told
    assert '10 scenes are not in it (first: a/01.png); left out' in told
    write_split({'a/00.png': 'train'}, tmp_path / 'split.csv')
    with pytest.raises(ConfigError, match=r'holds 12 images, but none that .* into validation'):
        make_sources(changed, data)
    with pytest.raises(ConfigError, match='not readable as a split'):
        make_sources(with_changes(config, ['data.split=nowhere.csv']), data)


def test_a_student_follows_its_teacher_through_two_stages(config, data, teacher, tmp_path):
    student = with_changes(
        config,
        [
            f'losses.teacher={teacher}',
            'losses.similarity_distillation=1',
            'losses.teacher_px=64',
            'model.float_weight_epochs=1',
        ],
    )
    figures = train(student, data=data, out=tmp_path / 'student')
    assert (figures['step'], figures['places']) == (4, 8)
    lines = [json.loads(t) for t in (tmp_path / 'student/history.jsonl').read_text().splitlines()]
    epochs = [line for line in lines if 'loss' in line]
    assert [line['phase'] for line in epochs] == ['all, float weights', 'all']
    assert set(epochs[0]['loss']) == {'info_nce', 'similarity_distillation', 'total'}
    network = network_from_checkpoint(tmp_path / 'student' / 'final.pt')
    for layer in binary_layers(network).values():
        assert layer.effective_weight().abs().eq(1).all()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(config, data, tmp_path):
    stages = with_changes(config, ['model.float_weight_epochs=1', 'run.evaluate_every=9'])
    train(stages, data=data, out=tmp_path / 'parts')
    longer = with_changes(stages, ['run.epochs=3'])
    train(longer, data=data, out=tmp_path / 'parts', resume=True)
    train(longer, data=data, out=tmp_path / 'straight')
    ends = [load_checkpoint(tmp_path / name / 'final.pt') for name in ('parts', 'straight')]
    assert ends[0]['step'] == ends[1]['step'] == 6
    for name, value in ends[0]['network'].items():
        assert torch.equal(value, ends[1]['network'][name]), name


def test_the_teacher_sees_what_the_student_sees_at_its_own_size(config, teacher):
    guided = [f'losses.teacher={teacher}', 'losses.similarity_distillation=1']
    shown = []
    for change in ([], ['losses.teacher_px=64']):
        learner = Learner(with_changes(config, guided + change), classes=('a',), team=ALONE)
        learner.teacher.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        learner.teacher(learner._for_teacher(images))
    assert torch.equal(shown[0], images)
    expected = F.interpolate(images, (64, 64), mode='bilinear', align_corners=False)
    torch.testing.assert_close(shown[1], expected)


def test_floats_first_in_evaluation_too_and_norms_follow_the_change(config):
    """Thirty steps after the change, the running statistics are nearly those of signs."""
    learner = Learner(
        with_changes(config, ['model.float_weight_epochs=1']), classes=('a',), team=ALONE
    )
    network = learner.network
    layers = binary_layers(network).values()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    norms = [unit.norm1 for unit in network.modules() if hasattr(unit, 'norm1')]

    @torch.no_grad()
    def variances(passes):
        network.train()
        for _ in range(passes):
            network(images)
        return torch.cat([norm.running_var for norm in norms])

    def soft():
        return [layer.effective_weight().abs().max().item() < 0.1 for layer in layers]

    assert learner.begin_epoch(0) == 'all, float weights'
    floats = variances(5)
    assert all(soft())
    network.eval()
    assert all(soft())
    assert learner.begin_epoch(1) == 'all'
    signs, settled = variances(30), variances(60)
    assert not any(soft())
    network.eval()
    assert not any(soft())
    assert ((signs / settled - 1).abs() < 0.05).all()
    assert (settled > 2 * floats).float().mean() > 0.9


def test_a_widened_network_starts_where_the_narrow_one_ended(config, teacher):
    start = ['model.name=bnext_tiny', f'model.widen_from={teacher}']
    learner = Learner(with_changes(config, start), classes=('a',), team=ALONE)
    assert 'tensors fit' in learner.load_pretrained()
    nano = network_from_checkpoint(teacher)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        small = F.normalize(nano(images).embedding)
        large = F.normalize(learner.network.eval()(images).embedding)
    torch.testing.assert_close(large @ large.T, small @ small.T, atol=1e-4, rtol=0)


def test_a_checkpoint_that_starts_another_run_keeps_its_latents(config, teacher):
    start = with_changes(config, [f'model.pretrained={teacher}'])
    learner = Learner(start, classes=('a',), team=ALONE)
    learner.load_pretrained()
    before = binary_layers(network_from_checkpoint(teacher))
    for name, layer in binary_layers(learner.network).items():
        assert torch.equal(layer.weight, before[name].weight)
        assert len(layer.weight.abs().unique()) > 100


def test_options_that_contradict_each_other(config):
    for changes, message in (
        (['data.places_per_scene=2'], 'no two places of a batch overlap'),
        (['losses.info_nce=0', 'losses.triplet=1'], 'soft_positives is part of InfoNCE'),
        (['losses.similarity_distillation=1'], 'similarity_distillation needs a teacher'),
        (['losses.teacher_px=40'], 'expected a multiple of 32'),
        (['model.float_weight_epochs=2'], 'expected fewer than run.epochs, 2'),
        (['model.pretrained=a', 'model.widen_from=b'], 'starts from one of them'),
        (['data.scene_m=100'], 'expected data.source: maps and data.scene_m: 0'),
    ):
        with pytest.raises(ConfigError, match=message):
            with_changes(config, changes)


def test_counts_of_the_packaged_split():
    from training.splits import load_split
    from training.splits.divide import stratum

    split = load_split()
    assert Counter(split.values()) == {'train': 2304, 'validation': 249, 'test': 250}
    strata = Counter(
        (side, stratum(scene)) for scene, side in split.items() if scene.startswith('rsscn7/')
    )
    held_out = [count for (side, _), count in strata.items() if side != 'train']
    assert len(strata) == 7 * 4 * 3
    assert (min(held_out), max(held_out)) == (6, 10)
