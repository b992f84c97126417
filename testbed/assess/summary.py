"""The results of a run as one flat table: the fields of `summary.json`.

Three callers fill in `RunFacts`: the coordinator at the end of a run, replay, and the recovery of a killed run.
A figure that could not be measured is null, and a health entry states the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from testbed.chain.dialogue import PEER_FAILED
from testbed.core.outcomes import AgreeReport, EveReport, EveRow, KeyReport
from testbed.core.stages import Verdict
from testbed.core.types import U8
from testbed.core.words import counted
from testbed.entropy.judge import TOGETHER


@dataclass(frozen=True, slots=True, eq=False)
class RawBits:
    """A block's raw bits on every side, in experiment mode only."""

    alice: U8
    """(bit,) of 0 and 1, after quantization."""
    bob: U8
    eve: U8 | None
    """Eve's best guess of the same bits; None where she was not measured."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockFacts:
    """The facts of one distilled block. None where a side never reported."""

    alice: AgreeReport | None
    bob: AgreeReport | None
    eve: EveReport | None = None
    alice_key: KeyReport | None = None
    bob_key: KeyReport | None = None
    raw: RawBits | None = None
    alice_digest: str | None = None
    """Digest of the key Alice delivered; None where she delivered none or its digest was not reported."""
    bob_digest: str | None = None
    eve_digest: str | None = None
    """Digest of the key that follows from Eve's best guess by amplification; None where she has no guess."""
    failure: str | None = None
    """Why the block was given up, as the coordinator recorded it; None where it did not, as in a replay."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """All facts that `summarise` needs."""

    rounds: int
    """Rounds that were started."""
    pairs_kept: int
    pairs_rejected: Mapping[str, int]
    """By reason."""
    reconcile: str
    """Name of the reconciler."""
    blocks: Sequence[BlockFacts]
    probing_s: float | None
    """Duration of the probing on the radios' clock (virtual in a simulation), to which rates refer."""
    wall_s: float | None
    """Duration of the whole run on the wall clock."""
    csi_correlation_ab: float | None = None
    csi_correlation_ae: float | None = None
    """Eve's strongest link."""
    csi_correlation_ab_detrended: float | None = None
    randomness: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """test → {"pass_ratio": …, "p_value": …}"""
    health: Sequence[Verdict] = ()
    rehearsal: bool = False
    """Whether the run follows from a public seed, and so do its keys."""
    authentication: Sequence[str] = ()
    """The discussion's authentication: curve, wegman_carter; empty if it was held in one process."""
    keys_exposed: int | None = None
    """Keys that an Eve of the audit after the run can predict; None where there was no audit."""
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """Field of the summary → why it is null, where the caller knows more than the default reason."""


NOT_RECONCILIATION = ("quantize", "sacrifice", "verify", "verified", "amplify")
"""First words of the kinds of public messages whose leaked bits do not count as those of the reconciliation."""

_DEFAULT_REASONS = {
    "wall_s": "the run did not record how long it took",
    "rounds_per_s": "the run did not record how long it took",
    "csi_correlation_ab": "no CSI of both Alice and Bob was recorded",
    "csi_correlation_ae": "Eve was not measured",
    "csi_correlation_ab_detrended": "no CSI of both Alice and Bob was recorded",
    "kdr_raw": "no block reached the comparison of raw bits",
    "kdr_eve": "Eve was not measured, or no block reached the comparison of raw bits",
    "min_entropy_per_bit": "no block reached privacy amplification",
    "secrecy": "no key length was computed, or the nodes did not report how (private mode)",
    "reconciliation.efficiency": "no verified block had errors to correct",
    "keys_mismatched": "the key digests of the two sides were not compared",
    "raw_rate_bps": "the source does not state how long the probing took",
    "key_rate_bps": "the source does not state how long the probing took",
    "probing_s": "the source does not state how long the probing took",
    "key_bits_per_round": "no round was run",
    "randomness": "the keys have too few bits for the tests",
    "keys_exposed": "the keys were not audited after the run (`testbed audit RUN` does it for a recorded run)",
    "eve_keys_recovered": "Eve was not measured, or no key digests were reported",
}


def summarise(facts: RunFacts) -> dict[str, Any]:
    """Return the fields of summary.json, null where unmeasured, every null explained in `health`."""
    verified = [
        b for b in facts.blocks if b.alice is not None and b.bob is not None and b.alice.verified and b.bob.verified
    ]
    raw_bits = sum(max(_raw_bits(b.alice), _raw_bits(b.bob)) for b in facts.blocks)
    delivered = [b for b in facts.blocks if _delivered(b.alice_key) and _delivered(b.bob_key)]
    compared = [b for b in delivered if b.alice_digest is not None and b.bob_digest is not None]
    mismatched = sum(b.alice_digest != b.bob_digest for b in compared)
    good = [b for b in delivered if b not in compared or b.alice_digest == b.bob_digest]
    key_bits = sum(b.alice_key.key_bits for b in good if b.alice_key is not None)
    eve_measured = any(_eve_counted(b) for b in facts.blocks)
    digests_known = all(b.alice_digest is not None for b in delivered)
    summary: dict[str, Any] = {
        "rounds": facts.rounds,
        "pairs_kept": facts.pairs_kept,
        "pairs_rejected": dict(facts.pairs_rejected),
        "wall_s": facts.wall_s,
        "rounds_per_s": _ratio(facts.rounds, facts.wall_s),
        "csi_correlation_ab": _finite(facts.csi_correlation_ab),
        "csi_correlation_ae": _finite(facts.csi_correlation_ae),
        "csi_correlation_ab_detrended": _finite(facts.csi_correlation_ab_detrended),
        "raw_bits": raw_bits,
        "kdr_raw": _kdr_raw(facts.blocks),
        "kdr_eve": _kdr_eve(facts.blocks),
        "min_entropy_per_bit": _min_entropy(facts.blocks),
        "reconciliation": {
            "method": facts.reconcile,
            "efficiency": _efficiency(verified),
            "leaked_bits": sum(max(_leaked(b.alice), _leaked(b.bob)) for b in facts.blocks),
            "frame_failures": sum(_reconciled(b) and b not in verified for b in facts.blocks),
        },
        "key_bits": key_bits,
        "authentication": _authentication(facts, good),
        "keys_verified": len(delivered) - mismatched,
        "keys_mismatched": mismatched if len(compared) == len(delivered) else None,
        "keys_exposed": facts.keys_exposed,
        "keys_reproducible": len(delivered) - mismatched if facts.rehearsal else 0,
        "raw_rate_bps": _ratio(raw_bits, facts.probing_s),
        "key_rate_bps": _ratio(key_bits, facts.probing_s),
        "key_bits_per_round": _ratio(key_bits, facts.rounds),
        "csi_defects": {
            "alice": _defects([b.alice for b in facts.blocks]),
            "bob": _defects([b.bob for b in facts.blocks]),
        },
        "randomness": {test: dict(result) for test, result in facts.randomness.items()} or None,
        "blocks": len(facts.blocks),
        "probing_s": facts.probing_s,
        "eve_measured": eve_measured,
        "eve_keys_recovered": (
            sum(b.eve_digest is not None and b.eve_digest == b.alice_digest for b in delivered)
            if eve_measured and digests_known
            else None
        ),
    }
    summary["secrecy"] = secrecy([b.alice_key for b in facts.blocks if b.alice_key is not None])
    summary["health"] = (
        [
            _entry(v)
            for v in (
                *facts.health,
                *_entropy_entries(facts.blocks),
                *_defect_entries(facts.blocks),
                *_assumed_entries(summary, facts),
            )
        ]
        + _key_entries(facts, delivered)
        + _null_entries(summary, facts, bool(delivered))
    )
    return summary


def _authentication(facts: RunFacts, good: Sequence[BlockFacts]) -> dict[str, Any]:
    """Return the discussion's authentication and the bits that it used: key = hashed − refill."""
    refill = sum(b.alice_key.refill_bits for b in good if b.alice_key is not None)
    ends = [[k.authentication_bits if k is not None else 0 for k in (b.alice_key, b.bob_key)] for b in facts.blocks]
    key_bits = sum(b.alice_key.key_bits for b in good if b.alice_key is not None)
    return {
        "by": list(facts.authentication),
        "spent_bits": sum(max(bits) for bits in ends),
        "refill_bits": refill,
        "hashed_bits": key_bits + refill,
    }


def _entropy_entries(blocks: Sequence[BlockFacts]) -> list[Verdict]:
    """Return a verdict that states the rule by which the min-entropy was found."""
    if any(b.alice_key is not None and b.alice_key.entropy == "modelled" for b in blocks):
        detail = (
            "Key lengths follow from the log-loss of the best Eve; this rule assumes that, given what she knows, "
            "labels are independent."
        )
        return [Verdict("min_entropy_model", True, detail)]
    return []


def _assumed_entries(summary: Mapping[str, Any], facts: RunFacts) -> list[Verdict]:
    """Return, where no Eve was measured, a verdict that states how far the source and the assumed Eve limit the
    length."""
    measured = summary["eve_measured"] or any(v.check == "eve_measured" and v.ok for v in facts.health)
    if measured or not summary["raw_bits"]:
        return []
    told = summary["secrecy"]
    if told is None:
        detail = "The assumed Eve was not used: no block reached the decision on a key's length."
        return [Verdict("assumed_eve", True, detail)]
    hers = [row for row in told["eves"] if row["name"] == ASSUMED]
    source = [row["key_bits"] for row in told["eves"] if row["name"] != ASSUMED]
    if not hers or not source:
        return []
    least, assumed = min(source), hers[0]["key_bits"]
    detail = (
        "Eve was not measured. Without her, what can be predicted from the source itself would leave at most "
        f"{counted(least, 'key bit')}; the assumed Eve ({hers[0]['knows']}) leaves {assumed:,}: the assumption "
        f"changes the length by {min(0, assumed - least):+,}."
    )
    return [Verdict("assumed_eve", True, detail)]


ASSUMED = "assumed"
"""Name of the row of an Eve who was not measured, in the table of Eves."""


_OF_BINS = ("dead_bins", "jumping_bins")
_FEW = 0.005
"""Share of repaired frames or values below which the receiver passes the check."""
_DEFECTS = {
    "dead_bins": ("dead subcarrier", "dead subcarriers", "filled in, features of many left out"),
    "jumping_bins": ("jumping subcarrier", "jumping subcarriers", "filled in, features of many left out"),
    "filled_values": ("missing or outlying value", "missing or outlying values", "filled in from the neighbours"),
    "broken_frames": ("broken frame", "broken frames", "left out: most values missing"),
    "outlier_frames": ("outlier frame", "outlier frames", "left out: level far from that of the frames around"),
    "level_steps": ("step of the receiver's gain", "steps of the receiver's gain", "levelled"),
}
"""Singular, plural, treatment."""


def _defects(reports: Sequence[AgreeReport | None]) -> dict[str, int]:
    """Return the defects of one end's CSI over all blocks: frames, values and steps summed, for bins the maximum."""
    out: dict[str, int] = {}
    for report in reports:
        for name, n in (report.csi_defects if report is not None else {}).items():
            out[name] = max(out.get(name, 0), n) if name in _OF_BINS else out.get(name, 0) + n
    return out


def _defect_entries(blocks: Sequence[BlockFacts]) -> list[Verdict]:
    """Return a verdict on the masked or repaired defects of each end's CSI."""
    out = []
    for end, reports in (("alice", [b.alice for b in blocks]), ("bob", [b.bob for b in blocks])):
        found = _defects(reports)
        if not found:
            continue
        known = [r for r in reports if r is not None]
        bins = sorted({k for r in known for k in r.csi_bins})
        told = [
            f"{counted(n, *words[:2])} ({words[2]})" for name, words in _DEFECTS.items() if (n := found.get(name, 0))
        ]
        rare = set(found) <= {"filled_values", "broken_frames", "outlier_frames"} and sum(
            n for name, n in found.items() if name != "filled_values"
        ) <= _FEW * sum(r.probes for r in known)
        places = f" Places of the subcarriers: {', '.join(map(str, bins))}." if bins else ""
        detail = f"CSI at {end.capitalize()}: {'; '.join(told)}.{places}"
        out.append(Verdict(f"csi_defects_{end}", rare, detail))
    return out


def secrecy(reports: Sequence[KeyReport]) -> dict[str, Any] | None:
    """Return who could know the keys, over all blocks; None where no length was judged or no node reported it.

    There is a row for every Eve: her share of guessed labels and its limit are means over the blocks; `key_bits` is the
    sum of the keys' lengths if she were the only Eve. For a block for which she had no data (the first one, if she
    needs earlier blocks), the length that the least able Eve leaves is added.
    """
    judged = [r for r in reports if r.eves]
    if not judged:
        return None
    limiting = [r.limiting for r in judged if r.limiting is not None]
    return {
        "eves": _rows([r.eves for r in judged]),
        "sensitivity": _rows([r.sensitivity for r in judged]),
        "limiting": max(set(limiting), key=lambda name: (limiting.count(name), name), default=None),
        "epsilon_log2": judged[0].epsilon_log2,
        "assumptions": list(dict.fromkeys(text for r in judged for text in r.assumptions)),
    }


def note_on_eves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what a reader of the table of Eves must know to read it."""
    note = "Sorted by the key that each Eve leaves, which follows from a limit (at most) and not from her guesses."
    if any(row["name"] == TOGETHER for row in rows):
        note += (
            f" {TOGETHER}: how far she follows each of the others is learnt from other labels than she guesses, so "
            "that she may guess fewer than one of them."
        )
    return note


def _rows(blocks: Sequence[Sequence[EveRow]]) -> list[dict[str, Any]]:
    by_name: dict[str, list[EveRow]] = {}
    for row in (row for rows in blocks for row in rows):
        by_name.setdefault(row.name, []).append(row)
    most = [max((row.key_bits for row in rows), default=0) for rows in blocks]
    names = [{row.name for row in rows} for rows in blocks]
    told = [
        {
            "name": name,
            "knows": own[0].knows,
            "guess_probability": _mean([r.guess_probability for r in own]),
            "upper_bound": _mean([r.upper_bound for r in own]),
            "key_bits": sum(r.key_bits for r in own)
            + sum(bits for bits, known in zip(most, names, strict=True) if name not in known),
        }
        for name, own in by_name.items()
    ]
    return sorted(told, key=lambda row: row["key_bits"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


# ---------------------------------------------------------------- figures


def _raw_bits(report: AgreeReport | None) -> int:
    return 0 if report is None else report.raw_bits


def _delivered(report: KeyReport | None) -> bool:
    return report is not None and report.key_bits > 0 and report.failure is None


def _reconciled(block: BlockFacts) -> bool:
    """Whether a block reached reconciliation."""
    return any(r is not None and r.reconciled_bits > 0 for r in (block.alice, block.bob))


def _eve_counted(block: BlockFacts) -> bool:
    """Whether Eve's error rate was measured and, where there is a key, its length follows from it."""
    if block.eve is None or not block.eve.measured:
        return False
    return not _delivered(block.alice_key) or (block.alice_key is not None and block.alice_key.eve_measured)


def _leaked(report: AgreeReport | None) -> int:
    return 0 if report is None else report.leaked_bits


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _ratio(amount: float, per: float | None) -> float | None:
    return amount / per if per else None


def _errors(block: BlockFacts) -> tuple[int, int]:
    """Return the numbers of differing and of compared raw bits of a block, from the best available data.

    These are the raw bits of both sides; or, in a verified block, Bob's corrections and the sacrificed bits, which
    together are exact; or the sacrificed bits alone, which are a sample.
    """
    if block.raw is not None:
        return int(np.count_nonzero(block.raw.alice != block.raw.bob)), block.raw.alice.size
    bob = block.bob
    if bob is not None and bob.verified and bob.corrected_bits is not None:
        return bob.corrected_bits + bob.sacrificed_errors, bob.raw_bits
    report = block.alice or bob
    return (report.sacrificed_errors, report.sacrificed_bits) if report is not None else (0, 0)


def _share(pairs: Sequence[tuple[int, int]]) -> float | None:
    total = sum(n for _, n in pairs)
    return sum(k for k, _ in pairs) / total if total else None


def _kdr_raw(blocks: Sequence[BlockFacts]) -> float | None:
    return _share([_errors(b) for b in blocks])


def _kdr_eve(blocks: Sequence[BlockFacts]) -> float | None:
    """Return Eve's error rate on Alice's raw bits: over all of them if they are known, else over the sacrificed ones.

    If she did not receive everything, it is over the sacrificed bits for which she has a measurement.
    """
    pairs = []
    for block in blocks:
        if block.eve is None or not block.eve.measured:
            continue
        if block.raw is not None and block.raw.eve is not None and block.eve.covered_bits == block.eve.sacrificed_bits:
            pairs.append((int(np.count_nonzero(block.raw.alice != block.raw.eve)), block.raw.alice.size))
        else:
            pairs.append((block.eve.sacrificed_errors, block.eve.covered_bits))
    return _share(pairs)


def _min_entropy(blocks: Sequence[BlockFacts]) -> float | None:
    """Mean min-entropy of a kept bit, as amplification used it."""
    weighed = [
        (b.alice_key.min_entropy_per_bit, b.alice.reconciled_bits)
        for b in blocks
        if b.alice is not None and b.alice_key is not None and b.alice_key.min_entropy_per_bit is not None
    ]
    total = sum(n for _, n in weighed)
    return sum(h * n for h, n in weighed) / total if total else None


def _efficiency(verified: Sequence[BlockFacts]) -> float | None:
    """Return f = reconciliation's leaked bits / Σ n·h₂(e), with e the share of bits that were corrected."""
    leaked = needed = 0.0
    for block in verified:
        alice, bob = block.alice, block.bob
        assert alice is not None
        assert bob is not None
        if bob.corrected_bits is None or not bob.reconciled_bits:
            continue
        rate = bob.corrected_bits / bob.reconciled_bits
        leaked += sum(n for kind, n in alice.leaked_by_kind.items() if not kind.startswith(NOT_RECONCILIATION))
        if 0 < rate < 1:
            needed -= bob.reconciled_bits * (rate * math.log2(rate) + (1 - rate) * math.log2(1 - rate))
    return leaked / needed if needed else None


# ---------------------------------------------------------------- health


def _entry(verdict: Verdict) -> dict[str, Any]:
    return {"check": verdict.check, "ok": bool(verdict.ok), "detail": verdict.detail}


_ADVICE = {
    "too_few_bits": "fewer than 256 bits are left after quantization and the sacrifice: put more rounds in a block, or "
    "choose a smaller guard",
    "error_rate_too_high": "Alice and Bob disagree on a quarter of the bits or more: nothing but noise varies, or the "
    "SNR is too low for so many bits",
    "not_decoded": "reconciliation found no codeword: raise the SNR, or choose fewer bits",
}
"""Reason why a block gave no key, as its code → what it means, and what helps; docs/troubleshooting.md has all."""


def _key_entries(facts: RunFacts, delivered: Sequence[BlockFacts]) -> list[dict[str, Any]]:
    """Return entries that say why blocks gave no key, and whether only one side believes that it has a key."""
    entries = []
    reasons: dict[str, int] = {}
    for block in facts.blocks:
        if block in delivered:
            continue
        reports = (block.alice, block.bob, block.alice_key, block.bob_key)
        failures = [r.failure for r in reports if r is not None and r.failure]
        # the end that failed reports the cause with its figures; the other end reports only that its peer failed
        reason = min(failures, key=lambda failure: failure.startswith(PEER_FAILED), default=None)
        if reason is None or reason.startswith(PEER_FAILED):
            reason = block.failure or reason
        if reason is None:
            reason = "a node stopped reporting" if None in reports else "0 key bits"
        reason = f"{reason} ({_ADVICE[reason]})" if reason in _ADVICE else reason
        reasons[reason] = reasons.get(reason, 0) + 1
    if reasons or not facts.blocks:
        detail = "; ".join(f"{n} of {counted(len(facts.blocks), 'block')}: {reason}" for reason, n in reasons.items())
        entries.append({"check": "blocks_give_keys", "ok": False, "detail": detail or "no block was distilled"})
    one_sided = sum(_delivered(b.alice_key) != _delivered(b.bob_key) for b in facts.blocks)
    if one_sided:
        entries.append(
            {
                "check": "keys_on_both_sides",
                "ok": False,
                "detail": f"delivered on one side only: {counted(one_sided, 'key')}",
            }
        )
    attacked = [b for b in facts.blocks if b.eve is not None]
    assumed = sum(not _eve_counted(b) for b in attacked)
    if assumed:
        detail = (
            f"{assumed} of {counted(len(attacked), 'block')}: Eve received too few probes, missed public messages, or "
            "sent an unusable report; what she knows is assumed, not measured"
        )
        entries.append({"check": "eve_attack_measured", "ok": False, "detail": detail})
    mismatched = sum(
        b.alice_digest != b.bob_digest for b in delivered if b.alice_digest is not None and b.bob_digest is not None
    )
    if mismatched:
        entries.append(
            {
                "check": "keys_equal",
                "ok": False,
                "detail": f"{counted(mismatched, 'verified key differs', 'verified keys differ')}: do not use any",
            }
        )
    return entries


_OF_KEYS = ("randomness", "keys_exposed", "eve_keys_recovered")
"""Fields that cannot be measured where no key was made."""


def _null_entries(summary: Mapping[str, Any], facts: RunFacts, has_keys: bool) -> list[dict[str, Any]]:
    values = {**summary, **{f"reconciliation.{k}": v for k, v in summary["reconciliation"].items()}}
    reasons = _DEFAULT_REASONS if has_keys else {**_DEFAULT_REASONS, **dict.fromkeys(_OF_KEYS, "there is no key")}
    if any(v.check == "eve_measured" and v.ok for v in facts.health):
        reasons = {**reasons, "kdr_eve": "no block reached the comparison of raw bits"}
    if all(b.alice_key is None for b in facts.blocks):
        reasons = {**reasons, "secrecy": "no block reached the decision on a key's length"}
    out = []
    for name, value in values.items():
        if value is None:
            reason = facts.unmeasured.get(name) or reasons.get(name, "not measured")
            out.append({"check": f"measured_{name}", "ok": False, "detail": reason})
    return out
