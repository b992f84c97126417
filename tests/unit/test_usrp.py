"""The USRP driver on UHD's stand-in: what it sets in which order, what it finds, and every way a device fails."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from firmware_ctl.radios import usrp as driver
from firmware_ctl.radios.usrp import Usrp
from sim_backend.emulators.uhd_standin import Device, TimeSpec, TXMetadataEventCode, UhdStandIn
from sim_backend.local import world_in_thread
from testbed.core.config import Multipath, PlacedNode, Scene
from testbed.core.errors import DeviceError, DeviceTimeout, InputError, LateTransmit
from testbed.core.radio import RadioSettings, Window
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext

RATE_HZ = 20e6
SETTINGS = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=RATE_HZ, tx_gain_db=79.75, rx_gain_db=15.0)
SCENE = Scene(
    alice=PlacedNode(position_m=[4.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[9.0, 8.0, 1.5]),
    multipath=Multipath(n_scatterers=0, direct_db=0.0),
)
N = 600
LEAD_S = 1e-3
ACK = TXMetadataEventCode.burst_ack


class Lab:
    """Two USRPs on a shelf, in one World."""

    def __init__(self, endpoint: str, stack: ExitStack) -> None:
        self._stack = stack
        self.context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=Path())
        self.alice, self.bob = Device("30AB", "alice"), Device("30CD", "bob")
        self.shelf = UhdStandIn(self.context, self.alice, self.bob)
        stack.callback(self.shelf.power_off)

    def open(self, device: Device, **options: Any) -> Usrp:
        return self._stack.enter_context(Usrp(device.name, self.context, **{"serial": device.serial, **options}))

    def tuned(self, device: Device, settings: RadioSettings = SETTINGS, **options: Any) -> Usrp:
        radio = self.open(device, **options)
        radio.configure(settings)
        return radio

    def pair(self, **options: Any) -> tuple[Usrp, Usrp]:
        return self.tuned(self.alice, **options), self.tuned(self.bob, **options)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with world_in_thread(SCENE, seed=3) as endpoint, ExitStack() as stack:
        found = Lab(endpoint, stack)
        monkeypatch.setattr(driver, "load_uhd", lambda: found.shelf)
        yield found


def burst(n: int = N, seed: int = 1) -> IqBlock:
    turns = np.random.default_rng(seed).random(n)
    return IqBlock((0.5 * np.exp(2j * np.pi * turns)).astype(np.complex64)[None, :], RATE_HZ, 0.0)


def match(received: np.ndarray, sent: np.ndarray) -> tuple[int, float]:
    """Return the lag of the best match and its normalised correlation in 0…1."""
    lags = np.abs(np.correlate(received[0], sent[0], "valid"))
    best = int(lags.argmax())
    energy = np.linalg.norm(sent) * np.linalg.norm(received[0, best : best + sent.shape[1]])
    return best, float(lags[best] / energy)


# ---------------------------------------------------------------- the module


def test_without_uhd_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uhd", None)
    context = DriverContext(seed=1, world=None, identity=None, state_dir=Path())
    with pytest.raises(DeviceError, match=r"apt-get install python3-uhd.*--system-site-packages") as failure:
        Usrp("alice", context)
    assert "\n" not in str(failure.value)


def test_a_uhd_built_for_numpy_1_is_refused_before_it_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a module imports with no more than a complaint on stderr, and segfaults at the first recv()."""
    (tmp_path / "uhd.py").write_text(
        "import sys\nsys.stderr.write('AttributeError: _ARRAY_API not found\\n')\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "uhd", raising=False)
    with pytest.raises(ImportError, match="built for NumPy 1"):
        driver.load_uhd()


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize("options", [{"sreial": "x"}, {"channel": -1}, {"clock_source": "atomic"}, {"pps": "yes"}])
def test_wrong_options_are_refused_with_the_accepted_keys(lab: Lab, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"table \[node\.alice\.options\]: .*accepted: "):
        lab.open(lab.alice, **options)


def test_a_wrong_serial_names_what_is_there(lab: Lab) -> None:
    with pytest.raises(DeviceError, match=r"no USRP answers to 'type=b200,serial=NONE'; found: B210 serial=30AB") as e:
        lab.open(lab.alice, addr="type=b200", serial="NONE")
    assert "\n" not in str(e.value)
    lab.alice.unplugged = lab.bob.unplugged = True
    with pytest.raises(DeviceError, match="no device was found: check power"):
        lab.open(lab.alice)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"antenna": "RX2"}, "antenna 'RX2', accepted for both directions: TX/RX"),
        ({"channel": 1}, "channel = 1, accepted 0 to 0"),
        ({"subdev": "B:B"}, "no subdevice 'B:B'"),
    ],
)
def test_what_the_device_lacks_is_named(lab: Lab, options: dict[str, Any], what: str) -> None:
    with pytest.raises(DeviceError, match=what):
        lab.open(lab.alice, **options)


def test_an_unlocked_reference_is_refused(lab: Lab) -> None:
    lab.alice.ref_locked = False
    with pytest.raises(DeviceError, match=r"external reference is not locked after 0.05 s: check the 10 MHz cable"):
        lab.open(lab.alice, clock_source="external", lock_timeout_s=0.05)
    lab.open(lab.alice)  # with its own crystal there is no reference to be locked to


def test_an_unlocked_oscillator_is_refused(lab: Lab) -> None:
    radio = lab.open(lab.alice, lock_timeout_s=0.05)
    lab.alice.lo_locked = False
    with pytest.raises(DeviceError, match="receive oscillator is not locked"):
        radio.configure(SETTINGS)
    with pytest.raises(DeviceError, match="not configured"):
        radio.receive(N)
    lab.alice.lo_locked = True
    radio.configure(SETTINGS)
    assert radio.receive(N).samples.shape == (1, N)


def test_without_pps_edges_the_time_is_not_set(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_PPS_S", 0.05)
    lab.alice.pps = False
    with pytest.raises(DeviceError, match=r"no PPS edge within 0.05 s: check the cable"):
        lab.open(lab.alice, pps=True, time_source="external")


def test_reference_and_pps_give_two_radios_one_time(lab: Lab) -> None:
    """Sent at 2.5 s by one clock, heard at 2.5 s by the other: what is between them is 5 m of air."""
    alice, bob = lab.pair(clock_source="external", time_source="external", pps=True)
    at_s = max(alice.now_s(), bob.now_s()) + 0.5
    alice.transmit(burst(), at_s)
    lab.alice.idle_until(at_s + LEAD_S)
    lag, quality = match(bob.receive(2 * N, at_s - 100 / RATE_HZ).samples, burst().samples)
    assert quality > 0.7  # the rest is lost by a delay of a third of a sample
    assert lag == pytest.approx(100, abs=1)
    assert "set_time_next_pps" in lab.alice.calls
    assert "set_time_now" not in lab.alice.calls


def test_without_pps_each_radio_has_its_own_time(lab: Lab) -> None:
    """The check above fails where only the internal clocks are set: it can fail."""
    alice = lab.tuned(lab.alice)
    alice.receive(N, alice.now_s() + 0.01)  # Alice's time goes on before Bob's begins
    bob = lab.tuned(lab.bob)
    at_s = alice.now_s() + 0.01
    alice.transmit(burst(), at_s)
    lab.alice.idle_until(at_s + 1.0)
    assert match(bob.receive(2 * N, at_s - 100 / RATE_HZ).samples, burst().samples)[1] < 0.3


def test_says_which_device_it_is(lab: Lab) -> None:
    found = lab.open(lab.bob, clock_source="external").identity()
    assert found["driver"] == "usrp"
    assert found["serial"] == "30CD"
    assert found["product"] == "B210"
    assert found["firmware"] == "8.0"
    assert found["fpga"] == "16.0"
    assert found["clock_source"] == "external"


# ---------------------------------------------------------------- configuring


def test_what_the_device_made_of_the_settings_is_answered(lab: Lab) -> None:
    radio = lab.open(lab.alice, master_clock_rate_hz=61.44e6)
    accepted = radio.configure(replace(SETTINGS, tx_gain_db=70.1, rx_gain_db=15.4))
    assert accepted == replace(SETTINGS, sample_rate_hz=20.48e6, tx_gain_db=70.0, rx_gain_db=15.0)
    with pytest.raises(DeviceError, match=r"radio at 2\.048e"):
        radio.transmit(burst())


def test_rate_before_carrier_before_gains_and_no_timed_commands(lab: Lab) -> None:
    alice = lab.tuned(lab.alice)
    calls = [c for c in lab.alice.calls if c.startswith("set_") and "rx" in c]
    assert calls == ["set_rx_rate", "set_rx_freq", "set_rx_antenna", "set_rx_gain"]
    alice.transmit(burst(), alice.now_s() + LEAD_S)
    alice.receive(N, alice.now_s() + LEAD_S)
    alice.silence()
    alice.configure(SETTINGS)
    assert "set_command_time" not in lab.alice.calls


def test_the_stand_in_blocks_behind_a_timed_command(lab: Lab) -> None:
    """Why there are none: not even the time can be read, and clearing the command time does not help."""
    device = lab.shelf.usrp.MultiUSRP("serial=30AB")
    device.set_command_time(TimeSpec(device.get_time_now().get_real_secs() + 1.0))
    device.set_rx_gain(10.0, 0)
    device.clear_command_time()
    with pytest.raises(RuntimeError, match="timed out"):
        device.get_time_now()


# ---------------------------------------------------------------- transmitting


def test_a_late_burst_is_refused_before_it_is_sent(lab: Lab) -> None:
    alice, _ = lab.pair()
    lab.alice.idle_until(1.0)
    with pytest.raises(LateTransmit, match="too late"):
        alice.transmit(burst(), 0.5)
    assert "send" not in lab.alice.calls


@pytest.mark.parametrize(
    ("fault", "error", "what"),
    [("late", LateTransmit, "late"), ("underflow", DeviceError, "underflow"), ("seq_error", DeviceError, "packets")],
)
def test_a_devices_report_on_a_burst_is_passed_on_once(
    lab: Lab, fault: str, error: type[DeviceError], what: str
) -> None:
    alice, bob = lab.pair()
    lab.alice.tx_faults.append(fault)
    with pytest.raises(error, match=f"an earlier transmission failed: {what}") as failure:
        alice.transmit(burst(), alice.now_s() + LEAD_S)
    assert isinstance(failure.value, LateTransmit) == (fault == "late")
    at_s = alice.now_s() + LEAD_S
    hear_s = bob.now_s() + at_s - alice.now_s()
    alice.transmit(burst(), at_s)
    lab.alice.idle_until(at_s + LEAD_S)
    assert bob.receive(N, hear_s).samples.shape == (1, N)


def test_a_report_that_comes_after_the_call_is_passed_on_at_the_next(lab: Lab) -> None:
    alice, _ = lab.pair()
    alice.transmit(burst(), alice.now_s() + LEAD_S)
    core = lab.alice.core
    assert core is not None
    core.events.append(lab.shelf.types.TXMetadataEventCode.underflow)
    with pytest.raises(DeviceError, match="receive in state configured: an earlier transmission failed: underflow"):
        alice.receive(N)


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_reported_of_queued_bursts_is_told_of_each_one_and_once(lab: Lab, at_once: bool) -> None:
    alice, bob = lab.pair()
    times_s = [alice.now_s() + LEAD_S * (k + 1) for k in range(4)]
    lab.alice.tx_faults.extend(["", "late", "", "underflow"])
    listen = alice._tx.recv_async_msg
    alice._tx.recv_async_msg = lambda meta, timeout=0.1: at_once and listen(meta, timeout)
    found = alice.transmit_many([replace(burst(), time_s=at_s) for at_s in times_s])
    lost = [(at_s, why) for at_s, why in zip(times_s, found, strict=True) if why is not None]
    at_once = True
    lab.bob.idle_until(bob.now_s() + 1.0)
    windows = [Window(N, times_s[-1] + LEAD_S * (k + 1)) for k in range(3)]
    assert all(isinstance(x, IqBlock) for x in alice.receive_many(windows))
    lost += alice.failed_transmissions()
    assert [at_s for at_s, _ in lost] == [times_s[1], times_s[3]]
    assert [type(why) for _, why in lost] == [LateTransmit, DeviceError]
    assert alice.failed_transmissions() == []


def test_a_train_takes_few_questions_to_the_air_and_few_readings_of_the_clock(lab: Lab) -> None:
    """Each takes as long as a round: a stand-in that asked for every call kept half of the rounds of a train."""
    alice, bob = lab.pair(queued_bursts=64)
    assert alice.capabilities.queue == 64
    core = lab.alice.core
    assert core is not None
    asked: list[str] = []
    ask = core.sim._link.ask

    def counted(request: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(type(request).__name__)
        return ask(request, *args, **kwargs)

    core.sim._link.ask = counted  # type: ignore[method-assign]
    start_s = alice.now_s() + LEAD_S
    lab.alice.calls.clear()
    asked.clear()
    assert alice.transmit_many([replace(burst(), time_s=start_s + k * LEAD_S) for k in range(32)]) == [None] * 32
    lab.bob.idle_until(bob.now_s() + 1.0)
    found = alice.receive_many([Window(N, start_s + (k + 0.5) * LEAD_S) for k in range(32)])
    assert all(isinstance(x, IqBlock) for x in found)
    assert lab.alice.calls.count("get_time_now") == 1
    assert asked.count("ReceiveMany") + asked.count("Receive") == 4  # eight at a time wait in the device
    assert len(asked) <= 8


def test_a_device_that_takes_no_more_samples_is_a_timeout_and_later_bursts_work(lab: Lab) -> None:
    alice, bob = lab.pair(clock_source="external", time_source="external", pps=True)
    lab.alice.tx_faults.append("timeout")
    with pytest.raises(DeviceTimeout, match=f"took {N // 2} of {N} samples"):
        alice.transmit(burst(seed=2), max(alice.now_s(), bob.now_s()) + LEAD_S)
    at_s = max(alice.now_s(), bob.now_s()) + LEAD_S
    alice.transmit(burst(), at_s)
    lab.alice.idle_until(at_s + LEAD_S)
    lag, quality = match(bob.receive(2 * N, at_s - 100 / RATE_HZ).samples, burst().samples)
    assert quality > 0.7  # the rest is lost by a delay of a third of a sample
    assert lag == pytest.approx(100, abs=1)


def test_silence_mutes_what_is_queued_and_the_next_burst_waits_for_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UHD cannot withdraw a burst: with the gain restored the rest of the silenced burst would be transmitted."""
    alice = lab.tuned(lab.alice)
    start_s = alice.now_s()
    alice.transmit(burst(), start_s + 5.0)
    alice.silence()
    assert alice._usrp.get_tx_gain(0) == alice.capabilities.tx_gain_db[0]
    clock = iter([start_s, start_s, start_s + 6.0])
    with monkeypatch.context() as patch:
        patch.setattr(alice, "now_s", lambda: next(clock, start_s + 6.0))
        alice.transmit(burst(), start_s + 7.0)
        assert next(clock, None) is None, "it did not wait until the queued burst had gone"
    assert alice._usrp.get_tx_gain(0) == SETTINGS.tx_gain_db
    alice.silence()
    monkeypatch.setattr(alice, "now_s", lambda: start_s - 60.0)
    with pytest.raises(DeviceError, match="stays queued for 67"):
        alice.transmit(burst(), start_s + 8.0)
    monkeypatch.undo()


def test_retuning_mutes_first_what_is_still_queued(lab: Lab) -> None:
    alice = lab.tuned(lab.alice)
    alice.transmit(burst(), alice.now_s() + 1.0)
    lab.alice.calls.clear()
    alice.configure(SETTINGS)
    assert [c for c in lab.alice.calls if c.startswith("set_")][:2] == ["set_tx_gain", "set_rx_rate"]


# ---------------------------------------------------------------- receiving


@pytest.mark.parametrize("fault", ["late", "broken_chain", "alignment", "bad_packet"])
def test_a_failed_capture_raises_and_the_next_is_whole(lab: Lab, fault: str) -> None:
    alice = lab.tuned(lab.alice)
    at_s = alice.now_s() + LEAD_S
    lab.alice.rx_faults.append(fault)
    with pytest.raises(DeviceError, match="too late" if fault == "late" else fault.upper()):
        alice.receive(N, at_s)
    block = alice.receive(N, at_s)
    assert not block.overflow
    assert block.samples.any()
    np.testing.assert_array_equal(block.samples, alice.receive(N, at_s).samples)


def test_lost_packets_leave_a_gap_where_they_were(lab: Lab) -> None:
    alice = lab.tuned(lab.alice)
    at_s = alice.now_s() + LEAD_S
    whole = alice.receive(N, at_s)
    lab.alice.rx_faults.append("dropped")
    torn = alice.receive(N, at_s)
    assert torn.overflow
    assert not whole.overflow
    assert torn.time_s == whole.time_s
    gap = slice(N // 3, N // 2)
    assert not torn.samples[:, gap].any()
    kept = np.ones(N, bool)
    kept[gap] = False
    np.testing.assert_array_equal(torn.samples[:, kept], whole.samples[:, kept])


def test_an_overflow_is_reported_and_missing_samples_are_zero(lab: Lab) -> None:
    alice = lab.tuned(lab.alice)
    at_s = alice.now_s() + LEAD_S
    whole = alice.receive(N, at_s)
    lab.alice.rx_faults.append("overflow")
    torn = alice.receive(N, at_s)
    assert torn.overflow
    np.testing.assert_array_equal(torn.samples[:, : N // 2], whole.samples[:, : N // 2])
    assert not torn.samples[:, N // 2 :].any()
    assert not alice.receive(N).overflow


def test_a_silent_device_is_a_timeout_in_the_time_given(lab: Lab) -> None:
    alice = lab.tuned(lab.alice)
    lab.alice.rx_faults.append("timeout")
    begun = time.monotonic()
    with pytest.raises(DeviceTimeout, match=f"0 of {N} samples within 0.1 s"):
        alice.receive(N, alice.now_s() + LEAD_S, timeout_s=0.1)
    assert 0.1 <= time.monotonic() - begun < 30.0
    lab.alice.rx_faults.clear()
    assert alice.receive(N).samples.shape == (1, N)


def abandoned_then_now(lab: Lab) -> tuple[float, IqBlock]:
    """Give up a capture whose samples come afterwards; return when the next was asked for, and it."""
    alice = lab.tuned(lab.alice)
    lab.alice.rx_faults.append("abandoned")
    with pytest.raises(DeviceTimeout):
        alice.receive(N, alice.now_s() + LEAD_S, timeout_s=0.05)
    asked_s = alice.now_s()
    return asked_s, alice.receive(N)


def test_what_an_abandoned_capture_left_is_not_taken_for_the_next(lab: Lab) -> None:
    asked_s, block = abandoned_then_now(lab)
    assert block.time_s >= asked_s


def test_that_leftovers_are_caught(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above fails on a driver that does not flush: it can fail."""
    monkeypatch.setattr(Usrp, "_flush", lambda self: None)
    asked_s, block = abandoned_then_now(lab)
    assert block.time_s < asked_s


def test_leftovers_of_another_time_are_sorted_out_even_unflushed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timed reception uses the time stamps, whatever samples precede it in the stream."""
    monkeypatch.setattr(Usrp, "_flush", lambda self: None)
    alice = lab.tuned(lab.alice)
    at_s = alice.now_s() + 2 * LEAD_S
    lab.alice.rx_faults.append("abandoned")
    with pytest.raises(DeviceTimeout):
        alice.receive(N, at_s - LEAD_S, timeout_s=0.05)
    late = alice.receive(N, at_s)
    assert late.time_s == pytest.approx(at_s, abs=10e-9)
    np.testing.assert_array_equal(late.samples, alice.receive(N, at_s).samples)


@pytest.mark.parametrize(("calibrated", "shift"), [(50.0, 0), (0.0, 50)])
def test_the_calibrated_delay_is_taken_out(lab: Lab, calibrated: float, shift: int) -> None:
    lab.bob.rx_delay_samples = 50.0
    alice, bob = lab.pair(clock_source="external", time_source="external", pps=True, rx_delay_samples=calibrated)
    at_s = max(alice.now_s(), bob.now_s()) + 10 * LEAD_S
    alice.transmit(burst(), at_s)
    lab.alice.idle_until(at_s + LEAD_S)
    heard = bob.receive(2 * N, at_s - 100 / RATE_HZ)
    assert heard.time_s == pytest.approx(at_s - 100 / RATE_HZ, abs=10e-9)
    assert match(heard.samples, burst().samples)[0] == pytest.approx(100 + shift, abs=1)


def test_every_device_on_the_shelf_is_found(lab: Lab) -> None:
    lab.bob.unplugged = True
    (one,) = Usrp.discover(["ip:192.168.2.1"])
    assert (one.serial, one.options, one.words) == ("30AB", {"serial": "30AB"}, "USRP B210")
    assert (one.tx_gain_db, one.rx_gain_db) == ((0.0, 89.75), (0.0, 70.0))
    lab.bob.unplugged = False
    assert [f.serial for f in Usrp.discover()] == ["30AB", "30CD"]


def test_each_rate_has_a_delay_of_its_own(lab: Lab) -> None:
    """What was measured at one rate is 30 samples wrong at another; a rate without a figure is refused by name."""
    lab.bob.rx_delay_samples = {"20e6": 50.0, "10e6": 80.0}
    table = {"20e6": 50.0, "10e6": 80.0}
    alice, bob = lab.pair(clock_source="external", time_source="external", pps=True, rx_delay_samples=table)
    for rate_hz in (20e6, 10e6):
        for radio in (alice, bob):
            radio.configure(replace(SETTINGS, sample_rate_hz=rate_hz))
        wave = replace(burst(), sample_rate_hz=rate_hz)
        at_s = max(alice.now_s(), bob.now_s()) + 10 * LEAD_S
        alice.transmit(wave, at_s)
        lab.alice.idle_until(at_s + LEAD_S)
        heard = bob.receive(2 * N, at_s - 100 / rate_hz)
        assert match(heard.samples, wave.samples)[0] == pytest.approx(100, abs=1)
    with pytest.raises(DeviceError, match=r"rx_delay_samples has no value for 5e\+06 Hz, only for 20e6, 10e6"):
        bob.configure(replace(SETTINGS, sample_rate_hz=5e6))


def test_rates_and_masters_are_coerced_as_the_device_does(lab: Lab) -> None:
    """An X310 has two masters, and rates that they divide down to; what it took is what is answered."""
    lab.alice.product = "X310"
    radio = lab.open(lab.alice)
    assert radio.identity()["product"] == "X310"
    assert radio.identity()["master_clock_rate_hz"] == 200e6
    assert radio.configure(replace(SETTINGS, sample_rate_hz=4e6)).sample_rate_hz == 4e6
    assert radio.configure(replace(SETTINGS, sample_rate_hz=6e6)).sample_rate_hz == pytest.approx(200e6 / 33)
    radio.close()
    other = lab.open(lab.alice, master_clock_rate_hz=184.32e6)
    assert other.configure(replace(SETTINGS, sample_rate_hz=7.68e6)).sample_rate_hz == 7.68e6
    other.close()
    with pytest.raises(DeviceError, match="master clock runs at 200000000 Hz, not 195000000 Hz"):
        lab.open(lab.alice, master_clock_rate_hz=195e6)
    with pytest.raises(DeviceError, match="master clock runs at 5000000 Hz, not 1000000 Hz"):
        lab.open(lab.bob, master_clock_rate_hz=1e6)


def test_saturated_samples_stay_within_full_scale(lab: Lab) -> None:
    alice, bob = lab.pair(clock_source="external", time_source="external", pps=True)
    bob.configure(replace(SETTINGS, rx_gain_db=70.0))
    at_s = max(alice.now_s(), bob.now_s()) + 10 * LEAD_S
    alice.transmit(burst(), at_s)
    lab.alice.idle_until(at_s + LEAD_S)
    heard = bob.receive(N, at_s).samples.view(np.float32)
    assert heard.min() == -1.0, "the bench does not saturate"
    assert heard.max() <= 1.0


def test_a_machine_that_is_slow_still_finds_the_pulse(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks more time passes than there is in all."""
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda s: None))
    lab.open(lab.alice, clock_source="external", time_source="external", pps=True)


class Watched:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self, lock: Any, contended: threading.Event) -> None:
        self._lock, self._contended = lock, contended

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._contended.set()
            assert self._lock.acquire(timeout=60.0)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Slow(list[Any]):
    """Bursts on their way, to which another is added only when that is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.adding, self.may_add = threading.Event(), threading.Event()

    def append(self, burst: Any) -> None:
        self.adding.set()
        assert self.may_add.wait(60.0)
        super().append(burst)


def test_a_burst_that_comes_while_another_thread_passes_bursts_on_is_not_lost(lab: Lab) -> None:
    radio = lab.tuned(lab.alice)
    core, bursts = lab.alice.core, Slow()
    assert core is not None
    sent: list[int] = []
    core.sim.transmit_many = lambda blocks: sent.extend(b.samples.shape[1] for b in blocks) or [None] * len(blocks)
    waits_or_is_done = threading.Event()
    core.lock, core._bursts = Watched(core.lock, waits_or_is_done), bursts

    def pass_on() -> None:
        core.flush()
        waits_or_is_done.set()

    threads = [threading.Thread(target=work) for work in (lambda: core.launch(burst(), ACK), pass_on)]
    threads[0].start()
    assert bursts.adding.wait(60.0)  # the burst is on its way into the list …
    threads[1].start()
    assert waits_or_is_done.wait(60.0)  # … which the other thread takes, or waits for
    bursts.may_add.set()
    for thread in threads:
        thread.join(60.0)
    radio.now_s()  # whoever uses the device next passes on what is there
    assert sent == [N]


# ---------------------------------------------------------------- losing and closing


def test_an_unplugged_device_is_reported_and_reopened_when_it_is_back(lab: Lab) -> None:
    alice = lab.tuned(lab.alice)
    lab.alice.unplugged = True
    with pytest.raises(DeviceError, match="UHD: RuntimeError: usb rx6 transfer status"):
        alice.receive(N)
    for operation in (alice.now_s, lambda: alice.receive(N), lambda: alice.transmit(burst())):
        with pytest.raises(DeviceError, match="device was lost"):
            operation()
    alice.silence()
    with pytest.raises(DeviceError, match="no USRP answers"):
        alice.configure(SETTINGS)
    lab.alice.unplugged = False
    assert alice.configure(SETTINGS) == SETTINGS
    assert alice.receive(N).samples.shape == (1, N)


def test_close_lets_the_device_go(lab: Lab) -> None:
    alice = lab.tuned(lab.alice)
    with pytest.raises(DeviceError, match="no USRP answers"):
        lab.open(lab.alice)
    alice.transmit(burst(), alice.now_s() + LEAD_S)
    alice.close()
    assert lab.alice.core is None
    with pytest.raises(DeviceError, match="the radio is closed"):
        alice.now_s()
    assert lab.tuned(lab.alice).receive(N).samples.shape == (1, N)
