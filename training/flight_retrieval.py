"""A flight replayed with a gallery: which tiles come out, or what the whole pipeline says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bicrossnet_ros.config import LocalizerConfig
from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.evaluation import score
from bicrossnet_ros.fix_record import FixRecord
from bicrossnet_ros.flight import Flight
from bicrossnet_ros.gallery import Gallery
from bicrossnet_ros.geodesy import to_projected, to_wgs84
from bicrossnet_ros.localizer import Localizer
from bicrossnet_ros.replay import replay, settle_config
from training.baselines.brute_force import BruteForce
from training.flight_conditions import HEADINGS
from training.flight_gallery import FlightEncoder
from training.progress import counted

# What docs/retrieval.md advises for a compass that errs by no more than 15 degrees.
CALIBRATED_SPREAD_DEG = 20.0


def config_for(
    retrieval: str, *, heading: str = 'autopilot', candidates: int = 20
) -> LocalizerConfig:
    """The product's configuration, or the paper's: one patch a frame, one heading if it is known.

    Parameters
    ----------
    retrieval : {'vote', 'single'}
    heading : str
        One of `HEADINGS`: who knows the heading to 15 degrees sets the product so.
    candidates : int
        Tiles listed.
    """
    config = LocalizerConfig()
    config = replace(config, retrieval=replace(config.retrieval, candidates=candidates))
    if retrieval == 'vote':
        if heading == 'truth15':
            camera = replace(config.camera, heading_spread_deg=CALIBRATED_SPREAD_DEG)
            return replace(config, camera=camera)
        return config
    return replace(
        config,
        retrieval=replace(config.retrieval, patches=1),
        # As many headings as that way of retrieval was measured with before there was voting.
        camera=replace(config.camera, known_headings=1, unknown_headings=12),
    )


def answers(
    flight: Flight,
    gallery: Gallery,
    encoder: FlightEncoder,
    config: LocalizerConfig,
    *,
    heading: str,
    registration: bool,
    label: str,
) -> list[FixRecord]:
    """Ask the localizer about every frame, without a prior; the records are scored.

    Parameters
    ----------
    flight : Flight
        From `flight_conditions.with_heading` for this heading.
    gallery, encoder, config
    heading : str
        One of `HEADINGS`.
    registration : bool
        Whether the whole pipeline runs; else retrieval alone.
    label : str
        For the progress bar.
    """
    config = settle_config(
        config, registration=registration, truth_is_map_relative=flight.truth_is_map_relative
    )
    localizer = Localizer(gallery, encoder, config)
    frames = replay(flight, localizer.localize, heading=HEADINGS[heading])
    return [
        score(answer, record, crs=gallery.crs)
        for answer, record in zip(counted(frames, label, len(flight)), flight.records, strict=True)
    ]


def brute_force_answers(
    flight: Flight, matcher: BruteForce, *, crs: str, label: str
) -> list[FixRecord]:
    """What brute force says, as records like those of the localizer: one candidate or none."""

    def one() -> Iterator[FixRecord]:
        for record in flight.records:
            frame = flight.frame(record, heading='unknown')
            answer = matcher.locate(frame)
            timings = {
                'extract': answer.extract_ms,
                'match': answer.match_ms,
                'register': answer.register_ms,
                'total': answer.total_ms,
            }
            found = FixRecord(
                record.file,
                record.stamp_s,
                'no_fix',
                reason=answer.reason,
                detail=answer.detail,
                timings_ms=timings,
            )
            if answer.center_m is not None:
                lat_deg, lon_deg = to_wgs84(crs, *answer.center_m.tolist())
                found = replace(
                    found,
                    status='fix',
                    reason='',
                    center_lat_deg=lat_deg,
                    center_lon_deg=lon_deg,
                    inliers=answer.inliers,
                    candidates=((lat_deg, lon_deg),),
                )
            yield score(found, record, crs=crs)

    return list(counted(one(), label, len(flight)))


def require_truth(flight: Flight, gallery: Gallery) -> None:
    """Raise ConfigError unless some frame's true middle is known and lies near the map."""
    known = [record for record in flight.records if not record.problem and record.has_center_truth]
    if not known:
        raise ConfigError(
            f'{flight.name}: no frame has the true position of its middle (columns '
            'truth_center_lat_deg, truth_center_lon_deg; see docs/flight_format.md)'
        )
    west, south, east, north = gallery.manifest.bounds_m
    for record in known:
        east_m, north_m = to_projected(
            gallery.crs, record.truth_center_lat_deg, record.truth_center_lon_deg
        )
        if west <= east_m <= east and south <= north_m <= north:
            return
    raise ConfigError(
        f'{flight.name}: no frame was taken above the map; give the map it flew over'
    )
