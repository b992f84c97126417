"""Calibration, Wiener filter, and a small network for the remainder: our own method to compare with CRCNet.

The hardware of the two ends changes a reciprocal channel by a fixed complex factor per subcarrier, as in the
calibration of TDD base stations (Shepard et al., Argos, 2012). The factor is estimated from products of neighbouring
subcarriers, in which a frame's phase and delay cancel, and is removed before the alignment, so that the alignment does
the same at both ends. The Wiener filter then removes noise by means of the correlation over frequency. A network, whose
output is 0 at first, learns what remains. Where nothing is left to learn its output stays 0, so that it is never worse
on the validation rounds.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.chain.enhance._features import C128, Count
from testbed.chain.enhance._trained import Arrays, Learned, Model, Split, Trained
from testbed.chain.enhance._trainer import MappedNetworkOptions, run, squared, train
from testbed.chain.enhance._wiener import predict, wiener
from testbed.core.types import F64, CsiSeries


class CalibratedOptions(MappedNetworkOptions, frozen=True):
    hidden: Annotated[int, Meta(ge=0, le=8192)] = 64
    """Width of the hidden layer; 0: there is no network."""
    epochs: Count = 100
    """Largest number of epochs; training ends earlier if the validation loss did not improve for `patience` epochs."""
    patience: Count = 10
    """Epochs without improvement after which training ends."""


class Calibrated(Trained):
    """Predicts Bob's CSI by a factor a subcarrier, `linear_mmse`'s filter, and a residual network."""

    options_type = CalibratedOptions
    options: CalibratedOptions
    applied = ("hidden",)

    def _calibrate(self, alice: CsiSeries, bob: CsiSeries) -> Arrays:
        if alice.h.shape != bob.h.shape:  # an Eve with other antennas has no corresponding values
            return {"factor": np.ones(alice.h.shape[1:], np.complex128)}
        return {"factor": reciprocity_factor(alice.h.astype(np.complex128), bob.h.astype(np.complex128))}

    def _calibrated(self, calibration: Arrays, csi: CsiSeries) -> CsiSeries:
        return replace(csi, h=csi.h * calibration["factor"])

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        weights, history = wiener(self._joined(alice), self._joined(bob), split)
        if not self.options.hidden:
            return Learned(private=weights, history=history)
        guess = self._split(predict(weights, self._joined(alice)))
        level = float(np.sqrt((bob[split.train] ** 2).mean()))
        build = partial(network, guess.shape[1], self.options.hidden)
        found, how = train(build, squared, (guess / level, (bob - guess) / level), split, self.options, rng)
        private: Arrays = {**weights, **found, "level": np.array(level)}
        return Learned(private=private, history={**history, **how})

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        guess = self._split(predict(model.private, self._joined(vectors)))
        if not self.options.hidden:
            return guess
        level = float(model.private["level"])
        build = partial(network, guess.shape[1], self.options.hidden)
        return np.asarray(guess + level * run(build, model.private, guess / level))


def reciprocity_factor(alice: C128, bob: C128) -> C128:
    """Return g (antenna, antenna, subcarrier) with h_B ≈ g·h_A up to each frame's phase and delay.

    Phases: those of Σ_t D_B·D_A*, D = h[k + 1]·h[k]*, summed up over k. Moduli: from the mean powers.
    """
    d_a, d_b = (h[..., 1:] * h[..., :-1].conj() for h in (alice, bob))
    step = np.angle((d_b * d_a.conj()).sum(axis=0))
    phase = np.concatenate([np.zeros((*step.shape[:-1], 1)), np.cumsum(step, axis=-1)], axis=-1)
    power_a, power_b = ((np.abs(h) ** 2).mean(axis=0) for h in (alice, bob))
    return np.asarray(np.sqrt(power_b / power_a) * np.exp(1j * phase))


def network(elements: int, hidden: int) -> Any:
    """Return the fresh network, whose output is 0."""
    from torch import nn

    last = nn.Linear(hidden, elements)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(elements, hidden), nn.Tanh(), last)
