"""Cascade: Bob corrects his string by asking Alice for parities (Brassard and Salvail, Eurocrypt '93).

Everything is expressed in *cuts*. Pass p shuffles the string by a public seed; with the cut c, Bob asks for the parity
of Alice's first c bits in the order of pass p. Two neighbouring known cuts enclose a *leaf*, whose parity is the
difference of both answers. So the parity of a block's other half follows and is not asked for, every part of an
earlier search is used again, and the ledger counts the different cuts that were answered. A leaf whose parity differs
from Bob's contains an odd number of errors; it is cut again until a single bit is left.

Bob's questions are public, so they show where he corrects. What this reveals about other bits depends on the labels of
the bits, which are not known here; `entropy.corrections.correction_leak` charges it after verification.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from testbed.core.errors import DialogueFailed
from testbed.core.ledger import Dialogue, PublicMessage, Receive, Send
from testbed.core.options import StageOptions
from testbed.core.seeds import permutation
from testbed.core.stages import Evidence, ReconciledBits, Reconciler
from testbed.core.types import F32, F64, I64, U8

ASK, ANSWER = "cascade_ask", "cascade_answer"
MAX_ERROR_RATE = 0.25
"""Largest error rate: above it, less than 0.19 bit per bit would remain, from which no key can result."""
MAX_PASSES = 255
EVE_SWEEPS = 40


class Variant(NamedTuple):
    """A row of the table below: the blocks of each pass."""

    first: float
    """Length of the first pass's blocks times the error rate."""
    power_of_two: bool
    """Round the first length up to a power of two."""
    growth: tuple[float, ...]
    """Block length of each pass over that of the first."""
    tail: int
    """Number of further passes of two blocks of n/2; their questions are sent in one message, because all of them are
    asked in any case."""
    weighted: bool
    """Whether a leaf is not cut in its middle but where an odd number of errors is equally likely on both sides
    (`_Beliefs`)."""


VARIANTS = {
    # Brassard and Salvail 1993
    "original": Variant(0.73, False, (1, 2, 4, 8), 0, False),
    # Yan et al., ICNC 2008: 10 passes
    "yanetal": Variant(0.80, False, (1, 5), 8, False),
    # Martinez-Mateo et al., arXiv:1407.3257, option 7: 14 passes
    "option7": Variant(1.00, True, (1, 4), 12, False),
    # This package's own: cuts by `_Beliefs`. The second block is smaller than in option 7, which adds 0.005 to f and
    # saves half of the messages.
    "weighted": Variant(1.00, True, (1, 2), 10, True),
}


class CascadeOptions(StageOptions, frozen=True):
    variant: Literal["original", "yanetal", "option7", "weighted"] = "weighted"
    """Blocks of each pass: a row of `VARIANTS`."""


class Cascade(Reconciler):
    """Interactive reconciliation, leak ≈ f·n·h2(error rate).

    Refuses an error rate above 25 % with DialogueFailed('error_rate_too_high').
    The string may have any length from 1 bit; an estimate that is too low costs efficiency, not correctness.
    """

    options_type = CascadeOptions
    options: CascadeOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.variant = VARIANTS[self.options.variant]

    def alice(self, evidence: Evidence, rng: np.random.Generator) -> Dialogue[ReconciledBits]:
        """Answer Bob's questions until he is done, with at most n bits: more would help only Eve."""
        values, error_rate = evidence.bits.values, evidence.error_rate
        _refuse_hopeless(error_rate)
        n = values.size
        seed: int | None = None
        prefixes: dict[int, U8] = {}
        answered: set[int] = set()
        messages = 0
        while True:
            message = yield Receive(ASK)
            assert message is not None
            messages += 1
            if message.body.get("done") is True:
                return ReconciledBits(values, 0, messages)
            if seed is None:
                seed = _read_seed(message)
            passes, cuts = _read_ask(message, n)
            bits = np.zeros(cuts.size, np.uint8)
            for p in np.unique(passes).tolist():
                if p not in prefixes:
                    prefixes[p] = _prefix_parities(values[permutation(n, seed, "cascade", p)])
                bits[passes == p] = prefixes[p][cuts[passes == p]]
            before = len(answered)
            # The parity of the whole string is the same in every pass and counts once.
            answered.update(np.where(cuts == n, n, passes * (n + 1) + cuts).tolist())
            if len(answered) > n:
                raise DialogueFailed("error_rate_too_high", f"Bob asked for more than {n} parities of {n} bits")
            body = {"bits": np.packbits(bits).tobytes()}
            messages += 1
            yield Send(PublicMessage(kind=ANSWER, body=body, leaked_bits=len(answered) - before))

    def bob(self, evidence: Evidence, rng: np.random.Generator) -> Dialogue[ReconciledBits]:
        """Run the search: open the passes of the variant, search every odd leaf in lockstep, until all parities agree.

        It always ends, because each question contains a cut that was not asked before and there are only n cuts.
        """
        values, error_rate = evidence.bits.values, evidence.error_rate
        _refuse_hopeless(error_rate)
        n = values.size
        search = _Search(values, int(rng.integers(1 << 63)), error_rate, self.variant)
        messages = 0
        for passes, cuts in search.questions():
            body: dict[str, Any] = {"passes": passes.astype("u1").tobytes(), "cuts": cuts.astype("<u4").tobytes()}
            if not messages:
                body["seed"] = search.seed
            yield Send(PublicMessage(kind=ASK, body=body))
            answer = yield Receive(ANSWER)
            assert answer is not None
            messages += 2
            bits = _read_answer(answer, cuts.size)
            if answer.leaked_bits != cuts.size:
                raise DialogueFailed("protocol", f"{answer.leaked_bits} bits counted for {cuts.size} new parities")
            search.learn(passes, cuts, bits)
            if search.asked > n:
                raise DialogueFailed("error_rate_too_high", f"{search.asked} parities were not enough for {n} bits")
        yield Send(PublicMessage(kind=ASK, body={"done": True}))
        return ReconciledBits(search.bits, search.corrected, messages + 1)

    def eavesdrop(self, guess: U8, transcript: Sequence[PublicMessage]) -> U8:
        """Decode Alice's published parities from Eve's guess by belief propagation, at most `EVE_SWEEPS` sweeps.

        Returns the iterate that violates the fewest parities; malformed messages are ignored.
        """
        passes = _published(transcript, guess.size)
        if not passes:
            return guess
        odds = [view.odd(guess) for view in passes]
        best, fewest = guess, sum(int(odd.sum()) for odd in odds)
        beliefs = _Beliefs(guess.size, _likely_rate(passes[0], odds[0]))
        for _ in range(EVE_SWEEPS):
            beliefs.sweep(passes, odds)
            candidate = guess ^ (beliefs.total < 0)
            violated = sum(int(view.odd(candidate).sum()) for view in passes)
            if violated < fewest:
                best, fewest = candidate, violated
            if not violated:
                break
        return best


class _Pass:
    """One shuffled order of the string, with Alice's parities in it."""

    def __init__(self, n: int, seed: int, number: int) -> None:
        self.number = number
        self.order = permutation(n, seed, "cascade", number)
        """(n,) position in this pass → index in the string."""
        self.cuts: I64 = np.zeros(1, np.int64)
        """(known,) ascending; 0 and n are known from the first pass's first answer on."""
        self.alice: U8 = np.zeros(1, np.uint8)
        """(known,) parity of Alice's first `cuts` bits."""

    def learn(self, cuts: I64, parities: U8) -> None:
        """Insert answers; a cut already known keeps its first answer."""
        self.cuts, first = np.unique(np.concatenate([self.cuts, cuts]), return_index=True)
        self.alice = np.concatenate([self.alice, parities])[first]

    def odd(self, bits: U8) -> NDArray[np.bool_]:
        """(leaf,) True where Alice's and these bits' parities differ."""
        return np.diff(self.alice ^ _prefix_parities(bits[self.order])[self.cuts]) != 0


class _Search:
    """Bob's state: his bits, the passes, and the cuts to ask next."""

    def __init__(self, values: U8, seed: int, error_rate: float, variant: Variant) -> None:
        self.values, self.bits = values, values.copy()
        self.seed, self.variant = seed, variant
        self.n = n = values.size
        # A rate of 0 would give no block length; from n bits, no rate below 1/n can be estimated.
        self.rate = min(max(error_rate, 1 / max(n, 1)), MAX_ERROR_RATE)
        self.beliefs = _Beliefs(n, self.rate)
        self.fixed = np.zeros(n, bool)
        self.corrected = 0
        self.asked = 0
        self.passes: list[_Pass] = []

    def questions(self) -> Iterator[tuple[I64, I64]]:
        """Yield (passes, cuts) to ask, each (question,); `learn` must follow before the next."""
        stages = self._stages() if self.n else []
        while stages:
            lengths = stages.pop(0)
            question = self._open(lengths)
            if question[1].size:  # for a single bit there is nothing left to ask
                yield question
            while True:
                odds = self._correct_single_bits()
                if not any(odd.any() for odd in odds):
                    break
                if self.variant.tail and self.corrected > 4 * self.rate * self.n + 10:
                    # The estimate was far too low. With blocks of the right size, far fewer questions find the rest.
                    self.rate = 2 * self.corrected / self.n
                    if self.rate > 2 * MAX_ERROR_RATE or len(self.passes) > MAX_PASSES // 2:
                        raise DialogueFailed("error_rate_too_high", f"{self.corrected} errors so far in {self.n} bits")
                    self.rate = min(self.rate, MAX_ERROR_RATE)
                    self.beliefs = _Beliefs(self.n, self.rate)
                    stages = self._stages()
                    break
                yield self._bisect(odds)

    def learn(self, passes: I64, cuts: I64, parities: U8) -> None:
        """Take Alice's answers to the last question."""
        self.asked += cuts.size
        for p in np.unique(passes).tolist():
            self.passes[p].learn(cuts[passes == p], parities[passes == p])
        total = self.passes[0].alice[-1:]
        for view in self.passes[1:]:
            if view.cuts[-1] != self.n:
                view.learn(np.array([self.n]), total)

    def _stages(self) -> list[list[float]]:
        """Return the block lengths of the passes that are opened together, stage after stage."""
        first = self.variant.first / self.rate
        if self.variant.power_of_two:
            first = 2.0 ** math.ceil(math.log2(first))
        sized = [[first * g] for g in self.variant.growth]
        return sized + ([[self.n / 2] * self.variant.tail] if self.variant.tail else [])

    def _open(self, lengths: list[float]) -> tuple[I64, I64]:
        """Start passes with blocks of about these lengths; the parity of the whole string is asked once."""
        passes, cuts = [], []
        for length in lengths:
            view = _Pass(self.n, self.seed, len(self.passes))
            self.passes.append(view)
            # There are at least two blocks, the last of which may be shorter.
            whole = max(1, min(round(length), (self.n + 1) // 2))
            ends = np.arange(whole, self.n, whole)
            ends = np.append(ends, self.n) if view.number == 0 else ends
            cuts.append(ends)
            passes.append(np.full(ends.size, view.number))
        return np.concatenate(passes), np.concatenate(cuts)

    def _correct_single_bits(self) -> list[NDArray[np.bool_]]:
        """Flip every odd leaf of one bit, and those that follow from it; return each pass's odd leaves."""
        while True:
            odds = [view.odd(self.bits) for view in self.passes]
            single = [
                v.order[v.cuts[:-1][odd & (np.diff(v.cuts) == 1)]] for v, odd in zip(self.passes, odds, strict=True)
            ]
            flips = np.unique(np.concatenate(single))
            if not flips.size:
                return odds
            if self.fixed[flips].any():
                raise DialogueFailed("protocol", "Alice's parities contradict one another")
            self.bits[flips] ^= 1
            self.fixed[flips] = True
            self.corrected += flips.size

    def _bisect(self, odds: list[NDArray[np.bool_]]) -> tuple[I64, I64]:
        """Cut odd leaves of all passes at once, small ones first, as long as they have no bit in common.

        Leaves with a common bit may hold the same error, and searching both would cost twice the parities.
        """
        # In the first pass all bits are equally likely to be wrong.
        weighted = self.variant.weighted and len(self.passes) > 1
        if weighted:
            # The beliefs concern the string as it was before any correction, so that a correction does not change them.
            self.beliefs.sweep(self.passes, [view.odd(self.values) for view in self.passes])
        candidates = [
            (view, view.cuts[:-1][odd], view.cuts[1:][odd]) for view, odd in zip(self.passes, odds, strict=True)
        ]
        candidates = [c for c in candidates if c[1].size]
        candidates.sort(key=lambda c: float(np.mean(c[2] - c[1])))
        claimed = np.zeros(self.n, bool)
        passes, cuts = [], []
        for view, start, end in candidates:
            taken = _cumulative(claimed[view.order])
            free = taken[start] == taken[end]
            start, end = start[free], end[free]
            if not start.size:
                continue
            if weighted:
                below = _cumulative(self.beliefs.weights(view))
                half = (below[start] + below[end]) / 2
                cut = np.searchsorted(below, half)
                cut -= half - below[cut - 1] < below[cut] - half
                cut = np.clip(cut, start + 1, end - 1)
            else:
                cut = (start + end) // 2
            inside = np.zeros(self.n + 1, np.int8)
            inside[start] += 1
            inside[end] -= 1
            claimed[view.order] |= np.cumsum(inside[:-1], dtype=np.int8) > 0
            cuts.append(cut)
            passes.append(np.full(cut.size, view.number))
        return np.concatenate(passes), np.concatenate(cuts)


def _prefix_parities(shuffled: U8) -> U8:
    """(n+1,) parity of the first c bits, c = 0 … n."""
    return np.concatenate([np.zeros(1, np.uint8), np.bitwise_xor.accumulate(shuffled)])


def _cumulative(x: NDArray[Any]) -> NDArray[Any]:
    """(n+1,) sum of the first c values."""
    return np.concatenate([[0], np.cumsum(x)])


class _Beliefs:
    """How likely each bit is wrong, given the leaves with an odd number of errors, by layered sum-product decoding.

    Every leaf is a parity check. The state is kept from one question to the next, so that one sweep per question is
    enough.
    """

    def __init__(self, n: int, rate: float) -> None:
        self.total: F32 = np.full(n, np.log((1 - rate) / rate), np.float32)
        """(n,) ln P(right)/P(wrong) by the error rate and all leaves."""
        self._told: dict[int, F32] = {}
        """For each pass, (n,) in its order: the contribution of its leaves to `total`."""

    def sweep(self, passes: Sequence[_Pass], odds: Sequence[NDArray[np.bool_]]) -> None:
        """Update with every pass once; `odds`: (leaf,) of each, always of the same bits."""
        for view, odd in zip(passes, odds, strict=True):
            own = self.total[view.order] - self._told.get(view.number, np.float32(0))
            soft = _soft(own)
            product = np.multiply.reduceat(soft, view.cuts[:-1]) * np.where(odd, np.float32(-1), np.float32(1))
            others = np.clip(np.repeat(product, np.diff(view.cuts)) / soft, -_SURE, _SURE)
            told = np.log((1 + others) / (1 - others))
            self._told[view.number] = told
            self.total[view.order] = own + told

    def weights(self, view: _Pass) -> F64:
        """Return (n,), in the pass's order, weights whose equal sums halve an odd leaf, according to the other passes.

        If each bit is right with P = (1 + s)/2, an odd number of them is wrong with P = (1 − ∏s)/2. In an odd leaf, the
        odd part is thus equally likely on both sides of a cut for which the two products are equal.
        """
        own = self.total[view.order] - self._told[view.number]
        return np.asarray(-np.log(np.abs(_soft(own).astype(np.float64))) + 1e-12)


_SURE = np.float32(0.9999998)


def _soft(llr: F32) -> F32:
    """Return P(right) − P(wrong), kept away from 0 because products are divided by it."""
    soft = np.tanh(np.clip(llr, -20, 20) / 2)
    soft[np.abs(soft) < 1e-6] = 1e-6
    return soft


def _likely_rate(view: _Pass, odd: NDArray[np.bool_]) -> float:
    """Return the error rate in 0.001 … 0.45 at which these odd leaves of the first pass are likeliest."""
    rates = np.geomspace(1e-3, 0.45, 60)
    agree = (1 - 2 * rates[:, None]) ** np.diff(view.cuts)[None, :]
    p_odd = np.clip((1 - agree) / 2, 1e-12, 0.5)
    return float(rates[np.argmax(np.where(odd, np.log(p_odd), np.log1p(-p_odd)).sum(axis=1))])


def _published(transcript: Sequence[PublicMessage], n: int) -> list[_Pass]:
    """Return the passes that a transcript for n bits shows; [] where Eve missed their beginning."""
    seed: int | None = None
    ask: PublicMessage | None = None
    known: dict[int, _Pass] = {}
    for message in transcript:
        try:
            if message.kind == ASK and message.body.get("done") is not True:
                seed = _read_seed(message) if seed is None else seed
                ask = message
            elif message.kind == ANSWER and ask is not None and seed is not None:
                passes, cuts = _read_ask(ask, n)
                bits = _read_answer(message, cuts.size)
                for p in np.unique(passes).tolist():
                    view = known.setdefault(p, _Pass(n, seed, p))
                    view.learn(cuts[passes == p], bits[passes == p])
                ask = None
        except DialogueFailed:
            ask = None
    if 0 not in known or known[0].cuts[-1] != n:
        return []
    for view in known.values():
        view.learn(np.array([n]), known[0].alice[-1:])
    return [known[p] for p in sorted(known)]


def _refuse_hopeless(error_rate: float) -> None:
    if not 0 <= error_rate <= MAX_ERROR_RATE:
        raise DialogueFailed("error_rate_too_high", f"estimated {error_rate:.3f}, accepted 0 to {MAX_ERROR_RATE}")


def _read_seed(message: PublicMessage) -> int:
    seed = message.body.get("seed")
    if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise DialogueFailed("protocol", f"{ASK}: seed {str(seed)[:40]!r}, accepted: an integer in 0 … 2^63−1")
    return seed


def _read_ask(message: PublicMessage, n: int) -> tuple[I64, I64]:
    passes, cuts = message.body.get("passes"), message.body.get("cuts")
    if not isinstance(passes, bytes) or not isinstance(cuts, bytes) or len(cuts) != 4 * len(passes) or not passes:
        raise DialogueFailed("protocol", f"{ASK}: passes and cuts of different or no length")
    where = np.frombuffer(cuts, "<u4").astype(np.int64)
    if where.min() < 1 or where.max() > n:
        raise DialogueFailed("protocol", f"{ASK}: cuts {where.min()} to {where.max()}, accepted 1 to {n}")
    return np.frombuffer(passes, "u1").astype(np.int64), where


def _read_answer(message: PublicMessage, count: int) -> U8:
    bits = message.body.get("bits")
    if not isinstance(bits, bytes) or len(bits) != (count + 7) // 8:
        raise DialogueFailed("protocol", f"{ANSWER}: not {count} packed bits")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count)
