"""The first steps of every estimator: find the frame, measure carrier offset and noise, divide by the pilots.

Steps: (1) sliding correlation of the received samples with themselves one period later, over the preamble (Schmidl and
Cox, IEEE Trans. Commun. 45(12), 1997) and over the repeated symbols; (2) carrier offset from the preamble's halves;
(3) cross-correlation with the known preamble, and the position whose cyclic prefix holds most of its energy;
(4) carrier offset from the repeated symbols, made unambiguous by (2); (5) FFT of all symbols, least squares over the
repeating part, noise from the rest; (6) arrival time from the phase slope over frequency. Where (3) and (4) do not find
the frame, the carrier offset may be beyond what (2) can resolve: it is searched for, and both steps are repeated.

Blocks of one shape are computed together, some at a time; the result for a block does not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from testbed.chain.csi._acquire import (
    Batch,
    Scratch,
    cycles_between,
    detect,
    dot,
    energy,
    fine_start,
    half_period_cfo,
    indices,
    phasors,
    phasors_along,
    search_cfo,
)
from testbed.chain.csi._plan import C128, Plan, power
from testbed.core.errors import ProbeRejected, Reject
from testbed.core.options import StageOptions
from testbed.core.types import C64, F64, I64, AntennaFrame, CsiFrame, IqBlock, SoundingFrame

_Record = TypeVar("_Record", "Soundings", "_Dc", "_Lock")
Flags = NDArray[np.bool_]

CLIP_LEVEL = 0.999
_PREAMBLE_MATCH = 0.6
"""Least coherence between the received preamble and the one predicted from the symbols' estimate. A frame at 0 dB
has 0.73; random noise on 32 bins exceeds 0.6 once in 10⁶."""
_SEARCHED_SIGMAS = 4.5
"""The same after a search over carrier offsets: it tests many of them, so that a match by chance is more likely."""
_SIGMAS = 5.0
"""A self-correlation of n noise samples exceeds 5/√n with probability e⁻²⁵."""
_DC_RESIDUE = 1e-3
"""DC that remains after the block's mean is subtracted, relative to the signal's power."""
_CHUNK_BYTES = 1 << 20
"""Bytes of samples, in double precision, that are computed together; they fit a core's cache."""


@dataclass(frozen=True, slots=True)
class Soundings:
    """Frames that were found and passed all checks; the first axis of every array is the frame."""

    rows: I64
    """Index of the block in which each was found."""
    h: C128
    """(frame, rx antenna, subcarrier) least-squares estimate, delays relative to `time_s`."""
    h_noise: F64
    """(frame, rx antenna) variance of `h`: σ² / (n_symbols · |pilot|²), mean over subcarriers."""
    snr_db: F64
    """(frame, subcarrier) of one symbol, averaged over antennas."""
    cfo_hz: F64
    time_s: F64
    rssi_dbfs: F64
    start: I64
    """Sample of the block at which the earliest path's frame begins."""
    delay: F64
    """Delay of the power-weighted mean path after `start`, in samples."""

    def take(self, index: I64) -> Soundings:
        return _taken(self, index)

    def csi(self, h: C128, subcarrier_hz: F64) -> Iterator[tuple[int, CsiFrame]]:
        """Yield (row, CSI) with channel `h`, (frame, rx antenna, subcarrier) or (frame, rx, tx antenna, subcarrier)."""
        shaped = (h[:, :, None, :] if h.ndim == 3 else h).astype(np.complex64)
        scalars = (self.rows.tolist(), self.cfo_hz.tolist(), self.time_s.tolist(), self.rssi_dbfs.tolist())
        for i, (row, cfo_hz, time_s, rssi_dbfs) in enumerate(zip(*scalars, strict=True)):
            yield row, CsiFrame(shaped[i], subcarrier_hz, self.snr_db[i], cfo_hz, time_s, rssi_dbfs)


@dataclass(frozen=True, slots=True)
class _Dc:
    """Contribution of a constant in the received samples to the corrected spectra: turns[symbol] · spectrum[bin]."""

    turns: C128
    """(frame, symbol)."""
    spectrum: C128
    """(frame, subcarrier)."""
    total: C128
    """(frame, antenna) sum of the received samples in the symbols' windows."""

    def take(self, index: I64) -> _Dc:
        return _taken(self, index)

    @classmethod
    def joined(cls, a: _Dc, b: _Dc) -> _Dc:
        return _made(cls, [np.concatenate(pair) for pair in _pairs(a, b)])


@dataclass(frozen=True, slots=True)
class _Lock:
    """Frames whose start and carrier offset are known."""

    rows: I64
    start: I64
    cfo: F64
    """Carrier offset in cycles per sample."""
    energy: F64
    """(frame,) Σ|sample|² over the frame and all antennas."""
    dc: _Dc
    symbols: C128
    """(frame, antenna, symbol, subcarrier) corrected spectra."""
    mean: C128
    """(frame, antenna, subcarrier) their mean."""
    match: F64
    """(frame,) coherence of the preamble with what the symbols predict."""
    share: F64
    """(frame,) share of the channel's energy within the cyclic prefix."""

    def take(self, index: I64) -> _Lock:
        return _taken(self, index)

    @classmethod
    def joined(cls, a: _Lock, b: _Lock) -> _Lock:
        return _made(cls, [_Dc.joined(x, y) if isinstance(x, _Dc) else np.concatenate([x, y]) for x, y in _pairs(a, b)])


def _values(record: Any) -> list[Any]:
    return [getattr(record, f.name) for f in fields(record)]


def _pairs(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    return zip(_values(a), _values(b), strict=True)


def _made(kind: Callable[..., _Record], values: list[Any]) -> _Record:
    return kind(*values)


def _taken(record: _Record, index: I64) -> _Record:
    """Return a record of arrays with these frames only."""
    return _made(type(record), [v.take(index) if isinstance(v, _Dc) else v[index] for v in _values(record)])


class SyncOptions(StageOptions, frozen=True):
    """Options of all estimators: which probes they reject."""

    min_snr_db: Annotated[float, Meta(ge=-20, le=60)] = 3.0
    """Mean SNR of one symbol over the subcarriers below which a probe is rejected as LOW_SNR."""
    clip_fraction: Annotated[float, Meta(ge=0, le=1)] = 0.001
    """Share of the frame's samples with |I| or |Q| ≥ 0.999 above which it is rejected as CLIPPED."""
    detection_threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.25
    """Self-correlation coefficient, about SNR/(1 + SNR) over the sampled band, below which there is NO_PREAMBLE; a
    higher limit applies where the block holds too few samples for this one."""
    max_cfo_hz: Annotated[float, Meta(gt=0)] | None = None
    """Carrier offset beyond which a probe is rejected as CFO_RANGE; default: the largest at which the frame's band
    stays inside the sampled one, (n_fft/2 − highest bin)·rate/n_fft."""


class Synchroniser:
    """Finds frames in blocks. It keeps what it derived from the last frame design; not for use by several threads."""

    def __init__(self, options: SyncOptions) -> None:
        self.min_snr_db, self.clip_fraction = options.min_snr_db, options.clip_fraction
        self.detection_threshold, self.max_cfo_hz = options.detection_threshold, options.max_cfo_hz
        self._plan: Plan | None = None
        self._scratch = Scratch()

    def plan(self, frame: SoundingFrame) -> Plan:
        """Return what is derived from a frame's design; it is computed once for the same frame object."""
        if self._plan is None or self._plan.frame is not frame:
            self._plan = Plan(frame)
        return self._plan

    def range_hz(self, frame: SoundingFrame) -> float:
        """Return the largest carrier offset, either way, that is accepted."""
        widest_hz = self.plan(frame).max_cfo * frame.sample_rate_hz
        return widest_hz if self.max_cfo_hz is None else min(self.max_cfo_hz, widest_hz)

    def estimate(
        self, blocks: Sequence[IqBlock], frame: SoundingFrame, refine: Callable[[Soundings], C128]
    ) -> list[CsiFrame | ProbeRejected]:
        """Return each block's CSI, with the channel that `refine` computes from the soundings, or why it has none."""
        plan = self.plan(frame)
        out: list[CsiFrame | ProbeRejected | None] = [None] * len(blocks)
        for found in self.sound(blocks, frame, out):
            for row, csi in found.csi(refine(found), plan.subcarrier_hz):
                out[row] = csi
        return [x for x in out if x is not None]

    def sound(
        self, blocks: Sequence[IqBlock], frame: SoundingFrame, rejected: list[CsiFrame | ProbeRejected | None]
    ) -> Iterator[Soundings]:
        """Find a frame in each of `blocks`, samples (antenna, sample), and estimate the channel by least squares.

        Yields the found frames in groups. For every other block, the reason is written into its place in `rejected`.
        Raises ValueError where a block and the frame differ in sample rate.
        """
        plan = self.plan(frame)
        alike: dict[tuple[int, ...], list[int]] = {}
        for i, block in enumerate(blocks):
            rejected[i] = _unfit(block, plan)
            if rejected[i] is None:
                alike.setdefault(block.samples.shape, []).append(i)
        for (n_antennas, n), members in alike.items():
            size = max(1, _CHUNK_BYTES // (16 * n_antennas * (plan.before + n + plan.after)))
            for part in (members[i : i + size] for i in range(0, len(members), size)):
                raw = np.array([blocks[i].samples for i in part], dtype=np.complex64)
                why: dict[int, ProbeRejected] = {}
                times_s = np.array([blocks[i].time_s for i in part])
                found = self._sound(Batch.of(raw, plan, self._scratch), times_s, plan, why)
                for row, reason in why.items():
                    rejected[part[row]] = reason
                yield replace(found, rows=np.array(part)[found.rows])

    def sound_antennas(self, block: IqBlock, frame: AntennaFrame) -> Soundings:
        """Find the frame by the first antenna's section, then estimate every antenna by its own.

        `h` is (1, rx antenna, tx antenna, subcarrier). Raises ProbeRejected with the reason why the block is useless,
        TRUNCATED also where a later section is cut off.
        """
        n_antennas, n_symbols, plan = frame.n_antennas, frame.frame.n_symbols, self.plan(frame.frame)
        raw = np.ascontiguousarray(block.samples, dtype=np.complex64)
        later = (n_antennas - 1) * frame.stride
        if raw.shape[1] < plan.frame_len + later:
            raise ProbeRejected(
                Reject.TRUNCATED, f"{raw.shape[1]} samples cannot hold {n_antennas} antennas' {plan.frame_len + later}"
            )
        # The first section is searched only where the sections of the other antennas fit after it.
        rejected: list[CsiFrame | ProbeRejected | None] = [None]
        first = replace(block, samples=raw[:, : raw.shape[1] - later])
        soundings = list(self.sound([first], frame.frame, rejected))
        if isinstance(rejected[0], ProbeRejected):
            raise rejected[0]
        found, start = soundings[0], int(soundings[0].start[0])
        if (clipped := self._clipped(raw[:, max(start, 0) :])) is not None:
            raise clipped
        firsts = plan.parts[1:] + frame.stride * np.arange(n_antennas)[:, None]  # (antenna, symbol), after the start
        y = raw - raw.mean(axis=1, keepdims=True, dtype=np.complex128)
        windows = y[:, start + firsts[:, :, None] + plan.samples]
        # one oscillator serves all antennas, so the repetitions in all of their sections give its offset
        cfo = found.cfo_hz / frame.frame.sample_rate_hz
        cfo = _unwrapped(cycles_between(windows[None, :, :, :-1], windows[None, :, :, 1:]), cfo, plan)
        turns = phasors(cfo, firsts.ravel()).reshape(n_antennas, n_symbols)
        within = phasors_along(cfo, plan.n_fft)[0]
        spectra = np.fft.fft(windows * within * turns[:, :, None], axis=-1)
        spectra = np.ascontiguousarray(spectra.swapaxes(0, 1)).take(plan.used, axis=-1)
        pattern = np.broadcast_to(np.fft.fft(within)[plan.used], (n_antennas, plan.used.size))
        dc = _Dc(turns, pattern, windows.sum(axis=(2, 3)).T)
        mean, noise = _repeating(spectra, spectra.mean(axis=2), dc, plan)
        snr = (power(mean) / noise[..., None] - 1 / n_symbols).mean(axis=(0, 1))
        h = mean.swapaxes(0, 1) / plan.symbol * np.exp((2j * np.pi * found.delay) * (plan.cycles + cfo))
        return replace(
            found, h=h[None], h_noise=noise.mean(axis=0)[None] / n_symbols * plan.inverse_power,
            snr_db=10 * np.log10(np.maximum(snr, 1e-3))[None], cfo_hz=cfo * frame.frame.sample_rate_hz,
        )  # fmt: skip

    def _sound(self, batch: Batch, time_s: F64, plan: Plan, rejected: dict[int, ProbeRejected]) -> Soundings:
        """Return what was found in blocks that begin at `time_s` (block,); `rejected` gets the others' reasons."""
        loud = ~(np.abs(batch.raw.view(np.float32)).max(axis=(1, 2)) < CLIP_LEVEL)
        coarse, coefficient, threshold = self._detect(batch, plan)
        seen = coefficient >= threshold
        for i in indices(~seen).tolist():
            rejected[i] = (self._clipped(batch.raw[i]) if loud[i] else None) or ProbeRejected(
                Reject.NO_PREAMBLE, f"self-correlation {coefficient[i]:.2f}, needs {threshold[i]:.2f}"
            )
        rows = indices(seen)
        coarse = coarse[rows]
        cfo = half_period_cfo(batch, rows, coarse, plan)
        lock, why = self._lock(batch, rows, coarse, cfo, loud, plan, _PREAMBLE_MATCH)
        lost = _lost(rows, lock, why, plan)
        if lost.size and plan.searchable:
            cfo = search_cfo(batch, rows[lost], coarse[lost], cfo[lost], plan)
            far, beyond = self._lock_far(batch, rows[lost], coarse[lost], cfo, loud, plan)
            found = {*far.rows.tolist(), *beyond}
            why = {row: reason for row, reason in why.items() if row not in found} | beyond
            lock = _Lock.joined(lock.take(indices(~np.isin(lock.rows, list(found)))), far)
        rejected.update(why)
        return self._finish(lock, batch.n, time_s, plan, rejected)

    def _detect(self, batch: Batch, plan: Plan) -> tuple[I64, F64, F64]:
        """Return (block,) coarse starts, the coefficients of self-correlation there, and those that are needed."""
        whole = batch.n - plan.preamble_len + 1
        # Nearly every frame lies inside its block. Where none is found there, the block may have cut one off.
        inside = min(whole, batch.n - plan.frame_len + plan.reach + 1)
        found = self._repeats(batch, np.arange(len(batch.raw)), inside, plan)
        coarse, coefficient, threshold = found
        left = indices((coefficient < threshold) | (coarse == inside - 1))
        if left.size and inside < whole:
            for first, later in zip(found, self._repeats(batch, left, whole, plan), strict=True):
                first[left] = later
        return found

    def _repeats(self, batch: Batch, rows: I64, n_starts: int, plan: Plan) -> tuple[I64, F64, F64]:
        """Return the same of these blocks, (row,), for frames that begin at one of their first `n_starts` samples."""
        coarse, coefficient, n_products = detect(batch, rows, n_starts, plan)
        return coarse, coefficient, np.maximum(self.detection_threshold, np.minimum(_SIGMAS / np.sqrt(n_products), 0.9))

    def _lock_far(
        self, batch: Batch, rows: I64, coarse: I64, cfo: F64, loud: Flags, plan: Plan
    ) -> tuple[_Lock, dict[int, ProbeRejected]]:
        """Try again with carrier offsets from a search; also return which frames lie beyond the range."""
        least = max(_PREAMBLE_MATCH, min(_SEARCHED_SIGMAS / math.sqrt(2 * plan.even.size), 0.9))
        lock, _ = self._lock(batch, rows, coarse, cfo, loud, plan, least)
        compact, near = lock.share >= plan.min_delay_share, np.abs(lock.cfo) <= plan.max_cfo
        rate_hz, limit_hz = plan.frame.sample_rate_hz, self.range_hz(plan.frame)
        beyond = {int(lock.rows[i]): _beyond(lock.cfo[i] * rate_hz, limit_hz) for i in indices(compact & ~near)}
        return lock.take(indices(compact & near)), beyond

    def _lock(
        self, batch: Batch, rows: I64, coarse: I64, cfo: F64, loud: Flags, plan: Plan, least_match: float
    ) -> tuple[_Lock, dict[int, ProbeRejected]]:
        """Find frames near `coarse` (row,), with carrier offsets of about `cfo`; also return the failures, by row."""
        start = fine_start(batch, rows, coarse, cfo, plan)
        end = start + plan.frame_len
        why: dict[int, ProbeRejected] = {}
        for i in indices(loud[rows]).tolist():
            clipped = self._clipped(batch.raw[rows[i], :, max(start[i], 0) : end[i]])
            if clipped is not None:
                why[int(rows[i])] = clipped
        for i in indices((start + min(plan.first, plan.n_cp) < 0) | (end > batch.n)).tolist():
            detail = f"frame at samples {start[i]} to {end[i]} of a block of {batch.n}"
            why.setdefault(int(rows[i]), ProbeRejected(Reject.TRUNCATED, detail))
        fits = np.array([row not in why for row in rows.tolist()], dtype=bool)
        lock = _correct(batch, rows[fits], start[fits], cfo[fits], plan)
        known = lock.match >= least_match
        for i in indices(~known).tolist():
            detail = f"the repeating signal is not the expected waveform (match {lock.match[i]:.2f})"
            why[int(lock.rows[i])] = ProbeRejected(Reject.NO_PREAMBLE, detail)
        return (lock if known.all() else lock.take(indices(known))), why

    def _finish(self, lock: _Lock, n: int, time_s: F64, plan: Plan, rejected: dict[int, ProbeRejected]) -> Soundings:
        """Estimate the channel of the frames in blocks of `n` samples, and reject the unusable ones."""
        rate_hz = plan.frame.sample_rate_hz
        mean, noise = _repeating(lock.symbols, lock.mean, lock.dc, plan)
        n_antennas = mean.shape[1]
        snr = (power(mean) / noise[:, :, None] - 1 / plan.n_symbols).sum(axis=1) / n_antennas
        mean_snr_db = 10 * np.log10(np.maximum(snr.sum(axis=-1) / snr.shape[-1], 1e-6))
        h = mean / plan.symbol
        delay = _mean_delay(h, plan)
        checked = _Checked(lock.cfo * rate_hz, mean_snr_db, lock.share, lock.start + delay)
        good = self._good(checked, n, plan)
        for i in indices(~good).tolist():
            rejected[int(lock.rows[i])] = self._why(checked.at(i), n, plan)
        h *= np.exp((2j * np.pi * delay)[:, None] * (plan.cycles + lock.cfo[:, None]))[:, None, :]
        inside = lock.start + plan.frame_len - np.maximum(lock.start, 0)
        found = Soundings(
            rows=lock.rows,
            h=h,
            h_noise=noise / plan.n_symbols * plan.inverse_power,
            snr_db=10 * np.log10(np.maximum(snr, 1e-3)),
            cfo_hz=checked.cfo_hz,
            time_s=time_s[lock.rows] + checked.arrival / rate_hz,
            rssi_dbfs=10 * np.log10(lock.energy / (n_antennas * inside) + 1e-30),
            start=lock.start,
            delay=delay,
        )
        return found if good.all() else found.take(indices(good))

    def _good(self, checked: _Checked, n: int, plan: Plan) -> Flags:
        """Return (frame,) which pass all checks of `_why`."""
        room = n - plan.frame_len
        return (
            (checked.snr_db >= self.min_snr_db)
            & (np.abs(checked.cfo_hz) <= (self.max_cfo_hz or math.inf))
            & (checked.share >= plan.min_delay_share)
            & (checked.arrival >= -0.5)
            & (checked.arrival <= room + 0.5)
        )

    def _why(self, frame: tuple[float, float, float, float], n: int, plan: Plan) -> ProbeRejected:
        """Return the first check that a frame's (carrier offset, SNR, share, arrival) failed."""
        cfo_hz, snr_db, share, arrival = frame
        if snr_db < self.min_snr_db:
            return ProbeRejected(Reject.LOW_SNR, f"{snr_db:.1f} dB, accepted from {self.min_snr_db:g} dB")
        if self.max_cfo_hz is not None and abs(cfo_hz) > self.max_cfo_hz:
            return _beyond(cfo_hz, self.range_hz(plan.frame))
        if share < plan.min_delay_share:
            detail = f"{share:.0%} of the channel's energy within the cyclic prefix, needs {plan.min_delay_share:.0%}"
            return ProbeRejected(Reject.NO_PREAMBLE, detail)
        return ProbeRejected(
            Reject.TRUNCATED, f"frame starts at sample {arrival:.1f}, accepted 0 to {n - plan.frame_len}"
        )

    def _clipped(self, samples: C64) -> ProbeRejected | None:
        """Return CLIPPED where too many of (antenna, sample) are at full scale."""
        clipped = np.maximum(np.abs(samples.real), np.abs(samples.imag)) >= CLIP_LEVEL
        share = np.count_nonzero(clipped) / clipped.size
        if share <= self.clip_fraction:
            return None
        return ProbeRejected(
            Reject.CLIPPED, f"{share:.2%} of the samples at full scale, accepted {self.clip_fraction:.2%}"
        )


@dataclass(frozen=True, slots=True)
class _Checked:
    """The figures by which frames are judged, each (frame,)."""

    cfo_hz: F64
    snr_db: F64
    share: F64
    """Share of the channel's energy within the cyclic prefix."""
    arrival: F64
    """Sample of the block at which the frame arrived."""

    def at(self, i: int) -> tuple[float, float, float, float]:
        return float(self.cfo_hz[i]), float(self.snr_db[i]), float(self.share[i]), float(self.arrival[i])


def _unfit(block: IqBlock, plan: Plan) -> ProbeRejected | None:
    """Return why a block of this size cannot hold the frame; raises ValueError at another sample rate."""
    if block.sample_rate_hz != plan.frame.sample_rate_hz:
        raise ValueError(f"block at {block.sample_rate_hz:g} Hz, frame at {plan.frame.sample_rate_hz:g} Hz")
    if block.overflow:
        return ProbeRejected(Reject.OVERFLOW, "the device lost samples in this block")
    n = block.samples.shape[1]
    if n < plan.frame_len:
        return ProbeRejected(Reject.TRUNCATED, f"{n} samples cannot hold a frame of {plan.frame_len}")
    return None


def _lost(rows: I64, lock: _Lock, why: Mapping[int, ProbeRejected], plan: Plan) -> I64:
    """Return the rows in which the frame may have been missed, or misjudged, because of a larger carrier offset."""
    stray = lock.rows[lock.share < plan.min_delay_share].tolist()
    missed = {row for row, reason in why.items() if reason.reason != Reject.CLIPPED}
    return indices(np.isin(rows, [*missed, *stray])) if missed or stray else rows[:0]


def _beyond(cfo_hz: float, limit_hz: float) -> ProbeRejected:
    return ProbeRejected(Reject.CFO_RANGE, f"{cfo_hz:.0f} Hz, accepted ±{limit_hz:.0f} Hz", cfo_hz=float(cfo_hz))


def _unwrapped(turn: F64, cfo: F64, plan: Plan) -> F64:
    """Return carrier offsets in cycles per sample from cycles per step, made unambiguous by the coarse `cfo`."""
    return np.asarray((turn + np.rint(cfo * plan.step - turn)) / plan.step)


def _correct(batch: Batch, rows: I64, start: I64, coarse_cfo: F64, plan: Plan) -> _Lock:
    """Measure the carrier offset from the repeated symbols, unwrapped by the coarse one, and correct it."""
    frames = batch.windows(rows, start, plan.span, plan)
    n_frames, n_antennas, n_parts = len(frames), frames.shape[1], plan.n_symbols + 1
    steps = frames[..., plan.first :].reshape(n_frames, n_antennas, n_parts, plan.step)
    windows = steps[..., : plan.n_fft]
    turn = cycles_between(windows[:, :, 1:-1], windows[:, :, 2:])
    cfo = _unwrapped(turn, coarse_cfo, plan)
    turns, within = phasors(cfo, plan.parts), phasors_along(cfo, plan.n_fft)
    # All are transformed in one call, because the call takes most of the time.
    corrected = batch.scratch.array("corrected", (n_frames, n_antennas * n_parts + 1, plan.n_fft))
    corrected[:, -1] = within
    body = corrected[:, :-1].reshape(windows.shape)
    np.multiply(windows, within[:, None, None, :], out=body)
    body *= turns[:, None, :, None]
    spectra = np.fft.fft(corrected, axis=-1)
    dc = _Dc(turns[:, 1:], spectra[:, -1].take(plan.used, axis=-1), windows[:, :, 1:].sum(axis=(2, 3)))
    parts = spectra[:, :-1].reshape(windows.shape)
    preamble, symbols = parts[:, :, 0], parts[:, :, 1:]
    total = symbols.sum(axis=2)
    mean = total.take(plan.used, axis=-1) / plan.n_symbols
    return _Lock(
        rows=rows,
        start=start,
        cfo=cfo,
        energy=energy(frames[..., : plan.frame_len], 1),
        dc=dc,
        symbols=symbols.take(plan.used, axis=-1),
        mean=mean,
        match=_preamble_match(preamble, total, plan),
        share=_delay_share(mean / plan.symbol, plan),
    )


def _preamble_match(preamble: C128, total: C128, plan: Plan) -> F64:
    """Return the coherence, −1 to 1, of the preambles' spectra with the prediction from the symbols; (frame, antenna,
    bin).
    """
    got = preamble.take(plan.even, axis=-1)
    expected = total.take(plan.even, axis=-1) * plan.preamble_over_symbol
    strength = dot(got, got).real * dot(expected, expected).real
    return np.asarray(dot(expected, got).real / np.sqrt(strength + 1e-60))


def _repeating(received: C128, mean: C128, dc: _Dc, plan: Plan) -> tuple[C128, F64]:
    """Return the mean over the symbols of (frame, antenna, symbol, subcarrier) and the noise on a bin of one symbol.

    `mean` (frame, antenna, subcarrier) is the plain mean over the symbols; the noise power (frame, antenna) is that of
    the part that does not repeat.

    The remaining DC offset of the receiver is subtracted on the used bins. (The block's mean was subtracted before; but
    with a carrier offset the frame itself has a mean, which was removed as well and now appears as a DC offset.) After
    the correction of the carrier offset, DC is at −cfo, and its phase turns from symbol to symbol. It can therefore be
    told from the signal by the bins without pilots and by the part that does not repeat. This is a linear MMSE
    estimate: at the few carrier offsets at which DC repeats as the signal does, and with strong noise, less is
    subtracted.
    """
    n_symbols, n_fft, used = plan.n_symbols, plan.n_fft, dc.spectrum[:, None, :]
    common = dc.turns.sum(axis=-1)[:, None] / n_symbols  # (frame, 1)
    used_energy, pattern = energy(used)[:, 0, None], dc.spectrum.conj()[:, :, None]
    total_energy, mean_energy = energy(received), energy(mean)
    noise = _noise(total_energy, mean_energy, plan)
    # Least squares, with the part of DC's pattern that cannot be told from the signal (it repeats, on used bins) left
    # out. By Parseval, the product of the spectra with DC's pattern over all bins is the plain sum of the windows.
    score = n_fft * dc.total - n_symbols * common.conj() * (mean @ pattern)[..., 0]
    share = n_symbols * (n_fft**2 - power(common) * used_energy)
    offset = score / (share + noise / (_DC_RESIDUE / n_fft**2 * mean_energy + 1e-30))
    mean = mean - (common * offset)[..., None] * used
    along = ((received @ pattern[:, None])[..., 0] @ dc.turns.conj()[..., None])[..., 0]
    total_energy -= 2 * (offset.conj() * along).real - n_symbols * used_energy * power(offset)
    return mean, _noise(total_energy, energy(mean), plan)


def _noise(total_energy: F64, mean_energy: F64, plan: Plan) -> F64:
    """Return the energy of the symbols that does not repeat, per bin; never zero, since samples are float32."""
    n_bins = plan.used.size
    noise = (total_energy - plan.n_symbols * mean_energy) / ((plan.n_symbols - 1) * n_bins)
    return np.asarray(np.maximum(noise, 1e-12 / n_bins * mean_energy + 1e-30))


def _delay_share(h: C128, plan: Plan) -> F64:
    """Return (frame,) the share of the channel's energy that arrives within one cyclic prefix."""
    return np.asarray(energy(h @ plan.to_delays).sum(axis=-1) / (energy(h).sum(axis=-1) + 1e-60))


def _mean_delay(h: C128, plan: Plan) -> F64:
    """Return (frame,) mean delays in samples after the FFT window's start, from the mean phase step over frequency.

    The mean is weighted by power: it is the delay of a single path, or the centroid of several. Unlike the delay of the
    first or the strongest path, it does not jump between paths when the noise changes, so both ends of a link get the
    same one.
    """
    return -cycles_between(h[..., :-1] * plan.neighbours, h[..., 1:]) * plan.n_fft
