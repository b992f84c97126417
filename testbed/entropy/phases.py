"""Complex combinations of unknown phase: |Φw| fitted to amplitudes, with one free phase per probe.

Radios have no common phase, so Alice's CSI has an unknown phase in each probe, the same for all of her channels. The
fit alternates between two steps: it computes the phases from the present coefficients, and the coefficients from these
phases by least squares (Gerchberg and Saxton 1972; from the leading eigenvector: Netrapalli, Jain and Sanghavi 2015).
"""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.facts import C128

_TURNS = 24
_RIDGE = 1e-6


def amplitudes(phi: C128, h: C128 | F64) -> F64:
    """Return (probe, channel) |Φw|, w fitted for each channel at the probes where h is known.

    phi (probe, coefficient); rows with NaN get NaN. h (probe, channel), NaN where hidden, is either complex with one
    free phase per probe, or real ≥ 0 with a free phase for each probe and channel. At the probes of the fit, the
    amplitude is that of a fit without the probe itself (by its leverage).
    """
    heard = np.isfinite(phi).all(axis=1)
    teach = heard & np.isfinite(h).all(axis=1)
    out = np.full(h.shape, np.nan)
    if np.count_nonzero(teach) <= phi.shape[1] + 8:
        return out
    scale = np.sqrt((np.abs(phi[teach]) ** 2).mean(axis=0))
    a: C128 = np.asarray(phi / np.where(scale > 0, scale, 1.0), np.complex128)
    at = a[teach]
    gram = at.conj().T @ at + _RIDGE * at.shape[0] * np.eye(at.shape[1])
    solve = np.asarray(np.linalg.solve(gram, at.conj().T), np.complex128)
    leverage = np.clip(np.einsum("ij,ji->i", at, solve).real, 0.0, 0.95)
    fitted = _best(at, solve, h[teach])
    out[heard] = np.abs(a[heard] @ fitted)
    # This is the value that a linear fit without this probe gives: the residual grows by 1/(1 − leverage).
    amplitude = np.abs(h[teach])
    own = amplitude - (amplitude - out[teach]) / (1.0 - leverage[:, None])
    out[teach] = np.maximum(own, 1e-3 * amplitude.mean(axis=0))
    return out


def _best(a: C128, solve: C128, h: C128 | F64) -> C128:
    """Return (coefficient, channel) of the start that gives the best fit."""
    starts = [_spectral(a, np.abs(h))]
    if np.iscomplexobj(h):
        starts.append(solve @ h)
        if h.shape[1] > 1:
            starts.append(solve @ (h * np.exp(-1j * np.angle(h[:, :1]))))
    ends = [_by_turns(a, solve, h, w) for w in starts]
    errors = [((np.abs(a @ w) - np.abs(h)) ** 2).sum(axis=0) for w in ends]
    best = np.argmin(errors, axis=0)
    return np.stack(ends)[best, :, np.arange(h.shape[1])].T


def _by_turns(a: C128, solve: C128, h: C128 | F64, w: C128) -> C128:
    joint = np.iscomplexobj(h)
    for turn in range(_TURNS):
        guess = a @ w
        # First all channels of a probe have one phase, then each has its own: with a common phase the iteration can
        # stop at a wrong solution.
        if joint and turn < _TURNS // 2:
            turned = h * _unit((guess * h.conj()).sum(axis=1, keepdims=True))
        else:
            turned = np.abs(h) * _unit(guess)
        w = solve @ turned
    return w


def _unit(z: C128) -> C128:
    """Return z / |z|."""
    return np.asarray(z / np.maximum(np.abs(z), 1e-300))


def _spectral(a: C128, amplitude: F64) -> C128:
    """Return (coefficient, channel) the leading eigenvector of the amplitude-weighted rows, by power iteration."""
    power = amplitude**2
    weight = np.minimum(power / power.mean(axis=0), 4.0)
    white = np.linalg.cholesky(a.conj().T @ a + 1e-6 * a.shape[0] * np.eye(a.shape[1]))
    b = np.linalg.solve(white, a.conj().T).conj().T
    out = np.empty((a.shape[1], amplitude.shape[1]), np.complex128)
    for c in range(amplitude.shape[1]):
        v = np.linalg.eigh((b.conj().T * weight[:, c]) @ b)[1][:, -1]
        w = np.linalg.solve(white.conj().T, v)
        out[:, c] = w * (amplitude[:, c].mean() / max(float(np.abs(a @ w).mean()), 1e-300))
    return out


def on_scales(amplitude: F64) -> F64:
    """Return (probe, 2·channel) an amplitude in dB and as power: features are nearly linear in one of the two."""
    level = np.log(np.maximum(amplitude, 1e-12))
    power = amplitude**2
    return np.concatenate([level, power / np.maximum(mean_of_known(power), 1e-300)], axis=1)


def mean_of_known(values: F64) -> F64:
    """Return (column,) the mean of the values that are not NaN; NaN where a column has none, such as those of an Eve
    that was away for a whole block."""
    is_known = ~np.isnan(values)
    n = is_known.sum(axis=0)
    return np.asarray(np.where(n, np.where(is_known, values, 0.0).sum(axis=0) / np.maximum(n, 1), np.nan))


def alice_channels(csi: C128 | None, features: F64) -> list[C128 | F64]:
    """Return the targets of the fit: Alice's CSI, or else the amplitudes that her features imply on several scales."""
    if csi is not None:
        return [csi]
    # The features may be amplitudes in dB, their natural logarithms, or the amplitudes; others fit none of these.
    db = np.exp(np.clip((features - np.nanmean(features, axis=0)) * (np.log(10.0) / 20.0), -20.0, 20.0))
    out: list[C128 | F64] = [db]
    if (np.nan_to_num(features, nan=1.0) >= 0).all():
        out.append(features)
    return out
