"""Search in galleries of 1e4, 1e5 and 1e6 tiles: time, memory and what approximations miss.

    python bench/search.py [--tiles 10000 100000] [--dims 512] [--json FILE]
    python bench/search.py --tiles 1000000 --dims 512 1024 --json FILE   # half an hour
    python bench/search.py --render FILE FILE --update docs/performance.md

One thread, every index in a process of its own. `flat` and `ivf` are the product's own indexes
(`bicrossnet_ros.tile_index`), searched as `Gallery.search` does, with and without a prior
position. The embeddings are synthetic, with the statistics of real ones
(`synthetic_embeddings.py`). The indexes are those of `indexes.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from document import markdown, replace_section
from indexes import BLOCK, BUILDERS, NO_SELECTOR, SHORT_BITS, Job
from machine import cpu_name, peak_memory_bytes, reset_peak_memory
from synthetic_embeddings import QUERY_NOISE, TILE_M, make_map, positions_m

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

BATCH = 12  # hypotheses of a frame whose heading is unknown
RADIUS_M = 500.0


def index_bytes(index: Any) -> int:
    """Size of the index's file, without writing one."""
    import faiss

    total = 0

    def count(data: bytes) -> None:
        nonlocal total
        total += len(data)

    writer = faiss.PyCallbackIOWriter(count)
    write = faiss.write_index_binary if 'Binary' in type(index).__name__ else faiss.write_index
    write(index, writer)
    return total


def run_job(job: Job) -> dict[str, Any]:
    """Build one index and search in it; runs in a process of its own."""
    import faiss

    faiss.omp_set_num_threads(1)
    arrays = np.load(Path(job.folder) / 'queries.npz')
    queries, centers_m = arrays['queries'], arrays['centers_m']
    east_m, north_m = positions_m(job.tiles)
    before = reset_peak_memory()
    clock = time.process_time if job.clock == 'cpu' else time.perf_counter
    start = clock()
    index, search = BUILDERS[job.kind](job)
    result: dict[str, Any] = {'build_s': clock() - start}
    result['peak_bytes'] = peak_memory_bytes() - before
    result['index_bytes'] = index_bytes(index)

    def everywhere(begin: int, count: int) -> Any:
        return search(queries[begin : begin + count], None)[1]

    def nearby(begin: int, count: int) -> Any:
        # All hypotheses of a frame share its prior, as in Gallery.search.
        center = centers_m[begin]
        allowed = np.hypot(east_m - center[0], north_m - center[1]) <= RADIUS_M
        return search(queries[begin : begin + count], allowed)[1]

    result['everywhere'], found = timed(everywhere, job.queries, clock)
    result['found'] = found.tolist()
    if job.kind not in NO_SELECTOR:
        result['nearby'], found = timed(nearby, job.queries, clock)
        result['found_nearby'] = found.tolist()
    return result


def timed(
    search: Callable[[int, int], Any], queries: int, clock: Callable[[], float]
) -> tuple[dict[str, float], Any]:
    """Median milliseconds of a call with one query and with `BATCH`; all rows found."""
    search(0, 1)
    times: dict[int, list[float]] = {1: [], BATCH: []}
    found = []
    for begin in range(queries):
        start = clock()
        found.append(search(begin, 1))
        times[1].append(clock() - start)
    for begin in range(0, queries - BATCH + 1, BATCH):
        start = clock()
        search(begin, BATCH)
        times[BATCH].append(clock() - start)
    return {str(n): 1e3 * statistics.median(t) for n, t in times.items()}, np.concatenate(found)


def write_map(folder: Path, job: Job, noise: float) -> Any:
    """Draw the map of a job into `folder`; returns the true tiles of the queries."""
    drawn = make_map(job.tiles, job.dim, queries=job.queries, noise=noise)
    embeddings = np.lib.format.open_memmap(
        folder / 'embeddings.npy', 'w+', np.float32, (job.tiles, job.dim)
    )
    for begin in range(0, job.tiles, BLOCK):
        end = min(begin + BLOCK, job.tiles)
        embeddings[begin:end] = drawn.embeddings(begin, end)
    embeddings.flush()
    east_m, north_m = positions_m(job.tiles)
    away_m = np.random.default_rng(2).normal(0, RADIUS_M / 3, (2, job.queries))
    centers_m = np.stack([east_m[drawn.true_ids], north_m[drawn.true_ids]]) + away_m
    np.savez(folder / 'queries.npz', queries=drawn.query_embeddings(), centers_m=centers_m.T)
    return drawn.true_ids


def compare(result: dict[str, Any], exact: dict[str, Any], true_ids: Any, tiles: int) -> None:
    """Replace the rows that a search found by its recall."""
    east_m, north_m = positions_m(tiles)
    for where, key in (('everywhere', 'found'), ('nearby', 'found_nearby')):
        if key not in result:
            continue
        found, wanted = np.array(result[key]), np.array(exact[key])
        same = [
            np.isin(row[row >= 0], best).sum() for row, best in zip(found, wanted, strict=True)
        ]
        off_m = np.hypot(
            east_m[found[:, 0]] - east_m[true_ids], north_m[found[:, 0]] - north_m[true_ids]
        )
        result[where] |= {
            'recall_at_1': float((found[:, 0] == wanted[:, 0]).mean()),
            'recall_at_5': float(sum(same) / max((wanted >= 0).sum(), 1)),
            'place_at_1': float(((off_m <= TILE_M / 2) & (found[:, 0] >= 0)).mean()),
        }
    if result is not exact:
        result.pop('found')
        result.pop('found_nearby', None)


def measure(tiles: int, dim: int, kinds: list[str], options: argparse.Namespace) -> list[Any]:
    """All kinds of index over one map."""
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        job = Job(folder, 'flat', tiles, dim, options.queries, options.clock)
        true_ids = write_map(Path(folder), job, options.noise)
        exact: dict[str, Any] = {}
        for kind in ['flat', *(kind for kind in kinds if kind != 'flat')]:
            if kind == '256 bits' and dim == SHORT_BITS:
                continue
            print(f'{tiles} tiles x {dim}: {kind}', file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
                result = pool.submit(run_job, dataclasses.replace(job, kind=kind)).result()
            exact = exact or result
            compare(result, exact, true_ids, tiles)
            rows.append({'tiles': tiles, 'dim': dim, 'kind': kind} | result)
        del exact['found'], exact['found_nearby']
    return rows


def table(rows: list[Any]) -> str:
    """Format the rows as Markdown."""
    titles = ['tiles', 'D', 'index', 'memory, MB', 'peak, MB', 'build, s']
    titles += ['1 query, ms', f'{BATCH} queries, ms', 'recall@1', 'recall@5', 'place@1']
    titles += ['in the radius: 1, ms', f'{BATCH}, ms', 'recall@1', 'place@1']
    lines = []
    for row in rows:
        cells = [f'{row["tiles"]:.0e}'.replace('e+0', 'e'), str(row['dim']), row['kind']]
        cells += [f'{row["index_bytes"] / 1e6:.1f}', f'{row["peak_bytes"] / 1e6:.0f}']
        cells += [f'{row["build_s"]:.1f}']
        for where, keys in (
            ('everywhere', ('recall_at_1', 'recall_at_5', 'place_at_1')),
            ('nearby', ('recall_at_1', 'place_at_1')),
        ):
            found = row.get(where)
            cells += [f'{found[key]:.2f}' for key in ('1', str(BATCH))] if found else ['-', '-']
            cells += [f'{found[key]:.0%}' if found else '-' for key in keys]
        lines.append(cells)
    return markdown(titles, lines)


def report(results: list[dict[str, Any]]) -> str:
    """One table of the rows of several runs, by dimension and number of tiles."""
    rows = [row for result in results for row in result['rows']]
    kinds = list(BUILDERS)
    rows.sort(key=lambda row: (row['dim'], row['tiles'], kinds.index(row['kind'])))
    cpus = ', '.join(dict.fromkeys(result['cpu'] for result in results))
    clocks = ', '.join(dict.fromkeys(result['clock'] for result in results))
    what = f'{cpus}, one thread, {clocks} time; radius {RADIUS_M:.0f} m, tiles of {TILE_M:.0f} m'
    return f'{what}\n\n{table(rows)}'


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all that was asked for; after every map, --json has what was found until then."""
    result: dict[str, Any] = {'cpu': cpu_name(), 'noise': options.noise}
    result |= {'clock': options.clock, 'rows': []}
    for dim in options.dims:
        for tiles in options.tiles:
            result['rows'] += measure(tiles, dim, options.kinds, options)
            if options.json:
                options.json.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tiles', type=int, nargs='+', default=[10_000, 100_000], metavar='N')
    parser.add_argument('--dims', type=int, nargs='+', default=[512], help='512 nano, 1024 tiny')
    parser.add_argument('--kinds', nargs='+', choices=BUILDERS, default=list(BUILDERS))
    parser.add_argument('--queries', type=int, default=120)
    parser.add_argument('--noise', type=float, default=QUERY_NOISE, help='of the queries')
    parser.add_argument('--folder', type=Path, help='for the embeddings while it runs')
    parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--render', type=Path, nargs='+', help='results to print, not to measure')
    parser.add_argument('--update', type=Path, help='document whose table is replaced')
    options = parser.parse_args()
    if options.queries < BATCH:
        parser.error(f'--queries is {options.queries}; expected at least {BATCH}')
    if options.render:
        results = [json.loads(path.read_text(encoding='utf-8')) for path in options.render]
    else:
        results = [run(options)]
    text = report(results)
    if options.update:
        replace_section(options.update, 'bench/search.py', text)
    print(text)


if __name__ == '__main__':
    main()
