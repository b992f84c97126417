"""The series that may repeat Alice's block: Eve's series, and Alice's own ones of other rounds."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.facts import Earlier, Facts, Mask
from testbed.entropy.gaussian_labels import normal_scores
from testbed.entropy.series import joined_of
from testbed.entropy.shifts import Reference

_RATES = (2, 3)


def eves(facts: Facts) -> list[Reference]:
    """Return references of all Eve's channels: paired by round number, by time, and at other rates; also backwards."""
    if "eves" not in facts.scratch:
        rounds, values = joined_of(facts)
        forwards = [Reference("Eve", rounds, values, searched_closely=True)]
        by_time = _by_time(facts)
        if by_time is not None:
            forwards.append(by_time)
        for rate in _RATES:
            even = rounds % rate == 0
            forwards.append(Reference(f"Eve, counting every {rate} rounds once", rounds * rate, values))
            forwards.append(Reference(f"Eve, {rate} times as fast", rounds[even] // rate, values[even]))
        facts.scratch["eves"] = [*forwards, *(r.reversed() for r in forwards[:1])]
    found: list[Reference] = facts.scratch["eves"]
    return found


def _by_time(facts: Facts) -> Reference | None:
    """Return Eve's channels numbered by time in Alice's intervals; None where that equals the present numbers."""
    if facts.rounds.size < 2 or not facts.heard:
        return None
    interval = float(np.median(np.diff(facts.time_s) / np.diff(facts.rounds)))
    if not interval > 0.0:
        return None
    parts = [(np.rint(h.time_s / interval).astype(np.int64), h) for h in facts.heard]
    steps = [np.diff(number - h.rounds) for number, h in parts]
    if not any(s.any() for s in steps):
        return None
    rounds = np.unique(np.concatenate([number for number, _ in parts]))
    columns = []
    for number, h in parts:
        column = np.full((rounds.size, h.values.shape[1]), np.nan)
        column[np.searchsorted(rounds, number)] = normal_scores(h.values)
        columns.append(column)
    return Reference("Eve, by time", rounds, np.concatenate(columns, axis=1))


def own(facts: Facts, z: F64) -> list[Reference]:
    """Return Alice's own series, with earlier blocks of this run, each earlier run, and all of them backwards.

    z (probe, column): her scores of this block, NaN where hidden.
    """
    rounds, values, public = _this_run(facts, z)
    out = [Reference("own run", rounds, values, public, searched_closely=True)]
    out += [Reference(e.name, e.rounds, v) for e, v in earlier_scores(facts) if not e.same_run]
    back = [r.reversed() for r in out]
    return [*out, *back]


def earlier_scores(facts: Facts) -> list[tuple[Earlier, F64]]:
    """Return each earlier series with its normal scores (probe, column), computed once for a block."""
    if "earlier scores" not in facts.scratch:
        facts.scratch["earlier scores"] = [(e, normal_scores(e.features)) for e in facts.earlier]
    found: list[tuple[Earlier, F64]] = facts.scratch["earlier scores"]
    return found


def _this_run(facts: Facts, z: F64) -> tuple[I64, F64, F64]:
    """Return rounds, (round, column) scores, and the same scores with NaN where they are not public."""
    before = [(e.rounds, v) for e, v in earlier_scores(facts) if e.same_run and e.rounds.size]
    rounds = np.concatenate([facts.rounds, *(r for r, _ in before)])
    values = np.concatenate([z, *(v for _, v in before)])
    public = np.concatenate([np.where(public_columns(facts), z, np.nan), *(v for _, v in before)])
    # If a round is in this block and in an earlier series, the value of this block is used.
    rounds, first = np.unique(rounds, return_index=True)
    return rounds, values[first], public[first]


def public_columns(facts: Facts) -> Mask:
    """Return (probe, column) whose labels were published."""
    out = np.zeros(facts.features.shape, np.bool_)
    told = np.flatnonzero(facts.published)
    columns = facts.main_column[:, None] if facts.columns is None else facts.columns
    out[facts.probe[told][:, None], columns[facts.dimension[told]]] = True
    return out
