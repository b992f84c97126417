"""The documentation agrees with the code: the picture of the rooms, links, words of the glossary."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.core.errors import Reject

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_the_picture_of_the_rooms_is_that_of_the_code_and_no_arrow_goes_up() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "rooms.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def _explained() -> str:
    return (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def _parsed(*folders: str) -> list[ast.AST]:
    files = [path for folder in folders for path in sorted((ROOT / "testbed" / folder).rglob("*.py"))]
    return [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def _first_arguments(nodes: list[ast.AST], function: str) -> set[str]:
    """Return the literal first arguments of all calls of a function."""
    calls = (n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "id", "") == function and n.args)
    return {n.args[0].value for n in calls if isinstance(n.args[0], ast.Constant)}


def test_every_reason_of_a_rejected_round_is_explained() -> None:
    assert [reason.value for reason in Reject if f"| `{reason.value}` |" not in _explained()] == []


def test_every_reason_why_a_block_gives_no_key_is_explained() -> None:
    nodes = _parsed("chain", "entropy")
    starts = (n.values[0] for n in nodes if isinstance(n, ast.JoinedStr) and n.values)
    texts = (n.value for n in starts if isinstance(n, ast.Constant))
    reasons = {found[1] for text in texts if (found := re.match(r"([a-z]+(?:_[a-z]+)+): ", text))}
    reasons |= _first_arguments(nodes, "DialogueFailed")
    assert {"entropy_exhausted", "not_decoded"} <= reasons
    assert sorted(r for r in reasons if f"`{r}" not in _explained()) == []


def test_every_health_check_is_explained() -> None:
    nodes = _parsed("assess")
    checks = _first_arguments(nodes, "Verdict")
    assigned = (n for n in nodes if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "name")
    checks |= {n.value.value for n in assigned if isinstance(n.value, ast.Constant)}
    for n in nodes:
        if isinstance(n, ast.Dict):
            rows = dict(zip((getattr(k, "value", None) for k in n.keys), n.values, strict=True))
            if "ok" in rows and isinstance(rows.get("check"), ast.Constant):
                checks.add(rows["check"].value)  # type: ignore[union-attr]
    assert {"pairing", "rounds_kept", "keys_equal"} <= checks
    assert sorted(c for c in checks if f"| `{c}` |" not in _explained()) == []


def test_every_attack_of_the_portfolio_is_documented() -> None:
    page = (ROOT / "docs" / "what-eve-knows.md").read_text()
    attacks = {p.stem for p in (ROOT / "testbed" / "entropy" / "attacks").glob("[!_]*.py")}
    assert {"nearest", "eve_now"} <= attacks
    assert sorted(a for a in attacks if f"`{a}`" not in page) == []


def test_every_test_that_the_threats_name_is_there() -> None:
    """A row that names a test which was renamed would be a row that nothing holds."""
    page = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    files = {str(path.relative_to(ROOT)) for path in sources}
    named = set(re.findall(r"`(tests/[a-z_/]+\.py)`", page))
    assert len(named) > 10
    assert sorted(named - files) == []
    stems = {path.stem for path in sources}
    functions = set(re.findall(r"`(test_\w+)", page)) - stems
    assert len(functions) > 20
    everything = "\n".join(sources.values())
    assert sorted(name for name in functions if f"def {name}" not in everything) == []
