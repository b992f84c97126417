"""The one trainer of all networks: scaling by the training set, Adam, early stopping, seeds.

Data is (probe, element) float64 of consecutive probes, split by `_trained.Split`; the weights are returned as plain
arrays. torch is imported where it is used, so that a node that trains nothing starts without it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from testbed.chain.enhance._features import Count, ScaleName
from testbed.chain.enhance._trained import Arrays, Split, TrainedOptions
from testbed.core.types import F64
from testbed.learning import torch_device

Width = Annotated[int, Meta(ge=1, le=8192)]
"""Width of a layer. The limit is far more than CSI needs, and such a layer fits into a node's memory."""
Build = Callable[[], Any]
"""Returns a fresh torch module."""


class NetworkOptions(TrainedOptions, frozen=True):
    """Options of the training of a network, beside those of all enhancers with a model."""

    epochs: Count = 200
    """Largest number of epochs; training ends earlier if the validation loss did not improve for `patience` epochs."""
    patience: Count = 20
    """Epochs without improvement after which training ends."""
    batch: Count = 64
    """Probes in a step of the optimiser."""
    rate: Annotated[float, Meta(gt=0, le=1)] = 1e-3
    """Adam's learning rate; it falls to a hundredth along a half cosine."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Device on which torch computes; auto: see `learning.torch_device`."""


class MappedNetworkOptions(NetworkOptions, frozen=True):
    """Options of networks that predict Bob's CSI, from which both ends compute features as `identity` does."""

    step: Count = 8
    """Subcarriers averaged into one dimension."""
    scale: ScaleName = "complex"
    """db: 20·log10 |h|; magnitude: |h|; complex: Re h and Im h."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Scales each element to [0, 1] over the training set; other values may lie outside (paper B, section 3)."""

    low: F64
    span: F64

    @classmethod
    def of(cls, values: F64) -> Scale:
        low = values.min(axis=0)
        return cls(low, np.maximum(np.ptp(values, axis=0), 1e-30))

    @classmethod
    def read(cls, arrays: Arrays, name: str) -> Scale:
        return cls(arrays[f"{name}.low"], arrays[f"{name}.span"])

    def arrays(self, name: str) -> Arrays:
        return {f"{name}.low": self.low, f"{name}.span": self.span}

    def apply(self, values: F64) -> F64:
        return np.asarray((values - self.low) / self.span)

    def undo(self, values: F64) -> F64:
        return np.asarray(values * self.span + self.low)


def train(
    build: Build,
    loss: Callable[..., Any],
    data: tuple[F64, ...],
    split: Split,
    recipe: NetworkOptions,
    rng: np.random.Generator,
) -> tuple[Arrays, dict[str, Any]]:
    """Return the weights with the least validation loss, and the history of the training.

    `loss(network, *rows)` returns a scalar; `rows` are the batch's rows of `data` as float32 tensors. `rng` draws the
    initial weights and the order of batches.
    """
    import torch

    device = torch_device.pick(recipe.device)
    seed = int(rng.integers(1 << 62))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build().to(device)
    seen, judged = (
        [torch.as_tensor(x[rows], dtype=torch.float32, device=device) for x in data]
        for rows in (split.train, split.validate)
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate, fused=True)
    n_batches = -(-len(split.train) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, recipe.epochs * n_batches, eta_min=recipe.rate / 100
    )

    def judge() -> float:
        network.eval()
        with torch.no_grad():
            return float(loss(network, *judged))

    first = best = judge()
    best_epoch, epoch, weights = 0, 0, copy.deepcopy(network.state_dict())
    with torch_device.flushed():
        for epoch in range(1, recipe.epochs + 1):
            network.train()
            for rows in np.array_split(rng.permutation(len(split.train)), n_batches):
                index = torch.as_tensor(rows, device=device)
                value = loss(network, *(x[index] for x in seen))
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                schedule.step()
            now = judge()
            if now < best:
                best, best_epoch, weights = now, epoch, copy.deepcopy(network.state_dict())
            if epoch - best_epoch >= recipe.patience:
                break
    history = {
        "seed": seed, "device": device, "epochs": epoch, "best_epoch": best_epoch,
        "validation_first": first, "validation_best": best,
        "weights": sum(int(w.numel()) for w in weights.values()),
    }  # fmt: skip
    return {f"net.{k}": v.cpu().numpy() for k, v in weights.items()}, history


def run(build: Build, weights: Mapping[str, NDArray[Any]], *inputs: F64, call: str = "forward") -> F64:
    """Return the output (probe, element) of a trained network, or of one of its methods, for inputs."""
    import torch

    with torch.random.fork_rng(devices=[]):
        network = build()
    state = {k.removeprefix("net."): torch.as_tensor(v.copy()) for k, v in weights.items() if k.startswith("net.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as exc:
        raise ValueError(f"weights of another network: {str(exc).splitlines()[0]}") from exc
    network.eval()
    with torch.no_grad():
        out = getattr(network, call)(*(torch.as_tensor(x, dtype=torch.float32) for x in inputs))
    return np.asarray(out.numpy(), dtype=np.float64)


def squared(network: Any, x: Any, y: Any) -> Any:
    """Mean squared error."""
    return ((network(x) - y) ** 2).mean()
