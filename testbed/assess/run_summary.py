"""Collects the facts of a recorded run that `assess.summary` turns into the summary.

A run that has just ended, a killed run and one that is read again go through one function, so that they agree.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from testbed.assess import agreement, audit, carriers, health, randomness, training
from testbed.assess.pace import pace
from testbed.assess.summary import BlockFacts, RawBits, RunFacts, summarise
from testbed.config import convert
from testbed.core.antennas import canonical_antennas
from testbed.core.config import Experiment
from testbed.core.errors import InputError, Reject
from testbed.core.outcomes import TrainReport
from testbed.core.stages import Verdict
from testbed.core.types import F64, CsiSeries
from testbed.records.documents import RUN_RESUMED
from testbed.records.recorded import RecordedRun

Tell = audit.Tell


def summary_of(run: RecordedRun, tell: Tell = lambda share, what: None) -> dict[str, Any]:
    """Return the fields of summary.json for a recorded run, however it ended.

    `tell` is called with the finished share (0 to 1) and what is computed next; the audit of a key takes seconds.
    """
    experiment = convert(run.start.experiment, Experiment, "the run's experiment")
    kept = run.rounds.rounds[run.rounds.kept]
    rejected = Counter(str(reason) for reason in run.rounds.reason[~run.rounds.kept])
    levels_db = _levels_db(run, kept)
    alice, bob = levels_db.get("bob>alice"), levels_db.get("alice>bob")
    verdicts: list[Verdict] = []
    correlations: dict[str, float | None] = {}
    unmeasured: dict[str, str] = {}
    if alice is not None and bob is not None and alice.shape != bob.shape:
        why = f"CSI of {alice.shape[1]} values per round at Alice and of {bob.shape[1]} at Bob cannot be compared"
        unmeasured |= {k: why for k in ("csi_correlation_ab", "csi_correlation_ae", "csi_correlation_ab_detrended")}
        alice = bob = None
    # A node may report CSI of any shape; Eve's is left out if it cannot be compared with Alice's and Bob's.
    eve = {
        tx: values for tx in ("alice", "bob")
        if (values := levels_db.get(f"{tx}>eve")) is not None and alice is not None and values.shape == alice.shape
    }  # fmt: skip
    if alice is not None and bob is not None:
        verdicts += health.check(alice, bob, eve, _snr_db(run, kept), _antenna_pairs(run))
        correlations["csi_correlation_ab"] = agreement.correlation(alice, bob)
        correlations["csi_correlation_ab_detrended"] = agreement.detrended(alice, bob)
        found = [r for v in eve.values() for end in (alice, bob) if (r := agreement.correlation(end, v)) is not None]
        if found:
            correlations["csi_correlation_ae"] = max(found, key=abs)
    elif experiment.mode == "private":
        why = "private mode: nodes report neither CSI nor bits"
        unmeasured |= {k: why for k in ("csi_correlation_ab", "csi_correlation_ae", "csi_correlation_ab_detrended")}
        unmeasured |= {k: why for k in ("keys_mismatched", "randomness", "eve_keys_recovered")}
        if any(audit.key_bits(block) for block in run.blocks):
            unmeasured |= {k: why for k in ("min_entropy_per_bit", "secrecy")}
    offsets = carriers.offsets(run, experiment)
    verdicts += [*carriers.verdict(run, experiment, offsets), *_course(run, experiment)]
    attempts = _attempts(run)
    if experiment.training.rounds:
        verdicts += [training.verdict(attempts), training.guard_verdict(attempts, experiment.training.guard_rounds)]
    p_values: dict[str, list[float]] = {}
    for event in run.events:
        if event.kind == "randomness":
            for test, p in event.data["p_values"].items():
                p_values.setdefault(test, []).append(p)
    exposed = _exposed(run, tell)
    if isinstance(exposed, str):
        unmeasured["keys_exposed"] = exposed
    out = summarise(
        RunFacts(
            rounds=int(run.rounds.rounds.size),
            pairs_kept=int(kept.size),
            pairs_rejected=dict(rejected),
            reconcile=experiment.chain.reconcile,
            blocks=_blocks(run),
            probing_s=_probing_s(run, experiment),
            wall_s=_wall_s(run),
            randomness=randomness.combine({test: np.array(p) for test, p in p_values.items()}),
            health=verdicts,
            rehearsal=run.start.rehearsal,
            authentication=[
                by for by, usual in (("curve", True), ("wegman_carter", False)) if run.start.lab.get(by, usual)
            ],
            keys_exposed=exposed if isinstance(exposed, int) else None,
            unmeasured=unmeasured,
            **correlations,
        )
    )
    if experiment.training.rounds:
        guard = next((e.data["rounds"] for e in reversed(run.events) if e.kind == "guard_rounds"), 0)
        out["training"] = training.summarise(attempts, guard)
    out["links_rejected"] = _links_rejected(run)
    out["pace"] = pace(run, experiment)
    out["carriers"] = offsets
    out["status"] = run.stop.exit_status if run.stop is not None else "killed"
    return out


MOST_AUDITED = 8
"""Largest number of blocks for which keys are audited at the end of a run; for longer runs, use `testbed audit`."""


def _exposed(run: RecordedRun, tell: Tell) -> int | str:
    """Return how many keys an Eve with the whole record can predict, or why that is not known."""
    keyed = [b for b in run.blocks if audit.key_bits(b)]
    if not keyed or (len(run.blocks) == 1 and run.links):
        return 0  # nothing was recorded after the key's length was decided
    if len(run.blocks) > MOST_AUDITED:
        return f"the run has {len(run.blocks)} blocks, which `testbed audit {run.folder.name}` audits"
    try:
        outcomes = audit.audit(run, what_if=False, tell=tell)
    except InputError:
        return "private mode: the record contains no CSI that an audit could use"
    reasons = sorted({o.reason for o in outcomes if isinstance(o, audit.Unaudited)})
    return reasons[0] if reasons else audit.exposed(outcomes)


def _levels_db(run: RecordedRun, kept: np.ndarray) -> dict[str, F64]:
    """Return 'tx role>rx role' → (kept round, dimension) levels in dB per subcarrier, NaN where there are none."""
    out: dict[str, F64] = {}
    for link in run.links:
        series = run.series(link)
        if series is None or kept.size == 0:
            continue
        tx, rx = (run.start.role(name) for name in link.split(">"))
        h = np.full((kept.size, *series.h.shape[1:]), np.nan, dtype=np.complex64)
        _, mine, theirs = np.intersect1d(kept, series.rounds, return_indices=True)
        h[mine] = series.h[theirs]
        aligned = canonical_antennas(CsiSeries(h=h, rounds=kept, subcarrier_hz=series.subcarrier_hz), rx)
        out[f"{tx}>{rx}"] = agreement.level_db(aligned.h)
    return out


def _antenna_pairs(run: RecordedRun) -> int:
    """Return the number of antenna pairs between Alice and Bob; 1 where their CSI is not on record."""
    series = run.series(f"{run.node('bob')}>{run.node('alice')}")
    return 1 if series is None else int(np.prod(series.h.shape[1:3]))


def _snr_db(run: RecordedRun, kept: np.ndarray) -> tuple[F64, F64] | None:
    """Return (kept round,) SNRs in dB at Alice and at Bob, NaN where there is none."""
    alice, bob = run.node("alice"), run.node("bob")
    records = [run.links.get(link) for link in (f"{bob}>{alice}", f"{alice}>{bob}")]
    out = []
    for record in records:
        if record is None:
            return None
        values = np.full(kept.size, np.nan)
        _, mine, theirs = np.intersect1d(kept, record.rounds, return_indices=True)
        values[mine] = record.snr_db[theirs]
        out.append(values)
    return out[0], out[1]


def _blocks(run: RecordedRun) -> list[BlockFacts]:
    digests = {e.data["block"]: e.data["by_role"] for e in run.events if e.kind == "key_digests"}
    failures = {e.data["block"]: str(e.data["why"]) for e in run.events if e.kind == "block_failed"}
    alice, bob, eve = (run.node(role) or role for role in ("alice", "bob", "eve"))
    out = []
    for block in run.blocks:
        a, b = run.bits.get((block.block, alice, "raw")), run.bits.get((block.block, bob, "raw"))
        guess = run.bits.get((block.block, eve, "guess"))
        raw = None
        if a is not None and b is not None and a.size == b.size:
            raw = RawBits(a, b, guess if guess is not None and guess.size == a.size else None)
        known = digests.get(block.block, {})
        out.append(
            BlockFacts(
                alice=block.agree.get(alice), bob=block.agree.get(bob), eve=block.eve,
                alice_key=block.key.get(alice), bob_key=block.key.get(bob), raw=raw,
                alice_digest=known.get("alice"), bob_digest=known.get("bob"), eve_digest=known.get("eve"),
                failure=failures.get(block.block),
            )
        )  # fmt: skip
    return out


def _attempts(run: RecordedRun) -> list[training.Attempt]:
    """Return the run's training blocks in order."""
    out = []
    for event in run.events:
        if event.kind == "training":
            sides = {role: msgspec.convert(r, TrainReport) for role, r in event.data["reports"].items()}
            told = event.data
            out.append(
                training.Attempt(
                    told["rounds"], told["failure"], sides.get("alice"), sides.get("bob"), told.get("file")
                )
            )
    return out


def _course(run: RecordedRun, experiment: Experiment) -> list[Verdict]:
    """Return verdicts: was the run completed, with its interval and its nodes, and were few rounds rejected?"""
    out = []
    if run.stop is None or run.stop.exit_status != "ok":
        status = "killed" if run.stop is None else run.stop.exit_status
        out.append(
            Verdict(
                "run_completed",
                False,
                f"The run ended as {status}: {(run.stop and run.stop.reason) or 'no reason was recorded'}.",
            )
        )
    else:
        out.append(Verdict("run_completed", True, "All rounds of the run were driven."))
    lost = [
        f"{e.data['node']} ({e.data.get('detail') or e.data.get('why')})"
        for e in run.events
        if e.kind in ("lost", "left_out")
    ]
    out.append(
        Verdict("nodes_alive", not lost, f"Lost or left out: {'; '.join(lost)}." if lost else "No node was lost.")
    )
    gaps_s = np.diff(run.rounds.t0_s[np.argsort(run.rounds.rounds)])
    if gaps_s.size:
        wanted_s, got_s = experiment.probing.interval_s, float(np.median(gaps_s))
        kept_up = got_s <= 1.2 * wanted_s
        detail = (
            f"Rounds follow one another every {got_s:.3g} s (median); probing.interval_s asks for {wanted_s:g} s"
            + ("." if kept_up else ", so the run was too slow.")
        )
        out.append(Verdict("interval_kept", kept_up, detail))
    meant = run.rounds.reason != Reject.SOUNDING.value  # sounding rounds are not meant to give a key
    total = int(meant.sum())
    if total:
        share = 1.0 - float(run.rounds.kept[meant].mean())
        counts = Counter(str(r) for r in run.rounds.reason[~run.rounds.kept & meant])
        named = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
        detail = f"{share:.1%} of {total} rounds were rejected" + (f": {named}." if named else ".")
        if total < meant.size:
            detail += f" {meant.size - total} further rounds were soundings, which give no key."
        out.append(Verdict("rounds_kept", share <= 0.1, detail))
    if experiment.mode == "experiment":
        out.append(
            Verdict(
                "keys_for_use",
                False,
                "Experiment mode: CSI and raw bits were recorded, so these keys are for research only.",
            )
        )
    return out


def _probing_s(run: RecordedRun, experiment: Experiment) -> float | None:
    t0_s = run.rounds.t0_s
    return float(t0_s.max() - t0_s.min()) + experiment.probing.interval_s if t0_s.size else None


def _wall_s(run: RecordedRun) -> float | None:
    """Return the time from the first round until the records were closed, without the start of processes."""
    ready = next((e for e in run.events if e.kind == "ready"), None)
    if run.stop is None or ready is None:
        return None
    down_s = sum(float(e.data["down_s"]) for e in run.events if e.kind == RUN_RESUMED)
    # no time passed where the time of day was set
    set_s = sum(float(e.data["by_s"]) for e in run.events if e.kind == "clock_stepped" and e.seq > ready.seq)
    told_s = (datetime.fromisoformat(run.stop.time) - datetime.fromisoformat(ready.time)).total_seconds()
    passed_s = told_s - down_s - set_s
    return passed_s if passed_s > 0 else None  # it was set back while nobody drove the run


def _links_rejected(run: RecordedRun) -> dict[str, dict[str, int]]:
    """Return receiver → reason → number of transmissions that it could not use, Eve's included."""
    return next((e.data for e in reversed(run.events) if e.kind == "links_rejected"), {})
