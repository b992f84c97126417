"""Health checks of the measurements: do they allow a key, and does the hardware work correctly?

Each check is a file of `assess/checks`, or installed under the entry point `testbed.health`. Each of the testbed's own
checks found a fault in a real data set. Values are (probe, dimension) in dB, NaN where an end has none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from testbed.core import registry
from testbed.core.stages import Verdict
from testbed.core.types import F64


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements that the checks judge: one row per probe, the same probes at all ends."""

    alice_db: F64
    """(probe, dimension) levels at Alice; NaN where there is none."""
    bob_db: F64
    eve_db: Mapping[str, F64]
    """Eve's levels by transmitter ("alice", "bob"); only links of which she has at least one value."""
    snr_db: tuple[F64, F64] | None
    """(probe,) at Alice and at Bob; None where it was not measured."""
    pairs: int = 1
    """Antenna pairs: dimension = pair · n_subcarriers + subcarrier."""


class HealthCheck(ABC):
    """A check of the measurements, whose result is a sentence.

    It is pure and deterministic, and does not modify arrays. It never raises: without probes, with only NaN or with
    constant values, it returns a verdict or none. A verdict's `check` is a name in lower case with underscores, which
    no other verdict of the same run has; `detail` is a full sentence with its figures; `values` are finite or NaN.

    >>> class FewProbes(HealthCheck):
    ...     def verdicts(self, m):
    ...         n = len(m.alice_db)
    ...         return [Verdict("few_probes", n >= 100, f"{n} probes were measured.", {"probes": float(n)})]
    >>> FewProbes().verdicts(Measured(np.zeros((7, 2)), np.zeros((7, 2)), {}, None))[0].detail
    '7 probes were measured.'
    """

    order: ClassVar[int] = 1000
    """Place among the checks, ascending; checks with equal ones are sorted by name. The testbed's own use 10, 20, …"""

    @abstractmethod
    def verdicts(self, m: Measured) -> list[Verdict]:
        """Return the outcomes: one, several (such as one for each end), or none where there is nothing to judge."""


def check(
    alice_db: F64,
    bob_db: F64,
    eve_db: Mapping[str, F64] | None,
    snr_db: tuple[F64, F64] | None = None,
    pairs: int = 1,
) -> list[Verdict]:
    """Return all verdicts. `eve_db` maps each transmitter ("alice", "bob") to Eve's values of it; None, empty: no Eve.

    `snr_db`: (probe,) at Alice and at Bob, where it was measured. `pairs`: antenna pairs of Alice and Bob. A check that
    raises, or cannot be used, gives a failed verdict with the error, and does not affect the others.
    """
    eve = {name: values for name, values in (eve_db or {}).items() if np.isfinite(values).any()}
    measured = Measured(alice_db, bob_db, eve, snr_db, pairs)
    checks = sorted(registry.usable("health").items(), key=lambda item: (item[1].order, item[0]))
    out = [verdict for name, cls in checks for verdict in _asked(name, cls, measured)]
    return out + [Verdict(p.name, False, f"{p}.") for p in registry.problems(["health"])]


def _asked(name: str, cls: type[HealthCheck], measured: Measured) -> list[Verdict]:
    try:
        return cls().verdicts(measured)
    except Exception as exc:  # for example of a third party's check, on data that it does not expect
        return [Verdict(name, False, f"This health check could not be computed: {type(exc).__name__}: {exc}.")]
