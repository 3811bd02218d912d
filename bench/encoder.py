"""The encoder beside other ways to run it: the engine, ONNX Runtime, PyTorch, Larq, ConvNeXt.

    python bench/encoder.py [--threads 1 2] [--sizes tiny middle] [--layers tiny] [--json FILE]
    python bench/encoder.py --larq-python LARQ_ENVIRONMENT/bin/python
    python bench/encoder.py --render FILE.json --update docs/performance.md

All contenders of a network run in turn, one call each a round, so that what slows the machine
slows them all; figures are medians over the rounds, a ratio is the median of the rounds' ratios.
The weights are random (the time does not depend on them). Threads are not pinned. Larq (extra
`lce`) may live in another environment, whose interpreter --larq-python names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import (
    CONVNEXT,
    ENGINE,
    LARQ,
    ORT,
    TORCH,
    Contender,
    Larq,
    Task,
    convnext,
    engine,
    onnx_runtime,
    pytorch,
)
from document import markdown, replace_section
from layers import layer_table, measure_layers, measure_stages, stage_table
from machine import cpu_name
from start_up import measure_start, start_table

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
# For the libraries imported later: OpenMP's threads that spin would disturb who runs next.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

SIZES = ('nano', 'tiny', 'small', 'middle', 'large')
PEERS = (ORT, CONVNEXT, TORCH, LARQ)
PAUSE_S = 0.003  # lets threads of the last call fall asleep


def measure(size: str, batch: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All contenders with one network and batch; one row each."""
    from bicrossnet_ros.engine.model_file import read_model

    path = model_file(size, options.input_px, folder)
    shape = (batch, 3, options.input_px, options.input_px)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    clock = time.process_time if options.clock == 'cpu' else time.perf_counter
    task = Task(read_model(path), path, images, clock)
    contenders: list[Contender] = []
    children: list[Larq] = []
    for threads in options.threads:
        contenders += [engine(task, backend, threads) for backend in options.backends]
        contenders += [make(task, threads) for make in (onnx_runtime, convnext, pytorch)]
        if size in options.larq_sizes:
            child = Larq(task, threads, python=options.larq_python, folder=options.larq_folder)
            children.append(child)
            contenders += [] if child.failure else [child.contender]
    try:
        times = take_turns(contenders, rounds=options.rounds, seconds=options.seconds)
    finally:
        for child in children:
            child.close()
    rows = [row(contender, times) for contender in contenders]
    states = dict.fromkeys(child.failure or child.name for child in children)
    return {
        'network': size,
        'batch': batch,
        'rounds': len(next(iter(times.values()))),
        'larq': ', '.join(states) or 'not asked for, see --larq-sizes',
        'rows': rows,
    }


def model_file(size: str, input_px: int, folder: Path) -> Path:
    """A model file with random weights, made once."""
    from bicrossnet_ros.engine.model_file import write_model
    from training.export import untrained

    path = folder / f'bnext_{size}_{input_px}.safetensors'
    if not path.exists():
        write_model(path, untrained(size, name=path.stem, input_px=input_px, seed=0))
    return path


Times = dict[tuple[str, int], list[float]]


def take_turns(contenders: list[Contender], *, rounds: int, seconds: float) -> Times:
    """Run every contender once a round; the first two rounds warm up.

    At least five rounds are counted, and no more begun when `seconds` are over.
    """
    times: Times = {(one.name, one.threads): [] for one in contenders}
    end = time.perf_counter() + seconds
    for turn in range(rounds + 2):
        if turn >= 7 and time.perf_counter() > end:
            break
        for one in contenders:
            time.sleep(PAUSE_S)
            taken = one.call()
            if turn >= 2:
                times[one.name, one.threads].append(taken)
    return times


def row(contender: Contender, times: Times) -> dict[str, Any]:
    """Figures of one contender; ratios say how many times as long the other one takes."""
    own = times[contender.name, contender.threads]
    ratios = {
        peer: ratio(times[peer, contender.threads], own)
        for peer in PEERS
        if (peer, contender.threads) in times and peer != contender.name
    }
    alone = times.get((contender.name, 1))
    return {
        'name': contender.name,
        'threads': contender.threads,
        'median_ms': 1e3 * statistics.median(own),
        'min_ms': 1e3 * min(own),
        'ratios': ratios,
        'over_one_thread': ratio(alone, own) if alone and contender.threads > 1 else None,
        'nbytes': contender.nbytes,
    }


def ratio(slower: list[float], faster: list[float]) -> float:
    """Median of the ratios in the same round."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def time_table(groups: list[dict[str, Any]]) -> str:
    """All contenders of a network, number of images and threads in a line."""
    names = list(dict.fromkeys(one['name'] for group in groups for one in group['rows']))
    lines = []
    for group in groups:
        for threads in dict.fromkeys(one['threads'] for one in group['rows']):
            found = {one['name']: one for one in group['rows'] if one['threads'] == threads}
            cells = [group['network'], str(group['batch']), str(threads)]
            for name in names:
                one = found.get(name)
                cells.append(f'{one["median_ms"]:.1f} ({one["min_ms"]:.1f})' if one else '-')
            lines.append(cells)
    return markdown(['network', 'images', 'threads', *names], lines)


def ratio_table(groups: list[dict[str, Any]]) -> str:
    """How many times as fast as its peers the engine is."""
    lines = []
    for group in groups:
        for one in group['rows']:
            if not one['name'].startswith(ENGINE):
                continue
            cells = [group['network'], str(group['batch']), str(one['threads']), one['name']]
            found = [one['ratios'].get(peer) for peer in PEERS]
            cells += [f'{value:.1f}x' if value else '-' for value in found]
            scaled = one['over_one_thread']
            cells += [f'{scaled:.2f}x' if scaled else '', f'{one["nbytes"] / 1e6:.1f}']
            lines.append(cells)
    titles = ['network', 'images', 'threads', 'engine']
    titles += [f'faster than {peer}' for peer in PEERS]
    return markdown([*titles, 'than one thread', 'weights and buffers, MB'], lines)


def report(result: dict[str, Any]) -> dict[str, str]:
    """Markdown of every section."""
    groups = result['networks']
    what = (
        f'{result["cpu"]}; input {result["input_px"]} px; {result["clock"]} time, ms: median of '
    )
    what += f'{min(group["rounds"] for group in groups)} or more rounds (minimum)'
    without_larq = {
        f'. Larq, {group["network"]}: {group["larq"]}': None
        for group in groups
        if LARQ not in {one['name'] for one in group['rows']}
    }
    what += ''.join(without_larq)  # each once, in order
    text = f'{what}\n\n{time_table(groups)}\n\n{ratio_table(groups)}'
    sections = {'bench/encoder.py': text}
    if result['layers']:
        tables = [
            f'{name}, clock {rows[0]["clock_hz"] / 1e9:.2f} GHz\n\n{layer_table(rows)}'
            for name, rows in result['layers'].items()
        ]
        sections['bench/encoder.py layers'] = '\n\n'.join(tables)
        tables = [f'{name}\n\n{stage_table(rows)}' for name, rows in result['stages'].items()]
        sections['bench/encoder.py stages'] = '\n\n'.join(tables)
    if result['start']:
        sections['bench/encoder.py start'] = start_table(result['start'])
    return sections


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all that was asked for."""
    from bicrossnet_ros.engine.native import backends

    if options.backends is None:
        # The scalar one is the oracle of the others, and takes seconds.
        options.backends = [name for name in backends() if name != 'scalar']
    options.larq_folder = options.larq_folder or folder
    result: dict[str, Any] = {
        'cpu': cpu_name(),
        'input_px': options.input_px,
        'clock': options.clock,
        'networks': [],
        'layers': {},
        'stages': {},
        'start': [],
    }
    for size in options.sizes:
        for batch in options.batches:
            print(f'{size}, {batch} images', file=sys.stderr, flush=True)
            result['networks'].append(measure(size, batch, options, folder))
        path = model_file(size, options.input_px, folder)
        if size in options.layers:
            from bicrossnet_ros.engine.model_file import read_model

            print(f'{size}, layers', file=sys.stderr, flush=True)
            model = read_model(path)
            arguments = model, options.input_px, options.backends, options.rounds
            clock = time.thread_time if options.clock == 'cpu' else time.perf_counter
            result['layers'][size] = measure_layers(*arguments, clock)
            result['stages'][size] = measure_stages(*arguments)
        # ONNX Runtime takes half a minute and seven GB for large: once is enough.
        runs = dict.fromkeys(options.backends[:1], options.starts) | {'onnxruntime': 1}
        for backend, count in runs.items() if options.starts else ():
            started = measure_start(path, backend=backend, runs=count)
            result['start'].append({'network': size} | started)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 2], help='images a call')
    parser.add_argument('--sizes', nargs='+', choices=SIZES, default=list(SIZES))
    parser.add_argument('--input-px', type=int, default=256)
    parser.add_argument('--backends', nargs='*', help='default: all that run here, but scalar')
    parser.add_argument('--rounds', type=int, default=31)
    parser.add_argument('--seconds', type=float, default=20.0, help='at most, of a network')
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall', help='cpu: 1 thread')
    parser.add_argument(
        '--layers', nargs='*', choices=SIZES, help='of these (default: all) layers and stages, too'
    )
    parser.add_argument('--starts', type=int, default=5, help='processes; 0: no start-up, memory')
    parser.add_argument('--larq-python', type=Path, default=Path(sys.executable))
    # The converter took over 13 GB of memory for middle before it was ended.
    parser.add_argument('--larq-sizes', nargs='*', choices=SIZES, default=['nano', 'tiny'])
    parser.add_argument('--larq-folder', type=Path, help='keeps the converted networks')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--markdown', action='store_true', help='print the tables of the document')
    parser.add_argument('--render', type=Path, help='results to print instead of measuring')
    parser.add_argument('--update', type=Path, help='document whose tables are replaced')
    options = parser.parse_args()
    if options.clock == 'cpu' and options.threads != [1]:
        parser.error('--clock cpu adds up all threads; it needs --threads 1')
    if options.layers is None:
        options.layers = []
    elif not options.layers:
        options.layers = options.sizes
    if options.render:
        result = json.loads(options.render.read_text(encoding='utf-8'))
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = run(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    for name, text in report(result).items():
        if options.update:
            replace_section(options.update, name, text)
        print(f'<!-- {name} -->\n\n{text}\n' if options.markdown else f'{text}\n')


if __name__ == '__main__':
    main()
