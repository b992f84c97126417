"""The options of an emulated device, checked in one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from testbed.core.errors import InputError

S = TypeVar("S", bound=msgspec.Struct)


def emulator_options(name: str, values: Mapping[str, Any], kind: type[S]) -> S:
    """Return the table of a node's emulator as its own `kind`; raises InputError saying which keys are accepted."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as exc:
        accepted = ", ".join(f.name for f in msgspec.structs.fields(kind))
        raise InputError(f"table [world.emulators.{name}]: {exc}; accepted keys: {accepted}") from exc
