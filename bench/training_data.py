"""How fast one core turns JPEGs into network input, beside a plain Pillow pipeline.

    python -m bench.training_data [--size-px 512] [--input-px 256] [--feed 500 2000] [--json FILE]

Makes its own JPEGs (brightness with equal contrast in every octave, like photographs) in a
temporary folder and measures, in turn on the same files, every stage of our pipeline and of the
same steps as the field's training code takes them with Pillow: bicubic, edge padding, random crop,
mirror. Times are CPU time of one thread, medians over the repeats, so other programs on the
machine disturb them little. Reading is from the page cache: a disk adds its own time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bicrossnet_ros.preprocess import Preprocessing, resize
from training.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from training.data.augment import augment_pair
from training.data.images import read_image
from training.data.loader import batches
from training.data.sources import make_sources

PAPER = AugmentConfig()
RELEASE = AugmentConfig(
    satellite_rotation_deg=90.0, drone_auto_augment=True, drone_erasing_share=0.5
)
PLACES_PER_STEP = 8

Pixels = NDArray[np.uint8]


def photograph(rng: np.random.Generator, size_px: int) -> Pixels:
    """Random texture with the spectrum of photographs."""
    image = np.full((size_px, size_px, 3), 128, np.float32)
    side_px = 4
    while side_px <= size_px:
        octave = rng.normal(0, 5, (side_px, side_px, 1)) + rng.normal(0, 1, (side_px, side_px, 3))
        image += cv2.resize(
            octave.astype(np.float32), (size_px, size_px), interpolation=cv2.INTER_CUBIC
        )
        side_px *= 2
    return np.clip(image, 0, 255).astype(np.uint8)


def make_files(root: Path, *, places: int, size_px: int) -> list[Path]:
    """Write `places` satellite and drone images in the layout of University-1652."""
    rng = np.random.default_rng(0)
    paths = []
    for place in range(places):
        for name in (f'satellite/{place:04d}/{place:04d}.jpg', f'drone/{place:04d}/image-01.jpeg'):
            path = root / 'train' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
            cv2.imwrite(str(path), photograph(rng, size_px), quality)
            paths.append(path)
    return paths


def pillow_decode(path: Path) -> Image.Image:
    """Decode with Pillow."""
    with Image.open(path) as image:
        return image.convert('RGB')


def pillow_augment(image: Image.Image, rng: np.random.Generator, pad_px: int) -> Pixels:
    """Pad by the edges, crop at random, mirror every second image."""
    padded = np.pad(np.asarray(image), ((pad_px, pad_px), (pad_px, pad_px), (0, 0)), mode='edge')
    row, col = rng.integers(0, 2 * pad_px + 1, 2)
    cut = Image.fromarray(padded).crop((col, row, col + image.width, row + image.height))
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(cut)


def stages(root: Path, paths: list[Path], input_px: int) -> dict[str, Callable[[], int]]:
    """Every measured stage: a function that processes all images and returns their number."""
    size = Preprocessing(input_px, input_px)
    rng = np.random.default_rng(0)
    whole = [read_image(path) for path in paths]
    fitted = [resize(image, size) for image in whole]
    pillow_whole = [pillow_decode(path) for path in paths]
    pillow_fitted = [
        image.resize((input_px, input_px), Image.Resampling.BICUBIC) for image in pillow_whole
    ]

    def each(action: Callable[[int], object]) -> Callable[[], int]:
        def all_of_them() -> int:
            for index in range(len(paths)):
                action(index)
            return len(paths)

        return all_of_them

    def augmented(config: AugmentConfig) -> Callable[[], int]:
        def all_pairs() -> int:
            for index in range(0, len(paths), 2):
                augment_pair(fitted[index], fitted[index + 1], rng, config)
            return len(paths)

        return all_pairs

    def pillow_pipeline(index: int) -> Pixels:
        image = pillow_decode(paths[index])
        image = image.resize((input_px, input_px), Image.Resampling.BICUBIC)
        return pillow_augment(image, rng, PAPER.pad_px)

    return {
        'decode': each(lambda k: read_image(paths[k], at_least_px=input_px)),
        'decode at full size': each(lambda k: read_image(paths[k])),
        'decode, Pillow': each(lambda k: pillow_decode(paths[k])),
        'reduce from full size': each(lambda k: resize(whole[k], size)),
        'reduce, Pillow': each(
            lambda k: pillow_whole[k].resize((input_px, input_px), Image.Resampling.BICUBIC)
        ),
        'augment': augmented(PAPER),
        'augment as the release': augmented(RELEASE),
        'augment, Pillow': each(lambda k: pillow_augment(pillow_fitted[k], rng, PAPER.pad_px)),
        'pipeline, first epoch': loader_epochs(root, input_px, PAPER, later=False),
        'pipeline, later epochs': loader_epochs(root, input_px, PAPER, later=True),
        'the same as the release': loader_epochs(root, input_px, RELEASE, later=True),
        'pipeline, Pillow': each(pillow_pipeline),
    }


def loader_epochs(
    root: Path, input_px: int, augment: AugmentConfig, *, later: bool
) -> Callable[[], int]:
    """Whole batches as in training; in later epochs the satellite views are in memory."""
    data = DataConfig(places_per_step=PLACES_PER_STEP, augment=augment)
    config = TrainConfig(data=data, model=ModelConfig(input_px=input_px))
    kept, _ = make_sources(config, root)
    steps = len(kept.names) // PLACES_PER_STEP

    def epoch() -> int:
        source = kept if later else make_sources(config, root)[0]
        drawn = batches(source, data, seed=0, stream=0, first_step=0, last_step=steps)
        return sum(2 * len(batch.labels) for batch in drawn)

    if later:
        epoch()
    return epoch


def fidelity_db(paths: list[Path], input_px: int) -> dict[str, float]:
    """Mean PSNR of ways to reduce an image against Pillow's bicubic, which smooths as needed."""
    shape = (input_px, input_px)
    found: dict[str, list[float]] = {}
    for path in paths:
        whole = read_image(path)
        wanted = np.asarray(Image.fromarray(whole).resize(shape, Image.Resampling.BICUBIC), float)
        reduced = resize(read_image(path, at_least_px=input_px), Preprocessing(*shape))
        ways = {
            'as trained': reduced,
            'area averaging of the whole image': cv2.resize(
                whole, shape, interpolation=cv2.INTER_AREA
            ),
            'bicubic of OpenCV': cv2.resize(whole, shape, interpolation=cv2.INTER_CUBIC),
        }
        for name, image in ways.items():
            error = max(float(np.mean((image - wanted) ** 2)), 1e-3)
            found.setdefault(name, []).append(10 * math.log10(255**2 / error))
    return {name: statistics.fmean(values) for name, values in found.items()}


def measure(actions: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median CPU milliseconds an image; the actions take turns, so that drifts hit all alike."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats + 1):
        for name, action in actions.items():
            start = time.thread_time()
            count = action()
            if turn:  # the first turn warms up
                times[name].append((time.thread_time() - start) / count * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def report(times_ms: dict[str, float], feed: list[float]) -> str:
    """Write a table of the stages, and of the cores that keep a GPU busy."""
    lines = ['| Stage | ms an image | images/s a core |', '|---|---|---|']
    lines += [f'| {name} | {ms:.3f} | {1e3 / ms:.0f} |' for name, ms in times_ms.items()]
    ratio = times_ms['pipeline, Pillow'] / times_ms['pipeline, later epochs']
    first = times_ms['pipeline, Pillow'] / times_ms['pipeline, first epoch']
    lines += [
        '',
        f'Pillow takes {first:.1f} times as long (first epoch), {ratio:.1f} times later.',
    ]
    lines += ['', '| To feed | ours, first epoch | ours, later | Pillow |', '|---|---|---|---|']
    names = ('pipeline, first epoch', 'pipeline, later epochs', 'pipeline, Pillow')
    for rate in feed:
        cores = ' | '.join(f'{math.ceil(rate * times_ms[name] / 1e3)}' for name in names)
        lines.append(f'| {rate:g} images/s | {cores} |')
    return '\n'.join(lines)


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--places', type=int, default=32, help='a satellite and a drone image each'
    )
    parser.add_argument('--size-px', type=int, default=512)
    parser.add_argument('--input-px', type=int, default=256)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--feed', type=float, nargs='*', default=[500, 2000, 5000], metavar='N')
    parser.add_argument('--images', type=Path, help='JPEGs to compare ways of reducing on')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(Path(folder), places=options.places, size_px=options.size_px)
        size_kb = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
        looked_at = sorted(options.images.rglob('*.jp*g')) if options.images else paths
        fidelity = fidelity_db(looked_at, options.input_px)
        times_ms = measure(stages(Path(folder), paths, options.input_px), options.repeats)
    title = f'{options.size_px} px JPEGs of {size_kb:.0f} kB to {options.input_px} px, one core'
    print(f'{title}\n\n{report(times_ms, options.feed)}\n')
    for name, value in fidelity.items():
        print(f"{name}: {value:.1f} dB from Pillow's bicubic")
    if options.json:
        result = {'title': title, 'ms_per_image': times_ms, 'fidelity_db': fidelity}
        options.json.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
