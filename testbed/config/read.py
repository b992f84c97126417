"""Reads the two files a user writes, by path or by bundled name.

An unknown key, a missing table or a value of the wrong type or range raises InputError in one line that names file,
table and key and says what is accepted. No number may be inf or nan, because records are JSON, which has neither.
"""

from __future__ import annotations

import codecs
import os
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from testbed.config import describe
from testbed.config.check import check_chain, check_experiment, check_lab
from testbed.core import options
from testbed.core.config import ChainFile, Experiment, Lab, NodePlace, Table, Training
from testbed.core.errors import InputError
from testbed.core.gate import printable
from testbed.core.whole import read_whole
from testbed.core.words import did_you_mean

T = TypeVar("T", bound=Table)
MAX_BYTES = 1 << 22
"""Largest size of a file that a user writes, in bytes."""
MAX_DEPTH = 32
"""Most tables and lists inside one another in such a file."""
MAX_KEY = 200
"""Longest key in such a file, which an error may show."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
_PIECE = r"""(?:"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'|[A-Za-z0-9_-]++)"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PIECE}(?:[ \t]*+\.[ \t]*+{_PIECE}){{{MAX_DEPTH}}}")
"""A dotted key of too many parts: the parser's time grows with their number squared."""
_BUNDLED = {Experiment: "experiments", Lab: "labs"}


def bundled(kind: type[Experiment] | type[Lab]) -> dict[str, Path]:
    """Return the bundled files of a kind by name."""
    folder = Path(str(files("testbed"))) / "bundled" / _BUNDLED[kind]
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def find(kind: type[Experiment] | type[Lab], name: str) -> Path:
    """Return the path of a file given by path or bundled name; raises InputError naming the bundled ones."""
    path = Path(name)
    try:
        if path.is_file():
            return path
    except OSError as exc:  # for example in a folder that this user may not read
        raise InputError(f"{path}: cannot be read: {exc.strerror}; accepted: a file that this user may read") from exc
    known = bundled(kind)
    if name in known:
        return known[name]
    what = "experiment" if kind is Experiment else "lab"
    raise InputError(f"{name}: no such {what} file{did_you_mean(path.stem, known)}; bundled: {', '.join(known)}")


def load_table(path: Path, kind: type[T]) -> T:
    """Read a file of any other kind by the tables that describe it."""
    return _load(path, kind)


def load_experiment(name: str) -> Experiment:
    """Read and check an experiment file, stage names and options included."""
    path = find(Experiment, name)
    experiment = _load(path, Experiment)
    check_experiment(experiment, str(path))
    return experiment


def load_chain(name: str) -> ChainFile:
    """Read and check a chain file; of a whole experiment, by path or bundled name, the tables that a replay needs."""
    path = find(Experiment, name)
    raw = _parse(path)
    if "scene" in raw:
        e = load_experiment(name)
        return ChainFile(title=e.title, seed=e.seed, chain=e.chain, accounting=e.accounting, training=e.training)
    chain = convert(raw, ChainFile, str(path))
    if chain.chain is not None:
        check_chain(chain.chain, chain.training or Training(), str(path))
    return chain


def load_lab(name: str) -> Lab:
    """Read and check a lab file."""
    path = find(Lab, name)
    lab = _load(path, Lab)
    check_lab(lab, str(path))
    return lab


def _load(path: Path, kind: type[T]) -> T:
    return convert(_parse(path), kind, str(path))


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes, accepted up to {MAX_BYTES}")
        content = read_whole(path, MAX_BYTES)
        if content.startswith(_UTF16) or b"\0" in content:
            raise InputError(f"{path}: not UTF-8 text, perhaps UTF-16; accepted: UTF-8: save it as UTF-8")
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        if _LONG_KEY.search(text):
            raise ValueError(_TOO_DEEP)
        raw = tomllib.loads(text)
        _check_plain(raw)
        return raw
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not UTF-8 text at byte {exc.start}; accepted: UTF-8: save it as UTF-8") from exc
    except (ValueError, RecursionError) as exc:  # ValueError also for dates and numbers that Python does not have
        raise InputError(f"{path}: not TOML: {printable(str(exc) or type(exc).__name__)}") from exc


def _check_plain(raw: dict[str, Any]) -> None:
    """Raise ValueError where tables are nested deeper, or integers and keys are longer, than all that use them can
    take."""
    todo: list[tuple[Any, int]] = [(raw, 0)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise ValueError("an integer of more than 64 bits")
        if isinstance(value, dict) and any(len(key) > MAX_KEY for key in value):
            raise ValueError(f"a key of {max(map(len, value))} characters, accepted: up to {MAX_KEY}")
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
        if inner and depth >= MAX_DEPTH:
            raise ValueError(_TOO_DEEP)
        todo += [(x, depth + 1) for x in inner]


def convert(raw: dict[str, Any], kind: type[T], source: str) -> T:
    """Check a parsed file against its schema; raises InputError in one line."""
    options.refuse_non_finite(raw, source, [])
    if kind is Lab and isinstance(raw.get("node"), dict):
        # Nodes are converted one by one, because the error for a whole dict does not say which of its tables is wrong.
        for name, table in raw["node"].items():
            options.convert(table, NodePlace, source, [f"node.{name}"])
    return options.convert(raw, kind, source, [])


def json_schema(kind: type[Struct]) -> dict[str, Any]:
    """Return the JSON Schema of a file kind, with the options of everything that is installed here."""
    return describe.schema(kind)


def state_root() -> Path:
    """Return the folder for identities and key stores: $TESTBED_STATE, or the user's state folder.

    Raises InputError where the variable names a file.
    """
    # An empty variable counts as unset, as in the XDG specification; otherwise keys would be stored in the current
    # folder by accident.
    if chosen := os.environ.get("TESTBED_STATE"):
        folder = Path(chosen).expanduser()
        for path in (folder, *folder.parents):
            if os.path.isfile(path):
                accepted = "a folder, or the name of a new one"
                raise InputError(f"variable TESTBED_STATE: {path} is a file; accepted: {accepted}")
        return folder
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ris-skg-testbed"
