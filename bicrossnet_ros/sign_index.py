"""FAISS indexes of signs: one bit an element, searched with float queries.

FAISS knows no index that compares floats with signs, but product quantisation is one if the 256
centroids of its groups of 8 elements are all the sign patterns there are. The code of a row then
is its packed signs, and a search adds up exact partial products, one look-up a byte. Nothing is
trained, nothing is approximated.

References
----------
Jegou, Douze, Schmid 2011, "Product Quantization for Nearest Neighbor Search", section III
(asymmetric distance computation).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.descriptor import signs
from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.types import MaskArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]

_GROUP = 8


def build_flat(descriptors: Float32Array) -> Any:
    """Index of the signs of descriptors (T, D) that is searched whole: D / 8 bytes a row."""
    index = _flat(descriptors.shape[1])
    # As unit vectors of signs: a float near 0 could round to the centroid of the other sign.
    index.add(signs(descriptors))
    return index


def build_ivf(descriptors: Float32Array, *, nlist: int, nprobe: int, seed: int) -> Any:
    """The same in clusters: D / 8 bytes a row, and 8 more for its number."""
    import faiss

    rows, size = signs(descriptors), descriptors.shape[1]
    index: Any = faiss.IndexIVFPQ(
        faiss.IndexFlatIP(size), size, nlist, size // _GROUP, 8, faiss.METRIC_INNER_PRODUCT
    )
    index.by_residual = False
    index.cp.seed = seed
    index.train_q1(len(rows), faiss.swig_ptr(rows), False, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(_centroids(size).ravel(), index.pq.centroids)
    index.is_trained = True
    index.nprobe = nprobe
    index.add(rows)
    return index


def stores_signs(index: Any) -> bool:
    """Whether an index that was read compares signs, and nothing that is only alike."""
    import faiss

    shape = (index.pq.M * _GROUP, index.pq.nbits)
    if shape != (index.d, 8) or getattr(index, 'by_residual', False):
        return False
    centroids = faiss.vector_to_array(index.pq.centroids)
    return np.array_equal(centroids, _centroids(index.d).ravel())


def search_flat(
    index: Any, queries: Float32Array, k: int, allowed: MaskArray | None
) -> tuple[Float32Array, Int64Array]:
    """Best `k` rows of an index of `build_flat`, of those allowed if a mask is given."""
    if allowed is None:
        similarities, rows = index.search(queries, k)
        return similarities, rows
    # This FAISS index takes no selector: search a small one of the rows allowed.
    chosen = np.flatnonzero(allowed)
    part = _flat(index.d)
    part.add_sa_codes(np.ascontiguousarray(codes(index)[chosen]))
    similarities, labels = part.search(queries, k)
    return similarities, np.where(labels >= 0, chosen[labels], -1)


def codes(index: Any) -> NDArray[np.uint8]:
    """Packed signs (T, D / 8) of an index of `build_flat`: a view that the index must outlive."""
    import faiss

    count, width = int(index.ntotal), int(index.d) // _GROUP
    view: NDArray[np.uint8] = faiss.rev_swig_ptr(index.codes.data(), count * width)
    return view.reshape(count, width)


def _flat(size: int) -> Any:
    import faiss

    if size % _GROUP:
        raise GalleryError(f'descriptors have {size} elements; expected a multiple of {_GROUP}')
    index: Any = faiss.IndexPQ(size, size // _GROUP, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(_centroids(size).ravel(), index.pq.centroids)
    index.is_trained = True
    return index


def _centroids(size: int) -> Float32Array:
    """The 256 sign patterns of 8 elements, (size / 8, 256, 8), as `descriptor.signs` scales."""
    patterns = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder='little')
    scaled = np.where(patterns == 1, 1.0, -1.0) * size**-0.5
    return np.tile(scaled.astype(np.float32), (size // _GROUP, 1, 1))
