"""The enhancers: time of a training at a node and of one probe in use, each compared with the linear MMSE map."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from testbed.benchmarks import BenchRow, interleaved
from testbed.core import registry
from testbed.core.seeds import generator
from testbed.core.types import CsiSeries

PROBES, SUBCARRIERS, TAPS = 500, 64, 8
PEER = "linear_mmse"
NAMES = ("pca", "cca", "calibrated", "autoencoder", "crcnet", "kgnet")
EPOCHS = 20


def run() -> list[BenchRow]:
    """Return one row of training and one of use per trained enhancer: 500 probes, 64 subcarriers, 20 epochs."""
    alice, bob = _ends()
    # so that loading libraries does not count as training
    _trained("autoencoder", *(_first(end, 40) for end in (alice, bob)))
    peer, peer_s = _trained(PEER, alice, bob)
    theirs = partial(peer.transform, alice, "alice")
    rows = []
    for name in NAMES:
        stage, train_s = _trained(name, alice, bob)
        scores = stage.scores
        rows.append(
            BenchRow(
                name=f"enhance, training of {name}",
                ours_s=train_s,
                peer=PEER,
                peer_s=peer_s,
                ratio=peer_s / train_s,
                note=f"{train_s:.3g} s for {PROBES} probes; NMSE {scores['nmse_after']:.3g} after, peer's "
                f"{peer.scores['nmse_after']:.3g}, before {scores['nmse_before']:.3g}",
            )
        )
        ours_s, theirs_s, ratio = interleaved(partial(stage.transform, alice, "alice"), theirs, 5)
        rows.append(
            BenchRow(
                name=f"enhance, use of {name}",
                ours_s=ours_s,
                peer=PEER,
                peer_s=theirs_s,
                ratio=ratio,
                note=f"{ours_s / PROBES * 1e6:.1f} µs a probe, peer {theirs_s / PROBES * 1e6:.1f} µs",
            )
        )
    return rows


def _trained(name: str, alice: CsiSeries, bob: CsiSeries) -> tuple[Any, float]:
    options = {"epochs": EPOCHS, "device": "cpu"} if "epochs" in registry.options_of("enhance", name) else {}
    stage = registry.make_stage("enhance", name, options)
    began_s = time.perf_counter()
    stage.fit(alice, bob, generator(1, "bench", name))
    return stage, time.perf_counter() - began_s


def _first(csi: CsiSeries, n: int) -> CsiSeries:
    return CsiSeries(csi.h[:n], csi.rounds[:n], csi.subcarrier_hz)


def _ends() -> tuple[CsiSeries, CsiSeries]:
    """Return both ends' CSI of a channel of eight taps at 20 dB; each frame has its own phase and delay at each end."""
    rng = generator(1, "bench", "enhance")
    f = np.arange(float(SUBCARRIERS))
    taps = (rng.normal(size=(PROBES, TAPS, 2)) @ [1, 1j]) * np.exp(-np.arange(TAPS) / 4)
    h = taps @ np.exp(-2j * np.pi * np.outer(np.arange(TAPS), f) / SUBCARRIERS)
    h /= np.sqrt((np.abs(h) ** 2).mean())
    out = []
    for _ in range(2):
        noise = (rng.normal(size=(*h.shape, 2)) @ [1, 1j]) * np.sqrt(0.005)
        turn = rng.uniform(0, 2 * np.pi, (PROBES, 1)) + rng.uniform(-0.05, 0.05, (PROBES, 1)) * f
        x = ((h + noise) * np.exp(1j * turn))[:, None, None, :].astype(np.complex64)
        out.append(CsiSeries(x, np.arange(PROBES), f * 312.5e3))
    return out[0], out[1]
