"""Which faults are injected into a run, and when: they are drawn from the seed alone. Pure; `rehearsal` injects
them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from testbed.core import seeds
from testbed.core.config import Experiment, Faults, Lab
from testbed.core.errors import InputError

Kind = Literal["reset", "partition", "pause", "kill", "clock_step", "disk_full"]
Fate = Literal["passes", "lost", "twice", "swapped"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, which is injected once a round is over."""

    round: int
    kind: Kind
    node: str
    """Or COORDINATOR."""
    length_s: float = 0.0
    """Duration of a partition, of a pause, or of the time in which a disk is full; how far a clock steps."""


COORDINATOR = "coordinator"
_ITS_OWN = ("clock_step", "disk_full")
"""Kinds of faults that happen to the coordinator."""


def nodes_of(faults: Faults, experiment: Experiment, lab: Lab, source: str) -> list[str]:
    """Return the names of the nodes that get faults; raises InputError for nodes into which none can be injected."""
    roles = {"alice", "bob"} | ({"eve"} if experiment.scene.eve is not None else set())
    roles |= {"ris"} if experiment.surface.policy != "none" else set()
    local = [name for name, place in lab.node.items() if place.local and place.role in roles]
    for name in faults.nodes:
        if name not in local:
            raise InputError(
                f"{source}: table [faults]: key 'nodes': {name!r}; accepted: {', '.join(local) or 'none in this lab'} "
                "(local nodes that take part)"
            )
    if not local:
        raise InputError(f"{source}: table [faults]: no node of this lab is local; accepted: a lab with local nodes")
    return faults.nodes or local


def plan(faults: Faults, experiment: Experiment, nodes: Sequence[str]) -> list[Fault]:
    """Return the faults of the run, by ascending rounds."""
    seed = experiment.seed if faults.seed is None else faults.seed
    rates: dict[Kind, tuple[float, float]] = {
        "reset": (faults.resets, 0.0),
        "partition": (faults.partitions, faults.partition_s),
        "pause": (faults.pauses, faults.pause_s),
        "kill": (faults.kills, 0.0),
        "clock_step": (faults.clock_steps, faults.clock_step_s),
        "disk_full": (faults.disk_full, faults.disk_full_s),
    }
    out = []
    for kind, (per_thousand, length_s) in rates.items():
        # There is one draw per round, so that a longer run begins with the faults of a shorter one.
        happens = seeds.generator(seed, "faults", kind).random(experiment.rounds) < per_thousand / 1000
        which = seeds.generator(seed, "faults", kind, "where").integers(len(nodes), size=experiment.rounds)
        for i, r in enumerate(happens.nonzero()[0]):
            node = COORDINATOR if kind in _ITS_OWN else nodes[which[r]]
            sign = -1 if kind == "clock_step" and i % 2 else 1
            out.append(Fault(int(r), kind, node, sign * length_s))
    return sorted(out, key=lambda fault: fault.round)


def kills(faults: Sequence[Fault]) -> Counter[str]:
    """Return how often each node is killed."""
    return Counter(fault.node for fault in faults if fault.kind == "kill")


class Traffic:
    """Draws the fate of each message in one direction of one connection, in the order of the messages."""

    def __init__(self, faults: Faults, seed: int, *names: str | int) -> None:
        self._faults = faults
        self._rng = seeds.generator(seed, "traffic", *names)

    def delay_s(self) -> float:
        """Return the delay of the next message."""
        f = self._faults
        return f.delay_s + (f.jitter_s * self._rng.random() if f.jitter_s else 0.0)

    def fate(self) -> Fate:
        """Return whether the next message passes, is lost, comes twice or comes in another order."""
        f, x = self._faults, self._rng.random()
        for share, fate in ((f.loss, "lost"), (f.duplication, "twice"), (f.reordering, "swapped")):
            if x < share:
                return fate  # type: ignore[return-value]
            x -= share
        return "passes"
