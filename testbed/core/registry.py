"""Finds stages, drivers, policies and the like by name: files in this package's folders, and installed entry points.

Each kind (`KINDS`) has a folder, a group of entry points, or both; what a third party's package adds is treated like
our own files. The name in the configuration is that of the file or of the entry point. A file, and an entry point that
names a module, must define exactly one class of the kind; files whose names begin with an underscore are ignored. Names
are listed without importing the modules behind them.

What is broken (an import that fails, two classes in one file, a name that is given twice) affects nothing else:
`problems` names it, and a request for exactly that name gets the cause.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any

import msgspec

from testbed.core.errors import InputError
from testbed.core.options import convert
from testbed.core.words import did_you_mean

OURS = "ris-skg-testbed"
"""The distribution that this package is installed as."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing that has a name."""

    what: str
    """What one of them is called in messages."""
    base: str = ""
    """`module:Class` of which each must be a concrete subclass; "": each is a module, or an object, with the attributes
    in `needs`."""
    folder: str = ""
    """Package whose files are found; "": there is none."""
    needs: tuple[str, ...] = ()
    pattern: str = r"([a-z0-9][A-Za-z0-9_]*)"
    """Regular expression for the names of files, below the folder and without their ending; its group is the name."""
    group: str = ""
    """Group of entry points; "": `testbed.` and the kind's key."""


def _stage(what: str, cls: str, folder: str, group: str = "") -> Kind:
    return Kind(what, f"testbed.core.stages:{cls}", folder, group=group)


KINDS: dict[str, Kind] = {
    "probing": _stage("waveform", "Sounder", "testbed.chain.probing"),
    "csi": _stage("estimator", "CsiEstimator", "testbed.chain.csi"),
    "enhance": _stage("enhancer", "Enhancer", "testbed.chain.enhance"),
    "quantize": _stage("quantizer", "Quantizer", "testbed.chain.quantize"),
    "reconcile": _stage("reconciler", "Reconciler", "testbed.chain.reconcile"),
    "policy": _stage("surface policy", "SurfacePolicy", "testbed.surface.policies", "testbed.policies"),
    "search": _stage("surface search", "SurfaceSearch", "testbed.surface.searches", "testbed.searches"),
    "beams": _stage("beam policy", "BeamPolicy", "testbed.agents.policies"),
    "attacks": Kind("attack", "testbed.entropy.attack:Attack", "testbed.entropy.attacks"),
    "sources": Kind("data source", "", "testbed.replay.sources", ("ACCEPTS", "matches", "load")),
    "health": Kind("health check", "testbed.assess.health:HealthCheck", "testbed.assess.checks"),
    "report_sections": Kind("report section", "testbed.report.section:Section", "testbed.report.sections"),
    "studies": Kind("study", "", "testbed.papers", ("PAPER", "run"), r"(?!kit\.)(?:(\w+)\.study|\w+\.study_(\w+))"),
    "benchmarks": Kind("benchmark", "", "testbed.benchmarks", ("run",)),
    "radios": Kind("radio driver", "testbed.core.radio:Radio"),
    "boards": Kind("board driver", "testbed.core.ris:Board"),
    "worlds": Kind("simulated air", "testbed.core.world:World"),
    "emulators": Kind("emulated device", "testbed.core.world:Emulator"),
}
"""All kinds by key. The key of a stage is the one that chooses it in the experiment file."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a named thing is; it need not have been imported."""

    module: str
    attribute: str
    """Name of the object in the module; "": the module itself, or the one class that it defines."""
    distribution: str
    source: str = ""
    """The file in this package, or the entry point and its package, as text."""

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that was found and cannot be used."""

    kind: str
    name: str
    cause: str
    """Where the fault is, and what it is."""

    def __str__(self) -> str:
        return f"{KINDS[self.kind].what} {self.name!r} cannot be used: {self.cause}"


class _Broken(Exception):
    """The reason why nothing usable was found at a place."""


# ---------------------------------------------------------------- what there is


def places(kind: str, ours: bool = False) -> dict[str, list[Place]]:
    """Return the places of each name of a kind, in ascending order of names; a name with several is ambiguous.

    `ours`: only those that belong to this distribution.
    """
    found: dict[str, list[Place]] = {}
    for name, module, file in _files(KINDS[kind]):
        found.setdefault(name, []).append(Place(module, "", OURS, file))
    for point in _entry_points(tuple(sys.path)):
        if point.group == (KINDS[kind].group or f"testbed.{kind}"):
            distribution = _distribution(point)
            source = f"entry point {point.name} = {point.value} of {distribution}"
            place = Place(point.module, point.attr or "", distribution, source)
            if place not in found.setdefault(point.name, []) and not (ours and distribution != OURS):
                found[point.name].append(place)
    return {name: found[name] for name in sorted(found) if found[name]}


def names(kind: str, ours: bool = False) -> list[str]:
    """Return the names of a kind; nothing is imported, so that some may turn out to be broken."""
    return list(places(kind, ours))


def find(kind: str, name: str) -> Any:
    """Return the class (or module) behind a name.

    Raises InputError naming the accepted ones, or the cause where this one cannot be used.
    """
    known = places(kind)
    if name not in known:
        hint = did_you_mean(name, known)
        raise InputError(f"no {KINDS[kind].what} is called {name!r}{hint}; accepted: {', '.join(known) or 'none'}")
    try:
        return _resolve(kind, known[name])
    except _Broken as exc:
        raise InputError(f"{KINDS[kind].what} {name!r} cannot be used: {exc}") from exc


def problems(kinds: Iterable[str] = tuple(KINDS)) -> list[Problem]:
    """Return what was found and cannot be used. Imports everything of these kinds."""
    out = []
    for kind in kinds:
        for name, where in places(kind).items():
            try:
                _resolve(kind, where)
            except _Broken as exc:
                out.append(Problem(kind, name, str(exc)))
    return out


def usable(kind: str) -> dict[str, Any]:
    """Return everything of a kind that can be used, by name; what is broken is left out (`problems` names it)."""
    out = {}
    for name, where in places(kind).items():
        try:
            out[name] = _resolve(kind, where)
        except _Broken:
            continue
    return out


# ---------------------------------------------------------------- building


def make_stage(kind: str, name: str, options: dict[str, Any], source: str = "", table: str = "") -> Any:
    """Build a stage, policy or search from its name and options.

    `source` and `table`: the file and the table in it that the options are from, for the error. Raises InputError that
    names these, the key, and what is accepted.
    """
    cls = find(kind, name)
    if table:
        convert(options, cls.options_type, source, [table])
    where = f"{source}: table [{table}]: ".removeprefix(": ") if table else ""
    try:
        return cls(**options)
    except InputError as exc:
        if not where:
            raise
        text = str(exc)
        if text.startswith("table ["):  # below this one
            raise InputError(where.replace("]: ", f".{text.removeprefix('table [')}")) from exc
        raise InputError(f"{where}{text}") from exc
    except ValueError as exc:
        raise InputError(f"{where}{kind} {name!r}: {exc}") from exc
    except TypeError as exc:
        given = ", ".join(f"{key} = {value!r}" for key, value in options.items()) or "none given"
        raise InputError(f"{where}{kind} {name!r}: cannot be built from its options: {given} ({exc})") from exc


def options_of(kind: str, name: str) -> set[str]:
    """Return the names of the options that something takes."""
    return {f.name for f in msgspec.structs.fields(find(kind, name).options_type)}


def load_driver(group: str, name: str) -> Any:
    """Load a driver (`group` is radios, boards or worlds) by its entry point's name; raises InputError."""
    return find(group, name)


# ---------------------------------------------------------------- finding


@lru_cache(maxsize=8)
def _entry_points(path: tuple[str, ...]) -> list[EntryPoint]:
    """Return all entry points of this package and for it; `path` is sys.path, which decides what is installed."""
    found = entry_points()
    return [p for group in sorted(found.groups) if group.startswith("testbed.") for p in found.select(group=group)]


def _distribution(point: EntryPoint) -> str:
    return "a package without a name" if point.dist is None else _name_of(point.dist)


@lru_cache(maxsize=64)
def _name_of(distribution: Distribution) -> str:
    """Return a distribution's name, for which its whole metadata is read."""
    return re.sub(r"[-_.]+", "-", distribution.name).lower()


def _files(kind: Kind) -> list[tuple[str, str, str]]:
    """Return (name, module, file) of every file of a kind; only the folder's own package is imported."""
    if not kind.folder:
        return []
    try:
        package = importlib.import_module(kind.folder)
    except ModuleNotFoundError:
        return []
    found = []
    for stem, file in _stems(list(package.__path__), nested=r"\." in kind.pattern):
        match = re.fullmatch(kind.pattern, stem)
        if match is not None:
            found.append((next(g for g in match.groups() if g), f"{kind.folder}.{stem}", _shown(file)))
    return found


def _stems(path: list[str], nested: bool) -> list[tuple[str, Path]]:
    """Return the dotted names and files of the modules of a package; `nested`: of those of its subfolders."""
    out = []
    for entry in path:
        for module in pkgutil.iter_modules([entry]):
            if nested and module.ispkg:
                below = _stems([str(Path(entry, module.name))], nested=False)
                out += [(f"{module.name}.{stem}", file) for stem, file in below]
            elif not nested:
                file = Path(entry, module.name, "__init__.py") if module.ispkg else Path(entry, f"{module.name}.py")
                out.append((module.name, file))
    return out


def _shown(file: Path) -> str:
    """Return a file's path, starting at the folder that contains this package."""
    root = Path(__file__).parents[2]
    return str(file.relative_to(root) if file.is_relative_to(root) else file)


# ---------------------------------------------------------------- resolving


def _resolve(kind: str, where: list[Place]) -> Any:
    """Return the object at the only place of a name; raises _Broken."""
    if len(where) > 1:
        raise _Broken(f"the name is given {len(where)} times: {'; '.join(map(str, where))}")
    place = where[0]
    try:
        found = importlib.import_module(place.module)
        for part in place.attribute.split(".") if place.attribute else ():
            found = getattr(found, part)
        return _held_to(KINDS[kind], found)
    except _Broken as exc:
        raise _Broken(f"{place}: {exc}") from exc
    except (Exception, SystemExit) as exc:  # a file can raise anything when it is imported
        raise _Broken(f"{place}: {type(exc).__name__}: {' '.join(str(exc).split())}") from exc


def _held_to(kind: Kind, found: Any) -> Any:
    """Return the object that was found, or the one class in it; raises _Broken where it is not of the kind."""
    if not kind.base:
        missing = [name for name in kind.needs if not hasattr(found, name)]
        if missing:
            raise _Broken(f"no {kind.what}: it lacks {', '.join(missing)}")
        return found
    module, _, name = kind.base.partition(":")
    base = getattr(importlib.import_module(module), name)
    if not inspect.ismodule(found):
        if not (inspect.isclass(found) and issubclass(found, base)):
            raise _Broken(f"no {kind.what}: {found!r} is no subclass of {module}.{name}")
        if inspect.isabstract(found):
            raise _Broken(f"class {found.__name__} lacks {_lacking(found)}")
        return found
    classes = [
        c for c in vars(found).values() if inspect.isclass(c) and issubclass(c, base) and c.__module__ == found.__name__
    ]
    whole = [c for c in classes if not inspect.isabstract(c)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise _Broken(
            f"{len(whole)} classes ({', '.join(c.__name__ for c in whole)}); accepted: one {kind.what} a file"
        )
    lacking = "".join(f"; {c.__name__} lacks {_lacking(c)}" for c in classes)
    raise _Broken(f"no {kind.what} in it, i.e. no concrete subclass of {module}.{name}{lacking}")


def _lacking(cls: Any) -> str:
    """Return the names of the methods that an abstract class still lacks."""
    return ", ".join(sorted(cls.__abstractmethods__))
