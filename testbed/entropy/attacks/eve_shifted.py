"""Eve's own signals at any shift over her whole recording: she walks behind Bob, she counts packets differently."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import eves
from testbed.entropy.shifts import constant

SHIFTS = 3


class EveShifted(EstimatingAttack):
    """A ridge regression from all of Eve's channels at the few shifts that fit best."""

    knows = "her own signals of any other round, earlier or later, a few shifts for the whole block"
    needs = ("heard",)

    def inputs(self, facts: Facts, z: F64) -> F64 | None:
        found = [m for r in eves(facts) for m in constant(facts, r, z, SHIFTS)]
        found = sorted(found, key=lambda m: -m.agreement)[:SHIFTS]
        return np.concatenate([m.inputs for m in found], axis=1) if found else None
