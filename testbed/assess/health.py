"""Health checks on what was measured: is there anything to make a key from, and is the bench all right?

Each check was seen to matter in a real data set. Values are (probe, dimension) in dB, NaN where an end has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from testbed.assess.agreement import MIN_PROBES, correlation, detrend, detrended
from testbed.core.stages import Verdict
from testbed.core.types import F64

MAX_SHIFT = 32
_CLEAR_SNR_DB = 10.0
"""Below, differences between the two directions may be noise."""


def check(
    alice_db: F64, bob_db: F64, eve_db: Mapping[str, F64] | None, snr_db: tuple[F64, F64] | None = None
) -> list[Verdict]:
    """Return all verdicts. `eve_db` maps what Eve listened to ("alice", "bob") to her values; None or empty: no Eve.

    `snr_db`: (probe,) at Alice and at Bob, where it was measured.
    """
    eve = {name: values for name, values in (eve_db or {}).items() if np.isfinite(values).any()}
    ends = {"Alice": alice_db, "Bob": bob_db, **{f"Eve (hearing {name})": values for name, values in eve.items()}}
    return [
        *(receiver_alive(name, values) for name, values in ends.items()),
        pairing(alice_db, bob_db),
        reciprocal_variation(alice_db, bob_db),
        slow_drift(alice_db, bob_db),
        gain_steps(alice_db, bob_db),
        *([reciprocity(alice_db, bob_db, *snr_db)] if snr_db is not None else []),
        eve_measured(eve),
        *([eve_distinct(alice_db, bob_db, eve)] if eve else []),
    ]


def receiver_alive(name: str, values_db: F64) -> Verdict:
    """Is a receiver stuck or saturated: one value (to 0.001 dB) in 90 % of its probes, in the typical dimension?"""
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
            f"{name} reads one and the same value in {share:.0%} of the probes (std {spread:.2f} dB): "
            "its receiver is saturated or its gain is stuck, so its figures say little."
        )
        return Verdict(label, False, detail, values)
    return Verdict(label, True, f"The level at {name} varies by {spread:.2f} dB (std over probes).", values)


def pairing(alice_db: F64, bob_db: F64) -> Verdict:
    """Are Alice's and Bob's probes paired: no correlation as they stand, but a clear one after a shift?"""
    name = "pairing"
    r0 = correlation(alice_db, bob_db)
    n = alice_db.shape[0]
    reach = min(MAX_SHIFT, n // 4)
    # differences: a slow drift correlates at every shift and would point at any of them
    a, b = detrend(alice_db), detrend(bob_db)
    by_shift = {k: correlation(a[k:], b[:-k]) for k in range(1, reach + 1)}
    by_shift |= {-k: correlation(a[:-k], b[k:]) for k in range(1, reach + 1)}
    shifted = {shift: r for shift, r in by_shift.items() if r is not None}
    if r0 is None or not shifted:
        return Verdict(name, True, "Too few common probes, or no variation, to tell whether probes are paired rightly.")
    best = max(shifted, key=lambda shift: shifted[shift])
    # signed: differences of a fast channel correlate by −0.5 where the true shift is 1
    at_zero = max(0.0, correlation(a, b) or 0.0)
    values = {"r": r0, "best_shift": float(best), "r_shifted": shifted[best]}
    # the largest of 2·reach correlations of independent series stays below 5/√n
    if shifted[best] > max(0.4, 5.0 / np.sqrt(n)) and shifted[best] > 2.0 * at_zero:
        detail = (
            f"Alice and Bob correlate by {r0:.2f} as paired, but by {shifted[best]:.2f} (probe-to-probe changes) when "
            f"Alice is shifted by {best} probes: the rounds are paired wrongly."
        )
        return Verdict(name, False, detail, values)
    return Verdict(name, True, f"No shift of up to {reach} probes correlates better than the pairing as it is.", values)


def reciprocal_variation(alice_db: F64, bob_db: F64) -> Verdict:
    """Is there variation that both ends share and that stands above what they do not share?"""
    name = "reciprocal_variation"
    both = np.isfinite(alice_db) & np.isfinite(bob_db)
    enough = both.sum(axis=0) >= MIN_PROBES
    if not enough.any():
        return Verdict(name, False, f"Fewer than {MIN_PROBES} probes were measured by both ends: no key can be judged.")
    a = _centred(np.where(both, alice_db, np.nan)[:, enough])
    b = _centred(np.where(both, bob_db, np.nan)[:, enough])
    common = float(np.sqrt(max(0.0, float(np.nanmean(a * b)))))
    own = float(np.sqrt(np.nanmean((a - b) ** 2) / 2.0))
    values = {"common_std_db": common, "own_std_db": own}
    figures = f"{common:.2f} dB (std) of variation is common to Alice and Bob, {own:.2f} dB is each end's own"
    if common <= own:
        cause = (
            "the channel is static and what varies is noise"
            if own < 3.0
            else "the two ends do not see the same channel"
        )
        return Verdict(
            name,
            False,
            f"{figures}: {cause}, so there is (nearly) nothing to make a key from; move, or switch the surface.",
            values,
        )
    return Verdict(name, True, f"{figures}.", values)


def slow_drift(alice_db: F64, bob_db: F64) -> Verdict:
    """Is the correlation that of a slow drift: far lower between changes from probe to probe than between levels?"""
    name = "slow_drift"
    raw, fast = correlation(alice_db, bob_db), detrended(alice_db, bob_db)
    if raw is None or fast is None:
        return Verdict(name, True, "No correlation could be measured, so none that could be drift.")
    values = {"r": raw, "r_detrended": fast}
    figures = f"Alice and Bob correlate by {raw:.2f}, their changes from probe to probe by {fast:.2f}"
    if raw >= 0.3 and fast < 0.5 * raw:
        return Verdict(
            name,
            False,
            f"{figures}: what they share is mostly slow drift, which holds few secret bits a probe.",
            values,
        )
    return Verdict(name, True, f"{figures}.", values)


def gain_steps(alice_db: F64, bob_db: F64) -> Verdict:
    """Did the gain of one end jump (AGC, temperature): a lasting step of Alice − Bob, common to all dimensions?"""
    name = "gain_steps"
    offset = _row_median(_centred(alice_db) - _centred(bob_db))
    rows = np.flatnonzero(np.isfinite(offset))
    window = int(np.clip(rows.size // 16, 8, 64))
    if rows.size < 4 * window:
        return Verdict(name, True, f"Fewer than {4 * window} common probes: gain steps were not looked for.")
    offset = offset[rows]
    # medians before and after each probe: single outliers do not count as steps
    medians = np.median(np.lib.stride_tricks.sliding_window_view(offset, window), axis=1)
    step = medians[window:] - medians[:-window]
    # What such differences do where nothing happens, measured (1.4826·MAD = std of a Gaussian): offsets that wander
    # by themselves, because the ends see different channels, must not look like gain steps.
    limit = max(1.0, 6.0 * 1.4826 * float(np.median(np.abs(step - np.median(step)))))
    found: list[int] = []
    strength = np.abs(step)
    while strength.size and strength.max() > limit:
        at = int(strength.argmax())
        found.append(at)
        strength[max(0, at - 2 * window) : at + 2 * window + 1] = 0.0
    values = {"steps": float(len(found)), "largest_db": float(np.abs(step).max()), "limit_db": float(limit)}
    if not found:
        return Verdict(name, True, f"No common step of Alice − Bob above {limit:.1f} dB.", values)
    at = found[0]
    row = int(rows[at + window])
    detail = (
        f"{len(found)} gain step(s) at one end only, the largest {abs(step[at]):.1f} dB at probe {row}, "
        f"at {_stepping_end(alice_db[rows], bob_db[rows], at, window)}: fix the gain (no AGC) or discard that stretch."
    )
    return Verdict(name, False, detail, values)


def reciprocity(alice_db: F64, bob_db: F64, alice_snr_db: F64, bob_snr_db: F64) -> Verdict:
    """Do the two directions differ by more than noise explains, although both ends hear well?

    Noise of a known SNR γ moves a level by 8.7/√(2γ) dB (std). Constant differences (uncalibrated hardware) are taken
    off; what is left beyond noise has changed between the slots of a round. This cannot tell an adversary's surface
    from other causes of that: automatic gain control, wrong pairing, hardware that drifts from round to round, a
    channel faster than the gap between the slots.
    """
    name = "reciprocity"
    apart = _centred(alice_db) - _centred(bob_db)
    apart = apart[np.isfinite(apart)]
    heard = [s[np.isfinite(s)] for s in (alice_snr_db, bob_snr_db)]
    snrs_db = [float(np.median(s)) if s.size else np.nan for s in heard]
    if apart.size < MIN_PROBES or not np.isfinite(snrs_db).all():
        return Verdict(name, True, "Too few common probes to compare the two directions.")
    # medians: single subcarriers in a deep fade are all noise
    own_db = float(1.4826 * np.median(np.abs(apart)) / np.sqrt(2))
    noise_db = float(10 / np.log(10) * np.sqrt(np.mean([10 ** (-s / 10) for s in snrs_db]) * 2))
    values = {"own_std_db": own_db, "noise_std_db": noise_db, "snr_alice_db": snrs_db[0], "snr_bob_db": snrs_db[1]}
    figures = (
        f"the two directions differ by {own_db:.2f} dB (std, each end's share); noise at SNRs of {snrs_db[0]:.0f} and "
        f"{snrs_db[1]:.0f} dB explains {noise_db:.2f} dB"
    )
    if min(snrs_db) < _CLEAR_SNR_DB:
        return Verdict(name, True, f"{figures[0].upper()}{figures[1:]}: too noisy to tell more.", values)
    if own_db > max(3.0 * noise_db, 1.0):
        return Verdict(
            name,
            False,
            f"Not reciprocal beyond noise: {figures}. Something changed the channel between the two slots of a round: "
            "an adversary's surface that flips does this, and so do automatic gain control, wrong pairing or a channel "
            "faster than the gap between the slots.",
            values,
        )
    return Verdict(name, True, f"{figures[0].upper()}{figures[1:]}.", values)


def eve_measured(eve_db: Mapping[str, F64]) -> Verdict:
    """Was there an Eve?"""
    if not eve_db:
        return Verdict("eve_measured", False, "Eve was not measured: her error rate is assumed, not known.")
    return Verdict("eve_measured", True, f"Eve was measured hearing {' and '.join(sorted(eve_db))}.")


def eve_distinct(alice_db: F64, bob_db: F64, eve_db: Mapping[str, F64]) -> Verdict:
    """Does Eve see a channel of her own? Flagged where |r| with Alice or Bob exceeds half of r between these two."""
    name = "eve_distinct"
    legitimate = correlation(alice_db, bob_db)
    found = {}
    for heard, values in eve_db.items():
        for end, other in (("Alice", alice_db), ("Bob", bob_db)):
            for kind, x, y in (("levels", other, values), ("changes", detrend(other), detrend(values))):
                r = correlation(x, y)
                if r is not None:
                    chance = 4.0 / np.sqrt(_independent_probes(x, y))
                    found[f"{kind} of Eve hearing {heard} and of {end}"] = (r, chance)
    if not found or legitimate is None:
        return Verdict(name, False, "Eve's channel could not be compared: one of the three ends shows no variation.")
    # how far above what chance gives, first; then how large
    where = max(found, key=lambda key: (abs(found[key][0]) > found[key][1], abs(found[key][0])))
    worst, chance = found[where]
    values_out = {"r_eve": worst, "r": legitimate}
    figures = f"the {where} correlate by {worst:.2f}, Alice and Bob by {legitimate:.2f}"
    if abs(worst) > max(0.5 * abs(legitimate), chance):
        return Verdict(name, False, f"Eve sees much of the same channel: {figures}.", values_out)
    return Verdict(name, True, f"At most, {figures}.", values_out)


def _independent_probes(a: F64, b: F64) -> float:
    """Return how many independent probes the correlation of two series with memory is worth (Bartlett 1935)."""
    n = a.shape[0]
    memory = max(0.0, (correlation(a[1:], a[:-1]) or 0.0) * (correlation(b[1:], b[:-1]) or 0.0))
    return max(1.0, n * (1.0 - memory) / (1.0 + memory))


def _centred(values: F64) -> F64:
    """Remove each dimension's median over probes."""
    return values - _row_median(values.T)[None, :]


def _row_median(values: F64) -> F64:
    out = np.full(values.shape[0], np.nan)
    some = np.isfinite(values).any(axis=1)
    out[some] = np.nanmedian(values[some], axis=1)
    return out


def _stepping_end(alice_db: F64, bob_db: F64, at: int, window: int) -> str:
    """Name the end whose own level jumped more; the channel's movement is common to both."""
    jumps = []
    for values in (alice_db, bob_db):
        level = _row_median(_centred(values))
        jumps.append(abs(np.nanmedian(level[at + window : at + 2 * window]) - np.nanmedian(level[at : at + window])))
    return "Alice" if jumps[0] >= jumps[1] else "Bob"
