"""Every designer, found by name: the model in, phases and precoders out, a history that says what it climbed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
import pytest

from testbed.core import config
from testbed.surface import designers
from testbed.surface.design import Design
from testbed.surface.designers import cells_precoders
from testbed.surface.designers.pkg_net import PkgNet
from testbed.surface.designers.pkg_net import Scene as PkgScene
from testbed.surface.designers.secrecy_rate_net import RateNet
from testbed.surface.designers.secrecy_supervised import Scene, SupervisedNet
from testbed.surface.models.line_of_sight import LineOfSight
from testbed.surface.models.multi_cell import MultiCell
from testbed.surface.models.secrecy import Secrecy
from testbed.surface.models.single_cell import SingleCell

NAMES = sorted(m.name for m in pkgutil.iter_modules(designers.__path__) if not m.name.startswith("_"))
LEARNT = ("pkg_net", "secrecy_rate_net", "secrecy_supervised")
OVER_STARTS = ("cells_levels", "cells_joint", "pkg_levels")
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
    if name == "cells_no_ris":
        model = model.without_surface()
    phases_rad = rng.uniform(0, 2 * np.pi, (2, 3))
    arguments = {"rng": rng, "phases_rad": phases_rad, "precoders": cells_precoders.random(model, rng), "bits": 2}
    return model, arguments, lambda d: model.weighted_bound(d.precoders, d.phases_rad)


def _secrecy(name: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Callable[[Design], Any]]:
    model = Secrecy.paper(3, rng, n_antennas=2, n_elements=4)
    scene = Scene(n_antennas=2, n_elements=4)
    net = SupervisedNet(scene, hidden=8) if name == "secrecy_supervised" else RateNet(scene, steps=1, hidden=4)
    arguments = {"rng": rng, "phases_rad": rng.uniform(0, 2 * np.pi, (3, 4)), "bits": 2, "net": net}
    judged = model.without_surface() if name == "secrecy_mev" else model
    return model, arguments, lambda d: judged.rate(d.precoders, d.phases_rad)


def _scene(name: str, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Callable[[Design], Any]]:
    model = LineOfSight.of(config.load_experiment("static_room").scene, 5.8e9, (2, 2))
    return model, {}, lambda d: abs(model.direct + model.elements @ np.exp(1j * d.phases_rad))


QUICK: dict[str, dict[str, int]] = {"cells_levels": {"n_turns": 2, "rounds": 2}}
CASES = {"pkg": _single, "cells": _cells, "secrecy": _secrecy, "focus": _scene}


def _designed(name: str, seed: int = 1) -> tuple[Design, Any]:
    model, arguments, judge = CASES[name.split("_")[0]](name, np.random.default_rng(seed))
    design = importlib.import_module(f"testbed.surface.designers.{name}").design
    needed = [
        p.name for p in list(inspect.signature(design).parameters.values())[1:] if p.default is inspect.Parameter.empty
    ]
    found = design(model, **{n: arguments[n] for n in needed}, **QUICK.get(name, {}))
    return found, judge(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_designer_takes_the_model_first_and_returns_a_design(name: str) -> None:
    design = importlib.import_module(f"testbed.surface.designers.{name}").design
    assert next(iter(inspect.signature(design).parameters)) == "model"
    assert get_type_hints(design)["return"] is Design
    found, worth = _designed(name)
    assert isinstance(found, Design)
    assert np.isfinite(found.phases_rad).all()
    assert np.isfinite(found.precoders).all()
    assert np.isfinite(worth).all()
    batch = np.shape(worth)
    assert found.phases_rad.shape[:-1] == batch
    assert np.shape(found.precoders)[: len(batch)] == batch or name == "focus"
    if found.history:
        assert np.diff(found.history).min() > -1e-9
        assert name not in LEARNT
        if name not in OVER_STARTS:
            assert found.history[-1] == pytest.approx(float(np.mean(worth)), rel=1e-6, abs=1e-9)
    again, _ = _designed(name)  # a seed gives one answer
    np.testing.assert_array_equal(found.phases_rad, again.phases_rad)
    np.testing.assert_array_equal(found.precoders, again.precoders)
