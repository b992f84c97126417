"""Nets for paper D trained on the secrecy rate itself: without labels, and without the discontinuity of angles.

The loss is the mean rate with the best precoder, which has a closed form in the phases. An output is a pair (x, y)
whose direction is the phase, so that 0 and 2π are the same point. There are two kinds:

- `dense`: the supervised net's layers with 2N outputs, which shows the effect of the loss alone;
- `unfolded`: several steps of (best beam, then every phase changed by a small net that all elements share). The inputs
  of the small net are the element's path relative to all that Bob and Eve receive, which neither a common phase of
  either receiver nor the order of the elements changes, and the mean over the elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.core import seeds
from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.learning import torch_device
from testbed.papers.kit.nets import check_training
from testbed.papers.secrecy.model import Secrecy, best_beam_torch, pencil_bits
from testbed.papers.secrecy.nets import Scene, SecrecyNet, answer, inputs
from testbed.papers.secrecy.supervised import batches, dense_stack
from testbed.surface.design import Design

KINDS = ("unfolded", "dense")
_FEATURES = 6


class RateNet(SecrecyNet):
    """`history`: the mean rate in bits over each epoch's channels."""

    NAME = "rate-trained secrecy net"

    def __init__(self, scene: Scene, seed: int = 0, kind: str = "unfolded", steps: int = 6, hidden: int = 32) -> None:
        if kind not in KINDS:
            raise InputError(f"net kind {kind!r}, accepted: {', '.join(KINDS)}")
        if steps < 1 or hidden < 1:
            raise InputError(f"{steps} steps of width {hidden}, accepted: 1 or more of each")
        super().__init__(scene, seed, kind=kind, steps=steps, hidden=hidden)

    def _build(self, **options: Any) -> Any:
        import torch

        kind, steps, hidden = (options[name] for name in ("kind", "steps", "hidden"))
        if kind == "dense":
            return dense_stack(self.scene, 2 * self.scene.n_elements, hidden_layers=2, hidden=hidden, batch_norm=True)
        return torch.nn.ModuleList(
            torch.nn.ModuleList([
                torch.nn.Linear(_FEATURES, hidden), torch.nn.Linear(2 * hidden, hidden), torch.nn.Linear(hidden, 2),
            ])
            for _ in range(steps)
        )  # fmt: skip

    def train(
        self, model: Secrecy, epochs: int = 50, batch: int = 100, rate: float = 3e-3, device: str = "auto"
    ) -> RateNet:
        """Train on channels (channel,), Adam with a rate that falls to a hundredth; returns itself."""
        import torch

        self.check(model)
        check_training(epochs=epochs, batch=batch, rate=rate)
        if len(model.h_au) < 2:
            raise InputError(f"{len(model.h_au)} channels to train on, accepted: 2 or more")
        where = torch_device.pick(device)
        data = tuple(x.to(where) for x in self._tensors(model))
        self.net.to(where).train()
        optimiser = torch.optim.Adam(self.net.parameters(), lr=rate, fused=True)
        fall = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.01 ** (1 / max(epochs, 1)))
        shuffle = torch.Generator().manual_seed(seeds.derive(self.seed, self.NAME, "batches"))
        every = torch.arange(len(model.h_au))
        for _ in range(epochs):
            total = 0.0
            for chosen in batches(every, batch, shuffle):
                *_, bits = self._course(*(x[chosen] for x in data))
                loss = -bits.mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total -= float(loss.detach()) * len(chosen)
            fall.step()
            self.history.append(total / len(every))
        self.net.to("cpu").eval()
        return self

    def phases(self, model: Secrecy) -> F64:
        import torch

        self.check(model)
        self.net.eval()
        with torch.no_grad():
            phi, _ = self._course(*self._tensors(model))
        return np.asarray(np.angle(phi.numpy().astype(np.complex128)) % (2 * np.pi))

    def _tensors(self, model: Secrecy) -> tuple[Any, ...]:
        import torch

        rows = tuple(torch.as_tensor(x, dtype=torch.complex64) for x in model.cascades())
        return (*rows, inputs(model)) if self.options["kind"] == "dense" else rows

    def _course(self, a_u: Any, a_e: Any, k_u: Any, k_e: Any, x: Any = None) -> tuple[Any, Any]:
        """Return phasors (channel, element) and the rate with the best beam for them."""
        import torch

        if x is not None:
            phi = _direction(self.net(x).unflatten(-1, (-1, 2)))
            return phi, pencil_bits(*_heard(phi, a_u, a_e, k_u, k_e))
        u, e = a_u, a_e
        phi = None
        for widen, mix, turn in self.net:
            beam = best_beam_torch(u, e)
            each_u, each_e = (torch.einsum("bnm,bm->bn", k, beam) for k in (k_u, k_e))
            all_u, all_e = ((a * beam).sum(-1) for a in (a_u, a_e))
            if phi is None:
                # every path in phase with the direct one at Bob
                towards = (all_u[:, None] * each_u.conj()).angle()
                phi = torch.polar(torch.ones_like(towards), towards)
            by_u, by_e = phi * each_u, phi * each_e
            all_u, all_e = all_u + by_u.sum(-1), all_e + by_e.sum(-1)
            seen = []
            for by, total in ((by_u, all_u), (by_e, all_e)):
                power = 1 + total.abs().square()
                # the imaginary part is −½ of the slope of ln(1 + SNR) in this phase, up to the number of elements
                relative = by * (total.conj() / power)[:, None] * len(k_u[0])
                seen += [relative.real, relative.imag, (power.log() / 4)[:, None].expand_as(relative.real)]
            own = torch.relu(widen(torch.stack(seen, -1)))
            mixed = torch.relu(mix(torch.cat([own, own.mean(1, keepdim=True).expand_as(own)], -1)))
            phi = phi * _direction(turn(mixed) + torch.tensor([1.0, 0.0], device=mixed.device))
            u, e = _heard(phi, a_u, a_e, k_u, k_e)
        return phi, pencil_bits(u, e)


def design(model: Secrecy, net: RateNet, phase_bits: int | None = None, sweeps: int = 0) -> Design:
    """Return the net's result for channels (channel,); see `answer` for levels and sweeps."""
    return answer(model, net, phase_bits, sweeps)


def _direction(pairs: Any) -> Any:
    """Return phasors for pairs (…, 2)."""
    import torch

    z = torch.view_as_complex(pairs.contiguous())
    return z / z.abs().clamp_min(1e-9)


def _heard(phi: Any, a_u: Any, a_e: Any, k_u: Any, k_e: Any) -> tuple[Any, Any]:
    import torch

    return a_u + torch.einsum("bn,bnm->bm", phi, k_u), a_e + torch.einsum("bn,bnm->bm", phi, k_e)
