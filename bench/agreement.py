"""How closely the runtimes of one network agree on real imagery, and that retrieval does not care.

    python bench/agreement.py [--data DIR] [--out DIR] [--images 240] [--skip-recall]
    python bench/agreement.py --larq-python LARQ_ENVIRONMENT/bin/python

A rounding that differs flips the sign of an activation near its threshold, and the flips cascade:
no two runtimes give the same embeddings. The first table is the distribution of the cosine
between a runtime's embedding of an image and that of torch in float32, for the shipped network
and for an untrained tiny one at 256 px, on scenes of RSSCN7 and frames of Seneca. The second is
the recall of retrieval on Seneca (best tiles within 25 m, no registration) with the engine and
with ONNX Runtime, each with the gallery it made itself. Larq (extra `lce`) takes part in the first
one where --larq-python names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import seneca

sys.path.insert(0, str(seneca.REPOSITORY))

if TYPE_CHECKING:
    from bicrossnet_ros.engine.model_file import Model

Embed = Callable[[np.ndarray], np.ndarray]
VARIABLE = 'BICROSSNET_BACKEND'
BATCH = 8
UNMOVED = 1e-6  # of the cosine: less than any flipped sign makes, more than a rounding alone
TINY_PX = 256
TINY = f'untrained_tiny_{TINY_PX}'


def networks(folder: Path, data: Path) -> dict[str, Path]:
    """Return the shipped network and an untrained tiny one, which is made once in `folder`."""
    from bicrossnet_ros.encoder import default_model_path

    tiny = folder / f'{TINY}.safetensors'
    if not tiny.exists():
        make_untrained(tiny, read_images(data, 32))
    shipped = default_model_path()
    return {shipped.stem: shipped, TINY: tiny}


def make_untrained(path: Path, images: list[np.ndarray]) -> None:
    """Write a tiny network of random weights whose BatchNorm knows what passes through it.

    With the statistics it starts with, its maps grow to 1e8, where a float32 no longer holds the
    difference that a unit adds: no two runtimes agree on such a network, nor does any use it.
    """
    import torch

    from bicrossnet_ros.engine.model_file import write_model
    from bicrossnet_ros.preprocess import Preprocessing, prepare
    from training.averaging import reestimate_norms
    from training.export import make_model
    from training.models.bnext import make_bnext

    torch.manual_seed(0)
    network = make_bnext('tiny')
    size = Preprocessing(TINY_PX, TINY_PX)
    inputs = np.concatenate([prepare(image[None], size) for image in images])
    reestimate_norms(network, torch.from_numpy(inputs).split(BATCH))
    training = {'recipe': 'untrained, BatchNorm estimated'}
    write_model(path, make_model(network.eval(), name=TINY, input_px=TINY_PX, training=training))


# Runs in the environment of Larq, whose numpy is an older one.
LARQ = """
import sys
from pathlib import Path
import numpy as np
import larq_worker
from bicrossnet_ros.engine.lce_runtime import open_lce

model, target, inputs, outputs = map(Path, sys.argv[1:])
if not target.exists():
    larq_worker.convert(model, target)
_, runtime = open_lce(target, threads=1)
np.save(outputs, runtime.run(np.load(inputs)))
"""


def runtimes(path: Path, larq_python: Path | None) -> dict[str, Embed]:
    """Return every way to run a network that is at hand; torch in float32 is the first."""
    from bicrossnet_ros.engine import native, onnx_runtime
    from bicrossnet_ros.engine.model_file import read_model

    model = read_model(path)
    size = model.metadata.preprocessing
    _, onnx = onnx_runtime.from_model(model, source=path, threads=1)
    network = native.NativeNetwork(model)  # tests show that all back ends give the same bits
    session = network.session(size.input_height_px, size.input_width_px)
    found = {
        'PyTorch float32': in_batches(by_torch(model, 'float32')),
        'PyTorch float64': in_batches(by_torch(model, 'float64')),
        onnx.name: in_batches(onnx.run),
        f'native {network.backend}': session.run,
    }
    if larq_python is not None:
        found['Larq'] = lambda inputs: by_larq(path, larq_python, inputs)
    return found


def in_batches(embed: Embed) -> Embed:
    """Return the same with batches of bounded memory."""
    return lambda inputs: np.concatenate(
        [embed(inputs[k : k + BATCH]) for k in range(0, len(inputs), BATCH)]
    )


def by_larq(path: Path, python: Path, inputs: np.ndarray) -> np.ndarray:
    """Embed in Larq, in another interpreter, which converts the network first."""
    bench = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ('model.tflite', 'inputs.npy', 'outputs.npy')]
        np.save(files[1], inputs)
        subprocess.run(
            [python, '-c', LARQ, path, *files],
            cwd=seneca.REPOSITORY,
            env={**os.environ, 'PYTHONPATH': f'{bench}{os.pathsep}{seneca.REPOSITORY}'},
            check=True,
        )
        return np.load(files[2])


def by_torch(model: Model, dtype: str) -> Embed:
    """Return the network in PyTorch, in a precision by name."""
    import torch

    from training.export import network_from_model

    network = network_from_model(model).to(getattr(torch, dtype))

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(images).to(getattr(torch, dtype))).numpy()

    return embed


def read_images(data: Path, count: int) -> list[np.ndarray]:
    """Return so many scenes and frames, both spread evenly over their files; RGB."""
    import cv2

    frames = sorted((data / 'seneca' / 'queries').glob('*.*'))
    scenes = sorted((data / 'rsscn7').glob('*/*.jpg'))
    files = [
        group[k] for group in (scenes, frames) if group for k in spread(len(group), count // 2)
    ]
    if not files:
        raise SystemExit(f'error: {data} holds neither rsscn7 nor seneca; give --data')
    return [cv2.imread(str(file))[..., ::-1] for file in files]


def spread(length: int, count: int) -> list[int]:
    """Return at most `count` indices, evenly over `length`."""
    return sorted({int(k) for k in np.linspace(0, length - 1, min(count, length))})


def normalised(rows: np.ndarray) -> np.ndarray:
    """Return rows of unit length in float64."""
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def compare(
    name: str, path: Path, images: list[np.ndarray], larq_python: Path | None
) -> list[dict]:
    """Embed all images in every runtime; one row of figures each."""
    from bicrossnet_ros.engine.model_file import read_model
    from bicrossnet_ros.preprocess import prepare

    preprocessing = read_model(path).metadata.preprocessing
    inputs = np.concatenate([prepare(image[None], preprocessing) for image in images])
    rows, reference = [], None
    for runtime, embed in runtimes(path, larq_python).items():
        print(f'{name}: {runtime}, {len(inputs)} images', file=sys.stderr, flush=True)
        embeddings = normalised(embed(inputs))
        if reference is None:
            reference = embeddings
            others = (reference @ reference.T)[~np.eye(len(reference), dtype=bool)]
            rows.append({'network': name, 'runtime': 'other image', **quantiles(others)})
            continue
        cosines = (embeddings * reference).sum(axis=1)
        nearest = (reference @ embeddings.T).argmax(axis=0) == np.arange(len(reference))
        rows.append(
            {
                'network': name,
                'runtime': runtime,
                **quantiles(cosines),
                'unmoved': float((cosines > 1 - UNMOVED).mean()),
                'identified': float(nearest.mean()),
            }
        )
    return rows


def quantiles(cosines: np.ndarray) -> dict[str, float]:
    """Return the figures of a distribution."""
    lowest, percent, median = np.quantile(cosines, (0, 0.01, 0.5))
    return {'min': float(lowest), 'percent_1': float(percent), 'median': float(median)}


def recall(path: Path, data: Path, out: Path) -> list[dict]:
    """Measure retrieval on Seneca with the engine and with ONNX Runtime."""
    from bicrossnet_ros.engine import native

    backend = native.default_backend()
    rows = []
    for name, value in ((f'native {backend}', backend), ('ONNX Runtime', 'onnxruntime')):
        with forced(value):
            options = ('--no-registration',)
            folder = out / name.replace(' ', '_')
            rows += seneca.measure(name, path, data, folder, replay_options=options)
    return rows


@contextmanager
def forced(backend: str):
    """Let the processes that are started meanwhile use one back end."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def agreement_table(rows: list[dict]) -> str:
    """Format the distributions as Markdown."""
    lines = [
        '| network | runtime | min | 1 % | median | no sign flipped | nearest is itself |',
        '|---' * 7 + '|',
    ]
    for row in rows:
        shares = [f'{row[key]:.0%}' if key in row else '' for key in ('unmoved', 'identified')]
        cells = [f'{row[key]:.5f}' for key in ('min', 'percent_1', 'median')]
        lines.append('| ' + ' | '.join([row['network'], row['runtime'], *cells, *shares]) + ' |')
    return '\n'.join(lines)


def recall_table(rows: list[dict], frames: int) -> str:
    """Format the recall as Markdown, in frames."""
    lines = ['| runtime | heading | R@1 | R@5 | R@20 |', '|---|---|---|---|---|']
    for row in rows:
        cells = [f'{row[f"recall_at_{k}"] * frames:.0f} / {frames}' for k in (1, 5, 20)]
        lines.append(f'| {row["model"]} | {row["heading"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main() -> int:
    """Run both comparisons and print the tables; `agreement.json` in --out holds the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--data', type=Path, default=seneca.REPOSITORY.parent / 'shared' / 'data')
    add('--out', type=Path, default=seneca.REPOSITORY / 'out' / 'bench' / 'agreement')
    add('--images', type=int, default=240, help='images for the shipped network; a third for tiny')
    add('--larq-python', type=Path, help='interpreter of an environment with the extra lce')
    add('--skip-recall', action='store_true', help='only the first table')
    arguments = parser.parse_args()
    out, data = arguments.out.resolve(), arguments.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    models = networks(out, data)
    counts = (arguments.images, arguments.images // 3)
    agreement = [
        row
        for (name, path), count in zip(models.items(), counts, strict=True)
        for row in compare(name, path, read_images(data, count), arguments.larq_python)
    ]
    print(agreement_table(agreement), flush=True)
    recalls = []
    if not arguments.skip_recall:
        shipped = next(iter(models.values()))
        recalls = recall(shipped, data / 'seneca', out)
        frames = len(list((data / 'seneca' / 'queries').iterdir()))
        print('\n' + recall_table(recalls, frames))
    results = {'agreement': agreement, 'recall': recalls}
    (out / 'agreement.json').write_text(json.dumps(results, indent=2), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
