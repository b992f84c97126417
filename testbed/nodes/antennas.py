"""One node's use of its antennas: the samples that each of them sends, and the CSI from what they receive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from testbed.core import registry, seeds
from testbed.core.config import BeamPlan
from testbed.core.errors import InputError, ProbeRejected, Reject
from testbed.core.stages import BeamPolicy, CsiEstimator, first_antenna
from testbed.core.types import C64, AntennaFrame, CsiFrame, IqBlock, SoundingFrame

_CLIP_LEVEL, _CLIPPED_SHARE = 0.999, 0.001
_PEERS = {"alice": "bob", "bob": "alice"}


class Antennas:
    """The beam of Alice's or Bob's radio, by the experiment's policy; the radios of other roles use antenna 1 only.

    Raises InputError where the policy cannot serve the link.
    """

    def __init__(
        self, role: str, antennas: Mapping[str, int], plan: BeamPlan, frame: SoundingFrame, seed: int,
        level: Callable[[IqBlock], IqBlock] | None = None,
    ) -> None:  # fmt: skip
        """`level` corrects what several antennas received for the radio's own chains (`chains.Leveller`)."""
        self._role, self._n = role, antennas.get(role, 1)
        self._level = level
        self._frame = frame
        self._frames = {r: AntennaFrame.of(frame, n) for r, n in antennas.items()}
        self._policy: BeamPolicy | None = None
        if plan.policy != "none" and role in _PEERS:
            peer = _PEERS[role]
            self._policy = registry.make_stage("beams", plan.policy, plan.options)
            self._policy.begin(self._n, antennas.get(peer, 1), peer, seeds.derive(seed, "beams", role))

    def outgoing(self, round: int, sounding: bool) -> C64:
        """Return what the antennas send in a round, (antenna, sample)."""
        if sounding:
            return self._sounded(self._role).samples
        if self._n == 1:
            return self._frame.samples[None, :]
        return np.outer(self._beam(round), self._frame.samples)

    def n_samples(self, tx: str, sounding: bool) -> int:
        """Return how long a transmission of this role is."""
        return self._sounded(tx).samples.shape[1] if sounding else self._frame.samples.size

    def listens(self, rx: Iterable[str], sounding: bool) -> bool:
        """Whether this node captures a slot with these receivers; only nodes with a beam to find receive soundings."""
        return self._role in rx and (not sounding or self._policy is not None)

    @property
    def learns(self) -> bool:
        """Whether the policy chooses the beams of later rounds by the CSI of earlier ones."""
        return self._policy is not None

    def estimate_sounding(self, estimator: CsiEstimator, tx: str, block: IqBlock) -> CsiFrame | ProbeRejected:
        """Return the CSI of all antennas of a sounding, or why there is none."""
        try:
            if self._level is not None:  # the estimator sees clipped samples only as they were received
                self._check_clipping(block)
            return estimator.estimate_antennas(self._levelled(block), self._sounded(tx))
        except ProbeRejected as exc:
            return exc

    def estimate_many(
        self, estimator: CsiEstimator, rounds: Sequence[int], blocks: Sequence[IqBlock]
    ) -> list[CsiFrame | ProbeRejected]:
        """Return the CSI of a train's slots, 1×1 by the beam of each slot's round, or why there is none."""
        if self._n == 1:
            return estimator.estimate_many(blocks, self._frame)
        combined = [self._combined(round, block) for round, block in zip(rounds, blocks, strict=True)]
        found = iter(estimator.estimate_many([x for x in combined if isinstance(x, IqBlock)], self._frame))
        return [next(found) if isinstance(x, IqBlock) else x for x in combined]

    def hear(self, round: int, csi: Mapping[str, CsiFrame]) -> None:
        """Pass a sounding to the policy."""
        if self._policy is not None:
            self._policy.hear(round, {tx: frame.h for tx, frame in csi.items()})

    def _combined(self, round: int, block: IqBlock) -> IqBlock | ProbeRejected:
        """Return the block as one antenna, wᵀy; rejects a clipped block, since the sum would not show the clipping."""
        try:
            self._check_clipping(block)
        except ProbeRejected as exc:
            return exc
        return replace(block, samples=(self._beam(round) @ self._levelled(block).samples)[None, :])

    @staticmethod
    def _check_clipping(block: IqBlock) -> None:
        parts = np.maximum(np.abs(block.samples.real), np.abs(block.samples.imag))
        share = float(np.mean(parts >= _CLIP_LEVEL, axis=1).max())
        if share > _CLIPPED_SHARE:
            raise ProbeRejected(Reject.CLIPPED, f"{share:.2%} of an antenna's samples at full scale")

    def _levelled(self, block: IqBlock) -> IqBlock:
        return block if self._level is None else self._level(block)

    def _beam(self, round: int) -> C64:
        if self._policy is None:
            return first_antenna(self._n)
        beam = np.asarray(self._policy.beam(round), np.complex64)
        norm = float(np.linalg.norm(beam))
        if beam.shape != (self._n,) or not 0 < norm < np.inf:
            raise InputError(f"a beam of shape {beam.shape} and norm {norm:g}, accepted: ({self._n},), above 0")
        return beam / np.float32(norm)

    def _sounded(self, role: str) -> AntennaFrame:
        return self._frames.setdefault(role, AntennaFrame.of(self._frame, 1))
