"""Where the engine's time goes: every binary convolution alone, and the network by stage."""

from __future__ import annotations

import ctypes
import statistics
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from document import markdown

if TYPE_CHECKING:
    from bicrossnet_ros.engine.model_file import Model

# The most binary multiply-accumulates that a core can do in a cycle: popcount(x xor w), summed.
# - avx512: xor, vpopcntq and add per 512 bits, at two 512-bit operations a cycle: 512 / 1.5.
# - avx2: no popcount. A shuffle looks 32 nibbles up in a table of counts, 128 bits; two shuffles
#   a cycle: 256. This is a floor of time that needs all else (xor, nibbles, sums) for nothing.
# - x86_64_v2: the same with 16-byte vectors: 128. (popcnt on words: xor, popcnt and add at four
#   a cycle: 64 / 0.75 = 85.)
# - neon: xor, cnt and add per 128 bits, at two vector operations a cycle (A72, A76): 128 / 1.5.
PEAK_MACS_PER_CYCLE = {
    'avx512': 341.3,
    'avx2': 256.0,
    'x86_64_v2': 128.0,
    'neon': 85.3,
    'neon_dot': 85.3,
}
STAGE_PARTS = ('convolution_ms', 'gate_ms', 'finish_ms')
CALLS = 5  # in a row, of each convolution in each round

Shape = tuple[int, int, int, int, int]  # channels, kernel, stride, height, width


def shapes(model: Model, input_px: int) -> Counter[Shape]:
    """The binary convolutions of a network: how often each shape occurs, in order of execution."""
    from bicrossnet_ros.engine.architecture import make_blocks

    side = input_px // 2
    found: Counter[Shape] = Counter()
    for block in make_blocks(model.metadata.channels):
        for unit in (block.unit3x3, *block.units1x1):
            found[unit.channels, unit.kernel, unit.stride, side, side] += 1
            side //= unit.stride
    return found


def macs(shape: Shape) -> int:
    """Binary multiply-accumulates, those of the padding included."""
    channels, kernel, stride, height, width = shape
    return channels**2 * kernel**2 * (height // stride) * (width // stride)


def measure_layers(
    model: Model, input_px: int, backends: list[str], rounds: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Time every shape with every back end, all in turn; one row each.

    Weights and maps are random bits and stay in the cache; gates and last passes are not in it.
    """
    from bicrossnet_ros.engine.native import clock_hz

    rng = np.random.default_rng(0)
    counts = shapes(model, input_px)
    keys = [(shape, backend) for shape in counts for backend in backends]
    calls = {key: prepare(*key, rng) for key in keys}
    times: dict[Any, list[float]] = {key: [] for key in keys}
    clocks = []
    for _ in range(rounds):
        clocks.append(clock_hz())
        for key, call in calls.items():
            for _ in range(CALLS):
                start = clock()
                call()
                times[key].append(clock() - start)
    cycles_per_second = statistics.median(clocks)
    rows = []
    for shape, backend in keys:
        seconds = statistics.median(times[shape, backend])
        per_cycle = macs(shape) / (seconds * cycles_per_second)
        rows.append(
            {
                'backend': backend,
                'shape': shape,
                'count': counts[shape],
                'macs': macs(shape),
                'ms': 1e3 * seconds,
                'min_ms': 1e3 * min(times[shape, backend]),
                'macs_per_cycle': per_cycle,
                'share_of_peak': share_of_peak(backend, per_cycle),
                'clock_hz': cycles_per_second,
            }
        )
    return rows


def prepare(shape: Shape, backend: str, rng: np.random.Generator) -> Callable[[], None]:
    """One convolution of random bits, as a call that goes straight into the library."""
    from bicrossnet_ros.engine.native import BinaryConvolution

    channels, kernel, stride, height, width = shape
    bits = rng.integers(0, 256, (channels, kernel, kernel, channels // 8), np.uint8)
    x = rng.integers(0, 256, (height, width, channels // 8), np.uint8)
    options = {'stride': stride, 'height': height, 'width': width, 'backend': backend}
    convolution = BinaryConvolution(bits, **options)
    out = convolution.run(x)
    # Its checks take as long as a small convolution: past them.
    function, handle = convolution._library.bcn_convolution_run, convolution._handle
    source = x.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    target = out.ctypes.data_as(ctypes.POINTER(ctypes.c_int16))

    def call(_alive: object = convolution) -> None:
        function(handle, source, target)

    return call


def share_of_peak(backend: str, macs_per_cycle: float) -> float | None:
    """Share of the hardware's peak; None where no peak is stated."""
    peak = PEAK_MACS_PER_CYCLE.get(backend)
    return macs_per_cycle / peak if peak else None


def totals(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """All binary convolutions of the network, by back end."""
    result = {}
    for backend in dict.fromkeys(row['backend'] for row in rows):
        own = [row for row in rows if row['backend'] == backend]
        ms = sum(row['ms'] * row['count'] for row in own)
        done = sum(row['macs'] * row['count'] for row in own)
        per_cycle = done / (ms / 1e3 * own[0]['clock_hz'])
        result[backend] = {
            'ms': ms,
            'macs': done,
            'macs_per_cycle': per_cycle,
            'share_of_peak': share_of_peak(backend, per_cycle),
        }
    return result


def measure_stages(
    model: Model, input_px: int, backends: list[str], rounds: int
) -> list[dict[str, Any]]:
    """Median milliseconds of the whole network's parts, by back end and size of map."""
    from bicrossnet_ros.engine.architecture import units
    from bicrossnet_ros.engine.native import NativeNetwork

    image = np.random.default_rng(0).standard_normal((3, input_px, input_px), np.float32)
    sessions = {
        backend: NativeNetwork(model, backend=backend).session(input_px, input_px)
        for backend in backends
    }
    profiles: dict[str, list[Any]] = {backend: [] for backend in backends}
    for turn in range(rounds + 1):
        for backend, session in sessions.items():
            profile = session.profile(image)
            if turn:
                profiles[backend].append(profile)
    rows = []
    for backend, found in profiles.items():
        median = np.median(found, axis=0) / 1e6
        parts: dict[str, Any] = {f'{input_px // 2} px, stem': [float(median[0]), 0.0, 0.0]}
        side = input_px // 2
        each = median[1:].reshape(-1, 3)
        for unit, times in zip(units(model.metadata.channels), each, strict=True):
            side //= unit.stride
            total = parts.get(f'{side} px', [0.0] * 3)
            parts[f'{side} px'] = [float(total[k] + times[k]) for k in range(3)]
        rows += [
            {'backend': backend, 'stage': name, **dict(zip(STAGE_PARTS, ms, strict=True))}
            for name, ms in parts.items()
        ]
    return rows


def layer_table(rows: list[dict[str, Any]]) -> str:
    """Format the rows of `measure_layers`, a line a shape and a column a back end."""
    backends = list(dict.fromkeys(row['backend'] for row in rows))
    cells = {(tuple(row['shape']), row['backend']): row for row in rows}

    def format_one(row: dict[str, Any]) -> str:
        return f'{row["ms"]:.3f} ms, {row["macs_per_cycle"]:.0f}{_percent(row)}'

    lines = []
    for shape in dict.fromkeys(tuple(row['shape']) for row in rows):
        channels, kernel, stride, height, _ = shape
        row = cells[shape, backends[0]]
        name = f'{channels} ch, {kernel}x{kernel}{"/2" if stride == 2 else ""}, {height} px'
        found = [format_one(cells[shape, backend]) for backend in backends]
        lines.append([name, str(row['count']), f'{row["macs"] / 1e6:.0f} M', *found])
    summed = totals(rows)
    done = summed[backends[0]]['macs'] or 0
    lines.append(
        ['**all**', '', f'{done / 1e6:.0f} M', *(f'**{format_one(summed[b])}**' for b in backends)]
    )
    titles = [f'{backend}: time, MAC/cycle, of peak' for backend in backends]
    return markdown(['convolution', 'times', 'binary MAC', *titles], lines)


def _percent(row: dict[str, Any]) -> str:
    return '' if row['share_of_peak'] is None else f', {row["share_of_peak"]:.0%}'


def stage_table(rows: list[dict[str, Any]]) -> str:
    """Format the rows of `measure_stages`."""
    lines = []
    for backend in dict.fromkeys(row['backend'] for row in rows):
        own = [row for row in rows if row['backend'] == backend]
        for row in own:
            ms = [row[key] for key in STAGE_PARTS]
            lines.append([backend, row['stage'], *(f'{value:.2f}' for value in (*ms, sum(ms)))])
        sums = [sum(row[key] for row in own) for key in STAGE_PARTS]
        lines.append([backend, '**all**', *(f'**{value:.2f}**' for value in (*sums, sum(sums)))])
    return markdown(
        ['back end', 'maps of', 'convolutions and their sums, ms', 'gates', 'last passes', 'sum'],
        lines,
    )
