"""Paper E's environment: thousands of copies at once, AR(1) channels, Eve, who listens at times, and Fred beside her.

The channel from Alice to Bob is H(t+1) = ρH(t) + √(1−ρ²)W(t) with entries CN(0, 1). Eve's channel g is the same kind of
process, and so is n in Fred's channel f = κ_F g + √(1−κ_F²) n. Beams w_a, w_b of unit norm make h = w_bᵀHw_a; Eve
receives gᵀw_a from Alice's probe. (Her channel to Bob does not enter the rates as we read the paper, and is not drawn.)
She listens while ‖g‖² exceeds her threshold.

Beams never change a channel. Therefore the best policy depends on the present step only, whatever a learner's discount.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from testbed.agents import rates as _rates
from testbed.agents.setting import Setting, Stack
from testbed.agents.sources import Played, Series
from testbed.core import seeds
from testbed.core.errors import InputError, TestbedError


class Source(Protocol):
    """The source of the channels."""

    h: torch.Tensor
    """(run, copy, Bob's antenna, Alice's antenna) complex64."""
    g: torch.Tensor
    """(run, copy, Alice's antenna), Alice to Eve."""
    fred: torch.Tensor
    """(run, copy, Alice's antenna), this step's estimate of Alice to Fred."""

    def start(self) -> None: ...
    def advance(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Ar1:
    """The model's own channels, one generator for all copies.

    `alike`: every run gets the same innovations, for comparisons of runs on the same draws.
    """

    def __init__(self, stack: Stack, n_envs: int, generator: torch.Generator, alike: bool = False) -> None:
        n, shape = stack.n_antennas, (stack.n_runs, n_envs)
        self._generator = generator
        self._x = torch.zeros(*shape, n * n + 2 * n, 2, device=stack.device)
        drawn = (1 if alike else stack.n_runs, n_envs)
        self._noise = torch.zeros(*drawn, n * n + 2 * n, 2, device=stack.device)
        self._error = torch.zeros(*drawn, n, 2, device=stack.device)
        whole = torch.view_as_complex(self._x)
        self.h = whole[..., : n * n].view(*shape, n, n)
        self.g, self._apart = whole[..., n * n : n * n + n], whole[..., n * n + n :]
        self.fred = torch.zeros_like(self.g)
        wide = (-1, 1, 1, 1)
        self._rho = stack.rho.reshape(wide)
        self._new = ((1 - self._rho**2) / 2).sqrt()
        self._kappa = stack.kappa_fred.reshape(-1, 1, 1)
        self._rest = (1 - self._kappa**2).sqrt()
        self._error_scale = (stack.fred_noise.reshape(wide) / 2).sqrt()

    def start(self) -> None:
        """Draw all channels from their stationary distribution."""
        self._x.copy_(self._noise.normal_(generator=self._generator).mul_(0.5**0.5))
        self._sound_fred()

    def advance(self) -> None:
        """Move every channel by one step."""
        self._noise.normal_(generator=self._generator)
        self._x.mul_(self._rho).addcmul_(self._noise, self._new)
        self._sound_fred()

    def _sound_fred(self) -> None:
        self._error.normal_(generator=self._generator)
        error = torch.view_as_complex(self._error * self._error_scale)
        self.fred = self._kappa * self.g + self._rest * self._apart + error

    def state_dict(self) -> dict[str, Any]:
        return {"x": self._x.clone(), "fred": self.fred.clone(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._x.copy_(state["x"])
        self.fred = state["fred"].to(self._x.device)
        self._generator.set_state(state["generator"].cpu())


class Environment:
    """Copies of the system, (run, copy). Runs may have different settings, but the same numbers of antennas.

    `rates` evaluates beams, `step` evaluates them and moves on. The state consists of `h`, `g`, `awake` and `fred`.
    """

    def __init__(
        self,
        settings: Setting | Sequence[Setting],
        n_envs: int,
        seed: int,
        device: str = "cpu",
        channels: Series | None = None,
        alike: bool = False,
    ) -> None:
        """`channels`: recorded ones, those of a simulated air, or by default the model's own; `alike` as in `Ar1`.

        Raises InputError if the channels do not have the shape or length that the settings need.
        """
        if n_envs < 1:
            raise InputError(f"agents: {n_envs} copies of the environment; accepted: 1 or more")
        settings = [settings] if isinstance(settings, Setting) else settings
        self.stack, self.n_envs, self.seed = Stack.of(settings, device), n_envs, seed
        self.generator = torch.Generator(device).manual_seed(seeds.derive(seed, "agents", "environment"))
        self.source: Source = (
            Ar1(self.stack, n_envs, self.generator, alike) if channels is None
            else Played(channels, self.stack, n_envs, seed, alike)
        )  # fmt: skip
        self._past = torch.zeros(
            self.stack.history, self.stack.n_runs, n_envs, self.stack.n_antennas, dtype=torch.complex64, device=device
        )
        self._next = 0
        self.reset()

    def reset(self) -> None:
        """Start again at another time, with a full history of Fred's channel before it."""
        self.source.start()
        self._remember()
        for _ in range(self.stack.history - 1):
            self.source.advance()
            self._remember()

    @property
    def h(self) -> torch.Tensor:
        """(run, copy, Bob's antenna, Alice's antenna); moves with the environment."""
        return self.source.h

    @property
    def g(self) -> torch.Tensor:
        """(run, copy, Alice's antenna); moves with the environment."""
        return self.source.g

    @property
    def awake(self) -> torch.Tensor:
        """(run, copy), 1 where Eve listens, 0 where she does not."""
        gain = (self.g.real**2 + self.g.imag**2).sum(-1)
        return (gain > self.stack.threshold * self.stack.n_antennas).float()

    @property
    def fred(self) -> torch.Tensor:
        """(time, run, copy, Alice's antenna): the last `history` estimates of Fred's channel, the present one last."""
        return torch.roll(self._past, -self._next, 0)

    def rates(self, alice: torch.Tensor, bob: torch.Tensor) -> _rates.Rates:
        """Return the rates of unit-norm beams (run, copy, antenna) now; raises TestbedError where one is NaN."""
        heard = (self.h @ alice.unsqueeze(-1)).squeeze(-1)
        h, g = (heard * bob).sum(-1), (self.g * alice).sum(-1)
        found = _rates.rates(_power(h), _power(g), self.awake, self.stack)
        if not bool(torch.isfinite(found.reward).all()):
            bad = (~torch.isfinite(found.reward)).nonzero()[0].tolist()
            raise TestbedError(
                f"agents: the reward of run {bad[0]}, copy {bad[1]} is not finite, because its beams or its "
                "channels are not finite; this happens if the learner diverged"
            )
        return found

    def step(self, alice: torch.Tensor, bob: torch.Tensor) -> _rates.Rates:
        """Return the rates of the beams, and move on to the next step."""
        found = self.rates(alice, bob)
        self.advance()
        return found

    def advance(self) -> None:
        """Move on by one step."""
        self.source.advance()
        self._remember()

    def _remember(self) -> None:
        self._past[self._next] = self.source.fred
        self._next = (self._next + 1) % self.stack.history

    def state_dict(self) -> dict[str, Any]:
        return {"source": self.source.state_dict(), "past": self._past.clone(), "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["past"].shape != self._past.shape:
            raise InputError(
                f"agents: the checkpoint's environment is {tuple(state['past'].shape)} (history, run, copy, antenna), "
                f"this one {tuple(self._past.shape)}; accepted: the same"
            )
        if state["source"].keys() != self.source.state_dict().keys():
            raise InputError(
                "agents: the checkpoint was trained on recorded channels and this environment draws its own, or the "
                "other way round; accepted: the same channels"
            )
        self._past.copy_(state["past"])
        self._next = state["next"]
        self.source.load_state_dict(state["source"])


def _power(x: torch.Tensor) -> torch.Tensor:
    return x.real**2 + x.imag**2


def beams(action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit-norm beams (…, antenna) of Alice and Bob from actions (…, 4·antenna).

    An action is Re w_a, Im w_a, Re w_b, Im w_b; its length does not matter. All zeros send nothing.
    """
    a_re, a_im, b_re, b_im = action.chunk(4, dim=-1)
    return _unit(a_re, a_im), _unit(b_re, b_im)


def _unit(re: torch.Tensor, im: torch.Tensor) -> torch.Tensor:
    norm = (re**2 + im**2).sum(-1, keepdim=True).clamp_min(1e-18).sqrt()
    return torch.complex(re / norm, im / norm)
