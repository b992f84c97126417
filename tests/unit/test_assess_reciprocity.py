"""Is a difference between the two directions noise, or did something change the channel between them?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.assess import compare, health
from testbed.assess.checks.reciprocity import reciprocity

N, D = 200, 32


def gaussian(seed: int, *shape: int) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


def level_db(h: Any, snr_db: float, seed: int) -> Any:
    return 20 * np.log10(np.abs(h + 10 ** (-snr_db / 20) * gaussian(seed, *h.shape)))


def verdict(a: Any, b: Any, snr_db: float) -> Any:
    return reciprocity(a, b, np.full(N, snr_db), np.full(N, snr_db))


@pytest.mark.parametrize("snr_db", [12.0, 20.0, 35.0])
def test_noise_alone_is_known_as_noise(snr_db: float) -> None:
    h = gaussian(1, N, D)
    found = verdict(level_db(h, snr_db, 2), level_db(h, snr_db, 3), snr_db)
    assert found.ok
    assert found.values["own_std_db"] == pytest.approx(found.values["noise_std_db"], rel=0.35)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_flip_between_the_slots_is_named(share: float) -> None:
    h = gaussian(1, N, D)
    flipped = [np.sqrt(1 - share**2) * h + share * gaussian(s, N, D) for s in (4, 5)]
    found = verdict(level_db(flipped[0], 25, 2), level_db(flipped[1], 25, 3), 25)
    assert not found.ok
    assert "The channel is not reciprocal" in found.detail
    assert "adversary's surface" in found.detail
    assert "gain control" in found.detail
    combined = health.check(level_db(flipped[0], 25, 2), level_db(flipped[1], 25, 3), None, (np.full(N, 25.0),) * 2)
    assert "reciprocity" in {v.check for v in combined if not v.ok}


def test_constant_differences_of_uncalibrated_hardware_are_no_flip() -> None:
    h = gaussian(1, N, D)
    colour_db = np.random.default_rng(6).uniform(-6, 6, D)
    assert verdict(level_db(h, 25, 2) + colour_db, level_db(h, 25, 3) - 4.0, 25).ok


def test_where_noise_may_explain_it_nothing_is_claimed() -> None:
    found = verdict(level_db(gaussian(1, N, D), 5, 2), level_db(gaussian(7, N, D), 5, 3), 5)
    assert found.ok
    assert "SNR is too low" in found.detail
    assert reciprocity(*(np.full((N, D), np.nan),) * 2, *(np.full(N, np.nan),) * 2).ok
    assert "reciprocity" not in {v.check for v in health.check(np.zeros((0, D)), np.zeros((0, D)), None)}


def test_agreed_information_is_not_fooled_by_quantized_noise() -> None:
    def rate(p: float) -> Any:
        return compare.agreed_rate_bps({"raw_rate_bps": 100.0, "kdr_raw": p})

    assert rate(0.0) == 100.0
    assert rate(0.5) == pytest.approx(0.0, abs=1e-9)
    assert rate(0.11) == pytest.approx(50.0, abs=0.1)
    assert compare.agreed_rate_bps({"raw_rate_bps": 100.0, "kdr_raw": None}) is None


def test_runs_are_compared_figure_by_figure() -> None:
    rows = {
        r.name: r for r in compare.compare({"key_bits": 30, "raw_rate_bps": 5.0}, {"key_bits": 2, "raw_rate_bps": 0.0})
    }
    assert rows["key bits"].ratio == 15
    assert rows["raw rate"].ratio is None
    assert rows["key rate"].ratio is None
    ours = {"title": "a", "surface": {"policy": "random", "options": {}}, "rounds": 5}
    theirs = {"title": "b", "surface": {"policy": "fixed", "options": {}}, "rounds": 5, "seed": 1}
    assert compare.differences(ours, theirs) == ["seed", "surface.policy"]


def test_a_disagreement_of_one_half_gives_no_information_and_bounds_the_ratio() -> None:
    noise = {"raw_rate_bps": 80.0, "kdr_raw": 0.48, "raw_bits": 4000}
    assert compare.agreed_rate_bps(noise) == 0.0
    most = compare.agreed_at_most_bps(noise)
    low = 0.48 - 1.5 / np.sqrt(4000)
    assert most == pytest.approx(80.0 * (1 + low * np.log2(low) + (1 - low) * np.log2(1 - low)))
    row = {r.name: r for r in compare.compare({"raw_rate_bps": 90.0, "kdr_raw": 0.0, "raw_bits": 4000}, noise)}[
        "rate of agreed information"
    ]
    assert row.ratio is None
    assert row.ratio_at_least == pytest.approx(90.0 / most)
    sure = {**noise, "raw_bits": 40_000}
    assert compare.agreed_rate_bps(sure) > 0
    assert compare.agreed_at_most_bps(sure) is None
