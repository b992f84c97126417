"""Turns plain values into the struct that declares them, and msgspec's errors into one line a user understands.

The two files, every driver's options and every stage's options pass through here, so that a mistake is worded alike
wherever it is made: where it stands, what is wrong, what is accepted.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct

from testbed.core.errors import InputError

C = TypeVar("C", bound=Struct)


def refuse_non_finite(value: Any, source: str, keys: list[str]) -> None:
    """Raise InputError for the first inf or nan in a parsed file, drivers' and stages' options included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            refuse_non_finite(inner, source, [*keys, str(key)])
    elif isinstance(value, list):
        for inner in value:
            refuse_non_finite(inner, source, keys)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{source}: {_place(keys)}: {value} given, accepted: finite numbers")


def _place(keys: list[str]) -> str:
    """Say where in a file a key is."""
    table, key = ".".join(keys[:-1]), keys[-1] if keys else "file"
    return f"{f'table [{table}]' if table else 'top level'}: key {key!r}"


def convert(raw: Any, kind: type[C], source: str, above: list[str]) -> C:
    """Return plain values as `kind`; `above` are the keys that lead to them in `source`. Raises InputError."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as exc:
        raise InputError(f"{source}: {_explain(str(exc), kind, above)}") from exc


def _choices(hint: Any) -> list[Any]:
    """Return the values of a Literal, also of one that may be None; none for any other type."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [value for option in get_args(hint) if get_origin(option) is Literal for value in get_args(option)]


def _type_at(kind: Any, keys: list[str]) -> Any:
    """Follow a path of keys through nested tables; None where it leaves them."""
    current: Any = kind
    for key in keys:
        if not (isinstance(current, type) and issubclass(current, Struct)):
            return None
        hints = {f.name: f.type for f in msgspec.structs.fields(current)}
        current = hints.get(key)
        structs = [o for o in getattr(current, "__args__", ()) if isinstance(o, type) and issubclass(o, Struct)]
        if structs:
            current = structs[0]
    return current


def _explain(message: str, kind: Any, above: list[str]) -> str:
    """Turn msgspec's message into `table [table]: key 'key': what is wrong; accepted: …`."""
    text, _, where = message.partition(" - at `")
    # the place in a list is left out: the list has the key
    inner = [k for k in re.sub(r"\[(\d+|\.\.\.)\]", "", where.rstrip("`").lstrip("$")).split(".") if k]
    keys = above + inner
    unknown = re.match(r"Object contains unknown field `(.+)`", text)
    missing = re.match(r"Object missing required field `(.+)`", text)
    if unknown or missing:
        table = f"table [{'.'.join(keys)}]" if keys else "top level"
        found = _type_at(kind, inner)
        accepted = sorted(f.name for f in msgspec.structs.fields(found)) if found is not None else []
        if missing:
            return f"{table}: missing {missing[1]!r}; accepted keys: {', '.join(accepted)}"
        assert unknown is not None
        near = difflib.get_close_matches(unknown[1], accepted, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{table}: unknown key {unknown[1]!r}{hint}; accepted: {', '.join(accepted)}"
    choices = _choices(_type_at(kind, inner))
    values = f"; accepted: {', '.join(map(repr, choices))}" if choices else ""
    return f"{_place(keys)}: {text[0].lower()}{text[1:]}{values}"


def driver_options(values: dict[str, Any], kind: type[C], node: str) -> C:
    """Return the options of a node's lab table as the driver's own `kind`.

    Raises InputError naming the table, the key and what is accepted.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as exc:
        accepted = ", ".join(f.name for f in msgspec.structs.fields(kind))
        raise InputError(f"table [node.{node}.options]: {exc}; accepted keys: {accepted}") from exc
