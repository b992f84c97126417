"""Frequency corrections: the settings a driver gets, the reported values, their origin; crystals by least squares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim_backend.local import world_in_thread
from sim_backend.radio import SimRadio
from testbed.core.config import Multipath, PlacedNode, Scene
from testbed.core.errors import DeviceError
from testbed.core.radio import RadioSettings
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext
from testbed.lab.measure import crystals_ppm
from testbed.nodes import calibration
from testbed.nodes.calibration import Calibration

SCENE = Scene(
    alice=PlacedNode(position_m=[2.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[9.0, 8.0, 1.5]),
    multipath=Multipath(n_scatterers=0, direct_db=0.0),
)
SETTINGS = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=4e6, tx_gain_db=0.0, rx_gain_db=20.0)


def offset_hz(correction_ppm: float) -> float:
    """Return the carrier offset that Bob hears of Alice, whose crystal is 12 ppm fast and corrected by so much."""
    with world_in_thread(SCENE, seed=3) as endpoint:
        radios = []
        for name, ppm in (("alice", 12.0), ("bob", 0.0)):
            context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=Path())
            options = {"cfo_ppm": ppm, "clock_ppm": 0.0, "phase_noise_linewidth_hz": 0.0}
            radios.append(SimRadio(name, context, timed=False, **options))
        alice, bob = radios
        alice.correction_ppm = correction_ppm
        assert alice.configure(SETTINGS) == SETTINGS  # the frequency on the air, not the corrected setting
        bob.configure(SETTINGS)
        n = 16384
        alice.transmit(IqBlock(np.full((1, n), 0.5, np.complex64), 4e6, 0.0))
        heard = bob.receive(n).samples[0]
        for radio in radios:
            radio.close()
    spectrum = np.abs(np.fft.fft(heard * np.hanning(n), 8 * n))
    return float(np.fft.fftfreq(8 * n, 1 / 4e6)[np.argmax(spectrum)])


@pytest.mark.parametrize(("ppm", "left_hz"), [(0.0, 28800.0), (12.0, 0.0), (10.0, 4800.0), (-20.0, 76800.0)])
def test_a_correction_is_taken_out_of_the_carrier(ppm: float, left_hz: float) -> None:
    assert offset_hz(ppm) == pytest.approx(left_hz, abs=150)


def measured(ppm: float | None) -> Calibration:
    return Calibration(serial="1", measured_at="now", settings={}, virtual=False, correction_ppm=ppm)


@pytest.mark.parametrize(
    ("given", "stored", "ppm", "source"),
    [
        (None, None, 0.0, "none"),
        (None, measured(None), 0.0, "none"),
        (None, measured(-3.5), -3.5, "doctor"),
        (2.0, measured(-3.5), 2.0, "lab"),
        (0.0, measured(-3.5), 0.0, "lab"),
    ],
)
def test_what_the_lab_file_gives_counts_before_what_was_measured(
    given: float | None, stored: Calibration | None, ppm: float, source: str
) -> None:
    class Radio:
        correction_ppm = 7.0

    radio = Radio()
    said = calibration.correct(radio, given, stored)  # type: ignore[arg-type]
    assert radio.correction_ppm == ppm
    assert said == {"correction_ppm": ppm, "correction_from": source}


def test_crystals_are_distinguished_by_their_links() -> None:
    true = {"alice": 12.0, "bob": -8.0, "eve": 20.0, "far": 1.0, "away": 2.0}
    pairs = [("alice", "bob"), ("bob", "alice"), ("bob", "eve"), ("far", "away")]
    found = crystals_ppm({(tx, rx): true[tx] - true[rx] for tx, rx in pairs}, "alice")
    assert found == pytest.approx({"alice": 0.0, "bob": -20.0, "eve": 8.0})
    assert crystals_ppm({}, "alice") == {}


def test_a_radio_that_can_only_receive_says_so() -> None:
    with world_in_thread(SCENE, seed=3) as endpoint:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=Path())
        with SimRadio("alice", context, timed=False, receive_only=True) as radio:
            assert not radio.capabilities.can_transmit
            radio.configure(replace(SETTINGS, tx_gain_db=99.0))  # it has no such gain
            assert radio.receive(256).samples.shape == (1, 256)
            with pytest.raises(DeviceError, match="can only receive: accepted as Eve's"):
                radio.transmit(IqBlock(np.zeros((1, 16), np.complex64), 4e6, 0.0))
            radio.silence()
