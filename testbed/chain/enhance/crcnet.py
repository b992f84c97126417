"""CRCNet (paper B, section 3): a one-dimensional CNN at Alice that predicts Bob's CSI from hers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from testbed.chain.enhance._trained import Learned, Model, Split, Trained
from testbed.chain.enhance._trainer import MappedNetworkOptions, Scale, Width, run, squared, train
from testbed.core.types import F64

WIDTH = 256


class CrcNetOptions(MappedNetworkOptions, frozen=True):
    filters: Width = 4
    """Channels of the convolutions."""


class CrcNet(Trained):
    """Predicts Bob's CSI by a network of 128 reals → FC 256 → Conv1d → FC 256 → Conv1d → FC 128, ReLU between.

    Convolutions have kernel 2 and stride 2, no padding, and `filters` channels. The paper does not give their number;
    with one channel, many seeds start with a filter whose ReLU is 0 everywhere, which learns nothing. Inputs and
    targets are scaled to [0, 1] by the ranges of the training rounds; loss MSE, Adam. Other numbers of subcarriers or
    antennas change the first and last layer only.
    """

    options_type = CrcNetOptions
    options: CrcNetOptions
    applied = ("filters",)

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        x, y = Scale.of(alice[split.train]), Scale.of(bob[split.train])
        build = partial(network, alice.shape[1], bob.shape[1], self.options.filters)
        weights, history = train(build, squared, (x.apply(alice), y.apply(bob)), split, self.options, rng)
        return Learned(private={**weights, **x.arrays("alice"), **y.arrays("bob")}, history=history)

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        x, y = Scale.read(model.private, "alice"), Scale.read(model.private, "bob")
        build = partial(network, x.low.size, y.low.size, self.options.filters)
        return y.undo(run(build, model.private, x.apply(vectors)))


def network(inputs: int, outputs: int, filters: int) -> Any:
    """Return the network with its initial weights."""
    from torch import nn

    def halve() -> list[Any]:
        return [nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, filters, 2, 2), nn.ReLU(), nn.Flatten()]

    half = filters * WIDTH // 2
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), *halve(),
        nn.Linear(half, WIDTH), nn.ReLU(), *halve(),
        nn.Linear(half, outputs),
    )  # fmt: skip
