"""Runs a network in Larq on command: a child of `bench/encoder.py`, in an environment of its own.

    PYTHON bench/larq_worker.py MODEL.safetensors NAME.tflite THREADS BATCH wall|cpu

Converts the model where the .tflite is missing, says `ready` or `failed REASON`, then embeds once
for every line that it reads and answers with the seconds that this took. Larq wants numpy below 2
and brings TensorFlow for the conversion, so it may live in another interpreter than the rest.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))


def convert(model: Path, target: Path) -> None:
    """Write the .tflite of a model file in another process, where TensorFlow's threads end."""
    import subprocess

    code = (
        'import sys; from pathlib import Path; from training.lce import build_lce; '
        'from bicrossnet_ros.engine.model_file import read_model; '
        'Path(sys.argv[2]).write_bytes(build_lce(read_model(sys.argv[1])))'
    )
    partial = target.with_suffix('.partial')
    command = [sys.executable, '-c', code, str(model), str(partial)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ['no message'])[-1])
    partial.replace(target)


def main() -> None:
    """Talk to the parent over standard input and output."""
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    model, target, threads, batch, clock = sys.argv[1:]
    try:
        import numpy as np

        from bicrossnet_ros.engine.lce_runtime import open_lce

        if not Path(target).exists():
            convert(Path(model), Path(target))
        metadata, runtime = open_lce(Path(target), threads=int(threads))
        size = metadata.preprocessing.input_height_px, metadata.preprocessing.input_width_px
        images = np.random.default_rng(0).standard_normal((int(batch), 3, *size), np.float32)
        runtime.run(images)
    except Exception as error:  # whatever it is, the parent shows it and goes on without Larq
        print('failed', ' '.join(str(error).split()), file=answers)
        return
    now = time.process_time if clock == 'cpu' else time.perf_counter
    print('ready', runtime.name, file=answers)
    for _ in sys.stdin:
        start = now()
        runtime.run(images)
        print(now() - start, file=answers)


if __name__ == '__main__':
    main()
