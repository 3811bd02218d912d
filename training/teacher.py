"""The teacher of a run: loaded whole, frozen, its logits sure to mean the same places."""

from __future__ import annotations

from pathlib import Path

from bicrossnet_ros.errors import ConfigError, ModelError
from training.checkpoint import checkpoint_config, load_checkpoint, network_from_state
from training.config import TrainConfig
from training.models.network import GeoNetwork


def open_teacher(
    config: TrainConfig, classes: tuple[str, ...], *, says: bool
) -> GeoNetwork | None:
    """Load the teacher of a configuration, frozen.

    Parameters
    ----------
    config : TrainConfig
        Of the student.
    classes : tuple of str
        Names of the places, in the order of the student's labels.
    says : bool
        Print what is odd but allowed.

    Returns
    -------
    GeoNetwork or None
        In evaluation mode; None if the configuration names none.

    Raises
    ------
    BiCrossNetError
        If it cannot be loaded, is not finite, or its logits mean other places.
    """
    if not config.losses.teacher:
        return None
    path = existing_file(config.losses.teacher, 'losses.teacher')
    state = load_checkpoint(path)
    teacher = network_from_state(state, source=path)
    teacher.requires_grad_(False)
    if odd := [name for name, value in teacher.state_dict().items() if not value.isfinite().all()]:
        raise ModelError(
            f"{path}: the teacher's weights are not finite (first: {odd[0]}); train it again, or "
            'give another losses.teacher'
        )
    if config.losses.logit_distillation:
        _check_teacher(teacher, path, config, classes)
    theirs = checkpoint_config(state, source=path).model.input_px
    shown = config.losses.teacher_px or config.model.input_px
    if says and theirs != shown:
        whose = 'losses.teacher_px,' if config.losses.teacher_px else "the student's"
        print(
            f'{path}: the teacher was trained at {theirs} px, it will see {whose} {shown} px',
            flush=True,
        )
    return teacher


def _check_teacher(
    teacher: GeoNetwork, path: Path, config: TrainConfig, classes: tuple[str, ...]
) -> None:
    remedy = (
        'train the teacher on the same places (data, data.height_m, data.holdout), or set '
        'losses.logit_distillation: 0'
    )
    if teacher.branches is None or not config.model.branches:
        which = 'the teacher' if teacher.branches is None else 'the student'
        raise ModelError(
            f'losses.logit_distillation is {config.losses.logit_distillation}, but {which} has no '
            'branches and hence no logits; set model.branches: true or '
            'losses.logit_distillation: 0'
        )
    if len(teacher.classes) != len(classes):
        raise ModelError(
            f'{path}: the teacher knows {len(teacher.classes)} places, the student '
            f'{len(classes)}; {remedy}'
        )
    for label, (theirs, ours) in enumerate(zip(teacher.classes, classes, strict=True)):
        if theirs != ours:
            raise ModelError(
                f"{path}: the teacher's class {label} is {theirs!r}, the student's {ours!r}; "
                f'{remedy}'
            )


def existing_file(path: str, key: str) -> Path:
    """Return the path that a key of the configuration names, or raise ConfigError."""
    if not Path(path).is_file():
        raise ConfigError(
            f'{key} is {path}, but there is no such file (seen from {Path.cwd()}); put it there '
            f'or give another path with --set {key}=PATH'
        )
    return Path(path)
