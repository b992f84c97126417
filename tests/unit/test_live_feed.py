"""What is shown of a run: figures are right during and after the run, memory is bounded, and no process is delayed."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.core.errors import InputError
from testbed.core.types import SurfacePattern
from testbed.live import feed as module
from testbed.live import watch
from testbed.live.feed import Feed
from testbed.records import documents
from testbed.records.journal import JournalTail
from testbed.records.writer import RunWriter

CARRIERS = 8
LINKS = ("bob>alice", "alice>bob", "alice>eve", "bob>eve")
LEVELS = np.arange(6, dtype=np.uint8).reshape(2, 3) % 4
AGREE: dict[str, Any] = {
    "block": 0, "probes": 40, "raw_bits": 400, "sacrificed_bits": 40, "sacrificed_errors": 2, "reconciled_bits": 360,
    "corrected_bits": None, "leaked_bits": 100, "leaked_by_kind": {}, "public_bytes": 9, "messages": 3,
    "verified": True, "failure": None,
}  # fmt: skip


def begun(folder: Path, planned: int = 40) -> RunWriter:
    lab = {"node": {n: {"role": n} for n in ("alice", "bob", "eve")}}
    axis = np.arange(CARRIERS) * 1e5
    return RunWriter(folder, documents.start({"title": "t", "rounds": planned}, lab, subcarrier_hz=axis))


def fill(w: RunWriter, first: int, last: int) -> None:
    """Rounds in which Bob measures Alice's channel but for noise, and Eve another; every tenth is rejected."""
    digest = SurfacePattern(LEVELS, 2).digest
    w.pattern(digest, LEVELS, 2)
    for r in range(first, last):
        rng = np.random.default_rng(r)
        shared, own = rng.normal(size=(2, CARRIERS, 2)) @ [1, 1j]
        for link in LINKS:
            h = (own if link.endswith("eve") else shared) + 0.05 * rng.normal(size=(CARRIERS, 2)) @ [1, 1j]
            w.probe(r, link.split(">")[1], link, r * 0.1, 20.0, 7.0, -30.0, digest, h.astype(np.complex64)[None, None])
        w.round(r, r % 10 != 3, "low_snr" if r % 10 == 3 else None, digest, r * 0.1)


def distilled(w: RunWriter) -> None:
    eve = {"name": "near", "knows": "her own signals", "guess_probability": 0.3, "upper_bound": 0.4, "key_bits": 64}
    key = {"block": 0, "key_bits": 64, "min_entropy_per_bit": 0.3, "eve_measured": True, "eves": [eve]}
    for node in ("alice", "bob"):
        w.block({"block": 0, "agree": {node: AGREE}, "key": {node: key}})


def test_a_live_run_and_the_same_run_closed_show_the_same(tmp_path: Path) -> None:
    w = begun(tmp_path / "run")
    w.event("joined", {"node": "bob", "identity": {"driver": "sim"}})
    fill(w, 0, 20)
    w.flush()
    feed = Feed(tmp_path / "run")
    feed.poll()
    first, cursor = feed.message()
    assert (first["state"], first["rounds"], first["kept"], first["rejected"]) == ("live", 20, 18, {"low_snr": 2})
    assert [e["kind"] for e in first["events"]] == ["joined"]
    fill(w, 20, 40)
    distilled(w)
    w.flush()
    feed.poll()
    second, cursor = feed.message(cursor)
    assert not second["whole"]
    assert second["points"][0]["first"] == first["points"][-1]["last"] + 1, "a page is told what it has not seen yet"
    assert second["events"] == []
    assert second["key_bits"] == 64
    assert second["flow"] == {"raw": 400, "sacrificed": 40, "leaked": 100, "lost": 196, "key": 64}
    assert second["eves"] == [{"name": "near", "knows": "her own signals", "bits": 64, "guess": 0.3}]
    assert second["blocks"][0]["kdr"] == 0.05
    assert second["surface"] == {"digest": SurfacePattern(LEVELS, 2).digest, "bits": 2, "levels": LEVELS.tolist()}
    for point in first["points"] + second["points"]:
        assert point["r"]["Alice–Bob"] > 0.9
        assert abs(point["r"]["Bob–Eve"]) < 0.5
        assert point["snr_db"] == dict.fromkeys(LINKS, 20.0)
    assert second["asked"] is None
    w.event("stop_asked", {"kind": "stop"})
    feed.poll()
    assert feed.message(cursor)[0]["asked"] == "stop", "a page says so until the run is over, however it was asked"
    assert watch.line(feed.message(cursor)[0]).startswith("stopping: round 40/40")
    w.close(documents.stop("ok"), {})
    feed.poll()
    third, _ = feed.message(cursor)
    assert (third["state"], third["stop"]["exit_status"], third["asked"]) == ("closed", "ok", None)
    later = Feed(tmp_path / "run")
    later.poll()
    whole, _ = later.message()
    # what the feed had of the live run and what it reads of the closed one
    for key in ("rounds", "kept", "rejected", "key_bits", "flow", "eves", "blocks", "surface", "links"):
        assert whole[key] == third[key], key
    assert whole["points"] == [*first["points"], *second["points"], *third["points"]]
    json.dumps(whole, allow_nan=False)


def test_a_shape_that_both_spectra_always_have_is_no_correlation(tmp_path: Path) -> None:
    """Eve's level falls over frequency as Alice's does, and varies on its own; the report's correlation is about 0."""
    w = begun(tmp_path / "run", planned=200)
    slope_db = np.linspace(20.0, -20.0, CARRIERS)
    rng = np.random.default_rng(5)
    for r in range(200):
        own = {"bob>alice": (a := rng.normal(size=CARRIERS)), "alice>bob": a, "alice>eve": rng.normal(size=CARRIERS)}
        for link, deviation_db in own.items():
            h = (10 ** ((slope_db + deviation_db) / 20)).astype(np.complex64)
            w.probe(r, link.split(">")[1], link, r * 0.1, 20.0, 7.0, -30.0, None, h[None, None])
        w.round(r, True, None, None, r * 0.1)
    w.flush()
    feed = Feed(tmp_path / "run")
    feed.poll()
    last = feed.message()[0]["points"][-1]["r"]
    assert last["Alice–Bob"] == pytest.approx(1.0)
    assert abs(last["Bob–Eve"]) < 4 / np.sqrt(CARRIERS * module.SPAN * module.LEAST_WINDOW)


def test_a_long_run_stays_small(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "MAX_WINDOWS", 10)
    monkeypatch.setattr(module, "LEAST_WINDOW", 4)
    w = begun(tmp_path / "run", planned=1)
    feed = Feed(tmp_path / "run")
    cursor: dict[str, int] | None = None
    seen: list[Any] = []
    for start in range(0, 200, 20):
        fill(w, start, start + 20)
        w.flush()
        feed.poll()
        told, cursor = feed.message(cursor)
        seen = told["points"] if told["whole"] else seen + told["points"]
        assert len(feed.points) <= 10
        assert seen == feed.points, "a page that was told every time has what there is"
    assert seen[0]["first"] == 0
    assert all(b["first"] == a["last"] + 1 for a, b in pairwise(seen))
    assert all(point["r"]["Alice–Bob"] > 0.9 for point in seen)
    w.close(documents.stop("ok"), {})


def test_a_reader_holds_nothing_between_two_looks(tmp_path: Path) -> None:
    """The writer's log is cleared as without a reader, and the journal can be removed."""
    w = begun(tmp_path / "run")
    tail = JournalTail(tmp_path / "run")
    fill(w, 0, 10)
    w.flush()
    grown = tail.read()
    assert grown is not None
    assert len(grown.probes) == 40
    busy, _, _ = w._journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0
    assert tail.read() is not None
    w.close(documents.stop("ok"), {})
    assert tail.read() is None


def test_a_killed_run_is_called_so_and_a_private_one_shows_what_it_has(tmp_path: Path) -> None:
    w = RunWriter(
        tmp_path / "run",
        documents.start({"mode": "private", "rounds": 9}, {"node": {n: {"role": n} for n in ("alice", "bob")}}),
    )
    w.probe(0, "bob", "alice>bob", 0.0, 9.0, float("nan"), -30.0)
    w.round(0, True, None, None, 0.0)
    w.flush()
    w._lock.release(remove=False)  # as the kernel does when the process dies
    feed = Feed(tmp_path / "run")
    feed.poll()
    feed.poll()
    told, _ = feed.message()
    assert told["state"] == "killed"
    assert told["links"]["alice>bob"] == {"rounds": 1, "from": "alice", "at": "bob", "role": "bob"}
    assert told["points"][0]["snr_db"] == {"alice>bob": 9.0}
    assert told["points"][0]["cfo_hz"] == {}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains no run"):
        Feed(tmp_path)


def test_watch_tells_a_line_where_there_is_no_terminal(tmp_path: Path) -> None:
    w = begun(tmp_path / "run")
    fill(w, 0, 40)
    distilled(w)
    w.close(documents.stop("ok"), {})
    said: list[str] = []
    watch.watch(tmp_path / "run", lambda told: said.append(watch.line(told)), drawn=False)
    assert len(said) == 1
    assert said[0].startswith("closed: round 40/40  r Alice–Bob +")
    assert said[0].endswith("SNR 20 dB  64 key bits  rejected: 4 low_snr")


def test_the_terminals_table_and_a_spectrum_in_blocks(tmp_path: Path) -> None:
    from rich.console import Console

    w = begun(tmp_path / "run")
    fill(w, 0, 16)
    w.flush()
    feed = Feed(tmp_path / "run")
    feed.poll()
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(watch.table(feed.message()[0]))
    text = console.export_text()
    assert all(link in text for link in LINKS)
    assert watch.spark([0.0, 10.0, 20.0]) == "▁▄█ 0…20"
    w.close(documents.stop("ok"), {})


def test_a_round_that_was_withdrawn_is_counted_once(tmp_path: Path) -> None:
    w = begun(tmp_path / "run")
    for r in range(10):
        w.round(r, True, None, None, r * 0.1)
    w.flush()
    feed = Feed(tmp_path / "run")
    feed.poll()
    for r in range(5, 10):
        w.round(r, False, "measured", None, r * 0.1)
    w.flush()
    feed.poll()
    assert (feed.rounds, feed.kept, dict(feed.rejected)) == (10, 5, {"measured": 5})


def test_what_was_recorded_between_the_last_look_and_the_end_is_shown(tmp_path: Path) -> None:
    w = begun(tmp_path / "run")
    fill(w, 0, 10)
    w.flush()
    feed = Feed(tmp_path / "run")
    feed.poll()
    fill(w, 10, 30)
    w.close(documents.stop("ok"), {})
    feed.poll()
    fresh = Feed(tmp_path / "run")
    fresh.poll()
    assert feed.state == "closed"
    assert (
        (feed.rounds, feed.kept, feed.rejected)
        == (fresh.rounds, fresh.kept, fresh.rejected)
        == (30, 27, {"low_snr": 3})
    )
    assert {name: link.rounds for name, link in feed.links.items()} == dict.fromkeys(LINKS, 30)
