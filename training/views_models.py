"""Whatever embeds, by its file: a model file that flies, or a checkpoint of a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine.model_file import file_sha256
from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.preprocess import Preprocessing
from training.progress import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.models.network import GeoNetwork

BATCH = 256


class Model(Protocol):
    """What embeds: an `bicrossnet_ros.encoder.Encoder`, for one."""

    @property
    def model_id(self) -> str:
        """SHA-256 of the file."""

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed uint8 RGB (N, H, W, 3); returns unit rows (N, D)."""


@dataclass(frozen=True)
class TrainedModel:
    """The network of a checkpoint in float32, for what has no model file (yet)."""

    model_id: str
    network: GeoNetwork
    preprocessing: Preprocessing

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed uint8 RGB (N, H, W, 3); returns unit rows (N, D)."""
        from training.embedding import embed

        return embed(self.network, patches, self.preprocessing)


def open_model(path: Path) -> Model:
    """Open a model file, or a checkpoint (``.pt``).

    Raises
    ------
    ModelError
        If the file is no model.
    """
    if path.suffix != '.pt':
        return open_encoder(path)
    # torch only where a checkpoint is evaluated: it takes seconds to import.
    from training.checkpoint import checkpoint_config, load_checkpoint, network_from_state

    state = load_checkpoint(path)
    side_px = checkpoint_config(state, source=path).model.input_px
    network = network_from_state(state, source=path)
    return TrainedModel(file_sha256(path), network, Preprocessing(side_px, side_px))


def parse_models(items: Sequence[str]) -> dict[str, Path]:
    """Read ``NAME=FILE`` as command lines give it.

    Raises
    ------
    ConfigError
        If there is no ``=``, a name is given twice, or a file is missing.
    """
    models: dict[str, Path] = {}
    for item in items:
        name, separator, file = item.partition('=')
        if not (name and separator and file):
            raise ConfigError(f'--models {item}: expected NAME=FILE')
        if name in models:
            raise ConfigError(f'--models {item}: {name} is given twice; choose another name')
        if not Path(file).is_file():
            raise ConfigError(f'--models {item}: no such file, seen from {Path.cwd()}')
        models[name] = Path(file)
    return models


def embed_all(model: Model, images: NDArray[np.uint8], *, label: str) -> NDArray[np.float32]:
    """Embed many images (N, H, W, 3), with progress on standard error."""
    starts = range(0, len(images), BATCH)
    parts = [
        model.encode(images[start : start + BATCH])
        for start in counted(starts, label, len(starts))
    ]
    return np.concatenate(parts)
