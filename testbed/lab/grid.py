"""A sweep's grid: the file that a user writes, the points that it spans, and the settings at each of them.

GRID.toml names an experiment and a lab, or a recording to be replayed, and lists values of their keys:

    schema = 1
    experiment = "static_room"
    repetitions = 3
    [grid]
    rounds = [400, 800]
    chain.quantize_options.bits = [1, 2, 3]
    lab.node.alice.tx_gain_db = [-12.0, -6.0]

The keys are those of the experiment file (for a replay, of the chain file); keys that begin with `lab.` are those of
the lab file. If a value is a table, it replaces all keys that it contains; so keys that belong together can vary
together.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from testbed import config
from testbed.config import toml_text
from testbed.config.check import check_chain, check_experiment, check_lab
from testbed.core.config import ChainFile, Count, Experiment, Lab, Table, Training
from testbed.core.errors import InputError
from testbed.lab.run import check_world

MAX_JOBS = 100_000
_MAX_SEED = 2**62


class GridFile(Table):
    """GRID.toml"""

    schema: Literal[1]
    grid: dict[str, Any]
    """Key of the experiment or, after `lab.`, of the lab → list of its values. All combinations are tried."""
    title: str = ""
    experiment: str | None = None
    """Experiment to be run at every point: a path relative to this file, or the name of a bundled one."""
    lab: str = "sim"
    replay: str | None = None
    """The recording that every point replays, as a path relative to this file; in place of an experiment."""
    map: str | None = None
    """Map file of the recording."""
    chain: str | None = None
    """Chain file whose keys the grid changes."""
    cut: str | None = None
    """Cut of the recording."""
    repetitions: Count = 1
    """Number of runs at each point, each with another seed."""
    seed: Annotated[int, Meta(ge=0, le=_MAX_SEED)] | None = None
    """Seed of the first repetition; each further one has the next number. Default: the experiment's seed, or 1."""
    order: Literal["grid", "repetitions"] = "grid"
    """grid: every point once, then all again; repetitions: all repetitions of a point, then the next point."""


@dataclass(frozen=True, slots=True)
class Job:
    """One point of the grid with one seed: everything that is needed to run it, as plain values."""

    point: int
    repetition: int
    seed: int
    values: dict[str, Any]
    """Key of the grid → value at this point."""
    plan: dict[str, Any]
    """The experiment, or the chain of a replay, at this point and with this seed."""
    lab: dict[str, Any] | None
    """The lab at this point where the grid changes it."""
    digest: str
    """A digest that is equal for jobs that would give the same result."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid, read and checked."""

    path: Path
    file: GridFile
    parameters: dict[str, list[Any]]
    """Key → its values, in the file's order."""
    jobs: list[Job]
    """The jobs, in the order in which they are run."""
    lab: str
    """Path or name of the lab file as it was before the grid changes it."""
    source: Path | None
    """The recording; None where experiments are run."""
    map_file: Path | None


def load(path: Path) -> Grid:
    """Read a grid and check every point of it; raises InputError, in one line, before anything is started."""
    file = config.load_table(path, GridFile)
    if (file.experiment is None) == (file.replay is None):
        raise InputError(f"{path}: keys 'experiment' and 'replay': accepted: exactly one of them")
    for key in ("map", "chain", "cut") if file.replay is None else ():
        if getattr(file, key) is not None:
            raise InputError(f"{path}: key {key!r}: accepted only with 'replay'")
    parameters = dict(_parameters(file.grid, str(path), ""))
    if not parameters:
        raise InputError(f"{path}: table [grid]: empty; accepted: keys with a list of values")
    n = math.prod(map(len, parameters.values())) * file.repetitions
    if n > MAX_JOBS:
        raise InputError(f"{path}: {n} runs; accepted: up to {MAX_JOBS}")
    source = None if file.replay is None else path.parent / file.replay
    map_file = None if file.map is None else path.parent / file.map
    for needed in (source, map_file):
        if needed is not None and not needed.exists():
            raise InputError(f"{path}: {needed}: no such file or folder")
    lab = _beside(path, file.lab)
    return Grid(path, file, parameters, _jobs(path, file, parameters, lab, source, map_file), lab, source, map_file)


def _parameters(table: Mapping[str, Any], source: str, above: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield dotted key and values of every list in the grid's tables."""
    for key, value in table.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            yield from _parameters(value, source, f"{name}.")
        elif not isinstance(value, list) or not value:
            raise InputError(f"{source}: table [grid]: key {name!r}: {value!r}; accepted: a list of values")
        elif name in ("seed", "schema"):
            raise InputError(f"{source}: table [grid]: key {name!r} cannot vary; accepted for seeds: 'repetitions'")
        else:
            yield name, value


def _beside(path: Path, name: str) -> str:
    """Return a file's path relative to the grid's folder where there is one, else the name as it is (bundled)."""
    beside = path.parent / name
    return str(beside) if beside.is_file() else name


def _jobs(
    path: Path,
    file: GridFile,
    parameters: Mapping[str, list[Any]],
    lab: str,
    source: Path | None,
    map_file: Path | None,
) -> list[Job]:
    plan, place = _base(path, file), None if file.replay is not None else plain(config.load_lab(lab))
    first = file.seed if file.seed is not None else plan.get("seed", 1)
    made_of = [str(source), *(_stamp(p) for p in (source, map_file) if p is not None), file.cut]
    points = []
    for number, chosen in enumerate(itertools.product(*parameters.values())):
        values = dict(zip(parameters, chosen, strict=True))
        where = f"{path}: at {told(values)}"
        here, there = _set(plan, values, where, False), _set(place, values, where, True)
        _check(here, there, where)
        points.append((number, values, here, there if there != place else None))

    def job(point: tuple[int, dict[str, Any], dict[str, Any], dict[str, Any] | None], repetition: int) -> Job:
        number, values, here, there = point
        here = here | {"seed": first + repetition}
        digest = hashlib.sha256(msgspec.json.encode([here, there or place, made_of], order="sorted")).hexdigest()
        return Job(number, repetition, first + repetition, values, here, there, digest)

    if first + file.repetitions - 1 > _MAX_SEED:
        raise InputError(f"{path}: key 'seed': {first}; accepted: up to 2^62 less the repetitions")
    if file.order == "repetitions":
        return [job(point, r) for point in points for r in range(file.repetitions)]
    return [job(point, r) for r in range(file.repetitions) for point in points]


def _base(path: Path, file: GridFile) -> dict[str, Any]:
    if file.experiment is not None:
        return plain(config.load_experiment(_beside(path, file.experiment)))
    return {"schema": 1} if file.chain is None else plain(config.load_chain(_beside(path, file.chain)))


def plain(struct: msgspec.Struct) -> dict[str, Any]:
    """Return plain values without those that are None, which no file can hold."""
    return dict(_without_none(msgspec.to_builtins(struct)))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


def _stamp(path: Path) -> str:
    """Return a text that changes when a file does: its size and time; for a run's folder, those of its documents."""
    about = (path / "run.json" if (path / "run.json").exists() else path).stat()
    return f"{about.st_size} {about.st_mtime_ns}"


def _set(base: dict[str, Any] | None, values: Mapping[str, Any], where: str, of_lab: bool) -> dict[str, Any]:
    """Return the contents of the experiment file, or of the lab file if `of_lab`, with the point's values set."""
    out: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(base or {}))
    for name, value in values.items():
        keys = name.split(".")
        if (keys[0] == "lab") != of_lab:
            continue
        if of_lab and base is None:
            raise InputError(f"{where}: a replay has no lab; accepted: keys of the chain file")
        table = out
        *above, last = keys[of_lab:]
        for key in above:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise InputError(f"{where}: {key!r} is no table, so that nothing can be set in it")
        old = table.get(last)
        table[last] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def _check(plan: dict[str, Any], lab: dict[str, Any], where: str) -> None:
    """Check the settings of a point as `testbed run` would; raises InputError."""
    if not lab:
        chain = config.convert(plan, ChainFile, where)
        if chain.chain is not None:
            check_chain(chain.chain, chain.training or Training(), where)
        return
    place, experiment = config.convert(lab, Lab, where), config.convert(plan, Experiment, where)
    check_experiment(experiment, where)
    check_lab(place, where)
    config.check_run(experiment, where, place)
    check_world(experiment, place, where)
    config.check_drivers(place, where)


def told(values: Mapping[str, Any]) -> str:
    """Return a point of the grid in words, as "bits = 2, rounds = 400"."""
    return ", ".join(f"{name} = {toml_text.inline(value)}" for name, value in values.items())
