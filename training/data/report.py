"""The result of looking a data set through: counts beside published ones, problems, uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from bicrossnet_ros.errors import ImageError
from training.progress import counted

MATCHES, DIFFERS, UNUSABLE = 0, 1, 2
# So many names stand in a message.
NAMED = 5


@dataclass(frozen=True)
class Row:
    """One part of a data set: what was found (None: nothing) and what was published."""

    name: str
    places: int | None
    images: int | None
    published: tuple[int, int] | None

    @property
    def matches(self) -> bool:
        """Whether both numbers are the published ones."""
        return self.published in (None, (self.places, self.images))


@dataclass
class Report:
    """The result of a check.

    Parameters
    ----------
    title : str
        Data set, folder and layout.
    rows : list of Row
        Its parts.
    problems : list of str
        What differs or is damaged, in words.
    uses : list of str
        What the data can be used for.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """`MATCHES`, `DIFFERS` or `UNUSABLE`: the exit status of the command line tool."""
        if not self.uses:
            return UNUSABLE
        return DIFFERS if self.problems or not all(row.matches for row in self.rows) else MATCHES

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [self.title, '', f'{"part":{width}}   places  published   images  published']
        for row in self.rows:
            found = ['-' if count is None else count for count in (row.places, row.images)]
            stated = row.published or ('-', '-')
            verdict = 'missing' if row.places is None else '' if row.matches else 'differs'
            lines.append(
                f'{row.name:{width}} {found[0]:>8} {stated[0]:>10} {found[1]:>8} {stated[1]:>10}'
                f'  {verdict}'.rstrip()
            )
        lines += ['', *(f'problem: {problem}' for problem in self.problems)]
        words = {
            MATCHES: 'complete',
            DIFFERS: 'not what was published',
            UNUSABLE: 'of no use as it is',
        }
        return '\n'.join([*lines, f'{words[self.status]}; can be used for: {self._uses()}'])

    def _uses(self) -> str:
        return ', '.join(self.uses) or 'nothing'


def undecodable(
    paths: Sequence[Path], decode: Callable[[Path], object], *, threads: int
) -> list[str]:
    """Decode every image, with progress on stderr; return what went wrong, in words."""

    def problem(path: Path) -> str | None:
        try:
            decode(path)
        except ImageError as error:
            return str(error)
        return None

    # The threads here are the parallelism; those of OpenCV would only get in their way.
    cv2.setNumThreads(0)
    with ThreadPoolExecutor(threads) as pool:
        found = counted(pool.map(problem, paths), 'decoding', len(paths))
        return [text for text in found if text is not None]


def named(names: Sequence[str]) -> str:
    """Say how many places, and which."""
    more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
    noun = 'place' if len(names) == 1 else 'places'
    return f'{len(names)} {noun} ({", ".join(names[:NAMED])}{more})'
