"""A sweep: the grid is checked before anything starts, what is done is not done again, one table, one page."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from testbed import config
from testbed.cli import main
from testbed.config import toml_text
from testbed.core.config import Lab
from testbed.core.errors import InputError, TestbedError
from testbed.lab import cluster, grid, sweep
from testbed.report import sweep as page

MAP = """
schema = 1
quantity = "rssi_db"
alice = { array = "a" }
bob = { array = "b" }
eve.near.from_alice = { array = "e" }
"""
GRID = """
schema = 1
replay = "m.csv"
map = "map.toml"
repetitions = 2
seed = 5
[grid]
chain.quantize_options.bits = [1, 2]
accounting.block_rounds = [40]
"""


def a_recording(folder: Path, text: str = GRID) -> Path:
    rng = np.random.default_rng(1)
    shared = rng.normal(size=40)
    ends = [-60 + 6 * shared + 0.3 * rng.normal(size=40) for _ in "ab"] + [-60 + 6 * rng.normal(size=40)]
    lines = ["a,b,e", *(",".join(f"{v:.3f}" for v in row) for row in zip(*ends, strict=True))]
    (folder / "m.csv").write_text("\n".join(lines) + "\n")
    (folder / "map.toml").write_text(MAP)
    path = folder / "g.toml"
    path.write_text(text)
    return path


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replays without a chain: their seeds, in order, and a summary that follows from what was asked."""
    seeds: list[int] = []

    def replay(source: Any, chain: Any, cut: Any, seed: int, map_file: Any) -> dict[str, Any]:
        if seeds.count(-1):
            raise TestbedError("the bench is on fire")
        seeds.append(seed)
        return {"key_bits": 100 * chain.chain.quantize_options["bits"] + seed, "eves": [1], "kdr_raw": None}

    monkeypatch.setattr(sweep.replaying, "replay", replay)
    return seeds


def test_a_sweep_of_replays_from_the_command_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it is not installed
    path, out = a_recording(tmp_path), tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["testbed", "sweep", str(path), "--out", str(out), "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert left.value.code == 0
    told = json.loads(said.out)
    assert (told["done"], told["failed"]) == (4, 0)
    assert said.err.count("left") == 4, "a line a run, with the time left"
    with (out / "table.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [(r["seed"], r["grid.chain.quantize_options.bits"]) for r in rows] == [
        ("5", "1"), ("5", "2"), ("6", "1"), ("6", "2")
    ]  # fmt: skip
    assert float(rows[0]["csi_correlation_ab"]) > 0.95
    assert int(rows[1]["raw_bits"]) > int(rows[0]["raw_bits"]) > 0, "two bits a probe are more than one"
    html = (out / "sweep.html").read_text()
    assert "CSI correlation Alice–Bob" in html
    assert "<svg" in html
    assert "http" not in html.replace("http://www.w3.org", "")


def test_what_is_done_is_not_done_again(tmp_path: Path, counted: list[int]) -> None:
    path, out = a_recording(tmp_path), tmp_path / "out"
    sweep.run(path, out)
    assert counted == [5, 5, 6, 6]
    with pytest.raises(InputError, match="--resume"):
        sweep.run(path, out)
    journal = out / sweep.JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:30])  # killed while the third line was written
    counted.clear()
    swept = sweep.run(path, out, resume=True)
    assert counted == [6, 6]
    assert [row["figures"]["key_bits"] for row in swept.rows] == [105, 205, 106, 206]
    path.write_text(GRID.replace("[1, 2]", "[1, 2, 3]"))
    counted.clear()
    assert len(sweep.run(path, out, resume=True).rows) == 6
    assert counted == [5, 6], "a grid that has grown: only the new points"


def test_rows_that_are_none_are_left_out(tmp_path: Path, counted: list[int]) -> None:
    path, out = a_recording(tmp_path), tmp_path / "out"
    sweep.run(path, out)
    journal = out / sweep.JOURNAL
    first = json.loads(journal.read_bytes().splitlines()[0])
    bad = [{**first, key: value} for key, value in (("digest", []), ("figures", 3), ("status", 1))]
    journal.write_bytes(b"[" * 100_000 + b"\n" + b"\n".join(json.dumps(row).encode() for row in [5, *bad]))
    counted.clear()
    assert len(sweep.run(path, out, resume=True).rows) == 4
    assert counted == [5, 5, 6, 6]


def test_changed_measurements_are_swept_anew(tmp_path: Path, counted: list[int]) -> None:
    path, out = a_recording(tmp_path), tmp_path / "out"
    sweep.run(path, out)
    with (tmp_path / "m.csv").open("a") as f:
        f.write("-60,-60,-60\n")
    counted.clear()
    sweep.run(path, out, resume=True)
    assert counted == [5, 5, 6, 6]


def test_a_failed_run_costs_no_other_and_is_tried_again(tmp_path: Path, counted: list[int]) -> None:
    path, out = a_recording(tmp_path), tmp_path / "out"
    counted.append(-1)
    swept = sweep.run(path, out)
    assert swept.failed == 4
    assert {row["detail"] for row in swept.rows} == {"the bench is on fire"}
    counted.clear()
    assert sweep.run(path, out, resume=True).failed == 0
    assert counted == [5, 5, 6, 6]


def test_repetitions_first(tmp_path: Path, counted: list[int]) -> None:
    text = GRID.replace("seed = 5", 'seed = 5\norder = "repetitions"')
    sweep.run(a_recording(tmp_path, text), tmp_path / "out")
    assert counted == [5, 6, 5, 6]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("[1, 2]", "[]"), "key 'chain.quantize_options.bits': []; accepted: a list of values"),
        (("[1, 2]", "[1, 99]"), "bits = 99, accounting.block_rounds = 40: table [chain.quantize_options]"),
        (("quantize_options.bits", "quantise_options.bits"), "quantise_options"),
        (("accounting.block_rounds", "lab.node.alice.tx_gain_db"), "a replay has no lab"),
        (("accounting.block_rounds", "seed"), "accepted for seeds: 'repetitions'"),
        (('replay = "m.csv"', 'replay = "m.csv"\nexperiment = "static_room"'), "accepted: exactly one of them"),
        (('replay = "m.csv"', 'replay = "n.csv"'), "no such file or folder"),
        (("repetitions = 2", "repetitions = 2000000"), "accepted: up to 100000"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_one_line_before_anything_starts(
    tmp_path: Path, counted: list[int], change: tuple[str, str], reason: str
) -> None:
    path = a_recording(tmp_path, GRID.replace(*change))
    with pytest.raises(InputError) as said:
        sweep.run(path, tmp_path / "out")
    assert reason in str(said.value)
    assert "\n" not in str(said.value)
    assert str(path) in str(said.value)
    assert counted == []


def test_settings_of_experiment_lab_and_chain_at_every_point(tmp_path: Path) -> None:
    path = tmp_path / "g.toml"
    path.write_text(
        'schema = 1\nexperiment = "static_room"\nrepetitions = 2\n[grid]\nrounds = [40, 80]\n'
        "lab.node.alice.tx_gain_db = [-12.0]\n"
        'chain = [{quantize = "equiprobable", quantize_options = {}}, {quantize_options = {bits = 1}}]\n'
    )
    found = grid.load(path)
    assert [(job.plan["rounds"], job.seed) for job in found.jobs[:4]] == [(40, 1), (40, 1), (80, 1), (80, 1)]
    assert len({job.digest for job in found.jobs}) == len(found.jobs) == 8
    first, second = (job.plan["chain"] for job in found.jobs[:2])
    assert (first["quantize"], first["quantize_options"]) == ("equiprobable", {})
    assert (second["quantize"], second["quantize_options"]) == ("scalar", {"bits": 1})
    assert second["enhance_options"] == {"step": 32}, "keys that the table does not name stay"
    lab = found.jobs[0].lab
    assert lab is not None
    (tmp_path / "lab.toml").write_text(toml_text.document(lab), encoding="utf-8")
    written, original = config.load_lab(str(tmp_path / "lab.toml")), config.load_lab("sim")
    assert written.node["alice"].tx_gain_db == -12.0
    assert original.node["alice"].tx_gain_db == -6.0
    written.node["alice"].tx_gain_db = -6.0
    assert written == original, "nothing else has changed"


def test_toml_reads_back(tmp_path: Path) -> None:
    value = {"a b": ['quote " and \\', "é\n\t\x7f"], "x": {"y": 1e-6, "z": True, "n": [1, -2]}, "big": 1e16}
    import tomllib

    (tmp_path / "v.toml").write_text(toml_text.document(value), encoding="utf-8")
    assert tomllib.loads((tmp_path / "v.toml").read_text(encoding="utf-8")) == value


def test_a_table_of_parquet_is_that_of_csv(tmp_path: Path, counted: list[int]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra `cluster`)")
    swept = sweep.run(a_recording(tmp_path), tmp_path / "out")
    assert swept.table.name == "table.parquet"
    found = parquet.read_table(swept.table).to_pydict()
    assert found["grid.chain.quantize_options.bits"] == [1, 2, 1, 2]
    assert found["key_bits"] == [105, 205, 106, 206]


def test_without_dask_a_scheduler_is_one_line(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="pip install 'ris-skg-testbed\\[cluster\\]'"):
        cluster.connect("tcp://127.0.0.1:1")


def test_a_worker_does_a_job_by_the_command_line(tmp_path: Path) -> None:
    text = GRID.replace("chain.quantize_options.bits = [1, 2]\n", "").replace("[40]", "[300]")
    found = grid.load(a_recording(tmp_path, text))
    common = {"lab": None, "source": str(tmp_path / "m.csv"), "map": str(tmp_path / "map.toml"), "cut": None}
    row = sweep.on_worker(found.jobs[0], common)
    assert (row["status"], row["detail"]) == ("finished", "")
    assert row["figures"]["csi_correlation_ab"] > 0.95
    row = sweep.on_worker(found.jobs[0], common | {"source": str(tmp_path / "none.csv")})
    assert row["status"] == "failed"
    assert "none.csv" in row["detail"]


def test_error_bars_are_standard_errors_of_the_mean(tmp_path: Path) -> None:
    assert page.mean([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, np.std([1, 2, 3, 6], ddof=1) / 2))
    assert page.mean([4.0]) == (4.0, None)
    rows = [
        {"point": p, "status": "finished", "values": {"x": p, "kind": k}, "figures": {"key_bits": bits}}
        for p, k, bits in ((0, "a", 10), (0, "a", 14), (1, "b", 8))
    ]
    html = page.make(rows, {"x": [0, 1], "kind": ["a", "b"]}, "t <b>", tmp_path / "p.html").read_text()
    assert "12 ± 2" in html
    assert "t &lt;b&gt;" in html
    assert Lab.__name__ not in html


def test_how_far_a_long_job_is_is_told_every_few_seconds() -> None:
    now_s, said = [0.0], []
    within = sweep._Within(said.append, lambda: now_s[0])
    for now_s[0] in (1.0, sweep.WITHIN_S - 0.1, sweep.WITHIN_S, sweep.WITHIN_S + 1):
        within.look()
    within.rounds(SimpleNamespace(round=50, rounds=200, phase="probing"))  # type: ignore[arg-type]
    now_s[0] = 2 * sweep.WITHIN_S
    within.look()
    assert said == ["  a run goes on, 10 s so far", "  50 of 200 rounds, probing, 20 s so far"]
    within.begin()
    now_s[0] += sweep.WITHIN_S - 0.1
    within.look()
    assert len(said) == 2
    with within:
        assert within._ticking.is_alive()
    assert not within._ticking.is_alive()


def test_a_stop_that_comes_too_late_for_one_run_begins_no_other(tmp_path: Path, monkeypatch: Any) -> None:
    text = 'schema = 1\nexperiment = "static_room"\nlab = "sim"\n[grid]\nrounds = [10, 20, 30]\n'
    path = tmp_path / "g.toml"
    path.write_text(text)
    asked = iter([False, True, False])
    servers: list[Any] = []

    def run(grid: Any, job: Any, out: Any, on_coordinator: Any, *_: Any) -> dict[str, Any]:
        on_coordinator(SimpleNamespace(is_told_to_end=next(asked)), None)
        return {"status": "finished", "detail": "", "run": None, "figures": {}}

    monkeypatch.setattr(sweep, "_run", run)
    with pytest.raises(sweep.Stopped, match="--resume continues the sweep"):
        sweep.run(path, tmp_path / "out", on_coordinator=lambda server, crew: servers.append(server))
    assert len(servers) == 2
    assert len((tmp_path / "out" / sweep.JOURNAL).read_text().splitlines()) == 2
