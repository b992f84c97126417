"""Real processes, real sockets, no report."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return what runs a command in this process, for refusals before anything starts: without loading all libraries
    anew it takes milliseconds. It returns what `subprocess.run` would."""
    from testbed.cli import main

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr("sys.argv", ["testbed", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(left.value.code or 0), out.out, out.err)

    return command


@pytest.fixture
def few_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge with two quick Eves in this process: for tests of other things than the portfolio's quality."""
    from testbed.entropy import attack, judge

    everything = attack.load_attacks()[0]
    few = {name: everything[name] for name in ("eve_now", "string_near")}
    monkeypatch.setattr(judge, "load_attacks", lambda: (few, []))


@pytest.fixture
def cleared() -> Iterator[list[subprocess.Popen[str]]]:
    """A list for processes that the test starts; those that still run in the end are killed."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait(timeout=60)
