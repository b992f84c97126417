"""Seven extensions that a third party wrote (tests/third_party): found by entry point, held to their contracts, used.

They are installed here as a wheel would install them: a folder on sys.path with a dist-info that lists entry points.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import SIM_SCENE
from typer.testing import CliRunner

from sim_backend.local import world_in_thread
from sim_backend.server import SimWorld
from testbed import cli, papers, testing
from testbed.assess import health
from testbed.core import registry
from testbed.core.types import SurfacePattern
from testbed.core.world import DriverContext
from testbed.replay.replay import replay
from testbed.report import html
from testbed.testing.section import record

HERE = Path(__file__).parents[1] / "third_party"
DOCS = Path(__file__).parents[2] / "docs" / "how-to"
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
POINTS: dict[str, dict[str, str]] = PROJECT["entry-points"]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / f"their_lab-{PROJECT['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PROJECT['name']}\nVersion: {PROJECT['version']}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def theirs() -> list[tuple[str, str]]:
    groups = {kind.group or f"testbed.{key}": key for key, kind in registry.KINDS.items()}
    return [(groups[group], name) for group, points in POINTS.items() for name in points]


@pytest.mark.parametrize(("kind", "name"), theirs())
def test_each_is_found_beside_ours_and_is_not_ours(kind: str, name: str) -> None:
    assert registry.find(kind, name) is not None
    assert registry.places(kind)[name][0].distribution == "their-lab"
    assert name not in registry.names(kind, ours=True)
    done = CliRunner().invoke(cli.app, ["list", kind, name])
    assert done.exit_code == 0, done.output
    assert f"{kind} {name} (entry point {name} = their_lab." in done.stdout


def test_the_list_names_them_all_and_nothing_is_broken() -> None:
    done = CliRunner().invoke(cli.app, ["list"])
    assert done.exit_code == 0
    assert done.stderr == ""
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    for kind, name in theirs():
        assert name in lines[kind].split(", ")


class TestQuantizer(testing.QuantizerSuite):
    def make(self) -> Any:
        return registry.make_stage("quantize", "median", {})


class TestSearch(testing.SearchSuite):
    def make(self) -> Any:
        return registry.make_stage("search", "annealing", {})


class TestHealthCheck(testing.HealthCheckSuite):
    def make(self) -> Any:
        return registry.find("health", "deep_fades")()


class TestReportSection(testing.ReportSectionSuite):
    def make(self) -> Any:
        return registry.find("report_sections", "levels")()


class TestStudy(testing.StudySuite):
    def make(self) -> Any:
        return registry.find("studies", "one_bit")


@contextmanager
def air(folder: Path) -> Iterator[DriverContext]:
    with world_in_thread(SIM_SCENE, seed=11) as endpoint:
        yield DriverContext(seed=5, world=endpoint, identity=None, state_dir=folder)


class TestBoard(testing.BoardSuite):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    @contextmanager
    def make(self) -> Iterator[Any]:
        with air(self.tmp_path) as context:
            twin = SimWorld.emulate("ris", "wall", context, {"phase_bits": 2})
            try:
                with registry.load_driver("boards", "wall")("ris", context, uri=twin.uri) as board:
                    yield board
            finally:
                twin.close()


class TestEmulator(testing.EmulatorSuite):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    @contextmanager
    def make(self) -> Iterator[testing.EmulatorBench]:
        with air(self.tmp_path) as context:
            twin, driver = registry.find("emulators", "wall"), registry.find("boards", "wall")
            yield testing.EmulatorBench(twin, driver, context, "ris")


def write_pairs(folder: Path, n: int = 600) -> Path:
    rng = np.random.default_rng(3)
    common = rng.normal(scale=6.0, size=n)
    columns = [-60 + common + rng.normal(scale=0.5, size=n) for _ in range(2)] + [-60 + rng.normal(scale=6.0, size=n)]
    lines = [",".join(f"{value:.1f}" for value in row) for row in np.transpose(columns)]
    path = folder / "walk.pairs.csv"
    path.write_text("\n".join(["alice_dbm,bob_dbm,eve_dbm", *lines]) + "\n")
    return path


class TestSource(testing.SourceSuite):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    @contextmanager
    def make(self) -> Iterator[testing.SourceBench]:
        empty = self.tmp_path / "empty"
        empty.mkdir()
        yield testing.SourceBench(registry.find("sources", "pairs_csv"), write_pairs(self.tmp_path), empty)


def test_a_replay_reads_their_file_with_their_quantizer(tmp_path: Path) -> None:
    from testbed import config

    path = write_pairs(tmp_path)
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'schema = 1\ntitle = "theirs"\n[scene.alice]\nposition_m = [0, 0, 1]\n[scene.bob]\nposition_m = [3, 0, 1]\n'
        '[chain]\nquantize = "median"\nquantize_options = { dead_band = 0.1 }\n[accounting]\nblock_rounds = 600\n'
    )
    summary = replay(path, config.load_experiment(str(mine)))
    assert summary["source"] == "pairs_csv"
    assert 500 < summary["raw_bits"] <= 540
    assert summary["kdr_raw"] < 0.05
    assert "deep_fades" in [entry["check"] for entry in summary["health"]]


def test_their_health_check_comes_after_ours() -> None:
    level = np.random.default_rng(1).normal(size=(200, 3))
    names = [v.check for v in health.check(level, level, None)]
    assert names[-1] == "deep_fades"
    assert names[0] == "receiver_alice"


def test_their_section_is_on_the_page(tmp_path: Path) -> None:
    record(tmp_path / "run", 30)
    page = html.make(tmp_path / "run").read_text()
    assert '<section id="levels"><h2>SNR of every link</h2>' in page
    assert page.index('id="levels"') > page.index('id="provenance"')


def test_their_study_runs_by_name(tmp_path: Path) -> None:
    results = papers.run("one_bit", tmp_path, quick=True)
    assert results["paper"] == "Sheppard 1899"
    assert (tmp_path / "disagreement.png").is_file()


def test_a_lab_file_may_name_their_board_and_its_twin(tmp_path: Path) -> None:
    from testbed import config
    from testbed.config.devices import open_device

    lab = config.load_lab("sim")
    lab.node["ris"].driver = "wall"
    lab.node["ris"].options = {"uri": "127.0.0.1:1"}
    assert lab.world is not None
    lab.world.emulators["ris"] = {"rows": 2, "columns": 3}
    config.check_drivers(lab, "mine.toml")
    with air(tmp_path) as context:
        twin = SimWorld.emulate("ris", "wall", context, lab.world.emulators["ris"])
        lab.node["ris"].options = {"uri": twin.uri}
        with open_device(lab, "ris", context) as board:
            wanted = SurfacePattern(np.array([[0, 1, 0], [1, 1, 0]], np.uint8), 1)
            assert board.apply(wanted).digest == wanted.digest  # type: ignore[union-attr]
        twin.close()


# ---------------------------------------------------------------- docs


def shown() -> list[tuple[Path, str, str]]:
    """Return (page, file, code) of every file that a how-to page shows."""
    block = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
    return [(page, name, code) for page in sorted(DOCS.glob("*.md")) for name, code in block.findall(page.read_text())]


def test_each_is_shown_in_a_how_to_page_as_it_is_tested() -> None:
    root = Path(__file__).parents[2]
    for page, name, code in shown():
        assert code == (root / name).read_text(), (
            f"{page.name} shows another {name}: scripts/how-to brings it up to date"
        )
    modules = {str(p.relative_to(root)) for p in (HERE / "their_lab").glob("*.py") if p.stem != "__init__"}
    assert modules <= {name for _, name, _ in shown()}
