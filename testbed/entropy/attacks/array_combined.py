"""An Eve with several antennas: she may combine their signals linearly, or in a quadratic form, with any weights."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import C128, Facts
from testbed.entropy.phases import alice_channels, amplitudes, on_scales
from testbed.entropy.ridge import ridge
from testbed.entropy.series import aligned, at_rounds


class ArrayCombined(EstimatingAttack):
    """Models Alice's amplitudes as |Σ wₐhₐ| and her powers as Σ W·hₐh*ᵦ, fitted to her own CSI channel by channel."""

    knows = (
        "the complex signals of all her antennas, combined linearly and by power with the weights that fit Alice best"
    )
    needs = ("heard",)

    def applies(self, facts: Facts) -> bool:
        return bool(_arrays(facts))

    def inputs(self, facts: Facts, z: F64) -> F64:
        parts = [aligned(facts)]
        for alice in alice_channels(facts.csi, facts.features):
            for array in _arrays(facts):
                parts += [on_scales(self._linear(array, alice)), on_scales(self._by_power(array, alice))]
        return np.concatenate(parts, axis=1)

    @staticmethod
    def _linear(array: C128, alice: C128 | F64) -> F64:
        out = [amplitudes(array[:, :, _channel(array, alice, c)], alice[:, [c]]) for c in range(alice.shape[1])]
        return np.concatenate(out, axis=1)

    @staticmethod
    def _by_power(array: C128, alice: C128 | F64) -> F64:
        out = np.full(alice.shape, np.nan)
        upper = np.triu_indices(array.shape[1])
        for c in range(alice.shape[1]):
            h = array[:, :, _channel(array, alice, c)]
            products = h[:, upper[0]] * h[:, upper[1]].conj()
            forms = np.concatenate([products.real, products.imag[:, upper[0] != upper[1]]], axis=1)
            power = np.abs(alice[:, c]) ** 2
            mean = ridge(forms, (power / max(float(np.nanmean(power)), 1e-300))[:, None]).mean[:, 0]
            out[:, c] = np.sqrt(np.maximum(mean, 1e-3))
        return out


def _channel(array: C128, alice: C128 | F64, c: int) -> int:
    """Return the index of Eve's channel at the same place in the band as Alice's channel c."""
    return c * array.shape[2] // alice.shape[1]


def _arrays(facts: Facts) -> list[C128]:
    """Return (probe, antenna, channel) CSI of each node and link that was received with two antennas or more."""
    if "arrays" not in facts.scratch:
        groups: dict[tuple[str, str], list[C128]] = {}
        for h in facts.heard:
            if h.csi is not None:
                groups.setdefault((h.node, h.link), []).append(_csi_at(h.rounds, h.csi, facts))
        facts.scratch["arrays"] = [
            np.stack(g, axis=1) for g in groups.values() if len(g) > 1 and len({a.shape for a in g}) == 1
        ]
    found: list[C128] = facts.scratch["arrays"]
    return found


def _csi_at(rounds: np.ndarray, csi: C128, facts: Facts) -> C128:
    parts = at_rounds(rounds, np.concatenate([csi.real, csi.imag], axis=1), facts.rounds)
    n = csi.shape[1]
    return np.asarray(parts[:, :n] + 1j * parts[:, n:])
