"""Start-up time and memory of the encoder, each in a fresh process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from document import markdown

REPOSITORY = Path(__file__).resolve().parents[1]

# The clock of perf_counter is the machine's, so that a child may subtract a time of its parent.
CHILD = """
import sys, time
began, path = float(sys.argv[1]), sys.argv[2]
python = time.perf_counter()
sys.path[:0] = [{repository!r}, {bench!r}]
import numpy as np
from bicrossnet_ros.encoder import open_encoder
from machine import peak_memory_bytes, reset_peak_memory
frame = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
before, loaded = reset_peak_memory(), time.perf_counter()
encoder = open_encoder(path)
opened = time.perf_counter()
encoder.encode(frame)
done = time.perf_counter()
peak = peak_memory_bytes()
import json
print(json.dumps(dict(runtime=encoder.runtime, python_s=python - began, import_s=loaded - python,
    open_s=opened - loaded, encode_s=done - opened, first_s=done - loaded, all_s=done - began,
    before_bytes=before, growth_bytes=peak - before, peak_bytes=peak)))
"""


def measure_start(path: Path, *, backend: str, runs: int) -> dict[str, Any]:
    """Medians over `runs` processes; the file is in the system's cache after the first.

    Parameters
    ----------
    path : Path
        Model file.
    backend : str
        Value of BICROSSNET_BACKEND.
    runs : int
        Processes that count, after one that does not.
    """
    code = CHILD.format(repository=str(REPOSITORY), bench=str(Path(__file__).parent))
    environment = os.environ | {'BICROSSNET_BACKEND': backend}
    results = []
    for _ in range(runs + 1):
        command = [sys.executable, '-c', code, str(time.perf_counter()), str(path)]
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        results.append(json.loads(done.stdout))
    first, *counted = results
    medians = {
        key: statistics.median(one[key] for one in counted) for key in first if key != 'runtime'
    }
    return {'runtime': first['runtime'], 'file_bytes': path.stat().st_size, **medians}


def start_table(rows: list[dict[str, Any]]) -> str:
    """Format the rows of `measure_start`, to which the caller added `network`."""
    return markdown(
        [
            'network',
            'runtime',
            'file, MB',
            'file to first embedding, s',
            'start of Python to first embedding, s',
            'memory for it, MB',
            'peak of the process, MB',
        ],
        [
            [
                row['network'],
                row['runtime'],
                f'{row["file_bytes"] / 1e6:.1f}',
                f'{row["first_s"]:.3f}',
                f'{row["all_s"]:.2f}',
                f'{row["growth_bytes"] / 1e6:.0f}',
                f'{row["peak_bytes"] / 1e6:.0f}',
            ]
            for row in rows
        ],
    )
