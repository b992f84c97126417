"""The common parts of both nets of paper D: their scene, their inputs, their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.papers.kit.nets import Net
from testbed.papers.secrecy import coordinate as secrecy_coordinate
from testbed.papers.secrecy import levels as secrecy_levels
from testbed.papers.secrecy.model import Secrecy, dbm_to_w
from testbed.surface.design import Design


@dataclass(frozen=True)
class Scene:
    """The scene that a net is trained for: paper D's, with P_t uniform in dBm."""

    n_antennas: int = 4
    n_elements: int = 25
    low_dbm: float = 0.0
    high_dbm: float = 30.0

    def __post_init__(self) -> None:
        dbm_to_w((self.low_dbm, self.high_dbm))
        if self.low_dbm > self.high_dbm:
            raise InputError(f"powers from {self.low_dbm:g} to {self.high_dbm:g} dBm, accepted: the lower one first")

    def draw(self, n: int, rng: np.random.Generator) -> Secrecy:
        """Return n channels, each with a power drawn for it."""
        power_dbm = rng.uniform(self.low_dbm, self.high_dbm, n)
        return Secrecy.paper(n, rng, power_dbm, self.n_antennas, self.n_elements)

    @property
    def n_inputs(self) -> int:
        return 2 * (2 * self.n_antennas + self.n_elements * self.n_antennas + 2 * self.n_elements) + 1


class SecrecyNet(Net):
    """Subclasses define how phases follow from `net`."""

    SCENE = Scene
    scene: Scene

    def phases(self, model: Secrecy) -> F64:
        """Return phases in radians (channel, element) for channels (channel,)."""
        raise NotImplementedError

    def check(self, model: Secrecy) -> None:
        """Raise InputError if the channels do not have the net's shape."""
        here, known = (model.n_elements, model.n_antennas), (self.scene.n_elements, self.scene.n_antennas)
        if len(model.batch) != 1 or here != known:
            raise InputError(
                f"channels g of shape {model.g.shape}; this net accepts (channel, {known[0]}, {known[1]}), as trained"
            )


def answer(model: Secrecy, net: SecrecyNet, phase_bits: int | None, sweeps: int) -> Design:
    """Return the net's phases after `sweeps` rounds of coordinate ascent, with the best precoder for them.

    With `phase_bits` the phases are first rounded to a board's levels, and the rounds are over these levels.
    """
    phases = net.phases(model)
    if sweeps > 0:
        return secrecy_coordinate.design(model, phases, rounds=sweeps, phase_bits=phase_bits)
    if phase_bits is not None:
        return secrecy_levels.projected(model, phases, phase_bits)
    return Design(phases, model.best_precoder(phases))


def inputs(model: Secrecy) -> Any:
    """Return (channel, input) single precision: Re and Im of h_au, h_ae, G, h_iu, h_ie, not scaled, and P_t in dBm.

    With inputs in noise amplitudes, for which a batch norm's ε is negligible, losses and rates are the same.
    """
    import torch

    n = len(model.h_au)
    parts = [x.reshape(n, -1) for x in (model.h_au, model.h_ae, model.g, model.h_iu, model.h_ie)]
    columns = [part for x in parts for part in (x.real, x.imag)] + [10 * np.log10(model.power_w * 1e3)[:, None]]
    return torch.as_tensor(np.concatenate(columns, axis=1), dtype=torch.float32)
