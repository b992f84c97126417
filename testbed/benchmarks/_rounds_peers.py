"""The work of a round in other ways: in as few calls of NumPy as possible, by sionna-no-rt, by HermesPy.

None of them has daemons, authenticated links, a schedule, a journal or devices.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.core.config import Experiment
from testbed.core.registry import make_stage
from testbed.core.threads import one_thread
from testbed.core.types import C64, F64, I64, SPEED_OF_LIGHT_M_S, SoundingFrame

TRAIN = 64
"""Rounds that are computed together."""
_LINKS = 4
"""Receptions of a round: Alice, Bob, and Eve twice."""
_TAPS = 48


def measured(plan: Experiment) -> list[tuple[str, float]]:
    """Return (what it is, seconds of CPU of a round) for every peer that is installed."""
    frame = make_stage("probing", plan.probing.waveform, plan.probing.waveform_options).frame(plan.radio.sample_rate_hz)
    peers: list[tuple[str, Callable[[], Callable[[], int]] | None]] = [
        ("vectorised NumPy: moving paths, fractional delays, noise, synchronisation, carrier offset",
         lambda: NumpyRounds(plan, frame).train),
        ("sionna-no-rt: block-static TDL-A, noise and estimate per subcarrier, no synchronisation",
         (lambda: _sionna(plan, frame)) if importlib.util.find_spec("sionna") else None),
        ("HermesPy: four simplex OFDM links, 5G TDL, least-squares estimate",
         (lambda: _hermes(plan, frame)) if importlib.util.find_spec("hermespy") else None),
    ]  # fmt: skip
    with one_thread():
        return [(name, _cpu_s(prepare())) for name, prepare in peers if prepare is not None]


def _cpu_s(work: Callable[[], int], n: int = 5) -> float:
    """Return the seconds of CPU of a round; `work` does some rounds and returns their number."""
    work()
    took = []
    for _ in range(n):
        began_s = time.process_time()
        rounds = work()
        took.append((time.process_time() - began_s) / rounds)
    return float(np.median(took))


class NumpyRounds:
    """Trains of rounds in as few calls of NumPy as possible, over as many moving paths as the experiment has."""

    def __init__(self, plan: Experiment, frame: SoundingFrame) -> None:
        self._plan, self._frame = plan, frame
        self._rng = np.random.default_rng(1)
        paths = 1 + (plan.scene.multipath.n_scatterers if plan.scene.multipath is not None else 0)
        rng = self._rng
        self._length_m = 40.0 + 60.0 * rng.random((_LINKS, paths))
        self._gain = (rng.standard_normal((_LINKS, paths)) + 1j * rng.standard_normal((_LINKS, paths))) / paths
        self._speed_m_s = 0.5 * rng.uniform(-1, 1, (_LINKS, paths))
        self._now = 0
        preamble = frame.samples[: frame.preamble_len]
        margin = round(2 * plan.probing.guard_s * frame.sample_rate_hz)
        self._n = frame.samples.size + margin
        self._n_fft = 1 << int(np.ceil(np.log2(self._n + _TAPS)))
        self._spectrum = np.fft.fft(frame.samples, self._n_fft)
        self._matched = np.fft.fft(preamble, self._n_fft).conj()

    def train(self) -> int:
        """Compute a train: channels, receptions, estimates; returns the number of rounds."""
        self.estimates(TRAIN)
        return TRAIN

    def estimates(self, rounds: int) -> C64:
        """Return (round, link, subcarrier) estimates of the channels, up to a delay."""
        at_s = np.asarray((self._now + np.arange(rounds)) * self._plan.probing.interval_s, np.float64)
        self._now += rounds
        offset_hz = self._rng.uniform(-2e3, 2e3, (rounds, _LINKS, 1))
        heard = self._heard(self.taps(at_s), offset_hz)
        starts, offset = self._synchronise(heard)
        return self._divide(heard, starts, offset)

    def taps(self, at_s: F64) -> C64:
        """Return (round, link, tap) of the paths at these times: a sinc at each fractional delay."""
        length_m = self._length_m + self._speed_m_s * at_s[:, None, None]
        delay = (length_m - length_m.min(axis=-1, keepdims=True)) * self._frame.sample_rate_hz / SPEED_OF_LIGHT_M_S
        turns = length_m * (self._plan.radio.carrier_hz / SPEED_OF_LIGHT_M_S) % 1.0
        weight = (self._gain * np.exp(-2j * np.pi * turns)).astype(np.complex64)
        shape = np.sinc((np.arange(_TAPS) - 8 - delay[..., None]).astype(np.float32)).astype(np.float32)
        return np.asarray((weight[..., None, :] @ shape)[..., 0, :])

    def _heard(self, taps: C64, offset_hz: F64) -> C64:
        """Return (round, link, sample) with the channel, the carrier's offset and noise at 25 dB."""
        clean = np.fft.ifft(np.fft.fft(taps, self._n_fft) * self._spectrum)[..., : self._n].astype(np.complex64)
        noise = self._rng.standard_normal((*clean.shape, 2), np.float32).view(np.complex64)[..., 0]
        turns = offset_hz / self._frame.sample_rate_hz * np.arange(self._n)
        level = np.sqrt((np.abs(clean) ** 2).mean(axis=-1, keepdims=True))
        return np.asarray(clean * np.exp(2j * np.pi * turns).astype(np.complex64) + 0.04 * level * noise)

    def _synchronise(self, heard: C64) -> tuple[I64, F64]:
        """Return the starts of the frames (round, link), and the carrier's offset in cycles per sample."""
        f = self._frame
        half, lag = f.preamble_half, f.preamble_len - f.preamble_half
        product = heard[..., : self._n - half].conj() * heard[..., half:]
        run = np.cumsum(product, axis=-1)
        metric = np.abs(run[..., lag:] - run[..., :-lag])
        match = np.abs(np.fft.ifft(np.fft.fft(heard, self._n_fft) * self._matched))[..., : metric.shape[-1]]
        last = self._n - f.samples.size
        is_preamble = metric[..., : last + 1] > 0.3 * metric.max(axis=-1, keepdims=True)
        starts = np.argmax(match[..., : last + 1] * is_preamble, axis=-1)
        sums = np.take_along_axis(run, (starts + lag - 1)[..., None], axis=-1)
        return starts, np.asarray(np.angle(sums) / (2 * np.pi * half))

    def _divide(self, heard: C64, starts: I64, offset: F64) -> C64:
        """Return (round, link, subcarrier): the mean of the symbols' spectra by the pilots."""
        f = self._frame
        first = f.preamble_len + f.n_cp - f.n_cp // 4
        at = first + np.arange(f.n_symbols)[:, None] * (f.n_cp + f.n_fft) + np.arange(f.n_fft)
        where = np.minimum(starts[..., None, None] + at, self._n - 1)
        symbols = np.take_along_axis(heard, where.reshape(*starts.shape, -1), axis=-1).reshape(where.shape)
        symbols = symbols * np.exp(-2j * np.pi * offset[..., None] * where).astype(np.complex64)
        spectra = np.fft.fft(symbols.mean(axis=-2)) / np.sqrt(f.n_fft)
        return np.asarray(spectra[..., f.bins] / f.pilots, np.complex64)


def _sionna(plan: Experiment, frame: SoundingFrame) -> Callable[[], int]:
    import torch
    from sionna.phy.channel import cir_to_ofdm_channel
    from sionna.phy.channel.tr38901 import TDL

    model = TDL("A", 100e-9, plan.radio.carrier_hz, min_speed=0.5, max_speed=0.5)
    frequencies = torch.tensor(frame.subcarrier_hz, dtype=torch.float32)
    pilots = torch.tensor(frame.pilots, dtype=torch.complex64)

    def train() -> int:
        gains, delays = model(TRAIN * _LINKS, num_time_steps=1, sampling_frequency=1 / plan.probing.interval_s)
        h = cir_to_ofdm_channel(frequencies.to(delays.dtype), gains, delays).reshape(TRAIN, _LINKS, 1, -1)
        noise = torch.randn(TRAIN, _LINKS, frame.n_symbols, pilots.numel(), dtype=torch.complex64)
        ((h * pilots + 0.05 * noise) / pilots).mean(dim=-2).numpy()
        return TRAIN

    return train


def _hermes(plan: Experiment, frame: SoundingFrame) -> Callable[[], int]:
    """Return a function that sends a frame over each link, receives it and estimates its channel.

    HermesPy has the licence AGPL: nothing but this benchmark uses it, where somebody has installed it.
    """
    from hermespy.channel import TDL, TDLType
    from hermespy.modem import (
        ElementType,
        GridElement,
        GridResource,
        OFDMWaveform,
        OrthogonalLeastSquaresChannelEstimation,
        SchmidlCoxPilotSection,
        SchmidlCoxSynchronization,
        SimplexLink,
        SymbolSection,
    )  # fmt: skip
    from hermespy.simulation import SimulatedDevice

    def link() -> tuple[Any, Any, Any]:
        ends = [
            SimulatedDevice(carrier_frequency=plan.radio.carrier_hz, bandwidth=frame.sample_rate_hz) for _ in range(2)
        ]
        pilots = [GridElement(ElementType.REFERENCE, frame.pilots.size)]
        resources = [GridResource(prefix_ratio=frame.n_cp / frame.n_fft, elements=pilots)]
        symbols = [SymbolSection(num_repetitions=frame.n_symbols, pattern=[0])]
        wave = OFDMWaveform(resources, symbols, num_subcarriers=frame.n_fft)
        wave.pilot_section = SchmidlCoxPilotSection()
        wave.synchronization = SchmidlCoxSynchronization()
        wave.channel_estimation = OrthogonalLeastSquaresChannelEstimation()
        SimplexLink(waveform=wave).connect(*ends)
        return ends[0], ends[1], TDL(TDLType.A, 100e-9)

    links = [link() for _ in range(_LINKS)]

    def one() -> int:
        for transmitter, receiver, channel in links:
            receiver.receive(channel.propagate(transmitter.transmit(), transmitter, receiver))
        return 1

    return one
