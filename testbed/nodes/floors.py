"""Least requirements of a node for a run, whatever the coordinator asks for: the lab table `[node.NAME.floors]`."""

from __future__ import annotations

from testbed.chain.amplification import assumed_correlation
from testbed.core.config import Accounting, Floors

_PRIVATE = {"epsilon_log2": 32, "sacrifice_fraction": 0.02, "assumed_eve_antennas": 1}
"""Floors of private mode where the table states none. They do not hold in experiment mode, whose keys are not used."""
_CORRELATION, _DISTANCE = 0.2, 1.0
"""The same for the assumed Eve, in either quantity. A nearer Eve is stronger: the distance is an upper limit."""


def refusal(floors: Floors, accounting: Accounting, experiment_mode: bool) -> str | None:
    """Return in one line why a node does not take part in a run with this accounting; None where it does."""
    mode = "experiment" if experiment_mode else "private"
    if mode not in floors.modes:
        return f"{mode} mode is asked for, this node's floors accept: {', '.join(floors.modes)}"
    for name, usual in _PRIVATE.items():
        own, asked = getattr(floors, name), getattr(accounting, name)
        floor = usual if own is None and not experiment_mode else own
        if floor is not None and asked < floor:
            return f"accounting.{name} = {asked:g} is asked for, this node's floors accept it from {floor:g}"
    return _weak_eve(floors, accounting, experiment_mode)


def _weak_eve(floors: Floors, accounting: Accounting, experiment_mode: bool) -> str | None:
    """Return in one line why the assumed Eve is weaker than this node accepts; None where she is not.

    A floor also holds where the experiment states the other of the two quantities, or none, so that the length rule's
    own default applies: each distance has a correlation.
    """
    asked = accounting.assumed_eve_distance_wavelengths
    correlation, distance = floors.assumed_eve_correlation, floors.assumed_eve_distance_wavelengths
    if correlation is None and distance is None and not experiment_mode:
        correlation, distance = _CORRELATION, _DISTANCE
    if asked is not None and distance is not None:
        if asked <= distance:
            return None
        what = f"accounting.assumed_eve_distance_wavelengths = {asked:g}"
        return f"{what} is asked for, this node's floors accept it up to {distance:g}"
    if correlation is None and distance is not None:
        correlation = assumed_correlation(Accounting(assumed_eve_distance_wavelengths=distance))
    if correlation is None or (own := assumed_correlation(accounting)) >= correlation:
        return None
    if asked is None:
        what = f"accounting.assumed_eve_correlation = {own:g}"
        return f"{what} is asked for, this node's floors accept it from {correlation:.3g}"
    what = f"accounting.assumed_eve_distance_wavelengths = {asked:g}, a correlation of {own:.3g},"
    return f"{what} is asked for, this node's floors accept correlations from {correlation:.3g}"
