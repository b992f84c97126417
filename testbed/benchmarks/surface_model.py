"""The rounds that a search saves by the scene's geometry: rounds until its best pattern is within 1 dB of the optimum.

The static room of the bundled experiment is used with three seeds (other scatterers, another phase of every path that
is not the surface's) and with probes as noisy as at 25 dB. The channel is the simulated air's own; the search has only
the lab's geometry. The optimum is the best of many coordinate ascents over the quantized phases.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from testbed import config
from testbed.benchmarks import BenchRow
from testbed.core import registry
from testbed.core.config import Experiment
from testbed.core.types import SurfacePattern
from testbed.surface.policies.closed_loop import ClosedLoop

SEEDS = (1, 2, 3)
SHAPE, PHASE_BITS = (16, 16), 1
BUDGET = 2000
_SNR_DB = 25.0
_OFF_M = 0.01


def run() -> list[BenchRow]:
    """Search with and without the model, with each method."""
    plan = config.load_experiment("static_room")
    rooms = [Room(plan, seed) for seed in SEEDS]
    rows = []
    for method in ("greedy", "hadamard"):
        took = {m: [rounds(room, method, m) for room in rooms] for m in ("none", "start", "answer")}
        off = f"start, Alice and Bob {100 * _OFF_M:g} cm off"
        took[off] = [rounds(room, method, "start", _OFF_M) for room in rooms]
        ours, peer = (float(np.mean([BUDGET if n is None else n for n, _ in took[m]])) for m in ("start", "none"))
        note = "; ".join(f"{m}: {', '.join(map(_told, took[m]))}" for m in took)
        rows.append(
            BenchRow(
                name=f"surface_model {method}", ours_s=ours * plan.probing.interval_s,
                peer="the same search from a random pattern", peer_s=peer * plan.probing.interval_s, ratio=peer / ours,
                note=f"rounds until within 1 dB (dB below the optimum at the end), seeds {SEEDS}: {note}",
            )
        )  # fmt: skip
    return rows


def _told(result: tuple[int | None, float]) -> str:
    n, gap_db = result
    return f"{'never' if n is None else n} ({gap_db:.2f})"


class Room:
    """The simulated air's channel from Alice to Bob: a fixed part, and one part per element."""

    def __init__(self, plan: Experiment, seed: int) -> None:
        self.plan, self.seed = msgspec.structs.replace(plan, seed=seed), seed
        frame = registry.make_stage("probing", "ofdm", {}).frame(plan.radio.sample_rate_hz)
        air = registry.load_driver("worlds", "sim")

        def response(levels: Any) -> Any:
            pattern = SurfacePattern(np.asarray(levels, np.uint8).reshape(SHAPE), PHASE_BITS)
            found = air.responses(
                plan.scene, plan.radio.carrier_hz, seed, np.zeros(1), frame.subcarrier_hz[::4], pattern
            )
            return found["alice>bob"][0]

        n = SHAPE[0] * SHAPE[1]
        flat = response(np.zeros(n))
        self.elements = np.stack([(flat - response(np.arange(n) == i)) / 2 for i in range(n)], axis=1)
        self.static = flat - self.elements.sum(axis=1)
        self.optimum = self._best()

    def response(self, pattern: SurfacePattern) -> Any:
        """Return (subcarrier,)."""
        return self.static + self.elements @ np.exp(1j * pattern.phases_rad.ravel())

    def power(self, pattern: SurfacePattern) -> float:
        return float(np.mean(np.abs(self.response(pattern)) ** 2))

    def _best(self, restarts: int = 20) -> float:
        """Return the power of the best pattern that coordinate ascent finds (1 bit: signs)."""
        rng, best = np.random.default_rng(0), 0.0
        gram, cross = (self.elements.conj().T @ x for x in (self.elements, self.static))
        gram, cross = gram.real, cross.real
        for _ in range(restarts):
            s = rng.choice([-1.0, 1.0], cross.size)
            pull, changed = cross + gram @ s, True
            while changed:
                changed = False
                for i in range(s.size):
                    if s[i] * (pull[i] - gram[i, i] * s[i]) < 0:
                        pull -= 2 * gram[:, i] * s[i]
                        s[i], changed = -s[i], True
            best = max(best, float(np.mean(np.abs(self.static + self.elements @ s) ** 2)))
        return best


def rounds(room: Room, method: str, model: str, off_m: float = 0.0) -> tuple[int | None, float]:
    """Return after how many rounds the best pattern so far was within 1 dB, and the loss of the final one in dB.

    `off_m`: standard deviation, on each axis, of the error in the lab file's positions of Alice and Bob.
    """
    loop = ClosedLoop(search=method, model=model, budget=BUDGET)
    rng, first = np.random.default_rng(room.seed), None
    scene = room.plan.scene
    ends = {
        name: msgspec.structs.replace(
            end, position_m=[x + off_m * float(rng.standard_normal()) for x in end.position_m]
        )
        for name, end in (("alice", scene.alice), ("bob", scene.bob))
        if end.position_m is not None
    }
    loop.survey(msgspec.structs.replace(scene, **ends), room.plan.radio.carrier_hz)
    loop.begin(SHAPE, PHASE_BITS, room.seed)
    gap_db = np.inf
    for number in range(BUDGET):
        h = room.response(loop.pattern_for(number))
        sigma = np.sqrt(np.mean(np.abs(h) ** 2) / 2) * 10 ** (-_SNR_DB / 20)
        noisy = h + sigma * (rng.standard_normal(h.size) + 1j * rng.standard_normal(h.size))
        loop.observe(number, {"alice>bob": noisy.astype(np.complex64)[None, None]})
        if loop.best is not None:
            gap_db = 10 * np.log10(room.optimum / room.power(loop.best[0]))
            first = number + 1 if first is None and gap_db <= 1.0 else first
        if loop.done:
            break
    return first, float(gap_db)
