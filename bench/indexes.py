"""The indexes that `bench/search.py` compares: how each is built and searched.

Packed descriptors are the signs of the embedding about its mean: all D of them, or 256 after ITQ.

References
----------
Gong et al. 2013, "Iterative Quantization" (ITQ).
Malkov & Yashunin 2020, "Efficient and robust approximate nearest neighbor search" (HNSW).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

BLOCK = 1 << 13  # tiles that are in memory beside the index while it is built
TOP = 5
SHORT_BITS = 256
RERANKED = 100
# The product trains on up to 256 tiles a cluster (FAISS's default), which takes four times as long
# at a million tiles. That more would find more there was not tried; at 5e4 both see every tile.
TRAINING_TILES_PER_CLUSTER = 64
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
    clock: str  # 'wall' or 'cpu'


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
