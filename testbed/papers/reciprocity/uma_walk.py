"""Paper B's channel for studies: a walk through TR 38.901 UMa, and its measurements by imperfect radios.

Alice is at a height of 25 m, Bob walks in a straight line at 0.5 m/s, and both probe at a fixed interval. The
scatterers do not move (`Scene.uma`), so that neighbouring snapshots, and the channels of an Eve near either end, have
the same scatterers. The simulated air is found by name (`core.registry`), and its results can be stored in a folder:
from these snapshots a machine without the channel library can run the same study.

The paper's parameter table is not available. We use 2.4 GHz, 64 subcarriers over 20 MHz, no line of sight, and a probe
every 0.1 s (0.4 wavelengths of Bob's way). Each seed is another drop, with other clusters, angles and phases.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core import registry
from testbed.core.archives import read_npz
from testbed.core.config import PlacedNode, Scene, Uma
from testbed.core.errors import InputError
from testbed.core.seeds import generator
from testbed.core.types import F64, SPEED_OF_LIGHT_M_S
from testbed.core.whole import whole

C128 = NDArray[np.complex128]

CACHE_VARIABLE = "TESTBED_UMA_SNAPSHOTS"
"""Environment variable with the folder where studies keep snapshots by default."""
_ALICE_M, _BOB_M = (0.0, 0.0, 25.0), (100.0, 0.0, 1.5)
MAX_BYTES = 1 << 32
_FORMAT = 1
"""Part of the snapshots' file name; to be raised when the computation changes."""


@dataclass(frozen=True)
class Walk:
    """One drop, Bob's way through it, and Eve's position. Plain data, because it is sent to worker processes."""

    seed: int = 1
    n_probes: int = 1000
    interval_s: float = 0.1
    speed_m_s: float = 0.5
    carrier_hz: float = 2.4e9
    bandwidth_hz: float = 20e6
    n_subcarriers: int = 64
    line_of_sight: bool = False
    eve_near: str = ""
    """The end near which Eve is, 'alice' or 'bob'; '': there is no Eve."""
    eve_wavelengths: float = 0.0
    """Eve's distance from that end, in a direction drawn by the seed; near Bob she walks with him."""

    @property
    def wavelength_m(self) -> float:
        return SPEED_OF_LIGHT_M_S / self.carrier_hz

    @property
    def subcarrier_hz(self) -> F64:
        """(subcarrier,) offsets from the carrier, evenly spaced and symmetric."""
        n = self.n_subcarriers
        return np.asarray((np.arange(n) - (n - 1) / 2) * (self.bandwidth_hz / n))

    @property
    def time_s(self) -> F64:
        """(probe,) times, symmetric about 0, when Bob is at the position for which the drop was drawn."""
        return np.asarray((np.arange(self.n_probes) - (self.n_probes - 1) / 2) * self.interval_s)


@dataclass(frozen=True)
class Snapshots:
    """Noiseless channels along a walk, (probe, subcarrier); mean power of Alice–Bob over the walk is 1."""

    ab: C128
    """Alice–Bob, the same in both directions."""
    ae: C128 | None = None
    """Alice–Eve, on the same scale; None without Eve."""
    be: C128 | None = None
    """Bob–Eve."""

    def eve(self, walk: Walk) -> C128:
        """Return Eve's channel that is correlated with Alice–Bob: from Alice if she is near Bob, from Bob if near
        Alice."""
        found = self.ae if walk.eve_near == "bob" else self.be
        if found is None:
            raise ValueError(f"eve_near = {walk.eve_near!r}, accepted here: alice, bob")
        return found


@dataclass(frozen=True)
class Impairments:
    """The errors of two radios' estimates of one channel after each radio has synchronised itself."""

    snr_db: float = 20.0
    """Mean power of Alice–Bob over that of the estimate's error, by subcarrier."""
    timing_s: float = 5e-9
    """Standard deviation of a receiver's own constant timing error: a phase slope along the band."""
    timing_jitter_s: float = 1e-9
    """Standard deviation of the timing error that changes from probe to probe."""
    phase_rad: float = 0.1
    """Standard deviation of a receiver's own constant common phase error."""
    phase_jitter_rad: float = 0.05
    free_running: bool = False
    """Oscillators that are not locked: the common phase is uniform at every probe, as of radios without a common
    reference."""
    ripple_db: float = 0.5
    """R.m.s. ripple of each device's transmit and receive chains over the band, which is not reciprocal."""

    def at(self, snr_db: float) -> Impairments:
        return replace(self, snr_db=snr_db)


def snapshots(walk: Walk, cache: Path | str | None = None) -> Snapshots:
    """Return the noiseless channels of a walk; if they are stored in `cache` (or $TESTBED_UMA_SNAPSHOTS), from there.

    Raises InputError if they are not stored and the simulated air or its channel library is missing.
    """
    folder = cache or os.environ.get(CACHE_VARIABLE)
    if folder is None:
        return _computed(walk)
    path = Path(folder) / file_name(walk)
    if path.is_file():
        return _read(path, walk)
    found = _computed(walk)
    path.parent.mkdir(parents=True, exist_ok=True)
    # several processes may compute the same walk: each writes its own file and renames it, and the last file stays
    with whole(path, private=False, shared=True) as part, part.open("wb") as file:
        np.savez(file, **{k: v.astype(np.complex64) for k, v in asdict(found).items() if v is not None})
    return _read(path, walk)  # read back, so that the first call returns single precision as later ones do


def file_name(walk: Walk) -> str:
    """Return the file name of a walk's snapshots, which is computed from its parameters."""
    text = repr((_FORMAT, _ALICE_M, _BOB_M, sorted(asdict(walk).items())))
    return f"uma-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"


def measure(h: C128, walk: Walk, transmitter: str, receiver: str, plan: Impairments, *purpose: str | int) -> C128:
    """Return `receiver`'s least-squares estimates (probe, subcarrier) of noiseless `h` when `transmitter` sounds it.

    Devices are 'alice', 'bob' and 'eve': their chains and constant errors follow from the walk's seed and their name,
    noise and jitter also from `purpose` (e.g. the number of a repetition).
    """
    seed, f_hz = walk.seed, walk.subcarrier_hz
    fixed = generator(seed, "uma", receiver, "synchronisation")
    timing_s, phase_rad = plan.timing_s * fixed.standard_normal(), plan.phase_rad * fixed.standard_normal()
    rng = generator(seed, "uma", transmitter, receiver, "probes", *purpose)
    n = len(h)
    late_s = timing_s + plan.timing_jitter_s * rng.standard_normal(n)
    turn = phase_rad + plan.phase_jitter_rad * rng.standard_normal(n)
    anywhere = rng.uniform(0, 2 * np.pi, n)
    if plan.free_running:
        turn = anywhere
    noise = rng.standard_normal((*h.shape, 2)) @ np.array([1.0, 1.0j]) * np.sqrt(0.5 * 10 ** (-plan.snr_db / 10))
    chains = _chain(walk, transmitter, "tx", plan) * _chain(walk, receiver, "rx", plan)
    return np.asarray(h * chains * np.exp(1j * (turn[:, None] - 2 * np.pi * late_s[:, None] * f_hz)) + noise)


def pair(found: Snapshots, walk: Walk, plan: Impairments, *purpose: str | int) -> tuple[C128, C128]:
    """Return Alice's and Bob's estimates (probe, subcarrier) of the channel between them."""
    return (
        measure(found.ab, walk, "bob", "alice", plan, *purpose),
        measure(found.ab, walk, "alice", "bob", plan, *purpose),
    )


def overheard(found: Snapshots, walk: Walk, plan: Impairments, *purpose: str | int) -> C128:
    """Return Eve's estimates (probe, subcarrier) of the channel that resembles Alice–Bob (`Snapshots.eve`)."""
    sender = "alice" if walk.eve_near == "bob" else "bob"
    return measure(found.eve(walk), walk, sender, "eve", plan, *purpose)


def _chain(walk: Walk, device: str, side: str, plan: Impairments) -> C128:
    """Return (subcarrier,) a chain's response: three small echoes, which make a ripple of the given r.m.s. value."""
    rng = generator(walk.seed, "uma", device, side, "chain")
    echoes = rng.standard_normal(3) + 1j * rng.standard_normal(3)
    rms = 10 ** (plan.ripple_db / 20) - 1
    # an echo of amplitude e makes a ripple of |H| of e/√2 r.m.s.
    echoes *= np.sqrt(2) * rms / np.linalg.norm(echoes)
    lags_s = np.arange(1, 4) / walk.bandwidth_hz
    return np.asarray(1 + np.exp(-2j * np.pi * walk.subcarrier_hz[:, None] * lags_s) @ echoes)


@lru_cache(maxsize=4)  # a study asks for the same walk at every signal-to-noise ratio
def _computed(walk: Walk) -> Snapshots:
    if walk.eve_near not in ("", "alice", "bob"):
        raise InputError(f"eve_near = {walk.eve_near!r}, accepted: alice, bob, or '' for none")
    scene = Scene(
        alice=PlacedNode(position_m=list(_ALICE_M)),
        bob=PlacedNode(position_m=list(_BOB_M), velocity_m_s=[0.0, walk.speed_m_s, 0.0]),
        eve=PlacedNode(near=walk.eve_near, offset_wavelengths=walk.eve_wavelengths) if walk.eve_near else None,  # type: ignore[arg-type]
        uma=Uma(line_of_sight=walk.line_of_sight),
    )
    world: Any = registry.load_driver("worlds", "sim")
    try:
        found = world.responses(scene, walk.carrier_hz, walk.seed, walk.time_s, walk.subcarrier_hz, None)
    except InputError as exc:
        raise InputError(
            f"{exc}; without it: set {CACHE_VARIABLE} to a folder with another machine's {file_name(walk)}"
        ) from exc
    scale = 1 / np.sqrt((np.abs(found["alice>bob"]) ** 2).mean())
    links = {name: scale * h for name, h in found.items()}
    return Snapshots(links["alice>bob"], links.get("alice>eve"), links.get("bob>eve"))


def _read(path: Path, walk: Walk) -> Snapshots:
    shape = (walk.n_probes, walk.n_subcarriers)
    try:
        kept = read_npz(path, MAX_BYTES)
        found = Snapshots(**{name: values.astype(np.complex128) for name, values in kept.items()})
    except (OSError, ValueError, TypeError) as exc:
        raise InputError(f"{path}: not the snapshots of a walk ({exc}); delete it, it is made anew") from exc
    if any(h is not None and h.shape != shape for h in (found.ab, found.ae, found.be)):
        raise InputError(f"{path}: accepted: snapshots (probe, subcarrier) = {shape}; delete it, it is made anew")
    return found
