"""The folder of a run: opened for a new one, or for one that goes on unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from bicrossnet_ros.errors import ConfigError
from training.checkpoint import load_checkpoint
from training.config import TrainConfig, config_to_dict

if TYPE_CHECKING:
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


def open_folder(out: Path, config: TrainConfig, *, resume: bool) -> dict[str, Any] | None:
    """Make the folder of a run; with `resume`, return its checkpoint.

    Raises
    ------
    ConfigError
        If the folder holds another run.
    """
    path = out / 'checkpoint.pt'
    if not resume and path.exists():
        raise ConfigError(f'{out}: holds a run already; pass --resume or choose another --out')
    state = load_checkpoint(path) if resume else None
    if state:
        _check_same_run(out, state['config'], config)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'config.yaml').write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))
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


def _flat(values: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = value
    return flat
