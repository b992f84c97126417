"""A node's logic as a pure state machine: an event in, instructions out; no sockets, no devices, no clock.

    greeting → ready → stopped

While a node is ready it may do a device operation and, at the same time, take part in a block: `key_maker` is Alice's
or Bob's part in one, `eavesdropping` Eve's. `measured` holds the CSI that no block has used, `setup` the configuration.
Each owns its state and its deadlines. The same log of events gives the same instructions, so a node's run can be
replayed from its messages. docs/states.md draws the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from testbed.chain.wegman_carter import Pool
from testbed.core.config import Floors
from testbed.core.forks import Children
from testbed.core.machine import EventClock, Phases, Story, require
from testbed.core.types import CsiFrame
from testbed.net import messages as m
from testbed.nodes.eavesdropping import Eavesdropping
from testbed.nodes.events import (
    DeviceDone,
    DeviceFault,
    Discussed,
    Event,
    Exit,
    ForgetKnown,
    Instruction,
    KeepKeys,
    ModelFound,
    Operate,
    OrderRefused,
    PastFound,
    ProbeDone,
    Received,
    Report,
    Silence,
    Tick,
)
from testbed.nodes.key_maker import KeyMaker
from testbed.nodes.measured import MeasuredCsi
from testbed.nodes.orders import Orders
from testbed.nodes.setup import Setup

TRANSITIONS: Mapping[str, Mapping[str, str]] = {
    "greeting": {
        "ready": "the coordinator welcomes the node",
        "stopped": "the coordinator refuses the node, or the run ends",
    },
    "ready": {
        "ready": "the coordinator welcomes the node anew: the node was lost, or this is another run",
        "stopped": "the run ends",
    },
    "stopped": {},
}
"""Phase → the phases that may follow → why."""

OPERATIONS: Mapping[type, str] = {
    m.Configure: "configuring",
    m.ReadClock: "reading",
    m.ReadSurface: "reading",
    m.Apply: "applying",
    m.ApplyNext: "applying",
    m.Schedule: "applying",
    m.Probe: "probing",
    m.Step: "probing",
}
"""Order → the name of the device operation until it is done or has failed."""


class NodeState:
    """The state of one node. `role` is alice, bob, eve or ris.

    `secret_seed` feeds the node's own random choices outside of rehearsals: the experiment's seed is known to
    everybody, and must not determine which bits are sacrificed or how the key is hashed. `floors` are the node's
    demands on every run; `authenticated`: its links are authenticated; `wegman_carter`: it demands one-time
    authentication of the discussion, with the pads of `pool`; `private`: it takes part in no run of experiment mode;
    `children`: how it has long computations done in forked children, None: not at all.
    """

    def __init__(
        self,
        role: str,
        secret_seed: int,
        floors: Floors | None = None,
        authenticated: bool = True,
        wegman_carter: bool = False,
        pool: Pool | None = None,
        private: bool = False,
        children: Children | None = None,
    ) -> None:
        self.role = role
        self._clock = clock = EventClock()
        self._story = story = Story(clock)
        self._phases = Phases(TRANSITIONS, "greeting", story)
        self._operation: str | None = None
        self._is_tuned = False
        """Whether the device accepted the settings of this run."""
        self.refused = ""
        """Why the coordinator refused this node."""
        self._trains = 0
        """Number of trains of rounds that were ordered and are not reported yet."""
        ends = role in ("alice", "bob")
        self.setup = Setup(secret_seed, floors, wegman_carter and ends, pool)
        self.orders = Orders(role, self.setup.floors, authenticated or wegman_carter, private)
        self.measured = MeasuredCsi()
        self.key_maker = KeyMaker(role, self.setup, self.measured, clock, story, children)
        self.eavesdropping = Eavesdropping(self.setup, self.measured, clock, story)

    # -- what the daemon reads

    @property
    def name(self) -> str:
        """The node's present activity, for its heartbeats and its reports of failures."""
        if self._operation is not None:
            return self._operation
        if self._trains:
            return OPERATIONS[m.Probe]
        if self._phases.now == "ready" and self.key_maker.is_busy:
            return "agreeing" if self.key_maker.phase == "agree" else "amplifying"
        if self._phases.now == "ready" and self.eavesdropping.is_busy:
            return "attacking"
        return self._phases.now

    @property
    def is_discussing(self) -> bool:
        """Whether a discussion with the peer is under way, or between its two parts, so that no message of it may be
        lost."""
        return self.key_maker.is_busy or self.key_maker.has_agreed

    @property
    def run(self) -> str:
        return self.setup.run

    @property
    def is_rehearsal(self) -> bool:
        """Whether the run follows from its seed, so that its keys are not secret."""
        return self.setup.is_rehearsal

    @property
    def seed(self) -> int:
        """Seed of this node's random choices."""
        return self.setup.seed

    def story(self, *, round: int | None = None, block: int | None = None) -> list[str]:
        """Return a line for every entry on this round or block, oldest first; all entries where none is named."""
        return self._story.tell(round=round, block=block)

    def check(self) -> None:
        """Raise InvariantError that names each invariant of the machine that does not hold. Call it between events."""
        require(f"node of {self.role}", self.problems())

    # -- events

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event; return the instructions, in order. There are none once the node has stopped."""
        if self._phases.now == "stopped":
            return []
        match event:
            case Received(body):
                return self._received(body)
            case Discussed(envelope):
                return self._discussed(envelope)
            case ModelFound(model):
                self.setup.model = model
                return []
            case PastFound(past):
                self.key_maker.recall(past)
                return []
            case ProbeDone(reports, csi):
                return self._measured(reports, csi)
            case DeviceDone(report):
                return self._operation_over(report)
            case DeviceFault(operation, detail):
                failed = m.Failed(operation=operation, state=self.name, detail=detail)
                self._story.add("device fault", operation=operation, detail=detail)
                if operation == m.Probe.__name__.lower():
                    self._trains = max(0, self._trains - 1)
                    return [Report(failed)]
                return self._operation_over(failed)
            case Tick(now_s):
                self._clock.advance(now_s)
                return self.key_maker.look_for_late() or self.eavesdropping.look_for_late()

    def _measured(self, reports: list[m.Probed], csi: dict[int, dict[str, CsiFrame]]) -> list[Instruction]:
        """Keep the CSI of a train, and send its reports."""
        for result in (x for report in reports for x in report.rounds):
            frames = csi.get(result.round, {})
            self.measured.keep(result.round, frames)
            self._story.add("measured", round=result.round, transmitters=sorted(frames), fault=result.fault)
        if self._operation == "probing":  # step by step
            self._operation = None
        else:
            self._trains = max(0, self._trains - 1)
        return [Report(report) for report in reports]

    def _discussed(self, envelope: m.PublicEnvelope) -> list[Instruction]:
        if envelope.run != self.run:
            return []
        return self.eavesdropping.take(envelope) if self.role == "eve" else self.key_maker.take(envelope)

    def _operation_over(self, report: Any) -> list[Instruction]:
        self._operation = None
        self._is_tuned = self._is_tuned or isinstance(report, m.Configured)
        return [Report(report)]

    # -- orders

    def _received(self, body: Any) -> list[Instruction]:
        take = _ON_ORDER.get(type(body))
        if take is None:
            detail = "not a request to a node"
            return [Report(m.Failed(operation=type(body).__name__, state=self.name, detail=detail))]
        try:
            self.orders.check(body, self.run, self.setup.chain is not None, self._is_tuned, self._trains)
            return take(self, body)
        except OrderRefused as exc:
            operation = type(body).__name__.lower()
            self._story.add("order refused", operation=operation, detail=str(exc))
            return [Report(m.Failed(operation=operation, state=self.name, detail=str(exc)))]

    def _welcomed(self, body: m.Welcome) -> list[Instruction]:
        """Begin a new run, or the same run again. Keys must not use earlier measurements. If it is the same run, others
        still know what was published before.
        """
        self._phases.enter("ready")
        self._operation, self._trains, self._is_tuned = None, 0, False
        self.key_maker.clear(same_run=body.run == self.run)
        self.setup.join(body.run)
        self.measured.clear()
        self.eavesdropping.clear()
        return []

    def _refused(self, body: m.Refused) -> list[Instruction]:
        self._stop()
        self.refused = body.reason
        return [Silence(), Exit(1, body.reason)]

    def _finished(self, body: m.Finish) -> list[Instruction]:
        self._stop()
        forget = [ForgetKnown()] if self.role in ("alice", "bob") and self.run and body.recorded else []
        return [Silence(), *forget, Report(m.Stopped(kind=body.kind)), Exit(0, body.kind)]

    def _stop(self) -> None:
        self._phases.enter("stopped")
        self._operation, self._trains = None, 0

    def _configure(self, body: m.Configure) -> list[Instruction]:
        self.setup.configure(body)
        self._is_tuned = False
        return self._operate(body)

    def _operate(self, body: Any) -> list[Instruction]:
        self._operation = OPERATIONS[type(body)]
        return [Operate(body)]

    def _probe(self, body: m.Probe) -> list[Instruction]:
        self._trains += 1
        return [Operate(body)]

    def _distil(self, body: m.Distil) -> list[Instruction]:
        return self.key_maker.start_agreement(body)

    def _amplify(self, body: m.Amplify) -> list[Instruction]:
        return self.key_maker.start_amplification(body)

    def _abandon(self, body: m.Abandon) -> list[Instruction]:
        return self.key_maker.abandon(body)

    def _keep_keys(self, body: m.KeepKeys) -> list[Instruction]:
        return [KeepKeys(tuple(body.blocks))]

    def _attack(self, body: m.Attack | m.GuessKey) -> list[Instruction]:
        return self.eavesdropping.start(body)

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold between two events."""
        for owner in (self.setup, self.measured, self.key_maker, self.eavesdropping):
            yield from owner.problems()
        if self._phases.now == "stopped" and (self._operation is not None or self._trains):
            yield f"the device is {self._operation or 'probing'} although the node has stopped"
        if self.key_maker.is_busy and self.eavesdropping.is_busy:
            yield "the node makes a key and attacks the same block"


_ON_ORDER: Mapping[type, Callable[[NodeState, Any], list[Instruction]]] = {
    m.Welcome: NodeState._welcomed,
    m.Refused: NodeState._refused,
    m.Finish: NodeState._finished,
    m.Configure: NodeState._configure,
    m.ReadClock: NodeState._operate,
    m.ReadSurface: NodeState._operate,
    m.Apply: NodeState._operate,
    m.ApplyNext: NodeState._operate,
    m.Schedule: NodeState._operate,
    m.Probe: NodeState._probe,
    m.Step: NodeState._operate,
    m.Distil: NodeState._distil,
    m.Amplify: NodeState._amplify,
    m.Abandon: NodeState._abandon,
    m.KeepKeys: NodeState._keep_keys,
    m.Attack: NodeState._attack,
    m.GuessKey: NodeState._attack,
}
"""Order of the coordinator → the method that handles it."""
