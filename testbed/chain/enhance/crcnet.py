"""CRCNet (paper B, section 3): a one-dimensional CNN at Alice that makes Bob's CSI of hers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from testbed.chain.enhance._features import Reduction, whole
from testbed.chain.enhance._trained import Learned, Model, Split, Trained
from testbed.chain.enhance._trainer import MOST_WIDTH, Recipe, Scale, run, squared, train
from testbed.core.types import F64

WIDTH = 256


class CrcNet(Trained):
    """Predicts Bob's CSI by a network of 128 reals → FC 256 → Conv1d → FC 256 → Conv1d → FC 128, ReLU between.

    Convolutions have kernel 2 and stride 2, no padding, and `filters` channels. The paper does not say how many; with
    one, many a seed starts with a filter whose ReLU is 0 everywhere and learns nothing. Inputs and targets are scaled
    to [0, 1] by the ranges of the training rounds; loss MSE, Adam. Other numbers of subcarriers or antennas change the
    first and last layer only. step, scale, align: as `identity`'s. model: a saved model instead of a training.
    validation, gap: as `linear_mmse`'s. epochs … device: see `_trainer.Recipe`.
    """

    def __init__(
        self,
        filters: int = 4,
        step: int = 8,
        scale: str = "complex",
        align: bool = True,
        model: str = "",
        validation: float = 0.2,
        gap: int = 8,
        epochs: int = 200,
        patience: int = 20,
        batch: int = 64,
        rate: float = 1e-3,
        device: str = "cpu",
    ) -> None:
        whole("filters", filters, 1, MOST_WIDTH)
        self._recipe = Recipe(epochs, patience, batch, rate, device)
        self._filters = filters
        reduction, parameters = Reduction(step, scale, "none", 1, align), {"filters": filters}
        super().__init__(reduction, model, validation, gap, parameters, self._recipe.card)

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        x, y = Scale.of(alice[split.train]), Scale.of(bob[split.train])
        build = partial(network, alice.shape[1], bob.shape[1], self._filters)
        weights, history = train(build, squared, (x.apply(alice), y.apply(bob)), split, self._recipe, rng)
        return Learned(private={**weights, **x.arrays("alice"), **y.arrays("bob")}, history=history)

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        x, y = Scale.read(model.private, "alice"), Scale.read(model.private, "bob")
        build = partial(network, x.low.size, y.low.size, self._filters)
        return y.undo(run(build, model.private, x.apply(vectors)))


def network(inputs: int, outputs: int, filters: int) -> Any:
    """Return the fresh network."""
    from torch import nn

    def halve() -> list[Any]:
        return [nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, filters, 2, 2), nn.ReLU(), nn.Flatten()]

    half = filters * WIDTH // 2
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), *halve(),
        nn.Linear(half, WIDTH), nn.ReLU(), *halve(),
        nn.Linear(half, outputs),
    )  # fmt: skip
