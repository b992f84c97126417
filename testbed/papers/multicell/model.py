"""Paper C: K cells with common pilots, and L surfaces of N elements each; covariances at a cost linear in N.

h_ij = h^d_ij + Σ_l G_il diag(v_l) f_lj from base station i (M antennas) to terminal j (one). The direct links are
Rayleigh; both links of a surface are Rician of factor β, κ = β/(β+1): a line of sight with a flat response over the
array (steering vectors) and independent scatter. v enters the covariance through s_ijl = Σ_n b_iln v_ln f_jln only:

    C_ij = ζ_d I + Σ_l ζ_Gζ_f [κ²|s|² aa^H + κ(1−κ)N aa^H + (1−κ)N I]                        (per unit of noise power)

so covariances and gradients cost O(K²NL).

There are three models of the lines of sight. The paper counts all of E{hh^H} as randomness and treats channels of
different pairs as uncorrelated. Both are true only if the phase of each line of sight changes with each coherence
block, because a terminal moves by wavelengths, while the array's response stays the same. This is the default here, and
`probe` draws such phases. Paths over different surfaces are then uncorrelated, too. With `coherent` a station or
terminal has one phase for all surfaces, so that their lines of sight are added as amplitudes. With `los_known` the
product of the lines of sight is public knowledge and is subtracted: it gives no key, and v has no effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.papers.multicell.rates import C128, KeyRates, adjoint, namespace
from testbed.surface.geometry import check_batch, path_gain, points

BS_HEIGHT_M, SURFACE_HEIGHT_M, UT_HEIGHT_M = 30.0, 10.0, 1.5
NOISE_W = 1e-12
"""Noise power: −90 dBm."""
DIRECT_EXPONENT, SURFACE_EXPONENT = 3.75, 2.2
ARRAYS = ("random", "wide", "tall")


@dataclass(frozen=True)
class MultiCell(KeyRates):
    """Statistics of one scene, or of a batch of them (…). Powers and gains are relative to the noise power."""

    direct: F64
    """(…, i, j) gain of the direct link from base station i to terminal j."""
    through: F64
    """(…, i, j, surface) product of the gains of both links over a surface."""
    bs: C128
    """(…, i, surface, antenna) line-of-sight response of base station i's antennas, modulus 1."""
    surface_bs: C128
    """(…, surface, i, element) response of the surface's elements to base station i, modulus 1."""
    surface_ut: C128
    """(…, surface, j, element) the same to terminal j."""
    n_chains: int
    """M_e, RF chains of a base station, which is the number of streams of its precoder."""
    power_w: float
    """P_A, the limit of ‖P_i‖²; a terminal's power is 1 W."""
    weights: F64
    """(cell,) weights of the rates."""
    rician: float = 3.0
    coherent: bool = False
    los_known: bool = False

    def __post_init__(self) -> None:
        check_common(self.weights, self.power_w, self.n_chains, self.n_antennas)
        k, n_surfaces = self.direct.shape[-1], self.through.shape[-1]
        n = self.surface_bs.shape[-1]
        wanted = {
            "direct": (k, k), "through": (k, k, n_surfaces), "bs": (k, n_surfaces, self.n_antennas),
            "surface_bs": (n_surfaces, k, n), "surface_ut": (n_surfaces, k, n), "weights": (k,),
        }  # fmt: skip
        for name, shape in wanted.items():
            found = np.shape(getattr(self, name))
            if found[-len(shape) :] != shape:
                raise InputError(f"{name} has the shape {found}, accepted: (…, {', '.join(map(str, shape))})")
        if n < 1 or n_surfaces < 1:
            raise InputError(f"{n_surfaces} surfaces of {n} elements, accepted: 1 or more of each")
        for name in ("direct", "through"):
            if not (np.isfinite(getattr(self, name)).all() and (getattr(self, name) >= 0).all()):
                raise InputError(f"{name}: gains must be finite and at least 0")
        for name in ("bs", "surface_bs", "surface_ut"):
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"{name}: not all entries are finite")
        if not (np.isfinite(self.rician) and self.rician >= 0):
            raise InputError(f"Rician factor {self.rician:g}, accepted: 0 or more")

    @classmethod
    def at(
        cls,
        bs_m: Any,
        ut_m: Any,
        surface_m: Any,
        n_elements: int = 60,
        n_antennas: int = 4,
        n_chains: int | None = None,
        power_dbm: float = 30.0,
        array: str = "random",
        rng: np.random.Generator | None = None,
        spacing_wavelengths: float = 0.25,
    ) -> MultiCell:
        """Return the paper's statistics for places (cell, 3), (cell, 3) and (surface, 3) in metres.

        `array` is the response of a surface's elements to a line of sight, which the paper does not define. "random":
        each element has an independent phase, drawn from `rng`. "wide", "tall": the elements are on a vertical grid
        along x, as square as their number allows, `spacing_wavelengths` apart. The base stations' antennas are in a row
        along y, half a wavelength apart.
        """
        bs = points("bs_m", np.atleast_2d(bs_m))
        ut, surface = points("ut_m", ut_m, (len(bs),)), points("surface_m", np.atleast_2d(surface_m))
        if array not in ARRAYS:
            raise InputError(f"array {array!r}, accepted: {', '.join(ARRAYS)}")
        if n_elements < 1 or n_antennas < 1 or not np.isfinite(spacing_wavelengths):
            raise InputError(
                f"{n_elements} elements {spacing_wavelengths:g} λ apart, {n_antennas} antennas; accepted: 1 or more of "
                "each, a finite spacing"
            )
        to_bs = path_gain(surface[:, None], bs[None], SURFACE_EXPONENT)  # (surface, cell)
        to_ut = path_gain(surface[:, None], ut[None], SURFACE_EXPONENT)
        if array == "random":
            rng = rng if rng is not None else np.random.default_rng(0)
            shape = (len(surface), len(bs), n_elements)
            seen_bs, seen_ut = (np.exp(2j * np.pi * rng.random(shape)) for _ in range(2))
        else:
            grid = _grid(n_elements, array == "tall") * spacing_wavelengths
            seen_bs, seen_ut = (
                np.exp(2j * np.pi * np.einsum("lkd,nd->lkn", _directions(surface, p), grid)) for p in (bs, ut)
            )
        line = np.arange(n_antennas)[:, None] * np.array([0.0, 0.5, 0.0])
        power_w = 1e-3 * 10 ** (power_dbm / 10)
        return cls(
            direct=path_gain(bs[:, None], ut[None], DIRECT_EXPONENT) / NOISE_W,
            through=np.einsum("li,lj->ijl", to_bs, to_ut) / NOISE_W,
            bs=np.exp(2j * np.pi * np.einsum("kld,md->klm", _directions(bs, surface), line)),
            surface_bs=seen_bs, surface_ut=seen_ut,
            n_chains=n_antennas if n_chains is None else n_chains,
            power_w=power_w, weights=np.ones(len(bs)),
        )  # fmt: skip

    @classmethod
    def two_cells(cls, x_ut_m: float = 280.0, x_surface_m: float = 300.0, **options: Any) -> MultiCell:
        """Return the paper's two cells (its Fig. 3); `options` as in `at`."""
        return cls.at(
            [(0, 0, BS_HEIGHT_M), (600, 0, BS_HEIGHT_M)],
            [(x_ut_m, 0, UT_HEIGHT_M), (600 - x_ut_m, 0, UT_HEIGHT_M)],
            [(x_surface_m, 0, SURFACE_HEIGHT_M)],
            **options,
        )

    @classmethod
    def four_cells(cls, surface_xy_m: Any, **options: Any) -> MultiCell:
        """Return the paper's four cells (its Fig. 11) with surfaces at (surface, 2).

        Cells 3 and 4 are cells 1 and 2 mirrored to y = 600 m. Base station 3 is at (0, 600): this follows from the
        paper's description of the surfaces' ways, while its list of coordinates exchanges 3 and 4.
        """
        bs = [(x, y, BS_HEIGHT_M) for y in (0, 600) for x in (0, 600)]
        ut = [(x, y, UT_HEIGHT_M) for y in (0, 600) for x in (280, 320)]
        return cls.at(bs, ut, [(*xy, SURFACE_HEIGHT_M) for xy in surface_xy_m], **options)

    @classmethod
    def stack(cls, scenes: list[MultiCell]) -> MultiCell:
        """Return a batch (scene, …) of scenes that differ in their statistics only; raises InputError for others."""
        fields = ("direct", "through", "bs", "surface_bs", "surface_ut")
        kinds = {
            (*(np.shape(getattr(s, f)) for f in fields), s.n_chains, s.power_w, tuple(s.weights), s.rician, s.coherent,
             s.los_known)
            for s in scenes
        }  # fmt: skip
        if len(kinds) != 1:
            raise InputError(f"{len(scenes)} scenes of {len(kinds)} kinds (sizes, power, weights, …), accepted: of one")
        stacked: dict[str, Any] = {f: np.stack([getattr(s, f) for s in scenes]) for f in fields}
        return replace(scenes[0], **stacked)

    @property
    def n_cells(self) -> int:
        return int(self.direct.shape[-1])

    @property
    def n_antennas(self) -> int:
        return int(self.bs.shape[-1])

    @property
    def n_phases(self) -> int:
        """L·N, surface after surface."""
        return int(self.through.shape[-1] * self.surface_bs.shape[-1])

    @property
    def batch(self) -> tuple[int, ...]:
        return self.direct.shape[:-2]

    def without_surface(self) -> MultiCell:
        """Return the same scene with the surfaces' links at zero (No-RIS)."""
        return replace(self, through=np.zeros_like(self.through))

    def sums(self, phases_rad: Any) -> Any:
        """Return s (…, i, j, surface) of phases (…, surface·element); numpy or torch."""
        xp = namespace(phases_rad)
        self.check_phases(phases_rad)
        v = self._unit(phases_rad)
        bs, ut = self._constant(self.surface_bs, v), self._constant(self.surface_ut, v)
        return xp.moveaxis((bs * v) @ ut.swapaxes(-1, -2), -3, -1)

    def covariances(self, phases_rad: Any) -> Any:
        """Return C (…, i, j, antenna, antenna) for phases (…, surface·element); numpy, or torch and differentiable."""
        return self.covariances_of(self.sums(phases_rad))

    def covariances_of(self, s: Any) -> Any:
        """Return C (…, i, j, antenna, antenna) for s (…, i, j, surface)."""
        x = self._sight(s)
        return self._constant(self._base, x) + x @ adjoint(x)

    def phase_slopes(self, d: C128, phases_rad: F64) -> C128:
        """Return ∂R/∂v* (…, surface·element) from D (…, i, j, antenna, antenna), dR = Σ tr(D_ij dC_ij): O(K²NL)."""
        towards = d @ self._sight(self.sums(phases_rad))  # ∂R/∂X*, one column for all surfaces where coherent
        a = self.bs.swapaxes(-1, -2)[..., :, None, :, :]
        by_s = np.moveaxis(self._amplitude * (a.conj() * towards).sum(axis=-2), -1, -3)
        out = (self.surface_bs.conj() * (by_s @ self.surface_ut.conj())).sum(axis=-2)
        return np.asarray(out.reshape(*out.shape[:-2], self.n_phases))

    def probe(self, precoders: C128, phases_rad: F64, n_probes: int, rng: np.random.Generator) -> tuple[C128, C128]:
        """Draw channels and return y (cell, probe, stream) and z̃ (cell, probe, antenna), eqs. 3 and 5; no batch.

        Each probe is a coherence block of its own: it has new scatter and new phases of all lines of sight (if these
        are known, they are constant, and their part is subtracted). A link that belongs to several pairs, such as that
        from a base station to a surface, is drawn once for all of them.
        """
        self.check_precoders(precoders)
        self.check_phases(phases_rad)
        if self.batch or np.ndim(phases_rad) != 1 or n_probes < 1:
            raise InputError(
                f"{n_probes} probes of scenes {self.batch} with phases {np.shape(phases_rad)}; accepted: 1 or more, of "
                "one scene, with one phase an element"
            )
        parts = [
            self._probe(precoders, phases_rad, n, rng) for n in _chunks(n_probes, 2_000_000 // (4 * self.n_phases) + 1)
        ]
        return np.concatenate([y for y, _ in parts], axis=1), np.concatenate([z for _, z in parts], axis=1)

    def _probe(self, p: C128, phases_rad: F64, n_probes: int, rng: np.random.Generator) -> tuple[C128, C128]:
        k, m, n = self.n_cells, self.n_antennas, self.surface_bs.shape[-1]
        kappa = self.rician / (self.rician + 1)

        def cn(*shape: int) -> C128:
            return np.asarray(rng.standard_normal((*shape, 2)).view(np.complex128)[..., 0] * np.sqrt(0.5))

        h = np.sqrt(self.direct)[..., None] * cn(n_probes, k, k, m)
        for surface in range(self.through.shape[-1]):
            v = np.exp(1j * phases_rad.reshape(-1, n)[surface])
            if surface == 0 or not self.coherent:
                phase_bs, phase_ut = (np.exp(2j * np.pi * rng.random((n_probes, k))) for _ in range(2))
            scatter = np.sqrt(1 - kappa) * cn(n_probes, k, n)
            f = np.sqrt(kappa) * phase_ut[..., None] * self.surface_ut[surface] + scatter
            by_sight = (v * f) @ self.surface_bs[surface].T  # (probe, j, i)
            if self.los_known:
                by_sight = (v * scatter) @ self.surface_bs[surface].T
            by_sight = np.sqrt(kappa) * phase_bs[..., None] * by_sight.swapaxes(1, 2)
            # given f, its product with a scattered G is Gaussian with the Gram matrix of the terminals' paths
            gram = f.conj() @ f.swapaxes(1, 2)
            half = np.linalg.cholesky(gram + 1e-12 * n * np.eye(k)).conj()  # E over j, j': f_j f_j'^H
            scattered = np.sqrt(1 - kappa) * half[:, None] @ cn(n_probes, k, k, m)
            link = by_sight[..., None] * self.bs[:, None, surface] + scattered
            h = h + np.sqrt(self.through[..., surface])[..., None] * link
        y = np.einsum("isa,pika->kps", p, h, optimize=True) + cn(k, n_probes, p.shape[-2])
        z = h.sum(axis=2).swapaxes(0, 1) + cn(k, n_probes, m)
        return y, z

    @cached_property
    def _amplitude(self) -> F64:
        """(…, i, j, surface) of κ√(ζ_Gζ_f), the amplitude of a sum s; 0 where the lines of sight are known."""
        kappa = self.rician / (self.rician + 1)
        return np.asarray(np.sqrt(self.through) * (0.0 if self.los_known else kappa))

    @cached_property
    def _base(self) -> C128:
        """C without the product of the lines of sight."""
        kappa, n = self.rician / (self.rician + 1), self.surface_bs.shape[-1]
        size = np.sqrt(self.through * (kappa * (1 - kappa) * n))
        x = self.bs.swapaxes(-1, -2)[..., :, None, :, :] * size[..., None, :]
        flat = self.direct + (1 - kappa) * n * self.through.sum(axis=-1)
        return np.asarray(x @ adjoint(x) + flat[..., None, None] * np.eye(self.n_antennas))

    def _sight(self, s: Any) -> Any:
        """Return X (…, i, j, antenna, path), X X^H being the lines of sight's part of C."""
        a = self._constant(self.bs.swapaxes(-1, -2)[..., :, None, :, :], s)
        x = a * (self._constant(self._amplitude, s) * s)[..., None, :]
        return x.sum(-1)[..., None] if self.coherent else x

    def _unit(self, phases_rad: Any) -> Any:
        """Return v (…, surface, 1, element)."""
        shape = (*phases_rad.shape[:-1], self.through.shape[-1], 1, self.surface_bs.shape[-1])
        if isinstance(phases_rad, np.ndarray):
            return np.exp(1j * phases_rad).reshape(shape)
        import torch

        return torch.polar(torch.ones_like(phases_rad), phases_rad).reshape(shape)

    @staticmethod
    def _constant(values: Any, like: Any) -> Any:
        if isinstance(like, np.ndarray):
            return values
        import torch

        return torch.as_tensor(values, dtype=like.dtype, device=like.device)

    def check_phases(self, phases_rad: Any) -> None:
        """Raise InputError if there is not one finite phase for each element and scene."""
        if np.ndim(phases_rad) < 1 or phases_rad.shape[-1] != self.n_phases:
            found = phases_rad.shape[-1] if np.ndim(phases_rad) else "a single one"
            raise InputError(f"phases for {found} elements, accepted: (…, {self.n_phases}), surface after surface")
        check_batch("phases", tuple(phases_rad.shape[:-1]), self.batch)
        if not namespace(phases_rad).isfinite(phases_rad).all():
            raise InputError("phases are not finite; accepted: radians")

    def check_precoders(self, precoders: Any) -> None:
        """Raise InputError if precoders have another shape or exceed the power."""
        check_batch("precoders", tuple(precoders.shape[:-3]), self.batch)
        check_precoders(precoders, (self.n_cells, self.n_chains, self.n_antennas), self.power_w)


def check_precoders(precoders: Any, shape: tuple[int, int, int], power_w: float) -> None:
    """Raise InputError if precoders are not (…, *shape), or a base station exceeds `power_w` by more than a share of
    1e-6."""
    if precoders.shape[-3:] != shape:
        raise InputError(
            f"precoders have the shape {tuple(precoders.shape)}, accepted: (…, {', '.join(map(str, shape))})"
            " for (cell, RF chain, antenna)"
        )
    most = float((abs(precoders) ** 2).sum((-2, -1)).max())
    if not most <= power_w * (1 + 1e-6):
        raise InputError(f"a precoder of {most:.6g} W, accepted: up to P_A = {power_w:.6g} W")


def check_common(weights: Any, power_w: float, n_chains: int, n_antennas: int) -> None:
    """Raise InputError for impossible powers, numbers of RF chains, or weights."""
    if not (np.isfinite(power_w) and power_w > 0):
        raise InputError(f"power P_A = {power_w:g} W, accepted: finite and above 0")
    if not 1 <= n_chains <= n_antennas:
        raise InputError(f"{n_chains} RF chains for {n_antennas} antennas, accepted: 1 to {n_antennas}")
    w = np.asarray(weights)
    if not (np.isfinite(w).all() and (w >= 0).all() and (w > 0).any()):
        raise InputError(f"weights {w.tolist()}, accepted: finite, at least 0, one above 0")


def _directions(at_m: F64, to_m: F64) -> F64:
    """Return (at, to, 3) unit vectors."""
    way = to_m[None] - at_m[:, None]
    return np.asarray(way / np.linalg.norm(way, axis=-1, keepdims=True))


def _grid(n: int, tall: bool) -> F64:
    """Return (element, 3) places on a vertical grid, as square as n allows, its rows along x, in spacings."""
    shorter = max(r for r in range(1, int(n**0.5) + 1) if n % r == 0)
    row, column = np.divmod(np.arange(n), shorter if tall else n // shorter)
    return np.stack([column, np.zeros(n), row], axis=1).astype(float)


def _chunks(n: int, size: int) -> Iterator[int]:
    for start in range(0, n, size):
        yield min(size, n - start)
