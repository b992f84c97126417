"""Frames of the protocol of this project's own controller (`firmware/README.md`): COBS, ended by a zero, with a
CRC-16."""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass
from enum import IntEnum

PROTOCOL = 1


class Command(IntEnum):
    """First byte after the sequence number of a request."""

    HELLO = 0x01
    APPLY = 0x02
    QUEUE = 0x03
    TRIGGER = 0x04
    INDEX = 0x05
    BOOK_BEGIN = 0x06
    BOOK_CHUNK = 0x07
    BOOK_END = 0x08
    BOOK_ABORT = 0x09
    READBACK = 0x0A
    TIME = 0x0B
    WATCHDOG = 0x0C
    RESET = 0x0D
    SCHEDULE = 0x0E


DONE, QUEUED, BOOTED, ERROR = 0x80, 0xC0, 0xFE, 0xFF
"""Kinds of reply: the command and one of the first two in its upper bits, or one of the last two."""


class Refusal(IntEnum):
    """Second byte of an ERROR reply."""

    BAD_FRAME = 1
    BAD_CRC = 2
    TOO_LONG = 3
    BAD_PROTOCOL = 4
    UNKNOWN = 5
    BAD_LENGTH = 6
    NO_SESSION = 7
    STALE = 8
    BAD_PATTERN = 9
    NOTHING_WAITS = 10
    BAD_INDEX = 11
    BAD_COUNT = 12
    NO_UPLOAD = 13
    BAD_OFFSET = 14
    BAD_CONTENT = 15
    BAD_CHAIN = 16
    BAD_VALUE = 17
    TOO_LATE = 18
    SCHEDULED = 19


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of the board."""

    seq: int
    kind: int
    flags: int
    payload: bytes


def request(seq: int, command: int, payload: bytes = b"") -> bytes:
    """Return the bytes of a request on the wire, including the final zero."""
    from cobs import cobs

    body = struct.pack("<BHB", PROTOCOL, seq, command) + payload
    return cobs.encode(body + struct.pack("<H", binascii.crc_hqx(body, 0xFFFF))) + b"\0"


def reply(frame: bytes) -> Reply | None:
    """Read a frame (without its zero); None for anything that is not a whole and undamaged reply."""
    from cobs import cobs

    try:
        body = cobs.decode(frame)
    except cobs.DecodeError:
        return None
    if (
        len(body) < 7
        or body[0] != PROTOCOL
        or binascii.crc_hqx(body[:-2], 0xFFFF) != int.from_bytes(body[-2:], "little")
    ):
        return None
    _, seq, kind, flags = struct.unpack_from("<BHBB", body)
    return Reply(seq, kind, flags, body[5:-2])
