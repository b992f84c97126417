"""Judges a portfolio of Eves on Alice's whole string, out of fold, and bounds the entropy that they leave.

The kept symbols are divided into ten folds; published symbols, earlier blocks, training and earlier runs are always
known to the attack. Each symbol is guessed exactly once, by an attack that has not seen its label, feature or CSI. The
attack itself states what must be hidden together (`Attack.folds`): single symbols if it uses Alice's string, whole
probes if it uses her analogue values, because features and CSI of the same probe would reveal more of a label than the
string could. Folds are random, but two symbols within five probes are never in the same one: the neighbours of a symbol
are not hidden with it.

After the attacks, their mixture is judged as one further Eve ("together"). At each symbol, the attacks are weighed by
their success at all other symbols: the best one may change from probe to probe, by dimension, or by the phase of a
short period (`entropy.gating`). An attack that succeeds only in a part of the block thus counts in full there. The
weights are learnt from later symbols as well, which makes Eve stronger. Single attacks also divide a block into parts
(`entropy.regimes`, `entropy.courses`), and they, too, learn these parts from later symbols as well.

Two bounds follow, both of them **estimates that condition on the portfolio**: no statistic excludes an attack that
is not in it.

estimated   H = Σ over label depths of −n·log2 p̄, the least over attacks; p̄ is the upper Clopper–Pearson limit of the
            probability to guess a label, at δ = 2^−(e+2) / (attacks · blocks), shared among depths. −log2 of a mean is
            at most the mean of −log2 (convexity), so symbols that are guessed unequally well are charged in full.
modelled    H = min (L − smoothing) − 0.72 · max dof, at most M. A further 0.3·(M − H) is subtracted
            (`LEARNERS_SHARE`: measured, not proved), and below M/2 H is set to 0. L is the out-of-fold log-loss in
            bits. Each fitted parameter costs ½·log2 e = 0.72 bits of it on average, which is the learner's error and
            not entropy. "smoothing" is the difference between the Shannon entropy of independent labels with the
            predicted distributions and their smooth min-entropy, by the best of several Rényi orders (Tomamichel,
            Colbeck and Renner 2009). Below M/2 ("the cliff") the remainder is mostly what the learners miss.

What is proved and what is not:
- *Chain rule.* H(kept | published, Eve) = Σ H(label | published, kept labels before it, Eve) in any fixed order: here
  that of (round, dimension). So attacks look up Alice's own labels only where they come before the symbol in question
  or are public; in learning how labels depend on one another they may use all of the training symbols, since an Eve may
  know any parameter. This is exact for Shannon entropy; to judge guesses instead is an estimate. (The entropy of each
  label given all others, called erasure entropy, is a lower bound as well, Han 1978, Verdú and Weissman 2008. It
  is too low: it does not count a repeated label even once, and gives half of the entropy for AR(1) fading with
  ρ = 0.9.)
- *What folds hide.* A fold hides a tenth of all labels, among them labels far from a symbol from which an attack could
  guess it. Therefore the gain of such an attack, in hits and in log-loss, is scaled up (`Attack.hidden_context`).
- *Trials that depend on one another.* Inside one fold, given all that is outside of it, hits minus their conditional
  probabilities are a martingale difference sequence, and the Chernoff bound in relative entropy holds for the average
  conditional probability under any dependence (the exponential supermartingale Π e^(−λ·hit)/(1 − p(1 − e^−λ)) and
  concavity of the logarithm). This is a proof for each fold of n/10 trials alone. It does not cover ten folds that are
  pooled to n trials: the proved bounds of a pooled cross-validation are those of a tenth of the trials (Blum, Kalai
  and Langford 1999).
- Therefore an *estimate* replaces the missing proof: hits of neighbouring probes may be dependent (one unusual label
  changes the guesses around it), so the number of trials is divided by the variance of batch sums relative to
  independent trials, never below 1 (`inflation`). Batches consist of neighbouring probes and have two lengths; the
  larger of both variances is used.
- Neither bound covers distributions that differ from block to block, nor what Eve learns later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import scipy

from testbed.core.errors import InputError
from testbed.core.forks import ChildLost, Children
from testbed.core.seeds import derive, permutation
from testbed.core.types import F64, I64
from testbed.entropy.attack import FOLDS, Attack, Broken, load_attacks, make_attacks
from testbed.entropy.facts import HIDDEN, Facts
from testbed.entropy.gating import weights_in_groups, weights_of_symbols

BITS_A_PARAMETER = 0.72
LEARNERS_SHARE = 0.3
"""Share of an attack's gain in log-loss by which the gain is increased, as a better learner might have more. In blocks
of 240 probes, where an attack had to learn which symbols it knows, our learners' gain was up to a fifth too small."""
Rule = Literal["estimated", "modelled"]

_BATCHES = (64, 24)
_LOWER_NINE_TENTHS = 0.623
"""Mean of the lower nine tenths of squared normal variables."""
TOGETHER = "together"
JUDGING = "judging"
"""Stands in place of an attack's name where a process that judges was lost."""
_PERIODS = (2, 3)
_MOST_BYTES = 1 << 31
_LEAST = 1e-9
_SUM, _SAME = 1e-6, 1e-9
_ORDERS = 1.0 + np.geomspace(3e-3, 30.0, 14)


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one Eve on the kept symbols of a block."""

    attack: str
    knows: str
    symbols: int
    hits: int
    upper_bound: float
    """p̄; the mean over all symbols where labels have different depths."""
    log_loss_bits: float
    """L of all kept symbols, out of fold."""
    smoothing_bits: float
    degrees_of_freedom: float
    """Mean over folds."""
    inflation: float
    """Variance of hits relative to independent trials, ≥ 1."""
    estimated_bits: float
    """H that this Eve alone would leave by the rule "estimated", ≥ 0."""

    @property
    def guess_probability(self) -> float:
        return self.hits / self.symbols if self.symbols else 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An attack that raised an error or used hidden values. It is recorded, and the block makes no key."""

    attack: str
    reason: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result for a block."""

    kept_symbols: int
    kept_bits: int
    """M, the number of kept label bits."""
    findings: tuple[Finding, ...]
    failures: tuple[Failure, ...]
    attacks: int
    """A, by which δ was divided."""
    delta_log2: float

    def modelled_bits(self, finding: Finding) -> float:
        """Return H that this Eve alone would leave by the rule "modelled", 0 to M, the cliff included."""
        if finding.estimated_bits == 0.0:  # such as an attack with a cliff that leaves less than half
            return 0.0
        most = max((f.degrees_of_freedom for f in self.findings), default=0.0)
        bits = min(self.kept_bits, finding.log_loss_bits - finding.smoothing_bits) - BITS_A_PARAMETER * most
        if bits < self.kept_bits / 2:
            return 0.0
        return max(0.0, bits - LEARNERS_SHARE * (self.kept_bits - bits))

    def bits(self, finding: Finding, rule: Rule) -> float:
        """Return H that this Eve alone would leave."""
        return finding.estimated_bits if rule == "estimated" else self.modelled_bits(finding)

    def worst(self, rule: Rule) -> Finding | None:
        """Return the Eve who leaves the least; None where nothing was judged."""
        return min(self.findings, key=lambda f: self.bits(f, rule), default=None)

    def min_entropy(self, rule: Rule) -> float:
        """Return H of the whole portfolio in bits; 0 where an attack failed or nothing was judged."""
        worst = self.worst(rule)
        return 0.0 if self.failures or worst is None else max(0.0, self.bits(worst, rule))


def load() -> None:
    """Load what judging needs, ahead of it: libraries of numbers, and the attacks' modules."""
    _ = scipy.special, scipy.fft
    load_attacks()


def judge(
    facts: Facts,
    *,
    epsilon_log2: int = 64,
    blocks: int = 1,
    seed: int = 0,
    attacks: Sequence[Attack] | None = None,
    children: Children | None = None,
) -> Judgement:
    """Judge every attack on a block, those of the portfolio unless others are given. Deterministic for a seed.

    blocks: how many blocks the run plans. Attacks should be fresh objects. children: the judging is done in forked
    children, which share the folds after the first one; the results are the same, to the bit, for attacks that carry
    nothing from one question to the next but what they decide at the first. None: it is done here.

    Raises InputError for facts with hidden labels or impossible numbers; an error of an attack, and the loss of a
    child, become a `Failure`.
    """
    if (facts.value == HIDDEN).any():
        raise InputError("facts with hidden labels cannot be judged; accepted: Alice's own, whole")
    if epsilon_log2 < 1 or blocks < 1:
        raise InputError(f"epsilon_log2 = {epsilon_log2}, blocks = {blocks}; accepted: 1 or more")
    # attacks keep intermediate results with the facts, so every judgement begins without any
    facts = replace(facts, scratch={}, view={})
    broken: list[Broken] = []
    if attacks is None:
        classes, broken = load_attacks()
        attacks = make_attacks(classes, derive(seed, "attacks"))
    number = len(attacks) + (len(attacks) > 1)
    shared = float(np.log2(max(number, 1) * blocks))
    delta_log2 = -(epsilon_log2 + 2) - shared
    findings, failures = _judged_apart(children, partial(_judged, facts, attacks, seed, float(delta_log2)))
    failures = [Failure(b.name, f"could not be loaded: {b.reason}") for b in broken] + failures
    return Judgement(
        facts.kept.size, facts.kept_bits, tuple(findings), tuple(failures), number, float(delta_log2)
    )  # fmt: skip


Judged = tuple[list[Finding], list[Failure]]


def _judged_apart(children: Children | None, work: Callable[[Children | None], Judged]) -> Judged:
    """Do the work in a child, which returns the memory that it needs, or here where this process may not fork."""
    if children is not None:
        _ = scipy.special, scipy.fft  # loaded here, where they stay for the next block
        try:
            return children.one(partial(work, children))
        except ChildLost as exc:
            return [], [Failure(JUDGING, f"the process that judges {exc}")]
        except OSError:
            pass
    return work(None)


def _judged(facts: Facts, attacks: Sequence[Attack], seed: int, delta_log2: float, children: Children | None) -> Judged:
    asked = _asked(facts, attacks, seed, children)
    failures = [Failure(a.attack.name, a.error) for a in asked if a.error is not None]
    experts = [a.expert(facts) for a in asked if a.error is None]
    if len(experts) > 1:
        size = sum(e.p.nbytes for e in experts)
        if size > _MOST_BYTES:
            accepted = f"accepted: up to {_MOST_BYTES >> 20} MiB, with fewer rounds a block or fewer bits a label"
            failures.append(Failure(TOGETHER, f"predictions of {size >> 20} MiB; {accepted}"))
        else:
            experts.append(_together(facts, experts))
    return [_finding(facts, expert, delta_log2) for expert in experts], failures


def folds(facts: Facts, kind: str, seed: int) -> list[I64]:
    """Return the folds, ascending indices of kept symbols each; empty ones are left out."""
    kept = facts.kept
    of = _spaced(facts.rounds.size, seed)[facts.probe[kept]]
    if kind == "symbols":
        offset = permutation(FOLDS, seed, "folds of dimensions")
        of = (of + offset[facts.dimension[kept] % FOLDS]) % FOLDS
    return [kept[of == f] for f in range(FOLDS) if (of == f).any()]


def _spaced(n: int, seed: int) -> I64:
    """Return (n,) random fold numbers; no fold occurs twice within FOLDS // 2 + 1 successive places."""
    draws = permutation(n, seed, "folds of probes")
    out: list[int] = []
    for draw in draws.tolist():
        recent = out[len(out) - min(len(out), FOLDS // 2) :]
        free = [f for f in range(FOLDS) if f not in recent]
        out.append(free[draw % len(free)])
    return np.array(out, np.int64)


class AttackLied(Exception):
    """The attack did not return a probability distribution, or returned one that depends on values hidden from it."""


@dataclass(frozen=True, slots=True)
class _Expert:
    """The predictions of one attack for all kept symbols, each made out of fold."""

    name: str
    knows: str
    p: F64
    """(kept symbol, label)."""
    freedom: float
    hidden: float
    """Share of the attack's gain that is lost by the folds (`Attack.hidden_context`)."""
    cliff: bool = False


def _together(facts: Facts, experts: list[_Expert]) -> _Expert:
    """Return the Eve who has all attacks and knows which one is right at a time, in a dimension, or at a round's phase.

    Which one is right at a symbol is learnt from all other symbols (`entropy.gating`).
    """
    kept = facts.kept
    probe, dimension, value = facts.probe[kept], facts.dimension[kept], facts.value[kept]
    loss = np.stack([np.log(np.maximum(e.p[np.arange(kept.size), value], _LEAST)) for e in experts], axis=1)
    groups = (dimension, *(facts.rounds[probe] % period for period in _PERIODS))
    mixtures = [weights_in_groups(loss, group, probe) for group in groups]
    own = np.concatenate([loss, np.stack([_mixed_loss(loss, w) for w in mixtures], axis=1)], axis=1)
    gates = weights_of_symbols(own, probe)
    n = len(experts)
    weights = gates[:, :n] + sum(gates[:, [n + i]] * w for i, w in enumerate(mixtures))
    p = sum(weights[:, [i]] * e.p for i, e in enumerate(experts))
    used = weights.mean(axis=0)
    return _Expert(
        TOGETHER,
        "everything that the others know, and which of them is right at a time, in a dimension",
        np.asarray(p),
        float(used @ [e.freedom for e in experts]),
        float(used @ [e.hidden for e in experts]),
    )


def _mixed_loss(loss: F64, weights: F64) -> F64:
    return np.asarray(np.log((weights * np.exp(loss)).sum(axis=1)))


def _finding(facts: Facts, expert: _Expert, delta_log2: float) -> Finding:
    kept = facts.kept
    p, value, depth = expert.p, facts.value[kept], facts.bits[kept]
    hit = p.argmax(axis=1) == value
    with np.errstate(divide="ignore"):
        loss = -np.log2(p[np.arange(kept.size), value])
    extra = inflation(hit, facts.probe[kept], depth)
    more = expert.hidden / (1.0 - expert.hidden)
    bounds = upper_bounds(hit, depth, extra, delta_log2, more)
    total = float(loss.sum())
    total = max(0.0, total - more * max(0.0, facts.kept_bits - total))
    each = np.array([bounds[int(m)] for m in depth])
    left = float(-np.log2(each).sum())
    return Finding(
        attack=expert.name,
        knows=expert.knows,
        symbols=kept.size,
        hits=int(hit.sum()),
        upper_bound=float(each.mean()),
        log_loss_bits=total,
        smoothing_bits=smoothing(p, 1.0 - delta_log2),
        degrees_of_freedom=expert.freedom,
        inflation=extra,
        estimated_bits=0.0 if expert.cliff and left < facts.kept_bits / 2 else left,
    )


_Stated = tuple[str, float, bool]
"""Of an attack: `knows`, `hidden_context` and `cliff`."""


class _Asked:
    """An attack, its predictions so far, and its error if it had one; after an error it is not asked again."""

    def __init__(self, facts: Facts, attack: Attack) -> None:
        self.attack = attack
        self.p = np.zeros((facts.value.size, facts.n_labels))
        """(symbol, label), 0 for published symbols."""
        self.freedom: dict[int, float] = {}
        """Fold → degrees of freedom."""
        self.failed: tuple[int, str] | None = None
        """The question at which it had an error, and the error."""
        self.applies = self._guarded(0, lambda: facts.kept.size > 0 and attack.applies(facts))
        self.hears = self._guarded(0, lambda: "heard" in attack.needs)
        """Whether the attack needs what Eve heard."""
        self.stated: _Stated | None = None
        """What the attack states about itself, where it was asked in another process."""

    @property
    def error(self) -> str | None:
        return None if self.failed is None else self.failed[1]

    def predict(self, fold: int, view: Facts, test: I64) -> None:
        self._guarded(fold, lambda: self._predict(fold, view, test))

    def predict_again(self, question: int, view: Facts, test: I64) -> None:
        """Ask for the predictions of `test` once more, in a view in which the hidden labels are in another order."""
        self._guarded(question, lambda: self._predict_again(view, test))

    def expert(self, facts: Facts) -> _Expert:
        knows, hidden, cliff = self.stated or self.states()
        freedom = [self.freedom[fold] for fold in sorted(self.freedom)]
        return _Expert(self.attack.name, knows, self.p[facts.kept], float(np.mean(freedom)), hidden, cliff)

    def states(self) -> _Stated:
        """Return what the attack states about itself, which it may decide at the first fold."""
        return self.attack.knows, self.attack.hidden_context, self.attack.cliff

    def take(self, other: _Answers) -> None:
        """Take the answers that this attack gave in another process."""
        self.p[other.symbols] = other.p
        self.freedom |= other.freedom
        self.stated = other.stated
        self.failed = min((f for f in (self.failed, other.failed) if f is not None), default=None)

    def _predict(self, fold: int, view: Facts, test: I64) -> None:
        self.p[test] = _ask(view, self.attack, test)
        freedom = float(self.attack.degrees_of_freedom)
        if not np.isfinite(freedom) or freedom < 0:
            raise AttackLied(f"degrees_of_freedom = {freedom}; accepted: numbers from 0")
        self.freedom[fold] = freedom

    def _predict_again(self, view: Facts, test: I64) -> None:
        if np.abs(_ask(view, self.attack, test) - self.p[test]).max() > _SAME:
            raise AttackLied(
                "its prediction of hidden symbols changed when it was shown their labels, so it used them (canary)"
            )

    def _guarded(self, at: int, question: Callable[[], bool | None]) -> bool:
        if self.failed is not None:
            return False
        try:
            return bool(question())
        except Exception as exc:  # an attack may be a third party's code
            self.failed = at, f"{type(exc).__name__}: {exc}"
            return False


@dataclass(frozen=True, slots=True)
class _Answers:
    """An attack's predictions of some folds."""

    symbols: I64
    p: F64
    """(symbol, label)."""
    freedom: dict[int, float]
    failed: tuple[int, str] | None
    stated: _Stated


class _Questions:
    """What every attack is asked: about one fold after the other, and about the first one again.

    All attacks are asked about one fold before the next, because they share intermediate results of a view, which are
    large.
    """

    def __init__(self, facts: Facts, asked: list[_Asked], seed: int) -> None:
        self._facts, self._asked, self._seed = facts, asked, seed
        self._tests = {kind: folds(facts, kind, seed) for kind in sorted({one.attack.folds for one in asked})}
        self.folds = max((len(t) for t in self._tests.values()), default=0)

    def ask(self, number: int) -> None:
        """Ask about a fold or, with the number after the last one, ask the canary question."""
        if number == self.folds:
            return self._ask_again()
        views = {kind: (self._facts.hide(t[number]), t[number]) for kind, t in self._tests.items() if number < len(t)}
        for one in self._asked:
            if one.attack.folds in views:
                one.predict(number, *views[one.attack.folds])

    def _ask_again(self) -> None:
        """The canary test: by now every label of the first fold was visible in another one. If asked about the first
        fold again, a correct attack repeats its prediction; an attack that stored labels of other folds predicts
        better."""
        views = {}
        for kind, (test, *_) in self._tests.items():
            views[kind] = _another_string(self._facts, test, self._seed).hide(test), test
        for one in self._asked:
            one.predict_again(self.folds, *views[one.attack.folds])

    def answered(self, numbers: Sequence[int]) -> list[_Answers]:
        """Ask these questions, and return what each attack answers."""
        for number in numbers:
            self.ask(number)
        return self.answers(numbers)

    def answers(self, numbers: Sequence[int]) -> list[_Answers]:
        """Return what each attack has answered to these questions."""
        out = []
        for one in self._asked:
            tests = [t[i] for t in [self._tests[one.attack.folds]] for i in numbers if i < len(t)]
            symbols = np.concatenate([np.zeros(0, np.int64), *tests])
            freedom = {i: one.freedom[i] for i in numbers if i in one.freedom}
            out.append(_Answers(symbols, one.p[symbols], freedom, one.failed, one.states()))
        return out


def _asked(facts: Facts, attacks: Sequence[Attack], seed: int, children: Children | None) -> list[_Asked]:
    """Return every attack that applies, with its predictions of all folds, or with its error.

    Attacks that need what Eve heard are asked in one child, the others in another one. Each kind has intermediate
    results of its own, also where one process asks both: the first attack that needs such a result determines it for
    the block, and that attack must not depend on the number of cores.
    """
    asked = [one for attack in attacks if (one := _Asked(facts, attack)).applies or one.error is not None]
    kinds = [[one for one in asked if one.hears == hears] for hears in (True, False)]
    kinds = [kind for kind in kinds if kind]
    own = [replace(facts, scratch=dict(facts.scratch), view=dict(facts.view)) for _ in kinds]
    if len(kinds) < 2 or children is None or children.at_once < 2:
        for its_own, kind in zip(own, kinds, strict=True):
            _ask_all(its_own, kind, seed, children)
        return asked
    shares = [replace(children, at_once=(children.at_once + 1 - i) // 2) for i in range(2)]
    works = [partial(_ask_all, *row) for row in zip(own, kinds, (seed, seed), shares, strict=True)]
    for kind, answers in zip(kinds, _each(children, works), strict=True):
        _take(kind, answers)
    return asked


def _ask_all(facts: Facts, asked: list[_Asked], seed: int, children: Children | None) -> list[_Answers]:
    """Ask all questions, and return the answers to all of them, by attack.

    The first fold is asked about here, because attacks decide at it what holds for all others; these are shared.
    """
    questions = _Questions(facts, asked, seed)
    if not questions.folds:
        return []
    questions.ask(0)
    others, n = range(1, questions.folds + 1), 1 if children is None else children.at_once
    works = [partial(questions.answered, share) for share in (others[i::n] for i in range(n)) if share]
    for answers in _each(children, works):
        _take(asked, answers)
    return questions.answers(range(questions.folds + 1))


def _take(asked: list[_Asked], answers: list[_Answers]) -> None:
    for one, found in zip(asked, answers, strict=True):
        one.take(found)


def _each(children: Children | None, works: Sequence[Callable[[], list[_Answers]]]) -> list[list[_Answers]]:
    """Return what each piece of work gives: each is done in a child, or here where there is only one, or where this
    process may not fork."""
    if children is not None and len(works) > 1:
        with contextlib.suppress(OSError):
            return children.each(works)
    return [work() for work in works]


def _another_string(facts: Facts, test: I64, seed: int) -> Facts:
    """Return the facts with the labels of `test` in another order. They are hidden, so no prediction may change."""
    value = facts.value.copy()
    for bits in np.unique(facts.bits[test]).tolist():
        own = test[facts.bits[test] == bits]
        value[own] = value[own[permutation(own.size, seed, "canary", bits)]]
    return replace(facts, value=value)


def _ask(view: Facts, attack: Attack, test: I64) -> F64:
    train = np.delete(np.arange(view.value.size), test)
    p = np.asarray(attack.predict(view, train, test), np.float64)
    if p.shape != (test.size, view.n_labels):
        raise AttackLied(f"predictions of shape {p.shape}; accepted: {(test.size, view.n_labels)}")
    if not np.isfinite(p).all() or (p < 0).any():
        raise AttackLied("a probability is negative or not a number")
    beyond = np.arange(view.n_labels)[None, :] >= (1 << view.bits[test])[:, None]
    if np.abs(p.sum(axis=1) - 1.0).max() > _SUM or p[beyond].any():
        raise AttackLied(f"probabilities of a symbol's labels add up to {p.sum(axis=1).min():.6g}; accepted: 1")
    return p


# ---------------------------------------------------------------- bounds


def inflation(hit: np.ndarray, probe: I64, depth: I64) -> float:
    """Return the variance of sums of hits over batches of neighbouring probes, relative to independent trials; ≥ 1."""
    expected = np.zeros(hit.size)
    for m in np.unique(depth):
        expected[depth == m] = hit[depth == m].mean()
    place = np.unique(probe, return_inverse=True)[1]
    most = 1.0
    for batches in _BATCHES:
        if place[-1] < 2 * batches:
            continue
        batch = place * batches // (int(place[-1]) + 1)
        sums = np.bincount(batch, hit - expected, batches)
        spread = float((expected * (1.0 - expected)).sum())
        if spread > 0.0:
            # Differences of neighbouring batches, without the largest tenth. Probabilities that change during a block
            # do not make the limit wrong (Hoeffding 1956); a lasting change appears in only one of the differences.
            steps = np.sort(np.diff(sums) ** 2)[: int((batches - 1) * 0.9)]
            most = max(most, float(steps.mean()) / _LOWER_NINE_TENTHS / 2.0 / (spread / batches))
    return most


def upper_bounds(
    hit: np.ndarray, depth: I64, inflation: float, delta_log2: float, more: float = 0.0
) -> dict[int, float]:
    """Return, for each label depth, the upper confidence limit of the probability to guess a label.

    `more`: share of the hits beyond chance that is added to them because of the folds (`Attack.hidden_context`).
    """
    depths = np.unique(depth).tolist()
    delta = 2.0**delta_log2 / len(depths)
    out = {}
    for m in depths:
        n, hits = int((depth == m).sum()), float(hit[depth == m].sum())
        hits = min(float(n), hits + more * max(0.0, hits - n / (1 << m)))
        out[m] = clopper_pearson(hits, n, inflation, delta)
    return out


def clopper_pearson(hits: float, trials: float, inflation: float, delta: float) -> float:
    """Return the upper limit of a probability from `hits` of `trials`; both are divided by their inflation.

    1 − I⁻¹(n − h, h + 1; δ) and not I⁻¹(h + 1, n − h; 1 − δ), which is 1.0 for δ below 2⁻⁵³.
    """
    if hits >= trials:
        return 1.0
    n, h = trials / inflation, hits / inflation
    return float(1.0 - scipy.special.betaincinv(n - h, h + 1.0, delta))


def smoothing(p: F64, epsilon_log2: float) -> float:
    """Return the Shannon entropy of independent labels less their ε′-smooth min-entropy, in bits.

    p (symbol, label); ε′ = 2**−epsilon_log2. Smoothing costs 2·ε′: with ε′ = δ/2 a quarter of ε over all blocks.
    """
    with np.errstate(divide="ignore"):
        logs = np.log2(p)
    shannon = -float((p * np.where(p > 0, logs, 0.0)).sum())
    best = -float(logs.max(axis=1).sum())  # the order ∞, without smoothing
    for order in _ORDERS.tolist():
        renyi = float(np.log2(np.exp2(order * logs).sum(axis=1)).sum()) / (1.0 - order)
        best = max(best, renyi - epsilon_log2 / (order - 1.0))
    return max(0.0, shannon - best)
