"""Scatterers of a 3GPP TR 38.901 UMa drop: the standard's rays, turned into positions.

The library `sionna-no-rt` draws delays, powers and angles of one Alice–Bob link (steps 1 to 9 of TR 38.901, 7.5). Each
ray then gets two bodies, one in its direction of departure from Alice and one in its direction of arrival at Bob, at
the same distance from these, such that the path over both bodies has the ray's delay. All further channels follow from
geometry: Bob moves among bodies at rest, and Eve's paths lead over the same bodies. Channels are thus spatially
consistent, and at distances of a wavelength they have the theoretical correlation. The library's own procedures for two
terminals give no correlation, or far too much.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from sim_backend.scatterers import Scatterers
from testbed.core.config import Scene, Uma
from testbed.core.errors import InputError
from testbed.core.seeds import derive
from testbed.core.types import F64, SPEED_OF_LIGHT_M_S

CLEARANCE_M = 10.0
"""Least distance of a body from an end. If an early echo of a drop would need a nearer body, it is delayed: alone with
line of sight, or together with all others without (the standard then states only differences of delays)."""


def draw(scene: Scene, carrier_hz: float, seed: int) -> Scatterers:
    """Draw the bodies of a scene with `scene.uma`; raises InputError where the library is missing or refuses."""
    plan = scene.uma
    assert plan is not None
    alice, bob = (np.asarray(p.position_m, dtype=float) for p in (scene.alice, scene.bob))
    apart_m = float(np.linalg.norm((bob - alice)[:2]))
    if apart_m < 10.0:
        raise InputError(f"scene.uma: Alice and Bob are {apart_m:g} m apart on the map, accepted from 10 m (TR 38.901)")
    delay_s, power, aod, zod, aoa, zoa, k_factor, loss_db = _rays(plan, alice, bob, carrier_hz, derive(seed, "uma"))
    direct_m = float(np.linalg.norm(bob - alice))
    away, arriving = _unit(aod, zod), _unit(aoa, zoa)
    total_m = direct_m + delay_s * SPEED_OF_LIGHT_M_S
    if not plan.line_of_sight:  # the standard counts delays from the first echo
        shortest_m = _length(alice, bob, away, arriving, np.array(CLEARANCE_M))
        total_m += max(float((shortest_m - total_m).max()), 0.0)
    r = np.maximum(_reach(alice, bob, total_m, away, arriving), CLEARANCE_M)
    total_m = _length(alice, bob, away, arriving, r)
    rng = np.random.default_rng(derive(seed, "uma phases"))
    gain = 10 ** ((plan.gain_db - (loss_db if plan.pathloss else 0.0)) / 10)
    share = 1 / (k_factor + 1) if plan.line_of_sight else 1.0
    # the channel includes the loss over a path's length, which is removed here to keep the standard's powers
    spread = 4 * np.pi * carrier_hz / SPEED_OF_LIGHT_M_S
    amplitude = np.sqrt(gain * share * power / power.sum())
    coefficient = amplitude * np.exp(2j * np.pi * rng.uniform(size=power.size)) * spread * total_m
    direct = np.sqrt(gain * (1 - share)) * spread * direct_m
    near, far = bob + r[:, None] * arriving, alice + r[:, None] * away
    return Scatterers(near, np.zeros_like(near), coefficient, far_m=far, direct=complex(direct))


def _length(alice: F64, bob: F64, away: F64, arriving: F64, r: F64) -> F64:
    """Return the lengths (ray,) of the paths over two bodies at distance r from Alice and from Bob."""
    middle = bob - alice + r[..., None] * (arriving - away)
    return np.asarray(2 * r + np.sqrt((middle**2).sum(axis=-1)))


def _reach(alice: F64, bob: F64, total_m: F64, away: F64, arriving: F64) -> F64:
    """Return r (ray,), the inverse of `_length`: by squaring, the smaller root of a quadratic (middle part ≥ 0)."""
    d, spread = bob - alice, arriving - away
    a = 4 - (spread**2).sum(axis=1)
    b = -(4 * total_m + 2 * (spread @ d))
    c = total_m**2 - d @ d
    root = np.sqrt(np.maximum(b**2 - 4 * a * c, 0.0))
    return np.asarray(2 * c / (-b + root))  # also where a is 0: opposite directions


def _unit(azimuth_rad: F64, zenith_rad: F64) -> F64:
    """Return (ray, 3) unit vectors."""
    flat = np.sin(zenith_rad)
    return np.stack([flat * np.cos(azimuth_rad), flat * np.sin(azimuth_rad), np.cos(zenith_rad)], axis=1)


def check_library() -> None:
    """Raise InputError where the library is not installed; does not import it, which takes seconds."""
    if importlib.util.find_spec("sionna") is None:
        raise InputError("scene.uma needs the library sionna-no-rt: pip install 'ris-skg-testbed[uma]'")


def _rays(plan: Uma, alice: F64, bob: F64, carrier_hz: float, seed: int) -> tuple[Any, ...]:
    """Return delay_s, power, azimuth and zenith of departure and of arrival in rad (ray,), K factor, loss in dB."""
    try:
        import torch
        from sionna.phy import config
        from sionna.phy.channel.tr38901 import LSPGenerator, PanelArray, RaysGenerator, UMaScenario
    except ImportError as exc:
        raise InputError(
            f"scene.uma needs the library sionna-no-rt: pip install 'ris-skg-testbed[uma]' ({exc})"
        ) from exc

    config.seed = seed % 2**31
    antenna = PanelArray(
        num_rows_per_panel=1, num_cols_per_panel=1, polarization="single", polarization_type="V",
        antenna_pattern="omni", carrier_frequency=carrier_hz,
    )  # fmt: skip
    scenario = UMaScenario(carrier_hz, "low", antenna, antenna, "downlink", precision="double")
    still = torch.zeros(1, 1, 3, dtype=torch.float64)
    scenario.set_topology(
        ut_loc=torch.tensor(bob)[None, None], bs_loc=torch.tensor(alice)[None, None], ut_orientations=still,
        bs_orientations=still, ut_velocities=still, in_state=torch.tensor([[False]]), los=plan.line_of_sight,
    )  # fmt: skip
    large_scale, small_scale = LSPGenerator(scenario), RaysGenerator(scenario)
    for step in (large_scale, small_scale):
        step.allocate_topology_tensors(1, 1, 1)
        step.topology_updated_callback()
    lsp = large_scale()
    rays = small_scale(lsp)
    n_rays = rays.aoa.shape[-1]

    def each(values: Any) -> F64:
        flat: F64 = values.double().numpy().reshape(-1)
        return flat

    def cluster(values: Any) -> F64:
        return np.repeat(each(values), n_rays)

    power = cluster(rays.powers) / n_rays
    heard = power > 0
    angles = (each(getattr(rays, name)) for name in ("aod", "zod", "aoa", "zoa"))
    columns = [cluster(rays.delays), power, *angles]
    loss_db = float(lsp.pathloss) - 10 * float(torch.log10(lsp.sf))
    return *(column[heard] for column in columns), float(lsp.k_factor), loss_db
