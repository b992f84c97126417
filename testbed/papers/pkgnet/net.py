"""PKG-Net (paper A, Section V): a net that maps Bob's position to precoder and phases, trained on the rate itself.

(x, y, z) → FC 200 ReLU → FC 200 ReLU → two heads: 2M² → P, scaled to ‖P‖² = P_a·M; 2L → θ, each pair divided by its
modulus. The loss is the negative mean of I. Positions are divided by the scene's span first; the paper does not say
whether it does so. The net runs on the CPU, because layers of this size are no faster on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.core import seeds
from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.papers.kit.nets import Net, check_training
from testbed.papers.pkgnet import levels as pkg_levels
from testbed.papers.pkgnet.model import SingleCell
from testbed.surface.design import Design


@dataclass(frozen=True)
class Scene:
    """The scene that a net was trained for."""

    n_antennas: int = 4
    n_elements: int = 25
    power_dbm: float = 20.0
    eta: float = 0.3
    low_m: float = 5.0
    """Lower limit of Bob's x and y, which are uniform (z = 0)."""
    high_m: float = 15.0
    """Upper limit of Bob's x and y."""

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low_m, self.high_m]).all() and self.low_m < self.high_m):
            raise InputError(f"positions from {self.low_m:g} to {self.high_m:g} m, accepted: a finite span above 0 m")

    def model(self, bob_m: Any) -> SingleCell:
        return SingleCell.paper(self.n_antennas, self.n_elements, self.power_dbm, self.eta, bob_m)

    def positions(self, n: int, rng: np.random.Generator) -> F64:
        """Return (n, 3) positions of Bob in metres."""
        return np.concatenate([rng.uniform(self.low_m, self.high_m, (n, 2)), np.zeros((n, 1))], axis=1)


class PkgNet(Net):
    """`history`: the mean rate in bits over each epoch's positions."""

    NAME = "PKG-Net"
    SCENE = Scene
    scene: Scene

    def __init__(self, scene: Scene, seed: int = 0, hidden: int = 200) -> None:
        if hidden < 1:
            raise InputError(f"layers of {hidden}, accepted: 1 or more")
        super().__init__(scene, seed, hidden=hidden)

    def _build(self, **options: Any) -> Any:
        import torch

        hidden, outputs = options["hidden"], 2 * self.scene.n_antennas**2 + 2 * self.scene.n_elements
        # the two heads are one layer: its first 2M² outputs belong to the precoder
        return torch.nn.Sequential(
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
        """Train as in the paper: fresh positions every epoch, Adam. Seeded; returns itself."""
        import torch

        check_training(epochs=epochs, n_positions=n_positions, batch=batch, rate=rate)
        rng = seeds.generator(self.seed, "pkg_net", "positions")
        optimiser = torch.optim.Adam(self.net.parameters(), lr=rate)
        for _ in range(epochs):
            total = 0.0
            bob = self.scene.positions(n_positions, rng)
            for chunk in np.split(bob, range(batch, n_positions, batch)):
                bits = self.scene.model(chunk).rate_bits(*self.forward(torch.as_tensor(chunk, dtype=torch.float32)))
                loss = -bits.mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total -= float(loss.detach()) * len(chunk)
            self.history.append(total / n_positions)
        return self

    def places(self, model: SingleCell) -> F64:
        """Return Bob's positions (…, 3).

        Raises InputError for a model without them, or of another scene than the one that the net was trained for.
        """
        if model.bob_m is None:
            raise InputError("a model without bob_m: PKG-Net answers by Bob's position; accepted: SingleCell.paper(…)")
        known = self.scene.model(model.bob_m)
        for name in ("r_b", "r_i", "power_a_w", "power_b_w", "noise_w", "beta_h", "beta_gf"):
            here, there = (np.asarray(getattr(m, name)) for m in (model, known))
            if here.shape != there.shape or not np.allclose(here, there, rtol=1e-6, atol=0):
                raise InputError(f"{name} is not what this net was trained for; accepted: {self.scene}")
        return np.asarray(model.bob_m)


def design(model: SingleCell, net: PkgNet, phase_bits: int | None = None) -> Design:
    """Return the net's result for Bob's positions, `model.bob_m` (…, 3).

    With `phase_bits`, its phases are optimised over a board's levels (`levels`), with the best precoder for them.
    """
    import torch

    bob_m = net.places(model).reshape(-1, 3)
    with torch.no_grad():
        p, phases = net.forward(torch.as_tensor(bob_m, dtype=torch.float32))
    phases_rad = phases.numpy().astype(np.float64).reshape(*model.batch, -1)
    if phase_bits is not None:
        return pkg_levels.design(model, phases_rad, phase_bits)
    return Design(phases_rad, p.numpy().reshape(*model.batch, *p.shape[1:]))
