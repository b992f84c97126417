"""Checks everything that comes from outside: names, sizes, depths, ranges, finite numbers.

Every message from a socket, and every name in a file, is checked here before anything acts on it. `Gate.read` raises
nothing but `ProtocolError`, with one printable line.
"""

from __future__ import annotations

import functools
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import msgspec.inspect
from msgspec import Meta, Struct

from testbed.core.errors import ProtocolError

T = TypeVar("T")

# Python's `$` also matches before a newline at the end, which no name may have; editors know no `\Z`.
IDENTIFIER = r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}$(?!\n)"
"""Pattern of the names of runs, nodes, links' ends, surface patterns and models, which become parts of paths and
pages."""
ACCEPTED_NAME = "1 to 100 letters, digits, _ or -, not beginning with -"
Identifier = Annotated[str, Meta(pattern=IDENTIFIER)]
IdentifierOrNone = Annotated[str, Meta(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_-]{0,99})?$(?!\n)")]
"""A name, or '' where there is none yet."""
Text = Annotated[str, Meta(max_length=1 << 16)]
"""Text for people."""
Number = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
"""Number of a round, a block or a message."""
Tally = Annotated[int, Meta(ge=0, le=1 << 53)]
Finite = Annotated[float, Meta(ge=-1e18, le=1e18)]
Share = Annotated[float, Meta(ge=0, le=1)]
Instant = Annotated[float, Meta(ge=-1e12, le=1e12)]
"""A reading of a clock, in s."""
Duration = Annotated[float, Meta(gt=0, le=86_400)]
"""A waiting time in s, at most a day."""
Delay = Annotated[float, Meta(ge=0, le=3600)]
LONGEST_SPAN_S = 1e6
Span = Annotated[float, Meta(ge=0, le=LONGEST_SPAN_S)]
"""How long something took, in s."""

MAX_DEPTH = 16
MAX_TEXT = 1 << 20
"""Largest number of characters of one string; the longest is the card of a model."""

_identifier = re.compile(IDENTIFIER)


def is_identifier(text: Any) -> bool:
    """Whether a text may be the name of a run, node, pattern or model."""
    return isinstance(text, str) and _identifier.search(text) is not None


def identifier(text: str) -> str:
    """Make a name of at most 80 characters out of any text: characters that no name may have become `_`."""
    found = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:80]
    return found if is_identifier(found) else f"_{found}"[:80]


def link_ends(link: Any) -> tuple[str, str] | None:
    """Return (transmitter, receiver) of a link's name 'tx>rx'; None where it is no such name."""
    ends = link.split(">") if isinstance(link, str) else []
    return (ends[0], ends[1]) if len(ends) == 2 and all(map(is_identifier, ends)) else None


def printable(text: str, most: int = 200) -> str:
    """Return a text as one line that a terminal can show: control and unprintable characters become `?`."""
    line = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return line if len(line) <= most else f"{line[: most - 1]}…"


def check_plain(value: Any, depth: int = MAX_DEPTH) -> None:
    """Raise ValueError unless a decoded value is plain: finite numbers, short texts, bytes, lists and dicts of these.

    Typed messages are also checked, because a schema allows floats that are NaN or infinite. `depth` is the largest
    depth to which lists and dicts may be nested.
    """
    kind = type(value)
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{value} given, accepted: finite numbers")
    elif kind is str:
        if len(value) > MAX_TEXT:
            raise ValueError(f"a text of {len(value)} characters, accepted: up to {MAX_TEXT}")
    elif kind in _ALWAYS_PLAIN:
        pass
    elif depth <= 0:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    elif kind in (list, tuple):
        _check_all(value, depth - 1)
    elif kind is dict:
        for key in value:
            if type(key) is not str or len(key) > 200:
                raise ValueError(f"a key of type {type(key).__name__}, accepted: texts of up to 200 characters")
        _check_all(value.values(), depth - 1)
    elif isinstance(value, Struct):
        _check_all(msgspec.structs.astuple(value), depth - 1)
    else:
        raise ValueError(f"a value of type {kind.__name__}, accepted: numbers, texts, bytes, lists and dicts")


_ALWAYS_PLAIN = frozenset((int, bool, bytes, type(None)))


def _check_all(values: Iterable[Any], depth: int) -> None:
    """Check each of several values; numbers, the most frequent kind, without a call of their own."""
    for value in values:
        kind = type(value)
        if not (math.isfinite(value) if kind is float else kind in _ALWAYS_PLAIN):
            check_plain(value, depth)


def _check_decoded(value: Any) -> None:
    """Do what `check_plain` does with a value that a decoder made by its schema, where the schema leaves anything
    open."""
    if isinstance(value, Struct):
        for name in open_fields(type(value)):
            _check_decoded(getattr(value, name))
    elif type(value) in (list, tuple):
        for inner in value:
            _check_decoded(inner)
    else:
        check_plain(value)


@functools.cache
def open_fields(kind: type[Struct]) -> tuple[str, ...]:
    """Return the fields of a struct whose values may not be plain although they fit the schema.

    A decoder refuses numbers that are not finite where the schema has both limits, and texts beyond a greatest length.
    """
    about = msgspec.inspect.type_info(kind)
    assert isinstance(about, msgspec.inspect.StructType)
    return tuple(x.name for x in about.fields if not _is_closed(x.type))


def _is_closed(about: msgspec.inspect.Type) -> bool:
    match about:
        case msgspec.inspect.FloatType():
            return (about.ge, about.gt) != (None, None) and (about.le, about.lt) != (None, None)
        case msgspec.inspect.StrType():
            return (about.max_length or math.inf) <= MAX_TEXT or _is_short(about.pattern)
        case msgspec.inspect.UnionType():
            return all(map(_is_closed, about.types))
        case msgspec.inspect.ListType() | msgspec.inspect.VarTupleType():
            return _is_closed(about.item_type)
        case msgspec.inspect.TupleType():
            return all(map(_is_closed, about.item_types))
        case msgspec.inspect.StructType():
            return all(_is_closed(x.type) for x in about.fields)
    return isinstance(about, _CLOSED)


def _is_short(pattern: str | None) -> bool:
    """Return whether a pattern for whole texts repeats nothing without limit."""
    if pattern is None or not pattern.startswith("^") or not pattern.endswith(r"$(?!\n)"):
        return False
    return re.search(r"[*+]|\{\d*,\}", re.sub(r"\[(?:\\.|[^\]])*\]", "x", pattern)) is None


_CLOSED = (
    msgspec.inspect.IntType, msgspec.inspect.BoolType, msgspec.inspect.BytesType, msgspec.inspect.NoneType,
    msgspec.inspect.LiteralType,
)  # fmt: skip


class Gate(Generic[T]):
    """Reads msgpack messages of one schema and at most `most_bytes` bytes.

    `check` raises ValueError where a condition fails that the schema cannot express.
    """

    def __init__(self, kind: Any, what: str, most_bytes: int, check: Callable[[T], None] = lambda _: None) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        self._what, self._most_bytes, self._check = what, most_bytes, check

    def read(self, data: bytes) -> T:
        """Return the message; raises ProtocolError, one printable line, if it does not fit."""
        if len(data) > self._most_bytes:
            raise ProtocolError(f"{self._what} refused: {len(data)} bytes, accepted up to {self._most_bytes}")
        try:
            message = self._decoder.decode(data)
            _check_decoded(message)
            self._check(message)
        except Exception as exc:  # decoders raise errors of many kinds; the message has had no effect yet
            detail = printable(str(exc) or type(exc).__name__)
            raise ProtocolError(f"{self._what} refused: {detail}") from exc
        return message


class Strikes:
    """Counts the bad messages of each connection; after `most` of them its messages are ignored.

    Keeps the counts of `connections` connections and drops the one whose last bad message is the oldest.
    """

    def __init__(self, most: int = 5, connections: int = 1024) -> None:
        self._most, self._connections = most, connections
        self._counts: OrderedDict[Hashable, int] = OrderedDict()

    def muted(self, connection: Hashable) -> bool:
        return self._counts.get(connection, 0) >= self._most

    def count(self, connection: Hashable) -> bool:
        """Count one more bad message; return whether it is the one from which on the messages are ignored."""
        n = self._counts.pop(connection, 0) + 1
        self._counts[connection] = n
        while len(self._counts) > self._connections:
            self._counts.popitem(last=False)
        return n == self._most
