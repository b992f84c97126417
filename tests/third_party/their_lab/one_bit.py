"""How often one bit of two correlated Gaussian values differs: arccos(ρ)/π (Sheppard 1899)."""

import numpy as np

PAPER = "Sheppard 1899"


def run(study):
    n = 20_000 if study.quick else 1_000_000
    rho = np.array([0.0, 0.5, 0.8, 0.9, 0.95, 0.99])
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(2, n))
    measured = np.array([np.mean((x > 0) != (r * x + np.sqrt(1 - r**2) * z > 0)) for r in rho])
    theory = np.arccos(rho) / np.pi
    study.parameters = {"values": n, "correlations": rho}
    study.figure(
        "disagreement",
        "One bit at either end",
        rho,
        "correlation",
        "share of bits that differ",
        {"measured": measured, "arccos(ρ)/π": theory},
    )
    worst = float(np.abs(measured - theory).max())
    study.claim("the disagreement is arccos(ρ)/π", None, worst, worst < 5 * 0.5 / np.sqrt(n), must_hold=True)
