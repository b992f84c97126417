"""Amplification: a verified string becomes a key of the length that the accounting allows.

Alice decides the length (`Amplification.decide`): the facts of the block contain everything that anybody else may know,
the portfolio of Eves is judged on them, and the length rule gives ℓ (`testbed.entropy`). This takes up to some seconds,
so it is apart from the dialogue. Only ℓ is published, never an entropy, because an entropy reveals something of the
string.
"""

from __future__ import annotations

from math import floor, log2
from typing import Any

import msgspec
import numpy as np

from testbed.chain.agreement import Agreed, Side, Steps
from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.amplify.verify import TAG_BITS
from testbed.chain.confirm import Transcript, answered, check_answered, check_shown, shown
from testbed.chain.dialogue import integer, packed, watched
from testbed.chain.knowledge import covered
from testbed.chain.wegman_carter import PAD_BYTES, PAIR_BITS, Pool
from testbed.core.config import Accounting
from testbed.core.errors import DialogueFailed, InputError
from testbed.core.forks import Children
from testbed.core.ledger import Dialogue, PublicMessage, Receive, Send
from testbed.core.outcomes import EveRow, KeyReport, LengthTerm
from testbed.core.seeds import derive, generator
from testbed.core.types import U8, Key
from testbed.entropy import judge as judging
from testbed.entropy.facts import Facts
from testbed.entropy.judge import judge
from testbed.entropy.length import STEP, AssumedEve, Budget, KeyLength, key_length

AMPLIFY, CONFIRMED, DELIVERED = "amplify", "confirmed", "delivered"
ASSUMED_CORRELATION = 0.9
"""Correlation of the assumed Eve where the experiment states none: that of an Eve a little farther away than λ/20. It
is the same whether an Eve was measured or not, so that a report of hers never lengthens a key."""


def load() -> None:
    """Load what deciding a length needs, which takes some tenths of a second, ahead of it."""
    judging.load()


def assumed_eve(accounting: Accounting) -> AssumedEve:
    """Return the Eve against whom a length is decided besides the measured one."""
    antennas = accounting.assumed_eve_antennas
    if accounting.assumed_eve_distance_wavelengths is not None:
        return AssumedEve(distance_wavelengths=accounting.assumed_eve_distance_wavelengths, antennas=antennas)
    stated = accounting.assumed_eve_correlation
    return AssumedEve(correlation=ASSUMED_CORRELATION if stated is None else stated, antennas=antennas)


def assumed_correlation(accounting: Accounting) -> float:
    """Return the correlation of one antenna of the assumed Eve, whether it is stated, her distance is, or neither."""
    eve = assumed_eve(accounting).with_antennas(1)
    return eve.correlation if eve.correlation is not None else eve.joint_correlation


class Amplification:
    """Alice's half and Bob's half of a block's amplification.

    blocks: number of blocks that the run plans; ε is shared among them, and further blocks make no key. least_key_bits:
    at this side, a shorter key counts as none. decided: the blocks of the run on which a share of ε was spent; where a
    node is configured again, the new object gets the same set. pool: pads for one-time authentication of the
    discussion; the first bits of every hashed string refill it (`chain.wegman_carter`).
    """

    def __init__(
        self,
        accounting: Accounting,
        blocks: int = 1,
        least_key_bits: int = 1,
        decided: set[int] | None = None,
        pool: Pool | None = None,
    ) -> None:
        self._least_key_bits = least_key_bits
        self._pool = pool
        self._refill_bits = 0 if pool is None else PAIR_BITS
        self.accounting = accounting
        self.budget = Budget(accounting.epsilon_log2, blocks)
        self._decided = set() if decided is None else decided

    def decide(self, agreed: Agreed, facts: Facts, seed: int, children: Children | None = None) -> KeyReport:
        """Return how long the key of a verified block may be, and why; Alice's side only.

        children: see `entropy.judge`.

        Raises ValueError where `agreed` is not verified.
        """
        if not agreed.report.verified:
            raise ValueError(f"block {agreed.report.block} was not verified ({agreed.report.failure})")
        block, leaked = agreed.report.block, agreed.ledger.leaked_bits
        measured = covered(facts)
        try:
            self.budget.check_tag(agreed.values.size, TAG_BITS)
            self._spend(block)
        except InputError as exc:
            return _no_key(block, measured, self.accounting.entropy, str(exc))
        judgement = judge(
            facts,
            epsilon_log2=self.accounting.epsilon_log2,
            blocks=self.budget.blocks,
            seed=derive(seed, "judge", block),
            children=children,
        )
        if (why := unfittable(facts)) is not None:
            return _no_key(block, measured, self.accounting.entropy, why)
        assumed = assumed_eve(self.accounting)
        length = key_length(facts, judgement, leaked, self.budget, self.accounting.entropy, assumed)
        return _report(block, measured, length, judgement.kept_bits)

    def _spend(self, block: int) -> None:
        self._decided.add(block)
        if len(self._decided) > self.budget.blocks:
            raise InputError(
                f"budget_spent: ε is shared among the run's {self.budget.blocks} blocks, and this is a further one"
            )

    def longest(self, agreed: Agreed) -> int:
        """Return the upper limit of the length: what would remain if Eve knew nothing but the public messages."""
        kept = agreed.values.size
        whole = floor(kept - agreed.ledger.leaked_bits - self.budget.hashing_bits - log2(kept // STEP + 1))
        return max(0, whole // STEP * STEP)

    def amplify(
        self, role: Side, agreed: Agreed, decided: KeyReport | None, seed: int
    ) -> Dialogue[tuple[Key | None, KeyReport]]:
        """Return one side's dialogue from a verified string to a key.

        `decided` is what `decide` returned at Alice, and None at Bob. Bob hashes only if his own ledger agrees with
        Alice's and the rule can give this length. Both ends then confirm the whole discussion and the string to each
        other (`chain.confirm`): Alice delivers her key when Bob's code equals hers, and Bob delivers his when he then
        receives hers. If that last message is lost, Alice has a key that Bob does not use, and his node reports the
        failure; no protocol can avoid this (two generals). The ends never have two different keys. A key of 0 bits is
        no key: the result is (None, report) with the reason in `failure`. With a pool, `decided` is the length of the
        whole hashed string, and the reported key is the rest after the refill. Raises ValueError where `agreed` is not
        verified, DialogueFailed where
        the discussion fails (ledger_mismatch, key_too_short, confirmation_failed, authentication_failed,
        pool_exhausted, pool_out_of_step, protocol, peer_failed).
        """
        if not agreed.report.verified:
            raise ValueError(f"block {agreed.report.block} was not verified ({agreed.report.failure})")
        said = agreed.transcript.copy()
        if role == "bob":
            return watched(self._bob(agreed, said), lambda whose, m: said.add("bob" if whose == "own" else "alice", m))
        if decided is None:
            raise ValueError(f"block {agreed.report.block}: Alice decides the length first")
        if 0 < decided.key_bits < self._least_key_bits + self._refill_bits:
            left = max(0, decided.key_bits - self._refill_bits)
            why = f"key_too_short: {left} bits, accepted here from {self._least_key_bits}"
            decided = msgspec.structs.replace(decided, key_bits=0, failure=why)
        steps = self._alice(agreed, decided, seed, said)
        return watched(steps, lambda whose, m: said.add("alice" if whose == "own" else "bob", m))

    def _alice(
        self, agreed: Agreed, decided: KeyReport, seed: int, said: Transcript
    ) -> Steps[tuple[Key | None, KeyReport]]:
        block, n, length = agreed.report.block, agreed.values.size, decided.key_bits
        rng = generator(seed, "chain", "amplify", block)
        toeplitz = rng.integers(0, 2, seed_length(n, length), dtype=np.uint8)
        body: dict[str, Any] = {
            "block": block,
            "bits": n,
            "leaked": agreed.ledger.leaked_bits,
            "length": length,
            "seed": np.packbits(toeplitz).tobytes(),
        }
        if self._pool is not None and length:
            body |= {"refill": self._refill_bits, "pool": self._pool.offer()}
        yield Send(PublicMessage(kind=AMPLIFY, body=body))
        code = said.code(agreed.tag)
        if not length:
            return None, decided
        string = toeplitz_hash(agreed.values, toeplitz, length)
        before = said.copy()
        confirmed = yield Receive(CONFIRMED)
        assert confirmed is not None
        pads = b"" if self._pool is None else _read_pads(self._pool, body["pool"], confirmed, before)
        check_shown(confirmed, code)
        delivered = PublicMessage(kind=DELIVERED, body={"block": block, **answered(code)})
        yield Send(said.signed("alice", delivered, pads[PAD_BYTES:]) if pads else delivered)
        return Key(block, self._refill(string, said)), self._less_refill(decided)

    def _refill(self, string: U8, said: Transcript) -> U8:
        """Refill the pool with the first bits of a hashed string and return the rest, which is the key."""
        if self._pool is not None:
            self._pool.refill(said.digest, string[: self._refill_bits])
        return string[self._refill_bits :]

    def _less_refill(self, report: KeyReport) -> KeyReport:
        """Return the report with all lengths reduced by the refill."""
        bits = self._refill_bits
        if not bits or not report.key_bits:
            return report
        why = "refill of the pool of one-time authentication: two tags of 128 bits a block"

        def less(rows: tuple[EveRow, ...]) -> tuple[EveRow, ...]:
            return tuple(msgspec.structs.replace(row, key_bits=max(0, row.key_bits - bits)) for row in rows)

        return msgspec.structs.replace(
            report, key_bits=report.key_bits - bits, refill_bits=bits, eves=less(report.eves),
            sensitivity=less(report.sensitivity),
            terms=(*report.terms, LengthTerm(name="authentication", bits=-bits, why=why)) if report.terms else (),
        )  # fmt: skip

    def _bob(self, agreed: Agreed, said: Transcript) -> Steps[tuple[Key | None, KeyReport]]:
        block, n, leaked = agreed.report.block, agreed.values.size, agreed.ledger.leaked_bits
        message = yield Receive(AMPLIFY)
        assert message is not None
        code = said.code(agreed.tag)
        if integer(message, "block", 0, 1 << 62) != block:
            raise DialogueFailed("protocol", f"{AMPLIFY} is about another block than {block}")
        theirs = integer(message, "leaked", 0, 1 << 62), integer(message, "bits", 0, 1 << 62)
        if theirs != (leaked, n):
            detail = f"Alice counts {theirs[0]} leaked of {theirs[1]} bits, Bob {leaked} of {n}"
            raise DialogueFailed("ledger_mismatch", detail)
        length = integer(message, "length", 0, self.longest(agreed))
        if length % STEP:
            raise DialogueFailed("protocol", f"{AMPLIFY}: length {length}, accepted: multiples of {STEP}")
        if 0 < length < self._least_key_bits + self._refill_bits:
            left = max(0, length - self._refill_bits)
            raise DialogueFailed("key_too_short", f"{left} bits, accepted here from {self._least_key_bits}")
        failure = None if length else SHORT
        report = KeyReport(block=block, key_bits=length, entropy=self.accounting.entropy, failure=failure)
        if not length:
            return None, report
        toeplitz = packed(message, "seed", seed_length(n, length))
        string = toeplitz_hash(agreed.values, toeplitz, length)
        confirmed, pads = PublicMessage(kind=CONFIRMED, body={"block": block, **shown(code)}), b""
        if self._pool is not None:
            integer(message, "refill", self._refill_bits, self._refill_bits)
            name, number, pads, common = self._pool.choose(message.body.get("pool"))
            body = {**confirmed.body, "pair": [name, number], "common": common}
            confirmed = said.signed("bob", msgspec.structs.replace(confirmed, body=body), pads[:PAD_BYTES])
        yield Send(confirmed)
        before = said.copy()
        delivered = yield Receive(DELIVERED)
        assert delivered is not None
        if pads:
            before.check_signed("alice", delivered, pads[PAD_BYTES:])
        check_answered(delivered, code)
        return Key(block, self._refill(string, said)), self._less_refill(report)


def _read_pads(pool: Pool, offer: list[list[Any]], confirmed: PublicMessage, before: Transcript) -> bytes:
    """Check Bob's tag; return the pair of pads that he chose, removed from the pool. `before`: all earlier messages.

    Raises DialogueFailed (protocol, pool_out_of_step, authentication_failed).
    """
    pair, common = confirmed.body.get("pair"), confirmed.body.get("common")
    offered = [name for name, _, _ in offer]
    if not isinstance(common, list) or not isinstance(pair, list) or len(pair) != 2 or pair[0] not in offered:
        raise DialogueFailed("authentication_failed", f"{confirmed.kind}: no tag under a pair of pads that was offered")
    if isinstance(pair[1], bool) or not isinstance(pair[1], int):
        raise DialogueFailed("protocol", f"{confirmed.kind}: a pair of pads is known by its number")
    pads = pool.take(pair[0], pair[1])
    before.check_signed("bob", confirmed, pads[:PAD_BYTES])
    pool.keep([name for name in common if isinstance(name, str)], offered)
    return pads


SHORT = "entropy_exhausted"
PROBES_A_COEFFICIENT, PROBES_WITHOUT_CSI = 3, 10
"""Number of probes for each coefficient of a channel under public patterns that suffices to tell the surface's effect
from other changes: with Alice's CSI, and with her features alone."""


def unfittable(facts: Facts) -> str | None:
    """Return why an Eve who knows the patterns cannot be judged; None where she can.

    A channel under public patterns is a known function of N + 1 coefficients, or of one for each pattern in use. With
    too few probes these cannot be fitted here, although Eve may know them by other means.
    """
    if facts.patterns is None or facts.states is None:
        return None
    n_states = np.unique(facts.states).size
    unknown = min(facts.patterns.shape[1] + 1, n_states)
    needed = unknown * (PROBES_WITHOUT_CSI if facts.csi is None else PROBES_A_COEFFICIENT)
    if n_states > 1 and facts.rounds.size < needed:
        return (
            f"public_patterns: {facts.rounds.size} probes cannot separate a surface of {unknown} unknown coefficients "
            f"from what moves; accepted: {needed} probes a block, or a secret surface"
        )
    return None


def _no_key(block: int, measured: bool, rule: str, why: str) -> KeyReport:
    return KeyReport(block=block, key_bits=0, eve_measured=measured, entropy=rule, failure=why)


def _report(block: int, measured: bool, length: KeyLength, kept_bits: int) -> KeyReport:
    return KeyReport(
        block=block,
        key_bits=length.bits,
        min_entropy_per_bit=length.min_entropy_bits / kept_bits if kept_bits else 0.0,
        eve_measured=measured,
        entropy=length.rule,
        failure=length.failure,
        limiting=length.limiting,
        eves=tuple(_row(row) for row in length.eves),
        sensitivity=tuple(_row(row) for row in length.sensitivity),
        terms=tuple(LengthTerm(name=t.name, bits=t.bits, why=t.why) for t in length.terms),
        assumptions=length.assumptions,
        epsilon_log2=length.epsilon_log2,
    )


def _row(row: Any) -> EveRow:
    return EveRow(
        name=row.name,
        knows=row.knows,
        guess_probability=row.guess_probability,
        upper_bound=row.upper_bound,
        key_bits=row.key_bits,
    )
