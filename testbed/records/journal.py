"""The crash-safe journal of a live run: SQLite in WAL mode, readable at any time, also after its writer has died.

An HDF5 file that is open for writing is damaged if its process is killed. Therefore a run is first written into the
journal; `writer` turns it into lasting files when the run closes. A committed row survives the death of the process; a
power cut may cost the last commits, but not the file.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from testbed.core.errors import DiskFull, InputError
from testbed.core.gate import check_plain, printable
from testbed.core.types import U8, SurfacePattern
from testbed.records import files
from testbed.records.documents import encode
from testbed.records.recorded import BitsKey, LinkRecord, RoundTable

_SCHEMA = """
CREATE TABLE documents (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE probes (id INTEGER PRIMARY KEY, round INTEGER NOT NULL, node TEXT NOT NULL, link TEXT NOT NULL,
    time_s REAL, snr_db REAL, cfo_hz REAL, rssi_dbfs REAL, surface TEXT NOT NULL,
    n_rx INTEGER, n_tx INTEGER, n_subcarrier INTEGER, csi BLOB);
CREATE TABLE rounds (id INTEGER PRIMARY KEY, round INTEGER NOT NULL, kept INTEGER NOT NULL, reason TEXT NOT NULL,
    surface TEXT NOT NULL, t0_s REAL);
CREATE TABLE patterns (id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL, n_rows INTEGER NOT NULL,
    n_columns INTEGER NOT NULL, phase_bits INTEGER NOT NULL, levels BLOB NOT NULL);
CREATE TABLE bits (id INTEGER PRIMARY KEY, block INTEGER NOT NULL, node TEXT NOT NULL, kind TEXT NOT NULL,
    bit_values BLOB NOT NULL);
PRAGMA user_version = 1;
"""
_PROBES = "INSERT INTO probes VALUES (NULL,?,?,?,?,?,?,?,?,?,?,?,?)"
_ROUNDS = "INSERT INTO rounds VALUES (NULL,?,?,?,?,?)"
_DOCUMENTS = "INSERT INTO documents VALUES (NULL,?,?)"
_PATTERNS = "INSERT OR IGNORE INTO patterns VALUES (NULL,?,?,?,?,?)"
_BITS = "INSERT INTO bits VALUES (NULL,?,?,?,?)"


class Journal:
    """Writes the journal of one run from one thread.

    Rows are collected and committed `batch_rows` at a time, or when `batch_s` have passed since the last commit and
    another row arrives; `flush` commits at once. If the process is killed, uncommitted rows are lost.
    """

    def __init__(self, folder: Path, *, fresh: bool = True, batch_rows: int = 50, batch_s: float = 0.5) -> None:
        """Create the journal of a folder; not `fresh`: append to the one that a dead process left."""
        self._folder = folder
        if fresh:  # SQLite's log gets the same mode
            files.make_private(folder / files.JOURNAL)
        self._db = sqlite3.connect(folder / files.JOURNAL, isolation_level=None)
        self._db.execute("PRAGMA synchronous = NORMAL")
        # The log never shrinks. With checkpoints every 1000 pages it takes 4 MB, and a checkpoint 40 ms, which may be
        # in the middle of a round; with 10000 pages, it was 41 MB and 170 ms.
        self._db.execute("PRAGMA wal_autocheckpoint = 1000")
        if fresh:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        self._batch_rows, self._batch_s = batch_rows, batch_s
        self._pending: dict[str, list[tuple[Any, ...]]] = {}
        self._count = 0
        self._due_s = time.monotonic() + batch_s
        self._together = 0
        self.when_full: Callable[[], bool] = lambda: False
        """Called where rows do not fit on the disk; they are written again where it returns True."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Commit everything that is appended in the `with` block, and all earlier uncommitted rows, in one transaction.

        It is used for a train of rounds: there is one commit, and after a kill the journal contains the whole train or
        nothing of it. With nested `with` blocks, the outermost one commits.
        """
        self._together += 1
        try:
            yield
        finally:
            self._together -= 1
        if not self._together:
            self.flush()

    def _add(self, statement: str, row: tuple[Any, ...]) -> None:
        rows = self._pending.get(statement)
        if rows is None:
            rows = self._pending[statement] = []
        rows.append(row)
        self._count += 1
        if not self._together and (self._count >= self._batch_rows or time.monotonic() >= self._due_s):
            self.flush()

    def probe(self, row: tuple[Any, ...]) -> None:
        """Append (round, node, link, time_s, snr_db, cfo_hz, rssi_dbfs, surface, n_rx, n_tx, n_subcarrier, csi)."""
        self._add(_PROBES, row)

    def round(self, row: tuple[Any, ...]) -> None:
        """Append (round, kept, reason, surface, t0_s)."""
        self._add(_ROUNDS, row)

    def pattern(self, digest: str, pattern: SurfacePattern) -> None:
        levels = np.ascontiguousarray(pattern.levels, dtype=np.uint8)
        self._add(_PATTERNS, (digest, *levels.shape, pattern.phase_bits, levels.tobytes()))

    def bits(self, block: int, node: str, kind: str, values: U8) -> None:
        self._add(_BITS, (block, node, kind, values.tobytes()))

    def document(self, kind: str, document: Any, lasting: bool = False) -> None:
        """Append a document; committed at once, because documents are few and report what went wrong.

        `lasting`: it is on the disk when this returns, with all that was appended before, and survives a power cut.
        """
        self._add(_DOCUMENTS, (kind, encode(document)))
        if lasting:
            self._db.execute("PRAGMA synchronous = FULL")
            try:
                self.flush()
            finally:
                self._db.execute("PRAGMA synchronous = NORMAL")
        elif not self._together:
            self.flush()

    def flush(self) -> None:
        """Commit everything appended so far. If the disk is full and stays so, this raises DiskFull, and the next call
        tries again.
        """
        while self._count:
            try:
                with files.on_disk(self._folder):
                    self._commit()
            except DiskFull:
                if not self.when_full():
                    raise
                continue
            self._pending.clear()
            self._count = 0
        self._due_s = time.monotonic() + self._batch_s

    def _commit(self) -> None:
        self._db.execute("BEGIN")
        try:
            for statement, rows in self._pending.items():
                self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Commit and close; the file is kept. It is also closed if the last rows do not fit on the disk."""
        try:
            self.flush()
        finally:
            self._db.close()


def remove(folder: Path) -> None:
    """Delete a journal that is no longer needed. The database is deleted first, because a folder that contains only the
    database's log does not count as a run."""
    for suffix in ("", "-wal", "-shm"):
        (folder / (files.JOURNAL + suffix)).unlink(missing_ok=True)


class JournalReader:
    """Reads the journal of a live or dead run, as it was when the reader was made. A context manager."""

    def __init__(self, folder: Path) -> None:
        """Open; raises InputError naming the file where it is missing or not a journal."""
        self.path = folder / files.JOURNAL
        if not self.path.exists():
            raise InputError(f"{self.path}: no such journal")
        try:
            # Mode rw is needed to recover the log of a killed writer; query_only prevents all other writing.
            self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)
            self._db.execute("PRAGMA query_only = 1")
            self._db.execute("BEGIN")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            self._db.execute("SELECT count(*) FROM documents").fetchone()
        except sqlite3.Error as exc:
            if files.is_of_full_disk(exc, folder):  # reading needs a little space as well
                raise files.disk_full(folder) from exc
            raise InputError(f"{self.path}: not a readable journal: {printable(str(exc))}") from exc
        if version != 1:
            raise InputError(f"{self.path}: journal version {version}, accepted: 1")

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _rows(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._db.execute(query, values)
        except sqlite3.ProgrammingError:
            return  # the caller closed the reader before the last row
        except sqlite3.Error as exc:
            raise InputError(f"{self.path}: damaged: {printable(str(exc))}") from exc

    def documents(self, kind: str, type_: type[Any]) -> list[Any]:
        """Return all documents of a kind, in order."""
        try:
            rows = self._rows("SELECT body FROM documents WHERE kind = ? ORDER BY id", kind)
            found = [msgspec.json.decode(body, type=type_) for (body,) in rows]
            for document in found:
                check_plain(document, 32)
            return found
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
            raise InputError(f"{self.path}: {kind} document: {printable(str(exc))}") from exc

    def links(self) -> dict[str, tuple[int, tuple[int, int, int] | None]]:
        """Return link → (number of probes, (rx antenna, tx antenna, subcarrier) or None where no probe has CSI)."""
        query = (
            "SELECT link, count(*), max(n_rx), max(n_tx), max(n_subcarrier), max(length(csi)) FROM probes "
            "GROUP BY link ORDER BY min(id)"
        )
        found: dict[str, tuple[int, tuple[int, int, int] | None]] = {}
        for name, n, *shape, n_bytes in self._rows(query):
            if shape[0] is not None and (
                any(type(k) is not int or k < 1 for k in shape) or 8 * math.prod(shape) != n_bytes
            ):
                raise InputError(f"{self.path}: damaged: CSI of {n_bytes} bytes for shape {str(shape)[:60]}")
            found[name] = n, None if shape[0] is None else (shape[0], shape[1], shape[2])
        return found

    def probes(self, link: str, shape: tuple[int, int, int] | None, chunk: int = 4096) -> Iterator[LinkRecord]:
        """Yield the probes of a link by ascending round, `chunk` at a time so that a long run fits in memory."""
        query = "SELECT round,time_s,snr_db,cfo_hz,rssi_dbfs,surface,csi FROM probes WHERE link = ? ORDER BY round, id"
        yield from (self._record(rows, shape) for rows in _chunks(self._rows(query, link), chunk))

    def _record(self, rows: list[tuple[Any, ...]], shape: tuple[int, int, int] | None) -> LinkRecord:
        columns = list(zip(*rows, strict=True))
        csi = None
        if shape is not None:
            csi = np.full((len(rows), *shape), complex(np.nan, np.nan), dtype=np.complex64)
            for i, blob in enumerate(columns[6]):
                if blob is not None:
                    csi[i] = np.frombuffer(blob, dtype="<c8").reshape(shape)
        return LinkRecord(
            rounds=np.array(columns[0], dtype=np.int64),
            time_s=_floats(columns[1]),
            snr_db=_floats(columns[2]),
            cfo_hz=_floats(columns[3]),
            rssi_dbfs=_floats(columns[4]),
            surface=np.array(columns[5]),
            csi=csi,
        )

    def rounds(self) -> RoundTable:
        # If a round was recorded twice, the later row counts.
        query = (
            "SELECT round,kept,reason,surface,t0_s FROM rounds WHERE id IN (SELECT max(id) FROM rounds GROUP BY round)"
        )
        rows = list(self._rows(query + " ORDER BY round"))
        columns = list(zip(*rows, strict=True)) if rows else [()] * 5
        return RoundTable(
            np.array(columns[0], dtype=np.int64),
            np.array(columns[1], dtype=bool),
            np.array(columns[2], dtype=np.str_),
            np.array(columns[3], dtype=np.str_),
            _floats(columns[4]),
        )

    def patterns(self) -> dict[str, SurfacePattern]:
        rows = self._rows("SELECT digest, n_rows, n_columns, phase_bits, levels FROM patterns ORDER BY id")
        return {d: SurfacePattern(np.frombuffer(v, np.uint8).reshape(r, c), bits) for d, r, c, bits, v in rows}

    def bits(self) -> dict[BitsKey, U8]:
        rows = self._rows("SELECT block, node, kind, bit_values FROM bits ORDER BY id")
        return {(block, node, kind): np.frombuffer(values, np.uint8) for block, node, kind, values in rows}


@dataclass(frozen=True, slots=True)
class Grown:
    """The rows that were added to a journal since the last read."""

    probes: list[tuple[Any, ...]]
    """(round, link, snr_db, cfo_hz, surface, n_rx, n_tx, n_subcarrier, csi as bytes or None)."""
    rounds: list[tuple[Any, ...]]
    """(round, kept, reason, surface, t0_s)."""
    documents: list[tuple[Any, ...]]
    """(kind, JSON)."""


class JournalTail:
    """Follows a live journal: each call returns what was committed since the one before.

    Every call opens the file, reads, and closes it. The file is closed between calls, so that the writer can clear its
    log or remove the journal.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = {"probes": 0, "rounds": 0, "documents": 0}

    def read(self, most: int = 20_000) -> Grown | None:
        """Return the new rows, at most `most` of each table; None where there is no journal to read."""
        try:
            with JournalReader(self._folder) as journal:
                return Grown(
                    probes=self._new(
                        journal, "probes", "round,link,snr_db,cfo_hz,surface,n_rx,n_tx,n_subcarrier,csi", most
                    ),
                    rounds=self._new(journal, "rounds", "round,kept,reason,surface,t0_s", most),
                    documents=self._new(journal, "documents", "kind,body", most),
                )
        except InputError:  # the journal was not made yet, or was just removed because the run has closed
            return None

    def pattern(self, digest: str) -> SurfacePattern | None:
        """Return one surface pattern; None where the journal does not have it."""
        query = "SELECT n_rows, n_columns, phase_bits, levels FROM patterns WHERE digest = ?"
        try:
            with JournalReader(self._folder) as journal:
                for n_rows, n_columns, bits, levels in journal._rows(query, digest):
                    return SurfacePattern(np.frombuffer(levels, np.uint8).reshape(n_rows, n_columns), bits)
        except InputError:
            pass
        return None

    def _new(self, journal: JournalReader, table: str, columns: str, most: int) -> list[tuple[Any, ...]]:
        query = f"SELECT id,{columns} FROM {table} WHERE id > ? ORDER BY id LIMIT ?"
        rows = list(journal._rows(query, self._last[table], most))
        if rows:
            self._last[table] = rows[-1][0]
        return [row[1:] for row in rows]


def _floats(values: tuple[float | None, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    # SQLite keeps NaN as NULL
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)


def _chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    chunk: list[tuple[Any, ...]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
