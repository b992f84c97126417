"""Key confirmation: both ends prove that they saw the same discussion and hold the same string, before keys are kept.

The transcript is every message of a block, in order, as its sender sent it: the quantizer's messages, positions,
charges, the rounds, the length, the hash's seed. Both ends compute a code of it, keyed by the tag of the verified
string. Bob sends the hash of his code, Alice answers with hers. A message changed on its way changes one end's code;
whoever changed it would have to find the other code without the tag, or from its hash.

What it costs. The tag (`amplify.verify`, 128 bits, a polynomial of the string at a public point) is never told; what is
told when strings are verified is its hash. That hash, the code's hash and the code are functions of the tag and of what
is public, so together they tell no more of the string than the tag does: its 128 bits, charged with the verification.

Hash and code are SHA-512 and HMAC-SHA-512, both cut to 128 bits: to change messages unseen takes 2^128 work, and two
tags that differ are taken for one with probability 2^-128. The secrecy of the key does not rest on that: it is charged
as if the whole tag were read off.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgspec

from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage

CODE_BITS = 128
_HASH, _PROOF = "hash", "proof"


class Transcript:
    """The messages about one block so far, in order, as a running SHA-512."""

    def __init__(self) -> None:
        self._state = hashlib.sha512(b"ris-skg-testbed: block transcript 1")

    def copy(self) -> Transcript:
        """Return a copy that continues separately."""
        new = Transcript()
        new._state = self._state.copy()
        return new

    def add(self, sender: Literal["alice", "bob"], message: PublicMessage) -> None:
        data = msgspec.msgpack.encode(message)
        self._state.update(b"%b %d " % (sender.encode(), len(data)) + data)

    def code(self, tag: bytes) -> bytes:
        """Return the code of all messages so far under a string's tag; to be kept secret."""
        return hmac.digest(tag, self._state.digest(), "sha512")[: CODE_BITS // 8]


def shown_tag(tag: bytes) -> bytes:
    """Return what Alice publishes of her string's tag."""
    return hashlib.sha512(b"tag " + tag).digest()[: CODE_BITS // 8]


def shown(code: bytes) -> dict[str, bytes]:
    """Return what Bob publishes of his code."""
    return {_HASH: _hash(code)}


def answered(code: bytes) -> dict[str, bytes]:
    """Return Alice's answer."""
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
            "confirmation_failed", "the two ends saw different public messages, or their strings differ"
        )
