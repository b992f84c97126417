"""Key confirmation: both ends prove that they saw the same discussion and hold the same string, before keys are kept.

The transcript is every message of a block, in order, as its sender sent it: the quantizer's messages, positions,
charges, the rounds, the length, the hash's seed. Both ends compute a code of it, keyed by the tag of the verified
string. Bob sends the hash of his code; Alice answers with her code. If a message is changed on its way, the two codes
differ, and an attacker would have to find the code that an end expects without the tag, or from its hash.

What it reveals. The tag (`amplify.verify`, 128 bits, a polynomial of the string at a public point) is not published,
only its hash, when strings are verified. That hash, the code's hash and the code are functions of the tag and of public
data, so together they reveal no more about the string than the tag does: 128 bits, which are charged at the
verification.

Hash and code are SHA-512 and HMAC-SHA-512, both cut to 128 bits: to change messages unnoticed takes 2^128 operations,
and two different tags have the same hash with probability 2^-128. The secrecy of the key does not depend on the hash:
the charge assumes that Eve knows the whole tag.

Where both ends have a pool of pads (`chain.wegman_carter`), each of the two messages also has a tag that cannot be
forged by any computation. The discussion is then authentic as long as the pool is secret, even if SHA-512 or the links'
CURVE encryption is broken.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgspec

from testbed.chain.wegman_carter import Polynomial
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage

CODE_BITS = 128
_HASH, _PROOF, _MAC = "hash", "proof", "mac"


Sender = Literal["alice", "bob"]


class Transcript:
    """The messages about one block so far, in order, as a running SHA-512 and, with a pool, as its polynomial."""

    def __init__(self, polynomial: Polynomial | None = None) -> None:
        self._state = hashlib.sha512(b"ris-skg-testbed: block transcript 1")
        self._polynomial = polynomial

    def copy(self) -> Transcript:
        """Return a copy that continues separately."""
        new = Transcript(None if self._polynomial is None else self._polynomial.copy())
        new._state = self._state.copy()
        return new

    def add(self, sender: Sender, message: PublicMessage) -> None:
        data = msgspec.msgpack.encode(message)
        self._state.update(b"%b %d " % (sender.encode(), len(data)) + data)
        if self._polynomial is not None:
            self._polynomial.add(sender, data)

    @property
    def digest(self) -> bytes:
        """SHA-512 of all messages so far; public."""
        return self._state.digest()

    def signed(self, sender: Sender, message: PublicMessage, pad: bytes) -> PublicMessage:
        """Return a message with the tag of all messages so far and of itself; `pad` is never used again."""
        return _with_mac(message, self._mac(sender, message, pad))

    def check_signed(self, sender: Sender, message: PublicMessage, pad: bytes) -> None:
        """Raise DialogueFailed('authentication_failed') unless a message, not added here yet, has the right tag."""
        theirs = message.body.get(_MAC)
        if not isinstance(theirs, bytes) or not hmac.compare_digest(theirs, self._mac(sender, message, pad)):
            raise DialogueFailed(
                "authentication_failed", "the peer's one-time tag is wrong: it saw other messages, or has another pool"
            )

    def _mac(self, sender: Sender, message: PublicMessage, pad: bytes) -> bytes:
        assert self._polynomial is not None
        polynomial = self._polynomial.copy()
        polynomial.add(sender, msgspec.msgpack.encode(_with_mac(message, b"")))
        return polynomial.tag(pad)

    def code(self, tag: bytes) -> bytes:
        """Return the code of all messages so far under a string's tag; to be kept secret."""
        return hmac.digest(tag, self._state.digest(), "sha512")[: CODE_BITS // 8]


def _with_mac(message: PublicMessage, mac: bytes) -> PublicMessage:
    return msgspec.structs.replace(message, body={**message.body, _MAC: mac})


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
