"""Folders of results are made before the work begins; where that cannot be done, one line says why, and status is 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.cli import main
from testbed.core import folders
from testbed.core.errors import InputError
from testbed.lab import init


@pytest.mark.parametrize(
    "command",
    [
        ["run", "static_room", "--in-process", "--rounds", "10"],
        ["study", "quantizers", "--quick"],
        ["bench", "soak"],
        ["ris", "optimise"],
        ["replay", "nothing.csv"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_refuses_a_folder_that_cannot_be_made(
    command: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    monkeypatch.setattr("sys.argv", ["testbed", *command, "--out", "taken/here"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("testbed: taken/here: cannot be made: taken is not a folder; accepted: ")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_reserved_folder_stays_only_if_something_is_in_it(tmp_path: Path) -> None:
    with folders.reserved(tmp_path / "a" / "b", 0o700):
        assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with folders.reserved(tmp_path / "mine"):
        pass
    with folders.reserved(tmp_path / "mine" / "new"):
        (tmp_path / "mine" / "new" / "result").write_text("")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["new"]


def test_a_name_that_is_too_long_is_told_in_the_systems_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be made: File name too long; accepted: a folder"):
        folders.make(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "taken"], "taken: exists; accepted: a new file (--out)"),
        (["--out", "taken/lab.toml"], "taken/lab.toml: cannot be written; accepted: a new file in a folder that this"),
        (["--out", "gone/lab.toml"], "gone/lab.toml: cannot be written; accepted: a new file in a folder that this"),
        (["--name", "my bench"], "--name 'my bench'; accepted: up to 40 letters, digits, - and _"),
    ],
)
def test_a_lab_file_that_cannot_be_written_is_refused_before_devices_are_searched(
    options: list[str], says: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    monkeypatch.setattr("sys.argv", ["testbed", "init", *options])
    monkeypatch.setattr(init, "look", lambda at: pytest.fail("it searched"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"testbed: {says}")
