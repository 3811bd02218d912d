"""The folder of a run: opened for a new one, or for one that goes on unchanged."""

from __future__ import annotations

import errno
import fcntl
import json
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import yaml

from bicrossnet_ros.errors import ConfigError, ModelError
from training.checkpoint import load_checkpoint
from training.config import TrainConfig
from training.config_files import config_to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What a resumed run may change: how it is carried out and watched, not what it learns.
CHANGEABLE = {
    'data.workers',
    'data.unreadable',
    'model.pretrained',  # read at the start alone
    'run.checkpoint_every',
    'run.deterministic',
    'run.device',
    'run.evaluate_every',
    'run.norm_steps',
    'run.tensorboard',
    'run.threads',
}


# What a checkpoint of training.train holds, besides weights.
KEYS = {'config', 'classes', 'step', 'steps_per_epoch', 'figures', 'tally'}


@contextmanager
def claim_folder(out: Path, *, resume: bool) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it until this one ends.

    Raises
    ------
    ConfigError
        If it cannot be written, or another process is at work in it.
    ModelError
        If a run is to go on where there is none.
    """
    if resume and not (out / 'checkpoint.pt').is_file():
        raise ModelError(
            f'{out / "checkpoint.pt"}: no such checkpoint; start the training without --resume '
            'first'
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / '.lock').open('w')
    except OSError as error:
        raise ConfigError(
            f'{out}: cannot be written as a folder ({error.strerror}); choose another --out'
        ) from error
    with lock:
        try:
            # Of this process alone: workers that outlive it for a moment do not hold it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Anything else is a file system without locks; training is still possible there.
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ConfigError(
                    f'{out}: another process is training here; wait for it, or choose another '
                    '--out'
                ) from error
        yield


def open_folder(out: Path, config: TrainConfig, *, resume: bool) -> dict[str, Any] | None:
    """Write the configuration of a run into its folder; with `resume`, return its checkpoint.

    Raises
    ------
    ConfigError
        If the folder holds another run.
    ModelError
        If the checkpoint cannot be used.
    """
    path = out / 'checkpoint.pt'
    if not resume and path.exists():
        raise ConfigError(f'{out}: holds a run already; pass --resume or choose another --out')
    state = load_checkpoint(path) if resume else None
    if state:
        if missing := sorted(KEYS - state.keys()):
            raise ModelError(
                f'{path}: no checkpoint of an unfinished run, it lacks {", ".join(missing)}; put '
                'back the checkpoint.pt that the run wrote'
            )
        _check_same_run(out, state['config'], config)
    partial = out / 'config.partial'
    text = yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)
    partial.write_text(text, encoding='utf-8')
    partial.replace(out / 'config.yaml')
    return state


def _check_same_run(out: Path, found: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to resume with a configuration that differs in more than `CHANGEABLE`."""
    before, now = _flat(found), _flat(config_to_dict(config))
    # A cosine and ReCU's quantile end with the run; all else does not know its length.
    bound = config.optimizer.schedule == 'cosine' or config.model.name == 'resnet34_recu'
    free = CHANGEABLE | (set() if bound else {'run.epochs'})
    changed = [key for key in now if key not in free and now[key] != before.get(key)]
    if changed:
        what = '; '.join(f'{key} was {before.get(key)!r}, now {now[key]!r}' for key in changed)
        raise ConfigError(
            f'{out}: the run was started with another configuration ({what}); resume with '
            f'{out / "config.yaml"} or start a new run in another --out'
        )


def check_same_data(
    out: Path, state: dict[str, Any], *, classes: tuple[str, ...], per_epoch: int, last_step: int
) -> None:
    """Refuse to resume on other places, or a run that is over already.

    Raises
    ------
    ConfigError
        Naming the difference.
    """
    before = tuple(state['classes'])
    if before != classes or state['steps_per_epoch'] != per_epoch:
        odd = sorted(set(before) ^ set(classes))
        raise ConfigError(
            f'{out}: the run was started on {len(before)} places ({state["steps_per_epoch"]} '
            f'steps an epoch), now --data shows {len(classes)} ({per_epoch} steps)'
            f'{f"; {odd[0]} is in one of them alone" if odd else ""}; resume with the data of the '
            'run'
        )
    if int(state['step']) > last_step:
        raise ConfigError(
            f'{out}: the run has done {state["step"]} steps already, run.epochs ends it at '
            f'{last_step}; ask for more epochs'
        )


def record_start(out: Path, **facts: Any) -> None:
    """Append to ``starts.jsonl`` that a run starts or goes on now, from which source and seed."""
    start = {'time': datetime.now(timezone.utc).isoformat(timespec='seconds'), **facts}
    with (out / 'starts.jsonl').open('a') as file:
        file.write(json.dumps(start) + '\n')


def _flat(values: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat
