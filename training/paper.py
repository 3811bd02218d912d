"""The numbers of the paper's tables 2 to 8, as printed.

Percentages are percentages, as printed; costs are in units of 10^9 operations, 10^6 parameters
and megabytes. Rows that the paper prints twice stand here twice, under both tables.

References
----------
Fontana et al. 2025, Mach. Learn.: Sci. Technol. 6 035036, tables 2 to 8 (CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bicrossnet_ros.errors import ConfigError
from training.config import HEIGHTS_M

DRONE_TO_SATELLITE, SATELLITE_TO_DRONE = DIRECTIONS = 'drone_to_satellite', 'satellite_to_drone'


@dataclass(frozen=True)
class PaperFigures:
    """Percent; None where the paper prints none."""

    recall_at_1: float
    ap: float
    recall_at_5: float | None = None
    recall_at_10: float | None = None


@dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Attributes
    ----------
    key : str
        Name on the command line.
    table : int
        Number of the table in the paper.
    label : str
        The method, as printed but for the citation.
    source : str
        'university1652' or 'sues200'.
    figures : mapping
        (direction, height_m) to figures; height_m is 0 for University-1652.
    parameters_m, disk_mb, binops_g, flops_g, ops_g : float or None
        Cost as printed; those of table 2 that differ between the directions as in its upper half.
    """

    key: str
    table: int
    label: str
    source: str
    figures: Mapping[tuple[str, int], PaperFigures]
    parameters_m: float | None = None
    disk_mb: float | None = None
    binops_g: float | None = None
    flops_g: float | None = None
    ops_g: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the row is of a binary network of this paper's kind."""
        return self.binops_g is not None or self.table > 3


Costs = tuple[float, float, float | None, float, float]
Four = tuple[float, float, float, float]


def _table2(
    name: str, label: str, costs: Costs, *, drone: tuple[Four, ...], satellite: tuple[Four, ...]
) -> PaperRow:
    """Columns are the four heights; rows R@1, AP and, for ours, R@5, R@10."""
    figures = {
        (direction, height): PaperFigures(*column)
        for direction, rows in zip(DIRECTIONS, (drone, satellite), strict=True)
        for height, column in zip(HEIGHTS_M, zip(*rows, strict=True), strict=True)
    }
    return PaperRow(f'table2_{name}', 2, label, 'sues200', figures, *costs)


def _university(
    table: int,
    name: str,
    label: str,
    drone: tuple[float, ...],
    satellite: tuple[float, ...],
    costs: tuple[float | None, ...] = (),
) -> PaperRow:
    """Figures are R@1, AP and, for ours in table 3, R@5, R@10."""
    figures = {
        (DRONE_TO_SATELLITE, 0): PaperFigures(*drone),
        (SATELLITE_TO_DRONE, 0): PaperFigures(*satellite),
    }
    return PaperRow(f'table{table}_{name}', table, label, 'university1652', figures, *costs)


_TABLE_2 = (
    _table2(
        'sues200',
        'SUES-200',
        (51.02, 204.07, None, 24.28, 24.28),
        drone=((55.65, 66.78, 72.00, 74.05), (61.92, 71.55, 76.43, 78.26)),
        satellite=((75.00, 85.00, 86.25, 88.75), (55.46, 66.05, 69.94, 74.46)),
    ),
    _table2(
        'lcm',
        'LCM',
        (25.56, 102.24, None, 24.28, 24.28),
        drone=((43.42, 49.42, 54.47, 60.43), (49.65, 55.91, 60.31, 65.78)),
        satellite=((57.50, 68.75, 72.50, 75.00), (38.11, 49.19, 47.94, 59.36)),
    ),
    _table2(
        'lpn',
        'LPN',
        (27.78, 111.12, None, 36.77, 36.77),
        drone=((61.58, 70.85, 80.38, 81.47), (67.23, 75.96, 83.80, 84.53)),
        satellite=((83.75, 88.75, 92.50, 92.50), (66.78, 75.01, 81.34, 85.72)),
    ),
    _table2(
        'fsra',
        'FSRA',
        (24.42, 97.67, None, 35.44, 35.44),
        drone=((68.25, 83.00, 90.68, 91.95), (73.45, 85.99, 92.27, 93.46)),
        satellite=((83.75, 90.00, 93.75, 95.00), (76.67, 85.34, 90.17, 92.03)),
    ),
    _table2(
        'mccg',
        'MCCG',
        (29.96, 119.83, None, 26.37, 26.37),
        drone=((82.22, 89.38, 93.82, 95.07), (85.47, 91.41, 95.04, 96.20)),
        satellite=((93.75, 93.75, 96.25, 98.75), (89.72, 92.21, 96.14, 96.64)),
    ),
    _table2(
        'tiny',
        'Our (tiny)',
        (32.62, 21.01, 14.13, 0.17, 0.39),
        drone=(
            (69.41, 80.10, 88.85, 91.72),
            (75.01, 83.97, 90.95, 93.52),
            (77.41, 86.10, 93.35, 95.22),
            (81.41, 89.10, 95.35, 96.72),
        ),
        satellite=(
            (91.25, 96.25, 95.00, 95.00),
            (77.01, 88.52, 91.41, 93.08),
            (94.75, 98.25, 97.50, 97.50),
            (96.25, 99.25, 98.70, 98.70),
        ),
    ),
)

_LCM = _LPN = (25.56, 102.24, None, 7.0, 7.0)
_TABLE_3 = (
    _university(3, 'lcm', 'LCM', (66.65, 70.82), (79.89, 65.38), _LCM),
    _university(3, 'lpn', 'LPN', (75.93, 79.14), (85.16, 74.79), _LPN),
    _university(
        3,
        'lpn_resnet101',
        'LPN with ResNet-101',
        (76.13, 79.29),
        (85.45, 75.45),
        (45.0, 180.0, None, 14.3, 14.3),
    ),
    _university(3, 'sgm', 'SGM', (82.14, 84.72), (88.16, 81.81), (28.0, 112.0, None, 10.8, 10.8)),
    _university(
        3, 'mccg', 'MCCG', (89.64, 91.32), (94.30, 89.39), (30.85, 123.4, None, 29.37, 29.37)
    ),
    _university(
        3,
        'tiny',
        'Our (tiny)',
        (80.55, 83.48, 87.85, 90.15),
        (90.01, 80.16, 95.22, 97.13),
        (33.53, 21.81, 12.59, 0.16, 0.36),
    ),
    _university(
        3,
        'middle',
        'Our (middle)',
        (86.23, 87.29, 91.53, 93.33),
        (92.82, 84.41, 96.12, 97.42),
        (138.05, 92.23, 58.88, 0.38, 1.3),
    ),
)

_XNOR = (23.68, None, None, None, 0.50)
_RECU = (23.72, None, None, None, 0.53)
_TINY = (33.53, None, None, None, 0.36)
_MIDDLE = (138.05, None, None, None, 1.3)
_TABLES_4_TO_8 = (
    _university(4, 'recu', 'ReCU', (55.29, 60.16), (75.46, 54.15), _RECU),
    _university(4, 'bnext_tiny', 'BNext-tiny', (72.56, 76.39), (85.16, 41.33), _TINY),
    _university(4, 'bnext_middle', 'BNext-middle', (78.31, 82.87), (88.52, 46.11), _MIDDLE),
    _university(4, 'recu_kd', 'ReCU + KD', (60.36, 65.09), (78.89, 60.30), _RECU),
    _university(4, 'bnext_tiny_kd', 'BNext-tiny + KD', (75.62, 79.10), (87.59, 74.77), _TINY),
    _university(
        4, 'bnext_middle_kd', 'BNext-middle + KD', (83.04, 85.51), (91.58, 82.93), _MIDDLE
    ),
    _university(5, 'none', 'No Gradual Unfreeze', (75.62, 79.10), (87.59, 74.77)),
    _university(5, 'gradual', 'Gradual Unfreezing', (77.22, 81.51), (86.58, 78.93)),
    _university(5, 'bi_gradual', 'Bi-Gradual Unfreezing', (80.12, 82.78), (89.69, 79.81)),
    _university(6, 'adam', 'Adam', (75.62, 79.10), (87.59, 74.77)),
    _university(6, 'sgd', 'SGD', (71.31, 73.68), (84.87, 71.58)),
    _university(6, 'adamw', 'AdamW', (73.28, 75.66), (86.16, 72.49)),
    _university(6, 'lion', 'Lion', (75.57, 80.71), (88.85, 74.69)),
    _university(
        6, 'bi_partitioned', 'Bi-Partitioned (Adam + Lion)', (76.55, 81.48), (89.01, 76.16)
    ),
    _university(8, 'xnor', 'Binarized ResNet34 (XNOR-Net)', (31.71, 36.33), (41.81, 45.23), _XNOR),
    _university(8, 'recu', 'ReCU', (55.29, 60.16), (75.46, 54.15), _RECU),
    _university(8, 'bnext_tiny', 'BNext-tiny', (72.56, 76.39), (85.16, 41.33), _TINY),
    _university(8, 'bnext_middle', 'BNext-middle', (78.31, 82.87), (88.52, 46.11), _MIDDLE),
)

ROWS: Mapping[str, PaperRow] = {row.key: row for row in (*_TABLE_2, *_TABLE_3, *_TABLES_4_TO_8)}

# Table 7: epochs of the head, of the partial backbone, of all, and their sum. Its accuracies are
# drawn in figure 5, not printed.
TABLE_7: Mapping[str, tuple[int, int, int, int]] = {
    'A': (20, 20, 210, 250),
    'B': (20, 10, 220, 250),
    'C': (20, 30, 200, 250),
    'D': (20, 20, 160, 200),
    'E': (20, 20, 260, 300),
    'F': (10, 20, 220, 250),
    'G': (0, 0, 250, 250),
}


# Queries and gallery images of (source, direction, protocol, whether at one height), as the data
# sets hold them; table 1 counts one drone image less of University-1652.
SIZES: Mapping[tuple[str, str, str, bool], tuple[int, int]] = {
    ('university1652', DRONE_TO_SATELLITE, 'full', False): (37_855, 951),
    ('university1652', DRONE_TO_SATELLITE, 'reduced', False): (37_855, 701),
    ('university1652', SATELLITE_TO_DRONE, 'full', False): (701, 51_355),
    ('university1652', SATELLITE_TO_DRONE, 'reduced', False): (701, 37_855),
    ('sues200', DRONE_TO_SATELLITE, 'full', True): (4_000, 200),
    ('sues200', DRONE_TO_SATELLITE, 'reduced', True): (4_000, 80),
    ('sues200', SATELLITE_TO_DRONE, 'full', True): (80, 10_000),
    ('sues200', SATELLITE_TO_DRONE, 'reduced', True): (80, 4_000),
    ('sues200', DRONE_TO_SATELLITE, 'full', False): (16_000, 200),
    ('sues200', DRONE_TO_SATELLITE, 'reduced', False): (16_000, 80),
    ('sues200', SATELLITE_TO_DRONE, 'full', False): (80, 40_000),
    ('sues200', SATELLITE_TO_DRONE, 'reduced', False): (80, 16_000),
}


def rows_of(source: str, *, tables: tuple[int, ...] = (2, 3)) -> list[PaperRow]:
    """Return the rows of some tables that are on a data set."""
    return [row for row in ROWS.values() if row.source == source and row.table in tables]


def find_row(key: str) -> PaperRow:
    """Return the row of a key such as 'table3_tiny'.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if key not in ROWS:
        raise ConfigError(
            f'there is no row {key!r} of the paper; expected one of {" ".join(ROWS)}'
        )
    return ROWS[key]
