"""Estimator throughput: blocks of 1000 samples with one default OFDM frame, one by one and a whole train at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from testbed.benchmarks import BenchRow, interleaved
from testbed.chain.csi.least_squares import LeastSquares
from testbed.chain.csi.mmse import Mmse
from testbed.chain.probing.ofdm import Ofdm
from testbed.core.stages import CsiEstimator
from testbed.core.types import C64, IqBlock, SoundingFrame

N_SAMPLES = 1000
SAMPLE_RATE_HZ = 40e6
Work = Callable[[list[IqBlock], SoundingFrame], object]


def run(n_pairs: int = 40, n_blocks: int = 64) -> list[BenchRow]:
    """Time both estimators on `n_blocks` blocks, one by one and all at once, each in turn with the reference."""
    frame = Ofdm().frame(SAMPLE_RATE_HZ)
    blocks = [example_block(frame, np.random.default_rng(seed)) for seed in range(n_blocks)]
    return [
        _row(f"estimator_{name}", work, blocks, frame, n_pairs)
        for name, estimator in (("least_squares", LeastSquares()), ("mmse", Mmse()))
        for name, work in (
            (name, _one_by_one(estimator)),
            (f"{name}_train", estimator.estimate_many),
        )
    ]


def _one_by_one(estimator: CsiEstimator) -> Work:
    return lambda blocks, frame: [estimator.estimate(block, frame) for block in blocks]


def _row(name: str, work: Work, blocks: list[IqBlock], frame: SoundingFrame, n_pairs: int) -> BenchRow:
    def peer() -> None:
        for block in blocks:
            textbook(block.samples[0], frame)

    total_s, peer_s, ratio = interleaved(lambda: work(blocks, frame), peer, n_pairs)
    ours_s, peer_s = total_s / len(blocks), peer_s / len(blocks)
    return BenchRow(
        name=name,
        ours_s=ours_s,
        peer="textbook receiver, numpy call per offset and per symbol (ours, in this file)",
        peer_s=peer_s,
        ratio=ratio,
        note=f"{N_SAMPLES / ours_s / 1e6:.2f} MS/s, {ours_s * 1e3:.3f} ms a block of {N_SAMPLES} samples; "
        "the reference computes neither SNR nor checks",
    )


def example_block(frame: SoundingFrame, rng: np.random.Generator) -> IqBlock:
    """Return a block with the frame over three paths at 20 dB, offset by 30 kHz."""
    noise = rng.standard_normal((2, N_SAMPLES)) * 0.02
    samples = noise[0] + 1j * noise[1]
    start = int(rng.integers(20, N_SAMPLES - frame.samples.size - 20))
    for delay, gain in ((0, 0.4), (3, 0.2j), (9, -0.1)):
        samples[start + delay : start + delay + frame.samples.size] += gain * frame.samples
    samples *= np.exp(2j * np.pi * 30e3 / SAMPLE_RATE_HZ * np.arange(N_SAMPLES))
    return IqBlock(samples[None].astype(np.complex64), SAMPLE_RATE_HZ, 0.0)


def textbook(samples: C64, frame: SoundingFrame) -> C64:
    """Estimate in the way of a textbook: (subcarrier,) from (sample,).

    Schmidl–Cox metric offset by offset, one carrier offset from the halves, cross-correlation with the preamble offset
    by offset around the plateau, then one FFT and one division per symbol.
    """
    half, length, n_cp = frame.preamble_half, frame.preamble_len, frame.n_cp
    metric = np.empty(samples.size - frame.samples.size + 1)
    for start in range(metric.size):
        a = samples[start : start + length - half]
        b = samples[start + half : start + length]
        metric[start] = abs(np.vdot(a, b)) / (np.vdot(b, b).real + 1e-30)
    coarse = int(np.argmax(metric))
    turn = np.vdot(samples[coarse : coarse + length - half], samples[coarse + half : coarse + length])
    cfo = np.angle(turn) / (2 * np.pi * half)
    corrected = samples * np.exp(-2j * np.pi * cfo * np.arange(samples.size))
    offsets = range(max(coarse - n_cp, 0), min(coarse + n_cp, metric.size - 1) + 1)
    match = [abs(np.vdot(frame.samples[:length], corrected[start : start + length])) for start in offsets]
    start = offsets[int(np.argmax(match))] - n_cp // 4
    estimates = []
    for symbol in range(frame.n_symbols):
        first = start + length + symbol * (n_cp + frame.n_fft) + n_cp
        spectrum = np.fft.fft(corrected[first : first + frame.n_fft]) / np.sqrt(frame.n_fft)
        estimates.append(spectrum[frame.bins] / frame.pilots)
    h: C64 = np.mean(estimates, axis=0).astype(np.complex64)
    return h
