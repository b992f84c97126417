"""What the enhancers share: CSI → scale → nearly independent dimensions → detrended rows.

The quantizers get real numbers of one of three scales. Levels (`db`, `magnitude`) are the same at both ends,
independent of the oscillators. `complex` keeps the phases over frequency, twice as many dimensions, and needs
`aligned`: a frame's common phase depends on two free-running oscillators and its delay on the receiver's search, so
neither is reciprocal, and each end removes its own estimate of them from its frame. CSI without phases (RSSI,
amplitudes only) has nothing that `complex` could keep, so there it gives the same as `db`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from testbed.core.options import StageOptions
from testbed.core.types import F64, CsiSeries, Features

C128 = NDArray[np.complex128]

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
ScaleName = Literal["db", "magnitude", "complex"]
Detrend = Literal["none", "difference", "highpass"]

# Magnitudes from complex64 have rounding errors of about 1e-6 dB. To fewer decimals, equal measurements (RSSI in steps
# of 1 dB) are equal again, so that the quantizers at both ends see the same ties.
_DB_DECIMALS = 5
_FINER = 2
"""Number of delays per sample of the bandwidth at which the delay profile is computed."""


class ScaleOptions(StageOptions, frozen=True):
    """Options of all enhancers whose features follow from CSI by a scale; the same at both ends."""

    step: Count = 8
    """Subcarriers averaged into one dimension; about a coherence bandwidth makes dimensions nearly independent."""
    scale: ScaleName = "db"
    """db: 20·log10 |h|; magnitude: |h|; complex: Re h and Im h of each frame without its delay and common phase."""
    detrend: Detrend = "none"
    """difference: minus the previous probe; highpass: minus the mean of the probes before. For channels that drift
    slowly, since Eve can know a slowly varying level as well as the ends."""
    align: bool = True
    """With complex: whether each frame's delay and common phase are removed; false only where the radios share clock
    and phase."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """How magnitudes become features; the same options at both ends."""

    step: int
    """Subcarriers averaged into one dimension; about a coherence bandwidth makes dimensions nearly independent."""
    scale: ScaleName
    """db: 20·log10 |h|; magnitude: |h|; complex: Re h and Im h of aligned CSI."""
    detrend: Detrend
    """none; difference: minus the previous probe; highpass: minus the mean of the `window` probes before."""
    window: int
    align: bool = True
    """Whether each frame's delay and common phase are removed; false only where radios share clock and phase."""

    def phases(self, csi: CsiSeries) -> C128:
        """Return the CSI (probe, rx antenna, tx antenna, subcarrier) in the form that `complex` takes."""
        return aligned(csi) if self.align and not self.levels(csi) else csi.h.astype(np.complex128)

    def levels(self, csi: CsiSeries) -> bool:
        """Whether this CSI gives levels only, because it has no phases or alignment would remove that of its only
        subcarrier."""
        return (self.align and csi.h.shape[-1] < 2) or levels_only(csi)

    def apply(self, h: F64 | C128, csi: CsiSeries) -> Features:
        """Return features of h (probe, rx antenna, tx antenna, subcarrier), complex or, for levels, |h|.

        Dimension = ((rx · n_tx) + tx) · n_groups + group, groups of subcarriers in ascending order; with `complex`
        (((rx · n_tx) + tx) · 2 + part) · n_groups + group, part 0 being Re; or as for `db` where there are only
        `levels`. NaN in, NaN out; a magnitude ≤ 0 has no dB value and becomes NaN, too. A group is NaN in every row
        where this end guessed most of its subcarriers.
        """
        scale = "db" if self.scale == "complex" and self.levels(csi) else self.scale
        grouped = group_subcarriers(h if scale == "complex" else np.abs(h), self.step)
        if csi.guessed is not None:
            grouped[:, group_subcarriers(csi.guessed, self.step) > 0.5] = np.nan
        if scale == "complex":
            grouped = np.stack([grouped.real, grouped.imag], axis=3)
        values: F64 = grouped.reshape(grouped.shape[0], -1)
        if scale == "db":
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.round(20.0 * np.log10(values), _DB_DECIMALS)
            values[~np.isfinite(values)] = np.nan
        if self.detrend == "difference":
            values = difference(values)
        elif self.detrend == "highpass":
            values = highpass(values, self.window)
        return Features(values=values, rounds=csi.rounds)


def levels_only(csi: CsiSeries) -> bool:
    """Whether this CSI has no phases, as RSSI: some value is known, and every known one is real and not negative."""
    known = csi.h[np.isfinite(csi.h)]
    return bool(known.size and not known.imag.any() and (known.real >= 0.0).all())


def of_levels(csi: CsiSeries) -> CsiSeries:
    """Return the CSI without its phases."""
    return replace(csi, h=np.abs(csi.h).astype(np.complex64))


def magnitudes(csi: CsiSeries) -> F64:
    """Return |h| as float64, (probe, rx antenna, tx antenna, subcarrier)."""
    out: F64 = np.abs(csi.h).astype(np.float64)
    return out


def aligned(csi: CsiSeries) -> C128:
    """Return the CSI, (probe, rx antenna, tx antenna, subcarrier), without each frame's mean delay and common phase.

    For every antenna pair by itself, the mean slope of the phase over frequency is removed. Then all values are rotated
    such that Σ_τ g(τ)·|g(τ)| over the delay profile g is real and positive: strong taps count most, and nearly equal
    ones count nearly the same. Every rule makes the two ends differ in some frames, because no phase reference is a
    continuous function of the channel everywhere (Borsuk–Ulam). With this rule, these are the frames whose strong taps
    cancel.
    """
    h = csi.h.astype(np.complex128)
    f = csi.subcarrier_hz
    if f.size < 2:
        return np.abs(h).astype(np.complex128)
    pitch = float(np.diff(f).min())
    near = np.isclose(np.diff(f), pitch)  # the gap at DC is wider
    with np.errstate(invalid="ignore"):
        slope = np.angle((h[..., 1:] * np.conj(h[..., :-1]))[..., near].sum(axis=-1))  # rad per subcarrier
        h *= np.exp(-1j * slope[..., None] * (f / pitch))
        delays = np.arange(_FINER * f.size) / (_FINER * f.size)
        taps = h @ np.exp(2j * np.pi * np.outer(f / pitch, delays))
        reference = (taps * np.abs(taps)).sum(axis=-1, keepdims=True)
        h *= np.exp(-1j * np.angle(reference))
    return h


def group_subcarriers(magnitude: Any, step: int) -> Any:
    """Average every `step` neighbouring subcarriers (last axis).

    An incomplete last group is left out; a band narrower than one step is one group.
    """
    n = magnitude.shape[-1]
    step = min(step, n)
    used = magnitude[..., : n - n % step]
    return used.reshape(*magnitude.shape[:-1], n // step, step).mean(axis=-1)


def difference(values: F64) -> F64:
    """Subtract the previous row from each (probe, dimension); the first row is NaN."""
    out = np.full_like(values, np.nan)
    out[1:] = values[1:] - values[:-1]
    return out


def highpass(values: F64, window: int) -> F64:
    """Subtract from each row the mean of the valid rows among the `window` before it (probe, dimension).

    Only earlier rows are used, so that a node can compute it while probing and both ends get the same result. A row
    with fewer than half a window of valid predecessors is NaN, because their mean would be mostly noise.
    """
    valid = np.isfinite(values)
    level = (
        values[valid][0] if valid.any() else 0.0
    )  # subtracting the first value keeps the running sums small, and is causal
    zero = np.zeros((1, values.shape[1]))
    sums = np.concatenate([zero, np.cumsum(np.where(valid, values - level, 0.0), axis=0)])
    counts = np.concatenate([zero, np.cumsum(valid, axis=0, dtype=np.float64)])
    row = np.arange(values.shape[0])
    start = np.maximum(row - window, 0)
    count = counts[row] - counts[start]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (sums[row] - sums[start]) / count + level
    out: F64 = np.where(count >= max(1, window // 2), values - mean, np.nan)
    return out
