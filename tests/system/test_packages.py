"""What is built to be installed elsewhere: a source distribution and a wheel, each with its version and its commit."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools_scm", reason="it gives the version: pip install 'setuptools-scm>=9.2'")
ROOT = Path(__file__).resolve().parents[2]
NEEDED = {
    "testbed/_version.py", "testbed/bundled/labs/wire.toml", "testbed/live/page/page.html", "testbed/py.typed",
    "testbed/live/page/uplot/uPlot.iife.min.js", "firmware_ctl/firmware/core/ris.c", "firmware_ctl/firmware/Makefile",
    "sim_backend/world.py",
}  # fmt: skip


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True).stdout


def build(what: str, source: Path, out: Path) -> Path:
    """Build a sdist or a wheel as pip does, in the folder of the sources; return the file."""
    code = f"import sys, setuptools.build_meta as made; print(made.build_{what}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


def told(version_file: str) -> dict[str, str]:
    """Return the names that `_version.py` assigns, by name."""
    found = {}
    for node in ast.parse(version_file).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_both_packages_carry_version_and_commit_and_a_wheel_comes_from_the_sdist_alone(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a repository: the version of what is built here would be another one's")
    subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(tmp_path / "clone")], check=True, timeout=240)
    commit = git("rev-parse", "HEAD").strip()
    sdist = build("sdist", tmp_path / "clone", tmp_path)
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path / "alone", filter="data")
    (source,) = (tmp_path / "alone").iterdir()
    about = told((source / "testbed" / "_version.py").read_text())
    version = about["version"]
    assert source.name.endswith(f"-{version}")
    assert about["commit_id"].removeprefix("g")[:7] == commit[:7]
    assert f"Version: {version}" in (source / "PKG-INFO").read_text().splitlines()
    for also in ("LICENSE", "README.md", "constraints.txt", "docs/live.md", "scripts/run", "tests/unit/test_docs.py"):
        assert (source / also).exists(), also
    wheel = build("wheel", source, tmp_path)  # no repository is around it
    assert f"-{version}-py3" in wheel.name
    with zipfile.ZipFile(wheel) as packed_wheel:
        files = set(packed_wheel.namelist())
        assert NEEDED - files == set()
        assert not [name for name in files if name.startswith(("tests/", "docs/"))]
        packed_wheel.extractall(tmp_path / "installed")
    asked = "import testbed; print(testbed.__version__, testbed.__commit__)"
    said = subprocess.run(
        [sys.executable, "-c", asked], cwd=tmp_path / "installed", capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == [version, about["commit_id"]]
