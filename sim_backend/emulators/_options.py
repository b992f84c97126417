"""The options of an emulated device, checked in one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from testbed.core.options import convert

S = TypeVar("S", bound=msgspec.Struct)


def emulator_options(name: str, values: Mapping[str, Any], kind: type[S]) -> S:
    """Return the table of a node's emulator as its own `kind`; raises InputError that names the accepted keys."""
    return convert(dict(values), kind, "", [f"world.emulators.{name}"])
