"""Separates the radios' own responses from their measurements of one another over cables.

Every pair is joined by a cable and an attenuator whose response is flat over the band and the same in both directions.
Then radio j's measurement of radio i is T_i·R_j. In logarithms that is a linear system for all transmit and receive
responses. Its solution is not unique: a constant can be moved from all T to all R and, with only two radios, a
difference can be divided between them in several ways. The solution of least norm is used. Reciprocity needs T_i/R_i
only up to a common factor, and these ratios are the same for all solutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from testbed.core.types import C64, F64

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


def apart_db(there: C64, back: C64) -> float:
    """Return the difference of two directions over frequency: standard deviation of their levels' difference in dB."""
    difference = 20.0 * np.log10(np.abs(there) / np.abs(back))
    return float(np.std(difference))
