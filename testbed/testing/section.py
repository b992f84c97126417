"""The contract of a section of the report (`report.section.Section`)."""

from __future__ import annotations

import functools
import html.parser
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from testbed.records import documents, reader
from testbed.records.writer import RunWriter
from testbed.report.section import Section
from testbed.report.view import View
from testbed.testing._suite import Suite, check

_VOID = frozenset(("meta", "br", "img", "link", "hr"))


def check_report_section(make: Callable[[], Section]) -> None:
    """Raise AssertionError unless the section that `make` returns keeps the contract."""
    check(ReportSectionSuite, make)


def record(folder: Path, rounds: int, private: bool = False, closed: bool = True) -> None:
    """Write an invented run of Alice, Bob and Eve, whose names and title contain characters that must be escaped."""
    rng = np.random.default_rng(5)
    lab = {"name": "made <up>", "node": {n: {"role": n, "driver": "sim"} for n in ("alice", "bob", "eve")}}
    experiment = {
        "schema": 1, "title": "Made up <room> & more", "mode": "private" if private else "experiment",
        "scene": {"alice": {"position_m": [0, 0, 1]}, "bob": {"position_m": [3, 0, 1]}},
        "accounting": {"block_rounds": 20},
    }  # fmt: skip
    writer = RunWriter(folder, documents.start(experiment, lab, subcarrier_hz=np.arange(8) * 1e5))
    writer.event("note", {"text": "<script>alert(1)</script>"})
    for r in range(rounds):
        h = (rng.normal(size=(1, 1, 8)) + 1j * rng.normal(size=(1, 1, 8))).astype(np.complex64)
        for link in ("alice>bob", "bob>alice", "alice>eve", "bob>eve"):
            receiver = link.split(">")[1]
            writer.probe(r, receiver, link, r * 0.1, 20.0, 0.0, -30.0, None, None if private else h)
        writer.round(r, r % 9 != 2, "low_snr" if r % 9 == 2 else None, None, r * 0.1)
    if closed:
        writer.close(documents.stop("ok"), {})
    else:
        writer.flush()


_KINDS = {
    "a run": (30, False, True),
    "no round": (0, False, True),
    "private": (30, True, True),
    "live": (30, False, False),
}
"""Name → what `record` is told."""


@functools.cache
def _recorded() -> tempfile.TemporaryDirectory[str]:
    """Record a run of every kind once in a process; sections only read them."""
    top = tempfile.TemporaryDirectory()
    for what, given in _KINDS.items():
        record(Path(top.name) / what, *given)
    return top


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a <{tag}> before it"
        assert self.open[-1] == tag, f"</{tag}> where <{self.open[-1]}> is open"
        self.open.pop()


class ReportSectionSuite(Suite):
    """`make()` returns a section."""

    contract = "report section"

    @contextmanager
    def views(self) -> Iterator[dict[str, View]]:
        """Yield runs of every kind, by a name for messages."""
        yield {what: View(reader.load(Path(_recorded().name) / what)) for what in _KINDS}

    def test_has_a_place_and_titles(self) -> None:
        section = self.fresh()
        assert isinstance(section.order, int)
        assert section.short
        assert section.title

    def test_renders_every_kind_of_run_as_whole_html(self) -> None:
        section = self.fresh()
        with self.views() as views:
            for what, view in views.items():
                if not section.shows(view):
                    continue
                text = section.html(view)
                assert text.strip(), f"{what}: the section is empty; it must give a reason"
                page = _Page(text)
                assert not page.open, f"{what}: <{'>, <'.join(page.open)}> not closed"

    def test_loads_nothing_and_escapes_what_was_recorded(self) -> None:
        section = self.fresh()
        with self.views() as views:
            for what, view in views.items():
                if not section.shows(view):
                    continue
                page = _Page(section.html(view))
                for tag, attributes in page.tags:
                    assert tag not in ("script", "link", "iframe", "room", "up"), f"{what}: <{tag}>"
                    for key in ("src", "href"):
                        value = attributes.get(key) or ""
                        assert value.startswith(("data:", "#")) or not value, f"{what}: {key}={value[:40]}"

    def test_renders_the_same_twice(self) -> None:
        section = self.fresh()
        with self.views() as views:
            run = views["a run"].run
            if section.shows(View(run)):
                assert section.html(View(run)) == section.html(View(run))
