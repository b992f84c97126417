"""Linear MMSE estimation: the least-squares estimate, smoothed over frequency by an assumed delay spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.chain.csi._plan import C128, power
from testbed.chain.csi._sync import Synchroniser, SyncOptions
from testbed.core.errors import ProbeRejected
from testbed.core.stages import CsiEstimator
from testbed.core.types import F64, AntennaFrame, CsiFrame, IqBlock, SoundingFrame


class MmseOptions(SyncOptions, frozen=True):
    rms_delay_s: Annotated[float, Meta(gt=0, lt=1e-3)] = 50e-9
    """R.m.s. delay of the exponential power delay profile."""


class Mmse(CsiEstimator):
    """Wiener smoothing of the least-squares estimate over the subcarriers.

    ĥ = R (R + σ²/P · I)⁻¹ h_ls (van de Beek et al., IEEE VTC 1995, eq. 8), where R is the frequency correlation of an
    exponential power delay profile with r.m.s. delay `rms_delay_s` and P the measured mean power. Where the profile
    does not fit the channel, Stein's unbiased risk estimate shows that smoothing would hurt; then the least-squares
    estimate is kept.
    """

    options_type = MmseOptions
    options: MmseOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rms_delay_s = self.options.rms_delay_s
        self._sync = Synchroniser(self.options)
        self._frame: SoundingFrame | None = None
        self._powers: F64 = np.empty(0)
        self._modes: C128 = np.empty((0, 0), dtype=np.complex128)

    def estimate_many(self, blocks: Sequence[IqBlock], frame: SoundingFrame) -> list[CsiFrame | ProbeRejected]:
        """Find the frame in each `block.samples` (antenna, sample) and estimate the channel.

        Same fields and rejections as `least_squares`; `snr_db` is that of the input, before smoothing.
        """
        self._prepare(frame)
        return self._sync.estimate(blocks, frame, lambda found: self._smooth(found.h, found.h_noise))

    def range_hz(self, frame: SoundingFrame) -> float:
        return self._sync.range_hz(frame)

    def estimate_antennas(self, block: IqBlock, frame: AntennaFrame) -> CsiFrame:
        """As `estimate`: `h` (rx antenna, tx antenna, subcarrier), each pair smoothed on its own."""
        found = self._sync.sound_antennas(block, frame)
        self._prepare(frame.frame)
        h = self._smooth(found.h, found.h_noise[..., None])
        ((_, csi),) = found.csi(h, self._sync.plan(frame.frame).subcarrier_hz)
        return csi

    def _prepare(self, frame: SoundingFrame) -> None:
        """Decompose R, once a frame. Delays are relative to their mean, so the profile starts at −rms_delay_s."""
        if self._frame is frame:
            return
        apart = 2j * np.pi * self.rms_delay_s * (frame.subcarrier_hz[:, None] - frame.subcarrier_hz[None, :])
        powers, modes = np.linalg.eigh(np.exp(apart) / (1 + apart))
        self._powers, self._modes, self._frame = np.maximum(powers, 0.0), modes, frame

    def _smooth(self, h: C128, noise: F64) -> C128:
        """Return (…, subcarrier) smoothed, each row as given where Stein's risk says that is better.

        `noise` is the variance of each row.
        """
        noise = noise[..., None]
        strength = np.maximum(power(h).mean(axis=-1, keepdims=True) - noise, 1e-30)
        gains = self._powers / (self._powers + noise / strength)
        weights = h @ self._modes.conj()
        removed = power((1 - gains) * weights).sum(axis=-1, keepdims=True)
        risk = removed + noise * (2 * gains.sum(axis=-1, keepdims=True) - h.shape[-1])
        smooth = (gains * weights) @ self._modes.T
        return np.where(risk < noise * h.shape[-1], smooth, h)
