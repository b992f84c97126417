"""Every kind of Eve that was granted a key once, kinds that were held back, and harmless ones: granted against true."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.core.seeds import generator
from testbed.entropy.length import Budget
from testbed.papers.secrecy_of_keys.cases import ATTACKED, CASES, HARMLESS, HELD_BACK, Case, block, fading, left
from testbed.papers.secrecy_of_keys.cases import ar1_surprisal as surprisal
from testbed.papers.secrecy_of_keys.table import Row, of_case, summary

PROBES = 240
SEEDS = (0, 1, 2)

SHARE = {
    # of the true bits, "estimated" and "modelled": what is granted at least
    "AR(1) 0, Eve unrelated": (0.45, 0.85),
    "AR(1) 0.5, Eve unrelated": (0.3, 0.7),
    "AR(1) 0.9, Eve unrelated": (0.05, 0.0),
    "Eve with correlation 0.3": (0.35, 0.75),
    "Eve with correlation 0.6": (0.25, 0.6),
}
GUESSED = {
    # of the labels, what the portfolio guesses at least: an attack that stopped working would pass by its margin else
    "six packets missing": 0.7,
    "twenty packets missing": 0.6,
    "well at times": 0.35,
    "labels of one to five bits": 0.65,
    "vector labels": 0.7,
    "comes back inverted": 0.5,
    "8 antennas of correlation 0.75": 0.65,
    "walk there and back": 0.5,
    "training walked again, backwards": 0.75,
    "half rate": 0.5,
    "packets lost, her clock known": 0.6,
    "some dimensions, late": 0.5,
    "only Bob's side": 0.8,
    "clock drifts": 0.75,
    "magnitude only": 0.4,
    "power only": 0.4,
    "inverted on one link, the other unrelated": 0.8,
    "codebook swept ten times in one block": 0.8,
    "4 elements, patterns public, features alone": 0.7,
}


def judged(case: Case, seed: int, probes: int = PROBES) -> list[Row]:
    return of_case(case, seed, probes, Budget())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", [*ATTACKED, *HELD_BACK], ids=lambda c: c.name)
def test_no_more_is_granted_than_there_is(case: Case, seed: int) -> None:
    for row in judged(case, seed):
        assert not row.failures
        assert row.granted <= row.true_bits
        assert row.guessed >= GUESSED.get(case.name, 0.85)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", HARMLESS, ids=lambda c: c.name)
def test_harmless_cases_keep_their_key_and_no_more(case: Case, seed: int) -> None:
    for row, share in zip(judged(case, seed), SHARE.get(case.name, (0.0, 0.0)), strict=True):
        assert not row.failures
        assert share * row.true_bits <= row.granted <= row.true_bits


@pytest.mark.parametrize(
    "name",
    [
        "Eve walks 40 rounds behind",
        "one packet missing",
        "12 probes late",
        "subcarriers in another order",
        "codebook swept again in the next block",
        "a sweep over several blocks, again",
        "the same file run again",
        "training walked again, backwards",
        "8 antennas combined as complex fields",
        "16 elements, patterns public, CSI",
    ],
)
def test_where_eve_has_everything_there_is_no_key(name: str) -> None:
    case = next(c for c in CASES if c.name == name)
    for row in judged(case, 7):
        assert row.granted == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_twenty_seeds(case: Case) -> None:
    for seed in range(20):
        for row in judged(case, seed, 600):
            assert row.holds, row


def test_the_true_bits_of_fading_are_those_of_a_chain() -> None:
    rng = generator(3, "fading")
    alice = fading(rng, 0.0, 300, 2)
    cell = np.searchsorted([-0.6744897501960817, 0.0, 0.6744897501960817], alice)
    white = block(rng, alice, value=cell ^ (cell >> 1))
    assert surprisal(white, 0.0) == pytest.approx(left(white, 0.0), rel=0.03)
    # signs of AR(1): P(same as before) = 1 − arccos(ρ)/π, a Markov chain's rate from above
    slow = fading(rng, 0.9, 3000, 1)
    same = 1 - np.arccos(0.9) / np.pi
    rate = -(same * np.log2(same) + (1 - same) * np.log2(1 - same))
    facts = block(rng, slow, bits=2, published=0.0, value=np.searchsorted([0.0], slow) * 3)
    from testbed.papers.secrecy_of_keys import cases

    found = cases._surprisal(np.where(slow[:, 0] > 0, 1, 0), np.ones(3000, bool), 0.9, bits=1)
    assert 0.8 * rate < found / 3000 < 1.02 * rate
    assert facts.kept.size == 3000


def test_a_summary_says_how_far_beyond_the_truth_it_went() -> None:
    rows = judged(next(c for c in CASES if c.name == "Eve hears the same"), 1, 200)
    found = summary(rows)
    assert set(found) == {"Eve hears the same / estimated", "Eve hears the same / modelled"}
    assert all(row["beyond_true_bits"] <= 0 for row in found.values())
