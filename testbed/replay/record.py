"""Writes a replay as the folder of a run, so that whatever reads runs reads it: report, compare, audit, `testbed.open`.

The start document says what was replayed (`documents.Replayed`). The measurements are those of the source; SNR, carrier
offsets and device times are recorded only if the source is a run, because other sources have none. No key is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from testbed.assess.summary import BlockFacts
from testbed.assess.training import Attempt
from testbed.core import folders
from testbed.core.config import to_dict
from testbed.core.errors import DiskFull, InputError, Reject
from testbed.core.gate import identifier
from testbed.core.types import I64, U8, CsiSeries
from testbed.records import documents, files
from testbed.records.documents import Block, Replayed, Start
from testbed.records.recorded import RecordedRun
from testbed.records.writer import RunWriter
from testbed.replay.sources import Cut, Recording

MOST_EVES = 60
"""Most Eves whose measurements are recorded: the node names of a run are limited."""
_BATCH = 200
"""Rounds in one transaction of the journal."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """One block of a replay."""

    rounds: I64
    """(probe,) round numbers from which it was made."""
    facts: BlockFacts
    guesses: Mapping[str, U8]
    """Label of an Eve → her guess of Alice's raw bits."""
    strongest: str | None
    """Label of the Eve who guessed best."""


_BYTES_A_VALUE, _BYTES_A_ROUND = 16, 2000
"""Bytes on the disk per value of CSI and per round: in the journal and, at the same time, in the lasting files."""


@contextmanager
def reserved(out: Path) -> Iterator[None]:
    """Make the folder `out` before the replay; it is removed where nothing is written into it.

    Raises InputError where it cannot be made, or contains something.
    """
    with folders.reserved(out, 0o700):
        if any(out.iterdir()):
            raise InputError(f"{out}: contains files already; accepted: a new folder, or an empty one")
        yield


def check_space(out: Path, cut: Cut) -> None:
    """Raise InputError where the record of a cut would not fit on the disk of `out`."""
    if (free := files.free_bytes(out)) < (least := _needed_bytes(cut)):
        raise InputError(
            f"{out}: {free >> 20} MB free, the record of this replay needs about {least >> 20} MB there; accepted: "
            "a folder on a disk with more space"
        )


def _needed_bytes(cut: Cut) -> int:
    ends = [cut.alice, cut.bob, *(s for eve in cut.eves.values() for s in (eve.from_alice, eve.from_bob))]
    values = sum(series.h.size for series in ends if series is not None)
    return files.RESERVE_BYTES + _BYTES_A_VALUE * values + _BYTES_A_ROUND * len(cut.alice.h)


@contextmanager
def _on_disk(out: Path, cut: Cut) -> Iterator[None]:
    """Turn the error of a full disk into one whose remedy is a new replay, not `testbed report`."""
    try:
        with files.on_disk(out):
            yield
    except DiskFull as exc:
        raise DiskFull(
            f"{out}: disk full: the record of this replay is incomplete; delete this folder, free space until there "
            f"are {_needed_bytes(cut) >> 20} MB, and replay again"
        ) from exc


def write(
    out: Path, source: Path, map_file: Path | None, recording: Recording, cut: Cut, blocks: Sequence[Distilled],
    attempts: Sequence[Attempt], summary: dict[str, Any],
) -> None:  # fmt: skip
    """Write the run's folder `out`: run.json, rounds.h5 and summary.json; raises InputError where it holds a run,
    DiskFull where there is no space for them."""
    run = recording.run
    eves = _eve_nodes(cut, blocks) if run is None else {label: run.node("eve") or "eve" for label in cut.eves}
    names = {role: (None if run is None else run.node(role)) or role for role in ("alice", "bob")}
    start = _start(recording, cut, eves, Replayed(
        source=recording.name, path=str(source.absolute()), cut=cut.name, description=recording.description,
        sha512=files.sha512(source) if source.is_file() else None, run=None if run is None else run.start.uid,
        map=None if map_file is None else map_file.read_text(encoding="utf-8", errors="replace"),
    ))  # fmt: skip
    with _on_disk(out, cut), RunWriter(out, start) as writer:
        writer.event("replayed", {"detail": recording.description, "source": str(source), "cut": cut.name})
        for caveat in recording.caveats:
            writer.event("caveat", {"detail": caveat})
        for i, attempt in enumerate(attempts):
            reports = {role: to_dict(r) for role, r in (("alice", attempt.alice), ("bob", attempt.bob)) if r}
            told = {"block": i, "rounds": attempt.rounds, "reports": reports, "failure": attempt.failure}
            writer.event("training", told)
        if run is None:
            _write_cut(writer, cut, names, eves)
        else:
            _write_run(writer, run)
        for block in blocks:
            _write_block(writer, block, names, eves)
        writer.close(documents.stop("ok"), summary)


def _start(recording: Recording, cut: Cut, eves: Mapping[str, str], replayed: Replayed) -> Start:
    """Return the start document: that of a replayed run with the chain as used, or one with what the source states."""
    run = recording.run
    used = {"chain": to_dict(cut.chain), "accounting": to_dict(cut.accounting), "training": to_dict(cut.training)}
    if run is None:
        experiment = {
            "schema": 1, "title": recording.description, "mode": "experiment", "rounds": len(cut.alice.h),
            "scene": {"alice": {}, "bob": {}},
        }  # fmt: skip
        roles = {"alice": "alice", "bob": "bob"} | dict.fromkeys(eves.values(), "eve")
        lab: dict[str, Any] = {"name": recording.name, "node": {name: {"role": role} for name, role in roles.items()}}
    else:
        experiment, lab = run.start.experiment, run.start.lab
    made = documents.start(
        experiment | used | {"seed": cut.seed}, lab, seeds={"replay": cut.seed}, subcarrier_hz=cut.alice.subcarrier_hz,
        radios=run.start.radios if run else None, drivers=run.start.drivers if run else None,
    )  # fmt: skip
    return msgspec.structs.replace(made, replay=replayed)


def _eve_nodes(cut: Cut, blocks: Sequence[Distilled]) -> dict[str, str]:
    """Return label → node name of every measured Eve; `eve` is the one who guessed best in most blocks."""
    best = Counter(block.strongest for block in blocks if block.strongest is not None)
    labels = sorted((label for label, eve in cut.eves.items() if eve.measured), key=lambda label: -best[label])
    names = ["eve"]
    for label in labels[1:]:
        name = identifier(f"eve_{label}")
        names.append(identifier(f"eve_{len(names)}_{label}") if name in names else name)
    return dict(list(zip(labels, names, strict=False))[:MOST_EVES])


def _write_cut(writer: RunWriter, cut: Cut, names: Mapping[str, str], eves: Mapping[str, str]) -> None:
    """Write the links of a cut, and which probes both ends have."""
    alice, bob = names["alice"], names["bob"]
    links: dict[tuple[str, str], CsiSeries | None] = {(bob, alice): cut.alice, (alice, bob): cut.bob}
    for label, node in eves.items():
        links |= {(alice, node): cut.eves[label].from_alice, (bob, node): cut.eves[label].from_bob}
    there = {ends: np.asarray(np.isfinite(s.h).any(axis=(1, 2, 3))) for ends, s in links.items() if s is not None}
    kept = np.logical_and(there[bob, alice], there[alice, bob])
    for part in _parts(len(kept)):
        with writer.together():
            for i in part:
                number = int(cut.alice.rounds[i])
                for ends, series in links.items():
                    if series is not None and there[ends][i]:
                        _probe(writer, number, ends, series, i)
                writer.round(number, bool(kept[i]), None if kept[i] else "missing", None, _time_s(cut, i))


def _probe(writer: RunWriter, number: int, ends: tuple[str, str], series: CsiSeries, i: int) -> None:
    nan = float("nan")
    csi = np.ascontiguousarray(series.h[i], np.complex64)
    writer.probe(number, ends[1], f"{ends[0]}>{ends[1]}", nan, nan, nan, nan, None, csi)


def _time_s(cut: Cut, i: int) -> float:
    if cut.time_s is not None:
        return float(cut.time_s[i])
    return float("nan") if cut.interval_s is None else float(cut.alice.rounds[i] * cut.interval_s)


def _write_run(writer: RunWriter, run: RecordedRun) -> None:
    """Write the measurements of a run as they were recorded."""
    for digest, pattern in run.patterns.items():
        writer.pattern(digest, pattern.levels, pattern.phase_bits)
    for name, link in run.links.items():
        columns = (link.rounds, link.time_s, link.snr_db, link.cfo_hz, link.rssi_dbfs)
        for part in _parts(link.rounds.size):
            with writer.together():
                for i in part:
                    number, time_s, snr_db, cfo_hz, rssi_dbfs = (c[i].item() for c in columns)
                    csi = None if link.csi is None else link.csi[i]
                    surface = str(link.surface[i]) or None
                    receiver = name.split(">")[1]
                    writer.probe(number, receiver, name, time_s, snr_db, cfo_hz, rssi_dbfs, surface, csi)
    table = run.rounds
    kept = table.kept | (table.reason == Reject.MEASURED.value)  # a replay uses these rounds, too
    for part in _parts(table.rounds.size):
        with writer.together():
            for i in part:
                reason = None if kept[i] else str(table.reason[i]) or "unknown"
                surface = str(table.surface[i]) or None
                writer.round(int(table.rounds[i]), bool(kept[i]), reason, surface, float(table.t0_s[i]))


def _parts(n: int) -> Iterator[range]:
    return (range(i, min(i + _BATCH, n)) for i in range(0, n, _BATCH))


def _write_block(writer: RunWriter, block: Distilled, names: Mapping[str, str], eves: Mapping[str, str]) -> None:
    facts = block.facts
    agree = {names[role]: r for role, r in (("alice", facts.alice), ("bob", facts.bob)) if r is not None}
    key = {names[role]: r for role, r in (("alice", facts.alice_key), ("bob", facts.bob_key)) if r is not None}
    number = next(r.block for r in agree.values())
    writer.block(Block(block=number, rounds=block.rounds.tolist(), agree=agree, eve=facts.eve, key=key))
    if facts.raw is not None:
        writer.bits(number, names["alice"], "raw", facts.raw.alice)
        writer.bits(number, names["bob"], "raw", facts.raw.bob)
        for label, guess in block.guesses.items():
            if label in eves and guess.size == facts.raw.alice.size:
                writer.bits(number, eves[label], "guess", guess)
    digests = {"alice": facts.alice_digest, "bob": facts.bob_digest, "eve": facts.eve_digest}
    writer.event("key_digests", {"block": number, "by_role": {k: v for k, v in digests.items() if v is not None}})
