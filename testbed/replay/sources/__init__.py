"""Measured channels for the key chain: one file a source, in this folder or installed.

A source is a module (or an object) with `ACCEPTS` (one line: which files it reads), `matches(path) -> bool` and
`load(path) -> Recording`; a third party's is found by its entry point under `testbed.sources`. `matches` is called with
every path that is to be replayed: it reads no more of a file than it needs, raises no error, and returns False for the
files of other sources. `load` raises InputError, in one line that begins with the path, for a file that it cannot read.
Alice's and Bob's series have the same rounds, ascending, and the same number of subcarriers; missing values are NaN.

>>> from pathlib import Path
>>> from testbed.core import registry
>>> registry.find("sources", "rfm12b_rssi").matches(Path("nowhere"))
False

No radio is used here; loaded channels have the same form as those that a run measures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core import registry
from testbed.core.config import Accounting, ChainPlan, Training
from testbed.core.errors import InputError
from testbed.core.gate import printable
from testbed.core.types import F64, I64, CsiSeries
from testbed.records.recorded import RecordedRun
from testbed.replay import arrays

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EveLinks:
    """The measurements of one Eve (one receiver at one position) in the rounds of Alice and Bob."""

    from_alice: CsiSeries | None
    """Her channel from Alice; None where that was not measured."""
    from_bob: CsiSeries | None
    every: tuple[CsiSeries | None, CsiSeries | None] | None = None
    """The same two links in every round that she measured, rejected rounds and training included, by the rounds' own
    numbers: in a run she reports these, too. None: she reports the series above."""
    told_over: NDArray[np.bool_] | None = None
    """(probe,) probes over which her correlations are computed; None: all."""
    measured: bool = True
    """Whether it was measured; False: it was computed from public knowledge, such as a codebook."""


@dataclass(frozen=True, slots=True)
class Surface:
    """The surface's state at each probe of a cut, as far as it is public."""

    states: I64
    """(probe,) number of the state: equal numbers are equal patterns."""
    elements: int
    phase_bits: int
    levels: NDArray[np.uint8] | None = None
    """(probe, element) where the patterns are public; None where they are secret."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A set of links measured together: one replay distils a key from it."""

    name: str
    alice: CsiSeries
    """Channel from Bob as Alice measured it."""
    bob: CsiSeries
    groups: I64
    """(probe,) number of the group to which a probe belongs, such as a receiver position or a row of captures."""
    per_group: bool
    """Whether the correlations of a cut are medians over the groups; False: they are computed over all probes."""
    chain: ChainPlan
    """Recommended stages, used where no experiment is given."""
    accounting: Accounting
    """Recommended block length and security parameter; `block_rounds` counts probes of this cut."""
    training: Training = field(default_factory=Training)
    """Training plan of the chain's enhancer, used where no experiment is given."""
    eves: dict[str, EveLinks] = field(default_factory=dict)
    """By label ("15deg"); empty where no Eve was measured."""
    assumed: tuple[str, ...] = ()
    """Labels of the Eves against whom the key's length is decided; for others, the key bits that they would leave are
    reported."""
    assumption: str = ""
    """The assumption on Eve in words, for the report."""
    key_probes: I64 | None = None
    """(n,) probes from which keys are made, in this order; None: all, in the order of the rounds. Correlations are
    computed over all probes."""
    key_note: str = ""
    """The reason for the choice of these probes, in words."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Rounds that were probed but are not among the probes, by reason."""
    seed: int = 1
    """Seed of every random choice of the chain, used where no experiment is given."""
    surface: Surface | None = None
    """The surface's states; None where no surface took part."""
    least_key_bits: int = 1
    """Least length of a key; a shorter one counts as none."""
    interval_s: float | None = None
    """Time from one pair of probes to the next; None where the source has no meaningful timing, so that no rates can be
    given."""
    time_s: F64 | None = None
    """(probe,) when each probe was measured, for the record of the replay; None: at equal intervals."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A set of measured or recorded channels, with the caveats that every result of it must carry."""

    name: str
    description: str
    caveats: tuple[str, ...]
    """What a reader must know before quoting a figure; shown with every result."""
    cuts: dict[str, Cut]
    main: str
    """Name of the cut that the summary describes."""
    run: RecordedRun | None = None
    """The run that was read, if the source is one."""


def load(path: Path) -> Recording:
    """Read a measured data set or a recorded run; raises InputError naming the file and what is accepted."""
    sources: dict[str, Any] = registry.usable("sources")
    for problem in registry.problems(["sources"]):
        log.warning("%s", problem)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; accepted: measurements, or the folder of a recorded run")
    accepted = "; ".join(f"{name}: {module.ACCEPTS}" for name, module in sources.items())
    for name, module in sources.items():
        if _ask(name, path, module.matches):
            return checked(_ask(name, path, module.load), f"{path}: source {name!r}")
    if suggestion := arrays.suggest(path):
        raise InputError(f"{suggestion}; without a map: {accepted}")
    raise InputError(f"{path}: not a recording this project can read; accepted: {accepted}")


def _ask(name: str, path: Path, question: Callable[[Path], Any]) -> Any:
    try:
        return question(path)
    except (InputError, MemoryError):
        raise
    except Exception as exc:  # an error in the source, or a file that it does not handle: one line in any case
        what = printable(str(exc) or type(exc).__name__)
        raise InputError(f"{path}: source {name!r} failed: {type(exc).__name__}: {what}") from exc


# ---------------------------------------------------------------- what a source may return

MAX_VALUES = 1 << 28
"""Largest number of values of one series: 2 GiB of CSI."""


def checked(recording: Any, where: str) -> Recording:
    """Return a source's result if the chain can use it; raises InputError that says what is wrong with it."""
    if not isinstance(recording, Recording):
        raise InputError(f"{where}: returned a {type(recording).__name__}; accepted: a Recording")
    if recording.main not in recording.cuts:
        raise InputError(
            f"{where}: main cut {recording.main!r}; accepted: one of {', '.join(recording.cuts) or 'none'}"
        )
    for name, cut in recording.cuts.items():
        _check_cut(cut, f"{where}: cut {name!r}")
    return recording


def _check_cut(cut: Cut, where: str) -> None:
    _check_series(cut.alice, f"{where}: Alice")
    _check_series(cut.bob, f"{where}: Bob")
    n, rx, tx, _ = cut.alice.h.shape
    if cut.bob.h.shape != (n, tx, rx, cut.alice.h.shape[3]):
        raise InputError(
            f"{where}: Alice (probe, rx, tx, subcarrier) = {cut.alice.h.shape}, Bob {cut.bob.h.shape}; accepted: as "
            "many probes and subcarriers, antennas the other way round"
        )
    both = np.isfinite(cut.alice.h).any(axis=(1, 2, 3)) & np.isfinite(cut.bob.h).any(axis=(1, 2, 3))
    if both.sum() < 2:
        raise InputError(f"{where}: {both.sum()} of {n} probes have CSI at both ends; accepted: from 2")
    for label, eve in cut.eves.items():
        for end, series in (("Alice", eve.from_alice), ("Bob", eve.from_bob)):
            if series is not None:
                _check_series(series, f"{where}: Eve {label!r} hearing {end}")
                _same(f"{where}: Eve {label!r} hearing {end}: probes", len(series.h), n)
                _same(f"{where}: Eve {label!r} hearing {end}: subcarriers", series.h.shape[3], cut.alice.h.shape[3])
        if eve.told_over is not None:
            _same(f"{where}: Eve {label!r}: told_over", eve.told_over.shape, (n,))
    unknown = [label for label in cut.assumed if label not in cut.eves]
    if unknown:
        raise InputError(f"{where}: assumed Eve {unknown[0]!r}; accepted: {', '.join(cut.eves) or 'none'}")
    _same(f"{where}: groups", cut.groups.shape, (n,))
    if cut.time_s is not None:
        _same(f"{where}: time_s", cut.time_s.shape, (n,))
    _check_key_probes(cut.key_probes, n, where)
    if cut.interval_s is not None and not 0 < cut.interval_s < np.inf:
        raise InputError(f"{where}: interval_s = {cut.interval_s}; accepted: above 0, or None")


def _check_key_probes(probes: Any, n: int, where: str) -> None:
    if probes is None:
        return
    probes = np.asarray(probes)
    if probes.dtype.kind not in "iu" or probes.ndim != 1 or not probes.size:
        raise InputError(f"{where}: key_probes {probes.dtype} {probes.shape}; accepted: whole numbers, at least one")
    if probes.min() < 0 or probes.max() >= n or np.unique(probes).size < probes.size:
        raise InputError(f"{where}: key_probes {probes.min()} to {probes.max()}; accepted: 0 to {n - 1}, each once")


def _check_series(series: CsiSeries, where: str) -> None:
    h = series.h
    if not isinstance(h, np.ndarray) or h.ndim != 4 or h.dtype.kind != "c" or 0 in h.shape:
        told = f"{h.dtype} {h.shape}" if isinstance(h, np.ndarray) else type(h).__name__
        raise InputError(f"{where}: {told}; accepted: complex (probe, rx, tx, subcarrier), at least one of each")
    if h.size > MAX_VALUES:
        raise InputError(f"{where}: {h.size} values; accepted: up to {MAX_VALUES}")
    if np.isinf(h).any():
        raise InputError(f"{where}: infinite values; accepted: finite ones, NaN for what is missing")
    _same(f"{where}: rounds", series.rounds.shape, (len(h),))
    if (np.diff(series.rounds) <= 0).any():
        raise InputError(f"{where}: rounds do not ascend; accepted: each once, in order")
    _same(f"{where}: subcarrier_hz", series.subcarrier_hz.shape, (h.shape[3],))
    if not np.isfinite(series.subcarrier_hz).all():
        raise InputError(f"{where}: subcarrier_hz is not finite")


def _same(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise InputError(f"{what}: {found}; accepted: {wanted}")
