"""How many bits of key a reconciled string is worth.

Leftover hash lemma (Impagliazzo, Levin and Luby 1989; Bennett, Brassard, Crépeau and Maurer 1995): hashing a string
of min-entropy H given everything Eve knows with a public 2-universal function to ℓ ≤ H − 2·log2(1/ε) bits gives a
key within statistical distance ε/2 of uniform. A public discussion of `leak` bits lowers H by at most `leak`.

The n raw bits have min-entropy n·h_min. s of them are sacrificed: published and left out of the hashed string. They may
tell about their neighbours, so what is kept is not worth h_min a bit: given the published ones, it has what all had
less one bit for each that was published. Hence

    ℓ = ⌊n·h_min − s − leak − 2·log2(1/ε)⌋.
"""

from __future__ import annotations

from math import ceil, floor, log2

import numpy as np

from testbed.core.types import I64

CONFIDENCE = 1.0 - 1e-6
"""One-sided. Eve's measured error rate comes from a few hundred sacrificed bits; at 1e-6 her luck in the sample is
not what breaks a key, and the price at 300 bits is about 0.36 bit per bit."""


def key_length(
    raw_bits: int, sacrificed_bits: int, min_entropy_per_bit: float, leaked_bits: int, epsilon_log2: int = 64
) -> int:
    """Return the key's length in bits, 0 to raw_bits − sacrificed_bits, with ε = 2**−epsilon_log2.

    `min_entropy_per_bit` is that of the raw bits, sacrificed ones included, given what Eve measured.

    `leaked_bits` is the ledger's total: quantizer, parities, corrections, verification tag. Raises ValueError outside
    0 ≤ sacrificed_bits ≤ raw_bits, 0 ≤ min_entropy_per_bit ≤ 1, leaked_bits ≥ 0, epsilon_log2 ≥ 1.
    """
    fits = 0 <= sacrificed_bits <= raw_bits and leaked_bits >= 0 and epsilon_log2 >= 1
    if not fits or not 0.0 <= min_entropy_per_bit <= 1.0:
        raise ValueError(
            f"raw_bits = {raw_bits}, sacrificed_bits = {sacrificed_bits}, min_entropy_per_bit = {min_entropy_per_bit}, "
            f"leaked_bits = {leaked_bits}, epsilon_log2 = {epsilon_log2}; "
            "accepted: 0 ≤ sacrificed ≤ raw, 0 ≤ min-entropy ≤ 1, leak ≥ 0, epsilon_log2 ≥ 1"
        )
    return max(0, floor(raw_bits * min_entropy_per_bit - sacrificed_bits - leaked_bits - 2 * epsilon_log2))


def correction_leak(values: I64, flags: I64, bits: I64) -> int:
    """Return what the places of corrected bits tell about the labels of the string, in bits, rounded up.

    (label,) each: the label as a number, a 1 in `flags` where one of its bits was corrected, its length. Values next to
    a border are often wrong, and regions on both sides of it share most of the label; a label without errors is more
    likely of a region that is seldom wrong. Together they tell I(label; flags) = H(label) − H(label | flags), whatever
    the labels are and wherever errors are frequent. A corrected bit was told as such, by two parities that are counted:
    a label of b bits with w errors is charged b − w at most. Entropies are those of the values found, too low on
    average and the more so the fewer the labels: the charge errs upwards.

    What a place tells of the labels of neighbouring probes is not in it. Of signs of a first-order process with
    correlation 0.6 to 0.95 from probe to probe, 10 to 20 dB, that is 0.01 to 0.12 bit a bit by Shannon, yet it helps
    little to guess a bit: the min-entropy, which the length goes by, falls by 0.006 a bit at most from 15 dB on, and by
    0.02 at 10 dB, where the parities leave no key of such strings.
    """
    charge = 0.0
    for b in np.unique(bits).tolist():
        among = bits == b
        value, flag = values[among], flags[among]
        whole = _entropy(value)
        for f in np.unique(flag).tolist():
            same = value[flag == f]
            told = max(0.0, whole - _entropy(same))
            charge += same.size * (min(told, b - f.bit_count()) if f else told)
    return ceil(charge - 1e-6)


def _entropy(values: I64) -> float:
    found = np.unique(values, return_counts=True)[1]
    return log2(values.size) - float((found * np.log2(found)).sum()) / values.size


def eve_min_entropy(errors: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """Return the min-entropy per bit that Eve's best guess leaves, from her errors on sacrificed bits.

    Clopper–Pearson upper bound on the probability p of guessing a bit, from the guess or from its complement (an Eve
    who is wrong more often than not inverts); each side gets half of 1 − confidence. The bits count as independent
    trials. Where p differs from bit to bit, −log2 of the mean p is below the mean of −log2 p, so this errs towards
    Eve. Raises ValueError for no trials: nothing was measured, use `assumed_min_entropy`.
    """
    from scipy.special import betaincinv

    if trials < 1 or not 0 <= errors <= trials or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"errors = {errors}, trials = {trials}, confidence = {confidence}; "
            "accepted: trials ≥ 1, 0 ≤ errors ≤ trials, 0 < confidence < 1"
        )
    hits = max(errors, trials - errors)
    if hits == trials:
        return 0.0
    p = float(betaincinv(hits + 1, trials - hits, 1.0 - (1.0 - confidence) / 2.0))
    return max(0.0, -log2(p))


def assumed_min_entropy(error_rate: float) -> float:
    """Return the min-entropy per bit for an Eve who was not measured and is assumed to err at this rate (0 to 1)."""
    if not 0.0 <= error_rate <= 1.0:
        raise ValueError(f"error_rate = {error_rate}, accepted: 0 to 1")
    return -log2(max(error_rate, 1.0 - error_rate))


def combined_min_entropy(source: float, eve: float) -> float:
    """Return the min-entropy per bit given Eve: max(0, source + eve − 1).

    `source` is short of 1 by what anybody can predict (bias, memory), `eve` by what her measurement tells. Nothing
    says that these shortfalls overlap, so they add: deliberately conservative, exact where she knows some bits fully
    and others are redundant.
    """
    return max(0.0, min(source, eve, source + eve - 1.0))  # rounding must not lift it above either
