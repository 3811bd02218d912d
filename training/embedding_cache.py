"""Embeddings kept on disk, taken again only if model, options and image files are the same."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bicrossnet_ros.errors import ConfigError
from training.embedder import Embedder, PathEmbeddings


def embed_with_cache(
    embedder: Embedder,
    paths: Sequence[Path],
    cache: Path | None,
    *,
    unreadable: str = 'fail',
    workers: int | None = None,
) -> PathEmbeddings:
    """Call `Embedder.embed_paths`, or return what an equal call has left in `cache` (.npz).

    Equal are: the model file's digest, the features, the resizing, and path, size and time of
    change of every image. With `cache` None nothing is kept.

    Raises
    ------
    ImageError
        If an image cannot be decoded and `unreadable` is 'fail'.
    ConfigError
        If the cache cannot be written.
    """
    if cache is None:
        return embedder.embed_paths(paths, unreadable=unreadable, workers=workers)
    key = _key(embedder, paths)
    kept = _read(cache, key, embedder.features)
    if kept is not None and not (kept.unreadable and unreadable == 'fail'):
        return kept
    made = embedder.embed_paths(paths, unreadable=unreadable, workers=workers)
    partial = cache.with_suffix('.partial')
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with partial.open('wb') as file:
            np.savez(
                file,
                key=key,
                rows=made.rows,
                different=made.different,
                unreadable=json.dumps(made.unreadable),
                **made.vectors,
            )
        partial.replace(cache)
    except OSError as error:
        raise ConfigError(f'{cache}: could not be written ({error.strerror})') from error
    return made


def _key(embedder: Embedder, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for part in (embedder.model_id, embedder.resize, *embedder.features):
        digest.update(f'{part}\n'.encode())
    for path in paths:
        try:
            status = path.stat()
            known = f'{status.st_size} {status.st_mtime_ns}'
        except OSError:
            known = 'unreadable'
        digest.update(f'{path.absolute()} {known}\n'.encode())
    return digest.hexdigest()


def _read(cache: Path, key: str, features: tuple[str, ...]) -> PathEmbeddings | None:
    """Return the kept embeddings; None if there are none, or of another call, or damaged."""
    try:
        with np.load(cache, allow_pickle=False) as kept:
            if kept['key'].item() != key:
                return None
            vectors = {name: kept[name] for name in features}
            unreadable = tuple(json.loads(kept['unreadable'].item()))
            return PathEmbeddings(vectors, kept['rows'], unreadable, int(kept['different']))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
