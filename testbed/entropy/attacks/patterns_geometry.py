"""Public patterns and public positions: the surface's part of the channel is then known up to a factor."""

from __future__ import annotations

from testbed.core.types import F64
from testbed.entropy.attacks.patterns_fitted import fitted_inputs
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts


class PatternsGeometry(EstimatingAttack):
    """Models Alice's amplitudes as |c₀ + c₁·s|: s is the surface's response to each pattern by the scene's geometry."""

    knows = "every pattern of the surface, and the positions of the surface and of both ends"
    needs = ("responses",)
    cliff = True

    def inputs(self, facts: Facts, z: F64) -> F64:
        assert facts.responses is not None
        return fitted_inputs(facts, facts.responses, "geometry inputs")
