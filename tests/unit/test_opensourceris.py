"""OpenSourceRIS: the bytes on the wire, and the emulator's reaction to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from firmware_ctl.boards.opensourceris import OpenSourceRis
from sim_backend.emulators.opensourceris import FAULTS, EmulatedOpenSourceRis
from testbed.core import patterns
from testbed.core.errors import DeviceError, DeviceTimeout
from testbed.core.world import DriverContext

ONES = b"!0x" + b"1" * 64


def context(folder: Path) -> DriverContext:
    return DriverContext(seed=3, world=None, identity=None, state_dir=folder)


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[EmulatedOpenSourceRis]:
    with closing(EmulatedOpenSourceRis("ris", context(tmp_path), vext_v=9.14)) as made:
        yield made


def test_every_command_byte_for_byte(twin: EmulatedOpenSourceRis, tmp_path: Path) -> None:
    with OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board:
        assert (board.identity()["serial"], board.identity()["vext_v"]) == ("12", 9.14)
        twin.commands.clear()
        first = "0x8" + "0" * 63  # element 1, top left, alone
        board.apply(patterns.make(first, (16, 16), 1))
        assert twin.outputs[0, 0] == 1
        assert twin.outputs.sum() == 1
        board.apply(patterns.make(first, (16, 16), 1))
        board.set_bluetooth_key("123456")
        board.reset()
    pair = [b"!" + first.encode(), b"?Pattern"]
    assert twin.commands == [*pair, *pair, b"!BT-Key=123456", b"!Reset"]


LAST = b"!0x" + b"0" * 63 + b"1"
OK, HELD = b"#OK\n", b"#0X" + b"1" * 64 + b"\n"
SERIAL, VOLTS = b"#SerNo:  12\n", b"#09.14 V\n"


@pytest.mark.parametrize(
    ("sent", "answer", "set_to_ones"),
    [
        # any case, of keywords and digits alike
        (ONES + b"\n", OK, True),
        (b"!0X" + b"1" * 64 + b"\n", OK, True),
        (LAST[:-1] + b"F\n", OK, False),
        (LAST[:-1] + b"f\n", OK, False),
        (b"?vext\n", VOLTS, False),
        (b"?VEXT\n", VOLTS, False),
        (b"?sErIaLnO\n", SERIAL, False),
        # an invalid byte resets the parser, and the rest of the line is obeyed where it has a start of its own
        (b"x y" + ONES + b"\n", OK, True),
        (b" " * 200 + ONES + b"\n", OK, True),
        (b"!0x12 " + ONES + b"\n", OK, True),
        (b"?Pat#?SerialNo\n", SERIAL, False),
        (b"!0x12\r?Vext\n", VOLTS, False),
        (b"\x80\xff\0?Vext\n", VOLTS, False),
        (b"A" * 60 + b"?Vext\n", VOLTS, False),
        (b"!" + b"A" * 129 + b"?Vext\n", VOLTS, False),
        # a second start is such a byte, too, and is lost with what it broke
        (b"!0x12" + ONES + b"\n", b"", False),
        (b"!!0x" + b"1" * 64 + b"\n", b"", False),
        (b"?Ve?Vext\n", b"", False),
        (b"?Ve??Vext\n", VOLTS, False),
        (b"!?Vext\n", b"", False),
        # what is not a whole command is met with silence
        (ONES + b"\r\n", b"", False),
        (ONES[:-1] + b"\n", b"", False),
        (ONES + b"1\n", b"", False),
        (b"!0xg" + ONES[4:] + b"\n", b"", False),
        (b"!" + ONES[3:] + b"\n", b"", False),
        (b"! " + ONES[1:] + b"\n", b"", False),
        (b"?Nothing\n", b"", False),
        (b"?Vext1\n", b"", False),
        (b"?Vext \n", b"", False),
        (b"!Vext\n", b"", False),
        (b"?Reset\n", b"", False),
        (b"?0x" + b"1" * 64 + b"\n", b"", False),
        (b"!BT-Key=12345\n", b"", False),
        (b"!BT-Key=1234567\n", b"", False),
        (b"!BT-Key=12345a\n", b"", False),
        (b"!BT_Key=123456\n", b"", False),
        (b"\n\n\n", b"", False),
        # while it answers it executes nothing, and bytes received meanwhile become part of the next line
        (b"?SerialNo\n?SerialNo\n", SERIAL, False),
        (ONES + b"\n?Vext\n", OK, True),
        (ONES + b"\nA" + LAST + b"\n", OK, True),
    ],
)
def test_the_twin_does_what_the_firmware_does(
    twin: EmulatedOpenSourceRis, sent: bytes, answer: bytes, set_to_ones: bool
) -> None:
    """Described from the public firmware 1.1: its interrupt's rules for every byte, its main loop's for every line."""
    assert twin.feed(sent) == answer
    assert (twin.feed(b"?Pattern\n") == HELD) == set_to_ones


def test_a_line_may_come_byte_by_byte(twin: EmulatedOpenSourceRis) -> None:
    assert b"".join(twin.feed(bytes([b])) for b in b"zz" + ONES + b"\n") == OK
    assert twin.outputs.sum() == 64


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(tmp_path: Path, clock: Clock) -> Iterator[EmulatedOpenSourceRis]:
    with closing(EmulatedOpenSourceRis("ris", context(tmp_path), clock=clock)) as made:
        yield made


def test_it_is_deaf_about_half_a_second_at_boot(timed: EmulatedOpenSourceRis, clock: Clock) -> None:
    timed.feed(ONES + b"\n")
    clock.now_s += 0.01
    assert timed.feed(b"!reset\n") == b""
    assert not timed.outputs.any()
    clock.now_s += 0.5
    assert timed.feed(b"?Vext\n") == b""
    clock.now_s += 0.05
    assert timed.feed(b"?Vext\n") == VOLTS


def test_bytes_received_while_it_answers_damage_only_the_next_line(timed: EmulatedOpenSourceRis, clock: Clock) -> None:
    assert timed.feed(ONES + b"\nAB") == OK
    for answer in (b"", VOLTS):  # the queue held AB
        clock.now_s += 0.01
        assert timed.feed(b"?Vext\n") == answer


@pytest.mark.parametrize(("key", "busy_s"), [(b"123456", 2.96), (b"524953", 1.76)], ids=["new", "held already"])
def test_a_bluetooth_key_takes_seconds_in_which_nothing_is_obeyed(
    timed: EmulatedOpenSourceRis, clock: Clock, key: bytes, busy_s: float
) -> None:
    assert timed.feed(b"!bt-key=" + key + b"\n") == b""
    clock.now_s += busy_s - 0.01
    assert timed.feed(b"?Vext\n") == b""
    clock.now_s += 0.02
    assert timed.feed(b"?Vext\n") == VOLTS
    assert timed.bluetooth_key == key


def test_the_driver_waits_for_the_bluetooth_key_and_sends_it_once(twin: EmulatedOpenSourceRis, tmp_path: Path) -> None:
    with OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board:
        twin.commands.clear()
        board.set_bluetooth_key("000042")
        assert twin.commands == [b"!BT-Key=000042"]
        assert twin.bluetooth_key == b"000042"
        with pytest.raises(DeviceError, match="six decimal digits"):
            board.set_bluetooth_key("42")
        assert board.readback().levels.sum() == 0  # what comes next is not out of step


def test_a_refused_bluetooth_key_is_reported_and_not_tried_again(tmp_path: Path) -> None:
    with (
        closing(EmulatedOpenSourceRis("ris", context(tmp_path), bluetooth=False)) as twin,
        OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board,
    ):
        twin.commands.clear()
        with pytest.raises(DeviceError, match=r"#ERROR.*Bluetooth module"):
            board.set_bluetooth_key("123456")
        assert twin.commands == [b"!BT-Key=123456"]


def test_a_board_that_boots_while_it_is_opened_is_waited_for(twin: EmulatedOpenSourceRis, tmp_path: Path) -> None:
    twin.feed(b"!Reset\n")
    with OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board:
        wanted = patterns.make("random(1)", (16, 16), 1)
        board.apply(wanted)
        np.testing.assert_array_equal(twin.outputs, wanted.levels)


@pytest.mark.parametrize(
    ("volts", "answer"),
    [
        (9.999, b"#09.90 V\n"),  # tenths are rounded down and hundredths to the nearest: 999.9 reads as …0
        (9.147, b"#09.15 V\n"),
        (9.196, b"#09.10 V\n"),
        (12.0, b"#12.00 V\n"),
        (0.0, b"#00.00 V\n"),
        (-0.1, b""),
        (100.0, b""),
    ],
)
def test_the_supply_voltage_is_rounded_digit_by_digit(tmp_path: Path, volts: float, answer: bytes) -> None:
    with closing(EmulatedOpenSourceRis("ris", context(tmp_path), vext_v=volts)) as odd:
        assert odd.feed(b"?Vext\n") == answer


@pytest.mark.parametrize("fault", FAULTS)
def test_apply_survives_each_fault(twin: EmulatedOpenSourceRis, tmp_path: Path, fault: str) -> None:
    with OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board:
        for seed in range(3):
            twin.arm(fault)
            wanted = patterns.make(f"random({seed})", (16, 16), 1)
            board.apply(wanted)
            np.testing.assert_array_equal(twin.outputs, wanted.levels)


def test_a_port_that_cannot_be_used_is_one_line(twin: EmulatedOpenSourceRis, tmp_path: Path) -> None:
    for uri, baud, said in [(str(tmp_path / "none"), 115200, "no port"), ("/dev/null", 115200, "no serial port"),
                            (twin.uri, 9600, "9600 baud")]:  # fmt: skip
        with pytest.raises(DeviceError, match=said) as caught:
            OpenSourceRis("ris", context(tmp_path), uri=uri, baud=baud)
        assert "\n" not in str(caught.value)


def test_a_board_that_never_obeys_is_given_up_in_time_with_the_reason(
    twin: EmulatedOpenSourceRis, tmp_path: Path
) -> None:
    with OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board:
        for _ in range(1000):
            twin.arm("never")
        begin_s = time.monotonic()
        with pytest.raises(DeviceTimeout, match=r"ris: apply: not done within 0.5 s: .*(instead|nothing from)"):
            board.apply(patterns.make("random(1)", (16, 16), 1), timeout_s=0.5)
        assert time.monotonic() - begin_s < 20.0


def test_a_reset_of_a_board_that_only_talks_ends_in_time(
    twin: EmulatedOpenSourceRis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board:
        monkeypatch.setattr(board._link, "read_until", lambda *_: b"#OK\n")
        with pytest.raises(DeviceTimeout, match="does not report that it is ready"):
            board.reset(timeout_s=0.1)
