"""What a Pluto does to those who do not expect it: each guard of the driver has a test here that fails without it.

Through the real libiio, against the emulated device.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plutos import SETTINGS, emulated

from firmware_ctl.radios.pluto import Pluto
from sim_backend.emulators.pluto import EmulatedPluto
from sim_backend.emulators.pluto_tree import DAC, PHY, tone_file
from testbed.core.errors import DeviceError, DeviceTimeout
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext

pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")

N = 1024
TX_POWERDOWN = (PHY, "out_altvoltage1_TX_LO_powerdown")
TX_GAIN = (PHY, "out_voltage0_hardwaregain")
CONTEXT = DriverContext(seed=1, world=None, identity=None, state_dir=Path())


class Pair:
    """Alice's and Bob's emulated devices and drivers."""

    def __init__(self, devices: tuple[EmulatedPluto, EmulatedPluto], stack: ExitStack) -> None:
        self.alice_device, self.bob_device = devices
        self.alice = stack.enter_context(Pluto("alice", CONTEXT, uri=devices[0].uri, timeout_s=1.0))
        self.bob = stack.enter_context(Pluto("bob", CONTEXT, uri=devices[1].uri, timeout_s=1.0))

    def tuned(self) -> Pair:
        self.alice.configure(SETTINGS)
        self.bob.configure(SETTINGS)
        return self


@pytest.fixture
def pair() -> Iterator[Pair]:
    with emulated() as devices, ExitStack() as stack:
        yield Pair(devices, stack)


def tone(turns: int) -> IqBlock:
    samples = 0.9 * np.exp(2j * np.pi * turns * np.arange(N) / N)
    return IqBlock(samples.astype(np.complex64)[None, :], SETTINGS.sample_rate_hz, 0.0)


def heard(block: IqBlock, turns: int) -> float:
    """Return the share of the energy in the tone's bin."""
    spectrum = np.abs(np.fft.fft(block.samples[0, :N])) ** 2
    return float(spectrum[turns % N] / spectrum.sum())


# ---------------------------------------------------------------- stale samples


def test_one_kernel_buffer_is_asked_for(pair: Pair) -> None:
    pair.tuned().bob.receive(N)
    assert pair.bob_device.blocks_captured == 1  # the default fills four before the first is read


def test_a_reception_holds_nothing_from_before_it(pair: Pair) -> None:
    """Even on a device that queues a block as soon as it was read: the buffer is gone by then."""
    pair.tuned()
    pair.bob_device.faults.early_requeue = True
    pair.bob.receive(N)
    for turns in (100, 200, 300):
        pair.alice.transmit(tone(turns))
        assert heard(pair.bob.receive(N), turns) > 0.9


# ---------------------------------------------------------------- retuning and gains


def test_gains_survive_a_new_rate(pair: Pair) -> None:
    """A new rate resets the transmit gain, so gains go last."""
    accepted = pair.alice.configure(replace(SETTINGS, sample_rate_hz=10e6))
    assert pair.alice_device.tree.values[TX_GAIN] == "-3.000000 dB"
    assert accepted == replace(SETTINGS, sample_rate_hz=10e6)


def test_rate_then_carrier_then_gains_and_all_of_it_in_silence(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate calibrates and resets gains, a carrier calibrates: with a burst, if the transmitter is on."""
    pair.tuned().alice.transmit(tone(50))
    device, write = pair.alice_device, pair.alice_device.write_attribute
    order: list[str] = []
    radiating: list[str] = []

    def noted(key: tuple[str, str], value: str) -> None:
        kinds = {"sampling_frequency": "rate", "LO_frequency": "carrier", "hardwaregain": "gain"}
        kind = next((k for suffix, k in kinds.items() if key[1].endswith(suffix)), None)
        if kind is not None:
            order.append(kind)
            if device.tree.values[TX_POWERDOWN] != "1" or device._playing is not None:
                radiating.append(key[1])
        write(key, value)

    monkeypatch.setattr(device, "write_attribute", noted)
    pair.alice.configure(replace(SETTINGS, sample_rate_hz=10e6, carrier_hz=2.45e9))
    assert radiating == []
    assert set(order) == {"rate", "carrier", "gain"}
    assert order == sorted(order, key=["rate", "carrier", "gain"].index)


def test_receive_gain_is_what_was_asked_for(pair: Pair) -> None:
    """pyadi-iio ignores a receive gain outside manual mode without a word."""
    assert pair.bob_device.read_attribute((PHY, "in_voltage0_gain_control_mode")) == "slow_attack"
    assert pair.bob.configure(SETTINGS).rx_gain_db == 15.0
    assert pair.bob_device.read_attribute((PHY, "in_voltage0_hardwaregain")) == "15.000000 dB"


# ---------------------------------------------------------------- transmitting and falling silent


def test_a_repeated_transmission_can_be_replaced(pair: Pair) -> None:
    """A cyclic buffer must be destroyed before the next is made."""
    pair.tuned()
    for turns in (50, 150):
        pair.alice.transmit(tone(turns))
        assert heard(pair.bob.receive(N), turns) > 0.9


def test_a_frame_that_is_sent_again_needs_no_new_buffer_and_is_not_heard_in_between(pair: Pair) -> None:
    pair.tuned()
    device, open_buffer = pair.alice_device, pair.alice_device.open
    opened: list[str] = []

    def noted(which: Any, *arguments: Any) -> Any:
        opened.append(which.id)
        return open_buffer(which, *arguments)

    device.open = noted  # type: ignore[method-assign]
    for _ in range(3):
        pair.alice.transmit(tone(50))
        assert heard(pair.bob.receive(N), 50) > 0.9
        pair.alice.silence()
        assert heard(pair.bob.receive(N), 50) < 0.1
    assert opened == [DAC]
    pair.alice.transmit(tone(150))
    assert heard(pair.bob.receive(N), 150) > 0.9
    pair.alice.configure(SETTINGS)  # calibrations at a new carrier must not be sent: the buffer is closed first
    assert device._playing is None
    pair.alice.transmit(tone(150))
    assert heard(pair.bob.receive(N), 150) > 0.9
    assert opened == [DAC] * 3


@pytest.mark.parametrize("how", ["silence", "close"])
def test_the_carrier_is_switched_off_too(pair: Pair, how: str) -> None:
    pair.tuned().alice.transmit(tone(50))
    assert pair.alice_device.tree.values[TX_POWERDOWN] == "0"
    getattr(pair.alice, how)()
    assert pair.alice_device.tree.values[TX_POWERDOWN] == "1"
    assert heard(pair.bob.receive(N), 50) < 0.1


def test_closing_leaves_no_tone_at_the_next_power_up(pair: Pair) -> None:
    """Without a buffer the tone generators would be transmitted: they are set to zero."""
    pair.tuned().alice.transmit(tone(50))
    for i in range(4):
        pair.alice_device.write_attribute(tone_file(i, "scale"), "0.5")
    pair.alice.close()
    pair.alice_device.write_attribute(TX_POWERDOWN, "0")
    assert all(float(pair.alice_device.tree.values[tone_file(i, "scale")]) == 0 for i in range(4))
    block = pair.bob.receive(4096)
    assert np.abs(block.samples).max() < 0.01


def test_tones_that_others_left_are_zeroed_before_anything_is_sent(pair: Pair) -> None:
    """Between two buffers they are on the air."""
    for i in range(4):
        pair.alice_device.write_attribute(tone_file(i, "scale"), "0.5")
    pair.tuned()
    assert all(float(pair.alice_device.tree.values[tone_file(i, "scale")]) == 0 for i in range(4))


# ---------------------------------------------------------------- libiio's own


def test_a_failed_reception_does_not_keep_the_buffer(pair: Pair) -> None:
    """A reference in a traceback is enough for the next open to be refused as busy."""
    pair.tuned()
    pair.bob_device.faults.failing_reads = 1
    with pytest.raises(DeviceError) as caught:
        pair.bob.receive(N)
    assert pair.bob.receive(N).samples.shape == (1, N)
    assert caught.value.__cause__ is not None  # it still holds its traceback


def test_leaving_without_closing_neither_crashes_nor_transmits_on(pair: Pair) -> None:
    """With live buffers libiio may crash there: the last thing that happens is that they are gone."""
    script = f"""
import atexit
atexit.register(lambda: print(radio._tx_buffer, radio._rx_buffer, radio._device))  # after the driver's own
import numpy as np
from pathlib import Path
from firmware_ctl.radios.pluto import Pluto
from testbed.core.radio import RadioSettings
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext
context = DriverContext(seed=1, world=None, identity=None, state_dir=Path())
radio = Pluto("alice", context, uri="{pair.alice_device.uri}")
radio.configure(RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=0.0, rx_gain_db=0.0))
radio.transmit(IqBlock(np.ones((1, 512), np.complex64), 20e6, 0.0))
radio.receive(512)
"""
    pair.alice.close()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout.split()) == (0, ["None"] * 3), done.stderr
    assert pair.alice_device.tree.values[TX_POWERDOWN] == "1"


def test_what_does_not_end_is_given_up(pair: Pair) -> None:
    """Samples that trickle in never let libiio's own timeout strike."""
    pair.tuned()
    pair.bob_device.faults.dribble_s = 10.0
    began_s = time.monotonic()
    with pytest.raises(DeviceTimeout, match="receive"):
        pair.bob.receive(N, timeout_s=0.2)
    assert time.monotonic() - began_s < 9.0
    pair.bob_device.faults.dribble_s = 0.0
    with pytest.raises(DeviceError, match=r"configure\(\)"):
        pair.bob.receive(N)
    pair.bob.configure(SETTINGS)
    pair.alice.transmit(tone(50))
    assert heard(pair.bob.receive(N), 50) > 0.9


def test_what_was_given_up_does_nothing_when_it_returns(pair: Pair) -> None:
    """A transmission that hangs and then succeeds would leave a transmitter on."""
    pair.alice.close()
    device, play = pair.alice_device, pair.alice_device.play
    go_on = threading.Event()

    def stuck(*arguments: Any) -> None:
        go_on.wait(10.0)
        play(*arguments)

    with Pluto("carol", CONTEXT, uri=device.uri, timeout_s=1.2) as radio:  # libiio itself waits 2.4 s
        radio.configure(SETTINGS)
        (worker,) = (t for t in threading.enumerate() if t.name == "carol-libiio")
        device.play = stuck  # type: ignore[method-assign]
        with pytest.raises(DeviceTimeout, match="transmit"):
            radio.transmit(tone(50))
        go_on.set()
        worker.join(60.0)
        assert not worker.is_alive()
        assert device.tree.values[TX_POWERDOWN] == "1"
        assert radio._tx_buffer is None


def test_a_device_without_samples_is_a_timeout(pair: Pair) -> None:
    pair.tuned()
    pair.bob_device.faults.silent = True
    with pytest.raises(DeviceTimeout, match="no samples in time"):
        pair.bob.receive(N)
    pair.bob_device.faults.silent = False
    pair.bob.configure(SETTINGS)
    assert pair.bob.receive(N).samples.shape == (1, N)


def test_the_device_waits_as_long_as_the_driver(pair: Pair) -> None:
    """libiio tells the device half of the time that it is given itself."""
    assert pair.bob_device.server.timeouts_ms[-1] == 1000


def test_samples_are_not_taken_by_the_slow_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    import adi

    def slow(*_: object) -> None:
        raise AssertionError("Pluto.rx() converts every channel on its own")

    monkeypatch.setattr(adi.Pluto, "rx", slow)
    assert pair.tuned().bob.receive(N).samples.shape == (1, N)


def test_two_radios_in_one_process_are_two(pair: Pair) -> None:
    """pyadi-iio's TDD controller keeps its channels in a list of the class; nothing of that kind is used."""
    import adi

    pair.alice.configure(SETTINGS)
    pair.bob.configure(replace(SETTINGS, carrier_hz=2.5e9, tx_gain_db=-20.0))
    assert pair.alice_device.tree.values[TX_GAIN] == "-3.000000 dB"
    assert pair.bob_device.tree.values[TX_GAIN] == "-20.000000 dB"
    pair.bob.transmit(tone(50))
    assert pair.alice_device.tree.values[TX_POWERDOWN] == "1"
    assert adi.tddn.channel == []


# ---------------------------------------------------------------- who is there


def test_a_device_is_known_by_its_serial_number(pair: Pair) -> None:
    uri, serial = pair.alice_device.uri, pair.alice_device.serial
    with Pluto("carol", CONTEXT, uri=uri, serial=serial) as radio:
        assert radio.identity()["serial"] == serial
    with pytest.raises(DeviceError, match=f"{serial}.*'1234'"):
        Pluto("carol", CONTEXT, uri=uri, serial="1234")


def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        uri = f"ip:127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(DeviceError, match=r"no PlutoSDR at ip:127\.0\.0\.1.*Connection refused.*check cable"):
        Pluto("carol", CONTEXT, uri=uri)


def test_a_serial_number_alone_finds_the_device_among_those_that_answer(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    import iio

    there = {
        d.uri: f"127.0.0.1 (Analog Devices PlutoSDR), serial={d.serial}" for d in (pair.alice_device, pair.bob_device)
    }
    monkeypatch.setattr(iio, "scan_contexts", lambda: there)
    with Pluto("carol", CONTEXT, serial=pair.bob_device.serial) as radio:
        assert radio.identity()["uri"] == pair.bob_device.uri
    with pytest.raises(DeviceError, match=r"'1234' among the 2 that answer.*give its uri in \[node\.carol\.options\]"):
        Pluto("carol", CONTEXT, serial="1234")


def test_without_avahi_the_uri_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """libiio then raises what the number of Avahi's error means to the operating system: Text file busy."""
    import iio

    def scan() -> None:
        raise OSError(errno.ETXTBSY, "Text file busy")

    monkeypatch.setattr(iio, "scan_contexts", scan)
    with pytest.raises(DeviceError, match=r"'1234'.*avahi.*give its uri in \[node\.carol\.options\]") as caught:
        Pluto("carol", CONTEXT, serial="1234")
    assert "busy" not in str(caught.value)
    with pytest.raises(DeviceError, match=r"\[node\.carol\.options\]: uri = …, or serial"):
        Pluto("carol", CONTEXT)


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iio", None)
    with pytest.raises(DeviceError, match=r"apt-get install libiio0.*pylibiio==0\.25"):
        Pluto("carol", CONTEXT, uri="ip:127.0.0.1:1")


def test_ranges_are_the_devices_own() -> None:
    with emulated(model="ad9363a") as (device, _), Pluto("carol", CONTEXT, uri=device.uri) as radio:
        with pytest.raises(DeviceError, match=r"carrier_hz = 5.8e\+09, accepted 3.25e\+08 to 3.8e\+09"):
            radio.configure(replace(SETTINGS, carrier_hz=5.8e9))
        with pytest.raises(DeviceError, match="sample_rate_hz"):
            radio.configure(replace(SETTINGS, sample_rate_hz=400e3))
        assert radio.configure(replace(SETTINGS, sample_rate_hz=600e3)).sample_rate_hz == 600e3


# ---------------------------------------------------------------- unplugged


def test_a_pulled_cable_is_reported_and_a_device_that_is_back_is_used(pair: Pair) -> None:
    pair.tuned()
    pair.bob_device.faults.disconnect_reads = 1
    with pytest.raises(DeviceError, match="connection lost"):
        pair.bob.receive(N)
    pair.bob_device.server.hang_up()
    with pytest.raises(DeviceError, match=r"configure\(\)"):
        pair.bob.transmit(tone(1))
    pair.bob.configure(SETTINGS)
    pair.alice.transmit(tone(50))
    assert heard(pair.bob.receive(N), 50) > 0.9


def test_a_transmitter_is_silenced_in_spite_of_a_dropped_connection(pair: Pair) -> None:
    pair.tuned().alice.transmit(tone(50))
    pair.alice_device.server.hang_up()
    pair.alice.silence()
    assert pair.alice_device.tree.values[TX_POWERDOWN] == "1"
    assert heard(pair.bob.receive(N), 50) < 0.1
    pair.alice.silence()  # nothing is left to do


def test_a_connection_lost_in_the_middle_of_a_capture_silences_the_transmitter(pair: Pair) -> None:
    pair.tuned().alice.transmit(tone(50))
    pair.alice_device.faults.disconnect_reads = 1
    with pytest.raises(DeviceError, match=r"receive .* connection lost .* its transmitter was silenced"):
        pair.alice.receive(N)
    assert pair.alice_device.tree.values[TX_POWERDOWN] == "1"


def test_an_idle_connection_that_dropped_costs_no_configure(pair: Pair) -> None:
    pair.tuned()
    pair.alice_device.server.hang_up()
    assert pair.alice.configure(SETTINGS) == SETTINGS
    pair.alice.transmit(tone(50))
    assert heard(pair.bob.receive(N), 50) > 0.9


def test_a_device_that_was_away_is_silenced_then_used_again(pair: Pair) -> None:
    """Unplugged while it sends, back after its boot, which turns the transmitter's carrier on."""
    pair.tuned().alice.transmit(tone(50))
    was = pair.alice_device
    was.close()
    with pytest.raises(DeviceError, match="its transmitter may still be on"):
        pair.alice.receive(N)
    with pytest.raises(DeviceError, match="Connection refused"):
        pair.alice.silence()
    with pytest.raises(DeviceError, match="Connection refused"):
        pair.alice.configure(SETTINGS)
    back = EmulatedPluto("alice", was._context, cfo_ppm=0.0, port=int(was.uri.split(":")[2]))
    try:
        assert back.tree.values[TX_POWERDOWN] == "0"
        pair.alice.silence()
        assert back.tree.values[TX_POWERDOWN] == "1"
        pair.alice.configure(SETTINGS)
        pair.alice.transmit(tone(50))
        assert heard(pair.bob.receive(N), 50) > 0.9
        pair.alice.close()
        assert back.tree.values[TX_POWERDOWN] == "1"
    finally:
        back.close()


@pytest.mark.parametrize("code", ["ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ECONNRESET", "EPIPE", "ENODEV"])
def test_whatever_libiio_calls_a_lost_device_it_is_opened_anew(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    import iio

    pair.tuned()
    number = getattr(errno, code)

    def broken(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(iio.Buffer, "refill", broken)
        with pytest.raises(DeviceError, match=r"connection lost.*configure\(\)"):
            pair.bob.receive(N)
    with pytest.raises(DeviceError, match="was lost"):
        pair.bob.receive(N)
    pair.bob.configure(SETTINGS)
    assert pair.bob.receive(N).samples.shape == (1, N)


def test_a_busy_buffer_is_reported(pair: Pair) -> None:
    pair.tuned()
    pair.bob_device.faults.busy_opens = 1
    with pytest.raises(DeviceError, match="busy"):
        pair.bob.receive(N)
    assert pair.bob.receive(N).samples.shape == (1, N)


# ---------------------------------------------------------------- the TDD engine


def test_a_tdd_engine_that_was_left_enabled_is_stopped_and_one_by_its_own_library_shapes_what_is_sent() -> None:
    adi = pytest.importorskip("adi")
    with emulated(firmware="v0.39") as devices, ExitStack() as stack:
        engine = adi.tddn(devices[0].uri)
        assert [c.name for c in engine.channel[-3:]] == ["channel0", "channel1", "channel2"]
        engine.frame_length_ms = 8 * N / SETTINGS.sample_rate_hz * 1e3
        engine.channel[-2].enable = True  # the receiver's DMA waits for the frame, and nothing gives a sync signal
        engine.sync_external = True
        engine.enable = True
        assert engine.state == 1
        pair = Pair(devices, stack).tuned()
        assert not engine.enable
        assert pair.alice.identity()["tdd_engine"] is True
        assert pair.alice.receive(N).samples.shape == (1, N)
        engine.enable = True
        with pytest.raises(DeviceTimeout):
            pair.alice.receive(N, timeout_s=0.5)
        pair.alice.configure(SETTINGS)  # opens the device anew
        assert pair.alice.receive(N).samples.shape == (1, N)
        # once in each frame of eight times its length
        engine = adi.tddn(devices[0].uri)
        engine.frame_length_raw = 8 * N
        engine.channel[-1].enable = True
        engine.sync_internal = True
        engine.enable = True
        pair.alice.transmit(tone(100))
        power = np.abs(pair.bob.receive(32 * N).samples[0]) ** 2
        level = power.reshape(-1, N // 4).mean(axis=1)
        assert 0.09 < np.mean(level > level.max() / 4) < 0.19
        assert engine.burst_count == 0


def test_a_halt_does_not_wait_for_a_long_reception(pair: Pair) -> None:
    """A train's samples last up to a second, and libiio waits for all of them."""
    pair.tuned()
    pair.bob_device.faults.silent = True  # no samples come
    said: list[Exception] = []

    def receive() -> None:
        try:
            pair.bob.receive(N, timeout_s=60.0)
        except DeviceError as exc:
            said.append(exc)

    thread = threading.Thread(target=receive)
    thread.start()
    while pair.bob._rx_buffer is None:
        time.sleep(0.001)
    pair.bob.interrupt()
    thread.join()
    assert "interrupted" in str(said[0])
    pair.bob.silence()
    assert pair.bob_device.tree.values[TX_POWERDOWN] == "1"
    assert pair.bob.state != "lost"
