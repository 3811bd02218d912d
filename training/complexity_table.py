"""Complexities as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.complexity import Complexity


def table(rows: Sequence[Complexity]) -> str:
    """Lay out complexities as a Markdown table; the last column compares with the first row."""
    lines = [
        '| network | accounting | parameters (binary) | 1 bit + fp32 | 1 bit + fp16 | model file '
        '| BinOps | MACs | FLOPs | Ops | of the first |',
        '|' + '---|' * 11,
    ]
    for row in rows:
        accounting = f'{row.accounting}, {row.classes}' if row.classes else row.accounting
        file_bytes = row.tensor_bytes if row.file_bytes is None else row.file_bytes
        cells = (
            row.name,
            accounting,
            f'{row.parameters / 1e6:.3f} M ({row.binary_parameters / 1e6:.3f} M)',
            *(f'{n / 1e6:.2f} MB' for n in (row.disk_bytes, row.disk_half_bytes, file_bytes)),
            *(_operations(n) for n in (row.binops, row.macs, row.flops, row.ops)),
            f'{row.ops / rows[0].ops:.2f}',
        )
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def layer_table(complexity: Complexity) -> str:
    """Lay out the layers of a complexity as a Markdown table."""
    lines = ['| layer | kind | output | parameters | BinOps | MACs | FLOPs |', '|' + '---|' * 7]
    for layer in complexity.layers:
        shape = 'x'.join(map(str, layer.output_shape))
        counts = (layer.parameters, layer.binops, layer.macs, layer.flops)
        cells = (layer.name, layer.kind, shape, *(f'{count:,}' for count in counts))
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _operations(number: float) -> str:
    """Three digits after the point of G; below 0.1 G, of M."""
    return f'{number / 1e9:.3f} G' if number == 0 or number >= 1e8 else f'{number / 1e6:.3f} M'
