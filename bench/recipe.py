"""The paper's recipe on a small data set shaped like University-1652: does each part help it.

    python bench/recipe.py --images DIR [--out DIR] [--seeds 0 1 2] [--jobs 2] [--epochs 24]

Renders the data set from a folder of aerial images (oblique drone views with true perspective),
trains a teacher (EfficientNet-Lite0 from its ImageNet weights), then a binary student (BNext-nano
from the shipped weights) with and without distillation and unfreezing, each with every seed, and
prints recall and average precision in both directions: mean and spread over the seeds. Of RSSCN7,
all places come from scenes that the shipped weights never saw. A repeated command goes on where
the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
CONFIGS = REPOSITORY / 'training' / 'configs'
NO_TEACHER = ['losses.logit_distillation=0', "losses.teacher=''"]
ALL_AT_ONCE = ['unfreezing.strategy=none']
VARIANTS = {
    'whole recipe': [],
    'without distillation': NO_TEACHER,
    'without unfreezing': ALL_AT_ONCE,
    'without both': NO_TEACHER + ALL_AT_ONCE,
}
COLUMNS = (
    ('D->S R@1', 'drone_to_satellite', 'recall_at_1'),
    ('D->S AP', 'drone_to_satellite', 'ap'),
    ('S->D R@1', 'satellite_to_drone', 'recall_at_1'),
    ('S->D AP', 'satellite_to_drone', 'ap'),
)


def make_data(images: Path, out: Path) -> Path:
    """Render the data set once, from every eighth image: the shipped weights never saw these."""
    from training.data.render import RenderOptions, render_dataset
    from training.data.scenes import list_scenes

    data = out / 'data'
    if (data / 'rendered.json').exists():
        return data
    unseen = out / 'images'
    unseen.mkdir(parents=True, exist_ok=True)
    for path in list_scenes(images)[::8]:
        link = unseen / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    options = RenderOptions(places=200, test_places=96, distractors=48, drones=24, size_px=128)
    render_dataset(unseen, data, options)
    return data


def train(config: str, data: Path, out: Path, changes: list[str]) -> None:
    """Train in a process of its own, resume what was begun, skip what is finished."""
    if (out / 'final.pt').exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'training.train', CONFIGS / config, '--data', data]
    command += ['--out', out, *(['--resume'] if (out / 'checkpoint.pt').exists() else [])]
    command += ['--set', *changes]
    began = time.monotonic()
    print('$', *map(str, command[1:]), file=sys.stderr, flush=True)
    with (out / 'log.txt').open('a') as log:
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=log, stderr=log)
    (out / 'seconds.json').write_text(json.dumps(time.monotonic() - began))


def evaluate(model: Path, data: Path, remembered: Path) -> dict[str, dict[str, float]]:
    """Measure both directions with the distractors in the gallery, once."""
    from training.data.sources import retrieval_tasks
    from training.embedding import open_embedder
    from training.metrics import retrieval_metrics

    if remembered.exists():
        return dict(json.loads(remembered.read_text()))
    embedder = open_embedder(model)
    figures = {}
    for task in retrieval_tasks(data, source='university1652', height_m=0, protocol='full'):
        query = embedder.embed_paths(task.query_paths).vectors['backbone']
        gallery = embedder.embed_paths(task.gallery_paths).vectors['backbone']
        figures[task.name] = retrieval_metrics(
            query, task.query_labels, gallery, task.gallery_labels
        )
    remembered.write_text(json.dumps(figures, indent=2))
    return figures


def row(name: str, runs: list[dict[str, dict[str, float]]]) -> str:
    """One line of the table: mean and, for several runs, standard deviation, in per cent."""
    cells = []
    for _, task, key in COLUMNS:
        values = [100 * figures[task][key] for figures in runs]
        spread = f' +- {statistics.stdev(values):.1f}' if len(values) > 1 else ''
        cells.append(f'{statistics.mean(values):.1f}{spread}')
    return f'| {name} | ' + ' | '.join(cells) + ' |'


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=Path, required=True, help='folder of aerial images')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'out' / 'recipe')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=2, help='trainings at a time')
    parser.add_argument('--epochs', type=int, default=24, help='of a student')
    options = parser.parse_args()
    from bicrossnet_ros.encoder import default_model_path
    from training.models.efficientnet import weights_path

    out = options.out.resolve()
    data = make_data(options.images, out)
    teacher = out / 'teacher'
    train('small_teacher.yaml', data, teacher, [f'model.pretrained={weights_path()}'])

    # The paper's proportions: 20 + 20 of 250 epochs, milestones after 80, 120 and 200.
    share = options.epochs / 250
    milestones = [round(epochs * share) for epochs in (80, 120, 200)]
    common = [
        f'losses.teacher={teacher / "final.pt"}',
        f'run.epochs={options.epochs}',
        f'unfreezing.head_epochs={round(20 * share)}',
        f'unfreezing.partial_epochs={round(20 * share)}',
        f'optimizer.milestones={milestones}',
    ]
    work = [
        (out / name.replace(' ', '_') / str(seed), [*common, *changes, f'run.seed={seed}'])
        for seed in options.seeds
        for name, changes in VARIANTS.items()
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda item: train('small_student.yaml', data, *item), work))

    print('| | ' + ' | '.join(title for title, *_ in COLUMNS) + ' |')
    print('|---' * (1 + len(COLUMNS)) + '|')
    start = evaluate(default_model_path(), data, out / 'start.json')
    print(row('shipped weights, not trained here', [start]), flush=True)
    print(row('teacher', [evaluate(teacher / 'final.pt', data, teacher / 'metrics.json')]))
    for name in VARIANTS:
        folders = [out / name.replace(' ', '_') / str(seed) for seed in options.seeds]
        runs = [evaluate(f / 'final.pt', data, f / 'metrics.json') for f in folders]
        print(row(name, runs), flush=True)


if __name__ == '__main__':
    main()
