"""Key confirmation: both ends show that they saw the same discussion and hold the same string, before a key is kept.

The transcript is every message of a block, in order, as its sender said it: the quantizer's notes, positions, charges,
the rounds, the length, the hash's seed. Both ends compute a code of it, keyed by the string that nobody else has. Bob
shows the hash of his code, Alice answers with hers, of which the hash tells nothing new: together they tell CODE_BITS
of the string, which the ledger charges beforehand, with the verification's tag. Whoever changes a message on its way
changes one end's code, and would have to find the other's without the string, or from its hash.

The code is HMAC-SHA-512 and its hash SHA-512, both cut to 128 bits: to change messages unseen takes 2^128 work. The
secrecy of the key does not rest on that: what was told of the string is charged as if all of it were read off.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgspec
import numpy as np

from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage
from testbed.core.types import U8

CODE_BITS = 128
_HASH, _PROOF = "hash", "proof"


class Transcript:
    """What was said about one block so far, in order; a running SHA-512."""

    def __init__(self) -> None:
        self._state = hashlib.sha512(b"ris-skg-testbed: block transcript 1")

    def copy(self) -> Transcript:
        """Return one that goes on by itself."""
        new = Transcript()
        new._state = self._state.copy()
        return new

    def add(self, sender: Literal["alice", "bob"], message: PublicMessage) -> None:
        data = msgspec.msgpack.encode(message)
        self._state.update(b"%b %d " % (sender.encode(), len(data)) + data)

    def code(self, values: U8) -> bytes:
        """Return the code of all messages so far under a string, (bit,) of 0 and 1; to be kept secret."""
        key = b"%d " % values.size + np.packbits(values).tobytes()
        return hmac.digest(key, self._state.digest(), "sha512")[: CODE_BITS // 8]


def shown(code: bytes) -> dict[str, bytes]:
    """Return what Bob says of his code."""
    return {_HASH: _hash(code)}


def answered(code: bytes) -> dict[str, bytes]:
    """Return what Alice answers."""
    return {_PROOF: code}


def check_shown(message: PublicMessage, code: bytes) -> None:
    """Raise DialogueFailed('confirmation_failed') unless Bob's code is Alice's."""
    _check(message, _HASH, _hash(code))


def check_answered(message: PublicMessage, code: bytes) -> None:
    """Raise DialogueFailed('confirmation_failed') unless Alice's code is Bob's."""
    _check(message, _PROOF, code)


def _hash(code: bytes) -> bytes:
    return hashlib.sha512(b"shown " + code).digest()[: CODE_BITS // 8]


def _check(message: PublicMessage, key: str, own: bytes) -> None:
    theirs = message.body.get(key)
    if not isinstance(theirs, bytes) or not hmac.compare_digest(theirs, own):
        raise DialogueFailed(
            "confirmation_failed", "both ends did not see the same discussion, or do not hold the same string"
        )
