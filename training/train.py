"""Train a retrieval network on pairs of augmented views of aerial scenes.

    python -m training.train --config training/configs/first_weights.yaml --data DIR --out DIR

The batch of a step depends on (seed, step) alone, so an interrupted run that is resumed with
``--resume`` ends exactly where an uninterrupted one would.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import yaml

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from bicrossnet_ros.preprocess import Preprocessing, prepare
from training.checkpoint import git_revision, load_checkpoint, save_checkpoint
from training.config import TrainConfig, load_config
from training.evaluate import embed, recall_at
from training.losses import SymmetricInfoNCE
from training.models import BinaryConv2d, BNext, make_bnext
from training.data.scenes import list_scenes, load_scenes, split_scenes
from training.data.views import make_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Streams of random numbers that never meet: (seed, stream, step).
TRAINING_STREAM, VALIDATION_STREAM, NORM_STREAM = 0, 1, 2

# What a resumed run may change: where it ends and how it is run, not what it learns from.
CHANGEABLE = {'steps', 'threads', 'evaluate_every', 'checkpoint_every', 'norm_steps'}

Views = tuple['NDArray[np.uint8]', 'NDArray[np.uint8]']


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine from the peak to the final learning rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def make_optimizer(model: BNext, loss: SymmetricInfoNCE, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; decay on float matrices alone: a latent weight is a sign, decay only flips it."""
    binary = {id(m.weight) for m in model.modules() if isinstance(m, BinaryConv2d)}
    decayed = [
        module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
        and id(module.weight) not in binary
    ]
    ids = {id(parameter) for parameter in decayed}
    others = [p for p in [*model.parameters(), *loss.parameters()] if id(p) not in ids]
    groups: list[dict[str, Any]] = [
        {'params': decayed, 'weight_decay': config.weight_decay},
        {'params': others, 'weight_decay': 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def draw_batch(scenes: NDArray[np.uint8], config: TrainConfig, *, stream: int, step: int) -> Views:
    """Render the tiles and queries of one step from its own random generator."""
    rng = np.random.default_rng((config.seed, stream, step))
    count = min(config.scenes_per_step, len(scenes))
    chosen = rng.choice(len(scenes), count, replace=False)
    return make_batch(
        scenes,
        chosen.tolist(),
        rng,
        places=config.places_per_scene,
        size_px=config.input_px,
        config=config.views,
    )


def validation_views(scenes: NDArray[np.uint8], config: TrainConfig) -> Views:
    """Render every validation scene once; the same views at every validation of a run."""
    rng = np.random.default_rng((config.seed, VALIDATION_STREAM, 0))
    return make_batch(
        scenes,
        range(len(scenes)),
        rng,
        places=config.places_per_scene,
        size_px=config.input_px,
        config=config.views,
    )


def validate(model: BNext, views: Views, preprocessing: Preprocessing) -> dict[str, float]:
    """Recall of the validation queries among all validation tiles, and the number of these."""
    tiles, queries = (embed(model, patches, preprocessing) for patches in views)
    return {**recall_at(tiles, queries), 'tiles': len(tiles)}


def train_step(
    model: BNext,
    loss: SymmetricInfoNCE,
    optimizer: torch.optim.Optimizer,
    views: Views,
    preprocessing: Preprocessing,
    config: TrainConfig,
) -> float:
    """One optimiser step on a batch of pairs; returns the loss."""
    inputs = torch.from_numpy(prepare(np.concatenate(views), preprocessing))
    with torch.autocast('cpu', torch.bfloat16, enabled=config.bfloat16):
        features = model(inputs)
    tiles, queries = F.normalize(features.float()).chunk(2)
    value: torch.Tensor = loss(tiles, queries)
    if not torch.isfinite(value):
        raise ConfigError('the loss is not finite; lower learning_rate')
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    model.clamp_parameters()
    return float(value.detach())


@torch.no_grad()
def reestimate_norms(
    model: BNext, scenes: NDArray[np.uint8], preprocessing: Preprocessing, config: TrainConfig
) -> None:
    """Average BatchNorm's statistics over fresh batches, in float32, with the final weights."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for step in range(config.norm_steps):
        views = draw_batch(scenes, config, stream=NORM_STREAM, step=step)
        model(torch.from_numpy(prepare(np.concatenate(views), preprocessing)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def train(config: TrainConfig, *, data: Path, out: Path, resume: bool) -> dict[str, float]:
    """Run or resume a training; returns the last validation figures.

    Writes ``config.yaml``, ``history.jsonl`` (a line per validation), ``checkpoint.pt`` (the
    latest state, for resuming) and at the end ``final.pt`` into `out`.

    Raises
    ------
    BiCrossNetError
        On unusable data, configuration or checkpoint.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)
    out.mkdir(parents=True, exist_ok=True)
    model = make_bnext(config.model)
    loss = SymmetricInfoNCE(config.temperature)
    optimizer = make_optimizer(model, loss, config)
    start, figures = _resume(out, config, model, loss, optimizer) if resume else (0, {})
    if not resume and (out / 'checkpoint.pt').exists():
        raise ConfigError(f'{out}: holds a run already; pass --resume or choose another --out')
    (out / 'config.yaml').write_text(yaml.safe_dump(asdict(config), sort_keys=False))

    paths_train, paths_validation = split_scenes(list_scenes(data), holdout=config.holdout)
    scenes = load_scenes(paths_train, scene_px=config.scene_px)
    held_out = validation_views(load_scenes(paths_validation, scene_px=config.scene_px), config)
    preprocessing = Preprocessing(config.input_px, config.input_px)
    print(
        f'{len(scenes)} scenes to train on, {len(held_out[0])} places to validate on', flush=True
    )

    revision = git_revision()
    began = time.monotonic()
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(step, config)
        views = draw_batch(scenes, config, stream=TRAINING_STREAM, step=step)
        value = train_step(model, loss, optimizer, views, preprocessing, config)
        done, last = step + 1, step + 1 == config.steps
        if done % config.evaluate_every == 0 or last:
            figures = {'step': done, **validate(model, held_out, preprocessing)}
            _log(out, loss=value, **figures)
        if done % config.checkpoint_every == 0 or last:
            state = _state(
                config, model, loss, optimizer, step=done, figures=figures, revision=revision
            )
            save_checkpoint(out / 'checkpoint.pt', state)
        _progress(
            done, config.steps, value, figures, pace=(time.monotonic() - began) / (done - start)
        )

    if config.norm_steps:
        figures = _keep_better_norms(model, scenes, held_out, preprocessing, config)
        _log(out, note='after trying BatchNorm re-estimation', **figures)
    state = _state(
        config, model, loss, optimizer, step=config.steps, figures=figures, revision=revision
    )
    save_checkpoint(out / 'final.pt', state)
    return figures


def _keep_better_norms(
    model: BNext,
    scenes: NDArray[np.uint8],
    held_out: Views,
    preprocessing: Preprocessing,
    config: TrainConfig,
) -> dict[str, float]:
    """Re-estimate BatchNorm; go back to the running averages if recall@1 falls."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    figures = validate(model, held_out, preprocessing)
    reestimate_norms(model, scenes, preprocessing, config)
    after = validate(model, held_out, preprocessing)
    if after['recall_at_1'] < figures['recall_at_1']:
        model.load_state_dict(before)
        after = figures
    return {'step': config.steps, **after}


def _state(
    config: TrainConfig,
    model: BNext,
    loss: SymmetricInfoNCE,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    figures: dict[str, float],
    revision: str,
) -> dict[str, Any]:
    return {
        'config': asdict(config),
        'model': model.state_dict(),
        'loss': loss.state_dict(),
        'optimizer': optimizer.state_dict(),
        'step': step,
        'figures': figures,
        'git_revision': revision,
    }


def _resume(
    out: Path,
    config: TrainConfig,
    model: BNext,
    loss: SymmetricInfoNCE,
    optimizer: torch.optim.Optimizer,
) -> tuple[int, dict[str, float]]:
    """Restore the latest state; of its configuration, only `CHANGEABLE` may differ."""
    state = load_checkpoint(out / 'checkpoint.pt')
    wanted = {key: value for key, value in asdict(config).items() if key not in CHANGEABLE}
    changed = [key for key in wanted if wanted[key] != state['config'].get(key)]
    if changed:
        raise ConfigError(
            f'{out}: the run was started with another {", ".join(changed)}; resume with its own '
            'config.yaml or start a new run in another --out'
        )
    model.load_state_dict(state['model'])
    loss.load_state_dict(state['loss'])
    optimizer.load_state_dict(state['optimizer'])
    return int(state['step']), dict(state['figures'])


def _log(out: Path, **values: Any) -> None:
    line = json.dumps(values)
    with (out / 'history.jsonl').open('a') as file:
        file.write(line + '\n')
    print(line, flush=True)


def _progress(
    done: int, total: int, value: float, figures: dict[str, float], *, pace: float
) -> None:
    recall = f'{figures["recall_at_1"]:.3f}' if figures else '-'
    left_min = (total - done) * pace / 60
    print(
        f'step {done}/{total} loss {value:.3f} recall@1 {recall} '
        f'{pace:.2f} s/step, {left_min:.0f} min left',
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog='python -m training.train', description=__doc__)
    parser.add_argument('--config', type=Path, required=True, help='YAML file of TrainConfig')
    parser.add_argument('--data', type=Path, required=True, help='folder of aerial scenes')
    parser.add_argument('--out', type=Path, required=True, help='folder for checkpoints and logs')
    parser.add_argument('--resume', action='store_true', help='go on from OUT/checkpoint.pt')
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
        figures = train(config, data=options.data, out=options.out, resume=options.resume)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    sys.exit(main())
