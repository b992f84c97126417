"""The main job as its users run it: every daemon a process of its own."""

from __future__ import annotations

import gc
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

import testbed
from testbed import config
from testbed.coordinator.server import Coordinator, Outcome, Progress
from testbed.core.config import Lab, Records
from testbed.core.errors import TestbedError
from testbed.lab import one_process, processes
from testbed.records import reader


def run(
    tmp_path: Path, experiment: str, name: str = "run", act: Any = None, lab: str = "sim", **changes: Any
) -> Outcome:
    """Run a bundled experiment; `act(progress, coordinator, crew)` is called once after every round."""
    plan = msgspec.structs.replace(config.load_experiment(experiment), **changes)
    handles: list[Any] = []
    seen: set[int] = set()

    def progress(p: Progress) -> None:
        if act is not None and handles and p.round not in seen:
            seen.add(p.round)
            act(p, *handles)

    def on_coordinator(coordinator: Coordinator, crew: processes.Crew) -> None:
        handles.extend((coordinator, crew))

    return processes.run(plan, config.load_lab(lab), lab, tmp_path / name, progress, on_coordinator)


def alone(tmp_path: Path, experiment: str, **changes: Any) -> Outcome:
    """Run a bundled experiment in one process, which gives the same (`test_in_process`) without starting daemons."""
    plan = msgspec.structs.replace(config.load_experiment(experiment), **changes)
    return one_process.run(plan, config.load_lab("sim"), "sim", tmp_path / "run")


def open_contexts() -> set[int]:
    """Return the ZeroMQ contexts of this process that are not closed."""
    gc.collect()
    return {id(x) for x in gc.get_objects() if isinstance(x, zmq.Context) and not x.closed}


def key_files(tmp_path: Path, node: str, kind: str = "rehearsals") -> dict[str, str]:
    """Return a node's key files by name; what follows from its seed is apart from the keys that are delivered."""
    return {p.name: p.read_text() for p in sorted((tmp_path / "state" / "sim" / node / kind).glob("*/*.key"))}


def small(plan: str, rounds: int, block: int) -> dict[str, Any]:
    experiment = config.load_experiment(plan)
    accounting = msgspec.structs.replace(experiment.accounting, block_rounds=block, epsilon_log2=32)
    return {"rounds": rounds, "accounting": accounting}


def test_a_walk_through_the_room_gives_one_key_at_both_ends(tmp_path: Path) -> None:
    before = open_contexts()
    outcome = run(tmp_path, "mobile_room", **small("mobile_room", 450, 450))
    s = outcome.summary
    assert outcome.status == "finished"
    assert open_contexts() <= before, "collected together with its socket, a context may wait without end"
    assert s["pairs_kept"] > 440
    assert s["pairs_kept"] + sum(s["pairs_rejected"].values()) == 450
    assert s["keys_verified"] == 1
    assert s["keys_mismatched"] == 0
    assert s["key_bits"] > 200
    assert 0.45 < s["kdr_eve"] < 0.55
    assert s["eve_keys_recovered"] == 0
    assert s["csi_correlation_ab"] > 0.9
    assert abs(s["csi_correlation_ae"]) < 0.3
    alice, bob = key_files(tmp_path, "alice"), key_files(tmp_path, "bob")
    assert alice == bob
    assert s["keys_reproducible"] == 1
    assert key_files(tmp_path, "alice", "keys") == {}
    listed = cli("keys", "--json")
    assert (listed.returncode, json.loads(listed.stdout)) == (
        0,
        {"keys": [], "rehearsals": {"alice": 1, "bob": 1, "eve": 0, "ris": 0}, "unreadable": 0},
    )
    assert listed.stderr.startswith("keys of rehearsals are not listed (1 at alice, 1 at bob)")
    assert len(listed.stderr.splitlines()) == 1
    assert json.loads(next(iter(alice.values())))["bits"] == s["key_bits"]
    assert key_files(tmp_path, "eve") == {}
    for path in (tmp_path / "state").rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (tmp_path / "state").rglob("*.secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # no key in the run's folder, in any spelling
    key = json.loads(next(iter(alice.values())))["hex"]
    for path in outcome.folder.rglob("*"):
        if path.is_file():
            assert key[:32].encode() not in path.read_bytes()
            assert bytes.fromhex(key)[:16] not in path.read_bytes()


def test_eve_at_a_twentieth_of_a_wavelength_takes_the_key_away(tmp_path: Path) -> None:
    s = alone(tmp_path, "eve_near", **small("eve_near", 300, 300)).summary
    assert s["kdr_eve"] < 0.35
    assert s["key_bits"] == 0
    assert not next(h for h in s["health"] if h["check"] == "eve_distinct")["ok"]


def test_a_static_room_gives_no_key_and_says_why(tmp_path: Path) -> None:
    s = alone(tmp_path, "static_room_fixed", **small("static_room_fixed", 150, 150)).summary
    assert s["key_bits"] == 0
    why = next(h for h in s["health"] if h["check"] == "reciprocal_variation")
    assert not why["ok"]
    assert "static" in why["detail"]


def test_a_moving_surface_makes_a_key_in_a_static_room(tmp_path: Path) -> None:
    s = alone(tmp_path, "static_room", **small("static_room", 500, 500)).summary
    assert s["key_bits"] > 0
    assert s["keys_mismatched"] == 0


@pytest.mark.parametrize("victim", ["bob", "alice"])
def test_killing_an_end_mid_run_ends_in_a_clear_report_not_a_hang(tmp_path: Path, victim: str) -> None:
    killed: set[int] = set()

    def kill(p: Progress, coordinator: Coordinator, crew: processes.Crew) -> None:
        """Kill it after each start: it is started again, but not without limit."""
        pid = crew.pid(victim)
        if p.round >= 40 and p.message is None and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    outcome = run(tmp_path, "mobile_room", act=kill, **small("mobile_room", 5000, 5000))
    assert outcome.status == "failed"
    assert f"{victim} was lost and is not started again" in outcome.detail
    assert len(killed) == processes.MAX_RESTARTS + 1
    s = outcome.summary
    assert s["key_bits"] == 0
    assert 40 <= s["rounds"] < 5000
    assert s["pairs_rejected"]["measured"] >= 38
    assert sum(s["pairs_rejected"].values()) + s["pairs_kept"] == s["rounds"]
    assert any("SIGKILL" in h["detail"] for h in s["health"])


def test_a_bob_who_dies_is_started_again_and_what_was_measured_can_be_replayed(tmp_path: Path) -> None:
    from testbed.replay import sources

    def kill(p: Progress, coordinator: Coordinator, crew: processes.Crew) -> None:
        if p.round == 233 and p.message is None:
            os.kill(crew.pid("bob"), signal.SIGKILL)

    outcome = run(tmp_path, "mobile_room", act=kill, **small("mobile_room", 600, 300))
    s = outcome.summary
    assert outcome.status == "finished"
    assert s["rounds"] == 600
    assert s["keys_verified"] >= 1
    assert s["keys_mismatched"] == 0
    assert s["pairs_rejected"]["measured"] >= 220
    recording = sources.load(outcome.folder)
    # all but the two trains that were under way
    assert recording.cuts["run"].alice.rounds.size >= 600 - 2 * 64 - 8
    assert not np.isnan(recording.cuts["run"].alice.h).any()
    assert "measured" not in recording.cuts["run"].rejected


def test_killing_eve_costs_nothing_but_eve(tmp_path: Path) -> None:
    def kill(p: Progress, coordinator: Coordinator, crew: processes.Crew) -> None:
        if p.round == 40 and p.message is None:
            os.kill(crew.pid("eve"), signal.SIGKILL)

    outcome = run(tmp_path, "mobile_room", act=kill, **small("mobile_room", 300, 300))
    assert outcome.status == "finished"
    assert outcome.summary["pairs_kept"] > 290
    heard = reader.load(outcome.folder).links["alice>eve"].rounds
    again = heard[heard > 40 + 2 * 64]  # beyond the trains under way: from when she is back on she misses nothing
    assert again.size == 0 or again.size > 0.9 * (300 - again[0])
    assert not next(h for h in outcome.summary["health"] if h["check"] == "nodes_alive")["ok"]
    assert outcome.summary["keys_mismatched"] == 0


def test_a_run_without_eve_says_that_she_was_not_measured(tmp_path: Path) -> None:
    plan = config.load_experiment("mobile_room")
    scene = msgspec.structs.replace(plan.scene, eve=None)
    s = alone(tmp_path, "mobile_room", scene=scene, **small("mobile_room", 300, 300)).summary
    assert s["kdr_eve"] is None
    assert s["eve_measured"] is False
    assert any("Eve was not measured" in h["detail"] for h in s["health"])


def test_a_frozen_bob_is_noticed(tmp_path: Path) -> None:
    """SIGSTOP: the process exists, its heartbeats do not."""
    pids: list[int] = []

    def freeze(p: Progress, coordinator: Coordinator, crew: processes.Crew) -> None:
        if p.round == 30:
            pids.append(crew.pid("bob"))
            os.kill(pids[0], signal.SIGSTOP)

    lab = config.load_lab("sim")
    patience = msgspec.structs.replace(lab.coordinator, lost_after_s=1.5, rejoin_timeout_s=1.0)
    path = tmp_path / "lab.toml"
    text = config.find(Lab, "sim").read_text()
    path.write_text(text + f"\n[coordinator]\nlost_after_s = {patience.lost_after_s}\nrejoin_timeout_s = 1.0\n")
    outcome = run(tmp_path, "mobile_room", act=freeze, lab=str(path), **small("mobile_room", 5000, 5000))
    assert outcome.status == "failed"
    assert "bob was lost" in outcome.detail


@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_stopping_early_leaves_a_readable_run(tmp_path: Path, kind: Any) -> None:
    def ask(p: Progress, coordinator: Coordinator, crew: processes.Crew) -> None:
        if p.round == 50:
            coordinator.ask_stop(kind)

    outcome = run(tmp_path, "mobile_room", act=ask, **small("mobile_room", 5000, 5000))
    assert outcome.status == "stopped"
    assert 50 <= outcome.summary["rounds"] < 1000
    assert reader.load(outcome.folder).stop is not None
    assert len(outcome.summary["health"]) > 3
    assert outcome.summary["blocks"] == (1 if kind == "stop" else 0)


def cli(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", *arguments], capture_output=True, text=True, timeout=240, **kwargs
    )


def test_killing_the_coordinator_leaves_no_orphans_and_a_run_that_report_recovers(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed", "run", "mobile_room", "--rounds", "100000", "--out", str(tmp_path / "runs")],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "200/" in line:
                break
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        assert len(children) == 4  # world, alice, bob, eve
    finally:
        process.kill()
        process.wait(timeout=60)
    process.stderr.close()
    for pid in map(int, children):
        wait_gone(pid)
    folder = next((tmp_path / "runs").iterdir())
    done = cli("report", str(folder))
    assert done.returncode == 0, done.stderr
    assert reader.load(folder).stop is not None
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "killed"
    assert summary["rounds"] >= 150
    assert (folder / "report.html").stat().st_size > 10_000


def wait_gone(pid: int) -> None:
    import time

    deadline_s = time.monotonic() + 120.0
    while time.monotonic() < deadline_s:
        try:
            with open(f"/proc/{pid}/stat") as f:
                if f.read().split(") ")[1][0] == "Z":
                    return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


def test_the_command_line_has_json_and_exit_codes(tmp_path: Path) -> None:
    done = cli("run", "mobile_room", "--rounds", "60", "--json", "--out", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["rounds"] == 60
    assert summary["keys_mismatched"] == 0


def test_a_run_that_keeps_nothing_is_a_failed_run(tmp_path: Path) -> None:
    text = config.find(Lab, "sim").read_text(encoding="utf-8")
    lab = tmp_path / "deaf.toml"
    lab.write_text(text.replace("tx_gain_db = -6.0", "tx_gain_db = -80.0"))
    done = cli("run", "mobile_room", "--lab", str(lab), "--rounds", "5", "--json", "--out", str(tmp_path / "runs"))
    assert done.returncode == 1
    assert json.loads(done.stdout)["pairs_kept"] == 0
    assert "run failed: no round of 5 was kept: 5 no_preamble" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.toml"], ["nowhere.toml", "mobile_room"]),
        (["run", "mobile_room", "--rounds", "0"], ["--rounds"]),
        (["run", "mobile_room", "--lab", "nolab"], ["nolab", "sim"]),
        (["run"], ["EXPERIMENT"]),
        (["node", "carol", "--lab", "sim"], ["carol", "alice"]),
        (["node", "alice", "--lab", "sim"], ["coordinator"]),
        (["replay", "/nonexistent"], ["/nonexistent"]),
        (["report", "/nonexistent"], ["/nonexistent"]),
        (["bench", "nothing"], ["nothing", "cascade"]),
        (["schema", "lob"], ["lob", "lab"]),
        (["dance"], ["dance"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], words: list[str], here: Any) -> None:
    done = here(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word.lower() in done.stderr.lower()


def test_a_wrong_key_of_an_emulated_device_is_bad_input(tmp_path: Path, here: Any) -> None:
    text = config.find(Lab, "wire").read_text(encoding="utf-8")
    lab = tmp_path / "typo.toml"
    lab.write_text(text.replace("[world.emulators.bob]", "[world.emulators.bob]\nfaults = { gremlins = 1 }"))
    for arguments in (["run", "mobile_room", "--out", str(tmp_path / "runs")], ["sim"]):
        done = here(*arguments, "--lab", str(lab))
        assert (done.returncode, done.stdout) == (2, "")
        line = done.stderr.splitlines()[0]
        assert done.stderr.count("\n") == 1
        assert all(w in line for w in ("[world.emulators.bob.faults]", "gremlins", "early_requeue"))


def test_iq_is_recorded_into_the_runs_folder(tmp_path: Path) -> None:
    records = Records(iq=True)
    outcome = run(tmp_path, "mobile_room", records=records, **small("mobile_room", 5, 5))
    recorded = sorted(p.name for p in (outcome.folder / "iq").iterdir())
    # per round: Alice and Bob hear one transmission, Eve two; each a pair of files
    assert len(recorded) == 5 * 4 * 2
    assert recorded[0] == "round-000000-alice-bob.sigmf-data"
    assert "iq/round-000000-alice-bob.sigmf-data" in reader.load(outcome.folder).files


def test_on_the_wall_clock_rounds_are_as_far_apart_as_planned(tmp_path: Path) -> None:
    path = tmp_path / "wall.toml"
    path.write_text(config.find(Lab, "sim").read_text().replace('pace = "virtual"', 'pace = "wall"'))
    outcome = run(tmp_path, "mobile_room", lab=str(path), **small("mobile_room", 30, 30))
    s = outcome.summary
    assert s["pairs_kept"] >= 20  # a busy machine may be late now and then: counted, never silent
    assert s["pairs_kept"] + sum(s["pairs_rejected"].values()) == 30
    t0_s = reader.load(outcome.folder).rounds.t0_s
    assert (np.diff(t0_s) >= 0.0499).all()
    assert s["wall_s"] > 29 * 0.05


def test_private_mode_leaves_nothing_to_guess_from(tmp_path: Path) -> None:
    """Levels, SNR and arrival times tell about the channel as CSI does: none of them may be recorded."""
    outcome = run(tmp_path, "mobile_room", mode="private", **small("mobile_room", 500, 500))
    recorded = reader.load(outcome.folder)
    assert outcome.summary["pairs_kept"] > 480
    assert outcome.summary["keys_verified"] == 1
    assert recorded.links == {}
    assert recorded.bits == {}
    assert key_files(tmp_path, "alice", "keys") == key_files(tmp_path, "bob", "keys") != {}
    assert key_files(tmp_path, "alice") == {}
    assert outcome.summary["keys_reproducible"] == 0
    assert outcome.summary["csi_correlation_ab"] is None
    assert outcome.summary["keys_mismatched"] is None
    why = [e["detail"] for e in outcome.summary["health"] if "min_entropy_per_bit" in e["check"]]
    assert why == ["private mode: nodes report neither CSI nor bits"]


def test_a_private_node_refuses_an_experiment_mode_run(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    text = config.find(Lab, "sim").read_text()
    path.write_text(text.replace('role = "bob"', 'role = "bob"\nprivate = true'))
    outcome = run(tmp_path, "mobile_room", lab=str(path), **small("mobile_room", 30, 30))
    assert outcome.status == "failed"
    assert "private by its lab file" in outcome.detail


def test_killing_the_air_ends_the_run_at_once(tmp_path: Path) -> None:
    def kill(p: Progress, coordinator: Coordinator, crew: processes.Crew) -> None:
        if p.round == 40:
            os.kill(crew.pid("world"), signal.SIGKILL)

    outcome = run(tmp_path, "mobile_room", act=kill, **small("mobile_room", 5000, 5000))
    assert outcome.status == "failed"
    assert "world" in outcome.detail
    # its train, the two under way, and those that failed before the coordinator looked, later on a busy machine
    assert outcome.summary["rounds"] <= 40 + 12 * 64


def test_an_air_that_is_killed_while_it_starts_is_one_line_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = processes.Crew._start

    def start_and_kill(self: processes.Crew, name: str, *rest: Any, **options: Any) -> Any:
        process = start(self, name, *rest, **options)
        if name == "world":
            process.kill()
        return process

    monkeypatch.setattr(processes.Crew, "_start", start_and_kill)
    with pytest.raises(TestbedError, match=r"^the simulated air did not start: "):
        testbed.run("mobile_room", rounds=10, out=tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())  # `testbed report` would find no run in it


def test_a_node_that_cannot_start_says_why_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    text = config.find(Lab, "sim").read_text()
    path.write_text(
        text.replace('role = "bob"\ndriver = "sim"', 'role = "bob"\ndriver = "sim"\noptions = { noise_figur_db = 3 }')
    )
    outcome = run(tmp_path, "mobile_room", lab=str(path), **small("mobile_room", 30, 30))
    assert outcome.status == "failed"
    assert "bob did not start" in outcome.detail
    assert "noise_figur_db" in outcome.detail
