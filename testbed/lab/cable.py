"""Separates the radios' own responses from their measurements of one another over cables.

Every pair is joined by a cable and an attenuator whose response is flat over the band and the same in both directions.
Then radio j's measurement of radio i is T_i·R_j. In logarithms that is a linear system for all transmit and receive
responses. Its solution is not unique: a constant can be moved from all T to all R and, with only two radios, a
difference can be divided between them in several ways. The solution of least norm is used. Reciprocity needs T_i/R_i
only up to a common factor, and these ratios are the same for all solutions.

For two radios with several antennas, T/R of each antenna is found, and the cables need not be equal. Element (j, i) of
the channel that one radio measured, divided by element (i, j) of the opposite direction, is (T_i/R_i) / (T_j/R_j) for
any channel between the antennas that is the same in both directions. Over all pairs of antennas these quotients are a
matrix of rank 1 (as in Argos, Shepard et al. 2012).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import C64, F64

_LAGS = 12
"""Longest response of an antenna's own chains that the estimate allows for, in half samples of the measured band."""
_RIDGE = 1e-3
Pair = tuple[str, str]
"""(tx, rx)."""


@dataclass(frozen=True, slots=True)
class Responses:
    """The responses of every device that transmitted or received, as logarithms over frequency."""

    tx: dict[str, tuple[F64, F64]]
    """Device → levels in dB and phases in rad, (subcarrier,)."""
    rx: dict[str, tuple[F64, F64]]

    def ratio(self, name: str) -> C64:
        """Return (subcarrier,) T/R of a device that transmitted and received."""
        db, rad = (t - r for t, r in zip(self.tx[name], self.rx[name], strict=True))
        return np.asarray(10.0 ** (db / 20.0) * np.exp(1j * rad), np.complex64)


def mean_channel(frames: Sequence[C64]) -> C64:
    """Return (subcarrier,) the mean of frames (subcarrier,) whose common phases are arbitrary; at least one."""
    turned = [h * np.exp(-1j * np.angle(np.vdot(frames[0], h))) for h in frames]
    return np.asarray(np.mean(turned, axis=0), np.complex64)


def separate(channels: Mapping[Pair, C64], subcarrier_hz: F64) -> Responses:
    """Return the devices' responses from the measurements of all pairs, (subcarrier,) each."""
    pairs = list(channels)
    level_db = np.array([20.0 * np.log10(np.abs(channels[p]).astype(np.float64)) for p in pairs])
    phase_rad = np.array([straightened(channels[p], subcarrier_hz) for p in pairs])
    senders, listeners = (sorted({p[side] for p in pairs}) for side in (0, 1))
    tx_db, rx_db = shared_out(pairs, senders, listeners, level_db)
    tx_rad, rx_rad = shared_out(pairs, senders, listeners, phase_rad)
    return Responses(
        {n: (tx_db[i], tx_rad[i]) for i, n in enumerate(senders)},
        {n: (rx_db[i], rx_rad[i]) for i, n in enumerate(listeners)},
    )


def shared_out(pairs: Sequence[Pair], senders: list[str], listeners: list[str], sums: F64) -> tuple[F64, F64]:
    """Return (sender, …) and (listener, …) parts that add up to `sums` (pair, …): the least-norm least-squares
    solution."""
    design = np.array(
        [[float(tx == n) for n in senders] + [float(rx == n) for n in listeners] for tx, rx in pairs]
    )  # fmt: skip
    answer = np.linalg.pinv(design) @ sums
    return answer[: len(senders)], answer[len(senders) :]


def straightened(h: C64, subcarrier_hz: F64) -> F64:
    """Return (subcarrier,) unwrapped phases in rad without their mean and slope, which come from oscillators and delay
    and are not part of the response.
    """
    phase = np.unwrap(np.angle(h.astype(np.complex128)))
    line = np.polynomial.Polynomial.fit(subcarrier_hz, phase, 1)
    return np.asarray(phase - line(subcarrier_hz), np.float64)


def of_antennas(there: Sequence[C64], back: Sequence[C64], subcarrier_hz: F64) -> tuple[C64, C64]:
    """Return (antenna, subcarrier) T/R of two radios' antennas, up to one common factor of both at each frequency.

    `there`: the second radio's measurements of the first, each (second's antenna, first's antenna, subcarrier); `back`:
    the first radio's measurements of the second, in the same order. The mean and the slope of the phases over frequency
    are removed, because they are due to delay and oscillators.
    """
    seen = []
    for x, y in zip(there, back, strict=True):
        pair = x.astype(np.complex128).transpose(1, 0, 2), y.astype(np.complex128)
        q = pair[0] * pair[1].conj()  # (first's antenna, second's antenna, subcarrier): the phases of the ratio
        bent = straightened(q[0, 0], subcarrier_hz)
        seen.append((q * np.exp(1j * (bent - np.angle(q[0, 0]))), *(np.abs(part) ** 2 for part in pair)))
    # sums are divided, because where one direction fades, a quotient of single values would be noise only
    cross, power, power_back = (np.sum([one[k] for one in seen], axis=0) for k in range(3))
    ratio = np.sqrt(power / power_back) * np.exp(1j * np.angle(cross))
    q = smoothed(ratio, np.abs(cross), subcarrier_hz).transpose(2, 0, 1)
    u, s, vh = np.linalg.svd(q)
    n_first, n_second = q.shape[1:]
    level = np.sqrt(s[:, 0] / np.sqrt(n_first * n_second))[:, None]
    first, second_inverse = u[:, :, 0] * np.sqrt(n_first) * level, vh[:, 0, :] * np.sqrt(n_second) * level
    half = np.exp(1j * (np.angle(q[:, 0, 0]) / 2 - np.angle(first[:, 0])))[
        :, None
    ]  # divides the common phase equally between both radios
    first, second = first * half, half / second_inverse
    return first.T.astype(np.complex64), second.T.astype(np.complex64)


def smoothed(h: NDArray[np.complex128], weight: F64, subcarrier_hz: F64) -> NDArray[np.complex128]:
    """Return (…, subcarrier) with only the short delays of h, because a chain has none but these; the rest is noise.

    `weight`: the weight of each value. Delays from −`_LAGS` to `_LAGS` are kept.
    """
    n_lags = min(_LAGS, (subcarrier_hz.size - 1) // 4)
    spacing_hz = np.ptp(subcarrier_hz) / (subcarrier_hz.size - 1)
    # delays are half a sample apart: with whole samples all waves, and so the sum, would be equal at both band edges
    lags_s = np.arange(-n_lags, n_lags + 1) / (2 * (np.ptp(subcarrier_hz) + spacing_hz))
    waves = np.exp(2j * np.pi * np.outer(subcarrier_hz, lags_s))
    out = np.empty_like(h)
    for where in np.ndindex(h.shape[:-1]):
        w = np.sqrt(weight[where] / weight[where].mean())
        # a small ridge, because within the band the waves of these delays are nearly dependent
        least = np.concatenate([waves * w[:, None], _RIDGE * np.eye(lags_s.size)])
        wanted = np.concatenate([h[where] * w, np.zeros(lags_s.size)])
        out[where] = waves @ np.linalg.lstsq(least, wanted, rcond=None)[0]
    return out


def apart_db(there: C64, back: C64) -> float:
    """Return the difference of two directions over frequency: standard deviation of their levels' difference in dB."""
    difference = 20.0 * np.log10(np.abs(there) / np.abs(back))
    return float(np.std(difference))
