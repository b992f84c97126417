"""Drives the two sides of a public discussion, message by message over any transport, or both sides in this process.

A `Dialogue` (core.ledger) is a generator without sockets. A node daemon drives it by a `Conversation`; `run` lets two
dialogues exchange messages within one process. A side that fails publishes `failed`, and the other side then fails as
well, so that neither waits in vain. The kinds of messages are checked here; their bodies are checked by the stages that
read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import numpy as np

from testbed.core.errors import DialogueFailed, ProtocolError
from testbed.core.ledger import Dialogue, Ledger, PublicMessage, Receive, Send
from testbed.core.types import U8, CsiSeries

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
Sender = Literal["alice", "bob"]
Side = Literal["own", "peer"]

FAILED = "failed"
PEER_FAILED = "peer_failed"
UNREADABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, ProtocolError)
"""Errors that reading a peer's malformed message may raise; each becomes DialogueFailed('protocol')."""
MAX_MESSAGES = 1 << 17
MAX_BYTES = 1 << 27
"""Largest number of bytes of one discussion, in both directions; ten times what the longest block needs."""


def failed_message(failure: DialogueFailed) -> PublicMessage:
    """Return the message that tells the peer that this side gave up, and why."""
    return PublicMessage(kind=FAILED, body={"reason": failure.reason, "detail": failure.detail})


def rounds_digest(csi: CsiSeries) -> str:
    """Return a digest of a series' round numbers, which are public because the coordinator ordered them."""
    return hashlib.sha256(np.ascontiguousarray(csi.rounds, np.int64).tobytes()).hexdigest()[:16]


def check_rounds(message: PublicMessage, own: CsiSeries) -> None:
    """Raise DialogueFailed('other_rounds') unless the peer's message is about this side's rounds."""
    if message.body.get("rounds") != rounds_digest(own):
        detail = f"{message.kind}: the peer distils other rounds than this side's {own.rounds.size}"
        raise DialogueFailed("other_rounds", detail)


class Conversation(Generic[T]):
    """One side of a discussion, advanced by the peer's messages.

    Call `advance()` once to start, then `advance(message)` with each of the peer's until `done`; send what it returns.
    Then either `result` is set, or `failure` gives the reason. No message of the peer can make it raise an error.
    Messages after `done` belong to the next discussion and are ignored here.
    """

    def __init__(self, dialogue: Dialogue[T]) -> None:
        self._dialogue = dialogue
        self._started = False
        self.done = False
        self.result: T | None = None
        self.failure: DialogueFailed | None = None
        self.waiting_for: str | None = None
        """Kind of the peer's next message, while one is awaited."""
        self.ledger = Ledger()
        """Ledger of both directions."""
        self.transcript: list[tuple[Side, PublicMessage]] = []

    def advance(self, incoming: PublicMessage | None = None) -> list[PublicMessage]:
        """Take the peer's next message (None: only start) and return what to send to the peer, in order."""
        outgoing: list[PublicMessage] = []
        if not self._started:
            self._started = True
            self._resume(None, outgoing)
        if incoming is None or self.done:
            return outgoing
        self.transcript.append(("peer", incoming))
        try:
            self.ledger.count(incoming)
        except Exception as exc:
            self._throw(DialogueFailed("protocol", f"{incoming.kind[:40]}: cannot be counted: {exc}"), outgoing)
            return outgoing
        if self.ledger.messages > MAX_MESSAGES or self.ledger.sent_bytes > MAX_BYTES:
            self._throw(DialogueFailed("protocol", "the discussion exceeds its limit of messages or bytes"), outgoing)
            return outgoing
        if incoming.kind == FAILED:
            self._throw(DialogueFailed(PEER_FAILED, _reason(incoming)), outgoing)
        elif incoming.kind != self.waiting_for:
            detail = f"{incoming.kind[:40]!r} where {self.waiting_for!r} was expected"
            self._throw(DialogueFailed("protocol", detail), outgoing)
        else:
            self._resume(incoming, outgoing)
        return outgoing

    def fail(self, reason: str, detail: str = "") -> list[PublicMessage]:
        """End the discussion from outside (a timeout, a lost peer) and return what to send."""
        outgoing: list[PublicMessage] = []
        if not self.done:
            self._started = True
            self._throw(DialogueFailed(reason, detail), outgoing)
        return outgoing

    def _resume(self, reply: PublicMessage | None, outgoing: list[PublicMessage]) -> None:
        try:
            self._follow(self._dialogue.send(reply), outgoing)
        except StopIteration as stop:
            self._finish(stop.value)
        except DialogueFailed as exc:
            self._give_up(exc, outgoing)
        except Exception as exc:
            if reply is None:
                raise  # no message was read, so this is a fault of this side's code
            # any error while reading the peer's message ends this discussion and has no other effect
            self._give_up(DialogueFailed("protocol", f"{reply.kind}: {type(exc).__name__}: {exc}"), outgoing)

    def _throw(self, failure: DialogueFailed, outgoing: list[PublicMessage]) -> None:
        """Raise `failure` in the dialogue, which may send a last message and return, or raise in turn."""
        try:
            self._follow(self._dialogue.throw(failure), outgoing)
        except StopIteration as stop:
            self._finish(stop.value)
        except DialogueFailed as exc:
            self._give_up(exc, outgoing)

    def _follow(self, step: Send | Receive, outgoing: list[PublicMessage]) -> None:
        while isinstance(step, Send):
            self._publish(step.message, outgoing)
            step = self._dialogue.send(None)
        self.waiting_for = step.kind

    def _publish(self, message: PublicMessage, outgoing: list[PublicMessage]) -> None:
        self.ledger.count(message)
        self.transcript.append(("own", message))
        outgoing.append(message)

    def _finish(self, result: T) -> None:
        self.done, self.result, self.waiting_for = True, result, None

    def _give_up(self, failure: DialogueFailed, outgoing: list[PublicMessage]) -> None:
        self.done, self.failure, self.waiting_for = True, failure, None
        if failure.reason != PEER_FAILED:
            self._publish(failed_message(failure), outgoing)


def run(alice: Dialogue[A], bob: Dialogue[B]) -> tuple[A, B, list[tuple[Sender, PublicMessage]]]:
    """Let both sides exchange messages in this process; return both results and the transcript.

    Raises the DialogueFailed of the side that failed first, and ProtocolError if both wait for the other.
    """
    a, b = Conversation(alice), Conversation(bob)
    transcript: list[tuple[Sender, PublicMessage]] = []
    to_b, to_a = a.advance(), b.advance()
    while to_a or to_b:
        transcript += [("alice", m) for m in to_b]
        transcript += [("bob", m) for m in to_a]
        from_a = [m for message in to_a for m in a.advance(message)]
        from_b = [m for message in to_b for m in b.advance(message)]
        to_b, to_a = from_a, from_b
    failures = [c.failure for c in (a, b) if c.failure is not None]
    if failures:
        raise next((f for f in failures if f.reason != PEER_FAILED), failures[0])
    if not (a.done and b.done):
        raise ProtocolError(f"discussion stuck: Alice waits for {a.waiting_for!r}, Bob for {b.waiting_for!r}")
    return a.result, b.result, transcript  # type: ignore[return-value]


def metered(dialogue: Dialogue[T], ledger: Ledger) -> Dialogue[T]:
    """Pass a dialogue through unchanged and count every message of both directions in `ledger`."""
    return watched(dialogue, lambda _, message: ledger.count(message))


def watched(dialogue: Dialogue[T], seen: Callable[[Side, PublicMessage], None]) -> Dialogue[T]:
    """Pass a dialogue through unchanged, and call `seen` with every message of both directions before its reader gets
    it.
    """
    reply: PublicMessage | None = None
    failure: DialogueFailed | None = None
    while True:
        try:
            step = dialogue.throw(failure) if failure is not None else dialogue.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result
        failure = None
        if isinstance(step, Send):
            seen("own", step.message)
        try:
            reply = yield step
        except DialogueFailed as exc:
            failure = exc
            continue
        if isinstance(step, Receive) and reply is not None:
            seen("peer", reply)


def _reason(message: PublicMessage) -> str:
    reason = message.body.get("reason") if isinstance(message.body, dict) else None
    return reason[:80] if isinstance(reason, str) else "no reason given"


# ---------------------------------------------------------------- reading the peer


def read(message: PublicMessage, parse: Callable[[], T]) -> T:
    """Run a reader of the peer's message; its error for a malformed one becomes DialogueFailed('protocol')."""
    try:
        return parse()
    except UNREADABLE as exc:
        raise DialogueFailed("protocol", f"{message.kind}: {type(exc).__name__}: {exc}") from exc


def integer(message: PublicMessage, key: str, least: int, most: int) -> int:
    value = message.body.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise DialogueFailed("protocol", f"{message.kind}: {key} = {str(value)[:40]}, accepted {least} to {most}")
    return value


def packed(message: PublicMessage, key: str, count: int) -> U8:
    value = message.body.get(key)
    if not isinstance(value, bytes) or len(value) != (count + 7) // 8:
        raise DialogueFailed("protocol", f"{message.kind}: {key} is not {count} packed bits")
    return np.unpackbits(np.frombuffer(value, np.uint8), count=count)


def large(message: PublicMessage, key: str, n_bytes: int) -> int:
    """Return a number that is sent as big-endian bytes."""
    value = message.body.get(key)
    if not isinstance(value, bytes) or len(value) != n_bytes:
        raise DialogueFailed("protocol", f"{message.kind}: {key} is not {n_bytes} bytes")
    return int.from_bytes(value, "big")
