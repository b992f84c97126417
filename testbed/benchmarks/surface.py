"""The gain by the surface in a static room: random patterns compared with one fixed pattern in the same room.

Seconds are channel time (the radios' clock) per bit of agreed information, that is, the raw rate times
1 − h(disagreement), because a room that does not change also gives raw bits, from noise. Where the fixed pattern's
disagreement does not differ significantly from one half, the ratio is a lower bound: it uses the largest rate within 3
standard deviations. The published values are 15 times the rate of the same room without the surface, and 97.39 raw
bit/s at 8.3 % disagreement; they were measured with other radios and rooms.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec

from testbed import config
from testbed.assess.compare import agreed_at_most_bps, agreed_rate_bps
from testbed.benchmarks import BenchRow
from testbed.core.config import Experiment, SurfacePlan

ROUNDS = 1000


def run() -> list[BenchRow]:
    """Run `static_room` on the `sim` lab, as bundled and with a fixed surface."""
    plan = config.load_experiment("static_room")
    fixed = msgspec.structs.replace(plan, surface=SurfacePlan(policy="fixed"))
    ours, peer = _summary(plan, ROUNDS), _summary(fixed, ROUNDS)
    ours_bps, at_most = agreed_rate_bps(ours) or 0.0, agreed_at_most_bps(peer)
    peer_bps = agreed_rate_bps(peer) or 0.0 if at_most is None else at_most
    note = (
        f"{'' if at_most is None else 'at least: '}random patterns: {_told(ours)}; fixed pattern: {_told(peer)}; "
        "published: 15 times, 97.39 raw bit/s at 8.3 % disagreement"
    )
    return [
        BenchRow(
            name="surface",
            ours_s=1 / max(ours_bps, 1e-9),
            peer="the same room, surface fixed",
            peer_s=1 / max(peer_bps, 1e-9),
            ratio=ours_bps / max(peer_bps, 1e-9),
            note=note,
        )
    ]


def _told(s: dict[str, Any]) -> str:
    rate, wrong = s["raw_rate_bps"], s["kdr_raw"]
    raw = "no raw bits" if not rate or wrong is None else f"{rate:.1f} raw bit/s at {100 * wrong:.1f} % disagreement"
    return f"{s['key_bits']} key bits in {s['keys_verified']} keys, {raw}"


def _summary(plan: Experiment, rounds: int) -> dict[str, Any]:
    from testbed.lab import processes

    plan = msgspec.structs.replace(plan, rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        return processes.run(plan, config.load_lab("sim"), "sim", Path(folder) / "run").summary
