"""The public discussion's vocabulary: messages, and the ledger that counts what each reveals about the key."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta


class PublicMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message between Alice and Bob. All nodes receive it, including Eve."""

    kind: Annotated[str, Meta(max_length=80)]
    body: dict[str, Any]
    """msgpack-able values only: numbers, strings, bytes, lists, dicts. Arrays travel as bytes."""
    leaked_bits: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    """Most that this message reveals about the raw bits, in bits; both ends count it in their ledgers."""


def size_of(message: PublicMessage) -> int:
    """Return the length of a message on the wire in bytes, without its envelope."""
    return len(msgspec.msgpack.encode(message))


@dataclass(frozen=True, slots=True)
class Send:
    """Dialogue instruction: publish this message. Resumes at once with None."""

    message: PublicMessage


@dataclass(frozen=True, slots=True)
class Receive:
    """Dialogue instruction: wait for the peer's next message, which must be of this kind. Resumes with the message."""

    kind: str


T = TypeVar("T")
# One side of a discussion as a generator: no sockets, no clock. Nodes, replay and tests drive the same code.
Dialogue = Generator[Send | Receive, PublicMessage | None, T]


@dataclass(slots=True)
class Ledger:
    """What the public discussion of one block has revealed so far, by kind of message."""

    leaked_bits: int = 0
    sent_bytes: int = 0
    messages: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)

    def count(self, message: PublicMessage) -> None:
        if message.leaked_bits < 0:
            raise ValueError(f"{message.kind}: leaked_bits = {message.leaked_bits}, accepted ≥ 0")
        self.leaked_bits += message.leaked_bits
        self.sent_bytes += size_of(message)
        self.messages += 1
        self.by_kind[message.kind] = self.by_kind.get(message.kind, 0) + message.leaked_bits
