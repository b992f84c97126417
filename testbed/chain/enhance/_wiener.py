"""The linear map of least mean squared error, with the ridge that is best on the validation rounds."""

from __future__ import annotations

import numpy as np

from testbed.chain.enhance._features import C128
from testbed.chain.enhance._trained import Arrays, Split

RIDGES = np.logspace(-6, 2, 25)
"""Ridges to choose from, relative to the mean variance of a subcarrier; the best on the validation rounds is taken."""


def wiener(a: C128, b: C128, split: Split) -> tuple[Arrays, dict[str, float]]:
    """Return the map of complex vectors (probe, element), the ridge and its validation error."""
    mean_a, mean_b = a[split.train].mean(axis=0), b[split.train].mean(axis=0)
    x, y = a[split.train] - mean_a, b[split.train] - mean_b
    power, basis = np.linalg.eigh(x.T @ x.conj() / len(x))  # C_AA[i, j] = E a_i a_j*
    power = np.maximum(power, 0.0)
    cross = (y.T @ x.conj() / len(x)) @ basis
    test = (a[split.validate] - mean_a) @ basis.conj()
    wanted = b[split.validate] - mean_b
    unit = power.mean()
    errors = [float((np.abs((test / (power + r * unit)) @ cross.T - wanted) ** 2).mean()) for r in RIDGES]
    ridge = float(RIDGES[int(np.argmin(errors))])
    matrix = (cross / (power + ridge * unit)) @ basis.conj().T
    history = {"ridge": ridge, "validation_mse": min(errors)}
    return {"matrix": matrix, "mean_alice": mean_a, "mean_bob": mean_b}, history


def predict(weights: Arrays, a: C128) -> C128:
    """Return Bob's complex vectors (probe, element) as the map predicts them."""
    return np.asarray((a - weights["mean_alice"]) @ weights["matrix"].T + weights["mean_bob"])
