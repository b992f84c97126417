"""The documentation site: it is built strictly, and what is made from the code is in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.core import registry

pytest.importorskip("material", reason="mkdocs-material is not installed (extra `docs`)")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "pages.py"), "--out", str(out)],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_thing_with_a_name_and_every_page_is_there(site: Path) -> None:
    stages = (site / "made" / "stages.html").read_text(encoding="utf-8")
    for kind in ("quantize", "attacks", "radios", "health"):
        for name in registry.names(kind, ours=True):
            assert re.search(rf"<h3[^>]*>{kind} {name}<", stages), f"{kind} {name}"
    assert "<code>guard</code>" in stages, "an option of a quantizer"
    commands = (site / "made" / "commands.html").read_text(encoding="utf-8")
    assert {"testbed run", "testbed sweep", "testbed ris apply"} <= set(re.findall(r"<h2[^>]*>([a-z ]+)<", commands))
    assert "repetitions" in (site / "made" / "files.html").read_text(encoding="utf-8")
    assert "check_quantizer" in (site / "made" / "python.html").read_text(encoding="utf-8")
    assert "holds" in (site / "studies" / "pkgnet" / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        shown = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / shown).exists() or (site / shown.parent / "index.html").exists(), page


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in (site / "index.html", site / "made" / "stages.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.read_text(encoding="utf-8"))
        assert [where for where in loaded if where.startswith(("http", "//"))] == []
