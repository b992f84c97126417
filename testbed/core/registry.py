"""Finds things by name: stages by the file they live in, drivers by entry point.

A stage's name in the configuration is the name of its module in the stage's folder; the class is the one concrete
subclass of the stage's ABC that the module defines. Drivers come from entry points, so that an installed third-party
package stands beside ours.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_type_hints

import msgspec

from testbed.core.errors import InputError
from testbed.core.stages import (
    BeamPolicy,
    CsiEstimator,
    Enhancer,
    Quantizer,
    Reconciler,
    Sounder,
    SurfacePolicy,
    SurfaceSearch,
)  # fmt: skip

STAGES: dict[str, tuple[str, type[Any]]] = {
    "probing": ("testbed.chain.probing", Sounder),
    "csi": ("testbed.chain.csi", CsiEstimator),
    "enhance": ("testbed.chain.enhance", Enhancer),
    "quantize": ("testbed.chain.quantize", Quantizer),
    "reconcile": ("testbed.chain.reconcile", Reconciler),
    "policy": ("testbed.surface.policies", SurfacePolicy),
    "search": ("testbed.surface.searches", SurfaceSearch),
    "beams": ("testbed.agents.policies", BeamPolicy),
}

S = TypeVar("S")


def _class_in(module_name: str, base: type[Any]) -> type[Any] | None:
    module = importlib.import_module(module_name)
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c) and c.__module__ == module_name
    ]
    return found[0] if len(found) == 1 else None


def stage_names(stage: str) -> list[str]:
    """Return the names that `[chain] <stage> = …` accepts."""
    package_name, base = STAGES[stage]
    package = importlib.import_module(package_name)
    modules = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return [m for m in modules if _class_in(f"{package_name}.{m}", base) is not None]


def stage_class(stage: str, name: str) -> type[Any]:
    """Return the class behind a stage's name; raises InputError naming the accepted ones."""
    package_name, base = STAGES[stage]
    if name.isidentifier() and not name.startswith("_"):
        try:
            cls = _class_in(f"{package_name}.{name}", base)
        except ModuleNotFoundError as exc:
            if exc.name != f"{package_name}.{name}":
                raise
            cls = None
        if cls is not None:
            return cls
    raise InputError(f"no {stage} stage is called {name!r}; accepted: {', '.join(stage_names(stage))}")


def options_of(stage: str, name: str) -> set[str]:
    """Return the names of the options that a stage takes."""
    return {p.name for p in inspect.signature(stage_class(stage, name)).parameters.values()}


def make_stage(stage: str, name: str, options: dict[str, Any]) -> Any:
    """Build a stage from its name and options; refused ones raise InputError naming what is accepted."""
    cls = stage_class(stage, name)
    accepted = options_of(stage, name)
    for key in options:
        if key not in accepted:
            raise InputError(
                f"{stage} {name!r} has no option {key!r}; accepted: {', '.join(sorted(accepted)) or 'none'}"
            )
    _check_types(f"{stage} {name!r}", cls, options)
    try:
        return cls(**options)
    except ValueError as exc:
        raise InputError(f"{stage} {name!r}: {exc}") from exc
    except TypeError as exc:
        given = ", ".join(f"{key} = {value!r}" for key, value in options.items()) or "none given"
        raise InputError(f"{stage} {name!r}: option types are not accepted: {given} ({exc})") from exc


def _check_types(what: str, cls: type[Any], options: dict[str, Any]) -> None:
    """Hold options against the annotations of the constructor; raises InputError naming option and type."""
    hints = get_type_hints(cls.__init__)
    for key, value in options.items():
        try:
            msgspec.convert(value, hints.get(key, Any))
        except msgspec.ValidationError as exc:
            said = str(exc)
            raise InputError(f"{what}: option types: {key} = {value!r}: {said[0].lower()}{said[1:]}") from exc


def driver_names(group: str) -> list[str]:
    """Return the names of the installed drivers of a group (radios, boards or worlds), none of them imported."""
    return sorted({p.name for p in entry_points(group=f"testbed.{group}")})


def load_driver(group: str, name: str) -> Any:
    """Load a driver (`group` is radios, boards or worlds) by its entry point's name."""
    points = {p.name: p for p in entry_points(group=f"testbed.{group}")}
    if name not in points:
        raise InputError(
            f"no driver {name!r} among the installed {group}; accepted: {', '.join(sorted(points)) or 'none'}"
        )
    return points[name].load()
