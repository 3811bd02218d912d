"""Rows of figures of a flight: recall with its interval, and the file that keeps what is done.

A row is a flat dictionary. Its key is (model, retrieval, heading, condition); its fingerprint
says what it was made from, so that a row is made again when a model file or an option changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bicrossnet_ros.errors import ConfigError
from bicrossnet_ros.evaluation import has_truth, recall_at, summarize
from bicrossnet_ros.fix_record import FixRecord

KEYS = ('model', 'retrieval', 'heading', 'condition')
RECALL_AT = (1, 5, 20)
RADII_M = (25, 10)
# 97.5 % quantile of the normal distribution.
Z_95 = 1.959963984540054


def wilson_interval(hits: int, total: int, *, z: float = Z_95) -> tuple[float, float]:
    """Confidence interval of a share, 95 % by default; NaN without any trial.

    References
    ----------
    Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    if not 0 <= hits <= total:
        raise ValueError(f'{hits} hits of {total}')
    if total == 0:
        return math.nan, math.nan
    share = hits / total
    scale = 1.0 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def recall_figures(
    records: Sequence[FixRecord], *, at: Sequence[int] = RECALL_AT
) -> dict[str, float | int]:
    """Recall of the candidates of scored records, each with its 95 % interval.

    Returns
    -------
    dict
        `frames` (those with a truth), and for every k of `at` and every radius of `RADII_M`
        `recall_at_K_Rm`, `recall_at_K_Rm_low` and `recall_at_K_Rm_high`.
    """
    frames = sum(map(has_truth, records))
    figures: dict[str, float | int] = {'frames': frames}
    for radius_m in RADII_M:
        for k in at:
            share = recall_at(records, k, radius_m=radius_m)
            low, high = wilson_interval(round(share * frames) if frames else 0, frames)
            name = f'recall_at_{k}_{radius_m}m'
            figures |= {name: share, f'{name}_low': low, f'{name}_high': high}
    return figures


def latency_figures(records: Sequence[FixRecord]) -> dict[str, float]:
    """Median milliseconds of every stage: `patch_ms`, `encode_ms`, ..., `total_ms`."""
    stages = summarize(records)['latency_ms']
    return {f'{name}_ms': spread['p50'] for name, spread in stages.items() if name != 'read'}


def pipeline_figures(records: Sequence[FixRecord]) -> dict[str, Any]:
    """What the whole pipeline did: fixes, their errors at the image centre, and its time."""
    summary = summarize(records)
    frames = summary['frames']
    low, high = wilson_interval(summary['fixes'], frames)
    return {
        'coverage': summary['coverage'],
        'coverage_low': low,
        'coverage_high': high,
        'median_m': summary['error_m']['median'],
        'p90_m': summary['error_m']['p90'],
        'max_m': summary['error_m']['max'],
        'false_fixes': summary['false_fixes'],
        'no_fix_reasons': summary['no_fix_reasons'],
        'p95_total_ms': summary['latency_ms'].get('total', {}).get('p95', math.nan),
    }


def fingerprint_of(**parts: Any) -> str:
    """Short hash of whatever a row depends on (values that JSON can hold)."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RowFile:
    """A results file `{'command', 'revision', 'rows'}` that is written after every row.

    Parameters
    ----------
    path : Path
    command, revision : str
        For the record.
    keys : sequence of str
        What tells rows apart.

    Raises
    ------
    ConfigError
        If there is a file that is not such a results file.
    """

    def __init__(
        self, path: Path, *, command: str, revision: str, keys: Sequence[str] = KEYS
    ) -> None:
        self.path = path
        self._keys = tuple(keys)
        self._head = {'command': command, 'revision': revision}
        self.rows: list[dict[str, Any]] = _read_rows(path, self._keys)

    def finished(self, key: Mapping[str, Any], fingerprint: str) -> dict[str, Any] | None:
        """The row of this key if it was made from the same things, else None."""
        for row in self.rows:
            if all(row[name] == key[name] for name in self._keys):
                return row if row.get('fingerprint') == fingerprint else None
        return None

    def put(self, row: Mapping[str, Any]) -> None:
        """Add a row, or replace the one of the same key, and write the file."""
        key = [row[name] for name in self._keys]
        places = [[other[name] for name in self._keys] for other in self.rows]
        if key in places:
            self.rows[places.index(key)] = dict(row)
        else:
            self.rows.append(dict(row))
        self._write()

    def _write(self) -> None:
        # NaN is no JSON: what is unknown is null.
        text = json.dumps({**self._head, 'rows': _without_nan(self.rows)}, indent=1)
        partial = self.path.with_suffix('.partial')
        try:
            partial.write_text(text + '\n', encoding='utf-8')
            partial.replace(self.path)
        except OSError as error:
            raise ConfigError(
                f'{self.path}: cannot be written ({error.strerror}); choose another --out'
            ) from error


def _read_rows(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    remedy = 'move it away, or choose another --out'
    try:
        rows = json.loads(path.read_text(encoding='utf-8'))['rows']
        if not all(name in row for row in rows for name in keys):
            raise KeyError
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f'{path}: cannot be read ({error.strerror}); {remedy}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{path}: no results of this tool (expected rows with {list(keys)}); {remedy}'
        ) from error
    return list(rows)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
