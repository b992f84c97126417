"""Both serial boards at their port and at their air: what cannot be used is one line, what went away comes back."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_ctl.boards._serial import SerialLink
from sim_backend.emulators.surface_port import SurfacePort
from sim_backend.local import world_in_thread
from testbed.core import patterns
from testbed.core.config import Multipath, PlacedNode, PlacedSurface, RadioPlan, Scene
from testbed.core.errors import DeviceError, DeviceTimeout, InputError
from testbed.core.registry import load_driver
from testbed.core.ris import Board
from testbed.core.types import SurfacePattern
from testbed.core.world import DriverContext

DRIVERS = ["opensourceris", "ris595"]
SCENE = Scene(
    alice=PlacedNode(position_m=[4.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[9.0, 8.0, 1.5]),
    surface=PlacedSurface(position_m=[6.0, 4.0, 1.5], normal=[0.0, 1.0, 0.0]),
    multipath=Multipath(n_scatterers=2),
)


def context(folder: Path, world: str | None = None) -> DriverContext:
    return DriverContext(seed=3, world=world, identity=None, state_dir=folder / "ris")


def twin_of(driver: str, where: DriverContext, **options: Any) -> Any:
    return load_driver("worlds", "sim").emulate("ris", driver, where, options)


def open_board(driver: str, where: DriverContext, uri: str, **options: Any) -> Board:
    board: Board = load_driver("boards", driver)("ris", where, uri=uri, **options)
    return board


@pytest.fixture(autouse=True)
def built_once(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Twins of ris595 find their firmware beside their folder."""
    cache = tmp_path_factory.getbasetemp() / "firmware-of-lines"
    cache.mkdir(exist_ok=True)
    (tmp_path / "firmware").symlink_to(cache)


def pattern(seed: int) -> SurfacePattern:
    return patterns.make(f"random({seed})", (16, 16), 1)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def twin(driver: str, tmp_path: Path) -> Iterator[Any]:
    with closing(twin_of(driver, context(tmp_path))) as made:
        yield made


# ---------------------------------------------------------------- ports that cannot be used


def refusal(driver: str, folder: Path, uri: str, **options: Any) -> str:
    with pytest.raises((DeviceError, InputError)) as caught:
        open_board(driver, context(folder), uri, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert "in state" not in said
    return said


def test_no_port(driver: str, tmp_path: Path) -> None:
    assert "no port" in refusal(driver, tmp_path, str(tmp_path / "ttyUSB9"))


def test_something_that_is_no_port(driver: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "no serial port" in refusal(driver, tmp_path, str(tmp_path / "file"))


def test_a_port_that_is_in_use(driver: str, twin: Any, tmp_path: Path) -> None:
    with open_board(driver, context(tmp_path), twin.uri) as board:
        assert "in use by another program" in refusal(driver, tmp_path, twin.uri)
        board.apply(pattern(1))  # the program that has the port is not disturbed


def test_a_port_that_another_program_locked(driver: str, twin: Any, tmp_path: Path) -> None:
    fd = os.open(twin.uri, os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "in use by another program" in refusal(driver, tmp_path, twin.uri)
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_port_without_permission(driver: str, twin: Any, tmp_path: Path, monkeypatch: Any, number: int) -> None:
    real = os.open

    def forbidden(path: Any, *rest: Any, **more: Any) -> int:  # root may open anything: the kernel's answer is played
        if path == twin.uri:
            raise OSError(number, os.strerror(number), path)
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", forbidden)
    assert "no permission" in (said := refusal(driver, tmp_path, twin.uri))
    assert "dialout" in said


@pytest.mark.parametrize("driver", ["opensourceris"])
def test_the_wrong_baud_rate_opensourceris(driver: str, twin: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("firmware_ctl.boards.opensourceris._OPEN_S", 0.5)
    said = refusal(driver, tmp_path, twin.uri, baud=9600)
    assert "9600 baud" in said
    assert "check port, baud" in said


@pytest.mark.parametrize("driver", ["ris595"])
def test_the_wrong_baud_rate_ris595(driver: str, twin: Any, tmp_path: Path) -> None:
    said = refusal(driver, tmp_path, twin.uri, baud=115200, open_timeout_s=0.5)
    assert "115200 baud" in said
    assert "check port, baud" in said


@pytest.mark.parametrize("driver", ["opensourceris"])
def test_the_other_board_opensourceris(driver: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("firmware_ctl.boards.opensourceris._OPEN_S", 0.5)
    with closing(twin_of("ris595", context(tmp_path), baud=115200)) as other:
        assert "no OpenSourceRIS board" in refusal(driver, tmp_path, other.uri)


@pytest.mark.parametrize("driver", ["ris595"])
def test_the_other_board_ris595(driver: str, tmp_path: Path) -> None:
    with closing(twin_of("opensourceris", context(tmp_path), baud=500_000)) as other:
        assert "no ris595 board answers" in refusal(driver, tmp_path, other.uri, open_timeout_s=0.5)


def test_another_shape_than_the_lab_says(tmp_path: Path) -> None:
    with closing(twin_of("ris595", context(tmp_path), rows=8, columns=8)) as small:
        said = refusal("ris595", tmp_path, small.uri, rows=16, columns=16)
    assert "16, 16" in said
    assert "the board at" in said
    assert "(8, 8, 1)" in said


def test_a_pattern_of_another_shape_changes_nothing(driver: str, twin: Any, tmp_path: Path) -> None:
    with open_board(driver, context(tmp_path), twin.uri) as board:
        board.apply(pattern(1))
        with pytest.raises(DeviceError, match=r"ris: apply: pattern of shape \(8, 8\), accepted \(16, 16\)"):
            board.apply(patterns.make("uniform", (8, 8), 1))
        np.testing.assert_array_equal(twin.outputs, pattern(1).levels)


# ---------------------------------------------------------------- what comes back, and what does not


def test_a_port_that_stays_away_ends_in_time_and_one_that_is_back_serves_again(
    driver: str, twin: Any, tmp_path: Path
) -> None:
    with open_board(driver, context(tmp_path), twin.uri) as board:
        twin.line.vanish(None)
        begin_s = time.monotonic()
        with pytest.raises(DeviceError, match=r"no port|vanished"):
            board.apply(pattern(1), timeout_s=0.3)
        assert time.monotonic() - begin_s < 20.0
        twin.line.appear()
        board.apply(pattern(2))
        np.testing.assert_array_equal(twin.outputs, pattern(2).levels)


def test_another_board_behind_the_same_port_is_noticed(driver: str, tmp_path: Path) -> None:
    first = twin_of(driver, context(tmp_path), serial=12)
    with closing(first), open_board(driver, context(tmp_path), first.uri) as board:
        board.apply(pattern(1))
        first.close()
        with closing(twin_of(driver, context(tmp_path), serial=13)) as second:
            assert second.uri == first.uri
            with pytest.raises(DeviceError, match="another board answers"):
                board.apply(pattern(2))
            with pytest.raises(DeviceError, match="another board answers"):
                board.readback()
            assert not second.outputs.any()
        with closing(twin_of(driver, context(tmp_path), serial=12)) as again:
            board.apply(pattern(3))
            np.testing.assert_array_equal(again.outputs, pattern(3).levels)


def test_a_twin_without_its_air_says_nothing_and_comes_back_with_it(
    driver: str, tmp_path: Path, monkeypatch: Any
) -> None:
    stalled = threading.Event()
    ask = SurfacePort._ask

    def stalling(self: SurfacePort, *given: Any) -> Any:
        if stalled.is_set():
            raise DeviceTimeout("ris", "apply", "open", "the world did not answer")
        return ask(self, *given)

    monkeypatch.setattr(SurfacePort, "_ask", stalling)
    with (
        world_in_thread(SCENE, seed=11) as endpoint,
        closing(twin_of(driver, where := context(tmp_path, endpoint))) as twin,
        open_board(driver, where, twin.uri) as board,
    ):
        board.apply(pattern(1))
        for seed in (2, 3):  # more than once
            stalled.set()
            with pytest.raises(DeviceError):
                board.apply(pattern(seed), timeout_s=0.3)
            stalled.clear()
            board.apply(pattern(seed))
            np.testing.assert_array_equal(twin.outputs, pattern(seed).levels)
            assert board.readback().digest == pattern(seed).digest


def test_a_new_scene_in_the_air_is_a_power_up_and_readback_says_so(driver: str, tmp_path: Path) -> None:
    with (
        world_in_thread(SCENE, seed=11) as endpoint,
        closing(twin_of(driver, where := context(tmp_path, endpoint))) as twin,
        open_board(driver, where, twin.uri) as board,
    ):
        board.apply(pattern(1))
        assert board.readback().digest == pattern(1).digest
        load_driver("worlds", "sim").reset(endpoint, None, SCENE, RadioPlan(), 12, 5.0)
        assert not board.readback().levels.any()
        board.apply(pattern(2))
        assert board.readback().digest == pattern(2).digest


def test_draining_a_line_that_never_stops_talking_ends(monkeypatch: Any) -> None:
    link = SerialLink("ris", "/dev/ttyUSB9", 115200)
    monkeypatch.setattr(link, "_read_some", lambda *_: b"x")
    begin_s = time.monotonic()
    assert set(link.drain(0.05)) == set(b"x")
    assert time.monotonic() - begin_s < 20.0
