"""The suites of `testbed.testing` over every stage, policy, search, attack, check and section of ours.

What a third party installed beside us is its own to test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest

from testbed import testing
from testbed.core import registry
from testbed.core.stages import TrainableEnhancer
from testbed.testing.enhancer import pair

S = TypeVar("S", bound=type)
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("policy", "sweep"): {"codebook": ["uniform", "stripes(1)", "hadamard(3)"]},
}
"""Where the defaults are not enough."""


def made(kind: str, name: str) -> Any:
    options = OPTIONS.get((kind, name), {})
    if "epochs" in (registry.options_of(kind, name) if kind == "enhance" else ()):
        options = {**options, "epochs": 2}  # training takes no time then
    return registry.make_stage(kind, name, options)


def over(kind: str, make: Callable[[str, str], Any] = made) -> Callable[[S], S]:
    """Run a suite over everything of ours of a kind."""

    def decorate(cls: S) -> S:
        @pytest.fixture(autouse=True, params=registry.names(kind, ours=True))
        def one(self: Any, request: pytest.FixtureRequest) -> None:
            self.name = request.param
            self.make = lambda *rest: make(kind, request.param, *rest)

        cls.one = one  # type: ignore[attr-defined]
        return cls

    return decorate


@cache
def trained(name: str, rx: int, tx: int, subcarriers: int) -> Any:
    stage = made("enhance", name)
    if isinstance(stage, TrainableEnhancer):
        stage.fit(*pair(7, 120, rx, tx, subcarriers), np.random.default_rng(1))
    return stage


@over("probing")
class TestWaveforms(testing.WaveformSuite):
    pass


@over("csi")
class TestEstimators(testing.EstimatorSuite):
    pass


@over("enhance")
class TestEnhancers(testing.EnhancerSuite):
    name: str

    def ready(self, rx: int = 1, tx: int = 1, subcarriers: int = 64) -> Any:
        return trained(self.name, rx, tx, subcarriers)


@over("quantize")
class TestQuantizers(testing.QuantizerSuite):
    pass


@over("reconcile")
class TestReconcilers(testing.ReconcilerSuite):
    pass


@over("policy")
class TestPolicies(testing.PolicySuite):
    pass


@over("search")
class TestSearches(testing.SearchSuite):
    pass


@over("beams")
class TestBeamPolicies(testing.BeamPolicySuite):
    @pytest.fixture(autouse=True)
    def checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: None) -> None:
        """A policy that was never trained stands for `agent`'s; tests/unit/test_agents.py has trained ones."""
        if self.name != "agent":  # type: ignore[attr-defined]
            return
        path = tmp_path / "saved.pt"
        path.touch()
        path.with_suffix(".json").touch()
        learned = SimpleNamespace(
            view="none", n_antennas=4, learner=SimpleNamespace(stack=SimpleNamespace(history=3)),
            act=lambda role, h, fred=None: (h.sum(axis=0) / np.linalg.norm(h.sum(axis=0))).astype(np.complex64),
        )  # fmt: skip
        stand_in = SimpleNamespace(load_policy=lambda path, run: learned)
        monkeypatch.setitem(sys.modules, "testbed.agents.policy", stand_in)  # type: ignore[arg-type]
        monkeypatch.setitem(OPTIONS, ("beams", "agent"), {"checkpoint": str(path)})


@over("attacks", lambda kind, name, *seed: registry.find(kind, name)(*seed))
class TestAttacks(testing.AttackSuite):
    pass


@over("health", lambda kind, name: registry.find(kind, name)())
class TestHealthChecks(testing.HealthCheckSuite):
    pass


@over("report_sections", lambda kind, name: registry.find(kind, name)())
class TestReportSections(testing.ReportSectionSuite):
    pass


def test_one_call_names_every_sentence_that_does_not_hold() -> None:
    scalar = registry.find("quantize", "scalar")

    class Forgetful(scalar):  # type: ignore[misc,valid-type]
        """Remembers how often it was asked, which the contract forbids."""

        asked = 0

        def lead(self, features: Any, rng: Any) -> Any:
            Forgetful.asked += 1
            draft, message = super().lead(features, rng)
            draft.values[: Forgetful.asked % 7] ^= 1
            return draft, message

    testing.check_quantizer(scalar)
    with pytest.raises(AssertionError, match=r"of 1[0-9] sentences of the quantizer contract do not hold") as told:
        testing.check_quantizer(Forgetful)
    assert "nothing is remembered from one block to the next" in str(told.value)
