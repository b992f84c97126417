import numpy as np
import pytest

from testbed.core.types import Bits
from testbed.entropy import sp800_90b
from testbed.entropy.source import general_estimate, guess_probabilities, source_min_entropy


def bits(values: np.ndarray, keep: np.ndarray | None = None) -> Bits:
    """(probe, dimension, level bit) as Bits; `keep` (probe, dimension) drops entries."""
    probe, dimension, level_bit = (x.reshape(-1) for x in np.indices(values.shape))
    out = Bits(values.reshape(-1).astype(np.uint8), probe, dimension, level_bit)
    return out if keep is None else out.take(np.repeat(keep.reshape(-1), values.shape[2]))


def ideal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, shape)


@pytest.mark.parametrize("shape", [(250, 8, 2), (4000, 1, 1), (62, 64, 1)])
def test_ideal_bits_are_worth_nearly_one(shape: tuple[int, int, int]) -> None:
    assert source_min_entropy(bits(ideal(1, *shape))) > 0.85


def test_never_more_than_one_and_the_price_of_few_bits_is_seen() -> None:
    few, many = (source_min_entropy(bits(ideal(2, n, 4, 1))) for n in (60, 4000))
    assert few < many <= 1.0


@pytest.mark.parametrize("flip", [0.02, 0.1, 0.3])
def test_markov_chain_has_the_entropy_of_its_transitions(flip: float) -> None:
    values = np.cumsum(np.random.default_rng(3).random((2000, 4, 1)) < flip, axis=0) % 2
    theory = -np.log2(1.0 - flip)
    assert 0.8 * theory - 0.02 < source_min_entropy(bits(values)) <= theory + 0.01


def test_biased_bits_have_the_entropy_of_their_bias() -> None:
    values = np.random.default_rng(4).random((4000, 1, 1)) < 0.7
    assert source_min_entropy(bits(values)) == pytest.approx(-np.log2(0.7), abs=0.06)


def test_the_same_bits_at_every_probe_are_worth_nothing() -> None:
    assert source_min_entropy(bits(np.tile(ideal(5, 1, 8, 2), (200, 1, 1)))) < 0.02


def test_one_slow_swing_over_the_block_is_worth_nothing() -> None:
    """Half a block of 0, half of 1: balanced, and each half alone shows only one value."""
    assert source_min_entropy(bits((np.arange(400) >= 200)[:, None, None])) < 0.05


def test_repetition_with_a_period_is_found() -> None:
    assert source_min_entropy(bits(np.tile(ideal(6, 20, 8, 2), (20, 1, 1)))) < 0.1


def test_dimensions_that_copy_one_another_are_found() -> None:
    beside = np.repeat(ideal(7, 400, 4, 1), 2, axis=1)
    assert source_min_entropy(bits(beside)) < 0.5
    far = np.tile(ideal(8, 400, 3, 1), (1, 4, 1))
    assert source_min_entropy(bits(far)) == pytest.approx(-np.log2(0.75 + 0.125), abs=0.05)


def test_a_label_whose_second_bit_follows_from_the_first_is_found() -> None:
    first = ideal(9, 500, 4, 1)
    assert 0.3 < source_min_entropy(bits(np.concatenate([first, 1 - first], axis=2))) < -np.log2(0.75) + 0.01


def test_what_public_gaps_tell_is_charged() -> None:
    """A rule that keeps neighbours of ones more often: the gaps, not the bits, give it away."""
    rng = np.random.default_rng(10)
    values = rng.integers(0, 2, (4000, 1, 1))
    keep = np.ones((4000, 1), dtype=bool)
    keep[1:][(values[:-1, :, 0] == 1) & (rng.random((3999, 1)) < 0.9)] = False
    found = guess_probabilities(bits(values, keep))
    assert found["gaps"] > found["most common"] + 0.1
    assert found["gaps"] == max(found[name] for name in found if "gaps" in name or name == "most common")


def test_survives_missing_bits_and_tiny_strings() -> None:
    some = bits(ideal(11, 300, 4, 2)).take(np.random.default_rng(12).random(2400) < 0.8)
    assert source_min_entropy(some) > 0.75
    nothing = some.take(np.zeros(some.values.size, dtype=bool))
    assert source_min_entropy(nothing) == 0.0
    assert source_min_entropy(some.take(np.arange(2))) == 0.0
    assert source_min_entropy(bits(ideal(13, 1, 64, 1))) < 0.9
    with pytest.raises(ValueError, match="accepted"):
        guess_probabilities(nothing)


def test_the_standards_estimators_can_only_lower_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    some = bits(ideal(14, 2000, 2, 1))
    before = source_min_entropy(some)
    seen = []

    def told(h: float | None) -> None:
        def estimate(values: np.ndarray) -> float | None:
            seen.append(values)
            return h

        monkeypatch.setattr(sp800_90b, "min_entropy_90b", estimate)

    told(None)
    assert source_min_entropy(some) == before
    told(0.999)
    assert source_min_entropy(some) == before
    told(0.2)
    assert source_min_entropy(some) == 0.2
    assert all(values is some.values for values in seen)


def test_long_strings_get_the_standards_estimate_and_health_says_which_do_not() -> None:
    values = ideal(15, 25_000, 4, 1)
    long = source_min_entropy(bits(values))
    general = sp800_90b.min_entropy_90b(bits(values).values)
    assert general is not None
    assert long == min(general, -np.log2(max(guess_probabilities(bits(values)).values())))
    assert general_estimate([100_000, 120_000]).detail == ("The estimators of SP 800-90B had a say in 2 of 2 blocks.")
    mixed = general_estimate([4000, 100_000, 5000])
    assert mixed.ok
    assert "1 of 3 blocks" in mixed.detail
    assert "4000 to 5000 raw bits" in mixed.detail
