"""What the rows of a flight are made with, each made when first needed and kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bicrossnet_ros.encoder import open_encoder
from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.features import Features
from bicrossnet_ros.flight import Flight
from bicrossnet_ros.gallery import Gallery, open_gallery
from bicrossnet_ros.tile_index import Float32Array
from bicrossnet_ros.types import ImageArray
from training.baselines.brute_force import map_features
from training.baselines.vlad import Vlad, learn_vlad, load_vlad
from training.data.images import read_image
from training.flight_conditions import Condition, under
from training.flight_gallery import (
    FlightEncoder,
    Tiles,
    build_base,
    embeddings_of,
    map_tiles,
    mosaic_tiles,
    open_written,
    write_gallery,
)
from training.flight_mosaic import Mosaic, make_mosaic, scene_paths
from training.progress import counted
from training.splits import TEST, TRAIN, load_split

VLAD, BRUTE_FORCE = 'SIFT + VLAD', 'SIFT, whole map'
VLAD_SCENES, VLAD_CUTS = 400, 4


class Workshop:
    """Galleries, encoders, features and changed frames of one evaluation.

    Parameters
    ----------
    flight : Flight
    map_path : Path
    models : mapping of str to Path
    data : Path
        Folder of the scenes of the split.
    folder : Path
        Where galleries and embeddings are kept.
    scenes : int or None
        Of the test split as distractors; None: all there are.
    seed, threads : int
    """

    def __init__(
        self,
        flight: Flight,
        *,
        map_path: Path,
        models: Mapping[str, Path],
        data: Path,
        split: Path | None,
        folder: Path,
        scenes: int | None,
        seed: int,
        threads: int,
    ) -> None:
        self.flight = flight
        self._map_path = map_path
        self._models = dict(models)
        self._data, self._split = data, split
        self.folder = folder
        self._scenes = scenes
        self._seed, self._threads = seed, threads
        self._bases: dict[str, Gallery] = {}
        self._encoders: dict[str, FlightEncoder] = {}
        self._open: tuple[tuple[str, str, bool, str], Gallery] | None = None
        self._mosaic: Mosaic | None = None
        self._features: list[Features] | None = None
        self._changed: tuple[Condition, Flight] | None = None

    def encoder(self, name: str) -> FlightEncoder:
        """The model of a name; the vocabulary of VLAD is learnt when first asked for."""
        if name not in self._encoders:
            self._encoders[name] = (
                self._vlad()
                if name == VLAD
                else open_encoder(self._models[name], threads=self._threads)
            )
        return self._encoders[name]

    def base(self, retrieval: str) -> Gallery:
        """The gallery whose map and tiles all models share; built anew once a run."""
        if retrieval not in self._bases:
            path = build_base(self._map_path, self.folder, retrieval)
            self._bases[retrieval] = open_gallery(path)
        return self._bases[retrieval]

    def tiles(self, retrieval: str, *, distractors: bool) -> list[Tiles]:
        """The map's tiles, and those of the test scenes if they are wanted."""
        base = self.base(retrieval)
        own = [map_tiles(base)]
        return [*own, mosaic_tiles(base, self.mosaic())] if distractors else own

    def gallery(
        self, name: str, retrieval: str, *, distractors: bool, descriptor: str = 'float32'
    ) -> Gallery:
        """A model's gallery; the last one stays open."""
        key = name, retrieval, distractors, descriptor
        if self._open is None or self._open[0] != key:
            parts = [
                (tiles.centers_m, self.embeddings(name, retrieval, tiles))
                for tiles in self.tiles(retrieval, distractors=distractors)
            ]
            if self._open is not None:
                self._open[1].close()
            path = self.folder / 'model.gallery'
            encoder = self.encoder(name)
            base = self.base(retrieval)
            write_gallery(base, path, encoder, parts, descriptor=descriptor)
            self._open = key, open_written(path, encoder, descriptor=descriptor)
        return self._open[1]

    def embeddings(self, name: str, retrieval: str, tiles: Tiles) -> Float32Array:
        """A model's embeddings of tiles."""
        what = 'distractors' if isinstance(tiles.source, Mosaic) else 'map'
        label = f'{file_name(name)}-{retrieval}-{what}'
        return embeddings_of(tiles, self.encoder(name), self.folder / 'embeddings', label)

    def embedded(self, name: str, retrieval: str, tiles: Tiles) -> bool:
        """Whether `embeddings` would only read a file."""
        what = 'distractors' if isinstance(tiles.source, Mosaic) else 'map'
        pattern = f'{file_name(name)}-{retrieval}-{what}-*-{tiles.fingerprint}.npy'
        own = self.encoder(name).model_id[:12]
        return any(own in path.name for path in (self.folder / 'embeddings').glob(pattern))

    def mosaic(self) -> Mosaic:
        """The distractor scenes."""
        if self._mosaic is None:
            self._mosaic = make_mosaic(self._paths(TEST, self._scenes))
        return self._mosaic

    def features(self) -> list[Features]:
        """SIFT features of the whole map."""
        if self._features is None:
            self._features = map_features(self.base('vote'))
        return self._features

    def changed(self, condition: Condition) -> Flight:
        """The flight under a condition; the frames of the last one are kept."""
        if (
            self._changed is None
            or self._changed[0].kinds != condition.kinds
            or (self._changed[0].strength != condition.strength)
        ):
            self._changed = condition, under(self.flight, condition, seed=self._seed)
        return self._changed[1]

    def _paths(self, part: str, count: int | None) -> list[Path]:
        split = load_split(self._split)
        return scene_paths(self._data, split, part, count=count, seed=self._seed)

    def _vlad(self) -> Vlad:
        """The vocabulary, learnt on cuts of training scenes as large as the tiles that vote."""
        tile_px = self.base('vote').manifest.tile_px
        path = self.folder / f'vlad-{tile_px}px-{self._seed}.npz'
        if path.is_file():
            return load_vlad(path)
        rng = np.random.default_rng(self._seed)
        paths = self._paths(TRAIN, VLAD_SCENES)
        cuts: list[ImageArray] = []
        for scene in counted(paths, 'scenes for VLAD', len(paths)):
            image = read_image(scene)
            if min(image.shape[:2]) < tile_px:
                continue
            for _ in range(VLAD_CUTS):
                row = int(rng.integers(image.shape[0] - tile_px + 1))
                col = int(rng.integers(image.shape[1] - tile_px + 1))
                cuts.append(image[row : row + tile_px, col : col + tile_px])
        learnt = learn_vlad(counted(cuts, 'VLAD', len(cuts)), seed=self._seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        learnt.save(path)
        return learnt

    def close(self) -> None:
        """Close what is open."""
        for gallery in [*self._bases.values(), *([self._open[1]] if self._open else [])]:
            gallery.close()


def parse_models(items: list[str]) -> dict[str, Path]:
    """NAME=FILE to names and paths.

    Raises
    ------
    ConfigError
        If one has another form, a name stands there twice, or a file is not there.
    """
    models: dict[str, Path] = {}
    for item in items:
        name, sign, file = item.partition('=')
        if not (name and sign and file):
            raise ConfigError(f'--models {item!r}: expected NAME=FILE, as nano=nano.safetensors')
        if name in models or name in (VLAD, BRUTE_FORCE):
            raise ConfigError(f'--models: the name {name!r} is taken; choose another')
        if not Path(file).is_file():
            raise ConfigError(f'--models {item}: {file} is not there; expected a model file')
        models[name] = Path(file)
    return models


def file_name(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r'[^A-Za-z0-9_.]+', '_', name)


def plain_values(config: object) -> dict[str, object]:
    """A dataclass as nested dictionaries, for a fingerprint."""
    return dataclasses.asdict(config)  # type: ignore[call-overload, no-any-return]
