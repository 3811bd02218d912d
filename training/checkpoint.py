"""Checkpoints: written atomically, resumed exactly, refused with a reason."""

from __future__ import annotations

import os
import pickle
import subprocess
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bicrossnet_ros.errors import BiCrossNetError, ModelError
from training.config import TrainConfig
from training.config_files import config_from_dict
from training.models.network import make_network

if TYPE_CHECKING:
    from training.models.network import GeoNetwork

CHECKPOINT_VERSION = 2


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values; whatever interrupts it leaves the old file.

    Raises
    ------
    ModelError
        If the file cannot be written, for example on a full disk.
    """
    partial = path.with_suffix('.partial')
    try:
        with partial.open('wb') as file:
            torch.save({'checkpoint_version': CHECKPOINT_VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    # torch wraps what its stream raises into a RuntimeError.
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        kept = f'{path.name} of before is intact' if path.exists() else 'none was written before'
        raise ModelError(
            f'{path}: could not be written ({_cause(error)}); {kept}; make room, then '
            f'{how_to_go_on(path.parent)}'
        ) from error


def how_to_go_on(out: Path) -> str:
    """Say what to do with a run that has ended early: without a checkpoint it starts anew."""
    return 'go on with --resume' if (out / 'checkpoint.pt').exists() else 'start it again'


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, without executing any code in it.

    Raises
    ------
    ModelError
        If the file is missing, damaged or of another version.
    """
    if not path.is_file():
        raise ModelError(
            f'{path}: no such checkpoint; expected a final.pt or checkpoint.pt that '
            'training.train has written'
        )
    if not path.stat().st_size:
        raise ModelError(f'{path}: not a readable checkpoint (the file is empty)')
    try:
        with warnings.catch_warnings():
            # torch wonders about the protocol of a pickle that it refuses to read anyway.
            warnings.simplefilter('ignore')
            state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f'{path}: not a readable checkpoint (it is none of torch.save, or holds objects other '
            'than tensors and plain values)'
        ) from error
    except Exception as error:
        raise ModelError(
            f'{path}: not a readable checkpoint; it is damaged or cut short ({in_one_line(error)})'
        ) from error
    version = state.get('checkpoint_version') if isinstance(state, dict) else None
    if version is None:
        raise ModelError(
            f'{path}: not a checkpoint of this trainer; expected a final.pt or checkpoint.pt that '
            'training.train has written'
        )
    if version != CHECKPOINT_VERSION:
        raise ModelError(
            f'{path}: checkpoint version {version}, expected {CHECKPOINT_VERSION}; train again'
        )
    return dict(state)


def checkpoint_config(state: dict[str, Any], *, source: Path) -> TrainConfig:
    """Return the configuration that a checkpoint was trained with."""
    return config_from_dict(state['config'], source=str(source))


def network_from_state(state: dict[str, Any], *, source: Path) -> GeoNetwork:
    """Rebuild the network of a loaded checkpoint; see `network_from_checkpoint`."""
    try:
        config = checkpoint_config(state, source=source)
        network = make_network(config.model, classes=len(state['classes']))
        network.load_state_dict(state['network'])
    except (BiCrossNetError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(
            f'{source}: its weights do not fit the network that its configuration describes '
            f'({in_one_line(error)}); train again with this version'
        ) from error
    network.classes = tuple(state['classes'])
    return network.eval()


def network_from_checkpoint(path: Path) -> GeoNetwork:
    """Rebuild the network of a checkpoint, on the CPU and in evaluation mode.

    Returns
    -------
    GeoNetwork
        Its attribute ``classes`` holds the names of the places, in the order of the logits.

    Raises
    ------
    ModelError
        If the file is missing, damaged, of another version, or does not fit its own network.
    """
    return network_from_state(load_checkpoint(path), source=path)


def git_revision() -> str:
    """Return the commit of the source tree, or 'unknown'.

    '-dirty' follows if the code that shapes a network (training and preprocessing) differs.
    """
    root = Path(__file__).parents[1]
    sources = ['training', 'bicrossnet_ros/preprocess.py']
    try:
        commit = _git(root, 'rev-parse', 'HEAD')
        changed = _git(root, 'status', '--porcelain', '--', *sources)
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return f'{commit}-dirty' if changed else commit


def in_one_line(error: BaseException) -> str:
    """Return the beginning of an error's text; torch lists every tensor on a line of its own."""
    text = ' '.join(str(error).split())
    return text if len(text) <= 200 else f'{text[:200]}...'


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ['git', *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: BaseException) -> str:
    """Return the operating system's reason behind an error of torch, where there is one."""
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, OSError) and reason.strerror:
            return reason.strerror
        reason = reason.__cause__ or reason.__context__
    return in_one_line(error)
