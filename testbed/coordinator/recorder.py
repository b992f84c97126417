"""Writes the state machine's instructions into the run's folder: rounds, blocks, notes."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import numpy as np

from testbed.coordinator import events as e
from testbed.core.config import Lab, to_dict
from testbed.net import messages as m
from testbed.records import documents
from testbed.records.documents import BLOCK_BEGUN, RUN_ENDING
from testbed.records.writer import RunWriter

log = logging.getLogger("testbed.coordinator")
MOST_NOTES = 2000
"""Largest number of recorded notes about one node."""
_LASTING = (BLOCK_BEGUN, RUN_ENDING)
"""Notes that a run depends on that is resumed."""


def is_awaited(x: e.Instruction) -> bool:
    """Return whether the orders after an instruction may be sent only when it is on the disk: the rounds of a block
    must not be used again, both ends keep a key that the record has, and no block follows the end of a run."""
    return isinstance(x, e.BlockOver) or (isinstance(x, e.Note) and x.kind in _LASTING)


class Recorder:
    """Writes one run's records. `private`: levels, SNR and arrival times depend on the channel, as the key does, and
    are never recorded, even if a node reports them."""

    def __init__(self, writer: RunWriter, lab: Lab, run_name: str, private: bool) -> None:
        self._writer, self._lab, self._run_name, self._private = writer, lab, run_name, private
        self._links_rejected: dict[str, Counter[str]] = {}
        self._offsets_rejected: dict[str, list[tuple[int, float]]] = {}
        """Link → (round, carrier offset in Hz) of frames that were rejected because of it."""
        self._drivers: dict[str, dict[str, Any]] = {}
        self._accepted: dict[str, dict[str, Any]] = {}
        self._notes: Counter[str] = Counter()
        """Number of notes about each node."""

    def together(self) -> AbstractContextManager[None]:
        """Return a context in which all records are written as one transaction."""
        return self._writer.together()

    def note(self, note: e.Note) -> bool:
        """Record an event. Return False once a node has so many notes that further ones are only counted: a node that
        restarts or fails again and again must not fill the disk.
        """
        node = str(note.detail.get("node", ""))
        self._notes[node] += 1
        if node and self._notes[node] > MOST_NOTES:
            return False
        self._writer.event(note.kind, note.detail, lasting=note.kind in _LASTING)
        match note.kind:
            case "joined" | "rejoined":
                self._drivers[note.detail["node"]] = note.detail["identity"]
            case "configured":
                self._accepted[note.detail["node"]] = note.detail["accepted"]
            case "ready":
                self._writer.set_up(radios=self._accepted, drivers=self._drivers)
        return True

    def pattern(self, new: e.NewPattern) -> None:
        self._writer.pattern(new.name, new.pattern.levels, new.pattern.phase_bits)

    def round(self, r: e.RoundOver) -> None:
        for node, links in r.links.items():
            for link in links:
                self._link(r, node, link)
        self._writer.round(r.round, r.kept, r.reason, r.surface, r.start_s)

    def _link(self, r: e.RoundOver, node: str, link: m.LinkResult) -> None:
        name = f"{self._lab.by_role(link.tx) or link.tx}>{node}"
        if link.reason is not None:
            self._reject_link(node, link.reason)
            if link.cfo_hz and not self._private:
                self._offsets_rejected.setdefault(name, []).append((r.round, link.cfo_hz))
            return
        if self._private:
            return
        try:
            csi = None if link.csi is None else np.frombuffer(link.csi, dtype=np.complex64).reshape(link.shape)
            self._writer.probe(
                r.round, node, name, link.device_time_s, link.snr_db, link.cfo_hz, link.rssi_dbfs, r.surface, csi
            )
        except ValueError as exc:
            self._reject_link(node, "malformed")
            log.warning("%s: CSI of round %d is not recorded: %s", node, r.round, exc)

    def _reject_link(self, node: str, reason: str) -> None:
        self._links_rejected.setdefault(node, Counter())[reason] += 1

    def block(self, b: e.BlockOver) -> None:
        if b.training:
            self._training(b)
            return
        names = {role: self._lab.by_role(role) or role for role in ("alice", "bob", "eve")}
        agree = {names[role]: r for role, r in (("alice", b.alice), ("bob", b.bob)) if r is not None}
        key = {names[role]: r for role, r in (("alice", b.key_alice), ("bob", b.key_bob)) if r is not None}
        # What Eve's node reports to Alice is large, and her CSI is recorded anyway.
        eve = None if b.eve is None else msgspec.structs.replace(b.eve, heard=())
        whole = documents.Block(block=b.block, rounds=list(b.rounds), agree=agree, eve=eve, key=key)
        with self._writer.together():
            self._results(b, names)
            self._writer.block(whole, lasting=True)

    def _results(self, b: e.BlockOver, names: dict[str, str]) -> None:
        """Record everything about a block besides its reports."""
        for role, raw in b.raw.items():
            self._bits(b.block, names[role], "guess" if role == "eve" else "raw", raw)
        if b.digests:
            self._writer.event("key_digests", {"block": b.block, "by_role": b.digests})
        if b.p_values:
            self._writer.event("randomness", {"block": b.block, "p_values": b.p_values})
        if b.failure:
            self._writer.event("block_failed", {"block": b.block, "why": b.failure})
            log.info("block %d: %s", b.block, b.failure)

    def _bits(self, block: int, node: str, kind: str, raw: bytes) -> None:
        bits = np.frombuffer(raw, dtype=np.uint8)
        if bits.size and bits.max() > 1:
            log.warning("%s: bits of block %d are not 0 and 1: not recorded", node, block)
            return
        self._writer.bits(block, node, kind, bits)

    def _training(self, b: e.BlockOver) -> None:
        reports = {role: to_dict(r) for role, r in b.trained.items()}
        training = {"block": b.block, "rounds": len(b.rounds), "reports": reports, "failure": b.failure}
        training["file"] = f"models/{self._run_name}.npz"
        self._writer.event("training", training)
        log.info("training on %d rounds: %s", len(b.rounds), b.failure or "done")

    def totals(self, guarded: int, messages_refused: dict[str, int], times: documents.RoundTimes | None = None) -> None:
        """Record the totals of the whole run; `times`: those of its rounds, where any were measured."""
        if times is not None:
            self._writer.event(documents.ROUND_TIMES, to_dict(times))
        for node, counts in self._links_rejected.items():
            log.info("%s could not use: %s", node, dict(counts))
        self._writer.event("guard_rounds", {"rounds": guarded})
        self._writer.event("links_rejected", {n: dict(c) for n, c in self._links_rejected.items()})
        self._writer.event("messages_refused", messages_refused)
        left_out = {node: n - MOST_NOTES for node, n in self._notes.items() if node and n > MOST_NOTES}
        if left_out:
            self._writer.event("notes_left_out", left_out)
        if self._offsets_rejected:
            columns = {link: list(zip(*rows, strict=True)) for link, rows in self._offsets_rejected.items()}
            offsets = {link: {"rounds": list(c[0]), "cfo_hz": list(c[1])} for link, c in columns.items()}
            self._writer.event("offsets_rejected", offsets)
