"""Normal random numbers from raw words."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from sim_backend.normals import normals
from testbed.core.seeds import Streams

WORDS = np.array([Streams(1, "test").words(20_000, key) for key in range(20)])


def test_they_are_normal_and_independent() -> None:
    found = normals(WORDS)
    assert found.dtype == np.float32
    assert found.shape == WORDS.shape
    assert scipy.stats.kstest(found.ravel().astype(float), "norm").pvalue > 0.01
    first, second = found[:, :10_000].ravel().astype(float), found[:, 10_000:].ravel().astype(float)
    for a, b in ((first, second), (first**2, second**2), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(a.size)


def test_how_many_rows_are_made_together_changes_nothing() -> None:
    odd = WORDS[:, :1126]
    np.testing.assert_array_equal(normals(odd), np.concatenate([normals(row[None]) for row in odd]))


@pytest.mark.parametrize("word", [0, 1, (1 << 32) - 1])
def test_every_word_gives_a_finite_number(word: int) -> None:
    found = normals(np.full((1, 2), word, np.uint32))
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 7.0


def test_words_are_those_of_their_stream() -> None:
    streams = Streams(3, "x")
    here = streams.words(10, 5, 1)
    np.testing.assert_array_equal(streams.words(10, 5, 1), here)
    np.testing.assert_array_equal(streams.words(6, 5, 1), here[:6])
    for other in (streams.words(10, 6, 1), streams.words(10, 5), Streams(3, "y").words(10, 5, 1)):
        assert not np.any(other == here)
