"""OpenSourceRIS: what goes over the wire, and what the twin makes of it."""

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


@pytest.mark.parametrize(
    "line",
    [ONES + b"\r", ONES[:-1], ONES + b"1", b"!0xg" + ONES[4:], b"!" + ONES[3:], b"?Nothing", b"! " + ONES[1:],
     b" " * 70 + ONES],
    ids=["CRLF", "63", "65", "not hex", "no 0x", "unknown", "space inside", "too long"],
)  # fmt: skip
def test_what_the_firmware_does_not_like_is_met_with_silence(twin: EmulatedOpenSourceRis, line: bytes) -> None:
    assert twin.feed(line + b"\n") == b""
    assert not twin.outputs.any()


def test_lines_that_run_into_each_other(twin: EmulatedOpenSourceRis) -> None:
    assert twin.feed(b"x y" + ONES + b"\n") == b"#OK\n"
    assert twin.feed(b"?Pattern\n") == b"#0X" + b"1" * 64 + b"\n"
    assert twin.feed(b"!0x12") + twin.feed(ONES + b"\n") == b""
    assert twin.feed(b"?SerialNo\n?SerialNo\n") == b"#SerNo:  12\n"


def test_a_voltage_just_below_the_next(tmp_path: Path) -> None:
    with closing(EmulatedOpenSourceRis("ris", context(tmp_path), vext_v=9.999)) as odd:
        assert odd.feed(b"?Vext\n") == b"#09.90 V\n"


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


def test_a_board_that_never_does_as_told_is_given_up_in_time_with_the_reason(
    twin: EmulatedOpenSourceRis, tmp_path: Path
) -> None:
    with OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board:
        for _ in range(1000):
            twin.arm("never")
        begin_s = time.monotonic()
        with pytest.raises(DeviceTimeout, match=r"ris: apply: not done within 0.5 s: .*(instead|nothing from)"):
            board.apply(patterns.make("random(1)", (16, 16), 1), timeout_s=0.5)
        assert time.monotonic() - begin_s < 1.0


def test_a_reset_of_a_board_that_only_talks_ends_in_time(
    twin: EmulatedOpenSourceRis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenSourceRis("ris", context(tmp_path), uri=twin.uri) as board:
        monkeypatch.setattr(board._link, "read_until", lambda *_: b"#OK\n")
        with pytest.raises(DeviceTimeout, match="does not say that it is ready"):
            board.reset(timeout_s=0.1)
