"""Errors that a user can cause, each with what was found, what was expected and the remedy.

A command line tool prints one of these in one line and exits with 2; anything else keeps its
traceback.
"""

from __future__ import annotations


class BiCrossNetError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(BiCrossNetError):
    """A parameter or configuration file has an unknown key or an impossible value."""


class ModelError(BiCrossNetError):
    """A model file is damaged, of another kind, or does not fit its use."""


class GalleryError(BiCrossNetError):
    """A gallery is damaged, of another version, or made with another model."""


class MapError(BiCrossNetError):
    """A source map cannot be used to build a gallery."""


class ImageError(BiCrossNetError):
    """An image or the camera data beside it cannot be used."""


class FlightError(BiCrossNetError):
    """A recorded flight is incomplete or malformed."""
