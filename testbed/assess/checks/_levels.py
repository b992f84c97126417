"""Medians of levels that lack values, shared by the checks."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64


def centred(values: F64) -> F64:
    """Remove each dimension's median over probes."""
    return values - row_median(values.T)[None, :]


def row_median(values: F64) -> F64:
    """Return (row,) the median of a row's valid values; NaN where it has none."""
    out = np.full(values.shape[0], np.nan)
    some = np.isfinite(values).any(axis=1)
    out[some] = np.nanmedian(values[some], axis=1)
    return out
