"""Plain values as TOML, for lab and experiment files that the testbed writes itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def inline(value: Any) -> str:
    """Return a plain value (text, number, true, list, table) as TOML, on one line.

    >>> inline({"rows": 2, "name": "a b", "timed": True})
    '{rows = 2, name = "a b", timed = true}'
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def document(table: Mapping[str, Any]) -> str:
    """Return a file's tables as TOML, a line each."""
    return "".join(f"{_key(k)} = {inline(v)}\n" for k, v in table.items())


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else inline(name)
