"""The contract of a study (`papers`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from testbed.papers.kit.study import Study
from testbed.testing._suite import Suite, check


def check_study(make: Callable[[], Any]) -> None:
    """Raise AssertionError unless the study that `make` returns keeps the contract; runs it twice, quickly."""
    check(StudySuite, make)


class StudySuite(Suite):
    """`make()` returns a study's module (or object), whose quick run takes under a minute."""

    contract = "study"

    def results(self) -> dict[str, Any]:
        module = self.fresh()
        with Study("held", module.PAPER, quick=True) as study:
            module.run(study)
        found: dict[str, Any] = json.loads(json.dumps(study.results(0.0), allow_nan=False))
        return found

    def test_says_what_it_is_about(self) -> None:
        module = self.fresh()
        assert isinstance(module.PAPER, str)
        assert module.PAPER

    def test_gives_figures_and_claims_and_the_same_twice(self) -> None:
        results = self.results()
        assert results["claims"]
        assert results["parameters"]
        for claim in results["claims"]:
            assert claim["claim"]
            assert claim["holds"] or not claim["must_hold"], f"a claim marked must_hold does not hold: {claim['claim']}"
        for name, figure in results["figures"].items():
            n = len(figure["x"])
            assert figure["title"], name
            assert all(len(curve) == n for curve in figure["curves"].values()), name
        again = self.results()
        assert again["figures"] == results["figures"]
        assert [c["claim"] for c in again["claims"]] == [c["claim"] for c in results["claims"]]
