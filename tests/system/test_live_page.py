"""The live page, end to end: a run in its own processes, its page in a browser, and what may not reach it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chromium import Browser, find

from testbed import config
from testbed.core.config import Experiment, Lab

pytest.importorskip("starlette", reason="the extra `live` is not installed")
pytest.importorskip("uvicorn", reason="the extra `live` is not installed")


DASHES = "[...document.querySelectorAll('#spectra .u-marker line')].map((l) => l.getAttribute('stroke-dasharray'))"
SAID = """
said = [];
new MutationObserver(() => said.push(document.getElementById("state").textContent))
  .observe(document.getElementById("state"), {childList: true, characterData: true, subtree: true});
"""


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A run far longer than the test, at the pace of the clock, that distils nothing, with its page's address."""
    lab = tmp_path / "lab.toml"
    lab.write_text(config.find(Lab, "sim").read_text().replace('pace = "virtual"', 'pace = "wall"'))
    text = config.find(Experiment, "static_room").read_text()
    experiment = tmp_path / "long.toml"
    experiment.write_text(re.sub(r"block_rounds = \d+", "block_rounds = 100000", text))
    assert experiment.read_text() != text
    environment = {**os.environ, "TESTBED_STATE": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "testbed", "run", str(experiment), "--rounds", "100000", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--lab", str(lab), "--live"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.match(r"live: (http://127\.0\.0\.1:\d+/)", line):
                yield process, found[1]
                break
        else:
            pytest.fail("".join(lines))
    finally:
        if process.poll() is None:
            for _ in range(3):
                process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()


def answer(url: str, method: str = "GET", **headers: str) -> int:
    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=120) as told:
            return int(told.status)
    except urllib.error.HTTPError as exc:
        return exc.code


def rounds_told(url: str) -> Iterator[int]:
    """Yield the number of rounds that one page receives."""
    with urllib.request.urlopen(url + "events", timeout=120) as told:
        for line in told:
            if line.startswith(b"data: "):
                yield int(json.loads(line[6:])["rounds"])


def test_a_run_is_watched_in_a_browser_and_stopped_from_it(live_run: Any, tmp_path: Path) -> None:
    process, url = live_run
    with Browser(find(), tmp_path / "profile") as browser:
        browser.open(url)
        browser.wait("state.last && state.last.state === 'live' && state.points.length > 2")
        assert browser.value("document.getElementById('state').textContent") == "running"
        for plot in ("spectra", "p-r", "p-snr", "p-cfo"):
            browser.wait(f"document.querySelectorAll('#{plot} canvas').length")
        browser.wait("document.querySelectorAll('#planes canvas').length === 4")
        # without colours, too, a legend tells its curves apart
        assert len(set(browser.value(DASHES))) == 4
        before = browser.value("state.last.rounds")
        browser.wait(f"state.last.rounds > {before}")
        # keys: f freezes what is shown, not the run
        browser.key("f")
        assert browser.value("document.getElementById('freeze').textContent") == "Go on showing (f)"
        shown = browser.value("document.getElementById('f-round').textContent")
        browser.wait(f"state.last.rounds > parseInt('{shown}')")
        assert browser.value("document.getElementById('f-round').textContent") == shown
        browser.key("f")
        browser.wait(f"document.getElementById('f-round').textContent !== '{shown}'")
        # p pauses the run, and p lets it go on
        browser.key("p")
        browser.wait("state.last.paused")
        assert browser.value("document.getElementById('state').textContent") == "paused: no round is begun"
        assert browser.value("document.getElementById('pause').textContent") == "Go on with the run (p)"
        browser.key("p")
        browser.wait("!state.last.paused")
        before = browser.value("state.last.rounds")
        browser.wait(f"state.last.rounds > {before}")
        # a phone: nothing is wider than the screen
        browser.resize(390, 844)
        browser.wait("document.documentElement.clientWidth === 390")
        browser.wait("document.documentElement.scrollWidth <= 390")
        browser.resize(1280, 900)
        # nothing from anywhere else
        assert {request.split("/")[2] for request in browser.requests} == {url.split("/")[2]}
        # after a stop it never says again that it is running
        browser.value(SAID)
        browser.value("setTimeout(() => ask('stop'), 0)")
        browser.wait("document.getElementById('state').textContent.startsWith('over') || state.last.state === 'closed'")
        said = browser.value("said")
        stopping = [text.startswith("stopping: the present round is finished") for text in said]
        assert any(stopping)
        assert not any(text.startswith("running") for text in said[stopping.index(True) :])
        assert browser.errors == []
        assert process.wait(200) == 130
        # the page was open to the end
        assert "Traceback" not in process.stderr.read()


def test_neither_a_browser_that_never_reads_nor_a_stranger_reaches_the_run(live_run: Any) -> None:
    process, url = live_run
    address = ("127.0.0.1", int(url.rsplit(":", 1)[1].rstrip("/")))
    sleepers = []
    for _ in range(5):
        s = socket.create_connection(address)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        s.sendall(f"GET /events HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n\r\n".encode())
        sleepers.append(s)
    grown = [n for n, _ in zip(rounds_told(url), range(20), strict=False)]
    assert grown == sorted(grown)
    assert len(set(grown)) > 5, "the run goes on, and this page is told"
    for s in sleepers:
        s.close()
    assert answer(url) == 200
    port = url.rsplit(":", 1)[1].rstrip("/")
    assert answer(url, Host=f"rebound.example:{port}") == 403
    assert answer(url + "events", Origin="http://elsewhere.example") == 403
    assert answer(url + "control/halt", "POST") == 403
    assert answer(url + "control/halt", "POST", x_token="guess") == 403
    with urllib.request.urlopen(url, timeout=120) as page:
        token = json.loads(re.search(r"const settings = (\{.*?\});", page.read().decode())[1])["token"]  # type: ignore[index]
        assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert answer(url + "control/format", "POST", x_token=token) == 404
    assert answer(url + "control/halt", "POST", x_token=token, Origin="http://elsewhere.example") == 403
    assert answer(url + "control/halt") == 405
    assert process.poll() is None
    assert answer(url + "control/halt", "POST", x_token=token) == 200
    assert process.wait(200) == 130


def test_a_run_that_is_over_has_a_page_without_orders(tmp_path: Path) -> None:
    from testbed.live import server

    html = server.page("token", controls=False)
    assert '"controls": false' in html
    assert "uPlot" in html
    ours = ("leeoniya/uPlot", "http://www.w3.org/2000/svg")  # a licence's address, and the name of a namespace
    outside = [url for url in re.findall(r"https?://[^\s\"'<>)]+", html) if not any(name in url for name in ours)]
    assert outside == []
    assert "<script src" not in html
    licence = Path(server.__file__).parent / "page" / "uplot" / "LICENSE"
    assert "MIT" in licence.read_text()
