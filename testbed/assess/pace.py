"""Where the time of a run went, and how closely rounds followed one another."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from testbed.core.config import Experiment
from testbed.records.documents import BLOCK_BEGUN, ROUND_TIMES, RUN_RESUMED, RoundTimes
from testbed.records.recorded import RecordedRun


class Part(Struct, frozen=True, kw_only=True):
    """A part of the time of a round."""

    time_s: float
    """What counts of it in the time from round to round."""
    beside_s: float
    """What more it took: that went on beside other parts and delayed nothing."""


class RoundTime(Struct, frozen=True, kw_only=True):
    """Where the time of a round goes: means over the rounds of all trains that every node reported, in s.

    The `time_s` of the parts add up to `mean_s`, and no instant counts twice: it counts as the air's while a train is
    captured, else as that of an estimate, else of an order, else of the record, else of the messages.
    """

    rounds: int
    mean_s: float
    """From round to round, without blocks and pauses."""
    order: Part
    """From the event that led to the orders until they were sent, with the preparation of the surface."""
    air: Part
    """Until a train was captured, from when the devices began to work on it; on the wall clock, also until it was time
    to order it."""
    estimate: Part
    message: Part
    """The rest: messages on their way, waiting, or being handled."""
    journal: Part


PARTS = ("order", "air", "estimate", "message", "journal")
"""In the order of a round."""


def pace(run: RecordedRun, experiment: Experiment) -> dict[str, Any]:
    """Return the entry `pace` of a run's summary.

    start_s: from the start until all nodes were ready; distil_s: while blocks were distilled; probe_s: the rest, until
    the records were closed; kept_per_s: kept rounds in a second of it; asked_per_s: rounds in a second by
    `probing.interval_s`. On the timeline of the rounds: interval_share: the interval that was asked for, divided by the
    mean time from round to round; train_share: by the median, which is the time inside trains. slots_apart_s: mean time
    between the two slots of a round by the coordinator's clock, also where time is virtual; None for radios that time
    their samples, whose slots are as far apart as was planned. Times are None where the run was resumed, killed, or the
    time of day was set meanwhile.
    """
    interval_s = experiment.probing.interval_s
    spans = _spans(run)
    gaps_s = np.diff(np.sort(run.rounds.t0_s))
    kept = int(run.rounds.kept.sum())
    probe_s = spans.get("probe_s")
    return {
        "start_s": spans.get("start_s"),
        "probe_s": probe_s,
        "distil_s": spans.get("distil_s"),
        "asked_per_s": 1.0 / interval_s,
        "kept_per_s": kept / probe_s if probe_s else None,
        "interval_share": interval_s / float(gaps_s.mean()) if gaps_s.size and gaps_s.mean() > 0 else None,
        "train_share": interval_s / float(np.median(gaps_s)) if gaps_s.size and np.median(gaps_s) > 0 else None,
        "slots_apart_s": sums.apart_s / sums.rounds if (sums := _sums(run)) is not None and sums.apart_s else None,
        "round": None if (found := round_time(run)) is None else msgspec.to_builtins(found),
    }


def round_time(run: RecordedRun) -> RoundTime | None:
    """Return where the time of a round went; None for a run that did not record it, such as a killed one."""
    sums = _sums(run)
    return None if sums is None else divided(sums)


def _sums(run: RecordedRun) -> RoundTimes | None:
    """Return the sums over all rounds; None where none was measured."""
    told = next((e.data for e in reversed(run.events) if e.kind == ROUND_TIMES), None)
    sums = RoundTimes() if told is None else msgspec.convert(told, RoundTimes)
    return sums if sums.rounds else None


def divided(sums: RoundTimes) -> RoundTime:
    """Return the time of a round by parts, from the sums over all rounds (at least one).

    Only durations are known, of clocks that are not compared. A part therefore counts as beside the ones before it as
    far as all of them together are longer than the total.
    """
    left_s, parts = sums.total_s, {}
    for name in ("air", "estimate", "order", "journal"):
        took_s = getattr(sums, f"{name}_s")
        counted_s = min(took_s, left_s)
        left_s -= counted_s
        parts[name] = Part(time_s=counted_s / sums.rounds, beside_s=(took_s - counted_s) / sums.rounds)
    rest = Part(time_s=left_s / sums.rounds, beside_s=0.0)
    return RoundTime(rounds=sums.rounds, mean_s=sums.total_s / sums.rounds, message=rest, **parts)


def _spans(run: RecordedRun) -> dict[str, float]:
    ready = next((e for e in run.events if e.kind == "ready"), None)
    is_disturbed = any(e.kind in (RUN_RESUMED, "clock_stepped") for e in run.events)
    if ready is None or run.stop is None or is_disturbed:
        return {}
    distil_s = sum(_distilled_s(run, e.data["block"], e.time) for e in run.events if e.kind == BLOCK_BEGUN)
    return {
        "start_s": _between_s(run.start.time, ready.time),
        "probe_s": _between_s(ready.time, run.stop.time) - distil_s,
        "distil_s": distil_s,
    }


def _distilled_s(run: RecordedRun, block: int, begun: str) -> float:
    """Return the time until the last event of a block."""
    ends = [e.time for e in run.events if e.kind != BLOCK_BEGUN and e.data.get("block") == block]
    return max((_between_s(begun, end) for end in ends), default=0.0)


def _between_s(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
