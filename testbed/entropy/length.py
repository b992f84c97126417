"""How long a key may be: the length rule, term by term.

    ℓ = ⌊H − leaked − 2·(e + 2 + log2 B) − log2(number of possible lengths)⌋, in steps of 64,

H is the entropy by `entropy.judge`, or that given an assumed Eve, or the entropy of the draw of secret surface states,
whichever is least; e = −log2 ε of a whole run of B blocks. The budget of ε, in quarters:

    ε_PE  2^−(e+2)   over all blocks and attacks: an attack is better than its confidence limit
    ε_EC  2^−(e+2)   both sides verify strings that differ
    ε_PA  2^−(e+2)   over all blocks: the error of hashing (leftover hash lemma: Impagliazzo, Levin and Luby 1989; with
                     side information and smoothing, Renner 2005; each block gets ε_PA/B, hence 2·(e + 2 + log2 B))
    The fourth quarter is for smoothing in the rule "modelled".

The leftover hash lemma holds for a length that is fixed beforehand. Here the length follows from the string and is
published, and a message with one of k possible contents costs log2 k bits (Dodis, Ostrovsky, Reyzin and Smith 2008,
lemma 2.2: average min-entropy). This is why lengths come in steps, and why no entropy is published.

The leftover hash lemma, the charge for messages and the sum over blocks are proofs *given H*. H is an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor, log2, pi

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.entropy.facts import Facts
from testbed.entropy.gaussian_labels import renyi_entropy
from testbed.entropy.judge import JUDGING, Finding, Judgement, Rule

STEP = 64
TAG_BITS = 128
SURFACE_COUNTED = "everything but the surface's patterns, and so at most the bits with which these were drawn"
_ORDERS = 1.0 + np.geomspace(1e-4, 1.0, 25)
_MOST_R2 = 0.999999
_NOISE = 0.01
"""Noise power of an assumed array's antenna, relative to its signal: 20 dB."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Probability with which a run's keys may fail, and the number of blocks that share it."""

    epsilon_log2: int = 64
    """e: all keys of a run together differ from ideal ones by at most 2**−e, given H."""
    blocks: int = 1
    """B: number of blocks that the run plans."""

    def __post_init__(self) -> None:
        if not 1 <= self.epsilon_log2 <= 256:
            raise InputError(f"epsilon_log2 = {self.epsilon_log2}; accepted: 1 to 256")
        if self.blocks < 1:
            raise InputError(f"blocks = {self.blocks}; accepted: 1 or more")

    @property
    def quarter_log2(self) -> int:
        """log2 of each of ε_PE, ε_EC and ε_PA over the run."""
        return -(self.epsilon_log2 + 2)

    @property
    def hashing_bits(self) -> float:
        """2·log2 1/ε_PA of one block."""
        return 2.0 * (self.epsilon_log2 + 2 + log2(self.blocks))

    def check_tag(self, string_bits: int, tag_bits: int = TAG_BITS) -> None:
        """Raise InputError where a tag is too short for ε_EC: for n bits and tags of t bits, (n/t + 1)·2^−t is too
        large."""
        log2_failure = log2(self.blocks) + log2(string_bits / tag_bits + 1.0) - tag_bits
        if log2_failure > self.quarter_log2:
            raise InputError(
                f"ε = 2^−{self.epsilon_log2} over {self.blocks} blocks asks more of error detection than a tag of "
                f"{tag_bits} bits gives (2^{log2_failure:.0f}); accepted: up to 2^−{floor(-log2_failure) - 2}"
            )


@dataclass(frozen=True, slots=True)
class AssumedEve:
    """An Eve that was not measured, as the user assumes her. Give a correlation or a distance."""

    correlation: float | None = None
    """Correlation of one antenna's feature with Alice's, as normal scores, 0 to 1."""
    distance_wavelengths: float | None = None
    """Distance d of her nearest antenna from Bob's (or Alice's), in scattering from all sides. The correlation is the
    largest |J0(2πx)| of all distances x from d on, so that the zeros of J0 do not count in the key's favour."""
    antennas: int = 1

    def __post_init__(self) -> None:
        if (self.correlation is None) == (self.distance_wavelengths is None):
            raise InputError("an assumed Eve has a correlation or a distance in wavelengths; accepted: one of both")
        if self.correlation is not None and not 0.0 <= self.correlation <= 1.0:
            raise InputError(f"assumed correlation = {self.correlation}; accepted: 0 to 1")
        if self.distance_wavelengths is not None and not 0.0 <= self.distance_wavelengths < float("inf"):
            raise InputError(f"assumed distance = {self.distance_wavelengths} wavelengths; accepted: 0 or more")
        if not 1 <= self.antennas <= 64:
            raise InputError(f"assumed antennas = {self.antennas}; accepted: 1 to 64")

    def with_antennas(self, antennas: int) -> AssumedEve:
        return AssumedEve(self.correlation, self.distance_wavelengths, antennas)

    @property
    def joint_correlation(self) -> float:
        """Multiple correlation of Alice's score with all antennas together.

        From a correlation: antennas whose noise and fading are independent of one another, R² = A·ρ², which is the
        largest value for A such antennas. From a distance: a row of antennas half a wavelength apart that leads away
        from Bob, 20 dB above its noise, the best linear combination.
        """
        if self.correlation is not None:
            return float(np.sqrt(min(_MOST_R2, self.antennas * self.correlation**2)))
        assert self.distance_wavelengths is not None
        return float(np.sqrt(min(_MOST_R2, _array_r2(self.distance_wavelengths, self.antennas))))

    @property
    def words(self) -> str:
        """The assumption in words, for the report."""
        n = "one antenna" if self.antennas == 1 else f"{self.antennas} antennas"
        if self.correlation is not None:
            return f"Eve has {n}, each with correlation {self.correlation:g} at most"
        far = "1 wavelength" if self.distance_wavelengths == 1 else f"{self.distance_wavelengths:g} wavelengths"
        return f"Eve has {n}, none nearer than {far}, in scattering from all sides"

    def min_entropy(self, facts: Facts, budget: Budget) -> float:
        """Return the smooth min-entropy in bits of the kept labels given her, by the Gaussian copula model.

        Probes are independent in this model; the portfolio accounts for what can be predicted from other probes.
        """
        rho = round(self.joint_correlation, 6)
        if rho == 0.0:
            return float(facts.kept_bits)
        depth, count = np.unique(facts.bits[~facts.published], return_counts=True)
        price = budget.epsilon_log2 + 3 + log2(budget.blocks)
        bits = [
            sum(int(n) * renyi_entropy(rho, int(m), float(a)) for m, n in zip(depth, count, strict=True))
            - price / (float(a) - 1.0)
            for a in _ORDERS
        ]
        return max(0.0, *bits)


def _array_r2(distance: float, antennas: int) -> float:
    from scipy.special import j0

    place = np.arange(antennas) / 2.0
    own = np.asarray(j0(2 * pi * np.abs(place[:, None] - place[None, :]))) + _NOISE * np.eye(antennas)
    across: F64 = np.asarray(j0(2 * pi * (distance + np.arange(0.0, 1.0, 0.02)[:, None] + place[None, :])))
    return float((across * np.linalg.solve(own, across.T).T).sum(axis=1).max())


@dataclass(frozen=True, slots=True)
class Term:
    """A line of the ledger: bits that are added or subtracted (negative)."""

    name: str
    bits: float
    why: str


@dataclass(frozen=True, slots=True)
class EveRow:
    """A row of "Who could know this key"."""

    name: str
    knows: str
    guess_probability: float | None
    """Probability of guessing a whole label; None where she is assumed."""
    upper_bound: float | None
    key_bits: int
    """Length of the key if she were the only Eve."""


@dataclass(frozen=True, slots=True)
class KeyLength:
    """The length of a block's key and how it was found."""

    bits: int
    """ℓ, a multiple of 64; 0: no key."""
    rule: Rule
    budget: Budget
    min_entropy_bits: float
    """H; never published."""
    terms: tuple[Term, ...]
    """In the order of the rule; they add up to ℓ before rounding down, where that is positive."""
    limiting: str | None
    """The Eve who set the length; None where nothing was judged."""
    eves: tuple[EveRow, ...]
    sensitivity: tuple[EveRow, ...]
    assumptions: tuple[str, ...]
    failure: str | None = None
    """The reason why there is no key, where there is none."""
    epsilon_log2: dict[str, float] = field(default_factory=dict)
    """log2 of total, estimation, correction, amplification over the whole run."""


def key_length(
    facts: Facts,
    judgement: Judgement,
    leaked_bits: int,
    budget: Budget,
    rule: Rule = "estimated",
    assumed: AssumedEve | None = None,
    published_bits: int = 0,
    sensitivity: Sequence[int] = (2, 4, 8),
) -> KeyLength:
    """Return the length of a block's key.

    leaked_bits: the ledger's total of what was published about the kept string, tags included.
    published_bits: bits of kept symbols that were published where symbols are not published whole.
    assumed: the Eve who is assumed where none was measured, or beside the measured one; the least length counts.
    """
    if leaked_bits < 0 or published_bits < 0:
        raise InputError(f"leaked_bits = {leaked_bits}, published_bits = {published_bits}; accepted: 0 or more")
    ask = _Question(facts, judgement, leaked_bits + published_bits, budget, rule)
    measured = judgement.worst(rule)
    h, limiting = (0.0, None) if measured is None else (judgement.bits(measured, rule), measured.attack)
    if assumed is not None and measured is not None and (guess := ask.assumed(assumed)) < h:
        h, limiting = guess, "assumed"
    if (drawn := facts.surface_bits) is not None and drawn < h:
        h, limiting = drawn, "surface_counted"
    if judgement.failures:
        h, limiting = 0.0, judgement.failures[0].attack
    terms = ask.terms(h, leaked_bits, published_bits, limiting)
    bits = ask.rounded(h)
    return KeyLength(
        bits=bits,
        rule=rule,
        budget=budget,
        min_entropy_bits=h,
        terms=terms,
        limiting=limiting,
        eves=ask.rows(assumed),
        sensitivity=ask.sensitivity(assumed, sensitivity),
        assumptions=_assumptions(facts, judgement, rule, assumed),
        failure=None if bits else _why(judgement, measured, terms),
        epsilon_log2={
            "total": float(-budget.epsilon_log2),
            **dict.fromkeys(("estimation", "correction", "amplification"), float(budget.quarter_log2)),
        },
    )


@dataclass(frozen=True, slots=True)
class _Question:
    """All terms of the length rule except H."""

    facts: Facts
    judgement: Judgement
    told: int
    budget: Budget
    rule: Rule

    @property
    def _lengths_bits(self) -> float:
        return log2(self.judgement.kept_bits // STEP + 1)

    def rounded(self, h: float) -> int:
        whole = floor(h - self.told - self.budget.hashing_bits - self._lengths_bits)
        return max(0, whole // STEP * STEP)

    def assumed(self, eve: AssumedEve) -> float:
        return eve.min_entropy(self.facts, self.budget)

    def terms(self, h: float, leaked: int, published: int, limiting: str | None) -> tuple[Term, ...]:
        out = [
            Term(
                "min_entropy",
                h,
                f"min-entropy of {self.judgement.kept_bits} label bits given {limiting or 'no Eve'}",
            )
        ]
        if published:
            out.append(Term("published", -float(published), "bits of kept symbols that were published"))
        out.append(Term("leaked", -float(leaked), "bits that public messages reveal of the kept string"))
        out.append(Term("hashing", -self.budget.hashing_bits, "2·log2 1/ε_PA, leftover hash lemma"))
        out.append(Term("lengths", -self._lengths_bits, "the length follows from the string and is published"))
        return tuple(out)

    def row(self, finding: Finding) -> EveRow:
        bits = 0 if self.judgement.failures else self.rounded(self.judgement.bits(finding, self.rule))
        return EveRow(finding.attack, finding.knows, finding.guess_probability, finding.upper_bound, bits)

    def rows(self, assumed: AssumedEve | None) -> tuple[EveRow, ...]:
        out = [self.row(f) for f in self.judgement.findings]
        if assumed is not None:
            out.append(EveRow("assumed", assumed.words, None, None, self.rounded(self.assumed(assumed))))
        if (drawn := self.facts.surface_bits) is not None:
            out.append(EveRow("surface_counted", SURFACE_COUNTED, None, None, self.rounded(drawn)))
        return tuple(sorted(out, key=lambda r: (r.key_bits, -(r.guess_probability or 0.0))))

    def sensitivity(self, assumed: AssumedEve | None, antennas: Sequence[int]) -> tuple[EveRow, ...]:
        """Return the key's length under other assumptions; it never exceeds that under the assumptions of this run."""
        worst = self.judgement.worst(self.rule)
        h = 0.0 if self.judgement.failures or worst is None else self.judgement.bits(worst, self.rule)
        if (drawn := self.facts.surface_bits) is not None:
            h = min(h, drawn)
        out = []
        if assumed is not None:
            for n in antennas:
                other = assumed.with_antennas(max(n, assumed.antennas))
                key = self.rounded(min(h, self.assumed(other)))
                out.append(EveRow(f"{n} antennas", other.words, None, None, key))
            h = min(h, self.assumed(assumed))
        if self.facts.states is not None:
            out.append(self._pattern_known(h))
        out.append(self._back_later(h))
        return tuple(out)

    def _pattern_known(self, h: float) -> EveRow:
        """Return the length if the secret patterns become known: by the chain rule H falls by at most `drawn_bits`."""
        drawn = self.facts.drawn_bits
        if drawn is None:
            words = "every pattern of the surface, as everybody does"
            return EveRow("pattern known", words, None, None, self.rounded(h))
        words = "every pattern of the surface, which was drawn in secret: what else moves is left"
        return EveRow("pattern known", words, None, None, self.rounded(max(0.0, h - drawn)))

    def _back_later(self, h: float) -> EveRow:
        """Return the length if Eve can measure later where Alice or Bob stood, with nothing else changed."""
        words = "what is measured where Alice or Bob stood, since she stands there later in the same surroundings"
        if (drawn := self.facts.surface_bits) is None:
            return EveRow("back later", words, None, None, 0)
        words += "; not the secret states that the surface had"
        return EveRow("back later", words, None, None, self.rounded(min(h, drawn)))


def _assumptions(
    facts: Facts, judgement: Judgement, rule: Rule, assumed: AssumedEve | None
) -> tuple[str, ...]:  # fmt: skip
    out = [f"no Eve is better than the {len(judgement.findings)} attacks that were tried"]
    if not facts.heard:
        out.append("no Eve was measured")
    if assumed is not None:
        out.append(assumed.words)
    if facts.states is not None and facts.patterns is None:
        out.append("the surface's patterns are secret")
        if facts.state_bits is not None:
            out.append(
                f"a state of the surface holds {facts.state_bits} bits that a channel can show, which cap the key; "
                f"Eve, who may try all 2^{facts.state_bits} of them, cannot tell from her own signals which one it was"
            )
    out.append(
        "no Eve measures later where Alice or Bob stood, in the same surroundings "
        "and with the same state of the surface"
    )
    if rule == "modelled":
        out.append("labels are independent of one another given what the limiting attack knows")
    return tuple(out)


def _why(judgement: Judgement, measured: Finding | None, terms: tuple[Term, ...]) -> str:
    if judgement.failures:
        first = judgement.failures[0]
        if first.attack == JUDGING:
            return f"{JUDGING} failed: {first.reason}"
        return f"attack {first.attack} failed: {first.reason}"
    if measured is None:
        return "no attack applies to this block, so nothing bounds what an Eve knows"
    spelt = " ".join(f"{'−' if t.bits < 0 else ''} {abs(t.bits):.0f} {t.name}" for t in terms)
    return f"entropy_exhausted: {spelt.strip()} leave no key; the shortest has {STEP} bits"
