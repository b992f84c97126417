"""Writes a run while it goes on: into the journal first, into the folder's lasting files when the run closes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from testbed.core.errors import InputError, TestbedError
from testbed.core.gate import link_ends
from testbed.core.types import C64, U8, SurfacePattern
from testbed.records import documents, files, hdf5, journal, reader, rounds, sound
from testbed.records.documents import Block, Descriptor, Event, Start, Stop
from testbed.records.recorded import RecordedRun

_BEGIN_AGAIN = "begin again: nothing was recorded"
Summariser = Callable[[RecordedRun], dict[str, Any]]
"""Makes summary.json from the records of a run that ended before its summary was made."""

BIT_KINDS = ("raw", "reconciled", "guess", "guess_reconciled")
"""raw: before the sacrifice; guess: Eve's guess of the raw bits. The final key is never recorded."""


class RunWriter:
    """Records one run from one thread. A context manager: the records are also closed after an error.

    Rows are committed in batches (`journal.Journal`); `flush` commits at once. Everything committed survives SIGKILL
    and is read by `reader.load` and turned into lasting files by `recover`.
    """

    def __init__(
        self, folder: Path, start: Start, summarise: Summariser | None = None, past: RecordedRun | None = None
    ) -> None:
        """Begin a run in `folder`, which is made if it is missing; raises InputError where it already contains a run.

        `summarise` makes summary.json if the body of the `with` block raises before `close` was called with one.
        `past`: the contents of a dead process's journal in this folder; the same record is continued.
        """
        files.private_folder(folder)
        for name in (files.RUN, files.JOURNAL) if past is None else ():
            if (folder / name).exists():
                raise InputError(f"{folder}: already contains a run ({name}); choose another folder")
        self.folder, self.start = folder, start
        self._summarise = summarise
        self._shapes: dict[str, tuple[int, ...] | None] = {}
        self._events = 0
        self._closed = False
        self._private = start.private
        self._n_subcarriers = None if start.subcarrier_hz is None else len(start.subcarrier_hz)
        with files.on_disk(folder, None if past is not None else _BEGIN_AGAIN):
            self._lock = files.Lock(folder)
            try:
                self._journal = self._begin(start) if past is None else self._go_on(past)
            except BaseException:
                if past is None:  # a folder without a run is removed
                    journal.remove(folder)
                self._lock.release(remove=past is None)
                raise

    def _begin(self, start: Start) -> journal.Journal:
        made = journal.Journal(self.folder)
        with made.together():
            made.document("start", start)
            made.document("descriptor", _descriptor("rounds", rounds.round_fields()))
        return made

    def _go_on(self, past: RecordedRun) -> journal.Journal:
        """Open the journal of a dead process; raises InputError where it is not as it was when it was read."""
        if not self._is_as_it_was(past):
            raise InputError(f"{self.folder}: another process has continued this run meanwhile; look at it again")
        self._events = len(past.events)
        self._shapes = {n: None if x.csi is None else x.csi.shape[1:] for n, x in past.links.items()}
        return journal.Journal(self.folder, fresh=False)

    def _is_as_it_was(self, past: RecordedRun) -> bool:
        if not (self.folder / files.JOURNAL).exists():
            return False
        with journal.JournalReader(self.folder) as now:
            counted = len(now.documents("event", Event)), now.rounds().rounds.size
        return counted == (len(past.events), past.rounds.rounds.size)

    def wait_for_space(self, when_full: Callable[[], bool]) -> None:
        """Have `when_full` called where the disk is full: True, and the rows are written again; False, and the call
        that recorded them raises DiskFull.
        """
        self._journal.when_full = when_full

    def set_up(self, radios: dict[str, dict[str, Any]], drivers: dict[str, dict[str, Any]]) -> None:
        """Complete the start document with the nodes' reports: settings that their radios accepted, and drivers."""
        self.start = msgspec.structs.replace(self.start, radios=radios, drivers=drivers)
        self._journal.document("start", self.start)

    def probe(
        self,
        round: int,
        node: str,
        link: str,
        time_s: float,
        snr_db: float,
        cfo_hz: float,
        rssi_dbfs: float,
        surface: str | None = None,
        csi: C64 | None = None,
    ) -> None:
        """Append one probe as the receiver `node` of `link` ('tx>rx') measured it.

        `snr_db` is the mean over subcarriers; `csi` (rx antenna, tx antenna, subcarrier) complex64 is None in private
        mode. Raises ValueError for a CSI of another shape than this link's first one or the start's frequency axis.
        """
        estimate: tuple[Any, ...]
        if csi is None:
            if link not in self._shapes:
                self._first(node, link, None)
            estimate = (None, None, None, None)
        else:
            if self._shapes.get(link) != csi.shape or csi.dtype != np.complex64:
                self._first(node, link, csi)
            estimate = (*csi.shape, csi.tobytes())
        self._journal.probe((round, node, link, time_s, snr_db, cfo_hz, rssi_dbfs, surface or "", *estimate))

    def _first(self, node: str, link: str, csi: C64 | None) -> None:
        """Check a link's first probe, and describe the link."""
        ends = link_ends(link)
        if ends is None or ends[1] != node:
            raise ValueError(f"link {link!r} measured at {node!r}: accepted 'transmitter>{node}'")
        if csi is not None:
            known = self._shapes.get(link)
            if self._private:
                raise ValueError(f"link {link}: CSI in private mode; accepted: None")
            if csi.dtype != np.complex64 or csi.ndim != 3 or csi.shape[-1] != self._n_subcarriers:
                raise ValueError(
                    f"link {link}: CSI {csi.dtype} {csi.shape}; accepted: complex64 (rx antenna, tx antenna, "
                    f"{self._n_subcarriers} subcarriers as in the start document)"
                )
            if known is not None and known != csi.shape:
                raise ValueError(f"link {link}: CSI of shape {csi.shape} after {known}")
        self._shapes[link] = None if csi is None else csi.shape
        self._describe(f"links/{link}", rounds.link_fields(link, self._shapes[link]))

    def round(self, round: int, kept: bool, reason: str | None, surface: str | None, t0_s: float) -> None:
        """Append the outcome of a round that began at the coordinator's `t0_s`: kept, or rejected with a reason."""
        if kept == bool(reason):
            raise ValueError(
                f"round {round}: kept = {kept} with reason {reason!r}; a rejected round has one, a kept one none"
            )
        self._journal.round((round, bool(kept), reason or "", surface or "", t0_s))

    def pattern(self, digest: str, levels: U8, phase_bits: int) -> None:
        """Record a surface pattern, levels (row, column), under its digest; each digest is stored once."""
        self._journal.pattern(digest, SurfacePattern(levels, phase_bits))

    def bits(self, block: int, node: str, kind: str, values: U8) -> None:
        """Record a node's bits of a block, (bit,) of 0 and 1, of a kind in BIT_KINDS. Experiment mode only."""
        if self._private:
            raise ValueError("private mode: bits are not recorded")
        if kind not in BIT_KINDS:
            raise ValueError(f"bits of kind {kind!r}; accepted: {', '.join(BIT_KINDS)}")
        values = np.asarray(values, dtype=np.uint8)
        if values.ndim != 1 or np.any(values > 1):
            raise ValueError(f"block {block}, {node}: {kind} bits must be one row of 0 and 1")
        self._journal.bits(block, node, kind, values)

    def block(self, block: Block | dict[str, Any], lasting: bool = False) -> None:
        """Record the nodes' reports of a block (`documents.Block`, or an equal dict); separate parts are merged.

        `lasting`: as in `event`.
        """
        self._journal.document("block", msgspec.convert(block, Block, from_attributes=True), lasting)

    def event(self, kind: str, data: dict[str, Any], lasting: bool = False) -> None:
        """Record an event (node_joined, node_lost, error, health …) and commit it at once.

        `lasting`: the event, and everything recorded before it, also survives a power cut.
        """
        self._journal.document("event", Event(seq=self._events, time=documents.now(), kind=kind, data=data), lasting)
        self._events += 1

    def together(self) -> AbstractContextManager[None]:
        """Return a context in which probes, rounds and events, such as those of a train, are one transaction.

        with writer.together():
            for round in train:
                writer.probe(…)
                writer.round(…)
        """
        return self._journal.together()

    def flush(self) -> None:
        """Commit everything recorded so far."""
        self._journal.flush()

    def close(self, stop: Stop, summary: dict[str, Any] | None) -> None:
        """End the run: compact the journal into the lasting files, check them, then remove the journal.

        Where this raises, the journal is still there and `recover` can finish the work.
        """
        if self._closed:
            raise ValueError(f"{self.folder}: this run is already closed")
        self._closed = True
        try:
            # The end is first written into the journal, so that it is not lost if the process is killed after this.
            if summary is not None:
                self._journal.document("summary", summary)
            self._journal.document("stop", stop)
            self._journal.close()
            _compact(self.folder)
        except BaseException:
            self._lock.release(remove=False)
            raise
        self._lock.release(remove=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        if self._closed:
            return
        if exc is None:
            stop = documents.stop("failed", "the run ended without closing its records")
        elif isinstance(exc, (KeyboardInterrupt, SystemExit)):
            stop = documents.stop("aborted", f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__)
        else:
            stop = documents.stop("failed", f"{type(exc).__name__}: {exc}")
        try:
            self.flush()
            summary = None if self._summarise is None else self._summarise(reader.load(self.folder))
            self.close(stop, summary)
        except Exception as trouble:
            # The error of the `with` block is the one that is raised; the journal keeps the records.
            if not self._closed:
                self._closed = True
                with contextlib.suppress(TestbedError):  # such as a full disk, which was already reported
                    self._journal.close()
                self._lock.release(remove=False)
            if exc is None:
                raise
            exc.add_note(f"and the records could not be closed: {trouble}; try `testbed report {self.folder}`")

    def _describe(self, stream: str, fields: dict[str, documents.Field]) -> None:
        self._journal.document("descriptor", _descriptor(stream, fields))


def _descriptor(stream: str, fields: dict[str, documents.Field]) -> Descriptor:
    return Descriptor(stream=stream, time=documents.now(), fields=fields)


def recover(folder: Path, summarise: Summariser | None = None) -> RecordedRun:
    """Turn a killed run's journal into the lasting files and return the run; a closed run is returned unchanged.

    The exit status is 'killed', unless the run had recorded its end. summary.json is that of the run or, if it has
    none, made by `summarise` from the records; without either there is none. Raises InputError where the folder
    contains no run, is damaged, or is still being written by another process.
    """
    if not (folder / files.JOURNAL).exists():
        return reader.load(folder)
    lock = files.Lock(folder)
    try:
        if (folder / files.JOURNAL).exists():  # otherwise the run was closed just now
            with sound.damaged(folder, "cannot be recovered"):
                _recover(folder, summarise)
    except BaseException:
        lock.release(remove=False)
        raise
    lock.release(remove=True)
    return reader.load(folder)


def _recover(folder: Path, summarise: Summariser | None) -> None:
    run = reader.load(folder)
    if run.stop is None or (run.summary is None and summarise is not None):
        # The dead process's journal is complete up to its last commit. This process now appends to it.
        ours = journal.Journal(folder, fresh=False)
        try:
            if run.summary is None and summarise is not None:
                ours.document("summary", summarise(run))
            if run.stop is None:
                ours.document("stop", documents.stop("killed", _last_word(run)))
        finally:
            ours.close()
    _compact(folder)


def _last_word(run: RecordedRun) -> str:
    when = run.events[-1].time if run.events else run.start.time
    last = f"last round {run.rounds.rounds[-1]}" if run.rounds.rounds.size else "no round finished"
    return f"the coordinator's process died: {last}, last event or start at {when}"


def _compact(folder: Path) -> None:
    """Write rounds.h5, summary.json and run.json from the journal, complete and synced; then remove the journal."""
    with files.on_disk(folder):
        _write_lasting(folder)
    reader.verified(folder)
    journal.remove(folder)


def _write_lasting(folder: Path) -> None:
    with files.whole(folder / files.ROUNDS) as part:
        hdf5.written(lambda: _write_rounds(folder, part))
    with journal.JournalReader(folder) as source:
        told = reader.told(source)
        rounds.check(folder / files.ROUNDS, source)
        if told.summary is not None:
            _write_json(folder / files.SUMMARY, told.summary)
        _write_json(folder / files.RUN, reader.RunFile(**told.documents(), files=files.hashes(folder)))


def _write_rounds(folder: Path, path: Path) -> None:
    with journal.JournalReader(folder) as source:
        rounds.write(path, source, reader.told(source).start)


def _write_json(path: Path, content: Any) -> None:
    with files.whole(path) as part:
        part.write_bytes(msgspec.json.format(documents.encode(content), indent=1) + b"\n")
