"""Cases without a radio: blocks whose secret bits are known exactly or bounded from above, and Eves of every kind.

In some cases an earlier rule granted a key although an Eve could know it; others are harmless, and must still give a
key. `Case.make(rng, probes)` gives the facts and `true_bits`, an upper bound of the secret bits of the kept labels:
their Shannon entropy given everything that this Eve has. No method can distil more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import gammaln, ndtr

from testbed.core.types import F64, I64
from testbed.entropy.facts import C128, Earlier, Facts, Heard
from testbed.entropy.gaussian_labels import edges, level_entropies, normal_scores

Rng = np.random.Generator
DIMENSIONS = 6
BITS = 2
PUBLISHED = 0.1
INTERVAL_S = 0.05
FIRST_ROUND = 200
"""Round of a block's first probe; Eve's recording begins before it."""


@dataclass(frozen=True, slots=True)
class Made:
    facts: Facts
    true_bits: float


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of block and Eve."""

    name: str
    harmless: bool
    make: Callable[[Rng, int], Made]


# ---------------------------------------------------------------- parts


def labels(features: F64, bits: int = BITS) -> I64:
    """Return labels (probe, dimension): the numbers of equally likely cells, in a Gray code."""
    cell = np.minimum((ndtr(normal_scores(features)) * (1 << bits)).astype(np.int64), (1 << bits) - 1)
    return np.asarray(cell ^ (cell >> 1))


def block(rng: Rng, features: F64, bits: int = BITS, published: float = PUBLISHED, **rest: Any) -> Facts:
    """Return the facts of one block without Eve: one probe per round from `FIRST_ROUND` on, a tenth of the symbols
    published.

    `rest`: further fields, among them `rounds`, and `value` (probe, dimension) if labels are not equally likely cells.
    """
    n, dimensions = features.shape
    probe, dimension = np.divmod(np.arange(n * dimensions), dimensions)
    rounds = rest.pop("rounds", np.arange(n) + FIRST_ROUND)
    return Facts(
        value=rest.pop("value", labels(features, bits)).reshape(-1),
        bits=np.full(probe.size, bits),
        probe=probe,
        dimension=dimension,
        published=rng.random(probe.size) < published,
        rounds=rounds,
        time_s=seconds(rounds),
        features=features,
        **rest,
    )


def heard(values: F64, rounds: I64 | None = None, name: str = "eve.0:alice", csi: C128 | None = None) -> Heard:
    """Return Eve's series; by default one value per round from round 0 on."""
    rounds = np.arange(values.shape[0]) if rounds is None else rounds
    return Heard(name, rounds, seconds(rounds), values, csi)


def seconds(rounds: I64) -> F64:
    """Return (round,) the times of rounds."""
    return np.asarray(rounds * INTERVAL_S, np.float64)


def noise(rng: Rng, like: F64, r: float) -> F64:
    """Return a noisy copy of `like`, of unit variance and with correlation r to it."""
    return np.asarray(r * like + np.sqrt(1 - r**2) * rng.normal(size=like.shape))


def left(facts: Facts, r: float) -> float:
    """Return the Shannon entropy of the labels of independent Gaussian values, each given a value of correlation r."""
    if r >= 1.0:
        return 0.0
    return float(sum(sum(level_entropies(round(abs(r), 6), int(m))) for m in facts.bits[facts.kept]))


def fading(rng: Rng, rho: float, probes: int, dimensions: int = DIMENSIONS) -> F64:
    """Return AR(1) processes (probe, dimension) of unit variance; dimensions are independent."""
    w = rng.normal(size=(probes, dimensions))
    for k in range(1, probes):
        w[k] = rho * w[k - 1] + np.sqrt(1 - rho**2) * w[k]
    return w


def ar1_surprisal(facts: Facts, rho: float) -> float:
    """Return −log2 P(kept labels | published labels) of AR(1) fading, computed by a filter on a grid.

    It is exact up to the grid's step. The cells are equally likely under the stationary distribution.
    """
    order = np.argsort(facts.dimension, kind="stable")
    total = 0.0
    for d in np.unique(facts.dimension).tolist():
        own = order[facts.dimension[order] == d]
        value, public = facts.value[own], facts.published[own]
        total += _surprisal(value, np.ones(own.size, bool), rho) - _surprisal(value, public, rho)
    return total


def _surprisal(value: I64, known: np.ndarray, rho: float, bits: int = BITS) -> float:
    innovation = np.sqrt(1 - rho**2)
    step = min(0.05, innovation / 2)
    x = np.arange(-4.0, 4.0 + step / 2, step)
    density = np.exp(-(x**2) / 2)
    density /= density.sum()
    move = np.exp(-(((x[None, :] - rho * x[:, None]) / innovation) ** 2) / 2)
    move /= move.sum(axis=1, keepdims=True)
    cell = np.searchsorted(edges(bits)[1:-1], x)
    gray = cell ^ (cell >> 1)
    out = 0.0
    for k, v in enumerate(value.tolist()):
        if k:
            density = density @ move
        if known[k]:
            density = np.where(gray == v, density, 0.0)
            p = density.sum()
            out -= float(np.log2(max(p, 1e-300)))
            density = density / max(p, 1e-300)
    return out


def series(rng: Rng, probes: int, before: int = FIRST_ROUND, after: int = 150) -> tuple[F64, F64]:
    """Return independent values of all rounds that Eve may record, from round 0 on, and those of Alice's block."""
    every = rng.normal(size=(before + probes + after, DIMENSIONS))
    return every, every[before : before + probes]


def with_eve(rng: Rng, alice: F64, eves: Sequence[Heard], r: float) -> Made:
    facts = block(rng, alice, heard=tuple(eves))
    return Made(facts, left(facts, r))


# ---------------------------------------------------------------- Eves who receive Bob's values, but changed

R = 0.999
"""Correlation of Eve's value with Alice's in the cases in which Eve receives as well as Alice."""


def disguised(change: Callable[[Rng, F64], F64]) -> Callable[[Rng, int], Made]:
    """Return the maker of a case in which Eve's series is a function of Alice's values of all rounds."""

    def make(rng: Rng, probes: int) -> Made:
        every, alice = series(rng, probes)
        return with_eve(rng, alice, [heard(change(rng, noise(rng, every, R)))], R)

    return make


def late(rounds: int) -> Callable[[Rng, F64], F64]:
    return lambda rng, v: np.roll(v, rounds, axis=0)


def lost_packets(count: int) -> Callable[[Rng, F64], F64]:
    def change(rng: Rng, v: F64) -> F64:
        return np.delete(v, rng.choice(np.arange(FIRST_ROUND, v.shape[0] - 150), count, replace=False), axis=0)

    return change


def drifting(every: int) -> Callable[[Rng, F64], F64]:
    """Her clock is slow: she repeats her last value once in this many rounds."""
    return lambda rng, v: v[np.arange(v.shape[0]) - np.arange(v.shape[0]) // every]


def permuted(rng: Rng, v: F64) -> F64:
    return v[:, rng.permutation(v.shape[1])]


def scaled(rng: Rng, v: F64) -> F64:
    """An automatic gain that varies by a factor of two, in steps, and a sign for each dimension."""
    gain = 2.0 ** np.repeat(rng.uniform(-0.5, 0.5, v.shape[0] // 60 + 1), 60)[: v.shape[0]]
    return v * gain[:, None] * rng.choice([-1.0, 1.0], v.shape[1])


def inverted_on_one_link(rng: Rng, probes: int) -> Made:
    every, alice = series(rng, probes)
    eves = [heard(-noise(rng, every, 0.99)), heard(rng.normal(size=every.shape), name="eve.0:bob")]
    return with_eve(rng, alice, eves, 0.99)


def half_rate(rng: Rng, probes: int) -> Made:
    """She records every other round and counts only those: she knows half of the labels."""
    every, alice = series(rng, probes)
    mine = noise(rng, every, R)[::2]
    facts = block(rng, alice, heard=(heard(mine),))
    even = facts.rounds[facts.probe[facts.kept]] % 2 == 0
    return Made(facts, left(facts, R) * even.mean() + left(facts, 0.0) * (1 - even.mean()))


def other_clock(rng: Rng, probes: int) -> Made:
    """She lost many packets and counts only the received ones; her clock gives their times."""
    every, alice = series(rng, probes)
    there = np.flatnonzero(rng.random(every.shape[0]) < 0.7)
    values = noise(rng, every, R)[there]
    facts = block(rng, alice, heard=(Heard("eve.0:alice", np.arange(there.size), seconds(there + 17), values),))
    mine = np.isin(facts.rounds[facts.probe[facts.kept]], there)
    return Made(facts, left(facts, R) * mine.mean() + left(facts, 0.0) * (1 - mine.mean()))


def two_lags(rng: Rng, probes: int) -> Made:
    """She receives the sum of Bob's present value and that of seven rounds ago, on two links with different weights."""
    every, alice = series(rng, probes)
    old = np.roll(every, 7, axis=0)
    eves = [heard(0.8 * every + 0.6 * old), heard(0.6 * every - 0.8 * old, name="eve.0:bob")]
    return with_eve(rng, alice, eves, R)


def some_dimensions(rng: Rng, probes: int) -> Made:
    """She receives half of the band, 25 rounds late, in any order of dimensions."""
    every, alice = series(rng, probes)
    mine = rng.choice(DIMENSIONS, DIMENSIONS // 2, replace=False)
    facts = block(rng, alice, heard=(heard(np.roll(noise(rng, every, R), 25, axis=0)[:, mine]),))
    known = np.isin(facts.dimension[facts.kept], mine).mean()
    return Made(facts, left(facts, R) * known + left(facts, 0.0) * (1 - known))


def bob_only(rng: Rng, probes: int) -> Made:
    """She receives nothing of Alice's transmissions, and most of Bob's."""
    every, alice = series(rng, probes)
    mine = noise(rng, every, R)
    mine[rng.random(mine.shape[0]) < 0.1] = np.nan
    nothing = np.full(every.shape, np.nan)
    facts = block(rng, alice, heard=(heard(nothing), heard(mine, name="eve.0:bob")))
    known = np.isfinite(mine[facts.rounds[facts.probe[facts.kept]], 0]).mean()
    return Made(facts, left(facts, R) * known + left(facts, 0.0) * (1 - known))


def at_times(spell: int) -> Callable[[Rng, int], Made]:
    """She receives well for `spell` rounds with probability 1/3; otherwise an obstacle shields her for these rounds."""

    def make(rng: Rng, probes: int) -> Made:
        every, alice = series(rng, probes)
        clear = np.repeat(rng.random(every.shape[0] // spell + 1) < 1 / 3, spell)[: every.shape[0]]
        mine = np.where(clear[:, None], noise(rng, every, R), noise(rng, every, 0.2))
        facts = block(rng, alice, heard=(heard(mine),))
        good = clear[facts.rounds[facts.probe[facts.kept]]].mean()
        return Made(facts, left(facts, R) * good + left(facts, 0.2) * (1 - good))

    return make


def well_in_turn(rng: Rng, probes: int) -> Made:
    """Only one of her two antennas receives well at a time; after some rounds it is the other one."""
    every, alice = series(rng, probes)
    first = np.repeat(rng.random(every.shape[0] // 15 + 1) < 0.5, 15)[: every.shape[0], None]
    good, bad = noise(rng, every, 0.99), rng.normal(size=(2, *every.shape))
    eves = [heard(np.where(first, good, bad[0])), heard(np.where(first, bad[1], good), name="eve.1:alice")]
    return with_eve(rng, alice, eves, 0.99)


def signs_change(rng: Rng, v: F64) -> F64:
    """The sign of all that she receives changes now and then."""
    return v * np.repeat(rng.choice([-1.0, 1.0], v.shape[0] // 25 + 1), 25)[: v.shape[0], None]


def signs_of_rounds(rng: Rng, probes: int) -> Made:
    """All that she receives in a round has one random sign, so that one more bit per round is secret."""
    every, alice = series(rng, probes)
    signs = rng.choice([-1.0, 1.0], (every.shape[0], 1))
    facts = block(rng, alice, heard=(heard(signs * noise(rng, every, R)),))
    return Made(facts, left(facts, R) + facts.rounds.size)


def order_changes(rng: Rng, v: F64) -> F64:
    """The order of her dimensions changes every sixty rounds."""
    parts = [v[i : i + 60][:, rng.permutation(v.shape[1])] for i in range(0, v.shape[0], 60)]
    return np.concatenate(parts)


def deep_labels(rng: Rng, probes: int) -> Made:
    """Labels of one to five bits, as for soft decoding; Eve is 7 rounds late."""
    every, alice = series(rng, probes)
    depth = np.array([1, 2, 3, 4, 5, 5])
    cell = np.minimum((ndtr(normal_scores(alice)) * 32).astype(np.int64), 31)
    facts = block(rng, alice, bits=5, value=cell)
    facts = replace(
        facts,
        bits=depth[facts.dimension],
        value=facts.value >> (5 - depth[facts.dimension]),
        heard=(heard(late(7)(rng, noise(rng, every, R))),),
    )
    return Made(facts, left(facts, R))


def vector_labels(rng: Rng, probes: int) -> Made:
    """The labels are regions of pairs of columns, by angle and magnitude; Eve receives the same values, mirrored."""
    every, alice = series(rng, probes)
    columns = np.arange(DIMENSIONS).reshape(-1, 2)
    x, y = alice[:, columns[:, 0]], alice[:, columns[:, 1]]
    value = (np.arctan2(y, x) * 4 / np.pi).astype(np.int64) % 8 + 8 * (np.hypot(x, y) > np.sqrt(2 * np.log(2)))
    probe, dimension = np.divmod(np.arange(value.size), value.shape[1])
    rounds = np.arange(probes) + FIRST_ROUND
    facts = Facts(
        value=value.reshape(-1),
        bits=np.full(value.size, 4),
        probe=probe,
        dimension=dimension,
        published=rng.random(value.size) < PUBLISHED,
        rounds=rounds,
        time_s=seconds(rounds),
        features=alice,
        columns=columns,
        heard=(heard(noise(rng, every, R)[:, ::-1]),),
    )
    return Made(facts, facts.kept_bits * 0.25)  # the regions' borders are longer than thresholds


def inverted_return(rng: Rng, probes: int) -> Made:
    """After a third of the block the channel repeats with the opposite sign and in another order of dimensions."""
    part = rng.normal(size=((probes + 2) // 3, DIMENSIONS))
    order = rng.permutation(DIMENSIONS)
    every = np.concatenate([part, -part[:, order], part])[:probes]
    facts = block(rng, noise(rng, every, R))
    return Made(facts, facts.kept_bits / 3 * 1.05 + left(facts, R**2))


def magnitude(change: Callable[[F64], F64]) -> Callable[[Rng, int], Made]:
    """She has a value without its sign, so that one bit of each label is left."""

    def make(rng: Rng, probes: int) -> Made:
        every, alice = series(rng, probes)
        facts = block(rng, alice, heard=(heard(change(every)),))
        return Made(facts, float(facts.kept.size) * (1 + 0.02))

    return make


def antennas(count: int, r: float) -> Callable[[Rng, int], Made]:
    """Several antennas with independent noise, each of correlation r: jointly R² = A·r² / (1 + (A − 1)·r²)."""

    def make(rng: Rng, probes: int) -> Made:
        every, alice = series(rng, probes)
        eves = [heard(noise(rng, every, r), name=f"eve.{i}:alice") for i in range(count)]
        return with_eve(rng, alice, eves, float(np.sqrt(count * r**2 / (1 + (count - 1) * r**2))))

    return make


def array(count: int) -> Callable[[Rng, int], Made]:
    """Bob's field is a combination of the complex fields of her antennas, none of which resembles it."""

    def make(rng: Rng, probes: int) -> Made:
        n = FIRST_ROUND + probes
        h = rng.normal(size=(n, count, DIMENSIONS)) + 1j * rng.normal(size=(n, count, DIMENSIONS))
        h *= np.exp(2j * np.pi * rng.random((n, 1, 1)))
        w = rng.normal(size=(count, DIMENSIONS)) + 1j * rng.normal(size=(count, DIMENSIONS))
        bob = np.einsum("nad,ad->nd", h, w) * np.exp(2j * np.pi * rng.random((n, 1)))
        bob += 0.02 * np.abs(bob).std() * (rng.normal(size=bob.shape) + 1j * rng.normal(size=bob.shape))
        eves = tuple(heard(_db(h[:, a]), csi=h[:, a], name=f"eve.{a}:alice") for a in range(count))
        facts = block(rng, _db(bob[FIRST_ROUND:]), csi=bob[FIRST_ROUND:], heard=eves)
        return Made(facts, _small(facts))

    return make


def _db(h: C128) -> F64:
    return np.asarray(20.0 * np.log10(np.abs(h)))


def _small(facts: Facts) -> float:
    """Return a bound of the secret bits if Eve has 30 dB SNR or more: a sixth of the label bits, though nearly 0 is
    true."""
    return facts.kept_bits / 6


# ---------------------------------------------------------------- channels that repeat


def codebook(share: float, blocks: int, which: int) -> Callable[[Rng, int], Made]:
    """Patterns are swept again and again in a static room, `share` times as many as a block has probes.

    Block `which` of `blocks` is judged.
    """

    def make(rng: Rng, probes: int) -> Made:
        patterns = int(share * probes)
        values = rng.normal(size=(patterns, DIMENSIONS))
        rounds = np.arange(probes * blocks)
        every = values[rounds % patterns] + 0.01 * rng.normal(size=(rounds.size, DIMENSIONS))
        parts = [slice(b * probes, (b + 1) * probes) for b in range(blocks)]
        earlier = tuple(
            Earlier(f"block {b}", True, rounds[p], seconds(rounds[p]), every[p], rounds[p] % patterns)
            for b, p in enumerate(parts[:which])
        )
        own = parts[which]
        facts = block(rng, every[own], rounds=rounds[own], states=rounds[own] % patterns, earlier=earlier)
        return Made(facts, _fresh(facts, rounds[own] % patterns, np.unique(rounds[: own.start] % patterns)))

    return make


def _fresh(facts: Facts, state: I64, seen: I64) -> float:
    """Return the label bits of states and dimensions of which nothing was published, in this block or before."""
    cell = state[facts.probe] * facts.n_dimensions + facts.dimension
    told = np.union1d(cell[facts.published], cell[np.isin(state[facts.probe], seen)])
    fresh = ~facts.published & ~np.isin(cell, told)
    whole = float(np.unique(cell[fresh]).size * BITS)
    return whole + 0.05 * facts.kept_bits  # at 40 dB SNR noise matters for values near thresholds


def run_again(rng: Rng, probes: int) -> Made:
    """The same file is run again with the same seed; the earlier run numbers its rounds from another start."""
    alice = rng.normal(size=(probes, DIMENSIONS))
    rounds = np.arange(probes) + 3
    before = Earlier("run before", False, rounds, seconds(rounds), noise(rng, alice, R))
    facts = block(rng, alice, earlier=(before,))
    return Made(facts, left(facts, R))


def training_again(rng: Rng, probes: int) -> Made:
    """The track of the training is walked again, slower in one place and faster in another, in reverse."""
    track = rng.normal(size=(probes, DIMENSIONS))
    walked = np.delete(track[::-1], rng.choice(probes, 5, replace=False), axis=0)
    rounds = np.arange(walked.shape[0])
    before = Earlier("training", True, rounds, seconds(rounds), noise(rng, walked, R))
    facts = block(rng, track, rounds=np.arange(probes) + probes + 40, earlier=(before,))
    return Made(facts, left(facts, R) + 5 * DIMENSIONS * BITS)


def another_pace(rng: Rng, probes: int) -> Made:
    """A track of an earlier block is walked back at three quarters of the pace."""
    scatter = rng.normal(size=(DIMENSIONS, probes // 2))
    knots = np.linspace(0.0, 1.0, probes // 2)

    def measured(place: F64) -> F64:
        values = np.stack([np.interp(place, knots, s) for s in scatter], axis=1)
        return np.asarray(values + 0.05 * rng.normal(size=values.shape))

    before, now = np.linspace(0.0, 1.0, probes), np.arange(probes) * 0.75 / (probes - 1)
    rounds = np.arange(probes)
    earlier = Earlier("block 0", True, rounds, seconds(rounds), measured(before))
    facts = block(rng, measured(1.0 - now), rounds=rounds + probes + 37, earlier=(earlier,))
    return Made(facts, left(facts, 0.99))  # noise of 0.05 on either walk, which interpolation reduces near its knots


def there_and_back(rng: Rng, probes: int) -> Made:
    """Bob walks to the wall and back in one block, so that each place is new only once."""
    half = rng.normal(size=((probes + 1) // 2, DIMENSIONS))
    every = noise(rng, np.concatenate([half, half[::-1]])[:probes], R)
    facts = block(rng, every)
    return Made(facts, facts.kept_bits / 2 + left(facts, R**2))


def patterns_public(elements: int, csi: bool, snr_db: float = 35.0) -> Callable[[Rng, int], Made]:
    """A static room, and a surface whose random patterns are computed from a seed in a file."""

    def make(rng: Rng, probes: int) -> Made:
        states = rng.choice([-1.0, 1.0], (probes, elements)).astype(np.complex128)
        w = rng.normal(size=(elements + 1, DIMENSIONS)) + 1j * rng.normal(size=(elements + 1, DIMENSIONS))
        h = np.concatenate([np.ones((probes, 1)), states], axis=1) @ w
        h = h + 10 ** (-snr_db / 20) * np.sqrt(elements) * (rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape))
        h = h * np.exp(2j * np.pi * rng.random((probes, 1)))
        facts = block(rng, _db(h), patterns=states, states=np.arange(probes), csi=h if csi else None)
        return Made(facts, facts.kept_bits * 0.35)

    return make


# ---------------------------------------------------------------- found by a referee


def _choices(n: int, k: int) -> float:
    """Return log2 of the number of ways to choose k of n."""
    return float((gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)) / np.log(2.0))


def lags_of_channels(rng: Rng, v: F64) -> F64:
    """Each channel is late by a number of rounds of its own, with a sign of its own."""
    lags = 3 + rng.permutation(11 * np.arange(v.shape[1]))
    late_each = [np.roll(v[:, d], lag) for d, lag in enumerate(lags.tolist())]
    return np.asarray(np.stack(late_each, axis=1) * rng.choice([-1.0, 1.0], v.shape[1]))


def nodes_of_one_channel(rng: Rng, probes: int) -> Made:
    """Each node hears one subcarrier well, and began to record at a round of its own."""
    every, alice = series(rng, probes)
    found = []
    for d in range(DIMENSIONS):
        v = rng.normal(size=every.shape)
        v[:, d] = noise(rng, every[:, d], R)
        found.append(heard(np.roll(v, 4 + 13 * d, axis=0), name=f"eve{d}.0:alice"))
    return with_eve(rng, alice, found, R)


def counts_kept_pairs(rng: Rng, probes: int) -> Made:
    """A third of the rounds fail, and Eve numbers her rows by the pairs that were kept."""
    rounds = np.sort(rng.choice(probes * 3 // 2, probes, replace=False)) + FIRST_ROUND
    alice = rng.normal(size=(probes, DIMENSIONS))
    facts = block(rng, alice, rounds=rounds, heard=(heard(permuted(rng, noise(rng, alice, R))),))
    return Made(facts, left(facts, R))


def part_received(p: int, q: int) -> Callable[[Rng, int], Made]:
    """She receives q of p rounds, always the same, and counts those that she received."""

    def make(rng: Rng, probes: int) -> Made:
        every, alice = series(rng, probes)
        keep = np.flatnonzero(np.isin(np.arange(every.shape[0]) % p, np.sort(rng.choice(p, q, replace=False))))
        facts = block(rng, alice, heard=(heard(permuted(rng, noise(rng, every, R)[keep])),))
        known = float(np.isin(facts.rounds[facts.probe[facts.kept]], keep).mean())
        return Made(facts, left(facts, R) * known + left(facts, 0.0) * (1.0 - known))

    return make


def magnitude_late(rng: Rng, probes: int) -> Made:
    every, alice = series(rng, probes)
    facts = block(rng, alice, heard=(heard(np.roll(np.abs(every), 12, axis=0)),))
    return Made(facts, facts.kept.size * 1.02)


def sign_of_rounds_late(rng: Rng, probes: int) -> Made:
    every, alice = series(rng, probes)
    v = noise(rng, every, R) * rng.choice([-1.0, 1.0], (every.shape[0], 1))
    facts = block(rng, alice, heard=(heard(np.roll(v, 12, axis=0)),))
    return Made(facts, left(facts, R) + probes)


def in_reverse_by_fours(rng: Rng, v: F64) -> F64:
    """A buffer that hands out four rounds at a time, the last one first."""
    at = np.arange(v.shape[0])
    return np.asarray(v[np.minimum(at // 4 * 4 + 3 - at % 4, v.shape[0] - 1)])


def beside_noise(rng: Rng, probes: int) -> Made:
    """Twenty packets are missing, and another antenna with another number of subcarriers hears only noise."""
    made = disguised(lost_packets(20))(rng, probes)
    own = made.facts.heard[0]
    other = heard(rng.normal(size=(own.rounds.size, DIMENSIONS - 1)), own.rounds, name="eve.1:alice")
    return Made(replace(made.facts, heard=(own, other)), made.true_bits)


def to_and_fro(rng: Rng, probes: int) -> Made:
    """One block: to the wall, back at twice the pace, there at three times the pace, and so on."""
    n = probes // 3
    track = rng.normal(size=(n, DIMENSIONS))
    path = list(range(n))
    for step, forwards in ((2, False), (3, True), (2, False), (2, True), (3, False), (1, True)):
        part = list(range(0, n, step))
        path += part if forwards else part[::-1]
    at = np.array(path[:probes])
    facts = block(rng, noise(rng, track[at], R))
    first = np.isin(np.arange(probes), np.unique(at, return_index=True)[1])
    new = float(first[facts.probe[facts.kept]].mean())
    return Made(facts, facts.kept_bits * new + left(facts, R**2) * (1.0 - new))


def training_thinned(rng: Rng, probes: int) -> Made:
    """The track of the training backwards, without a third of its places."""
    track = rng.normal(size=(probes * 3 // 2, DIMENSIONS))
    at = np.sort(rng.choice(len(track), probes, replace=False))
    rounds = np.arange(len(track))
    before = Earlier("training", True, rounds, seconds(rounds), noise(rng, track, R))
    facts = block(rng, track[at][::-1], rounds=np.arange(probes) + len(track) + 40, earlier=(before,))
    return Made(facts, left(facts, R) + _choices(len(track), probes))


def few_places(number: int) -> Callable[[Rng, int], Made]:
    """A few places in any order: log2 of their number a probe, and each place once."""

    def make(rng: Rng, probes: int) -> Made:
        values = rng.normal(size=(number, DIMENSIONS))
        alice = values[rng.integers(number, size=probes)] + 0.01 * rng.normal(size=(probes, DIMENSIONS))
        facts = block(rng, alice)
        return Made(facts, probes * np.log2(number) + number * DIMENSIONS * BITS + 0.05 * facts.kept_bits)

    return make


# ---------------------------------------------------------------- harmless


def uncorrelated(rho: float) -> Callable[[Rng, int], Made]:
    """AR(1) fading and an Eve with fading of her own."""

    def make(rng: Rng, probes: int) -> Made:
        alice = fading(rng, rho, probes)
        cell = np.searchsorted(edges(BITS)[1:-1], alice)  # the truth is known for fixed cells
        facts = block(rng, alice, value=cell ^ (cell >> 1))
        mine = fading(rng, rho, FIRST_ROUND + probes + 100)
        facts = replace(facts, heard=(heard(mine), heard(fading(rng, rho, mine.shape[0]), name="eve.0:bob")))
        return Made(facts, ar1_surprisal(facts, rho) if rho else left(facts, 0.0))

    return make


def some_correlation(r: float) -> Callable[[Rng, int], Made]:
    def make(rng: Rng, probes: int) -> Made:
        every, alice = series(rng, probes)
        return with_eve(rng, alice, [heard(noise(rng, every, r))], r)

    return make


ATTACKED = (
    Case("Eve hears the same", False, disguised(lambda rng, v: v)),
    Case("Eve walks 40 rounds behind", False, disguised(late(40))),
    Case("Eve walks 40 rounds ahead", False, disguised(late(-40))),
    Case("inverted on one link, the other unrelated", False, inverted_on_one_link),
    Case("one packet missing", False, disguised(lost_packets(1))),
    Case("six packets missing", False, disguised(lost_packets(6))),
    *(Case(f"{n} probes late", False, disguised(late(n))) for n in (2, 5, 12)),
    Case("subcarriers in another order", False, disguised(permuted)),
    Case("subcarriers mirrored, 9 late", False, disguised(lambda rng, v: late(9)(rng, v[:, ::-1]))),
    Case("8 antennas of correlation 0.75", False, antennas(8, 0.75)),
    Case("8 antennas combined as complex fields", False, array(8)),
    Case("codebook swept ten times in one block", False, codebook(0.1, 1, 0)),
    Case("codebook swept again in the next block", False, codebook(0.75, 3, 2)),
    Case("a sweep over several blocks, again", False, codebook(2.5, 6, 5)),
    Case("the same file run again", False, run_again),
    Case("training walked again, backwards", False, training_again),
    Case("walk there and back", False, there_and_back),
    Case("track walked back at another pace", False, another_pace),
    Case("16 elements, patterns public, CSI", False, patterns_public(16, True)),
    Case("4 elements, patterns public, features alone", False, patterns_public(4, False)),
)

HELD_BACK = (
    Case("gain wanders, signs differ", False, disguised(scaled)),
    Case("half rate", False, half_rate),
    Case("packets lost, her clock known", False, other_clock),
    Case("two lags mixed", False, two_lags),
    Case("some dimensions, late", False, some_dimensions),
    Case("only Bob's side", False, bob_only),
    Case("clock drifts", False, disguised(drifting(70))),
    Case("magnitude only", False, magnitude(np.abs)),
    Case("power only", False, magnitude(lambda v: v**2)),
    Case("backwards", False, disguised(lambda rng, v: v[::-1])),
    Case("exponential", False, disguised(lambda rng, v: np.exp(3.0 * v))),
    Case("twenty packets missing", False, disguised(lost_packets(20))),
    Case("forty packets missing", False, disguised(lost_packets(40))),
    Case(
        "twenty packets missing, in another order",
        False,
        disguised(lambda rng, v: permuted(rng, lost_packets(20)(rng, v))),
    ),
    Case("well at times", False, at_times(20)),
    Case("well for moments", False, at_times(8)),
    Case("two antennas, well in turn", False, well_in_turn),
    Case("signs change", False, disguised(signs_change)),
    Case("signs change every round", False, signs_of_rounds),
    Case("order changes", False, disguised(order_changes)),
    Case("labels of one to five bits", False, deep_labels),
    Case("vector labels", False, vector_labels),
    Case("comes back inverted", False, inverted_return),
    Case("dimensions mixed", False, disguised(lambda rng, v: v @ rng.normal(size=(DIMENSIONS, DIMENSIONS)))),
)

REFEREE = (
    Case("each channel with a lag of its own", False, disguised(lags_of_channels)),
    Case("six nodes with a channel each, all late", False, nodes_of_one_channel),
    Case("kept pairs counted", False, counts_kept_pairs),
    Case("two of three rounds received", False, part_received(3, 2)),
    Case("four of five rounds received", False, part_received(5, 4)),
    Case("magnitude only, 12 late", False, magnitude_late),
    Case("signs change every round, 12 late", False, sign_of_rounds_late),
    Case("in reverse by fours", False, disguised(in_reverse_by_fours)),
    Case("twenty packets missing, beside noise", False, beside_noise),
    Case("to and fro at three paces", False, to_and_fro),
    Case("training walked again, thinned out", False, training_thinned),
    Case("four places in any order", False, few_places(4)),
    Case("eight places in any order", False, few_places(8)),
)

HARMLESS = (
    *(Case(f"AR(1) {rho:g}, Eve unrelated", True, uncorrelated(rho)) for rho in (0.0, 0.5, 0.9, 0.99, 0.999)),
    *(Case(f"Eve with correlation {r:g}", True, some_correlation(r)) for r in (0.3, 0.6)),
)

CASES = (*ATTACKED, *HELD_BACK, *REFEREE, *HARMLESS)
