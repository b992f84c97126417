"""PKG-Net (paper A, Section V): from Bob's position to precoder and phases, trained on the rate itself.

(x, y, z) → FC 200 ReLU → FC 200 ReLU → two heads: 2M² → P, scaled to ‖P‖² = P_a·M; 2L → θ, each pair divided by its
modulus. Loss −mean I. Positions are scaled by `Scene.span` before they enter, a choice of ours: the paper does not say.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core import seeds
from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.surface.design import Design
from testbed.surface.models.single_cell import SingleCell


@dataclass(frozen=True)
class Scene:
    """What a net was trained for."""

    n_antennas: int = 4
    n_elements: int = 25
    power_dbm: float = 20.0
    eta: float = 0.3
    low_m: float = 5.0
    """Bob's x and y are uniform from here …"""
    high_m: float = 15.0
    """… to here, z = 0."""

    def model(self, bob_m: Any) -> SingleCell:
        return SingleCell.paper(self.n_antennas, self.n_elements, self.power_dbm, self.eta, bob_m)

    def positions(self, n: int, rng: np.random.Generator) -> F64:
        """Return (n, 3) positions of Bob in metres."""
        return np.concatenate([rng.uniform(self.low_m, self.high_m, (n, 2)), np.zeros((n, 1))], axis=1)


class PkgNet:
    """A trained (or fresh) net with its scene."""

    def __init__(self, scene: Scene, seed: int = 0, hidden: int = 200) -> None:
        import torch

        self.scene, self.hidden = scene, hidden
        self.history: list[float] = []
        """Mean rate in bits over each epoch's positions."""
        self.seed = seed
        outputs = 2 * scene.n_antennas**2 + 2 * scene.n_elements
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(seed, "pkg_net"))
            # the two heads as one layer: the first 2M² outputs are the precoder's
            self.net = torch.nn.Sequential(
                torch.nn.Linear(3, hidden), torch.nn.ReLU(),
                torch.nn.Linear(hidden, hidden), torch.nn.ReLU(),
                torch.nn.Linear(hidden, outputs),
            )  # fmt: skip

    def forward(self, bob_m: Any) -> tuple[Any, Any]:
        """Return precoders (batch, M, M) and phases (batch, L) for positions (batch, 3), torch tensors."""
        import torch

        s, m = self.scene, self.scene.n_antennas
        middle, half = (s.high_m + s.low_m) / 2, (s.high_m - s.low_m) / 2
        out = self.net((bob_m - torch.tensor([middle, middle, 0.0])) / half)
        p = torch.complex(out[:, : m * m], out[:, m * m : 2 * m * m]).reshape(-1, m, m)
        power_w = 1e-3 * 10 ** (s.power_dbm / 10)
        p = p * ((power_w * m) ** 0.5 / torch.linalg.matrix_norm(p)[:, None, None])
        re, im = out[:, 2 * m * m :].chunk(2, dim=1)
        return p, torch.atan2(im, re)

    def train(self, epochs: int = 100, n_positions: int = 1000, batch: int = 100, rate: float = 1e-3) -> PkgNet:
        """Train as the paper does: fresh positions every epoch, Adam. Seeded; returns itself."""
        import torch

        rng = seeds.generator(self.seed, "pkg_net", "positions")
        optimiser = torch.optim.Adam(self.net.parameters(), lr=rate)
        for _ in range(epochs):
            total = 0.0
            for chunk in np.split(self.scene.positions(n_positions, rng), n_positions // batch):
                bits = self.scene.model(chunk).rate_bits(*self.forward(torch.as_tensor(chunk, dtype=torch.float32)))
                loss = -bits.mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total -= float(loss.detach()) * len(chunk)
            self.history.append(total / n_positions)
        return self

    def save(self, path: Path) -> None:
        """Write the weights (`path`) and a card that says what they are (`path` with .json)."""
        import torch

        torch.save(self.net.state_dict(), path)
        card = {"scene": asdict(self.scene), "hidden": self.hidden, "seed": self.seed, "history": self.history}
        path.with_suffix(".json").write_text(json.dumps({**card, "torch": torch.__version__}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> PkgNet:
        """Read what `save` wrote; raises InputError for anything else. No code in the file is run."""
        import pickle

        import torch

        try:
            card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            net = cls(Scene(**card["scene"]), card["seed"], card["hidden"])
            net.net.load_state_dict(torch.load(path, weights_only=True))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as exc:
            raise InputError(f"{path}: no trained PKG-Net: {str(exc).splitlines()[0]}") from exc
        net.history = card["history"]
        return net


def design(net: PkgNet, bob_m: Any) -> Design:
    """Return the net's answer for positions (batch, 3) in metres."""
    import torch

    with torch.no_grad():
        p, phases = net.forward(torch.as_tensor(np.asarray(bob_m), dtype=torch.float32))
    return Design(phases.numpy().astype(np.float64), p.numpy(), net.history)
