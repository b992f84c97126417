"""Where the time of a run went, and how closely rounds followed one another."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from testbed.core.config import Experiment
from testbed.records.documents import BLOCK_BEGUN, RUN_RESUMED
from testbed.records.recorded import RecordedRun


def pace(run: RecordedRun, experiment: Experiment) -> dict[str, float | None]:
    """Return the entry `pace` of a run's summary.

    start_s: from the start until all nodes were ready; distil_s: while blocks were distilled; probe_s: the rest, until
    the records were closed; kept_per_s: kept rounds in a second of it; asked_per_s: rounds in a second by
    `probing.interval_s`. On the timeline of the rounds: interval_share: the interval that was asked for, divided by the
    mean time from round to round; train_share: by the median, which is the time inside trains. Times are None where the
    run was resumed, killed, or the time of day was set meanwhile.
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
    }


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
