"""Output for people: lines, progress, the outcome of a run."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec
import typer

from testbed.core.forks import Children, are_safe, usable_cores
from testbed.core.gate import printable
from testbed.core.words import counted, duration

if TYPE_CHECKING:
    from testbed.coordinator.server import Progress


def print_json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


def say(text: str) -> None:
    print(text, file=sys.stderr)


def aside(quiet: bool) -> Callable[[str], None]:
    """Return the function for messages that are neither results nor failures: `say`, or one that prints nothing."""
    return (lambda _: None) if quiet else say


_UNBROKEN = 10_000
"""Width of output that goes to a file or a pipe: wide enough that no line is broken."""


def console() -> Any:
    """Return a console on standard output that breaks lines on a terminal only."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _UNBROKEN)


def plain(text: Any) -> str:
    """Return text of a node or a file as one line that a terminal can show and in which rich finds no markup."""
    from rich.markup import escape

    return str(escape(printable(str(text), 2000)))


PATIENCE_S = 2.0
"""Least number of seconds before the first report of progress, and between two reports."""


REPEAT_S = 10.0
"""Longest time without a report while a step goes on."""


class Steps:
    """Prints the progress of a task and the remaining time on standard error, once the task has taken two seconds.

    As a context manager it also reports, from a thread of its own, how long a step has taken that is not over yet.
    """

    def __init__(
        self, quiet: bool = False, clock: Callable[[], float] = time.monotonic, patience_s: float = PATIENCE_S
    ) -> None:
        """`patience_s`: seconds before the first report."""
        self._quiet, self._clock, self._patience_s = quiet, clock, patience_s
        self._began_s = self._said_s = clock()
        self._told: tuple[float | None, str] | None = None
        self._over = threading.Event()
        self._ticking: threading.Thread | None = None

    def __enter__(self) -> Self:
        if not self._quiet:
            self._ticking = threading.Thread(target=self._tick, daemon=True)
            self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._ticking is not None:
            self._ticking.join()

    def _tick(self) -> None:
        while not self._over.wait(PATIENCE_S / 4):
            self.look()

    def look(self) -> None:
        """Report the present step if nothing has been reported for long."""
        now_s = self._clock()
        patience_s = self._patience_s if self._said_s == self._began_s else REPEAT_S
        if self._told is not None and now_s >= self._said_s + patience_s:
            self._said_s = now_s
            share, what = self._told
            say(f"{_percent(share)}{what} … {duration(now_s - self._began_s)} so far")

    def tell(self, share: float | None, what: str) -> None:
        """Report that `share` (0 to 1; None: it is not known) is done and what comes next."""
        self._told = share, what
        now_s = self._clock()
        if self._quiet or now_s < self._said_s + self._patience_s:
            return
        self._said_s = now_s
        left = f", {duration((now_s - self._began_s) * (1 / share - 1))} left" if share and share < 1 else ""
        say(f"{_percent(share)}{what}{left}")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:4.0%} "


class ProgressBar:
    """Shows rounds, rounds/s, SNR and key bits as a bar on a terminal and otherwise as plain lines: every 200 rounds,
    with every new key, and in between how long a block is being distilled or the record is being closed; with `quiet`,
    it shows nothing."""

    def __init__(self, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet, self._clock = quiet, clock
        self._bar: Any = None
        self._task: Any = None
        self._plain_at = 0
        self._bits = 0
        self._phase = ""
        self._steps = Steps(quiet=True)
        """Of what is done while no round is counted."""

    def __enter__(self) -> ProgressBar:
        return self

    def show(self) -> None:
        """Show the bar before the first progress, which shows it otherwise; from now on, it has a thread of its own."""
        if self._bar is None and sys.stderr.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.fields[phase]:>11}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
                transient=True,
                refresh_per_second=5,
            )
            self._bar.start()
            self._task = self._bar.add_task("run", total=None, phase="starting", figures="")

    def __exit__(self, *_: object) -> None:
        self._steps.__exit__()
        if self._bar is not None:
            self._bar.stop()

    def update(self, p: Progress) -> None:
        if self._quiet:
            return
        self.show()
        snr = "   –" if math.isnan(p.snr_db) else f"{p.snr_db:4.1f} dB"  # private nodes do not report it
        rate = f"{p.rounds_per_s:5.0f}" if p.rounds_per_s > 0 else "    –"
        figures = f"{rate} rounds/s on average  SNR {snr}  kept {p.kept}  key bits {p.key_bits}"
        if p.message is not None:
            if self._bar is not None:
                self._bar.console.print(plain(p.message))
            else:
                say(p.message)
        if self._bar is not None:
            self._bar.update(self._task, completed=p.round, total=p.rounds, phase=p.phase, figures=p.what or figures)
            return
        if p.phase != self._phase:
            self._enter(p)
        if p.what:
            self._steps.tell(p.share, p.what)
        is_due = p.round >= self._plain_at + 200 or p.round == p.rounds != self._plain_at
        self._plain_at = p.round if is_due else self._plain_at
        if is_due or p.key_bits != self._bits:
            self._bits = p.key_bits
            left_s = (p.rounds - p.round) / p.rounds_per_s if p.rounds_per_s > 0 else 0.0
            left = f"  {duration(left_s)} left" if left_s > 0 else ""
            say(f"{p.round}/{p.rounds} rounds{left}  {figures}")

    def _enter(self, p: Progress) -> None:
        """Begin to watch the time of a phase in which no round is counted."""
        self._phase = p.phase
        self._steps.__exit__()
        self._steps = Steps(quiet=True)
        if p.phase == "distilling":  # takes seconds to minutes
            self._steps = Steps(clock=self._clock, patience_s=REPEAT_S)
            self._steps.tell(None, "distilling a block")
            say(f"{p.round}/{p.rounds} rounds  distilling a block")
        elif p.phase == "over":
            self._steps = Steps(clock=self._clock)
        self._steps.__enter__()


class Ahead:
    """Loads the libraries of the report in another thread while the last block of a run is distilled, in which this
    process has nothing to do. Passes all progress on."""

    _NEARLY = 0.9
    """Share of the rounds after which a block counts as the last one."""

    def __init__(self, update: Callable[[Progress], None]) -> None:
        self._update = update
        self._thread: threading.Thread | None = None

    def update(self, p: Progress) -> None:
        self._update(p)
        if self._thread is None and p.phase == "distilling" and p.round >= self._NEARLY * p.rounds:
            self._thread = threading.Thread(target=self._load, name="report", daemon=True)
            self._thread.start()

    @staticmethod
    def _load() -> None:
        from testbed.report import html

        with contextlib.suppress(Exception):  # it comes again, and is told, when the report is made
            html.load()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.join()


def on_signals(handler: Callable[..., Any]) -> None:
    """Have `handler` called on Ctrl-C, on SIGTERM and where the terminal is closed, unless that is ignored, as under
    nohup."""
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handler)


def conclude(outcome: Any, as_json: bool, quiet: bool = False) -> None:
    """Write the report, print the outcome, and exit with the status that belongs to it.

    The record is complete by now: from here on, Ctrl-C leaves out the report, and the outcome is printed all the same.
    """
    began_s = time.monotonic()
    path = _report(outcome.folder, quiet)
    report_s = time.monotonic() - began_s
    if as_json:
        print_json(outcome.summary)
    elif outcome.status != "failed" or outcome.summary["rounds"]:  # a run that never started has only a reason
        _show(outcome, path, report_s)
    sys.stdout.flush()  # so that the reason is the last line, also where both streams go to one file
    if outcome.status == "failed":
        say(f"run failed: {printable(outcome.detail, 2000)}; report: {path or 'none'}")
        raise typer.Exit(1)
    if path is None:
        say(f"the run is complete, its report is not: `testbed report {outcome.folder}` makes it")
    if outcome.status == "stopped" or path is None:
        raise typer.Exit(130)
    if outcome.summary.get("keys_mismatched"):
        say("run failed: verified keys differ")
        raise typer.Exit(1)


def _report(folder: Path, quiet: bool) -> Path | None:
    """Write a run's report; None where Ctrl-C leaves it out."""
    aside(quiet)("writing the report (Ctrl-C leaves it out)")
    from testbed.report import html

    on_signals(signal.default_int_handler)
    try:
        with Steps(quiet, patience_s=REPEAT_S) as steps:
            steps.tell(None, "writing the report")
            return html.make(folder, children=Children(usable_cores()) if are_safe() else None)
    except KeyboardInterrupt:
        return None


def training_line(told: dict[str, Any]) -> str:
    from testbed.report import training

    return "training: " + "; ".join(f"{what}: {text}" for what, text in training.rows(told))


MOST_EVES = 6
"""Rows of the table "who could know this key" on a terminal; the report lists all."""


def _eves(secrecy: dict[str, Any]) -> Any:
    from rich.table import Table

    from testbed.assess.summary import note_on_eves

    shown = secrecy["eves"][:MOST_EVES]
    table = Table(title="who could know this key (the most able Eve first; the report lists all)", title_justify="left")
    table.caption, table.caption_justify = note_on_eves(shown), "left"
    for heading in ("Eve", "she knows"):
        table.add_column(heading)
    for heading in ("guesses", "at most", "key left"):
        table.add_column(heading, justify="right")
    for row in shown:
        guess, limit = row["guess_probability"], row["upper_bound"]
        table.add_row(
            plain(row["name"]),
            plain(row["knows"]),
            "assumed" if guess is None else f"{guess:.1%}",
            "–" if limit is None else f"{limit:.1%}",
            str(row["key_bits"]),
        )
    table.add_section()
    for row in secrecy["sensitivity"]:
        table.add_row(plain(row["name"]), plain(row["knows"]), "what if", "", str(row["key_bits"]))
    return table


def _show(outcome: Any, report_path: Path | None, report_s: float) -> None:
    from rich.table import Table

    s = outcome.summary
    out = console()

    def figure(value: Any, form: str = "") -> str:
        return "–" if value is None else format(value, form)

    rejected = ", ".join(f"{n} {plain(why)}" for why, n in s["pairs_rejected"].items()) or "none"
    out.print(
        f"[bold]{counted(s['keys_verified'], 'verified key')}, {counted(s['key_bits'], 'bit')}[/bold]"
        f" (mismatched: {figure(s['keys_mismatched'])}; recovered by Eve: {figure(s['eve_keys_recovered'])})"
    )
    out.print(
        f"rounds {s['rounds']}, pairs kept {s['pairs_kept']}, rejected: {rejected}, "
        f"{figure(s['rounds_per_s'], '.0f')} rounds/s on average"
    )
    out.print(
        f"raw bits {s['raw_bits']}, disagreement Alice–Bob {figure(s['kdr_raw'], '.3f')}, "
        f"Eve {figure(s['kdr_eve'], '.3f')}, "
        f"min-entropy given Eve {figure(s['min_entropy_per_bit'], '.3f')} bit/bit, "
        f"key rate {figure(s['key_rate_bps'], '.1f')} bit/s of channel time"
    )
    paid = s.get("authentication")
    if paid and paid["spent_bits"]:
        out.print(
            f"authentication: {paid['spent_bits']} bits of the pool spent, {paid['refill_bits']} of "
            f"{paid['hashed_bits']} hashed bits refill it"
        )
    if "training" in s:
        out.print(plain(training_line(s["training"])), highlight=False)
    if s.get("secrecy"):
        out.print(_eves(s["secrecy"]))
    table = Table(title="health", title_justify="left", show_header=False)
    for entry in s["health"]:
        mark = "[green]ok[/green]" if entry["ok"] else "[yellow]not ok[/yellow]"
        table.add_row(mark, plain(entry["check"]), plain(entry["detail"]))
    out.print(table)
    out.print(f"time: {_spans(s.get('pace') or {}, report_s)}", highlight=False)
    if report_path is not None:
        out.print(f"report: {plain(report_path)}", soft_wrap=True)


def _spans(pace: Mapping[str, Any], report_s: float) -> str:
    """Return where the wall time of a run went; a span that is not known, as of a resumed run, is left out."""
    named = {"start": "start_s", "probing": "probe_s", "distilling": "distil_s"}
    spans = {name: pace[key] for name, key in named.items() if pace.get(key) is not None}
    return ", ".join(f"{name} {span_s:.1f} s" for name, span_s in {**spans, "report": report_s}.items())
