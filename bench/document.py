"""Tables of results, and their place in a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table."""
    lines = ['| ' + ' | '.join(titles) + ' |', '|' + '---|' * len(titles)]
    return '\n'.join([*lines, *('| ' + ' | '.join(row) + ' |' for row in rows)])


def replace_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``."""
    begin, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->'
    content = path.read_text(encoding='utf-8')
    head, found, rest = content.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f'{path} has no section between {begin.strip()} and {end}')
    path.write_text(f'{head}{begin}\n{text}\n\n{end}{tail}', encoding='utf-8')
