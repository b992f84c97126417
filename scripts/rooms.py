#!/usr/bin/env python3
"""Draws the package diagram of docs/architecture.md from the current imports; with `--check` it only compares.

A room is a folder of `testbed`, or a backend. An arrow goes from a room to one that it imports. Exit status 1 if the
page is out of date, if a room is missing from the layers of pyproject.toml, or if an arrow goes up.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: made by scripts/rooms.py -->", "<!-- end of rooms -->"
BACKENDS = ("firmware_ctl", "sim_backend")


def room_of(module: str) -> str | None:
    """Return the room of a dotted module name; None for other modules."""
    parts = module.split(".")
    if parts[0] in BACKENDS:
        return parts[0]
    return parts[1] if parts[0] == "testbed" and len(parts) > 1 else None


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a file imports, inside functions too, but not those for type checking only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def arrows() -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """Return the imports from room to room, and the lines of each room."""
    counted: Counter[tuple[str, str]] = Counter()
    lines: Counter[str] = Counter()
    for top in ("testbed", *BACKENDS):
        for path in sorted((ROOT / top).rglob("*.py")):
            own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            if own is None or own.startswith("_"):
                continue
            lines[own] += len(path.read_text(encoding="utf-8").splitlines())
            for name in imports_of(path):
                other = room_of(name)
                if other is not None and other != own and not other.startswith("_"):
                    counted[own, other] += 1
    return counted, lines


def layers() -> list[list[str]]:
    """Return the rooms from top to bottom, in the order of pyproject.toml's import contract."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [
        [room.strip(" ()") for room in layer.split("|")] for layer in contract["layers"] if not layer.startswith("_")
    ]


def page() -> tuple[str, list[str]]:
    """Return the drawn part of the page and the list of faults."""
    counted, lines = arrows()
    order = [*layers(), list(BACKENDS)]
    level = {room: i for i, row in enumerate(order) for room in row}
    wrong = [f"room {room} is in no layer" for room in lines if room not in level]
    for (a, b), n in sorted(counted.items()):
        if a in level and b in level and a not in BACKENDS and level[b] <= level[a]:
            wrong.append(f"an arrow goes up or sideways: {a} imports {b} ({n})")
        if a in BACKENDS and b != "core":
            wrong.append(f"{a} imports testbed.{b}; accepted: testbed.core")
    out = [BEGIN, "", "```mermaid", "flowchart TB"]
    for i, row in enumerate(order):
        out.append(f"  subgraph layer{i}[ ]")
        out += [f'    {room}["{room}<br/>{lines[room]} lines"]' for room in row]
        out.append("  end")
    out += [f"  {a} --> {b}" for (a, b), _ in sorted(counted.items()) if abs(level.get(a, 0) - level.get(b, 0)) <= 99]
    out += ["```", "", "| room | lines | imports |", "|---|---|---|"]
    for room in (room for row in order for room in row):
        others = [f"{b} ({n})" for (a, b), n in sorted(counted.items()) if a == room]
        out.append(f"| `{room}` | {lines[room]} | {', '.join(others) or '–'} |")
    out += [
        "",
        f"{len(lines)} rooms, {len(counted)} arrows, {len(wrong)} of them up, sideways or in a circle.",
        "",
        END,
    ]
    return "\n".join(out), wrong


def main() -> int:
    drawn, wrong = page()
    for line in wrong:
        print(f"rooms: {line}", file=sys.stderr)
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    new = head + drawn + tail
    if "--check" in sys.argv[1:]:
        shown = [line for line in text.splitlines() if "lines" not in line and not line.startswith("| `")]
        wanted = [line for line in new.splitlines() if "lines" not in line and not line.startswith("| `")]
        if shown != wanted:
            print("rooms: docs/architecture.md is out of date: run scripts/rooms.py", file=sys.stderr)
            return 1
        return 1 if wrong else 0
    PAGE.write_text(new, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
