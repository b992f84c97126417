"""Audit after a run: could an Eve predict a key with what became known only after its length had been decided?

A key's length is decided during the run from what is known at that time. Afterwards the record contains more: Eve's
signals of later rounds, later blocks in full, other runs of the same lab. The audit applies the same portfolio of
attacks to all of it. A key is exposed if the best Eve leaves fewer bits of its string than the key has. The audit uses
her success rate and not its confidence limit; it therefore exposes a key only if something new helps her.

It needs CSI of Alice and Bob, hence a run of experiment mode. Alice's string is computed again from her CSI by the
run's own chain, and counts only where it equals the recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np

from testbed.chain import dialogue
from testbed.chain.agreement import Agreed
from testbed.chain.knowledge import Knowledge
from testbed.chain.pipeline import KeyChain
from testbed.config import convert
from testbed.core.config import Experiment
from testbed.core.errors import InputError
from testbed.core.outcomes import SurfaceRecord
from testbed.core.stages import TrainableEnhancer
from testbed.core.types import CsiSeries, Features
from testbed.entropy.facts import Facts
from testbed.entropy.judge import Finding, judge
from testbed.records.documents import Block
from testbed.records.recorded import RecordedRun

AS_RUN, PATTERNS_KNOWN = "everything on record", "the surface's patterns known as well"


@dataclass(frozen=True, slots=True)
class Audited:
    """What the audit found of one key."""

    run: str
    block: int
    key_bits: int
    assumption: str
    attack: str
    """The best Eve."""
    guess_probability: float
    left_bits: int
    """Bits of the string that she cannot predict, less the bits that were leaked about it in public."""
    exposed: bool
    """Whether the key is exposed; always False under a what-if assumption, because only the record exposes a key."""


@dataclass(frozen=True, slots=True)
class Unaudited:
    """A key that could not be audited, and why."""

    run: str
    block: int
    reason: str


Outcome = Audited | Unaudited
Tell = Callable[[float, str], None]


def audit(
    run: RecordedRun, others: Sequence[RecordedRun] = (), what_if: bool = True,
    tell: Tell = lambda share, what: None,
) -> list[Outcome]:  # fmt: skip
    """Return the findings for every key of a run; `others`: runs of the same lab that Eve is assumed to know in full.

    `tell` is called before each key with the finished share (0 to 1) and what is computed. Raises InputError where the
    run recorded no CSI.
    """
    experiment, alice, bob = _recorded(run)
    chain = KeyChain(experiment.chain, experiment.accounting)
    if isinstance(chain.enhance, TrainableEnhancer):
        why = "its enhancer was trained, and the record does not contain the model"
        return [Unaudited(run.folder.name, b.block, why) for b in run.blocks if key_bits(b)]
    again = {b.block: _again(chain, b, alice, bob, experiment.seed) for b in run.blocks if b.rounds}
    elsewhere = [(other.folder.name, chain.features(_recorded(other)[1], "alice")) for other in others]
    out: list[Outcome] = []
    with_key = [block for block in run.blocks if key_bits(block)]
    for i, block in enumerate(with_key):
        tell(i / len(with_key), f"the key of block {block.block} is audited ({i + 1} of {len(with_key)})")
        agreed = again.get(block.block)
        if agreed is None or agreed.raw is None or not _same_string(run, block, agreed):
            out.append(
                Unaudited(
                    run.folder.name,
                    block.block,
                    "the recorded CSI does not reproduce the string that the key was made of",
                )
            )
            continue
        known = _knowledge(run, chain, again, block.block, elsewhere)
        is_secret = experiment.surface.is_secret  # public patterns are on record, so nothing is to be assumed
        facts = known.facts(agreed, _states(run, agreed, patterns=not is_secret))
        out.append(_found(run, block, facts, AS_RUN, experiment.accounting.entropy))
        surface = _states(run, agreed, patterns=True) if what_if and is_secret else None
        if surface is not None and surface.levels is not None:
            facts = known.facts(agreed, surface)
            out.append(_found(run, block, facts, PATTERNS_KNOWN, experiment.accounting.entropy))
    return out


def key_bits(block: Block) -> int:
    """Return the bits of a block's key that both ends have; 0 where there is none."""
    return min((k.key_bits for k in block.key.values() if k.failure is None), default=0)


def hashed_bits(block: Block) -> int:
    """Return the number of bits to which a block's string was hashed: its key and the refill of the pool of pads."""
    refill = max((k.refill_bits for k in block.key.values() if k.failure is None), default=0)
    return key_bits(block) + refill


def exposed(outcomes: Sequence[Outcome]) -> int:
    """Return how many keys are exposed."""
    return sum(isinstance(o, Audited) and o.exposed for o in outcomes)


def _recorded(run: RecordedRun) -> tuple[Experiment, CsiSeries, CsiSeries]:
    experiment = convert(run.start.experiment, Experiment, f"{run.folder}: experiment")
    names = {role: run.node(role) for role in ("alice", "bob")}
    alice, bob = (run.series(f"{names[tx]}>{names[rx]}") for tx, rx in (("bob", "alice"), ("alice", "bob")))
    if alice is None or bob is None:
        raise InputError(f"{run.folder}: no CSI of Alice and Bob; accepted: a run recorded in experiment mode")
    return experiment, alice, bob


def _again(chain: KeyChain, block: Block, alice: CsiSeries, bob: CsiSeries, seed: int) -> Agreed:
    rounds = np.array(block.rounds, np.int64)
    a, _, _ = dialogue.run(
        chain.agree("alice", _at(alice, rounds), block.block, seed),
        chain.agree("bob", _at(bob, rounds), block.block, seed),
    )
    return a


def _at(series: CsiSeries, rounds: np.ndarray) -> CsiSeries:
    h = np.full((rounds.size, *series.h.shape[1:]), np.nan, np.complex64)
    _, into, of = np.intersect1d(rounds, series.rounds, return_indices=True)
    h[into] = series.h[of]
    return CsiSeries(h, rounds, series.subcarrier_hz)


def _same_string(run: RecordedRun, block: Block, agreed: Agreed) -> bool:
    """Return whether the raw bits are those of the record, where it has them."""
    recorded = run.bits.get((block.block, run.node("alice") or "alice", "raw"))
    return recorded is None or (agreed.raw is not None and np.array_equal(recorded, agreed.raw.values))


def _knowledge(
    run: RecordedRun,
    chain: KeyChain,
    again: dict[int, Agreed],
    number: int,
    elsewhere: Sequence[tuple[str, Features | None]],
) -> Knowledge:
    """Return the knowledge of an Eve who has the whole record except this block's string."""
    known = Knowledge()
    eve = run.node("eve")
    heard = [run.series(f"{run.node(role)}>{eve}") for role in ("alice", "bob")]
    if any(h is not None for h in heard):
        known.add_heard(chain.report_series(heard[0], heard[1]))
    for other, agreed in again.items():
        if other != number and agreed.features is not None:
            known.add_features(f"block {other}", agreed.features)
    for name, features in elsewhere:
        if features is not None:
            known.add_features(f"run {name}", features, same_run=False)
    return known


def _states(run: RecordedRun, agreed: Agreed, patterns: bool) -> SurfaceRecord | None:
    assert agreed.features is not None
    held = dict(zip(run.rounds.rounds.tolist(), run.rounds.surface.tolist(), strict=True))
    names = [held.get(r, "") for r in agreed.features.rounds.tolist()]
    if not all(names):
        return None
    numbers = {name: i for i, name in enumerate(dict.fromkeys(run.rounds.surface.tolist()))}
    known = [run.patterns[name] for name in names if name in run.patterns]
    levels = None
    if patterns and len(known) == len(names):
        levels = b"".join(p.levels.tobytes() for p in known)
    own = set(agreed.features.rounds.tolist())
    others = {r: numbers[name] for r, name in held.items() if name and r not in own}
    return SurfaceRecord(
        states=tuple(numbers[name] for name in names), levels=levels, phase_bits=known[0].phase_bits if known else 1,
        other_rounds=tuple(others), other_states=tuple(others.values()),
    )  # fmt: skip


def _found(run: RecordedRun, block: Block, facts: Facts, assumption: str, rule: str) -> Audited:
    judgement = judge(facts, seed=block.block)
    leaked = max((a.leaked_bits for a in block.agree.values()), default=0)
    best = min(judgement.findings, key=lambda f: _left(f, rule, facts.kept_bits), default=None)
    if best is None or judgement.failures:
        name = judgement.failures[0].attack if judgement.failures else "none"
        return Audited(run.folder.name, block.block, key_bits(block), assumption, name, 1.0, 0, assumption == AS_RUN)
    left = int(_left(best, rule, facts.kept_bits)) - leaked
    return Audited(
        run=run.folder.name,
        block=block.block,
        key_bits=key_bits(block),
        assumption=assumption,
        attack=best.attack,
        guess_probability=best.guess_probability,
        left_bits=max(0, left),
        exposed=assumption == AS_RUN and left < hashed_bits(block),
    )


def _left(finding: Finding, rule: str, kept_bits: int) -> float:
    """Return the bits of the kept labels that an Eve leaves, from her guesses or from the log-loss of her predictions.

    The run's own rule is used: by guesses, an audit would expose keys of the rule "modelled" without knowing anything
    new.
    """
    if rule == "modelled":
        return 0.0 if finding.log_loss_bits < kept_bits / 2 else finding.log_loss_bits
    share = finding.guess_probability
    return 0.0 if share >= 1.0 else -finding.symbols * log2(max(share, 2.0**-8))


def table(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return plain rows, as `testbed audit --json` prints them."""
    rows: list[dict[str, Any]] = []
    for o in outcomes:
        if isinstance(o, Unaudited):
            rows.append({"run": o.run, "block": o.block, "not_audited": o.reason})
        else:
            rows.append({name: getattr(o, name) for name in Audited.__slots__})
    return rows
