#!/usr/bin/env python3
"""Prints how many rounds are kept when two radios' crystals differ: a table by carrier, sample rate and offset in ppm.

A round is kept where both directions' frames are found: at Bob with the offset, at Alice with its opposite. Channel:
three Rayleigh paths within half a cyclic prefix; SNR 20 dB. The default waveform, or that of an experiment:

    scripts/carrier_offsets.py [--rounds 40] [EXPERIMENT.toml]

With PYTHONPATH set to the source tree of another version it measures that version, for a comparison.
"""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path

import numpy as np

from testbed.core.errors import ProbeRejected
from testbed.core.registry import make_stage
from testbed.core.types import IqBlock

CARRIERS_HZ = (433e6, 2.45e9, 5.8e9)
RATES_HZ = (1e6, 2.5e6, 4e6, 20e6)
PPM = (2, 5, 10, 20, 30, 50)
SNR_DB = 20.0


def received(samples, n_cp, cycles, rng):
    """Return (antenna, sample) a frame over a channel of its own, `cycles` per sample off the carrier, with noise."""
    taps = (rng.normal(size=(3, 2)) @ [1, 1j]) / np.sqrt(6)
    places = rng.integers(0, max(1, n_cp // 2), 3)
    out = np.zeros(samples.size + 600, complex)
    for tap, place in zip(taps, places, strict=True):
        out[300 + place : 300 + place + samples.size] += tap * samples
    power = (np.abs(out) ** 2).sum() / samples.size
    out *= np.exp(2j * np.pi * cycles * np.arange(out.size))
    noise = np.sqrt(power / 2) * 10 ** (-SNR_DB / 20)
    return (0.3 * (out + noise * (rng.normal(size=(out.size, 2)) @ [1, 1j])))[None, :].astype(np.complex64)


def kept(estimator, frame, offset_hz, n_rounds):
    """Return how many of `n_rounds` rounds are kept at a carrier offset."""
    rng = np.random.default_rng(1)
    count = 0
    for _ in range(n_rounds):
        found = 0
        for sign in (1, -1):
            cycles = sign * offset_hz / frame.sample_rate_hz
            block = IqBlock(received(frame.samples, frame.n_cp, cycles, rng), frame.sample_rate_hz, 0.0)
            try:
                found += abs(estimator.estimate(block, frame).cfo_hz - sign * offset_hz) < 0.01 * frame.sample_rate_hz
            except ProbeRejected:
                pass
        count += found == 2
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    options = {}
    if args.experiment is not None:
        options = tomllib.loads(args.experiment.read_text()).get("probing", {}).get("waveform_options", {})
    sounder, estimator = make_stage("probing", "ofdm", options), make_stage("csi", "least_squares", {})
    print(f"Rounds kept of {args.rounds}, two crystals so many ppm apart.\n")
    print("| carrier | rate | " + " | ".join(f"{p} ppm" for p in PPM) + " |")
    print("|---|---|" + "---|" * len(PPM))
    for carrier_hz in CARRIERS_HZ:
        for rate_hz in RATES_HZ:
            frame = sounder.frame(rate_hz)
            cells = [kept(estimator, frame, 1e-6 * ppm * carrier_hz, args.rounds) for ppm in PPM]
            row = " | ".join(str(n) for n in cells)
            print(f"| {carrier_hz / 1e6:g} MHz | {rate_hz / 1e6:g} MS/s | {row} |", flush=True)


if __name__ == "__main__":
    main()
