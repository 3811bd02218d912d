"""A short flight over drawn ground: made once, then flown on two machines and compared.

    python flight.py make FOLDER       the map, its gallery, the frames and a batch of images
    python flight.py fly FOLDER OUT    what this machine makes of them

`make` needs the gallery builder; `fly` needs no more than what flies.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import cv2
import numpy as np

FRAMES = 3
SIDE_PX, GSD_M = 1200, 0.25
BATCH = 4


def drawn_ground(seed: int = 5) -> np.ndarray:
    """uint8 RGB (H, W, 3): smooth noise under boxes with corners and edges."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 215, (40, 40, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC)
    image = np.clip(smooth, 0, 255).astype(np.uint8)
    for _ in range(700):
        center = tuple(int(one) for one in rng.integers(0, SIDE_PX, 2))
        size = tuple(float(one) for one in rng.uniform(6, 40, 2))
        box = cv2.boxPoints((center, size, float(rng.uniform(0, 90)))).astype(np.int32)
        cv2.fillPoly(image, [box], tuple(int(one) for one in rng.integers(20, 235, 3)))
    return image


def make(folder: Path) -> None:
    """Draw the map, build its gallery, simulate the flight, prepare a batch of images."""
    from gallery_fixtures import write_map

    from bicrossnet_ros.encoder import default_model_path, open_encoder
    from bicrossnet_ros.preprocess import prepare
    from gallery_builder.build import build
    from gallery_builder.flight_plan import FlightPlan
    from gallery_builder.mosaic import MapSources
    from gallery_builder.options import BuildOptions
    from gallery_builder.simulate import simulate

    folder.mkdir(parents=True)
    ground = drawn_ground()
    source = write_map(folder / 'map.tif', ground, gsd_m=GSD_M)
    encoder = open_encoder(default_model_path())
    options = BuildOptions(maps=(source,), out=folder / 'ground.gallery')
    build(options, encoder, say=lambda _: None)
    plan = FlightPlan(
        frames=FRAMES, min_agl_m=60.0, max_agl_m=80.0, width_px=400, height_px=300, seed=1
    )
    list(simulate(MapSources([source]), folder / 'flight', plan))
    side_px = SIDE_PX // BATCH
    views = [ground[i * side_px :, i * side_px :][:side_px, :side_px] for i in range(BATCH)]
    np.save(folder / 'images.npy', prepare(np.stack(views), encoder.preprocessing))


def fly(folder: Path, out: Path) -> None:
    """Embed the batch with every back end of this machine; replay the flight with the best."""
    from bicrossnet_ros.config import LocalizerConfig
    from bicrossnet_ros.encoder import default_model_path, open_encoder
    from bicrossnet_ros.engine import native
    from bicrossnet_ros.engine.model_file import read_model
    from bicrossnet_ros.flight import open_flight
    from bicrossnet_ros.gallery import open_gallery
    from bicrossnet_ros.localizer import Localizer
    from bicrossnet_ros.replay import replay

    images = np.load(folder / 'images.npy')
    model = read_model(default_model_path())
    embeddings = {}
    for name in native.backends():
        network = native.NativeNetwork(model, backend=name)
        embeddings[name] = network.session(*images.shape[2:]).run(images)
    encoder = open_encoder(default_model_path())
    with open_gallery(folder / 'ground.gallery', encoder=encoder) as gallery:
        localizer = Localizer(gallery, encoder, LocalizerConfig())
        records = list(replay(open_flight(folder / 'flight'), localizer.localize))
    fixes = [
        {'file': one.file, 'status': one.status, 'lat_deg': one.lat_deg, 'lon_deg': one.lon_deg}
        for one in records
    ]
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / 'embeddings.npz', **embeddings)
    answer = {'machine': platform.machine(), 'runtime': encoder.runtime, 'fixes': fixes}
    (out / 'fixes.json').write_text(json.dumps(answer, indent=2), encoding='utf-8')


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest='command')
    commands.add_parser('make').add_argument('folder', type=Path)
    flying = commands.add_parser('fly')
    flying.add_argument('folder', type=Path)
    flying.add_argument('out', type=Path)
    options = parser.parse_args()
    if options.command == 'make':
        make(options.folder)
    else:
        fly(options.folder, options.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
