"""What the shells of node and coordinator do with what should not have come: nothing outside their folder, no end."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.assess import run_summary
from testbed.coordinator import events as ce
from testbed.coordinator.recorder import MOST_NOTES, Recorder
from testbed.coordinator.round_times import TimesOfRounds
from testbed.coordinator.server import Coordinator
from testbed.core.errors import DeviceError, TestbedError
from testbed.core.radio import Radio
from testbed.core.types import CsiSeries, Key
from testbed.net import messages as m
from testbed.nodes import daemon as daemons
from testbed.nodes import events as e
from testbed.nodes import known
from testbed.nodes.daemon import NodeDaemon
from testbed.nodes.orders import BlockNumbers
from testbed.nodes.state import NodeState
from testbed.records import documents, reader
from testbed.records.writer import RunWriter

KEY = Key(3, np.array([1, 0, 1, 1] * 32, np.uint8))


def node(folder: Path, run: str = "run-1", rehearsal: bool = False) -> NodeDaemon:
    """A daemon without sockets and device."""
    made = object.__new__(NodeDaemon)
    made.name, made._state_dir, made._trouble = "alice", folder, 0
    made.state = SimpleNamespace(run=run, is_rehearsal=rehearsal, name="ready")  # type: ignore[assignment]
    return made


def test_keys_are_their_owners_and_never_overwritten(tmp_path: Path) -> None:
    made = node(tmp_path)
    assert made._store_key(KEY) is None
    path = tmp_path / "keys" / "run-1" / "block-0003.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    before = path.read_bytes()
    lost = made._store_key(Key(3, 1 - KEY.bits))
    assert lost is not None
    assert "block 3 cannot be kept" in lost
    assert "\n" not in lost
    assert path.read_bytes() == before
    assert made._kept_blocks() == 3
    assert node(tmp_path, rehearsal=True)._store_key(KEY) is None  # apart from those for use
    assert (tmp_path / "rehearsals" / "run-1" / "block-0003.key").is_file()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "keys" / "run-1").mkdir(parents=True)
    victim = tmp_path / "victim"
    os.symlink(victim, tmp_path / "keys" / "run-1" / "block-0003.key")
    assert node(tmp_path)._store_key(KEY) is not None
    assert not victim.exists()


@pytest.mark.parametrize("run", ["../x", "/tmp/x", "", "a/b", "..", "a\0b", "a\nb"])
def test_no_name_of_a_run_leads_out_of_the_nodes_folder(tmp_path: Path, run: str) -> None:
    """The gate refuses these names already; nothing is written should one ever pass it."""
    made = node(tmp_path / "state", run)
    with pytest.raises(TestbedError, match="cannot be part of a path"):
        made._store_key(KEY)
    with pytest.raises(TestbedError, match="cannot be part of a path"):
        made._store_model(e.StoreModel(b"x"))
    assert not list(tmp_path.rglob("*.key"))


def test_a_dropped_key_is_gone_and_others_stay(tmp_path: Path) -> None:
    made = node(tmp_path)
    made._store_key(KEY)
    made._store_key(Key(4, KEY.bits))
    for _ in range(2):  # ordered again, it is what was asked for
        made._drop_key(e.DropKey(3))
    assert [p.name for p in tmp_path.rglob("*.key")] == ["block-0004.key"]


def test_what_alice_keeps_of_a_run_is_hers_and_comes_back_to_a_later_life(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    h = (rng.normal(size=(3, 1, 1, 4)) + 0j).astype(np.complex64)
    series = CsiSeries(h=h, rounds=np.arange(3), subcarrier_hz=np.arange(4.0))

    def life() -> tuple[NodeDaemon, list[Any]]:
        made, taken = node(tmp_path), []
        made._recalled, made._take = "", taken.append  # type: ignore[method-assign]
        made.state.orders = SimpleNamespace(blocks=BlockNumbers())  # type: ignore[misc,assignment]
        made._recall()
        return made, taken

    first, taken = life()
    assert taken == []
    assert first._store_known(known.begun(2, 0, series)) is None
    assert first._store_known(known.Decided(2)) is None
    path = tmp_path / "known" / "run-1" / "block-0002.begun"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    later, taken = life()
    past = taken[0].past
    assert past.begun[0].series.h.tolist() == h.tolist()
    assert [d.block for d in past.decided] == [2]
    # its number is never given to another block, though no key came of it
    assert later.state.orders.blocks.take("run-1", 2) is not None
    assert later.state.orders.blocks.take("run-1", 3) is None
    later._recall()  # welcomed again: its own memory counts
    assert len(taken) == 1
    later._forget_known(e.ForgetKnown())
    assert not path.parent.exists()


def test_a_restarted_bob_gives_no_block_the_number_of_one_whose_key_was_dropped(tmp_path: Path) -> None:
    def life() -> NodeDaemon:
        made = node(tmp_path)
        made._recalled, made._take = "", lambda event: None  # type: ignore[method-assign]
        made.state.orders = SimpleNamespace(blocks=BlockNumbers())  # type: ignore[misc,assignment]
        made._recall()
        return made

    first = life()
    for block in (2, 3):
        assert first._store_known(known.Numbered(block)) is None
    first._store_key(KEY)
    first._drop_key(e.DropKey(3))
    assert not list(tmp_path.rglob("*.key"))
    numbers = life().state.orders.blocks
    assert "accepted from 4" in str(numbers.take("run-1", 3))
    assert numbers.take("run-1", 4) is None


def test_what_cannot_be_read_of_a_run_counts_as_nothing_known(tmp_path: Path) -> None:
    made = node(tmp_path)
    folder = tmp_path / "known" / "run-1"
    folder.mkdir(parents=True)
    (folder / "block-0000.begun").write_bytes(b"\x00")
    taken: list[Any] = []
    made._recalled, made._take = "", taken.append  # type: ignore[method-assign]
    made._recall()
    assert taken == []


class Unplugged(Radio):
    """A radio that cannot even be silenced."""

    def __init__(self) -> None:
        pass

    def interrupt(self) -> None:
        raise DeviceError("alice", "silence", "configured", "no such device")


Unplugged.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def test_an_end_whose_radio_is_gone_still_forgets_and_does_not_call_itself_silent(tmp_path: Path) -> None:
    """Alice's node ended with the error first: what a key can be computed from stayed on her disk."""
    made = node(tmp_path)
    told: list[Any] = []
    state = made.state = NodeState("alice", 1)
    made._link = SimpleNamespace(send=told.append)  # type: ignore[assignment]
    made._device, made._not_silent, made._machine = Unplugged(), None, state.handle
    made._take(e.Received(m.Welcome(run="run-1", lost_after_s=9.0)))
    assert made._store_known(known.Decided(2)) is None
    with pytest.raises(DeviceError, match="no such device"):
        made._take(e.Received(m.Finish(kind="stop", recorded=True)))
    assert not (tmp_path / "known" / "run-1").exists()
    assert told == []


def test_models_are_their_owners(tmp_path: Path) -> None:
    made = node(tmp_path)
    for data in (b"first", b"second"):
        made._store_model(e.StoreModel(data))
    path = tmp_path / "models" / "run-1.npz"
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_that_cannot_be_kept_is_not_reported(tmp_path: Path) -> None:
    made = node(tmp_path)
    sent: list[Any] = []
    made._link = SimpleNamespace(send=sent.append)  # type: ignore[assignment]
    report = e.Report(m.Pulse())
    made._machine = lambda event: [e.StoreKey(KEY), report]
    made._take(e.Tick(0.0))
    made._take(e.Tick(1.0))
    assert [type(x) for x in sent] == [m.Pulse, m.Failed]
    assert sent[1].operation == "amplify"


def test_what_a_node_cannot_handle_costs_the_sender_and_not_the_node(tmp_path: Path) -> None:
    made = node(tmp_path)

    def broken(event: Any) -> Any:
        raise AssertionError("not\nreachable")

    made._machine = broken
    for _ in range(daemons.MAX_TROUBLE - 1):
        (report,) = made._handle(e.Received(m.ReadClock()))
        assert isinstance(report, e.Report)
        assert report.body.operation == "readclock"
        assert "\n" not in report.body.detail
    with pytest.raises(TestbedError, match="20 messages could not be handled"):
        made._handle(e.Received(m.ReadClock()))


def test_what_the_coordinator_cannot_handle_ends_its_sender_and_not_the_run() -> None:
    made = object.__new__(Coordinator)
    blamed: list[str] = []
    taken: list[Any] = []
    made._hub = SimpleNamespace(send=lambda *_, **__: None, blame=blamed.append)  # type: ignore[assignment]
    made.state = SimpleNamespace(virtual=True, phase="probing")  # type: ignore[assignment]
    made._times = TimesOfRounds(0.0, takes_turns=False)

    def handle(event: Any) -> list[Any]:
        taken.append(event)
        if isinstance(event, ce.Received) and event.node == "eve":
            raise KeyError("../x")
        return []

    made._handle = handle
    made._receive(("eve", m.Header(0, m.VERSION, "eve", "1"), m.Captured(round=1)))
    made._receive(("bob", m.Header(0, m.VERSION, "bob", "1"), m.Captured(round=1)))
    assert blamed == ["eve"]
    ended = [x for x in taken if isinstance(x, ce.ProcessEnded)]
    assert [x.node for x in ended] == ["eve"]
    assert isinstance(taken[-1], ce.Received)
    assert taken[-1].node == "bob"


@pytest.mark.parametrize(
    ("shape", "fits"), [((1, 1, 4), True), ((2, 1, 4), True), ((1, 4, 1), False), ((0, 1, 4), False)]
)
def test_csi_of_another_shape_than_the_runs_reaches_neither_policies_nor_records(
    shape: tuple[int, int, int], fits: bool
) -> None:
    made = object.__new__(Coordinator)
    struck: list[tuple[str, str]] = []
    taken: list[Any] = []
    made._hub = SimpleNamespace(strike=lambda *x: struck.append(x))  # type: ignore[assignment]
    made._frame = SimpleNamespace(subcarrier_hz=np.zeros(4))  # type: ignore[assignment]
    made.state = SimpleNamespace(virtual=True, phase="probing")  # type: ignore[assignment]
    made._times = TimesOfRounds(0.0, takes_turns=False)
    made._handle = lambda event: taken.append(event) or []  # type: ignore[func-returns-value]
    csi = bytes(8 * int(np.prod(shape)))
    probed = m.Probed(
        rounds=[m.RoundResult(round=1, links=[m.LinkResult(tx="alice", reason=None, shape=shape, csi=csi)])]
    )
    made._receive(("eve", m.Header(0, m.VERSION, "eve", "1"), probed))
    assert bool(taken) == fits
    assert struck == ([] if fits else [("eve", "csi")])


@pytest.mark.parametrize("liar", ["alice", "bob", "eve"])
def test_csi_of_other_antennas_at_one_end_costs_the_comparison_and_not_the_runs_end(tmp_path: Path, liar: str) -> None:
    """A node may report any number of antennas as its own; the summary of the run was a traceback."""
    experiment = msgspec.to_builtins(config.load_experiment("static_room"))
    place = msgspec.to_builtins(config.load_lab("sim"))
    writer = RunWriter(tmp_path / "run", documents.start(experiment, place, subcarrier_hz=[0.0, 1e6]))
    noise = np.random.default_rng(1)
    for r in range(12):
        for link in ("alice>bob", "bob>alice", "alice>eve", "bob>eve"):
            receiver = link.split(">")[1]
            shape = (5 if receiver == liar else 1, 1, 2)
            h = (noise.normal(size=(*shape, 2)) @ [1, 1j]).astype(np.complex64)
            writer.probe(r, receiver, link, r * 0.1, 20.0, 0.0, -30.0, None, h)
        writer.round(r, True, None, None, r * 0.1)
    writer.flush()
    summary = run_summary.summary_of(reader.load(tmp_path / "run"))
    writer.close(documents.stop("ok"), summary)
    assert (summary["csi_correlation_ab"] is None) == (liar != "eve")
    assert summary["csi_correlation_ae"] is None
    told = " ".join(entry["detail"] for entry in summary["health"])
    assert ("cannot be compared" in told) == (liar != "eve")


def test_a_node_that_fails_without_end_does_not_fill_the_record(tmp_path: Path) -> None:
    lab = config.load_lab("sim")
    start = documents.start(msgspec.to_builtins(config.load_experiment("static_room")), msgspec.to_builtins(lab))
    writer = RunWriter(tmp_path / "run", start)
    recorder = Recorder(writer, lab, "run-1", private=False)
    told = [
        recorder.note(ce.Note("failed", {"node": name, "operation": "x", "state": "y", "detail": "z"}))
        for name in ["eve"] * (MOST_NOTES + 500) + ["bob"]
    ]
    assert (told.count(False), told[-1]) == (500, True)
    recorder.totals(0, {})
    writer.flush()
    events = reader.load(tmp_path / "run").events
    assert sum(x.kind == "failed" for x in events) == MOST_NOTES + 1
    assert next(x.data for x in events if x.kind == "notes_left_out") == {"eve": 500}
    writer.close(documents.stop("ok"), None)
