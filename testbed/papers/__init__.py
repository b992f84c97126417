"""The five papers, one folder each: its model, its solvers, its studies. `kit` holds what they share.

A study reproduces a paper's figures: parameters, curves, claims. It is a file `study.py`, named after its folder, or
`study_NAME.py`, or a module installed under the entry point `testbed.studies`; it has `PAPER` (the paper's letter, or
another subject) and `run(study)`, which fills the `Study` that it receives. With `study.quick` it takes under a minute
and makes the same claims; two runs give the same results. They are written to `results.json`, with a PNG for each
figure beside it. Claims that do not hold are results like any other; a claim that our own code must satisfy, whatever
the paper says, is marked `must_hold`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testbed.core import folders, registry
from testbed.core.whole import write_whole
from testbed.papers.kit.study import Study


def names() -> list[str]:
    """Return the names that `run` accepts; nothing is imported."""
    return registry.names("studies")


def run(
    name: str,
    out: Path,
    quick: bool = False,
    scheduler: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run a study and write `results.json` and its figures into `out`; returns what results.json holds.

    `scheduler`: address of a Dask scheduler that does the work instead of this machine. `say` receives the progress.
    """
    from testbed.papers.kit import figures

    module = registry.find("studies", name)
    with folders.reserved(out):
        began_s = time.perf_counter()
        with Study(name, module.PAPER, quick, scheduler, say) as study:
            module.run(study)
        results = study.results(time.perf_counter() - began_s)
        write_whole(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n", private=False)
        for figure, content in results["figures"].items():
            figures.draw(content, out / f"{figure}.png")
    return results
