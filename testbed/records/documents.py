"""A run's documents, in the form of bluesky: one start, a descriptor for each stream, events, one stop.

Bulk arrays are kept outside (`rounds.h5`); descriptors name every field of them with dtype, shape, units and source.
Documents are in `run.json` once the run is closed, and in the journal while it is live.
"""

from __future__ import annotations

import platform
import subprocess
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct, field

from testbed import __commit__
from testbed.core.clock import TIME_OF_DAY
from testbed.core.outcomes import AgreeReport, EveReport, KeyReport

ExitStatus = Literal["ok", "failed", "aborted", "killed"]
"""How a run ended. ok: as planned; failed: by an error; aborted: by a person; killed: its process died before it closed
the run."""

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]

_PACKAGES = (
    "ris-skg-testbed",
    "numpy",
    "scipy",
    "pyzmq",
    "msgspec",
    "h5py",
    "pyadi-iio",
    "pylibiio",
    "pyserial",
    "torch",
)


class Replayed(Struct, frozen=True, kw_only=True):
    """What was replayed, in a record that no radio made."""

    source: str
    """Name of the data source that read it."""
    path: str
    cut: str
    """The set of links whose measurements are in this record."""
    description: str
    sha512: str | None = None
    """Of the file; None where the source is a folder."""
    run: str | None = None
    """Identifier of the run; None where the source is no run of this testbed."""
    map: str | None = None
    """Text of the map file."""


class Start(Struct, frozen=True, kw_only=True):
    """The settings of the run. Made by `start`."""

    uid: str
    time: str
    """UTC, ISO 8601."""
    experiment: dict[str, Any]
    """The experiment file as used, defaults filled in."""
    lab: dict[str, Any]
    """The lab file as used, defaults filled in."""
    radios: dict[str, dict[str, Any]] = field(default_factory=dict)
    """node → settings its radio accepted."""
    drivers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """node → what its driver reports of itself: driver, model, serial number, firmware …"""
    seeds: dict[str, int] = field(default_factory=dict)
    subcarrier_hz: list[float] | None = None
    """(subcarrier,) offsets from the carrier, the frequency axis of all CSI; None where CSI has no known axis."""
    versions: dict[str, str] = field(default_factory=dict)
    """Python, platform and packages."""
    git_hash: str | None = None
    """Commit of the checkout this package runs from; None outside one."""
    git_modified: bool | None = None
    """Whether tracked files differed from that commit."""
    replay: Replayed | None = None
    """Where these measurements come from, if this is a replay and not a run."""
    schema: Literal[1] = 1

    def role(self, node: str) -> str:
        """Return a node's role in the lab file; the name itself where the lab file does not have it."""
        place = self.lab.get("node", {}).get(node, {})
        return str(place.get("role", node))

    @property
    def private(self) -> bool:
        """Whether only metrics may be recorded."""
        return self.experiment.get("mode") == "private"

    @property
    def rehearsal(self) -> bool:
        """Whether the run follows from its seed, so that its keys are not secret (`core.config.is_rehearsal`)."""
        return self.lab.get("world") is not None and not self.private


class Field(Struct, frozen=True, kw_only=True):
    """One field of a stream."""

    dtype: str
    shape: list[int | str]
    """Shape of one row; [] for a scalar. A name stands for an axis whose length varies from row to row."""
    units: str
    """'' for a number without a unit."""
    source: str
    """The component that measured or decided the value."""
    external: str | None = None
    """`file:/dataset` that holds the values of all rows."""


class Descriptor(Struct, frozen=True, kw_only=True):
    """The fields of the rows of one stream."""

    stream: str
    time: str
    fields: dict[str, Field]


RUN_BEGUN = "run_begun"
"""The kind of the event that says how a run was started."""
RUN_RESUMED = "run_resumed"
BLOCK_BEGUN = "block_begun"
"""The kind of the event that says which rounds a block uses, before any node is ordered to distil it."""
ROUND_TIMES = "round_times"
"""The kind of the event that has `RoundTimes`, at the end of a run."""
RUN_ENDING = "run_ending"
"""The kind of the event that says how a run ends. It is on the disk before any node is told the end: a run whose record
contains it gets no further round and no further block."""


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened: a node joined or was lost, an error, a health check."""

    seq: int
    time: str
    kind: str
    data: dict[str, Any]


class RoundTimes(Struct, kw_only=True):
    """Where the time of a run's rounds went, added up over trains by the coordinator (`coordinator.round_times`).

    What overlaps counts in each of the parts; the sum of these may thus exceed `total_s`.
    """

    rounds: Count = 0
    """How many rounds have counted."""
    total_s: Seconds = 0.0
    """From round to round, without blocks and pauses."""
    order_s: Seconds = 0.0
    """From the event that led to the orders until they were sent, with the preparation of the surface."""
    air_s: Seconds = 0.0
    """From when the nodes' devices began to work on trains until these were captured."""
    estimate_s: Seconds = 0.0
    """During which the nodes estimated channels."""
    journal_s: Seconds = 0.0
    """During which rounds were recorded."""
    apart_s: Seconds = 0.0
    """From when the first slot was captured to when the last one was, by the coordinator's clock; only of rounds that
    were ordered in steps."""


class Block(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the nodes reported of one distilled block; `agree` and `key` by node."""

    block: int
    rounds: list[int] = field(default_factory=list)
    """The kept rounds that it was distilled from; empty in records of earlier versions."""
    agree: dict[str, AgreeReport] = field(default_factory=dict)
    eve: EveReport | None = None
    key: dict[str, KeyReport] = field(default_factory=dict)

    def merged(self, later: Block) -> Block:
        """Return this block, completed or corrected by a later report."""
        return Block(
            block=self.block,
            rounds=later.rounds or self.rounds,
            agree={**self.agree, **later.agree},
            eve=later.eve or self.eve,
            key={**self.key, **later.key},
        )


class Stop(Struct, frozen=True, kw_only=True):
    """How the run ended."""

    time: str
    exit_status: ExitStatus
    reason: str | None = None
    """The reason, if the status is not ok."""


def now() -> str:
    """Return the time as UTC ISO 8601 with microseconds."""
    return datetime.fromtimestamp(TIME_OF_DAY.now_s(), UTC).isoformat(timespec="microseconds")


def start(
    experiment: dict[str, Any],
    lab: dict[str, Any],
    *,
    radios: dict[str, dict[str, Any]] | None = None,
    drivers: dict[str, dict[str, Any]] | None = None,
    seeds: dict[str, int] | None = None,
    subcarrier_hz: Sequence[float] | np.ndarray | None = None,
) -> Start:
    """Make a start document: identity, time, versions and commit are found here, the rest is given."""
    git_hash, git_modified = _git()
    return Start(
        uid=str(uuid.uuid4()),
        time=now(),
        experiment=experiment,
        lab=lab,
        radios=radios or {},
        drivers=drivers or {},
        seeds=seeds or {},
        subcarrier_hz=None if subcarrier_hz is None else [float(f) for f in subcarrier_hz],
        versions=_versions(),
        git_hash=git_hash,
        git_modified=git_modified,
    )


def stop(exit_status: ExitStatus, reason: str | None = None) -> Stop:
    """Make a stop document with the present time."""
    return Stop(time=now(), exit_status=exit_status, reason=reason)


def encode(document: Any) -> bytes:
    """Encode as JSON; numpy scalars and arrays become numbers and lists, NaN and infinities null."""
    return msgspec.json.encode(document, enc_hook=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot stand in a document")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(file: Path = Path(__file__)) -> tuple[str | None, bool | None]:
    """Return commit and modified flag of the checkout that tracks `file`; else the commit the package was built from.

    A package that is installed inside another project's checkout must not report that project's commit; therefore the
    checkout must track `file`.
    """

    def ask(*args: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(file.parent), *args], capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", file.name) is None:
        return (None if __commit__ is None else __commit__.removeprefix("g")), None
    changes = ask("status", "--porcelain", "--untracked-files=no")
    return ask("rev-parse", "HEAD"), None if changes is None else bool(changes)
