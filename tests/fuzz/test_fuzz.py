"""A short run of every fuzzer; long ones: `scripts/fuzz all --inputs 100000`."""

from __future__ import annotations

import fuzzers
import pytest
import targets

SLOW = {
    "coordinator": 8,
    "scheduling": 60,
    "dialogue": 25,
    "training": 30,
    "amplification": 100,
    "run_folder": 60,
    "report": 4,
    "iio": 60,
    "overheard": 25,
    "dataset": 60,
    "ris595": 100,
}
"""Inputs of the targets that take more than a millisecond for one."""


@pytest.mark.parametrize("name", targets.TARGETS)
def test_bad_inputs_do_no_harm(name: str) -> None:
    found = fuzzers.run(name, iter(range(SLOW.get(name, 300))), seed=1)
    assert not found.harm, found.line()
    assert found.inputs == sum(found.outcomes.values())
    assert "refused" in found.outcomes, found.line()  # the inputs are bad ones


def test_harm_is_noticed_and_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuzzer that finds nothing must be one that would."""
    import contextlib

    def feed(rng):  # type: ignore[no-untyped-def]
        if rng.random() < 0.05:
            raise KeyError("harm")
        return "refused"

    monkeypatch.setitem(targets.TARGETS, "broken", lambda folder: contextlib.nullcontext(feed))
    found = fuzzers.run("broken", iter(range(1000)), seed=2)
    assert len(found.harm) == 5
    assert "KeyError" in found.harm[0]
    again = fuzzers.run("broken", iter([int(found.harm[0].split("--only ")[1].split(":")[0])]), seed=2)
    assert len(again.harm) == 1
