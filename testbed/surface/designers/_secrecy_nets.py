"""What both nets of paper D share: the scene they are for, their inputs, how they are kept."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from testbed.core import seeds
from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.surface.design import Design
from testbed.surface.designers import secrecy_coordinate, secrecy_levels
from testbed.surface.models.secrecy import Secrecy


@dataclass(frozen=True)
class Scene:
    """What a net is trained for: paper D's scene with P_t uniform in dBm."""

    n_antennas: int = 4
    n_elements: int = 25
    low_dbm: float = 0.0
    high_dbm: float = 30.0

    def draw(self, n: int, rng: np.random.Generator) -> Secrecy:
        """Return n channels, each with a power of its own."""
        power_dbm = rng.uniform(self.low_dbm, self.high_dbm, n)
        return Secrecy.paper(n, rng, power_dbm, self.n_antennas, self.n_elements)

    @property
    def n_inputs(self) -> int:
        return 2 * (2 * self.n_antennas + self.n_elements * self.n_antennas + 2 * self.n_elements) + 1


class Net:
    """A trained (or fresh) net with its card. Subclasses make `net` and say how phases come from it."""

    NAME: ClassVar[str]

    def __init__(self, scene: Scene, seed: int, **options: Any) -> None:
        import torch

        self.scene, self.seed, self.options = scene, seed, options
        self.history: list[float] = []
        """The loss (supervised) or the mean rate in bits over each epoch's channels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(seed, self.NAME))
            self.net = self._build(**options)

    def _build(self, **options: Any) -> Any:
        raise NotImplementedError

    def phases(self, model: Secrecy) -> F64:
        """Return phases in radians (channel, element) for channels (channel,)."""
        raise NotImplementedError

    def check(self, model: Secrecy) -> None:
        """Raise InputError where the channels are not of the net's shape."""
        here, known = (model.n_elements, model.n_antennas), (self.scene.n_elements, self.scene.n_antennas)
        if len(model.batch) != 1 or here != known:
            raise InputError(
                f"channels g of shape {model.g.shape}; this net accepts (channel, {known[0]}, {known[1]}), as trained"
            )

    def save(self, path: Path) -> None:
        """Write the weights (`path`) and a card that says what they are (`path` with .json)."""
        import torch

        torch.save(self.net.state_dict(), path)
        card = {"net": self.NAME, "scene": asdict(self.scene), "seed": self.seed, "options": self.options}
        card |= {"history": self.history, "torch": torch.__version__}
        path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; raises InputError for anything else. No code in the file is run."""
        import torch

        try:
            card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            if card["net"] != cls.NAME:
                raise ValueError(f"it is a {card['net']}")
            net = cls(Scene(**card["scene"]), card["seed"], **card["options"])
            net.net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as exc:
            raise InputError(f"{path}: no trained {cls.NAME}: {str(exc).splitlines()[0]}") from exc
        net.history = card["history"]
        return net


def answer(model: Secrecy, net: Net, phase_bits: int | None, sweeps: int) -> Design:
    """Return the net's phases, refined by `sweeps` rounds of coordinate ascent, on a board's levels if asked.

    With levels, the phases are projected, and the rounds are over the levels. The precoder is the best for them.
    """
    phases = net.phases(model)
    if sweeps > 0:
        refined = secrecy_coordinate.design(model, phases, rounds=sweeps, phase_bits=phase_bits)
        return Design(refined.phases_rad, refined.precoders, net.history)
    if phase_bits is not None:
        return secrecy_levels.projected(model, phases, phase_bits)
    return Design(phases, model.best_precoder(phases), net.history)


def inputs(model: Secrecy) -> Any:
    """Return (channel, input) single precision: Re and Im of h_au, h_ae, G, h_iu, h_ie as they are, and P_t in dBm."""
    import torch

    n = len(model.h_au)
    parts = [x.reshape(n, -1) for x in (model.h_au, model.h_ae, model.g, model.h_iu, model.h_ie)]
    columns = [part for x in parts for part in (x.real, x.imag)] + [10 * np.log10(model.power_w * 1e3)[:, None]]
    return torch.as_tensor(np.concatenate(columns, axis=1), dtype=torch.float32)
