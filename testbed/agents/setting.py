"""The setting of an environment: sizes, channel statistics, powers, weights. Many stack along a leading run axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from testbed.core.errors import InputError

_RANGES: dict[str, tuple[float, float, str]] = {
    "rho": (0.0, 1.0, "0 to 1"),
    "kappa_eve": (0.0, 1.0, "0 to 1"),
    "kappa_fred": (0.0, 1.0, "0 to 1"),
    "mu": (0.0, 1.0, "0 to 1"),
    "power": (1e-9, 1e9, "above 0"),
    "noise_power": (1e-9, 1e9, "above 0"),
    "lag": (0.0, 1e6, "0 or more"),
    "threshold": (0.0, 1e6, "0 or more"),
    "fred_noise": (0.0, 1e6, "0 or more"),
}


@dataclass(frozen=True)
class Setting:
    """One setting of paper E's system; raises InputError where a value is out of range."""

    n_antennas: int = 4
    """At Alice and at Bob; Eve and Fred have one."""
    power: float = 1.0
    """P, of the probes and of the data."""
    noise_power: float = 0.1
    """σ² at every receiver."""
    rho: float = 0.95
    """AR(1) coefficient of all channels, from one step to the next."""
    lag: float = 1.0
    """τ, steps between Alice's and Bob's probe."""
    kappa_eve: float = 0.9
    """Correlation of Eve's effective channel with the legitimate one."""
    mu: float = 1.0
    """Weight of the key rate; 1 − µ is the data rate's."""
    threshold: float = 1.0
    """Eve listens where her channel's gain ‖g‖² exceeds this many times its mean."""
    kappa_fred: float = 0.995
    """Correlation of Fred's channel with Eve's. The paper says "highly correlated" and gives no number. This is |J0| at
    0.023 wavelengths; at 0.95 (0.07 wavelengths) no policy can close even 60 % of the gap (study `masac`)."""
    fred_noise: float = 1e-3
    """Error variance of an estimate of Fred's channel, whose coefficients have variance 1."""
    history: int = 8
    """Estimates of Fred's channel, the present one included, from which Eve's is predicted."""

    def __post_init__(self) -> None:
        for name, (low, high, accepted) in _RANGES.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
                raise InputError(f"agents: {name} = {value!r} is out of range; accepted: {accepted}")
        for name, least in (("n_antennas", 2), ("history", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= 1024:
                raise InputError(f"agents: {name} = {value!r} is out of range; accepted: {least} to 1024")


@dataclass(frozen=True)
class Stack:
    """Settings side by side: every number a (run, 1) tensor, so that a whole study runs as one batch."""

    settings: tuple[Setting, ...]
    device: str
    power: torch.Tensor
    noise_power: torch.Tensor
    rho: torch.Tensor
    lag: torch.Tensor
    kappa_eve: torch.Tensor
    mu: torch.Tensor
    threshold: torch.Tensor
    kappa_fred: torch.Tensor
    fred_noise: torch.Tensor

    @classmethod
    def of(cls, settings: Sequence[Setting], device: str = "cpu") -> Stack:
        """Stack settings of the same antennas and history; raises InputError for others."""
        if not settings:
            raise InputError("agents: no setting given; accepted: one or more")
        for name in ("n_antennas", "history"):
            if len({getattr(s, name) for s in settings}) > 1:
                raise InputError(f"agents: settings of different {name} do not stack; accepted: one value for all")
        columns: dict[str, Any] = {
            f.name: torch.tensor([[float(getattr(s, f.name))] for s in settings], device=device)
            for f in fields(cls)
            if f.type == "torch.Tensor"
        }
        return cls(tuple(settings), device, **columns)

    @property
    def n_runs(self) -> int:
        return len(self.settings)

    @property
    def n_antennas(self) -> int:
        return self.settings[0].n_antennas

    @property
    def history(self) -> int:
        return self.settings[0].history
