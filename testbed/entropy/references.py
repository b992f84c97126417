"""The series that may repeat Alice's block: Eve's series, and Alice's own ones of other rounds."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.facts import Earlier, Facts, Mask
from testbed.entropy.gaussian_labels import normal_scores
from testbed.entropy.series import joined_of
from testbed.entropy.shifts import Reference, constant

_RATES = (
    (2, 1), (3, 1), (4, 1), (5, 1), (3, 2), (5, 2), (4, 3), (5, 3), (5, 4), (6, 5), (7, 6),
    (1, 2), (1, 3), (2, 3), (3, 4),
)  # fmt: skip
"""(p, q): Eve counts q where Alice counts p, because she receives q of p rounds or measures more often."""
_NEARBY = 12


def eves(facts: Facts) -> list[Reference]:
    """Return references of all Eve's channels: paired by round number, by kept pair, by time, and at other rates; also
    backwards.
    """
    if "eves" not in facts.scratch:
        rounds, values = joined_of(facts, whole=True)
        groups = _groups(facts)
        out = [Reference("Eve", rounds, values, search="close", groups=groups)]
        if (np.diff(facts.rounds) != 1).any():
            out.append(
                Reference("Eve, counting kept pairs", rounds, values, search="close", groups=groups, by_probe=True)
            )
        by_time = _by_time(facts)
        if by_time is not None:
            out.append(by_time)
        out += [_at_rate(rounds, values, groups, p, q, first) for p, q in _RATES for first in range(q)]
        facts.scratch["eves"] = [*out, out[0].reversed()]
    found: list[Reference] = facts.scratch["eves"]
    return found


def rounds_nearby(facts: Facts) -> F64:
    """Return (probe, round nearby, channel) Eve's channels of the 12 rounds before to the 12 after."""
    if "nearby" not in facts.scratch:
        steps = np.arange(-_NEARBY, _NEARBY + 1)
        facts.scratch["nearby"] = eves(facts)[0].beside(facts.rounds[:, None], steps[None, :])
    found: F64 = facts.scratch["nearby"]
    return found


def _groups(facts: Facts) -> tuple[slice, ...]:
    ends = np.cumsum([h.values.shape[1] for h in facts.heard]).tolist()
    return tuple(slice(end - h.values.shape[1], end) for end, h in zip(ends, facts.heard, strict=True))


def _at_rate(rounds: I64, values: F64, groups: tuple[slice, ...], p: int, q: int, first: int) -> Reference:
    """Return Eve's series numbered as ⌊(p·r + first) / q⌋; of rounds that get the same number, the first."""
    numbers, where = np.unique((rounds * p + first) // q, return_index=True)
    return Reference(f"Eve, {q} for {p} rounds, {first}", numbers, values[where], search="whole", groups=groups)


def sizes(values: F64) -> F64:
    """Return normal scores of the distance of each column's scores from their middle."""
    return normal_scores(np.abs(values))


def alike_in_size(facts: Facts, z: F64) -> F64:
    """Return (probe, channel) Eve's channels at the shift at which they, or their sizes, agree best with the sizes of
    Alice's scores z; no channel where no shift stands out.
    """
    if "eves by size" not in facts.scratch:
        rounds, values = joined_of(facts)
        both = np.concatenate([values, sizes(values)], axis=1)
        facts.scratch["eves by size"] = Reference("Eve's sizes", rounds, both, search="whole")
    found = constant(facts, facts.scratch["eves by size"], sizes(z))
    return found[0].inputs[:, : found[0].inputs.shape[1] // 2] if found else np.zeros((facts.rounds.size, 0))


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
    return Reference("Eve, by time", rounds, np.concatenate(columns, axis=1), groups=_groups(facts))


def own(facts: Facts, z: F64) -> list[Reference]:
    """Return Alice's own series, with earlier blocks of this run, each earlier run, and all of them backwards.

    z (probe, column): her scores of this block, NaN where hidden.
    """
    rounds, values, public = _this_run(facts, z)
    out = [Reference("own run", rounds, values, public, search="close")]
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
