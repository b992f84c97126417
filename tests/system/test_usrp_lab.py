"""The USRP driver in a lab, on the stand-in for UHD in each node's process."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sim_backend.local import world_in_thread
from sim_backend.server import SimWorld
from testbed import config
from testbed.config.devices import open_device
from testbed.core.config import Lab
from testbed.core.errors import InputError
from testbed.core.radio import Radio, RadioSettings
from testbed.core.world import DriverContext
from testbed.lab import processes

CONTEXT = DriverContext(seed=1, world="tcp://127.0.0.1:9", identity=None, state_dir=Path())


def run(tmp_path: Path, text: str, rounds: int) -> Any:
    lab = tmp_path / "lab.toml"
    lab.write_text(text)
    plan = config.load_experiment("mobile_room")
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=rounds, epsilon_log2=16)
    plan = msgspec.structs.replace(plan, rounds=rounds, accounting=accounting)
    return processes.run(plan, config.load_lab(str(lab)), str(lab), tmp_path / "run")


def bundled(name: str) -> str:
    return config.find(Lab, name).read_text(encoding="utf-8")


def test_a_run_on_emulated_usrps_ends_in_equal_keys(tmp_path: Path) -> None:
    outcome = run(tmp_path, bundled("usrp_standin"), 400)
    s = outcome.summary
    assert outcome.status == "finished"
    assert s["pairs_kept"] > 390
    assert s["csi_correlation_ab"] > 0.9
    assert (s["keys_verified"], s["keys_mismatched"]) == (1, 0)
    assert s["key_bits"] > 0
    folder = tmp_path / "state" / "usrp_standin"
    keys = [[p.read_text() for p in (folder / n / "rehearsals").glob("*/*.key")] for n in ("alice", "bob")]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 1


def test_faults_of_an_emulated_usrp_come_from_the_lab_file(tmp_path: Path) -> None:
    table = '[world.emulators.bob]\nrx_faults = ["", "overflow", "", "", "", "broken_chain"]'
    outcome = run(tmp_path, bundled("usrp_standin").replace("[world.emulators.bob]", table), 8)
    assert outcome.status == "finished"
    assert sum(outcome.summary["pairs_rejected"].values()) == 2
    assert outcome.summary["pairs_kept"] == 6


def test_what_the_driver_promises_reaches_the_air(tmp_path: Path) -> None:
    """UHD has no word for it; without it Bob waits for Alice until he gives up."""
    lab = config.load_lab("usrp_standin")
    settings = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=70.0, rx_gain_db=0.0)
    scene = config.load_experiment("mobile_room").scene
    with (
        pytest.MonkeyPatch.context() as patch,
        world_in_thread(scene, peer_timeout_s=9.0) as endpoint,
        ExitStack() as s,
    ):
        patch.setitem(sys.modules, "uhd", None)  # so that what takes its place is taken away again
        s.callback(lambda: sys.modules["uhd"].power_off())
        radios = []
        for i, name in enumerate(("alice", "bob")):
            context = DriverContext(seed=i, world=endpoint, identity=None, state_dir=tmp_path)
            radio = open_device(lab, name, context)
            assert isinstance(radio, Radio)
            radios.append(s.enter_context(radio))
            radio.configure(settings)
        alice, bob = radios
        alice.idle_until(alice.now_s() + 0.1)
        bob.receive(100, bob.now_s() + 0.01, timeout_s=0.5)


def test_beside_a_pluto_a_usrp_refuses_before_the_first_round(tmp_path: Path) -> None:
    """It has no way to repeat what it sends."""
    text = bundled("usrp_standin")
    at = text.index("[node.bob]")
    text = text[:at] + text[at:].replace('driver = "usrp"\ntx_gain_db = 73.75', 'driver = "sim"\ntx_gain_db = -6.0', 1)
    text = text.replace("[world.emulators.bob]\n", "").replace("[node.bob]\n", "[node.bob]\noptions.timed = false\n")
    outcome = run(tmp_path, text, 8)
    assert outcome.status == "failed"
    assert outcome.summary["rounds"] == 0
    assert outcome.detail.startswith(("alice: configure", "eve: configure"))
    assert "repeat" in outcome.detail


@pytest.mark.parametrize(
    ("options", "accepted"),
    [({"colour": "red"}, "'colour'.*rx_delay_samples"), ({"rx_faults": ["gremlins"]}, "'gremlins'.*'timeout', 'late'")],
)
def test_a_wrong_key_or_value_is_named_with_what_is_accepted(options: dict[str, Any], accepted: str) -> None:
    for make in (SimWorld.emulate, SimWorld.equip):
        with pytest.raises(InputError, match=rf"world.emulators.alice.*{accepted}"):
            make("alice", "usrp", CONTEXT, options)


def test_a_driver_without_emulator_is_refused_with_a_list_of_those_that_have_one() -> None:
    with pytest.raises(InputError, match=r"world.emulators.alice.*'sim'; accepted: opensourceris, pluto, ris595, usrp"):
        SimWorld.emulate("alice", "sim", CONTEXT, {})
