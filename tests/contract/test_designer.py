"""Every designer, found by name: it takes the model, returns phases and precoders, and a history of the objective."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from testbed import config
from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell.model import MultiCell
from testbed.papers.pkgnet.model import SingleCell
from testbed.papers.pkgnet.net import PkgNet
from testbed.papers.pkgnet.net import Scene as PkgScene
from testbed.papers.secrecy.model import Secrecy
from testbed.papers.secrecy.rate_net import RateNet
from testbed.papers.secrecy.supervised import Scene, SupervisedNet
from testbed.surface.design import Design
from testbed.surface.line_of_sight import LineOfSight

FOLDERS = ("testbed.papers.pkgnet", "testbed.papers.multicell", "testbed.papers.secrecy", "testbed.surface")


def _solvers() -> list[str]:
    """Return every module of these folders that has a `design`, without importing it."""
    return sorted(
        f"{folder}.{path.stem}"
        for folder in FOLDERS
        for path in Path(*importlib.import_module(folder).__path__).glob("*.py")
        if re.search(r"^def design\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    )


NAMES = _solvers()
LEARNT = ("testbed.papers.pkgnet.net", "testbed.papers.secrecy.rate_net", "testbed.papers.secrecy.supervised")
OVER_STARTS = ("testbed.papers.multicell.levels", "testbed.papers.multicell.joint", "testbed.papers.pkgnet.levels")
"""Their history holds the mean over starts, not the best of them."""


def _single(name: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Callable[[Design], Any]]:
    model = SingleCell.paper(2, 9, bob_m=rng.uniform(5, 15, (3, 3)))
    arguments = {
        "rng": rng, "phases_rad": rng.uniform(0, 2 * np.pi, (3, 9)), "bits": 2,
        "net": PkgNet(PkgScene(2, 9)),
    }  # fmt: skip
    return model, arguments, lambda d: model.rate(d.precoders, d.phases_rad)


def _cells(name: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Callable[[Design], Any]]:
    model = MultiCell.stack([MultiCell.two_cells(n_elements=3, n_antennas=2, rng=rng) for _ in range(2)])
    if name == "testbed.papers.multicell.no_ris":
        model = model.without_surface()
    phases_rad = rng.uniform(0, 2 * np.pi, (2, 3))
    arguments = {"rng": rng, "phases_rad": phases_rad, "precoders": cells_precoders.random(model, rng), "bits": 2}
    return model, arguments, lambda d: model.weighted_bound(d.precoders, d.phases_rad)


def _secrecy(name: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Callable[[Design], Any]]:
    model = Secrecy.paper(3, rng, n_antennas=2, n_elements=4)
    scene = Scene(n_antennas=2, n_elements=4)
    net = (
        SupervisedNet(scene, hidden=8)
        if name == "testbed.papers.secrecy.supervised"
        else RateNet(scene, steps=1, hidden=4)
    )
    arguments = {"rng": rng, "phases_rad": rng.uniform(0, 2 * np.pi, (3, 4)), "bits": 2, "net": net}
    judged = model.without_surface() if name == "testbed.papers.secrecy.mev" else model
    return model, arguments, lambda d: judged.rate(d.precoders, d.phases_rad)


def _scene(name: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Callable[[Design], Any]]:
    model = LineOfSight.of(config.load_experiment("static_room").scene, 5.8e9, (2, 2))
    return model, {}, lambda d: abs(model.direct + model.elements @ np.exp(1j * d.phases_rad))


QUICK: dict[str, dict[str, int]] = {"testbed.papers.multicell.levels": {"n_turns": 2, "rounds": 2}}
CASES = {"pkgnet": _single, "multicell": _cells, "secrecy": _secrecy, "surface": _scene}


def _designed(name: str, seed: int = 1) -> tuple[Design, Any]:
    model, arguments, judge = CASES[name.split(".")[-2]](name, np.random.default_rng(seed))
    design = importlib.import_module(name).design
    needed = [
        p.name for p in list(inspect.signature(design).parameters.values())[1:] if p.default is inspect.Parameter.empty
    ]
    found = design(model, **{n: arguments[n] for n in needed}, **QUICK.get(name, {}))
    return found, judge(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_designer_takes_the_model_first_and_returns_a_design(name: str) -> None:
    design = importlib.import_module(name).design
    assert next(iter(inspect.signature(design).parameters)) == "model"
    assert get_type_hints(design)["return"] is Design
    found, worth = _designed(name)
    assert isinstance(found, Design)
    assert np.isfinite(found.phases_rad).all()
    assert np.isfinite(found.precoders).all()
    assert np.isfinite(worth).all()
    batch = np.shape(worth)
    assert found.phases_rad.shape[:-1] == batch
    assert np.shape(found.precoders)[: len(batch)] == batch or name == "testbed.surface.focus"
    if found.history:
        assert np.diff(found.history).min() > -1e-9
        assert name not in LEARNT
        if name not in OVER_STARTS:
            assert found.history[-1] == pytest.approx(float(np.mean(worth)), rel=1e-6, abs=1e-9)
    again, _ = _designed(name)  # a seed gives one answer
    np.testing.assert_array_equal(found.phases_rad, again.phases_rad)
    np.testing.assert_array_equal(found.precoders, again.precoders)
