"""Runs the contract suites over every driver that is installed; each has its bench in `benches.py`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from benches import BOARD_BENCHES, RADIO_BENCHES, RadioBench

from testbed.core.ris import Board


def discovered(group: str) -> list[str]:
    return sorted({p.name for p in entry_points(group=f"testbed.{group}")})


RADIO_CASES = [(d, v) for d in discovered("radios") for v in RADIO_BENCHES.get(d, {"no bench": None})]


@pytest.fixture(params=RADIO_CASES, ids=lambda case: "-".join(case))
def radio_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RadioBench]:
    driver, variant = request.param
    assert driver in RADIO_BENCHES, f"radio driver {driver!r} has no bench: add one to tests/contract/benches.py"
    with RADIO_BENCHES[driver][variant](tmp_path) as bench:
        yield bench


@pytest.fixture(params=discovered("boards"))
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Board]:
    assert request.param in BOARD_BENCHES, (
        f"board driver {request.param!r} has no bench: add one to tests/contract/benches.py"
    )
    with BOARD_BENCHES[request.param](tmp_path) as found:
        yield found
