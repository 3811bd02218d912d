"""The folder of an unfinished build: what is done, so that a killed build goes on.

`NAME.gallery.partial/` holds `gallery/`, which becomes the gallery by one rename, `work.sqlite`
with the ledger and the embeddings so far, and a lock. Every step can be repeated: it is marked as
done only after its result is safely stored.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bicrossnet_ros.errors import GalleryError
from bicrossnet_ros.manifest import MANIFEST_NAME, MAP_NAME
from bicrossnet_ros.tile_index import Float32Array

_WORK = 'work.sqlite'
_FINGERPRINT = 'fingerprint'
_SCHEMA = (
    'CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)',
    'CREATE TABLE IF NOT EXISTS ledger (step TEXT PRIMARY KEY, done INTEGER NOT NULL)',
    'CREATE TABLE IF NOT EXISTS embeddings (batch INTEGER PRIMARY KEY, data BLOB NOT NULL)',
    'CREATE TABLE IF NOT EXISTS ambiguity (chunk INTEGER PRIMARY KEY, data BLOB NOT NULL)',
)


class Workplace:
    """An unfinished build on disk; use `open_workplace`."""

    def __init__(self, folder: Path, out: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self.out = out
        self.gallery = folder / 'gallery'
        self._connection = connection

    def done(self, step: str) -> int:
        """Units of a step that are done."""
        row = self._connection.execute(
            'SELECT done FROM ledger WHERE step = ?', (step,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def mark(self, step: str, done: int) -> None:
        """Record the units of a step that are done."""
        self._connection.execute('INSERT OR REPLACE INTO ledger VALUES (?, ?)', (step, done))

    def fact(self, name: str) -> str | None:
        """A text remembered by `remember`."""
        row = self._connection.execute(
            'SELECT value FROM facts WHERE name = ?', (name,)
        ).fetchone()
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str) -> None:
        """Remember a text."""
        self._connection.execute('INSERT OR REPLACE INTO facts VALUES (?, ?)', (name, value))

    def store(self, table: str, number: int, values: Any) -> None:
        """Keep one batch of `embeddings` or one chunk of `ambiguity`."""
        self._connection.execute(
            f'INSERT OR REPLACE INTO {table} VALUES (?, ?)', (number, values.tobytes())
        )

    def count(self, table: str) -> int:
        """Number of batches or chunks kept; they are made in order."""
        return int(self._connection.execute(f'SELECT COUNT(*) FROM {table}').fetchone()[0])

    def embeddings(self, tile_count: int, size: int) -> Float32Array:
        """All embeddings (T, D)."""
        result = np.empty((tile_count, size), np.float32)
        position = 0
        for (data,) in self._connection.execute('SELECT data FROM embeddings ORDER BY batch'):
            batch = np.frombuffer(data, np.float32).reshape(-1, size)
            result[position : position + len(batch)] = batch
            position += len(batch)
        assert position == tile_count, 'every tile was embedded once'
        return result

    def ambiguity(self) -> Any:
        """All ambiguities (T,)."""
        rows = self._connection.execute('SELECT data FROM ambiguity ORDER BY chunk')
        return np.concatenate([np.frombuffer(data, np.float64) for (data,) in rows])

    def reset(self) -> None:
        """Forget everything done."""
        shutil.rmtree(self.gallery, ignore_errors=True)
        self._connection.execute('BEGIN')
        for table in ('facts', 'ledger', 'embeddings', 'ambiguity'):
            self._connection.execute(f'DELETE FROM {table}')
        self._connection.execute('COMMIT')
        self.gallery.mkdir()

    def discard(self) -> None:
        """Leave nothing behind; what tells whose folder it was goes last."""
        self._connection.close()
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _WORK:
                path.unlink()
        (self.folder / _WORK).unlink()
        self.folder.rmdir()

    def publish(self) -> None:
        """Make the gallery appear under its name, whole, then clear away.

        A gallery that it replaces is moved aside first and deleted last.
        """
        for path in self.gallery.iterdir():
            _sync(path)
            path.chmod(0o444)  # QGIS would otherwise switch the map to a write-ahead log
        _sync(self.gallery)
        if self.out.exists():
            old = self.folder / 'replaced'
            shutil.rmtree(old, ignore_errors=True)
            self.out.rename(old)
        self.gallery.rename(self.out)
        _sync(self.out.parent)
        self.discard()


@contextmanager
def open_workplace(
    out: Path, fingerprint: dict[str, Any], *, restart: bool
) -> Iterator[Workplace]:
    """Begin or resume the build of `out`.

    Parameters
    ----------
    out : Path
        The gallery to make.
    fingerprint : dict
        Everything that shapes the result; a build begun with another one is not resumed.
    restart : bool
        Throw away what an earlier run did.

    Raises
    ------
    GalleryError
        If another process builds the same gallery, or an unfinished build has another fingerprint.
    """
    folder = partial_of(out)
    folder.mkdir(exist_ok=True)
    with (folder / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise GalleryError(f'another process is building {out}; wait for it') from error
        connection = sqlite3.connect(folder / _WORK, isolation_level=None)
        try:
            for statement in _SCHEMA:
                connection.execute(statement)
            workplace = Workplace(folder, out, connection)
            _resume(workplace, fingerprint, restart=restart)
            yield workplace
        finally:
            connection.close()


def partial_of(out: Path) -> Path:
    """Where an unfinished `out` lives."""
    return out.with_name(f'{out.name}.partial')


def clear_published(out: Path, fingerprint: dict[str, Any]) -> bool:
    """Finish the clearing away after an `out` that is complete.

    Returns
    -------
    bool
        Whether `out` is what a build with this fingerprint has just made.
    """
    folder = partial_of(out)
    if not (out / MANIFEST_NAME).is_file() or not folder.is_dir() or (folder / 'gallery').exists():
        return False
    made = _fingerprint_in(folder / _WORK)
    shutil.rmtree(folder)
    # Without a fingerprint all but the folder was cleared: it was the last step of a build.
    return made is None or made == json.dumps(fingerprint, sort_keys=True)


def _fingerprint_in(path: Path) -> str | None:
    if not path.is_file():
        return None
    connection = sqlite3.connect(path)
    try:
        row = connection.execute('SELECT value FROM facts WHERE name = ?', (_FINGERPRINT,))
        found = row.fetchone()
    except sqlite3.Error:
        return None
    finally:
        connection.close()
    return None if found is None else str(found[0])


def _resume(workplace: Workplace, fingerprint: dict[str, Any], *, restart: bool) -> None:
    begun = workplace.fact(_FINGERPRINT)
    text = json.dumps(fingerprint, sort_keys=True)
    if begun is not None and begun != text and not restart:
        before = json.loads(begun)
        now = json.loads(text)
        differing = '; '.join(
            f'{name}: {before.get(name)!r} then, {now.get(name)!r} now'
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        )
        raise GalleryError(
            f'{workplace.folder} is an unfinished build with other options ({differing}); repeat '
            'them to finish it, or give --restart to throw it away'
        )
    for path in workplace.gallery.glob('*'):
        path.chmod(0o644)  # `publish` may have been interrupted after closing them to writing
    lost = begun is not None and not (workplace.gallery / MAP_NAME).exists()
    if begun is None or restart or lost:
        workplace.reset()
        workplace.remember(_FINGERPRINT, text)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
