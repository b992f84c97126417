"""CSI that gives no key, and rounds that are no pairs: both ends report the reason, and neither raises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.chain.dialogue import run
from testbed.chain.pipeline import KeyChain
from testbed.core import registry
from testbed.core.config import Accounting, ChainPlan
from testbed.core.types import CsiSeries

SUBCARRIER_HZ = np.arange(16) * 1e5
ROUNDS = np.arange(80)


def csi(seed: int) -> CsiSeries:
    common, own = np.random.default_rng(1), np.random.default_rng(seed)
    h = common.normal(size=(80, 1, 1, 16, 2)) + 0.05 * own.normal(size=(80, 1, 1, 16, 2))
    return CsiSeries((h @ [1, 1j]).astype(np.complex64), ROUNDS, SUBCARRIER_HZ)


def failures(quantize: str, alice: CsiSeries, bob: CsiSeries) -> tuple[Any, Any]:
    chain = KeyChain(ChainPlan(enhance_options={"step": 1}, quantize=quantize), Accounting(epsilon_log2=32))
    a, b, _ = run(chain.agree("alice", alice, 0, 1), chain.agree("bob", bob, 0, 1))
    assert a.report.verified == b.report.verified == (a.report.failure is None)
    assert a.report.verified or a.values.size == b.values.size == 0
    return a.report.failure, b.report.failure


@pytest.mark.parametrize("quantize", registry.names("quantize", ours=True))
def test_csi_without_entropy_ends_the_block_with_a_reason(quantize: str) -> None:
    good = csi(2), csi(3)
    assert failures(quantize, *good) == (None, None)
    nothing, constant = (np.full_like(good[0].h, value) for value in (np.nan, 1.0))
    for h in (nothing, constant):
        bad = [CsiSeries(h, ROUNDS, SUBCARRIER_HZ)] * 2
        mine, theirs = failures(quantize, *bad)
        assert mine.startswith("too_few")
        assert theirs == f"peer_failed: {mine}"
    few = [CsiSeries(c.h[:3, ..., :2], ROUNDS[:3], SUBCARRIER_HZ[:2]) for c in good]
    mine, theirs = failures(quantize, *few)  # fewer samples than a vector quantizer has regions
    assert mine.startswith("too_few")
    assert theirs == f"peer_failed: {mine}"


def test_one_end_without_csi_is_reported_at_both() -> None:
    mine, theirs = failures("scalar", csi(2), CsiSeries(np.full_like(csi(3).h, np.nan), ROUNDS, SUBCARRIER_HZ))
    assert (mine, theirs) == ("too_few_bits", "peer_failed: too_few_bits")


@pytest.mark.parametrize("rounds", [ROUNDS + 1, ROUNDS[:79]])
def test_pairs_of_other_rounds_are_refused_by_name(rounds: Any) -> None:
    """Equally many of other rounds would pass every check of sizes, and only look like a bad channel."""
    bob = CsiSeries(csi(3).h[: rounds.size], rounds, SUBCARRIER_HZ)
    assert failures("scalar", csi(2), bob) == ("peer_failed: other_rounds", "other_rounds")
    chain = [KeyChain(ChainPlan(enhance="linear_mmse"), Accounting()) for _ in range(2)]
    a, b, _ = run(chain[0].train("alice", csi(2), 0, 1), chain[1].train("bob", bob, 0, 1))
    assert a.failure.startswith("other_rounds (training_csi")
    assert b.failure == "peer_failed: other_rounds"
    assert (a.model, b.model) == (None, None)
