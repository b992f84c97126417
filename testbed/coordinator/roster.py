"""The nodes of a run: which take part, which are alive and ready, which were lost and until when they may return. Pure.

A node is identified by its name and by its incarnation, a random word that its process draws when it starts. It counts
as alive from its greeting until it falls silent, its process ends or it greets again; and as ready once it is
configured and its clock was read. A required node that was lost has a deadline by which it must come back; an optional
one is left out and the run goes on. A node that reconnects from a new address is the same incarnation; one whose
process was restarted is another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from testbed.coordinator.events import Effect, Note, RunFails, Send, WithdrawOrders
from testbed.core.config import Experiment, Lab, is_rehearsal, planned_blocks
from testbed.core.machine import Deadlines, EventClock, Story
from testbed.net import messages as m

LOADING_S = 60.0
"""How much more time nodes get to become ready if they load a trained policy and the library that it needs."""
MAX_ASKED = 3
"""How many times a node that is alive is ordered to get ready before it is given up."""
MAX_RETURNS = 3
"""How many times a process of an optional node that was left out is taken in again, if it answers."""
RETURN_AFTER_S = 30.0
"""How long it stays away the first time; every further time takes four times as long, because each return of a node
that still cannot serve delays the run by some seconds."""
MAX_STRIKES = 3
"""Rounds in a row that a node may leave unanswered before it is treated as lost."""

_HEARTBEAT = "a sign of life"
_RETURN = "the node's return"
_READY = "the node to get ready"
_AWAY = "the end of its absence"


class Node(Deadlines):
    """The coordinator's data of one node."""

    def __init__(self, name: str, role: str, required: bool, clock: EventClock, lab: Lab) -> None:
        super().__init__(clock)
        self.name, self.role, self.required = name, role, required
        self.alive = False
        self.left_out = False
        """An optional node that was given up; the run goes on without it."""
        self.is_given_up = False
        """It was left out because it did not serve, whether it is alive or not."""
        self.returns = 0
        """How often its present process was taken in again after that."""
        self.ready = False
        """Configured, and its clock was read."""
        self.is_missing = False
        """It does not answer, but its process may still run: if it answers again, it continues with all that it has."""
        self.link_is_up = True
        """Whether a connection to it exists, as far as the coordinator can tell."""
        self.asked = 0
        """How often it was ordered to get ready without success."""
        self.is_compared = False
        """Its clock is being read to see how far the coordinator's is from it; nothing else of it changes."""
        self.owes_settings = self.owes_reading = False
        """An order to configure its device, or to read its clock, is unanswered. Any other answer is one to an order
        that was given up, and says nothing about the present."""
        self.must_be_configured = False
        """The order to configure its device is due; it is sent as soon as no round is under way."""
        self._was_ready = False
        self.stopped = False
        """It has reported that it took the end of the run."""
        self.incarnation = ""
        self.hello: m.Hello | None = None
        self.strikes = 0
        """Rounds in a row that it left unanswered."""
        self.dropped: dict[str, int] = {}
        """Number of messages between the coordinator and its present process that were dropped, by who dropped them."""
        self._dropped_noted: dict[str, int] = {}
        self.clock_asked_s = 0.0
        """When its clock reading was requested, on the coordinator's clock."""
        self._lost_after_s = lab.coordinator.lost_after_s
        self._return_within_s = lab.coordinator.rejoin_timeout_s

    @property
    def measures(self) -> bool:
        """Whether it has a radio; the surface's node has none."""
        return self.role != "ris"

    @property
    def is_silent(self) -> bool:
        return self.alive and self.is_overdue(_HEARTBEAT)

    @property
    def silent_s(self) -> float:
        return self._lost_after_s + self.overdue_s(_HEARTBEAT)

    @property
    def is_overdue_to_return(self) -> bool:
        return self.required and not self.alive and self.is_overdue(_RETURN)

    def seen(self) -> None:
        """Take note of a message from it."""
        self.set_deadline(_HEARTBEAT, self._lost_after_s)

    @property
    def is_late_to_get_ready(self) -> bool:
        return self.alive and not self.ready and self.is_overdue(_READY)

    @property
    def where_it_fails(self) -> str:
        """Return where the cause of its silence lies, as far as the coordinator can tell."""
        if not self.link_is_up:
            return "its connection is closed: the network, its machine or its process"
        return "its connection stands: its machine or its process does not answer"

    def greet(self, incarnation: str, hello: m.Hello) -> None:
        self.incarnation, self.hello = incarnation, hello
        self.dropped, self._dropped_noted, self.stopped = {}, {}, False
        self.is_given_up, self.returns = False, 0

    def note_dropped(self, factor: int = 2) -> list[Effect]:
        """Return a note where messages were dropped: the first time, and whenever there are `factor` times as many."""
        out: list[Effect] = []
        for by, n in self.dropped.items():
            if n >= max(1, factor * self._dropped_noted.get(by, 0)) and n > self._dropped_noted.get(by, 0):
                self._dropped_noted[by] = n
                out.append(Note("messages_dropped", {"node": self.name, "by": by, "messages": n}))
        return out

    def admit(self) -> None:
        """Count it as alive, with nothing that it held before."""
        self.alive, self.left_out, self.ready, self.strikes, self.asked = True, False, False, 0, 0
        self.is_missing, self.link_is_up = False, True
        if self.is_given_up:
            self.is_given_up = False
            self.returns += 1
            self.asked = MAX_ASKED - 1  # it is ordered to get ready once, as the run waits for that
        self.clear_deadline(_RETURN)
        self.seen()

    def ask(self, within_s: float) -> None:
        """Wait until it is ready; a node that is alive and not ready always has a deadline."""
        self.ready, self.must_be_configured, self.is_compared = False, True, False
        self.owes_settings = self.owes_reading = False
        self.asked += 1
        self.set_deadline(_READY, within_s)

    def compare(self, within_s: float) -> None:
        """Wait for a reading of its clock; it takes part in no round before that."""
        self.ready, self.is_compared = False, True
        self.have_clock_read()
        self.set_deadline(_READY, within_s)

    def have_configured(self) -> None:
        """Take note that it was ordered to configure its device."""
        self.must_be_configured, self.owes_settings = False, True

    def have_clock_read(self) -> None:
        """Take note that it was ordered, as it is configured, to read its clock."""
        self.owes_settings, self.owes_reading, self.clock_asked_s = False, True, self._clock.now_s

    def get_ready(self) -> None:
        self.ready, self.asked, self.is_compared, self.owes_reading = True, 0, False, False
        self.clear_deadline(_READY)

    def miss(self) -> None:
        """Mark it as silent: it gets no orders, but its measurements are not given up yet."""
        self._was_ready = self.ready or self.is_compared
        self.lose()
        self.is_missing = True

    def wait_for_return(self) -> None:
        """Give it, from now on, all of the time that it has to answer again."""
        self.set_deadline(_RETURN, self._return_within_s)

    @property
    def may_resume(self) -> bool:
        """Whether it can continue with what it holds if it answers again."""
        return self.is_missing and self._was_ready and self.required

    def lose(self) -> None:
        self._expect_nothing()
        self.wait_for_return()
        self.left_out = self.left_out or not self.required

    @property
    def may_come_back(self) -> bool:
        """Whether it may be taken in again if it answers."""
        return not self.is_given_up or (self.returns < MAX_RETURNS and self.is_overdue(_AWAY))

    def leave_out(self, for_good: bool = False) -> None:
        """Go on without it; `for_good`: as long as its process lives."""
        self.left_out = self.is_given_up = True
        self.owes_settings = self.owes_reading = False
        self.returns = MAX_RETURNS if for_good else self.returns
        self.set_deadline(_AWAY, RETURN_AFTER_S * 4**self.returns)

    def dismiss(self) -> None:
        """Give up an optional node that cannot serve."""
        self._expect_nothing()
        self.leave_out()

    def _expect_nothing(self) -> None:
        """Count it as dead: no sign of life and no answer of it is awaited."""
        self.alive = self.ready = self.is_missing = self.must_be_configured = self.is_compared = False
        self.owes_settings = self.owes_reading = False
        self.clear_deadline(_HEARTBEAT)
        self.clear_deadline(_READY)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.ready and not self.alive:
            yield f"{self.name} is ready but not alive"
        if self.alive and (self.hello is None or not self.incarnation):
            yield f"{self.name} is alive but never greeted"
        if self.alive and not self.has_deadline(_HEARTBEAT):
            yield f"{self.name} is alive and may be silent without limit"
        if self.alive and self.asked and not self.ready and not self.has_deadline(_READY):
            yield f"{self.name} is alive and not ready, and has no deadline"
        if self.is_compared and (self.ready or not self.has_deadline(_READY)):
            yield f"{self.name} is ready, or has no deadline, while its clock is being read"
        if self.is_missing and self.alive:
            yield f"{self.name} is missing but alive"
        if self.required and self.left_out:
            yield f"{self.name} is required but left out"
        if self.required and self.incarnation and not self.alive and not self.has_deadline(_RETURN):
            yield f"{self.name} was lost and may stay away without limit"


class Roster:
    """The nodes of `lab` that `experiment` needs or can use."""

    def __init__(self, lab: Lab, experiment: Experiment, run: str, clock: EventClock, story: Story) -> None:
        self._lab, self._experiment, self._run = lab, experiment, run
        self._clock, self._story = clock, story
        self._refused: set[tuple[str, str]] = set()
        self.timed = True
        """Whether every radio can start at a given time; otherwise rounds go step by step."""
        required = {"alice", "bob"} | ({"ris"} if experiment.surface.policy != "none" else set())
        wanted = required | ({"eve"} if experiment.scene.eve is not None else set())
        self.nodes = {
            name: Node(name, place.role, place.role in required, clock, lab)
            for name, place in lab.node.items()
            if place.role in wanted
        }

    # -- questions

    def taking_part(self) -> list[Node]:
        return [node for node in self.nodes.values() if not node.left_out]

    def by_role(self, role: str) -> Node | None:
        """Return the node of this role that takes part, alive or not."""
        return next((node for node in self.taking_part() if node.role == role), None)

    def name(self, role: str) -> str | None:
        node = self.by_role(role)
        return node.name if node is not None else None

    def pair(self) -> set[str]:
        """Return the names of Alice's and Bob's nodes."""
        return {name for name in (self.name("alice"), self.name("bob")) if name is not None}

    def eve(self) -> str | None:
        """Return the name of Eve's node where it is alive and ready."""
        node = self.by_role("eve")
        return node.name if node is not None and node.alive and node.ready else None

    def all_alive(self) -> bool:
        return all(node.alive for node in self.taking_part())

    @property
    def ready_within_s(self) -> float:
        """How long a node may take to get ready."""
        loading_s = LOADING_S if self._experiment.beams.policy != "none" else 0.0
        return self._lab.coordinator.operation_timeout_s + loading_s

    def all_ready(self) -> bool:
        return all(node.ready for node in self.taking_part())

    def required_ready(self) -> bool:
        return all(node.ready for node in self.taking_part() if node.required)

    def all_stopped(self) -> bool:
        return all(node.stopped or not (node.alive or node.is_missing) for node in self.taking_part())

    def receivers(self) -> list[str]:
        """Return the names of the nodes that take part in a round now."""
        return [node.name for node in self.taking_part() if node.ready and node.measures]

    def greetings(self) -> list[m.Hello]:
        return [node.hello for node in self.nodes.values() if node.hello is not None]

    def antennas(self) -> dict[str, int]:
        """Return the number of antennas of each role's radio."""
        return {n.role: n.hello.n_antennas for n in self.taking_part() if n.hello and n.measures}

    def misfit(self) -> str | None:
        """Return why the radios that joined do not serve this experiment; None where they do."""
        if self._experiment.beams.policy != "none" and not self.timed:
            return (
                f"table [beams]: policy = {self._experiment.beams.policy!r} needs radios that can time their samples; "
                "accepted with these: policy = 'none'"
            )
        return None

    def beams_note(self) -> list[Effect]:
        """Return a note where the experiment's beam policy has no effect, because both ends have one antenna."""
        n_antennas = self.antennas()
        if self._experiment.beams.policy == "none" or max(n_antennas.get("alice", 1), n_antennas.get("bob", 1)) > 1:
            return []
        detail = (
            f"table [beams]: policy = {self._experiment.beams.policy!r}, but the radios of Alice and Bob have one "
            "antenna each, so the beams change nothing and the soundings only cost rounds; set policy = 'none'"
        )
        return [Note("beams_without_effect", {"detail": detail})]

    # -- messages

    def send(self, role: str, body: Any) -> list[Effect]:
        """Send to the node of this role where it is alive, or may be alive behind a broken link."""
        node = self.by_role(role)
        return [Send(node.name, body)] if node is not None and (node.alive or node.is_missing) else []

    def refuse(self, name: str, why: str) -> list[Effect]:
        """Refuse a node; the refusal is recorded once, however often the node asks."""
        new = (name, why) not in self._refused
        self._refused.add((name, why))
        return [Send(name, m.Refused(reason=why)), *([Note("refused", {"node": name, "why": why})] if new else [])]

    def refuse_stranger(self, name: str) -> list[Effect]:
        known = name in self._lab.node
        return self.refuse(name, "not needed by this experiment" if known else "not in this lab file")

    def welcome(self, node: Node, came_back: bool) -> list[Effect]:
        """Take a node in, a new one or one that came back."""
        node.admit()
        self._story.add("came back" if came_back else "joined", node=node.name)
        identity = node.hello.identity if node.hello is not None else {}
        place = self._lab.coordinator
        patience_s = place.lost_after_s + place.rejoin_timeout_s
        return [
            *([Note("rejoined", {"node": node.name, "identity": identity})] if came_back else []),
            Send(node.name, m.Welcome(run=self._run, lost_after_s=patience_s)),
        ]

    def settle_timing(self) -> list[Effect]:
        """Decide, once all nodes have joined, whether radios time their samples in this run.

        Beams need that, so that an optional node that cannot is then left out.
        """
        out: list[Effect] = []
        if self._experiment.beams.policy != "none":
            untimed = [n for n in self.taking_part() if n.measures and n.hello and not n.hello.timed and not n.required]
            why = "its radio cannot time samples for [beams]"
            out = [x for node in untimed for x in self.leave_out(node, why, for_good=True)]
        self.timed = all(n.hello.timed for n in self.taking_part() if n.hello and n.measures)
        return out

    def ask(self, node: Node) -> None:
        """Mark that a node is to configure its device, and set its deadline for getting ready."""
        node.ask(self.ready_within_s)

    def compare(self, node: Node) -> list[Effect]:
        """Have a node's clock read between two rounds; a node that does not answer is ordered to get ready."""
        node.compare(self._lab.coordinator.operation_timeout_s)
        self._story.add("clock read", node=node.name)
        return [Send(node.name, m.ReadClock())]

    @property
    def getting_ready(self) -> bool:
        """Whether a node that takes part is alive and not ready."""
        return any(node.alive and not node.ready for node in self.taking_part())

    @property
    def someone_must_be_configured(self) -> bool:
        return any(node.must_be_configured for node in self.nodes.values())

    def configure(self) -> list[Effect]:
        """Order every node for which it is due to configure its device."""
        return [self._order_to_configure(node) for node in self.nodes.values() if node.must_be_configured]

    def _order_to_configure(self, node: Node) -> Effect:
        e = self._experiment
        node.have_configured()
        alice = self.by_role("alice")
        discussion = transcript = ""
        if alice is not None and alice.hello is not None:
            host = self._lab.node[alice.name].host
            discussion = f"tcp://{host}:{alice.hello.discussion_port}"
            transcript = f"tcp://{host}:{alice.hello.transcript_port}"
        body = m.Configure(
            radio=e.radio, probing=e.probing, chain=e.chain, accounting=e.accounting,
            beams=e.beams, antennas=self.antennas(),
            experiment_mode=e.mode == "experiment", record_iq=e.records.iq, seed=e.seed, timed=self.timed,
            blocks=planned_blocks(e), rehearsal=is_rehearsal(self._lab, e), surface=e.surface,
            discussion=discussion, transcript=transcript,
        )  # fmt: skip
        return Send(node.name, body)

    def ask_anew(self, role: str) -> None:
        """Have the node of this role get ready again if it is alive; until it answers, it does not count as ready."""
        node = self.by_role(role)
        if node is not None and node.alive:
            node.asked = 0
            self.ask(node)

    # -- losses

    def lose(self, node: Node, why: str) -> list[Effect]:
        node.lose()
        self._story.add("lost", node=node.name, why=why)
        return [Note("lost", {"node": node.name, "detail": why})]

    def miss(self, node: Node, why: str) -> list[Effect]:
        """Mark a node as silent; it may continue where it was."""
        node.miss()
        self._story.add("silent", node=node.name, why=why)
        return [WithdrawOrders(node.name), Note("silent", {"node": node.name, "detail": why})]

    def resume(self, node: Node) -> list[Effect]:
        node.admit()
        self._story.add("resumed", node=node.name)
        note = Note("resumed", {"node": node.name, "detail": "it answers again and continues where it was"})
        self.ask(node)  # the simulated air may have dropped its device meanwhile
        return [note]

    def change_link(self, node: Node, is_up: bool) -> list[Effect]:
        """Take note that a node's connection is lost, or is there again."""
        node.link_is_up = is_up
        self._story.add("link up" if is_up else "link down", node=node.name)
        if is_up or node.stopped or not (node.alive or node.is_missing):
            return []
        return [Note("link_down", {"node": node.name, "detail": "orders wait until its connection is back"})]

    def ask_again(self, node: Node) -> list[Effect]:
        """Order a node that is alive and not ready to get ready again; after too many orders it is given up."""
        if node.asked >= MAX_ASKED:
            often = f", asked {node.asked} times" if node.required else ""
            why = f"is alive but did not get ready{often}; {node.where_it_fails}"
            return self.go_on_without([node], why, why)
        self._story.add("asked again", node=node.name, asked=node.asked)
        note = Note("asked_again", {"node": node.name, "times": node.asked})
        self.ask(node)
        return [note]

    def leave_out(self, node: Node, why: str, for_good: bool = False) -> list[Effect]:
        """Go on without an optional node; `for_good`: until it is started anew."""
        node.leave_out(for_good)
        self._story.add("left out", node=node.name, why=why)
        return [Note("left_out", {"node": node.name, "why": why})]

    def go_on_without(self, late: Iterable[Node], failure: str, why: str) -> list[Effect]:
        """Leave out the nodes that are late; the run fails where one of them is required."""
        late = list(late)
        required = [node.name for node in late if node.required]
        if required:
            return [RunFails(f"{', '.join(required)} {failure}")]
        return [x for node in late for x in self.leave_out(node, why)]

    def strike(self, name: str, number: int, with_it: Collection[str] = ()) -> list[Effect]:
        """Count a round that a node left unanswered; after several in a row the node is given up. `with_it`: the nodes
        that left it unanswered."""
        node = self.nodes[name]
        if node.left_out:  # an earlier round had this consequence
            return []
        node.strikes += 1
        self._story.add("no answer", round=number, node=name, strikes=node.strikes)
        out: list[Effect] = [Note("no_answer", {"node": name, "round": number, "strikes": node.strikes})]
        if node.strikes < MAX_STRIKES:
            return out
        if node.required:
            return [*out, RunFails(self._why_unanswered(node, with_it))]
        return out + self.leave_out(node, f"{MAX_STRIKES} rounds unanswered")

    def _why_unanswered(self, node: Node, with_it: Collection[str]) -> str:
        who, where = node.name, node.where_it_fails
        if self.pair() <= set(with_it) and self._lab.world is not None and node.link_is_up:
            who = ", ".join(sorted(with_it))
            where = "their connections stand: the simulated air does not answer them, or is too slow"
        return f"{who} left {MAX_STRIKES} rounds in a row unanswered; {where}"

    def look_for_returns(self) -> list[Effect]:
        """End the run where a required node was lost and has not come back in time."""
        within_s = self._lab.coordinator.rejoin_timeout_s
        for node in self.nodes.values():
            if node.is_overdue_to_return:
                why = f"; {node.where_it_fails}" if node.is_missing else ""
                return [RunFails(f"{node.name} was lost and did not come back within {within_s:g} s{why}")]
        return []

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        for node in self.nodes.values():
            yield from node.problems()
