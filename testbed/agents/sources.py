"""Channels that were recorded or come from a simulated air, as the environment's source.

What the closed-form rates need is estimated from the series itself:
- ρ: the magnitude of the legitimate channel's autocorrelation at one step, all antenna pairs together;
- κ_E: for each pair, the coherence of Eve's channel from the same transmit antenna with it; the largest is used, which
is the cautious side, and chance coherence of short series (1/√steps) makes it more cautious still;
- κ_F and Fred's error: they cannot be separated; Fred's coherence with Eve is used for κ_F, and the error is set to 0.
Where there is no Fred, one with the setting's κ_F is drawn beside Eve.
Series are scaled to coefficients of mean power 1, each node's own. Learners train on one stretch of a series and are
compared with the closed forms on another (`Series.split`); the estimates are those of the first stretch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from testbed.agents.setting import Setting, Stack
from testbed.core import seeds
from testbed.core.archives import read_npz
from testbed.core.config import Experiment, Scene
from testbed.core.errors import InputError
from testbed.core.registry import load_driver
from testbed.core.types import CsiSeries

MAX_BYTES = 1 << 32
"""Largest number of bytes of the channels in a file."""


@dataclass(frozen=True)
class Series:
    """Channels over time."""

    h: NDArray[Any]
    """(time, Bob's antenna, Alice's antenna) complex."""
    g: NDArray[Any]
    """(time, Alice's antenna), to Eve."""
    fred: NDArray[Any] | None = None
    """(time, Alice's antenna), to Fred."""

    def __post_init__(self) -> None:
        h, g = np.shape(self.h), np.shape(self.g)
        if len(h) != 3 or h[1] != h[2]:
            raise InputError(f"agents: h is {h}; accepted: (time, antenna, antenna), as many at Bob as at Alice")
        for name, shape in (("g", g), ("fred", np.shape(self.fred) if self.fred is not None else g)):
            if shape != (h[0], h[2]):
                raise InputError(f"agents: {name} is {shape}; accepted: (time, Alice's antenna) = {(h[0], h[2])}")
        for name, x in (("h", self.h), ("g", self.g), ("fred", self.fred)):
            if x is None:
                continue
            if not np.issubdtype(np.asarray(x).dtype, np.number):
                raise InputError(f"agents: {name} holds {np.asarray(x).dtype}; accepted: complex numbers")
            if not (np.isfinite(x).all() and np.any(x, axis=tuple(range(1, np.ndim(x)))).all()):
                raise InputError(
                    f"agents: {name} has values that are missing or not finite, or steps of zeros: drop those rounds"
                )

    def setting(self, base: Setting) -> Setting:
        """Return `base` with antennas, ρ and correlations as estimated from the series."""
        h, g = _unit_power(self.h), _unit_power(self.g)
        if len(h) < 2 * base.history:
            raise InputError(f"agents: {len(h)} steps of channels; accepted: at least {2 * base.history}")
        rho = abs(np.vdot(h[:-1], h[1:])) / (np.linalg.norm(h[:-1]) * np.linalg.norm(h[1:]))
        kappa = max(_coherence(h[:, b, a], g[:, a]) for b in range(h.shape[1]) for a in range(h.shape[2]))
        found = replace(base, n_antennas=h.shape[1], rho=float(min(rho, 1)), kappa_eve=float(min(kappa, 1)))
        if self.fred is None:
            return found
        f = _unit_power(self.fred)
        beside = float(np.mean([_coherence(f[:, a], g[:, a]) for a in range(g.shape[1])]))
        return replace(found, kappa_fred=min(beside, 1.0), fred_noise=0.0)

    def split(self, share: float = 0.7, gap: int = 0) -> tuple[Series, Series]:
        """Return the first `share` of the steps for training, and for tests those that follow after a gap of `gap`
        steps.
        """
        n = len(self.h)
        end = round(share * n)
        if not 0 < end < end + gap < n:
            raise InputError(
                f"agents: {share:g} of {n} steps and a gap of {gap} leave nothing; accepted: two stretches"
            )

        def stretch(at: slice) -> Series:
            return Series(self.h[at], self.g[at], None if self.fred is None else self.fred[at])

        return stretch(slice(0, end)), stretch(slice(end + gap, n))


class Played:
    """An environment's source that plays a series. Every copy starts at its own step; at each end of the series it
    reverses its direction.

    Runs of a stack have the same channels, each with a Fred of its own κ_F and error, unless the series has one.
    `alike`: the copies of all runs are at the same steps, as in `environment.Ar1`.
    """

    def __init__(self, series: Series, stack: Stack, n_envs: int, seed: int, alike: bool = False) -> None:
        if not isinstance(series, Series):
            raise InputError(f"agents: channels are {type(series).__name__}; accepted: a sources.Series")
        n_steps, n = series.g.shape
        if n != stack.n_antennas:
            raise InputError(
                f"agents: the channels have {n} antennas, the setting {stack.n_antennas}; accepted: the same, as "
                "Series.setting gives it"
            )
        if n_steps < 2 * stack.history:
            raise InputError(f"agents: {n_steps} steps of channels; accepted: at least {2 * stack.history}")
        self._stack, self._last = stack, n_steps - 1
        self._generator = torch.Generator().manual_seed(seeds.derive(seed, "agents", "played"))
        self._drawn = (1 if alike else stack.n_runs, n_envs)

        def tensor(x: NDArray[Any]) -> torch.Tensor:
            return torch.as_tensor(_unit_power(x).astype(np.complex64), device=stack.device)

        self._h, self._g = tensor(series.h), tensor(series.g)
        self._fred = self._invented() if series.fred is None else tensor(series.fred)[:, None]
        self.start()

    def _invented(self) -> torch.Tensor:
        """Return (time, run, antenna) estimates of a Fred beside Eve; his own part changes as fast as the channels."""
        shape, stack = (2, len(self._g), 1, self._g.shape[1], 2), self._stack
        drawn = torch.view_as_complex(torch.randn(shape, generator=self._generator) * 0.5**0.5)
        apart, error = drawn.to(stack.device)
        apart = apart.repeat(1, stack.n_runs, 1)
        for t in range(1, len(apart)):
            apart[t] = stack.rho * apart[t - 1] + (1 - stack.rho**2).sqrt() * apart[t]
        kappa = stack.kappa_fred
        return kappa * self._g[:, None] + (1 - kappa**2).sqrt() * apart + stack.fred_noise.sqrt() * error

    def start(self) -> None:
        """Let every copy begin at a random moment."""
        self._at = torch.randint(2 * self._last, self._drawn, generator=self._generator)
        self._look()

    def advance(self) -> None:
        """Move on by one recorded step; at the end the series is played backwards, so that no channel jumps."""
        self._at = (self._at + 1) % (2 * self._last)
        self._look()

    def _look(self) -> None:
        at = torch.minimum(self._at, 2 * self._last - self._at).to(self._h.device)
        at = at.expand(self._stack.n_runs, -1)
        run = torch.arange(self._stack.n_runs, device=at.device)[:, None]
        self.h, self.g = self._h[at], self._g[at]
        self.fred = self._fred[at, run if self._fred.shape[1] > 1 else 0]

    def state_dict(self) -> dict[str, Any]:
        ends = self._h[[0, -1]]  # these identify the series
        return {"at": self._at.clone(), "generator": self._generator.get_state(), "ends": ends}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ends = self._h[[0, -1]]
        if state["at"].shape != self._drawn or not torch.equal(state["ends"].to(ends.device), ends):
            raise InputError(
                "agents: the checkpoint's environment played other channels; accepted: those of its training"
            )
        self._at = state["at"].clone()
        self._generator.set_state(state["generator"])
        self._look()


def load(path: Path) -> Series:
    """Return the channels of a NumPy archive: `h`, `g` and, where there is one, `fred`, as `Series` has them."""
    try:
        found = read_npz(path, MAX_BYTES, wanted=("h", "g", "fred").__contains__)
    except (OSError, ValueError) as exc:
        raise InputError(
            f"{path}: no NumPy archive of channels: {exc}; accepted: .npz with h, g and maybe fred"
        ) from exc
    if not {"h", "g"} <= found.keys():
        raise InputError(
            f"{path}: holds {', '.join(found) or 'neither h nor g'}; accepted: .npz with h, g and maybe fred"
        )
    return Series(**found)


def from_csi(legitimate: CsiSeries, eve: CsiSeries, fred: CsiSeries | None = None) -> Series:
    """Return the channels that a run recorded: soundings of Alice by Bob, by Eve and, where there is one, by Fred.

    Each (probe, rx antenna, Alice's antenna, subcarrier), of which the middle of the band and Eve's and Fred's first
    antenna are used; rounds that any of them lacks are dropped. Oscillators give every sounding a phase of its own:
    each sounding is rotated to agree with the one before, which makes ρ of fast channels look larger than it is.
    """
    given = [s for s in (legitimate, eve, fred) if s is not None]
    known = [dict(zip(s.rounds.tolist(), s.h[..., s.h.shape[-1] // 2], strict=True)) for s in given]
    common = sorted(set.intersection(*(set(k) for k in known)))
    rows = [[k[r] for k in known] for r in common if all(np.isfinite(k[r]).all() for k in known)]
    if not rows:
        raise InputError("agents: no round has CSI of every link; accepted: runs with soundings that all nodes receive")
    h, g, *rest = (_steady(np.stack(x).astype(np.complex128)) for x in zip(*rows, strict=True))
    return Series(h, g[:, 0], rest[0][:, 0] if rest else None)


def _steady(x: NDArray[Any]) -> NDArray[Any]:
    for t in range(1, len(x)):
        x[t] *= np.exp(-1j * np.angle(np.vdot(x[t - 1], x[t])))
    return x


def from_world(
    scene: Scene,
    carrier_hz: float,
    seed: int,
    time_s: NDArray[np.float64],
    n_antennas: int = 4,
    fred_offset_m: float = 1e-3,
    world: str = "sim",
) -> Series:
    """Return the channels of a scene at instants (time,) in s, Alice and Bob with lines of antennas along x.

    Antennas are half a wavelength apart; each pair of them is a scene of single antennas at those places in the same
    surroundings, which is what `World.responses` returns for one seed. Fred is `fred_offset_m` from Eve. Raises
    InputError for a scene without Eve.
    """
    import msgspec

    if scene.eve is None:
        raise InputError("agents: the scene has no [scene.eve]; accepted: a scene with Eve")
    placed = (scene.alice.position_m, scene.bob.position_m, scene.eve.position_m or scene.eve.near == "bob" or None)
    if scene.uma is not None or None in placed:
        raise InputError(
            "agents: antennas are placed by position; accepted: [scene.*] with position_m, or Eve near Bob, without "
            "[scene.uma]"
        )
    responses = load_driver("worlds", world).responses
    wavelength_m = 299_792_458.0 / carrier_hz
    half_m = wavelength_m / 2

    def moved(node: Any, by_m: float) -> Any:
        if node.position_m is None:  # Eve, who stands at a distance from Bob
            further = node.offset_wavelengths + by_m / wavelength_m
            return msgspec.structs.replace(node, offset_wavelengths=further)
        x, y, z = node.position_m
        return msgspec.structs.replace(node, position_m=(x + by_m, y, z))

    def links(alice: int, bob: int, eve_m: float = 0.0) -> dict[str, Any]:
        placed = msgspec.structs.replace(
            scene, alice=moved(scene.alice, alice * half_m), bob=moved(scene.bob, bob * half_m),
            eve=moved(scene.eve, eve_m),
        )  # fmt: skip
        found: dict[str, Any] = responses(placed, carrier_hz, seed, time_s, np.zeros(1), None)
        return found

    n = range(n_antennas)
    every = {(b, a): links(a, b) for a in n for b in n}
    h = np.stack([np.stack([_link(every[b, a], "alice", "bob") for a in n], -1) for b in n], -2)
    g = np.stack([_link(every[0, a], "alice", "eve") for a in n], -1)
    fred = np.stack([_link(links(a, 0, fred_offset_m), "alice", "eve") for a in n], -1)
    return Series(h, g, fred)


def from_experiment(plan: Experiment, step_s: float | None = None, n_antennas: int = 4) -> Series:
    """Return the channels of an experiment's scene, one step a round, `step_s` (default: its interval) apart."""
    step_s = plan.probing.interval_s if step_s is None else step_s
    if not 0 < step_s < np.inf:
        raise InputError(f"agents: steps of {step_s} s; accepted: above 0")
    time_s = step_s * np.arange(plan.rounds, dtype=np.float64)
    return from_world(plan.scene, plan.radio.carrier_hz, plan.seed, time_s, n_antennas)


def _link(found: dict[str, Any], one: str, other: str) -> NDArray[Any]:
    for name in (f"{one}>{other}", f"{other}>{one}"):
        if name in found:
            out: NDArray[Any] = found[name][:, 0]
            return out
    raise InputError(f"agents: the world gives no link between {one} and {other}; it gives {', '.join(sorted(found))}")


def _unit_power(x: NDArray[Any]) -> NDArray[Any]:
    x = np.asarray(x)
    out: NDArray[Any] = x / np.sqrt(np.mean(np.abs(x) ** 2))
    return out


def _coherence(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(abs(np.vdot(x, y)) / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))
