"""The contract of a section of the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape
from typing import Any, ClassVar

from testbed.core import registry
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


def sections_of(v: View) -> list[tuple[str, str, str, str]]:
    """Return (anchor, short title, title, HTML) of every section of a run's page, in order.

    An installed section that fails or cannot be used is replaced by an error message, and the others are not affected.
    One of the testbed's own fails only if the run's records are damaged; that error is left to the caller.
    """
    ours = registry.names("report_sections", ours=True)
    found = [(cls.order, name, cls()) for name, cls in registry.usable("report_sections").items()]
    out = []
    for _, name, section in sorted(found, key=lambda row: row[:2]):
        try:
            if section.shows(v):
                out.append((name, escape(section.short or name), escape(section.title or name), section.html(v)))
        except Exception as exc:
            if name in ours:
                raise
            title = escape(section.title or name)
            out.append((name, escape(section.short or name), title, _failed(exc)))
    broken = registry.problems(["report_sections"])
    return out + [(p.name, escape(p.name), escape(p.name), missing(p.cause)) for p in broken]


def _failed(exc: Any) -> str:
    return missing(f"This section failed: {type(exc).__name__}: {exc}")
