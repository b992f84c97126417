"""What must be on the disk before a node is told: the rounds of a block, its key, the end of the run. And what `testbed
keys` says of keys of which a node does not know whether the other end has them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from testbed.config import state_root
from testbed.coordinator import events as e
from testbed.coordinator.recorder import is_awaited
from testbed.coordinator.round_times import TimesOfRounds
from testbed.coordinator.server import Coordinator
from testbed.core import key_file
from testbed.core.errors import DiskFull, TestbedError
from testbed.net import messages as m
from testbed.records.documents import BLOCK_BEGUN, RUN_ENDING

KEEP = m.KeepKeys(blocks=[0])
BLOCK = e.BlockOver(0, [1], None, None, None, None, None, None, {}, {}, {})


def rounds_over(n: int) -> list[e.RoundOver]:
    return [e.RoundOver(i, True, None, None, 0.0, {}) for i in range(n)]


class Shell:
    """A coordinator of which only the order is looked at in which it sends and writes."""

    def __init__(self) -> None:
        self.did: list[str] = []
        made = self.made = object.__new__(Coordinator)
        made._hub = SimpleNamespace(send=self._send)  # type: ignore[assignment]
        made.state = SimpleNamespace(probed=0, nodes={}, phase="probing")  # type: ignore[assignment]
        made._times = TimesOfRounds(0.0, takes_turns=False)
        made._show_progress = lambda *_: None  # type: ignore[method-assign]
        made.on_round = lambda _: None
        made._recorder = SimpleNamespace(  # type: ignore[assignment]
            together=self._together, round=lambda x: self.did.append("round"), note=self._note,
            block=lambda x: self.did.append("block"),
        )  # fmt: skip

    def _send(self, name: str, body: Any, to_pulse: bool = False) -> None:
        self.did.append(f"{type(body).__name__} to {name}{', at once' if to_pulse else ''}")

    def _note(self, note: e.Note) -> bool:
        self.did.append(note.kind)
        return False

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        yield
        self.did.append("committed")

    def takes(self, *instructions: e.Instruction) -> list[str]:
        self.made._handle = lambda event: list(instructions)
        self.made._take(e.Tick(0.0))
        return self.did


@pytest.mark.parametrize("n", [0, 1, 5])
def test_no_end_is_ordered_to_begin_a_block_that_is_not_on_the_disk(n: int) -> None:
    """With a train of two rounds or more, it was: a kill between the two let the block's number come again."""
    begun = e.Note(BLOCK_BEGUN, {"block": 0, "rounds": [1], "purpose": "key"})
    distil = m.Distil(block=0, rounds=[1], timeout_s=1.0)
    did = Shell().takes(*rounds_over(n), begun, e.Send("alice", distil), e.Send("bob", distil))
    assert did[-2:] == ["Distil to alice", "Distil to bob"]
    assert did.index(BLOCK_BEGUN) < len(did) - 2
    assert "committed" not in did[-2:]


def test_orders_that_need_no_record_are_sent_before_it() -> None:
    probe = m.Probe(rounds=[m.RoundPlan(round=9, slots=[], margin_s=0.0, end_s=1.0)])
    did = Shell().takes(e.HaltNode("eve"), *rounds_over(2), e.Send("alice", probe), BLOCK, e.Send("alice", KEEP))
    assert did == [
        "Finish to eve, at once", "Probe to alice", "round", "round", "block", "committed", "KeepKeys to alice",
    ]  # fmt: skip


def test_what_others_depend_on_is_awaited_and_nothing_else() -> None:
    assert is_awaited(BLOCK)
    assert is_awaited(e.Note(RUN_ENDING, {}))
    assert not is_awaited(e.Note("no_answer", {}))
    assert not is_awaited(rounds_over(1)[0])


@pytest.mark.parametrize(
    ("error", "recorded"), [(None, True), (DiskFull("x: disk full"), False), (OSError(5, "it is broken"), False)]
)
def test_nodes_keep_what_a_restart_needs_where_the_end_could_not_be_recorded(error: Any, recorded: bool) -> None:
    """With a full disk Alice forgot the earlier blocks of a run that was then resumed, and no key followed."""
    written: list[Any] = []

    def event(kind: str, data: Any, lasting: bool) -> None:
        if error is not None:
            raise error
        written.append((kind, data, lasting))

    shell = Shell()
    told: list[Any] = []
    shell.made.state = SimpleNamespace(nodes={"alice": None, "bob": None})  # type: ignore[assignment]
    shell.made._hub = SimpleNamespace(send=lambda name, body: told.append((name, body)))  # type: ignore[assignment]
    found = shell.made._has_recorded_failure(SimpleNamespace(event=event), TestbedError("no air"))  # type: ignore[arg-type]
    shell.made._send_home(found)
    finish = m.Finish(kind="abort", recorded=recorded)
    assert told == [("alice", finish), ("bob", finish)]
    assert written == ([(RUN_ENDING, {"status": "failed", "detail": "TestbedError: no air"}, True)] if recorded else [])


# ---------------------------------------------------------------- testbed keys


def test_keys_of_which_the_other_end_may_have_none_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from testbed.cli.app import app

    monkeypatch.setenv("TESTBED_STATE", str(tmp_path))
    folder = state_root() / "sim" / "alice" / "keys" / "run-1"
    folder.mkdir(parents=True)
    for block in (0, 1):
        (folder / f"block-{block:04d}.key").write_text(key_file.content(np.ones(128, np.uint8)))
    key_file.mark_of(folder / "block-0000.key").touch()
    from typer.testing import CliRunner

    rows = json.loads(CliRunner().invoke(app, ["keys", "--json"]).stdout)["keys"]
    assert [set(row) for row in rows] == [{"node", "run", "block", "bits", "status", "file"}] * 2
    assert [(row["block"], row["status"]) for row in rows] == [(0, "confirmed"), (1, "unconfirmed")]
    table = CliRunner().invoke(app, ["keys"])
    said = table.stdout.splitlines()
    assert [line.split()[6] for line in said if line.startswith("alice")] == ["confirmed", "unconfirmed"]
    assert "1 key unconfirmed: the other end may have none" in table.output
    assert "testbed run --resume RUN" in table.output
    key_file.mark_of(folder / "block-0001.key").touch()
    assert "unconfirmed" not in CliRunner().invoke(app, ["keys"]).output
