"""Least requirements of a node for a run, whatever the coordinator asks for: the lab table `[node.NAME.floors]`."""

from __future__ import annotations

from testbed.core.config import Accounting, Floors

_PRIVATE = {
    "epsilon_log2": 32, "sacrifice_fraction": 0.02, "assumed_eve_correlation": 0.2,
    "assumed_eve_distance_wavelengths": 1.0, "assumed_eve_antennas": 1,
}  # fmt: skip
"""Floors of private mode where the table states none. They do not hold in experiment mode, whose keys are not used."""
_AT_MOST = ("assumed_eve_distance_wavelengths",)
"""Floors that are upper limits, because a nearer Eve is stronger; all others are lower limits."""


def refusal(floors: Floors, accounting: Accounting, experiment_mode: bool) -> str | None:
    """Return in one line why a node does not take part in a run with this accounting; None where it does."""
    mode = "experiment" if experiment_mode else "private"
    if mode not in floors.modes:
        return f"{mode} mode is asked for, this node's floors accept: {', '.join(floors.modes)}"
    for name, usual in _PRIVATE.items():
        own, asked = getattr(floors, name), getattr(accounting, name)
        floor = usual if own is None and not experiment_mode else own
        if floor is None or asked is None:  # without a value the length rule uses a default
            continue
        if asked > floor if name in _AT_MOST else asked < floor:
            bound = "up to" if name in _AT_MOST else "from"
            return f"accounting.{name} = {asked:g} is asked for, this node's floors accept it {bound} {floor:g}"
    return None
