from itertools import permutations
from math import ceil, comb, log2

import msgspec
import numpy as np
import pytest
from scipy.stats import norm

from testbed.chain.quantize._gray import gray_table
from testbed.chain.quantize._labels import confusion, error_information, expected_errors, label_regions
from testbed.chain.quantize._messages import balance_bits
from testbed.chain.quantize._vector import VectorQuantizer
from testbed.chain.quantize.balanced_kmeans import MAX_SAMPLES, BalancedKMeans
from testbed.chain.quantize.bkq_bm import BkqBm
from testbed.chain.quantize.ilp_bvq import IlpBvq
from testbed.chain.quantize.kmeans import KMeans
from testbed.core.errors import DialogueFailed, InputError, ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.core.types import Features
from testbed.entropy.corrections import correction_leak

ALL = (KMeans, BalancedKMeans, BkqBm, IlpBvq)


def features(values: np.ndarray) -> Features:
    return Features(np.asarray(values, dtype=np.float64), np.arange(len(values)))


def gaussians(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def kdr(q: VectorQuantizer, a: np.ndarray, b: np.ndarray) -> float:
    draft, lead = q.lead(features(a), rng())
    bob, follow = q.follow(features(b), lead)
    return float(np.mean(q.finish(draft, follow).values != bob.values))


# ---------------------------------------------------------------- labels


def test_labels_of_few_regions_are_the_best_there_are() -> None:
    centroids = gaussians(4, 2)
    w = confusion(centroids, rng())
    best = min(expected_errors(gray_table(2)[list(p)], w) for p in permutations(range(4)))
    assert expected_errors(label_regions(centroids, rng()), w) == pytest.approx(best)
    assert best < max(expected_errors(gray_table(2)[list(p)], w) for p in permutations(range(4)))


def test_labels_of_a_lattice_are_as_good_as_a_gray_code_along_each_axis() -> None:
    lattice = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0)), axis=-1).reshape(-1, 2)
    w = confusion(lattice, rng())
    product = np.concatenate([np.tile(gray_table(2), (4, 1)), np.repeat(gray_table(2), 4, axis=0)], axis=1)
    table = label_regions(lattice[::-1], rng())[::-1]
    assert expected_errors(table, w) <= expected_errors(product, w) + 1e-9


def told_by_flags(joint: np.ndarray, bits: int) -> np.ndarray:
    """(flags,) bits that flags tell about the label beyond those they mark, of joint probabilities (label, flags)."""

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0] / max(p.sum(), 1e-300)
        return float(-(p * np.log2(p)).sum())

    before = entropy(joint.sum(1))
    told = np.array([before - entropy(p) for p in joint.T])
    told[1:] = np.minimum(told[1:], bits - np.bitwise_count(np.arange(1, told.size)))
    return np.where(joint.sum(0) > 0, told, 0.0)


@pytest.mark.parametrize(("d", "k"), [(1, 8), (2, 4), (2, 32), (3, 64)])
def test_corrected_errors_tell_less_than_the_accounting_charges(d: int, k: int) -> None:
    """Errors drawn from how often regions are confused: the charge is at least what they tell (Shannon)."""
    centroids = IlpBvq(dimension=d, regions=k).cluster(gaussians(2000, d), rng())
    table, w = label_regions(centroids, rng()), confusion(centroids, rng())
    bits = table.shape[1]
    if d > 1:
        assert (np.diff(error_information(table, w)) <= 1e-12).all()
    value = table.astype(np.int64) @ (1 << np.arange(bits)[::-1])
    joint = np.zeros((k, k))
    np.add.at(joint, (value[:, None], value[:, None] ^ value), w / w.sum())
    told = told_by_flags(joint, bits)
    draw, charged, true = rng(), 0, 0.0
    for _ in range(20):
        pair = draw.choice(k * k, 300, p=(w / w.sum()).ravel())
        flags = value[pair // k] ^ value[pair % k]
        charged += correction_leak(value[pair // k], flags, np.full(300, bits))
        true += float(told[flags].sum())
    # of 300 labels, few a pair of regions: the estimate's own bias, about a bit for two pairs that occur
    assert true <= charged <= true + 20 * np.count_nonzero(joint)


@pytest.mark.parametrize(("bits", "noise"), [(1, 0.2), (2, 0.1), (3, 0.1), (4, 0.05), (4, 0.2)])
def test_what_all_corrections_of_a_string_tell_is_charged(bits: int, noise: float) -> None:
    """Labels without errors too; beside what a hundred times as many show."""
    k, n = 1 << bits, 4000

    def labels(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x = gaussians(size, 3, seed)
        cells = [np.minimum(norm.cdf((x[:, 0] + noise * x[:, j]) / np.hypot(1, noise)) * k, k - 1) for j in (1, 2)]
        a, b = (c.astype(np.int64) ^ (c.astype(np.int64) >> 1) for c in cells)
        return a, a ^ b

    joint = np.zeros((k, k))
    np.add.at(joint, labels(100 * n, 1), 1 / (100 * n))
    told = told_by_flags(joint, bits)
    charged = true = 0.0
    for seed in range(2, 8):
        value, flags = labels(n, seed)
        charged += correction_leak(value, flags, np.full(n, bits))
        true += float(told[flags].sum())
    assert told[0] > 0 or bits == 1
    assert true - 1 <= charged <= true + 6 * k * k


def test_errors_of_one_value_only_are_charged_though_labels_have_one_bit() -> None:
    """Bob too low by an offset: only ones are corrected, and what is not corrected is the likelier a zero."""
    value = np.repeat([0, 1], 500)
    flags = np.where(np.arange(1000) < 900, 0, 1)
    p = 500 / 900
    assert correction_leak(value, flags, np.ones(1000, np.int64)) == np.ceil(
        900 * (1 + p * np.log2(p) + (1 - p) * np.log2(1 - p))
    )


def test_few_corrections_are_charged_the_whole_label() -> None:
    values, bits = np.arange(16), np.full(16, 4)
    flags = np.zeros(16, np.int64)
    assert correction_leak(values, flags, bits) == 0
    flags[5] = 0b0100
    # three bits of this label; and every other one is known not to be it
    assert correction_leak(values, flags, bits) == np.ceil(3 + 15 * (4 - np.log2(15)))
    assert correction_leak(*(np.zeros(0, np.int64),) * 3) == 0


# ---------------------------------------------------------------- accounting


def test_centroids_and_balance_are_charged_in_full() -> None:
    q = IlpBvq(dimension=2, regions=4, guard=0.0, precision=3)  # 4 bits a coordinate: 256 places
    _, lead = q.lead(features(gaussians(101, 4)), rng())
    assert lead.leaked_bits == ceil(log2(comb(256 + 3, 4)) + balance_bits(202, 4))
    _, plain = KMeans(dimension=2, regions=4, guard=0.0, precision=3).lead(features(gaussians(101, 4)), rng())
    assert plain.leaked_bits == ceil(log2(comb(256 + 3, 4)))
    grid = np.frombuffer(lead.body["centroids"], "<i2")
    assert grid.min() >= -8
    assert grid.max() <= 7
    assert len(set(lead.body)) == 9  # nothing else is published


@pytest.mark.parametrize("kind", [KMeans, IlpBvq])
@pytest.mark.parametrize("k", [3, 5, 12, 24])
def test_labels_that_are_not_used_are_charged(kind: type[VectorQuantizer], k: int) -> None:
    q = kind(dimension=2, regions=k, guard=0.0, precision=3)
    draft, lead = q.lead(features(gaussians(101, 4)), rng())
    bits = ceil(log2(k))
    assert draft.values.size == 202 * bits
    cells = 1 << 2 * (ceil(bits / 2) + 3)
    expected = log2(comb(cells + k - 1, k)) + 202 * (bits - log2(k))
    assert lead.leaked_bits == ceil(expected + (balance_bits(202, k) if kind is IlpBvq else 0.0))
    bob, follow = q.follow(features(gaussians(101, 4)), lead)
    np.testing.assert_array_equal(q.finish(draft, follow).values, bob.values)


def test_labels_of_twelve_regions_are_nearly_as_good_as_of_sixteen() -> None:
    for k in (6, 12):
        centroids = IlpBvq(regions=k).cluster(gaussians(2000, 2), rng())
        w = confusion(centroids, rng())
        table = label_regions(centroids, rng())
        assert len({tuple(row) for row in table}) == k
        shuffled = np.mean([expected_errors(rng().permutation(table), w) for _ in range(20)])
        assert 1.0 <= expected_errors(table, w) < min(1.35, 0.9 * shuffled)


def test_a_sample_of_64_complex_subcarriers() -> None:
    x = gaussians(300, 128)
    assert kdr(IlpBvq(dimension=128, regions=4), x, x + 0.01 * gaussians(300, 128, 2)) < 0.05


def test_published_regions_are_sorted_so_that_their_order_tells_nothing() -> None:
    for kind in ALL:
        _, lead = kind().lead(features(gaussians(200, 4)), rng())
        grid = np.frombuffer(lead.body["centroids"], "<i2").reshape(16, 2).tolist()
        assert grid == sorted(grid)


def test_indices_tell_nothing_about_labels_of_independent_samples() -> None:
    draft, lead = IlpBvq(regions=4, guard=0.3).lead(features(gaussians(40_000, 2)), rng())
    symbols = draft.values.reshape(-1, 2) @ [2, 1]
    assert abs(symbols.size - 0.7 * 40_000) <= 4
    assert np.ptp(np.bincount(symbols)) <= 1
    gap = np.diff(draft.probe[::2], prepend=draft.probe[0] - 1) > 1
    table = np.array([np.bincount(symbols[gap], minlength=4), np.bincount(symbols[~gap], minlength=4)])
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, 1e-3
    assert lead.leaked_bits < 100


# ---------------------------------------------------------------- what it is for


def test_both_exact_quantizers_say_the_same_thing() -> None:
    x = gaussians(150, 5)
    first, second = (kind(guard=0.2).lead(features(x), rng()) for kind in (IlpBvq, BalancedKMeans))
    assert first[1] == second[1]
    np.testing.assert_array_equal(first[0].values, second[0].values)


def test_guard_lowers_the_disagreement() -> None:
    common = gaussians(2000, 4)
    a, b = common + 0.1 * gaussians(2000, 4, 2), common + 0.1 * gaussians(2000, 4, 3)
    plain = kdr(IlpBvq(guard=0.0), a, b)
    assert kdr(IlpBvq(guard=0.4), a, b) < 0.4 * plain


@pytest.mark.parametrize("kind", ALL)
def test_level_and_gain_of_a_receiver_do_not_matter(kind: type[VectorQuantizer]) -> None:
    x = gaussians(200, 4)
    gained = np.array([2.0, 0.5, 4.0, 1.0]) * x  # powers of two: no rounding
    q = kind()
    np.testing.assert_array_equal(q.lead(features(x), rng())[0].values, q.lead(features(gained), rng())[0].values)
    assert kdr(q, x, 3.0 * x - 70.0) < 0.01


def test_groupings() -> None:
    x = gaussians(100, 7)
    adjacent = IlpBvq(dimension=3, regions=8).lead(features(x), rng())[0]
    spread = IlpBvq(dimension=3, regions=8, grouping="spread").lead(features(x), rng())[0]
    assert set(adjacent.dimension) == {0, 3}
    assert set(spread.dimension) == {0, 1}
    x[:, 1] = -60.0  # the sample is made of what varies
    assert set(IlpBvq(dimension=3, regions=8).lead(features(x), rng())[0].dimension) == {0, 4}


# ---------------------------------------------------------------- bad input


def test_too_few_samples_end_the_block_with_the_reason() -> None:
    for values in (gaussians(7, 4), np.full((50, 4), -66.0), gaussians(50, 1), gaussians(50, 2) * [1.0, 0.0]):
        with pytest.raises(DialogueFailed, match=r"too_few_samples: \d+ complete samples .* accepted: 16"):
            IlpBvq().lead(features(values), rng())


def test_more_samples_than_the_hungarian_algorithm_can_take_are_refused() -> None:
    with pytest.raises(DialogueFailed, match=r"too_many_samples.*use ilp_bvq"):
        BalancedKMeans().lead(features(gaussians(MAX_SAMPLES + 1, 2)), rng())


def test_eve_with_fewer_dimensions_or_other_probes() -> None:
    q, x = IlpBvq(), gaussians(100, 6)
    _, lead = q.lead(features(x), rng())
    _, follow = q.follow(features(x), lead)
    guess, covered = q.eavesdrop(features(x[:, :3]), lead, follow)
    np.testing.assert_array_equal(covered, guess.dimension == 0)
    assert guess.values[covered].any()
    assert not guess.values[~covered].any()
    with pytest.raises(ValueError, match="Eve's features have 99 probes"):
        q.eavesdrop(features(x[1:]), lead, follow)


def test_messages_that_do_not_fit_are_refused() -> None:
    q, x = IlpBvq(), gaussians(60, 4)
    draft, lead = q.lead(features(x), rng())
    with pytest.raises(ProtocolError, match="Bob has"):
        q.follow(features(x[:50]), lead)
    with pytest.raises(ProtocolError, match="Alice uses regions = 16, this side 8"):
        IlpBvq(regions=8).follow(features(x), lead)
    changes = {"probes": -1, "kept": b"x", "centroids": b"", "labels": bytes(16), "varies": 3, "digits": "6"}
    for key, value in changes.items():
        with pytest.raises(ProtocolError, match=r"quantize\.lead|vector quantizer"):
            q.follow(features(x), msgspec.structs.replace(lead, body={**lead.body, key: value}))
    with pytest.raises(ProtocolError, match=r"quantize\.follow"):
        q.finish(draft, PublicMessage(kind="quantize.follow", body={"kept": b""}))


@pytest.mark.parametrize(
    "options",
    [
        {"regions": 1},
        {"regions": 512},
        {"dimension": 0},
        {"dimension": True},
        {"dimension": 257},
        {"guard": 0.6},
        {"guard": float("nan")},
        {"grouping": "random"},
        {"precision": 9},
        {"bob": "guess"},
    ],
)
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="accepted"):
        IlpBvq(**options)  # type: ignore[arg-type]
