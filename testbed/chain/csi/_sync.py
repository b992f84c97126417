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
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from testbed.core.errors import ProbeRejected, Reject
from testbed.core.options import StageOptions
from testbed.core.types import F64, I64, AntennaFrame, CsiFrame, IqBlock, SoundingFrame

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
    start: int
    """Sample of the block at which the earliest path's frame begins."""
    delay: float
    """Of the power-weighted mean path after `start`, in samples."""

    def csi(self, h: C128, subcarrier_hz: F64) -> CsiFrame:
        """Return the frame's CSI with channel `h` (rx antenna, subcarrier) or (rx antenna, tx antenna, subcarrier)."""
        return CsiFrame(
            h=(h[:, None, :] if h.ndim == 2 else h).astype(np.complex64),
            subcarrier_hz=subcarrier_hz,
            snr_db=self.snr_db,
            cfo_hz=self.cfo_hz,
            time_s=self.time_s,
            rssi_dbfs=self.rssi_dbfs,
        )


class SyncOptions(StageOptions):
    """What all estimators share: which probes they reject."""

    min_snr_db: Annotated[float, Meta(ge=-20, le=60)] = 3.0
    """Mean SNR of one symbol over the subcarriers below which a probe is rejected as LOW_SNR."""
    clip_fraction: Annotated[float, Meta(ge=0, le=1)] = 0.001
    """Share of the frame's samples with |I| or |Q| ≥ 0.999 above which it is rejected as CLIPPED."""
    detection_threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    """Self-correlation coefficient, about SNR/(1 + SNR) over the sampled band, below which there is NO_PREAMBLE; raised
    where the block holds too few samples for it to mean anything."""
    max_cfo_hz: Annotated[float, Meta(gt=0)] | None = None
    """Carrier offset beyond which a probe is rejected as CFO_RANGE; none: all that the preamble can tell apart,
    ±rate/(2·preamble_half)."""


class Synchroniser:
    """Finds frames in blocks. Holds what it derived from the last frame design; not for use by several threads."""

    def __init__(self, options: SyncOptions) -> None:
        self.min_snr_db, self.clip_fraction = options.min_snr_db, options.clip_fraction
        self.detection_threshold, self.max_cfo_hz = options.detection_threshold, options.max_cfo_hz
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
        # A frame that runs out of the block must be seen to do so, hence zeros for what would follow.
        y = np.zeros((raw.shape[0], n + plan.frame_len - plan.preamble_len), dtype=np.complex128)
        np.subtract(raw, raw.sum(axis=1, keepdims=True, dtype=np.complex128) / n, out=y[:, :n])

        coarse = self._detect(y, n, plan, raw)
        coarse_cfo = _half_period_cfo(y, plan, coarse)
        start = _fine_start(y, plan, coarse, coarse_cfo)
        end = start + plan.frame_len
        self._check_clipping(raw[:, max(start, 0) : end])
        if start + plan.first < 0 or start + plan.n_cp < 0 or end > n:
            raise ProbeRejected(Reject.TRUNCATED, f"frame at samples {start} to {end} of a block of {n}")

        cfo, dc, spectra = _spectra(y, plan, start, coarse_cfo)
        symbols = spectra[:, 1:]
        total = symbols.sum(axis=1)  # (antenna, bin)
        match = _preamble_match(spectra[:, 0], total, plan)
        if match < _PREAMBLE_MATCH:
            self._check_cfo_range(y, n, plan, coarse, coarse_cfo)
            raise ProbeRejected(Reject.NO_PREAMBLE, f"what repeats is not the expected waveform (match {match:.2f})")

        mean, noise = _repeating(symbols[:, :, plan.used], total[:, plan.used] / plan.n_symbols, dc, plan)
        snr = (_power(mean) / noise[:, None] - 1 / plan.n_symbols).sum(axis=0) / len(y)  # (subcarrier,)
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
        h *= np.exp((2j * np.pi * delay) * (plan.cycles + cfo))
        power = float(_energy(y[:, max(start, 0) : end]).sum()) / (len(y) * (end - max(start, 0)))
        return Sounding(
            h=h,
            h_noise=noise / plan.n_symbols * plan.inverse_power,
            snr_db=10 * np.log10(np.maximum(snr, 1e-3)),
            cfo_hz=cfo_hz,
            time_s=block.time_s + (start + delay) / frame.sample_rate_hz,
            rssi_dbfs=10 * math.log10(power + 1e-30),
            start=start,
            delay=delay,
        )

    def sound_antennas(self, block: IqBlock, frame: AntennaFrame) -> Sounding:
        """Find the frame by the first antenna's section, then estimate every antenna by its own.

        `h` is (rx antenna, tx antenna, subcarrier). Raises what `sound` raises, TRUNCATED for a later section too.
        """
        n_antennas, n_symbols, plan = frame.n_antennas, frame.frame.n_symbols, self.plan(frame.frame)
        raw = np.ascontiguousarray(block.samples, dtype=np.complex64)
        later = (n_antennas - 1) * frame.stride
        if raw.shape[1] < plan.frame_len + later:
            raise ProbeRejected(
                Reject.TRUNCATED, f"{raw.shape[1]} samples cannot hold {n_antennas} antennas' {plan.frame_len + later}"
            )
        # the first section is where the others still fit behind it
        found = self.sound(replace(block, samples=raw[:, : raw.shape[1] - later]), frame.frame)
        self._check_clipping(raw[:, max(found.start, 0) :])
        firsts = plan.parts[1:] + frame.stride * np.arange(n_antennas)[:, None]  # (antenna, symbol), after the start
        index = found.start + firsts[:, :, None] + plan.samples
        y = raw - raw.mean(axis=1, keepdims=True, dtype=np.complex128)
        windows = y[:, index]
        # one oscillator serves all antennas: whatever repeats within their sections tells its offset
        turn = cmath.phase(np.vdot(windows[:, :, :-1], windows[:, :, 1:])) / (2 * np.pi)
        cfo = found.cfo_hz / frame.frame.sample_rate_hz
        cfo = (turn + round(cfo * plan.step - turn)) / plan.step
        turns = _phasors(cfo, firsts.ravel()).reshape(n_antennas, n_symbols)
        within = _phasors(cfo, plan.samples)
        spectra = np.fft.fft(windows * within * turns[:, :, None], axis=-1)[..., plan.used]
        h = np.empty((len(raw), n_antennas, plan.used.size), dtype=np.complex128)
        noises, snr = [], np.zeros(plan.used.size)
        for m in range(n_antennas):
            dc = _Dc(turns[m], np.fft.fft(within), windows[:, m].sum(axis=(1, 2)))
            mean, noise = _repeating(spectra[:, m], spectra[:, m].mean(axis=1), dc, plan)
            h[:, m] = mean / plan.symbol
            noises.append(noise)
            snr += (_power(mean) / noise[:, None] - 1 / n_symbols).mean(axis=0) / n_antennas
        h *= np.exp((2j * np.pi * found.delay) * (plan.cycles + cfo))
        return replace(
            found, h=h, h_noise=np.mean(noises, axis=0) / n_symbols * plan.inverse_power,
            snr_db=10 * np.log10(np.maximum(snr, 1e-3)), cfo_hz=cfo * frame.frame.sample_rate_hz,
        )  # fmt: skip

    def _detect(self, y: C128, n: int, plan: _Plan, raw: NDArray[np.complex64]) -> int:
        """Return the sample at which preamble and symbols, taken together, repeat best.

        `y` (antenna, sample) holds `n` samples and zeros after them.
        """
        n_starts = n - plan.preamble_len + 1
        conj = y.conj()
        halves = np.abs(_sliding(conj, y, plan.half, plan.preamble_len - plan.half, 0, n_starts))
        symbols = np.abs(_sliding(conj, y, plan.step, plan.symbols_len - plan.step, plan.preamble_len, n_starts))
        halves += symbols
        start = int(halves.argmax())

        most = float((_power(y[:, start : start + plan.frame_len]) @ plan.detection_share).sum())
        coefficient = float(halves[start]) / max(most, 1e-30)
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

    def _check_cfo_range(self, y: C128, n: int, plan: _Plan, coarse: int, coarse_cfo: float) -> None:
        """Raise CFO_RANGE where the frame fits at a carrier offset that looks the same to the preamble's halves."""
        for turns in (-1, 1, -2, 2):
            cfo = coarse_cfo + turns / plan.half
            start = _fine_start(y, plan, coarse, cfo)
            if start + plan.first < 0 or start + plan.n_cp < 0 or start + plan.frame_len > n:
                continue
            cfo, _, spectra = _spectra(y, plan, start, cfo)
            total = spectra[:, 1:].sum(axis=1)
            share = _delay_share(total[:, plan.used] / plan.symbol, plan)
            if _preamble_match(spectra[:, 0], total, plan) >= _PREAMBLE_MATCH and share >= plan.min_delay_share:
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
        # The preamble's last n_fft samples are one more window, one step before those of the symbols.
        self.first = self.preamble_len - self.n_fft
        self.parts = self.first + self.step * np.arange(self.n_symbols + 1)
        self.samples = np.arange(self.n_fft)

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

        preamble, symbol = np.fft.fft(samples[self.parts[:2, None] + self.samples], axis=1)
        self.used: I64 = self.bins % self.n_fft
        self.cycles: F64 = self.bins / self.n_fft
        self.symbol = symbol[self.used]
        self.inverse_power = float(np.mean(1 / _power(self.symbol)))
        carried = np.abs(preamble[self.used]) > 0.1 * np.abs(preamble[self.used]).max()
        self.even: I64 = self.used[carried]
        self.preamble_over_symbol = preamble[self.even] / symbol[self.even]

        # A channel fits into the cyclic prefix; what a carrier or another waveform seems to be spreads over all delays.
        delays = np.arange(self.n_cp + 1)
        self.to_delays = np.exp(2j * np.pi / self.n_fft * np.outer(self.bins, delays)) / np.sqrt(self.n_fft)
        one_path = np.exp(-2j * np.pi / self.n_fft * self.bins * (self.n_cp // 2))
        one_path_share = float(_power(one_path @ self.to_delays).sum()) / self.bins.size
        self.min_delay_share = (one_path_share + delays.size / self.n_fft) / 2
        self.neighbours = np.diff(self.bins) == 1


def _good_length(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _sliding(conj: C128, y: C128, lag: int, width: int, offset: int, n: int) -> C128:
    """Return (n,) Σ over antennas and `width` samples of conj(y[i])·y[i + lag], i from offset + 0 … offset + n − 1."""
    products = conj[:, offset : offset + n + width - 1] * y[:, offset + lag : offset + lag + n + width - 1]
    total = np.zeros(n + width, dtype=np.complex128)
    np.add.accumulate(products[0] if len(products) == 1 else products.sum(axis=0), out=total[1:])
    return total[width:] - total[:n]


def _half_period_cfo(y: C128, plan: _Plan, start: int) -> float:
    """Return the carrier offset in cycles per sample from the preamble's halves; unambiguous within ±1/(2·half)."""
    a = y[:, start : start + plan.preamble_len]
    return cmath.phase(np.vdot(a[:, : -plan.half], a[:, plan.half :])) / (2 * np.pi * plan.half)


def _fine_start(y: C128, plan: _Plan, coarse: int, cfo: float) -> int:
    """Return the start for which most of the channel's energy arrives within one cyclic prefix after it."""
    first = coarse - plan.reach
    n = 2 * plan.reach + plan.preamble_len
    segment = y[:, max(first, 0) : first + n]
    if segment.shape[1] < n:
        before = max(-first, 0)
        segment = np.pad(segment, ((0, 0), (before, n - before - segment.shape[1])))
    segment = segment * _phasors(cfo, plan.fine_index[:n])
    spectrum = np.fft.fft(segment, plan.fine_len, axis=1)
    spectrum *= plan.preamble_conj
    power = _power(np.fft.ifft(spectrum, axis=1)[:, : 2 * plan.reach + 1])
    energy = (power[0] if len(power) == 1 else power.sum(axis=0)).cumsum()
    inside = energy[plan.n_cp :] - energy[: -plan.n_cp]
    # The maximum is flat for a short channel; its middle moves less with the noise than its top.
    best = (inside >= 0.995 * inside.max()).nonzero()[0]
    return first + 1 + round(float(best[0] + best[-1]) / 2)


def _spectra(y: C128, plan: _Plan, start: int, coarse_cfo: float) -> tuple[float, _Dc, C128]:
    """Return the carrier offset in cycles per sample, what DC looks like, and the corrected (antenna, part, bin).

    Part 0 is the preamble. The offset comes from the repeated symbols, unwrapped by the coarse one.
    """
    n_antennas, n_parts = len(y), plan.n_symbols + 1
    first = start + plan.first
    windows = y[:, first : first + n_parts * plan.step].reshape(n_antennas, n_parts, plan.step)[:, :, : plan.n_fft]
    turn = cmath.phase(np.vdot(windows[:, 1:-1], windows[:, 2:])) / (2 * np.pi)
    cfo = (turn + round(coarse_cfo * plan.step - turn)) / plan.step
    turns, within = _phasors(cfo, plan.parts), _phasors(cfo, plan.samples)
    # one transform for all: its price is mostly that of the call
    corrected = np.empty((n_antennas * n_parts + 1, plan.n_fft), dtype=np.complex128)
    corrected[-1] = within
    body = corrected[:-1].reshape(windows.shape)
    np.multiply(windows, within, out=body)
    body *= turns[:, None]
    spectra = np.fft.fft(corrected, axis=1)
    dc = _Dc(turns[1:], spectra[-1], windows[:, 1:].sum(axis=(1, 2)))
    return cfo, dc, spectra[:-1].reshape(windows.shape)


def _preamble_match(preamble: C128, total: C128, plan: _Plan) -> float:
    """Return the coherence, −1 to 1, of the preamble's spectrum with what the symbols predict; both (antenna, bin)."""
    got = preamble[:, plan.even]
    expected = total[:, plan.even] * plan.preamble_over_symbol
    energy = float(np.vdot(got, got).real * np.vdot(expected, expected).real)
    return float(np.vdot(expected, got).real) / math.sqrt(energy + 1e-60)


@dataclass(frozen=True, slots=True)
class _Dc:
    """What a constant in the received samples becomes in the corrected spectra: turns[symbol] · spectrum[bin]."""

    turns: C128
    spectrum: C128
    total: C128
    """(antenna,) sum of the received samples in the symbols' windows."""


def _phasors(cfo: float, n: I64) -> C128:
    """Return exp(−2πi·cfo·n); sine and cosine apart are faster than the complex exponential."""
    angle = (-2 * np.pi * cfo) * n
    out = np.empty(angle.size, dtype=np.complex128)
    np.cos(angle, out=out.real)
    np.sin(angle, out=out.imag)
    return out


def _power(a: C128) -> F64:
    return a.real**2 + a.imag**2


def _energy(a: C128) -> F64:
    """Return (first axis,) the sum of |a|² over all other axes."""
    return np.array([np.vdot(x, x).real for x in a])


def _repeating(received: C128, mean: C128, dc: _Dc, plan: _Plan) -> tuple[C128, F64]:
    """Return the mean over the symbols of (antenna, symbol, subcarrier) and the noise power on a bin of one symbol.

    `mean` (antenna, subcarrier) is the plain one; the noise (antenna,) is what does not repeat.

    What is left of a receiver's DC offset on the used bins is taken off. The block's mean was taken off before, but
    that takes some signal with it: once a carrier offset shifts it, the frame's mean is not zero. After correction DC
    sits at −cfo and turns from symbol to symbol, so that it can be told from the signal by the bins without pilots and
    by what does not repeat. Linear MMSE: where it hides behind the signal (a few carrier offsets at which it repeats
    too) and the noise is strong, less is taken off.
    """
    n_symbols, n_fft, used = plan.n_symbols, plan.n_fft, dc.spectrum[plan.used]
    common = complex(dc.turns.sum()) / n_symbols
    used_energy, pattern = float(np.vdot(used, used).real), used.conj()
    energy, mean_energy = _energy(received), _energy(mean)
    noise = _noise(energy, mean_energy, plan)
    # Least squares: DC's pattern less the part of it that looks like signal (repeating, on used bins). The spectra's
    # product with DC's pattern over all bins is, by Parseval, the windows' plain sum.
    score = n_fft * dc.total - n_symbols * common.conjugate() * (mean @ pattern)
    share = n_symbols * (n_fft**2 - abs(common) ** 2 * used_energy)
    offset = score / (share + noise / (_DC_RESIDUE / n_fft**2 * mean_energy + 1e-30))
    mean = mean - (common * offset)[:, None] * used
    along = (received @ pattern) @ dc.turns.conj()
    energy -= 2 * (offset.conj() * along).real - n_symbols * used_energy * _power(offset)
    return mean, _noise(energy, _energy(mean), plan)


def _noise(energy: F64, mean_energy: F64, plan: _Plan) -> F64:
    """Return (antenna,) what of the symbols' energy does not repeat, per bin; never zero, since samples are float32."""
    n_bins = plan.used.size
    noise = (energy - plan.n_symbols * mean_energy) / ((plan.n_symbols - 1) * n_bins)
    return np.asarray(np.maximum(noise, 1e-12 / n_bins * mean_energy + 1e-30))


def _delay_share(h: C128, plan: _Plan) -> float:
    """Return the share of the channel's energy that arrives within one cyclic prefix."""
    return float(_energy(h @ plan.to_delays).sum() / (_energy(h).sum() + 1e-60))


def _mean_delay(h: C128, plan: _Plan) -> float:
    """Return the channel's mean delay in samples after the FFT window's start, from the mean phase step over frequency.

    Weighted by power: the position of a single path exactly, the centre of gravity of several. Unlike the first or the
    strongest path it does not jump between paths when noise changes, so both ends of a link see the same one.
    """
    return -cmath.phase(np.vdot(h[:, :-1] * plan.neighbours, h[:, 1:])) * plan.n_fft / (2 * np.pi)
