"""Estimate how long ARM cores take for one frame: nothing here is measured.

    python bench/arm_estimate.py [--network tiny] [--size 256] [--layers]

The engine is compiled for ARM, and llvm-mca counts the cycles of what it spends its time in: the
step of the binary product, the beginning and end of a tile, and the loops of the passes. The
network's shapes say how often each runs. Gathering bits and memory traffic are rough terms of
their own. Needs aarch64-linux-gnu-g++ and llvm-mca (sudo apt install g++-aarch64-linux-gnu llvm).

llvm-mca lets an in-order core finish strictly in order, which costs its model of Cortex-A55 more
than the core is known to take; the other bound pairs every instruction of the step's vector unit
with whatever stands beside it, as that core's published issue rules allow.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = REPOSITORY / 'bicrossnet_ros' / 'engine' / 'src'
COMPILER = 'aarch64-linux-gnu-g++'
TILE_PIXELS, STEP_MACS, STEP_VECTOR_INSTRUCTIONS = 4, 2048, 48
MOST_STEPS = 31  # of a round without dot product
BLOCK = 16  # channels of a pass

# What runs around the loop of one tile, with the functions of the engine.
PROBE = """
#include "product_neon.h"
using namespace bicrossnet;
extern "C" void probe_tile(TileInputs* in, int steps, int depth, int16_t* dots, size_t stride) {
  store_tile(count_all<HALVES>(*in, steps), depth, dots, stride);
}
#if !defined(BCN_NEON_DOT)
extern "C" void probe_round(TileInputs* in, TileCounts* all) {
  const Tile tile = count<HALVES>(*in, kMostSteps);
  for (int p = 0; p < kTilePixels; ++p) {
    for (int i = 0; i < kTileResults; ++i) {
      all->counts[p][i] = vpadalq_u8(all->counts[p][i], tile.sums[p][i]);
    }
  }
}
#endif
"""


@dataclass(frozen=True)
class Core:
    """A core on a board; cache and bandwidth are round figures of one core's share."""

    name: str
    board: str
    hz: float
    halves: bool
    dot: bool
    cache_bytes: int
    bytes_per_s: float


CORES = (
    Core('cortex-a55', 'Banana Pi M5', 2.0e9, True, True, 512 << 10, 2.5e9),
    Core('cortex-a72', 'Raspberry Pi 4', 1.8e9, False, False, 1 << 20, 3.5e9),
    Core('cortex-a76', 'Raspberry Pi 5', 2.4e9, False, True, 2 << 20, 8.0e9),
)


@dataclass(frozen=True)
class Costs:
    """Cycles of one core."""

    step: float
    tile: float  # beside its steps
    round: float  # beside its steps, after the first
    passes: dict[str, float]  # of one block at one pixel
    linear: float  # of one weight of a gate
    stem: float  # of one weight at one pixel


def compile_to_assembly(source: Path, out: Path, *flags: str) -> list[str]:
    """Lines of assembly, as the engine is built."""
    common = ('-std=c++17', '-O3', '-fPIC', '-ffp-contract=off', f'-I{SOURCES}', '-S')
    subprocess.run([COMPILER, *common, *flags, str(source), '-o', str(out)], check=True)
    return out.read_text().splitlines()


def functions(lines: list[str]) -> dict[str, list[str]]:
    """Instructions and labels of every function by its mangled name."""
    found: dict[str, list[str]] = {}
    body: list[str] = []
    for line in lines:
        start = re.match(r'^(\w+):', line)
        text = line.split('//')[0].strip()
        if start and not start[1].isdigit():
            body = found.setdefault(start[1], [])
        elif text.endswith(':') or re.match(r'[a-z]', text):  # neither directive nor comment
            body.append(text)
    return found


def innermost_loops(body: list[str]) -> list[list[str]]:
    """Instructions between a label and a branch back to it, without loops inside."""
    loops = []
    position: dict[str, int] = {}
    for i, text in enumerate(body):
        if text.endswith(':'):
            position[text[:-1]] = i
            continue
        target = re.match(r'(?:b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\d+|\d+b)$', text)
        label = target[1].removesuffix('b') if target else ''
        if label in position:
            loops.append(body[position[label] + 1 : i + 1])
            position = {name: at for name, at in position.items() if at > i}
    return [[text for text in loop if not text.endswith(':')] for loop in loops]


def cycles(core: Core, code: list[str], folder: Path, mca: str) -> float:
    """Cycles of one turn when the code repeats, by llvm-mca."""
    source = folder / 'code.s'
    # Labels are left out, so a branch to a local one leads anywhere.
    plain = [re.sub(r'\b\d[bf]$', 'anywhere', text) for text in code if not text.endswith(':')]
    source.write_text('.arch armv8.2-a+dotprod\n' + '\n'.join(plain) + '\n')
    turns = 100
    command = (mca, '-mtriple=aarch64', f'-mcpu={core.name}', '-mattr=+dotprod')
    done = subprocess.run(
        [*command, f'-iterations={turns}', str(source)], check=True, capture_output=True, text=True
    )
    return float(re.search(r'Total Cycles:\s+(\d+)', done.stdout)[1]) / turns


def costs_of(core: Core, folder: Path, mca: str) -> Costs:
    """Count everything for one core."""
    probe = folder / 'probe.cpp'
    probe.write_text(PROBE)
    flags = [f'-DHALVES={str(core.halves).lower()}', *(['-DBCN_NEON_DOT'] if core.dot else [])]
    code = functions(compile_to_assembly(probe, folder / 'probe.s', *flags))
    step = cycles(core, innermost_loops(code['probe_tile'])[0], folder, mca)
    around = {
        name: cycles(core, code[name], folder, mca) - step
        for name in ('probe_tile', 'probe_round')
        if name in code
    }
    # The step that stands alone after the loop is one of the tile's steps.
    tile = around['probe_tile'] - step
    again = around.get('probe_round', step) - step
    engine = functions(compile_to_assembly(SOURCES / 'backend_neon.cpp', folder / 'engine.s'))

    def loop(*parts: str) -> float:
        bodies = [b for n, b in engine.items() if all(p in n for p in parts) and 'Half' not in n]
        if not bodies:
            raise SystemExit(f'no function {parts} in the engine; is this script out of date?')
        longest = max((one for body in bodies for one in innermost_loops(body)), key=len)
        return cycles(core, longest, folder, mca)

    passes = {'sum': loop('sum_activated')}
    for elementwise in (0, 1):
        for stride in (1, 2):
            name = f'finish_blockINS0_10NeonVectorELb{elementwise}ELi{stride}ELi1E'
            passes[f'finish {elementwise} {stride}'] = loop(name)
    linear = loop('6linearINS0_10NeonVector') / 16
    return Costs(step, tile, again, passes, linear, loop('4stemINS0_10NeonVector') / (2 * BLOCK))


@dataclass(frozen=True)
class Layer:
    """One unit and the side of its output."""

    channels: int
    kernel: int
    stride: int
    elementwise: bool
    out_px: int

    @property
    def macs(self) -> int:
        """Binary products of one frame, padding included."""
        return self.out_px**2 * self.channels**2 * self.kernel**2


def layers_of(channels: tuple[int, ...], size_px: int) -> list[Layer]:
    """All units in order."""
    from bicrossnet_ros.engine.architecture import units

    side, layers = size_px // 2, []
    for unit in units(channels):
        out = -(-side // unit.stride)
        layers.append(Layer(unit.channels, unit.kernel, unit.stride, unit.elementwise, out))
        side = out
    return layers


def convolution_cycles(core: Core, costs: Costs, layer: Layer, *, step: float) -> float:
    """Cycles of one binary convolution: gathering, tiles, steps."""
    step_bytes, tile_channels = (4, 16) if core.dot else (2, 32)
    depth_bytes = layer.kernel**2 * layer.channels // 8
    steps = -(-depth_bytes // step_bytes)
    tiles = (layer.out_px**2 / TILE_PIXELS) * -(-layer.channels // tile_channels)
    rounds = 1 if core.dot else -(-steps // MOST_STEPS)
    product = tiles * (steps * step + costs.tile + (rounds - 1) * costs.round)
    # Nine short copies a pixel; some instructions each, and a load and a store per 16 bytes.
    width = 2 if core.halves else 1
    gather = layer.out_px**2 * (30 + depth_bytes / 8) * width if layer.kernel == 3 else 0
    return product + gather


def estimate(
    core: Core, costs: Costs, layers: list[Layer], size_px: int, *, step: float
) -> dict[str, float]:
    """Milliseconds by part."""
    ms = 1e3 / core.hz
    blocks = [layer.out_px**2 * layer.channels / BLOCK for layer in layers]
    convolutions = sum(convolution_cycles(core, costs, one, step=step) for one in layers)
    passes = sum(
        count * (costs.passes['sum'] + costs.passes[f'finish {int(one.elementwise)} {one.stride}'])
        for count, one in zip(blocks, layers, strict=True)
    )
    gate_weights = sum(one.channels**2 // 4 for one in layers)
    stem = (size_px // 2) ** 2 * layers[0].channels * 27 * costs.stem
    moved = 4 * gate_weights + sum(one.channels**2 * one.kernel**2 // 8 for one in layers)
    for one in layers:
        values = one.out_px**2 * one.channels
        # Of a map too large for the cache: x in, y out, dots out and in twice.
        moved += values * (4 + 4 + 6) if 6 * values > core.cache_bytes else 0
    return {
        'convolutions': convolutions * ms,
        'passes': passes * ms,
        'gates': gate_weights * costs.linear * ms,
        'stem': stem * ms,
        'memory': moved / core.bytes_per_s * 1e3,
    }


def report(
    core: Core, costs: Costs, layers: list[Layer], size_px: int, *, per_layer: bool
) -> None:
    """Print one core's figures, for both bounds of the step where there are two."""
    steps = {'llvm-mca': costs.step}
    if core.halves:
        steps['issue rules'] = float(STEP_VECTOR_INSTRUCTIONS)
    for source, step in steps.items():
        parts = estimate(core, costs, layers, size_px, step=step)
        listed = ', '.join(f'{name} {value:.0f}' for name, value in parts.items())
        macs = sum(layer.macs for layer in layers)
        rate = macs / (parts['convolutions'] / 1e3 * core.hz)
        print(
            f'{core.name} {core.hz / 1e9:.1f} GHz ({core.board}), step by {source}: '
            f'{step:.1f} cycles = {STEP_MACS / step:.1f} MAC/cycle; all convolutions '
            f'{rate:.1f} MAC/cycle\n  ms: {listed}; together {sum(parts.values()):.0f}'
        )
        for layer in sorted(set(layers), key=layers.index) if per_layer else ():
            taken = convolution_cycles(core, costs, layer, step=step)
            print(
                f'    {layer.kernel}x{layer.kernel} {layer.channels:4d} /{layer.stride} '
                f'{layer.out_px:3d} px: {layer.macs / taken:5.1f} MAC/cycle'
            )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--network', default='tiny', choices=('nano', 'tiny', 'small', 'middle'))
    parser.add_argument('--size', type=int, default=256, help='side of the image, px')
    parser.add_argument('--layers', action='store_true', help='also by layer')
    parser.add_argument('--mca', default='llvm-mca', help='its command')
    options = parser.parse_args()
    for command in (COMPILER, options.mca):
        if not shutil.which(command):
            print(f'{command} is not installed: sudo apt install g++-aarch64-linux-gnu llvm')
            return 2
    sys.path.insert(0, str(REPOSITORY / 'test'))
    from engine_models import CHANNELS

    layers = layers_of(CHANNELS[options.network], options.size)
    macs = sum(layer.macs for layer in layers)
    what = f'{options.network}, {options.size} px, {macs / 1e9:.3f} G MAC'
    print(f'ESTIMATE, nothing measured: {what}')
    for core in CORES:
        with tempfile.TemporaryDirectory() as folder:
            costs = costs_of(core, Path(folder), options.mca)
        report(core, costs, layers, options.size, per_layer=options.layers)
    return 0


if __name__ == '__main__':
    sys.exit(main())
