"""Log lines: for people on a console, or one JSON object each with what it is about."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from testbed.core import logs
from testbed.core.errors import InputError


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger("testbed")
    handlers, level, about = root.handlers[:], root.level, dict(logs._about)
    yield
    root.handlers[:], root.level = handlers, level
    logs._about.clear()
    logs._about.update(about)


def test_json_lines_say_what_they_are_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TESTBED_LOG", "json")
    logs.configure(True)
    logs._about.clear()
    logs.about(run="r-1", node="bob")
    log = logging.getLogger("testbed.node")
    log.info("ready: %d", 3)
    logs.about(round=17)
    try:
        raise ValueError("x\ny")
    except ValueError:
        log.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert {k: first[k] for k in ("level", "logger", "run", "node", "message")} == {
        "level": "INFO", "logger": "testbed.node", "run": "r-1", "node": "bob", "message": "ready: 3",
    }  # fmt: skip
    assert "round" not in first
    assert first["time"].endswith("+00:00")
    assert (second["round"], second["message"]) == (17, "failed")
    assert "ValueError: x" in second["traceback"]
    assert logs.message_of(json.dumps(first)) == "ready: 3"


def test_the_console_is_the_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TESTBED_LOG", raising=False)
    logs.configure(False)
    logging.getLogger("testbed.x").info("not shown")
    logging.getLogger("testbed.x").warning("shown")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING testbed.x: shown")
    assert logs.message_of(line) == line


def test_another_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_LOG", "xml")
    with pytest.raises(InputError, match="variable TESTBED_LOG: 'xml'; accepted: console, json"):
        logs.configure(False)
