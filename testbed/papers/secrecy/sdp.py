"""Paper D's published method: alternation of semidefinite relaxation with Gaussian randomisation, and eigenvector.

Charnes–Cooper (eqs 27–31) with v = (φ, 1) and Z = µ v v^H, without the condition on the rank:

    max tr(Γ_U Z) + µ(ν_U + 1)  s.t.  tr(Γ_E Z) + µ(ν_E + 1) = 1,  diag(Z) = µ,  Z ⪰ 0,  µ ≥ 0.

With w = (Kf, h f) at one receiver, ν is the last diagonal entry of w* w^T, and Γ is w* w^T with 0 in its place (eqs
22–24 contain misprints).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.core.errors import InputError, TestbedError
from testbed.core.types import F64
from testbed.papers.secrecy import mev
from testbed.papers.secrecy.model import C128, Secrecy
from testbed.surface.design import Design
from testbed.surface.levels import project

SOLVER = "SCS"
"""The solver is named, because cvxpy's own choice is several times slower at N = 25 and does not end at N = 100."""


def design(
    model: Secrecy,
    rng: np.random.Generator,
    rounds: int = 100,
    tolerance_bits: float = 1e-4,
    draws: int = 1000,
    phase_bits: int | None = None,
) -> Design:
    """Alternate, channel by channel, until a round adds less than `tolerance_bits`; it takes seconds a channel.

    Drawn phases that are worse than the present ones are not used, so the rate never falls. With `phase_bits` every
    draw is rounded to a board's levels. The start is the best precoder without a surface. The history has the mean rate
    after each round.
    """
    if rounds < 1 or draws < 1 or not tolerance_bits >= 0:
        raise InputError(f"{rounds} rounds to {tolerance_bits:g} bits, {draws} draws; accepted: 1 or more, 0 or more")
    flat = model.flat()
    program = _Program(model.n_elements)
    phases = np.zeros((len(flat.h_au), model.n_elements))
    courses = []
    for i in range(len(phases)):
        one = flat.take(i)
        held, f = None, mev.design(one).precoders
        course: list[float] = []
        for _ in range(rounds):
            found = _phases(program, one, f[:, 0], rng, draws, phase_bits, held)
            f = one.best_precoder(found)
            held = found
            course.append(float(one.rate(f, found)))
            if len(course) > 1 and course[-1] < course[-2] + tolerance_bits:
                break
        phases[i] = found
        courses.append(course)
    longest = max(map(len, courses))
    history = np.mean([c + c[-1:] * (longest - len(c)) for c in courses], axis=0)
    phases = phases.reshape(*model.batch, -1)
    return Design(phases, model.best_precoder(phases), history.tolist())


def _phases(
    program: _Program,
    model: Secrecy,
    f: C128,
    rng: np.random.Generator,
    draws: int,
    phase_bits: int | None,
    held: F64 | None,
) -> F64:
    """Return the best phases (element,) of `draws` randomisations and the present ones, for one precoder (antenna,)."""
    a_u, a_e, k_u, k_e = model.cascades()
    unit = f / np.sqrt(model.power_w)
    heard_u, heard_e = (np.append(k @ unit, a @ unit) for a, k in ((a_u, k_u), (a_e, k_e)))
    v = program.solve(heard_u, heard_e)
    values, vectors = np.linalg.eigh(v)
    noise = rng.standard_normal((draws, len(v))) + 1j * rng.standard_normal((draws, len(v)))
    drawn = (noise * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    # the principal eigenvector itself is among them, because it is the optimum where the relaxation is tight
    drawn = np.vstack([drawn, vectors[:, -1]])
    phases = np.angle(drawn[:, :-1] / drawn[:, -1:])
    if phase_bits is not None:
        phases = project(phases, phase_bits)
    if held is not None:
        phases = np.vstack([phases, held])
    with_one = np.hstack([np.exp(1j * phases), np.ones((len(phases), 1))])
    ratio = (1 + np.abs(with_one @ heard_u) ** 2) / (1 + np.abs(with_one @ heard_e) ** 2)
    return np.asarray(phases[ratio.argmax()] % (2 * np.pi))


class _Program:
    """The problem, built once: only its matrices change."""

    def __init__(self, n_elements: int) -> None:
        try:
            import cvxpy as cp
        except ImportError as exc:
            raise InputError(f"the SDP route needs cvxpy: pip install 'ris-skg-testbed[sdp]' ({exc})") from exc
        n = n_elements + 1
        self._z, self._mu = cp.Variable((n, n), hermitian=True), cp.Variable(nonneg=True)
        self._gamma = [cp.Parameter((n, n), hermitian=True) for _ in range(2)]
        self._nu = [cp.Parameter(nonneg=True) for _ in range(2)]
        top, bottom = (
            cp.real(cp.trace(g @ self._z)) + (nu + 1) * self._mu for g, nu in zip(self._gamma, self._nu, strict=True)
        )
        constraints = [bottom == 1, cp.real(cp.diag(self._z)) == self._mu, self._z >> 0]
        self._problem: Any = cp.Problem(cp.Maximize(top), constraints)

    def solve(self, heard_u: C128, heard_e: C128) -> C128:
        """Return V = Z/µ (n, n) for the channels of (elements, direct path) (n,) at each receiver."""
        import cvxpy as cp

        for heard, gamma, nu in zip((heard_u, heard_e), self._gamma, self._nu, strict=True):
            matrix = np.outer(heard.conj(), heard)
            nu.value = float(matrix[-1, -1].real)
            matrix[-1, -1] = 0.0
            gamma.value = (matrix + matrix.conj().T) / 2
        try:
            self._problem.solve(solver=SOLVER, warm_start=False)
        except cp.error.SolverError as exc:
            raise TestbedError(f"{SOLVER} failed on the relaxation: {str(exc).splitlines()[0]}") from exc
        z, mu = self._z.value, self._mu.value
        if z is None or mu is None or not float(mu) > 0:
            raise TestbedError(f"{SOLVER} found no answer to the relaxation: {self._problem.status}")
        v = z / float(mu)
        return np.asarray((v + v.conj().T) / 2)
