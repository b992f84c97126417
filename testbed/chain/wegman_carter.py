"""Authentication of the discussion against an Eve of unlimited computation (Wegman and Carter 1981).

A discussion is authentic if both ends saw the same messages. Each end reduces all messages of a block to one number,
the value of a polynomial at a secret point r, and sends that number plus a pad that is never used again:

    tag = (Σ c_i·r^(d−i+1) + pad) mod P,   i = 1 … d,   P = 2^128 − 159

The coefficients c_i are the messages, in parts of 15 bytes, each preceded by its length and sender. There is no
constant term: the difference of two discussions is then never a constant, which an attacker could simply add to the
tag. An attacker who changes a message therefore guesses the tag with probability d/P at most, with any amount of
computation (2^-104 for a discussion of 128 MiB). A pad has 128 bits and is reduced modulo P, 2^-120 away from uniform.
The point is never replaced (Portmann 2014, "Key recycling in authentication"): pads hide every tag, so no tag reveals
anything about it.

Two tags per block, one in each direction, are sent with the key's confirmation (`chain.confirm`). They cover all
earlier messages: if one was altered, the block fails and makes no key. Pads are used in pairs, one for Bob's tag and
one for Alice's. They come from a secret that both ends got beforehand, and from delivered keys: the first `PAIR_BITS`
bits of every hashed string are a new pair, and the rest is the key.

A pair is used once. Bob chooses one that both ends still have, and each end removes it, and all pairs before it, from
its pool before it uses or checks a tag; the end with more pairs skips those that the other no longer has. A man in the
middle can make an end discard at most `MOST_AHEAD` pairs per message, which is no worse than if he cut the connection.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from testbed.chain.amplify.verify import PRIME, TAG_BYTES, coefficients
from testbed.core.errors import DialogueFailed
from testbed.core.seeds import generator
from testbed.core.types import U8

PAD_BYTES = TAG_BYTES
PAIR_BYTES = 2 * PAD_BYTES
PAIR_BITS = 8 * PAIR_BYTES
"""Number of pad bits that a block's two tags use, and that the next hashed string replaces."""
MOST_AHEAD = 16
"""Largest number of pairs that one message can make an end skip."""
OFFERED = 8
"""Largest number of portions that Alice offers in a block, the newest first."""
MOST_BYTES = 1 << 26
"""Largest size of a pool's file."""
_NAME = r"^[0-9a-f]{16}$(?!\n)"


class Polynomial:
    """The polynomial of a discussion so far, at a secret point."""

    def __init__(self, point: int, value: int = 0) -> None:
        self._point, self.value = point, value

    def copy(self) -> Polynomial:
        """Return a copy that continues separately."""
        return Polynomial(self._point, self.value)

    def add(self, sender: str, message: bytes) -> None:
        """Add a message of 'alice' or 'bob'."""
        self._take(1 + 2 * len(message) + (sender == "bob"))  # never 0, so that no discussion is a prefix of another
        for coefficient in coefficients(message):
            self._take(coefficient)

    def _take(self, coefficient: int) -> None:
        self.value = (self.value + coefficient) * self._point % PRIME

    def tag(self, pad: bytes) -> bytes:
        """Return the tag of all messages so far, under a pad that is never used again."""
        return ((self.value + int.from_bytes(pad, "big")) % PRIME).to_bytes(TAG_BYTES, "big")


class Portion(Struct):
    """Pairs of pads from one secret or one hashed string, in order."""

    first: Annotated[int, Meta(ge=0, le=1 << 31)]
    """Number of the first remaining pair."""
    pads: bytes
    """The remaining pairs; used ones are deleted."""

    @property
    def pairs(self) -> int:
        return len(self.pads) // PAIR_BYTES


class _File(Struct, forbid_unknown_fields=True):
    point: Annotated[bytes, Meta(min_length=PAD_BYTES, max_length=PAD_BYTES)]
    portions: dict[Annotated[str, Meta(pattern=_NAME)], Portion]


class Pool:
    """One end's secret for authentication: a point that is kept, and pairs of pads that are used once.

    `changed` means that the file on the disk is out of date; its owner must write `dump()` before a message that was
    made with a pad leaves the node.
    """

    def __init__(self, point: bytes, portions: dict[str, Portion], is_rehearsal: bool = False) -> None:
        self._point = point
        self._portions = portions
        """Portions by name, the oldest first."""
        self.is_rehearsal = is_rehearsal
        """Whether the pool follows from a public seed; it is then not written to a file."""
        self.changed = False
        self.spent_bits = 0
        """Number of bits that this process has removed, including skipped pairs."""

    @classmethod
    def of(cls, secret: bytes, is_rehearsal: bool = False) -> Pool:
        """Make a pool of a secret that both ends have: 16 bytes for the point, the rest in pairs of pads."""
        name = hashlib.sha256(b"ris-skg-testbed: pool " + secret).hexdigest()[:16]
        whole = (len(secret) - PAD_BYTES) // PAIR_BYTES * PAIR_BYTES
        pads = secret[PAD_BYTES : PAD_BYTES + whole]
        return cls(secret[:PAD_BYTES], {name: Portion(0, pads)}, is_rehearsal)

    @classmethod
    def of_rehearsal(cls, seed: int) -> Pool:
        """Make the pool of a rehearsal, which follows from the run's seed and is no more secret than the run's keys."""
        return cls.of(generator(seed, "rehearsal", "pool").bytes(PAD_BYTES + 64 * PAIR_BYTES), is_rehearsal=True)

    @classmethod
    def load(cls, data: bytes) -> Pool:
        """Read the output of `dump`; raises ValueError in one line."""
        read = msgspec.json.decode(data, type=_File)
        if any(len(p.pads) % PAIR_BYTES for p in read.portions.values()):
            raise ValueError(f"a portion is no multiple of {PAIR_BYTES} bytes")
        return cls(read.point, read.portions)

    def dump(self) -> bytes:
        """Return the pool in the form of its file, without used pairs."""
        return msgspec.json.encode(_File(self._point, self._portions))

    @property
    def pairs(self) -> int:
        """Return the number of blocks that can still be authenticated."""
        return sum(p.pairs for p in self._portions.values())

    @property
    def bits(self) -> int:
        return self.pairs * PAIR_BITS

    def polynomial(self) -> Polynomial:
        """Return the polynomial of an empty discussion."""
        return Polynomial(int.from_bytes(self._point, "big") % PRIME)

    # -- one block

    def offer(self) -> list[list[Any]]:
        """Return Alice's offer: [portion, first pair left, pairs left], the newest first."""
        if not self.pairs:
            raise exhausted()
        return [[name, p.first, p.pairs] for name, p in list(self._portions.items())[: -OFFERED - 1 : -1]]

    def choose(self, offer: Any) -> tuple[str, int, bytes, list[str]]:
        """Choose a pair that both ends have; return portion, number, the two pads, and the offered portions known here.

        Raises DialogueFailed (protocol, pool_exhausted, pool_out_of_step).
        """
        offered = _read_offer(offer)
        common = [name for name, _, _ in offered if name in self._portions]
        for name, first, left in offered:
            own = self._portions.get(name)
            if own is None:
                continue
            number = max(first, own.first)
            if number < min(first + left, own.first + own.pairs):
                return name, number, self.take(name, number), common
        raise exhausted()

    def take(self, name: str, number: int) -> bytes:
        """Remove a pair, with all before it in its portion, and return its two pads, Bob's and Alice's.

        Raises DialogueFailed (pool_out_of_step) if it was removed before, is not here, or is too far ahead.
        """
        own = self._portions.get(name)
        if own is None or not own.first <= number < own.first + own.pairs:
            raise DialogueFailed("pool_out_of_step", "the peer names a pair of pads that is not in this pool")
        ahead = number - own.first
        if ahead > MOST_AHEAD:
            self._strike(name, own, MOST_AHEAD)
            raise DialogueFailed(
                "pool_out_of_step",
                f"the peer is {ahead} pairs of pads ahead; this end skips at most {MOST_AHEAD} per block",
            )
        pair = own.pads[ahead * PAIR_BYTES : (ahead + 1) * PAIR_BYTES]
        self._strike(name, own, ahead + 1)
        return pair

    def _strike(self, name: str, own: Portion, pairs: int) -> None:
        own.first, own.pads = own.first + pairs, own.pads[pairs * PAIR_BYTES :]
        self.spent_bits += pairs * PAIR_BITS
        self.changed = True
        if not own.pairs:
            del self._portions[name]

    def keep(self, common: list[str], offered: list[str]) -> None:
        """Delete the offered portions that the other end does not have, once it is authenticated."""
        for name in set(offered) - set(common):
            self._portions.pop(name, None)
            self.changed = True

    def refill(self, origin: bytes, bits: U8) -> None:
        """Take the first bits of a hashed string as the next pair; (PAIR_BITS,) of 0 and 1.

        `origin`: a public name of the block, equal at both ends and used for no other block.
        """
        name = hashlib.sha256(b"ris-skg-testbed: refill " + origin).hexdigest()[:16]
        self._portions[name] = Portion(0, np.packbits(bits).tobytes())
        self.changed = True


def exhausted() -> DialogueFailed:
    """Return the failure of an end that has no pair in common with the other end."""
    return DialogueFailed("pool_exhausted", "both ends have no pair of authentication pads left in common")


def _read_offer(offer: Any) -> list[tuple[str, int, int]]:
    try:
        return msgspec.convert(offer, list[tuple[Annotated[str, Meta(pattern=_NAME)], _Count, _Count]])[:OFFERED]
    except msgspec.ValidationError as exc:
        raise DialogueFailed("protocol", f"the offered pads: {exc}") from exc


_Count = Annotated[int, Meta(ge=0, le=1 << 31)]
