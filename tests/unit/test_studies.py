"""The frame of the studies: what they collect, how they spread work, what is written."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from testbed import cli, papers
from testbed.core import registry
from testbed.core.errors import InputError
from testbed.papers.kit.study import Study


def _square(x: int) -> int:
    return x * x


def _body(study: Study) -> None:
    study.parameters["n"] = np.int64(3)
    study.figure(
        "fig1", "Squares", [0, 1, 2], "x", "x²", {"exact": np.array([0.0, 1.0, 4.0])}, {"exact": [0.1, np.nan, 0.1]}
    )
    study.table("t", [{"a": np.float64(1.5), "b": "x"}])
    study.claim("squares grow", None, np.bool_(True), holds=True)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    module: Any = ModuleType("testbed.papers.toy.study")
    module.PAPER, module.run = "A", _body
    find = registry.find
    monkeypatch.setattr(registry, "find", lambda kind, name: module if name == "toy" else find(kind, name))
    return "toy"


def test_results_and_figures_are_written_as_plain_json(tmp_path: Path, toy: str) -> None:
    results = papers.run(toy, tmp_path / "out", quick=True)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == results
    assert written["study"] == "toy"
    assert written["quick"] is True
    assert written["figures"]["fig1"]["curves"] == {"exact": [0.0, 1.0, 4.0]}
    assert written["figures"]["fig1"]["errors"]["exact"][1] is None
    assert written["claims"][0] == {
        "claim": "squares grow", "paper": None, "measured": True, "holds": True, "must_hold": False
    }  # fmt: skip
    assert (tmp_path / "out" / "fig1.png").read_bytes().startswith(b"\x89PNG")


def test_work_is_spread_and_comes_back_in_order() -> None:
    with Study("toy", "A", quick=True) as study:
        assert study.map(_square, range(20)) == [x * x for x in range(20)]


def _started_with(name: str) -> str | None:
    """Return a variable of the environment that this process was started with."""
    for entry in Path("/proc/self/environ").read_bytes().split(b"\0"):
        key, _, value = entry.decode().partition("=")
        if key == name:
            return value
    return None


def test_workers_are_started_with_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their BLAS reads it when it is loaded, which is before they get any work."""
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with Study("toy", "A", quick=True) as study:
        assert study.map(_started_with, names * 2) == ["1"] * 4
    assert not set(names) & set(os.environ)


def _fails(x: int) -> int:
    raise ValueError(f"{x} is wrong")


@pytest.mark.parametrize("cores", [1, 2])
def test_progress_is_reported_and_a_failure_ends_the_study(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    said: list[str] = []
    with Study("toy", "A", quick=True, say=said.append) as study:
        study.map(_square, [1])
        assert said[0].startswith("toy: step 1: 1 of 1 done, ")
        study.map(_square, range(4))
        assert said[-1].startswith("toy: step 2: 4 of 4 done, ")
        with pytest.raises(ValueError, match="is wrong"):
            study.map(_fails, range(4))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: no workers")
def test_an_error_ends_the_workers_that_are_still_at_work() -> None:
    """Ctrl-C waited for them, up to a minute."""
    began_s = time.monotonic()
    with pytest.raises(ValueError, match="non-negative"), Study("toy", "A", quick=True) as study:
        study.map(time.sleep, [600.0, -1.0])
    assert time.monotonic() - began_s < 300


def test_what_is_printed_of_a_claim_is_rounded() -> None:
    assert cli.papers._rounded([0.19401041666666663, 12, "yes", {"a": 1e-9 / 3}]) == "[0.194, 12, yes, a: 3.333e-10]"


def test_an_unknown_study_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no study is called 'nonesuch'; accepted:"):
        papers.run("nonesuch", tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, toy: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        papers.run(toy, tmp_path / "file" / "out")
