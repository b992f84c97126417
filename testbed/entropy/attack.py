"""The contract of an Eve: what she knows, and which probability she gives each label of each symbol.

A new one is a new file in `testbed/entropy/attacks`, or an installed package that names its class under the entry point
`testbed.attacks`. The smallest one is:

    class Loudest(Attack):
        knows = "that label 0 is the most frequent one"

        def predict(self, facts, train, test):
            count = np.bincount(facts.value[train], minlength=facts.n_labels) + 0.5
            return np.tile(count / count.sum(), (test.size, 1))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from testbed.core import registry
from testbed.core.types import F64, I64
from testbed.entropy.facts import Facts

Folds = Literal["probes", "symbols"]
FOLDS = 10
HIDDEN_CONTEXT = 1.0 / FOLDS


class Attack(ABC):
    """One Eve. Each block gets a new object, which is asked about one fold after the other. It may keep results that
    follow from Eve's side alone, and what it decides at the first fold. The folds after that may be asked about in
    different processes, each of which has a copy of the object as it was after the first one.

    Her unknown parameters may be fitted to Alice's own features and CSI of `train`: no Eve, however skilled, could find
    better ones. The result is deterministic for a seed. An attack must not modify the facts; the values that it has to
    guess are removed from them.

    >>> import numpy as np
    >>> class Loudest(Attack):
    ...     knows = "that label 0 is the most frequent one"
    ...     def predict(self, facts, train, test):
    ...         count = np.bincount(facts.value[train], minlength=facts.n_labels) + 0.5
    ...         return np.tile(count / count.sum(), (test.size, 1))
    >>> from testbed.testing.attack import block
    >>> Loudest(seed=1).predict(block(), np.arange(300), np.arange(300, 360)).shape
    (60, 4)
    """

    knows: ClassVar[str] = ""
    """What this Eve knows, for the report: a phrase that completes the sentence "She knows …"."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of `Facts` that must not be empty or None."""
    folds: ClassVar[Folds] = "symbols"
    """What is hidden together. "symbols": single labels, so that the other dimensions of the same probe are known: for
    attacks that use Alice's string (the chain rule conditions on it). "probes": everything of a probe, for attacks that
    use Alice's analogue values of other probes as inputs or targets, because CSI and features of the same probe reveal
    more of a label than the string could."""

    cliff: ClassVar[bool] = False
    """Whether an attack that leaves less than half of the label bits is taken to leave none. For attacks that know
    everything but a few numbers: there, what is left is the error of our learner and not entropy."""
    hidden_context: ClassVar[float] = 0.0
    """Share of this attack's gain that is lost by the folds, because labels that it would look up are hidden together
    with the label that it guesses. 0 for attacks that use Eve's own signals, and for those that use only labels near a
    symbol, which are never in its fold; `HIDDEN_CONTEXT` for those that use labels anywhere. The judge corrects for it.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.name = type(self).__module__.rpartition(".")[2]

    def applies(self, facts: Facts) -> bool:
        """Return whether the facts allow this attack. Default: everything in `needs` is there."""
        return all(getattr(facts, name) is not None and len(getattr(facts, name)) > 0 for name in self.needs)

    @abstractmethod
    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        """Return P (test symbol, label) with rows that sum to 1, 0 for labels that the symbol's depth does not have.

        `train` and `test` are ascending indices of symbols; in `facts` labels, features and CSI of `test` are hidden.
        """

    @property
    def degrees_of_freedom(self) -> float:
        """Effective number of parameters that the last `predict` fitted; 0 where nothing is fitted."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Broken:
    """An attack that could not be loaded."""

    name: str
    reason: str


def load_attacks() -> tuple[dict[str, type[Attack]], list[Broken]]:
    """Return the attacks by name, and those that cannot be used, with the reason.

    Two attacks with the same name cannot be used, because it is not known which of them is meant.
    """
    return registry.usable("attacks"), [Broken(p.name, p.cause) for p in registry.problems(("attacks",))]


def make_attacks(classes: dict[str, type[Attack]], seed: int) -> list[Attack]:
    """Build one attack of each class, named as in `classes`."""
    out = []
    for name, cls in classes.items():
        attack = cls(seed)
        attack.name = name
        out.append(attack)
    return out


def portfolio(seed: int = 0, names: Sequence[str] | None = None) -> list[Attack]:
    """Return fresh attacks, all or those of these names; raises ValueError for a name that is not there."""
    classes, _ = load_attacks()
    unknown = sorted(set(names or ()) - set(classes))
    if unknown:
        raise ValueError(f"no attack is called {', '.join(unknown)}; accepted: {', '.join(classes)}")
    return make_attacks({name: classes[name] for name in names or classes}, seed)
