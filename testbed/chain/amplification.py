"""Amplification: a verified string becomes a key of the length that the accounting allows."""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.chain.agreement import Agreed, Side, Steps
from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.confirm import Transcript, answered, check_answered, check_shown, shown
from testbed.chain.dialogue import integer, packed, watched
from testbed.core.config import Accounting
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import Dialogue, PublicMessage, Receive, Send
from testbed.core.outcomes import EveReport, KeyReport
from testbed.core.seeds import generator
from testbed.core.types import Bits, Key
from testbed.entropy import gaussian_eve
from testbed.entropy.accounting import (
    assumed_min_entropy,
    combined_min_entropy,
    eve_min_entropy,
    key_length,
)

AMPLIFY, CONFIRMED, DELIVERED = "amplify", "confirmed", "delivered"


class Amplification:
    """Alice's half and Bob's half of a block's amplification."""

    def __init__(self, accounting: Accounting, least_key_bits: int = 1) -> None:
        """`least_key_bits`: this side takes no shorter key."""
        self._least_key_bits = least_key_bits
        self.accounting = accounting
        self._modelled = accounting.entropy == "modelled"

    def amplify(
        self, role: Side, agreed: Agreed, eve: EveReport | None, seed: int
    ) -> Dialogue[tuple[Key | None, KeyReport]]:
        """Return one side's dialogue from a verified string to a key of the length that the accounting allows.

        Alice decides the length; `eve` is her node's knowledge of Eve and is ignored at Bob; a report that is no
        measurement of this block counts as none (`assumed_eve_error_rate`). Bob hashes only if his own
        ledger and the length rule give no shorter key. Both then confirm the whole discussion and the string to one
        another (`chain.confirm`): Alice's key is delivered when Bob's code was hers, Bob's when he then heard hers. The
        last message of any protocol can be lost (two generals): then Alice has a key that
        Bob does not use, and his node reports the failure; two different keys are not possible.
        A key of 0 bits is no key: (None, report) with the numbers in `failure`. Raises ValueError where `agreed` is not
        verified, DialogueFailed where the discussion fails (ledger_mismatch, key_too_short,
        confirmation_failed, protocol, peer_failed).
        """
        if not agreed.report.verified:
            raise ValueError(f"block {agreed.report.block} was not verified ({agreed.report.failure})")
        peer: Side = "bob" if role == "alice" else "alice"
        said = agreed.transcript.copy()
        steps = self._amplify_alice(agreed, eve, seed, said) if role == "alice" else self._amplify_bob(agreed, said)
        return watched(steps, lambda whose, message: said.add(role if whose == "own" else peer, message))

    def _amplify_alice(
        self, agreed: Agreed, eve: EveReport | None, seed: int, said: Transcript
    ) -> Steps[tuple[Key | None, KeyReport]]:
        block, n, leaked = agreed.report.block, agreed.values.size, agreed.ledger.leaked_bits
        measured = eve is not None and _usable(eve, agreed)
        if self._modelled:
            assert agreed.raw is not None
            measured = measured and eve is not None and gaussian_eve.usable(eve.dependence, agreed.raw)
            against_eve = self._modelled_entropy(agreed.raw, eve if measured else None)
        elif eve is not None and measured:
            against_eve = eve_min_entropy(eve.sacrificed_errors, eve.covered_bits)
        else:
            against_eve = assumed_min_entropy(self.accounting.assumed_eve_error_rate)
        h_min = combined_min_entropy(agreed.report.source_min_entropy or 0.0, against_eve)
        length = self._length(agreed, h_min)
        if length < self._least_key_bits:
            length = 0
        rng = generator(seed, "chain", "amplify", block)
        toeplitz = rng.integers(0, 2, seed_length(n, length), dtype=np.uint8)
        body: dict[str, Any] = {
            "block": block,
            "bits": n,
            "leaked": leaked,
            "min_entropy": h_min,
            "eve_measured": measured,
            "length": length,
            "seed": np.packbits(toeplitz).tobytes(),
        }
        yield Send(PublicMessage(kind=AMPLIFY, body=body))
        code = said.code(agreed.values)
        report = self._key_report(agreed, h_min, measured, length)
        if not length:
            return None, report
        key = Key(block, toeplitz_hash(agreed.values, toeplitz, length))
        confirmed = yield Receive(CONFIRMED)
        assert confirmed is not None
        check_shown(confirmed, code)
        yield Send(PublicMessage(kind=DELIVERED, body={"block": block, **answered(code)}))
        return key, report

    def _modelled_entropy(self, raw: Bits, eve: EveReport | None) -> float:
        """Return the min-entropy per raw bit given Eve by the Gaussian model; None: she is as good as assumed."""
        counts = dict(enumerate(np.bincount(raw.dimension[raw.level_bit == 0]).tolist()))
        if eve is None:
            correlation = gaussian_eve.assumed_correlation(self.accounting.assumed_eve_error_rate)
            correlations = dict.fromkeys(counts, correlation)
        else:
            correlations = gaussian_eve.eve_correlations(eve.dependence, counts)
        total = gaussian_eve.smooth_min_entropy(raw, correlations, self.accounting.epsilon_log2)
        return min(1.0, total / raw.values.size)

    def _amplify_bob(self, agreed: Agreed, said: Transcript) -> Steps[tuple[Key | None, KeyReport]]:
        block, n, leaked = agreed.report.block, agreed.values.size, agreed.ledger.leaked_bits
        message = yield Receive(AMPLIFY)
        assert message is not None
        code = said.code(agreed.values)
        if integer(message, "block", 0, 1 << 62) != block:
            raise DialogueFailed("protocol", f"{AMPLIFY} speaks of another block than {block}")
        theirs = integer(message, "leaked", 0, 1 << 62), integer(message, "bits", 0, 1 << 62)
        if theirs != (leaked, n):
            detail = f"Alice counts {theirs[0]} leaked of {theirs[1]} bits, Bob {leaked} of {n}"
            raise DialogueFailed("ledger_mismatch", detail)
        h_min, measured = message.body.get("min_entropy"), message.body.get("eve_measured")
        if not isinstance(h_min, float) or not 0.0 <= h_min <= 1.0 or not isinstance(measured, bool):
            raise DialogueFailed("protocol", f"{AMPLIFY}: min_entropy or eve_measured is unusable")
        length = integer(message, "length", 0, self._length(agreed, h_min))
        if 0 < length < self._least_key_bits:
            raise DialogueFailed("key_too_short", f"{length} bits, accepted here from {self._least_key_bits}")
        report = self._key_report(agreed, h_min, measured, length)
        if not length:
            return None, report
        toeplitz = packed(message, "seed", seed_length(n, length))
        key = Key(block, toeplitz_hash(agreed.values, toeplitz, length))
        yield Send(PublicMessage(kind=CONFIRMED, body={"block": block, **shown(code)}))
        delivered = yield Receive(DELIVERED)
        assert delivered is not None
        check_answered(delivered, code)
        return key, report

    def _length(self, agreed: Agreed, h_min: float) -> int:
        raw, sacrificed = agreed.report.raw_bits, agreed.report.sacrificed_bits
        return key_length(raw, sacrificed, h_min, agreed.ledger.leaked_bits, self.accounting.epsilon_log2)

    def _key_report(self, agreed: Agreed, h_min: float, measured: bool, length: int) -> KeyReport:
        epsilon, r = self.accounting.epsilon_log2, agreed.report
        why = (
            f"entropy_exhausted: {r.raw_bits} raw bits × {h_min:.3f} − {r.sacrificed_bits} published − "
            f"{agreed.ledger.leaked_bits} leaked − {2 * epsilon} for ε = 2^−{epsilon} < {self._least_key_bits}"
        )
        return KeyReport(
            block=r.block,
            key_bits=length,
            min_entropy_per_bit=h_min,
            eve_measured=measured,
            entropy=self.accounting.entropy,
            failure=None if length else why,
        )


def _usable(eve: EveReport, agreed: Agreed) -> bool:
    """Return whether a report is a measurement of this block: it comes from a node that may be wrong or broken."""
    return eve.block == agreed.report.block and eve.sacrificed_bits <= agreed.sacrificed.size and eve.measured
