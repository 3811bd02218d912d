"""Export a checkpoint to the model file that flies, and to other formats of the same network.

    python -m training.export OUT/final.pt --out bnext_nano_96.safetensors
    python -m training.export OUT/final.pt --out NAME.safetensors --formats safetensors onnx lce
    python -m training.export FLOAT/final.pt --out efficientnet.onnx
    python -m training.export --untrained nano --input-px 96 --out untrained.safetensors
    python -m training.export --untrained LIKE.safetensors --out untrained.safetensors

Other formats stand beside the file of --out under its name: ``NAME.onnx``, ``NAME.tflite``
(Larq, needs the extra ``lce``), and so does the training record, ``NAME.json``. All must agree
with PyTorch on the same images (`training.agreement`), or nothing is written. The float networks
EfficientNet-Lite0 and ConvNeXt become ``NAME.onnx`` alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bicrossnet_ros.engine.architecture import float_shapes, packed_shapes
from bicrossnet_ros.engine.bits import pack_weights, unpack_weights
from bicrossnet_ros.engine.model_file import (
    ARCHITECTURE,
    Model,
    ModelMetadata,
    read_model,
    write_model,
)
from bicrossnet_ros.errors import BiCrossNetError, ModelError
from bicrossnet_ros.preprocess import Preprocessing
from training.agreement import (
    IMAGES,
    UNTRAINED,
    check_files,
    images_below,
    structured_images,
)
from training.checkpoint import git_revision
from training.export_record import Trained, open_trained
from training.float_onnx import build_float_onnx, is_float_backbone, write_float_onnx
from training.models.bnext import CHANNELS, BNext

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SUFFIXES = {'safetensors': '.safetensors', 'onnx': '.onnx', 'lce': '.tflite'}


def model_tensors(network: BNext) -> dict[str, NDArray[Any]]:
    """Return the tensors of a network under the names and shapes of the model file."""
    state = {key: value.detach().cpu().numpy() for key, value in network.state_dict().items()}
    channels = network.channels
    tensors: dict[str, NDArray[Any]] = {
        name: pack_weights(state[name.removesuffix('bits') + 'weight'])
        for name in packed_shapes(channels)
    }
    for name, shape in float_shapes(channels).items():
        tensors[name] = state[name].astype(np.float32).reshape(shape)
    return tensors


def network_from_model(model: Model) -> BNext:
    """Rebuild a network in evaluation mode from a model file's content; latents become +-1."""
    network = BNext(model.metadata.channels)
    state = network.state_dict()
    for name, tensor in model.network_tensors.items():
        if name.endswith('.bits'):
            key, value = name.removesuffix('bits') + 'weight', unpack_weights(tensor)
        else:
            key, value = name, tensor
        state[key] = torch.from_numpy(value.copy()).reshape(state[key].shape)
    network.load_state_dict(state)
    return network.eval()


def make_model(network: BNext, *, name: str, input_px: int, training: dict[str, Any]) -> Model:
    """Pack a network with its metadata."""
    metadata = ModelMetadata(
        name=name,
        architecture=ARCHITECTURE,
        channels=network.channels,
        embedding_dim=network.feature_dim,
        preprocessing=Preprocessing(input_px, input_px),
        training=training,
    )
    return Model(metadata, model_tensors(network))


def from_checkpoint(path: Path, *, name: str, record: dict[str, Any]) -> Model:
    """Pack the backbone of a checkpoint; `record` is added to its training record.

    Raises
    ------
    ModelError
        If the checkpoint cannot be used, or its backbone has no place in a model file.
    """
    return _packed(open_trained(path, record), path, name=name)


def _packed(checkpoint: Trained, path: Path, *, name: str) -> Model:
    backbone, config = checkpoint.backbone, checkpoint.config
    if not isinstance(backbone, BNext) or not backbone.binary:
        sizes = ', '.join(f'bnext_{size}' for size in CHANNELS)
        raise ModelError(
            f'{path}: its backbone is {config.model.name}, but a model file holds a BNext '
            f'({sizes}); of the others only efficientnet_lite0, _lite2 and convnext fly, as .onnx'
        )
    input_px = config.model.input_px
    return make_model(backbone, name=name, input_px=input_px, training=checkpoint.training)


def untrained(like: str, *, name: str, input_px: int, seed: int) -> Model:
    """Pack a freshly initialised network: the baseline that training must beat.

    Parameters
    ----------
    like : str
        A size of `training.models.bnext.CHANNELS`, or a model file whose channels and input are
        taken.
    name : str
        Name of the new model.
    input_px : int
        Side of the input, where `like` is a size.
    seed : int
        Of the weights.

    Raises
    ------
    ModelError
        If `like` is neither.
    """
    if like in CHANNELS:
        channels = CHANNELS[like]
    elif like.endswith('.safetensors'):
        metadata = read_model(like).metadata
        channels, input_px = metadata.channels, metadata.preprocessing.input_height_px
    else:
        raise ModelError(
            f'--untrained {like}: expected one of {", ".join(CHANNELS)}, or a .safetensors model'
        )
    torch.manual_seed(seed)
    training = {'recipe': UNTRAINED, 'seed': seed, 'git_revision': git_revision()}
    return make_model(BNext(channels), name=name, input_px=input_px, training=training)


def write_formats(
    model: Model, network: BNext, paths: list[Path], images: NDArray[np.uint8]
) -> list[str]:
    """Write a model to files, each in the format of its suffix, if all agree with the network.

    Parameters
    ----------
    model : Model
        Content of the files.
    network : BNext
        What it was made from.
    paths : list of Path
        In one folder; of `SUFFIXES`.
    images : ndarray of uint8, shape (N, H, W, 3)
        On which they must agree; see `training.agreement.check_files`.

    Returns
    -------
    list of str
        What the check found, for people.

    Raises
    ------
    ModelError
        If a format cannot be made, or does not agree; then no file has changed.
    """
    with tempfile.TemporaryDirectory(dir=paths[0].parent, prefix='.export-') as folder:
        drafts = [Path(folder, path.name) for path in paths]
        for draft in drafts:
            _write(draft, model)
        report = check_files(model, network, drafts, images)
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)
    return report


def _write(path: Path, model: Model) -> None:
    if path.suffix == '.onnx':
        from bicrossnet_ros.engine.onnx_graph import build_onnx

        path.write_bytes(build_onnx(model).SerializeToString())
    elif path.suffix == '.tflite':
        from training.lce import build_lce

        path.write_bytes(build_lce(model))
    else:
        write_model(path, model)


def _paths(out: Path, formats: Sequence[str] | None) -> list[Path]:
    """Return the file of every format; `out` is one of them, or says which."""
    suffixes = [SUFFIXES[name] for name in dict.fromkeys(formats or SUFFIXES)]
    if out.suffix not in suffixes:
        raise ModelError(
            f'{out}: expected a name that ends in {" or ".join(suffixes)}'
            f'{", as --formats says" if formats else ""}'
        )
    if not formats:
        suffixes = [out.suffix]
    if '.tflite' in suffixes and importlib.util.find_spec('larq_compute_engine') is None:
        raise ModelError(
            'the format lce needs TensorFlow and Larq Compute Engine; run this in an environment '
            "of their own: pip install -c constraints-lce.txt '.[training,lce]' (docs/larq.md)"
        )
    return [out.with_suffix(suffix) for suffix in suffixes]


def _check_images(folder: Path | None, size_px: int) -> NDArray[np.uint8]:
    if folder is None:
        return structured_images(IMAGES, size_px=size_px)
    return images_below(folder, size_px=size_px)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='python -m training.export',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('checkpoint', type=Path, nargs='?', help='checkpoint.pt or final.pt')
    source.add_argument(
        '--untrained', metavar='LIKE', help='export random weights: a size, or a model file'
    )
    parser.add_argument('--out', type=Path, required=True, help='NAME.safetensors')
    parser.add_argument(
        '--formats',
        nargs='+',
        choices=SUFFIXES,
        help='of the same name, beside each other (default: that of --out)',
    )
    parser.add_argument(
        '--check-images',
        metavar='DIR',
        type=Path,
        help='the formats must agree on images of this folder (default: on made-up ones)',
    )
    parser.add_argument('--input-px', type=int, default=96, help='with --untrained')
    parser.add_argument('--seed', type=int, default=0, help='with --untrained')
    parser.add_argument('--data', default='', help='what the data was, for the training record')
    parser.add_argument('--licence', default='', help='its licence, for the training record')
    parser.add_argument('--note', default='', help='anything else, for the training record')
    options = parser.parse_args(arguments)
    try:
        paths = _paths(options.out, options.formats)
        record, report = _export(options, paths)
        text = json.dumps(record, indent=2, sort_keys=True)
        options.out.with_suffix('.json').write_text(text + '\n')
    except BiCrossNetError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'error: {options.out}: cannot be written ({error.strerror})', file=sys.stderr)
        return 2
    print('\n'.join(report))
    for path in paths:
        print(f'{path}: {path.stat().st_size / 1e6:.2f} MB')
    return 0


def _export(options: argparse.Namespace, paths: list[Path]) -> tuple[dict[str, Any], list[str]]:
    """Write all files; return the training record and what the checks found."""
    name = options.out.stem
    if options.untrained:
        model = untrained(
            options.untrained, name=name, input_px=options.input_px, seed=options.seed
        )
    else:
        given = {'data': options.data, 'licence': options.licence, 'note': options.note}
        record = {key: text for key, text in given.items() if text}
        trained = open_trained(options.checkpoint, record)
        if is_float_backbone(trained.backbone):
            return trained.training, _export_float(trained, options, paths)
        model = _packed(trained, options.checkpoint, name=name)
    images = _check_images(options.check_images, model.metadata.preprocessing.input_height_px)
    report = write_formats(model, network_from_model(model), paths, images)
    return model.metadata.training, report


def _export_float(trained: Trained, options: argparse.Namespace, paths: list[Path]) -> list[str]:
    network, input_px = trained.config.model.name, trained.config.model.input_px
    if [path.suffix for path in paths] != ['.onnx']:
        raise ModelError(
            f'{options.checkpoint}: its backbone is {network}, a float network, which flies as '
            f'ONNX alone; give --out {options.out.with_suffix(".onnx")} and no other --formats'
        )
    proto = build_float_onnx(
        trained.backbone,
        name=options.out.stem,
        architecture=network,
        input_px=input_px,
        training=trained.training,
    )
    images = _check_images(options.check_images, input_px)
    return write_float_onnx(paths[0], proto, trained.backbone, images)


if __name__ == '__main__':
    sys.exit(main())
