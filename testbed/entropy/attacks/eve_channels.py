"""All channels of one Eve together: if they are as many as the surface's elements, every pattern's effect on Alice's
channel is a linear function of them."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import C128, Facts
from testbed.entropy.phases import alice_channels, amplitudes, on_scales
from testbed.entropy.series import aligned, at_rounds

_PROBES_A_CHANNEL = 3
"""Probes needed to estimate one coefficient."""


class EveChannels(EstimatingAttack):
    """Models Alice's amplitudes as |Σ wₐᶜhₐᶜ| over the antennas and subcarriers of one node and link."""

    knows = "the complex signals of all her antennas and subcarriers, combined linearly with the weights that fit best"
    needs = ("heard",)

    def applies(self, facts: Facts) -> bool:
        return bool(_links(facts))

    def inputs(self, facts: Facts, z: F64) -> F64:
        alices = alice_channels(facts.csi, facts.features)
        fitted = [on_scales(amplitudes(hers, alice)) for alice in alices for hers in _links(facts)]
        return np.concatenate([aligned(facts), *fitted], axis=1)


def _links(facts: Facts) -> list[C128]:
    """Return (probe, channel) CSI of each node and link with several channels, as many as the probes can fit."""
    if "channels" not in facts.scratch:
        groups: dict[tuple[str, str], list[C128]] = {}
        for h in facts.heard:
            if h.csi is not None:
                parts = at_rounds(h.rounds, np.concatenate([h.csi.real, h.csi.imag], axis=1), facts.rounds)
                n = h.csi.shape[1]
                groups.setdefault((h.node, h.link), []).append(np.asarray(parts[:, :n] + 1j * parts[:, n:]))
        joined = [np.concatenate(g, axis=1) for g in groups.values()]
        facts.scratch["channels"] = [
            x for x in joined if x.shape[1] > 1 and _PROBES_A_CHANNEL * x.shape[1] <= facts.rounds.size
        ]
    found: list[C128] = facts.scratch["channels"]
    return found
