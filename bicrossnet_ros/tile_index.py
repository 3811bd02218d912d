"""The index of tile embeddings: FAISS, inner product of unit vectors = cosine similarity.

`flat` compares a query with every tile and is exact. `ivf` looks at the `nprobe` nearest of
`nlist` clusters: for galleries of several hundred thousand tiles. A search restricted to a radius
is exact with both.

Vectors are stored as float32, or as signs of one bit each (`sign_index`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros import sign_index
from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.types import MaskArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]

INDEX_TYPES = ('flat', 'ivf')
SIGNS = 'signs'  # what parameters['codes'] says of an index of signs
_IVF_SEED = 1234
# By type and whether signs are stored.
_CLASSES = {
    ('flat', False): 'IndexFlatIP',
    ('ivf', False): 'IndexIVFFlat',
    ('flat', True): 'IndexPQ',
    ('ivf', True): 'IndexIVFPQ',
}


def index_parameters(kind: str, tile_count: int, *, packed: bool = False) -> dict[str, Any]:
    """What `gallery.json` records about an index of `tile_count` tiles.

    Parameters
    ----------
    kind : str
        'flat' or 'ivf'.
    tile_count : int
    packed : bool
        Store signs, one bit an element, in place of float32.

    References
    ----------
    Number of clusters 4 sqrt(N): FAISS wiki, "Guidelines to choose an index".
    """
    codes = {'codes': SIGNS} if packed else {}
    if kind == 'flat':
        return {'type': 'flat', 'metric': 'inner_product', **codes}
    if kind != 'ivf':
        raise GalleryError(f'index type {kind!r} is unknown; expected one of {INDEX_TYPES}')
    # K-means wants at least 39 points a cluster.
    nlist = max(1, min(int(4 * tile_count**0.5), tile_count // 39))
    return {
        'type': 'ivf',
        'metric': 'inner_product',
        'nlist': nlist,
        'nprobe': max(1, nlist // 16),
        **codes,
    }


def build_index(embeddings: Float32Array, parameters: dict[str, Any]) -> Any:
    """Make a FAISS index with the parameters of `index_parameters`.

    Parameters
    ----------
    embeddings : ndarray of shape (T, D), float32
        An index of signs takes the signs of these; D is a multiple of 8 then.
    parameters : dict
    """
    import faiss

    rows = np.ascontiguousarray(embeddings, np.float32)
    packed, clustered = stores_signs(parameters), parameters['type'] == 'ivf'
    if packed and clustered:
        clusters = {name: parameters[name] for name in ('nlist', 'nprobe')}
        return sign_index.build_ivf(rows, **clusters, seed=_IVF_SEED)
    if packed:
        return sign_index.build_flat(rows)
    size = rows.shape[1]
    index: Any = faiss.IndexFlatIP(size)
    if clustered:
        index = faiss.IndexIVFFlat(index, size, parameters['nlist'], faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = _IVF_SEED
        index.train(rows)
        index.nprobe = parameters['nprobe']
    index.add(rows)
    return index


def stores_signs(parameters: dict[str, Any]) -> bool:
    """Whether an index with these parameters stores signs; else it stores float32."""
    return parameters.get('codes') == SIGNS


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
    expected_class = _CLASSES[parameters['type'], stores_signs(parameters)]
    found = (type(index).__name__, int(index.d), int(index.ntotal))
    expected = (expected_class, size, tile_count)
    if found != expected:
        raise GalleryError(
            f'{path} holds {found} (kind, embedding size, tiles), gallery.json says {expected}; '
            'rebuild the gallery'
        )
    problem = _contradiction(index, parameters)
    if problem:
        raise GalleryError(f'{path} {problem}; rebuild the gallery')
    return index


def _contradiction(index: Any, parameters: dict[str, Any]) -> str:
    """What an index of the right kind and size has that its parameters deny; empty: nothing."""
    import faiss

    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return 'compares by distance and not by inner product'
    if stores_signs(parameters) and not sign_index.stores_signs(index):
        return 'does not hold signs'
    if parameters['type'] != 'ivf':
        return ''
    nlist, nprobe = parameters.get('nlist'), parameters.get('nprobe')
    if nlist != index.nlist or not isinstance(nprobe, int) or not 1 <= nprobe <= index.nlist:
        return f'has {index.nlist} clusters, gallery.json says nlist {nlist!r}, nprobe {nprobe!r}'
    try:
        # Where each row lies in the clusters, 8 bytes a row: `read_embeddings` needs it.
        index.make_direct_map()
        whole = bool((faiss.vector_to_array(index.direct_map.array) >= 0).all())
    except RuntimeError:
        whole = False
    return '' if whole else 'lacks some of the tile numbers'


def read_embeddings(index: Any, rows: Int64Array, *, parameters: dict[str, Any]) -> Float32Array:
    """What the index holds in some rows (N,), such as tile ids: (N, D), of unit length.

    Of an index of signs these are the signs, scaled.
    """
    if parameters['type'] == 'ivf' and index.direct_map.no():
        # Of an index that was built and not read.
        index.make_direct_map()
    if len(rows) == 0:
        return np.empty((0, int(index.d)), np.float32)
    found = index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))
    return np.asarray(found, np.float32)


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
    if stores_signs(parameters) and parameters['type'] == 'flat':
        found, labels = sign_index.search_flat(index, queries, reach, allowed)
        similarities[:, :reach], rows[:, :reach] = found, labels
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
