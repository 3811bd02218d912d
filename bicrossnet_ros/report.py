"""What a replay leaves behind: fixes.csv, summary.json and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bicrossnet_ros.evaluation import FixRecord
from bicrossnet_ros.flight import Flight


def write_report(
    out_dir: str | Path,
    records: Sequence[FixRecord],
    *,
    title: str,
    flight: Flight | None = None,
    gallery: Any = None,
    model_id: str = '',
    options: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write fixes.csv, summary.json and report.html into `out_dir`; return the summary."""
    raise NotImplementedError
