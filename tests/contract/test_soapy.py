"""The SoapySDR driver beyond the Radio contract: what a device says it can do, losses, its own settings, discovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from benches import SIM_SCENE, soapy_lab, soapy_loopback, soapy_radios

from firmware_ctl.radios import soapy
from testbed.core.config import Multipath, PlacedNode, ProbingPlan
from testbed.core.errors import DeviceError, LateTransmit
from testbed.core.radio import RadioSettings
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext
from testbed.lab.measure import Bench
from testbed.testing.radio import match

CONTEXT = DriverContext(seed=5, world=None, identity=None, state_dir=Path())
RATE_HZ = 20e6


def sent(n: int = 2000) -> np.ndarray[Any, Any]:
    return (0.5 * np.exp(2j * np.pi * np.random.default_rng(1).random((1, n)))).astype(np.complex64)


def test_a_device_without_transmitter_only_receives(tmp_path: Path) -> None:
    with soapy_radios(tmp_path, timed=False, arguments=",rx_only=1") as bench:
        caps = bench.radio.capabilities
        assert (caps.timed, caps.can_transmit, caps.tx_gain_db) == (False, False, (0.0, 0.0))
        bench.radio.configure(bench.settings)
        bench.other.configure(bench.settings)
        bench.other.transmit(IqBlock(sent(), RATE_HZ, 0.0))
        assert match(bench.radio.receive(4000).samples, sent())[1] > 0.7
        with pytest.raises(DeviceError, match="can only receive"):
            bench.radio.transmit(IqBlock(sent(), RATE_HZ, 0.0))


def test_what_one_end_receives_is_the_channel_that_the_other_one_receives(tmp_path: Path) -> None:
    """Through the driver, SoapySDR and the simulated air: both directions agree, and Eve, an RTL-SDR, differs."""
    echoes = Multipath(n_scatterers=40, direct_db=-200.0, room_m=[60.0, 40.0, 6.0])
    scene = msgspec.structs.replace(SIM_SCENE, eve=PlacedNode(position_m=[6.0, 12.0, 1.5]), multipath=echoes)
    settings = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=RATE_HZ, tx_gain_db=60.0, rx_gain_db=15.0)
    for timed in (True, False):
        radios_of = {"alice": "", "bob": "", "eve": ",rx_only=1"}
        with soapy_lab(tmp_path, radios_of, scene, timed, chain_ripple_db=0.0) as radios:
            for radio in radios.values():
                radio.configure(settings)
            bench = Bench(radios, dict.fromkeys(radios, settings), True, ProbingPlan())
            links = (("alice", "bob"), ("bob", "alice"), ("alice", "eve"))
            found = {pair: bench.sound(*pair).found for pair in links}
        there, back, at_eve = (f.h[0, 0] for f in found.values() if f is not None)

        def alike(x: Any, y: Any) -> float:
            return float(np.corrcoef(np.abs(x), np.abs(y))[0, 1])

        assert alike(there, back) > 0.95
        assert np.std(20 * np.log10(np.abs(there))) > 0.5  # echoes: it is a room, not a cable
        assert abs(alike(there, at_eve)) < 0.6


def test_lost_samples_are_flagged_and_shift_nothing(tmp_path: Path) -> None:
    with soapy_radios(tmp_path, arguments=",lose=3", adc_bits=24) as bench:
        for radio in (bench.radio, bench.other):
            radio.configure(bench.settings)
        wave, blocks, pair = sent(), [], (bench.other, bench.radio)
        zero_s = {radio: radio.now_s() for radio in pair}
        for k, (radio, other) in enumerate((pair, pair[::-1])):  # the first one loses nothing
            at_s = 1e-3 + 5e-3 * k
            other.transmit(IqBlock(wave, RATE_HZ, 0.0), zero_s[other] + at_s)
            other.idle_until(zero_s[other] + at_s + 2e-3)
            blocks.append(radio.receive(wave.size, zero_s[radio] + at_s))
        whole, block = blocks
        assert (whole.overflow, block.overflow) == (False, True)
        missing = np.flatnonzero(block.samples[0] == 0)
        np.testing.assert_array_equal(missing, np.arange(512, 612))  # two pieces of 256, then 100 that are gone
        for samples in (whole.samples, block.samples):
            lag, quality = match(samples[:, 650:], wave[:, 700:1900])
            assert quality > 0.6
            assert lag in (50, 51)  # Bob is 5 m away


def test_without_times_a_loss_is_flagged(tmp_path: Path) -> None:
    with soapy_radios(tmp_path, timed=False, arguments=",lose=3") as bench:
        bench.radio.configure(bench.settings)
        assert bench.radio.receive(4000).overflow


def test_what_the_device_reports_late_is_raised(tmp_path: Path) -> None:
    """A device's clock may have passed the time by when the order arrives; it says so afterwards."""
    with soapy_radios(tmp_path) as bench:
        for radio in (bench.radio, bench.other):
            radio.configure(bench.settings)
        at_s = bench.radio.now_s() + 1e-4
        bench.other.idle_until(bench.other.now_s() + 1e-2)
        with patch.object(bench.radio, "now_s", lambda: 0.0):
            bench.radio.receive(4000)  # time goes by
            with pytest.raises(LateTransmit, match="an earlier transmission failed: time error"):
                bench.radio.transmit(IqBlock(sent(), RATE_HZ, 0.0), at_s)


def test_automatic_gain_is_switched_off(tmp_path: Path) -> None:
    with soapy_radios(tmp_path) as bench:
        device: Any = bench.radio._device  # type: ignore[attr-defined]
        assert device.getGainMode(soapy_loopback().SOAPY_SDR_RX, 0)
        bench.radio.configure(bench.settings)
        assert not device.getGainMode(soapy_loopback().SOAPY_SDR_RX, 0)


def test_another_device_than_the_one_asked_for_is_refused() -> None:
    soapy_loopback()
    with patch.object(soapy, "load_soapy", soapy_loopback):
        with pytest.raises(DeviceError, match="serial number 'a' answers instead of 'b'"):
            soapy.Soapy("alice", CONTEXT, args="driver=testbed_loopback,label=a", serial="b")
        with pytest.raises(DeviceError, match=r"no device for args = 'driver=nothing'.*SoapySDR finds: "):
            soapy.Soapy("alice", CONTEXT, args="driver=nothing")
        with pytest.raises(DeviceError, match="channel = 3"):
            soapy.Soapy("alice", CONTEXT, args="driver=testbed_loopback", channel=3)


def test_devices_are_found_by_their_arguments() -> None:
    soapy_loopback()
    with patch.object(soapy, "load_soapy", soapy_loopback):
        found = soapy.Soapy.discover(["driver=testbed_loopback,label=7,rx_only=1", "ip:192.168.2.1"])
    (one,) = (f for f in found if f.serial == "7")
    assert not one.can_transmit
    assert one.options == {"args": "driver=testbed_loopback,label=7,rx_only=1", "serial": "7"}


def test_without_the_library_it_says_what_to_install() -> None:
    def missing() -> Any:
        raise ImportError("No module named 'SoapySDR'")

    with (
        patch.object(soapy, "load_soapy", missing),
        pytest.raises(DeviceError, match="apt-get install python3-soapysdr"),
    ):
        soapy.Soapy("alice", CONTEXT, args="driver=rtlsdr")
