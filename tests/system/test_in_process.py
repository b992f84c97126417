"""A run in one process: the same run as in processes, to the bit, and what happens there where something goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from measured_bytes import recorded

import testbed
from testbed import config
from testbed.assess.pace import PARTS
from testbed.core.config import Experiment, Lab
from testbed.core.errors import DeviceError, InputError, TestbedError
from testbed.core.radio import Radio
from testbed.lab import one_process, processes, sweep
from testbed.nodes.in_turn import NodeInTurn
from testbed.nodes.operations import RadioWork
from testbed.records import reader

OF_THIS_RUN = (
    "wall_s", "rounds_per_s", "training.file", "pace.start_s", "pace.probe_s", "pace.distil_s", "pace.kept_per_s",
)  # fmt: skip
"""Entries of a summary that do not follow from the seed: how fast the run was, and names with the run's own in them."""


ALICE = '[node.alice]\nrole = "alice"\n'


def plan_of(name: str, rounds: int, epsilon_log2: int = 16, **changes: Any) -> Any:
    plan = config.load_experiment(name)
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=rounds, epsilon_log2=epsilon_log2)
    return msgspec.structs.replace(plan, rounds=rounds, accounting=accounting, **changes)


def in_one_process(folder: Path, plan: Any, lab: str = "sim", act: Any = None) -> Any:
    """Run a plan; `act(progress, coordinator)` is called after every round and block."""
    handles: list[Any] = []

    def progress(p: Any) -> None:
        if act is not None:
            act(p, *handles)

    begun = lambda coordinator, crew: handles.append(coordinator)  # noqa: E731
    return one_process.run(plan, config.load_lab(lab), lab, folder / "run", progress, begun)


def without_names(record: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what secret patterns are called: every process of a surface's node has names of its own."""
    return {key: value for key, value in record.items() if not key.endswith("/surface")}


def end_after(rounds: int) -> Any:
    """Return what ends a run then, before anything is distilled."""
    return lambda p, coordinator: coordinator.ask_stop("abort") if p.round >= rounds else None


def flat(summary: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in summary.items():
        out |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return {key: value for key, value in out.items() if key not in OF_THIS_RUN and not key.startswith("pace.round.")}


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, plan: Any, lab: str = "sim") -> list[dict[str, bytes]]:
    """Return the record of a plan's run in one process and of one in processes, whose summaries are the same."""
    found, summaries = [], []
    for drive in (one_process.run, processes.run):
        at = folder / drive.__module__
        monkeypatch.setenv("TESTBED_STATE", str(at / "state"))
        outcome = drive(plan, config.load_lab(lab), lab, at / "run")
        assert outcome.status == "finished", outcome.detail
        found.append(recorded(at))
        summaries.append(flat(outcome.summary))
    assert summaries[0] == summaries[1]
    return found


def test_one_process_gives_the_csi_bits_and_keys_that_several_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, several = both(tmp_path, monkeypatch, plan_of("mobile_room", 340))
    assert sum(key.startswith("links/") and key.endswith("/csi") for key in one) == 4
    assert sum("block-" in key for key in one) == 2
    assert one == several


def test_secret_patterns_of_a_surface_are_the_same_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, several = both(tmp_path, monkeypatch, plan_of("static_room", 40))
    assert without_names(one) == without_names(several)
    assert len(one) > len(without_names(one)) > 40


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("name", "rounds", "longest"), [("mobile_room", 160, 64), ("static_room", 45, 24)])
def test_trains_of_any_length_give_the_same_csi_bits_and_keys_in_one_process(
    name: str, rounds: int, longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As few rounds as give a key and, in virtual time where trains grow while the clocks are learned, one train of 64.
    Bob is four times as fast as usual, because a train of 64 needs a short interval."""
    plan, with_key = plan_of(name, rounds), name == "mobile_room"
    velocity = tuple(4.0 * v for v in plan.scene.bob.velocity_m_s)
    scene = msgspec.structs.replace(plan.scene, bob=msgspec.structs.replace(plan.scene.bob, velocity_m_s=velocity))
    lengths, found = lengths_of_trains(monkeypatch), []
    for train in (1, 7, 64):
        lengths.clear()
        at = tmp_path / str(train)
        monkeypatch.setenv("TESTBED_STATE", str(at / "state"))
        probing = msgspec.structs.replace(plan.probing, interval_s=0.0125, train=train)
        outcome = in_one_process(
            at, msgspec.structs.replace(plan, probing=probing, scene=scene), act=None if with_key else end_after(rounds)
        )
        assert outcome.summary["keys_verified"] == with_key, outcome.summary["health"]
        assert max(lengths) == min(train, longest)
        found.append(without_names(recorded(at)))
    assert sum(key.startswith("links/") and key.endswith("/csi") for key in found[0]) == 4
    assert sum(key.startswith("bits/") and value != b"" for key, value in found[0].items()) == 3 * with_key
    assert sum("block-" in key for key in found[0]) == 2 * with_key
    assert found[0] == found[1] == found[2]


def lengths_of_trains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of rounds of every train that a node captures from now on."""
    lengths: list[int] = []
    capture = RadioWork.capture

    def counted(self: RadioWork, found: Any) -> Any:
        lengths.append(len(found.order.rounds))
        return capture(self, found)

    monkeypatch.setattr(RadioWork, "capture", counted)
    return lengths


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "lab", "rounds"),
    [("mimo_walk", "sim_mimo", 60), ("flip_attack", "sim", 40), ("training", "sim_rough", 150)],
)
def test_other_runs_are_the_same_in_one_process(
    name: str, lab: str, rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("office_crcnet" if name == "training" else name, rounds)
    if name == "training":
        plan = msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, rounds=80, guard_rounds=2))
    one, several = both(tmp_path, monkeypatch, plan, lab)
    assert without_names(one) == without_names(several)


def test_radios_without_timing_go_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes such a run depends on who asks first; here it follows from the seed."""
    text = config.find(Lab, "sim").read_text(encoding="utf-8")
    path = tmp_path / "untimed.toml"
    path.write_text(text.replace('driver = "sim"\ntx', 'driver = "sim"\noptions = { timed = false }\ntx'))
    found = []
    for name in ("a", "b"):
        monkeypatch.setenv("TESTBED_STATE", str(tmp_path / name / "state"))
        outcome = in_one_process(tmp_path / name, plan_of("mobile_room", 20), str(path))
        assert outcome.summary["pairs_kept"] > 17
        assert outcome.summary["csi_correlation_ab"] > 0.9
        found.append(recorded(tmp_path / name))
    assert found[0] == found[1]


@pytest.mark.long
def test_a_private_run_leaves_one_key_at_both_ends_and_none_elsewhere(tmp_path: Path) -> None:
    outcome = in_one_process(tmp_path, plan_of("mobile_room", 450, 32, mode="private"))
    assert (outcome.status, outcome.summary["keys_verified"]) == ("finished", 1), outcome.detail
    keys = {p.parents[2].name: p.read_bytes() for p in (tmp_path / "state").glob("*/*/keys/*/block-*.key")}
    assert keys.keys() == {"alice", "bob"}
    assert keys["alice"] == keys["bob"]
    assert keys["alice"] not in b"".join(p.read_bytes() for p in outcome.folder.iterdir() if p.is_file())


def test_where_the_time_of_a_round_goes_is_measured_and_counts_once(tmp_path: Path) -> None:
    """Nodes take turns within one another's captures: the time of the inner turn is not the outer node's."""
    outcome = in_one_process(tmp_path, plan_of("mobile_room", 1000), act=end_after(100))
    found = outcome.summary["pace"]["round"]
    parts = {name: found[name] for name in PARTS}
    assert 96 <= found["rounds"] <= outcome.summary["rounds"]
    assert sum(part["time_s"] for part in parts.values()) == pytest.approx(found["mean_s"])
    assert all(part["time_s"] > 0.0 for part in parts.values()), parts
    assert all(part["beside_s"] == 0.0 for part in parts.values()), parts


@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_a_run_can_be_stopped(kind: Any, tmp_path: Path) -> None:
    def ask(p: Any, coordinator: Any) -> None:
        if p.round == 50:
            coordinator.ask_stop(kind)

    outcome = in_one_process(tmp_path, plan_of("mobile_room", 1000), act=ask)
    assert outcome.status == "stopped"
    rounds = reader.load(outcome.folder).rounds.rounds
    assert 50 <= rounds.size < 1000
    assert outcome.summary["pairs_rejected"].get("aborted", 0) == (0 if kind == "stop" else 56)  # two trains


def test_a_run_can_be_paused(tmp_path: Path) -> None:
    """Virtual time passes meanwhile, much more than any node may be silent for; nobody is given up."""
    seen: list[int] = []

    def act(p: Any, coordinator: Any) -> None:
        seen.append(p.round)
        if p.round == 50:
            coordinator.ask_pause(True)
            threading.Timer(0.5, coordinator.ask_pause, [False]).start()
        elif p.round >= 120:
            coordinator.ask_stop("abort")

    began_s = time.monotonic()
    outcome = in_one_process(tmp_path, plan_of("mobile_room", 1000), act=act)
    assert time.monotonic() - began_s > 0.5
    assert outcome.summary["pairs_rejected"].keys() <= {"low_snr", "aborted"}
    assert outcome.summary["pairs_kept"] > 100
    events = {event.kind for event in reader.load(outcome.folder).events}
    assert not events & {"silent", "lost", "resumed"}


def test_a_radio_that_fails_costs_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receive, calls = Radio.receive_many, iter(range(1000))
    lost: list[int] = []

    def fails(self: Radio, windows: Any, *more: Any) -> Any:
        if self.name == "bob" and next(calls) == 6:
            lost.append(len(windows))
            raise DeviceError("bob", "receive", "configured", "the cable is off")
        return receive(self, windows, *more)

    monkeypatch.setattr(Radio, "receive_many", fails)
    outcome = in_one_process(tmp_path, plan_of("mobile_room", 1000), act=end_after(150))
    assert outcome.summary["pairs_rejected"]["device"] == lost[0] > 2


def test_a_node_that_ends_ends_the_run_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = RadioWork.estimate

    def breaks(self: RadioWork, found: Any) -> Any:
        done = estimate(self, found)
        if found.order.round > 0 and self._place.role == "bob":
            monkeypatch.setattr(NodeInTurn, "_from_coordinator", lose)
        return done

    def lose(self: NodeInTurn) -> None:
        raise TestbedError("the disk is gone")

    monkeypatch.setattr(RadioWork, "estimate", breaks)
    outcome = in_one_process(tmp_path, plan_of("mobile_room", 500))
    assert outcome.status == "failed"
    assert "the disk is gone" in outcome.detail
    assert "\n" not in outcome.detail


def test_others_go_on_when_a_radio_is_silent_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eve's radio says nothing of what it sends in its second train: the air drops it, and no time of ours passes."""
    promise = RadioWork._promise

    def sulks(self: RadioWork, part: Any, found: Any) -> None:
        if self._place.role == "eve" and found.order.round == 64:
            raise DeviceError("eve", "receive", "configured", "no answer")
        promise(self, part, found)

    monkeypatch.setattr(RadioWork, "_promise", sulks)
    outcome = in_one_process(tmp_path, plan_of("mobile_room", 1000), act=end_after(200))
    assert 190 < outcome.summary["pairs_kept"] < 300
    assert outcome.summary["pairs_rejected"].keys() <= {"low_snr", "aborted"}


@pytest.mark.parametrize(
    ("lab", "change", "said"),
    [
        ("wire_ris", ('pace = "wall"', 'pace = "virtual"'), "emulated devices have wires of their own"),
        ("sim", ('pace = "virtual"', 'pace = "wall"'), "'wall', but time passes only with what is done"),
        ("sim", (ALICE, f"[coordinator]\nport = 5555\n{ALICE}local = false\nport = 5557\n"), "alice on another"),
        ("bench_example", ("", ""), "the lab has no [world]: its devices work in real time"),
    ],
)  # fmt: skip
def test_what_needs_processes_is_refused_in_one_line_before_the_start(
    lab: str, change: tuple[str, str], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(config.find(Lab, lab).read_text(encoding="utf-8").replace(*change))
    with pytest.raises(InputError, match="one process: ") as refusal:
        testbed.run("mobile_room", str(path), in_process=True, out=tmp_path / "runs")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "runs").exists()


def test_faults_of_processes_are_refused(tmp_path: Path) -> None:
    plan = tmp_path / "faults.toml"
    plan.write_text(config.find(Experiment, "mobile_room").read_text() + "\n[faults]\nloss = 0.1\n")
    with pytest.raises(InputError, match=r"table \[faults\]: faults happen to processes"):
        testbed.run(str(plan), in_process=True, out=tmp_path / "runs")


def test_the_command_line_has_it_too(tmp_path: Path) -> None:
    arguments = ["run", "mobile_room", "--rounds", "20", "--in-process", "--out", str(tmp_path / "runs"), "--json"]
    done = subprocess.run([sys.executable, "-m", "testbed", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rounds"] == 20
    assert list((tmp_path / "state").glob("*/*")) != []
    assert not list((tmp_path / "state").glob("*/logs/*")), "a daemon was started"


GRID = """
schema = 1
experiment = "mobile_room"
lab = "{lab}"
repetitions = 1
[grid]
rounds = [10, 20]
"""


def test_a_sweep_does_its_runs_in_its_own_process(tmp_path: Path) -> None:
    grid = tmp_path / "grid.toml"
    grid.write_text(GRID.format(lab="sim"))
    swept = sweep.run(grid, tmp_path / "out", in_process=True)
    assert [row["figures"]["rounds"] for row in swept.rows] == [10, 20]
    assert [row["status"] for row in swept.rows] == ["finished", "finished"]
    assert not list((tmp_path / "state").glob("*/logs/*"))
    grid.write_text(GRID.format(lab="wire_ris"))
    with pytest.raises(InputError, match=r"grid\.toml: rounds = 10: one process: .*wires of their own"):
        sweep.run(grid, tmp_path / "other", in_process=True)
    assert not (tmp_path / "other").exists()
