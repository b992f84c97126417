"""The best that a quantized surface can do in a scene of the simulated air, from its noiseless channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim_backend.channel import Channel
from testbed.core import registry
from testbed.core.config import Experiment
from testbed.core.types import SurfacePattern


class Optimum:
    """Power from Alice to Bob over the used subcarriers: a static part and one an element."""

    def __init__(self, plan: Experiment, shape: tuple[int, int], phase_bits: int) -> None:
        sounder = registry.make_stage("probing", plan.probing.waveform, plan.probing.waveform_options)
        subcarrier_hz = sounder.frame(plan.radio.sample_rate_hz).subcarrier_hz
        channel = Channel(plan.scene, plan.radio.carrier_hz, plan.seed)
        channel.hang_surface(shape)
        amplitude, delay_s = channel.paths("alice", "bob", 0.0, plan.radio.carrier_hz)
        each = np.exp(-2j * np.pi * subcarrier_hz[:, None] * delay_s) * amplitude
        self.static, self.elements = each[:, : channel.n_air].sum(axis=1), each[:, channel.n_air :]
        self._turns = np.exp(2j * np.pi * np.arange(1 << phase_bits) / (1 << phase_bits))

    def power(self, pattern: SurfacePattern) -> float:
        return self._power(np.exp(1j * pattern.phases_rad.ravel()))

    def best(self, restarts: int = 40) -> float:
        """Coordinate ascent over the elements' levels from many random starts."""
        rng = np.random.default_rng(0)
        gram, cross = self.elements.conj().T @ self.elements, self.elements.conj().T @ self.static
        best = 0.0
        for _ in range(restarts):
            s = self._turns[rng.integers(0, self._turns.size, cross.size)]
            pull: Any = cross + gram @ s
            changed = True
            while changed:
                changed = False
                for i in range(s.size):
                    others = pull[i] - gram[i, i] * s[i]
                    turn = self._turns[(self._turns.conj() * others).real.argmax()]
                    if ((turn - s[i]).conj() * others).real > 1e-9 * abs(others):
                        pull += gram[:, i] * (turn - s[i])
                        s[i], changed = turn, True
            best = max(best, self._power(s))
        return best

    def _power(self, phasor: Any) -> float:
        return float(np.mean(np.abs(self.static + self.elements @ phasor) ** 2))
