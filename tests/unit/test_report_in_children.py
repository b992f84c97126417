"""The report drawn by forked children: the same page, and errors where they belong."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.cli import terminal
from testbed.core import forks
from testbed.core.forks import Children
from testbed.report import html as page
from testbed.report import section as report_section
from testbed.report.section import Section, sections_of

pytestmark = pytest.mark.skipif(not forks.are_safe(), reason="children end with their parent on Linux only")


class Drawn:
    """Stands for the pictures of a page: numbers them as these do."""

    def begin(self, section: str) -> None:
        self.name, self.n = section, 0


class First(Section):
    order, short = 1, "First"

    def html(self, v: Any) -> str:
        v.draw.n += 1
        return f"{v.draw.name} {v.draw.n} {os.getpid() != v.here}"


class Second(First):
    order, short = 2, "Second"


class Absent(First):
    order = 3

    def shows(self, v: Any) -> bool:
        return False


class Faulty(First):
    order, short = 4, "Faulty"

    def html(self, v: Any) -> str:
        raise KeyError("no such thing")


class Lost(First):
    order, short = 5, "Lost"

    def html(self, v: Any) -> str:
        if os.getpid() != v.here:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().html(v)


def shown(monkeypatch: pytest.MonkeyPatch, *sections: type[Section], ours: tuple[str, ...] = ()) -> Any:
    named = {s.__name__.lower(): s for s in sections}
    monkeypatch.setattr(report_section.registry, "usable", lambda _: named)
    monkeypatch.setattr(report_section.registry, "names", lambda _, ours: our)
    monkeypatch.setattr(report_section.registry, "problems", lambda _: [])
    our = ours
    return SimpleNamespace(draw=Drawn(), here=os.getpid())


def test_sections_are_drawn_by_children_in_order_and_numbered_each(monkeypatch: pytest.MonkeyPatch) -> None:
    v = shown(monkeypatch, Second, Absent, First, Faulty)
    here, there = sections_of(v), sections_of(v, Children(2))
    assert [row[:3] for row in here] == [row[:3] for row in there]
    assert [row[3] for row in here][:2] == ["first 1 False", "second 1 False"]
    assert [row[3] for row in there][:2] == ["first 1 True", "second 1 True"]
    assert here[2] == there[2]
    assert "This section failed: KeyError" in there[2][3]


def test_a_lost_child_leaves_the_drawing_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    v = shown(monkeypatch, First, Second, Lost)
    assert [row[3] for row in sections_of(v, Children(2))] == ["first 1 False", "second 1 False", "lost 1 False"]


def test_an_error_of_an_own_section_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    v = shown(monkeypatch, First, Faulty, ours=("faulty",))
    with pytest.raises(KeyError, match="no such thing"):
        sections_of(v, Children(2))


def progress(phase: str, at: int) -> Any:
    return SimpleNamespace(phase=phase, round=at, rounds=800)


@pytest.mark.parametrize("fails", [False, True])
def test_the_reports_libraries_are_loaded_while_the_last_block_is_distilled(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    loaded: list[threading.Thread] = []

    def load() -> None:
        loaded.append(threading.current_thread())
        if fails:
            raise ImportError("no matplotlib")

    monkeypatch.setattr(page, "load", load)
    seen: list[Any] = []
    with terminal.Ahead(seen.append) as ahead:
        for p in (progress("probing", 790), progress("distilling", 400), progress("probing", 798)):
            ahead.update(p)
        assert not loaded
        for p in (progress("distilling", 798), progress("distilling", 798), progress("probing", 800)):
            ahead.update(p)
    assert [t is threading.main_thread() for t in loaded] == [False]  # once, and it is over
    assert len(seen) == 6


def test_nothing_is_loaded_ahead_of_a_run_without_blocks() -> None:
    with terminal.Ahead(lambda _: None) as ahead:
        ahead.update(progress("probing", 800))


def test_drawing_libraries_are_loaded_before_a_page_is_made() -> None:
    page.load()
    assert "matplotlib.backends.backend_svg" in sys.modules
