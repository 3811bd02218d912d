"""From an image message to an estimate: everything the node does with a frame, without ROS."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bicrossnet_ros.config import LocalizerConfig
from bicrossnet_ros.errors import BiCrossNetError, ConfigError
from bicrossnet_ros.geodesy import LocalFrame, grid_convergence_deg
from bicrossnet_ros.messages import image_from_message, stamp_s
from bicrossnet_ros.nodes.sensors import Sensors
from bicrossnet_ros.nodes.settings import UNKNOWN_GROUND_M, NodeSettings
from bicrossnet_ros.nodes.stamps import StampCheck
from bicrossnet_ros.types import PositionEstimate, Reason, Status

if TYPE_CHECKING:
    from bicrossnet_ros.encoder import Encoder
    from bicrossnet_ros.gallery import Gallery


class Map:
    """An open gallery, the localizer that searches it, and the local frame at its origin.

    Parameters
    ----------
    settings : NodeSettings
        Path of the gallery and height of its ground.
    config : LocalizerConfig
        Of all stages.
    encoder : Encoder
        The model that made the gallery.

    Raises
    ------
    BiCrossNetError
        If the gallery cannot be used.
    """

    def __init__(self, settings: NodeSettings, config: LocalizerConfig, encoder: Encoder) -> None:
        from bicrossnet_ros.gallery import open_gallery
        from bicrossnet_ros.localizer import Localizer

        if not settings.gallery:
            raise ConfigError(
                'parameter gallery is empty; expected the folder NAME.gallery '
                'that gallery_builder made'
            )
        self.gallery: Gallery = open_gallery(settings.gallery, encoder=encoder)
        try:
            self.localizer = Localizer(self.gallery, encoder, config)
        except Exception:
            self.gallery.close()
            raise
        ground_m = settings.ground_ellipsoid_m
        self.ground_ellipsoid_m: float | None = (
            self.gallery.manifest.ground_ellipsoid_m if ground_m == UNKNOWN_GROUND_M else ground_m
        )
        lat_deg, lon_deg = self.gallery.origin
        self.frame = LocalFrame(lat_deg, lon_deg, self.ground_ellipsoid_m or 0.0)

    def convergence_deg(self, estimate: PositionEstimate) -> float:
        """Grid convergence at the position of a fix; 0 without one."""
        if not estimate.is_fix:
            return 0.0
        return grid_convergence_deg(self.gallery.crs, estimate.lat_deg, estimate.lon_deg)

    def close(self) -> None:
        """Close the gallery."""
        self.gallery.close()


class Pipeline:
    """Turns image messages into estimates, one after the other; never raises.

    Parameters
    ----------
    settings : NodeSettings
        Of the node.
    config : LocalizerConfig
        Of all stages.
    now_s : callable
        The node's clock, in seconds.

    Raises
    ------
    BiCrossNetError
        If model or gallery cannot be used.
    """

    def __init__(
        self,
        settings: NodeSettings,
        config: LocalizerConfig,
        now_s: Callable[[], float],
    ) -> None:
        from bicrossnet_ros.encoder import default_model_path, open_encoder

        self.settings = settings
        self.config = config
        self.encoder: Encoder = open_encoder(
            settings.model or default_model_path(), threads=settings.encoder_threads
        )
        self.map = Map(settings, config, self.encoder)
        self.sensors = Sensors(settings)
        self.stamps = StampCheck(settings, now_s, self.sensors.reset)
        self._in_use = threading.Lock()

    def process(self, message: Any) -> tuple[PositionEstimate, Map, str]:
        """Localise one `Image` or `CompressedImage`.

        Returns
        -------
        tuple of (PositionEstimate, Map, str)
            The estimate, the map that it was found in, and the traceback of an error that
            should not have happened (empty in general).
        """
        at_s = stamp_s(message.header.stamp)
        with self._in_use:
            try:
                return self._localize(message, at_s), self.map, ''
            except BiCrossNetError as error:
                return _refusal(at_s, Reason.BAD_INPUT, str(error)), self.map, ''
            except Exception as error:  # a defect of ours must not take the aircraft's node down
                text = f'internal error: {type(error).__name__}: {error}'
                trace = traceback.format_exc()
                return _refusal(at_s, Reason.BAD_INPUT, text), self.map, trace

    def _localize(self, message: Any, at_s: float) -> PositionEstimate:
        reason, detail = self.stamps.problem(at_s)
        if reason is not Reason.NONE:
            return _refusal(at_s, reason, detail)
        started = time.perf_counter()
        image = image_from_message(message)
        decoded = time.perf_counter()
        self.sensors.wait_for(at_s)
        frame = self.sensors.frame(image, at_s)
        waited = time.perf_counter()
        estimate = self.map.localizer.localize(frame)
        if estimate.is_fix:
            self.sensors.add_fix(estimate)
        return dataclasses.replace(
            estimate,
            timings_ms={
                'decode': 1e3 * (decoded - started),
                'wait': 1e3 * (waited - decoded),
                **estimate.timings_ms,
            },
        )

    def reload_map(self, gallery: str) -> None:
        """Open a gallery and, if that works, use it from the next frame on.

        Raises
        ------
        BiCrossNetError
            If it cannot be used; the old one stays.
        """
        settings = dataclasses.replace(self.settings, gallery=gallery)
        fresh = Map(settings, self.config, self.encoder)
        with self._in_use:
            old, self.map, self.settings = self.map, fresh, settings
            self.sensors.forget_position()
        old.close()

    def reset_time(self) -> None:
        """The clock jumped: forget all that has a stamp."""
        self.sensors.reset()
        self.stamps.reset()

    def close(self) -> None:
        """Release the gallery."""
        with self._in_use:
            self.map.close()


def _refusal(at_s: float, reason: Reason, detail: str) -> PositionEstimate:
    return PositionEstimate(at_s, Status.NO_FIX, reason, detail)
