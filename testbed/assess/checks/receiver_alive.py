"""Fails if a receiver is stuck or saturated: one value (to 0.001 dB) in 90 % of the probes (median dimension)."""

from __future__ import annotations

import re

import numpy as np

from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64


class ReceiverAlive(HealthCheck):
    """Fails if a receiver is stuck or saturated: one value (to 0.001 dB) in 90 % of the probes (median dimension)."""

    order = 10

    def verdicts(self, m: Measured) -> list[Verdict]:
        ends = {"Alice": m.alice_db, "Bob": m.bob_db}
        ends |= {f"Eve (hearing {name.capitalize()})": values for name, values in m.eve_db.items()}
        return [receiver_alive(name, values) for name, values in ends.items()]


def receiver_alive(name: str, values_db: F64) -> Verdict:
    """Fails if a receiver is stuck or saturated: one value (to 0.001 dB) in 90 % of the probes (median dimension)."""
    shares, spreads = [], []
    for column in np.round(values_db, 3).T:
        valid = column[np.isfinite(column)]
        if valid.size:
            shares.append(np.unique(valid, return_counts=True)[1].max() / valid.size)
            spreads.append(valid.std())
    label = "receiver_" + re.sub(r"\W+", "_", name.lower()).strip("_")
    if not shares:
        return Verdict(label, False, f"{name} has no valid measurement.")
    share, spread = float(np.median(np.array(shares))), float(np.median(np.array(spreads)))
    values = {"modal_share": share, "std_db": spread}
    if share >= 0.9:
        detail = (
            f"{name} measured the same level in {share:.0%} of the probes (std {spread:.2f} dB): "
            "the receiver is saturated or its gain is stuck, so figures that involve it say little."
        )
        return Verdict(label, False, detail, values)
    return Verdict(label, True, f"The level at {name} varies by {spread:.2f} dB (std over probes).", values)
