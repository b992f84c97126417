"""How a run is resumed after its coordinator's process died: its record gives the state of the next process. Pure.

No record is deleted. The nodes have lost their measurements: kept rounds that no block has used cannot be used any more
and are rejected as `measured`. A block that was under way is closed without a key, and both ends are ordered to delete
the key of it that they may have. Rounds that were begun, but have no recorded outcome, are rejected. A run that had
ended, but whose record was not closed, is only ended again: the nodes are told, and the record is closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from testbed.coordinator.events import BlockOver, Effect, Note, RoundOver, RunOver, RunStatus
from testbed.core.config import Experiment
from testbed.core.errors import InputError, Reject
from testbed.core.gate import is_identifier, printable
from testbed.core.types import C64, SurfacePattern
from testbed.records.documents import BLOCK_BEGUN, RUN_BEGUN, RUN_ENDING, RUN_RESUMED, Block
from testbed.records.recorded import RecordedRun


@dataclass(frozen=True, slots=True)
class Origin:
    """How a run was started; it is resumed in the same way."""

    command: str
    """The command that started it: run, coordinator …"""
    lab: str
    """Lab file (absolute), or the name of a bundled one."""
    experiment: str


@dataclass(frozen=True, slots=True)
class Past:
    """The state that a resumed run begins with."""

    origin: Origin
    run: str
    """Name of the run, under which the nodes store its keys."""
    next_round: int
    kept: int
    rejected: Counter[str]
    end_s: float
    """Latest possible end of the last round, on the reference timeline."""
    down_s: float
    """How long no process drove the run."""
    next_block: int
    key_bits: int
    to_train: bool
    guarded: int
    guard_left: int
    dropped: tuple[int, ...]
    """Blocks of which one end may have a key that the other end does not have."""
    states: dict[int, str]
    """Round → name of the surface's state."""
    patterns: dict[str, SurfacePattern]
    """Public patterns by name."""
    effects: tuple[Effect, ...]
    """Closed rounds and blocks to record before anything else."""
    with_key: tuple[int, ...] = ()
    """Blocks of which both ends have reported a key."""
    ended: RunOver | None = None
    """How the run had ended when its process died before the record was closed; None where it goes on."""
    observed: list[tuple[int, dict[str, C64]]] = field(default_factory=list)
    """(round, CSI by roles "tx>rx", empty for a rejected round), for surface policies that learn from the rounds."""


def origin_of(run: RecordedRun) -> tuple[Origin, str]:
    """Return how a run was started and its name; raises InputError where its record does not say so."""
    for event in run.events:
        if event.kind == RUN_BEGUN:
            told = {key: str(event.data.get(key)) for key in ("command", "lab", "experiment", "run")}
            name = told.pop("run")
            if not is_identifier(name):
                raise InputError(f"{run.folder}: damaged: the run's name {printable(name, 60)!r} is none")
            return Origin(**told), name
    raise InputError(f"{run.folder}: was started by an earlier version; accepted: a run that says how it was started")


def past_of(run: RecordedRun, experiment: Experiment, down_s: float, watches: bool = False) -> Past:
    """Return the state with which `run` is continued. `down_s`: how long no process drove it; `watches`: whether the
    surface's policy learns from the rounds.
    """
    origin, name = origin_of(run)
    begun = {e.data["block"]: e.data for e in run.events if e.kind == BLOCK_BEGUN}
    trained = {e.data["block"]: e.data["failure"] for e in run.events if e.kind == "training"}
    blocks = {b.block: b for b in run.blocks}
    unfinished = sorted(begun.keys() - blocks.keys() - trained.keys())
    in_blocks = {r for data in begun.values() for r in data["rounds"]} | {r for b in run.blocks for r in b.rounds}
    guarded, guard_left, pool = _unused(run, experiment, begun, trained, in_blocks)
    ended = _ended(run)
    if ended is not None:  # rounds that were left at its end stay kept, as in a run that was closed at once
        pool = []
    closed = list(_missing_rounds(run)) + [_rejected(run, r) for r in pool]
    table = run.rounds
    rejected = Counter(str(reason) for reason in table.reason[~table.kept])
    rejected.update(str(over.reason) for over in closed)
    done = [b for b in run.blocks if _key_bits(b)]
    used_until = max((r for b in done for r in b.rounds), default=-1)
    names = dict(zip(table.rounds.tolist(), table.surface.tolist(), strict=True))
    dropped = sorted(unfinished + [b.block for b in run.blocks if _may_be_one_sided(b)])
    note = Note(RUN_RESUMED, {"round": _next_round(run), "down_s": down_s, "blocks_dropped": unfinished})
    return Past(
        origin=origin, run=name, next_round=_next_round(run),
        kept=int(table.kept.sum()) - len(pool), rejected=rejected,
        end_s=float(table.t0_s.max()) + experiment.probing.interval_s if table.rounds.size else 0.0,
        down_s=down_s,
        next_block=max(begun.keys() | blocks.keys() | trained.keys(), default=-1) + 1,
        key_bits=sum(_key_bits(b) for b in done),
        to_train=experiment.training.rounds > 0 and None not in trained.values(),
        guarded=guarded, guard_left=guard_left, dropped=tuple(dropped),
        states={r: str(s) for r, s in names.items() if s and r > used_until},
        patterns=run.patterns,
        effects=(note, *closed, *(_unfinished(b, begun[b]) for b in unfinished)),
        with_key=tuple(b.block for b in done), ended=ended,
        observed=_observed(run) if watches else [],
    )  # fmt: skip


def _ended(run: RecordedRun) -> RunOver | None:
    """Return how a run had ended by its record; the last word counts, as a run may fail while it ends."""
    told = [event.data for event in run.events if event.kind == RUN_ENDING]
    if not told:
        return None
    status, detail = told[-1]["status"], printable(str(told[-1]["detail"]), 1000)
    if status not in get_args(RunStatus):
        raise ValueError(f"a run ended as {printable(str(status), 60)!r}; accepted: {', '.join(get_args(RunStatus))}")
    return RunOver(status, detail)


def _next_round(run: RecordedRun) -> int:
    found = [run.rounds.rounds, *(link.rounds for link in run.links.values())]
    return max((int(r.max()) for r in found if r.size), default=-1) + 1


def _missing_rounds(run: RecordedRun) -> Iterator[RoundOver]:
    """Yield a rejection for every round that was begun according to the record, and that has no outcome."""
    measured = [set(link.rounds.tolist()) for name, link in run.links.items() if _is_of_the_pair(run, name)]
    both = set.intersection(*measured) if len(measured) == 2 else set()
    for number in sorted(set(range(_next_round(run))) - set(run.rounds.rounds.tolist())):
        reason = Reject.MEASURED if number in both else Reject.ABORTED
        at_s = float(run.rounds.t0_s.max()) if run.rounds.rounds.size else 0.0
        yield RoundOver(number, False, reason.value, None, at_s, {})


def _is_of_the_pair(run: RecordedRun, link: str) -> bool:
    return {run.start.role(name) for name in link.split(">")} == {"alice", "bob"}


def _rejected(run: RecordedRun, number: int) -> RoundOver:
    """Return the new outcome, rejected, of a kept round that no block can use."""
    at = int(np.searchsorted(run.rounds.rounds, number))
    surface = str(run.rounds.surface[at]) or None
    return RoundOver(number, False, Reject.MEASURED.value, surface, float(run.rounds.t0_s[at]), {})


def _unused(
    run: RecordedRun, experiment: Experiment, begun: dict[int, dict[str, list[int]]],
    trained: dict[int, str | None], in_blocks: set[int],
) -> tuple[int, int, list[int]]:  # fmt: skip
    """Return the number of guard rounds that were discarded, the number still to be discarded, and the kept rounds that
    no block has used.
    """
    free = [r for r in run.rounds.rounds[run.rounds.kept].tolist() if r not in in_blocks]
    learnt = [block for block, failure in trained.items() if failure is None]
    if not learnt:
        return 0, 0, free
    after = max(begun[learnt[-1]]["rounds"]) if learnt[-1] in begun else -1
    wanted = experiment.training.guard_rounds
    guards = [r for r in free if r > after][:wanted]
    left = 0 if max(in_blocks) > after else wanted - len(guards)  # a later block: all were discarded
    return len(guards), left, [r for r in free if r not in set(guards)]


def _unfinished(block: int, begun: dict[str, object]) -> BlockOver:
    rounds: list[int] = list(begun["rounds"])  # type: ignore[call-overload]
    return BlockOver(
        block, rounds, None, None, None, None, None, "the coordinator's process died", {}, {}, {},
        training=begun.get("purpose") == "training",
    )  # fmt: skip


def _key_bits(block: Block) -> int:
    """Return the length of the key that both ends have; 0 where one of them has none."""
    ends = [k.key_bits if k.failure is None else 0 for k in block.key.values()]
    return min(ends) if len(ends) == 2 else 0


def _may_be_one_sided(block: Block) -> bool:
    """Return whether a block without a common key may have reached the stage in which an end makes a key.

    A block that was closed because the coordinator's process had died has no reports: both ends may have a key of it,
    and may not have been ordered to delete it, if that process died as well.
    """
    agreed = all(a.verified for a in block.agree.values())
    ends = [k.key_bits for k in block.key.values()]
    return agreed and not _key_bits(block) and not (len(ends) == 2 and not any(ends))


def _observed(run: RecordedRun) -> list[tuple[int, dict[str, C64]]]:
    kept = set(run.rounds.rounds[run.rounds.kept].tolist())
    by_round: dict[int, dict[str, C64]] = {r: {} for r in range(_next_round(run))}
    for name, link in run.links.items():
        roles = ">".join(run.start.role(node) for node in name.split(">"))
        for number, h in zip(link.rounds.tolist(), link.csi if link.csi is not None else (), strict=False):
            if number in kept:
                by_round[number][roles] = h
    return [(r, dict(sorted(found.items()))) for r, found in by_round.items()]
