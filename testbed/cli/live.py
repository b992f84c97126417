"""Commands that show a run while it goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from testbed.cli.app import SupervisedOption, app
from testbed.cli.terminal import say


@app.command()
def live(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, going on or ended.", metavar="RUN")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 chooses a free one.")] = 0,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    supervised: SupervisedOption = False,
) -> None:
    """Serve a run's live page on this machine until Ctrl-C; another machine can reach it through an ssh tunnel.

    Example: testbed live runs/20260101-120000-mobile_room --open
    """
    from testbed.live import server

    def ready(url: str) -> None:
        if supervised:
            print(json.dumps({"url": url}), flush=True)
            return
        say(f"live: {url} (Ctrl-C ends it)")
        if open_it:
            import webbrowser

            webbrowser.open(url)

    server.serve(folder, port, supervised, ready)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, going on or ended.", metavar="RUN")],
) -> None:
    """Follow a run in a terminal, over ssh for instance: links, correlation, key bits, rejections.

    Example: testbed watch runs/20260101-120000-mobile_room
    """
    from testbed.live import watch as watching

    watching.watch(folder, print, sys.stdout.isatty())


@app.command()
def stream(
    folder: Annotated[Path, typer.Argument(help="Folder of a run that is going on.", metavar="RUN")],
    bind: Annotated[str, typer.Option(help="tcp://127.0.0.1:PORT or ipc://PATH.", metavar="ENDPOINT")] = (
        "tcp://127.0.0.1:5570"
    ),
) -> None:
    """Publish a run's CSI to other programs on this machine (ZeroMQ PUB), probe by probe, until it is over.

    Example: testbed stream runs/20260101-120000-mobile_room --bind ipc:///tmp/csi
    """
    from testbed.live import stream as streaming

    told = streaming.publish(folder, bind, lambda where: say(f"publishing on {where}"))
    say(f"the run is over: {told:,} probes")
