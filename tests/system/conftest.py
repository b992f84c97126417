"""Real processes, real sockets, no report."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sites import Site


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, logs and node states of a test stay in the test's folder."""
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A lab whose daemons the test starts; what is left of them in the end is killed, also where it is suspended."""
    site = Site(tmp_path)
    yield site
    for child in site.children:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGCONT)
            child.kill()
        child.communicate(timeout=60)


@pytest.fixture
def cleared() -> Iterator[list[subprocess.Popen[str]]]:
    """A list for processes that the test starts; those that still run in the end are killed."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(timeout=60)
