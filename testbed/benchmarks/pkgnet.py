"""Paper A: compares the exact optimum with the paper's baseline, and PKG-Net with the exact optimum."""

from __future__ import annotations

import time

from testbed.benchmarks import BenchRow, interleaved
from testbed.core.seeds import generator
from testbed.papers.pkgnet import exact as pkg_exact
from testbed.papers.pkgnet import net as pkg_net
from testbed.papers.pkgnet import water_filling

POSITIONS, COMMON = 1000, 20
"""Positions of Bob that were not trained on, and how many of them the baseline's general solver computes."""


def run() -> list[BenchRow]:
    """Return times per position for the paper's scene (M = 4, L = 25, 20 dBm); trains one net as the paper does."""
    scene = pkg_net.Scene()
    bob_m = scene.positions(POSITIONS, generator(1, "bench", "pkgnet"))
    model, common = scene.model(bob_m), scene.model(bob_m[:COMMON])
    best = pkg_exact.rate(model)

    water = water_filling.design(common)
    share = float((common.rate(water.precoders, water.phases_rad) / best[:COMMON]).mean())
    exact_s, water_s, _ = interleaved(lambda: pkg_exact.design(model), lambda: water_filling.design(common), 5)
    exact_s, water_s = exact_s / POSITIONS, water_s / COMMON

    began_s = time.perf_counter()
    net = pkg_net.PkgNet(scene, 1).train()
    train_s = time.perf_counter() - began_s
    answer = pkg_net.design(model, net)
    reached = float((model.rate(answer.precoders, answer.phases_rad) / best).mean())
    net_s, same_s, ratio = interleaved(lambda: pkg_net.design(model, net), lambda: pkg_exact.design(model), 5)
    return [
        BenchRow(
            name="pkgnet exact optimum", ours_s=exact_s, peer="the paper's water-filling (SLSQP)", peer_s=water_s,
            ratio=water_s / exact_s,
            note=f"{1e6 * exact_s:.1f} µs a position, {POSITIONS} at once, {best.mean():.4f} bits; "
                 f"the peer reaches {100 * share:.4f} % of it",
        ),
        BenchRow(
            name="pkgnet net", ours_s=net_s / POSITIONS, peer="the exact optimum", peer_s=same_s / POSITIONS,
            ratio=ratio,
            note=f"{1e6 * net_s / POSITIONS:.1f} µs a position, {100 * reached:.4f} % of the optimum on {POSITIONS} "
                 f"unseen positions, after {train_s:.1f} s of training",
        ),
    ]  # fmt: skip
