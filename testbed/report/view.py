"""The data that all sections of the report use: the run, its summary, and its links prepared for drawing."""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.records.documents import Block
from testbed.records.recorded import RecordedRun
from testbed.report.pictures import LinkPicture, Pictures
from testbed.report.pieces import missing


class View:
    """One run, in the form that the sections use."""

    def __init__(self, run: RecordedRun, baseline: RecordedRun | None = None, keeps: bool = False) -> None:
        """`keeps`: figures are also kept for a paper's files."""
        self.run = run
        self.baseline = baseline
        """Another run with which this one is compared."""
        self.summary: dict[str, Any] = run.summary or {}
        self.trains = bool(run.start.experiment.get("training", {}).get("rounds"))
        """Whether the enhancer was trained first."""
        self.draw = Pictures(run.rounds.rounds, run.rounds.t0_s, keeps)
        self.links = _link_pictures(run)
        self.alice, self.bob, self.eve = (run.node(role) for role in ("alice", "bob", "eve"))


def no_summary(v: View) -> str:
    """Return the reason why there is no summary."""
    if v.run.state == "live":
        return "No figures yet: the run is still being written."
    if v.run.state == "killed":
        return "No figures: the run was killed before it wrote its summary."
    return "No figures: the run ended without a summary."


def no_blocks(v: View) -> str:
    """Return the reason why no block was distilled."""
    asked = v.run.start.experiment.get("accounting", {}).get("block_rounds")
    kept = int(np.count_nonzero(v.run.rounds.kept))
    need = f": {kept} rounds were kept, and a block takes {asked}" if asked and kept < asked else ""
    return f"No block was distilled{need}."


def no_csi(v: View) -> str | None:
    """Return the reason why there is no channel estimate to show, None if there is one."""
    if any(link.magnitude_db is not None for link in v.links.values()):
        return None
    if v.run.start.private:
        return "Not recorded: in private mode nodes report metrics only, never the channel."
    if not v.links:
        return "No node received a probe."
    return "No channel estimate was recorded."


def no_eve(v: View) -> str:
    """Return a paragraph with the reason why Eve's data are missing, '' if they are not."""
    if any(link.role == "eve" for link in v.links.values()):
        return ""
    if v.eve is None:
        return missing("Eve was not measured: the lab has no node with that role.")
    return missing("Eve was not measured: her node reported no probe.")


def failure(block: Block) -> str:
    """Return why a block gave no key, '' if it gave one."""
    told = [a.failure for a in block.agree.values()] + [k.failure for k in block.key.values()]
    return "; ".join(dict.fromkeys(why for why in told if why))


def _link_pictures(run: RecordedRun) -> dict[str, LinkPicture]:
    order = {"bob": 0, "alice": 1, "eve": 2}
    out: dict[str, LinkPicture] = {}
    receivers: set[str] = set()

    def place(name: str) -> tuple[int, str]:
        return order.get(run.start.role(name.split(">")[1]), 3), name

    for name in sorted(run.links, key=place):
        record = run.links[name]
        if not record.rounds.size:
            continue
        transmitter, receiver = name.split(">")
        magnitude = None
        if record.csi is not None and np.isfinite(record.csi[:, 0, 0]).any():
            h = np.abs(record.csi[:, 0, 0]).astype(np.float64)
            magnitude = 20 * np.log10(np.maximum(h, np.finfo(np.float32).tiny))
            magnitude -= np.nanmedian(magnitude)
        out[name] = LinkPicture(
            title=f"{called(run, receiver)} hears {called(run, transmitter)}",
            role=run.start.role(receiver),
            rounds=record.rounds,
            magnitude_db=magnitude,
            snr_db=record.snr_db,
            cfo_hz=record.cfo_hz,
            dashed=receiver in receivers,
        )
        receivers.add(receiver)
    return out


def called(run: RecordedRun, node: str) -> str:
    """Return the name of a node's role, with its own name in brackets if that differs."""
    role = run.start.role(node)
    return role.capitalize() if role == node else f"{role.capitalize()} ({node})"
