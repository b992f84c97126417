"""A replay written as a run's folder: what reads runs reads it, and it holds what the replay found."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import testbed
from testbed.assess import compare
from testbed.cli import main
from testbed.core.config import to_dict
from testbed.core.errors import DiskFull, InputError
from testbed.entropy import attack, judge
from testbed.records import documents, files, reader
from testbed.records.journal import Journal
from testbed.records.writer import RunWriter
from testbed.replay import map as mapping
from testbed.replay import record as recording
from testbed.replay.replay import replay
from testbed.report import html

N, K = 400, 6
MAP = """
schema = 1
subcarrier_spacing_hz = 312500.0
[alice]
array = "alice"
time = "t"
[bob]
array = "bob"
time = "t"
[eve.near]
from_alice = { array = "near", time = "t" }
[eve."far away"]
from_alice = { array = "far", time = "t" }
from_bob = { array = "alice", time = "t" }
assumed = false
"""
CHAIN = """
seed = 4
[chain]
enhance_options = { step = 1 }
quantize_options = { bits = 1, guard = 0.1 }
[accounting]
block_rounds = 200
assumed_eve_distance_wavelengths = 1.0
"""


@pytest.fixture(scope="module", autouse=True)
def few_attacks() -> Iterator[None]:
    everything = attack.load_attacks()[0]
    few = {name: everything[name] for name in ("eve_now", "string_near")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "load_attacks", lambda: (few, []))
        yield


def complex_noise(rng: np.random.Generator, *shape: int) -> Any:
    return rng.normal(size=(*shape, 2)) @ [1, 1j]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ends that share a channel, an Eve elsewhere, and one who has Alice's own values; Bob misses 3 probes."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(3)
    shared = complex_noise(rng, N, K)
    arrays = {
        "alice": shared + 0.02 * complex_noise(rng, N, K), "bob": shared + 0.02 * complex_noise(rng, N, K),
        "near": complex_noise(rng, N, K), "far": complex_noise(rng, N, K), "t": 100 + 0.05 * np.arange(N),
    }  # fmt: skip
    arrays["bob"][[5, 6, 7]] = np.nan
    np.savez(folder / "measured.npz", **arrays)
    (folder / "map.toml").write_text(MAP)
    (folder / "chain.toml").write_text(CHAIN)
    return folder


@pytest.fixture(scope="module")
def replayed(data: Path) -> tuple[dict[str, Any], Path]:
    out = data / "replays" / "one"
    given = {"map": data / "map.toml", "chain": data / "chain.toml"}
    return testbed.replay(data / "measured.npz", out=out, **given), out  # type: ignore[operator]


def test_the_record_holds_the_measurements_and_what_the_replay_found(data: Path, replayed: Any) -> None:
    summary, out = replayed
    run = reader.load(out)
    assert (run.state, run.stop.exit_status if run.stop else None) == ("closed", "ok")
    assert run.summary == json.loads(json.dumps(summary))
    assert summary["key_bits"] > 0
    told = run.start.replay
    assert told is not None
    assert (told.source, told.cut, told.run, told.map) == ("map", "mapped", None, MAP)
    assert told.path == str(data / "measured.npz")
    assert told.sha512 is not None
    with np.load(data / "measured.npz") as arrays:
        np.testing.assert_allclose(run.links["bob>alice"].csi[:, 0, 0], arrays["alice"].astype(np.complex64))  # type: ignore[index]
        assert run.links["alice>bob"].rounds.size == N - 3, "probes that Bob missed are no probes of his"
        # the Eve who guessed best, of those the key must be safe against, is `eve`; the other keeps her label
        assert set(run.links) == {"bob>alice", "alice>bob", "alice>eve", "alice>eve_far_away", "bob>eve_far_away"}
        np.testing.assert_allclose(run.links["alice>eve"].csi[:, 0, 0], arrays["near"].astype(np.complex64))  # type: ignore[index]
    np.testing.assert_allclose(run.rounds.t0_s, 0.05 * np.arange(N))
    assert run.rounds.reason[~run.rounds.kept].tolist() == ["missing"] * 3
    assert [b.rounds for b in run.blocks] == [list(range(200)), list(range(200, 400))]
    assert sum(run.bits[b.block, "alice", "raw"].size for b in run.blocks) == summary["raw_bits"]
    assert sum(min(k.key_bits for k in b.key.values()) for b in run.blocks) == summary["key_bits"]
    by_block = {e.data["block"]: e.data["by_role"] for e in run.events if e.kind == "key_digests"}
    assert [by_block[b.block]["alice"] for b in run.blocks] == [
        block["key_sha256"]["alice"] for block in summary["block_digests"]
    ]


def test_whoever_reads_runs_reads_it(data: Path, replayed: Any) -> None:
    summary, out = replayed
    page = html.make(out, figures=True).read_text()
    for text in ("A replay of <code>", "What was replayed", "far away", "no key was stored", "from the Eve"):
        assert (text in page) == (text != "from the Eve"), text
    assert "Neither SNR nor carrier offset was recorded." in page
    names = {path.stem for path in (out / "figures").glob("*.pdf")}
    assert {"channel", "reciprocity", "autocorrelation", "disagreement", "bit_flow"} <= names
    rows = compare.several([summary, reader.load(out).summary or {}])
    assert [row["values"] for row in rows if row["name"] == "key bits"] == [[summary["key_bits"]] * 2]
    dataset = pytest.importorskip("xarray") and testbed.open(out)
    assert dataset.csi.sel(link="bob>alice").shape == (N, 1, 1, K)
    assert json.loads(dataset.attrs["replay"])["source"] == "map"
    with pytest.raises(InputError, match=r"the record of a replay.*accepted: what was replayed, .*measured\.npz"):
        replay(out)


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("full", "contains files already; accepted: a new folder, or an empty one"),
        ("file", "cannot be made: {}/file is not a folder; accepted: a folder that this user can write"),
        ("file/below", "cannot be made: {}/file is not a folder; accepted: "),
        ("nowhere", "cannot be made: {}/nowhere is a link that leads nowhere; accepted: "),
        ("closed", "cannot be written; accepted: a folder that this user can write, or the name of a new one in such"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, out: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "run.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "closed")  # root may write everywhere
    with pytest.raises(InputError) as refused:
        replay(tmp_path / "is not even looked for", out=tmp_path / out)
    assert str(refused.value).startswith(f"{tmp_path / out}: {why.format(tmp_path)}")


def test_a_replay_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such"):
        replay(tmp_path / "missing.npz", out=tmp_path / "replays" / "one")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_the_record_is_found_before_the_analysis(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 20 << 20)
    told: list[str] = []
    with pytest.raises(InputError, match=r"one: 20 MB free, the record of this replay needs about 32 MB there"):
        replay(
            data / "measured.npz",
            None,
            None,
            lambda _, what: told.append(what),
            None,
            data / "map.toml",
            tmp_path / "one",
        )
    assert [what.split()[0] for what in told] == ["reading"]


def test_a_disk_that_is_full_at_the_end_asks_for_a_new_replay(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """`testbed report`, which completes the record of a run, would keep a part of the rounds."""
    commit, commits = Journal._commit, iter(range(3))

    def limited(journal: Journal) -> None:
        if next(commits, None) is None:
            raise sqlite3.OperationalError("database or disk is full")
        commit(journal)

    monkeypatch.setattr(Journal, "_commit", limited)
    source = mapping.load(data / "measured.npz", data / "map.toml")
    out = tmp_path / "one"
    with pytest.raises(DiskFull) as told:
        recording.write(out, data / "measured.npz", None, source, source.cuts["mapped"], [], [], {})
    assert str(told.value) == (
        f"{out}: disk full: the record of this replay is incomplete; delete this folder, free space until there are "
        "32 MB, and replay again"
    )


def test_a_run_is_replayed_into_a_folder_that_can_be_replayed(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """SNR, offsets, times and rejected rounds stay; the chain of the record is the one that was used."""
    rng = np.random.default_rng(9)
    experiment: dict[str, Any] = {
        "schema": 1, "title": "t", "seed": 5, "accounting": {"block_rounds": 200},
        "scene": {"alice": {"position_m": [0, 0, 1]}, "bob": {"position_m": [3, 0, 1]}},
        "chain": {"enhance_options": {"step": 1}, "quantize_options": {"bits": 1, "guard": 0.1}},
    }  # fmt: skip
    lab = {"name": "roof", "node": {"a1": {"role": "alice"}, "b1": {"role": "bob"}}}
    writer = RunWriter(tmp_path / "run", documents.start(experiment, lab, subcarrier_hz=np.arange(K) * 1e6))
    for r in range(210):
        h = complex_noise(rng, K)
        for link in ("a1>b1", "b1>a1"):
            noisy = (h + 0.02 * complex_noise(rng, K)).astype(np.complex64)[None, None]
            writer.probe(r, link.split(">")[1], link, r * 0.1, 30.0, 12.0, -30.0, None, noisy)
        writer.round(r, r != 3, "low_snr" if r == 3 else None, None, r * 0.1)
    writer.close(documents.stop("ok"), {})
    chain = tmp_path / "chain.toml"
    chain.write_text(CHAIN)
    arguments = ["replay", str(tmp_path / "run"), "--chain", str(chain), "--out", str(tmp_path / "again"), "--json"]
    monkeypatch.setattr("sys.argv", ["testbed", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    first = json.loads(capsys.readouterr().out)
    assert (tmp_path / "again" / "report.html").is_file()
    before, after = reader.load(tmp_path / "run"), reader.load(tmp_path / "again")
    assert after.start.replay is not None
    assert (after.start.replay.run, after.start.lab, after.start.experiment["seed"]) == (before.start.uid, lab, 4)
    for link, record in before.links.items():
        for column in ("rounds", "snr_db", "cfo_hz", "time_s", "csi"):
            np.testing.assert_array_equal(getattr(after.links[link], column), getattr(record, column))
    np.testing.assert_array_equal(after.rounds.kept, before.rounds.kept)
    assert set(after.blocks[0].agree) == {"a1", "b1"}
    assert replay(tmp_path / "again")["block_digests"] == first["block_digests"]


def test_a_training_is_on_record(data: Path, tmp_path: Path) -> None:
    from testbed import config

    path = tmp_path / "chain.toml"
    path.write_text(
        '[chain]\nenhance = "linear_mmse"\nquantize_options = { bits = 1, guard = 0.2 }\n'
        "[training]\nrounds = 60\n[accounting]\nblock_rounds = 300\n"
    )
    summary = replay(
        data / "measured.npz", config.load_chain(str(path)), map_file=data / "map.toml", out=tmp_path / "run"
    )
    run = reader.load(tmp_path / "run")
    (event,) = [e for e in run.events if e.kind == "training"]
    assert event.data["rounds"] == 60
    assert event.data["reports"]["alice"]["model"] == summary["training"]["model"]
    assert to_dict(config.load_chain(str(path)).training) == run.start.experiment["training"]  # type: ignore[arg-type]


def test_eves_of_nearly_equal_names_are_nodes_of_their_own() -> None:
    """A node's name has fewer characters and letters than a label of a data set."""
    labels = ["near 1", "near_1", "near-1", "x" * 90 + "a", "x" * 90 + "b"]
    cut = SimpleNamespace(eves={label: SimpleNamespace(measured=True) for label in labels})
    names = recording._eve_nodes(cut, [])  # type: ignore[arg-type]
    assert list(names) == labels
    assert len(set(names.values())) == len(labels)
