"""Faults on purpose: a plan that follows from its seed, lines that are bad as told, and words for a wrong table."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed import config
from testbed.core.clock import TIME_OF_DAY
from testbed.core.config import Experiment, Faults, Lab
from testbed.core.errors import InputError
from testbed.lab import fault_plan
from testbed.lab.fault_plan import Fault, Traffic
from testbed.lab.proxy import Frames, Line, Lines
from testbed.lab.rehearsal import Rehearsal
from testbed.records import documents


def experiment(rounds: int = 20_000, **faults: Any) -> Experiment:
    plan = config.load_experiment("mobile_room")
    return msgspec.structs.replace(plan, rounds=rounds, faults=msgspec.convert(faults, Faults))


def planned(rounds: int = 20_000, **faults: Any) -> list[Fault]:
    e = experiment(rounds, **faults)
    assert e.faults is not None
    return fault_plan.plan(e.faults, e, ["alice", "bob", "eve"])


def test_a_plan_follows_from_its_seed_and_has_the_rates_it_was_given() -> None:
    rates = {"resets": 5.0, "partitions": 2.0, "pauses": 1.0, "kills": 0.5, "pause_s": 3.0}
    rates |= {"clock_steps": 2.0, "clock_step_s": 7.0, "disk_full": 1.0, "disk_full_s": 4.0}
    plan = planned(**rates)
    assert plan == planned(**rates)
    assert plan != planned(seed=2, **rates)
    assert [f.round for f in plan] == sorted(f.round for f in plan)
    counts = Counter(f.kind for f in plan)
    wanted_of = {"reset": 100, "partition": 40, "pause": 20, "kill": 10, "clock_step": 40, "disk_full": 20}
    for kind, wanted in wanted_of.items():
        assert abs(counts[kind] - wanted) < 4 * wanted**0.5
    own = ("clock_step", "disk_full")
    assert {f.node for f in plan if f.kind not in own} == {"alice", "bob", "eve"}
    assert {f.node for f in plan if f.kind in own} == {"coordinator"}
    steps_s = [f.length_s for f in plan if f.kind == "clock_step"]
    assert steps_s == [7.0, -7.0] * (len(steps_s) // 2) + [7.0] * (len(steps_s) % 2)
    assert {f.length_s for f in plan if f.kind == "disk_full"} == {4.0}
    assert {f.length_s for f in plan if f.kind == "pause"} == {3.0}
    assert fault_plan.kills(plan).total() == counts["kill"]


def test_a_longer_run_begins_with_the_shorter_ones_faults() -> None:
    short = planned(1000, resets=20.0, kills=5.0)
    assert short == [f for f in planned(5000, resets=20.0, kills=5.0) if f.round < 1000]
    assert short


def test_nothing_is_planned_of_a_kind_that_is_not_asked_for() -> None:
    assert planned(loss=0.1) == []


def test_the_fate_of_messages_has_the_shares_it_was_given() -> None:
    faults = Faults(loss=0.1, duplication=0.05, reordering=0.2)
    traffic = Traffic(faults, 1, "control", "bob", 0)
    fates = Counter(traffic.fate() for _ in range(10_000))
    for fate, share in (("lost", 0.1), ("twice", 0.05), ("swapped", 0.2), ("passes", 0.65)):
        assert abs(fates[fate] - 10_000 * share) < 4 * (10_000 * share) ** 0.5
    again = Traffic(faults, 1, "control", "bob", 0)
    assert Counter(again.fate() for _ in range(10_000)) == fates


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"nodes": ["carol"]}, "key 'nodes': 'carol'; accepted: alice, bob, eve"),
        ({"nodes": ["ris"]}, "accepted: alice, bob, eve"),  # it takes no part in this experiment
    ],
)
def test_nodes_that_it_cannot_happen_to_are_refused(faults: dict[str, Any], words: str) -> None:
    e = experiment(**faults)
    assert e.faults is not None
    with pytest.raises(InputError, match=words):
        fault_plan.nodes_of(e.faults, e, config.load_lab("sim"), "sim")


def test_a_lab_whose_nodes_are_elsewhere_is_refused() -> None:
    lab = config.load_lab("sim")
    nodes = {name: msgspec.structs.replace(place, local=False) for name, place in lab.node.items()}
    e = experiment()
    assert e.faults is not None
    with pytest.raises(InputError, match="no node of this lab is local"):
        fault_plan.nodes_of(e.faults, e, msgspec.structs.replace(lab, node=nodes), "sim")


@pytest.mark.parametrize("table", [{"loss": 0.7}, {"delay": 1}, {"links": []}, {"links": ["wire"]}, {"kills": -1}])
def test_a_wrong_table_is_refused_by_its_schema(table: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table, Faults)


def test_the_table_stands_in_the_schema() -> None:
    assert "Faults" in str(config.json_schema(Experiment))
    assert "Faults" not in str(config.json_schema(Lab))


def zmtp(*bodies: bytes) -> bytes:
    """Return a greeting and messages as ZMTP 3 frames, the second of them long."""
    frames = [
        bytes([0, len(b)]) + b if i != 1 else bytes([2]) + len(b).to_bytes(8, "big") + b for i, b in enumerate(bodies)
    ]
    command = b"\x04\x05\x04PING"
    return bytes(64) + command + b"".join(frames)


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_frames_are_told_apart_however_they_come(piece: int) -> None:
    data = zmtp(b"one", b"two" * 100, b"")
    frames, found = Frames(), []
    for i in range(0, len(data), piece):
        found += list(frames.feed(data[i : i + piece]))
    assert b"".join(part for part, _ in found) == data
    assert [part[-3:] for part, is_message in found if is_message] == [b"one", b"two", b"\0\0"]


class Echo:
    """A server that keeps what it is sent, connection by connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.got: list[bytearray] = []
        self.ends: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        got = bytearray()
        self.got.append(got)
        try:
            while data := connection.recv(4096):
                got += data
            self.ends.append("closed")
        except ConnectionResetError:
            self.ends.append("reset")


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def lines() -> Iterator[Lines]:
    with Lines() as made:
        yield made


def until(what: Any) -> None:
    deadline_s = time.monotonic() + 30.0
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def opened(lines: Lines, echo: Echo, sealed: bool = False, **faults: Any) -> tuple[Line, socket.socket]:
    table = Faults(**faults)
    line = lines.to(echo.endpoint, lambda: Traffic(table, 1, "x"), messages=True, sealed=sealed)
    return line, socket.create_connection(("127.0.0.1", line.port))


BODIES = [b"%03d" % i for i in range(200)]


def messages(data: bytes) -> list[bytes]:
    return [part[-3:] for part, is_message in Frames().feed(data) if is_message]


def test_a_good_line_changes_nothing_and_what_was_said_before_a_goodbye_arrives(lines: Lines, echo: Echo) -> None:
    _, client = opened(lines, echo, delay_s=0.05)
    data = zmtp(*BODIES)
    client.sendall(data)
    client.close()
    until(lambda: echo.ends)
    assert bytes(echo.got[0]) == data


def test_messages_are_lost_doubled_and_swapped_as_the_table_says(lines: Lines, echo: Echo) -> None:
    _, client = opened(lines, echo, loss=0.1, duplication=0.1, reordering=0.1)
    client.sendall(zmtp(*BODIES))
    client.close()
    until(lambda: echo.ends)
    came = messages(bytes(echo.got[0]))
    counts = Counter(came)
    assert 8 <= sum(b not in counts for b in BODIES) <= 35
    assert 8 <= sum(n == 2 for n in counts.values()) <= 35
    swaps = sum(b < a for a, b in pairwise(came))
    assert 8 <= swaps <= 35
    assert came.index(b"199") >= 0 or b"199" not in counts


def test_on_an_authenticated_line_a_replay_is_a_broken_connection(lines: Lines, echo: Echo) -> None:
    _, client = opened(lines, echo, sealed=True, duplication=0.5)
    client.sendall(zmtp(*BODIES))
    until(lambda: echo.ends)
    came = messages(bytes(echo.got[0]))
    assert came == BODIES[: len(came)]
    assert len(came) < 50


def test_a_cut_line_holds_everything_back_and_loses_nothing(lines: Lines, echo: Echo) -> None:
    line, client = opened(lines, echo)
    client.sendall(zmtp(b"one"))
    until(lambda: echo.got and messages(bytes(echo.got[0])) == [b"one"])
    line.cut()
    client.sendall(b"\0\3two")
    second = socket.create_connection(("127.0.0.1", line.port))  # not made before the line is mended
    time.sleep(0.2)
    assert messages(bytes(echo.got[0])) == [b"one"]
    assert len(echo.got) == 1
    line.mend()
    until(lambda: messages(bytes(echo.got[0])) == [b"one", b"two"] and len(echo.got) == 2)
    second.close()


def test_a_reset_closes_every_connection_and_new_ones_are_served(lines: Lines, echo: Echo) -> None:
    line, client = opened(lines, echo)
    client.sendall(zmtp(b"one"))
    until(lambda: echo.got and echo.got[0])
    line.reset()
    until(lambda: echo.ends)
    client.settimeout(30.0)
    with pytest.raises(ConnectionError):
        assert client.recv(1) == b"x"
    socket.create_connection(("127.0.0.1", line.port)).sendall(zmtp(b"two"))
    until(lambda: len(echo.got) == 2 and messages(bytes(echo.got[1])) == [b"two"])
    assert line.connections == 2


def state_of(process: subprocess.Popen[bytes]) -> str:
    with open(f"/proc/{process.pid}/stat") as f:
        return f.read().rsplit(")", 1)[1].split()[0]


def rehearsal(plan: list[Fault]) -> Rehearsal:
    """Return one that has no processes to do anything to."""
    return Rehearsal(Faults(), plan, 1, False, lambda name: pytest.fail(name), lambda kind, data: None)


def test_the_time_of_day_steps_for_the_run_and_is_right_again_afterwards() -> None:
    def ahead_s() -> float:
        return TIME_OF_DAY.now_s() - time.time()

    with rehearsal([Fault(n, "clock_step", "coordinator", s) for n, s in enumerate((500.0, -90.0))]) as r:
        r.until(1)
        assert ahead_s() == pytest.approx(500.0, abs=0.2)
        assert documents.now()[:10] == datetime.fromtimestamp(time.time() + 500.0, UTC).isoformat()[:10]
        r.until(2)
        assert ahead_s() == pytest.approx(410.0, abs=0.2)
    assert ahead_s() == pytest.approx(0.0, abs=0.2)


def test_the_disk_is_full_for_so_long(tmp_path: Path) -> None:
    with rehearsal([Fault(0, "disk_full", "coordinator", 0.05), Fault(1, "disk_full", "coordinator", 600.0)]) as r:
        assert r.free_bytes(tmp_path) > 0
        r.until(1)
        assert r.free_bytes(tmp_path) == 0
        until(lambda: r.free_bytes(tmp_path))
        r.until(2)
        assert r.free_bytes(tmp_path) == 0
    assert r.free_bytes(tmp_path) > 0


def test_processes_are_suspended_woken_and_killed_and_all_of_it_is_on_record() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    told: list[str] = []
    plan = [Fault(0, "pause", "bob", 0.3), Fault(4, "pause", "bob", 600.0), Fault(9, "kill", "bob")]
    try:
        with Rehearsal(
            Faults(), plan, 1, False, lambda name: sleeper, lambda kind, data: told.append(data["kind"])
        ) as r:
            r.until(0)
            assert told == []
            r.until(1)
            until(lambda: state_of(sleeper) == "T")
            until(lambda: state_of(sleeper) != "T")
            r.until(5)
            until(lambda: state_of(sleeper) == "T")
        until(lambda: state_of(sleeper) != "T")  # whatever ends the run wakes everybody
        with Rehearsal(
            Faults(), plan[2:], 1, False, lambda name: sleeper, lambda kind, data: told.append(data["kind"])
        ) as r:
            r.until(10)
        assert sleeper.wait(timeout=240) == -9
        assert told == ["pause", "pause", "kill"]
    finally:
        sleeper.kill()
        sleeper.wait()
