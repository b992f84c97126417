"""How well two ends agree: correlation of their measurements, disagreement of their bits.

Values are (probe, dimension) in dB or magnitude, NaN where an end has none; only probes that both have count.
"""

from __future__ import annotations

import math

import numpy as np

from testbed.core.types import C64, F64, U8

MIN_PROBES = 8
"""A correlation over fewer common probes is not reported."""


def level_db(h: C64) -> F64:
    """Return (probe, dimension) levels in dB of CSI (probe, rx, tx, subcarrier), NaN where there is none.

    `csi_correlation_*` and the health checks use these levels: every subcarrier, unchanged by any stage of the chain.
    """
    level = np.abs(h).reshape(h.shape[0], -1).astype(np.float64)
    out: F64 = 20.0 * np.log10(np.where(level > 0, level, np.nan))
    return out


def correlations(a: F64, b: F64) -> F64:
    """Return Pearson's r over probes, (dimension,); NaN where a side is constant or has under MIN_PROBES in common."""
    both = np.isfinite(a) & np.isfinite(b)
    count = both.sum(axis=0)
    safe = np.maximum(count, 1)
    if both.all():  # the same result, in half the time
        x, y = a - a.sum(axis=0) / safe, b - b.sum(axis=0) / safe
    else:
        x, y = (np.where(both, z, 0.0) for z in (a, b))
        x, y = (np.where(both, z - z.sum(axis=0) / safe, 0.0) for z in (x, y))
    xx, yy, xy = (x * x).sum(axis=0), (y * y).sum(axis=0), (x * y).sum(axis=0)
    # In a constant column only the rounding errors of the mean remain, which do not count as variation.
    varies = (xx > 1e-18 * safe) & (yy > 1e-18 * safe) & (count >= MIN_PROBES)
    r: F64 = np.full(a.shape[1], np.nan)
    r[varies] = np.clip(xy[varies] / np.sqrt(xx[varies] * yy[varies]), -1.0, 1.0)
    return r


def correlation(a: F64, b: F64) -> float | None:
    """Return Pearson's r over probes averaged over dimensions; None where no dimension has one."""
    r = correlations(a, b)
    r = r[np.isfinite(r)]
    return float(r.mean()) if r.size else None


def pooled(a: F64, b: F64) -> float | None:
    """Return Pearson's r over all values at once: differences between dimensions count as variation."""
    return correlation(a.reshape(-1, 1), b.reshape(-1, 1))


def detrend(values: F64, method: str = "difference", window: int = 31) -> F64:
    """Remove what changes slowly along probes.

    difference: minus the previous probe (the first row becomes NaN). median: minus the median of the `window` probes
    around each (an odd number; fewer at the ends). For judging a channel, not for making keys.
    """
    if method == "difference":
        out = np.full_like(values, np.nan)
        out[1:] = values[1:] - values[:-1]
        return out
    if method != "median":
        raise ValueError(f"method = {method!r}, accepted: difference, median")
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window = {window}, accepted: odd numbers from 3")
    if values.shape[0] == 0:
        return values.copy()
    half = window // 2
    edge = np.full((half, values.shape[1]), np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([edge, values, edge]), window, axis=0)
    return values - _nanmedian(windows)


def detrended(a: F64, b: F64, method: str = "difference", window: int = 31) -> float | None:
    """Return the mean correlation of what changes from probe to probe.

    Where it is far below `correlation`, the ends share a slow drift (path loss, temperature) rather than fading.
    """
    return correlation(detrend(a, method, window), detrend(b, method, window))


def disagreement(a: U8, b: U8) -> float | None:
    """Return the key disagreement rate: the share of (bit,) positions that differ; None for no bits."""
    if a.shape != b.shape:
        raise ValueError(f"strings of {a.size} and {b.size} bits, accepted: equal lengths")
    return float(np.count_nonzero(a != b) / a.size) if a.size else None


def interval(wrong: int, of: int) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of a rate of which `wrong` in `of` were counted; None for none.

    Wilson's score interval (Wilson 1927), which is also valid for rates near 0 and for small counts; it assumes that
    the bits are independent.

    >>> tuple(round(end, 4) for end in interval(0, 100))
    (0.0, 0.037)
    """
    if of <= 0:
        return None
    z = 1.959964
    p, scale = wrong / of, 1.0 + z * z / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _nanmedian(windows: F64) -> F64:
    """Median of the valid values on the last axis without numpy's warning for rows that have none."""
    ordered = np.sort(windows, axis=-1)  # NaN last
    count = np.isfinite(ordered).sum(axis=-1)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    high = np.take_along_axis(ordered, (count // 2)[..., None].clip(max=windows.shape[-1] - 1), axis=-1)[..., 0]
    out: F64 = np.where(count > 0, (low + high) / 2.0, np.nan)
    return out
