"""Search in galleries of 1e4, 1e5 and 1e6 tiles: time, memory and what approximations miss.

    python bench/search.py [--tiles 10000 100000] [--dims 512] [--json FILE]
    python bench/search.py --tiles 1000000 --dims 512 1024 --json FILE   # half an hour
    python bench/search.py --render FILE FILE --update docs/performance.md

One thread, every index in a process of its own. `flat` and `ivf` are the product's own indexes
(`bicrossnet_ros.tile_index`), searched as `Gallery.search` does, with and without a prior
position. The embeddings are synthetic, with the statistics of real ones
(`synthetic_embeddings.py`). Packed descriptors are the signs of the embedding about its mean: all
D of them, or 256 after ITQ.

References
----------
Gong et al. 2013, "Iterative Quantization" (ITQ).
Malkov & Yashunin 2020, "Efficient and robust approximate nearest neighbor search" (HNSW).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from document import markdown, replace_section
from machine import cpu_name, peak_memory_bytes, reset_peak_memory
from synthetic_embeddings import QUERY_NOISE, TILE_M, make_map, positions_m

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

BLOCK = 1 << 13  # tiles that are in memory beside the index while it is built
TOP = 5
BATCH = 12  # hypotheses of a frame whose heading is unknown
RADIUS_M = 500.0
SHORT_BITS = 256
RERANKED = 100
# The product trains on all tiles, 25 rounds; that takes hours at a million tiles.
TRAINING_TILES_PER_CLUSTER, TRAINING_ROUNDS = 64, 10
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 16, 40, 128

Found = tuple[Any, Any]  # similarities or distances, and rows
Search = Callable[[Any, Any], Found]  # (queries, mask or None)


@dataclass(frozen=True)
class Job:
    """One index over one map; the map's arrays lie in `folder`."""

    folder: str
    kind: str
    tiles: int
    dim: int
    queries: int


def blocks(job: Job) -> Any:
    """The embeddings of the map, block by block."""
    path = Path(job.folder) / 'embeddings.npy'
    offset = np.load(path, mmap_mode='r').offset
    # By reading, not by mapping: mapped pages would count as memory of the index.
    with path.open('rb') as file:
        file.seek(offset)
        for begin in range(0, job.tiles, BLOCK):
            count = min(BLOCK, job.tiles - begin)
            yield np.fromfile(file, np.float32, count * job.dim).reshape(count, job.dim)


def training_sample(job: Job, wanted: int) -> Any:
    """`wanted` tiles, at random."""
    chosen = np.zeros(job.tiles, bool)
    rng = np.random.default_rng(1)
    chosen[rng.choice(job.tiles, min(wanted, job.tiles), replace=False)] = True
    parts = np.split(chosen, range(BLOCK, job.tiles, BLOCK))
    return np.concatenate([block[part] for block, part in zip(blocks(job), parts, strict=True)])


def selector(allowed: Any) -> tuple[Any, Any]:
    """FAISS's form of a mask, and the bytes that must outlive it."""
    import faiss

    bits = np.packbits(allowed, bitorder='little')
    return faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)), bits


def build_flat(job: Job) -> tuple[Any, Search]:
    """The product's exact index."""
    import faiss

    from bicrossnet_ros.tile_index import index_parameters, search_index

    index = faiss.IndexFlatIP(job.dim)
    parameters = index_parameters('flat', job.tiles)
    for block in blocks(job):
        index.add(block)

    def search(queries: Any, allowed: Any) -> Found:
        return search_index(index, queries, k=TOP, parameters=parameters, allowed=allowed)

    return index, search


def build_ivf(job: Job) -> tuple[Any, Search]:
    """The product's clustered index, trained on fewer tiles."""
    import faiss

    from bicrossnet_ros.tile_index import index_parameters, search_index

    parameters = index_parameters('ivf', job.tiles)
    centers = faiss.IndexFlatIP(job.dim)
    index = faiss.IndexIVFFlat(centers, job.dim, parameters['nlist'], faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = TRAINING_ROUNDS
    index.train(training_sample(job, parameters['nlist'] * TRAINING_TILES_PER_CLUSTER))
    index.nprobe = parameters['nprobe']
    for block in blocks(job):
        index.add(block)

    def search(queries: Any, allowed: Any) -> Found:
        return search_index(index, queries, k=TOP, parameters=parameters, allowed=allowed)

    return index, search


def build_hnsw(job: Job) -> tuple[Any, Search]:
    """A graph of near neighbours."""
    import faiss

    index = faiss.IndexHNSWFlat(job.dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = HNSW_BUILD
    for block in blocks(job):
        index.add(block)
    return index, partial(search_graph, index)


def search_graph(index: Any, queries: Any, allowed: Any) -> Found:
    """Search an HNSW index of floats or bits."""
    import faiss

    options: dict[str, Any] = {'efSearch': HNSW_SEARCH}
    kept = None
    if allowed is not None:
        options['sel'], kept = selector(allowed)
    found = index.search(queries, TOP, params=faiss.SearchParametersHNSW(**options))
    del kept
    return found


def build_eight_bit(job: Job) -> tuple[Any, Search]:
    """Every element as one byte."""
    import faiss

    kind = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexScalarQuantizer(job.dim, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(training_sample(job, BLOCK))
    for block in blocks(job):
        index.add(block)
    return index, partial(search_flat, index)


def search_flat(index: Any, queries: Any, allowed: Any) -> Found:
    """Search an index that compares with every row, or with the allowed ones."""
    import faiss

    if allowed is None:
        return index.search(queries, TOP)
    chosen, kept = selector(allowed)
    found = index.search(queries, TOP, params=faiss.SearchParameters(sel=chosen))
    del kept
    return found


def bit_coder(job: Job, bits: int) -> Callable[[Any], Any]:
    """What makes packed descriptors (N, bits / 8) of embeddings."""
    import faiss

    sample = training_sample(job, 1 << 14)
    if bits == job.dim:
        mean = sample.mean(axis=0)
        return lambda rows: np.packbits(rows >= mean, axis=1, bitorder='little')
    rotation = faiss.ITQTransform(job.dim, bits, bits < job.dim)
    rotation.itq.max_iter = 20  # of 50; more changes no figure here
    rotation.train(sample)
    return lambda rows: np.packbits(rotation.apply(rows) >= 0, axis=1, bitorder='little')


def build_bits(job: Job, *, structure: str, bits: int) -> tuple[Any, Search]:
    """Packed descriptors, compared by Hamming distance."""
    import faiss

    encode = bit_coder(job, bits)
    if structure == 'flat':
        index, search = faiss.IndexBinaryFlat(bits), search_flat
    elif structure == 'hnsw':
        index, search = faiss.IndexBinaryHNSW(bits, HNSW_LINKS), search_graph
        index.hnsw.efConstruction = HNSW_BUILD
    else:
        index, search = clustered_bits(job, encode, bits), search_flat
    for block in blocks(job):
        index.add(encode(block))
    return index, lambda queries, allowed: search(index, encode(queries), allowed)


def clustered_bits(job: Job, encode: Callable[[Any], Any], bits: int) -> Any:
    """An empty IndexBinaryIVF, with the product's number of clusters."""
    import faiss

    from bicrossnet_ros.tile_index import index_parameters

    parameters = index_parameters('ivf', job.tiles)
    centers = faiss.IndexBinaryFlat(bits)
    index = faiss.IndexBinaryIVF(centers, bits, parameters['nlist'])
    index.centers = centers  # keeps Python from freeing it
    index.cp.niter = TRAINING_ROUNDS
    sample = training_sample(job, parameters['nlist'] * TRAINING_TILES_PER_CLUSTER)
    index.train(encode(sample))
    index.nprobe = parameters['nprobe']
    return index


def build_reranked(job: Job) -> tuple[Any, Search]:
    """All D bits in memory; the best by Hamming distance are compared as floats from the disk."""
    import faiss

    encode = bit_coder(job, job.dim)
    index = faiss.IndexBinaryFlat(job.dim)
    for block in blocks(job):
        index.add(encode(block))
    embeddings = np.load(Path(job.folder) / 'embeddings.npy', mmap_mode='r')

    def search(queries: Any, allowed: Any) -> Found:
        options, kept = {}, None
        if allowed is not None:
            chosen, kept = selector(allowed)
            options['params'] = faiss.SearchParameters(sel=chosen)
        _, rows = index.search(encode(queries), min(RERANKED, job.tiles), **options)
        del kept
        # Where few are allowed, -1 fills up: row 0 then, with the worst similarity.
        near = np.asarray(embeddings[np.maximum(rows, 0)])
        similarities = np.einsum('qd,qnd->qn', queries, near)
        similarities[rows < 0] = -np.inf
        best = np.argsort(-similarities, axis=1)[:, :TOP]
        return np.take_along_axis(similarities, best, 1), np.take_along_axis(rows, best, 1)

    return index, search


BUILDERS: dict[str, Callable[[Job], tuple[Any, Search]]] = {
    'flat': build_flat,
    'ivf': build_ivf,
    'hnsw': build_hnsw,
    'flat, 8 bit': build_eight_bit,
    'D bits': lambda job: build_bits(job, structure='flat', bits=job.dim),
    'D bits, best 100 as floats': build_reranked,
    '256 bits': lambda job: build_bits(job, structure='flat', bits=SHORT_BITS),
    '256 bits, ivf': lambda job: build_bits(job, structure='ivf', bits=SHORT_BITS),
    '256 bits, hnsw': lambda job: build_bits(job, structure='hnsw', bits=SHORT_BITS),
}
NO_SELECTOR = ('256 bits, ivf',)  # FAISS has none for IndexBinaryIVF


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
    start = time.perf_counter()
    index, search = BUILDERS[job.kind](job)
    result: dict[str, Any] = {'build_s': time.perf_counter() - start}
    result['peak_bytes'] = peak_memory_bytes() - before
    result['index_bytes'] = index_bytes(index)

    def everywhere(begin: int, count: int) -> Any:
        return search(queries[begin : begin + count], None)[1]

    def nearby(begin: int, count: int) -> Any:
        # All hypotheses of a frame share its prior, as in Gallery.search.
        center = centers_m[begin]
        allowed = np.hypot(east_m - center[0], north_m - center[1]) <= RADIUS_M
        return search(queries[begin : begin + count], allowed)[1]

    result['everywhere'], found = timed(everywhere, job.queries)
    result['found'] = found.tolist()
    if job.kind not in NO_SELECTOR:
        result['nearby'], found = timed(nearby, job.queries)
        result['found_nearby'] = found.tolist()
    return result


def timed(search: Callable[[int, int], Any], queries: int) -> tuple[dict[str, float], Any]:
    """Median milliseconds of a call with one query and with `BATCH`; all rows found."""
    search(0, 1)
    times: dict[int, list[float]] = {1: [], BATCH: []}
    found = []
    for begin in range(queries):
        start = time.perf_counter()
        found.append(search(begin, 1))
        times[1].append(time.perf_counter() - start)
    for begin in range(0, queries - BATCH + 1, BATCH):
        start = time.perf_counter()
        search(begin, BATCH)
        times[BATCH].append(time.perf_counter() - start)
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
        job = Job(folder, 'flat', tiles, dim, options.queries)
        true_ids = write_map(Path(folder), job, options.noise)
        exact: dict[str, Any] = {}
        for kind in ['flat', *(kind for kind in kinds if kind != 'flat')]:
            if kind == '256 bits' and dim == SHORT_BITS:
                continue
            print(f'{tiles} tiles x {dim}: {kind}', file=sys.stderr, flush=True)
            with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
                result = pool.submit(run_job, Job(folder, kind, tiles, dim, job.queries)).result()
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
    rows.sort(key=lambda row: (row['dim'], row['tiles']))  # stable: the kinds keep their order
    cpus = ', '.join(dict.fromkeys(result['cpu'] for result in results))
    what = f'{cpus}, one thread; radius {RADIUS_M:.0f} m, tiles of {TILE_M:.0f} m'
    return f'{what}\n\n{table(rows)}'


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all that was asked for; after every map, --json has what was found until then."""
    result: dict[str, Any] = {'cpu': cpu_name(), 'noise': options.noise, 'rows': []}
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
