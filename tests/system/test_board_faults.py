"""Boards on bad days: no pattern is believed applied that the outputs do not hold, nothing hangs, all recover."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from firmware_ctl.boards.opensourceris import OpenSourceRis
from sim_backend.emulators.opensourceris import EmulatedOpenSourceRis
from testbed.core.errors import DeviceError
from testbed.core.types import SurfacePattern
from testbed.core.world import DriverContext


def campaign(folder: Path, n: int, probability: float) -> None:
    context = DriverContext(seed=3, world=None, identity=None, state_dir=folder)
    rng = np.random.default_rng(4)
    refused = wrong = 0
    slowest_s, timeout_s = 0.0, 2.0
    with closing(EmulatedOpenSourceRis("ris", context)) as twin:
        with OpenSourceRis("ris", context, uri=twin.uri) as board:
            twin.fault_probability = probability
            for _ in range(n):
                wanted = SurfacePattern(rng.integers(0, 2, (16, 16), dtype=np.uint8), 1)
                begin_s = time.monotonic()
                try:
                    board.apply(wanted, timeout_s)
                    wrong += not np.array_equal(twin.outputs, wanted.levels)
                except DeviceError:
                    refused += 1
                slowest_s = max(slowest_s, time.monotonic() - begin_s)
            twin.fault_probability = 0.0
            board.apply(wanted)
            np.testing.assert_array_equal(twin.outputs, wanted.levels)
        print(f"{n} commands, {twin.faults_met}, refused {refused}, wrong {wrong}, slowest {slowest_s:.2f} s")
        assert twin.faults_met
    assert wrong == 0
    assert slowest_s < timeout_s + 0.5
    assert refused < n / 10


def test_a_short_campaign(tmp_path: Path) -> None:
    campaign(tmp_path, 40, 0.1)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_long_campaign(tmp_path: Path) -> None:
    campaign(tmp_path, 3000, 0.05)
