"""Train the rows of an ablation study one after another, and find the test queries with each.

    python -m training.ablations training/configs/plans/ablations.yaml --data SCENES --out DIR

SCENES is the folder that `python -m training.data.gather` makes. Every run stands in
DIR/ROW_seedN, what was found with it in DIR/views.json, a row for each in --results. A repeated
command goes on where the last stopped: finished runs are kept, an interrupted one resumes. A run
whose configuration has changed is refused; remove its folder to train it again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import yaml

from bicrossnet_ros.errors import BiCrossNetError, ConfigError, ModelError
from training.ablation_plan import IMAGENET, Plan, Row, load_plan, row_config
from training.checkpoint import git_revision, save_checkpoint
from training.config import TrainConfig
from training.config_files import config_from_dict, config_to_dict
from training.evaluate_views import KEYS, Evaluation, make_task
from training.flight_rows import RowFile, fingerprint_of
from training.progress import clock
from training.splits import TRAIN, VALIDATION, load_split, write_split
from training.train import train
from training.views_queries import choose_conditions
from training.views_scenes import SCENE_PX, load_test_scenes

# Enough to choose among a run's last weights; validating on all takes as long as a tenth of a run.
VALIDATION_SCENES = 64
RESULTS = Path('out/evaluation/ablations.json')
CONDITIONS = ('plain', 'typical', 'world_mild', 'world_medium', 'world_strong')


class Study:
    """The runs of a plan in a folder.

    Parameters
    ----------
    plan : Plan
    data, out : Path
        Folder of the scenes, folder of the runs.
    """

    def __init__(self, plan: Plan, *, data: Path, out: Path) -> None:
        self.plan, self.data, self.out = plan, data, out
        config = plan.config.data
        self._split = load_split(Path(config.split) if config.split else None)
        train, self._validation = (
            [name for name, side in self._split.items() if side == wanted]
            for wanted in (TRAIN, VALIDATION)
        )
        self._train = thin(train, plan.scenes or len(train))
        for folder in ('splits', 'configs', 'teachers'):
            (out / folder).mkdir(parents=True, exist_ok=True)

    def runs(self) -> list[tuple[Row, int]]:
        """All runs, first seeds first: a table that is broken off has every row once."""
        seeds = dict.fromkeys(seed for row in self.plan.rows for seed in row.seeds)
        return [(row, seed) for seed in seeds for row in self.plan.rows if seed in row.seeds]

    def config(self, row: Row, seed: int) -> TrainConfig:
        """Return a run's configuration, with the files that it names in place."""
        config = row_config(self.plan, row, scenes=len(self._train), seed=seed)
        losses = config.losses
        if row.teacher == IMAGENET:
            losses = replace(losses, teacher=str(self._imagenet_teacher()))
        data = replace(config.data, split=str(self._split_file(row.data)))
        return replace(config, data=data, losses=losses)

    def train(self, row: Row, seed: int) -> dict[str, Any]:
        """Train a run, or the rest of it; returns its row.

        Raises
        ------
        BiCrossNetError
            If it cannot be trained, or the folder holds another run.
        """
        run = self.out / f'{row.name}_seed{seed}'
        config = self.config(row, seed)
        file = self.out / 'configs' / f'{run.name}.yaml'
        text = yaml.safe_dump(config_to_dict(config), sort_keys=False)
        _check_same(run, config)
        file.write_text(f'# {row.says}\n{text}', encoding='utf-8')
        if not (run / 'final.pt').exists():
            train(config, data=self.data, out=run, resume=(run / 'checkpoint.pt').exists())
        return {
            'row': row.name,
            'seed': seed,
            'says': row.says,
            'against': row.against,
            'changes': list(row.changes),
            'model': config.model.name,
            'input_px': config.model.input_px,
            **_history(run, config),
        }

    def _split_file(self, share: float) -> Path:
        """Write a split with a share of the study's scenes, and some to choose weights by."""
        chosen = thin(self._train, round(share * len(self._train)))
        held_out = thin(self._validation, VALIDATION_SCENES)
        sides = {TRAIN: set(chosen), VALIDATION: set(held_out)}
        kept = {name: side for name, side in self._split.items() if name in sides.get(side, ())}
        path = self.out / 'splits' / f'{len(chosen)}_scenes.csv'
        write_split(kept, path)
        return path.resolve()

    def _imagenet_teacher(self) -> Path:
        """Write a checkpoint of EfficientNet-Lite0 that has learnt nothing but ImageNet."""
        path = self.out / 'teachers' / 'imagenet.pt'
        if not path.exists():
            save_imagenet_teacher(path)
        return path.resolve()


def thin(names: Sequence[str], count: int) -> list[str]:
    """Keep so many names, or all, evenly spread over their order; at least one."""
    count = min(max(1, count), len(names))
    return [names[k * len(names) // count] for k in range(count)]


def save_imagenet_teacher(path: Path) -> None:
    """Write EfficientNet-Lite0 with its ImageNet weights as a checkpoint of this trainer.

    Raises
    ------
    ConfigError
        If the package with the weights is missing.
    """
    from training.models.efficientnet import weights_path
    from training.models.network import make_network
    from training.models.pretrained import load_backbone

    losses = {'cross_entropy': 0, 'triplet': 0, 'logit_distillation': 0}
    model = {'name': 'efficientnet_lite0', 'input_px': 224, 'branches': False}
    config = config_from_dict({'model': model, 'losses': losses}, source='the ImageNet teacher')
    network = make_network(config.model, classes=0)
    load_backbone(network.backbone, weights_path())
    state = {'config': config_to_dict(config), 'network': network.state_dict(), 'classes': []}
    save_checkpoint(path, {**state, 'step': 0, 'epoch': 0, 'git_revision': git_revision()})


def _check_same(run: Path, config: TrainConfig) -> None:
    """See that a folder's run, if there is one, is that of the configuration."""
    path = run / 'config.yaml'
    if not path.exists():
        return
    before = yaml.safe_load(path.read_text(encoding='utf-8'))
    if before != config_to_dict(config):
        raise ConfigError(
            f'{run} was trained with another configuration; remove the folder to train it again, '
            'or choose another --out'
        )


def _history(run: Path, config: TrainConfig) -> dict[str, Any]:
    """Return what a finished run tells of itself."""
    lines = (run / 'history.jsonl').read_text(encoding='utf-8').splitlines()
    records = [json.loads(line) for line in lines]
    epochs = [record for record in records if 'loss' in record]
    last = epochs[-1] if epochs else {'step': 0}
    per_step = 2 * config.data.places_per_step
    speeds = [record['images_per_s'] for record in epochs]
    mean_speed = len(speeds) / sum(1 / speed for speed in speeds) if speeds else 0.0
    return {
        'steps': last['step'],
        'epochs': config.run.epochs,
        'images_seen': last['step'] * per_step,
        'train_s': last['step'] * per_step / mean_speed if mean_speed else 0.0,
    }


def study(options: argparse.Namespace, *, command: str) -> None:
    """Carry out a plan: train and evaluate what is missing."""
    plan = load_plan(options.plan, changes=tuple(options.set), only=options.rows)
    if options.passes:
        plan = replace(plan, passes=options.passes)
    work = Study(plan, data=options.data, out=options.out)
    runs = work.runs()
    head = {'command': command, 'revision': git_revision()}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    table = RowFile(options.results, **head, keys=('row', 'seed'))
    found = RowFile(options.out / 'views.json', **head, keys=KEYS)
    conditions = choose_conditions(options.conditions)
    scenes = load_test_scenes(options.data, split=options.split, scene_px=SCENE_PX)
    task = make_task(scenes, per_scene=options.per_scene, seed=0)
    began_s = time.monotonic()
    for number, (row, seed) in enumerate(runs, 1):
        name = f'{row.name}_seed{seed}'
        print(f'[{number}/{len(runs)}] {name}: {row.says}', file=sys.stderr, flush=True)
        trained = work.train(row, seed)
        final = options.out / name / 'final.pt'
        Evaluation(task, {name: _fastest(final)}, found).run(conditions)
        figures = {one['condition']: one for one in found.rows if one['model'] == name}
        results = {
            condition.name: {
                key: figures[condition.name][key]
                for key in ('recall_at_1', 'recall_at_5', 'queries')
            }
            for condition in conditions
        }
        fingerprint = fingerprint_of(file=hashlib.sha256(final.read_bytes()).hexdigest())
        table.put({**trained, 'results': results, 'fingerprint': fingerprint})
        spent_s = time.monotonic() - began_s
        print(f'{clock(spent_s)} so far', file=sys.stderr, flush=True)


def _fastest(final: Path) -> Path:
    """Return a model file of a checkpoint, which the engine runs; where none can be, itself."""
    from bicrossnet_ros.engine.model_file import write_model
    from training.export import from_checkpoint

    try:
        model = from_checkpoint(final, name=final.parent.name, record={})
    except ModelError:  # no binary network; or none at all, which its evaluation will say
        return final
    path = final.with_name('model.safetensors')
    write_model(path, model)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.ablations',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('plan', type=Path, help='YAML file; see training/ablation_plan.py')
    parser.add_argument('--data', type=Path, required=True, help='folder of the overhead scenes')
    parser.add_argument('--out', type=Path, required=True, help='folder of the runs')
    parser.add_argument(
        '--results', type=Path, default=RESULTS, help='JSON file of the table (%(default)s)'
    )
    parser.add_argument('--rows', nargs='+', help='some rows only')
    parser.add_argument('--passes', type=float, help="instead of the plan's budget")
    parser.add_argument('--conditions', nargs='+', default=CONDITIONS)
    parser.add_argument('--per-scene', type=int, default=2, help='test queries of a scene')
    parser.add_argument('--split', type=Path, help='instead of training/splits/overhead.csv')
    parser.add_argument(
        '--set', nargs='+', default=[], metavar='SECTION.KEY=VALUE', help='for all rows'
    )
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    cv2.setNumThreads(1)
    try:
        study(options, command=f'python -m training.ablations {shlex.join(map(str, given))}')
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
