"""The contract of `assess.health.HealthCheck`."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from testbed.assess.health import HealthCheck, Measured
from testbed.core.types import F64
from testbed.testing._suite import Suite, check


def check_health_check(make: Callable[[], HealthCheck]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(HealthCheckSuite, make)


def measurements() -> dict[str, Measured]:
    """Return measurements that a check may get, unusual ones included, by a name for messages."""
    rng = np.random.default_rng(4)
    common = rng.normal(scale=4.0, size=(300, 6))

    def end(own: float = 0.4) -> F64:
        return np.asarray(common + own * rng.normal(size=common.shape))

    eve = {"alice": rng.normal(scale=4.0, size=(300, 6))}
    snr = (np.full(300, 25.0), np.full(300, 24.0))
    holed = end()
    holed[rng.random(holed.shape) < 0.3] = np.nan
    nothing, gone = np.full((300, 6), np.nan), np.zeros((0, 6))
    return {
        "a good run": Measured(end(), end(), eve, snr),
        "no Eve and no SNR": Measured(end(), end(), {}, None),
        "holes": Measured(holed, end(), {"bob": holed}, (np.full(300, np.nan), snr[1])),
        "constant levels": Measured(np.full((300, 6), -40.0), np.full((300, 6), -41.0), {}, snr),
        "one probe": Measured(end()[:1], end()[:1], {}, None),
        "no measurement": Measured(nothing, nothing, {}, None),
        "no probe": Measured(gone, gone, {}, (np.zeros(0), np.zeros(0))),
        "other channels": Measured(end(), rng.normal(size=(300, 6)), eve, snr),
    }


class HealthCheckSuite(Suite):
    """`make()` returns a health check."""

    contract = "health check"

    def test_answers_whatever_was_measured(self) -> None:
        for what, m in measurements().items():
            for verdict in self.fresh().verdicts(m):
                assert re.fullmatch(r"[a-z][a-z0-9_]*", verdict.check), f"{what}: name {verdict.check!r}"
                assert isinstance(verdict.ok, bool), f"{what}: ok is no bool"
                assert verdict.detail.rstrip().endswith("."), f"{what}: {verdict.detail!r} is no sentence"
                assert "\n" not in verdict.detail
                assert all(isinstance(v, float) for v in verdict.values.values()), f"{what}: {verdict.values}"

    def test_no_two_verdicts_have_one_name(self) -> None:
        for what, m in measurements().items():
            names = [v.check for v in self.fresh().verdicts(m)]
            assert len(names) == len(set(names)), f"{what}: {names}"

    def test_says_something_about_a_run(self) -> None:
        assert any(self.fresh().verdicts(m) for m in measurements().values())

    def test_is_deterministic_and_leaves_arrays_alone(self) -> None:
        m = measurements()["a good run"]
        before = m.alice_db.copy(), m.bob_db.copy()
        one, two = self.fresh().verdicts(m), self.fresh().verdicts(m)
        assert one == two
        np.testing.assert_array_equal(m.alice_db, before[0])
        np.testing.assert_array_equal(m.bob_db, before[1])
