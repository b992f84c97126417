"""Benches for the contract suites: every discovered driver needs one, and that is all a new driver adds here.

A radio's bench gives two radios in reach of each other; a board's bench gives the board.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from testbed.core.config import Multipath, PlacedNode, PlacedSurface, RadioPlan, Scene
from testbed.core.radio import Radio, RadioSettings
from testbed.core.registry import load_driver
from testbed.core.ris import Board
from testbed.core.world import DriverContext


@dataclass
class RadioBench:
    """What the radio suite works with."""

    radio: Radio
    """Under test."""
    other: Radio
    """Hears it and is heard by it."""
    settings: RadioSettings
    """Both can be tuned to this, and then hear each other well below clipping and well above noise."""
    elsewhere: RadioSettings
    """Another carrier: nothing sent at `settings` is heard there."""
    start_error_s: float
    """How far a timed start may be from what was asked."""


@contextmanager
def sim_world(scene: Scene, peer_timeout_s: float = 2.0, pace: str = "virtual") -> Iterator[str]:
    """A World in a thread of this process (its own process is the subject of tests/system)."""
    from sim_backend.server import SimWorld, serve

    stop, ready, endpoint = threading.Event(), threading.Event(), []

    def note(where: str) -> None:
        endpoint.append(where)
        ready.set()

    thread = threading.Thread(target=serve, args=("tcp://127.0.0.1:0", None, pace, peer_timeout_s, note, stop))
    thread.start()
    try:
        assert ready.wait(5.0)
        SimWorld.reset(endpoint[0], None, scene, RadioPlan(), seed=11, timeout_s=5.0)
        yield endpoint[0]
    finally:
        stop.set()
        thread.join()


SIM_SCENE = Scene(
    alice=PlacedNode(position_m=[4.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[9.0, 8.0, 1.5]),
    surface=PlacedSurface(position_m=[6.0, 4.0, 1.5], normal=[0.0, 1.0, 0.0]),
    multipath=Multipath(n_scatterers=20, direct_db=0.0),
)


@contextmanager
def sim_radios(state_dir: Path, **options: Any) -> Iterator[RadioBench]:
    make = load_driver("radios", "sim")
    with sim_world(SIM_SCENE) as endpoint, ExitStack() as stack:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir)
        radio = stack.enter_context(make("alice", context, **options))
        other = stack.enter_context(make("bob", context, **{**options, "stale_buffers": 0}))
        settings = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=0.0, rx_gain_db=15.0)
        elsewhere = RadioSettings(carrier_hz=2.5e9, sample_rate_hz=20e6, tx_gain_db=0.0, rx_gain_db=15.0)
        yield RadioBench(radio, other, settings, elsewhere, start_error_s=10e-9)


@contextmanager
def sim_board(state_dir: Path) -> Iterator[Board]:
    with (
        sim_world(SIM_SCENE) as endpoint,
        load_driver("boards", "sim")(
            "ris",
            DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir),
            rows=4,
            columns=6,
            phase_bits=2,
        ) as board,
    ):
        yield board


# driver → variant → bench
RADIO_BENCHES: dict[str, dict[str, Callable[[Path], Any]]] = {
    "sim": {
        "timed": sim_radios,
        "untimed": lambda path: sim_radios(path, timed=False),
    },
}
BOARD_BENCHES: dict[str, Callable[[Path], Any]] = {"sim": sim_board}


def discovered(group: str) -> list[str]:
    return sorted(p.name for p in entry_points(group=f"testbed.{group}"))


RADIO_CASES = [(d, v) for d in discovered("radios") for v in RADIO_BENCHES.get(d, {"no bench": None})]


@pytest.fixture(params=RADIO_CASES, ids=lambda case: "-".join(case))
def radio_bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RadioBench]:
    driver, variant = request.param
    assert driver in RADIO_BENCHES, f"radio driver {driver!r} has no bench: add one to tests/contract/conftest.py"
    with RADIO_BENCHES[driver][variant](tmp_path) as bench:
        yield bench


@pytest.fixture(params=discovered("boards"))
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Board]:
    assert request.param in BOARD_BENCHES, (
        f"board driver {request.param!r} has no bench: add one to tests/contract/conftest.py"
    )
    with BOARD_BENCHES[request.param](tmp_path) as found:
        yield found
