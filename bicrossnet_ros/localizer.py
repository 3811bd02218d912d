"""The pipeline: frame -> ground patches -> embeddings -> places -> registration -> position."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import cv2
import numpy as np

from bicrossnet_ros.alignment import Aligner, Alignment
from bicrossnet_ros.camera import top_heading_deg
from bicrossnet_ros.config import LocalizerConfig
from bicrossnet_ros.errors import BiCrossNetError
from bicrossnet_ros.estimate import MapFrame, fix, no_fix
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.geodesy import grid_convergence_deg, to_projected
from bicrossnet_ros.hypotheses import Hypothesis, Knowledge, heading_sigma_deg, interpret
from bicrossnet_ros.integrity import (
    guess_covariance,
    lead_over_elsewhere,
    map_sigma_m,
    tile_covariance,
    tilt_covariance,
)
from bicrossnet_ros.patch import FramePyramid
from bicrossnet_ros.positioning import Position, locate
from bicrossnet_ros.query_patches import cut_patches
from bicrossnet_ros.ranking import Circle, Place, Ranking, distinct_places, places_in
from bicrossnet_ros.registration import Refusal
from bicrossnet_ros.retrieval import PlaceSearch, nearest_tile
from bicrossnet_ros.tile_index import Float32Array
from bicrossnet_ros.types import (
    Frame,
    ImageArray,
    PositionEstimate,
    Reason,
    TileMatch,
)

# What the numerical libraries raise over sizes and numbers that no check foresaw: one such frame
# must not end a flight.
BEYOND_ARITHMETIC = (cv2.error, np.linalg.LinAlgError, MemoryError)

# Heights that are assumed are a factor of about 1.4 apart, and the true one may lie beyond them.
UNKNOWN_HEIGHT_SIGMA = 0.4


class PatchEncoder(Protocol):
    """What the localizer needs of an encoder; see `encoder.Encoder`."""

    def encode(self, patches: ImageArray) -> Float32Array:
        """uint8 RGB (N, H, W, 3) to unit rows (N, D)."""


class Localizer:
    """Says where a frame was taken, or why it cannot.

    Features of the map are kept between frames, so one localizer is used by one thread.

    Parameters
    ----------
    gallery : Gallery
        From `bicrossnet_ros.gallery.open_gallery`.
    encoder : Encoder
        From `bicrossnet_ros.encoder.open_encoder`; the one that the gallery was made with.
    config : LocalizerConfig, optional
        Parameters of all stages.
    """

    def __init__(
        self, gallery: Gallery, encoder: PatchEncoder, config: LocalizerConfig | None = None
    ) -> None:
        self.gallery = gallery
        self.encoder = encoder
        self.config = config or LocalizerConfig()
        self._search = PlaceSearch(gallery)
        self._aligner = Aligner(self._search, self.config.registration)
        self._frame_of_map = MapFrame(
            gallery.crs, grid_convergence_deg(gallery.crs, *gallery.origin)
        )
        self._map_accuracy_m = map_sigma_m(self.config.integrity, gallery.manifest.accuracy_m)

    def localize(self, frame: Frame) -> PositionEstimate:
        """Estimate the position of one frame.

        Bad input is a `no_fix` with `Reason.BAD_INPUT` and a sentence, never an exception.
        """
        clock = _Clock()
        attempt = _Attempt(self, clock)
        try:
            estimate = attempt.run(frame)
        except BiCrossNetError as error:
            estimate = no_fix(Refusal(Reason.BAD_INPUT, str(error)))
        except BEYOND_ARITHMETIC as error:
            detail = (
                f'the frame cannot be worked on ({type(error).__name__}: '
                f'{" ".join(str(error).split())}); expected an ordinary size, lens and height'
            )
            estimate = no_fix(Refusal(Reason.BAD_INPUT, detail))
        return dataclasses.replace(estimate, stamp_s=frame.stamp_s, timings_ms=clock.finish())


class _Clock:
    """Milliseconds per stage; stages entered several times add up."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages = dict.fromkeys(('patch', 'encode', 'search', 'register'), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name] += 1e3 * (time.perf_counter() - begin)

    def finish(self) -> dict[str, float]:
        return self._stages | {'total': 1e3 * (time.perf_counter() - self._start)}


class _Attempt:
    """The stages for one frame, which share its pyramid and its knowledge."""

    def __init__(self, localizer: Localizer, clock: _Clock) -> None:
        self._gallery = localizer.gallery
        self._encoder = localizer.encoder
        self._config = localizer.config
        self._search = localizer._search
        self._aligner = localizer._aligner
        self._frame_of_map = localizer._frame_of_map
        self._map_accuracy_m = localizer._map_accuracy_m
        self._clock = clock

    def run(self, frame: Frame) -> PositionEstimate:
        knowledge = interpret(
            frame, self._config.camera, convergence_deg=self._frame_of_map.convergence_deg
        )
        pyramid = FramePyramid(frame.image)
        circle = self._circle(frame, knowledge)
        ranked = self._rank(pyramid, knowledge, circle, patches=self._config.retrieval.patches)
        if len(ranked) == 0:
            # A map so small that it lies between the patches.
            ranked = self._rank(pyramid, knowledge, circle, patches=1)
        if len(ranked) == 0:
            return no_fix(Refusal(Reason.NO_MAP_HERE, self._no_map_detail(frame)))
        shown = ranked.matches(self._config.retrieval.candidates)
        lowest = self._config.retrieval.min_similarity
        if shown[0].similarity < lowest:
            detail = f'the best similarity is {shown[0].similarity:.3f}; {lowest:g} is needed'
            return no_fix(Refusal(Reason.LOW_SIMILARITY, detail), shown)
        tried = knowledge.hypotheses[int(ranked.hypothesis[0])]
        with self._clock.stage('register'):
            if not self._config.registration.enabled:
                return self._from_tile(ranked.matches(), knowledge, tried)
            for guess in _other_heights(tried, knowledge):
                found = self._register(pyramid, knowledge, guess, ranked, circle)
                if not isinstance(found, Refusal) or found.reason is Reason.AMBIGUOUS:
                    break
            if isinstance(found, Refusal):
                return no_fix(found, shown)
            alignment, position = found
            problem = _outside_prior(position, circle)
            if problem:
                refusal = Refusal(Reason.IMPLAUSIBLE, problem, alignment.registration.inliers)
                return no_fix(refusal, shown)
            return fix(
                position,
                shown,
                self._frame_of_map,
                tile_id=nearest_tile(self._gallery, position.center_m),
                inliers=alignment.registration.inliers,
                detail=f'{alignment.registration.inliers} of '
                f'{alignment.registration.matches} matches agree',
            )

    def _circle(self, frame: Frame, knowledge: Knowledge) -> Circle | None:
        """Where the image's middle may be: the prior's circle widened by what the view adds."""
        if frame.prior is None:
            return None
        center = to_projected(self._gallery.crs, frame.prior.lat_deg, frame.prior.lon_deg)
        reach_m = max(
            float(np.linalg.norm(hypothesis.view.center_m)) for hypothesis in knowledge.hypotheses
        )
        return center, frame.prior.radius_m + reach_m + 0.5 * self._gallery.tile_size_m

    def _no_map_detail(self, frame: Frame) -> str:
        if frame.prior is None:
            return 'the gallery has no tiles'
        return (
            f'no tile lies within {frame.prior.radius_m:.0f} m of '
            f'({frame.prior.lat_deg:.6f}, {frame.prior.lon_deg:.6f})'
        )

    def _rank(
        self,
        pyramid: FramePyramid,
        knowledge: Knowledge,
        circle: Circle | None,
        *,
        patches: int,
    ) -> Ranking:
        manifest = self._gallery.manifest
        registration, retrieval = self._config.registration, self._config.retrieval
        with self._clock.stage('patch'):
            images, ballot = cut_patches(
                pyramid,
                knowledge.hypotheses,
                tile_px=manifest.tile_px,
                gsd_m=manifest.gsd_m,
                limit=max(1, min(patches, retrieval.max_patches // len(knowledge.hypotheses))),
            )
        with self._clock.stage('encode'):
            embeddings = self._encoder.encode(images)
        stride_m = self._search.grid.stride_m
        each = places_in(self._aligner.apart_m, stride_m)
        count = each * (registration.max_windows + registration.fallback_windows)
        # Without registration a lead shows only if tiles elsewhere are among them: more than the
        # neighbours of the best, of which the map's border has a row and a column extra.
        near = (2 * math.ceil(self._gallery.tile_size_m / stride_m) + 2) ** 2
        with self._clock.stage('search'):
            return self._search.rank(
                self._gallery.descriptor(embeddings),
                ballot,
                count=max(retrieval.candidates, count, near + 1),
                circle=circle,
            )

    def _register(
        self,
        pyramid: FramePyramid,
        knowledge: Knowledge,
        tried: Hypothesis,
        ranked: Ranking,
        circle: Circle | None,
    ) -> tuple[Alignment, Position] | Refusal:
        config = self._config.registration
        query = self._aligner.query(pyramid, tried.view)
        if isinstance(query, Refusal):
            return query
        expectation = knowledge.expectation(tried, self._config)
        refusal = Refusal(Reason.FEW_INLIERS, 'no map window was tried')
        tried_places: list[Place] = []
        for start, count in (
            (0, config.max_windows),
            (config.max_windows, config.fallback_windows),
        ):
            places = distinct_places(
                ranked, apart_m=self._aligner.apart_m, count=count, start=start
            )
            if not places:
                break
            found = self._aligner.align(
                query, places, expectation, others=tried_places, circle=circle
            )
            tried_places += places
            if isinstance(found, Alignment):
                position = locate(
                    found.registration,
                    knowledge,
                    tried,
                    self._config,
                    map_accuracy_m=self._map_accuracy_m,
                )
                return position if isinstance(position, Refusal) else (found, position)
            refusal = found
            if refusal.reason is Reason.AMBIGUOUS:
                break
        return refusal

    def _from_tile(
        self, ranked: list[TileMatch], knowledge: Knowledge, tried: Hypothesis
    ) -> PositionEstimate:
        """The best tile's centre for the image centre, if no tile elsewhere rivals it."""
        best, manifest = ranked[0], self._gallery.manifest
        shown = ranked[: self._config.retrieval.candidates]
        tile_size_m = self._gallery.tile_size_m
        lowest = self._config.retrieval.min_tile_similarity
        if best.similarity < lowest:
            detail = f'the best similarity is {best.similarity:.3f}; {lowest:g} is needed'
            return no_fix(Refusal(Reason.LOW_SIMILARITY, detail), shown)
        lead = lead_over_elsewhere(ranked, tile_size_m=tile_size_m)
        needed = self._config.retrieval.min_margin
        if math.isinf(lead) and needed > 0:
            # Not a lead but a place without rivals: of a map of one tile every frame would be.
            detail = (
                f'no place further than {tile_size_m:g} m from the best one was compared with '
                'it, so its lead is unknown; take a larger map or a wider prior, or registration'
            )
            return no_fix(Refusal(Reason.AMBIGUOUS, detail), shown)
        if lead < needed:
            detail = f'the best place leads one elsewhere by {lead:.3f}; {needed:g} is needed'
            return no_fix(Refusal(Reason.AMBIGUOUS, detail), shown)
        covariance = tile_covariance(
            ranked, tile_size_m=tile_size_m, spacing_m=(1 - manifest.overlap) * tile_size_m
        )
        covariance = covariance + self._map_accuracy_m**2 * np.eye(2)
        center = np.array([best.east_m, best.north_m])
        integrity = self._config.integrity
        sigma_deg = (
            integrity.attitude_sigma_deg
            if knowledge.attitude_known
            else integrity.unknown_tilt_deg
        )
        offset_m = -tried.view.center_m
        guessed = guess_covariance(
            offset_m,
            heading_sigma_deg=heading_sigma_deg(knowledge, self._config),
            height_sigma=0.0 if knowledge.agl_known else UNKNOWN_HEIGHT_SIGMA,
        )
        position = Position(
            camera_m=center + offset_m,
            camera_covariance_m2=covariance + tilt_covariance(tried.agl_m, sigma_deg) + guessed,
            center_m=center,
            center_covariance_m2=covariance,
            agl_m=tried.agl_m if knowledge.agl_known else math.nan,
            grid_heading_deg=top_heading_deg(tried.view.rotation),
        )
        detail = f'the best place leads every one elsewhere by {lead:.3f}'
        return fix(
            position,
            shown,
            self._frame_of_map,
            tile_id=best.tile_id,
            inliers=0,
            detail=detail,
        )


def _other_heights(tried: Hypothesis, knowledge: Knowledge) -> list[Hypothesis]:
    """A hypothesis and those that differ from it in height alone, the likest first.

    Features match over a factor of about 1.3 in scale, less than guessed heights are apart.
    """
    same = [guess for guess in knowledge.hypotheses if guess.heading_deg == tried.heading_deg]
    return sorted(same, key=lambda guess: abs(math.log(guess.agl_m / tried.agl_m)))


def _outside_prior(position: Position, circle: Circle | None) -> str:
    if circle is None:
        return ''
    distance_m = float(np.linalg.norm(position.center_m - np.array(circle[0])))
    if distance_m <= circle[1]:
        return ''
    return (
        f'the place that fits lies {distance_m:.0f} m from the prior; '
        f'expected at most {circle[1]:.0f} m'
    )
