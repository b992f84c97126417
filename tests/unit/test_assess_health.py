import numpy as np
import pytest

from testbed.assess import health
from testbed.assess.checks.ends_differ import ends_differ
from testbed.assess.checks.gain_steps import gain_steps
from testbed.assess.checks.pairing import pairing
from testbed.assess.checks.reciprocal_variation import reciprocal_variation
from testbed.assess.checks.slow_drift import slow_drift
from testbed.core.stages import Verdict

N, D = 240, 8


def fading(seed: int, memory: float = 0.0) -> np.ndarray:
    """Complex Gaussian channel (probe, dimension) with AR(1) memory."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(N, D)) + 1j * rng.normal(size=(N, D))
    h = w.copy()
    for i in range(1, N):
        h[i] = memory * h[i - 1] + np.sqrt(1 - memory**2) * w[i]
    return h


def heard(h: np.ndarray, seed: int, snr_db: float = 20.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape)
    return 20 * np.log10(np.abs(h + n * 10 ** (-snr_db / 20)))


def failing(verdicts: list[Verdict]) -> set[str]:
    return {v.check for v in verdicts if not v.ok}


def test_a_good_bench_passes_every_check() -> None:
    for seed in range(10):
        h = fading(seed, memory=0.5)
        verdicts = health.check(heard(h, 100 + seed), heard(h, 200 + seed), {"alice": heard(fading(300 + seed), 1)})
        assert failing(verdicts) == set()
        assert all(v.detail.endswith(".") for v in verdicts)


def test_static_channel_is_named_as_such() -> None:
    h = np.tile(fading(1)[:1], (N, 1))
    verdict = reciprocal_variation(heard(h, 2), heard(h, 3))
    assert not verdict.ok
    assert "static" in verdict.detail
    assert verdict.values["common_std_db"] < verdict.values["own_std_db"]


def test_slow_drift_does_not_count_as_fading() -> None:
    drift = np.cumsum(np.random.default_rng(4).normal(size=(N, 1)), axis=0)
    rng = np.random.default_rng(5)
    a, b = drift + 1.5 * rng.normal(size=(N, 1)), drift + 1.5 * rng.normal(size=(N, 1))
    verdict = slow_drift(a, b)
    assert not verdict.ok
    assert verdict.values["r"] > 0.8


@pytest.mark.parametrize("shift", [1, -3, 20])
def test_wrong_pairing_is_found_with_its_shift(shift: int) -> None:
    h = fading(6)
    verdict = pairing(np.roll(heard(h, 7), shift, axis=0), heard(h, 8))
    assert not verdict.ok
    assert verdict.values["best_shift"] == shift


def test_unrelated_ends_are_not_called_wrongly_paired() -> None:
    for seed in range(10):
        assert pairing(heard(fading(seed), 1), heard(fading(50 + seed), 2)).ok


def test_stuck_receiver_is_found_by_name() -> None:
    h = fading(9)
    stuck = np.full((N, D), -66.0)
    stuck[::20] = -64.0
    found = health.check(heard(h, 10), heard(h, 11), {"alice": stuck, "bob": heard(fading(12), 13)})
    assert failing(found) == {"receiver_eve_hearing_alice"}
    (detail,) = [v.detail for v in found if v.check == "receiver_eve_hearing_alice"]
    assert detail.startswith("Eve (hearing Alice) measured the same level in ")
    assert "receiver_bob" in failing(health.check(heard(h, 10), stuck, None))
    assert "receiver_alice" in failing(health.check(np.full((N, D), np.nan), heard(h, 11), None))


@pytest.mark.parametrize(("end", "sign"), [("Alice", 1.0), ("Bob", -1.0)])
def test_gain_step_at_one_end_is_found_and_placed(end: str, sign: float) -> None:
    h = fading(14)
    a, b = heard(h, 15), heard(h, 16)
    (a if end == "Alice" else b)[150:] += sign * 6.0
    verdict = gain_steps(a, b)
    assert not verdict.ok
    assert verdict.values["steps"] == 1.0
    assert verdict.values["largest_db"] == pytest.approx(6.0, abs=0.5)
    assert f"at {end}" in verdict.detail
    probe = int(verdict.detail.split("at probe ")[1].split(",")[0])
    assert abs(probe - 150) <= 8


def test_step_of_the_channel_itself_is_no_gain_step() -> None:
    h = fading(17)
    h[150:] *= 4.0
    assert gain_steps(heard(h, 18), heard(h, 19)).ok


def test_eve_absent_and_eve_too_close() -> None:
    h = fading(20)
    a, b = heard(h, 21), heard(h, 22)
    assert failing(health.check(a, b, None)) == {"eve_measured"}
    assert failing(health.check(a, b, {"bob": np.full((N, D), np.nan)})) == {"eve_measured"}
    near = 0.9 * h + np.sqrt(1 - 0.9**2) * fading(23)
    assert failing(health.check(a, b, {"bob": heard(near, 24)})) == {"eve_distinct"}


def test_nothing_measured_is_reported_not_raised() -> None:
    empty = np.zeros((0, D))
    found = health.check(empty, empty, {"alice": empty})
    assert {"receiver_alice", "receiver_bob", "reciprocal_variation", "eve_measured"} <= failing(found)


def test_one_measurement_for_both_ends_is_named() -> None:
    levels = heard(fading(1, 0.5), 2)
    verdict = ends_differ(levels, levels + 3.0)  # a constant gain does not make it another measurement
    assert not verdict.ok
    assert "100% of the levels at Alice and Bob are equal" in verdict.detail
    assert "ends_differ" in failing(health.check(levels, levels.copy(), {}))


def test_levels_in_whole_decibels_are_two_measurements() -> None:
    h = fading(1, 0.5)
    alice, bob = (np.round(heard(h, seed, 30.0)) for seed in (2, 3))
    verdict = ends_differ(alice, bob)
    assert verdict.ok
    assert verdict.values["equal_share"] > 0.5


def test_a_static_channel_in_whole_decibels_is_no_copy() -> None:
    still = np.full((N, D), -40.0)
    assert ends_differ(still, still.copy()).ok
    assert ends_differ(still[:3], still[:3]).ok
    assert ends_differ(np.full((N, D), np.nan), still).ok
