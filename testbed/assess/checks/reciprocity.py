"""Fails if the two directions differ by more than noise explains although both ends receive with a high SNR."""

from __future__ import annotations

import numpy as np

from testbed.assess.agreement import MIN_PROBES
from testbed.assess.checks._levels import centred
from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64

_CLEAR_SNR_DB = 10.0
"""Below this SNR, differences between the two directions may be noise."""


class Reciprocity(HealthCheck):
    """Fails if the two directions differ by more than noise explains although both ends receive with a high SNR."""

    order = 60

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [] if m.snr_db is None else [reciprocity(m.alice_db, m.bob_db, *m.snr_db)]


def reciprocity(alice_db: F64, bob_db: F64, alice_snr_db: F64, bob_snr_db: F64) -> Verdict:
    """Fails if the two directions differ by more than noise explains although both ends receive with a high SNR.

    Noise of a known SNR γ changes a level by 8.7/√(2γ) dB (std). Constant differences (uncalibrated hardware) are
    subtracted; what remains beyond noise has changed between the slots of a round. This check cannot separate an
    adversary's surface from other causes of such a change: automatic gain control, wrong pairing, hardware that drifts
    from round to round, a channel that changes within the time between the slots.
    """
    name = "reciprocity"
    apart = centred(alice_db) - centred(bob_db)
    apart = apart[np.isfinite(apart)]
    heard = [s[np.isfinite(s)] for s in (alice_snr_db, bob_snr_db)]
    snrs_db = [float(np.median(s)) if s.size else np.nan for s in heard]
    if apart.size < MIN_PROBES or not np.isfinite(snrs_db).all():
        return Verdict(name, True, "Too few common probes to compare the two directions.")
    # Medians are used, because single subcarriers in a deep fade contain only noise.
    own_db = float(1.4826 * np.median(np.abs(apart)) / np.sqrt(2))
    noise_db = float(10 / np.log(10) * np.sqrt(np.mean([10 ** (-s / 10) for s in snrs_db]) * 2))
    values = {"own_std_db": own_db, "noise_std_db": noise_db, "snr_alice_db": snrs_db[0], "snr_bob_db": snrs_db[1]}
    figures = (
        f"the two directions differ by {own_db:.2f} dB (std, each end's share); noise at SNRs of {snrs_db[0]:.0f} and "
        f"{snrs_db[1]:.0f} dB explains {noise_db:.2f} dB"
    )
    if min(snrs_db) < _CLEAR_SNR_DB:
        return Verdict(name, True, f"{figures[0].upper()}{figures[1:]}. The SNR is too low for a verdict.", values)
    if own_db > max(3.0 * noise_db, 1.0):
        return Verdict(
            name,
            False,
            f"The channel is not reciprocal: {figures}. Something changed it between the two slots of a round: an "
            "adversary's surface that changes its pattern in between, automatic gain control, wrong pairing, or "
            "movement that is fast against the gap between the slots.",
            values,
        )
    return Verdict(name, True, f"{figures[0].upper()}{figures[1:]}.", values)
