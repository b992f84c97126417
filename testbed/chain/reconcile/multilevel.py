"""Multilevel reconciliation with multistage soft decoding (Wachsmann, Fischer and Huber 1999; Bloch et al. 2006).

Alice's labels (`quantize.equiprobable`) are decoded place by place, least significant bit first. For each place Bob
computes how likely his analogue value makes 0 and 1, given the less significant bits that he has already decoded, and
decodes Alice's syndrome with that. The bits of the first places are nearly random to Bob: they are sent in the clear,
which costs one bit each and reveals nothing else. Those of the last places are certain: nothing is sent for them. Codes
are needed only in between, with rates that follow from each place's conditional entropy (cf. Jouguet, Elkouss and
Kunz-Jacques 2014).

Bob estimates the channel from the sacrificed symbols, which are public: a noise level for each dimension and the share
of outliers, by maximum likelihood. He publishes the plan (which dimensions' bits form a frame, how many parities).
Alice publishes the syndromes of all places in one message, each with a checksum of its frame, because many strings have
the same short syndrome and a decoder may find a wrong one. For frames that fail Bob asks for more parities, a few per
cent at a time (`_code`), then in growing steps, then for the syndrome of a code of a far lower rate, and finally for
the bits themselves. If a wrong bit remains unnoticed, the verification tags differ and the block makes no key.

Without features (bare strings) every bit is a symbol of one place, and the channel is a binary symmetric one.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field, replace
from math import ceil, log2, sqrt
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.chain.reconcile._code import code
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import Dialogue, PublicMessage, Receive, Send
from testbed.core.options import StageOptions
from testbed.core.seeds import permutation
from testbed.core.stages import Evidence, ReconciledBits, Reconciler
from testbed.core.types import F64, I64, U8, Bits
from testbed.entropy.gaussian_labels import DOUBTS, Symbols, bit_llr, fit_noise, level_entropies, noises, normal_scores

PLAN, SYNDROME, REPLY = "multilevel_plan", "multilevel_syndrome", "multilevel_reply"
MAX_ERROR_RATE = 0.25
_LONGEST_FRAME = 131_072
_CLEAR = 0.94
"""Conditional entropy from which on bits are sent in the clear."""
_CLASSES = (0.1, 0.4)
"""Conditional entropies that divide the bits of a place into classes with a frame each: a code works best for bits of
similar entropy."""
_LEAST_FRAME = 3000
"""Least number of bits of a class; a class with fewer bits shares a frame with the next class."""
_LEAST_CHECKS = 8
_SUM_BITS = 16
"""Number of bits of a coded frame's checksum. CRC-CCITT is linear, so it reveals no more than as many parities do."""
_EVEN_STEPS, _GROWTH = 10, 2.0
"""Number of further messages of equal size, and the factor by which each one after them grows."""
_LAST_CODE = 12
"""Number of further messages after which the bits themselves are sent, once all checks of the code are split."""
_SKIP = 0.01
"""Largest expected number of wrong bits of a place for which nothing is sent."""
_LEAST_PUBLISHED = 8
"""Least number of sacrificed symbols for an estimate of the channel; with fewer, the string is treated as bare bits."""
_UNSEEN = 0.1
"""Number of outliers that is assumed where none was found among the sacrificed symbols."""
_PRIOR = 2.0
"""Weight of the mean over all dimensions' sacrificed symbols in a dimension's own estimate, in symbols."""


class MultilevelOptions(StageOptions, frozen=True):
    rounds: Annotated[int, Meta(ge=0, le=40)] = 16
    """How many times Bob may ask for more parities; from 16 on, the last messages are the bits themselves."""
    step: Annotated[float, Meta(ge=0.005, le=0.2)] = 0.015
    """Share of a frame's parities that each of the first further messages adds."""
    margin: Annotated[float, Meta(ge=-3, le=6)] = 0.0
    """Parities of the first message above the code's threshold, in standard deviations of the number that it needs."""


class Multilevel(Reconciler):
    """Soft-decision reconciliation of binary labels of equally likely cells.

    Raises DialogueFailed('not_decoded') where the last attempt failed.
    """

    shows_corrections = False
    most_errors = 0.5

    options_type = MultilevelOptions
    options: MultilevelOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        self._rounds, self._step, self._margin = o.rounds, o.step, o.margin

    def alice(self, evidence: Evidence, rng: np.random.Generator) -> Dialogue[ReconciledBits]:
        """Publish the syndromes of Bob's plan, then more parities of the frames for which he asks."""
        labels = _Labels.of(evidence)
        message = yield Receive(PLAN)
        assert message is not None
        frames = _read_plan(message, labels)
        values = labels.values
        yield Send(_parities([f.first(values[f.positions]) for f in frames]))
        messages = 2
        while True:
            reply = yield Receive(REPLY)
            assert reply is not None
            messages += 1
            asked = [frames[k] for k in _read_reply(reply, len(frames))]
            if not asked:
                return ReconciledBits(values, 0, messages)
            if any(f.asked >= self._rounds for f in asked):
                raise DialogueFailed("protocol", f"{REPLY}: a frame more than {self._rounds} times")
            messages += 1
            yield Send(_parities([f.more(values[f.positions], self._step) for f in asked]))

    def bob(self, evidence: Evidence, rng: np.random.Generator) -> Dialogue[ReconciledBits]:
        """Plan, decode place after place, and ask for more parities where a frame fails."""
        labels = _Labels.of(evidence)
        channel = _Channel.of(evidence, labels)
        seed = int(rng.integers(1 << 63))
        frames = _plan(labels, channel, seed, self._margin)
        yield Send(_plan_message(frames, labels, seed))
        message = yield Receive(SYNDROME)
        assert message is not None
        for f, bits in zip(frames, _split(message, [f.first_count for f in frames]), strict=True):
            f.told, f.checksum = bits[: f.checks], bits[f.checks :]
        messages = 2
        for place in range(labels.most):
            channel.settle(place)
            open_frames = [k for k, f in enumerate(frames) if f.place == place]
            while True:
                open_frames = [k for k in open_frames if not channel.decode(frames[k])]
                if not open_frames:
                    break
                again = [frames[k] for k in open_frames]
                if any(f.asked >= self._rounds for f in again):
                    detail = f"{len(again)} of {len(frames)} frames, place {place}, after {self._rounds} more messages"
                    raise DialogueFailed("not_decoded", detail)
                yield Send(_reply(open_frames, len(frames)))
                message = yield Receive(SYNDROME)
                assert message is not None
                messages += 2
                for f, bits in zip(again, _split(message, [f.next_count(self._step) for f in again]), strict=True):
                    f.learn(bits, self._step)
        channel.settle(labels.most)
        yield Send(_reply([], len(frames)))
        return ReconciledBits(channel.out, int(np.count_nonzero(channel.out != evidence.bits.values)), messages + 1)


@dataclass(frozen=True, slots=True)
class _Labels:
    """Positions of the bits in the labels, the same at both ends. A bare string has symbols of one bit in dimension
    0."""

    values: U8
    place: I64
    """(bit,) 0 for the least significant one."""
    symbol: I64
    dimension: I64
    """(bit,)."""
    symbols: Symbols
    depth: I64
    """(dimension,) bits of a label."""
    soft: bool

    @property
    def most(self) -> int:
        return int(self.depth.max(initial=0))

    @classmethod
    def of(cls, evidence: Evidence) -> _Labels:
        bits, published = evidence.bits, evidence.published
        symbols = Symbols.of(bits)
        enough = published is not None and Symbols.of(published).first.size >= _LEAST_PUBLISHED
        if evidence.features is None or not enough or not symbols.whole:
            n = bits.values.size
            bare = replace(bits, probe=np.arange(n), dimension=np.zeros(n, np.int64), level_bit=np.zeros(n, np.int64))
            return cls._laid_out(bare, Symbols.of(bare), False)
        return cls._laid_out(bits, symbols, True)

    @classmethod
    def _laid_out(cls, bits: Bits, symbols: Symbols, soft: bool) -> _Labels:
        symbol = np.repeat(np.arange(symbols.first.size), symbols.bits)
        depth = np.zeros(int(bits.dimension.max(initial=-1)) + 1, np.int64)
        depth[symbols.dimension] = symbols.bits
        place = symbols.bits[symbol] - 1 - bits.level_bit
        return cls(bits.values, place, symbol, bits.dimension, symbols, depth, soft)


@dataclass(slots=True)
class _Frame:
    """Bits of one place that are decoded together."""

    place: int
    dimensions: list[int]
    positions: I64
    """(bit,) index in the string."""
    checks: int
    asked: int = 0
    """How often Bob asked for more."""
    told: U8 = field(default_factory=lambda: np.zeros(0, np.uint8))
    halves: U8 = field(default_factory=lambda: np.zeros(0, np.uint8))
    """(split,) parities of the split checks of the present code."""
    checksum: U8 = field(default_factory=lambda: np.zeros(0, np.uint8))

    @property
    def clear(self) -> bool:
        return self.checks == self.positions.size

    @property
    def first_count(self) -> int:
        """Return the number of bits of the first message."""
        return self.checks if self.clear else self.checks + _SUM_BITS

    def first(self, bits: U8) -> U8:
        """Return the first message: parities and checksum, or the bits."""
        return bits if self.clear else np.concatenate([code(bits.size, self.checks).syndrome(bits)[0], _checksum(bits)])

    def next_splits(self, step: float) -> tuple[int, int]:
        """Return the splits of the next message: from, to (excluded); equal where none are left."""
        n, start = self.positions.size, self.halves.size
        limit = 0 if self.clear else min(code(n, self.checks).n_splits, n - self.checks)
        size = max(step * self.checks, 0.4 * sqrt(n)) * _GROWTH ** max(0, self.asked - _EVEN_STEPS + 1)
        return start, min(limit, start + ceil(size))

    def _afresh(self) -> int:
        """Return the number of parities of the code that follows where no split is left; its rate is far lower."""
        n = self.positions.size
        checks = 3 * self.checks + 64
        return n if checks > 0.6 * n or self.asked >= _LAST_CODE else checks

    def next_count(self, step: float) -> int:
        """Return the number of bits of the next message."""
        start, stop = self.next_splits(step)
        return stop - start or self._afresh()

    def more(self, bits: U8, step: float) -> U8:
        """Return the next message's parities and count it."""
        start, stop = self.next_splits(step)
        if stop > start:
            out = code(bits.size, self.checks).syndrome(bits, stop)[1][start:]
        else:
            checks = self._afresh()
            out = bits if checks == bits.size else code(bits.size, checks).syndrome(bits)[0]
        self.learn(out, step)
        return out

    def learn(self, told: U8, step: float) -> None:
        """Take the next message."""
        start, stop = self.next_splits(step)
        if stop > start:
            self.halves = np.concatenate([self.halves, told])
        else:
            self.told, self.checks, self.halves = told, self._afresh(), self.halves[:0]
        self.asked += 1

    def decode(self, llr: F64) -> U8 | None:
        """Return the frame's bits according to ln P(0)/P(1), (bit,), and the messages; None if none are found."""
        if self.clear:
            return self.told
        bits = code(self.positions.size, self.checks).decode(llr, self.told, self.halves, 200)
        return bits if bits is not None and np.array_equal(_checksum(bits), self.checksum) else None


class _Channel:
    """Bob's model of Alice's bits: his scores, the noise of each dimension, and the decoded bits (`out`)."""

    def __init__(self, labels: _Labels, own: U8, score: F64, rho: F64, doubt: float, error_rate: float) -> None:
        self.labels, self._own, self._score, self._rho, self._rate = labels, own, score, rho, error_rate
        self._doubt = doubt
        self.out = np.zeros(own.size, np.uint8)
        self._known = np.zeros(own.size, np.bool_)
        self._cell = np.zeros(labels.symbols.first.size, np.int64)
        self._settled = 0

    @classmethod
    def of(cls, evidence: Evidence, labels: _Labels) -> _Channel:
        own = evidence.bits.values
        if not labels.soft:
            if not 0 <= evidence.error_rate <= MAX_ERROR_RATE:
                raise DialogueFailed(
                    "error_rate_too_high", f"estimated {evidence.error_rate:.3f}, accepted 0 to {MAX_ERROR_RATE}"
                )
            rate = max(evidence.error_rate, 1 / max(own.size, 1))
            return cls(labels, own, np.zeros(0), np.zeros(0), 0.0, min(rate, MAX_ERROR_RATE))
        assert evidence.features is not None
        assert evidence.published is not None
        z = np.nan_to_num(normal_scores(evidence.features.values))
        symbols, public = labels.symbols, Symbols.of(evidence.published)
        likely = np.zeros((labels.depth.size, len(DOUBTS), noises().size))
        for d in np.flatnonzero(labels.depth):
            rows = public.dimension == d
            if rows.any():
                likely[d] = fit_noise(public.value[rows], int(public.bits[rows][0]), z[public.probe[rows], d])
        likely += likely.sum(axis=0) * (_PRIOR / max(public.first.size, _PRIOR))
        which = int(likely.max(axis=2).sum(axis=0).argmax())
        rho = np.sqrt(1 - noises()[np.argmax(likely[:, which], axis=1)])
        # Even if no sacrificed symbol is an outlier, there may be some among the others.
        doubt = max(DOUBTS[which], _UNSEEN / public.first.size)
        return cls(labels, own, z[symbols.probe, symbols.dimension], rho, doubt, evidence.error_rate)

    def entropy(self, dimension: int, place: int) -> float:
        """Return the conditional entropy of a place's bits."""
        if not self.labels.soft:
            return _h2(self._rate)
        return level_entropies(float(self._rho[dimension]), int(self.labels.depth[dimension]), self._doubt)[place]

    def decode(self, f: _Frame) -> bool:
        """Decode a frame from the messages so far; return whether that succeeded."""
        bits = f.told if f.clear else f.decode(self._llr(f.positions, f.place))
        if bits is None:
            return False
        self._put(f.positions, f.place, bits)
        return True

    def settle(self, place: int) -> None:
        """Decide the bits of the lower places that are in no frame by the model alone."""
        for k in range(self._settled, place):
            rest = np.flatnonzero(~self._known & (self.labels.place == k))
            self._put(rest, k, (self._llr(rest, k) < 0).astype(np.uint8))
        self._settled = place

    def _put(self, positions: I64, place: int, bits: U8) -> None:
        self.out[positions] = bits
        self._known[positions] = True
        self._cell[self.labels.symbol[positions]] += bits.astype(np.int64) << place

    def _llr(self, positions: I64, place: int) -> F64:
        if not self.labels.soft:
            return np.asarray(np.log((1 - self._rate) / self._rate) * (1.0 - 2.0 * self._own[positions]))
        symbol, dimension = self.labels.symbol[positions], self.labels.dimension[positions]
        out = np.empty(positions.size)
        for d in np.unique(dimension).tolist():
            rows = dimension == d
            of = symbol[rows]
            rho, m = float(self._rho[d]), int(self.labels.depth[d])
            out[rows] = bit_llr(self._score[of], rho, m, place, self._cell[of], self._doubt)
        return out


def _plan(labels: _Labels, channel: _Channel, seed: int, margin: float) -> list[_Frame]:
    """Choose which bits form a frame, and the number of first parities of each."""
    counts = np.bincount(labels.symbols.dimension, minlength=labels.depth.size)
    out: list[_Frame] = []
    for place in range(labels.most):
        classes: list[list[tuple[int, float]]] = [[] for _ in range(len(_CLASSES) + 2)]
        for d in np.flatnonzero(labels.depth > place).tolist():
            h = channel.entropy(d, place)
            if h * counts[d] >= _SKIP or not labels.soft:
                k = len(_CLASSES) + 1 if h >= _CLEAR else int(np.searchsorted(_CLASSES, h))
                classes[k].append((d, h))
        for k in range(len(_CLASSES)):  # a class of too few bits joins the next one
            if sum(int(counts[d]) for d, _ in classes[k]) < _LEAST_FRAME:
                classes[k], classes[k + 1] = [], classes[k] + classes[k + 1]
        for k, members in enumerate(classes):
            if not members:
                continue
            dimensions = sorted(d for d, _ in members)
            n = sum(int(counts[d]) for d in dimensions)
            h = sum(int(counts[d]) * value for d, value in members) / n
            for positions in _positions(labels, place, dimensions, seed):
                size = positions.size
                checks = size if k == len(classes) - 1 else first_checks(size, h, margin)
                out.append(_Frame(place, dimensions, positions, checks))
    return out


def first_checks(n: int, entropy: float, margin: float) -> int:
    """Return the number of first parities for n bits of this conditional entropy; n: the bits themselves are sent.

    The codes' threshold was measured on labels at 10 to 25 dB: 0.01 to 0.03 bit per bit above the entropy. The number
    that n bits need varies about as on the binary symmetric channel of this entropy (Strassen 1962).
    """
    e = _error_rate(entropy)
    spread = sqrt(e * (1 - e) * n) * log2((1 - e) / e)
    m = max(_LEAST_CHECKS, ceil(n * (entropy + 0.018 * min(1.0, sqrt(entropy / 0.1))) + margin * spread))
    # A short frame that cannot be decoded is published twice: its parities, and then its bits.
    return n if m + _SUM_BITS + 2 * spread >= 0.97 * n or n < 4 * _LEAST_CHECKS else m


def _positions(labels: _Labels, place: int, dimensions: list[int], seed: int) -> list[I64]:
    """Return the frames' bits: a public shuffle of these dimensions' bits of a place, cut into nearly equal parts."""
    own = np.flatnonzero((labels.place == place) & np.isin(labels.dimension, dimensions))
    shuffled = own[permutation(own.size, seed, "multilevel", place, dimensions[0])]
    return list(np.array_split(shuffled, ceil(own.size / _LONGEST_FRAME)))


def _plan_leak(frames: list[_Frame], labels: _Labels) -> int:
    """Return what a plan can reveal: each dimension's class at each place, and each frame's parities."""
    return 3 * int(labels.depth.sum()) + sum(int(f.positions.size).bit_length() for f in frames)


def _plan_message(frames: list[_Frame], labels: _Labels, seed: int) -> PublicMessage:
    groups: list[list[Any]] = []
    for f in frames:
        if groups and groups[-1][:2] == [f.place, f.dimensions]:
            groups[-1][2].append(f.checks)
        else:
            groups.append([f.place, f.dimensions, [f.checks]])
    return PublicMessage(kind=PLAN, body={"seed": seed, "groups": groups}, leaked_bits=_plan_leak(frames, labels))


def _read_plan(message: PublicMessage, labels: _Labels) -> list[_Frame]:
    seed, groups = message.body.get("seed"), message.body.get("groups")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63 or not isinstance(groups, list):
        raise DialogueFailed("protocol", f"{PLAN}: seed {str(seed)[:40]!r} or groups are unusable")
    out: list[_Frame] = []
    taken: set[tuple[int, int]] = set()
    for group in groups:
        place, dimensions, checks = group
        cells = {(place, d) for d in dimensions}
        if (
            any(type(x) is not int for x in [place, *dimensions, *checks])
            or not dimensions
            or dimensions != sorted({d for _, d in cells})
            or cells & taken
            or not all(0 <= d < labels.depth.size and 0 <= place < labels.depth[d] for d in dimensions)
            or (out and place < out[-1].place)
        ):
            raise DialogueFailed("protocol", f"{PLAN}: {str(group)[:60]} is no set of bits of this string")
        taken |= cells
        frames = _positions(labels, place, dimensions, seed)
        if len(checks) != len(frames) or any(
            not (m == p.size or _LEAST_CHECKS <= m < p.size) for m, p in zip(checks, frames, strict=True)
        ):
            raise DialogueFailed("protocol", f"{PLAN}: checks {str(checks)[:40]} do not fit {len(frames)} frames")
        out += [_Frame(place, dimensions, p, m) for p, m in zip(frames, checks, strict=True)]
    if message.leaked_bits != _plan_leak(out, labels):
        raise DialogueFailed("protocol", f"{PLAN} counts {message.leaked_bits} bits")
    return out


def _parities(parts: list[U8]) -> PublicMessage:
    bits = np.concatenate([np.zeros(0, np.uint8), *parts])
    return PublicMessage(kind=SYNDROME, body={"bits": np.packbits(bits).tobytes()}, leaked_bits=bits.size)


def _checksum(bits: U8) -> U8:
    sum_ = binascii.crc_hqx(np.packbits(bits).tobytes(), 0xFFFF)
    return np.unpackbits(np.array([sum_], ">u2").view(np.uint8))


def _split(message: PublicMessage, counts: list[int]) -> list[U8]:
    bits, count = message.body.get("bits"), sum(counts)
    if not isinstance(bits, bytes) or len(bits) != (count + 7) // 8 or message.leaked_bits != count:
        raise DialogueFailed("protocol", f"{message.kind}: not {count} packed bits, counted as such")
    told = np.unpackbits(np.frombuffer(bits, np.uint8), count=count)
    return np.split(told, np.cumsum(counts)[:-1]) if counts else []


def _reply(failed: list[int], n_frames: int) -> PublicMessage:
    """Return the message that names the failed frames: one bit for each failure, at the end one for each success."""
    return PublicMessage(kind=REPLY, body={"failed": failed}, leaked_bits=len(failed) or n_frames)


def _read_reply(message: PublicMessage, n_frames: int) -> list[int]:
    failed = message.body.get("failed")
    if not isinstance(failed, list) or any(type(k) is not int or not 0 <= k < n_frames for k in failed):
        raise DialogueFailed("protocol", f"{REPLY}: failed {str(failed)[:40]}, accepted: numbers of frames")
    if failed != sorted(set(failed)) or message.leaked_bits != (len(failed) or n_frames):
        raise DialogueFailed("protocol", f"{REPLY}: counts {message.leaked_bits} bits for {len(failed)} frames")
    return failed


def _h2(p: float) -> float:
    return -p * log2(p) - (1 - p) * log2(1 - p)


def _error_rate(entropy: float) -> float:
    """Return the error rate of the binary symmetric channel with this conditional entropy."""
    low, high = 1e-12, 0.5 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _h2(middle) < entropy else (low, middle)
    return high
