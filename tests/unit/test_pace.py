"""The entry `pace` of a summary: where a run's time went, and how closely its rounds followed one another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from testbed.assess.pace import pace
from testbed.core.config import ProbingPlan
from testbed.records.documents import Event

PLAN: Any = SimpleNamespace(probing=ProbingPlan(interval_s=2e-3))


def at(second: float) -> str:
    return f"2026-11-30T02:00:{second:09.6f}+00:00"


def run_of(*events: tuple[float, str, dict[str, Any]], stop: float | None = 20.0) -> Any:
    starts_s = np.concatenate([k * 0.2 + 2e-3 * np.arange(64) for k in range(2)])
    return SimpleNamespace(
        start=SimpleNamespace(time=at(1.0)), stop=None if stop is None else SimpleNamespace(time=at(stop)),
        rounds=SimpleNamespace(t0_s=starts_s, kept=np.arange(128) % 4 != 0),
        events=[Event(seq=i, time=at(s), kind=kind, data=data) for i, (s, kind, data) in enumerate(events)],
    )  # fmt: skip


BLOCKS: list[tuple[float, str, dict[str, Any]]] = [
    (4.0, "ready", {"nodes": []}),
    (10.0, "block_begun", {"block": 0}),
    (12.5, "key_digests", {"block": 0}),
    (12.5, "randomness", {"block": 0}),
    (18.0, "block_begun", {"block": 1}),
    (18.5, "block_failed", {"block": 1}),
]


def test_time_is_that_of_the_start_of_the_blocks_and_the_rest() -> None:
    found = pace(run_of(*BLOCKS), PLAN)
    assert found["start_s"] == pytest.approx(3.0)
    assert found["distil_s"] == pytest.approx(3.0)
    assert found["probe_s"] == pytest.approx(13.0)
    assert found["kept_per_s"] == pytest.approx(96 / 13.0)
    assert found["asked_per_s"] == pytest.approx(500.0)


def test_shares_are_of_the_run_and_of_the_time_inside_trains() -> None:
    found = pace(run_of(*BLOCKS), PLAN)
    assert found["train_share"] == pytest.approx(1.0)
    assert found["interval_share"] == pytest.approx(2e-3 * 127 / (0.2 + 63 * 2e-3))


@pytest.mark.parametrize(
    ("events", "stop"),
    [
        ([], 20.0),
        (BLOCKS, None),
        ([*BLOCKS, (19.0, "run_resumed", {})], 20.0),
        ([*BLOCKS, (19.0, "clock_stepped", {})], 20.0),
    ],
)
def test_where_times_cannot_be_compared_there_are_none(events: list[Any], stop: float | None) -> None:
    found = pace(run_of(*events, stop=stop), PLAN)
    assert [found[key] for key in ("start_s", "probe_s", "distil_s", "kept_per_s")] == [None] * 4
    assert found["train_share"] == pytest.approx(1.0)


def test_a_run_without_rounds_has_no_shares() -> None:
    run = run_of(*BLOCKS)
    run.rounds = SimpleNamespace(t0_s=np.zeros(0), kept=np.zeros(0, bool))
    found = pace(run, PLAN)
    assert found["interval_share"] is None
    assert found["train_share"] is None
    assert found["kept_per_s"] == 0
