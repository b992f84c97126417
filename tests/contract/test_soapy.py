"""The SoapySDR driver beyond the Radio contract: what a device says it can do, losses, its own settings, discovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from benches import soapy_loopback, soapy_radios

from firmware_ctl.radios import soapy
from testbed.core.errors import DeviceError, LateTransmit
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext

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
        assert np.abs(bench.radio.receive(4000).samples).mean() == pytest.approx(0.15, rel=0.05)
        with pytest.raises(DeviceError, match="can only receive"):
            bench.radio.transmit(IqBlock(sent(), RATE_HZ, 0.0))


def test_lost_samples_are_flagged_and_shift_nothing(tmp_path: Path) -> None:
    with soapy_radios(tmp_path, arguments=",lose=3") as bench:
        for radio in (bench.radio, bench.other):
            radio.configure(bench.settings)
        at_s, wave = bench.other.now_s() + 1e-3, sent()
        bench.other.transmit(IqBlock(wave, RATE_HZ, 0.0), at_s)
        block = bench.radio.receive(wave.size, at_s)
        assert block.overflow
        missing = np.flatnonzero(block.samples[0] == 0)
        np.testing.assert_array_equal(missing, np.arange(512, 612))  # two pieces of 256, then 100 that are gone
        rest = np.delete(np.arange(wave.size), missing)
        np.testing.assert_allclose(block.samples[0, rest], 0.3 * wave[0, rest], atol=1e-3)


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
