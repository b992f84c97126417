"""Measured channels the key chain can be replayed over: one file a source, found by scanning this folder.

A source module has `ACCEPTS` (one line: which files it reads), `matches(path) -> bool` and `load(path) -> Recording`.
Nothing here touches a radio; what is loaded has the same shape as what a run measures.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from testbed.core.config import Accounting, ChainPlan, Training
from testbed.core.errors import InputError
from testbed.core.types import I64, CsiSeries


@dataclass(frozen=True, slots=True)
class EveLinks:
    """What one Eve (one receiver at one place) measured, on the rounds of Alice and Bob."""

    from_alice: CsiSeries | None
    """Her channel from Alice; None where that was not measured."""
    from_bob: CsiSeries | None
    told_over: NDArray[np.bool_] | None = None
    """(probe,) probes her correlations are told over; None: all."""
    measured: bool = True
    """False: computed from what everybody knows (a codebook); guarded against, but no measured correlation."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One set of links measured together: what one replay distils a key from."""

    name: str
    alice: CsiSeries
    """Channel from Bob as Alice measured it."""
    bob: CsiSeries
    groups: I64
    """(probe,) number of the measured stretch (receiver position, capture row) that a probe belongs to."""
    per_group: bool
    """The headline correlations are medians over the groups; False: they are pooled over all probes."""
    chain: ChainPlan
    """Recommended stages, used where no experiment is given."""
    accounting: Accounting
    """Recommended block length and security parameter; `block_rounds` counts probes of this cut."""
    training: Training = field(default_factory=Training)
    """Probes from which the chain's enhancer learns, where no experiment is given."""
    eves: dict[str, EveLinks] = field(default_factory=dict)
    """By label ("15deg"); empty where no Eve was measured."""
    assumed: tuple[str, ...] = ()
    """Labels of the Eves the headline key is safe against; the others show what a nearer Eve would leave of it."""
    assumption: str = ""
    """The same in words, for the report."""
    key_probes: I64 | None = None
    """(n,) probes that feed the key, in this order; None: all, as they stand. Correlations always use all."""
    key_note: str = ""
    """Why these."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Rounds that were probed but are not among the probes, by reason."""
    seed: int = 1
    """For every random choice of the chain, where no experiment is given."""
    interval_s: float | None = None
    """From probe pair to probe pair; None where the source has no meaningful timing, so no rates can be given."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A measured or recorded set of channels and what must be said about it."""

    name: str
    description: str
    caveats: tuple[str, ...]
    """What a reader must know before quoting a figure; shown with every result."""
    cuts: dict[str, Cut]
    main: str
    """Name of the cut that the summary speaks about."""


def discover() -> dict[str, ModuleType]:
    """Return the source modules by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def load(path: Path) -> Recording:
    """Read a measured data set or a recorded run; raises InputError naming the file and what is accepted."""
    sources = discover()
    accepted = "; ".join(f"{name}: {module.ACCEPTS}" for name, module in sources.items())
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; accepted: {accepted}")
    for module in sources.values():
        if module.matches(path):
            recording: Recording = module.load(path)
            return recording
    raise InputError(f"{path}: not a recording this project can read; accepted: {accepted}")
