"""The live page: a small server on loopback that sends the contents of a run's journal to every open page.

It runs in a process of its own, reads only committed rows, and gathers them once for all pages. Each page receives the
data that it lacks at its own pace, so that a slow page delays no other. A page's requests (`ASKS`) are written as a
line on standard output, for the process that runs the experiment; a request must contain the token that is in the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from testbed.core.errors import InputError, TestbedError
from testbed.live.beside import ASKS
from testbed.live.feed import Feed

PERIOD_S = 0.5
"""Time between two reads of the journal, and between two messages to a page."""
_LAST_MESSAGES = 12
"""Most messages to a page after the server was told to end, until one says that the run is closed."""
MAX_PAGES = 16
_LAST_LOOK_S = 1.5
"""The server runs for this time after the end of the run's process, so that pages can show how the run ended."""


def page(token: str, controls: bool) -> str:
    """Return the page, self-contained: scripts and styles are inside, nothing is fetched from anywhere."""
    folder = resources("testbed.live") / "page"
    html = (folder / "page.html").read_text(encoding="utf-8")
    parts = {
        "/*uplot.css*/": (folder / "uplot" / "uPlot.min.css").read_text(encoding="utf-8"),
        "/*page.css*/": (folder / "page.css").read_text(encoding="utf-8"),
        "/*uplot.js*/": (folder / "uplot" / "uPlot.iife.min.js").read_text(encoding="utf-8"),
        "/*page.js*/": (folder / "page.js").read_text(encoding="utf-8"),
        '"{settings}"': json.dumps({"token": token, "controls": controls, "period_s": PERIOD_S}),
    }
    for mark, text in parts.items():
        html = html.replace(mark, text)
    return html


def application(
    feed: Feed, ask: Callable[[str], None] | None, token: str, port: int, is_over: Callable[[], bool] = lambda: False
) -> Any:
    """Return the ASGI application; `ask` is called with a page's request to the run, None where none is accepted.

    is_over: whether the server is about to end, upon which the streams of the open pages end by themselves.

    Raises InputError where the extra `live` is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
        from starlette.routing import Route
    except ImportError as exc:
        raise InputError("the live page needs starlette; accepted: pip install 'ris-skg-testbed[live]'") from exc

    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
    pages = 0

    def foreign(request: Request) -> bool:
        """Whether a request names another host, as from a web site whose name resolves to loopback (DNS rebinding)."""
        origin = request.headers.get("origin")
        return request.headers.get("host") not in hosts or origin not in (None, *(f"http://{host}" for host in hosts))

    async def show(request: Request) -> Response:
        if foreign(request):
            return PlainTextResponse("accepted: requests to 127.0.0.1 or localhost only", 403)
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        headers = {
            "Content-Security-Policy": f"{policy}; img-src data:; frame-ancestors 'none'; base-uri 'none'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        return HTMLResponse(page(token, ask is not None), headers=headers)

    async def events(request: Request) -> Response:
        nonlocal pages
        if foreign(request):
            return PlainTextResponse("accepted: requests to 127.0.0.1 or localhost only", 403)
        if pages >= MAX_PAGES:
            return PlainTextResponse(f"{MAX_PAGES} pages of this run are open already; close one of them", 503)

        async def tell() -> AsyncIterator[str]:
            nonlocal pages
            pages += 1
            try:
                cursor, before, last = None, "", _LAST_MESSAGES
                while last:
                    last -= is_over()
                    message, cursor = await asyncio.to_thread(feed.message, cursor)
                    text = json.dumps(message, allow_nan=False, separators=(",", ":"))
                    # The comment line keeps the connection open, and sending it fails where the page was closed.
                    yield f"data: {text}\n\n" if text != before else ": same\n\n"
                    before = text
                    if last < _LAST_MESSAGES and message["state"] == "closed":
                        return
                    await asyncio.sleep(PERIOD_S)
            finally:
                pages -= 1

        return StreamingResponse(tell(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def control(request: Request) -> Response:
        if foreign(request) or not secrets.compare_digest(request.headers.get("x-token", ""), token):
            return PlainTextResponse("the request lacks the page's token; reload the page", 403)
        what = request.path_params["what"]
        if ask is None or what not in ASKS:
            return PlainTextResponse(f"accepted: {', '.join(ASKS)} of a run that was started with --live", 404)
        ask(what)
        return PlainTextResponse("asked")

    @contextlib.asynccontextmanager
    async def growing(_: Any) -> AsyncIterator[None]:
        async def grow() -> None:
            while True:
                try:
                    await asyncio.to_thread(feed.poll)
                except TestbedError as exc:
                    print(f"testbed: {exc}", file=sys.stderr, flush=True)
                await asyncio.sleep(PERIOD_S)

        task = asyncio.create_task(grow())
        try:
            yield
        finally:
            task.cancel()

    routes = [Route("/", show), Route("/events", events), Route("/control/{what}", control, methods=["POST"])]
    return Starlette(routes=routes, lifespan=growing)


def serve(folder: Path, port: int = 0, supervised: bool = False, ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve a run's page on 127.0.0.1 until interrupted; port 0 chooses a free one, `ready` is called with the address.

    `supervised`: a run started this process. Requests of pages are then printed, as a line of JSON each, and the server
    ends soon after its standard input is closed, which also happens when the run's process dies.
    """
    try:
        import uvicorn
    except ImportError as exc:
        raise InputError("the live page needs uvicorn; accepted: pip install 'ris-skg-testbed[live]'") from exc
    feed = Feed(folder, expected=supervised)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(64)  # a browser may connect as soon as it has the address; it waits in the queue
    except OSError as exc:
        raise InputError(f"port {port}: {exc.strerror}; accepted: a free port, or 0 for any") from exc
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    ask = (lambda what: print(json.dumps({"ask": what}), flush=True)) if supervised else None
    asgi = application(
        feed, ask, secrets.token_urlsafe(24), listening.getsockname()[1], lambda: bool(server.should_exit)
    )
    config = uvicorn.Config(asgi, log_level="error", access_log=False, timeout_graceful_shutdown=8)
    server = uvicorn.Server(config)
    if supervised:
        threading.Thread(target=_leave_after, args=(server,), daemon=True).start()
    ready(address)
    server.run(sockets=[listening])


def _leave_after(server: Any) -> None:
    sys.stdin.read()
    threading.Event().wait(_LAST_LOOK_S)
    server.should_exit = True
