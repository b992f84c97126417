"""The suites of `testbed.testing` over every radio, board, emulator and source of ours; benches are in `benches.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from benches import BOARD_BENCHES, RADIO_BENCHES, SOURCE_FILES, emulator, sim_radios, source

from testbed import testing
from testbed.core import registry
from testbed.testing.radio import check_no_sample_from_before_a_retune

RADIOS = [(d, v) for d in registry.names("radios", ours=True) for v in RADIO_BENCHES.get(d, {"no bench": None})]


class TestRadios(testing.RadioSuite):
    @pytest.fixture(autouse=True, params=RADIOS, ids="-".join)
    def one(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        driver, variant = request.param
        assert driver in RADIO_BENCHES, f"radio driver {driver!r} has no bench: add one to tests/contract/benches.py"
        self.make = lambda: RADIO_BENCHES[driver][variant](tmp_path)


def test_that_stale_buffers_are_caught(tmp_path: Path) -> None:
    """The check can fail: it does on a radio that is set to be faulty."""
    with (
        sim_radios(tmp_path, timed=False, stale_buffers=2) as bench,
        pytest.raises(AssertionError, match="before the retune"),
    ):
        check_no_sample_from_before_a_retune(bench)


class TestBoards(testing.BoardSuite):
    @pytest.fixture(autouse=True, params=registry.names("boards", ours=True))
    def one(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        name = request.param
        assert name in BOARD_BENCHES, f"board driver {name!r} has no bench: add one to tests/contract/benches.py"
        self.make = lambda: BOARD_BENCHES[name](tmp_path)


class TestEmulators(testing.EmulatorSuite):
    @pytest.fixture(autouse=True, params=registry.names("emulators", ours=True))
    def one(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        self.make = lambda: emulator(request.param, tmp_path)


class TestSources(testing.SourceSuite):
    @pytest.fixture(autouse=True, params=registry.names("sources", ours=True))
    def one(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        name = request.param
        assert name in SOURCE_FILES, f"source {name!r} has no files: add some to tests/contract/benches.py"
        self.make = lambda: source(name, tmp_path)
