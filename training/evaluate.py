"""Evaluate networks on a retrieval benchmark: the numbers of tables 2 and 3, figures 2 and 3.

    python -m training.evaluate MODEL [MODEL ...] --data ROOT --out DIR

MODEL is a checkpoint (.pt) or an exported model file (.safetensors, .onnx); name the models first.
ROOT is University-1652 or SUES-200, laid out as docs/training_data.md says. The table of results
is printed; DIR receives it as results.md, with all details as results.json, and the pictures
accuracy_*.png and .svg (accuracy against operations) and matches_*.png (hits and misses).
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from training.benchmark import list_tasks, measure
from training.checkpoint import git_revision
from training.complexity import complexity_of
from training.config import HEIGHTS_M
from training.data.sources import PHOTO_SETS, PROTOCOLS, find_photo_set
from training.embedder import FEATURES, Embedder
from training.embedding import RESIZES, open_embedder
from training.embedding_cache import embed_with_cache
from training.figure_files import write_accuracy_figures, write_match_figures
from training.paper import PaperRow, find_row
from training.paper_configs import row_for
from training.results import ModelResults, markdown, write_results


@dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate, and how.

    Parameters
    ----------
    models : tuple of Path
        Checkpoints and model files.
    data : Path
        Folder of the data set.
    out : Path
        Folder for the results.
    source : str or None
        'university1652', 'sues200'; None: found out.
    heights, protocols : tuple
        See `training.benchmark.list_tasks`.
    features : tuple of str or None
        See `training.embedding.open_embedder`.
    paper_rows : tuple of str
        Keys of `training.paper.ROWS`: one for all models, or one for each; 'none': no row. Empty:
        the row that a model's own configuration answers to.
    resize, device : str
        See `training.embedding.open_embedder`.
    unreadable : str
        See `training.embedder.Embedder.embed_paths`.
    workers : int or None
        Threads that decode.
    keep_embeddings : bool
        Keep them in ``out/embeddings`` and use what lies there.
    figures : bool
        Draw them.
    pictures : int
        Hits, and misses, in a picture of matches; 0: no such pictures.
    top : int
        Matches shown of each query.
    seed : int
        Of the choice of the queries shown.
    """

    models: tuple[Path, ...]
    data: Path
    out: Path
    source: str | None = None
    heights: tuple[int, ...] | None = None
    protocols: tuple[str, ...] = PROTOCOLS
    features: tuple[str, ...] | None = None
    paper_rows: tuple[str, ...] = ()
    resize: str = 'deployed'
    device: str = 'auto'
    unreadable: str = 'fail'
    workers: int | None = None
    keep_embeddings: bool = False
    figures: bool = True
    pictures: int = 3
    top: int = 5
    seed: int = 0


def evaluate(options: EvaluationOptions) -> list[ModelResults]:
    """Evaluate models and write all files into ``options.out``, the results model by model.

    Raises
    ------
    BiCrossNetError
        If a model, the data or an option cannot be used; all that can be known before is said
        before the first image is embedded.
    """
    if options.figures and importlib.util.find_spec('matplotlib') is None:
        raise ConfigError('figures need matplotlib; install the extra [training], or --no-figures')
    source = options.source or find_photo_set(options.data).source
    tasks = list_tasks(
        options.data, source=source, heights=options.heights, protocols=options.protocols
    )
    embedders = [
        open_embedder(path, feature=options.features, device=options.device, resize=options.resize)
        for path in options.models
    ]
    rows = _paper_rows(embedders, options.paper_rows, source)
    _make_folder(options.out)
    sides = (paths for x in tasks for paths in (x.task.query_paths, x.task.gallery_paths))
    paths = list(dict.fromkeys(path for side in sides for path in side))
    done: list[ModelResults] = []
    for name, embedder, row in zip(_names(options.models), embedders, rows, strict=True):
        print(f'{name}: {len(paths):,} image files', file=sys.stderr)
        embeddings = embed_with_cache(
            embedder,
            paths,
            options.out / 'embeddings' / f'{name}.npz' if options.keep_embeddings else None,
            unreadable=options.unreadable,
            workers=options.workers,
        )
        results, rankings = measure(embeddings, paths, tasks)
        done.append(
            ModelResults(
                name=name,
                path=str(embedder.path),
                model_id=embedder.model_id,
                source=source,
                input_px=_input_px(embedder),
                resize=embedder.resize,
                backbone=embedder.backbone,
                ops_g=_ops_g(embedder),
                images=len(paths),
                different_images=embeddings.different,
                unreadable=embeddings.unreadable,
                results=tuple(results),
                trained_height_m=_trained_height_m(embedder),
                paper_row=row,
            )
        )
        write_results(options.out, done, versions=_versions())
        if options.figures and options.pictures:
            write_match_figures(
                options.out,
                name,
                rankings,
                count=options.pictures,
                top=options.top,
                seed=options.seed,
            )
    if options.figures:
        write_accuracy_figures(options.out, done)
    return done


def _paper_rows(
    embedders: Sequence[Embedder], keys: Sequence[str], source: str
) -> list[PaperRow | None]:
    """Choose each model's row: by the keys, or by how it was trained."""
    if not keys:
        found = [embedder.config and row_for(embedder.config) for embedder in embedders]
        return [row if row and row.source == source else None for row in found]
    if len(keys) not in (1, len(embedders)):
        raise ConfigError(
            f'--paper-row: found {len(keys)} for {len(embedders)} models; expected one for all, '
            'or one for each'
        )
    rows = [None if key == 'none' else find_row(key) for key in keys]
    for row in rows:
        if row and row.source != source:
            raise ConfigError(f'--paper-row {row.key} is on {row.source}, the data is {source}')
    return rows * len(embedders) if len(rows) == 1 else rows


def _names(paths: Sequence[Path]) -> list[str]:
    """Name models after their files, or their folders where all runs have a final.pt."""
    names: list[str] = []
    for path in paths:
        generic = path.stem in ('final', 'checkpoint') and path.absolute().parent.name
        name = path.absolute().parent.name if generic else path.stem
        same = sum(other == name or other.startswith(f'{name}-') for other in names)
        names.append(f'{name}-{same + 1}' if name in names else name)
    return names


def _input_px(embedder: Embedder) -> tuple[int, int]:
    return embedder.preprocessing.input_height_px, embedder.preprocessing.input_width_px


def _trained_height_m(embedder: Embedder) -> int | None:
    data = embedder.config and embedder.config.data
    return data.height_m if data and data.source == 'sues200' else None


def _ops_g(embedder: Embedder) -> float | None:
    """10^9 operations for two images, as the captions of tables 2 and 3 count; None if unknown."""
    if embedder.backbone is None:
        return None
    return _ops_of(embedder.backbone, (2, 3, *_input_px(embedder))) / 1e9


@functools.cache
def _ops_of(backbone: str, shape: tuple[int, int, int, int]) -> float:
    return complexity_of(backbone, input_shape=shape).ops


def _versions() -> dict[str, str]:
    packages = ('numpy', 'torch', 'onnxruntime', 'faiss-cpu', 'opencv-python-headless')
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {'git_revision': git_revision(), 'python': platform.python_version(), **versions}


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f'{out}: cannot be made a folder ({error.strerror}); choose another --out'
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    cv2.setNumThreads(1)  # images are decoded in parallel instead
    try:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(options).items()}
        done = evaluate(EvaluationOptions(**values))
    except BiCrossNetError as error:
        print('error:', ' '.join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; models that were finished stand in the results', file=sys.stderr)
        return 130
    print(markdown(done))
    print(f'written: {options.out}', file=sys.stderr)
    return 0


def _count(text: str) -> int:
    """Read a whole number from 0; argparse tells what a ValueError says."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{value} is negative')
    return value


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError('0 is too few')
    return int(text)


_RESIZE_HELP = 'deployed: as on the vehicle, the default; bicubic: as public codes do'
_DEVICE_HELP = 'where checkpoints run; model files run on the CPU'


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m training.evaluate',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('models', nargs='+', type=Path, metavar='MODEL', help='.pt or any model file')
    add('--data', type=Path, required=True, metavar='ROOT', help='folder of the data set')
    add('--out', type=Path, required=True, metavar='DIR', help='folder for the results')
    add('--source', choices=sorted(PHOTO_SETS), help='kind of data set; default: found out')
    add(
        '--height',
        dest='heights',
        nargs='+',
        type=int,
        choices=(0, *HEIGHTS_M),
        metavar='M',
        help='SUES-200: 150, 200, 250, 300, or 0: the four pooled; default: each of the four',
    )
    add(
        '--feature',
        dest='features',
        nargs='+',
        choices=FEATURES,
        help='backbone: the embedding that the vehicle uses, as in the paper; branches: features '
        'of the training head, as public codes do; default: all that a model has',
    )
    add(
        '--protocol',
        dest='protocols',
        nargs='+',
        choices=PROTOCOLS,
        default=PROTOCOLS,
        help='full: the gallery holds places that no query shows, as in the paper; reduced: '
        'without these; default: both',
    )
    add(
        '--paper-row',
        dest='paper_rows',
        nargs='+',
        default=(),
        metavar='KEY',
        help="row of the paper's tables to compare with, such as table3_tiny, or none; one for "
        "all, or one for each MODEL; default: the row that the model's configuration is of",
    )
    add('--resize', choices=RESIZES, default='deployed', help=_RESIZE_HELP)
    add('--device', choices=('auto', 'cpu', 'cuda'), default='auto', help=_DEVICE_HELP)
    add(
        '--unreadable',
        choices=('fail', 'skip'),
        default='fail',
        help='an image that cannot be decoded: end (the default), or leave it out and report it',
    )
    add('--workers', type=_positive, metavar='N', help='threads that decode; default: one a core')
    add(
        '--keep-embeddings',
        action='store_true',
        help='keep them in DIR/embeddings, and use what lies there if nothing has changed',
    )
    add('--no-figures', dest='figures', action='store_false', help='write numbers alone')
    add('--pictures', type=_count, default=3, metavar='N', help='hits, and misses, shown; 3')
    add('--top', type=_positive, default=5, metavar='K', help='matches shown of each query; 5')
    add('--seed', type=_count, default=0, metavar='N', help='which queries are shown')
    return parser


if __name__ == '__main__':
    sys.exit(main())
