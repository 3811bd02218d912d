"""An estimate as a `diagnostic_msgs/DiagnosticStatus`, and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from bicrossnet_ros.errors import BiCrossNetError
from bicrossnet_ros.types import (
    FloatArray,
    PositionEstimate,
    Reason,
    Status,
    TileMatch,
)

LEVELS = (b'\x00', b'\x01', b'\x02', b'\x03')
"""OK, WARN, ERROR, STALE: the message's field is a byte."""

_NUMBERS = (
    'stamp_s',
    'lat_deg',
    'lon_deg',
    'east_m',
    'north_m',
    'center_lat_deg',
    'center_lon_deg',
    'center_east_m',
    'center_north_m',
    'agl_m',
    'heading_deg',
    'similarity',
)
_WHOLE_NUMBERS = ('inliers', 'tile_id')
_COVARIANCES = ('covariance_m2', 'center_covariance_m2')
_TERMS = ('_ee', '_en', '_nn')


def estimate_to_values(estimate: PositionEstimate) -> dict[str, str]:
    """Every field of an estimate as text, without loss."""
    values = {
        'status': str(estimate.status),
        'reason': str(estimate.reason),
        'detail': estimate.detail,
    }
    values.update({name: repr(float(getattr(estimate, name))) for name in _NUMBERS})
    values.update({name: str(int(getattr(estimate, name))) for name in _WHOLE_NUMBERS})
    values['sigma_m'] = repr(float(estimate.sigma_m))
    for name in _COVARIANCES:
        matrix = getattr(estimate, name)
        terms = (matrix[0, 0], matrix[0, 1], matrix[1, 1])
        values.update(
            {name + term: repr(float(value)) for term, value in zip(_TERMS, terms, strict=True)}
        )
    rows = [list(dataclasses.astuple(match)) for match in estimate.candidates]
    values['candidates'] = json.dumps(rows, separators=(',', ':'), default=float)
    values['timings_ms'] = json.dumps(estimate.timings_ms, separators=(',', ':'), default=float)
    return values


def estimate_from_values(values: dict[str, str]) -> PositionEstimate:
    """Inverse of `estimate_to_values`; keys that it does not know are ignored.

    Raises
    ------
    BiCrossNetError
        If a key is absent or its value cannot be read.
    """
    try:
        return PositionEstimate(
            status=Status(values['status']),
            reason=Reason(values['reason']),
            detail=values['detail'],
            **{name: float(values[name]) for name in _NUMBERS},  # type: ignore[arg-type]
            **{name: int(values[name]) for name in _WHOLE_NUMBERS},  # type: ignore[arg-type]
            **{name: _matrix(values, name) for name in _COVARIANCES},  # type: ignore[arg-type]
            candidates=tuple(TileMatch(*row) for row in json.loads(values['candidates'])),
            timings_ms=dict(json.loads(values['timings_ms'])),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise BiCrossNetError(
            f'not the report of a frame: {type(error).__name__}: {error}'
        ) from error


def _matrix(values: dict[str, str], name: str) -> FloatArray:
    ee, en, nn = (float(values[name + term]) for term in _TERMS)
    return np.array([[ee, en], [en, nn]])


def fill_status(message: Any, values: dict[str, str], key_value: type) -> None:
    """Write a dictionary into a `DiagnosticStatus`."""
    for key, value in values.items():
        pair = key_value()
        pair.key, pair.value = key, value
        message.values.append(pair)


def estimate_to_diagnostic(
    message: Any,
    estimate: PositionEstimate,
    key_value: type,
    extra: dict[str, str] | None = None,
) -> None:
    """Write an estimate into a `DiagnosticStatus`; its name and hardware id stay as they are.

    Parameters
    ----------
    message : DiagnosticStatus
        To be filled.
    estimate : PositionEstimate
        What to write.
    key_value : type
        `diagnostic_msgs.msg.KeyValue`.
    extra : dict, optional
        Further key-values.
    """
    message.level = LEVELS[0] if estimate.is_fix else LEVELS[1]
    message.message = (
        f'fix, sigma {estimate.sigma_m:.1f} m' if estimate.is_fix else f'no fix: {estimate.reason}'
    )
    fill_status(message, {**estimate_to_values(estimate), **(extra or {})}, key_value)


def estimate_from_diagnostic(message: Any) -> PositionEstimate:
    """Read the estimate back from a `DiagnosticStatus` made by `estimate_to_diagnostic`.

    Raises
    ------
    BiCrossNetError
        If the message is another one.
    """
    return estimate_from_values({pair.key: pair.value for pair in message.values})
