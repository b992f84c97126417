"""What is fuzzed: each target makes good inputs once, then feeds bad ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import mutations as mu
import numpy as np

from testbed import config
from testbed.core.errors import DeviceError, DeviceTimeout, InputError, ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.net import messages as m

Feed = Callable[[random.Random], str]


def refusing(read: Callable[[], Any], *kinds: type[Exception]) -> str:
    """Return accepted or refused; a refusal of more than one line, or that a terminal cannot show, is harm."""
    try:
        read()
    except kinds as exc:
        told = str(exc)
        if "\n" in told or not told.isprintable() or len(told) > 2000:
            raise AssertionError(f"a refusal of {len(told)} characters: {told[:100]!r}") from exc
        return "refused"
    return "accepted"


# ---------------------------------------------------------------- messages


def _bodies() -> list[Any]:
    from testbed.core.config import Accounting, ChainPlan, ProbingPlan, RadioPlan
    from testbed.core.outcomes import AgreeReport, EveReport, KeyReport, TrainReport

    agree = AgreeReport(
        block=0, probes=10, raw_bits=100, sacrificed_bits=10, sacrificed_errors=1, reconciled_bits=90, corrected_bits=1,
        leaked_bits=9, leaked_by_kind={"x": 9}, public_bytes=10, messages=3, verified=True, failure=None,
    )  # fmt: skip
    eve = EveReport(
        block=0, sacrificed_bits=10, covered_bits=10, sacrificed_errors=5, best_link="alice", transcript_complete=True
    )
    train = TrainReport(block=0, probes=10, model="m", card={"a": [1.0, "b"]}, public_bytes=1, messages=1, failure=None)
    link = m.LinkResult(tx="alice", reason=None, shape=(1, 1, 4), csi=bytes(32))
    return [
        m.Hello(role="bob", identity={"driver": "sim", "x": {"y": [1, 2.5]}}, pid=1, turnaround_s=1e-4),
        m.Heartbeat(state="ready"), m.Configured(accepted={"carrier_hz": 2.4e9}), m.ClockReading(device_time_s=1.0),
        m.Applied(round=1, digest="0123456789ab", device_time_s=1.0), m.SurfaceHeld(round=1, digest="0123456789ab"),
        m.Captured(round=1), m.Stepped(round=1, step=0),
        m.Probed(rounds=[m.RoundResult(round=1, links=[link])]),
        m.Failed(operation="probe", state="ready", detail="x"), m.Stopped(kind="stop"),
        m.Agreed(report=agree, raw_bits=b"\0\1"), m.Trained(report=train), m.Attacked(report=eve, guess=b"\0"),
        m.Amplified(report=KeyReport(block=0, key_bits=128), digest="ab" * 32, p_values={"frequency": 0.5}),
        m.KeyGuessed(block=0, digest=None), m.Welcome(run="r", lost_after_s=8.0), m.Refused(reason="x"), m.Pulse(),
        m.Configure(
            radio=RadioPlan(), probing=ProbingPlan(), chain=ChainPlan(enhance_options={"step": 4}),
            accounting=Accounting(), experiment_mode=True, record_iq=False, seed=5, discussion="tcp://127.0.0.1:5000",
        ),
        m.ReadClock(), m.Apply(round=1, levels=bytes(4), shape=(2, 2), phase_bits=1), m.ReadSurface(round=1),
        m.Probe(rounds=[m.RoundPlan(round=1, slots=[m.SlotPlan("alice", ["bob"], 1.0)], margin_s=1e-6, end_s=2.0)]),
        m.Step(round=1, step=0, action="transmit", tx="alice", last=False), m.Abandon(block=0, reason="x"),
        m.KeepKeys(blocks=[0, 1]), m.Finish(kind="stop", recorded=True),
        m.Distil(block=0, rounds=[1, 2], timeout_s=60.0),
        m.Attack(block=0, rounds=[1, 2], public_messages=3), m.Amplify(block=0, eve=eve, timeout_s=60.0),
        m.GuessKey(block=0, public_messages=3), m.Here(), m.Withdrawn(), m.ApplyNext(round=1),
        m.Schedule(
            patterns=[m.PatternPlan(round=1, at_s=1.0, levels=bytes(4)), m.PatternPlan(round=2, at_s=2.0)],
            shape=(2, 2), phase_bits=1,
        ),
        m.Scheduled(
            patterns=[m.PatternSet(round=1, digest="0123456789ab", device_time_s=1.0)], device_time_s=0.5, shape=(2, 2)
        ),
        m.KeepKeys(blocks=[0, 1]),
    ]  # fmt: skip


def _trees(messages: list[Any]) -> list[Any]:
    return [msgspec.msgpack.decode(msgspec.msgpack.encode(x)) for x in messages]


def _bad(trees: list[Any], rng: random.Random) -> bytes:
    """A tree that was changed, or bytes that were; now and then only the headers of something huge."""
    tree = rng.choice(trees)
    if rng.random() < 0.01:
        return rng.choice([b"\x81", b"\x91", b"\x81\xa1x", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]) * 3000
    if rng.random() < 0.3:
        return mu.spoil_bytes(mu.packed(tree), rng, [mu.packed(rng.choice(trees))])
    return mu.packed(mu.spoil_tree(tree, rng))


@contextlib.contextmanager
def messages(_: Path) -> Iterator[Feed]:
    trees = _trees([m.Envelope(m.Header(0, m.VERSION, "bob", "1", "r"), body) for body in _bodies()])
    yield lambda rng: refusing(lambda: m.decode(_bad(trees, rng)), ProtocolError)


@contextlib.contextmanager
def public(_: Path) -> Iterator[Feed]:
    said = PublicMessage(kind="sacrifice", body={"seed": 1, "bits": b"\1\2", "x": [1, 2.5]}, leaked_bits=3)
    trees = _trees([m.PublicEnvelope("r", 0, "agree", -1, "bob", said)])
    yield lambda rng: refusing(lambda: m.decode_public(_bad(trees, rng)), ProtocolError)


@contextlib.contextmanager
def node(_: Path) -> Iterator[Feed]:
    """Bad orders that pass the gate, to nodes in different states."""
    from testbed.nodes import events as e
    from testbed.nodes.state import NodeState

    trees = _trees([m.Envelope(m.Header(0, m.VERSION, "coordinator", "1", "r"), body) for body in _bodies()])
    welcome = e.Received(m.Welcome(run="r", lost_after_s=8.0))
    configure = e.Received(next(b for b in _bodies() if isinstance(b, m.Configure)))
    tuned = e.DeviceDone(m.Configured(accepted={}))

    def feed(rng: random.Random) -> str:
        made = NodeState(rng.choice(["alice", "bob", "eve", "ris"]), 1)
        for event in [welcome, configure, tuned][: rng.randrange(4)]:
            made.handle(event)
        outcome = "refused"
        for _ in range(3):
            try:
                body = m.decode(_bad(trees, rng)).body
            except ProtocolError:
                continue
            made.handle(e.Received(body))
            made.handle(e.Tick(rng.random() * 100))
            outcome = "accepted"
        return outcome

    yield feed


class FakeHub:
    """In place of the coordinator's sockets: nodes that answer at once, one of their messages spoilt."""

    def __init__(self, *_: Any) -> None:
        from collections import Counter

        self.port, self.run, self.refused = 0, "", Counter[str]()
        self.socket = self.handshakes = self
        self.refused_key, self.not_understood, self.other_version = False, 0, ""
        self.queue: list[tuple[str, Any]] = []
        self.answer: Callable[[str, Any], list[Any]] = lambda *_: []
        self.spoil: Callable[[Any], Any] = lambda body: body
        self.blamed: list[str] = []

    def look(self, *_: Any, **__: Any) -> None:
        """Stands for what needs nothing done: looks at handshakes, polls, closes."""

    poll = close = withdraw = strike = look

    def link_changes(self) -> list[Any]:
        return []

    drops = link_changes

    def blame(self, name: str) -> None:
        self.blamed.append(name)

    def send(self, name: str, body: Any, to_pulse: bool = False) -> None:
        self.queue += [(name, answer) for answer in self.answer(name, body)]

    def receive(self) -> Any:
        import zmq

        if not self.queue:
            raise zmq.Again
        name, body = self.queue.pop(0)
        body = self.spoil(body)
        return None if body is None else (name, m.Header(0, m.VERSION, name, f"{name}1"), body)


@contextlib.contextmanager
def coordinator(folder: Path) -> Iterator[Feed]:
    """A whole run on record, one of the nodes' messages changed so that it still passes the gate; then its page."""
    import sys
    from unittest import mock

    sys.path.insert(0, str(Path(__file__).parents[1] / "state"))
    import test_coordinator as paper

    from testbed.coordinator import server
    from testbed.core.config import Experiment, Lab
    from testbed.core.errors import TestbedError
    from testbed.report import html

    lab = msgspec.convert({k: v for k, v in paper.LAB.items() if k != "world"}, Lab)
    experiment = msgspec.convert({**paper.EXPERIMENT, "surface": {"policy": "none"}}, Experiment)
    noise = np.random.default_rng(1)

    def usual(made: Any, name: str, body: Any) -> list[Any]:
        if isinstance(body, m.Probe):
            n = made._frame.subcarrier_hz.size
            results = []
            for plan in body.rounds:
                csi = (noise.normal(size=(1, 1, n, 2)) @ [1, 1j]).astype(np.complex64)
                link = m.LinkResult(tx="alice", reason=None, snr_db=20.0, shape=csi.shape, csi=csi.tobytes())
                heard = [msgspec.structs.replace(link, tx=slot.tx) for slot in plan.slots if name in slot.rx]
                results.append(m.RoundResult(round=plan.round, links=heard))
            return [m.Captured(round=body.round), m.Probed(rounds=results)]
        answers = paper.Stage.usual(made, name, body)
        return [msgspec.structs.replace(x, digest="ab" * 32) if hasattr(x, "digest") else x for x in answers]

    def feed(rng: random.Random) -> str:
        path = folder / "run"
        shutil.rmtree(path, ignore_errors=True)
        times = iter(range(10**9))
        clock = type("Clock", (), {"now_s": lambda _: next(times) * 0.02})()
        with mock.patch.object(server.transport, "Wire", return_value=mock.Mock(hub=FakeHub)):
            made = server.Coordinator(lab, experiment, path, None, clock)
        hub = made._hub
        hub.answer = lambda name, body: usual(made, name, body)
        at, told = rng.randrange(60), [0]

        def spoil(body: Any) -> Any:
            told[0] += 1
            if told[0] != at:
                return body
            tree = msgspec.msgpack.decode(msgspec.msgpack.encode(m.Envelope(m.Header(0, m.VERSION, "bob", "1"), body)))
            for _ in range(20):  # one that passes the gate: what does not is tried by `messages`
                with contextlib.suppress(ProtocolError):
                    return m.decode(mu.packed({**tree, "body": mu.spoil_tree(tree["body"], rng)})).body
            return None

        hub.spoil = spoil
        for name in made.state.nodes:
            hello = m.Hello(role=lab.node[name].role, identity={"driver": "x"}, pid=1, discussion_port=1)
            hub.queue.append((name, hello))
        try:
            outcome = made.run(None)
        except TestbedError as exc:
            if "\n" in str(exc) or not str(exc).isprintable():
                raise AssertionError(f"a refusal of several lines: {str(exc)[:100]!r}") from exc
            return "refused"
        assert "\n" not in outcome.detail, outcome.detail
        assert not hub.blamed, "a message could not be handled"
        if rng.random() < 0.02:
            html.make(path)
        return "accepted" if outcome.status == "finished" else "refused"

    yield feed


@contextlib.contextmanager
def scheduling(_: Path) -> Iterator[Feed]:
    """The coordinator's state machine alone in short runs, some of the nodes' messages changed so that they still pass
    the gate; its invariants are checked after every event."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "state"))
    import test_coordinator as paper
    import test_random_events as others

    unasked = [body for body in _bodies() if isinstance(body, m.FROM_NODES)]

    class Stage(paper.Stage):
        def __init__(self, rng: random.Random, **changes: Any) -> None:
            self._rng, self._share = rng, rng.choice([0.02, 0.1, 0.3])
            super().__init__(**changes)
            handle = self.state.handle

            def checked(event: Any) -> Any:
                out = handle(event)
                self.state.check()
                return out

            self.state.handle = checked  # type: ignore[method-assign]

        def says(self, name: str, body: Any) -> Any:
            if self._rng.random() < self._share:
                tree = _trees([m.Envelope(m.Header(0, m.VERSION, "bob", "1"), body)])[0]
                with contextlib.suppress(ProtocolError):  # what does not pass the gate is tried by `messages`
                    body = m.decode(mu.packed({**tree, "body": mu.spoil_tree(tree["body"], self._rng)})).body
            return super().says(name, body)

        def usual(self, node: str, body: Any) -> list[Any]:
            """Answer an order, now and then before or after something that nobody asked for, or not at all."""
            answers = super().usual(node, body)
            if self._rng.random() < self._share:
                answers.insert(self._rng.randrange(len(answers) + 1), self._rng.choice(unasked))
            return [x for x in answers if self._rng.random() > self._share / 10]

    def feed(rng: random.Random) -> str:
        made = Stage(
            rng, surface=rng.choice(others.SURFACES), rounds=6, accounting={"block_rounds": 3},
            training=rng.choice([{}, {"rounds": 2, "guard_rounds": 1}]), probing={"train": rng.choice([0, 1, 2])},
        )  # fmt: skip
        made.schedule_size = rng.choice([0, 4])
        made.join()
        made.wait(2000.0)
        assert made.over is not None, f"the run does not end: {made.state.phase}"
        assert "\n" not in made.over.detail, made.over.detail
        return "accepted" if made.over.status == "finished" else "refused"

    yield feed


@contextlib.contextmanager
def world(_: Path) -> Iterator[Feed]:
    """Bad requests to a world with two radios and a board."""
    from sim_backend import messages as w
    from sim_backend import server

    replies: list[w.Reply] = []
    made = server.Server(lambda route, frames: replies.append(w.decode_reply(frames[0])), "virtual", 1.0)
    now, route = 0.0, itertools_count()

    def ask(request: Any, *payload: bytes) -> w.Reply:
        made.handle(b"good", [w.encode(request), *payload], now)
        made.settle(now)
        return replies[-1]

    scene = config.load_experiment("static_room").scene
    ask(w.Reset(id=1, scene=msgspec.to_builtins(scene), carrier_hz=2.4e9, seed=1))
    trees: list[Any] = []
    not_a_number = np.full(9, np.nan, np.complex64).tobytes()

    def furnish() -> None:
        trees.clear()
        for name in ("alice", "bob", "ris"):
            kind = "board" if name == "ris" else "radio"
            session = ask(w.Attach(id=2, protocol=w.PROTOCOL, name=name, kind=kind)).session  # type: ignore[arg-type]
            own = {"id": 3, "session": session}
            if kind == "board":
                ask(w.Hang(**own, rows=4, columns=4, phase_bits=1))
                requests = [
                    w.Hang(**own, rows=4, columns=4, phase_bits=1),
                    w.Apply(**own, latency=5),
                    w.Readback(**own),
                ]
            else:
                windows = [w.Window(start=n * 10**6, n_samples=20) for n in range(3)]
                tune = w.Tune(**own, place=name, carrier_hz=2.4e9, sample_rate_hz=4e7, turnaround_s=1e-5)
                ask(tune)
                requests = [
                    tune, w.Transmit(**own, start=10**9, seed=1), w.Silence(**own), w.Declare(**own, until=10**9),
                    w.Receive(**own, start=0, n_samples=100, timeout_s=1.0, seed=1), w.Now(**own),
                    w.Pass(**own, until=5),
                    w.ReceiveMany(**own, windows=windows, timeout_s=1.0, seed=1),
                    w.Attach(id=2, protocol=w.PROTOCOL, name="eve", kind="radio"), w.Detach(**own),
                ]  # fmt: skip
            trees.extend(_trees(requests))

    def feed(rng: random.Random) -> str:
        nonlocal now
        if rng.random() < 0.02:  # a radio that was released is put on the air again
            ask(w.Reset(id=1, scene=msgspec.to_builtins(scene), carrier_hz=2.4e9, seed=1))
            furnish()
        now += 0.01
        replies.clear()
        payload = rng.choice([b"", bytes(16), bytes(800), rng.randbytes(80), not_a_number])
        frames = [_bad(trees, rng), payload][: rng.choice([1, 2, 2])]
        made.handle(b"%d" % next(route), frames, now)
        made.settle(now)
        assert made.due_in_s(now) >= 0
        if any("could not be" in r.detail for r in replies):
            raise AssertionError(f"guarded: {replies[-1].detail}")
        return "refused" if replies and replies[-1].error else "accepted"

    furnish()
    yield feed


def itertools_count() -> Iterator[int]:
    import itertools

    return itertools.count()


def _talk(ends: dict[str, Any], at: int, phase: str, rng: random.Random) -> bool:
    """Let two conversations talk, one message spoilt as it would come over the wire; returns whether the gate let it
    pass. Raises AssertionError where they do not end."""
    passed = True
    line = [(role, x) for role, end in ends.items() for x in end.advance()]
    for n in range(5000):
        if not line:
            break
        sender, message = line.pop(0)
        reader = "bob" if sender == "alice" else "alice"
        if n == at:
            envelope = m.PublicEnvelope("r", 0, phase, -1, sender, message)  # type: ignore[arg-type]
            try:
                message = m.decode_public(_bad(_trees([envelope]), rng)).message
            except ProtocolError:
                passed = False
                continue  # refused by the gate, hence lost
        line += [(reader, x) for x in ends[reader].advance(message)]
    else:
        raise AssertionError("the discussion does not end")
    for end in ends.values():
        end.fail("timeout")
        assert end.done
    return passed


def _measured(n_rounds: int = 120) -> tuple[Any, Any]:
    """CSI of both ends."""
    from testbed.core.types import CsiSeries

    noise = np.random.default_rng(1)
    h, *own = (noise.normal(size=(n_rounds, 1, 1, 8, 2)) @ [1, 1j] for _ in range(3))
    alice, bob = (
        CsiSeries((h + 0.03 * n).astype(np.complex64), np.arange(n_rounds), np.arange(8) * 6e5) for n in own
    )  # fmt: skip
    return alice, bob


def _plans() -> list[Any]:
    """Chains with every quantizer and every reconciler."""
    from testbed.core import registry
    from testbed.core.config import ChainPlan

    plans = [ChainPlan(enhance_options={"step": 1}, quantize=name) for name in registry.names("quantize")]
    plans.append(ChainPlan(enhance_options={"step": 1}, quantize_options={"bits": 1}, reconcile="ldpc"))
    plans.append(ChainPlan(enhance_options={"step": 1}, quantize="equiprobable", reconcile="multilevel"))
    return plans


@contextlib.contextmanager
def amplification(_: Path) -> Iterator[Feed]:
    """Bad messages where a key is made of a verified string, with one-time tags and without."""
    from testbed.chain import dialogue as talks
    from testbed.chain.dialogue import Conversation
    from testbed.chain.pipeline import KeyChain
    from testbed.chain.wegman_carter import Pool
    from testbed.core.config import Accounting, ChainPlan
    from testbed.core.outcomes import KeyReport

    plan, accounting = ChainPlan(enhance_options={"step": 1}), Accounting(epsilon_log2=8)
    csi = dict(zip(("alice", "bob"), _measured(), strict=True))
    decided = KeyReport(block=0, key_bits=448)

    def chains(tagged: bool) -> dict[str, Any]:
        return {
            role: KeyChain(plan, accounting, least_key_bits=64, pool=Pool.of_rehearsal(7) if tagged else None)
            for role in csi
        }

    agreed = {}
    for tagged in (False, True):
        made = chains(tagged)
        a, b, _said = talks.run(*(made[role].agree(role, csi[role], 0, 1) for role in made))  # type: ignore[arg-type]
        assert a.report.verified
        agreed[tagged] = {"alice": a, "bob": b}

    def feed(rng: random.Random) -> str:
        tagged = rng.random() < 0.7
        made = chains(tagged)
        ends = {
            role: Conversation(made[role].amplify(role, agreed[tagged][role], decided if role == "alice" else None, 1))  # type: ignore[arg-type]
            for role in made
        }
        _talk(ends, rng.randrange(3), "amplify", rng)
        keys = [end.result[0].bits for end in ends.values() if end.result is not None and end.result[0] is not None]
        if len(keys) == 2:
            assert np.array_equal(*keys), "two different keys"
        if tagged:
            assert all(made[role]._pool.pairs <= 65 for role in made)
        return "accepted" if len(keys) == 2 else "refused"

    yield feed


@contextlib.contextmanager
def training(_: Path) -> Iterator[Feed]:
    """Bad messages of a training, and the next block's first ones after it."""
    from testbed.chain.dialogue import Conversation
    from testbed.chain.pipeline import KeyChain
    from testbed.core.config import Accounting, ChainPlan

    plan = ChainPlan(enhance="linear_mmse", enhance_options={"step": 4}, quantize_options={"bits": 1})
    csi = dict(zip(("alice", "bob"), _measured(), strict=True))

    def feed(rng: random.Random) -> str:
        made = {role: KeyChain(plan, Accounting(epsilon_log2=8)) for role in csi}
        ends = {role: Conversation(made[role].train(role, csi[role], 0, 1)) for role in made}  # type: ignore[arg-type]
        _talk(ends, rng.randrange(3), "agree", rng)
        for role, end in ends.items():
            assert end.result is not None
            if end.result.failure is None:
                made[role].features(csi[role], role)  # type: ignore[arg-type]
        return "accepted" if all(end.result.failure is None for end in ends.values()) else "refused"

    yield feed


@contextlib.contextmanager
def dialogue(_: Path) -> Iterator[Feed]:
    """Bad messages of a block's agreement, as they would come over the wire."""
    from testbed.chain.dialogue import Conversation
    from testbed.chain.pipeline import KeyChain
    from testbed.core.config import Accounting

    alice, bob = _measured(60)
    chains = [KeyChain(plan, Accounting(epsilon_log2=8)) for plan in _plans()]

    def feed(rng: random.Random) -> str:
        chain = rng.choice(chains)
        ends = {
            "alice": Conversation(chain.agree("alice", alice, 0, 1)), "bob": Conversation(chain.agree("bob", bob, 0, 1))
        }  # fmt: skip
        passed = _talk(ends, rng.choice([0, 1, 2, 3, 4, 5, 8, 13, 21, 40]), "agree", rng)
        results = [end.result for end in ends.values()]
        both = all(r is not None and r.report.verified for r in results)
        if both:
            assert np.array_equal(results[0].values, results[1].values)
        return "accepted" if passed and both else "refused"

    yield feed


@contextlib.contextmanager
def overheard(_: Path) -> Iterator[Feed]:
    """Eve's attack on a block, one of whose public messages was changed or is missing."""
    from testbed.chain import dialogue as talks
    from testbed.chain.pipeline import KeyChain
    from testbed.core.config import Accounting

    alice, bob = _measured()
    blocks = []
    for plan in _plans():
        chain = KeyChain(plan, Accounting(epsilon_log2=8))
        _, _, said = talks.run(chain.agree("alice", alice, 0, 1), chain.agree("bob", bob, 0, 1))
        blocks.append((chain, said))

    def feed(rng: random.Random) -> str:
        chain, said = rng.choice(blocks)
        at = rng.randrange(min(len(said), rng.choice([4, 8, 500])))
        sender, message = said[at]
        heard = [message for _, message in said]
        try:
            envelope = m.PublicEnvelope("r", 0, "agree", at, sender, message)
            heard[at] = m.decode_public(_bad(_trees([envelope]), rng)).message
        except ProtocolError:
            del heard[at]
        guess = chain.eavesdrop(0, rng.choice([alice, alice, None]), bob, heard, True)
        found = chain.guess_key(guess, heard)
        assert found is None or found.reconciled.size == guess.kept.size
        assert 0 <= guess.report.sacrificed_errors <= guess.report.covered_bits <= guess.report.sacrificed_bits
        return "accepted" if guess.report.sacrificed_bits else "refused"

    yield feed


# ---------------------------------------------------------------- the line between Alice and Bob


class _Pipe:
    """In place of a socket: what is sent is listed, what is to be received is put in by the target."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.frames: list[Any] = []

    def send_multipart(self, frames: list[bytes], *_: Any) -> None:
        self.sent.append(list(frames))

    def bind_to_random_port(self, _: str) -> int:
        return 1

    def nothing(self, *_: Any) -> None:
        """Stands for what has no effect here: connects, disconnects, closes."""

    connect = disconnect = close = nothing

    def recv_multipart(self, copy: bool) -> list[Any]:
        return self.frames

    def recv(self) -> bytes:
        data: bytes = self.frames[-1].bytes
        return data


class _Frame:
    def __init__(self, data: bytes, name: str) -> None:
        self.bytes, self.name = data, name


class _Line:
    """Alice's and Bob's ends of a discussion, and what is on its way between them."""

    def __init__(self) -> None:
        from testbed.net import transport

        sockets = {
            "socket": lambda *_, **__: _Pipe(), "sender_of": lambda _, frame: frame.name,
            "handshakes": lambda *_: None,
        }  # fmt: skip
        self._wire: Any = type("Wire", (), sockets)()
        self.transport = transport
        self.host = transport.DiscussionHost(self._wire, "h", 0, "bob")
        self.route = b"0"
        self.call_bob()

    def call_bob(self) -> None:
        """Begin a new process of Bob's, with a connection of its own."""
        self.route = b"%d" % (int(self.route) + 1)
        self.guest = self.transport.DiscussionGuest(self._wire, "e", "alice")
        self.said: dict[str, int] = {"alice": 0, "bob": 0}
        self.heard: dict[str, list[int]] = {"alice": [], "bob": []}

    def say(self, who: str) -> None:
        message = PublicMessage(kind="parity", body={"n": self.said[who], "of": self.route.decode()})
        self.said[who] += 1
        (self.host if who == "alice" else self.guest).send(m.PublicEnvelope("r", 0, "agree", -1, who, message))  # type: ignore[arg-type]

    def take(self, who: str) -> list[bytes]:
        """Return what an end has sent since the last call, as it leaves."""
        socket = (self.host if who == "alice" else self.guest).socket
        sent, socket.sent = socket.sent, []
        return [frames[-1] for frames in sent if len(frames) == 1 or frames[0] == self.route]

    def give(self, who: str, data: bytes, name: str = "bob", frames: int = 2) -> None:
        """Hand an end what arrives on its line."""
        end = self.host if who == "alice" else self.guest
        end.socket.frames = [_Frame(self.route, name), *[_Frame(data, name)] * (frames - 1)]
        got = end.receive()
        if got is not None and got.message.body.get("of") == self.route.decode():
            self.heard[who].append(got.message.body.get("n"))

    def exchange(self, turns: int) -> None:
        """Let both ends talk over a line that loses nothing, a second a turn."""
        for _ in range(turns):
            self.transport.time.sleep(1.0)
            self.guest.say_here()
            for sender, reader in (("bob", "alice"), ("alice", "bob")):
                for data in self.take(sender):
                    self.give(reader, data)


def _spoilt_here(data: bytes, rng: random.Random) -> bytes:
    """What an end says of itself, with other numbers, another incarnation, or other bytes."""
    from testbed.net.transport import HERE

    if rng.random() < 0.3:
        return mu.spoil_bytes(data, rng)
    fields = list(HERE.unpack(data))
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(fields))
        if at == 0:
            fields[0] = rng.randbytes(8)
        else:
            near = fields[at] + rng.choice([-2, -1, 1, 2, 50])
            value = rng.choice([near, near, near, fields[rng.randrange(1, 5)], *mu.NUMBERS, 2**47, 2**48])
            fields[at] = max(-(2**63), min(value, 2**63 - 1))
    return HERE.pack(*fields)


def _spoilt_frame(data: bytes, rng: random.Random) -> bytes:
    from testbed.net.transport import HERE

    if len(data) == HERE.size:
        return _spoilt_here(data, rng)
    tree = msgspec.msgpack.decode(data)
    if rng.random() < 0.5:
        tree[rng.choice(["number", "seen"])] = rng.choice(mu.NUMBERS)
        return mu.packed(tree)
    return _bad([tree], rng)


class _Meddler:
    """Sits on a line; one that does not forge only loses frames, repeats them and changes their order."""

    def __init__(self, line: _Line, rng: random.Random, forges: bool, now_s: Callable[[], float]) -> None:
        self._line, self._rng, self._forges, self._now_s = line, rng, forges, now_s
        self._kept: dict[str, list[bytes]] = {"alice": [], "bob": []}
        self._repeats, self._began_s = 0, now_s()

    def turn(self) -> None:
        """Let both ends say something, and meddle with it."""
        for who in ("alice", "bob"):
            for _ in range(self._rng.randrange(3)):
                self._line.say(who)
        if self._rng.random() < 0.8:
            self._line.guest.say_here()
        for sender, reader in (("bob", "alice"), ("alice", "bob")):
            frames = self._line.take(sender)
            self._kept[sender] = (self._kept[sender] + frames)[-20:]
            for data in self._changed(frames, self._kept[sender], self._kept[reader]):
                self._give(reader, data)

    def _changed(self, frames: list[bytes], earlier: list[bytes], others: list[bytes]) -> list[bytes]:
        rng = self._rng
        match rng.randrange(6 if self._forges else 4):
            case 0:
                return rng.sample(frames, len(frames))
            case 1:
                return [x for x in frames if rng.random() < 0.5]
            case 2:
                return frames + rng.choices(earlier, k=2) if earlier else frames
            case 3:
                return frames
            case 4:
                return frames + rng.choices(others, k=2) if others else frames  # the reader's own words
        return [_spoilt_frame(x, rng) if rng.random() < 0.5 else x for x in frames]

    def _give(self, reader: str, data: bytes) -> None:
        """Hand a frame on; raises AssertionError where Alice answers with all that she owes more often than she may."""
        from testbed.net import transport

        sent = self._line.host.socket.sent
        before, odd = len(sent), self._forges and self._rng.random() < 0.05
        name, frames = self._rng.choice([("eve", 2), ("?", 2), ("bob", 1), ("bob", 3)]) if odd else ("bob", 2)
        self._line.give(reader, data, name, frames)
        self._repeats += len(sent) - before > 1
        may = 2 + (self._now_s() - self._began_s) / transport._AGAIN_S
        assert self._repeats <= may, f"all that is owed was sent {self._repeats} times, accepted: {may:.1f}"


@contextlib.contextmanager
def session(_: Path) -> Iterator[Feed]:
    """The frames by which the ends of a discussion know what was lost: numbers, claims of losses, incarnations.

    A line that only loses, repeats and exchanges frames loses no message. Whatever else was done on a line, Alice
    serves the next process of Bob's.
    """
    from unittest import mock

    from testbed.net import transport

    clock = FakeTime(step_s=0.002)

    def heard(line: _Line) -> None:
        for who, other in (("alice", "bob"), ("bob", "alice")):
            assert line.heard[who] == list(range(line.said[other])), f"{who} heard {line.heard[who]}"

    def feed(rng: random.Random) -> str:
        line, forges = _Line(), rng.random() < 0.7
        for _ in range(rng.randrange(5)):
            line.say("alice")  # before Bob is there
        meddler = _Meddler(line, rng, forges, lambda: clock.now_s)
        for _ in range(rng.randrange(1, 12)):
            meddler.turn()
        if not forges:
            line.exchange(3)
            heard(line)
        refused = sum((line.host.refused + line.guest.refused).values())
        line.call_bob()
        line.exchange(2)
        for _ in range(8):
            line.say("alice")
            line.say("bob")
        line.exchange(3)
        heard(line)
        assert not line.host._session.owed
        return "refused" if refused else "accepted"

    with mock.patch.object(transport, "time", clock):
        yield feed


# ---------------------------------------------------------------- boards and radios


class FakeLine:
    """A serial line whose other end is a function; there is no waiting, time is counted."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer, self.is_open, self.port, self._came = answer, True, "/dev/null", b""

    def open(self) -> None:
        self.is_open = True

    def reopen(self, timeout_s: float) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def write(self, data: bytes, timeout_s: float) -> None:
        self._came += self._answer(data)

    def read_until(self, terminator: bytes, timeout_s: float, limit: int = 1024) -> bytes:
        if terminator not in self._came[:limit]:
            came, self._came = self._came, b""
            raise DeviceTimeout("ris", "read", "open", f"only {came[:40]!r}")
        end = self._came.index(terminator) + len(terminator)
        out, self._came = self._came[:end], self._came[end:]
        return out

    def read(self, n_max: int, timeout_s: float) -> bytes:
        out, self._came = self._came[:n_max], self._came[n_max:]
        return out

    def drain(self, timeout_s: float = 0.1) -> bytes:
        out, self._came = self._came, b""
        return out


class FakeTime:
    """A clock that advances at every reading, so that every deadline passes."""

    def __init__(self, step_s: float = 0.02) -> None:
        self.now_s, self._step_s = 0.0, step_s

    def monotonic(self) -> float:
        self.now_s += self._step_s
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@contextlib.contextmanager
def _board(module: Any, answer: Callable[[random.Random], Callable[[bytes], bytes]], operate: Any) -> Iterator[Feed]:
    from testbed.core.world import DriverContext

    real = module.SerialLink, module.time, getattr(module, "os", None)
    context = DriverContext(seed=1, world=None, identity=None, state_dir=Path())

    def feed(rng: random.Random) -> str:
        module.SerialLink = lambda *_: FakeLine(answer(rng))
        module.time = FakeTime()
        module.os = type("os", (), {"urandom": rng.randbytes})
        return refusing(lambda: operate(context, rng), DeviceError, InputError)

    try:
        yield feed
    finally:
        module.SerialLink, module.time, module.os = real


@contextlib.contextmanager
def opensourceris(_: Path) -> Iterator[Feed]:
    from firmware_ctl.boards import opensourceris as module
    from testbed.core import patterns

    pattern = patterns.make("random(1)", (16, 16), 1)
    held = b"#0X" + patterns.to_hex(pattern)[2:].upper().encode() + b"\n"
    replies = {b"?SerialNo": b"#SerNo:  12\n", b"?Vext": b"#9.14 V\n", b"?Pattern": held, b"!Reset": b"#READY!\n"}

    def answer(rng: random.Random) -> Callable[[bytes], bytes]:
        share = rng.choice([0.02, 0.2, 1.0])

        def say(data: bytes) -> bytes:
            good = b"".join(replies.get(line, b"#OK\n") for line in data.split(b"\n") if line)
            return mu.spoil_bytes(good, rng) if rng.random() < share else good

        return say

    def operate(context: Any, rng: random.Random) -> None:
        board = module.OpenSourceRis("ris", context, uri="/dev/null")
        board.apply(pattern)
        board.readback()
        board.reset()

    with _board(module, answer, operate) as feed:
        yield feed


@contextlib.contextmanager
def ris595(_: Path) -> Iterator[Feed]:
    import binascii
    import struct

    from cobs import cobs

    from firmware_ctl.boards import _frames
    from firmware_ctl.boards import ris595 as module
    from testbed.core import patterns

    pattern = patterns.make("random(1)", (16, 16), 1)

    def answer(rng: random.Random) -> Callable[[bytes], bytes]:
        share = rng.choice([0.02, 0.2, 1.0])

        def say(data: bytes) -> bytes:
            out = b""
            for frame in filter(None, data.split(b"\0")):
                try:
                    body = cobs.decode(frame)
                except cobs.DecodeError:
                    continue
                if len(body) < 6:
                    continue
                _, seq, command = struct.unpack_from("<BHB", body)
                payload = bytes(4) + binascii.crc32(body[4:-2]).to_bytes(4, "little")
                if command == _frames.Command.HELLO:
                    payload = body[4:8] + struct.pack("<4B3H", 1, 0, 0, 1, 16, 16, 64) + struct.pack("<HI", 0, 0)
                    payload += struct.pack("<HIIBH", 200, 7, 1, 0, 300)
                    payload = payload[:33].ljust(33, b"\0")
                kind = _frames.DONE | command
                if rng.random() < share:
                    payload = mu.spoil_bytes(payload, rng)[:200]
                    kind = rng.choice([kind, kind, kind, _frames.ERROR, _frames.QUEUED | command, rng.randrange(256)])
                reply = struct.pack("<BHBB", _frames.PROTOCOL, seq, kind & 0xFF, rng.choice([0, 0, 255])) + payload
                wire = cobs.encode(reply + struct.pack("<H", binascii.crc_hqx(reply, 0xFFFF))) + b"\0"
                out += mu.spoil_bytes(wire, rng) if rng.random() < share / 4 else wire
            return out

        return say

    def operate(context: Any, rng: random.Random) -> None:
        board = module.Ris595("ris", context, uri="/dev/null")
        jobs: list[Callable[[], Any]] = [
            lambda: board.apply(pattern), board.readback, board.now_s, lambda: board.queue(pattern), board.trigger,
            lambda: board.upload([pattern] * 3), lambda: board.apply_index(1), board.reset, board.identity,
            lambda: board.set_watchdog(1.0),
        ]  # fmt: skip
        for job in rng.sample(jobs, 4):
            with contextlib.suppress(DeviceError):
                job()

    with _board(module, answer, operate) as feed:
        yield feed


@contextlib.contextmanager
def iio(_: Path) -> Iterator[Feed]:
    """Bad commands to the emulated Pluto's server; a good client must be served after each."""
    from sim_backend.emulators.pluto import EmulatedPluto
    from sim_backend.local import world_in_thread
    from testbed.core.config import PlacedNode, Scene
    from testbed.core.world import DriverContext

    scene = Scene(alice=PlacedNode(position_m=[2.0, 8.0, 1.5]), bob=PlacedNode(position_m=[7.0, 8.0, 1.5]))
    commands = [
        b"VERSION\r\n", b"PRINT\r\n", b"TIMEOUT 500\r\n", b"OPEN iio:device3 64 00000003\r\n", b"CLOSE iio:device3\r\n",
        b"READBUF iio:device3 256\r\n", b"OPEN iio:device2 64 00000003\r\n",
        b"WRITEBUF iio:device2 256\r\n" + bytes(256),
        b"READ iio:device0 INPUT voltage0 hardwaregain\r\n", b"WRITE iio:device0 INPUT voltage0 hardwaregain 3\r\n12\n",
        b"WRITE iio:device0 DEBUG direct_reg_access 3\r\n0x4\n", b"SET iio:device3 BUFFERS_COUNT 4\r\n",
        b"GETTRIG iio:device3\r\n", b"READ iio:device0\r\n", b"EXIT\r\n",
    ]  # fmt: skip

    with world_in_thread(scene, seed=11) as endpoint:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=Path())
        pluto = EmulatedPluto("alice", context, cfo_ppm=0.0, canned=True)
        _, host, port = pluto.uri.split(":")

        def talk(data: bytes, wait_s: float) -> bytes:
            heard = b""
            with socket.create_connection((host, int(port)), timeout=5) as wire, contextlib.suppress(OSError):
                wire.sendall(data)
                wire.shutdown(socket.SHUT_WR)
                wire.settimeout(wait_s)
                while len(heard) < 1 << 20 and (more := wire.recv(65536)):
                    heard += more
            return heard

        def feed(rng: random.Random) -> str:
            script = b"".join(rng.choice(commands) for _ in range(rng.randrange(1, 6)))
            heard = talk(mu.spoil_bytes(script, rng), 0.5)
            told = talk(b"VERSION\r\nPRINT\r\nEXIT\r\n", 5.0)
            if not told.startswith(b"0.2") or not told.rstrip().endswith(b"</context>"):
                raise AssertionError(f"a good client hears {told[:60]!r}")
            import xml.etree.ElementTree as tree

            tree.fromstring(told[told.index(b"<?xml") :].strip())
            return "refused" if b"-" in heard else "accepted"

        try:
            yield feed
        finally:
            pluto.close()


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def _text(folder: Path, names: list[Path], load: Callable[[str], Any], suffix: str) -> Iterator[Feed]:
    seeds = [p.read_text() for p in names]
    path = folder / f"x{suffix}"

    def feed(rng: random.Random) -> str:
        if rng.random() < 0.2:
            path.write_bytes(mu.spoil_bytes(rng.choice(seeds).encode(), rng))
        else:
            path.write_text(mu.spoil_text(rng.choice(seeds), rng), encoding="utf-8", errors="replace")
        return refusing(lambda: load(str(path)), InputError)

    yield feed


def lab(folder: Path) -> contextlib.AbstractContextManager[Feed]:
    from testbed.core.config import Lab

    return _text(folder, list(config.bundled(Lab).values()), config.load_lab, ".toml")


def experiment(folder: Path) -> contextlib.AbstractContextManager[Feed]:
    from testbed.core.config import Experiment

    return _text(folder, list(config.bundled(Experiment).values()), config.load_experiment, ".toml")


def pattern(folder: Path) -> contextlib.AbstractContextManager[Feed]:
    from testbed.core import patterns

    good = folder / "good.json"
    patterns.save(good, patterns.make("random(1)", (4, 4), 1), {"from": "x"})
    return _text(folder, [good], lambda path: patterns.load(Path(path)), ".json")


@contextlib.contextmanager
def pool(folder: Path) -> Iterator[Feed]:
    """A node's pool of one-time authentication; one that is accepted must serve."""
    from testbed.chain.wegman_carter import PAIR_BYTES, Pool
    from testbed.core.errors import DialogueFailed
    from testbed.nodes import pool_file

    path = folder / pool_file.NAME
    pool_file.make([path], 1024)
    good = path.read_bytes()
    tree = json.loads(good)

    def use() -> None:
        held = pool_file.read(path)
        with contextlib.suppress(DialogueFailed):
            name, number, pads, _ = held.choose(Pool.load(held.dump()).offer())
            assert len(pads) == PAIR_BYTES
            assert number >= 0
            assert name not in [row[0] for row in held.offer() if row[1] <= number]
        held.dump()

    def feed(rng: random.Random) -> str:
        text = json.dumps(mu.spoil_tree(tree, rng), default=str).encode()
        path.write_bytes(text if rng.random() < 0.6 else mu.spoil_bytes(good, rng))
        return refusing(use, InputError)

    yield feed


def _data_sets(folder: Path) -> list[tuple[Path, str, bytes]]:
    """Write small good data sets; return each file that is spoilt, with the map that reads it and its content."""
    import gzip

    import h5py
    import scipy.io

    from testbed.replay import wifi

    noise = np.random.default_rng(1)
    a, b = (noise.normal(size=(20, 4, 2)) @ [1, 1j] for _ in range(2))
    at = noise.permutation(20) * 0.1
    head = "schema = 1\nsubcarrier_spacing_hz = 3e5\n"
    plain = head + "".join(f'[{end}]\narray = "{end[0]}"\ntime = "t"\n' for end in ("alice", "bob"))
    named = {"a": a, "b": b, "t": at, "who": np.array(["x", "y"] * 10)}
    np.savez(folder / "x.npz", **named)
    np.savez_compressed(folder / "y.npz", **named)
    scipy.io.savemat(folder / "x.mat", named)
    scipy.io.savemat(folder / "y.mat", named, do_compression=True)
    for name, options in (("x.h5", {}), ("y.h5", {"compression": "gzip", "chunks": True})):
        with h5py.File(folder / name, "w") as f:
            for key in ("a", "b", "t"):
                f.create_dataset(key, data=named[key], **options)
    np.save(folder / "x.npy", a)
    rows = ["t,a0,a1,b0,b1"] + [f"{at[i]},{a[i, 0]},{a[i, 1]},{b[i, 0]},{b[i, 1]}" for i in range(20)]
    (folder / "x.csv").write_text("\n".join(rows))
    line = "CSI_DATA,AP,3C:71,-50,11,1,0,1,1,1,0,0,0,0,-92,0,6,1,{t},0,70,0,1,0.5,8,[{v} ]"
    lines = [line.format(t=i * 1000, v=" ".join(map(str, noise.integers(-50, 50, 8)))) for i in range(12)]
    (folder / "x.log").write_text("\n".join([",".join(wifi._ESP32_TOOL), *lines]))
    for stem in ("sniffer_nodeA_B", "sniffer_nodeB_A", "sniffer_nodeE_A", "sniffer_nodeE_B"):
        text = b"".join(b";".join(b"%d" % v for v in row) + b";&\r\n" for row in noise.integers(-90, -60, (3, 8)))
        (folder / f"{stem}.txt.gz").write_bytes(gzip.compress(text))
    csv = plain.replace('"a"', '"a*"').replace('"b"', '"b*"')
    log = head + "".join(
        f'[{end}]\nfile = "x.log"\nformat = "esp32"\nindex = "local_timestamp"\n' for end in ("alice", "bob")
    )
    npy = head + "".join(f'[{end}]\narray = "x"\n' for end in ("alice", "bob"))
    maps = {"x.npz": plain, "y.npz": plain, "x.mat": plain, "y.mat": plain, "x.h5": plain, "y.h5": plain,
            "x.npy": npy, "x.csv": csv, "x.log": log, "sniffer_nodeA_B.txt.gz": ""}  # fmt: skip
    return [(folder / name, text, (folder / name).read_bytes()) for name, text in maps.items()]


@contextlib.contextmanager
def dataset(folder: Path) -> Iterator[Feed]:
    """Measured data sets in every format that is read, and the maps that say what is what in them."""
    from testbed.replay import map as mapping
    from testbed.replay import sources

    good = _data_sets(folder)
    plan = folder / "map.toml"

    def read(path: Path, text: str) -> None:
        plan.write_text(text, errors="replace")
        found = mapping.load(path, plan) if text else sources.load(folder)
        sources.checked(found, str(path))

    for path, text, _ in good:
        read(path, text)

    def feed(rng: random.Random) -> str:
        path, text, content = rng.choice(good)
        if text and rng.random() < 0.25:
            return refusing(lambda: read(path, mu.spoil_text(text, rng)), InputError)
        path.write_bytes(mu.spoil_bytes(content, rng))
        try:
            return refusing(lambda: read(path, text), InputError)
        finally:
            path.write_bytes(content)

    yield feed


@contextlib.contextmanager
def small_files(folder: Path) -> Iterator[Feed]:
    """Delivered keys and public keys."""
    from testbed.assess import randomness
    from testbed.core import identity, key_file

    identity.make(folder, "alice")
    identity.make(folder, "bob")
    key, public = folder / "block-0000.key", folder / "bob.public"
    goods = {key: key_file.content(np.ones(128, np.uint8)).encode(), public: public.read_bytes()}

    def feed(rng: random.Random) -> str:
        path = rng.choice(list(goods))
        path.write_bytes(mu.spoil_bytes(goods[path], rng))
        if path is key:
            return refusing(lambda: randomness.load(key, "keys"), InputError)
        return refusing(lambda: identity.load(folder, "alice", ["bob"]), InputError)

    yield feed


@contextlib.contextmanager
def model(folder: Path) -> Iterator[Feed]:
    """Saved models: archives that were damaged, and whole ones of other arrays and cards."""
    from testbed.core import registry
    from testbed.core.types import CsiSeries

    noise = np.random.default_rng(1)

    def csi() -> CsiSeries:
        h = noise.normal(size=(60, 1, 1, 8, 2)) @ [1, 1j]
        return CsiSeries(h.astype(np.complex64), np.arange(60), np.arange(8) * 1e5)

    stage = registry.make_stage("enhance", "linear_mmse", {})
    stage.fit(csi(), csi(), np.random.default_rng(1))
    good, series, path = stage.dump(), csi(), folder / "x.npz"
    import io

    with np.load(io.BytesIO(good)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    card = json.loads(arrays["card"].tobytes())

    def other(rng: random.Random) -> bytes:
        found = dict(arrays)
        text = json.dumps(mu.spoil_tree(card, rng), default=str).encode()
        found["card"] = np.frombuffer(text, np.uint8)
        name = rng.choice(list(found))
        if rng.random() < 0.5:
            shape = rng.choice([(0,), (3,), (2, 2), (), (1, 1, 1, 1)])
            found[name] = np.full(
                shape, rng.choice([0.0, np.nan, 1e300]), rng.choice(["<f8", "<f4", "<c8", "<i8", "?"])
            )
        out = io.BytesIO()
        rng.choice([np.savez, np.savez_compressed])(out, **{rng.choice([k, k, k, "x"]): v for k, v in found.items()})
        return out.getvalue()

    def read() -> None:
        new = stage.fresh()
        new.read(path)
        new.transform(series, "alice")

    def feed(rng: random.Random) -> str:
        path.write_bytes(mu.spoil_bytes(good, rng) if rng.random() < 0.4 else other(rng))
        return refusing(read, InputError)

    yield feed


@contextlib.contextmanager
def sigmf(folder: Path) -> Iterator[Feed]:
    from testbed.core.types import IqBlock
    from testbed.records import sigmf as module

    block = IqBlock(np.ones((2, 40), np.complex64), 1e6, 0.5)
    data, meta = module.write(folder / "x", block, 2.4e9, [module.Annotation(0, 4, "a")])
    good, samples = meta.read_text(), data.read_bytes()

    def feed(rng: random.Random) -> str:
        tree = mu.spoil_tree(json.loads(good), rng)
        text = json.dumps(tree, default=str) if rng.random() < 0.7 else mu.spoil_text(good, rng)
        meta.write_text(text, encoding="utf-8", errors="replace")
        data.write_bytes(samples if rng.random() < 0.8 else mu.spoil_bytes(samples, rng))
        return refusing(lambda: module.read(folder / "x"), InputError)

    yield feed


def _recorded(folder: Path) -> None:
    from testbed.records import documents
    from testbed.records.writer import RunWriter

    noise = np.random.default_rng(1)
    setting = msgspec.to_builtins(config.load_experiment("static_room"))
    place = msgspec.to_builtins(config.load_lab("sim"))
    writer = RunWriter(folder, documents.start(setting, place, subcarrier_hz=[0.0, 1e6, 2e6]))
    for r in range(20):
        for link in ("alice>bob", "bob>alice"):
            h = (noise.normal(size=(1, 1, 3, 2)) @ [1, 1j]).astype(np.complex64)
            writer.probe(r, link.split(">")[1], link, r * 0.1, 30.0, 1.0, -30.0, "ab12", h)
        writer.round(r, True, None, "ab12", r * 0.1)
    writer.pattern("ab12", np.zeros((2, 2), np.uint8), 1)
    writer.bits(0, "alice", "raw", np.array([0, 1, 1], np.uint8))
    writer.event("joined", {"node": "bob"})
    writer.flush()


@contextlib.contextmanager
def _runs(folder: Path, use: Callable[[Path], Any]) -> Iterator[Feed]:
    """Closed runs and journals; where a file was changed, its hash is made to fit as often as not."""
    from testbed.records import documents, files
    from testbed.records.writer import recover

    live, closed, tried = folder / "live", folder / "closed", folder / "tried"
    _recorded(live)
    for path in live.iterdir():
        closed.mkdir(exist_ok=True)
        shutil.copy(path, closed / path.name)
    recover(closed, lambda run: {"rounds": 20, "health": []})
    run = json.loads((closed / files.RUN).read_text())
    del documents

    def change(rng: random.Random) -> None:
        shutil.rmtree(tried, ignore_errors=True)
        if rng.random() < 0.35:
            shutil.copytree(live, tried)
            _spoil_journal(tried / files.JOURNAL, rng)
            return
        shutil.copytree(closed, tried)
        name = rng.choice([files.RUN, files.RUN, files.ROUNDS, files.SUMMARY])
        tree = mu.spoil_tree(run, rng) if name == files.RUN else run
        if name != files.RUN:
            path = tried / name
            path.write_bytes(mu.spoil_bytes(path.read_bytes(), rng))
        if isinstance(tree, dict) and rng.random() < 0.8:
            known = {n: hashlib.sha512((tried / n).read_bytes()).hexdigest() for n in (files.ROUNDS, files.SUMMARY)}
            tree = {**tree, "files": known}
        text = json.dumps(tree, default=str)
        (tried / files.RUN).write_text(mu.spoil_text(text, rng) if rng.random() < 0.1 else text)

    def feed(rng: random.Random) -> str:
        change(rng)
        return refusing(lambda: use(tried), InputError)

    yield feed


def _spoil_journal(path: Path, rng: random.Random) -> None:
    for log in path.parent.glob(f"{path.name}-*"):
        log.unlink() if rng.random() < 0.2 else None
    if rng.random() < 0.4:
        path.write_bytes(mu.spoil_bytes(path.read_bytes(), rng))
        return
    table = rng.choice(["documents", "probes", "rounds", "patterns", "bits"])
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as db:
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        if not columns:  # the tables themselves were still in the log that is gone
            return
        value = rng.choice([*mu.TEXTS, *mu.NUMBERS[:12], *mu.FLOATS, None, b"", b"\0" * 7, b"{}", "null"])
        where = rng.choice(["1", f"id = {rng.randrange(1, 5)}"])
        db.execute(f"UPDATE OR IGNORE {table} SET {rng.choice(columns)} = ? WHERE {where}", (value,))
        db.commit()


def run_folder(folder: Path) -> contextlib.AbstractContextManager[Feed]:
    from testbed.records import reader

    return _runs(folder, reader.load)


def report(folder: Path) -> contextlib.AbstractContextManager[Feed]:
    from testbed.assess import run_summary
    from testbed.records import writer
    from testbed.report import html

    def show(path: Path) -> None:
        writer.recover(path, run_summary.summary_of)
        html.make(path)

    return _runs(folder, show)


TARGETS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Feed]]] = {
    f.__name__: f
    for f in (
        messages, public, session, node, coordinator, scheduling, world, dialogue, overheard, amplification,
        training, ris595, opensourceris, iio, lab, experiment, pattern, pool, small_files, dataset, model, sigmf,
        run_folder, report,
    )
}  # fmt: skip
