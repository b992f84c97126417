"""What a node demands of a run, whatever the coordinator asks for: its own lab table, `[node.NAME.floors]`."""

from __future__ import annotations

from testbed.core.config import Accounting, Floors

_PRIVATE = {"epsilon_log2": 32, "assumed_eve_error_rate": 0.25, "sacrifice_fraction": 0.02}
"""What holds in private mode where the table says nothing: keys of experiment mode are for science, not for use."""


def refusal(floors: Floors, accounting: Accounting, experiment_mode: bool) -> str | None:
    """Return why a node does not take part in a run with this accounting, in one line; None where it does."""
    mode = "experiment" if experiment_mode else "private"
    if mode not in floors.modes:
        return f"{mode} mode is asked for, this node's floors accept: {', '.join(floors.modes)}"
    least = {name: getattr(floors, name) for name in _PRIVATE}
    if not experiment_mode:
        least = {name: _PRIVATE[name] if value is None else value for name, value in least.items()}
    for name, floor in least.items():
        asked, at_most = getattr(accounting, name), name == "assumed_eve_error_rate"
        if floor is not None and (asked > floor if at_most else asked < floor):
            bound = "up to" if at_most else "from"
            return f"accounting.{name} = {asked:g} is asked for, this node's floors accept it {bound} {floor:g}"
    return None
