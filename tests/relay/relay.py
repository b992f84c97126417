"""A man in the middle of the discussion's TCP connection, and the two nodes that he stands between.

    scripts/relay                                    # 2000 manipulations of each kind of discussion
    scripts/relay cascade --manipulations 500 --seed 3

The links are not authenticated here (`curve = false`), so the relay reads and writes every message: real ZeroMQ sockets
of Alice's and Bob's end, the nodes' own state machines behind them, and between them a process that owns the line. It
speaks ZMTP as far as it has to: a greeting, then frames. What must hold whatever it does: no two different keys, no key
that Alice did not mean, both ends come to an end, nothing is raised.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import zmq

sys.path.insert(0, str(Path(__file__).parents[1] / "property"))
from test_man_in_the_middle import CARRIERS, DECIDED, PLANS, PROBES, SEED, changed, channels

from testbed.chain.pipeline import KeyChain
from testbed.core.config import Accounting, ProbingPlan, RadioPlan
from testbed.core.errors import ProtocolError
from testbed.core.outcomes import KeyReport
from testbed.core.types import CsiFrame
from testbed.net import messages as m
from testbed.net import transport
from testbed.nodes import events as e
from testbed.nodes.state import NodeState

Way = Literal["alice", "bob"]
"""Who sent what the relay holds."""
NAMES = [*PLANS, "tagged"]
"""Discussions by reconciler, and one by Cascade with one-time tags."""
GREETING_BYTES = 64
HOW = (
    "flip", "flip", "drop", "duplicate", "reorder", "truncate", "replace", "replace", "envelope", "replay",
    "replay_as_this", "reflect", "grow", "tear", "cut", "garbage",
)  # fmt: skip
TORN = ("tear", "cut", "garbage")
"""What spoils the connection itself: then libzmq makes a new one, and what was under way is lost."""
PATIENCE_S, TORN_S = 20.0, 0.3
"""How long something that is under way may take. Where the connection is spoilt nobody knows what is."""


class Relay:
    """The line, as whoever owns it sees it. Not a thread: `pump` moves what there is."""

    def __init__(self, port: int, meddle: Callable[[Way, bytes], list[tuple[Way, bytes]]]) -> None:
        self._to, self._meddle = port, meddle
        self._ear = socket.create_server(("127.0.0.1", 0))
        self._ear.setblocking(False)
        self.port: int = self._ear.getsockname()[1]
        self._ends: dict[Way, socket.socket] = {}
        self._heard: dict[Way, bytearray] = {}
        self._to_send: dict[Way, bytearray] = {}
        self._greeting: dict[Way, int] = {}
        """Bytes of each greeting that have not come yet."""
        self.passed: Counter[Way] = Counter()
        """Messages that were sent on, by who is to read them."""

    @property
    def fds(self) -> list[int]:
        return [self._ear.fileno(), *(s.fileno() for s in self._ends.values())]

    def pump(self) -> bool:
        """Move what has arrived; returns whether there was anything."""
        moved = False
        with suppress(BlockingIOError):
            near, _ = self._ear.accept()
            self.hang_up()
            self._ends = {"bob": near, "alice": socket.create_connection(("127.0.0.1", self._to))}
            for end in self._ends.values():
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._heard = {"alice": bytearray(), "bob": bytearray()}
            self._to_send = {"alice": bytearray(), "bob": bytearray()}
            self._greeting = {"alice": GREETING_BYTES, "bob": GREETING_BYTES}
            moved = True
        for who in list(self._ends):
            moved = self._read(who) or moved
        for who in list(self._ends):
            moved = self._write(who) or moved
        return moved

    def _read(self, who: Way) -> bool:
        try:
            data = self._ends[who].recv(1 << 18)
        except BlockingIOError:
            return False
        except (OSError, KeyError):
            data = b""
        if not data:
            self.hang_up()
            return True
        self._heard[who] += data
        while who in self._ends and self._next(who):
            pass
        return True

    def _next(self, who: Way) -> bool:
        """Take the greeting or one frame out of what was heard; returns whether it was whole."""
        heard, other = self._heard[who], peer(who)
        if self._greeting[who]:  # piece by piece: each end waits for the other's
            piece = bytes(heard[: self._greeting[who]])
            self._to_send[other] += piece
            self._greeting[who] -= len(piece)
            del heard[: len(piece)]
            return bool(piece)
        head = 9 if heard and heard[0] & 2 else 2
        if len(heard) < head:
            return False
        size = struct.unpack_from(">Q", heard, 1)[0] if head == 9 else heard[1]
        if len(heard) < head + size:
            return False
        whole, payload = bytes(heard[: head + size]), bytes(heard[head : head + size])
        del heard[: head + size]
        if whole[0] & 4:  # a command: the handshake, a heartbeat
            self._to_send[other] += whole
        else:
            for sender, data in self._meddle(who, payload):
                self.say(sender, data)
        return True

    def say(self, sender: Way, payload: bytes) -> None:
        """Give a message out for somebody's."""
        if sender in self._ends:
            head = b"\0" + bytes([len(payload)]) if len(payload) < 256 else b"\2" + struct.pack(">Q", len(payload))
            self._to_send[peer(sender)] += head + payload
            self.passed[peer(sender)] += 1

    def inject(self, sender: Way, data: bytes) -> None:
        """Write bytes that are no frame."""
        if sender in self._ends:
            self._to_send[peer(sender)] += data

    def _write(self, who: Way) -> bool:
        waiting = self._to_send.get(who)
        if not waiting:
            return False
        try:
            sent = self._ends[who].send(waiting)
        except BlockingIOError:
            return False
        except OSError:
            self.hang_up()
            return True
        del waiting[:sent]
        return True

    def hang_up(self) -> None:
        """Close both connections; libzmq makes a new one."""
        for end in self._ends.values():
            end.close()
        self._ends.clear()

    def close(self) -> None:
        self.hang_up()
        self._ear.close()


def peer(who: Way) -> Way:
    return "bob" if who == "alice" else "alice"


@dataclass
class Block:
    """One block between two nodes that talk over TCP through a relay."""

    name: str
    meddle: Callable[[Way, bytes], list[tuple[Way, bytes]]]
    number: int = 4
    patience_s: float = PATIENCE_S
    keys: dict[str, Any] = field(default_factory=dict)
    reports: dict[str, list[Any]] = field(default_factory=lambda: {"alice": [], "bob": []})
    now_s: float = 0.0
    said: int = 1
    """What the nodes gave to their sockets, Bob's greeting included."""
    heard: int = 0
    """Messages that have reached the relay."""

    def run(self) -> Block:
        wires = {"alice": transport.Wire(None), "bob": transport.Wire(None)}
        host = transport.DiscussionHost(wires["alice"], "127.0.0.1", 0, "bob")
        self.relay = Relay(host.port, self._hear)
        if isinstance(self.meddle, Meddler):
            self.meddle.relay = self.relay
        guest = transport.DiscussionGuest(wires["bob"], f"tcp://127.0.0.1:{self.relay.port}", "alice")
        self.ends: dict[Way, Any] = {"alice": host, "bob": guest}
        for end in self.ends.values():
            self._count(end)
        self.nodes = {role: node(self.name, role) for role in self.ends}
        self.received: Counter[Way] = Counter()
        try:
            self._talk(m.Distil(block=self.number, rounds=list(range(PROBES)), timeout_s=50.0), m.Agreed)
            agreed = [r.report.verified for own in self.reports.values() for r in own if isinstance(r, m.Agreed)]
            if agreed == [True, True]:
                self._talk(m.Amplify(block=self.number, eve=None, timeout_s=50.0), m.Amplified)
        finally:
            self.relay.close()
            for wire in wires.values():
                wire.context.destroy(linger=0)
        return self

    def _count(self, end: Any) -> None:
        """Count what an end gives to its socket."""
        give = end._give

        def counted(data: bytes) -> None:
            self.said += end is not self.ends["alice"] or end._route is not None
            give(data)

        end._give = counted

    def _talk(self, order: Any, answer: type[Any]) -> None:
        """Order both ends and move messages until both have reported.

        Where the line is still, they look three times for what was lost with a connection; then they are at their
        deadlines.
        """
        for role in self.ends:
            self._handle(role, e.Received(order))
        for look in range(6):
            self._move_until_still(answer)
            if all(any(isinstance(r, answer) for r in own) for own in self.reports.values()):
                return
            if look < 3:
                self.ends["bob"].say_here()
                continue
            self.now_s += 100.0
            for role in self.ends:
                self._handle(role, e.Tick(self.now_s))
        raise AssertionError(f"the discussion hangs: {[n.name for n in self.nodes.values()]}")

    def _move_until_still(self, answer: type[Any]) -> None:
        poller = zmq.Poller()
        for end in self.ends.values():
            poller.register(end.socket, zmq.POLLIN)
        last_s, before = time.monotonic(), (0, 0)
        while True:
            moved = self.relay.pump()
            for role, end in self.ends.items():
                while end.socket.poll(0):
                    self.received[role] += 1
                    moved = True
                    if (envelope := end.receive()) is not None:
                        self._handle(role, e.Discussed(envelope))
            # Heartbeats go to and fro without end: they are no progress where a message was lost with a connection.
            if (now := (self.heard, self.received.total())) != before:
                last_s, before = time.monotonic(), now
            if moved:
                continue
            over = all(any(isinstance(r, answer) for r in own) for own in self.reports.values())
            still = self.heard >= self.said and self.relay.passed == self.received
            if over or still or time.monotonic() - last_s > self.patience_s:
                return
            self._wait(poller)

    def _hear(self, sender: Way, payload: bytes) -> list[tuple[Way, bytes]]:
        self.heard += 1
        return self.meddle(sender, payload)

    def _wait(self, poller: zmq.Poller) -> None:
        fds = self.relay.fds
        for fd in fds:
            poller.register(fd, zmq.POLLIN)
        poller.poll(20)
        for fd in fds:
            with suppress(KeyError):
                poller.unregister(fd)

    def _handle(self, role: Way, event: e.Event) -> None:
        for x in self.nodes[role].handle(event):
            match x:
                case e.Report(body):
                    self.reports[role].append(body)
                case e.StoreKey(key):
                    assert role not in self.keys, "two keys of one block"
                    self.keys[role] = key.bits
                case e.Publish(envelope, to_peer):
                    if role == "bob" or to_peer:
                        self.ends[role].send(envelope)


def node(name: str, role: Way) -> NodeState:
    """A node that has measured a block's rounds; everything that it draws follows from the seed."""
    made = NodeState(role, secret_seed=1, wegman_carter=name == "tagged")
    plan = m.Configure(
        radio=RadioPlan(), probing=ProbingPlan(), chain=PLANS["cascade" if name == "tagged" else name],
        accounting=Accounting(epsilon_log2=8), experiment_mode=True, record_iq=False, seed=SEED, rehearsal=True,
    )  # fmt: skip
    made.handle(e.Received(m.Welcome(run="r", lost_after_s=10.0)))
    made.handle(e.Received(plan))
    made.handle(e.DeviceDone(m.Configured(accepted={})))
    for n, frame in enumerate(frames(role)):
        made.measured.keep(n, {peer(role): frame})
    made.handle(e.Tick(0.0))
    made.key_maker._first = 0  # as if it had been there from the first block on
    return made


@cache
def frames(role: Way) -> list[CsiFrame]:
    series = channels()[0 if role == "alice" else 1]
    return [
        CsiFrame(
            h=h, subcarrier_hz=np.arange(CARRIERS) * 625e3, snr_db=np.full(CARRIERS, 30.0), cfo_hz=0.0, time_s=0.0,
            rssi_dbfs=-30.0,
        )
        for h in series.h
    ]  # fmt: skip


def honest(sender: Way, payload: bytes) -> list[tuple[Way, bytes]]:
    return [(sender, payload)]


def decided_before() -> None:
    """Take the length of a key as judged: it is not what is tried here, and it takes its time."""

    def decide(self: KeyChain, agreed: Any, *_: Any) -> KeyReport:
        more = 256 if self._pool is not None else 0
        return msgspec.structs.replace(DECIDED, block=agreed.report.block, key_bits=DECIDED.key_bits + more)

    KeyChain.decide = decide  # type: ignore[method-assign, assignment]


@dataclass
class Heard:
    """An honest block as the relay hears it."""

    messages: list[tuple[Way, bytes]]
    key: Any

    def kind(self, n: int) -> str:
        payload = self.messages[n][1]
        return str(msgspec.msgpack.decode(payload)["message"]["kind"]) if is_message(payload) else "greeting"

    @property
    def by_kind(self) -> dict[str, list[int]]:
        out: dict[str, list[int]] = {}
        for n in range(len(self.messages)):
            out.setdefault(self.kind(n), []).append(n)
        return out


@cache
def undisturbed(name: str, number: int = 4) -> Heard:
    heard: list[tuple[Way, bytes]] = []

    def listen(sender: Way, payload: bytes) -> list[tuple[Way, bytes]]:
        heard.append((sender, payload))
        return [(sender, payload)]

    block = Block(name, listen, number).run()
    assert len(block.keys) == 2, [own[-1] for own in block.reports.values()]
    assert np.array_equal(block.keys["alice"], block.keys["bob"])
    return Heard(heard, block.keys["alice"])


class Meddler:
    """Does one thing to one message; the rest passes."""

    relay: Relay

    def __init__(self, name: str, at: int, how: str, rng: random.Random) -> None:
        self.name, self.at, self.how, self.rng = name, at, how, rng
        self.n_heard = 0
        self.held: tuple[Way, bytes] | None = None
        self.did = False

    def __call__(self, sender: Way, payload: bytes) -> list[tuple[Way, bytes]]:
        n, self.n_heard = self.n_heard, self.n_heard + 1
        held, self.held = self.held, None
        rest = [held] if held is not None else []
        if n != self.at:
            return [(sender, payload), *rest]
        self.did = True
        return [*self._instead(sender, payload), *rest]

    def _instead(self, sender: Way, payload: bytes) -> list[tuple[Way, bytes]]:
        rng = self.rng
        match self.how:
            case "flip":
                return [(sender, flipped(payload, rng))]
            case "drop":
                return []
            case "duplicate":
                return [(sender, payload)] * rng.choice([2, 2, 3, 80])
            case "reorder":
                self.held = (sender, payload)
                return []
            case "truncate":
                return [(sender, payload[: rng.randrange(len(payload) + 1)])]
            case "grow":
                return [(sender, payload + rng.randbytes(rng.choice([1, 8, 5000])))]
            case "replace" | "envelope" if is_message(payload):
                return [(sender, (replaced if self.how == "replace" else enveloped)(payload, rng))]
            case "replace" | "envelope":  # what an end says of itself
                return [(sender, rng.randbytes(len(payload)))]
            case "replay" | "replay_as_this":
                return self._replayed(sender, payload)
            case "reflect":
                return [(peer(sender), payload), (sender, payload)]
            case _:
                return self._torn(sender, payload)

    def _replayed(self, sender: Way, payload: bytes) -> list[tuple[Way, bytes]]:
        """Another block's message, of the same kind where there is one, with its own number or with this one's."""
        other = undisturbed(self.name, 3)
        kind = undisturbed(self.name).kind(min(self.at, len(undisturbed(self.name).messages) - 1))
        numbers = other.by_kind.get(kind) or list(range(len(other.messages)))
        data = other.messages[self.rng.choice(numbers)][1]
        if self.how == "replay_as_this" and is_message(data):
            data = msgspec.msgpack.encode({**msgspec.msgpack.decode(data), "block": 4})
        return [(sender, data), *([(sender, payload)] if self.rng.random() < 0.3 else [])]

    def _torn(self, sender: Way, payload: bytes) -> list[tuple[Way, bytes]]:
        match self.how:
            case "cut":
                self.relay.hang_up()
                return []
            case "garbage":
                self.relay.inject(sender, self.rng.randbytes(self.rng.choice([1, 9, 300])))
                return [(sender, payload)]
            case _:  # a frame that is declared longer, or shorter, than what follows
                size = max(0, len(payload) + self.rng.choice([-1, 1, 1000, 1 << 40]))
                self.relay.inject(sender, b"\2" + struct.pack(">Q", size) + payload)
                return []


def is_message(payload: bytes) -> bool:
    """Whether it is a message of the discussion, and not what an end says of itself."""
    return len(payload) != transport.HERE.size


def flipped(payload: bytes, rng: random.Random) -> bytes:
    data = bytearray(payload or b"\0")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def replaced(payload: bytes, rng: random.Random) -> bytes:
    try:
        envelope = m.decode_public(payload)
    except ProtocolError:
        return payload
    return m.encode(msgspec.structs.replace(envelope, message=changed(envelope.message, rng)))


def enveloped(payload: bytes, rng: random.Random) -> bytes:
    tree = msgspec.msgpack.decode(payload)
    name = rng.choice(list(tree))
    tree[name] = {
        "run": rng.choice(["other", "", "../x"]), "block": rng.choice([tree["block"] + 1, tree["block"] - 1, -1, 0]),
        "phase": "amplify" if tree["phase"] == "agree" else "agree", "index": rng.choice([-1, 0, 7, 1 << 40]),
        "sender": peer(tree["sender"]), "message": rng.choice([None, {}, {"kind": "x", "body": {}}]),
        "number": rng.choice([-1, 0, 7, 1 << 40]), "seen": rng.choice([-1, 0, 7, 1 << 40]),
    }[name]  # fmt: skip
    return msgspec.msgpack.encode(tree)


def meddle(name: str, seeds: range) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Try manipulations, every kind of message equally often; returns what came of them, and how often what was tried.

    Raises AssertionError, naming the seed, where something must not have happened.
    """
    kinds = undisturbed(name).by_kind
    came: Counter[str] = Counter()
    tried: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        rng = random.Random(f"{name}/{seed}")
        kind = list(kinds)[seed % len(kinds)]
        how = rng.choice(HOW)
        meddler = Meddler(name, rng.choice(kinds[kind]), how, rng)
        try:
            block = Block(name, meddler, patience_s=TORN_S if how in TORN else PATIENCE_S).run()
            came[outcome(block)] += 1
            assert meddler.did or how in TORN
        except Exception as exc:
            raise AssertionError(f"{name}, seed {seed}, {how} of {kind}: {type(exc).__name__}: {exc}") from exc
        tried[kind, how] += 1
    return came, tried


def outcome(block: Block) -> str:
    """Return what came of a block, having checked what must hold."""
    keys = block.keys
    if len(keys) == 2:
        assert np.array_equal(keys["alice"], keys["bob"]), "two different keys, both called verified"
    for key in keys.values():
        assert np.array_equal(key, undisturbed(block.name).key), "a key that Alice never meant"
    return {0: "no key", 1: f"only {next(iter(keys), '')}", 2: "both"}[len(keys)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/relay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="*", help=f"default: all of {', '.join(NAMES)}")
    parser.add_argument("--manipulations", type=int, default=2000, help="of each")
    parser.add_argument("--seed", type=int, default=1000, help="number of the first one")
    given = parser.parse_args()
    if not set(given.name) <= set(NAMES):
        parser.error(f"accepted: {', '.join(NAMES)}")
    decided_before()
    for name in given.name or NAMES:
        began_s = time.monotonic()
        came, tried = meddle(name, range(given.seed, given.seed + given.manipulations))
        kinds = Counter(kind for kind, how in tried.elements())
        least = min(kinds.items(), key=lambda row: row[1])
        words = f"{len(tried)} pairs of kind and manipulation, the rarest kind {least[0]} {least[1]} times"
        took_s = time.monotonic() - began_s
        print(
            f"{name}: {tried.total()} manipulations of {len(kinds)} kinds of messages in {took_s:.0f} s: {dict(came)}; "
            f"{words}", flush=True,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
