"""A model file in this project's own engine, its weights in memory once however often opened."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from bicrossnet_ros.descriptor import Projection
from bicrossnet_ros.engine.model_file import ModelMetadata, read_model
from bicrossnet_ros.engine.native import NativeNetwork, NativeSession, default_backend
from bicrossnet_ros.engine.runtime import FreeList

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class NativeRuntime:
    """A `bicrossnet_ros.engine.runtime.Runtime`; made by `open_native`."""

    _weights: _Weights
    _sessions: FreeList[NativeSession]

    @property
    def name(self) -> str:
        """'native' and the back end."""
        return f'native {self._weights.network.backend}'

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed prepared images (N, 3, H, W); returns (N, D)."""
        with self._sessions.lend() as session:
            return session.run(batch)


@dataclass(frozen=True)
class _Weights:
    metadata: ModelMetadata
    network: NativeNetwork
    projection: Projection | None


# By SHA-256 of the file and back end; an entry goes with the last encoder that uses it.
_shared: WeakValueDictionary[tuple[str, str], _Weights] = WeakValueDictionary()
_sharing = threading.Lock()


def open_native(
    path: Path, *, model_id: str, threads: int
) -> tuple[ModelMetadata, NativeRuntime, Projection | None]:
    """Load a model file, or take the weights that another encoder has loaded from the same one.

    Parameters
    ----------
    path : Path
        ``NAME.safetensors``.
    model_id : str
        SHA-256 of the file.
    threads : int
        CPU threads of one call.

    Raises
    ------
    EngineUnavailable
        If the engine is not there or cannot run this network.
    ModelError
        If the file is damaged or of another kind.
    """
    weights = _load(path, model_id)
    size = weights.metadata.preprocessing
    sessions = FreeList(
        lambda: weights.network.session(size.input_height_px, size.input_width_px, threads=threads)
    )
    return weights.metadata, NativeRuntime(weights, sessions), weights.projection


def _load(path: Path, model_id: str) -> _Weights:
    backend = default_backend()
    with _sharing:
        weights = _shared.get((model_id, backend))
        if weights is None:
            model = read_model(path)
            network = NativeNetwork(model, backend=backend)
            weights = _Weights(model.metadata, network, model.projection)
            _shared[model_id, backend] = weights
        return weights
