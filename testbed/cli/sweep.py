"""The command that runs every point of a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from testbed.cli.app import InProcessOption, JsonOption, QuietOption, VerboseOption, app
from testbed.cli.runs import stop_on_signals
from testbed.cli.terminal import aside, print_json, say
from testbed.core import logs
from testbed.core.words import counted


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="Grid file (docs/sweep.md).", metavar="GRID.toml")],
    out: Annotated[Optional[Path], typer.Option(help="Default: sweeps/NAME.", metavar="DIR")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option("--resume", help="Continue the sweep in DIR.")] = False,
    scheduler: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Dask scheduler on whose workers the runs are done.", metavar="ADDRESS"),
    ] = None,
    in_process: InProcessOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run every point of a grid, as experiments or as replays of a recording, and write a table and a page.

    The results of finished runs are kept even if the sweep is killed; --resume continues it. Exit status 1 where a run
    failed.
    Example: testbed sweep grid.toml --resume
    """
    logs.configure(verbose)
    from testbed.lab import sweep as sweeping
    from testbed.report import sweep as page

    folder = out or Path("sweeps") / grid.stem
    tell = aside(quiet)
    try:
        swept = sweeping.run(grid, folder, resume, scheduler, tell, stop_on_signals, in_process)
    except sweeping.Stopped as exc:
        say(f"testbed: {grid}: {exc}")
        raise typer.Exit(130) from exc
    title = swept.grid.file.title or grid.stem
    where = page.make(swept.rows, swept.grid.parameters, title, folder / sweeping.PAGE)
    if as_json:
        told = {"table": str(swept.table), "page": str(where), "done": len(swept.rows) - swept.failed}
        print_json({**told, "failed": swept.failed, "rows": swept.rows})
    else:
        print(f"{counted(len(swept.rows), 'run')}, {swept.failed} failed; table: {swept.table}; page: {where}")
    if swept.failed:
        raise typer.Exit(1)
