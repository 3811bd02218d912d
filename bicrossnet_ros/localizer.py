"""The pipeline: frame -> ground patch -> embedding -> candidate tiles -> registration -> position."""

from __future__ import annotations

from bicrossnet_ros.config import LocalizerConfig
from bicrossnet_ros.types import Frame, PositionEstimate


class Localizer:
    """Says where a frame was taken, or why it cannot.

    Parameters
    ----------
    gallery : Gallery
        From `bicrossnet_ros.gallery.open_gallery`.
    encoder : Encoder
        From `bicrossnet_ros.encoder.open_encoder`; the one that the gallery was made with.
    config : LocalizerConfig
        Parameters of all stages.
    """

    def __init__(self, gallery, encoder, config: LocalizerConfig | None = None) -> None:
        self.gallery = gallery
        self.encoder = encoder
        self.config = config or LocalizerConfig()

    def localize(self, frame: Frame) -> PositionEstimate:
        """Estimate the position of one frame; bad input is a `no_fix`, never an exception."""
        raise NotImplementedError
