"""Memory that a block needed for a short time is given back to the system."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from testbed.chain import amplification
from testbed.chain.knowledge import Knowledge, heard_series
from testbed.core import memory
from testbed.core.outcomes import AgreeReport
from testbed.core.types import Features
from testbed.net import messages as m
from testbed.nodes import events as e
from testbed.nodes.daemon import NodeDaemon

USED = """
import numpy as np
from testbed.benchmarks._endurance import memory_mb
from testbed.core import memory
import os
blocks = [np.ones(12_000) for _ in range(1000)]
last = [np.ones(100) for _ in range(1000)]
del blocks
before = memory_mb(os.getpid())
memory.give_back()
print(before - memory_mb(os.getpid()))
"""


def test_unreachable_objects_are_looked_for_less_often_within_a_run_only() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with memory.collected_seldom():
        assert gc.get_threshold()[0] >= 10 * before[0]
        assert gc.get_freeze_count() > frozen + 1000
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back, or not, by itself")
def test_freed_memory_below_memory_in_use_is_given_back() -> None:
    """96 MB in pieces of 96 kB, above which something is still in use: the C library keeps them otherwise."""
    done = subprocess.run([sys.executable, "-c", USED], capture_output=True, text=True, timeout=240, check=True)
    assert float(done.stdout) > 60.0


REUSED = """
import resource
import numpy as np
from testbed.core import memory
memory.keep_freed()
for i in range(40):
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(1 << 17) for _ in range(4)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back, or not, by itself")
def test_the_arrays_of_a_train_use_the_memory_of_the_one_before() -> None:
    """4 MB, 20 times over: 20 000 new pages otherwise."""
    done = subprocess.run([sys.executable, "-c", REUSED], capture_output=True, text=True, timeout=240, check=True)
    assert int(done.stdout) < 2000


def reporting(did: list[str]) -> NodeDaemon:
    """Return a node of which only its reports work; `did` notes that they are sent."""
    made = object.__new__(NodeDaemon)
    made._link = SimpleNamespace(send=lambda x: did.append("sent"))  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("body", "gives"),
    [
        (m.KeyGuessed(block=0, digest=None), True), (m.Failed(operation="x", state="", detail=""), False),
        (m.Captured(round=1), False),
    ],
)  # fmt: skip
def test_a_node_gives_memory_back_after_a_stage_of_a_block(
    body: Any, gives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    monkeypatch.setattr(memory, "give_back", lambda: did.append("given back"))
    reporting(did)._report(e.Report(body))
    assert did == ["sent", *(["given back"] if gives else [])]


@pytest.mark.parametrize(("role", "loads"), [("alice", True), ("bob", False)])
def test_alice_loads_what_judging_needs_while_eve_attacks(
    role: str, loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    monkeypatch.setattr(amplification, "load", lambda: did.append("loaded"))
    made = reporting(did)
    made.role = role  # type: ignore[assignment]
    made._report(e.Report(m.Agreed(report=cast(AgreeReport, None))))
    assert did == ["sent", *(["loaded"] if loads else [])]


def test_what_judging_needs_is_loaded_ahead() -> None:
    code = "import sys; from testbed.chain import amplification; amplification.load(); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"scipy.special", "scipy.fft", "testbed.entropy.attacks.eve_now"} <= set(told)


def test_a_node_gives_memory_back_after_a_block_that_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the other end is lost there is no report, and the memory was kept until the next block's."""
    did: list[str] = []
    monkeypatch.setattr(memory, "give_back", lambda: did.append("given back"))
    made = object.__new__(NodeDaemon)
    made.name, made._state_dir = "alice", tmp_path
    made.state = SimpleNamespace(run="run-1")  # type: ignore[assignment]
    made._drop_key(e.DropKey(3))
    assert did == ["given back"]


def test_what_eve_reported_is_kept_as_short_as_it_came_and_joined_without_a_change() -> None:
    rng = np.random.default_rng(1)
    known = Knowledge()
    values = rng.normal(size=(40, 3)).astype(np.float32)
    for part in range(4):
        rows = slice(10 * part, 10 * part + 10)
        features = Features(values[rows].astype(np.float64), np.arange(rows.start, rows.stop))
        known.add_heard([heard_series("eve.0:alice", features)])
    (kept,) = known._heard.values()
    assert sum(len(x.values) + len(x.rounds) for x in kept) == 40 * (3 * 4 + 8)
    (heard,) = known._telling(12)
    assert heard.rounds.tolist() == list(range(40))
    assert heard.values.dtype == np.float64
    assert np.array_equal(heard.values, values.astype(np.float64))
    known.add_heard([heard_series("eve.0:alice", Features(values[:5].astype(np.float64), np.arange(35, 40)))])
    assert known.refused_series == 1
