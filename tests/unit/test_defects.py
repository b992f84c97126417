"""CSI with defects: each is found, named, masked or repaired by rule, counted, in the chain and in a replay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.assess.checks.bin_order import bin_order
from testbed.chain import dialogue
from testbed.chain.defects import Defects, gain_steps, mend
from testbed.chain.pipeline import KeyChain
from testbed.core.config import Accounting, ChainPlan
from testbed.core.types import CsiSeries
from testbed.entropy import attack, judge
from testbed.nodes import key_maker
from testbed.replay import replay as module
from testbed.replay.sources import Cut, EveLinks, Recording

BINS, PROBES = 64, 600
CHAIN = ChainPlan(enhance_options={"step": 8}, quantize="scalar", quantize_options={"bits": 1, "guard": 0.2})


def series(h: np.ndarray[Any, Any]) -> CsiSeries:
    """Of h (probe, subcarrier), one antenna at each end."""
    n, bins = h.shape
    return CsiSeries(
        h[:, None, None, :].astype(np.complex64), np.arange(n), (np.arange(bins) - bins / 2) * 312_500.0
    )  # fmt: skip


def channel(seed: int, probes: int = PROBES, memory: float = 0.0, taps: int = 6) -> np.ndarray[Any, Any]:
    """Return (probe, subcarrier) of a few taps over half a symbol, each Rayleigh; `memory`: from probe to probe."""
    rng = np.random.default_rng(seed)
    gains = (rng.normal(size=(probes, taps, 2)) @ [1, 1j]) * np.exp(-np.arange(taps) / 3)
    for i in range(1, probes):
        gains[i] = memory * gains[i - 1] + np.sqrt(1 - memory**2) * gains[i]
    return gains @ np.exp(-1j * np.pi * np.outer(np.arange(taps), np.arange(BINS) - BINS / 2) / BINS)


def noisy(h: np.ndarray[Any, Any], seed: int, snr_db: float = 25.0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    scale = 10 ** (-snr_db / 20) * np.sqrt((np.abs(h) ** 2).mean() / 2)
    return h + scale * (rng.normal(size=(*h.shape, 2)) @ [1, 1j])


def nan_block(h):
    h[:, 10:18] = np.nan


def nan_comb(h):
    h[:, ::8] = np.nan


def zeros(h):
    h[:, 30:33] = 0


def stuck(h):
    h[:, 7] = 3 + 1j


def faint(h):
    h[:, 20:24] *= 1e-3


def jumping(h):
    h[:, [5, 40]] *= 10 ** np.random.default_rng(1).normal(size=(len(h), 2))


def noise_only(h):
    h[:, 20:28] = np.abs(h).mean() * (np.random.default_rng(1).normal(size=(len(h), 8, 2)) @ [1, 1j])


def holes(h):
    h[np.arange(60), np.random.default_rng(1).integers(0, BINS, 60)] = np.nan


def spikes(h):
    h[np.arange(60), np.random.default_rng(1).integers(0, BINS, 60)] *= 200


def broken(h):
    h[50:60, :40] = np.nan


def too_loud(h):
    h[np.random.default_rng(1).choice(len(h), 18, False)] *= 30


def too_faint(h):
    h[np.random.default_rng(1).choice(len(h), 18, False)] /= 100


CASES = [
    (nan_block, {"dead_bins": 8}, list(range(10, 18)), 8),
    (nan_comb, {"dead_bins": 8}, list(range(0, 64, 8)), 8),
    (zeros, {"dead_bins": 3}, [30, 31, 32], 3),
    (stuck, {"dead_bins": 1}, [7], 1),
    (faint, {"dead_bins": 4}, [20, 21, 22, 23], 4),
    (jumping, {"jumping_bins": 2}, [5, 40], 2),
    (noise_only, {"jumping_bins": 8}, list(range(20, 28)), 8),
    (holes, {"filled_values": 60}, [], 0),
    (spikes, {"filled_values": 60}, [], 0),
    (broken, {"broken_frames": 10}, [], 0),
    (too_loud, {"outlier_frames": 18}, [], 0),
    (too_faint, {"outlier_frames": 18}, [], 0),
]


@pytest.mark.parametrize(("harm", "counts", "bins", "guessed"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_each_defect_is_found_counted_and_mended(harm, counts, bins, guessed):
    whole = noisy(channel(1), 2)
    h = whole.copy()
    harm(h)
    csi = series(h)
    before = csi.h.copy()
    mended, found = mend(csi)
    assert found.counts == counts
    assert found.bins == bins
    np.testing.assert_array_equal(csi.h, before)
    assert (0 if mended.guessed is None else mended.guessed.sum()) == guessed
    rows = np.isfinite(mended.h).all(axis=(1, 2, 3))
    left_out = counts.get("broken_frames", 0) + counts.get("outlier_frames", 0)
    assert (~rows).sum() == left_out
    assert np.isnan(mended.h[~rows]).all()  # a frame is there or it is not
    # what was filled in is nearer to the truth than 20 dB below the signal
    wrong = np.abs(mended.h[rows, 0, 0] - whole[rows]) ** 2
    assert wrong.mean() < 0.01 * (np.abs(whole) ** 2).mean()


@pytest.mark.parametrize("memory", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("taps", [1, 2, 6, 20])
@pytest.mark.parametrize("seed", [3, 4])
def test_sound_csi_is_left_as_it_is(memory, taps, seed):
    csi = series(noisy(channel(seed, memory=memory, taps=taps), seed))
    mended, found = mend(csi)
    assert found == Defects()
    assert mended is csi


@pytest.mark.parametrize("period", [1, 20, 50])
def test_a_surface_whose_patterns_are_held_is_no_defect(period):
    """All that varies here is the pattern, and in a channel that is flat over the band it is a step of all bins."""
    rng = np.random.default_rng(5)
    n = -(-PROBES // period)
    for bins in (np.ones(BINS), channel(6, 1)[0]):
        held = np.repeat(rng.normal(size=(n, 2)) @ [1, 1j] * 2 + 3, period)[:PROBES, None] * bins
        csi = series(noisy(held, 7))
        assert mend(csi)[1].level_steps == 0


def test_bins_that_come_in_equal_groups_are_sound():
    """As Wi-Fi cards report them: every group fades by itself, and at its borders levels jump."""
    rng = np.random.default_rng(9)
    groups = rng.normal(size=(PROBES, BINS // 4, 2)) @ [1, 1j]
    assert mend(series(noisy(np.repeat(groups, 4, axis=1), 3)))[1] == Defects()
    assert mend(series(rng.normal(size=(PROBES, BINS, 2)) @ [1, 1j]))[1] == Defects()


def test_a_lasting_null_of_a_static_channel_is_sound():
    """Noise alone is left in it, and all other levels stand still."""
    h = np.tile(np.ones(BINS) - np.exp(1j * np.linspace(-2, 2.1, BINS)), (PROBES, 1))
    assert mend(series(noisy(h, 3, 40.0)))[1] == Defects()


def test_levels_without_phases_stay_levels():
    """RSSI in steps of 1 dB over a few channels, one value a frame missing now and then."""
    level_db = np.round(20 * np.log10(np.abs(channel(8))))
    h = 10 ** (level_db / 20) + 0j
    h[::50, 3] = np.nan
    mended, found = mend(series(h))
    assert found.counts == {"filled_values": 12}
    assert not mended.h.imag.any()
    assert (mended.h.real > 0).all()


@pytest.mark.parametrize("step_db", [6.0, -10.0])
def test_a_step_of_the_gain_is_levelled(step_db):
    whole = noisy(channel(2, memory=0.99), 3)
    h = whole.copy()
    h[250:] *= 10 ** (step_db / 20)
    mended, found = mend(series(h))
    assert found.counts == {"level_steps": 1}
    left_db = 20 * np.log10(np.abs(mended.h[:, 0, 0] / whole))
    np.testing.assert_allclose(left_db[:250], 0.0, atol=1e-3)
    assert np.abs(np.median(left_db[250:])) < 1.5


def test_a_step_is_found_in_a_channel_that_fades_from_frame_to_frame():
    level_db = 20 * np.log10(np.abs(noisy(channel(4, 1000, taps=12), 5)))
    level_db[400:] += 10.0
    ((at, size_db),) = gain_steps(level_db)
    assert at == pytest.approx(400, abs=3)
    assert size_db == pytest.approx(10.0, abs=1.5)


def test_an_eve_keeps_every_frame():
    h = noisy(channel(1), 2)
    too_loud(h)
    kept, found = mend(series(h), drop_frames=False)
    assert found.counts == {"outlier_frames": 18}
    assert np.isfinite(kept.h).all()
    level_db = 20 * np.log10(np.median(np.abs(kept.h[:, 0, 0]), axis=1))
    assert np.ptp(level_db) < 25.0  # 29.5 dB more before


def test_antenna_pairs_are_judged_one_by_one():
    h = np.stack([noisy(channel(s), s) for s in (1, 2)])
    nan_block(h[1])
    csi = CsiSeries(h.transpose(1, 0, 2)[:, :, None, :].astype(np.complex64), np.arange(PROBES), np.arange(64) * 1e5)
    mended, found = mend(csi)
    assert found.bins == list(range(10, 18))
    assert mended.guessed is not None
    assert not mended.guessed[0].any()
    np.testing.assert_array_equal(np.flatnonzero(mended.guessed[1, 0]), np.arange(10, 18))
    np.testing.assert_array_equal(mended.h[:, 0], csi.h[:, 0])


def test_where_hardly_a_bin_measures_nothing_is_made_up():
    h = noisy(channel(1), 2)
    h[:, 3:] = np.nan
    mended, found = mend(series(h))
    assert found.counts == {}
    assert np.isnan(mended.h[:, 0, 0, 3:]).all()


# ---------------------------------------------------------------- in the chain, both ends


def agreed(alice: np.ndarray[Any, Any], bob: np.ndarray[Any, Any], chain: ChainPlan = CHAIN):
    keys = KeyChain(chain, Accounting(block_rounds=PROBES))
    a, b, _ = dialogue.run(keys.agree("alice", series(alice), 0, 1), keys.agree("bob", series(bob), 0, 1))
    return a.report, b.report


@pytest.mark.parametrize(
    ("harm", "quantize"),
    [(harm, "scalar") for harm in (nan_block, nan_comb, zeros, jumping, noise_only, holes, spikes, too_loud)]
    + [(harm, name) for harm in (nan_block, too_loud) for name in ("equiprobable", "kmeans")],
)
def test_a_defect_of_one_end_costs_little_of_the_string(harm, quantize):
    """Before, 8 of 64 bins that are NaN at one end gave 0 bits and no word."""
    options = {"scalar": {"bits": 1, "guard": 0.2}, "equiprobable": {"bits": 1}, "kmeans": {}}[quantize]
    chain = ChainPlan(enhance_options={"step": 8}, quantize=quantize, quantize_options=options)
    shared = channel(11)
    whole, other = noisy(shared, 12), noisy(shared, 13)
    sound, _ = agreed(whole, other, chain)
    h = whole.copy()
    harm(h)
    a, b = agreed(h, other, chain)
    assert a.verified
    assert b.verified
    assert a.csi_defects
    assert not b.csi_defects
    assert a.raw_bits > 0.7 * sound.raw_bits
    # the other end's defect is met as well
    _, a2 = agreed(other, h, chain)
    assert a2.verified
    assert a2.csi_defects == a.csi_defects


# ---------------------------------------------------------------- the order of bins


def levels(h: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(divide="ignore"):
        return 20 * np.log10(np.abs(h))


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (lambda h: h[:, ::-1], "mirrored"),
        (lambda h: np.roll(h, 3, axis=1), "shifted by 3 bins"),
        (lambda h: np.roll(h, -5, axis=1), "shifted by 5 bins"),
        (lambda h: np.roll(h[:, ::-1], 2, axis=1), "mirrored and shifted by 2 bins"),
    ],
)
def test_bins_in_another_order_are_named(order, told):
    shared = channel(21, taps=12)
    verdict = bin_order(levels(noisy(shared, 1)), levels(order(noisy(shared, 2))))
    assert not verdict.ok
    assert f"Bob's spectrum is {told} against Alice's" in verdict.detail


def test_bins_in_the_same_order_are_left_alone():
    for taps in (1, 2, 12):
        shared = channel(22, taps=taps)
        assert bin_order(levels(noisy(shared, 1)), levels(noisy(shared, 2))).ok
    assert bin_order(levels(channel(23)), levels(channel(24))).ok


# ---------------------------------------------------------------- in a replay


def replayed(monkeypatch, alice, bob, eve=None):
    everything = attack.load_attacks()[0]
    monkeypatch.setattr(judge, "load_attacks", lambda: ({n: everything[n] for n in ("eve_now", "string_near")}, []))
    eves = {} if eve is None else {"near": EveLinks(series(eve), None)}
    cut = Cut(
        "made", series(alice), series(bob), np.zeros(PROBES, np.int64), False, CHAIN, Accounting(block_rounds=PROBES),
        eves=eves, assumed=tuple(eves),
    )  # fmt: skip
    recording = module.sources.checked(Recording("made", "", (), {"made": cut}, "made"), "here")
    return module._replay_cut(recording.cuts["made"], lambda share, what: None).summary


def health_of(summary, check):
    return next(e for e in summary["health"] if e["check"] == check)


def test_a_replay_names_what_it_masked(monkeypatch):
    shared = channel(31)
    alice, bob = noisy(shared, 1), noisy(shared, 2)
    nan_block(alice)
    too_loud(bob)
    summary = replayed(monkeypatch, alice, bob)
    assert summary["key_bits"] > 0
    assert summary["csi_defects"] == {"alice": {"dead_bins": 8}, "bob": {"outlier_frames": 18}}
    at_alice, at_bob = health_of(summary, "csi_defects_alice"), health_of(summary, "csi_defects_bob")
    assert not at_alice["ok"]
    assert "8 dead subcarriers" in at_alice["detail"]
    assert "10, 11, 12, 13, 14, 15, 16, 17" in at_alice["detail"]
    assert not at_bob["ok"]
    assert "18 outlier frames" in at_bob["detail"]


def test_outliers_do_not_add_to_the_leak(monkeypatch):
    """Before, a level 30 times too high in 3 % of the frames of one end tripled the leak without a line."""
    shared = channel(32)
    alice, bob = noisy(shared, 1), noisy(shared, 2)
    leaked = replayed(monkeypatch, alice, bob)["reconciliation"]["leaked_bits"]
    too_loud(bob)
    summary = replayed(monkeypatch, alice, bob)
    assert summary["reconciliation"]["leaked_bits"] < 1.15 * leaked


@pytest.mark.parametrize("conjugated", [False, True])
def test_a_mirrored_end_is_turned_round(monkeypatch, conjugated):
    shared = channel(33, taps=12)
    alice, bob = noisy(shared, 1), noisy(shared, 2)
    sound = replayed(monkeypatch, alice, bob)
    turned = bob[:, ::-1].conj() if conjugated else bob[:, ::-1]
    summary = replayed(monkeypatch, alice, turned)
    assert summary["key_bits"] == sound["key_bits"] > 0
    told = health_of(summary, "bin_order_bob")
    assert not told["ok"]
    assert "was mirrored against Alice's" in told["detail"]
    assert health_of(summary, "bin_order")["ok"]  # after the repair


def test_a_shifted_end_is_moved(monkeypatch):
    shared = channel(34, taps=12)
    summary = replayed(monkeypatch, noisy(shared, 1), np.roll(noisy(shared, 2), 4, axis=1))
    assert summary["key_bits"] > 0
    assert "was shifted by 4 bins" in health_of(summary, "bin_order_bob")["detail"]
    assert summary["csi_defects"]["bob"]["dead_bins"] == 4


def test_an_eve_is_not_safer_for_a_mirrored_spectrum(monkeypatch):
    """She stands in Bob's place and counts her bins the other way round."""
    shared = channel(35, taps=12)
    alice, bob = noisy(shared, 1), noisy(shared, 2)
    summary = replayed(monkeypatch, alice, bob, noisy(shared, 3)[:, ::-1])
    assert summary["kdr_eve"] < 0.1
    assert "Eve 'near'" in health_of(summary, "bin_order_near_from_alice")["detail"]


def test_complex_features_of_a_mirrored_end_agree(monkeypatch):
    """Exchanged I and Q conjugate the channel, too, which only features with phases see."""
    plan = ChainPlan(enhance_options={"step": 8, "scale": "complex"}, quantize_options={"bits": 1, "guard": 0.2})
    monkeypatch.setattr(f"{__name__}.CHAIN", plan)
    shared = channel(36, taps=12)
    summary = replayed(monkeypatch, noisy(shared, 1), noisy(shared, 2)[:, ::-1].conj())
    assert summary["kdr_raw"] < 0.1


def test_a_series_of_few_probes_is_only_filled():
    h = noisy(channel(1, 20), 2)
    h[:, 4] = np.nan
    mended, found = mend(series(h))
    assert found.counts == {"dead_bins": 1}
    assert np.isfinite(mended.h).all()


def test_a_private_node_tells_of_defects_what_everybody_sees_anyway():
    """Which frames and dimensions are in no key is said in public; how many values were spikes is not."""
    found = {"dead_bins": 2, "filled_values": 7, "outlier_frames": 3, "level_steps": 1}
    assert key_maker._public(found) == {"dead_bins": 2, "outlier_frames": 3}
