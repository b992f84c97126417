from math import comb, log2

import numpy as np
import pytest

from testbed.chain.quantize._gray import gray_table
from testbed.chain.quantize._messages import balance_bits
from testbed.chain.quantize.scalar import Scalar
from testbed.core.errors import InputError, ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.core.types import Bits, Features


def features(values: np.ndarray) -> Features:
    return Features(np.asarray(values, dtype=np.float64), np.arange(len(values)))


def draft(q: Scalar, values: np.ndarray) -> Bits:
    return q.lead(features(values), np.random.default_rng(0))[0]


def gaussians(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def test_neighbouring_gray_labels_differ_in_one_bit() -> None:
    for bits in (1, 2, 3, 4):
        table = gray_table(bits)
        assert len({tuple(row) for row in table}) == 1 << bits
        assert (np.abs(np.diff(table.astype(int), axis=0)).sum(axis=1) == 1).all()
    assert gray_table(2).tolist() == [[0, 0], [0, 1], [1, 1], [1, 0]]


def test_labels_without_guard_are_the_quartiles() -> None:
    got = draft(Scalar(bits=2, guard=0.0), np.arange(16.0)[:, None])
    expected = np.repeat([[0, 0], [0, 1], [1, 1], [1, 0]], 4, axis=0).reshape(-1)
    np.testing.assert_array_equal(got.values, expected)


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("guard", [0.0, 0.1, 0.5])
def test_kept_labels_are_balanced_and_as_many_as_the_guard_leaves(bits: int, guard: float) -> None:
    n, levels = 1000, 1 << bits
    got = draft(Scalar(bits=bits, guard=guard), gaussians(n, 1))
    symbols = got.values.reshape(-1, bits) @ (1 << np.arange(bits))
    counts = np.bincount(symbols, minlength=levels)
    assert np.ptp(counts) <= 1
    assert abs(counts.sum() - n * (1.0 - 2 * (levels - 1) * guard / levels)) <= levels


def test_guard_lowers_the_disagreement() -> None:
    common = gaussians(2000, 1)
    a, b = common + 0.2 * gaussians(2000, 1, 2), common + 0.2 * gaussians(2000, 1, 3)

    def kdr(guard: float) -> float:
        q = Scalar(bits=2, guard=guard)
        first, lead = q.lead(features(a), np.random.default_rng(0))
        bob, follow = q.follow(features(b), lead)
        return float(np.mean(q.finish(first, follow).values != bob.values))

    assert kdr(0.3) < 0.4 * kdr(0.0)


def test_level_and_gain_of_a_receiver_do_not_matter() -> None:
    x = gaussians(200, 3)
    np.testing.assert_array_equal(draft(Scalar(), x).values, draft(Scalar(), 3.0 * x - 70.0).values)


def test_constant_and_too_short_dimensions_give_no_bits() -> None:
    x = gaussians(100, 3)
    x[:, 0] = -66.0
    x[7:, 2] = np.nan
    assert set(draft(Scalar(bits=2), x).dimension) == {1}


def test_coarse_values_with_ties_always_get_the_same_label() -> None:
    rssi = np.round(-70 + 2.0 * gaussians(3000, 1))
    for guard in (0.0, 0.1, 0.5):
        got = draft(Scalar(bits=2, guard=guard), rssi)
        assert got.values.size > 0
        labels = got.values.reshape(-1, 2)
        for value in np.unique(rssi[got.probe[::2], 0]):
            assert len(np.unique(labels[rssi[got.probe[::2], 0] == value], axis=0)) == 1


def test_two_valued_readings_split_into_two_levels_however_unbalanced() -> None:
    x = np.where(np.arange(100) % 5 == 0, -70.0, -69.0)[:, None]
    got = draft(Scalar(bits=1, guard=0.1), x)
    np.testing.assert_array_equal(got.values, (x[:, 0] == -69.0).astype(np.uint8))


def test_what_balance_tells_is_counted() -> None:
    assert balance_bits(10, 2) == pytest.approx(10 - log2(comb(10, 5)))
    assert balance_bits(11, 2) == pytest.approx(11 - log2(comb(11, 5)))
    assert balance_bits(0, 4) == 0.0
    _, lead = Scalar(bits=1, guard=0.0).lead(features(gaussians(100, 3)), np.random.default_rng(0))
    assert lead.leaked_bits == int(np.ceil(3 * (100 - log2(comb(100, 50)))))


def test_indices_tell_nothing_about_labels_of_independent_probes() -> None:
    """Gaps before and after a kept probe are all that the indices show; no label may be likelier beside them."""
    got = draft(Scalar(bits=2, guard=0.4), gaussians(40_000, 1))
    probe, symbols = got.probe[::2], got.values.reshape(-1, 2) @ [2, 1]
    gap = np.diff(probe, prepend=probe[0] - 1) > 1
    table = np.array([np.bincount(symbols[gap], minlength=4), np.bincount(symbols[~gap], minlength=4)])
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    assert ((table - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, 1e-3


def test_eve_with_fewer_dimensions_guesses_zero_for_the_rest() -> None:
    q, x = Scalar(), gaussians(100, 3)
    _, lead = q.lead(features(x), np.random.default_rng(0))
    _, follow = q.follow(features(x), lead)
    guess, covered = q.eavesdrop(features(x[:, :1]), lead, follow)
    np.testing.assert_array_equal(covered, guess.dimension == 0)
    assert guess.values[guess.dimension == 0].any()
    assert not guess.values[guess.dimension > 0].any()


def test_messages_that_do_not_fit_are_refused() -> None:
    q, x = Scalar(bits=2), gaussians(60, 2)
    first, lead = q.lead(features(x), np.random.default_rng(0))
    with pytest.raises(ProtocolError, match="Bob has"):
        q.follow(features(x[:50]), lead)
    with pytest.raises(ProtocolError, match="2 bits a feature"):
        Scalar(bits=1).follow(features(x), lead)
    for body in ({**lead.body, "probes": -1}, {**lead.body, "kept": b"x"}, {**lead.body, "dimensions": "2"}, {}):
        with pytest.raises(ProtocolError, match=r"quantize\.lead"):
            q.follow(features(x), PublicMessage(kind="quantize.lead", body=body))
    with pytest.raises(ProtocolError, match=r"quantize\.follow"):
        q.finish(first, PublicMessage(kind="quantize.follow", body={"kept": b""}))


@pytest.mark.parametrize("options", [{"bits": 0}, {"bits": 5}, {"bits": 1.5}, {"guard": -0.1}, {"guard": 0.6}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="accepted"):
        Scalar(**options)  # type: ignore[arg-type]
