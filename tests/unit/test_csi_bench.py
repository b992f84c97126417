import math

import numpy as np
import pytest

from testbed import benchmarks
from testbed.benchmarks import estimator
from testbed.chain.csi.least_squares import LeastSquares
from testbed.chain.probing.ofdm import Ofdm
from testbed.core.errors import InputError


def test_benchmarks_are_found_by_file():
    assert "estimator" in benchmarks.names()
    with pytest.raises(InputError, match=r"'nothing'; accepted: .*estimator"):
        benchmarks.run("nothing")


def test_rows():
    rows = estimator.run(n_pairs=3, n_blocks=1)
    assert [r.name for r in rows] == [
        "estimator_least_squares", "estimator_least_squares_train", "estimator_mmse", "estimator_mmse_train"
    ]  # fmt: skip
    for row in rows:
        assert row.ours_s > 0
        assert row.peer_s > 0
        assert math.isfinite(row.ratio)
        assert "MS/s" in row.note


def test_the_peer_estimates_the_same_channel():
    frame = Ofdm().frame(estimator.SAMPLE_RATE_HZ)
    for seed in range(5):
        block = estimator.example_block(frame, np.random.default_rng(seed))
        ours = np.abs(LeastSquares().estimate(block, frame).h[0, 0])
        peer = np.abs(estimator.textbook(block.samples[0], frame))
        assert np.sum((ours - peer) ** 2) < 0.02 * np.sum(ours**2)


def test_interleaved_takes_turns():
    calls = []
    ours_s, peer_s, ratio = benchmarks.interleaved(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert "".join(calls) == "ab" * 4
    assert min(ours_s, peer_s, ratio) > 0
