"""AE (Han et al., 2022; paper B's peer): features from the code of an autoencoder that both ends share.

The paper says only "reciprocal features from a trained autoencoder"; this is our interpretation. Both ends use one
encoder. From the code of either end's CSI, one decoder must reconstruct the CSI of both ends, and the two codes must be
equal.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.chain.enhance._trained import Learned, Model, Split, Trained
from testbed.chain.enhance._trainer import NetworkOptions, Scale, Width, run, train
from testbed.core.types import F64


class AutoencoderOptions(NetworkOptions, frozen=True):
    codes: Width = 16
    """Number of features."""
    hidden: Width = 128
    """Width of the layer before and after the code."""
    agreement: Annotated[float, Meta(ge=0)] = 0.1
    """Weight of the difference of the two codes in the loss."""


class Autoencoder(Trained):
    """Computes `codes` features by an encoder that Alice publishes; they have mean 0 and variance 1 over a batch.

    Loss: mean squared error of the four reconstructions (either end's code, either end's CSI) plus `agreement` times
    that of the two codes.
    """

    maps_csi = False

    options_type = AutoencoderOptions
    options: AutoencoderOptions
    applied = ("codes", "hidden")

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        if alice.shape != bob.shape:
            raise ValueError(f"{alice.shape[1]} elements at Alice, {bob.shape[1]} at Bob; accepted: the same")
        scale = Scale.of(np.concatenate([alice[split.train], bob[split.train]]))
        build = partial(network, alice.shape[1], self.options.hidden, self.options.codes)
        data = scale.apply(alice), scale.apply(bob)
        weights, history = train(build, self._loss, data, split, self.options, rng)
        encoder = {k: v for k, v in weights.items() if k.startswith("net.encoder.")}
        return Learned(public={**encoder, **scale.arrays("csi")}, history=history)

    def _loss(self, net: Any, x: Any, y: Any) -> Any:
        a, b = net.encoder(x), net.encoder(y)
        rebuilt = [((net.decoder(code) - end) ** 2).mean() for code in (a, b) for end in (x, y)]
        return sum(rebuilt) + self.options.agreement * ((a - b) ** 2).mean()

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        scale = Scale.read(model.public, "csi")
        weights = {k.replace("net.encoder.", "net."): v for k, v in model.public.items()}
        build = partial(encoder, scale.low.size, self.options.hidden, self.options.codes)
        return run(build, weights, scale.apply(vectors))


def encoder(elements: int, hidden: int, codes: int) -> Any:
    from torch import nn

    # The last layer normalises the codes; without it, the codes of both ends could become equal by shrinking to 0.
    return nn.Sequential(
        nn.Linear(elements, hidden), nn.ReLU(), nn.Linear(hidden, codes), nn.BatchNorm1d(codes, affine=False)
    )


def network(elements: int, hidden: int, codes: int) -> Any:
    """Return the fresh pair of encoder and decoder."""
    from torch import nn

    decoder = nn.Sequential(nn.Linear(codes, hidden), nn.ReLU(), nn.Linear(hidden, elements))
    return nn.ModuleDict({"encoder": encoder(elements, hidden, codes), "decoder": decoder})
