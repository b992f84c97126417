"""Frames to and from our own controller: pinned bytes, and the firmware's own codec as oracle."""

from __future__ import annotations

import binascii
import struct

import pytest
from cobs import cobs
from hypothesis import given
from hypothesis import strategies as st

from firmware_ctl.boards import _frames
from firmware_ctl.boards._frames import Command

# sequence number, command, payload, bytes on the wire
PINNED = [
    (1, Command.HELLO, "01020304", "030101080101020304de6900"),
    (2, Command.APPLY, "ff0055aa", "0301020302ff0555aac4fc00"),
    (3, Command.QUEUE, "0102", "0301030603010241ef00"),
    (4, Command.TRIGGER, "", "0301040404306e00"),
    (5, Command.INDEX, "0700", "03010503050703801a00"),
    (6, Command.BOOK_BEGIN, "0300efbeadde", "03010603060307efbeadde5a4f00"),
    (7, Command.BOOK_CHUNK, "800000001122", "0301070307800101051122d1c600"),
    (8, Command.BOOK_END, "", "0301080408ddda00"),
    (9, Command.BOOK_ABORT, "", "0301090409ccfd00"),
    (10, Command.READBACK, "", "03010a040aff9400"),
    (11, Command.TIME, "", "03010b040beeb300"),
    (12, Command.WATCHDOG, "e8030000", "03010c040ce8030103d4f700"),
    (13, Command.RESET, "", "03010d040d886100"),
    (14, Command.SCHEDULE, "010040420f00ff01", "03010e030e010440420f05ff01991800"),
]


def frame(seq: int, kind: int, flags: int, payload: bytes) -> bytes:
    body = struct.pack("<BHBB", 1, seq, kind, flags) + payload
    return cobs.encode(body + struct.pack("<H", binascii.crc_hqx(body, 0xFFFF)))


@given(st.integers(0, 0xFFFF), st.sampled_from(Command), st.binary(max_size=700))
def test_a_request_is_one_frame_that_holds_what_was_asked(seq: int, command: Command, payload: bytes) -> None:
    wire = _frames.request(seq, command, payload)
    assert wire.count(b"\0") == 1
    assert wire.endswith(b"\0")
    body = cobs.decode(wire[:-1])
    assert body[:-2] == struct.pack("<BHB", 1, seq, command) + payload
    assert int.from_bytes(body[-2:], "little") == binascii.crc_hqx(body[:-2], 0xFFFF)


@given(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 255), st.binary(max_size=100))
def test_a_reply_is_read_as_it_was_sent(seq: int, kind: int, flags: int, payload: bytes) -> None:
    assert _frames.reply(frame(seq, kind, flags, payload)) == _frames.Reply(seq, kind, flags, payload)


@given(st.binary(max_size=100), st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_byte_is_noticed(payload: bytes, at: int, flip: int) -> None:
    good = frame(7, 0x82, 0, payload)
    bad = bytearray(good)
    bad[at % len(bad)] ^= flip
    assert _frames.reply(bytes(bad)) is None


@given(st.binary(max_size=60))
def test_noise_is_no_reply(noise: bytes) -> None:
    assert _frames.reply(noise) is None


@pytest.mark.parametrize(("seq", "command", "payload", "wire"), PINNED)
def test_the_bytes_of_commands_are_pinned(seq: int, command: Command, payload: str, wire: str) -> None:
    """Boards in the field do not change."""
    assert _frames.request(seq, command, bytes.fromhex(payload)).hex() == wire


def test_every_command_is_pinned() -> None:
    assert {command for _, command, _, _ in PINNED} == set(Command)
