"""Finds defects in a receiver's CSI without the other end's help; they are masked or repaired by rule, and reported.

A bin is one subcarrier of one antenna pair. The rules:

- Missing values (NaN, or exactly zero) of a bin that otherwise measures are filled in from the neighbouring bins.
- A dead bin (missing in most frames, stuck at one level, or 30 dB below the bins around it) and a jumping bin (its
  level against its neighbours varies far more than that of other bins) are filled in, too, and marked as guessed: a
  feature most of whose bins are guessed is left out (`chain.enhance`).
- A single value far above its neighbours is filled in.
- A frame with more than half of its values missing, and a frame whose level is far off that of the frames around it, is
  left out, as if it had not been received.
- A lasting step of the level that is the same in all bins is a step of the receiver's gain: the frames after it are
  brought to the level before it.

Every rule uses the CSI of one end only, so neither end learns anything about the other's measurement. Whether a frame
or a feature is left out is public in any case, because the quantizer publishes what it keeps. A mirrored or shifted
spectrum can only be found with the CSI of both ends: a health check (`assess.checks.bin_order`) reports it, and a
replay repairs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64, CsiSeries

C128 = NDArray[np.complex128]
Mask = NDArray[np.bool_]

LEAST_FRAMES = 32
"""With fewer frames only missing values are judged."""
_LEAST_BINS = 8
"""With fewer bins, none can be compared with its neighbours."""
_LEAST_GOOD = 4
_FAINT_DB = 30.0
_AROUND = 6
"""Number of bins on each side with which a faint bin is compared."""
_STUCK = 0.02
"""A bin is stuck if its spread is below this share of the typical bin's."""
_JUMP_DB, _JUMP = 3.0, 5.0
"""A bin jumps if its spread exceeds this number of dB and this multiple of the typical bin's."""
_WEAK_DB = 6.0
"""A bin is weak if its level is this far below the mean of its two neighbours."""
_USUAL_BINS = 75
"""Percentile of the bins that defines the typical one."""
_SPIKE_DB, _SPIKE = 12.0, 8.0
_FRAMES_AROUND = 31
_UP_DB, _UP = 12.0, 5.0
_DOWN_DB, _DOWN = 20.0, 8.0
"""Limits of a frame's level, in dB and in standard deviations, below and above: fades are deep, rises are small."""
_STEP_DB, _STEP = 3.0, 5.0
_SHAPE_DB, _SHAPE = 1.5, 0.25
"""A step of the median is one of the gain if the bins' steps differ by less than this, in dB or as a share of the step.
"""
_SUDDEN_DB, _SUDDEN = 0.5, 0.15
"""The same limits for a step between two frames."""
_FRAMES_LONG = 8
"""A step must last for at least this number of frames, or to the end of the series."""
_FADES = 0.7
"""Ratio of the change between neighbouring frames to that over some frames; it is 1 if frames are independent."""
_SELECTIVE_DB = 1.0
"""Least variation over time of the differences between bins at which gain steps are searched: a step of the channel
then changes the shape over frequency, and can be told from a step of the gain."""
_FEW_STEPS, _FRAMES_A_STEP = 2, 128
"""If there are more steps than the first number, or more than one per second number of frames, the channel steps and
not the gain."""


@dataclass(frozen=True, slots=True)
class Defects:
    """The defects of one series. A bin is listed if it is defective in at least one antenna pair."""

    dead_bins: tuple[int, ...] = ()
    """Positions along the subcarrier axis."""
    jumping_bins: tuple[int, ...] = ()
    filled_values: int = 0
    """Missing values and spikes in bins that otherwise measure."""
    broken_frames: int = 0
    outlier_frames: int = 0
    level_steps: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of each kind of defect, by name, without zeros."""
        found = {
            "dead_bins": len(self.dead_bins),
            "jumping_bins": len(self.jumping_bins),
            "filled_values": self.filled_values,
            "broken_frames": self.broken_frames,
            "outlier_frames": self.outlier_frames,
            "level_steps": self.level_steps,
        }
        return {name: n for name, n in found.items() if n}

    @property
    def bins(self) -> list[int]:
        """Return the positions of dead and jumping bins, ascending."""
        return sorted({*self.dead_bins, *self.jumping_bins})


def mend(csi: CsiSeries, drop_frames: bool = True) -> tuple[CsiSeries, Defects]:
    """Return the series without its defects, and a list of them; the same series if there are none.

    `drop_frames`: outlier frames become NaN. Otherwise they get the level of the frames around them, as is best for an
    Eve, who wants every frame. An antenna pair with fewer than `_LEAST_GOOD` good bins is not changed, because these
    are too few to interpolate from. Deterministic; the input is not changed.
    """
    level = _levels_db(csi.h)
    if np.isfinite(level).all() and len(level) < LEAST_FRAMES:
        return csi, Defects()
    n_pairs = csi.h.shape[1] * csi.h.shape[2]
    h = csi.h.reshape(len(csi.h), n_pairs, -1).astype(np.complex128)
    level = level.reshape(h.shape)
    dead, jumping = np.zeros(h.shape[1:], bool), np.zeros(h.shape[1:], bool)
    holes = np.zeros(h.shape, bool)
    broken = np.zeros(len(h), bool)
    for i in range(n_pairs):
        pair = _look(level[:, i])
        dead[i], jumping[i], holes[:, i] = pair.dead, pair.jumping, pair.holes
        broken |= pair.broken
    holes[broken] = False
    bad = dead | jumping
    for i in range(n_pairs):
        _fill(h[:, i], holes[:, i] | (bad[i] & _present(level[:, i])[:, None]), csi.subcarrier_hz)
    h[broken] = np.nan
    gain_db, outliers, n_steps = _frames(h, bad)
    if outliers.any() and drop_frames:
        h[outliers] = np.nan
        gain_db[outliers] = 0.0
    h *= (10.0 ** (gain_db / 20.0))[:, None, None]
    found = Defects(
        dead_bins=tuple(np.flatnonzero(dead.any(axis=0)).tolist()),
        jumping_bins=tuple(np.flatnonzero(jumping.any(axis=0)).tolist()),
        filled_values=int(holes.sum()),
        broken_frames=int(broken.sum()),
        outlier_frames=int(outliers.sum()),
        level_steps=n_steps,
    )
    if not found.counts:
        return csi, found
    guessed = bad.reshape(csi.h.shape[1:]) if bad.any() else None
    return replace(csi, h=h.reshape(csi.h.shape).astype(np.complex64), guessed=guessed), found


def _levels_db(h: NDArray[np.complex64]) -> F64:
    """Return 20·log10 |h|, NaN where nothing was measured: NaN, infinite, or exactly zero."""
    level = np.abs(h).astype(np.float64)
    out: F64 = 20.0 * np.log10(np.where((level > 0) & np.isfinite(level), level, np.nan))
    return out


def _present(level: F64) -> Mask:
    """Return (frame,) whether a frame of levels (frame, bin) has any value."""
    out: Mask = np.asarray(np.isfinite(level).any(axis=1))
    return out


# ---------------------------------------------------------------- bins of one antenna pair


@dataclass(frozen=True, slots=True)
class _Pair:
    dead: Mask
    """(bin,)"""
    jumping: Mask
    holes: Mask
    """(frame, bin) single values that are missing or spikes, in bins that otherwise measure."""
    broken: Mask
    """(frame,)"""


def _look(level: F64) -> _Pair:
    """Judge levels (frame, bin) in dB."""
    n, n_bins = level.shape
    present = _present(level)
    none, no_holes = np.zeros(n_bins, bool), np.zeros(level.shape, bool)
    if n_bins < 2 or not present.any():
        return _Pair(none, none, no_holes, np.zeros(n, bool))
    seen = level[present]
    enough = len(seen) >= LEAST_FRAMES and n_bins >= _LEAST_BINS
    dead: Mask = _dead(seen) if enough else np.asarray(np.isnan(seen).all(axis=0))
    if n_bins - dead.sum() < min(_LEAST_GOOD, n_bins):
        return _Pair(none, none, no_holes, np.zeros(n, bool))
    missing = ~np.isfinite(level) & ~dead
    broken = present & (2 * missing.sum(axis=1) > n_bins - dead.sum())
    jumping, spikes = _jumping(level, dead, present & ~broken) if enough else (none, no_holes)
    holes = (missing | spikes) & present[:, None] & ~jumping
    return _Pair(dead, jumping, holes, broken)


def _dead(level: F64) -> Mask:
    """Return (bin,) whether a bin is dead, from levels (frame, bin) of received frames."""
    gone = np.isfinite(level).mean(axis=0) <= 0.5
    middle, spread = np.full(gone.size, np.nan), np.full(gone.size, np.nan)
    middle[~gone] = np.nanmedian(level[:, ~gone], axis=0)
    # Percentiles are used because a stuck bin may have outliers, too.
    low, high = np.nanpercentile(level[:, ~gone], (10, 90), axis=0)
    spread[~gone] = high - low
    usual = float(np.nanmedian(spread)) if not gone.all() else 0.0
    stuck = spread <= _STUCK * usual
    sides = [np.r_[middle[max(0, k - _AROUND) : k], middle[k + 1 : k + 1 + _AROUND]] for k in range(gone.size)]
    around = np.array([_middle(side) for side in sides])
    with np.errstate(invalid="ignore"):
        faint = middle < around - _FAINT_DB
    return gone | stuck | faint


def _middle(values: F64) -> float:
    """Return the median of the finite values, NaN where there are none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan


def _jumping(level: F64, dead: Mask, sound: Mask) -> tuple[Mask, Mask]:
    """Return (bin,) whether a bin jumps against its neighbours, and (frame, bin) single values that are far above
    theirs.

    The worst bin is removed, again and again until none is bad, because it makes its neighbours look bad.
    """
    jumping, weak = np.zeros(dead.size, bool), _weak(level[sound], dead)
    while True:
        bad = dead | jumping | weak
        apart = _apart(level[sound], bad)
        spread = np.full(bad.size, -1.0)
        spread[~bad] = np.nanpercentile(np.abs(apart[:, ~bad]), 75, axis=0)
        # A high percentile is used, not the median: if bins come in groups of equal values, only those at the borders
        # of the groups differ from their neighbours, and these are sound.
        usual = float(np.percentile(spread[~bad], _USUAL_BINS))
        worst = int(spread.argmax())
        if spread[worst] <= max(_JUMP_DB, _JUMP * usual) or 2 * (bad.sum() + 1) > bad.size:
            break
        jumping[worst] = True
    spikes, bad = np.zeros(level.shape, bool), dead | jumping
    with np.errstate(invalid="ignore"):
        # The value must also exceed the bin's own usual level: in a deep fade of the whole band, all values are noise.
        high = level[sound] > np.nanmedian(np.where(bad, 0.0, level[sound]), axis=0)
        spikes[sound] = high & (_above(level[sound], bad) > max(_SPIKE_DB, _SPIKE * usual))
    return jumping, spikes


def _weak(level: F64, dead: Mask) -> Mask:
    """Return (bin,) whether a bin lies in a lasting null of the channel: noise makes it vary, but it is sound."""
    usual = np.full(dead.size, np.nan)
    usual[~dead] = np.nanmedian(level[:, ~dead], axis=0)
    good = np.flatnonzero(~dead)
    beside = (np.r_[usual[good[1]], usual[good[:-1]]] + np.r_[usual[good[1:]], usual[good[-2]]]) / 2
    weak = np.zeros(dead.size, bool)
    weak[good] = usual[good] < beside - _WEAK_DB
    return weak


def _above(level: F64, bad: Mask) -> F64:
    """Return (frame, bin) how far each level lies above the highest of the two good ones to each side; NaN elsewhere.

    Their mean is not used, because values next to a null of the channel are often above it.
    """
    good = np.flatnonzero(~bad)
    padded = np.pad(np.nan_to_num(level[:, good], nan=-np.inf), ((0, 0), (2, 2)), constant_values=-np.inf)
    highest = np.maximum.reduce([padded[:, i : i + good.size] for i in (0, 1, 3, 4)])
    out = np.full(level.shape, np.nan)
    with np.errstate(invalid="ignore"):
        out[:, good] = level[:, good] - highest
    return out


def _apart(level: F64, bad: Mask) -> F64:
    """Return (frame, bin) each level less the mean level of its good neighbours, and less the usual such difference."""
    good = np.flatnonzero(~bad)
    left, right = np.r_[good[1], good[:-1]], np.r_[good[1:], good[-2]]
    out = np.full(level.shape, np.nan)
    pair = np.stack([level[:, left], level[:, right]])
    n = np.isfinite(pair).sum(axis=0)
    mean = np.where(n > 0, np.nansum(pair, axis=0) / np.maximum(n, 1), np.nan)
    apart = level[:, good] - mean
    known = np.isfinite(apart).any(axis=0)
    apart[:, known] -= np.nanmedian(apart[:, known], axis=0)
    apart[:, ~known] = 0.0
    out[:, good] = apart
    return out


def _fill(h: C128, holes: Mask, subcarrier_hz: F64) -> None:
    """Fill (frame, bin) values in, by linear interpolation between the good bins, after the mean slope of phase is
    removed.
    """
    rows = np.flatnonzero(holes.any(axis=1))
    if not rows.size or holes[rows].all(axis=1).any():
        rows = rows[~holes[rows].all(axis=1)]
    if not rows.size:
        return
    f = subcarrier_hz
    pitch = float(np.diff(f).min()) if f.size > 1 else 1.0
    near = np.isclose(np.diff(f), pitch)
    patterns, which = np.unique(holes[rows], axis=0, return_inverse=True)
    which = which.reshape(-1)
    for i, pattern in enumerate(patterns):
        own = rows[which == i]
        good = ~pattern
        frames = h[own]
        frames[:, pattern] = 0.0
        steps = (frames[:, 1:] * np.conj(frames[:, :-1]))[:, near]
        turn = np.exp(-1j * np.angle(steps.sum(axis=1))[:, None] * (f / pitch))
        flat = (frames * turn)[:, good] @ _lines(f[good], f[pattern])
        h[np.ix_(own, pattern)] = flat * np.conj(turn[:, pattern])


def _lines(known: F64, wanted: F64) -> F64:
    """Return (known, wanted) weights of linear interpolation; beyond the ends, the last value."""
    return np.array([np.interp(wanted, known, row) for row in np.eye(known.size)])


# ---------------------------------------------------------------- frames


def _frames(h: C128, bad: Mask) -> tuple[F64, Mask, int]:
    """Return (frame,) gains in dB that level the frames of h (frame, pair, bin), the outliers, and how many steps."""
    gain_db, outliers = np.zeros(len(h)), np.zeros(len(h), bool)
    level = _levels_db(h.astype(np.complex64))
    level[:, bad] = np.nan
    level = level.reshape(len(h), -1)
    rows = np.flatnonzero(_present(level))
    if rows.size < LEAST_FRAMES:
        return gain_db, outliers, 0
    bins = level[rows]
    bins = bins[:, np.isfinite(bins).all(axis=0)]
    if not bins.shape[1]:
        return gain_db, outliers, 0
    whole = np.median(bins, axis=1)
    usual = _medians_around(whole, min(_FRAMES_AROUND, rows.size | 1))
    off = whole - usual
    spread = 1.4826 * float(np.median(np.abs(off)))
    strange = (off > max(_UP_DB, _UP * spread)) | (off < -max(_DOWN_DB, _DOWN * spread))
    outliers[rows[strange]] = True
    gain_db[rows[strange]] = -off[strange]
    calm = rows[~strange]
    if bins.shape[1] < _LEAST_BINS:  # a step of the gain cannot be told from one of the channel
        return gain_db, outliers, 0
    steps = gain_steps(bins[~strange])
    for at, step_db in steps:
        gain_db[calm[at] :] -= step_db
    return gain_db, outliers, len(steps)


def _medians_around(values: F64, window: int) -> F64:
    """Return the median of the values in an odd window around each; the first and the last value continue outside."""
    padded = np.pad(values, window // 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1))


def gain_steps(level: F64) -> list[tuple[int, float]]:
    """Return where the gain of a receiver stepped, as (first frame after it, step in dB), of levels (frame, bin) in dB.

    A step is larger than the usual change of the level, from frame to frame or in the median of many frames, and is the
    same in all bins. No step is returned where there are many of them, because then the channel steps, as under a
    surface whose patterns are each held for some rounds; nor in a channel that is flat over the band, where steps of
    gain and channel cannot be told apart.
    """
    shape = level - np.median(level, axis=1, keepdims=True)
    selective_db = 1.4826 * float(np.median(np.abs(shape - np.median(shape, axis=0))))
    if len(level) < LEAST_FRAMES or selective_db < _SELECTIVE_DB:
        return []
    sudden = _sudden(level)
    if len(sudden) > max(_FEW_STEPS, len(level) // _FRAMES_A_STEP):
        return []
    rest = level.copy()
    for at, step_db in sudden:
        rest[at:] -= step_db
    found = sorted(sudden + _lasting(rest))
    return found if len(found) <= max(_FEW_STEPS, len(level) // _FRAMES_A_STEP) else []


def _sudden(level: F64) -> list[tuple[int, float]]:
    """Return the steps between two frames of a channel that changes little from one to the next."""
    by_bin = np.diff(level, axis=0)
    step = np.median(by_bin, axis=1)
    limit = max(_STEP_DB, _STEP * 1.4826 * float(np.median(np.abs(step))))
    apart = 1.4826 * np.median(np.abs(by_bin - step[:, None]), axis=1)
    which = np.flatnonzero((np.abs(step) > limit) & (apart < np.maximum(_SUDDEN_DB, _SUDDEN * np.abs(step))))
    whole, found = np.median(level, axis=1), []
    for at in (which + 1).tolist():
        after, before = whole[at : at + _FRAMES_LONG], whole[max(0, at - _FRAMES_LONG) : at]
        if 0.5 < (np.median(after) - np.median(before)) / step[at - 1] < 2.0:
            found.append((at, float(step[at - 1])))
    return found


def _lasting(level: F64) -> list[tuple[int, float]]:
    """Return the steps of the median over many frames; none where the channel does not fade from frame to frame."""
    window = int(np.clip(len(level) // 8, 8, 64))
    whole = np.median(level, axis=1)
    around = _medians_around(whole, _FRAMES_AROUND)
    if np.median(np.abs(np.diff(whole))) < _FADES * np.sqrt(2.0) * np.median(np.abs(whole - around)):
        return []
    medians = np.median(np.lib.stride_tricks.sliding_window_view(whole, window), axis=1)
    step = medians[window:] - medians[:-window]
    limit = max(_STEP_DB, _STEP * 1.4826 * float(np.median(np.abs(step - np.median(step)))))
    found = []
    strength = np.abs(step)
    while strength.max() > limit:
        middle = int(strength.argmax())
        at = _change(whole[middle : middle + 2 * window]) + middle
        before, after = level[max(0, at - window) : at], level[at : at + window]
        by_bin = np.median(after, axis=0) - np.median(before, axis=0)
        size = float(np.median(by_bin))
        # the standard deviation of a difference of medians without a step, from fading alone
        fading = 1.4826 * np.median(np.abs(after - np.median(after, axis=0))) * 1.25 * np.sqrt(2.0 / window)
        same = max(_SHAPE_DB, _SHAPE * abs(size), 1.5 * fading)
        if 1.4826 * np.median(np.abs(by_bin - size)) < same and abs(size) > limit:
            found.append((at, size))
        strength[max(0, middle - 2 * window) : middle + 2 * window + 1] = 0.0
    return found


def _change(series: F64) -> int:
    """Return the index of the first value after the change of mean that fits a series best."""
    n = series.size
    at: I64 = np.arange(1, n)
    sums = np.cumsum(series)
    left, right = sums[:-1] / at, (sums[-1] - sums[:-1]) / (n - at)
    return int((at * (n - at) * (left - right) ** 2).argmax()) + 1
