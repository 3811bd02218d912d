"""Give a model file a compressed descriptor: 256 numbers a tile, or their signs, 32 bytes.

    python -m training.descriptor MODEL --data SCENES --out MODEL2

The projection is fitted to map tiles and simulated views of the split's training scenes; how it
whitens, and whether ITQ turns it, is chosen on the validation scenes: what lets the packed
descriptors find most, the mean of recall@1 and recall@5. MODEL2 is MODEL with the projection
inside, so it has another id and needs galleries of its own
(`python -m gallery_builder build --descriptor packed`).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.descriptor import DESCRIPTOR_KEY, Projection, projection_to_text
from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.engine.model_file import (
    METADATA_KEY,
    Model,
    ModelMetadata,
    read_model,
    write_model,
)
from bicrossnet_ros.errors import BiCrossNetError, ModelError
from training.checkpoint import git_revision
from training.data.view_config import ViewConfig
from training.descriptor_task import EmbeddedPairs, embed_pairs, recalls, scenes_of
from training.itq import ITERATIONS, Recipe, fit_projection
from training.splits import TRAIN, VALIDATION

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACES = 4000
VALIDATION_PLACES = 1000
RECIPES = (
    *(Recipe(whitening) for whitening in (0.0, 0.25, 0.5, 0.75, 1.0)),
    *(Recipe(whitening, paired=True) for whitening in (0.0, 0.5)),
)


@dataclass(frozen=True)
class Choice:
    """A projection, how it was fitted, and the recalls that chose it (see `recalls`)."""

    projection: Projection
    recipe: Recipe
    found: dict[str, dict[str, float]]

    @property
    def score(self) -> float:
        """Mean of recall@1 and recall@5 of packed descriptors."""
        return float(np.mean(list(self.found['packed'].values())))


def choose_projection(
    training: EmbeddedPairs, validation: EmbeddedPairs, *, seed: int
) -> tuple[Choice, list[Choice]]:
    """Fit projections of every kind and take the one whose signs find most.

    Returns
    -------
    best : Choice
    tried : list of Choice
        All, in the order in which they were tried.
    """

    def fit(recipe: Recipe) -> Choice:
        projection = fit_projection(training.tiles, training.queries, recipe, seed=seed)
        return Choice(projection, recipe, recalls(validation, projection))

    tried = [fit(recipe) for recipe in RECIPES]
    best = max(tried, key=lambda choice: choice.score)
    # The rotation is worth its time for the best alone: the whitening matters more.
    tried.append(fit(replace(best.recipe, iterations=ITERATIONS)))
    return max(tried, key=lambda choice: choice.score), tried


def add_descriptor(
    source: Path, out: Path, projection: Projection, *, record: dict[str, Any]
) -> None:
    """Write a copy of a model file that carries a projection; one that it has is replaced.

    Parameters
    ----------
    source : Path
        ``NAME.safetensors`` or ``NAME.onnx``.
    out : Path
        Of the same kind.
    projection : Projection
    record : dict
        How it was made; becomes ``training['descriptor']`` of the model's metadata.

    Raises
    ------
    ModelError
        If the kinds differ, there is no place for a projection in that kind, or the projection
        does not fit.
    """
    if source.suffix != out.suffix or source.suffix not in _WRITERS:
        raise ModelError(
            f'{source} to {out}: a descriptor travels in .safetensors and .onnx, and --out must '
            'be of the same kind as the model; make a .tflite fly with a float gallery'
        )
    partial = out.with_name(f'.{out.stem}.partial{out.suffix}')
    try:
        _WRITERS[source.suffix](source, partial, projection, record)
        open_encoder(partial)  # what we write, we can read
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _write_safetensors(
    source: Path, out: Path, projection: Projection, record: dict[str, Any]
) -> None:
    model = read_model(source)
    tensors = {**model.network_tensors, **projection.tensors()}
    write_model(out, Model(_recorded(model.metadata, record), tensors))


def _write_onnx(source: Path, out: Path, projection: Projection, record: dict[str, Any]) -> None:
    import onnx

    proto = onnx.load(source)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    metadata = ModelMetadata.from_json(entries[METADATA_KEY], source=str(source))
    entries[METADATA_KEY] = _recorded(metadata, record).to_json()
    entries[DESCRIPTOR_KEY] = projection_to_text(projection)
    onnx.helper.set_model_props(proto, entries)
    out.write_bytes(proto.SerializeToString())


def _recorded(metadata: ModelMetadata, record: dict[str, Any]) -> ModelMetadata:
    return replace(metadata, training={**metadata.training, 'descriptor': record})


_WRITERS = {'.safetensors': _write_safetensors, '.onnx': _write_onnx}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.descriptor',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', type=Path, help='NAME.safetensors or NAME.onnx')
    parser.add_argument(
        '--data', type=Path, required=True, help='folder of python -m training.data.gather'
    )
    parser.add_argument('--split', type=Path, help='CSV file; default the packaged one')
    parser.add_argument('--out', type=Path, required=True, help='the model with a descriptor')
    parser.add_argument('--places', type=int, default=PLACES, help='to fit it to (%(default)s)')
    parser.add_argument(
        '--validation-places', type=int, default=VALIDATION_PLACES, help='(%(default)s)'
    )
    parser.add_argument(
        '--heading-error-deg',
        type=float,
        default=ViewConfig().heading_error_deg,
        help='of the simulated views; 180 for a heading-free model (%(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1, help='of the network (%(default)s)')
    options = parser.parse_args(arguments)
    try:
        best, tried = _fit(options)
        record = _record(best, options)
        add_descriptor(options.model, options.out, best.projection, record=record)
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'error: {options.out}: cannot be written ({error.strerror})', file=sys.stderr)
        return 2
    for choice in tried:
        print(_line(choice))
    print(f'{options.out}: {_line(best)}; {options.out.stat().st_size / 1e6:.2f} MB')
    return 0


def _fit(options: argparse.Namespace) -> tuple[Choice, list[Choice]]:
    encoder = open_encoder(options.model, threads=options.threads)
    views = replace(ViewConfig(), heading_error_deg=options.heading_error_deg)
    pairs = [
        embed_pairs(
            encoder,
            scenes_of(options.data, side, split=options.split),
            places=places,
            seed=options.seed,
            views=views,
            what=side,
        )
        for side, places in ((TRAIN, options.places), (VALIDATION, options.validation_places))
    ]
    return choose_projection(*pairs, seed=options.seed)


def _record(best: Choice, options: argparse.Namespace) -> dict[str, Any]:
    return {
        'places': options.places,
        'heading_error_deg': options.heading_error_deg,
        'seed': options.seed,
        'recipe': str(best.recipe),
        'validation': best.found,
        'git_revision': git_revision(),
    }


def _line(choice: Choice) -> str:
    figures = ', '.join(
        f'{kind} {found["recall_at_1"]:.1%} / {found["recall_at_5"]:.1%}'
        for kind, found in choice.found.items()
    )
    return f'{choice.recipe}: recall@1 / recall@5 on validation: {figures}'


if __name__ == '__main__':
    sys.exit(main())
