"""Public patterns: in a static room a channel is a known function of N + 1 coefficients, which can be fitted."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import C128, Facts
from testbed.entropy.phases import alice_channels, amplitudes, on_scales
from testbed.entropy.series import reduced

LINEAR = 64


class PatternsFitted(EstimatingAttack):
    """A ridge regression from |c₀ + Σ cₙ·rₙ|, fitted to Alice's CSI, as level and as power, and from the patterns."""

    knows = "every pattern of the surface, and a channel model fitted to Alice's own values"
    needs = ("patterns",)
    cliff = True

    def inputs(self, facts: Facts, z: F64) -> F64:
        assert facts.patterns is not None
        return fitted_inputs(facts, facts.patterns, "pattern inputs")


def fitted_inputs(facts: Facts, columns: C128, key: str) -> F64:
    """Return (probe, input): |c₀ + Σ cₙ·columnₙ| fitted to each of Alice's channels, and the columns themselves."""
    varying = columns[:, np.ptp(columns.real, axis=0) + np.ptp(columns.imag, axis=0) > 1e-9]
    phi = np.concatenate([np.ones((facts.rounds.size, 1)), varying], axis=1)
    # Hidden symbols must not be used in the fit: their features and CSI are NaN.
    channels = alice_channels(facts.csi, facts.features)
    fitted = [on_scales(amplitudes(phi, h)) for h in channels]
    if key not in facts.scratch:
        parts = np.concatenate([varying.real, varying.imag], axis=1)
        facts.scratch[key] = reduced(parts[:, np.ptp(parts, axis=0) > 1e-9], LINEAR)
    return np.concatenate([*fitted, facts.scratch[key]], axis=1)
