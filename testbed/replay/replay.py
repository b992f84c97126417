"""The key chain over measured channels: no radios, no nodes, both ends in this process.

Alice and Bob have the same discussion as nodes have; Eve receives all of it and attacks from every measured position.
The key's length is decided against the strongest of those Eves that the source assumes possible; the lengths against
each of the others are reported as well.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from testbed.assess import agreement, health, randomness, training
from testbed.assess.cuts import table as table
from testbed.assess.summary import BlockFacts, RawBits, RunFacts, summarise
from testbed.chain import dialogue
from testbed.chain.agreement import Agreed
from testbed.chain.amplification import assumed_eve
from testbed.chain.eavesdropping import EveGuess
from testbed.chain.knowledge import Knowledge
from testbed.chain.pipeline import KeyChain
from testbed.core.antennas import canonical_antennas
from testbed.core.config import Accounting, ChainFile, Experiment, Training
from testbed.core.errors import DialogueFailed, InputError
from testbed.core.ledger import PublicMessage
from testbed.core.outcomes import KeyReport, SurfaceRecord
from testbed.core.stages import TrainableEnhancer
from testbed.core.types import F64, I64, CsiSeries, Features, Key
from testbed.replay import bins, record, sources
from testbed.replay import map as mapping
from testbed.replay.pairing import at_rounds
from testbed.replay.sources import Cut, EveLinks, Recording

Progress = Callable[[float, str], None]
"""A function that is called with the finished share (0 to 1) and what is being computed."""


def replay(
    source: Path,
    experiment: Experiment | ChainFile | None = None,
    cut: str | None = None,
    progress: Progress = lambda share, what: None,
    seed: int | None = None,
    map_file: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Distil keys from a measured data set or a recorded run and return its summary.

    The source recommends chain, accounting, training and seed; those that `experiment` states replace them. `map_file`
    assigns the arrays of `source` to the nodes (`replay.map`). `cut`: only this set of links is replayed. The fields of
    the summary describe the source's main cut (or `cut`); its field `cuts` has the same fields for each cut and, in
    `eves`, for each Eve her correlations, her error rate and the key bits if she were the only Eve. `out`: a new folder
    into which the main cut is written in the form of a run (`replay.record`).
    Raises InputError for a source or cut that cannot be used, and for a folder `out` that cannot be written.
    """
    with nullcontext() if out is None else record.reserved(out):
        return _replay(source, experiment, cut, progress, seed, map_file, out)


def _replay(
    source: Path, experiment: Experiment | ChainFile | None, cut: str | None, progress: Progress, seed: int | None,
    map_file: Path | None, out: Path | None,
) -> dict[str, Any]:  # fmt: skip
    progress(0.0, f"reading {source}")
    recording = load(source, map_file)
    if cut is not None and cut not in recording.cuts:
        raise InputError(f"{source}: no cut {cut!r}; accepted: {', '.join(recording.cuts)}")
    main = cut or recording.main
    if out is not None:
        record.check_space(out, recording.cuts[main])
    names = [cut] if cut is not None else list(recording.cuts)
    results = {}
    for i, name in enumerate(names):
        progress(i / len(names), f"cut {name}")

        def within(share: float, what: str, i: int = i, name: str = name) -> None:
            progress((i + share) / len(names), f"cut {name}: {what}")

        results[name] = _replay_cut(_as_planned(recording.cuts[name], experiment, seed), within)
    about = {
        "source": recording.name,
        "path": str(source),
        "description": recording.description,
        "caveats": list(recording.caveats),
    }
    summary = {**about, **results[main].summary, "cuts": [done.summary for done in results.values()]}
    if out is not None:
        progress(1.0, f"writing {out}")
        done = results[main]
        record.write(out, source, map_file, recording, done.cut, done.distilled, done.attempts, summary)
    progress(1.0, "done")
    return summary


# ---------------------------------------------------------------- one cut


@dataclass(slots=True)
class _Block:
    """The results of one block."""

    facts: BlockFacts
    guesses: dict[str, EveGuess]
    strongest: str | None
    key_bits_if: dict[str, int]
    """Eve's label → key bits if she were the only Eve."""
    key_bits_unmeasured: int
    """Key bits as if Eve had not been measured: against the Eve whom the accounting then assumes."""
    key: Key | None
    rounds: I64
    """(probe,) round numbers from which it was made."""


@dataclass(frozen=True, slots=True)
class _Replayed:
    """The results of one cut."""

    cut: Cut
    blocks: Sequence[_Block]
    attempts: Sequence[training.Attempt]
    summary: dict[str, Any]

    @property
    def distilled(self) -> list[record.Distilled]:
        """The blocks in the form in which they are recorded."""
        return [
            record.Distilled(b.rounds, b.facts, {label: g.raw for label, g in b.guesses.items()}, b.strongest)
            for b in self.blocks
        ]


def load(source: Path, map_file: Path | None = None) -> Recording:
    """Read a source, by the map that describes it where one is given, and check the result; raises InputError."""
    if map_file is None:
        return sources.load(source)
    return sources.checked(mapping.load(source, map_file), str(source))


def _as_planned(cut: Cut, experiment: Experiment | ChainFile | None, seed: int | None) -> Cut:
    """Return the cut with the file's settings in place of those that the source recommends."""
    if experiment is not None:
        # If the file states a chain, the training plan of the recommended chain is not used.
        training_plan = experiment.training or (cut.training if experiment.chain is None else Training())
        cut = replace(
            cut,
            chain=experiment.chain or cut.chain,
            accounting=experiment.accounting or cut.accounting,
            training=training_plan,
            seed=cut.seed if experiment.seed is None else experiment.seed,
        )
    return cut if seed is None else replace(cut, seed=seed)


def _replay_cut(cut: Cut, progress: Progress) -> _Replayed:
    started = time.monotonic()
    cut, turned = bins.in_order(cut)
    plan, accounting, training_plan, seed = cut.chain, cut.accounting, cut.training, cut.seed
    feeding = np.arange(cut.alice.h.shape[0]) if cut.key_probes is None else cut.key_probes
    size = accounting.block_rounds
    spent = training_plan.rounds + training_plan.guard_rounds * bool(training_plan.rounds)
    n_blocks = max(1, (feeding.size - spent) // size)
    chain = KeyChain(plan, accounting, n_blocks, cut.least_key_bits)
    _check_model(chain, cut)
    known = {label: Knowledge() for label in (ALL, NOBODY, *cut.eves)}
    attempts, feeding = _train(chain, cut, feeding, training_plan, seed, known)
    numbers = cut.alice.rounds[feeding] if _has_own_numbers(cut) else None
    blocks = []
    for i in range(n_blocks):

        def within(share: float, what: str, i: int = i) -> None:
            progress((i + share) / n_blocks, f"block {i + 1} of {n_blocks}: {what}")

        probes = _Probes(feeding, i * size, size, numbers)
        blocks.append(_distil(chain, cut, probes, i + len(attempts), seed, known, within))
    alice_db = agreement.level_db(cut.alice.h)
    bob_db = agreement.level_db(canonical_antennas(cut.bob, "bob").h)
    both = np.isfinite(alice_db).any(axis=1) & np.isfinite(bob_db).any(axis=1)
    missing = {"missing": int((~both).sum())} if not both.all() else {}
    rounds = both.size + sum(cut.rejected.values())
    correlations_ae = {label: _links_r(cut, alice_db, bob_db, eve) for label, eve in cut.eves.items()}
    guarding = {
        label: r for label in cut.assumed if cut.eves[label].measured and (r := _largest(correlations_ae[label]))
    }
    nearest = max(guarding, key=lambda label: abs(guarding[label]), default=None)
    correlation_ab = _correlation(cut, alice_db, bob_db)
    verdicts = turned + health.check(alice_db, bob_db, _eve_db(cut, nearest), pairs=math.prod(cut.alice.h.shape[1:3]))
    if training_plan.rounds:
        verdicts += [training.verdict(attempts), training.guard_verdict(attempts, training_plan.guard_rounds)]
    facts = RunFacts(
        rounds=rounds,
        pairs_kept=int(both.sum()),
        pairs_rejected={**cut.rejected, **missing},
        reconcile=plan.reconcile,
        blocks=[block.facts for block in blocks],
        probing_s=None if cut.interval_s is None else rounds * cut.interval_s,
        wall_s=time.monotonic() - started,
        csi_correlation_ab=correlation_ab,
        csi_correlation_ae=guarding[nearest] if nearest is not None else None,
        csi_correlation_ab_detrended=agreement.detrended(alice_db, bob_db),
        randomness=_randomness([block.key for block in blocks if block.key is not None]),
        health=verdicts,
    )
    summary = {
        "cut": cut.name,
        **summarise(facts),
        "csi_correlation_ab_pooled": agreement.pooled(alice_db, bob_db),
        "csi_correlation_ab_per_group": _per_group(cut.groups, alice_db, bob_db),
        "eve_assumption": cut.assumption or f"Eve was not measured: {_assumed(accounting)}",
        "key_bits_if_eve_unmeasured": sum(block.key_bits_unmeasured for block in blocks),
        "eves": [_eve_row(label, cut, correlations_ae[label], blocks) for label in cut.eves],
        "key_probes": int(feeding.size),
        "key_note": cut.key_note,
        "block_digests": [_block_digests(block.facts) for block in blocks],
        **({"training": training.summarise(attempts, training_plan.guard_rounds)} if training_plan.rounds else {}),
    }
    return _Replayed(cut, blocks, attempts, summary)


def _block_digests(facts: BlockFacts) -> dict[str, Any]:
    """Return digests, never bits, by which a repetition of the replay can be compared; null where a side has none.

    `raw_sha256` is over one byte of 0 or 1 per raw bit, `key_sha256` over the key packed into bytes.
    """
    raw = facts.raw
    bits = {} if raw is None else {"alice": raw.alice, "bob": raw.bob, "eve": raw.eve}
    reports = {"alice": facts.alice, "bob": facts.bob}
    keys = {"alice": facts.alice_key, "bob": facts.bob_key}
    return {
        "block": next((report.block for report in reports.values() if report is not None), None),
        "raw_sha256": {
            side: None if values is None else hashlib.sha256(values.astype(np.uint8).tobytes()).hexdigest()
            for side, values in bits.items()
        },
        "leaked_bits": {side: None if report is None else report.leaked_bits for side, report in reports.items()},
        "key_bits": {side: None if report is None else report.key_bits for side, report in keys.items()},
        "key_sha256": {"alice": facts.alice_digest, "bob": facts.bob_digest},
    }


def _check_model(chain: KeyChain, cut: Cut) -> None:
    """Raise InputError where the chain has a saved model that was made for other CSI."""
    enhancer = chain.enhance
    if isinstance(enhancer, TrainableEnhancer) and enhancer.model_id is not None:
        try:
            enhancer.check(cut.alice.h.shape[1:], cut.alice.subcarrier_hz)
        except InputError as exc:
            raise InputError(f"cut {cut.name!r}: {exc}; accepted: a model trained on such CSI") from exc


def _train(
    chain: KeyChain, cut: Cut, feeding: I64, training_plan: Training, seed: int, known: Mapping[str, Knowledge]
) -> tuple[list[training.Attempt], I64]:
    """Train the enhancer on the first probes; return the attempt's report and the probes that are left for keys.

    A replay tries once, because the same probes would fail again. Every Eve trains a model of her own.
    """
    if not training_plan.rounds:
        return [], feeding
    if feeding.size <= training_plan.rounds + training_plan.guard_rounds:
        raise InputError(
            f"cut {cut.name!r}: {feeding.size} probes, but the training and its guard take "
            f"{training_plan.rounds + training_plan.guard_rounds}; accepted: fewer of "
            "these ([training] rounds, guard_rounds)"
        )
    probes = feeding[: training_plan.rounds]
    numbers = cut.alice.rounds[probes]  # the model's card names them, as that of the run did
    ends = {side: _take(series, probes, numbers) for side, series in (("alice", cut.alice), ("bob", cut.bob))}
    a, b, said = dialogue.run(chain.train("alice", ends["alice"], 0, seed), chain.train("bob", ends["bob"], 0, seed))
    failure = a.failure or b.failure
    for label, eve in cut.eves.items():
        heard = _maybe(eve.from_alice, probes, numbers), _maybe(eve.from_bob, probes, numbers)
        chain.overhear_training(*heard, [m for _, m in said], seed, label)
    # Training rounds have negative numbers, so that every block comes later.
    before = np.arange(-training_plan.rounds - training_plan.guard_rounds, -training_plan.guard_rounds, dtype=np.int64)
    if _has_own_numbers(cut):
        before = numbers
    published = chain.features(_take(cut.alice, probes, before), "alice")
    if published is not None:
        for memory in known.values():
            memory.add_features("training", published)
        _hear(chain, cut, probes, before, known, before[:0])
    return [training.Attempt(probes.size, failure, a, b)], feeding[training_plan.rounds + training_plan.guard_rounds :]


def _assumed(accounting: Accounting) -> str:
    return assumed_eve(accounting).words


ALL, NOBODY = "*", ""
"""The two adversaries of a cut's own row: all Eves together whom the source assumes possible, and an Eve who was not
measured."""


@dataclass(frozen=True, slots=True)
class _Probes:
    """The probes of one block: `n` of the probes from which keys are made (`feeding`), from position `first` on."""

    feeding: I64
    first: int
    n: int
    numbers: I64 | None = None
    """Round numbers of all of `feeding`, if the source has them; None: the probes are counted."""

    @property
    def which(self) -> I64:
        return self.feeding[self.first : self.first + self.n]

    @property
    def places(self) -> I64:
        """(probe,) numbers that ascend over the whole replay, as the numbers of rounds do."""
        if self.numbers is not None:
            return self.numbers[self.first : self.first + self.n]
        return np.arange(self.first, self.first + self.which.size, dtype=np.int64)

    @property
    def reported(self) -> I64:
        """(round,) numbers on which an Eve reports with this block if she measured more rounds than the probes: all
        rounds from the end of the block before to the end of this one."""
        after = -1 if self.first == 0 else int(self.numbers[self.first - 1]) if self.numbers is not None else -1
        return np.arange(after + 1, int(self.places[-1]) + 1, dtype=np.int64)


def _distil(
    chain: KeyChain, cut: Cut, probes: _Probes, number: int, seed: int, known: Mapping[str, Knowledge],
    progress: Progress,
) -> _Block:  # fmt: skip
    """Run a block through the chain, against every Eve."""
    progress(0.0, "both ends agree on a string")
    alice, bob, said = dialogue.run(
        chain.agree("alice", _take(cut.alice, probes.which), number, seed),
        chain.agree("bob", _take(cut.bob, probes.which), number, seed),
    )
    heard = [message for _, message in said]
    links = {
        label: (_maybe(eve.from_alice, probes.which), _maybe(eve.from_bob, probes.which))
        for label, eve in cut.eves.items()
    }
    # Her error rate is counted on raw bits. What the parities reveal is charged as leakage; her guess of the key below
    # uses them, too.
    guesses = {label: chain.eavesdrop(number, *pair, heard, True, label) for label, pair in links.items()}
    judged = {label: guess.report for label, guess in guesses.items() if guess.report.measured}
    strongest = min(
        (label for label in cut.assumed if label in judged), key=lambda label: judged[label].error_rate, default=None
    )
    raw = None
    if alice.raw is not None and bob.raw is not None:
        guess = guesses[strongest].raw if strongest is not None else None
        raw = RawBits(alice.raw.values, bob.raw.values, guess)
    eve = judged[strongest] if strongest is not None else None
    rounds = cut.alice.rounds[probes.which]
    _hear(chain, cut, probes.which, probes.places, known, probes.reported)
    if not (alice.report.verified and bob.report.verified):
        _close(alice, probes, known)
        return _Block(BlockFacts(alice.report, bob.report, eve, raw=raw), guesses, strongest, {}, 0, None, rounds)
    surface = _surface(cut, probes)
    steps = 2 + len(judged)
    progress(1 / (steps + 1), "what could an Eve know of it?")
    final = _amplify(chain, alice, bob, known[ALL], probes, surface, seed)

    def against(whom: str) -> int:
        """Return the key's bits against one Eve, or against an unmeasured one. If she is the only Eve, the result that
        was computed for all of them is used, because it takes seconds."""
        if tuple(cut.assumed) == (() if whom == NOBODY else (whom,)):
            return final.key_bits
        return _amplify(chain, alice, bob, known[whom], probes, surface, seed).key_bits

    if_there = {}
    for i, label in enumerate(judged):
        progress((2 + i) / (steps + 1), f"what would Eve {label!r} alone leave?")
        if_there[label] = against(label)
    progress(steps / (steps + 1), "what would an Eve leave who was not measured?")
    unmeasured = against(NOBODY)
    _close(alice, probes, known)
    eve_key = None
    if strongest is not None and final.alice is not None:
        found = chain.guess_key(guesses[strongest], [*heard, *final.said])
        eve_key = None if found is None else found.key
    facts = BlockFacts(
        alice=alice.report,
        bob=bob.report,
        eve=eve,
        alice_key=final.alice_report,
        bob_key=final.bob_report,
        raw=raw,
        alice_digest=_digest(final.alice),
        bob_digest=_digest(final.bob),
        eve_digest=None if eve_key is None else _digest(Key(number, eve_key)),
    )
    return _Block(facts, guesses, strongest, if_there, unmeasured, final.alice, rounds)


def _has_own_numbers(cut: Cut) -> bool:
    """Return whether the probes are rounds of a run in which some Eve measured other rounds, too."""
    return any(eve.every is not None for eve in cut.eves.values())


def _hear(
    chain: KeyChain, cut: Cut, probes: I64, places: I64, known: Mapping[str, Knowledge], reported: I64
) -> None:  # fmt: skip
    """Add each Eve's report on these probes, and the surface's states, to the knowledge by which keys are judged.

    reported: (round,) numbers on which an Eve reports instead if she measured more than the probes, as in a run.
    """
    if cut.surface is not None:
        for memory in known.values():
            memory.add_states(places, cut.surface.states[probes])
    for label, eve in cut.eves.items():
        pair = [_maybe(series, probes, places) for series in (eve.from_alice, eve.from_bob)]
        if eve.every is not None:
            pair = _measured_of(eve.every, reported, places)
        series = chain.report_series(pair[0], pair[1], label)
        known[label].add_heard(series)
        if label in cut.assumed:
            known[ALL].add_heard(series)


def _measured_of(
    every: tuple[CsiSeries | None, CsiSeries | None], reported: I64, places: I64
) -> list[CsiSeries | None]:  # fmt: skip
    """Return both links, in those of the `reported` rounds in which either was measured and in the block's own."""
    measured = [s.rounds for s in every if s is not None]
    rounds = np.intersect1d(reported, np.unique(np.concatenate([*measured, places])))
    there = [s is not None and bool(np.isin(rounds, s.rounds).any()) for s in every]
    return [at_rounds(s, rounds) if s is not None and has else None for s, has in zip(every, there, strict=True)]


def _close(alice: Agreed, probes: _Probes, known: Mapping[str, Knowledge]) -> None:
    """Mark this block as known to every Eve from now on."""
    if alice.features is not None:
        told = Features(alice.features.values, probes.places)
        for memory in known.values():
            memory.add_features(f"block {alice.report.block}", told)


@dataclass(frozen=True, slots=True)
class _Amplified:
    alice: Key | None
    bob: Key | None
    alice_report: KeyReport | None
    bob_report: KeyReport | None
    said: list[PublicMessage]

    @property
    def key_bits(self) -> int:
        return 0 if self.alice is None or self.bob is None else self.alice.bits.size


def _surface(cut: Cut, probes: _Probes) -> SurfaceRecord | None:
    if cut.surface is None:
        return None
    s, which = cut.surface, probes.which
    return SurfaceRecord(
        states=tuple(s.states[which].tolist()),
        levels=None if s.levels is None else np.ascontiguousarray(s.levels[which], np.uint8).tobytes(),
        phase_bits=s.phase_bits,
        elements=s.elements,
    )


def _amplify(
    chain: KeyChain, alice: Agreed, bob: Agreed, known: Knowledge, probes: _Probes, surface: SurfaceRecord | None,
    seed: int,
) -> _Amplified:  # fmt: skip
    facts = known.facts(alice, surface, rounds=probes.places)
    decided = chain.decide(alice, facts, seed)
    try:
        (a, a_report), (b, b_report), said = dialogue.run(
            chain.amplify("alice", alice, decided, seed), chain.amplify("bob", bob, None, seed)
        )
    except DialogueFailed:
        return _Amplified(None, None, None, None, [])
    return _Amplified(a, b, a_report, b_report, [message for _, message in said])


def _take(series: CsiSeries, probes: I64, rounds: I64 | None = None) -> CsiSeries:
    """Select probes in the given order, and number them from 0, or by `rounds`."""
    numbers = np.arange(probes.size, dtype=np.int64) if rounds is None else np.asarray(rounds, np.int64)
    return CsiSeries(series.h[probes], numbers, series.subcarrier_hz)


def _maybe(series: CsiSeries | None, probes: I64, rounds: I64 | None = None) -> CsiSeries | None:
    return None if series is None else _take(series, probes, rounds)


def _digest(key: Key | None) -> str | None:
    return None if key is None else hashlib.sha256(np.packbits(key.bits).tobytes()).hexdigest()


def _randomness(keys: Sequence[Key]) -> dict[str, dict[str, float]]:
    """Return SP 800-22 results over the keys, each of which may have its own length."""
    by_test: dict[str, list[F64]] = {}
    for key in keys:
        for test, p in randomness.p_values(key.bits[None, :]).items():
            by_test.setdefault(test, []).append(p)
    return randomness.combine({test: np.concatenate(p) for test, p in by_test.items()})


# ---------------------------------------------------------------- correlations


def _correlation(cut: Cut, a: F64, b: F64) -> float | None:
    return _per_group(cut.groups, a, b) if cut.per_group else agreement.correlation(a, b)


def _per_group(groups: I64, a: F64, b: F64) -> float | None:
    """Return the median over groups of Pearson's r over all values of a group."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    found = [agreement.pooled(a[rows], b[rows]) for rows in np.split(order, starts[1:])]
    known = [r for r in found if r is not None]
    return float(np.median(known)) if known else None


def _links_r(cut: Cut, alice_db: F64, bob_db: F64, eve: EveLinks) -> dict[str, float | None]:
    """Return Eve's correlation by link: with Alice, or with Bob where that is larger."""
    out: dict[str, float | None] = {}
    for heard, series in (("alice", eve.from_alice), ("bob", eve.from_bob)):
        if series is not None:
            own = agreement.level_db(series.h)
            if eve.told_over is not None:
                own[~eve.told_over] = np.nan
            out[heard] = _largest({end: _correlation(cut, db, own) for end, db in (("a", alice_db), ("b", bob_db))})
    return out


def _largest(correlations: Mapping[str, float | None]) -> float | None:
    return max((r for r in correlations.values() if r is not None), key=abs, default=None)


def _eve_db(cut: Cut, label: str | None) -> dict[str, F64] | None:
    if label is None:
        return None
    eve = cut.eves[label]
    return {
        heard: agreement.level_db(s.h)
        for heard, s in (("alice", eve.from_alice), ("bob", eve.from_bob))
        if s is not None
    }


def _eve_row(
    label: str, cut: Cut, correlations: Mapping[str, float | None], blocks: Sequence[_Block]
) -> dict[str, Any]:
    """Return the table's row of one Eve."""
    known = [b for b in blocks if b.facts.raw is not None and b.guesses[label].raw.size == b.facts.raw.alice.size]
    wrong = sum(
        int(np.count_nonzero(b.guesses[label].raw != b.facts.raw.alice)) for b in known if b.facts.raw is not None
    )
    bits = sum(b.facts.raw.alice.size for b in known if b.facts.raw is not None)
    return {
        "label": label,
        "assumed": label in cut.assumed,
        "measured": cut.eves[label].measured,
        "csi_correlation_ae": _largest(correlations),
        "by_link": dict(correlations),
        "kdr_eve": wrong / bits if bits else None,
        "strongest_in_blocks": sum(b.strongest == label for b in blocks),
        "key_bits": sum(b.key_bits_if.get(label, 0) for b in blocks),
    }
