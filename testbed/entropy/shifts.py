"""At which shift another recording fits Alice's: for a whole block, or piece by piece."""

from __future__ import annotations

import numpy as np
from scipy import fft

from testbed.core.types import F64, I64
from testbed.entropy.facts import Facts
from testbed.entropy.series import agreement


class Recording:
    """Another recording on the dense axis of rounds, with its spectrum: reckoned once a block."""

    def __init__(self, rounds: I64, values: F64, alice: I64) -> None:
        self.first = int(min(rounds[0], alice[0]))
        self.span = int(max(rounds[-1], alice[-1])) - self.first + 1
        self.n_fft = int(fft.next_fast_len(self.span + int(alice[-1] - alice[0]) + 1, real=True))
        self.spectrum = fft.rfft(dense(rounds, values, self.first, self.span), self.n_fft, axis=0)
        self.least = int(rounds[0] - alice[-1])
        self.most = int(rounds[-1] - alice[0])

    def fit(self, alice: I64, z: F64) -> tuple[I64, F64]:
        """Return (shift,) all shifts at which the two overlap, and how well each fits; z (probe, column), NaN hidden."""
        own = fft.rfft(dense(alice, z, self.first, self.span), self.n_fft, axis=0)
        all_lags = agreement(own, self.spectrum, self.n_fft)
        shifts = np.arange(self.least, self.most + 1)
        return shifts, np.asarray(all_lags[shifts % self.n_fft], np.float64)


def dense(rounds: I64, values: F64, first: int, size: int) -> F64:
    """Return (round, column) float32 on every round from `first` on; 0 where nothing is known."""
    out = np.zeros((size, values.shape[1]), np.float32)
    inside = (rounds >= first) & (rounds < first + size)
    out[rounds[inside] - first] = np.nan_to_num(values[inside])
    return out


def best_shifts(facts: Facts, z: F64, rounds: I64, values: F64, count: int) -> list[int]:
    """Return the `count` shifts of Eve's channels that agree best with Alice's scores z, best first, none beside one."""
    if "recording" not in facts.scratch:
        facts.scratch["recording"] = Recording(rounds, values, facts.rounds)
    shifts, fit = facts.scratch["recording"].fit(facts.rounds, z)
    return apart(shifts, fit, count)


def apart(shifts: I64, fit: F64, count: int, near: int = 1) -> list[int]:
    """Return the best shifts, each further than `near` from those before it."""
    fit, out = fit.copy(), []
    for _ in range(count):
        i = int(fit.argmax())
        if not fit[i] > 0.0:
            break
        out.append(int(shifts[i]))
        fit[max(0, i - near) : i + near + 1] = 0.0
    return out or [0]
