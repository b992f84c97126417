"""The examples in the docstrings of the contracts run."""

from __future__ import annotations

import doctest
import importlib

import pytest

CONTRACTS = {
    "testbed.core.stages": (
        "Sounder", "CsiEstimator", "Enhancer", "Quantizer", "Reconciler", "SurfacePolicy", "BeamPolicy",
        "SurfaceSearch",
    ),
    "testbed.core.options": ("Configurable", "accepted"),
    "testbed.core.radio": ("Radio", "Limits"),
    "testbed.core.ris": ("Board",),
    "testbed.core.world": ("Emulator",),
    "testbed.entropy.attack": ("Attack",),
    "testbed.assess.health": ("HealthCheck",),
    "testbed.report.section": ("Section",),
    "testbed.replay.sources": ("",),
}  # fmt: skip
"""Module → what has to have an example; "": the module itself."""


@pytest.mark.parametrize("module", CONTRACTS)
def test_every_contract_has_an_example_that_runs(module: str) -> None:
    found = importlib.import_module(module)
    # without the module's own __future__ import, which a reader who copies an example does not have
    names = {k: v for k, v in vars(found).items() if k != "annotations"}
    runner = doctest.DocTestRunner(verbose=False)
    with_examples = set()
    for test in doctest.DocTestFinder().find(found, globs=names):
        if test.examples:
            with_examples.add(test.name.removeprefix(module).removeprefix("."))
            assert runner.run(test).failed == 0, test.name
    assert set(CONTRACTS[module]) <= with_examples
