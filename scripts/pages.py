#!/usr/bin/env python3
"""Builds the documentation site (extra `docs`): the pages of docs/ as they are, and pages made from the code.

This script makes pages of every stage, driver, check and attack with its options; of the tables of experiment, lab, map
and grid; of the commands; of the Python interface; and of each study, with the paper's claims and our results. A broken
link makes the build fail. The site loads nothing from other servers.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SECTIONS: dict[str, list[str]] = {
    "Start": [
        "index.md",
        "first-day-on-air.md",
        "live.md",
        "datasets.md",
        "sweep.md",
        "paper.md",
        "troubleshooting.md",
    ],
    "Who knows the key": ["what-eve-knows.md", "threats.md"],
    "Topics": ["beams.md", "reciprocity.md", "clients.md", "pace.md", "reliability.md", "others.md"],
    "Reference": ["made/commands.md", "made/files.md", "made/stages.md", "made/python.md", "glossary.md", "citing.md"],
    "House": ["architecture.md", "states.md", "CONTRIBUTING.md", "CHANGELOG.md"],
}
"""Pages in the navigation, in order. How-to pages, decisions and studies have sections of their own; all other pages
come at the end of the topics."""


def cell(text: Any) -> str:
    """Return text that may stand in a table's cell."""
    return escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")


def code(text: Any) -> str:
    return f"`{str(text).replace('|', chr(92) + '|')}`" if str(text) else ""


# ---------------------------------------------------------------- pages from the code


def options(struct: Any) -> Iterator[str]:
    from testbed.config import describe

    rows = describe.fields(struct)
    if rows:
        yield "| key | default | accepted | meaning |\n|---|---|---|---|"
    for f in rows:
        default = "must be given" if f.default is None else code(f.default)
        yield f"| {code(f.name)} | {default} | {cell(f.accepted)} | {cell(f.meaning)} |"


def stages() -> str:
    """Return the page of everything that the registry finds by name, with its options."""
    from testbed.config import describe
    from testbed.core import registry

    out = [
        "# Stages, drivers, checks and attacks",
        "Everything that a file or a command refers to by name, as `testbed list` prints it.",
    ]
    for key, kind in registry.KINDS.items():
        out.append(f"## {key}: {kind.what}")
        for name, thing in registry.usable(key).items():
            out += [f"### {key} {name}", escape(describe.summary(thing), quote=False)]
            struct = describe.options_type(thing)
            out.append("\n".join(options(struct)) if struct is not None else "")
    return "\n\n".join(out)


def files() -> str:
    """Return the page of all tables of the files that a user writes."""
    from testbed.config.describe import _structs
    from testbed.core.config import ChainFile, Experiment, Lab
    from testbed.lab.grid import GridFile
    from testbed.replay.map import MapFile

    out, told = ["# Tables of the files that you write"], set()
    for title, kind in (
        ("experiment.toml", Experiment), ("lab.toml", Lab), ("chain.toml", ChainFile), ("map.toml", MapFile),
        ("grid.toml", GridFile),
    ):  # fmt: skip
        out.append(f"## {title}")
        for struct in _structs(kind):
            if struct in told:
                continue
            told.add(struct)
            doc = "" if struct is kind else inspect.cleandoc(struct.__doc__ or "")
            out += [f"### {struct.__name__}", escape(doc, quote=False), "\n".join(options(struct))]
    return "\n\n".join(out)


def commands() -> str:
    """Return the page with the help of every command."""
    import typer

    from testbed.cli import app

    out = ["# Commands", "Exit status: 0 success, 1 a failed run, 2 bad input (one line), 130 stopped by Ctrl-C."]

    def tell(command: Any, name: str) -> None:
        if getattr(command, "hidden", False):
            return
        if hasattr(command, "commands"):
            for below, inner in sorted(command.commands.items()):
                tell(inner, f"{name} {below}")
            return
        context = typer.Context(command, info_name=name, terminal_width=100, max_content_width=100)
        out.append(f"## {name}\n\n```\n{command.get_help(context).strip()}\n```")

    tell(typer.main.get_command(app), "testbed")
    return "\n\n".join(out)


def python() -> str:
    """Return the page with signatures and docstrings of what a notebook or an extension uses."""
    import testbed.replay
    from testbed import testing
    from testbed.assess import health
    from testbed.core import radio, ris, stages, types, world
    from testbed.entropy import attack
    from testbed.lab import run
    from testbed.records import dataset, recorded
    from testbed.report import section

    groups = {
        "A run, opened and replayed": [run.run, dataset.open_run, type(testbed.replay).__call__],
        "A run as it was recorded": own(recorded), "What stages exchange": own(types), "Stages": own(stages),
        "Devices": [*own(radio), *own(ris), *own(world)],
        "Attacks, health checks, report sections": [*own(attack), *own(health), *own(section)],
        "Conformance suites": own(testing),
    }  # fmt: skip
    out = [
        "# Python",
        "`import testbed`: `testbed.run`, `testbed.open`, `testbed.replay`. Extensions use the contracts below.",
    ]
    for title, things in groups.items():
        out.append(f"## {title}")
        for thing in things:
            out += [f"### {thing.__qualname__.removeprefix('_Callable.')}", signature(thing), documented(thing)]
    return "\n\n".join(out)


def own(module: Any) -> list[Any]:
    """Return the public classes and functions that a module defines, or lists."""
    listed = getattr(module, "__all__", None)
    names = listed if listed else [n for n in vars(module) if not n.startswith("_")]
    things = [getattr(module, n) for n in names]
    return [
        t for t in things
        if (inspect.isclass(t) or inspect.isfunction(t)) and (listed or t.__module__ == module.__name__)
    ]  # fmt: skip


def signature(thing: Any) -> str:
    try:
        return f"```python\n{thing.__name__}{inspect.signature(thing)}\n```"
    except (TypeError, ValueError):
        return ""


def documented(thing: Any) -> str:
    text = f"```text\n{inspect.getdoc(thing) or ''}\n```"
    if not inspect.isclass(thing):
        return text
    rows = []
    for name, member in vars(thing).items():
        member = getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(member) and member.__doc__:
            rows.append(f"- `{name}{inspect.signature(member)}` – {escape(inspect.getdoc(member) or '', quote=False)}")
    return "\n".join([text, "", *(row.replace("\n", " ") for row in rows)])


def study(folder: Path) -> str:
    """Return the page of a study: its figures, and the paper's claims with our results."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    out = [f"# Study {results['study']}", f"Paper {results['paper']}; made by `testbed study {results['study']}`."]
    rows = ["| claim | paper | here | |\n|---|---|---|---|"]
    for row in results["claims"]:
        paper, here = ("–" if row[k] is None else cell(_short(row[k])) for k in ("paper", "measured"))
        rows.append(f"| {cell(row['claim'])} | {paper} | {here} | {'holds' if row['holds'] else '**does not hold**'} |")
    out.append("\n".join(rows))
    for name, figure in results["figures"].items():
        if (folder / f"{name}.png").exists():
            out.append(f"## {cell(figure['title'])}\n\n![{cell(figure['title'])}]({name}.png)")
    return "\n\n".join(out)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_short(v)}" for k, v in value.items())
    return str(value)


# ---------------------------------------------------------------- the site


def links(text: str, page: Path, source: Path) -> str:
    """Return a page with its links changed to those of the site; a link to a file that is not on the site becomes
    text."""

    def one(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        real = (source.parent / target).resolve()
        if real.is_dir():
            real = real / "README.md"
        place = ROOT / "docs"
        inside = real.relative_to(place) if real.is_relative_to(place) else None
        if real.parent == ROOT and real.name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
            inside = Path("index.md" if real.name == "README.md" else real.name)
        if inside is None or inside.suffix == ".ipynb" or not real.exists():
            return label if found[0].startswith("[") else ""
        return f"{found[0][0] if found[0][0] == '!' else ''}[{label}]({os.path.relpath(inside, page.parent)}{anchor})"

    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"!?\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)", one, parts[i])
    return "".join(parts)


def gather(pages: Path) -> list[Any]:
    """Put every page of the site into a folder; return the navigation."""
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("notebooks", "*.toml"))
    for path in (ROOT / "docs").rglob("*.md"):
        page = path.relative_to(ROOT / "docs")
        (pages / page).write_text(links(path.read_text(encoding="utf-8"), page, path), encoding="utf-8")
    for name, page in (("README.md", "index.md"), ("CONTRIBUTING.md",) * 2, ("CHANGELOG.md",) * 2):
        text = links((ROOT / name).read_text(encoding="utf-8"), Path(page), ROOT / name)
        (pages / page).write_text(text, encoding="utf-8")
    (pages / "citing.md").write_text(
        f"# Citing\n\n```yaml\n{(ROOT / 'CITATION.cff').read_text()}```\n", encoding="utf-8"
    )
    (pages / "made").mkdir()
    for make in (stages, files, commands, python):
        (pages / "made" / f"{make.__name__}.md").write_text(make() + "\n", encoding="utf-8")
    studies = []
    for results in sorted(pages.glob("studies/*/results.json")):
        page = results.parent / "index.md"
        page.write_text(study(results.parent) + "\n", encoding="utf-8")
        studies.append(str(page.relative_to(pages)))
    nav: list[Any] = [{title: [p for p in found if (pages / p).exists()]} for title, found in SECTIONS.items()]
    for title, folder in (("How-to", "how-to"), ("Decisions", "decisions")):
        nav.append({title: sorted(str(p.relative_to(pages)) for p in (pages / folder).glob("*.md"))})
    nav.append({"Studies": ["studies/README.md", *studies]})
    listed = {page for section in nav for found in section.values() for page in found}
    others = sorted({str(p.relative_to(pages)) for p in pages.rglob("*.md")} - listed)
    next(section for section in nav if "Topics" in section)["Topics"] += others  # a new page needs no entry above
    return nav


def settings(pages: Path, out: Path, nav: list[Any]) -> dict[str, Any]:
    return {
        "site_name": "RIS secret-key testbed", "docs_dir": str(pages), "site_dir": str(out), "nav": nav,
        "strict": True, "use_directory_urls": False,
        "theme": {"name": "material", "font": False, "features": ["navigation.tabs", "content.code.copy"]},
        "markdown_extensions": ["tables", "fenced_code", "attr_list", {"toc": {"permalink": True, "toc_depth": 3}}],
        "plugins": ["search"],
        "validation": {"links": {"not_found": "warn", "anchors": "warn"}, "nav": {"omitted_files": "warn"}},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="default: build/site")
    parser.add_argument("--serve", action="store_true", help="serve it on loopback while it is edited")
    asked = parser.parse_args()
    work = asked.out.resolve().parent / f"{asked.out.name}-pages"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    nav = gather(work / "docs")
    path = work / "mkdocs.yml"  # JSON is YAML
    path.write_text(json.dumps(settings(work / "docs", asked.out.resolve(), nav)), encoding="utf-8")
    order = ["serve"] if asked.serve else ["build", "--strict"]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *order, "--config-file", str(path)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
