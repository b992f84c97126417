"""The jobs of study `multicell`, computed point by point by the workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from testbed.assess import sp800_22
from testbed.assess.sp800_22 import structure
from testbed.chain.quantize.scalar import Scalar
from testbed.core import seeds
from testbed.core.types import F64, U8, Features
from testbed.papers.kit.mutual_information import gaussian_bits_with_error, nearest_neighbour_bits
from testbed.papers.multicell import alternating, no_ris
from testbed.papers.multicell import joint as cells_joint
from testbed.papers.multicell import levels as cells_levels
from testbed.papers.multicell import phases as cells_phases
from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell import random as cells_random
from testbed.papers.multicell.general import GeneralMultiCell
from testbed.papers.multicell.model import MultiCell
from testbed.papers.multicell.rates import C128, canonical
from testbed.surface.design import Design

PROPOSED, PAPERS, RANDOM, NONE = "joint (ours)", "alternation (paper's)", "RandPhase", "No-RIS"


@dataclass(frozen=True)
class Scene:
    """One setting; if `array` is "random", several draws of the phases of the lines of sight."""

    x_ut_m: float = 280.0
    x_surface_m: float = 300.0
    surfaces_xy_m: tuple[tuple[float, float], ...] | None = None
    """Positions of the surfaces: four cells with these instead of two cells."""
    n_elements: int = 60
    n_antennas: int = 4
    n_chains: int = 4
    power_dbm: float = 30.0
    array: str = "random"
    spacing_wavelengths: float = 0.25
    coherent: bool = False
    draws: int = 4
    starts: int = 4

    def model(self) -> MultiCell:
        """Return the draws as a batch; draw d has the same phases in all settings with the same number of elements."""
        options: dict[str, Any] = {
            "n_elements": self.n_elements, "n_antennas": self.n_antennas, "n_chains": self.n_chains,
            "power_dbm": self.power_dbm, "array": self.array, "spacing_wavelengths": self.spacing_wavelengths,
        }  # fmt: skip
        scenes = []
        for draw in range(self.draws if self.array == "random" else 1):
            rng = seeds.generator(1, "multicell", "sight", draw)
            if self.surfaces_xy_m is None:
                scenes.append(MultiCell.two_cells(self.x_ut_m, self.x_surface_m, rng=rng, **options))
            else:
                scenes.append(MultiCell.four_cells(self.surfaces_xy_m, rng=rng, **options))
        return replace(MultiCell.stack(scenes), coherent=self.coherent)

    def rng(self, purpose: str) -> np.random.Generator:
        return seeds.generator(1, "multicell", purpose, repr(self))


@dataclass(frozen=True)
class Task:
    """A scene, and what is to be computed for it."""

    scene: Scene
    curves: tuple[str, ...] = (PROPOSED, PAPERS, RANDOM, NONE)


def compare(task: Task) -> dict[str, Any]:
    """Return for each curve the weighted sum rates in bits (draw,), and for our solver also the bound."""
    scene, model = task.scene, task.scene.model()
    out: dict[str, Any] = {}
    for curve in task.curves:
        there = model.without_surface() if curve == NONE else model
        found = solve(curve, scene, model)
        out[curve] = (model.weights * there.rates(found.precoders, found.phases_rad)).sum(axis=-1)
        if curve == PROPOSED:
            out["bound"] = there.weighted_bound(found.precoders, found.phases_rad)
    return out


def solve(curve: str, scene: Scene, model: MultiCell) -> Design:
    """Return a curve's design for each draw."""
    if curve == PROPOSED:
        # algorithm 1 costs (M M_e)³, so with many antennas only the ascent is run
        return cells_joint.design(model, scene.rng("joint"), scene.starts, polish=5 if scene.n_antennas <= 4 else 0)
    if curve == PAPERS:
        precoders, phases_rad = cells_joint.random_start(model, scene.rng("alternation"))
        return alternating.design(model, phases_rad, precoders)
    if curve == RANDOM:
        return cells_random.design(model, scene.rng("random"))
    return no_ris.design(model)


def converge(scene: Scene) -> dict[str, Any]:
    """Return histories of algorithm 1, algorithm 2 and alternation on one draw, and how often a step was halved."""
    model = _first(scene.model())
    precoders, phases_rad = cells_joint.random_start(model, scene.rng("convergence"))
    halved: list[int] = []
    first = cells_precoders.design(model, phases_rad, precoders, halved=halved)
    second = cells_phases.design(model, first.precoders, phases_rad)
    both = alternating.design(model, phases_rad, precoders)
    same = alternating.design(model, phases_rad)
    return {
        "algorithm 1": first.history, "algorithm 2": second.history, "alternation": both.history,
        "from identity": same.history, "halved": int(sum(halved)), "steps": len(halved),
    }  # fmt: skip


def quantized(task: tuple[Scene, int]) -> dict[str, Any]:
    """Return rates in bits (draw,) with phases of that number of bits: rounded, and by coordinate ascent over
    levels."""
    scene, bits = task
    model = scene.model()
    best = solve(PROPOSED, scene, model)
    rounded = cells_levels.projected(model, best.precoders, best.phases_rad, bits)
    climbed = cells_levels.design(model, best.precoders, best.phases_rad, bits)
    return {
        "continuous": model.weighted_bound(best.precoders, best.phases_rad),
        "rounded": model.weighted_bound(rounded.precoders, rounded.phases_rad),
        "climbed": model.weighted_bound(climbed.precoders, climbed.phases_rad),
    }


def known_sight(scene: Scene) -> dict[str, Any]:
    """Return rates in bits (draw,) for lines of sight that change with each block, and for publicly known ones.

    "same design": the design for changing lines of sight, evaluated with known ones. "best": precoders designed for
    known ones, for which the phases have no effect.
    """
    model = scene.model()
    known = replace(model, los_known=True)
    found = solve(PROPOSED, scene, model)
    best = cells_precoders.design(known, found.phases_rad, found.precoders)
    return {
        "new": model.weighted_bound(found.precoders, found.phases_rad),
        "same design": known.weighted_bound(found.precoders, found.phases_rad),
        "best": known.weighted_bound(best.precoders, best.phases_rad),
        "No-RIS": solve_none(scene, model),
    }


def solve_none(scene: Scene, model: MultiCell) -> F64:
    found = solve(NONE, scene, model)
    return model.without_surface().weighted_bound(found.precoders, found.phases_rad)


def checks(seed: int) -> dict[str, Any]:
    """Return differences of the gradients, and compare closed forms with simulated probing.

    "gradient": largest difference of dR/dθ by the structured path, by Theorem 4 as printed and by Theorem 4
    contracted, over the largest entry. "deviations": (estimate − closed form) over its standard error, of each
    R_k^ub and R_k at M_e < M, with the paper's Rician links probed without change. "bits": M = M_e = 1, cell 1: the
    closed form, and the nearest-neighbour estimates from probes of the Rician links and of Gaussian ones of equal
    covariance.
    """
    rng = seeds.generator(seed, "multicell", "checks")
    model = MultiCell.two_cells(n_elements=20, n_chains=3, rng=rng)
    phases_rad, precoders = rng.uniform(0, 2 * np.pi, 20), cells_precoders.random(model, rng)
    general = GeneralMultiCell.of(model)
    turn = np.exp(-1j * phases_rad)
    printed = 2 * np.imag(general.theorem_4(precoders, phases_rad).conj() * turn)
    found = [model.slopes(precoders, phases_rad)[1], general.slopes(precoders, phases_rad)[1], printed]
    spread = float(np.abs(np.array(found) - found[0]).max() / np.abs(found[0]).max())

    y, z = model.probe(precoders, phases_rad, 60_000, rng)
    deviations = []
    for k, (bound, rate) in enumerate(
        zip(model.bounds(precoders, phases_rad), model.rates(precoders, phases_rad), strict=True)
    ):
        for closed, seen in ((bound, z[k]), (rate, z[k] @ precoders[k].T)):
            estimate, error = gaussian_bits_with_error(y[k], seen)
            deviations.append((estimate - closed) / error)

    one = MultiCell.two_cells(n_antennas=1, rng=rng)
    best = cells_joint.design(one, rng, 4)
    p, phases_rad = np.asarray(best.precoders, complex), best.phases_rad
    y, z = one.probe(p, phases_rad, 6000, rng)
    rho = canonical(p, one.covariances(phases_rad))[2][0, 0]
    u, v = (rng.standard_normal((6000, 2)).view(complex) for _ in range(2))
    twin = rho * u + np.sqrt(1 - rho**2) * v
    one_bits = {
        "closed form": float(one.bounds(p, phases_rad)[0]),
        "probed, nearest neighbours": _nearest(y[0], z[0]),
        "Gaussian, nearest neighbours": _nearest(u, twin),
    }
    return {"gradient": spread, "deviations": deviations, "bits": one_bits}


def _nearest(y: C128, z: C128) -> float:
    a, b = (np.column_stack([x.real, x.imag]) / x.std() for x in (y, z))
    return nearest_neighbour_bits(a, b)


# ---------------------------------------------------------------- bits


@dataclass(frozen=True)
class Probing:
    """Bits from simulated probing."""

    scene: Scene
    n_probes: int
    part: int = 0
    without_surface: bool = False


def disagreement(task: Probing) -> dict[str, list[float]]:
    """Return the share of bits that differ, (draw,): for the entries of y_k and z_k themselves, and for the strongest
    canonical direction of each cell; with one bit per real dimension and no guard band, over all cells."""
    whole = task.scene.model()
    curve = NONE if task.without_surface else PROPOSED
    found = solve(curve, task.scene, whole)
    out: dict[str, list[float]] = {"as received": [], "strongest direction": []}
    for draw in range(whole.batch[0]):
        model, p, phases_rad = _pick(whole, found, draw)
        if task.without_surface:
            model = model.without_surface()
        y, z = model.probe(p, phases_rad, task.n_probes, task.scene.rng(f"probe {draw}"))
        a, b, _ = canonical(p, model.covariances(phases_rad))
        pairs = {
            "as received": (z @ p.swapaxes(-1, -2), y),
            "strongest direction": (z @ b[:, :1].swapaxes(-1, -2), y @ a[:, :1].swapaxes(-1, -2)),
        }
        for name, (at_bs, at_ut) in pairs.items():
            wrong = [_bits(u) != _bits(v) for u, v in zip(at_bs, at_ut, strict=True)]
            out[name].append(float(np.mean(wrong)))
    return out


def sequences(task: Probing) -> dict[str, Any]:
    """Return p-values of each test that 2048 bits allow and of the rank test (38 matrices), from one draw.

    "p": for the base stations' bits of canonical directions with ρ ≥ 0.5, in sequences (sequence, 2048) of one cell
    each. "raw": for the entries of z_k themselves, from a quarter of the probes. "generator": for the same number of
    pseudo-random bits as "p".
    """
    whole = task.scene.model()
    found = solve(PROPOSED, task.scene, whole)
    model, p, phases_rad = _pick(whole, found, 0)
    _, z = model.probe(p, phases_rad, task.n_probes, seeds.generator(1, "multicell", "table1", task.part))
    _, b, rho = canonical(p, model.covariances(phases_rad))
    out: dict[str, Any] = {"directions": [int(max(1, (r >= 0.5).sum())) for r in rho]}
    streams = [_bits(z[k] @ b[k, : out["directions"][k]].T) for k in range(model.n_cells)]
    out["p"] = _p_values(streams)
    rng = seeds.generator(1, "multicell", "generator", task.part)
    out["generator"] = _p_values([rng.integers(0, 2, s.size).astype(np.uint8) for s in streams])
    out["raw"] = _p_values([_bits(z[k, : task.n_probes // 4] @ p[k].T) for k in range(model.n_cells)])
    return out


def _p_values(streams: list[U8]) -> dict[str, F64]:
    length = sp800_22.LEAST_BITS["rank"]
    rows = np.concatenate([s[: s.size // 2048 * 2048].reshape(-1, 2048) for s in streams])
    found = sp800_22.run(rows)
    ranks = np.concatenate([s[: s.size // length * length].reshape(-1, length) for s in streams])
    return {**found, "rank": structure.rank(ranks) if len(ranks) else np.zeros(0)}


def _bits(values: C128) -> U8:
    """Return the bits that the testbed's own scalar quantizer makes of complex values (probe, entry): 1 bit per real
    dimension."""
    flat = np.stack([values.real, values.imag], axis=-1).reshape(len(values), -1)
    features = Features(np.ascontiguousarray(flat), np.arange(len(flat)))
    return Scalar(bits=1, guard=0.0).lead(features, np.random.default_rng(0))[0].values


def _pick(model: MultiCell, found: Design, draw: int) -> tuple[MultiCell, C128, F64]:
    return _first(model, draw), np.asarray(found.precoders[draw], complex), found.phases_rad[draw]


def _first(model: MultiCell, draw: int = 0) -> MultiCell:
    """Return one scene of a batch."""
    fields = ("direct", "through", "bs", "surface_bs", "surface_ut")
    one: dict[str, Any] = {f: getattr(model, f)[draw] for f in fields}
    return replace(model, **one)


WORK: dict[str, Callable[[Any], Any]] = {
    f.__name__: f for f in (compare, converge, quantized, known_sight, checks, disagreement, sequences)
}


def run(job: tuple[str, Any]) -> Any:
    """Do one job (name of a function above, its argument) on a worker."""
    return WORK[job[0]](job[1])
