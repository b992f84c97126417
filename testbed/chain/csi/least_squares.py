"""Least-squares channel estimation: received over sent, averaged over the repeated symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from testbed.chain.csi._sync import Synchroniser, SyncOptions
from testbed.core.errors import ProbeRejected
from testbed.core.stages import CsiEstimator
from testbed.core.types import AntennaFrame, CsiFrame, IqBlock, SoundingFrame


class LeastSquares(CsiEstimator):
    """Least-squares estimate on every subcarrier, with variance σ²/(n_symbols·|pilot|²)."""

    options_type = SyncOptions
    options: SyncOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sync = Synchroniser(self.options)

    def estimate_many(self, blocks: Sequence[IqBlock], frame: SoundingFrame) -> list[CsiFrame | ProbeRejected]:
        """Find the frame in each `block.samples` (antenna, sample) and estimate the channel.

        `time_s` is the receiver's time, with sub-sample resolution, at which the frame's first sample arrived over the
        channel's power-weighted mean delay. `h` (rx antenna, 1, subcarrier) contains the delays relative to it and the
        carriers' phase at that instant. `snr_db` is that of one symbol, for noise that is white over the band (the SNR
        of `h` is n_symbols times as large); `rssi_dbfs` is the mean |sample|² over the frame.

        A delay spread a little beyond the cyclic prefix biases the estimate and is not detected. Rejects with
        NO_PREAMBLE, CLIPPED, LOW_SNR, CFO_RANGE, TRUNCATED or OVERFLOW; raises ValueError on different sample rates.
        """
        return self._sync.estimate(blocks, frame, lambda found: found.h)

    def range_hz(self, frame: SoundingFrame) -> float:
        return self._sync.range_hz(frame)

    def estimate_antennas(self, block: IqBlock, frame: AntennaFrame) -> CsiFrame:
        """As `estimate`: `h` (rx antenna, tx antenna, subcarrier), each with the variance of a single antenna's."""
        found = self._sync.sound_antennas(block, frame)
        ((_, csi),) = found.csi(found.h, self._sync.plan(frame.frame).subcarrier_hz)
        return csi
