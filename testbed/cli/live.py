"""Commands that show a run while it goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.cli.app import JsonOption, QuietOption, SupervisedOption, app
from testbed.cli.terminal import aside, print_json, say
from testbed.core.words import counted


@app.command()
def live(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, going on or ended.", metavar="RUN")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 chooses a free one.")] = 0,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    supervised: SupervisedOption = False,
) -> None:
    """Serve a run's live page on this machine until Ctrl-C; another machine can reach it through an ssh tunnel.

    Example: testbed live runs/20260101-120000-mobile_room --open
    """
    from testbed.live import server

    def ready(url: str) -> None:
        if supervised or as_json:
            print(json.dumps({"url": url}), flush=True)
        else:
            say(f"live: {url}" + ("" if quiet else " (Ctrl-C ends it)"))
        if open_it and not supervised:
            import webbrowser

            webbrowser.open(url)

    server.serve(folder, port, supervised, ready)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, going on or ended.", metavar="RUN")],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Follow a run in a terminal, over ssh for instance: links, correlation, key bits, rejections.

    --json: an object a line; --quiet: nothing before the run is over.

    Example: testbed watch runs/20260101-120000-mobile_room
    """
    from testbed.live import watch as watching

    drawn = sys.stdout.isatty() and not (as_json or quiet)

    def tell(told: dict[str, Any]) -> None:
        if as_json:
            print_json(watching.figures(told))
        else:
            print(watching.line(told), flush=True)

    watching.watch(folder, tell, drawn, quiet)


@app.command()
def stream(
    folder: Annotated[Path, typer.Argument(help="Folder of a run that is going on.", metavar="RUN")],
    bind: Annotated[str, typer.Option(help="tcp://127.0.0.1:PORT or ipc://PATH.", metavar="ENDPOINT")] = (
        "tcp://127.0.0.1:5570"
    ),
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Publish a run's CSI to other programs on this machine (ZeroMQ PUB), probe by probe, until it is over.

    Example: testbed stream runs/20260101-120000-mobile_room --bind ipc:///tmp/csi
    """
    from testbed.live import stream as streaming

    told = streaming.publish(folder, bind, lambda where: aside(quiet or as_json)(f"publishing on {where}"))
    if as_json:
        print_json({"probes": told})
    else:
        say(f"the run is over: {counted(told, 'probe')}")
