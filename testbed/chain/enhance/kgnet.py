"""KGNet (Zhang et al., 2022; paper B's peer): a fully connected network that maps one end's features to the other's.

Made for FDD, where uplink and downlink are different bands; here it maps Alice's noisy CSI to Bob's.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from testbed.chain.enhance._features import Count
from testbed.chain.enhance._trained import Learned, Model, Split, Trained
from testbed.chain.enhance._trainer import MappedNetworkOptions, Scale, Width, run, squared, train
from testbed.core.types import F64


class KgNetOptions(MappedNetworkOptions, frozen=True):
    hidden: tuple[Width, ...] = (512, 1024, 1024, 512)
    """Widths of the hidden layers."""
    epochs: Count = 100
    """Largest number of epochs; training ends earlier if the validation loss did not improve for `patience` epochs."""
    patience: Count = 15
    """Epochs without improvement after which training ends."""
    batch: Count = 128
    """Probes in a step of the optimiser."""


class KgNet(Trained):
    """Predicts Bob's CSI by four hidden layers (512, 1024, 1024, 512; ReLU) and a sigmoid output, on [0, 1] scales."""

    options_type = KgNetOptions
    options: KgNetOptions
    applied = ("hidden",)

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        x, y = Scale.of(alice[split.train]), Scale.of(bob[split.train])
        build = partial(network, (alice.shape[1], *self.options.hidden, bob.shape[1]))
        weights, history = train(build, squared, (x.apply(alice), y.apply(bob)), split, self.options, rng)
        return Learned(private={**weights, **x.arrays("alice"), **y.arrays("bob")}, history=history)

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        x, y = Scale.read(model.private, "alice"), Scale.read(model.private, "bob")
        build = partial(network, (x.low.size, *self.options.hidden, y.low.size))
        return y.undo(run(build, model.private, x.apply(vectors)))


def network(widths: tuple[int, ...]) -> Any:
    """Return the network with its initial weights."""
    from torch import nn

    layers: list[Any] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]), nn.Sigmoid())
