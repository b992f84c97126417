"""Reads a run's folder: closed, still being written, or left behind by a killed process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct, field

from testbed.core.errors import InputError
from testbed.core.gate import check_plain, printable
from testbed.core.whole import read_whole, require_regular
from testbed.records import files, rounds, sound
from testbed.records.documents import Block, Descriptor, Event, Start, Stop
from testbed.records.journal import JournalReader
from testbed.records.recorded import LinkRecord, RecordedRun

__all__ = ["LinkRecord", "RecordedRun", "load"]


class RunFile(Struct, frozen=True, kw_only=True):
    """run.json"""

    start: Start
    stop: Stop
    files: dict[str, str]
    """name → sha512."""
    descriptors: list[Descriptor] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    schema: Literal[1] = 1


@dataclass(frozen=True, slots=True)
class Told:
    """All documents of a journal."""

    start: Start
    stop: Stop | None
    descriptors: list[Descriptor]
    events: list[Event]
    blocks: list[Block]
    summary: dict[str, Any] | None

    def documents(self) -> dict[str, Any]:
        """Return the content of run.json."""
        return {k: getattr(self, k) for k in ("start", "stop", "descriptors", "events", "blocks")}


def load(folder: Path) -> RecordedRun:
    """Return the contents of a run's folder.

    If the journal exists, it is read. Raises InputError naming the file that is missing, damaged, or has another hash
    than `run.json` states.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for name in (
        files.RUN,
        files.ROUNDS,
        files.SUMMARY,
        files.LOCK,
        *(files.JOURNAL + end for end in ("", "-wal", "-shm")),
    ):
        try:
            require_regular(folder / name)
        except OSError as exc:
            raise InputError(f"{folder / name}: cannot be read: {exc.strerror}") from exc
    with sound.damaged(folder, "cannot be read"):  # HDF5, SQLite and numpy raise errors of their own kinds
        return sound.check(_load_journal(folder) if (folder / files.JOURNAL).exists() else _load_closed(folder))


def told(journal: JournalReader) -> Told:
    """Return a journal's documents; raises InputError where it has no start."""
    starts = journal.documents("start", Start)
    if not starts:
        raise InputError(f"{journal.path}: contains no start document: the run was killed before it began")
    merged: dict[int, Block] = {}
    for block in journal.documents("block", Block):
        merged[block.block] = merged[block.block].merged(block) if block.block in merged else block
    stops, summaries = journal.documents("stop", Stop), journal.documents("summary", dict)
    descriptors = {d.stream: d for d in journal.documents("descriptor", Descriptor)}
    return Told(
        start=starts[-1],
        stop=stops[-1] if stops else None,
        descriptors=list(descriptors.values()),
        events=journal.documents("event", Event),
        blocks=[merged[k] for k in sorted(merged)],
        summary=summaries[-1] if summaries else None,
    )


def _load_journal(folder: Path) -> RecordedRun:
    state: Literal["live", "killed"] = "live" if files.held(folder) else "killed"
    with JournalReader(folder) as journal:
        all_told = told(journal)
        links = {name: _joined(list(journal.probes(name, shape))) for name, (_, shape) in journal.links().items()}
        return RecordedRun(
            folder=folder,
            state=state,
            links=links,
            rounds=journal.rounds(),
            patterns=journal.patterns(),
            bits=dict(sorted(journal.bits().items())),
            summary=all_told.summary,
            **all_told.documents(),
        )


def _joined(chunks: list[LinkRecord]) -> LinkRecord:
    def column(name: str) -> Any:
        return np.concatenate([getattr(c, name) for c in chunks])

    names = ("rounds", "time_s", "snr_db", "cfo_hz", "rssi_dbfs", "surface")
    return LinkRecord(**{n: column(n) for n in names}, csi=None if chunks[0].csi is None else column("csi"))


def verified(folder: Path) -> RunFile:
    """Return a closed run's documents after checking the hashes of the files that they name."""
    run = _json(folder / files.RUN, RunFile)
    for name in (files.ROUNDS, files.SUMMARY):
        if name in run.files or name == files.ROUNDS:
            _verify(folder / name, run.files.get(name))
    return run


def _load_closed(folder: Path) -> RecordedRun:
    run = verified(folder)
    table = rounds.read(folder / files.ROUNDS)
    return RecordedRun(
        folder=folder,
        state="closed",
        start=run.start,
        descriptors=run.descriptors,
        events=run.events,
        stop=run.stop,
        links=table.links,
        rounds=table.rounds,
        patterns=table.patterns,
        bits=table.bits,
        blocks=run.blocks,
        summary=_json(folder / files.SUMMARY, dict) if files.SUMMARY in run.files else None,
        files=run.files,
    )


def _verify(path: Path, expected: str | None) -> None:
    try:
        found = files.sha512(path)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    if found != expected:
        raise InputError(f"{path}: its sha512 is not the one in {files.RUN}: damaged or changed after the run")


def _json(path: Path, type_: Any) -> Any:
    try:
        if path.stat().st_size > files.MAX_JSON:
            raise InputError(f"{path}: {path.stat().st_size} bytes, accepted up to {files.MAX_JSON}")
        text = read_whole(path, files.MAX_JSON).decode()  # the decoder takes any bytes in the names of unknown keys
        found = msgspec.json.decode(text, type=type_)
        check_plain(found, 32)
        return found
    except FileNotFoundError:
        hint = files.newest_inside(path.parent) if path.name == files.RUN else ""
        raise InputError(f"{path}: no such file; accepted: the folder of a run{hint}") from None
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise InputError(f"{path}: damaged: {printable(str(exc))}") from exc
