"""Meaning, range and default of options, read from the structs that declare them, for `testbed list` and JSON Schemas.

A field's meaning is the docstring below it (or `Meta(description=…)`); its type and declaration give range and default.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from testbed.core import registry
from testbed.core.options import accepted


@dataclass(frozen=True, slots=True)
class Field:
    """One option."""

    name: str
    default: str | None
    """The default as TOML writes it; None: the option has no default and must be given."""
    accepted: str
    meaning: str


def fields(kind: type[Struct]) -> list[Field]:
    """Return the options that a struct declares, in its order."""
    meanings = _meanings(kind)
    return [
        Field(f.name, _default(f), accepted(f.type), meanings.get(f.name) or _description(f.type))
        for f in msgspec.structs.fields(kind)
    ]


def options_type(cls: Any) -> type[Struct] | None:
    """Return the struct that declares a class's options; None where the class names none."""
    kind = getattr(cls, "options_type", None)
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def summary(thing: Any) -> str:
    """Return the first sentence of a class's or module's docstring."""
    text = inspect.getdoc(thing) or inspect.getdoc(inspect.getmodule(thing)) or ""
    return " ".join(text.split("\n\n")[0].split())


@cache
def _meanings(kind: type[Struct]) -> dict[str, str]:
    """Return the docstrings below the fields of a struct and its bases; empty where there is no source."""
    out: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if cls is Struct or not issubclass(cls, Struct):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        assert isinstance(body, ast.ClassDef)
        for one, after in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                out[one.target.id] = _text(after) or out.get(one.target.id, "")
    return out


def _text(statement: ast.stmt | None) -> str:
    """Return the text of a docstring on one line; it is empty if the statement is no docstring."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""


def _description(hint: Any) -> str:
    metas = [m for m in get_args(hint)[1:] if isinstance(m, Meta)] if get_origin(hint) is Annotated else []
    return next((m.description for m in metas if m.description), "")


def _default(f: Any) -> str | None:
    if f.default is not NODEFAULT:
        return _toml(f.default)
    return None if f.default_factory is NODEFAULT else _toml(f.default_factory())


def _toml(value: Any) -> str:
    return "none" if value is None else json.dumps(msgspec.to_builtins(value), ensure_ascii=False)


# ---------------------------------------------------------------- JSON Schema


_CHOSEN = {
    # table of the experiment → (key that chooses, key of the options, kind)
    "ProbingPlan": [("waveform", "waveform_options", "probing"), ("estimator", "estimator_options", "csi")],
    "ChainPlan": [(kind, f"{kind}_options", kind) for kind in ("enhance", "quantize", "reconcile")],
    "SurfacePlan": [("policy", "options", "policy")],
    "BeamPlan": [("policy", "options", "beams")],
    "NodePlace": [("driver", "options", "radios"), ("driver", "options", "boards")],
}


def schema(kind: type[Struct]) -> dict[str, Any]:
    """Return the JSON Schema of a file: its tables, and the options of everything that is installed here."""
    out: dict[str, Any] = msgspec.json.schema(kind)
    definitions = out["$defs"]
    for struct in _structs(kind):
        _explain(definitions[struct.__name__], struct)
    for table, choices in _CHOSEN.items():
        if table in definitions:
            rules = [rule for choice in choices for rule in _rules(definitions, *choice)]
            definitions[table]["allOf"] = rules
    return out


def _rules(definitions: dict[str, Any], key: str, below: str, kind: str) -> list[dict[str, Any]]:
    """Return one if-then rule for each name that may be chosen; its options' definitions are added to `definitions`."""
    rules = []
    for name, cls in registry.usable(kind).items():
        struct = options_type(cls)
        if struct is None:
            continue
        (own,), more = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
        title = f"{kind}.{name}"
        definitions |= {k: v for k, v in more.items() if k != struct.__name__}
        definitions[title] = more[struct.__name__] if "$ref" in own else own
        _explain(definitions[title], struct)
        when: dict[str, Any] = {"properties": {key: {"const": name}}, "required": [key]}
        if kind in ("radios", "boards"):
            role = {"const": "ris"} if kind == "boards" else {"not": {"const": "ris"}}
            when = {"properties": {key: {"const": name}, "role": role}, "required": [key, "role"]}
        rules.append({"if": when, "then": {"properties": {below: {"$ref": f"#/$defs/{title}"}}}})
    return rules


def _explain(definition: dict[str, Any], struct: type[Struct]) -> None:
    """Put the fields' meanings into a schema's definition."""
    meanings = _meanings(struct)
    for name, entry in definition.get("properties", {}).items():
        if meanings.get(name) and "description" not in entry:
            entry["description"] = meanings[name]


def _structs(kind: type[Struct]) -> list[type[Struct]]:
    """Return a struct and all structs in its fields."""
    found: dict[type[Struct], None] = {}

    def walk(hint: Any) -> None:
        if isinstance(hint, type) and issubclass(hint, Struct) and hint not in found:
            found[hint] = None
            for f in msgspec.structs.fields(hint):
                walk(f.type)
        for part in get_args(hint):
            walk(part)

    walk(kind)
    return list(found)
