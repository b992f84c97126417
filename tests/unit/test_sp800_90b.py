"""Against NIST SP 800-90B's worked examples, NIST's own program, and slow transcriptions of the standard's text."""

from collections import Counter
from functools import cache
from itertools import pairwise
from math import log2, sqrt

import numpy as np
import pytest

from testbed.entropy import sp800_90b as b

EXAMPLE = "1000111001010101110011000111001010101110"


def bits(text: str) -> np.ndarray:
    return np.array([int(c) for c in text], dtype=np.uint8)


@cache
def digits_of_e(n: int = 400_000) -> np.ndarray:
    import mpmath

    with mpmath.workprec(n + 64):
        return bits(format(int(mpmath.floor(mpmath.ldexp(+mpmath.mp.e, n - 2))), "b"))


def drawn(seed: int, n: int, p: float = 0.5) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < p).astype(np.uint8)


# ---------------------------------------------------------------- the standard's examples


def test_worked_examples() -> None:
    """6.3.2 (v = 14, p = 0.7329), 6.3.3, 6.3.4 (d = 4, p = 0.5715), as printed with three to four digits."""
    s = bits(EXAMPLE)
    assert b.collision_times(s).tolist() == [3, 3, 3, 3, 3, 2, 3, 2, 2, 3, 3, 3, 3, 2]
    collision, markov, compression = b.collision(s), b.markov(s), b.compression(bits(EXAMPLE + "11100011"), 6, 4)
    assert collision is not None
    assert markov is not None
    assert compression is not None
    assert 2.0**-collision == pytest.approx(0.7329, abs=5e-5)
    assert collision == pytest.approx(0.4483, abs=1e-4)
    assert markov == pytest.approx(0.761, abs=5e-4)
    assert compression == pytest.approx(0.1345, abs=5e-5)
    assert 2.0 ** (-6 * compression) == pytest.approx(0.5715, abs=5e-5)


def test_worked_example_of_tuples() -> None:
    """6.3.5 and 6.3.6 on their ternary string with cutoff 3; expected values counted out below."""
    s = bits("220102012120121001000")
    most, pairs = b.tuple_statistics(s)
    assert most.tolist() == [9, 4, 3, 2, 2]
    assert pairs.tolist() == [66, 19, 7, 2, 1]
    p = max((9 / 21) ** 1, (4 / 20) ** (1 / 2), (3 / 19) ** (1 / 3))
    bound = p + 2.5758293 * sqrt(p * (1 - p) / 20)
    assert b.t_tuple(21, (most, pairs), 3) == pytest.approx(-log2(bound))
    p = max((2 / (18 * 17 / 2)) ** (1 / 4), (1 / (17 * 16 / 2)) ** (1 / 5))
    bound = p + 2.5758293 * sqrt(p * (1 - p) / 20)
    assert b.longest_repeated_substring(21, (most, pairs), 3) == pytest.approx(-log2(bound))


# ---------------------------------------------------------------- NIST's program

# What `ea_non_iid -vv FILE 1` of usnistgov/SP800-90B_EntropyAssessment (68ed165) prints for these strings, made from
# the first binary digits of e = 10.101101…: 200 000 of them; with every third set to 0; a Markov chain that flips where
# both of a pair are 1; the first 1000 a hundred times; ones where either of a pair is 1.
NIST = {
    "digits": (
        0.98543090643449704, 0.90076841491328341, 0.99236031805259128, 0.81751325988649703, 0.91711280775923754,
        0.98829820194618612, 0.99197846160017933, 0.99212313818892273, 0.98836155823744776, 0.98738095723947961,
    ),
    "thirds": (
        0.58282815221320095, 0.87111699055816816, 0.68349848071131958, 0.15313981948072142, 0.58282815221320117,
        0.63262941119915028, 0.58314122782517319, 0.57896604520729877, 0.58239332892706386, 0.58287854333426314,
    ),
    "markov": (
        0.98754614680347874, 0.22377414824959374, 0.41815769970758482, 0.27545438134824174, 0.39287618128328466,
        0.67129329381480807, 0.53713996207566317, 0.41024075767466689, 0.41026224293001079, 0.41027878623099534,
    ),
    "period": (
        0.91575267701588625, 1, 0.95853462621849017, 0.7296388143800937, 3.0394101876123247e-05,
        6.2540461656090347e-06, 0.91841574467311793, 0.87655962612545557, 0.026412031746160251, 0.91597101311047346,
    ),
    "bias": (
        0.40908279839158862, 0.40618331213553255, 0.4128781894513075, 0.24799851392367989, 0.39916681613026972,
        0.65264200106481096, 0.4090983908747326, 0.66905188213859323, 0.40909708268272249, 0.4091039778533952,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NIST)
def test_nist_program_gives_the_same(name: str) -> None:
    e = digits_of_e()
    thirds = e[:200_000].copy()
    thirds[::3] = 0
    strings = {
        "digits": e[:200_000],
        "thirds": thirds,
        "markov": (np.cumsum(e[::2] & e[1::2]) % 2).astype(np.uint8),
        "period": np.tile(e[:1000], 100),
        "bias": e[::2] | e[1::2],
    }
    found = b.estimates(strings[name])
    assert list(found.values()) == pytest.approx(list(NIST[name]), abs=1e-8)
    assert b.min_entropy_90b(strings[name]) == pytest.approx(min(NIST[name]), abs=1e-8)


# ---------------------------------------------------------------- slow transcriptions


def slow_tuples(s: np.ndarray) -> tuple[list[int], list[int]]:
    text, most, pairs = s.tobytes(), [], []
    for t in range(1, s.size + 1):
        counts = Counter(text[i : i + t] for i in range(s.size - t + 1)).values()
        if max(counts) < 2:
            break
        most.append(max(counts))
        pairs.append(sum(c * (c - 1) // 2 for c in counts))
    return most, pairs


def slow_scoreboard(s: np.ndarray, predictions: list[list[int | None]], start: int) -> list[int]:
    """Steps 3 of 6.3.7–6.3.9: `predictions[i][j]` for symbol start + i."""
    score, winner, correct = [0] * len(predictions[0]), 0, []
    for guesses, symbol in zip(predictions, s[start:], strict=True):
        correct.append(int(guesses[winner] is not None and guesses[winner] == symbol))
        for j, guess in enumerate(guesses):
            if guess is not None and guess == symbol:
                score[j] += 1
                if score[j] >= score[winner]:
                    winner = j
    return correct


def slow_mcw(s: np.ndarray, windows: tuple[int, ...]) -> list[int]:
    def guess(i: int, w: int) -> int | None:
        if i < w:
            return None
        ones = int(s[i - w : i].sum())
        return int(2 * ones > w)

    return slow_scoreboard(s, [[guess(i, w) for w in windows] for i in range(windows[0], s.size)], windows[0])


def slow_lag(s: np.ndarray, lags: int) -> list[int]:
    table = [[int(s[i - j]) if i >= j else None for j in range(1, lags + 1)] for i in range(1, s.size)]
    return slow_scoreboard(s, table, 1)


def slow_mmc(s: np.ndarray, depth: int, entries: int) -> list[int]:
    counts: list[dict[tuple[int, ...], Counter[int]]] = [{} for _ in range(depth)]
    table = []
    for i in range(1, s.size):
        guesses: list[int | None] = []
        for d in range(1, depth + 1):
            if i < d:
                guesses.append(None)
                continue
            context, known = tuple(s[i - d : i].tolist()), counts[d - 1]
            seen = known.get(context)
            guesses.append(None if seen is None else max(seen, key=lambda y, seen=seen: (seen[y], y)))
            if (seen is not None and int(s[i]) in seen) or sum(map(len, known.values())) < entries:
                known.setdefault(context, Counter())[int(s[i])] += 1
        table.append(guesses)
    return slow_scoreboard(s, table[1:], 2)


def slow_lz78y(s: np.ndarray, depth: int, entries: int) -> list[int]:
    known: dict[tuple[int, ...], Counter[int]] = {}
    correct = []
    for i in range(depth, s.size):
        guess, most = None, 0
        for d in range(depth, 0, -1):
            context = tuple(s[i - d : i].tolist())
            seen = known.get(context)
            if seen is not None:
                y = max(seen, key=lambda y, seen=seen: (seen[y], y))
                if seen[y] > most:
                    guess, most = y, seen[y]
                seen[int(s[i])] += 1
            elif len(known) < entries:
                known[context] = Counter({int(s[i]): 1})
        correct.append(int(guess is not None and guess == s[i]))
    return correct[1:]


def slow_entropy(correct: list[int]) -> float:
    """Steps 5 to 7: the global bound, and the local one by the exact distribution of runs instead of the root."""
    n, hits = len(correct), sum(correct)
    p = hits / n
    p_global = min(1.0, p + 2.5758293035489008 * sqrt(p * (1 - p) / (n - 1))) if hits else 1 - 0.01 ** (1 / n)
    longest = max(len(run) for run in "".join(map(str, correct)).split("0"))
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if no_run(middle, longest + 1, n) > 0.99 else (low, middle)
    return max(0.0, -log2(max(0.5, p_global, high)))


def no_run(p: float, r: int, n: int) -> float:
    """Probability that n tries have no run of r hits: a chain over the run that is under way."""
    state = np.zeros(r)
    state[0] = 1.0
    for _ in range(n):
        state = np.concatenate([[state.sum() * (1 - p)], state[:-1] * p])
    return float(state.sum())


STRINGS = [drawn(seed, 60 + 40 * seed, p) for seed in range(4) for p in (0.5, 0.8)] + [
    np.tile(drawn(9, 7), 20),
    np.cumsum(drawn(10, 150, 0.15)).astype(np.uint8) % 2,
]


@pytest.mark.parametrize("s", STRINGS, ids=lambda s: f"{s.size} bits")
def test_transcriptions_give_the_same(s: np.ndarray) -> None:
    most, pairs = b.tuple_statistics(s)
    assert (most.tolist(), pairs.tolist()) == slow_tuples(s)
    for fast, slow in (
        (b.multi_mcw(s, (3, 5, 7, 9)), slow_mcw(s, (3, 5, 7, 9))),
        (b.lag(s, 12), slow_lag(s, 12)),
        (b.multi_mmc(s, 4, 20), slow_mmc(s, 4, 20)),
        (b.multi_mmc(s, 6, 1000), slow_mmc(s, 6, 1000)),
        (b.lz78y(s, 4, 15), slow_lz78y(s, 4, 15)),
        (b.lz78y(s, 6, 1000), slow_lz78y(s, 6, 1000)),
    ):
        assert fast == pytest.approx(slow_entropy(slow), abs=2e-5)


@pytest.mark.parametrize("s", STRINGS, ids=lambda s: f"{s.size} bits")
def test_full_dictionaries_predict_the_same(s: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, with limits that are reached early, down to the last one that matters."""
    monkeypatch.setattr(b, "_predicted", lambda correct: correct.astype(int).tolist())
    for entries in (1, 2, 3, 5, 8, 13, 21):
        assert b.multi_mmc(s, 5, entries) == slow_mmc(s, 5, entries)
        assert b.lz78y(s, 5, entries) == slow_lz78y(s, 5, entries)


def test_leaders_are_the_same_over_chunks() -> None:
    hits = np.random.default_rng(11).random((5, 400)) < 0.4
    table = [[1 if hit else 0 for hit in column] for column in hits.T]
    slow = slow_scoreboard(np.ones(400, np.uint8), table, 0)
    for chunk in (1, 7, 400, 1000):
        assert b._winners(hits, chunk).astype(int).tolist() == slow


@pytest.mark.parametrize(("longest", "n"), [(3, 100), (10, 1000), (1, 50), (20, 300)])
def test_local_probability_is_that_of_runs(longest: int, n: int) -> None:
    assert no_run(b.local_probability(longest, n), longest + 1, n) == pytest.approx(0.99, abs=1e-4)


def test_common_prefixes_of_any_string() -> None:
    for s in (*STRINGS, np.zeros(50, np.uint8)):
        text = s.tobytes()
        suffixes = sorted(text[i:] for i in range(s.size))
        expected = [next((k for k in range(len(x)) if x[k] != y[k]), len(x)) for x, y in pairwise(suffixes)]
        assert b.common_prefixes(s).tolist() == expected


# ---------------------------------------------------------------- properties


def test_ideal_bits_have_nearly_one_bit_of_entropy() -> None:
    found = b.estimates(drawn(20, 100_000))
    floor = {"compression": 0.7, "collision": 0.82, "t_tuple": 0.85}
    for name, h in found.items():
        assert h is not None
        assert floor.get(name, 0.93) < h <= 1.0, name


@pytest.mark.parametrize("p", [0.6, 0.75, 0.95])
def test_bias_is_never_overlooked(p: float) -> None:
    h = b.min_entropy_90b(drawn(21, 100_000, p))
    assert h is not None
    assert 0.4 * -log2(p) < h <= -log2(p) + 0.01


@pytest.mark.parametrize("flip", [0.02, 0.1, 0.3])
def test_memory_is_never_overlooked(flip: float) -> None:
    chain = (np.cumsum(drawn(22, 100_000, flip)) % 2).astype(np.uint8)
    h = b.min_entropy_90b(chain)
    assert h is not None
    assert h <= -log2(1 - flip) + 0.01


@pytest.mark.parametrize("period", [1, 2, 7, 100, 5000])
def test_periodic_bits_have_no_entropy(period: int) -> None:
    assert b.min_entropy_90b(np.resize(drawn(23, period), 100_000)) == pytest.approx(0.0, abs=1e-3)


def test_short_strings_have_no_estimate() -> None:
    assert b.min_entropy_90b(drawn(24, b.LEAST_BITS - 1)) is None
    for n in (0, 1, 2, 3, 20, 300):
        for s in (np.zeros(n, np.uint8), drawn(25, n)):
            for h in b.estimates(s).values():
                assert h is None or 0.0 <= h <= 1.0
    assert all(h is None for h in b.estimates(np.zeros(1, np.uint8)).values())
