"""What models cost: the size of their files, and the time of one patch on one thread.

    python -m training.model_costs --models NAME=FILE ... --out FILE.json

The models take turns, one call each a round, so that what slows the machine slows them all. A
call is what the vehicle makes: one patch, prepared and embedded. bench/encoder.py measures the
networks alone, and beside other runtimes.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bicrossnet_ros.encoder import Encoder, open_encoder
from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.checkpoint import git_revision
from training.views_models import parse_models

ROUNDS, WARM_UP = 30, 3
# Side of a tile of the product, in pixels.
PATCH_PX = 128
PAUSE_S = 0.003


def measure_costs(
    models: dict[str, Path], *, rounds: int = ROUNDS, patch_px: int = PATCH_PX
) -> list[dict[str, Any]]:
    """Measure models that fly.

    Parameters
    ----------
    models : dict of str to Path
        ``.safetensors``, ``.onnx`` or ``.tflite`` files.
    rounds : int
        Calls of each that count; three more warm up.
    patch_px : int
        Side of the patch.

    Returns
    -------
    list of dict
        A row for each model: ``model``, ``file_bytes``, ``embedding_dim``, ``input_px``,
        ``runtime``, ``median_ms`` and ``least_ms`` of one patch on one thread.

    Raises
    ------
    BiCrossNetError
        If a file cannot be opened.
    """
    encoders = {name: open_encoder(path, threads=1) for name, path in models.items()}
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 256, (1, patch_px, patch_px, 3), dtype=np.uint8)
    taken_ms: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(rounds + WARM_UP):
        for name, encoder in encoders.items():
            time.sleep(PAUSE_S)  # lets threads of the last call fall asleep
            began_s = time.perf_counter()
            encoder.encode(patch)
            if turn >= WARM_UP:
                taken_ms[name].append(1e3 * (time.perf_counter() - began_s))
    return [_row(name, models[name], encoders[name], taken_ms[name]) for name in models]


def _row(name: str, path: Path, encoder: Encoder, taken_ms: list[float]) -> dict[str, Any]:
    return {
        'model': name,
        'file': path.name,
        'file_bytes': path.stat().st_size,
        'embedding_dim': encoder.embedding_dim,
        'input_px': encoder.preprocessing.input_width_px,
        'runtime': encoder.runtime,
        'median_ms': statistics.median(taken_ms),
        'least_ms': min(taken_ms),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.model_costs',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--models', nargs='+', required=True, metavar='NAME=FILE')
    parser.add_argument('--out', type=Path, required=True, help='JSON file of results')
    parser.add_argument('--rounds', type=int, default=ROUNDS, help='calls of each (%(default)s)')
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    cv2.setNumThreads(1)
    try:
        if options.rounds < 1:
            raise ConfigError(f'--rounds {options.rounds}: expected 1 or more')
        rows = measure_costs(parse_models(options.models), rounds=options.rounds)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    results = {
        'command': f'python -m training.model_costs {shlex.join(given)}',
        'revision': git_revision(),
        'processor': platform.machine(),
        'rows': rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    for row in rows:
        print(f'{row["model"]:24} {row["median_ms"]:8.2f} ms {row["file_bytes"] / 1e6:8.1f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
