"""A recorded run of this testbed: closed, still being written, or left behind by a process that was killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from testbed.config import convert
from testbed.core.config import Experiment, Floors
from testbed.core.errors import InputError, Reject
from testbed.core.types import I64
from testbed.records import files, reader
from testbed.records.recorded import RecordedRun
from testbed.replay.pairing import at_rounds
from testbed.replay.sources import Cut, EveLinks, Recording, Surface

ACCEPTS = f"folder of a run recorded in experiment mode ({files.RUN} or {files.JOURNAL})"


def matches(path: Path) -> bool:
    return (path / files.RUN).is_file() or (path / files.JOURNAL).is_file()


def load(path: Path) -> Recording:
    """Read the CSI of every round that both ends measured, also of rounds from which no key was made.

    The chain and its accounting are those of the run's experiment; the least length of a key is given by the floors of
    its nodes.
    """
    run = reader.load(path)
    if run.start.private:
        raise InputError(f"{path}: recorded in private mode, without CSI; accepted: {ACCEPTS}")
    if run.start.replay is not None and run.start.replay.run is None:
        raise InputError(
            f"{path}: the record of a replay, which may use only some of its probes; accepted: what was replayed, "
            f"{run.start.replay.path}"
        )
    experiment = convert(run.start.experiment, Experiment, f"{path / files.RUN}: experiment")
    names = {role: run.node(role) for role in ("alice", "bob", "eve")}
    series = {
        (tx, rx): run.series(f"{names[tx]}>{names[rx]}")
        for tx, rx in (("bob", "alice"), ("alice", "bob"), ("alice", "eve"), ("bob", "eve"))
    }
    alice, bob = series["bob", "alice"], series["alice", "bob"]
    # Rounds that both ends measured, but that no block could use because a node died, are included.
    usable = run.rounds.kept | (run.rounds.reason == Reject.MEASURED.value)
    rounds = run.rounds.rounds[usable]
    if alice is None or bob is None or not rounds.size:
        raise InputError(f"{path}: no CSI of both Alice and Bob in any round that was measured; accepted: {ACCEPTS}")
    every = series["alice", "eve"], series["bob", "eve"]
    from_alice, from_bob = (None if s is None else at_rounds(s, rounds) for s in every)
    heard = from_alice is not None or from_bob is not None
    eves = {"eve": EveLinks(from_alice, from_bob, every)} if heard else {}
    cut = Cut(
        name="run",
        alice=at_rounds(alice, rounds),
        bob=at_rounds(bob, rounds),
        groups=np.zeros(rounds.size, dtype=np.int64),
        per_group=False,
        chain=experiment.chain,
        accounting=experiment.accounting,
        training=experiment.training,
        eves=eves,
        assumed=tuple(eves),
        assumption="Eve has no better position than the recorded one" if eves else "",
        rejected=_rejected(run),
        seed=experiment.seed,
        surface=_surface(run, experiment, rounds, path),
        least_key_bits=max(_least_key_bits(run, names[role]) for role in ("alice", "bob")),
        interval_s=_interval_s(run),
    )
    title = run.start.experiment.get("title", "")
    return Recording(
        name="run_folder",
        description=f"recorded run {title!r} of {run.start.time}",
        caveats=()
        if run.state == "closed"
        else (f"the run is {run.state}, not closed: its records may be incomplete",),
        cuts={cut.name: cut},
        main=cut.name,
        run=run,
    )


def _surface(run: RecordedRun, experiment: Experiment, rounds: I64, path: Path) -> Surface | None:
    """Return the surface's states in these rounds, and their levels if the experiment does not keep them secret."""
    if experiment.surface.policy == "none":
        return None
    held = dict(zip(run.rounds.rounds.tolist(), run.rounds.surface.tolist(), strict=True))
    names = [held.get(r, "") for r in rounds.tolist()]
    unknown = next((r for r, name in zip(rounds.tolist(), names, strict=True) if name not in run.patterns), None)
    if unknown is not None:
        raise InputError(f"{path}: the surface's pattern of round {unknown} is not on record; accepted: {ACCEPTS}")
    first, states = run.patterns[names[0]], np.unique(names, return_inverse=True)[1]
    public = None if experiment.surface.is_secret else np.stack([run.patterns[n].levels.ravel() for n in names])
    return Surface(states.astype(np.int64), first.levels.size, first.phase_bits, public)


def _least_key_bits(run: RecordedRun, name: str | None) -> int:
    place = run.start.lab.get("node", {}).get(name, {})
    return convert(place.get("floors", {}), Floors, f"the run's lab: table [node.{name}.floors]").key_bits


def _rejected(run: RecordedRun) -> dict[str, int]:
    unusable = ~run.rounds.kept & (run.rounds.reason != Reject.MEASURED.value)
    reasons, counts = np.unique(run.rounds.reason[unusable], return_counts=True)
    return {str(reason) or "unknown": int(n) for reason, n in zip(reasons, counts, strict=True)}


def _interval_s(run: RecordedRun) -> float | None:
    """Return the mean time from round to round by the coordinator's clock; None for fewer than two rounds."""
    t0_s = run.rounds.t0_s[np.isfinite(run.rounds.t0_s)]
    return float((t0_s[-1] - t0_s[0]) / (t0_s.size - 1)) if t0_s.size > 1 and t0_s[-1] > t0_s[0] else None
