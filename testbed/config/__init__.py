"""The two files a user writes: reading them, checking them, opening the devices that a lab names."""

from testbed.config.check import (
    MIN_TRAINING_ROUNDS,
    check_drivers,
    check_experiment,
    check_lab,
    check_limits,
    check_mode,
    check_run,
    violations,
)
from testbed.config.read import (
    bundled,
    convert,
    find,
    json_schema,
    load_chain,
    load_experiment,
    load_lab,
    load_table,
    state_root,
)

__all__ = [
    "MIN_TRAINING_ROUNDS",
    "bundled",
    "check_drivers",
    "check_experiment",
    "check_lab",
    "check_limits",
    "check_mode",
    "check_run",
    "convert",
    "find",
    "json_schema",
    "load_chain",
    "load_experiment",
    "load_lab",
    "load_table",
    "state_root",
    "violations",
]
