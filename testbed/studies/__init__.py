"""Reproduces the figures of the papers, one file a study: parameters, curves, claims.

A study is a module with `PAPER` (its letter) and `run(study)`, which fills the `Study` it is given. What it found goes
to `results.json`, a PNG a figure beside it. Claims that do not hold are results like any other; what our own code has
to satisfy whatever the paper says is marked `must_hold`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.core.errors import InputError
from testbed.studies._study import Study


def names() -> list[str]:
    """Return the names that `run` accepts: the modules of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def run(
    name: str,
    out: Path,
    quick: bool = False,
    scheduler: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a study and write `results.json` and its figures into `out`; returns what results.json holds.

    `scheduler`: address of a Dask scheduler that does the work instead of this machine. `say` is told how far it is.
    """
    from testbed.report import study_figures

    if name not in names():
        raise InputError(f"no study is called {name!r}; accepted: {', '.join(names()) or 'none'}")
    module = importlib.import_module(f"{__name__}.{name}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"{out}: cannot be made: {exc.strerror}") from exc
    began_s = time.perf_counter()
    with Study(name, module.PAPER, quick, scheduler, say) as study:
        module.run(study)
    results = study.results(time.perf_counter() - began_s)
    (out / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for figure, content in results["figures"].items():
        study_figures.draw(content, out / f"{figure}.png")
    return results
