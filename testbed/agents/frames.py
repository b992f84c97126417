"""The agents' observations and the beams that follow from their actions: views of Eve, in two frames of coordinates.

`antenna`: the paper's frame. The state is Re/Im of H and of Eve's channel, and her mode; an action is Re/Im of both
beams. `turned`: the same problem without its symmetries. A unitary rotation of either array and a change of any phase
change no reward. In the singular basis of H, with phases that make Eve's channel real (`beams.turned`), the state is
therefore a few real numbers: the singular values, |Vᵀg| and the mode. An action is a correction that both ends add to
the SVD beams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from testbed.agents import kalman
from testbed.agents.beams import Beams, turned
from testbed.agents.environment import Environment, beams
from testbed.agents.predictor import Predictor
from testbed.core.errors import InputError

VIEWS = ("full", "lstm", "kalman", "last", "none")
FRAMES = ("antenna", "turned")


@dataclass(frozen=True)
class Seen:
    """One observation of an environment."""

    state: torch.Tensor
    """(run, copy, size)."""
    alice: torch.Tensor | None = None
    """(run, copy, antenna, mode) basis of Alice's beam; None in the antenna frame."""
    bob: torch.Tensor | None = None

    def beams(self, action: torch.Tensor) -> Beams:
        """Return the unit-norm beams of a joint action (run, copy, `action_size`)."""
        if self.alice is None or self.bob is None:
            return beams(action)
        a, b = action.chunk(2, -1)
        return _residual(self.alice, a), _residual(self.bob, b)


def _residual(basis: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    first = torch.zeros_like(action)
    first[..., 0] = 1.0
    beam = (basis * (first + action).unsqueeze(-2)).sum(-1)
    return beam / torch.linalg.vector_norm(beam, dim=-1, keepdim=True).clamp_min(1e-9)


def state_size(n_antennas: int, view: str, frame: str) -> int:
    """Return the length of a state."""
    of_h, of_eve = (2 * n_antennas**2, 2 * n_antennas) if frame == "antenna" else (n_antennas, n_antennas)
    return of_h + (0 if view == "none" else of_eve + 1)


def action_size(n_antennas: int, frame: str) -> int:
    """Return the length of a joint action, Alice's half first."""
    return 4 * n_antennas if frame == "antenna" else 2 * n_antennas


def look(env: Environment, view: str, frame: str = "antenna", predictor: Predictor | None = None) -> Seen:
    """Return the observations of a view's agents in an environment."""
    eve = eve_of(env, view, predictor)
    tail = [] if eve is None else [eve[1][..., None]]
    if frame == "antenna":
        channels = [torch.view_as_real(env.h).flatten(-3)]
        if eve is not None:
            channels.append(torch.view_as_real(eve[0]).flatten(-2))
        return Seen(torch.cat([*channels, *tail], -1))
    v, d, m = turned(env.h, torch.zeros_like(env.g) if eve is None else eve[0])
    heard = env.h @ v
    u = heard / torch.linalg.vector_norm(heard, dim=-2, keepdim=True).clamp_min(1e-9)
    return Seen(torch.cat([d.sqrt(), *([] if eve is None else [m]), *tail], -1), v, u.conj())


def eve_of(env: Environment, view: str, predictor: Predictor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return Eve's channel (run, copy, antenna) and mode (run, copy) as a view has them; None for `none`."""
    if view == "none":
        return None
    if view == "full":
        return env.g, env.awake
    if view in ("kalman", "last"):
        mean = kalman.predict(env).mean if view == "kalman" else env.fred[-1]
        gain = (mean.real**2 + mean.imag**2).sum(-1)
        return mean, (gain > env.stack.threshold * env.stack.n_antennas).float()
    if view == "lstm":
        if predictor is None:
            raise InputError("agents: the view 'lstm' needs a predictor; accepted: one that is trained")
        return predictor.predict(env)
    raise InputError(f"agents: no view {view!r}; accepted: {', '.join(VIEWS)}")
