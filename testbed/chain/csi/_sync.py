"""What every estimator needs first: find the frame, measure carrier offset and noise, and divide by the pilots.

Steps: (1) sliding correlation of the received samples with themselves one period later, over the preamble (Schmidl and
Cox, IEEE Trans. Commun. 45(12), 1997) and over the repeated symbols; (2) carrier offset from the preamble's halves;
(3) cross-correlation with the known preamble, and the position whose cyclic prefix catches most of its energy;
(4) carrier offset from the repeated symbols, made unambiguous by (2); (5) FFT of all symbols, least squares over what
repeats, noise from what does not; (6) arrival time from the phase slope over frequency.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.core.errors import ProbeRejected, Reject
from testbed.core.types import F64, I64, CsiFrame, IqBlock, SoundingFrame

C128 = NDArray[np.complex128]

CLIP_LEVEL = 0.999
_PREAMBLE_MATCH = 0.6
"""Coherence demanded between the received preamble and the one predicted from the symbols' estimate. A frame at 0 dB
gives 0.73; of 32 random bins one in 10⁶ gives more than 0.6."""
_SIGMAS = 5.0
"""A self-correlation of n noise samples exceeds 5/√n with probability e⁻²⁵."""
_DC_RESIDUE = 1e-3
"""DC expected to be left after the block's mean is taken off, relative to the signal's power."""


@dataclass(frozen=True, slots=True)
class Sounding:
    """A frame that was found and passed all checks."""

    h: C128
    """(rx antenna, subcarrier) least-squares estimate, delays relative to `time_s`."""
    h_noise: F64
    """(rx antenna,) variance of `h`: σ² / (n_symbols · |pilot|²), mean over subcarriers."""
    snr_db: F64
    """(subcarrier,) of one symbol, averaged over antennas."""
    cfo_hz: float
    time_s: float
    rssi_dbfs: float

    def csi(self, h: C128, subcarrier_hz: F64) -> CsiFrame:
        """Return the frame's CSI with channel `h` (rx antenna, subcarrier)."""
        return CsiFrame(
            h=h[:, None, :].astype(np.complex64),
            subcarrier_hz=subcarrier_hz,
            snr_db=self.snr_db,
            cfo_hz=self.cfo_hz,
            time_s=self.time_s,
            rssi_dbfs=self.rssi_dbfs,
        )


class Synchroniser:
    """Finds frames in blocks. Holds what it derived from the last frame design; not for use by several threads.

    min_snr_db: mean SNR of one symbol over the subcarriers below which a probe is LOW_SNR.
    clip_fraction: share of the frame's samples at |I| or |Q| ≥ 0.999 above which it is CLIPPED.
    detection_threshold: self-correlation coefficient (0 to 1, about SNR/(1 + SNR) over the sampled band) below which
      there is NO_PREAMBLE; raised where the block holds too few samples for it to mean anything.
    max_cfo_hz: carrier offsets beyond are CFO_RANGE. None: all that the preamble can tell apart, ±rate/(2·half).
    """

    def __init__(
        self, min_snr_db: float, clip_fraction: float, detection_threshold: float, max_cfo_hz: float | None
    ) -> None:
        if not -20 <= min_snr_db <= 60:
            raise ValueError(f"min_snr_db = {min_snr_db}, accepted: −20 to 60")
        if not 0 <= clip_fraction <= 1:
            raise ValueError(f"clip_fraction = {clip_fraction}, accepted: 0 to 1")
        if not 0 < detection_threshold < 1:
            raise ValueError(f"detection_threshold = {detection_threshold}, accepted: between 0 and 1")
        if max_cfo_hz is not None and not max_cfo_hz > 0:
            raise ValueError(f"max_cfo_hz = {max_cfo_hz}, accepted: > 0, or none for the preamble's range")
        self.min_snr_db, self.clip_fraction = min_snr_db, clip_fraction
        self.detection_threshold, self.max_cfo_hz = detection_threshold, max_cfo_hz
        self._plan: _Plan | None = None

    def plan(self, frame: SoundingFrame) -> _Plan:
        """Return what is derived from a frame's design, made once as long as the same object comes."""
        if self._plan is None or self._plan.frame is not frame:
            self._plan = _Plan(frame)
        return self._plan

    def sound(self, block: IqBlock, frame: SoundingFrame) -> Sounding:
        """Find the frame in `block.samples` (antenna, sample) and estimate the channel by least squares.

        Raises ProbeRejected with the reason, ValueError where block and frame differ in sample rate.
        """
        if block.sample_rate_hz != frame.sample_rate_hz:
            raise ValueError(f"block at {block.sample_rate_hz:g} Hz, frame at {frame.sample_rate_hz:g} Hz")
        if block.overflow:
            raise ProbeRejected(Reject.OVERFLOW, "the device lost samples in this block")
        plan = self.plan(frame)
        raw = np.ascontiguousarray(block.samples, dtype=np.complex64)
        n = raw.shape[1]
        if n < plan.frame_len:
            raise ProbeRejected(Reject.TRUNCATED, f"{n} samples cannot hold a frame of {plan.frame_len}")
        y = raw.astype(np.complex128)
        y -= y.sum(axis=1, keepdims=True) / n

        coarse = self._detect(y, plan, raw)
        coarse_cfo = _half_period_cfo(y, plan, coarse)
        start = _fine_start(y, plan, coarse, coarse_cfo)
        end = start + plan.frame_len
        self._check_clipping(raw[:, max(start, 0) : end])
        if start + plan.n_cp < 0 or end > n:
            raise ProbeRejected(Reject.TRUNCATED, f"frame at samples {start} to {end} of a block of {n}")

        cfo, turn, spectra = _spectra(y, plan, start, coarse_cfo)
        match = _preamble_match(spectra, plan)
        if match < _PREAMBLE_MATCH:
            self._check_cfo_range(y, plan, coarse, coarse_cfo)
            raise ProbeRejected(Reject.NO_PREAMBLE, f"what repeats is not the expected waveform (match {match:.2f})")

        received = np.take(spectra[:, 1:], plan.bins, axis=2)  # (antenna, symbol, subcarrier)
        mean, noise = _repeating(received)
        received -= _dc_leak(spectra[:, 1:], mean, noise, turn, plan)
        mean, noise = _repeating(received)
        signal = _power(mean) - noise[:, None] / plan.n_symbols
        snr = (signal / noise[:, None]).sum(axis=0) / len(y)  # (subcarrier,)
        mean_snr_db = 10 * math.log10(max(float(snr.sum()) / snr.size, 1e-6))
        if mean_snr_db < self.min_snr_db:
            raise ProbeRejected(Reject.LOW_SNR, f"{mean_snr_db:.1f} dB, accepted from {self.min_snr_db:g} dB")
        cfo_hz = cfo * frame.sample_rate_hz
        if self.max_cfo_hz is not None and abs(cfo_hz) > self.max_cfo_hz:
            raise ProbeRejected(Reject.CFO_RANGE, f"{cfo_hz:.0f} Hz, accepted ±{self.max_cfo_hz:.0f} Hz")

        h = mean / plan.symbol
        share = _delay_share(h, plan)
        if share < plan.min_delay_share:
            raise ProbeRejected(
                Reject.NO_PREAMBLE,
                f"{share:.0%} of the channel's energy within the cyclic prefix, needs {plan.min_delay_share:.0%}",
            )
        delay = _mean_delay(h, plan)
        if not -0.5 <= start + delay <= n - plan.frame_len + 0.5:
            raise ProbeRejected(
                Reject.TRUNCATED,
                f"frame starts at sample {start + delay:.1f}, accepted 0 to {n - plan.frame_len}",
            )
        h *= np.exp(2j * np.pi * delay * (plan.bins / plan.n_fft + cfo))
        power = float(_energy(y[:, max(start, 0) : end]).sum()) / (len(y) * (end - max(start, 0)))
        return Sounding(
            h=h,
            h_noise=noise / plan.n_symbols * plan.inverse_power,
            snr_db=10 * np.log10(np.maximum(snr, 1e-3)),
            cfo_hz=cfo_hz,
            time_s=block.time_s + (start + delay) / frame.sample_rate_hz,
            rssi_dbfs=10 * math.log10(power + 1e-30),
        )

    def _detect(self, y: C128, plan: _Plan, raw: NDArray[np.complex64]) -> int:
        """Return the sample at which preamble and symbols, taken together, repeat best."""
        n = y.shape[1]
        # A frame that runs out of the block must be seen to do so, hence candidates up to the last whole preamble.
        y = np.concatenate([y, np.zeros((y.shape[0], plan.frame_len - plan.preamble_len))], axis=1)
        n_starts = n - plan.preamble_len + 1
        halves = _sliding(y, plan.half, plan.preamble_len - plan.half, 0, n_starts)
        symbols = _sliding(y, plan.step, plan.symbols_len - plan.step, plan.preamble_len, n_starts)
        start = int(np.argmax(np.abs(halves) + np.abs(symbols)))

        most = float((_power(y[:, start : start + plan.frame_len]) @ plan.detection_share).sum())
        coefficient = float(abs(halves[start]) + abs(symbols[start])) / max(most, 1e-30)
        symbols_seen = min(plan.symbols_len, n - start - plan.preamble_len)
        n_products = len(y) * (plan.preamble_len - plan.half + max(0, symbols_seen - plan.step))
        threshold = max(self.detection_threshold, min(_SIGMAS / math.sqrt(n_products), 0.9))
        if not coefficient >= threshold:
            self._check_clipping(raw)
            raise ProbeRejected(Reject.NO_PREAMBLE, f"self-correlation {coefficient:.2f}, needs {threshold:.2f}")
        return start

    def _check_clipping(self, samples: NDArray[np.complex64]) -> None:
        """Raise CLIPPED where too many of (antenna, sample) are at full scale."""
        parts = np.ascontiguousarray(samples).view(np.float32)
        if parts.max() < CLIP_LEVEL and parts.min() > -CLIP_LEVEL:
            return
        clipped = np.maximum(np.abs(samples.real), np.abs(samples.imag)) >= CLIP_LEVEL
        share = np.count_nonzero(clipped) / clipped.size
        if share > self.clip_fraction:
            raise ProbeRejected(
                Reject.CLIPPED, f"{share:.2%} of the samples at full scale, accepted {self.clip_fraction:.2%}"
            )

    def _check_cfo_range(self, y: C128, plan: _Plan, coarse: int, coarse_cfo: float) -> None:
        """Raise CFO_RANGE where the frame fits at a carrier offset that looks the same to the preamble's halves."""
        for turns in (-1, 1, -2, 2):
            cfo = coarse_cfo + turns / plan.half
            start = _fine_start(y, plan, coarse, cfo)
            if start + plan.n_cp < 0 or start + plan.frame_len > y.shape[1]:
                continue
            cfo, _, spectra = _spectra(y, plan, start, cfo)
            h = spectra[:, 1:].sum(axis=1)[:, plan.bins] / plan.symbol
            if _preamble_match(spectra, plan) >= _PREAMBLE_MATCH and _delay_share(h, plan) >= plan.min_delay_share:
                cfo_hz, limit_hz = cfo * plan.frame.sample_rate_hz, plan.frame.sample_rate_hz / (2 * plan.half)
                raise ProbeRejected(Reject.CFO_RANGE, f"{cfo_hz:.0f} Hz, accepted ±{limit_hz:.0f} Hz")


class _Plan:
    """What follows from a frame's design alone."""

    def __init__(self, frame: SoundingFrame) -> None:
        self.frame = frame
        self.n_fft, self.n_cp, self.n_symbols = frame.n_fft, frame.n_cp, frame.n_symbols
        self.half, self.preamble_len = frame.preamble_half, frame.preamble_len
        self.step = frame.n_cp + frame.n_fft
        self.symbols_len = frame.n_symbols * self.step
        self.frame_len = frame.samples.size
        self.bins: I64 = frame.bins
        self.subcarrier_hz: F64 = frame.subcarrier_hz
        if self.frame_len != self.preamble_len + self.symbols_len or self.preamble_len < self.n_fft:
            raise ValueError("the frame's parts do not add up to its length")
        if not 0 < 2 * self.n_cp <= self.n_fft:
            raise ValueError(
                f"cyclic prefix of {self.n_cp} samples, accepted: up to half the symbol, {self.n_fft // 2}"
            )

        samples = frame.samples.astype(np.complex128)
        # Windows begin where the earliest path's cyclic prefix ends: any path up to n_cp later is still inside its own.
        first = self.preamble_len + self.n_cp + self.step * np.arange(self.n_symbols)
        self.firsts = np.concatenate([[self.preamble_len - self.n_fft], first])
        self.windows = self.firsts[:, None] + np.arange(self.n_fft)  # (part, sample) from the frame's start

        # How often each sample enters the products of the detection, halved: Σ|a||b| ≤ Σ(|a|² + |b|²)/2.
        self.detection_share = np.zeros(self.frame_len)
        for first_part, stop, lag in (
            (0, self.preamble_len, self.half),
            (self.preamble_len, self.frame_len, self.step),
        ):
            self.detection_share[first_part : stop - lag] += 0.5
            self.detection_share[first_part + lag : stop] += 0.5

        # Reach of the fine search around the coarse start; the preamble resembles itself again one half away.
        self.reach = self.n_cp + self.half // 4
        self.fine_len = _good_length(2 * self.reach + self.preamble_len)
        self.fine_index = np.arange(self.fine_len)
        self.preamble_conj = np.conj(np.fft.fft(samples[: self.preamble_len], self.fine_len))

        preamble, symbol = np.fft.fft(samples[self.windows[:2]], axis=1)
        self.symbol = symbol[self.bins]
        self.inverse_power = float(np.mean(1 / _power(self.symbol)))
        carried = np.abs(preamble[self.bins]) > 0.1 * np.abs(preamble[self.bins]).max()
        self.even: I64 = self.bins[carried]
        self.preamble_over_symbol = preamble[self.even] / symbol[self.even]

        # A channel fits into the cyclic prefix; what a carrier or another waveform seems to be spreads over all delays.
        delays = np.arange(self.n_cp + 1)
        self.to_delays = np.exp(2j * np.pi / self.n_fft * np.outer(self.bins, delays)) / np.sqrt(self.n_fft)
        one_path = np.exp(-2j * np.pi / self.n_fft * self.bins * (self.n_cp // 2))
        one_path_share = float(_power(one_path @ self.to_delays).sum()) / self.bins.size
        self.min_delay_share = (one_path_share + delays.size / self.n_fft) / 2
        self.neighbours = np.flatnonzero(np.diff(self.bins) == 1)


def _good_length(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _sliding(y: C128, lag: int, width: int, offset: int, n: int) -> C128:
    """Return (n,) Σ over antennas and `width` samples of conj(y[i])·y[i + lag], i from offset + 0 … offset + n − 1."""
    products = np.conj(y[:, offset : y.shape[1] - lag]) * y[:, offset + lag :]
    total = np.empty(products.shape[1] + 1, dtype=np.complex128)
    total[0] = 0
    np.cumsum(products[0] if len(products) == 1 else products.sum(axis=0), out=total[1:])
    return total[width : width + n] - total[:n]


def _half_period_cfo(y: C128, plan: _Plan, start: int) -> float:
    """Return the carrier offset in cycles per sample from the preamble's halves; unambiguous within ±1/(2·half)."""
    a = y[:, start : start + plan.preamble_len]
    return cmath.phase(np.vdot(a[:, : -plan.half], a[:, plan.half :])) / (2 * np.pi * plan.half)


def _fine_start(y: C128, plan: _Plan, coarse: int, cfo: float) -> int:
    """Return the start for which most of the channel's energy arrives within one cyclic prefix after it."""
    first = coarse - plan.reach
    stop = first + 2 * plan.reach + plan.preamble_len
    segment = y[:, max(first, 0) : stop]
    if segment.shape[1] < stop - first:
        before = max(-first, 0)
        segment = np.pad(segment, ((0, 0), (before, stop - first - before - segment.shape[1])))
    segment = segment * np.exp((-2j * np.pi * cfo) * plan.fine_index[: stop - first])
    spectrum = np.fft.fft(segment, plan.fine_len, axis=1) * plan.preamble_conj
    correlation = np.fft.ifft(spectrum, axis=1)[:, : 2 * plan.reach + 1]
    energy = np.cumsum(_power(correlation).sum(axis=0))
    inside = energy[plan.n_cp :] - energy[: -plan.n_cp]
    # The maximum is flat for a short channel; its middle moves less with the noise than its top.
    best = np.flatnonzero(inside >= 0.995 * inside.max())
    return first + 1 + round(float(best[0] + best[-1]) / 2)


def _spectra(y: C128, plan: _Plan, start: int, coarse_cfo: float) -> tuple[float, _Turns, C128]:
    """Return the carrier offset in cycles per sample, its correction, and the corrected (antenna, part, bin).

    Part 0 is the preamble. The offset comes from the repeated symbols, unwrapped by the coarse one.
    """
    windows = y[:, start + plan.windows]
    turn = cmath.phase(np.vdot(windows[:, 1:-1], windows[:, 2:])) / (2 * np.pi)
    cfo = (turn + round(coarse_cfo * plan.step - turn)) / plan.step
    rate = -2j * np.pi * cfo
    turns = _Turns(np.exp(rate * plan.firsts), np.exp(rate * plan.fine_index[: plan.n_fft]))
    return cfo, turns, np.fft.fft(windows * (turns.parts[:, None] * turns.samples), axis=2)


def _preamble_match(spectra: C128, plan: _Plan) -> float:
    """Return the coherence, −1 to 1, of the received preamble with the one predicted from the symbols' channel."""
    got = np.take(spectra[:, 0], plan.even, axis=1, mode="wrap")
    expected = np.take(spectra[:, 1:].sum(axis=1), plan.even, axis=1, mode="wrap") * plan.preamble_over_symbol
    energy = float(np.vdot(got, got).real * np.vdot(expected, expected).real)
    return float(np.vdot(expected, got).real) / math.sqrt(energy + 1e-60)


@dataclass(frozen=True, slots=True)
class _Turns:
    """exp(−2πi·cfo·n) for n = plan.windows, as factors: `parts[:, None] * samples`."""

    parts: C128
    samples: C128


def _power(a: C128) -> F64:
    return a.real**2 + a.imag**2


def _energy(a: C128) -> F64:
    """Return (first axis,) the sum of |a|² over all other axes."""
    return np.array([np.vdot(x, x).real for x in a])


def _repeating(received: C128) -> tuple[C128, F64]:
    """Return the mean over the symbols of (antenna, symbol, subcarrier) and the noise power on a bin of one symbol.

    The noise (antenna,) is what does not repeat; it is never zero, since samples are float32.
    """
    n_symbols, n_bins = received.shape[1:]
    mean = received.sum(axis=1) / n_symbols
    common = _energy(mean)
    noise = (_energy(received) - n_symbols * common) / ((n_symbols - 1) * n_bins)
    return mean, np.maximum(noise, 1e-12 / n_bins * common + 1e-30)


def _dc_leak(spectra: C128, mean: C128, noise: F64, turn: _Turns, plan: _Plan) -> C128:
    """Return what is left of a receiver's DC offset on the used bins, (antenna, symbol, subcarrier).

    The block's mean was taken off before, but that takes some signal with it: once a carrier offset shifts it, the
    frame's mean is not zero. After correction DC sits at −cfo and turns from symbol to symbol, so that it can be told
    from the signal by the bins without pilots and by what does not repeat. Linear MMSE: where it hides behind the
    signal (a few carrier offsets at which it repeats too) and the noise is strong, less is taken off.
    """
    shape = np.fft.fft(turn.samples)
    parts = turn.parts[1:]
    common, used = parts.sum() / plan.n_symbols, shape[plan.bins]
    # Least squares: DC's pattern less the part of it that looks like signal (repeating, on used bins).
    score = (spectra @ np.conj(shape)) @ np.conj(parts) - plan.n_symbols * np.conj(common) * (mean @ np.conj(used))
    share = plan.n_symbols * (plan.n_fft**2 - abs(common) ** 2 * float(_power(used).sum()))
    expected = _DC_RESIDUE * _energy(mean) / plan.n_fft**2
    offset = score / (share + noise / (expected + 1e-30))
    return offset[:, None, None] * (parts[:, None] * used)


def _delay_share(h: C128, plan: _Plan) -> float:
    """Return the share of the channel's energy that arrives within one cyclic prefix."""
    return float(_energy(h @ plan.to_delays).sum() / (_energy(h).sum() + 1e-60))


def _mean_delay(h: C128, plan: _Plan) -> float:
    """Return the channel's mean delay in samples after the FFT window's start, from the mean phase step over frequency.

    Weighted by power: the position of a single path exactly, the centre of gravity of several. Unlike the first or the
    strongest path it does not jump between paths when noise changes, so both ends of a link see the same one.
    """
    a, b = h[:, plan.neighbours], h[:, plan.neighbours + 1]
    return -cmath.phase(np.vdot(a, b)) * plan.n_fft / (2 * np.pi)
