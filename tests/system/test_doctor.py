"""The doctor on simulated and emulated labs: what it measures is true, what is wrong it names."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.core import registry
from testbed.core.config import Lab, RadioPlan
from testbed.core.errors import DeviceTimeout
from testbed.core.ris import Board
from testbed.core.types import AppliedPattern, SurfacePattern
from testbed.lab import doctor, measure, processes
from testbed.nodes import calibration, chains
from testbed.nodes.calibration import GainStep

SPEED_M_S = 299_792_458.0
ALICE_BOB_M = float(np.linalg.norm(np.subtract([4.0, 3.0, 1.5], [9.0, 4.0, 1.2])))  # static_room


def lab_file(tmp_path: Path, *changes: tuple[str, str], base: str = "sim") -> str:
    """Write a bundled lab with changes; return its path."""
    text = config.find(Lab, base).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = tmp_path / "changed.toml"
    path.write_text(text)
    return str(path)


def examine(lab: str, repeats: int = 8) -> doctor.Diagnosis:
    return doctor.examine(config.load_lab(lab), lab, RadioPlan(), repeats)


def wrong(diagnosis: doctor.Diagnosis) -> list[tuple[str, str]]:
    assert diagnosis.ok == all(f.ok for f in diagnosis.findings)
    for f in diagnosis.findings:
        assert f.ok == (f.fix == "")
        assert "\n" not in f.detail + f.fix
    return [(f.subject, f.check) for f in diagnosis.findings if not f.ok]


def the(diagnosis: doctor.Diagnosis, subject: str, check: str) -> doctor.Finding:
    (found,) = (f for f in diagnosis.findings if (f.subject, f.check) == (subject, check))
    return found


def truth(diagnosis: doctor.Diagnosis, name: str) -> dict[str, float]:
    """The crystal error that a simulated radio reports."""
    said = the(diagnosis, name, "device").detail
    return {k: float(said.split(f"{k} ")[1].split(",")[0]) for k in ("clock_ppm", "cfo_ppm")}


def test_simulated_radios_are_measured_as_they_are(tmp_path: Path) -> None:
    changes = [
        (
            f'[node.{name}]\nrole = "{name}"\ndriver = "sim"',
            f'[node.{name}]\nrole = "{name}"\ndriver = "sim"\n{options}',
        )
        for name, options in {
            "alice": "options = { clock_ppm = 1.5, clock_offset_s = 3e-4, dc_offset_dbfs = -40.0 }",
            "bob": "options = { clock_ppm = -1.0, clock_offset_s = -2e-4, cfo_ppm = 0.5 }",
            "eve": "options = { clock_ppm = 0.25 }",
        }.items()
    ]
    lab = lab_file(tmp_path, *changes)
    diagnosis = examine(lab)
    assert wrong(diagnosis) == []
    radios = diagnosis.radios
    assert set(radios) == {"alice", "bob", "eve"}
    assert radios["alice"].dc_offset_dbfs == pytest.approx(-40.0, abs=0.5)
    assert radios["bob"].dc_offset_dbfs == pytest.approx(-60.0, abs=0.5)
    assert "eve" not in radios["bob"].heard  # she never transmits
    true = {name: truth(diagnosis, name) for name in radios}
    assert true["bob"] == {"clock_ppm": -1.0, "cfo_ppm": 0.5}
    for rx, tx in (("alice", "bob"), ("bob", "alice"), ("eve", "alice"), ("eve", "bob")):
        heard, cfo_hz = radios[rx].heard[tx], radios[rx].cfo_hz[tx]
        assert (heard.frames, heard.asked) == (8, 8)
        # one frame tells its offset within some 300 Hz at 30 dB
        assert cfo_hz == pytest.approx(2.4e9 * 1e-6 * (true[tx]["cfo_ppm"] - true[rx]["cfo_ppm"]), abs=500)
        assert heard.clock_ppm == pytest.approx(true[rx]["clock_ppm"] - true[tx]["clock_ppm"], abs=0.1)
        assert heard.delay_s is not None
        assert heard.delay_s.std_s < 10e-9  # two jitters of 2 ns
    for rx, tx in (("alice", "bob"), ("bob", "alice")):
        heard = radios[rx].heard[tx]
        assert heard.delay_s is not None
        assert heard.clock_offset_s is not None
        # echoes add to the straight way, chains up to three samples more
        assert 0.0 <= heard.delay_s.mean_s - ALICE_BOB_M / SPEED_M_S < 50e-9
        # reading the clocks in standing time told their offset already; what is left is 2.5 ppm until the first frame
        assert abs(heard.clock_offset_s) < 2e-6
    for name, found in radios.items():
        table = found.gain_table
        assert table[-1].rssi_dbfs - table[0].rssi_dbfs == pytest.approx(20.0, abs=1.0)
        assert (found.turnaround_s is None) == (name == "eve")
        folder = processes.node_state_dir(config.load_lab(lab), name)
        assert calibration.read(folder, {"serial": found.serial}) == found
        assert calibration.read(folder, {"serial": "another"}) is None
        (folder / "calibration.json").write_text("{")
        assert calibration.read(folder, {"serial": found.serial}) is None


def test_the_command_prints_one_line_a_finding(tmp_path: Path) -> None:
    lab = lab_file(tmp_path, ('driver = "sim"\ntx', 'driver = "simm"\ntx'))
    command = [sys.executable, "-m", "testbed", "doctor", "--lab", lab, "--repeats", "4"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (said.returncode, said.stderr) == (1, "")
    lines = said.stdout.splitlines()
    assert [x[:3] for x in lines].count("fix") == 1
    (line,) = (x for x in lines if x.startswith("fix"))
    assert line.startswith("fix alice: driver: no radio driver is called 'simm'")
    assert "pluto" in line
    assert any(x.startswith("ok  bob → eve: link: SNR") for x in lines)
    said = subprocess.run([*command[:4], "--lab", "sim", "--json"], capture_output=True, timeout=240)
    assert said.returncode == 0
    answer: dict[str, Any] = json.loads(said.stdout)
    assert answer["ok"] is True
    assert set(answer["radios"]) == {"alice", "bob", "eve"}


def test_an_exposed_key_file_is_named(tmp_path: Path) -> None:
    lab = lab_file(tmp_path)
    folder = processes.make_keys(config.load_lab(lab), processes.daemon_names(config.load_lab(lab)))
    (folder / "bob.secret").chmod(0o644)
    diagnosis = examine(lab, repeats=4)
    assert ("bob", "transport key") in wrong(diagnosis)
    assert the(diagnosis, "bob", "transport key").fix == f"chmod 600 {folder / 'bob.secret'}"
    assert ("alice → eve", "link") not in wrong(diagnosis)


def test_a_delivered_key_that_others_can_read_is_named(tmp_path: Path) -> None:
    lab = lab_file(tmp_path)
    path = processes.node_state_dir(config.load_lab(lab), "bob") / "keys" / "a-run" / "block-0001.key"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    path.chmod(0o640)
    diagnosis = examine(lab, repeats=4)
    assert wrong(diagnosis) == [("bob", "delivered key")]
    path.chmod(0o600)
    assert wrong(examine(lab, repeats=4)) == []


def test_a_port_in_use_and_an_unknown_host_are_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        lab = lab_file(
            tmp_path, ("[node.alice]", f'[coordinator]\nport = {port}\n[node.alice]\nhost = "no-such.invalid"')
        )
        diagnosis = examine(lab, repeats=4)
    assert wrong(diagnosis) == [("alice", "host"), ("coordinator", "port")]
    assert "in use" in the(diagnosis, "coordinator", "port").detail
    assert wrong(examine(lab, repeats=4)) == [("alice", "host")]


def test_options_out_of_range_and_unknown_ones_are_named(tmp_path: Path) -> None:
    lab = lab_file(
        tmp_path, ("tx_gain_db = -6.0", "tx_gain_db = 60.0"), ("columns = 16", "kolumns = 16"),
    )  # fmt: skip
    diagnosis = examine(lab, repeats=4)
    assert ("alice", "settings") in wrong(diagnosis)
    assert "accepted -80 to 20" in the(diagnosis, "alice", "settings").detail
    assert ("ris", "device") in wrong(diagnosis)
    assert "kolumns" in the(diagnosis, "ris", "device").detail
    assert the(diagnosis, "bob → eve", "link").ok  # the others are not kept waiting


class _Board(Board):
    """A board with a fault: an element that is stuck, all in the wrong order, or no answer at all."""

    shape = (4, 6)  # type: ignore[assignment]
    phase_bits = 1  # type: ignore[assignment]

    def __init__(self, fault: str) -> None:
        super().__init__("ris")
        self._fault = fault
        self._levels = np.zeros(self.shape, np.uint8)

    def now_s(self) -> float:
        return 0.0

    def _do_apply(self, pattern: SurfacePattern, timeout_s: float) -> AppliedPattern:
        if self._fault == "dead":
            raise DeviceTimeout(self.name, "apply", self.state, "no answer within 2 s")
        self._levels = pattern.levels.copy()
        if self._fault == "stuck":
            self._levels[1, 2] = 0
        if self._fault == "reversed":
            self._levels = self._levels[::-1, ::-1]
        return AppliedPattern(pattern.digest, 0.0)

    def _do_readback(self, timeout_s: float) -> SurfacePattern:
        return SurfacePattern(self._levels, 1)

    def _do_close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("fault", "said"),
    [("stuck", "1 of 24 elements"), ("reversed", "read back differently"), ("dead", "no answer"), ("", "")],
)
def test_a_board_that_does_not_obey_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    find = registry.load_driver

    def load(group: str, name: str) -> Any:
        return (lambda *_, **__: _Board(fault)) if group == "boards" else find(group, name)

    monkeypatch.setattr(registry, "load_driver", load)
    diagnosis = examine(lab_file(tmp_path), repeats=4)
    assert wrong(diagnosis) == ([("ris", "board")] if fault else [])
    assert said in the(diagnosis, "ris", "board").detail


def test_a_link_that_is_too_weak_is_named(tmp_path: Path) -> None:
    diagnosis = examine(lab_file(tmp_path, ("tx_gain_db = -6.0", "tx_gain_db = -60.0")), repeats=4)
    assert ("alice → eve", "link") in wrong(diagnosis)
    assert ("bob → alice", "link") not in wrong(diagnosis)


def test_without_its_air_a_lab_is_not_measured(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        diagnosis = examine(lab_file(tmp_path, ('pace = "virtual"', f'pace = "virtual"\nport = {port}')), repeats=4)
    assert wrong(diagnosis) == [("world", "port"), ("world", "simulated air")]
    assert diagnosis.radios == {}


def test_radios_without_timing_are_measured_step_by_step(tmp_path: Path) -> None:
    changes = [('driver = "sim"\ntx', 'driver = "sim"\noptions = { timed = false }\ntx')] * 3
    diagnosis = examine(lab_file(tmp_path, *changes), repeats=4)
    assert wrong(diagnosis) == []
    heard = diagnosis.radios["bob"].heard["alice"]
    assert (heard.frames, heard.delay_s, diagnosis.radios["bob"].delay_s) == (4, None, None)


def test_radios_with_and_without_timing_are_distinguished(tmp_path: Path) -> None:
    lab = lab_file(
        tmp_path, ('role = "alice"\ndriver = "sim"', 'role = "alice"\ndriver = "sim"\noptions = { timed = false }')
    )
    diagnosis = examine(lab, repeats=4)
    assert wrong(diagnosis) == [("radios", "timing")]
    assert set(diagnosis.radios["bob"].heard) == {"alice"}
    assert diagnosis.radios["alice"].heard == {}


def test_on_the_wall_clock_a_run_uses_what_was_measured(tmp_path: Path) -> None:
    """The coordinator of a run after the doctor plans with the turn-around and the spread that the doctor stored."""
    lab = lab_file(tmp_path, ('pace = "virtual"', 'pace = "wall"'))
    place = config.load_lab(lab)
    diagnosis = examine(lab, repeats=4)
    assert wrong(diagnosis) == []
    heard = diagnosis.radios["bob"].heard["alice"]
    assert heard.delay_s is not None
    assert 0.0 <= heard.delay_s.mean_s - ALICE_BOB_M / SPEED_M_S < 50e-9  # independent of the readings' errors
    # written as if the host were slow, so that it cannot be taken for the driver's own figure
    folder = processes.node_state_dir(place, "bob")
    stored = calibration.read(folder, {"serial": diagnosis.radios["bob"].serial})
    assert stored is not None
    assert stored.delay_s is not None
    scattered = msgspec.structs.replace(stored.delay_s, std_s=20e-6)
    calibration.write(folder, msgspec.structs.replace(stored, turnaround_s=7e-3, delay_s=scattered))
    plan = msgspec.structs.replace(config.load_experiment("static_room_fixed"), rounds=3)
    spacing_s: list[float] = []
    guard_s: list[float] = []

    def look(coordinator: Any, crew: Any) -> None:
        state = coordinator.state
        make = state.timetable.begin

        def made(roster: Any) -> None:
            make(roster)
            spacing_s.append(state.timetable.scheduler._turnaround_s)
            guard_s.append(state.timetable.scheduler._guard_s)

        state.timetable.begin = made

    outcome = processes.run(plan, place, lab, tmp_path / "run", on_coordinator=look)
    assert outcome.status == "finished"
    assert plan.probing.guard_s < 1e-4
    assert guard_s == [pytest.approx(6 * 20e-6)]
    assert spacing_s == [
        pytest.approx(
            plan.probing.turnaround_s
            + max(7e-3, *(r.turnaround_s or 0 for n, r in diagnosis.radios.items() if n != "bob"))
        )
    ]


def test_emulated_plutos_are_measured_through_libiio() -> None:
    pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")
    diagnosis = examine("wire", repeats=16)
    assert wrong(diagnosis) == []
    ppm = {"alice": 12.0, "bob": -8.0, "eve": 20.0}
    for rx, tx in (("alice", "bob"), ("bob", "alice"), ("eve", "alice"), ("eve", "bob")):
        assert diagnosis.radios[rx].cfo_hz[tx] == pytest.approx(2.4e3 * (ppm[tx] - ppm[rx]), abs=500)
    for name, found in diagnosis.radios.items():
        assert found.correction_ppm == pytest.approx(ppm[name] - ppm["alice"], abs=0.2)
        assert found.reference == "alice"
    table = diagnosis.radios["eve"].gain_table
    assert table[-1].rssi_dbfs - table[0].rssi_dbfs == pytest.approx(30.0, abs=1.0)
    for name in ("alice", "bob"):
        assert diagnosis.radios[name].serial.startswith("104473")
        assert 0.0 < (diagnosis.radios[name].turnaround_s or 0.0) < 5.0


def test_a_wrong_serial_number_and_a_pluto_twice_are_named(tmp_path: Path) -> None:
    pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")
    lab = lab_file(
        tmp_path,
        ('role = "alice"', 'role = "alice"\noptions = { serial = "1234" }'),
        ("[world.emulators.bob]", '[world.emulators.bob]\nserial = "77"'),
        ("[world.emulators.eve]", '[world.emulators.eve]\nserial = "77"'),
        base="wire",
    )
    diagnosis = examine(lab, repeats=4)
    assert ("alice", "device") in wrong(diagnosis)
    assert "the lab file states '1234'" in the(diagnosis, "alice", "device").detail
    assert ("bob, eve", "serial number") in wrong(diagnosis)


def test_delay_offset_and_rate_are_separated() -> None:
    rng = np.random.default_rng(5)
    t = np.arange(20) * 0.01
    there = [(x, 40e-9 + 3e-6 + 2e-6 * x + rng.normal(0, 1e-9)) for x in t]
    back = [(x + 0.005, 40e-9 - 3e-6 - 2e-6 * (x + 0.005) + rng.normal(0, 1e-9)) for x in t]
    delay, offset_s, ppm = measure.two_way(there, back)
    assert delay is not None
    assert delay.mean_s == pytest.approx(40e-9, abs=1e-9)
    assert delay.std_s == pytest.approx(1e-9, rel=0.4)
    assert offset_s == pytest.approx(3e-6, abs=2e-9)
    assert ppm == pytest.approx(2.0, abs=0.02)
    alone, nothing, ppm = measure.two_way(there, [])
    assert alone is not None
    assert (alone.mean_s, nothing) == (pytest.approx(3.04e-6, abs=2e-9), 0.0)
    assert ppm == pytest.approx(2.0, abs=0.02)
    assert measure.two_way(there[:1], back[:2]) == (None, None, None)


@pytest.mark.parametrize(
    ("rssi_dbfs", "clipped", "fix"),
    [
        ([-40.0, -30.0, -20.0], [0.0, 0.0, 0.0], ""),
        ([-25.0, -25.0, -25.0], [0.0, 0.0, 0.0], "automatic gain control"),
        ([-12.0, -3.0, -1.0], [0.0, 0.2, 0.5], "lower rx_gain_db"),
        ([-12.0, -3.0, -1.0], [0.0, 0.0, 0.5], ""),
        ([-69.0, -68.0, -66.0], [0.0, 0.0, 0.0], ""),  # noise: nothing is learnt about gain
    ],
)
def test_gain_is_judged(rssi_dbfs: list[float], clipped: list[float], fix: str) -> None:
    table = [
        GainStep(rx_gain_db=g, rssi_dbfs=r, clipped=c) for g, r, c in zip((0, 10, 20), rssi_dbfs, clipped, strict=True)
    ]
    _, advice = doctor.judge_gain(table, 10.0, -70.0)
    assert (fix in advice) if fix else advice == ""


def test_with_an_experiment_everything_that_a_device_cannot_do_is_named(tmp_path: Path) -> None:
    pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")
    plan = config.load_experiment("mobile_room")
    diagnosis = doctor.examine(config.load_lab("wire"), "wire", plan.radio, 4, experiment=plan)
    assert {s for s, check in wrong(diagnosis) if check == "limits"} == {"alice", "bob", "eve"}
    found = the(diagnosis, "bob", "limits")
    assert "'carrier_hz': 5.8e+09, accepted: 3.25e+08 to 3.8e+09" in found.detail
    assert "[radio] of the experiment (nearest: 3.8e+09)" in found.fix


def test_an_experiments_own_probes_are_measured_and_corrections_are_kept(tmp_path: Path) -> None:
    """Crystals 12 ppm fast and 8 ppm slow at 5.8 GHz and 1 MS/s: 116 kHz, beyond any frame's own acquisition."""
    changes = [
        (
            f'[node.{name}]\nrole = "{name}"\ndriver = "sim"',
            f'[node.{name}]\nrole = "{name}"\ndriver = "sim"\nrx_gain_db = 25.0\n'
            f"options = {{ cfo_ppm = {ppm}, timed = false }}",
        )
        for name, ppm in {"alice": 12.0, "bob": -8.0, "eve": 20.0}.items()
    ]
    lab = lab_file(tmp_path, *changes)
    plan = config.load_experiment("onair_first_key")
    radio = RadioPlan(carrier_hz=5.8e9, sample_rate_hz=1e6)
    diagnosis = doctor.examine(config.load_lab(lab), lab, radio, 4, experiment=plan)
    assert [w for w in wrong(diagnosis) if w[1] in ("link", "frequency", "limits")] == []
    for name, ppm in (("alice", 0.0), ("bob", -20.0), ("eve", 8.0)):
        found = diagnosis.radios[name]
        assert found.correction_ppm == pytest.approx(ppm, abs=0.1)
        folder = processes.node_state_dir(config.load_lab(lab), name)
        stored = calibration.read(folder, {"serial": found.serial})
        assert stored is not None
        assert stored.correction_ppm == found.correction_ppm
    assert diagnosis.radios["bob"].cfo_hz["alice"] == pytest.approx(5.8e3 * 20.0, abs=300)
    assert diagnosis.radios["bob"].settings["sample_rate_hz"] == 1e6
    # what the lab file gives is held against the device that is there
    text = Path(lab).read_text().replace('role = "bob"', 'role = "bob"\ncorrection_ppm = -12.0', 1)
    Path(lab).write_text(text)
    again = doctor.examine(config.load_lab(lab), lab, radio, 4, experiment=plan)
    assert "set correction_ppm = -20.0" in the(again, "bob", "frequency").fix
    assert "[node.bob]" in the(again, "bob", "frequency").fix


def test_another_machines_missing_certificate_is_not_this_devices_fault(tmp_path: Path) -> None:
    lab = lab_file(tmp_path, ('role = "bob"', 'role = "bob"\nlocal = false\nhost = "192.0.2.7"'))
    first = 20000 + os.getpid() % 5000 * 2  # below the ports that are given to whoever asks for any
    text = Path(lab).read_text() + f"\n[coordinator]\nport = {first}\n"
    Path(lab).write_text(text.replace('role = "alice"', f'role = "alice"\nport = {first + 1}'))
    place = config.load_lab(lab)
    processes.make_keys(place, processes.local_names(place))
    diagnosis = examine(lab, repeats=4)
    assert wrong(diagnosis) == [("bob", "transport key")]
    assert "copy it from 192.0.2.7" in the(diagnosis, "bob", "transport key").fix
    assert the(diagnosis, "alice", "device").ok
    assert the(diagnosis, "alice → eve", "link").ok
    assert "testbed doctor bob" in the(diagnosis, "bob", "elsewhere").detail


@pytest.mark.parametrize("how", ["by its host", "by name"])
def test_a_remote_nodes_own_machine_is_recognised_and_others_secrets_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The file was written for the coordinator's machine; this is Bob's."""
    host, there = "127.0.0.7", 'host = "192.0.2.1"'
    lab = lab_file(
        tmp_path,
        ('pace = "virtual"', 'pace = "virtual"\nlocal = true'),
        ("[node.alice]", f"[coordinator]\n{there}\nport = 45999\n[node.alice]\n{there}\nport = 45997"),
        ("[node.bob]", f'[node.bob]\nlocal = false\nhost = "{host}"'),
    )  # fmt: skip
    place = config.load_lab(lab)
    if how == "by its host":
        assert doctor._here(place, None) == {"bob"}  # 127.0.0.7 is an address of every machine
    here = doctor._here(place, ["bob"] if how == "by name" else None)
    notes = doctor._Notes(lambda _: None)
    processes.make_keys(place, ["bob"])
    doctor._keys(place, here, notes)
    asked = {(f.subject, f.detail.rsplit(".", 1)[-1].split()[0]) for f in notes.all if not f.ok}
    assert asked == {(n, "public") for n in ("coordinator", "world", "alice", "eve", "ris")}


def test_an_air_that_is_another_machines_is_not_started_here(tmp_path: Path) -> None:
    """Started here it would make the air's keys anew, and nothing here would understand the real one any more."""
    there = 'host = "192.0.2.1"'
    lab = lab_file(
        tmp_path,
        ('pace = "virtual"', f'pace = "virtual"\n{there}\nport = 45995'),
        ("[node.alice]", f"[coordinator]\n{there}\nport = 45999\n[node.alice]\n{there}\nport = 45997"),
        ("[node.bob]", '[node.bob]\nlocal = false\nhost = "127.0.0.7"'),
    )  # fmt: skip
    place = config.load_lab(lab)
    found = doctor.examine(place, lab, RadioPlan(), 4, lambda _: None, None, ["bob"])
    (air,) = [f for f in found.findings if f.subject == "world" and f.check == "elsewhere"]
    assert air.ok
    assert "192.0.2.1" in air.detail
    assert not (processes.lab_folder(place) / "transport" / "world.secret").exists()


def test_advice_names_the_option_and_its_value(tmp_path: Path) -> None:
    weak = examine(lab_file(tmp_path, ("tx_gain_db = -6.0", "tx_gain_db = -60.0")), repeats=4)
    assert "raise tx_gain_db to -40 in [node.alice]" in the(weak, "alice → eve", "link").fix
    loud = examine(lab_file(tmp_path, ("tx_gain_db = -6.0", "tx_gain_db = 20.0\nrx_gain_db = 60.0")), repeats=4)
    fix = the(loud, "alice", "gain").fix
    assert fix.startswith("lower rx_gain_db to ")
    assert fix.endswith(" in [node.alice]")


def test_a_receive_only_radio_is_measured_as_eves(tmp_path: Path) -> None:
    lab = lab_file(tmp_path, ('role = "eve"', 'role = "eve"\noptions = { receive_only = true }'))
    diagnosis = examine(lab, repeats=4)
    assert wrong(diagnosis) == []
    assert set(diagnosis.radios["eve"].heard) == {"alice", "bob"}


def test_cables_show_each_devices_own_chains(tmp_path: Path) -> None:
    """The ripple of four chains of 0.5 dB is found, kept for each device, and gone in frames that were not used."""
    lab = lab_file(tmp_path)
    diagnosis = doctor.examine(config.load_lab(lab), lab, RadioPlan(), 8, cable=True)
    assert wrong(diagnosis) == []
    said = the(diagnosis, "alice ↔ bob", "reciprocity").detail
    before_db, after_db = (float(x) for x in re.findall(r"by (\d+\.\d+) dB", said))
    assert 0.3 < before_db < 1.5
    assert after_db < 0.2 * before_db
    for name in ("alice", "bob"):
        detail = the(diagnosis, name, "cable").detail
        assert "received ±" in detail
        assert "sent ±" in detail
        assert "delay received" in detail
        settings = diagnosis.radios[name].settings
        folder = processes.node_state_dir(config.load_lab(lab), name)
        kept = chains.find(
            folder, {"serial": diagnosis.radios[name].serial}, settings["carrier_hz"], settings["sample_rate_hz"]
        )
        assert len(kept.tx_db) == len(kept.rx_db) == len(kept.subcarrier_hz)
    assert "sent" not in the(diagnosis, "eve", "cable").detail


def test_arrays_are_measured_antenna_by_antenna(tmp_path: Path) -> None:
    """Four chains of 0.5 dB each at either end, told apart by what the two measure of one another."""
    rough = [("chain_ripple_db = 0.05", "chain_ripple_db = 0.5")] * 2
    lab = lab_file(tmp_path, *rough, ("tx_gain_db = 0.0", "tx_gain_db = 20.0"), base="sim_mimo")
    diagnosis = doctor.examine(config.load_lab(lab), lab, RadioPlan(), 8, cable=True)
    before_db, after_db = (
        float(x) for x in re.findall(r"by (\d+\.\d+) dB", the(diagnosis, "alice ↔ bob", "reciprocity").detail)
    )
    assert 0.7 < before_db < 2.0
    assert after_db < 0.5 * before_db
    for name in ("alice", "bob"):
        assert "4 antennas varies by" in the(diagnosis, name, "cable").detail
        settings, serial = diagnosis.radios[name].settings, diagnosis.radios[name].serial
        folder = processes.node_state_dir(config.load_lab(lab), name)
        kept = chains.find(folder, {"serial": serial}, settings["carrier_hz"], settings["sample_rate_hz"], n_antennas=4)
        assert np.shape(kept.ratio_db) == (4, len(kept.subcarrier_hz))
