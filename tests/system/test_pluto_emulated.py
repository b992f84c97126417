"""Emulated Plutos through the real libiio, without this project's driver: as any other program may use them."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from plutos import emulated

from sim_backend.emulators.pluto import EmulatedPluto
from sim_backend.emulators.pluto_tree import PHY, REFUSALS

pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")

RATE_HZ = 4_000_000
N = 4096


@pytest.fixture
def devices() -> Iterator[tuple[EmulatedPluto, EmulatedPluto]]:
    with emulated() as both:
        yield both


@pytest.fixture
def pair(devices: tuple[EmulatedPluto, EmulatedPluto]) -> Iterator[tuple[Any, Any]]:
    """Alice and Bob on one carrier, receivers at a fixed gain."""
    import adi

    radios = []
    for device in devices:
        sdr = adi.Pluto(uri=device.uri)
        sdr.sample_rate, sdr.rx_lo, sdr.tx_lo = RATE_HZ, int(2.4e9), int(2.4e9)
        sdr.gain_control_mode_chan0, sdr.rx_hardwaregain_chan0, sdr.tx_hardwaregain_chan0 = "manual", 40, 0
        sdr.rx_buffer_size = N
        sdr._rxadc.set_kernel_buffers_count(1)
        radios.append(sdr)
    yield radios[0], radios[1]
    for sdr in radios:
        sdr.rx_destroy_buffer()
        sdr.tx_destroy_buffer()


def tone(turns: int) -> np.ndarray:
    return 2**14 * np.exp(2j * np.pi * turns * np.arange(N) / N)


def strongest(samples: np.ndarray) -> int:
    return int(np.argmax(np.abs(np.fft.fft(samples))))


def power_db(samples: np.ndarray) -> float:
    return 10 * float(np.log10(np.mean(np.abs(samples) ** 2)))


def test_blocks_that_are_sent_once_are_heard_once(pair: tuple[Any, Any]) -> None:
    alice, bob = pair
    alice.tx_cyclic_buffer = False
    for turns in (100, 900):
        alice.tx(tone(turns))
        loud, quiet = bob.rx(), bob.rx()
        bob.rx_destroy_buffer()  # what it holds is from before the next block
        assert strongest(loud) == turns
        assert power_db(quiet) < power_db(loud) - 30  # the carrier's leak is left
    alice.tx(tone(200))
    alice.tx(tone(300))  # queued behind it
    assert [strongest(bob.rx()) for _ in range(2)] == [200, 300]


def test_tones_are_heard_only_while_no_buffer_is_open(pair: tuple[Any, Any]) -> None:
    import iio

    alice, bob = pair
    for i in range(2):
        alice._txdac.find_channel(f"voltage{i}", True).enabled = True
    alice.dds_single_tone(500_000, 0.5)
    at = round(500_000 / RATE_HZ * N)
    assert strongest(bob.rx()) == at
    buffer = iio.Buffer(alice._txdac, N, False)  # alice.tx() would turn the tones off
    buffer.write(bytearray(tone(900).view(float).astype("<i2").tobytes()))
    buffer.push()
    loud, quiet = bob.rx(), bob.rx()
    assert strongest(loud) == 900
    assert power_db(quiet) < power_db(loud) - 30
    del buffer
    assert strongest(bob.rx()) == at


def test_lost_samples_are_not_reported(pair: tuple[Any, Any], devices: tuple[EmulatedPluto, EmulatedPluto]) -> None:
    alice, bob = pair
    alice.tx_cyclic_buffer = True
    alice.tx(tone(300))
    for lost in (False, True):
        devices[1].faults.overflow_probability = float(lost)
        turns = np.angle(bob.rx() * np.conj(tone(300)))
        jump = np.abs(
            np.exp(1j * turns[N // 2 - 100 : N // 2]).mean() - np.exp(1j * turns[N // 2 : N // 2 + 100]).mean()
        )
        assert (jump > 0.5) == lost  # 64 samples of 300 / 4096 turns each: 0.69 of a turn


def test_a_device_that_hangs_answers_late(pair: tuple[Any, Any], devices: tuple[EmulatedPluto, EmulatedPluto]) -> None:
    _, bob = pair
    devices[1].faults.hang_s = 0.3
    began_s = time.monotonic()
    bob.rx()
    assert time.monotonic() - began_s >= 0.3


def test_every_attribute_is_read_and_written_as_on_the_device() -> None:
    """Values that were read are written back; only attributes that the kernel's drivers protect are refused."""
    import iio

    def everything() -> Iterator[tuple[tuple[str, str], Any]]:
        for device in context.devices:
            for folder, attributes in (
                ("", device.attrs),
                ("debug/", device.debug_attrs),
                ("buffer/", device.buffer_attrs),
            ):
                yield from (((device.id, folder + name), a) for name, a in attributes.items())
            for channel in device.channels:
                yield from (((device.id, a.filename), a) for a in channel.attrs.values())

    with emulated() as (device, _):
        context = iio.Context(device.uri)
        refused, read_only, seen = {}, {}, 0
        for key, attribute in everything():
            seen += 1
            try:
                value = attribute.value
            except OSError as exc:
                refused[key] = exc.errno
                continue
            assert value
            try:
                attribute.value = value
            except OSError as exc:
                read_only[key] = exc.errno
            else:
                assert attribute.value == value
        assert refused == REFUSALS
        assert seen == 340
        measured = ("_available", "_rates", "_rssi", "_input", "_raw", "_scale", "_offset")
        assert not {
            key for key, number in read_only.items() if number == errno.EACCES and not key[1].endswith(measured)
        }
        assert {key: number for key, number in read_only.items() if number != errno.EACCES} == {
            (PHY, "filter_fir_config"): errno.EINVAL,  # a summary is read, a filter is written
            (PHY, "in_voltage0_hardwaregain"): errno.EOPNOTSUPP,  # automatic
        }
        phy = context.find_device("ad9361-phy")
        phy.attrs["multichip_sync"].value = "1"
        lo = phy.find_channel("RX_LO", True)
        with pytest.raises(OSError, match="Invalid argument"):
            lo.attrs["fastlock_recall"].value = "3"
        lo.attrs["fastlock_store"].value = "3"
        lo.attrs["frequency"].value = "2500000000"
        lo.attrs["fastlock_recall"].value = "3"
        assert (lo.attrs["fastlock_recall"].value, lo.attrs["frequency"].value) == ("3", "2400000000")
        with pytest.raises(OSError, match="Invalid argument"):
            phy.attrs["ensm_mode"].value = "asleep"
