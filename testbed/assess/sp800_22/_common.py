"""Functions that several tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64, U8


def igamc(a: float, x: F64) -> F64:
    """Regularised upper incomplete gamma function, "igamc" in the standard."""
    from scipy.special import gammaincc

    return np.asarray(gammaincc(a, x), dtype=np.float64)


def erfc(x: F64) -> F64:
    """Complementary error function."""
    from scipy.special import erfc as scipy_erfc

    return np.asarray(scipy_erfc(x), dtype=np.float64)


def chi2_p(seen: NDArray[np.int64] | F64, expected: F64) -> F64:
    """Return (…,) p-values of counts (…, class) where `expected` (class,) are expected, one class being dependent."""
    chi2 = ((seen - expected) ** 2 / expected).sum(axis=-1)
    return igamc((expected.size - 1) / 2.0, chi2 / 2.0)


def windows(bits: U8, length: int) -> NDArray[Any]:
    """Return (…, bit − length + 1) the overlapping windows of `length` bits as numbers, first bit most significant.

    The smallest unsigned type that holds them. `length` is 1 to 32.
    """
    dtype = np.dtype(np.uint8 if length <= 8 else np.uint16 if length <= 16 else np.uint32).type
    out: NDArray[Any] = bits.astype(dtype)
    have = 1
    while have < length:  # by doubling: windows of 1, 2, 4, … bits
        step = min(have, length - have)
        out = (out[..., :-step] << dtype(step)) | (out[..., step:] & dtype((1 << step) - 1))
        have += step
    return out


def rows_of_counts(numbers: NDArray[np.integer], n_values: int) -> I64:
    """Return (row, value) how often each value below `n_values` is in each row of (row, number)."""
    n_rows = numbers.shape[0]
    flat = numbers + (np.arange(n_rows, dtype=np.int64) * n_values)[:, None]
    counts: I64 = np.bincount(flat.ravel(), minlength=n_rows * n_values).reshape(n_rows, n_values)
    return counts
