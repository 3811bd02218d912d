"""The index of tile embeddings: FAISS, inner product of unit vectors = cosine similarity.

`flat` compares a query with every tile and is exact. `ivf` looks at the `nprobe` nearest of
`nlist` clusters: for galleries of several hundred thousand tiles. A search restricted to a radius
is exact with both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.types import MaskArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]

INDEX_TYPES = ('flat', 'ivf')
_IVF_SEED = 1234


def index_parameters(kind: str, tile_count: int) -> dict[str, Any]:
    """What `gallery.json` records about an index of `tile_count` tiles.

    References
    ----------
    Number of clusters 4 sqrt(N): FAISS wiki, "Guidelines to choose an index".
    """
    if kind == 'flat':
        return {'type': 'flat', 'metric': 'inner_product'}
    if kind != 'ivf':
        raise GalleryError(f'index type {kind!r} is unknown; expected one of {INDEX_TYPES}')
    # K-means wants at least 39 points a cluster.
    nlist = max(1, min(int(4 * tile_count**0.5), tile_count // 39))
    return {
        'type': 'ivf',
        'metric': 'inner_product',
        'nlist': nlist,
        'nprobe': max(1, nlist // 16),
    }


def build_index(embeddings: Float32Array, parameters: dict[str, Any]) -> Any:
    """Make a FAISS index of embeddings (T, D) with the parameters of `index_parameters`."""
    import faiss

    size = embeddings.shape[1]
    index: Any = faiss.IndexFlatIP(size)
    if parameters['type'] == 'ivf':
        index = faiss.IndexIVFFlat(index, size, parameters['nlist'], faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = _IVF_SEED
        index.train(np.ascontiguousarray(embeddings, np.float32))
        index.nprobe = parameters['nprobe']
    index.add(np.ascontiguousarray(embeddings, np.float32))
    return index


def write_index(index: Any, path: Path) -> None:
    """Write an index and force it to the disk."""
    import faiss

    faiss.write_index(index, str(path))
    with path.open('rb') as stream:
        os.fsync(stream.fileno())


def read_index(path: Path, *, size: int, tile_count: int, parameters: dict[str, Any]) -> Any:
    """Open an index, memory-mapped where this FAISS can.

    Raises
    ------
    GalleryError
        If it is not an index of `tile_count` embeddings of `size` elements and the right kind.
    """
    import faiss

    # Plain IO_FLAG_MMAP maps inverted lists only; the newer flag maps flat vectors as well.
    flags = getattr(faiss, 'IO_FLAG_MMAP_IFC', 0)
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise GalleryError(
            f'{path} is not a readable FAISS index ({reason}); rebuild the gallery'
        ) from error
    expected_class = 'IndexFlatIP' if parameters['type'] == 'flat' else 'IndexIVFFlat'
    found = (type(index).__name__, int(index.d), int(index.ntotal))
    expected = (expected_class, size, tile_count)
    if found != expected:
        raise GalleryError(
            f'{path} holds {found} (kind, embedding size, tiles), gallery.json says {expected}; '
            'rebuild the gallery'
        )
    return index


def read_embedding(index: Any, row: int, *, parameters: dict[str, Any]) -> Float32Array:
    """The embedding (D,) that the index holds in a row, such as a tile id."""
    if parameters['type'] == 'ivf' and index.direct_map.no():
        # Where each row lies in the clusters; 8 bytes a row, made when first asked for.
        index.make_direct_map()
    return np.asarray(index.reconstruct(int(row)), np.float32)


def search_index(
    index: Any,
    queries: Float32Array,
    *,
    k: int,
    parameters: dict[str, Any],
    allowed: MaskArray | None = None,
    exact: bool = False,
) -> tuple[Float32Array, Int64Array]:
    """Best `k` rows of the index for each query.

    Parameters
    ----------
    index : faiss.Index
    queries : ndarray of shape (Q, D), float32
    k : int
    parameters : dict
        From `index_parameters`.
    allowed : ndarray of shape (T,), bool, optional
        Rows that may be found; default all.
    exact : bool
        Compare with every row whatever the index.

    Returns
    -------
    similarities : ndarray of shape (Q, k), float32
        Padded with -inf.
    rows : ndarray of shape (Q, k), int64
        Padded with -1.
    """
    import faiss

    similarities = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    count = int(index.ntotal) if allowed is None else int(allowed.sum())
    reach = min(k, count)
    if reach == 0 or len(queries) == 0:
        return similarities, rows
    options: dict[str, Any] = {}
    if allowed is not None:
        # The bitmap must outlive the search: FAISS keeps a pointer to it, not a copy.
        bits = np.packbits(allowed, bitorder='little')
        options['sel'] = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    search_parameters: Any = None
    kinds: Any = faiss  # its stubs lack the keyword arguments of the parameter classes
    if parameters['type'] == 'ivf':
        # Within a radius all clusters are visited: the selector leaves few rows to compare.
        everywhere = exact or allowed is not None
        probes = parameters['nlist'] if everywhere else parameters['nprobe']
        search_parameters = kinds.SearchParametersIVF(nprobe=probes, **options)
    elif options:
        search_parameters = kinds.SearchParameters(**options)
    found, labels = index.search(queries, reach, params=search_parameters)
    similarities[:, :reach] = np.where(labels >= 0, found, -np.inf)
    rows[:, :reach] = labels
    return similarities, rows
