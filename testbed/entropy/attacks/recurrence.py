"""Channels that recur: a codebook swept again, a walk there and back, earlier blocks, training, earlier runs."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.attack import HIDDEN_CONTEXT
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import own
from testbed.entropy.shifts import combined, constant

SHIFTS, SEPARATELY = 12, 3


class Recurrence(EstimatingAttack):
    """A ridge regression from Alice's own series of this and earlier blocks and runs, at the best shifts, forwards and
    backwards."""

    knows = (
        "that the channel repeats after any number of rounds, also in reverse, in this and in earlier blocks and runs"
    )
    hidden_context = HIDDEN_CONTEXT

    def inputs(self, facts: Facts, z: F64) -> F64 | None:
        found = [m for r in own(facts, z) for m in constant(facts, r, z, SHIFTS)]
        found = sorted(found, key=lambda m: -m.agreement)[:SHIFTS]
        if not found:
            return None
        return np.concatenate([combined(z, [m.inputs for m in found]), *(m.inputs for m in found[:SEPARATELY])], axis=1)
