"""The abstract base class of each stage of the chain. A stage is found by name (`core.registry`), as a file of its own.

Stages are built as `Stage(**options)` from their table of the experiment file, and declare their options as a struct
(`core.options.Configurable`). Randomness enters as an explicit numpy Generator. The suites in `testbed.testing` check
what the contracts demand, and demand nothing that is not written here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from testbed.core.errors import ProbeRejected
from testbed.core.ledger import Dialogue, PublicMessage
from testbed.core.options import Configurable
from testbed.core.types import (
    C64,
    F64,
    U8,
    AntennaFrame,
    Bits,
    CsiFrame,
    CsiSeries,
    Features,
    IqBlock,
    SoundingFrame,
    SurfacePattern,
)

if TYPE_CHECKING:
    from testbed.core.config import Scene


class Sounder(Configurable, ABC):
    """Designs the probe waveform (`chain/probing`).

    Both ends build it from the same options and must get the same samples, bit for bit, on any machine. The layout is
    that of `core.types.SoundingFrame`; the peak is at most 1. The sample rate changes nothing but the axis.

    >>> from testbed.core.registry import make_stage
    >>> frame = make_stage("probing", "ofdm", {"n_subcarriers": 16, "n_fft": 32, "n_cp": 8, "n_symbols": 2}).frame(20e6)
    >>> frame.samples.size == frame.preamble_len + frame.n_symbols * (frame.n_cp + frame.n_fft)
    True
    """

    stage = "probing"

    @abstractmethod
    def frame(self, sample_rate_hz: float) -> SoundingFrame:
        """Return the frame at a sample rate in Hz; raises ValueError for one that is not above 0 and finite."""


class CsiEstimator(Configurable, ABC):
    """IQ → CSI (`chain/csi`).

    A probe that cannot be used is rejected with its reason (no frame, cut off, clipped, samples lost); its channel is
    never guessed. Deterministic; the block is not modified. Values derived from a frame's design may be kept between
    calls, values from a block may not.

    >>> from testbed.core.registry import make_stage
    >>> frame = make_stage("probing", "ofdm", {}).frame(20e6)
    >>> block = IqBlock(np.pad(0.5 * frame.samples, 200)[None, :], 20e6, time_s=3.0)
    >>> found = make_stage("csi", "least_squares", {}).estimate(block, frame)
    >>> found.h.shape, round((found.time_s - 3.0) * 20e6)
    ((1, 1, 64), 200)
    """

    stage = "csi"

    @abstractmethod
    def estimate_many(self, blocks: Sequence[IqBlock], frame: SoundingFrame) -> list[CsiFrame | ProbeRejected]:
        """Find the frame in each block and estimate its channel; for an unusable block, return the reason in its place.

        Blocks may differ in length and number of antennas; equal ones are computed together. The result for a block
        does not depend on the others, so that a train of rounds is estimated as each round would be. Raises ValueError
        where a block's sample rate is not the frame's.

            for csi in estimator.estimate_many(blocks, frame):
                if isinstance(csi, ProbeRejected):
                    count(csi.reason)
        """

    def estimate(self, block: IqBlock, frame: SoundingFrame) -> CsiFrame:
        """Return the CSI of a batch of one; raises ProbeRejected with the reason."""
        (found,) = self.estimate_many([block], frame)
        if isinstance(found, ProbeRejected):
            raise found
        return found

    @abstractmethod
    def range_hz(self, frame: SoundingFrame) -> float:
        """Return the largest absolute carrier offset at which this frame is found; beyond it, CFO_RANGE is raised."""

    @abstractmethod
    def estimate_antennas(self, block: IqBlock, frame: AntennaFrame) -> CsiFrame:
        """As `estimate`, for each antenna of the transmitter: all of them with one common phase and arrival time."""


class Enhancer(Configurable, ABC):
    """CSI → features that agree better between the two ends (`chain/enhance`).

    One finite row per probe; a probe that is NaN gives a row of NaN and changes no other row. Both ends get the same
    dimensions, for any number of subcarriers. Without a model, each antenna pair has dimensions of its own, as many as
    one pair alone has; a single subcarrier, as in RSSI, gives one dimension. Deterministic; the input is not modified.

    >>> class Levels(Enhancer):
    ...     def transform(self, csi, role):
    ...         h = np.abs(csi.h).astype(float).reshape(len(csi.rounds), -1)
    ...         return Features(20 * np.log10(h), csi.rounds)
    >>> series = CsiSeries(np.full((3, 1, 1, 4), 10j, np.complex64), np.arange(3), np.arange(4) * 1e6)
    >>> Levels().transform(series, "alice").values[0]
    array([20., 20., 20., 20.])
    """

    stage = "enhance"

    trainable: ClassVar[bool] = False
    """Whether it needs a model first; then it is a `TrainableEnhancer`."""

    @abstractmethod
    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return the features of one end: `role` is alice, bob or eve, antenna axes in canonical order.

        Raises InputError where the model, if it has one, was made for other CSI.
        """


class TrainableEnhancer(Enhancer):
    """An enhancer with a model that one end learns from both ends' CSI of rounds that never enter a key.

    The same data and generator give the same model, with the same `model_id`. CSI with different numbers of
    subcarriers at the two ends, of different rounds, with a column that never changes, or with too few complete probes
    is refused, and the reason is named; the enhancer then has no model, as before.
    """

    trainable = True

    @property
    @abstractmethod
    def model_id(self) -> str | None:
        """Return the model's name, the same at both ends; None where there is no model yet."""

    @property
    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Return nmse_before and nmse_after on the validation rounds of `fit`; empty where this end did not learn."""

    @property
    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Return what the model is and what data it was learnt from, as plain values; InputError without a model."""

    @abstractmethod
    def check(self, shape: tuple[int, ...], subcarrier_hz: F64) -> None:
        """Raise InputError unless the model serves both ends of CSI of (Alice's antenna, Bob's antenna, subcarrier)."""

    @abstractmethod
    def fresh(self) -> Self:
        """Return an enhancer with the same options and no model."""

    @abstractmethod
    def fit(self, alice: CsiSeries, bob: CsiSeries, rng: np.random.Generator) -> None:
        """Learn from both ends' CSI of the same rounds; raises ValueError where they cannot be used for learning."""

    @abstractmethod
    def publication(self) -> dict[str, Any]:
        """Return what the other end needs of the model, msgpack-able; it is published, so Eve has it, too."""

    @abstractmethod
    def adopt(self, publication: Mapping[str, Any]) -> None:
        """Take over the other end's model; raises ValueError, or what reading malformed data raises."""

    @abstractmethod
    def dump(self) -> bytes:
        """Return this end's part of the model, to be kept in a file."""

    @abstractmethod
    def load(self, data: bytes) -> None:
        """Restore what `dump` returned; raises ValueError for anything else. No code in it is executed."""


class Quantizer(Configurable, ABC):
    """Features → bits (`chain/quantize`), in three public steps: Alice leads, Bob follows, Alice finishes.

    Deterministic for a given rng, and without memory from one block to the next: a node may quantize a block again, or
    leave one out, and the results at the other end must not change. Features are not modified. Bits are in the order
    (probe, dimension, place in the label). Probes that either side lacks (NaN rows) are dropped through the published
    indices; a dimension that never varies gives no bits and changes no other; where nothing was measured there are no
    bits. A message comes from the network: one that does not fit raises ProtocolError. What messages reveal about the
    bits, and what the method makes known about them, is counted in `leaked_bits`, which is less than the number of
    bits. Too few samples raise DialogueFailed.

    >>> from testbed.core.registry import make_stage
    >>> quantizer, rng = make_stage("quantize", "scalar", {"bits": 1, "guard": 0.0}), np.random.default_rng(1)
    >>> alice = Features(np.array([[1.0], [4.0], [2.0], [3.0]]), np.arange(4))
    >>> draft, lead = quantizer.lead(alice, rng)
    >>> bob, follow = quantizer.follow(alice, lead)
    >>> quantizer.finish(draft, follow).values, bob.values
    (array([0, 1, 0, 1], dtype=uint8), array([0, 1, 0, 1], dtype=uint8))
    """

    stage = "quantize"

    whole_symbols: bool = False
    """Whether labels are sacrificed whole: they are the binary numbers of equally likely cells, most significant bit
    first (`entropy.gaussian_labels`), and soft decoding learns the channel from whole ones."""

    @abstractmethod
    def lead(self, features: Features, rng: np.random.Generator) -> tuple[Bits, PublicMessage]:
        """Quantize Alice's features; publish what Bob needs (kept indices, centroids …)."""

    @abstractmethod
    def follow(self, features: Features, lead: PublicMessage) -> tuple[Bits, PublicMessage]:
        """Quantize Bob's features by Alice's message: the bits both sides will keep. Publish what was dropped."""

    @abstractmethod
    def finish(self, draft: Bits, follow: PublicMessage) -> Bits:
        """Restrict Alice's draft to what Bob kept: order and origin (probe, dimension, level_bit) as Bob's bits."""

    @abstractmethod
    def eavesdrop(
        self, features: Features, lead: PublicMessage, follow: PublicMessage
    ) -> tuple[Bits, NDArray[np.bool_]]:
        """Eve's best guess of the kept bits from her own features and both public messages.

        Also returns (bit,) `covered`: where she had a feature to guess from. Elsewhere (NaN) the guess is 0, which says
        nothing about what an Eve who receives the probe could know.
        """

    def columns(self, features: Features, lead: PublicMessage) -> NDArray[np.int64] | None:
        """Return (dimension, feature) the columns of Alice's features from which each dimension's labels follow; None:
        its own column only.

        Attacks on the labels use these columns.
        """
        return None

    def published(self, raw: Bits, lead: PublicMessage) -> NDArray[np.bool_]:
        """Return (bit,) which raw bits Alice's message has revealed; they are sacrificed first. Default: none."""
        return np.zeros(raw.values.size, np.bool_)


@dataclass(frozen=True, slots=True)
class ReconciledBits:
    """Outcome of reconciliation on one side."""

    values: U8
    """(bit,) both sides' common string if the verification that follows succeeds."""
    corrected: int
    """Bits this side flipped (0 at Alice)."""
    n_messages: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one side knows when the reconciliation of a block begins."""

    bits: Bits
    """This side's bits, in an order both sides share, without the sacrificed ones."""
    error_rate: float
    """Share of bits that differ, as both sides estimate it from the sacrifice."""
    features: Features | None = None
    """This side's features behind the bits, for soft decisions; None where there are only bits."""
    published: Bits | None = None
    """Alice's sacrificed bits: public, and known to both sides."""

    @classmethod
    def of(cls, values: U8, error_rate: float) -> Evidence:
        """Return the evidence of a string (bit,) without features, as if each bit were from another probe."""
        none = np.zeros(values.size, np.int64)
        return cls(Bits(values, np.arange(values.size), none, none), error_rate)


class Reconciler(Configurable, ABC):
    """Makes Bob's bits equal to Alice's over the public discussion (`chain/reconcile`).

    Each side is a generator (`core.ledger.Dialogue`). The verification after it accepts only equal strings; a
    reconciler that fails raises DialogueFailed. Every parity or syndrome bit sent is counted in `leaked_bits`. Alice's
    string is the common one. Strings of any length from 1 bit are accepted and not modified; equal generators give
    equal messages. Bare strings with an error rate above a quarter are refused with
    DialogueFailed('error_rate_too_high').

    >>> from testbed.chain.dialogue import run
    >>> from testbed.core.registry import make_stage
    >>> a = np.random.default_rng(1).integers(0, 2, 300, dtype=np.uint8)
    >>> b = a.copy()
    >>> b[[7, 90]] ^= 1
    >>> ends = [make_stage("reconcile", "cascade", {}) for _ in range(2)]
    >>> alice, bob, said = run(
    ...     ends[0].alice(Evidence.of(a, 0.01), np.random.default_rng(2)),
    ...     ends[1].bob(Evidence.of(b, 0.01), np.random.default_rng(3)),
    ... )
    >>> bool((bob.values == a).all()), bob.corrected
    (True, 2)
    """

    stage = "reconcile"

    shows_corrections: bool = True
    """Whether the discussion shows which bits Bob corrected; what that reveals is then charged."""
    most_errors: float = 0.25
    """Share of differing bits above which a block is given up before reconciliation."""

    @abstractmethod
    def alice(self, evidence: Evidence, rng: np.random.Generator) -> Dialogue[ReconciledBits]: ...
    @abstractmethod
    def bob(self, evidence: Evidence, rng: np.random.Generator) -> Dialogue[ReconciledBits]: ...

    def eavesdrop(self, guess: U8, transcript: Sequence[PublicMessage]) -> U8:
        """Improve Eve's guess by the whole public transcript of this block. Default: she learns nothing from it."""
        return guess


class SurfacePolicy(Configurable, ABC):
    """Decides what the surface does, round by round (`surface/policies`). Pure: no device, no clock.

    Built from its options by name; `survey` and `begin` are called once, then `pattern_for` in ascending order of
    rounds; some rounds may be left out, and a round that is asked for again has the same pattern. A policy that
    `watches` receives the result of every round, lost ones included, before the next pattern. The same seed, board and
    observations give the same patterns.

    >>> class Chessboard(SurfacePolicy):
    ...     changes = False
    ...     def begin(self, shape, phase_bits, seed):
    ...         levels = np.indices(shape).sum(axis=0) % 2 << phase_bits - 1
    ...         self.pattern = SurfacePattern(levels.astype(np.uint8), phase_bits)
    ...     def pattern_for(self, round):
    ...         return self.pattern
    >>> policy = Chessboard()
    >>> policy.begin((2, 3), 1, seed=1)
    >>> policy.pattern_for(0).levels
    array([[0, 1, 0],
           [1, 0, 1]], dtype=uint8)
    """

    stage = "policy"

    changes: bool = True
    """Whether the pattern may change during a run; where it does not, rounds are ordered ahead."""
    can_be_secret: ClassVar[bool] = False
    """Whether its patterns may be key material: drawn from the node's own randomness and nothing else."""
    watches: bool = False
    """Whether `pattern_for` needs `observe` of every earlier round first."""
    search_only: bool = False
    """Whether the run serves only this policy's search: it then ends once the policy is `done`, and makes no key."""
    done: bool = False
    """Whether the search is over: the policy has nothing more to try."""

    def survey(self, scene: Scene, carrier_hz: float) -> None:
        """Take in the scene, for policies with a model of it; raises InputError where they cannot use it."""

    @abstractmethod
    def begin(self, shape: tuple[int, int], phase_bits: int, seed: int) -> None:
        """Take in the board's (rows, columns) and bits; raises InputError where the policy cannot serve it."""

    @abstractmethod
    def pattern_for(self, round: int) -> SurfacePattern:
        """Return the pattern that the surface holds while this round is probed."""

    def group(self, round: int) -> int:
        """Return the same number for rounds that have the same pattern, as far as this is known beforehand."""
        return round

    def observe(self, round: int, links: Mapping[str, C64]) -> None:
        """Take the result of a round: CSI (rx antenna, tx antenna, subcarrier) by link "tx>rx", kept ones only.

        It is empty where the round was lost, which says nothing about its pattern.
        """


def first_antenna(n: int) -> C64:
    """Return the beam (antenna,) of a radio that uses its first antenna only."""
    return np.eye(1, n, dtype=np.complex64)[0]


class BeamPolicy(Configurable, ABC):
    """Chooses the beam of one end from what this end itself measured (`agents/policies`). Pure: no device, no clock.

    Sounding rounds measure every antenna by itself and are never used for a key. In all other rounds the end sends w·s
    and takes wᵀy with the same w, so that the link is the scalar w_bᵀ H w_a both ways. Alice and Bob have a policy
    object each; what it measures and what it decides does not leave the node. There is a beam at any time, also before
    the first sounding, and the same soundings give the same beams.

    >>> class Strongest(BeamPolicy):
    ...     def begin(self, n_own, n_peer, peer, seed):
    ...         self.peer, self.w = peer, first_antenna(n_own)
    ...     def hear(self, round, links):
    ...         if self.peer in links:
    ...             best = (np.abs(links[self.peer]) ** 2).sum(axis=(1, 2)).argmax()
    ...             self.w = np.eye(len(self.w), dtype=np.complex64)[best]
    ...     def beam(self, round):
    ...         return self.w
    >>> policy = Strongest()
    >>> policy.begin(2, 1, "bob", seed=1)
    >>> policy.hear(0, {"bob": np.array([[[1.0]], [[2.0]]], np.complex64)})
    >>> policy.beam(1)
    array([0.+0.j, 1.+0.j], dtype=complex64)
    """

    stage = "beams"

    @abstractmethod
    def begin(self, n_own: int, n_peer: int, peer: str, seed: int) -> None:
        """Take in the link: antennas here and at `peer` (role); raises InputError where the policy cannot serve it.

        `seed` is this node's own and secret in private mode.
        """

    @abstractmethod
    def hear(self, round: int, links: Mapping[str, C64]) -> None:
        """Take a sounding round: (own antenna, transmitter's antenna, subcarrier) by the transmitter's role.

        Each has an unknown common phase, and is in units of this receiver's full scale. A link that was not received is
        missing, even if it is the peer's.
        """

    @abstractmethod
    def beam(self, round: int) -> C64:
        """Return (own antenna,) complex, of norm 1: the beam of a round that is not for sounding."""


class SurfaceSearch(Configurable, ABC):
    """Looks for the best pattern by trying patterns (`surface/searches`): `ask`, probe, `tell`. Pure.

    Worth is on a scale where more is better and independent parts add: power, not decibels. It is noisy, and a search
    must end nevertheless. The same generator and worths give the same search; the start is not modified.

    >>> from testbed.core.registry import make_stage
    >>> search = make_stage("search", "greedy", {})
    >>> search.begin(SurfacePattern(np.zeros((2, 2), np.uint8), 1), np.random.default_rng(1))
    >>> while not search.done:
    ...     search.tell(float(search.ask().levels.sum()), error=0.0)
    >>> int(search.ask().levels.sum())
    4
    """

    stage = "search"

    done: bool = False
    """Whether there is nothing more to try."""

    @abstractmethod
    def begin(self, start: SurfacePattern, rng: np.random.Generator) -> None:
        """Search from this pattern on; raises InputError where the search cannot serve its board."""

    @abstractmethod
    def ask(self) -> SurfacePattern:
        """Return the pattern to try next, the same until `tell`; once `done`, the best pattern."""

    @abstractmethod
    def tell(self, worth: float, error: float) -> None:
        """Take the worth of `ask`'s pattern, and its standard error (0 where it is not known)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A health check's outcome."""

    check: str
    ok: bool
    detail: str
    values: dict[str, float] = field(default_factory=dict)
