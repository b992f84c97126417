"""Min-entropy of a binary string by NIST SP 800-90B, 6.3.1–6.3.10: the estimators for sources that are not IID.

Each takes (bit,) uint8 of 0 and 1 and returns bits of min-entropy per bit, 0 to 1, at the standard's 99 % bound; None
where the string is too short or too regular for it to be defined. All give exactly the standard's results; its loops
are computed here over whole arrays, or in one pass. The standard asks for 10⁶ bits; below about 10⁵ the confidence
bounds dominate, and even ideal bits get low estimates.
"""

from __future__ import annotations

from math import log, log2, sqrt

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64, U8

Z = 2.5758293035489008
"""Quantile of the two-sided 99 % interval."""
LEAST_BITS = 100_000
"""Number of bits below which `min_entropy_90b` returns None: the bounds would take more than a quarter of ideal bits.
"""

_COMPRESSION_BLOCK, _COMPRESSION_FIRST = 6, 1000
_TUPLE_CUTOFF = 35
_WINDOWS = (63, 255, 1023, 4095)
_LAGS = 128
_DEPTH = 16
_MMC_ENTRIES = 100_000
_LZ_ENTRIES = 65_536


def estimates(bits: U8) -> dict[str, float | None]:
    """Return every estimate by name, in the standard's order; None where one is not defined for this string."""
    tuples = tuple_statistics(bits)
    return {
        "most_common_value": most_common_value(bits),
        "collision": collision(bits),
        "markov": markov(bits),
        "compression": compression(bits),
        "t_tuple": t_tuple(bits.size, tuples),
        "lrs": longest_repeated_substring(bits.size, tuples),
        "multi_mcw": multi_mcw(bits),
        "lag": lag(bits),
        "multi_mmc": multi_mmc(bits),
        "lz78y": lz78y(bits),
    }


def min_entropy_90b(bits: U8) -> float | None:
    """Return the least of `estimates`, bits per bit; None for fewer than `LEAST_BITS`, where it is not meaningful.

    Ideal bits get about 0.85 with 10⁶ of them and 0.78 with 10⁵; the bound of the compression estimate is the lowest.
    """
    if bits.size < LEAST_BITS:
        return None
    return min(h for h in estimates(bits).values() if h is not None)


def _entropy(p: float) -> float:
    return max(0.0, -log2(min(1.0, p)))


def _upper(p: float, n: int) -> float:
    return min(1.0, p + Z * sqrt(p * (1.0 - p) / (n - 1)))


# ---------------------------------------------------------------- 6.3.1–6.3.4


def most_common_value(bits: U8) -> float | None:
    """6.3.1."""
    if bits.size < 2:
        return None
    ones = int(np.count_nonzero(bits))
    return _entropy(_upper(max(ones, bits.size - ones) / bits.size, bits.size))


def collision(bits: U8) -> float | None:
    """6.3.2: the mean time until a value repeats; among bits that takes two or three, so that X̄′ = 2 + 2p(1 − p)."""
    times = collision_times(bits)
    if times.size < 2:
        return None
    mean = max(2.0, float(times.mean()) - Z * float(times.std(ddof=1)) / sqrt(times.size))
    return _entropy(0.5 + sqrt(1.25 - 0.5 * mean)) if mean < 2.5 else 1.0


def collision_times(bits: U8) -> I64:
    """Return (collision,) 2 where two bits are equal, else 3, one after the other."""
    text, times, i, last = bits.tobytes(), [], 0, bits.size - 1
    while i < last:
        step = 2 if text[i] == text[i + 1] else 3
        i += step
        if i > last + 1:
            break
        times.append(step)
    return np.array(times, dtype=np.int64)


def markov(bits: U8) -> float | None:
    """6.3.3: the likeliest 128 bits of a first-order Markov chain."""
    if bits.size < 2:
        return None
    pairs = np.bincount(2 * bits[:-1].astype(np.int64) + bits[1:], minlength=4).reshape(2, 2).astype(np.float64)
    ones = np.count_nonzero(bits) / bits.size
    with np.errstate(divide="ignore", invalid="ignore"):
        step = -np.log2(pairs / pairs.sum(axis=1, keepdims=True))
        first = -np.log2([1.0 - ones, ones])
    step[np.isnan(step)] = np.inf
    other = step[0, 1] + step[1, 0]
    costs = [
        first[0] + 127 * step[0, 0],
        first[0] + 63 * other + step[0, 1],
        first[0] + step[0, 1] + 126 * step[1, 1],
        first[1] + step[1, 0] + 126 * step[0, 0],
        first[1] + 63 * other + step[1, 0],
        first[1] + 127 * step[1, 1],
    ]
    return abs(float(min(*costs, 128.0))) / 128.0  # no −0


def compression(bits: U8, block: int = _COMPRESSION_BLOCK, n_first: int = _COMPRESSION_FIRST) -> float | None:
    """6.3.4: Maurer's statistic of blocks of `block` bits, the first `n_first` of which only fill the dictionary."""
    from scipy.optimize import brentq

    n_blocks = bits.size // block
    n_tested = n_blocks - n_first
    if n_tested < 2:
        return None
    code = bits[: n_blocks * block].reshape(n_blocks, block) @ (1 << np.arange(block - 1, -1, -1))
    order = np.argsort(code, kind="stable")
    distance = order + 1  # a block that has not occurred before has its distance from the start
    same = code[order[1:]] == code[order[:-1]]
    distance[1:][same] -= order[:-1][same] + 1
    logs = np.log2(distance[order >= n_first])
    # the standard divides by ν − 1 here
    spread = 0.5907 * sqrt(max(0.0, (logs**2).sum() / (n_tested - 1) - logs.mean() ** 2))
    bound = float(logs.mean()) - Z * spread / sqrt(n_tested)
    counts = np.arange(1, n_blocks + 1)
    log_counts = np.log2(counts)

    def g(z: float) -> float:
        """G(z) of step 7: u = t in the last term, u < t in the others."""
        terms = log_counts * np.exp((counts - 1) * np.log1p(-z))
        before = np.concatenate([[0.0], np.cumsum(terms)])[n_first:-1]
        return float(z * (z * before.sum() + terms[n_first:].sum())) / n_tested

    n_values = 1 << block

    def excess(p: float) -> float:
        return g(p) + (n_values - 1) * g((1.0 - p) / (n_values - 1)) - bound

    if excess(1.0 / n_values) <= 0.0:
        return 1.0
    highest = 1.0 - 1e-12
    p = brentq(excess, 1.0 / n_values, highest, xtol=1e-13) if excess(highest) < 0.0 else 1.0
    return _entropy(p) / block


# ---------------------------------------------------------------- 6.3.5, 6.3.6: repeated tuples


def tuple_statistics(symbols: U8) -> tuple[F64, F64]:
    """Return, by length − 1, how often the most frequent tuple occurs and how many pairs of equal tuples there are.

    The lengths end with that of the longest repeated tuple; (n,) symbols may be of any small alphabet. The suffix array
    gives both: equal tuples of t symbols are neighbours in it, with common prefixes of t symbols or more.
    """
    lcp = common_prefixes(symbols)
    longest = int(lcp.max(initial=0))
    most, pairs = np.ones(longest + 1), np.zeros(longest + 2)
    stack: list[tuple[int, int]] = []  # (prefix, first suffix) of the groups that are open
    for i, prefix in enumerate([*lcp.tolist(), 0]):
        start = i
        while stack and stack[-1][0] > prefix:
            length, start = stack.pop()
            size = i - start + 1
            shorter = max(prefix, stack[-1][0] if stack else 0)
            most[length] = max(most[length], size)
            added = size * (size - 1) / 2.0
            pairs[length] += added
            pairs[shorter] -= added
        if prefix and (not stack or stack[-1][0] < prefix):
            stack.append((prefix, start))
    most = np.maximum.accumulate(most[::-1])[::-1]
    totals = np.cumsum(pairs[::-1])[::-1]
    return most[1:], totals[1:-1]


def common_prefixes(symbols: U8) -> I64:
    """Return (n − 1,) the length of the common prefix of neighbours among the sorted suffixes of (n,) symbols.

    By prefix doubling: suffixes are ranked by their first 1, 2, 4, … symbols, each time by sorting pairs of former
    ranks.
    """
    n = symbols.size
    order = np.argsort(symbols, kind="stable")
    ranks = [np.unique(symbols, return_inverse=True)[1].astype(np.int64) + 1]
    while int(ranks[-1].max(initial=0)) < n and 1 << (len(ranks) - 1) < n:
        step = 1 << (len(ranks) - 1)
        key = ranks[-1] * (n + 1)
        key[:-step] += ranks[-1][step:]  # after the end: 0, which is below every symbol
        order = np.argsort(key, kind="stable")
        new = np.concatenate([[True], key[order[1:]] != key[order[:-1]]])
        rank = np.empty(n, dtype=np.int64)
        rank[order] = np.cumsum(new)
        ranks.append(rank)
    a, b = order[:-1].copy(), order[1:].copy()
    length = np.zeros(max(n - 1, 0), dtype=np.int64)
    for level in range(len(ranks) - 1, -1, -1):
        step = 1 << level
        inside = (a + step <= n) & (b + step <= n)
        same = inside & (ranks[level][np.minimum(a, n - 1)] == ranks[level][np.minimum(b, n - 1)])
        length[same] += step
        a[same] += step
        b[same] += step
    return length


def t_tuple(n: int, statistics: tuple[F64, F64], cutoff: int = _TUPLE_CUTOFF) -> float | None:
    """6.3.5: the most frequent tuples, of the lengths at which one occurs `cutoff` times or more."""
    most = statistics[0]
    lengths = np.flatnonzero(most >= cutoff) + 1
    if not lengths.size:
        return None
    p = (most[lengths - 1] / (n - lengths + 1)) ** (1.0 / lengths)
    return _entropy(_upper(float(p.max()), n))


def longest_repeated_substring(n: int, statistics: tuple[F64, F64], cutoff: int = _TUPLE_CUTOFF) -> float | None:
    """6.3.6: the probability that two tuples are equal, over the lengths above those of `t_tuple`."""
    most, pairs = statistics
    lengths = np.flatnonzero(most < cutoff) + 1
    if not lengths.size:
        return None
    places = n - lengths + 1.0
    p = (pairs[lengths - 1] / (places * (places - 1) / 2.0)) ** (1.0 / lengths)
    return _entropy(_upper(float(p.max()), n))


# ---------------------------------------------------------------- 6.3.7–6.3.10: predictors


def multi_mcw(bits: U8, windows: tuple[int, ...] = _WINDOWS) -> float | None:
    """6.3.7: the most common value in the last 63, 255, 1023 or 4095 bits; odd windows have no ties."""
    n, first = bits.size, windows[0]
    if n < first + 2:
        return None
    ones = np.concatenate([[0], np.cumsum(bits, dtype=np.int64)])
    hits = np.zeros((len(windows), n - first), dtype=np.bool_)
    for row, width in zip(hits, windows, strict=True):
        if n > width:
            majority = 2 * (ones[width:-1] - ones[: -width - 1]) > width
            row[width - first :] = majority == bits[width:]
    return _predicted(_winners(hits))


def lag(symbols: U8, lags: int = _LAGS) -> float | None:
    """6.3.8: predicts a symbol by the one 1, 2, … 128 before."""
    n = symbols.size
    if n < 3:
        return None
    hits = np.zeros((lags, n - 1), dtype=np.bool_)
    for j in range(1, min(lags, n - 1) + 1):
        hits[j - 1, j - 1 :] = symbols[j:] == symbols[:-j]
    return _predicted(_winners(hits))


def multi_mmc(bits: U8, depth: int = _DEPTH, entries: int = _MMC_ENTRIES) -> float | None:
    """6.3.9: predicts the bit that has most often followed the last 1, 2, … 16 bits so far."""
    n = bits.size
    if n < depth + 3:
        return None
    hits = np.zeros((depth, n - 2), dtype=np.bool_)
    for d in range(1, depth + 1):
        context, following = _contexts(bits, d), bits[d:]
        pair = 2 * context + following
        first = _firsts(pair)
        learnt = None
        if first.size > entries:  # a full dictionary takes no later pairs
            late = np.zeros(2 << d, dtype=np.bool_)
            late[pair[np.sort(first)[entries:]]] = True
            learnt = ~late[pair]
        zeros, ones = _seen(context, following, learnt)
        hits[d - 1, d - 1 :] = ((np.where(zeros > ones, 0, 1) == following) & (zeros + ones > 0))[1:]
    return _predicted(_winners(hits))


def lz78y(bits: U8, depth: int = _DEPTH, entries: int = _LZ_ENTRIES) -> float | None:
    """6.3.10: predicts the most frequent follower of the last 16, 15, … 1 bits; ties go to the longest context."""
    n = bits.size
    if n < depth + 3:
        return None
    following = bits[depth:]
    contexts = {d: _contexts(bits, d)[depth - d :] for d in range(depth, 0, -1)}
    # entries are added in order of time, longer contexts first, until the dictionary is full
    arrivals = [(_firsts(context) * depth + (depth - d), d) for d, context in contexts.items()]
    every = np.sort(np.concatenate([when for when, _ in arrivals]))
    last = every[min(entries, every.size) - 1]
    best = np.zeros(following.size, dtype=np.int64)
    guess = np.full(following.size, 2, dtype=np.uint8)
    for when, d in arrivals:
        known = np.zeros(1 << d, dtype=np.bool_)
        known[contexts[d][when[when <= last] // depth]] = True
        zeros, ones = _seen(contexts[d], following, known[contexts[d]])
        count = np.maximum(zeros, ones)
        better = count > best
        best[better] = count[better]
        guess[better] = (zeros <= ones)[better]
    return _predicted((guess == following)[1:])


def _contexts(bits: U8, d: int) -> I64:
    """Return (n − d,) the d bits before each of the bits d, d + 1, …, as numbers."""
    code = np.zeros(bits.size - d, dtype=np.int64)
    for i in range(d):
        code = 2 * code + bits[i : i + code.size]
    return code


def _firsts(codes: I64) -> I64:
    """Return where each value occurs for the first time."""
    first = np.full(int(codes.max()) + 1, -1, dtype=np.int64)
    first[codes[::-1]] = np.arange(codes.size - 1, -1, -1)
    return first[first >= 0]


def _seen(context: I64, following: U8, learnt: NDArray[np.bool_] | None) -> tuple[I64, I64]:
    """Return (i,) how often 0 and 1 followed the same context earlier, counting only what was `learnt`."""
    order = np.argsort(context.astype(np.uint16) if context.max() < 1 << 16 else context, kind="stable")
    grouped = context[order]
    starts = np.concatenate([[True], grouped[1:] != grouped[:-1]])
    group = np.cumsum(starts) - 1
    out = []
    for value in (0, 1):
        counted = following == value if learnt is None else (following == value) & learnt
        sums = np.concatenate([[0], np.cumsum(counted[order])])[:-1]
        earlier = np.empty(context.size, dtype=np.int64)
        earlier[order] = sums - sums[starts][group]
        out.append(earlier)
    return out[0], out[1]


def _winners(hits: NDArray[np.bool_], chunk: int = 1 << 14) -> NDArray[np.bool_]:
    """Return (i,) whether the sub-predictor that led the scoreboard before i is right at i, of (sub-predictor, i).

    The standard's leader is the sub-predictor that reached the highest score last; at equal times it is the later one
    in order, and the first one before any hit. One number for each (score, time of the last hit, place) expresses this
    rule: the largest number leads.
    """
    n_predictors, n = hits.shape
    assert n_predictors <= 128  # 7 bits for the place
    assert n < 1 << 28
    place = np.arange(n_predictors)[:, None]
    correct = np.empty(n, dtype=np.bool_)
    score, standing = np.zeros((2, n_predictors, 1), dtype=np.int64)
    for start in range(0, n, chunk):
        part = hits[:, start : start + chunk]
        scores = score + np.cumsum(part, axis=1)
        time = np.arange(start + 1, start + part.shape[1] + 1)
        standings = np.where(part, (scores << 35) | (time << 7) | place, 0)
        standings = np.maximum.accumulate(np.concatenate([standing, standings], axis=1), axis=1)
        leader = standings[:, :-1].max(axis=0) & 127
        correct[start : start + chunk] = part[leader, np.arange(part.shape[1])]
        score, standing = scores[:, -1:], standings[:, -1:]
    return correct


def _predicted(correct: NDArray[np.bool_]) -> float:
    """Return the entropy by a predictor that is right at (i,): from its share of hits and its longest run of hits."""
    n, hits = correct.size, int(np.count_nonzero(correct))
    p_global = _upper(hits / n, n) if hits else 1.0 - 0.01 ** (1.0 / n)
    misses = np.flatnonzero(~correct)
    edges = np.concatenate([[-1], misses, [n]])
    return _entropy(max(0.5, p_global, local_probability(int(np.diff(edges).max()) - 1, n)))


def local_probability(longest: int, n: int) -> float:
    """Return the hit probability at which n tries have no run beyond `longest` with probability 0.99, 6.3.7 step 6.

    Feller 1957, equation XIII.7.9; 1 for a predictor that never failed.
    """
    r = longest + 1
    if r > n:
        return 1.0

    def log_no_run(p: float) -> float:
        q, x = 1.0 - p, 1.0
        for _ in range(65):
            then = 1.0 + q * p**r * x ** (r + 1)
            if then - x <= 1e-16 * then:
                break
            x = then
        return log(1.0 - p * x) - log((r + 1 - r * x) * q) - (n + 1) * log(x)

    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2.0
        try:
            below = log_no_run(p) > log(0.99)
        except (ValueError, OverflowError):  # such runs are certain, and the recursion has no root
            below = False
        low, high = (p, high) if below else (low, p)
    return high
