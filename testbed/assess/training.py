"""Cost and result of the training of an enhancer, for summary.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from testbed.core.outcomes import TrainReport
from testbed.core.stages import Verdict


@dataclass(frozen=True, slots=True)
class Attempt:
    """One training block."""

    rounds: int
    failure: str | None
    alice: TrainReport | None
    bob: TrainReport | None
    file: str | None = None
    """Path of each node's part of the model, below its own folder; None where it is not stored."""


def summarise(attempts: Sequence[Attempt], guard_rounds: int) -> dict[str, Any]:
    """Return the field `training` of summary.json: the training rounds, and the model that was trained on them."""
    done = _done(attempts)
    alice = done.alice if done is not None else None
    return {
        "blocks": len(attempts),
        "rounds": sum(a.rounds for a in attempts),
        "guard_rounds": guard_rounds,
        "failures": dict(Counter(a.failure for a in attempts if a.failure is not None)),
        "public_bytes": sum(r.public_bytes for a in attempts if (r := a.alice or a.bob) is not None),
        "model": None if alice is None else alice.model,
        "nmse_before": None if alice is None else alice.nmse_before,
        "nmse_after": None if alice is None else alice.nmse_after,
        "card": None if alice is None else alice.card,
        "file": None if done is None else done.file,
    }


def _done(attempts: Sequence[Attempt]) -> Attempt | None:
    return next((a for a in reversed(attempts) if a.failure is None), None)


def guard_verdict(attempts: Sequence[Attempt], guard_rounds: int) -> Verdict:
    """Return whether the first rounds of a key were still correlated with the published training CSI."""
    done = _done(attempts)
    alice = done.alice if done is not None else None
    if alice is None:
        return Verdict("training_guard", True, "No model was trained, so no training CSI was published.")
    needed = alice.memory_rounds
    if needed is None:
        detail = f"The levels stay correlated over more than half of the {alice.probes} training rounds"
        return Verdict("training_guard", False, f"{detail}: the published CSI may reveal the first bits of a key.")
    detail = (
        f"The autocorrelation of the levels falls to 0.1 within {needed} rounds; {guard_rounds} guard rounds "
        "(training.guard_rounds) lie between the training and the first key."
    )
    if needed > guard_rounds:
        detail += f" The published CSI may reveal the first bits of a key: set guard_rounds to {needed} or more."
    return Verdict("training_guard", needed <= guard_rounds, detail)


def verdict(attempts: Sequence[Attempt]) -> Verdict:
    """Return whether the enhancer has a model, and whether it reduces the difference on the validation rounds."""
    failures = [a.failure for a in attempts if a.failure is not None]
    if not attempts or attempts[-1].failure is not None:
        detail = "; ".join(failures) if failures else "too few training rounds were kept"
        return Verdict("enhancer_trained", False, f"The enhancer was not trained: {detail}.")
    alice = attempts[-1].alice
    before, after = (None, None) if alice is None else (alice.nmse_before, alice.nmse_after)
    if before is None or after is None:
        return Verdict("enhancer_trained", True, "The enhancer was trained.")
    detail = (
        "On the validation rounds, the power of the difference between the ends over that of the channel is "
        f"{before:.3g} without the model and {after:.3g} with it."
    )
    return Verdict("enhancer_trained", after <= before, detail)
