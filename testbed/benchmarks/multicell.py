"""Paper C: the linear-cost gradient compared with Theorem 4, its growth with N, the joint solver with alternation."""

from __future__ import annotations

import time

import numpy as np

from testbed.benchmarks import BenchRow, interleaved
from testbed.papers.multicell import alternating
from testbed.papers.multicell import joint as cells_joint
from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell.general import GeneralMultiCell
from testbed.papers.multicell.model import MultiCell

N = 100
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
LARGE = (4096, 8192, 16384, 32768)


def run() -> list[BenchRow]:
    """Time the phase gradient of two cells (M = M_e = 4), and whole designs at the paper's stated geometry."""
    return [*_against_theorem_4(), _growth(), _joint()]


def _against_theorem_4() -> list[BenchRow]:
    model, precoders, phases_rad = _scene(N)
    general = GeneralMultiCell.of(model)
    turn = np.exp(-1j * phases_rad)
    ours = model.slopes(precoders, phases_rad)[1]
    rows = []
    peers = {
        "Theorem 4 as printed, O((MNL)³)": lambda: 2 * np.imag(general.theorem_4(precoders, phases_rad).conj() * turn),
        "Theorem 4 contracted, O((MNL)²)": lambda: general.slopes(precoders, phases_rad)[1],
    }
    for i, (name, peer) in enumerate(peers.items()):
        apart = float(np.abs(peer() - ours).max() / np.abs(ours).max())
        ours_s, peer_s, ratio = interleaved(lambda: model.slopes(precoders, phases_rad), peer, 5 if i == 0 else 15)
        note = f"K = 2, M = 4, N = {N}: {1e6 * ours_s:.0f} µs a gradient; relative difference {apart:.1e}"
        rows.append(BenchRow(name=f"multicell gradient {i + 1}", ours_s=ours_s, peer=name, peer_s=peer_s, ratio=ratio,
                             note=note))  # fmt: skip
    return rows


def _growth() -> BenchRow:
    times = {n: _gradient_s(n) for n in sorted({*SIZES, *LARGE})}
    fits = [
        float(np.polyfit(np.log([float(n) for n in sizes]), np.log([times[n] for n in sizes]), 1)[0])
        for sizes in (SIZES, LARGE)
    ]
    model, _, _ = _scene(SIZES[-1])
    began_s = time.perf_counter()
    cells_joint.design(model, np.random.default_rng(1), 1)
    whole_s = time.perf_counter() - began_s
    linear_s = times[256] * SIZES[-1] / 256
    note = (
        f"{1e6 * times[4096]:.0f} µs at N = 4096; exponent {fits[0]:.2f} fitted for N = {SIZES[0]} to {SIZES[-1]},"
        f" where a fixed cost matters, {fits[1]:.2f} for {LARGE[0]} to {LARGE[-1]};"
        f" a whole design (one start) at N = {SIZES[-1]}: {whole_s:.1f} s"
    )
    return BenchRow(name="multicell growth", ours_s=times[4096], peer="N = 256 scaled linearly", peer_s=linear_s,
                    ratio=linear_s / times[4096], note=note)  # fmt: skip


def _gradient_s(n: int) -> float:
    """Return the least time of one gradient in seconds: other load on the machine can only add to it."""
    model, precoders, phases_rad = _scene(n)
    model.slopes(precoders, phases_rad)
    times = []
    for _ in range(15):
        start = time.perf_counter()
        model.slopes(precoders, phases_rad)
        times.append(time.perf_counter() - start)
    return min(times)


def _joint() -> BenchRow:
    """Compare both on four draws of the lines of sight, with one random start each; also alternation from identity."""
    model = MultiCell.stack([MultiCell.two_cells(rng=np.random.default_rng(d)) for d in range(4)])

    def mean_bits(found: object) -> float:
        return float(model.weighted_bound(found.precoders, found.phases_rad).mean())  # type: ignore[attr-defined]

    def joint() -> object:
        return cells_joint.design(model, np.random.default_rng(7), 1)

    def alternation() -> object:
        precoders, phases_rad = cells_joint.random_start(model, np.random.default_rng(7))
        return alternating.design(model, phases_rad, precoders)

    ours_s, peer_s, ratio = interleaved(joint, alternation, 3)
    same = mean_bits(alternating.design(model, cells_joint.random_start(model, np.random.default_rng(7))[1]))
    note = (
        f"N = 60, 4 scenes: {mean_bits(joint()):.3f} bits against {mean_bits(alternation()):.3f};"
        f" alternation from identity precoders {same:.3f}"
    )
    return BenchRow(name="multicell design", ours_s=ours_s, peer="the paper's alternation", peer_s=peer_s, ratio=ratio,
                    note=note)  # fmt: skip


def _scene(n: int) -> tuple[MultiCell, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    model = MultiCell.two_cells(n_elements=n, rng=rng)
    return model, cells_precoders.random(model, rng), rng.uniform(0, 2 * np.pi, n)
