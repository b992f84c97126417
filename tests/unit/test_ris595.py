"""Our own board through its driver: each fault of its twin, and what each operation makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firmware_ctl.boards import _frames
from firmware_ctl.boards._frames import Command, Refusal, Reply
from firmware_ctl.boards.ris595 import Ris595
from sim_backend.emulators.ris595 import FAULTS, EmulatedRis595
from testbed.core import patterns
from testbed.core.errors import DeviceError
from testbed.core.types import SurfacePattern
from testbed.core.world import DriverContext


@pytest.fixture
def context(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> DriverContext:
    cache = tmp_path_factory.getbasetemp() / "firmware-of-ris595"  # built once
    cache.mkdir(exist_ok=True)
    (tmp_path / "firmware").symlink_to(cache)
    return DriverContext(seed=3, world=None, identity=None, state_dir=tmp_path / "ris")


@pytest.fixture
def twin(context: DriverContext) -> Iterator[EmulatedRis595]:
    with closing(EmulatedRis595("ris", context)) as made:
        yield made


@pytest.fixture
def board(twin: EmulatedRis595, context: DriverContext) -> Iterator[Ris595]:
    with Ris595("ris", context, uri=twin.uri) as made:
        yield made


def pattern(seed: int) -> SurfacePattern:
    return patterns.make(f"random({seed})", (16, 16), 1)


def holds(twin: EmulatedRis595, wanted: SurfacePattern) -> bool:
    return np.array_equal(twin.outputs, wanted.levels)


@pytest.mark.parametrize("fault", FAULTS)
def test_apply_and_readback_survive_each_fault(twin: EmulatedRis595, board: Ris595, fault: str) -> None:
    for seed in range(3):
        twin.arm(fault)
        assert board.apply(pattern(seed)).digest == pattern(seed).digest
        assert holds(twin, pattern(seed))
        twin.arm(fault)
        held = board.readback()
        assert holds(twin, held)
        assert held.digest == pattern(seed).digest or fault == "reboot"
    assert twin.faults_met == {fault: 6}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_stands_on_earlier_commands_is_done_or_refused(twin: EmulatedRis595, board: Ris595, fault: str) -> None:
    book, ahead = [pattern(seed) for seed in range(4)], [pattern(seed) for seed in range(40, 90)]

    def by_index() -> SurfacePattern:
        board.apply_index(2)
        return book[2]

    def queued() -> SurfacePattern:
        board.queue(pattern(7))
        board.trigger()
        return pattern(7)

    def many() -> SurfacePattern:
        steps = board.apply_many([*([1, 3] * 100), *ahead, pattern(9)])
        next(steps)
        twin.arm(fault)  # more are on the way already, and more to come
        assert len(list(steps)) == 250
        return pattern(9)

    def uploaded() -> SurfacePattern:
        board.upload(book[::-1])
        board.apply_index(0)
        return book[3]

    for work in (by_index, queued, many, uploaded):
        board.upload(book)
        twin.arm(fault)
        begin_s = time.monotonic()
        done = attempt(work)
        assert time.monotonic() - begin_s < 30.0
        assert done is None or holds(twin, done)
        assert done is None or work is not by_index or fault != "reboot"  # the codebook was lost with it
        board.apply(pattern(20))  # after any of these faults it still works
        assert holds(twin, pattern(20))
    assert set(twin.faults_met) == {fault}


def attempt(work: Callable[[], SurfacePattern]) -> SurfacePattern | None:
    """Return what the outputs have to hold, nothing where the driver refused."""
    try:
        return work()
    except DeviceError:
        return None


def late(board: Ris595, monkeypatch: pytest.MonkeyPatch, operation: Callable[[], object], after: int = 0) -> None:
    """Do something, and have the replies to it come a second time, when `after` replies to what is asked next came."""
    next_reply, heard = board._next_reply, []

    def listening(until_s: float) -> Reply | None:
        heard.append(next_reply(until_s))
        return heard[-1]

    monkeypatch.setattr(board, "_next_reply", listening)
    operation()
    fresh = iter(range(after))

    def mixed(until_s: float) -> Reply | None:
        return next_reply(until_s) if next(fresh, None) is not None or not heard else heard.pop(0)

    monkeypatch.setattr(board, "_next_reply", mixed)


def test_late_replies_of_the_same_kind_and_content_acknowledge_nothing(
    twin: EmulatedRis595, board: Ris595, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = patterns.make("uniform", (16, 16), 1)

    def many() -> None:
        list(board.apply_many([pattern(1)]))  # looks at the time first

    for work, faults in ((lambda: board.apply(pattern(1)), ["swallow"]), (many, ["", "swallow"])):
        late(board, monkeypatch, work, after=len(faults) - 1)
        twin.outputs = held.levels  # a brown-out that the host does not notice
        for fault in faults:
            twin.arm(fault)
        if work is many:
            with pytest.raises(DeviceError, match="damaged on its way"):
                work()
        else:
            work()
            assert holds(twin, pattern(1))
        assert twin.faults_met.pop("swallow") == 1
        monkeypatch.undo()
    late(board, monkeypatch, board.readback)
    twin.outputs = held.levels
    assert board.readback().digest == held.digest


def test_an_upload_to_a_board_that_is_stuck_ends_in_time_and_works_afterwards(context: DriverContext) -> None:
    book = [pattern(seed) for seed in range(8)]
    with (
        closing(EmulatedRis595("ris", context, fault="stuck-upload")) as twin,
        Ris595("ris", context, uri=twin.uri) as board,
    ):
        begin_s = time.monotonic()
        with pytest.raises(DeviceError, match="ris: upload: the board does not answer"):
            board.upload(book, timeout_s=0.3)
        assert time.monotonic() - begin_s < 20.0
        with pytest.raises(DeviceError, match="accepted: after upload"):
            board.apply_index(0)
        board.apply(pattern(30), timeout_s=60.0)  # it is deaf for 3 s
        assert holds(twin, pattern(30))
        board.upload(book)
        board.apply_index(5)
        assert holds(twin, book[5])


def test_many_from_a_board_that_started_anew_is_refused_once_and_then_goes_on(
    twin: EmulatedRis595, board: Ris595
) -> None:
    steps = board.apply_many([pattern(seed) for seed in range(200)])
    next(steps)
    twin.arm("reboot")
    with pytest.raises(DeviceError, match="ris: apply_many: "):
        list(steps)
    assert [a.digest for a in board.apply_many([pattern(1), pattern(2)])] == [pattern(1).digest, pattern(2).digest]
    assert holds(twin, pattern(2))


def test_a_board_whose_process_died_starts_anew_with_the_next_command(twin: EmulatedRis595, board: Ris595) -> None:
    for seed in range(3):
        board.apply(pattern(seed))
        twin._firmware.process.kill()
        twin._firmware.process.wait()
        with pytest.raises(DeviceError, match="was reset: queue, codebook and upload are lost"):
            board.upload([pattern(9)])
        assert not twin.outputs.any()
        assert not board.readback().levels.any()
    board.apply(pattern(4))
    assert holds(twin, pattern(4))


def test_the_watchdog_clears_the_outputs_of_a_silent_line(twin: EmulatedRis595, board: Ris595) -> None:
    board.apply(pattern(1))
    board.set_watchdog(0.05)
    deadline_s = time.monotonic() + 60.0
    while twin.outputs.any() and time.monotonic() < deadline_s:
        time.sleep(0.005)  # nothing may be said to it
    assert not board.readback().levels.any()
    for silence_s in (-1.0, float("nan"), 1e4):
        with pytest.raises(DeviceError, match="accepted 0 to 1000 s"):
            board.set_watchdog(silence_s)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_schedule_is_taken_as_a_whole_or_refused_and_the_next_one_works(
    twin: EmulatedRis595, board: Ris595, fault: str
) -> None:
    wanted = [pattern(seed) for seed in range(12)]
    twin.arm(fault)
    twin.arm("")
    twin.arm(fault)  # once the patterns are on their way
    try:
        applied = board.schedule(wanted, [1.0 + k for k in range(12)])
    except DeviceError:
        pass  # as a whole: the coordinator rejects the rounds of that train
    else:
        assert [x.digest for x in applied] == [x.digest for x in wanted]
        assert [x.time_s for x in applied] == [1.0 + k for k in range(12)]
    board.schedule(wanted[::-1], [100.0 + k for k in range(12)])
    assert list(twin.latched)[-12:] == [x.levels.tobytes() for x in wanted[::-1]]
    assert board.readback().digest == wanted[0].digest


def test_a_schedule_beyond_the_clock_is_refused_before_anything_is_sent(twin: EmulatedRis595, board: Ris595) -> None:
    before = len(twin.latched)
    with pytest.raises(DeviceError, match="due in 2500 s, accepted up to 2000 s"):
        board.schedule([pattern(1)], [2500.0])
    assert len(twin.latched) == before


def test_the_firmware_of_a_board_that_knows_no_schedule_is_accepted(
    twin: EmulatedRis595, context: DriverContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Ris595._ask

    def shorter(self: Ris595, operation: str, command: Any, payload: bytes, deadline_s: float) -> Reply:
        found = ask(self, operation, command, payload, deadline_s)
        return Reply(found.seq, found.kind, found.flags, found.payload[:33]) if command == Command.HELLO else found

    monkeypatch.setattr(Ris595, "_ask", shorter)
    with Ris595("ris", context, uri=twin.uri) as old:
        assert old.capabilities.schedule_size == 0
        with pytest.raises(DeviceError, match="latches none by time"):
            old.schedule([pattern(1)], [1.0])
        assert old.apply(pattern(2)).digest == pattern(2).digest


def test_a_board_that_refuses_even_a_greeting_is_a_device_error(board: Ris595, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in 10⁵ spoilt replies said to a greeting that there is no session, and the driver's own signal escaped."""

    def refusing(until_s: float) -> Reply:
        return Reply(seq=board._seq, kind=_frames.ERROR, flags=0, payload=bytes([0, Refusal.NO_SESSION]))

    monkeypatch.setattr(board, "_next_reply", refusing)
    for job in (board.now_s, board.readback, lambda: board.apply(pattern(1)), board.reset):
        with pytest.raises(DeviceError, match="the board refuses"):
            job()
