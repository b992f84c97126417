"""Eves who can compute Bob's channel without being at his place at that time: the length must be 0.

Rows of the table of known refutations, through the key chain on made-up CSI; the truth is that no bit is secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from testbed.chain.dialogue import run
from testbed.chain.knowledge import Knowledge
from testbed.chain.pipeline import KeyChain
from testbed.core.config import Accounting, ChainPlan
from testbed.core.outcomes import KeyReport
from testbed.core.types import C64, CsiSeries
from testbed.entropy import attack, judge

N, CARRIERS, SEED = 160, 6, 4
PLAN = ChainPlan(enhance_options={"step": 1})
NOBODY_ELSE = Accounting(assumed_eve_correlation=0.0)
"""Only who was measured counts: a key that is 0 is so for her."""


@pytest.fixture(scope="module", autouse=True)
def relevant_attacks():
    """Leave out Eves that need what is not here, or repeat one that is."""
    names = ("eve_now", "eve_direct", "eve_shifted", "eve_piecewise", "string_near", "recurrence")
    with pytest.MonkeyPatch.context() as patch:
        few = {name: attack.load_attacks()[0][name] for name in names}
        patch.setattr(judge, "load_attacks", lambda: (few, []))
        yield


def fading(n: int, seed: int = 1) -> C64:
    rng = np.random.default_rng(seed)
    return ((rng.normal(size=(n, 1, 1, CARRIERS, 2)) @ [1, 1j]) / np.sqrt(2)).astype(np.complex64)


def noisy(h: C64, seed: int, first: int = 0) -> CsiSeries:
    h = h + 0.05 * fading(h.shape[0], seed)
    return CsiSeries(h, np.arange(first, first + h.shape[0]), np.arange(CARRIERS) * 1e6)


def decide(heard: Callable[[C64], C64 | None], both_links: bool = False) -> KeyReport:
    """Return Alice's decision if Eve received this channel; Bob's other link is unrelated."""
    h = fading(N)
    chain = KeyChain(PLAN, NOBODY_ELSE)
    alice, _, _ = run(chain.agree("alice", noisy(h, 2), 0, SEED), chain.agree("bob", noisy(h, 3), 0, SEED))
    known, hers = Knowledge(), heard(h)
    if hers is not None:
        other = noisy(fading(N, 9), 5) if both_links else None
        known.add_heard(chain.report_series(noisy(hers, 4), other))
    return chain.decide(alice, known.facts(alice), SEED)


def behind(h: C64, by: int) -> C64:
    """The channel of an Eve who takes the same way `by` rounds later; before that, another channel."""
    return np.concatenate([fading(by, 7), h[:-by]])


def lost(h: C64, at: int) -> C64:
    """One packet went missing: from there on she counts one less."""
    return np.concatenate([h[:at], h[at + 1 :], fading(1, 8)])


@pytest.mark.parametrize(
    "heard",
    [
        lambda h: behind(h, 1),
        lambda h: behind(h, 12),
        lambda h: behind(h, 40),
        lambda h: lost(h, N // 2),
        lambda h: h[..., ::-1],
        lambda h: (1.0 / h).astype(np.complex64),
    ],
    ids=["a round late", "12 rounds late", "40 rounds late", "a packet missing", "subcarriers reversed", "inverted"],
)
def test_eves_transformed_signals_leave_no_key(heard: Callable[[C64], C64]) -> None:
    report = decide(heard)
    assert report.eve_measured
    assert report.key_bits == 0
    assert report.limiting.startswith(("eve_", "together"))
    assert max(row.guess_probability or 0.0 for row in report.eves) > 0.5  # of four labels, much of the time


def test_one_link_inverted_and_the_other_unrelated_leaves_no_key() -> None:
    """Fewest errors would choose the unrelated link: an inverted one errs on most bits."""
    report = decide(lambda h: (1.0 / h).astype(np.complex64), both_links=True)
    assert report.key_bits == 0


def test_an_eve_with_unrelated_signals_leaves_a_key() -> None:
    """Otherwise nothing above could fail."""
    report = decide(lambda h: fading(N, 6), both_links=True)
    assert report.eve_measured
    assert report.key_bits >= 128


# ---------------------------------------------------------------- the same channels again


def again(first_is: str, where: slice) -> tuple[KeyReport, KeyReport]:
    """Return what is decided of a block whose channels are those of rounds before, and of one with new channels."""
    h = fading(2 * N)
    chain = KeyChain(PLAN, NOBODY_ELSE, blocks=2)
    out = []
    for second in (h[where], h[N:]):
        known = Knowledge()
        before = chain.features(noisy(h[:N], 5), "alice")
        assert before is not None
        known.add_features(first_is, before)
        ends = [replace(noisy(second, seed), rounds=np.arange(N, N + second.shape[0])) for seed in (2, 3)]
        alice, _, _ = run(chain.agree("alice", ends[0], 1, SEED), chain.agree("bob", ends[1], 1, SEED))
        out.append(chain.decide(alice, known.facts(alice), SEED))
    return out[0], out[1]


@pytest.mark.parametrize("first_is", ["training", "block 0"])
@pytest.mark.parametrize("where", [slice(0, N), slice(N - 1, None, -1)], ids=["there again", "and back"])
def test_what_comes_back_makes_no_key_a_second_time(first_is: str, where: slice) -> None:
    """The same walk after a training, or after an earlier block: all of that is known."""
    repeated, fresh = again(first_is, where)
    assert repeated.key_bits == 0
    assert repeated.limiting == "recurrence"
    assert fresh.key_bits >= 128
