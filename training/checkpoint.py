"""Checkpoints: written atomically, resumed exactly."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import torch

from bicrossnet_ros.errors import ModelError

CHECKPOINT_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values; an interrupted write leaves the old file."""
    partial = path.with_suffix('.partial')
    torch.save({'checkpoint_version': CHECKPOINT_VERSION, **state}, partial)
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, without executing any code in it.

    Raises
    ------
    ModelError
        If the file is missing, damaged or of another version.
    """
    if not path.is_file():
        raise ModelError(f'{path}: no such checkpoint; start the training without --resume first')
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        raise ModelError(f'{path}: not a readable checkpoint ({error})') from error
    version = state.get('checkpoint_version') if isinstance(state, dict) else None
    if version != CHECKPOINT_VERSION:
        raise ModelError(
            f'{path}: checkpoint version {version}, expected {CHECKPOINT_VERSION}; train again'
        )
    return dict(state)


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


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ['git', *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()
