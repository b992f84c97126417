"""A run in one process: coordinator, nodes and simulated air take turns, without sockets, threads and waiting.

The state machines, the chain, the air and the records are those of a run in processes, and a seed gives the same
results, to the bit. Only the time differs: messages arrive at once, and the clock by which deadlines are measured
advances only while nobody has anything to do, so that no round is lost by a breakpoint, a busy machine or a long
computation.
The secrets of both ends are in the memory of one process. Its user could also read the memory of several processes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.core import registry
from testbed.core.clock import VirtualClock
from testbed.core.config import Experiment, Lab
from testbed.core.errors import InputError
from testbed.core.memory import collected_seldom, keep_freed
from testbed.core.threads import one_thread
from testbed.core.world import World
from testbed.lab import processes

if TYPE_CHECKING:
    from testbed.coordinator.events import ProcessEnded
    from testbed.coordinator.past import Origin
    from testbed.coordinator.server import Coordinator, Outcome, Progress
    from testbed.lab.processes import Crew
    from testbed.nodes.in_turn import NodeInTurn
    from testbed.records.recorded import RecordedRun

_STEP_S = 0.1
"""By how much the clock advances when nobody has anything to do …"""
_IDLE_S = 1e-3
"""… and how long this takes in real time, so that a run that is paused leaves the processor to others."""


class Turns:
    """Gives the nodes turns, always in the same order. The coordinator's loop asks for them while no message waits for
    it."""

    def __init__(self) -> None:
        self.clock = VirtualClock(1.0)
        self._nodes: list[NodeInTurn] = []
        self._at_work: list[NodeInTurn] = []
        """Nodes whose turn is not over, because their device waits for others; the latest turn is the last."""
        self._told: set[str] = set()

    def now_s(self) -> float:
        return self.clock.now_s()

    def join(self, node: NodeInTurn) -> None:
        self._nodes.append(node)
        node.begin()

    def give_way(self) -> None:
        """Give a turn to the first node that has something to do; if there is none, advance the clock."""
        began_s = time.monotonic()
        if not any(self._had_turn(node) for node in self._nodes):
            time.sleep(_IDLE_S)
            self.clock.advance(self.clock.now_s() + _STEP_S)
        if self._at_work:  # the node that waits is not at work itself meanwhile
            self._at_work[-1].away_s += time.monotonic() - began_s

    def _had_turn(self, node: NodeInTurn) -> bool:
        if node in self._at_work:
            return False
        self._at_work.append(node)
        try:
            return node.take_turn()
        finally:
            self._at_work.pop()

    def ended(self) -> list[ProcessEnded]:
        """Return which nodes have left the run since the last call."""
        from testbed.coordinator.events import ProcessEnded

        out = []
        for node in self._nodes:
            if node.ending is not None and node.name not in self._told:
                self._told.add(node.name)
                out.append(ProcessEnded(node.name, f"it ended: {node.ending.reason}", is_final=True))
        return out


def why_not(experiment: Experiment, lab: Lab) -> str | None:
    """Return in words which part of an experiment or a lab needs several processes; None if none does."""
    if lab.world is None:
        return "the lab has no [world]: its devices work in real time"
    if lab.world.pace != "virtual":
        return f"table [world]: key 'pace': {lab.world.pace!r}, but time passes only with what is done in one process"
    if experiment.faults is not None:
        return "table [faults]: faults happen to processes and their links"
    elsewhere = [name for name, place in lab.node.items() if not place.local]
    elsewhere += [name for name, place in (("world", lab.world), ("coordinator", lab.coordinator)) if not place.local]
    if elsewhere:
        return f"the lab has {', '.join(elsewhere)} on another machine (local = false)"
    if lab.world.emulators:
        return f"table [world.emulators]: {', '.join(lab.world.emulators)}: emulated devices have wires of their own"
    for name, place in lab.node.items():
        driver = registry.load_driver("boards" if place.role == "ris" else "radios", place.driver)
        if not driver.needs_world:
            return f"table [node.{name}]: key 'driver': {place.driver!r}, a device that works in real time"
    return None


def check(experiment: Experiment, lab: Lab, lab_name: str) -> None:
    """Raise InputError, one line, if a run needs several processes."""
    if (why := why_not(experiment, lab)) is not None:
        raise InputError(f"{lab_name}: one process: {why}; accepted: a lab of simulated devices in virtual time")


def run(
    experiment: Experiment,
    lab: Lab,
    lab_name: str,
    folder: Path,
    progress: Callable[[Progress], None] = lambda _: None,
    on_coordinator: Callable[[Coordinator, Crew | None], None] = lambda *_: None,
    origin: Origin | None = None,
    dead: RecordedRun | None = None,
) -> Outcome:
    """Run an experiment in this process, as `processes.run` does in several; `on_coordinator` gets no crew."""
    from testbed.coordinator.server import Coordinator
    from testbed.net.switchboard import Switchboard
    from testbed.nodes.in_turn import NodeInTurn

    check(experiment, lab, lab_name)
    assert lab.world is not None
    driver: type[World] = registry.load_driver("worlds", lab.world.driver)
    driver.check(experiment.scene)
    processes.prepare_pools(experiment, lab, lab_name)
    turns = Turns()
    board = Switchboard(turns)
    coordinator = Coordinator(lab, experiment, folder, None, turns.clock, origin=origin, dead=dead, shared=board)
    keep_freed()
    with one_thread(), collected_seldom(), contextlib.ExitStack() as stack:
        stack.callback(coordinator.close)
        coordinator.check_disk()
        air = stack.enter_context(_held(driver, turns, lab))
        for name in coordinator.state.nodes:
            node = NodeInTurn(lab, name, air, processes.node_state_dir(lab, name), board)
            stack.callback(node.end)
            turns.join(node)
        on_coordinator(coordinator, None)
        return coordinator.run(air, turns.ended, progress, lambda: processes.collect_iq(coordinator))


@contextlib.contextmanager
def _held(driver: type[World], turns: Turns, lab: Lab) -> Iterator[str]:
    assert lab.world is not None
    air = driver.hold(turns, lab.world.peer_timeout_s)
    if air is None:
        raise InputError(f"table [world]: key 'driver': {lab.world.driver!r}: this air needs a process of its own")
    with air as endpoint:
        yield endpoint
