"""Paper C solved jointly: L-BFGS over precoders and phases together, from several starts, followed by the alternation.

Alternation converges slowly where the best precoders and phases depend on each other, and it stays near its start: from
identity precoders it ends far below the optimum. An ascent over all variables together, whose gradient has linear cost,
avoids both. Precoders stay at full power during this ascent; algorithm 1, which may use less power, comes last. The
result is never below any of its starts.
"""

from __future__ import annotations

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.papers.kit.ascent import maximise
from testbed.papers.multicell import alternating
from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell.model import MultiCell
from testbed.papers.multicell.rates import C128
from testbed.surface.design import Design


def design(
    model: MultiCell, rng: np.random.Generator, n_starts: int = 4, iterations: int = 300, polish: int = 5
) -> Design:
    """Return the best of `n_starts` random starts for each scene. History: the mean over all starts."""
    if n_starts < 1:
        raise InputError(f"{n_starts} starts, accepted: 1 or more")
    starts = (n_starts, *model.batch)
    shape = (model.n_cells, model.n_chains, model.n_antennas)
    x = np.concatenate(
        [
            rng.standard_normal((*starts, 2 * int(np.prod(shape)))),
            rng.uniform(0, 2 * np.pi, (*starts, model.n_phases)),
        ],
        axis=-1,
    )
    x, values, history = maximise(lambda z: _value(model, z, shape), x, iterations)
    best = np.argmax(values, axis=0)
    x = np.take_along_axis(x, best[None, ..., None], axis=0)[0]
    precoders, _, phases_rad = _split(model, x, shape)
    polished = alternating.design(model, np.mod(phases_rad, 2 * np.pi), precoders, polish)
    return Design(polished.phases_rad, polished.precoders, [*history, *polished.history[1:]])


def random_start(model: MultiCell, rng: np.random.Generator) -> tuple[C128, F64]:
    """Return precoders and phases as a start of the alternation."""
    return cells_precoders.random(model, rng), rng.uniform(0, 2 * np.pi, (*model.batch, model.n_phases))


def _split(model: MultiCell, x: F64, shape: tuple[int, int, int]) -> tuple[C128, F64, F64]:
    """Return precoders of full power, the norms before scaling (…, cell, 1, 1), and phases."""
    size = int(np.prod(shape))
    q = (x[..., :size] + 1j * x[..., size : 2 * size]).reshape(*x.shape[:-1], *shape)
    norm = np.linalg.norm(q, axis=(-2, -1), keepdims=True)
    return q * (np.sqrt(model.power_w) / norm), norm, x[..., 2 * size :]


def _value(model: MultiCell, x: F64, shape: tuple[int, int, int]) -> tuple[F64, F64]:
    p, norm, phases_rad = _split(model, x, shape)
    found, by_phase = model.slopes(p, phases_rad)
    g = found.precoders
    radial = np.real((p.conj() * g).sum(axis=(-2, -1), keepdims=True)) / model.power_w
    g = 2 * (g - radial * p) * (np.sqrt(model.power_w) / norm)
    flat = g.reshape(*x.shape[:-1], -1)
    return np.asarray(found.bits), np.concatenate([flat.real, flat.imag, by_phase], axis=-1)
