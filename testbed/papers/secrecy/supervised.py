"""Paper D's supervised net: its inputs are channels and power, its labels the alternating solver's phases; MSE, Adam.

Re and Im of h_au, h_ae, G, h_iu, h_ie and P_t, each through a batch norm, concatenated → dense layers with one batch
norm → N phases in radians. The paper does not give widths, batch size and learning rate, so they are options. A batch
norm treats every input separately, so one batch norm over all inputs equals one for each.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from testbed.core import seeds
from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.learning import torch_device
from testbed.papers.kit.nets import check_training
from testbed.papers.secrecy.model import Secrecy
from testbed.papers.secrecy.nets import Scene, SecrecyNet, answer, inputs
from testbed.surface.design import Design


class SupervisedNet(SecrecyNet):
    """`test_history`: the loss on channels that are used neither for training nor for stopping."""

    NAME = "supervised secrecy net"

    def __init__(
        self, scene: Scene, seed: int = 0, hidden_layers: int = 2, hidden: int = 256, batch_norm: bool = True
    ) -> None:
        if hidden_layers < 1 or hidden < 1:
            raise InputError(f"{hidden_layers} hidden layers of {hidden}, accepted: 1 or more of each")
        super().__init__(scene, seed, hidden_layers=hidden_layers, hidden=hidden, batch_norm=batch_norm)
        self.test_history: list[float] = []
        self.stopped_at: int | None = None
        """The epoch whose weights were kept, where training was stopped early."""

    def _build(self, **options: Any) -> Any:
        return dense_stack(self.scene, outputs=self.scene.n_elements, **options)

    def train(
        self,
        model: Secrecy,
        labels_rad: F64,
        epochs: int = 100,
        patience: int | None = None,
        test: tuple[Secrecy, F64] | None = None,
        batch: int = 100,
        rate: float = 1e-3,
        device: str = "auto",
    ) -> SupervisedNet:
        """Train on channels (channel,) with phases (channel, element) in [0, 2π); returns itself.

        With `patience` a tenth of the channels is not trained on; training stops when their loss has not fallen for
        this many epochs, and the best epoch's weights are kept. `test`: channels and labels whose loss is only
        recorded.
        """
        import torch

        check_training(epochs=epochs, batch=batch, rate=rate)
        for channels, labels in ((model, labels_rad), *([] if test is None else [test])):
            self.check(channels)
            wanted = (len(channels.h_au), channels.n_elements)
            if np.shape(labels) != wanted or not np.isfinite(labels).all():
                raise InputError(f"labels of shape {np.shape(labels)}; accepted: {wanted}, finite")
        where = torch_device.pick(device)
        x, y = inputs(model).to(where), _tensor(labels_rad, where)
        tested = None if test is None else (inputs(test[0]).to(where), _tensor(test[1], where))
        order = torch.as_tensor(seeds.permutation(len(x), self.seed, self.NAME, "held back"))
        n_held = len(x) // 10 if patience is not None else 0
        held, used = order[:n_held], order[n_held:]
        if len(used) < 2 or (patience is not None and n_held < 1):
            raise InputError(f"{len(x)} channels to train on, accepted: 2 or more, 10 or more to stop early")
        self.net.to(where)
        optimiser = torch.optim.Adam(self.net.parameters(), lr=rate, fused=True)
        shuffle = torch.Generator().manual_seed(seeds.derive(self.seed, self.NAME, "batches"))
        best, kept = np.inf, None
        for epoch in range(1, epochs + 1):
            self.net.train()
            total = 0.0
            for chosen in batches(used, batch, shuffle):
                loss = torch.nn.functional.mse_loss(self.net(x[chosen]), y[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * len(chosen)
            self.history.append(total / len(used))
            if tested is not None:
                self.test_history.append(self._loss(*tested))
            if patience is not None:
                now = self._loss(x[held], y[held])
                if now < best:
                    best, kept, self.stopped_at = now, copy.deepcopy(self.net.state_dict()), epoch
                elif epoch - (self.stopped_at or 0) >= patience:
                    break
        if kept is not None:
            self.net.load_state_dict(kept)
        self.net.to("cpu").eval()
        return self

    def _loss(self, x: Any, y: Any) -> float:
        import torch

        self.net.eval()
        with torch.no_grad():
            return float(torch.nn.functional.mse_loss(self.net(x), y))

    def phases(self, model: Secrecy) -> F64:
        import torch

        self.check(model)
        self.net.eval()
        with torch.no_grad():
            return np.asarray(self.net(inputs(model)).numpy().astype(np.float64) % (2 * np.pi))


def design(model: Secrecy, net: SupervisedNet, phase_bits: int | None = None, sweeps: int = 0) -> Design:
    """Return the net's result for channels (channel,); see `answer` for levels and sweeps."""
    return answer(model, net, phase_bits, sweeps)


def dense_stack(scene: Scene, outputs: int, hidden_layers: int, hidden: int, batch_norm: bool) -> Any:
    """Return the paper's layers: batch norm, dense layers with another batch norm after the first, dense out."""
    import torch

    layers: list[Any] = [torch.nn.BatchNorm1d(scene.n_inputs)] if batch_norm else []
    width = scene.n_inputs
    for i in range(hidden_layers):
        layers += [torch.nn.Linear(width, hidden), torch.nn.ReLU()]
        if batch_norm and i == 0:
            layers.append(torch.nn.BatchNorm1d(hidden))
        width = hidden
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, outputs))


def batches(index: Any, size: int, shuffle: Any) -> list[Any]:
    """Return the index (channel,) in random order, in batches of `size`; a last batch of one channel is dropped."""
    import torch

    pieces = torch.split(index[torch.randperm(len(index), generator=shuffle)], size)
    return [piece for piece in pieces if len(piece) > 1 or len(index) == 1]


def _tensor(values: F64, device: str) -> Any:
    import torch

    return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=device)
