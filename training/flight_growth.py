"""How the time of a search grows with the map: retrieval beside brute-force matching.

The map is made larger with scenes of the test split, put beside it, until it covers so many times
its own area; where the scenes do not suffice they are repeated. Times then still grow as they
would, but repeated ground adds no new look-alikes: `distinct_times` says how far it is real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bicrossnet_ros.config import RegistrationConfig
from bicrossnet_ros.features import Features, extract
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.tile_index import Float32Array
from bicrossnet_ros.types import FloatArray
from training.baselines.brute_force import BruteForce
from training.figures import FAINT, STYLE, save_figure
from training.flight_conditions import some_frames
from training.flight_gallery import GAP_M, map_tiles, open_written, write_gallery
from training.flight_mosaic import SCENE_PX, Mosaic
from training.flight_plan import ALONE
from training.flight_retrieval import answers, brute_force_answers, config_for
from training.flight_rows import RowFile, fingerprint_of, latency_figures, recall_figures
from training.flight_workshop import BRUTE_FORCE, Workshop
from training.progress import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RETRIEVAL = 'retrieval'
GROWTH_KEYS = ('method', 'area_times')
# Frames that brute force is given times the area, at most: 64 times the area takes seconds each.
BRUTE_FORCE_WORK = 384
LEAST_FRAMES = 6


class Growth:
    """The rows of every area and method, and their picture.

    Parameters
    ----------
    shop : Workshop
    rows : RowFile
        With the keys `GROWTH_KEYS`.
    model : str
        That retrieval is done with.
    times : sequence of int
        Areas, in those of the map.
    frames : int
        Of the flight, spread evenly.
    picture : Path
        PNG to draw.
    """

    def __init__(
        self,
        shop: Workshop,
        rows: RowFile,
        *,
        model: str,
        times: Sequence[int],
        frames: int,
        picture: Path,
    ) -> None:
        self._shop, self._rows = shop, rows
        self._model, self._times, self._frames = model, tuple(times), frames
        self._picture = picture

    def missing(self) -> list[int]:
        """Areas that some method has not been measured on."""
        return list(dict.fromkeys(area_times for area_times, _ in self._missing()))

    def measure(self) -> None:
        """Make the rows that are missing, and draw all."""
        shop, base = self._shop, self._shop.base('vote')
        for area_times, method in self._missing():
            make = _retrieval if method == RETRIEVAL else _brute_force
            figures = make(shop, self._model, area_times, self._frames)
            scenes = shop.mosaic().scenes if area_times > 1 else 0
            distinct = 1 + scenes * _scene_m2(base) / _area_m2(base)
            row = {
                'method': method,
                'area_times': area_times,
                'fingerprint': self._print(method, area_times),
                'area_km2': area_times * _area_m2(base) / 1e6,
                'distinct_times': min(area_times, distinct),
            }
            self._rows.put(row | figures)
        if self._rows.rows:
            save_figure(growth_figure(self._rows.rows), self._picture)

    def _missing(self) -> list[tuple[int, str]]:
        return [
            (area_times, method)
            for area_times in self._times
            for method in (RETRIEVAL, ALONE)
            if not self._rows.finished(
                {'method': method, 'area_times': area_times}, self._print(method, area_times)
            )
        ]

    def _print(self, method: str, area_times: int) -> str:
        tiles = self._shop.tiles('vote', distractors=area_times > 1)
        return fingerprint_of(
            method=method,
            area_times=area_times,
            tiles=[part.fingerprint for part in tiles],
            frames=[one.file for one in some_frames(self._shop.flight, self._frames).records],
            model=self._shop.encoder(self._model).model_id if method == RETRIEVAL else '',
        )


def _retrieval(shop: Workshop, model: str, area_times: int, frames: int) -> dict[str, Any]:
    base, encoder = shop.base('vote'), shop.encoder(model)
    own, *others = shop.tiles('vote', distractors=area_times > 1)
    parts = [(own.centers_m, shop.embeddings(model, 'vote', own))]
    for other in others:
        rows = shop.embeddings(model, 'vote', other)
        wanted = (area_times - 1) * len(own)
        parts += repeated(other.centers_m, rows, wanted, step_m=_step_m(base, shop.mosaic()))
    path = write_gallery(base, shop.folder / 'growth.gallery', encoder, parts)
    with open_written(path, encoder) as gallery:
        found = answers(
            some_frames(shop.flight, frames),
            gallery,
            encoder,
            config_for('vote'),
            heading='autopilot',
            registration=False,
            label=f'{model}, {area_times} times the map',
        )
        figures = {'model': model, 'tiles': len(gallery.tile_east_m)}
    return figures | recall_figures(found, at=(1, 5)) | latency_figures(found)


def _brute_force(shop: Workshop, model: str, area_times: int, frames: int) -> dict[str, Any]:
    base = shop.base('vote')
    blocks = list(shop.features())
    if area_times > 1:
        scenes = scene_features(shop.mosaic(), base, shop.folder / 'embeddings')
        count = math.ceil((area_times - 1) * _area_m2(base) / _scene_m2(base))
        blocks += [scenes[number % len(scenes)] for number in range(count)]
    matcher = BruteForce(blocks, gsd_m=base.manifest.gsd_m)
    some = some_frames(shop.flight, max(LEAST_FRAMES, min(frames, BRUTE_FORCE_WORK // area_times)))
    label = f'brute force, {area_times} times the map'
    found = brute_force_answers(some, matcher, crs=base.crs, label=label)
    figures = {'model': BRUTE_FORCE, 'features': len(matcher)}
    return figures | recall_figures(found, at=(1,)) | latency_figures(found)


def repeated(
    centers_m: FloatArray, rows: Float32Array, wanted: int, *, step_m: float
) -> list[tuple[FloatArray, Float32Array]]:
    """The first `wanted` tiles of endless copies, each `step_m` further east than the last."""
    parts = []
    for copy in range(-(-wanted // len(rows))):
        left = min(len(rows), wanted - copy * len(rows))
        shift_m = np.array([copy * step_m, 0.0])
        parts.append((centers_m[:left] + shift_m, rows[:left]))
    return parts


def scene_features(mosaic: Mosaic, base: Gallery, folder: Path) -> list[Features]:
    """SIFT features of every scene of the mosaic, points in metres; kept in a file."""
    path = folder / f'sift-{mosaic.fingerprint}.npz'
    gsd_m = base.manifest.gsd_m
    if not path.is_file():
        found = []
        per_column = mosaic.image.shape[0] // SCENE_PX
        everywhere = np.ones((SCENE_PX, SCENE_PX), bool)
        for number in counted(range(mosaic.scenes), 'SIFT of the scenes', mosaic.scenes):
            column, row = divmod(number, per_column)
            square = mosaic.cut(row * SCENE_PX, column * SCENE_PX, SCENE_PX)
            limit = RegistrationConfig().max_features
            found.append(extract(square, everywhere, max_features=limit))
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix('.partial')
        with partial.open('wb') as stream:
            np.savez(
                stream,
                counts=[len(one) for one in found],
                points=np.concatenate([one.points for one in found]),
                descriptors=np.concatenate([one.descriptors for one in found]),
            )
        partial.replace(path)
    with np.load(path) as kept:
        points, descriptors = kept['points'], kept['descriptors']
        ends = np.cumsum(kept['counts'])[:-1]
    # Where the scenes lie is of no interest, but they must be far from the map.
    west, _, east, north = base.manifest.bounds_m
    shift = np.array([east + (east - west) + GAP_M, north])
    return [
        Features(own * [gsd_m, -gsd_m] + shift, rows)
        for own, rows in zip(np.split(points, ends), np.split(descriptors, ends), strict=True)
        if len(own)
    ]


def growth_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Time and recall against the area, both methods."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.9), layout='constrained')
        spent, found = figure.subplots(1, 2)
        for method, color, marker in ((RETRIEVAL, '#1f5fa8', 'o'), (ALONE, '#c8641e', 's')):
            own = sorted(
                (row for row in rows if row['method'] == method),
                key=lambda row: row['area_times'],
            )
            if not own:
                continue
            area = [row['area_km2'] for row in own]
            style = {'color': color, 'marker': marker, 'markersize': 4}
            name = 'retrieval' if method == RETRIEVAL else 'brute-force SIFT'
            spent.plot(area, [row['total_ms'] for row in own], label=f'{name}, all', **style)
            part = 'search_ms' if method == RETRIEVAL else 'match_ms'
            label = f'{name}, {"search" if method == RETRIEVAL else "matching"}'
            spent.plot(area, [row[part] for row in own], label=label, linestyle=':', **style)
            share = [100 * row['recall_at_1_25m'] for row in own]
            low = [100 * row['recall_at_1_25m_low'] for row in own]
            high = [100 * row['recall_at_1_25m_high'] for row in own]
            found.plot(area, share, label=name, **style)
            found.fill_between(area, low, high, color=color, alpha=0.12, linewidth=0)
        for axes in (spent, found):
            axes.set_xscale('log')
            area = sorted({row['area_km2'] for row in rows})
            axes.set_xticks(area, [f'{one:.2g}' for one in area])
            axes.minorticks_off()
            axes.set_xlabel('area of the map in km²')
            axes.legend(frameon=False, fontsize=7)
            axes.grid(color=FAINT, alpha=0.25, linewidth=0.5)
        spent.set_yscale('log')
        spent.set_ylabel('median ms a frame, one core')
        found.set_ylim(0, 103)
        found.set_ylabel('recall@1 within 25 m in %')
    return figure


def _area_m2(base: Gallery) -> float:
    """Ground that the map's tiles stand for."""
    return len(map_tiles(base)) * (base.tile_size_m * (1.0 - base.manifest.overlap)) ** 2


def _scene_m2(base: Gallery) -> float:
    return (SCENE_PX * base.manifest.gsd_m) ** 2


def _step_m(base: Gallery, mosaic: Mosaic) -> float:
    """From one copy of the scenes to the next, in whole strides."""
    stride_m = base.tile_size_m * (1.0 - base.manifest.overlap)
    return stride_m * math.ceil((mosaic.image.shape[1] * base.manifest.gsd_m + GAP_M) / stride_m)
