"""The systemd units start commands that there are, with options that these know, and do not repeat bad input."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from testbed.cli import app

FOLDER = Path(__file__).parents[2] / "scripts" / "systemd"
UNITS = sorted(path.name for path in FOLDER.iterdir())


def settings(unit: str) -> dict[str, str]:
    """Return setting → value of a unit file; comments and sections are left out."""
    lines = [line for line in (FOLDER / unit).read_text().splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_nodes_and_the_simulated_air_have_a_unit() -> None:
    assert UNITS == ["testbed-node@.service", "testbed-sim.service"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_a_command_that_stays(unit: str) -> None:
    line = settings(unit)["ExecStart"].replace("%i", "bob").replace("${TESTBED_LAB}", "sim")
    program, command, *arguments = shlex.split(line)
    assert program.endswith("/bin/testbed")
    found: Any = typer.main.get_command(app)
    context = found.commands[command].make_context(command, arguments)  # raises for what the command does not know
    assert context.params["lab"] == "sim"
    assert not context.params.get("once")
    assert context.params.get("name") in (None, "bob")


@pytest.mark.parametrize("unit", UNITS)
def test_a_crash_is_followed_by_a_start_and_bad_input_is_not(unit: str) -> None:
    found = settings(unit)
    assert found["Restart"] == "on-failure"
    assert found["RestartPreventExitStatus"] == "2"
    assert found["KillSignal"] == "SIGTERM"
    assert "TESTBED_STATE=/var/lib/testbed" in found["Environment"].split()
    assert found["StateDirectoryMode"] == "0700"
