"""Finds the frame in each block of a batch, and its carrier offset.

All functions take a batch as arrays whose first axis is the block. The result for a block depends on that block alone,
to the last bit: sums run within a block, never across blocks, so that a batch of one gives the result of a batch of 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.chain.csi._plan import C128, Plan, power
from testbed.core.types import C64, F64, I64

_LEAST_ENERGY = 0.5
"""A carrier offset must explain at least this share of the energy that the best-explaining one does; with few bins, a
wrong offset may fit well by chance."""

_DETECT_BYTES = 1 << 17
"""Bytes of samples, in double precision, that are searched for frames together; they fit a core's inner cache."""


_MOST_KEPT_BYTES = 5 << 18
"""Largest array that is kept for reuse, a little above those of usual windows. One window of 4 million samples, needed
where a clock is very uncertain, would otherwise leave 250 MB in use until the process ends."""


class Scratch:
    """Memory that is reused, because new pages from the system cost more time than the arithmetic on them."""

    def __init__(self) -> None:
        self._known: dict[str, C128] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> C128:
        """Return an array of any content; an earlier array of this name is overwritten."""
        size = math.prod(shape)
        if size * np.dtype(np.complex128).itemsize > _MOST_KEPT_BYTES:
            return np.empty(shape, np.complex128)
        known = self._known.get(name)
        if known is None or known.size < size:
            known = self._known[name] = np.empty(size, np.complex128)
        return known[:size].reshape(shape)


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks of one shape."""

    raw: C64
    """(block, antenna, sample), as received."""
    y: C128
    """(block, antenna, plan.before + sample + plan.after): without the block's mean, zeros around."""
    scratch: Scratch

    @classmethod
    def of(cls, raw: C64, plan: Plan, scratch: Scratch) -> Batch:
        n, before = raw.shape[-1], plan.before
        y = scratch.array("y", (*raw.shape[:2], before + n + plan.after))
        y[..., :before], y[..., before + n :] = 0, 0
        mean = raw.sum(axis=-1, keepdims=True, dtype=np.complex128) / n
        np.subtract(raw, mean, out=y[..., before : before + n])
        return cls(raw, y, scratch)

    @property
    def n(self) -> int:
        """Samples in a block."""
        return self.raw.shape[-1]

    def windows(self, rows: I64, first: I64, length: int, plan: Plan) -> C128:
        """Return (row, antenna, length) copies of the samples from `first` (row,) on, zeros where there are none.

        They are valid until the next call.
        """
        out = self.scratch.array("windows", (rows.size, self.y.shape[1], length))
        for to, row, start in zip(out, rows.tolist(), (first + plan.before).tolist(), strict=True):
            to[:] = self.y[row, :, start : start + length]
        return out


def detect(batch: Batch, rows: I64, n_starts: int, plan: Plan) -> tuple[I64, F64, I64]:
    """Return (row,) the sample, of the first `n_starts`, at which preamble and symbols repeat best, how well (0 to 1),
    and the number of products in the correlation.

    Sliding self-correlation one period apart (Schmidl and Cox, IEEE Trans. Commun. 45(12), 1997).
    """
    n = batch.n
    y = batch.y[:, :, plan.before : plan.before + n_starts - 1 + plan.frame_len]
    y = y if rows.size == len(y) else y[rows]
    at_once = max(1, _DETECT_BYTES // y[0].nbytes)
    parts = [_best(y[i : i + at_once], n_starts, plan, batch.scratch) for i in range(0, len(y), at_once)]
    start, metric = (np.concatenate(x) for x in zip(*parts, strict=True))
    frames = batch.windows(rows, start, plan.frame_len, plan)
    most = (power(frames) @ plan.detection_share).sum(axis=-1)
    coefficient = metric / np.maximum(most, 1e-30)
    symbols_seen = np.minimum(plan.symbols_len, n - start - plan.preamble_len)
    n_products = y.shape[1] * (plan.preamble_len - plan.half + np.maximum(0, symbols_seen - plan.step))
    return start, coefficient, n_products


def _best(y: C128, n_starts: int, plan: Plan, scratch: Scratch) -> tuple[I64, F64]:
    """Return (block,) the sample, of the first `n_starts`, at which the sum of both self-correlations is largest, and
    that sum."""
    conj = np.conjugate(y, out=scratch.array("conj", y.shape))
    halves = _sliding(conj, y, plan.half, plan.preamble_len - plan.half, 0, n_starts, scratch)
    halves += _sliding(conj, y, plan.step, plan.symbols_len - plan.step, plan.preamble_len, n_starts, scratch)
    start = halves.argmax(axis=-1)
    return start, halves[np.arange(start.size), start]


def _sliding(conj: C128, y: C128, lag: int, width: int, offset: int, n: int, scratch: Scratch) -> F64:
    """Return (block, n) |Σ| over antennas and `width` samples of conj(y[i])·y[i + lag], from i = offset on."""
    stop = offset + n + width - 1
    products = scratch.array("products", (*y.shape[:2], stop - offset))
    np.multiply(conj[..., offset:stop], y[..., offset + lag : stop + lag], out=products)
    total = scratch.array("total", (len(y), n + width))
    total[:, 0] = 0
    np.add.accumulate(products[:, 0] if y.shape[1] == 1 else products.sum(axis=1), axis=-1, out=total[:, 1:])
    return np.abs(np.subtract(total[:, width:], total[:, :n], out=scratch.array("products", (len(y), n))))


def half_period_cfo(batch: Batch, rows: I64, start: I64, plan: Plan) -> F64:
    """Return (row,) carrier offsets in cycles per sample from the preamble's halves, unambiguous within ±1/(2·half)."""
    a = batch.windows(rows, start, plan.preamble_len, plan)
    return cycles_between(a[..., : -plan.half], a[..., plan.half :]) / plan.half


def fine_start(batch: Batch, rows: I64, coarse: I64, cfo: F64, plan: Plan) -> I64:
    """Return (row,) starts for which most of the channel's energy arrives within one cyclic prefix after them."""
    first = coarse - plan.reach
    segment = batch.windows(rows, first, plan.fine_span, plan)
    segment *= phasors_along(cfo, plan.fine_span)[:, None, :]
    spectrum = np.fft.fft(segment, plan.fine_len, axis=-1)
    spectrum *= plan.preamble_conj
    strength = power(np.fft.ifft(spectrum, axis=-1)[..., : 2 * plan.reach + 1])
    energy = (strength[:, 0] if strength.shape[1] == 1 else strength.sum(axis=1)).cumsum(axis=-1)
    inside = energy[:, plan.n_cp :] - energy[:, : -plan.n_cp]
    # The maximum is flat for a short channel; the middle of the flat part varies less with noise than its largest
    # value.
    best = inside >= 0.995 * inside.max(axis=-1, keepdims=True)
    begin, end = best.argmax(axis=-1), best.shape[-1] - 1 - best[:, ::-1].argmax(axis=-1)
    middle: I64 = first + 1 + np.rint((begin + end) / 2).astype(np.int64)
    return middle


def search_cfo(batch: Batch, rows: I64, coarse: I64, cfo: F64, plan: Plan) -> F64:
    """Return (row,) carrier offsets: `cfo` plus that multiple of 1/half with which preamble and symbols fit best.

    The ratio of the preamble's spectrum to the symbols' is known on every bin that both use; it does not depend on the
    channel or on where the windows begin. A carrier offset of 1/half moves it by n_fft/half bins, so that one circular
    correlation over frequency tests all offsets.
    """
    # Windows begin half a cyclic prefix early, in case the coarse start is too late.
    first = coarse + plan.first - plan.n_cp // 2
    n_parts = plan.n_symbols + 1
    windows = batch.windows(rows, first, n_parts * plan.step, plan)
    windows = windows.reshape(*windows.shape[:2], n_parts, plan.step)[..., : plan.n_fft]
    turn = cycles_between(windows[:, :, 1:-1], windows[:, :, 2:])
    # The phase step that aligns the symbols aligns the preamble too, which is one step before them.
    turns, within = phasors(turn, np.arange(n_parts)), phasors_along(cfo, plan.n_fft)
    spectra = np.fft.fft(windows * turns[:, None, :, None] * within[:, None, None, :], axis=-1)
    spacing = plan.n_fft // plan.half
    preamble, total = spectra[:, :, 0, ::spacing], spectra[:, :, 1:, ::spacing].sum(axis=2)  # (row, antenna, half)

    known, carried = np.zeros(plan.half, np.complex128), np.zeros(plan.half, np.complex128)
    known[plan.even // spacing], carried[plan.even // spacing] = plan.preamble_over_symbol, 1
    fit = _over_frequency((total.conj() * preamble).sum(axis=1), known)
    got = _over_frequency(power(preamble).sum(axis=1), carried)
    expected = _over_frequency(power(total).sum(axis=1), power(known))
    energy = np.maximum(got, 0) * np.maximum(expected, 0)
    floor = _LEAST_ENERGY**2 * energy.max(axis=-1, keepdims=True)
    match = np.where(energy > floor, fit / np.sqrt(np.maximum(energy, floor) + 1e-60), -1.0)
    best = match.argmax(axis=-1)
    best = np.where(2 * best >= plan.half, best - plan.half, best)
    return np.asarray(cfo + best / plan.half)


def _over_frequency(values: C128 | F64, pattern: C128 | F64) -> F64:
    """Return (row, shift) the real part of Σ over k of conj(pattern[k])·values[k + shift], circular."""
    return np.fft.ifft(np.fft.fft(values, axis=-1) * np.fft.fft(pattern).conj(), axis=-1).real


def indices(flags: NDArray[np.bool_]) -> I64:
    """Return (row,) indices at which a flag is set."""
    return flags.nonzero()[0]


def cycles_between(a: C128, b: C128) -> F64:
    """Return (row,) the phase in cycles, −½ to ½, from `a` to `b`, both (row, …)."""
    product = dot(a, b)
    return np.arctan2(product.imag, product.real) / (2 * np.pi)


def dot(a: C128, b: C128) -> C128:
    """Return (row,) Σ conj(a)·b over all other axes."""
    n = math.prod(a.shape[1:])
    product: C128 = (a.conj().reshape(-1, 1, n) @ b.reshape(-1, n, 1))[:, 0, 0]
    return product


def energy(a: C128, axes: int = 2) -> F64:
    """Return Σ|a|² over all but the first `axes` axes."""
    n = math.prod(a.shape[axes:])
    flat = a.view(np.float64).reshape(-1, 2 * n)
    total: F64 = (flat[:, None, :] @ flat[:, :, None]).reshape(a.shape[:axes])
    return total


def phasors(cfo: F64, n: NDArray[np.int64]) -> C128:
    """Return (row, n) exp(−2πi·cfo·n); sine and cosine apart are faster than the complex exponential."""
    angle = (-2 * np.pi * cfo)[:, None] * n
    out = np.empty(angle.shape, dtype=np.complex128)
    np.cos(angle, out=out.real)
    np.sin(angle, out=out.imag)
    return out


def phasors_along(cfo: F64, n: int) -> C128:
    """Return (row, n) exp(−2πi·cfo·k) for k from 0 to n − 1, from those of every 16th and of the first 16."""
    step = 16
    rough, fine = phasors(cfo, np.arange(0, n, step)), phasors(cfo, np.arange(step))
    return (rough[:, :, None] * fine[:, None, :]).reshape(cfo.size, step * rough.shape[1])[:, :n]
