"""What others may know of a string: Eve's reports, good and garbage, over blocks; the surface as far as public."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed.chain import knowledge as k
from testbed.chain.agreement import Agreed
from testbed.chain.dialogue import run
from testbed.chain.pipeline import KeyChain
from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import InputError
from testbed.core.outcomes import HeardSeries, SurfaceRecord
from testbed.core.types import CsiSeries, Features
from testbed.entropy.attack import portfolio
from testbed.entropy.judge import judge

N, CARRIERS = 80, 8
CHAIN = KeyChain(ChainPlan(enhance_options={"step": 1}), Accounting())


def csi(seed: int = 1, noise: float = 0.03, first: int = 0, antennas: int = 1) -> CsiSeries:
    rng = np.random.default_rng(1)
    own = np.random.default_rng(seed)
    shape = (N, antennas, 1, CARRIERS)
    h = rng.normal(size=(*shape, 2)) + noise * own.normal(size=(*shape, 2))
    return CsiSeries((h @ [1, 1j]).astype(np.complex64), np.arange(first, first + N), np.arange(CARRIERS) * 1e6)


@cache
def agreed() -> Agreed:
    alice, _, _ = run(CHAIN.agree("alice", csi(2), 0, 1), CHAIN.agree("bob", csi(3), 0, 1))
    assert alice.report.verified
    return alice


def series(name: str = "eve.0:alice", first: int = 0, n: int = 5, columns: int = 2, **changes: Any) -> HeardSeries:
    values = Features(np.arange(n * columns, dtype=np.float64).reshape(n, columns), np.arange(first, first + n))
    return msgspec.structs.replace(k.heard_series(name, values), **changes)


# ---------------------------------------------------------------- what Eve reports


def test_a_series_is_read_as_it_was_sent() -> None:
    features = Features(np.array([[1.5, np.nan], [-2.0, 4.0]]), np.array([3, 9]))
    h = (np.arange(2 * 40) * (1 + 2j)).reshape(2, 1, 1, 40).astype(np.complex64)
    heard = k.read_heard(k.heard_series("eve.1:bob", features, CsiSeries(h, features.rounds, np.arange(40.0))))
    assert (heard.name, heard.node, heard.link) == ("eve.1:bob", "eve", "bob")
    assert heard.rounds.tolist() == [3, 9]
    np.testing.assert_array_equal(heard.values, features.values)
    assert heard.csi is not None
    # eight channels, evenly over the band, both ends among them
    np.testing.assert_array_equal(heard.csi, h[:, 0, 0, [0, 6, 11, 17, 22, 28, 33, 39]])
    assert k.read_heard(series()).csi is None


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": b""},
        {"rounds": b"\0" * 39},
        {"rounds": np.array([0, 1, 2, 2, 3], "<i8").tobytes()},
        {"rounds": np.array([4, 3, 2, 1, 0], "<i8").tobytes()},
        {"values": b""},
        {"values": b"\0" * 41},
        {"values": np.full(10, np.inf, "<f4").tobytes()},
        {"dimensions": 0},
        {"dimensions": -2},
        {"dimensions": 3},
        {"dimensions": 1 << 40},
        {"channels": 1},
        {"channels": -1},
        {"channels": k.MOST_CHANNELS + 1, "csi": b"\0" * 8 * 5 * (k.MOST_CHANNELS + 1)},
        {"channels": 1, "csi": np.full(5, np.inf, "<c8").tobytes()},
    ],
)
def test_garbage_is_refused_in_one_line_and_counted(changes: dict[str, Any]) -> None:
    wrong = series(**changes)
    with pytest.raises(InputError) as refused:
        k.read_heard(wrong)
    assert "\n" not in str(refused.value)
    known = k.Knowledge()
    known.add_heard([wrong, series("eve.0:bob")])
    assert known.refused_series == 1
    assert [h.name for h in known.facts(agreed()).heard] == ["eve.0:bob"]


def test_nan_means_that_she_heard_nothing() -> None:
    silent = series(values=np.full(10, np.nan, "<f4").tobytes())
    assert np.isnan(k.read_heard(silent).values).all()


@pytest.mark.parametrize("rounds", [np.arange(5) + (1 << 31), np.arange(5) - 3, np.arange(5) + (1 << 62)])
def test_rounds_that_no_run_has_are_refused(rounds: Any) -> None:
    """The judge looked them up in arrays as long as the run, and the block had no key."""
    with pytest.raises(InputError, match="that no run has"):
        k.read_heard(series(rounds=rounds.astype("<i8").tobytes()))
    with pytest.raises(InputError, match="that no run has"):
        k.read_heard(series(values=np.full(10, 3e38, "<f4").tobytes()))


def test_an_antenna_that_hears_nothing_or_stands_still_is_left_out_and_its_neighbours_count() -> None:
    """An Eve who reported nothing but NaN, or a constant, made every attack fail, and so every key."""
    known = k.Knowledge()
    mixed = np.stack([np.arange(5.0), np.full(5, 2.0)], 1).astype("<f4").tobytes()
    known.add_heard(
        [
            series("eve.0:alice", values=np.full(10, np.nan, "<f4").tobytes()),
            series("eve.1:alice", values=np.zeros(10, "<f4").tobytes()),
            series("eve.2:alice", values=mixed),
        ]
    )
    (heard,) = known.facts(agreed()).heard
    assert heard.name == "eve.2:alice"
    assert heard.values[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert np.isnan(heard.values[:, 1]).all()


def test_more_rounds_than_a_run_has_are_refused() -> None:
    n = k.MOST_ROUNDS + 1
    with pytest.raises(InputError, match=f"is not {n} rounds of 2 features"):
        k.read_heard(series(n=n))
    assert k.read_heard(series(n=k.MOST_ROUNDS)).rounds.size == k.MOST_ROUNDS
    with pytest.raises(InputError, match="is not 1 rounds"):
        k.read_heard(series(n=1, columns=k.MOST_DIMENSIONS + 1))


def test_series_beyond_the_most_are_left_out_and_counted() -> None:
    known = k.Knowledge()
    known.add_heard([series(f"eve.{i}:alice") for i in range(k.MOST_SERIES + 3)])
    assert known.refused_series == 3
    assert len(known.facts(agreed()).heard) == k.MOST_SERIES


def test_what_would_keep_the_judge_busy_is_left_out_and_counted() -> None:
    """64 series took Alice minutes, and so did one of 1024 features or of rounds that there never were."""
    known = k.Knowledge(most_series=2)
    known.add_heard([series("eve.0:alice"), series("eve.0:bob"), series("eve.1:alice")])
    assert known.refused_series == 1
    known.add_heard([series("eve.2:alice"), series("eve.0:alice", first=5)])  # in a later block, too
    assert known.refused_series == 2
    assert [h.name for h in known.facts(agreed()).heard] == ["eve.0:alice", "eve.0:bob"]
    known = k.Knowledge()
    known.add_heard([series("eve.0:alice"), series("eve.0:bob", first=1)], last_round=4)
    assert known.refused_series == 1
    own = agreed().features.values.shape[1]
    known.add_heard([series("eve.1:alice", columns=4 * own), series("eve.1:bob", columns=4 * own + 1)])
    assert [h.name for h in known.facts(agreed()).heard] == ["eve.0:alice", "eve.1:alice"]
    assert known.refused_series == 2


def test_blocks_of_one_series_are_joined_and_each_round_occurs_once() -> None:
    known = k.Knowledge()
    known.add_heard([series(first=0)])
    known.add_heard([series(first=5, columns=3)])
    known.add_heard([series(first=9)])  # its first round was reported before
    assert known.refused_series == 1
    (heard,) = known.facts(agreed()).heard
    assert heard.rounds.tolist() == list(range(10))
    assert heard.values.shape == (10, 3)
    assert np.isnan(heard.values[:5, 2]).all()  # a dimension that this block lacked
    assert np.isfinite(heard.values[5:]).all()


def test_csi_is_kept_where_every_block_has_the_same_channels() -> None:
    one = {"channels": 1, "csi": np.ones(5, "<c8").tobytes()}
    same, mixed = k.Knowledge(), k.Knowledge()
    for known, second in ((same, one), (mixed, {})):
        known.add_heard([series(first=0, **one)])
        known.add_heard([series(first=5, **second)])
    assert same.facts(agreed()).heard[0].csi is not None
    assert mixed.facts(agreed()).heard[0].csi is None


def test_each_antenna_and_link_is_a_series_of_its_own() -> None:
    told = CHAIN.report_series(csi(5, antennas=3), csi(6, antennas=2))
    assert [s.name for s in told] == ["eve.0:alice", "eve.0:bob", "eve.1:alice", "eve.1:bob", "eve.2:alice"]
    known = k.Knowledge()
    known.add_heard(told)
    assert known.refused_series == 0
    facts = known.facts(agreed())
    assert {h.node for h in facts.heard} == {"eve"}
    second = replace(csi(5, antennas=3), h=csi(5, antennas=3).h[:, 1:2])
    np.testing.assert_allclose(facts.heard[2].values, CHAIN.features(second, "eve").values, rtol=1e-6)


def test_who_hears_too_little_does_not_count_as_measured() -> None:
    heard = CHAIN.report_series(csi(5), None)
    for lost, measured in ((0, True), (15, True), (17, False), (N, False)):
        known = k.Knowledge()
        gaps = csi(5)
        gaps.h[:lost] = np.nan
        known.add_heard(CHAIN.report_series(gaps, None))
        assert k.covered(known.facts(agreed())) == measured, lost
    elsewhere = k.Knowledge()
    elsewhere.add_heard([msgspec.structs.replace(heard[0], rounds=np.arange(1000, 1000 + N).astype("<i8").tobytes())])
    assert not k.covered(elsewhere.facts(agreed()))


# ---------------------------------------------------------------- Alice's string and what came before


def test_facts_are_of_whole_labels_and_the_sacrificed_ones_are_published() -> None:
    alice = agreed()
    facts = k.Knowledge().facts(alice)
    assert facts.kept_bits == alice.values.size
    assert int(facts.bits[facts.published].sum()) == alice.report.sacrificed_bits
    assert (facts.heard, facts.earlier, facts.states, facts.patterns) == ((), (), None, None)
    np.testing.assert_array_equal(facts.features, alice.features.values)
    assert facts.csi is not None
    assert facts.csi.shape == (N, k.MOST_CHANNELS)


def test_states_of_training_and_of_failed_blocks_are_known() -> None:
    known = k.Knowledge()
    known.add_features("training", Features(np.ones((3, CARRIERS)), np.array([-9, -8, -7])))
    told = SurfaceRecord(states=tuple(range(N)), other_rounds=(-9, -7), other_states=(4, 2))
    states = known.facts(agreed(), told).earlier[0].states
    assert states is not None
    assert states[[0, 2]].tolist() == [4, 2]
    assert states[1] < 0
    with pytest.raises(InputError):
        known.facts(agreed(), msgspec.structs.replace(told, other_states=(4,)))


def test_earlier_blocks_are_known_with_their_rounds_and_states() -> None:
    known = k.Knowledge()
    alice = agreed()
    before = Features(np.ones((3, CARRIERS)), np.array([-9, -8, -7]))
    known.add_features("training", before)
    known.facts(alice, SurfaceRecord(states=tuple(range(N))))
    known.add_features("block 0", alice.features)
    facts = known.facts(alice, SurfaceRecord(states=tuple(range(N))))
    assert [e.name for e in facts.earlier] == ["training", "block 0"]
    assert facts.earlier[0].rounds.tolist() == [-9, -8, -7]
    # unreported states are taken as all different
    assert len(set(facts.earlier[0].states.tolist())) == 3
    assert facts.earlier[0].states.max() < 0
    assert facts.earlier[1].states.tolist() == list(range(N))
    assert all(e.same_run for e in facts.earlier)


# ---------------------------------------------------------------- the surface


def test_secret_patterns_are_numbers_and_public_ones_are_coefficients() -> None:
    states = tuple(i % 4 for i in range(N))
    secret = k.Knowledge().facts(agreed(), SurfaceRecord(states=states))
    assert secret.states.tolist() == list(states)
    assert secret.patterns is None
    levels = np.arange(N * 6, dtype=np.uint8).reshape(N, 6) % 4
    public = k.Knowledge().facts(agreed(), SurfaceRecord(states=states, levels=levels.tobytes(), phase_bits=2))
    np.testing.assert_allclose(public.patterns, 1j**levels, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"states": (0,) * (N - 1)},
        {"states": ()},
        {"levels": b""},
        {"levels": b"\0" * (6 * N - 1)},
        {"phase_bits": 0},
        {"phase_bits": 9},
        {"levels": b"\0" * N * ((1 << 16) + 1)},
    ],
)
def test_a_surface_that_does_not_fit_the_block_is_an_input_error(change: dict[str, Any]) -> None:
    good = {"states": (0,) * N, "levels": b"\0" * 6 * N, "phase_bits": 1}
    assert k.Knowledge().facts(agreed(), SurfaceRecord(**good)).patterns is not None
    with pytest.raises(InputError, match="accepted") as refused:
        k.Knowledge().facts(agreed(), SurfaceRecord(**{**good, **change}))
    assert "\n" not in str(refused.value)


def test_a_training_on_the_channels_of_a_block_leaves_nothing_of_it() -> None:
    """As a replay of a measured set has it that was walked twice: training counts its rounds backwards from 0."""
    left = {}
    for what, csi_then in (("the same", csi(5, first=-N - 40)), ("others", turned(csi(5, first=-N - 40)))):
        known = k.Knowledge()
        published = CHAIN.features(csi_then, "alice")
        assert published is not None
        known.add_features("training", published)
        facts = known.facts(agreed())
        assert facts.earlier[0].rounds.tolist() == list(range(-N - 40, -40))
        found = judge(facts, attacks=portfolio(names=["recurrence", "recurrence_piecewise", "string_near"]))
        assert not found.failures
        left[what] = found.min_entropy("estimated") / found.kept_bits
    assert left["the same"] < 0.2 < 0.4 < left["others"]


def turned(series: CsiSeries) -> CsiSeries:
    """Return a series of as many channels, none of which is like the given ones."""
    rng = np.random.default_rng(8)
    h = (rng.normal(size=(*series.h.shape, 2)) @ [1, 1j]).astype(np.complex64)
    return CsiSeries(h, series.rounds, series.subcarrier_hz)
