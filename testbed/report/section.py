"""The contract of a section of the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from html import escape
from typing import Any, ClassVar

from testbed.core import registry
from testbed.core.forks import ChildLost, Children
from testbed.report.pieces import missing
from testbed.report.view import View


class Section(ABC):
    """A section of the report: a file of `report/sections`, or installed under the entry point
    `testbed.report_sections`. Its name is its anchor on the page.

    It draws what was recorded and computes no result. If its data are missing, it gives the reason in one paragraph
    (`pieces.missing`): it must work for a run without rounds, a killed run and a private one. Values from the run must
    be escaped (`html.escape`) before they enter the page; the functions in `report.pieces` do that. A section loads
    nothing from outside the page, neither pictures nor styles.

    >>> class Rounds(Section):
    ...     short, title = "Rounds", "How many rounds there were"
    ...     def html(self, v):
    ...         n = v.run.rounds.rounds.size
    ...         return f"<p>{n} rounds.</p>" if n else missing("No round was finished.")
    >>> Rounds().order, Rounds().title
    (1000, 'How many rounds there were')
    """

    order: ClassVar[int] = 1000
    """Place on the page, ascending; sections with equal ones are sorted by name. The testbed's own use 10, 20, …"""
    short: ClassVar[str] = ""
    """Title in the navigation."""
    title: ClassVar[str] = ""

    def shows(self, v: View) -> bool:
        """Return whether this run's page has the section."""
        return True

    @abstractmethod
    def html(self, v: View) -> str:
        """Return the section's content as HTML."""


Shown = tuple[str, str, str, str]
"""Anchor, short title, title, HTML."""


def sections_of(v: View, children: Children | None = None) -> list[Shown]:
    """Return (anchor, short title, title, HTML) of every section of a run's page, in order.

    children: forked children share the drawing; the page is the same. None: all is drawn here. An installed section
    that fails or cannot be used is replaced by an error message, and the others are not affected. One of the testbed's
    own fails only if the run's records are damaged; that error is left to the caller.
    """
    found = [(cls.order, name, cls()) for name, cls in registry.usable("report_sections").items()]
    ordered = [(name, section) for _, name, section in sorted(found, key=lambda row: row[:2])]
    out = _shared(v, ordered, children)
    broken = registry.problems(["report_sections"])
    return out + [(p.name, escape(p.name), escape(p.name), missing(p.cause)) for p in broken]


def _shared(v: View, sections: list[tuple[str, Section]], children: Children | None) -> list[Shown]:
    """Return the sections that this run has, drawn by the children; where one of them is lost, drawn here."""
    if children is not None and children.at_once > 1:
        try:
            # A section without pictures takes a millisecond, one with pictures a tenth of a second and more.
            return [shown for part in children.shared([partial(_drawn, v, [s]) for s in sections]) for shown in part]
        except (ChildLost, OSError):
            pass
    return _drawn(v, sections)


def _drawn(v: View, sections: list[tuple[str, Section]]) -> list[Shown]:
    ours, out = registry.names("report_sections", ours=True), []
    for name, section in sections:
        v.draw.begin(name)
        short, title = escape(section.short or name), escape(section.title or name)
        try:
            if section.shows(v):
                out.append((name, short, title, section.html(v)))
        except Exception as exc:
            if name in ours:
                raise
            out.append((name, short, title, _failed(exc)))
    return out


def _failed(exc: Any) -> str:
    return missing(f"This section failed: {type(exc).__name__}: {exc}")
