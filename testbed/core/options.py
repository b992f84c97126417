"""Turns plain values into the struct that declares them, and msgspec's errors into one line a user understands.

The lab file, the experiment file and the options of every driver and stage are read here, so that every mistake is
reported in the same words: where it is, what is wrong, what is accepted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import msgspec
import numpy as np
from msgspec import Struct, inspect

from testbed.core.errors import InputError
from testbed.core.gate import ACCEPTED_NAME, IDENTIFIER
from testbed.core.words import did_you_mean

C = TypeVar("C", bound=Struct)


class StageOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the options of a stage, policy or search: a field for each key of its table.

    The field's docstring states its meaning, its type the range, and its default is used where the key is not given.
    A condition on two fields together is checked in `__post_init__`, which raises ValueError.
    """


class Configurable:
    """Something that is chosen by name and built from its options: `Kind(bits=2)`.

    A subclass names the struct that declares its options in `options_type` and finds them, checked, in `self.options`:

    >>> from testbed.chain.quantize.scalar import Scalar
    >>> Scalar(bits=1).options
    ScalarOptions(bits=1, guard=0.1)
    >>> Scalar(bits=9)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    testbed.core.errors.InputError: quantize 'scalar': key 'bits': 9 given: expected `int` <= 4; accepted: ...
    """

    options_type: ClassVar[type[StageOptions]] = StageOptions
    """The struct that declares the options; the base itself where there are none."""
    stage: ClassVar[str] = ""
    """Key of `core.registry.KINDS`, for errors."""
    options: Any

    def __init__(self, **options: Any) -> None:
        """Check the options; raises InputError naming the key and what is accepted."""
        # studies may pass numpy's numbers; they are turned into Python's
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in options.items()}
        called = f"{self.stage} {type(self).__module__.rpartition('.')[2]!r}".lstrip()
        if infinite := [key for key, value in plain.items() if isinstance(value, float) and not math.isfinite(value)]:
            raise InputError(f"{called}: key {infinite[0]!r}: {plain[infinite[0]]} given, accepted: finite numbers")
        self.options = convert(plain, self.options_type, called, None)


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


def _place(keys: Sequence[str]) -> str:
    """Say where in a file a key is."""
    table, key = ".".join(keys[:-1]), keys[-1] if keys else "file"
    return f"{f'table [{table}]' if table else 'top level'}: key {key!r}"


def convert(raw: Any, kind: type[C], source: str, above: Sequence[str] | None = ()) -> C:
    """Return plain values as `kind`; raises InputError in one line.

    `source` names the file or other origin of the values; "" leaves it out of the message. `above` are the
    keys of the tables that contain the values; None where they are in no table.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as exc:
        raise InputError(f"{source}: {_explain(str(exc), kind, above, raw)}".removeprefix(": ")) from exc


def driver_options(values: Mapping[str, Any], kind: type[C], node: str) -> C:
    """Return the options of a node's lab table as the driver's own `kind`.

    Raises InputError naming the table, the key and what is accepted.
    """
    return convert(dict(values), kind, "", [f"node.{node}.options"])


def accepted(hint: Any) -> str:
    """Return in words which values a type accepts, with its range; "" where any value is accepted.

    >>> from typing import Annotated
    >>> accepted(Annotated[int, msgspec.Meta(ge=1, le=4)]), accepted(bool)
    ('whole numbers from 1 to 4', 'true, false')
    """
    choices = _choices(hint)  # in the order in which they were declared, which msgspec does not keep
    return ", ".join(map(repr, choices)) if choices else _words(inspect.type_info(hint))


def _choices(hint: Any) -> list[Any]:
    """Return the values of a Literal, also of one that may be None; none for any other type."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [value for option in get_args(hint) if get_origin(option) is Literal for value in get_args(option)]


def _words(kind: inspect.Type) -> str:
    match kind:
        case inspect.LiteralType():
            return ", ".join(repr(v) for v in kind.values)
        case inspect.BoolType():
            return "true, false"
        case inspect.IntType() | inspect.FloatType():
            return " ".join(filter(None, ("whole numbers" if isinstance(kind, inspect.IntType) else "numbers",
                                          _range(kind.ge, kind.gt, kind.le, kind.lt))))  # fmt: skip
        case inspect.StrType():
            return _form(kind)
        case inspect.ListType() | inspect.SetType() | inspect.VarTupleType():
            n = f"{kind.min_length} " if kind.min_length is not None and kind.min_length == kind.max_length else ""
            return f"lists of {n}{_words(kind.item_type)}" if _words(kind.item_type) else "lists"
        case inspect.UnionType():
            return " or ".join(filter(None, (_words(t) for t in kind.types if not isinstance(t, inspect.NoneType))))
        case inspect.DictType():
            return "a table"
        case _:
            return ""


def _form(kind: inspect.StrType) -> str:
    """Return in words which texts are accepted; a pattern without a description is shown itself."""
    form = "text"
    if kind.pattern:
        form = ACCEPTED_NAME if kind.pattern == IDENTIFIER else f"text that matches {kind.pattern}"
    return form if kind.max_length is None else f"{form}; at most {kind.max_length} characters"


def _range(ge: float | None, gt: float | None, le: float | None, lt: float | None) -> str:
    low, above, high, below = map(_digits, (ge, gt, le, lt))
    at_least = f"from {low}" if low else f"above {above}" if above else ""
    if high:
        return f"{at_least} to {high}" if at_least else f"up to {high}"
    return " ".join(filter(None, (at_least, f"below {below}" if below else "")))


def _digits(limit: float | None) -> str:
    """Return a limit with all digits of a whole number, "" for None."""
    return "" if limit is None else str(limit) if isinstance(limit, int) else f"{limit:g}"


def _type_at(kind: Any, keys: Sequence[str]) -> Any:
    """Return the type that a path of keys leads to through nested tables; None where there is none."""
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


def _value_at(raw: Any, keys: Sequence[str]) -> str:
    """Return the value at a path of keys as it is written, followed by " given: "; "" where it is long or a table."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    return f"{raw!r} given: " if isinstance(raw, str | int | float) and len(repr(raw)) <= 40 else ""


def _explain(message: str, kind: Any, above: Sequence[str] | None, raw: Any) -> str:
    """Turn msgspec's message into `table [table]: key 'key': what is wrong; accepted: …`."""
    text, _, where = message.partition(" - at `")
    # the index within a list is left out, because the key names the list
    inner = [k for k in re.sub(r"\[(\d+|\.\.\.)\]", "", where.rstrip("`").lstrip("$")).split(".") if k]
    keys = [*(above or ()), *inner]
    table = f"table [{'.'.join(keys)}]: " if keys else "" if above is None else "top level: "
    found = _type_at(kind, inner)
    if unknown := re.match(r"Object contains unknown field `(.+)`", text):
        return table + _unknown(unknown[1], found)
    if missing := re.match(r"Object missing required field `(.+)`", text):
        return f"{table}missing {missing[1]!r}; accepted keys: {', '.join(_keys_of(found))}"
    if not inner:  # raised by `__post_init__`, whose message names the keys itself
        return table + text
    text = re.sub(r" matching regex '.*'$", " of another form", text)  # the accepted form is named once, below
    place = f"key {inner[-1]!r}" if above is None and len(inner) == 1 else _place(keys)
    values = "" if isinstance(found, type) and issubclass(found, Struct) else accepted(found) if found else ""
    end = f"; accepted: {values}" if values else ""
    return f"{place}: {_value_at(raw, inner)}{text[0].lower()}{text[1:]}{end}"


def _unknown(key: str, kind: Any) -> str:
    known = _keys_of(kind)
    return f"unknown key {key!r}{did_you_mean(key, known, 0.5)}; accepted: {', '.join(known) or 'none'}"


def _keys_of(kind: Any) -> list[str]:
    return sorted(f.name for f in msgspec.structs.fields(kind)) if kind is not None else []
