"""The emulated Plutos as others see them: libiio's tools, a script that knows nothing of this project, a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sites import free_ports

from sim_backend.emulators.pluto import EmulatedPluto
from sim_backend.emulators.pluto_tree import PHY
from testbed import config
from testbed.coordinator.server import Progress
from testbed.core.config import Lab
from testbed.core.world import DriverContext
from testbed.lab import processes

pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")

PLAIN_SCRIPT = """
import sys
import adi
import numpy as np

alice, bob = adi.Pluto(uri=sys.argv[1]), adi.Pluto(uri=sys.argv[2])
for sdr in (alice, bob):
    sdr.sample_rate, sdr.rx_lo, sdr.tx_lo = int(4e6), int(2.4e9), int(2.4e9)
alice.tx_hardwaregain_chan0, alice.tx_cyclic_buffer = 0, True
alice.tx(2**14 * np.exp(2j * np.pi * 0.05 * np.arange(4000)))
for _ in range(9):
    received = bob.rx()
print(np.argmax(np.abs(np.fft.fft(received))) / len(received), bob.gain_control_mode_chan0)
bob.rx_destroy_buffer(), alice.tx_destroy_buffer()
"""


@contextmanager
def sim(lab: str = "wire") -> Iterator[dict[str, Any]]:
    """Run `testbed sim`; yield its line once it is ready."""
    command = [sys.executable, "-m", "testbed", "sim", "--lab", lab]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line)
        process.terminate()
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    finally:
        process.kill()


def tool(*command: str) -> subprocess.CompletedProcess[bytes]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: apt-get install libiio-utils")
    return subprocess.run(command, capture_output=True, timeout=240)


def test_libiios_tools_and_a_plain_script_work() -> None:  # what else was tried: docs/clients.md
    with sim() as ready:
        uris = ready["devices"]
        assert set(uris) == {"alice", "bob", "eve"}
        info = tool("iio_info", "-u", uris["alice"])
        assert info.returncode == 0, info.stderr
        assert b"PlutoSDR" in info.stdout
        for what in (b"ad9361-phy", b"cf-ad9361-lpc (buffer capable)", b"sampling_frequency value: 30720000", b"TX_LO"):
            assert what in info.stdout
        read = tool("iio_readdev", "-u", uris["bob"], "-b", "512", "-s", "4096", "cf-ad9361-lpc")
        assert (read.returncode, len(read.stdout)) == (0, 4 * 4096), read.stderr
        for arguments, words in (
            (("iio_attr", "-u", uris["bob"], "-D", "ad9361-phy", "loopback", "1"), b"1"),
            (("iio_attr", "-u", uris["bob"], "-D", "ad9361-phy", "loopback", "0"), b"0"),
            (("iio_attr", "-u", uris["bob"], "-d", "ad9361-phy", "xo_correction"), b"40000000"),
            (("iio_reg", "-u", uris["bob"], "ad9361-phy", "0x37"), b"0xa"),
        ):
            said = tool(*arguments)
            assert said.returncode == 0, said.stderr
            assert words in said.stdout
        long = tool("iio_readdev", "-u", uris["bob"], "-b", str(1 << 20), "-s", str(1 << 20), "cf-ad9361-lpc")
        assert (long.returncode, len(long.stdout)) == (0, 4 << 20), long.stderr
        sent = subprocess.run(
            ["iio_writedev", "-u", uris["bob"], "-b", "4096", "-s", "4096", "cf-ad9361-dds-core-lpc"],
            input=bytes(4 * 4096), capture_output=True, timeout=240,
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr
        script = subprocess.run(
            [sys.executable, "-c", PLAIN_SCRIPT, uris["alice"], uris["eve"]],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert script.returncode == 0, script.stderr
        frequency, mode = script.stdout.split()
        assert float(frequency) == pytest.approx(0.05, abs=0.01)  # crystals 8 ppm apart: 19 kHz of 4 MHz
        assert mode == "slow_attack"


GNU_RADIO = """
import os
import sys
import numpy as np
from gnuradio import blocks, gr, iio

flow = gr.top_block()

def source():
    radio = iio.fmcomms2_source_fc32(sys.argv[1], [True, True], 32768)
    heard = blocks.vector_sink_c()
    flow.connect(radio, blocks.head(gr.sizeof_gr_complex, 4000000), heard)
    return radio, heard

def sink():
    radio = iio.fmcomms2_sink_fc32(sys.argv[1], [True, True], 32768, False)
    tone = blocks.vector_source_c(list(0.5 * np.exp(2j * np.pi * np.arange(1000) / 10)), repeat=True)
    flow.connect(tone, blocks.head(gr.sizeof_gr_complex, 4000000), radio)
    return radio, None

parts = [{"source": source, "sink": sink}[name]() for name in sys.argv[2].split(",")]
for radio, _ in parts:
    radio.set_frequency(1000000000)
    radio.set_samplerate(2500000)
flow.start()
flow.wait()
print(sum(len(heard.data()) for _, heard in parts if heard is not None), flush=True)
os._exit(0)  # its destructor waits without end for the thread that watches the flags where this one began too late
"""


@pytest.mark.parametrize("parts", ["source", "sink", "source,sink", "sink,source"])
def test_gnu_radio_receives_sends_and_does_both_in_one_process(parts: str) -> None:
    python = "/usr/bin/python3"  # the distribution's: its GNU Radio is built for that one
    there = subprocess.run([python, "-c", "from gnuradio import iio"], capture_output=True, check=False)
    if there.returncode:
        pytest.skip("GNU Radio with gr-iio is not installed: apt-get install gnuradio")
    with sim() as ready:
        command = [python, "-c", GNU_RADIO, ready["devices"]["alice"], parts]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    # its marks of overflow and underflow stand anywhere: in virtual time the device does not wait for the host
    assert re.sub("[OU\\s]", "", done.stdout) == ("4000000" if "source" in parts else "0")


def run(tmp_path: Path, lab: str, rounds: int, progress: Callable[[Progress], None] = lambda _: None) -> Any:
    plan = config.load_experiment("onair_first_key")
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=rounds, epsilon_log2=16)
    plan = msgspec.structs.replace(plan, rounds=rounds, accounting=accounting)
    return processes.run(plan, config.load_lab(lab), lab, tmp_path / "run", progress)


def delivered(tmp_path: Path) -> list[list[str]]:
    """Return the keys in Alice's and in Bob's own folder."""
    return [
        [p.read_text() for p in sorted((tmp_path / "state" / "wire" / n / "keys").glob("*/*.key"))]
        for n in ("alice", "bob")
    ]


def test_a_run_over_the_wire_ends_in_equal_keys(tmp_path: Path) -> None:
    outcome = run(tmp_path, "wire", 500)
    s = outcome.summary
    assert outcome.status == "finished"
    assert s["pairs_kept"] > 490
    assert s["csi_correlation_ab"] > 0.95
    assert abs(s["csi_correlation_ae"]) < 0.4
    assert (s["keys_verified"], s["keys_mismatched"]) == (1, 0)
    assert s["key_bits"] > 0
    assert delivered(tmp_path) == [[], []]  # a rehearsal: its keys follow from its seed


def test_rounds_on_the_wall_clock_are_heard(tmp_path: Path) -> None:
    text = config.find(Lab, "wire").read_text(encoding="utf-8")
    lab = tmp_path / "wall.toml"
    lab.write_text(text.replace('pace = "virtual"', 'pace = "wall"'))
    outcome = run(tmp_path, str(lab), 4)
    assert outcome.summary["pairs_rejected"] == {}
    assert outcome.summary["pairs_kept"] == 4


def test_a_cable_pulled_in_the_middle_costs_a_round(tmp_path: Path) -> None:
    """Bob's connection drops twice in the middle of a capture: reported, rejected, and he is back in the next round."""
    text = config.find(Lab, "wire").read_text(encoding="utf-8")
    lab = tmp_path / "faulty.toml"
    lab.write_text(text.replace("[world.emulators.bob]", "[world.emulators.bob]\nfaults = { disconnect_reads = 2 }"))
    outcome = run(tmp_path, str(lab), 20)
    assert outcome.status == "finished"
    assert outcome.summary["pairs_rejected"] == {"device": 2}
    assert outcome.summary["pairs_kept"] == 18


def test_a_pluto_that_vanishes_in_the_middle_of_a_run_and_returns_is_used_again(tmp_path: Path) -> None:
    """Bob's device is this process's, as if it were on the desk; `testbed sim` emulates the other two."""
    air, iiod = free_ports(2)
    text = config.find(Lab, "wire").read_text(encoding="utf-8")
    text = text.replace('pace = "virtual"', f'pace = "virtual"\nport = {air}')
    text = text.replace("[world.emulators.bob]\ncfo_ppm = -8.0\n", "")
    text = text.replace('role = "bob"', f'role = "bob"\noptions = {{ uri = "ip:127.0.0.1:{iiod}" }}')
    path = tmp_path / "mixed.toml"
    path.write_text(text)
    lab = config.load_lab(str(path))
    processes.make_keys(lab, processes.daemon_names(lab))
    context = DriverContext(
        seed=3, world=f"tcp://127.0.0.1:{air}", identity=processes.load_identity(lab, "world"), state_dir=tmp_path
    )
    devices = [EmulatedPluto("bob", context, port=iiod, cfo_ppm=-8.0)]
    captured: list[int] = []

    def pull_and_plug(p: Progress) -> None:
        if len(captured) == 0 and p.round >= 100:
            captured.append(devices[0].blocks_captured)
            devices[0].close()
        elif len(captured) == 1 and p.round >= 104:
            captured.append(p.kept)
            devices.append(EmulatedPluto("bob", context, port=iiod, cfo_ppm=-8.0))

    try:
        outcome = run(tmp_path, str(path), 500, pull_and_plug)
    finally:
        devices[-1].close()
    s = outcome.summary
    assert (outcome.status, len(devices)) == ("finished", 2)
    assert captured[0] > 50
    assert 3 <= s["pairs_rejected"]["device"] <= 20
    assert s["pairs_kept"] > 470
    assert devices[1].tree.values[PHY, "out_altvoltage1_TX_LO_powerdown"] == "1"
    assert devices[1].blocks_captured > 200
    assert (s["keys_verified"], s["keys_mismatched"]) == (1, 0)
    assert delivered(tmp_path) == [[], []]  # a rehearsal: its keys follow from its seed


@pytest.mark.parametrize(
    ("old", "new", "status", "reason"),
    [
        ('role = "alice"', 'role = "alice"\noptions = { serial = "1" }', 1, "serial number .* the lab file states '1'"),
        ("tx_gain_db = -6.0", "tx_gain_db = 60.0", 2, r"node\.alice\]: key 'tx_gain_db': 60, accepted: -89.75 to 0 "),
        (
            "[world.emulators.alice]\ncfo_ppm = 12.0 ", "", 1,
            r"choose the device in \[node\.alice\.options\]: uri = …, or serial = …",
        ),
    ],
)  # fmt: skip
def test_a_run_that_never_started_says_why_in_one_line_and_nothing_else(
    tmp_path: Path, old: str, new: str, status: int, reason: str
) -> None:
    text = config.find(Lab, "wire").read_text(encoding="utf-8")
    assert old in text
    lab = tmp_path / "lab.toml"
    lab.write_text(text.replace(old, new, 1))
    command = [sys.executable, "-m", "testbed", "run", "onair_first_key", "--lab", str(lab), "--out", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (said.returncode, said.stdout) == (status, ""), said.stderr
    assert re.search(rf"^{'run failed' if status == 1 else 'testbed'}: .*{reason}", said.stderr.splitlines()[-1])
    assert status == 1 or not list(tmp_path.glob("*/run.json"))  # nothing was started


@pytest.mark.parametrize(
    ("experiment", "change", "words"),
    [
        ("mobile_room", "", ["key 'carrier_hz': 5.8e+09, accepted: 3.25e+08 to 3.8e+09", "[node.eve]", "as sold"]),
        ("onair_first_key", "rx_gain_db = 95.0", ["[node.bob]: key 'rx_gain_db': 95, accepted: -3 to 71"]),
    ],
)  # fmt: skip
def test_what_a_stock_pluto_cannot_do_is_refused_before_anything_starts(
    tmp_path: Path, experiment: str, change: str, words: list[str], here: Any
) -> None:
    text = config.find(Lab, "wire").read_text(encoding="utf-8")
    if change:
        head, node, rest = text.partition("[node.bob]")
        text = head + node + rest.replace("rx_gain_db = 15.0", change, 1)
    lab = tmp_path / "lab.toml"
    lab.write_text(text)
    said = here("run", experiment, "--lab", str(lab), "--out", str(tmp_path))
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1)
    for word in words:
        assert word in said.stderr
    assert not list(tmp_path.glob("*/run.json"))
