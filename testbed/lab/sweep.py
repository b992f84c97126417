"""A sweep runs every job of a grid once, writes each result into a journal, and makes a table and a page of all
results.

The folder of a sweep contains `done.jsonl` (the journal, with a line for each finished job), `runs/` (the runs'
folders), `labs/` (lab files that the grid changed), `table.parquet` or `table.csv`, and `sweep.html`. A sweep that was
killed can be continued: a job that has a line in the journal is not run again.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from testbed import config
from testbed.config import toml_text
from testbed.core import folders
from testbed.core.config import ChainFile, Experiment, Lab
from testbed.core.errors import InputError, TestbedError
from testbed.core.whole import write_whole
from testbed.core.words import counted, duration
from testbed.lab import cluster, one_process, processes
from testbed.lab import grid as grids
from testbed.lab.grid import Grid, Job
from testbed.records import files
from testbed.replay import replay as replaying

if TYPE_CHECKING:
    from testbed.coordinator.server import Coordinator, Progress
    from testbed.lab.processes import Crew

JOURNAL = "done.jsonl"
PAGE = "sweep.html"
WITHIN_S = 10.0
"""Least time between two lines on how far the present job is."""
Say = Callable[[str], None]
Row = dict[str, Any]


class Stopped(TestbedError):
    """The user stopped the sweep; the results of finished jobs are kept."""


_STOPPED = "stopped; finished runs are kept, and --resume continues the sweep"


@dataclass(frozen=True, slots=True)
class Swept:
    """The results of a sweep."""

    rows: list[Row]
    """One row for each finished job, in the grid's order."""
    table: Path
    failed: int
    grid: Grid


def run(
    path: Path,
    out: Path,
    resume: bool = False,
    scheduler: str | None = None,
    say: Say = lambda _: None,
    on_coordinator: Callable[[Coordinator, Crew | None], None] = lambda *_: None,
    in_process: bool = False,
) -> Swept:
    """Run every job of a grid that is not finished yet, and write the table and the page.

    `resume`: continue the sweep in `out`; without it, a folder that contains a sweep is refused. `scheduler`: address
    of a Dask scheduler whose workers run the jobs; otherwise they are run in this process, one after another.
    `in_process`: a run has one process (`one_process`), so that no daemons are started. `say` is called with a line for
    each job, which states the remaining time.

    Raises InputError, before the first job, for everything that can be checked then; Stopped where the user stops a
    run.
    """
    grid = grids.load(path)
    if in_process:
        _check_in_process(grid)
    client = None if scheduler is None else cluster.connect(scheduler)
    try:
        _prepare(out, resume)
        lock = files.Lock(out)
        try:
            done = {row["digest"]: row for row in _read(out / JOURNAL) if row["status"] != "failed"}
            todo = [job for job in grid.jobs if job.digest not in done]
            if len(todo) < len(grid.jobs):
                say(f"{len(grid.jobs) - len(todo)} of {len(grid.jobs)} runs are finished already")
            if client is not None and todo:
                say(f"{counted(len(todo), 'run')} given to the workers of {scheduler}")
            doing = (
                _here(grid, todo, out, on_coordinator, in_process, _Within(say))
                if client is None
                else _there(client, grid, todo, in_process)
            )
            with files.on_disk(out, "continue it with --resume"):
                _collect(grid, todo, doing, out / JOURNAL, done, say)
            say("writing the table and the page")
        finally:
            lock.release(remove=True)
    finally:
        if client is not None:
            client.close()
    rows = [done[job.digest] | _about(job) for job in grid.jobs if job.digest in done]
    table = _write_table(rows, grid, out)
    return Swept(rows, table, sum(row["status"] == "failed" for row in rows), grid)


def _check_in_process(grid: Grid) -> None:
    if grid.source is not None:
        raise InputError(f"{grid.path}: in process: a replay starts no daemons; accepted: a grid of experiments")
    for job in grid.jobs:
        one_process.check(*_point(grid, job), f"{grid.path}: {grids.told(job.values)}")


def _point(grid: Grid, job: Job) -> tuple[Experiment, Lab]:
    """Return the experiment and the lab of a job."""
    plan = config.convert(job.plan, Experiment, str(grid.path))
    return plan, config.load_lab(grid.lab) if job.lab is None else config.convert(job.lab, Lab, str(grid.path))


def _prepare(out: Path, resume: bool) -> None:
    folders.make(out)
    if (out / JOURNAL).exists() and not resume:
        raise InputError(f"{out}: contains a sweep already; accepted: --resume to continue it, or another --out")


# ---------------------------------------------------------------- doing jobs


def _collect(
    grid: Grid, todo: Sequence[Job], doing: Iterator[tuple[Job, Row]], journal: Path, done: dict[str, Row], say: Say
) -> None:
    """Write each job's row into the journal when it is finished, and report how long the others will take."""
    began_s = time.monotonic()
    with journal.open("ab") as f:
        if f.tell() and journal.read_bytes()[-1:] != b"\n":
            f.write(b"\n")  # the last line is incomplete: its writer was killed
        for n, (job, row) in enumerate(doing, start=1):
            f.write(msgspec.json.encode({"digest": job.digest, **row}) + b"\n")
            f.flush()
            os.fsync(f.fileno())
            done[job.digest] = {"digest": job.digest, **row}
            left_s = (time.monotonic() - began_s) / n * (len(todo) - n)
            say(f"{n + len(grid.jobs) - len(todo)}/{len(grid.jobs)} {_result(job, row)}; {duration(left_s)} left")


def _result(job: Job, row: Row) -> str:
    bits = row["figures"].get("key_bits")
    what = f"failed: {row['detail']}" if row["status"] == "failed" else f"{'–' if bits is None else bits} key bits"
    return f"{grids.told(job.values)}, seed {job.seed}: {what}"


class _Within:
    """Says every few seconds, from a thread of its own, how far the present job is. A context manager."""

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._over = threading.Event()
        self._ticking = threading.Thread(target=self._tick, daemon=True)
        self.begin()

    def begin(self) -> None:
        """Note that a job begins."""
        self._began_s = self._said_s = self._clock()
        self._text = "a run goes on"

    def rounds(self, p: Progress) -> None:
        self._text = f"{p.round} of {p.rounds} rounds, {p.what or p.phase}"

    def look(self) -> None:
        """Say how far it is if the last word is long ago."""
        now_s = self._clock()
        if now_s >= self._said_s + WITHIN_S:
            self._said_s = now_s
            self._say(f"  {self._text}, {duration(now_s - self._began_s)} so far")

    def _tick(self) -> None:
        while not self._over.wait(1.0):
            self.look()

    def __enter__(self) -> Self:
        self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ticking.join()


def _here(
    grid: Grid, todo: Sequence[Job], out: Path, on_coordinator: Callable[[Coordinator, Crew | None], None],
    in_process: bool, within: _Within,
) -> Iterator[tuple[Job, Row]]:  # fmt: skip
    """Run jobs from this process, one after another."""
    with within:
        yield from _one_by_one(grid, todo, out, on_coordinator, in_process, within)


def _one_by_one(
    grid: Grid, todo: Sequence[Job], out: Path, on_coordinator: Callable[[Coordinator, Crew | None], None],
    in_process: bool, within: _Within,
) -> Iterator[tuple[Job, Row]]:  # fmt: skip
    servers: list[Coordinator] = []

    def begun(server: Coordinator, crew: Crew | None) -> None:
        if is_told_to_end():  # since the last look, by a signal that the run before it could only ignore
            server.ask_stop("stop")
        servers[:] = [server]
        on_coordinator(server, crew)

    def is_told_to_end() -> bool:
        return any(server.is_told_to_end for server in servers)

    for job in todo:
        began_s = time.monotonic()
        within.begin()
        try:
            if grid.source is not None:
                row = _row("finished", "", _replayed(grid, job))
            else:
                row = _run(grid, job, out, begun, in_process, within)
        except Stopped:
            raise
        except TestbedError as exc:  # this job fails; the sweep goes on with the others
            row = _row("failed", str(exc), {})
        yield job, row | {"seconds": round(time.monotonic() - began_s, 3)}
        if is_told_to_end() and job is not todo[-1]:  # it was too late to cut this run short
            raise Stopped(_STOPPED)


def _row(status: str, detail: str, summary: Mapping[str, Any], run: str | None = None) -> Row:
    return {"status": status, "detail": detail, "run": run, "figures": _figures(summary)}


def _replayed(grid: Grid, job: Job) -> dict[str, Any]:
    assert grid.source is not None
    chain = config.convert(job.plan, ChainFile, str(grid.path))
    return replaying.replay(grid.source, chain, grid.file.cut, seed=job.seed, map_file=grid.map_file)


def _run(
    grid: Grid, job: Job, out: Path, on_coordinator: Callable[[Coordinator, Crew | None], None], in_process: bool,
    within: _Within,
) -> Row:  # fmt: skip
    plan, place = _point(grid, job)
    lab_name = grid.lab
    if job.lab is not None:  # daemons read the lab by themselves, so it has to be a file
        (out / "labs").mkdir(exist_ok=True)
        path = (out / "labs" / f"point-{job.point:04d}.toml").absolute()
        _write_toml(job.lab, path)
        lab_name = str(path)
    processes.make_lab_folder(place)
    folder = processes.new_run_folder(out / "runs", f"point-{job.point:04d}-seed-{job.seed}")
    with processes.unless_empty(folder):
        if in_process:
            outcome = one_process.run(plan, place, lab_name, folder, within.rounds, on_coordinator)
        else:
            outcome = processes.run(plan, place, lab_name, folder, within.rounds, on_coordinator)
    if outcome.status == "stopped":
        raise Stopped(_STOPPED)
    return _row(outcome.status, outcome.detail, outcome.summary, str(folder.relative_to(out)))


def _there(client: Any, grid: Grid, todo: Sequence[Job], in_process: bool) -> Iterator[tuple[Job, Row]]:
    """Run jobs on a cluster's workers; yields them in the order in which they end."""
    from distributed import as_completed

    if grid.source is None:
        lab = config.load_lab(grid.lab)
        if lab.world is None or not lab.world.local or not all(place.local for place in lab.node.values()):
            raise InputError(
                f"{grid.lab}: --scheduler: this lab is one of hardware, or of several machines; accepted: a lab that "
                "is simulated on one machine, or a replay"
            )
    common = {
        "lab": None if grid.source is not None else grids.plain(config.load_lab(grid.lab)),
        "source": None if grid.source is None else str(grid.source.absolute()),
        "map": None if grid.map_file is None else str(grid.map_file.absolute()),
        "cut": grid.file.cut,
        "in_process": in_process,
    }
    futures = {client.submit(on_worker, job, common, pure=False): job for job in todo}
    for future in as_completed(futures):
        try:
            row = future.result()
        except Exception as exc:  # a worker that was lost too often
            row = _row("failed", f"{type(exc).__name__}: {exc}", {}) | {"seconds": 0.0}
        yield futures[future], row


def on_worker(job: Job, common: Mapping[str, Any]) -> Row:
    """Run one job by the command line, in a temporary folder with keys and states of its own. The run is not kept."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sweep-") as scratch:
        folder = Path(scratch)
        _write_toml(job.plan, folder / "plan.toml")
        if common["source"] is None:
            _write_toml(job.lab or common["lab"], folder / "lab.toml")
            arguments = ["run", "plan.toml", "--lab", "lab.toml", "--quiet"]
            arguments += ["--in-process"] if common.get("in_process") else []
        else:
            arguments = ["replay", common["source"], "--chain", "plan.toml", "--seed", str(job.seed), "--quiet"]
            arguments += [] if common["map"] is None else ["--map", common["map"]]
            arguments += [] if common["cut"] is None else ["--cut", common["cut"]]
        done = subprocess.run(
            [sys.executable, "-m", "testbed", *arguments, "--json"],
            cwd=folder, env={**os.environ, "TESTBED_STATE": str(folder / "state")}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        said = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        try:
            summary = json.loads(done.stdout)
        except ValueError:
            summary = {}
    row = _row("finished" if done.returncode == 0 else "failed", "" if done.returncode == 0 else said, summary)
    return row | {"seconds": round(time.monotonic() - began_s, 3)}


def _write_toml(table: Mapping[str, Any], path: Path) -> None:
    write_whole(path, toml_text.document(table), private=False)


# ---------------------------------------------------------------- rows


def _figures(summary: Mapping[str, Any], above: str = "", depth: int = 2) -> Row:
    """Return the numbers and words of a summary by dotted name; lists, and tables below `depth`, are left out."""
    out: Row = {}
    for key, value in summary.items():
        if isinstance(value, Mapping):
            out |= _figures(value, f"{above}{key}.", depth - 1) if depth > 1 and key not in _LEFT_OUT else {}
        elif (value is None or isinstance(value, bool | int | float | str)) and key not in _LEFT_OUT:
            out[above + key] = value
    return out


_LEFT_OUT = ("randomness", "path", "description")


def _read(journal: Path) -> Iterator[Row]:
    """Yield the rows of a journal; a line that was not written to its end is left out."""
    for line in journal.read_bytes().splitlines() if journal.exists() else ():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and [type(row.get(key)) for key in _KINDS] == list(_KINDS.values()):
                yield row


_KINDS = {"digest": str, "status": str, "figures": dict}


def _about(job: Job) -> Row:
    return {"point": job.point, "repetition": job.repetition, "seed": job.seed, "values": job.values}


_FIXED = ("point", "repetition", "seed", "status", "detail", "seconds", "run")


def columns(rows: Sequence[Row], parameters: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns of the table: the values of the grid (`grid.KEY`), status and detail, and the summary's
    figures.

    A value that is a list or a table is given as text, as in the grid's file.
    """
    figures = dict.fromkeys(name for row in rows for name in row["figures"])
    out: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in _FIXED}
    for name in parameters:
        values = [row["values"][name] for row in rows]
        plain = all(isinstance(v, int | float) for v in values) or all(isinstance(v, str) for v in values)
        out[f"grid.{name}"] = values if plain else [v if isinstance(v, str) else toml_text.inline(v) for v in values]
    return out | {name: [row["figures"].get(name) for row in rows] for name in figures}


def _write_table(rows: Sequence[Row], grid: Grid, out: Path) -> Path:
    """Write one table of all rows: Parquet where pyarrow is installed (extra `cluster`), else CSV."""
    table = columns(rows, list(grid.parameters))
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path = out / "table.csv"
        with files.whole(path) as part, part.open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            writer.writerow(table)
            writer.writerows(zip(*table.values(), strict=True))
        (out / "table.parquet").unlink(missing_ok=True)
        return path
    path = out / "table.parquet"
    with files.whole(path) as part:
        parquet.write_table(pyarrow.table({name: _one_kind(values) for name, values in table.items()}), part)
    (out / "table.csv").unlink(missing_ok=True)
    return path


def _one_kind(values: list[Any]) -> list[Any]:
    """Return values of one type, as a column of Parquet needs them: numbers, or all as text."""
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float} and float in kinds:
        return [None if v is None else float(v) for v in values]
    return values if len(kinds) < 2 else [None if v is None else str(v) for v in values]
