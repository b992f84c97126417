"""The data of a run that the live page shows, read from the run's journal step by step, in limited memory.

Rounds are gathered into windows, each of which is one point of every curve; where there are too many windows, pairs of
them are joined. Only committed rows are read, and the journal is not kept open, so that the run is not slowed down.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import C64, F64, SurfacePattern
from testbed.core.words import plainly
from testbed.records import files, reader
from testbed.records.documents import Start, encode
from testbed.records.journal import Grown, JournalTail
from testbed.records.recorded import RecordedRun

MAX_WINDOWS = 600
"""Largest number of points of a curve; if there are more, neighbours are joined."""
LEAST_WINDOW = 8
"""Least number of rounds in a window: from fewer, no correlation can be computed."""
SPAN = 8
"""Number of windows over which a correlation is computed, so that it does not fluctuate by more than it tells."""
SCATTER = 64
"""Number of latest values that are shown in the complex plane."""
EVENTS = 100
MAX_TEXT = 300
"""Largest number of characters of an event that are shown."""
_MOST_REASONS = 200
_MOST_TRACKED = 50_000_000
"""Rounds with higher numbers are counted, but a second record of one does not replace the first."""
_QUIET = ("key_digests", "randomness")
"""Events that are not shown while the run goes on."""


@dataclass(slots=True)
class Link:
    """The latest values of one link."""

    csi: C64 | None = None
    """(rx antenna, tx antenna, subcarrier)."""
    middle: deque[complex] = field(default_factory=lambda: deque(maxlen=SCATTER))
    """Latest values of the middle subcarrier between the first antennas."""
    rounds: int = 0


@dataclass(slots=True)
class Window:
    """Sums over some rounds."""

    first: int
    last: int
    levels: dict[tuple[str, int], F64] = field(default_factory=dict)
    """(link, round) → dB of each subcarrier; emptied when the window is closed."""
    snr: dict[str, list[float]] = field(default_factory=dict)
    cfo: dict[str, list[float]] = field(default_factory=dict)


@dataclass(slots=True)
class Mean:
    """Mean over rounds of a link's level in dB, by subcarrier."""

    total: F64 | None = None
    n: int = 0

    def add(self, levels: list[F64]) -> None:
        if self.total is None or self.total.shape != levels[0].shape:
            self.total, self.n = np.zeros_like(levels[0]), 0
        for level in levels:
            self.total = self.total + level
            self.n += 1

    @property
    def value(self) -> F64:
        assert self.total is not None
        return self.total / self.n


class Feed:
    """Collects the data of a run that goes on. `poll` is called by one thread; `message` returns the data for a
    page."""

    def __init__(self, folder: Path, expected: bool = False) -> None:
        """Raises InputError where the folder holds no run, live or closed, unless one is about to begin there."""
        if not expected and not (folder / files.JOURNAL).exists() and not (folder / files.RUN).exists():
            hint = files.newest_inside(folder)
            raise InputError(f"{folder}: contains no run; accepted: the folder of a run, going on or ended{hint}")
        self.folder = folder
        self.state = "waiting"
        self.paused = False
        self.asked: str | None = None
        """How somebody asked the run to end (stop, abort, halt), on a page or in its terminal."""
        self.start: Start | None = None
        self.links: dict[str, Link] = {}
        self.points: list[dict[str, Any]] = []
        self.generation = 0
        """Number that changes when points are joined; a page then gets all points again."""
        self.rejected: Counter[str] = Counter()
        self.kept = self.rounds = self.last_round = 0
        self._outcomes = bytearray()
        """By round: 0 where none is recorded yet, 1 for a kept round, else 2 and the place of its reason."""
        self._reasons: list[str] = []
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self.event_count = 0
        self.nodes: dict[str, str] = {}
        self.blocks: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] | None = None
        self.stop: dict[str, Any] | None = None
        self.surface = ""
        self.pattern: tuple[str, SurfacePattern] | None = None
        """Digest and pattern of the surface's last state."""
        self.roles: dict[str, str] = {}
        self._lock = threading.Lock()
        """Lock for adding data and for reading them for a page."""
        self._tail = JournalTail(folder)
        self._window_rounds = LEAST_WINDOW
        self._window: Window | None = None
        self._means: dict[str, Mean] = {}
        """By link: mean level of every subcarrier so far."""
        self._products: dict[str, deque[tuple[float, float, float]]] = {}
        """By pair of links: sums of products of both levels' deviations in the latest windows."""
        self._ticks: deque[tuple[float, int]] = deque(maxlen=20)

    # ------------------------------------------------------------ reading the journal

    def poll(self) -> None:
        """Read what is new; raises InputError for a run that cannot be read."""
        if self.state in ("closed", "killed"):
            return
        # This is read before the journal: if the run closes in between, the next poll finds it closed.
        held = files.held(self.folder)
        grown = self._tail.read()
        if grown is not None:
            with self._lock:
                self._grow(grown)
                self._ticks.append((time.monotonic(), self.rounds))
                if not (grown.probes or grown.rounds or grown.documents or held):
                    self._close_window()
                    self.state = "killed"
        elif (self.folder / files.RUN).exists():
            run = reader.load(self.folder)
            with self._lock:
                self._finish(run)

    def _grow(self, grown: Grown) -> None:
        for kind, body in grown.documents:
            self._document(kind, json.loads(body))
        for row in grown.probes:
            self._probe(*row)
        for round, kept, reason, surface, _ in grown.rounds:
            self._round(round, bool(kept), reason, surface)
        if self.surface and (self.pattern is None or self.pattern[0] != self.surface):
            found = self._tail.pattern(self.surface)
            self.pattern = None if found is None else (self.surface, found)

    def _finish(self, run: RecordedRun) -> None:
        """Read the rest of a run that has ended: all that was not read before the journal was closed."""
        told = [("start", run.start)] if self.start is None else []
        events = [("event", event) for event in run.events[self.event_count :]]
        blocks = [("block", block) for block in run.blocks]
        for kind, document in [*told, *events, *blocks]:
            self._document(kind, json.loads(encode(document)))
        known, seen = {name: link.rounds for name, link in self.links.items()}, Counter[str]()
        for row in probe_rows(run):
            seen[row[1]] += 1
            if seen[row[1]] > known.get(row[1], 0):
                self._probe(*row)
        table = run.rounds
        for i in range(table.rounds.size):
            self._round(int(table.rounds[i]), bool(table.kept[i]), str(table.reason[i]), str(table.surface[i]))
        self._close_window()
        if self.surface in run.patterns:
            self.pattern = self.surface, run.patterns[self.surface]
        self.summary = run.summary
        self.stop = None if run.stop is None else json.loads(encode(run.stop))
        self.state = "closed"

    def _document(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "start":
            self._begin(body)
        elif kind == "event":
            self.event_count += 1
            self._event(body)
        elif kind == "block":
            known = self.blocks.setdefault(body["block"], {"block": body["block"], "agree": {}, "key": {}, "eve": None})
            known["agree"] |= body.get("agree") or {}
            known["key"] |= body.get("key") or {}
            known["eve"] = body.get("eve") or known["eve"]
        elif kind == "summary":
            self.summary = body
        elif kind == "stop":
            self.stop = body

    def _begin(self, body: dict[str, Any]) -> None:
        self.start = msgspec.convert(body, Start)
        self.state = "live"
        self.roles = {name: self.start.role(name) for name in self.start.lab.get("node", {})}
        planned = int(self.start.experiment.get("rounds") or 0)
        self._window_rounds = max(LEAST_WINDOW, -(-planned // MAX_WINDOWS))

    def _event(self, body: dict[str, Any]) -> None:
        kind, data = body["kind"], body["data"]
        node = data.get("node")
        if node is not None:
            state = {"joined": "here", "configured": "ready", "lost": "lost", "left": "left"}.get(kind, "")
            self.nodes[str(node)] = state or self.nodes.get(str(node), "")
        if kind in ("paused", "unpaused"):
            self.paused = kind == "paused"
        if kind == "stop_asked":
            self.asked = str(data.get("kind"))
        if kind not in _QUIET:
            self.events.append(
                {"n": self.event_count, "time": body["time"], "kind": kind, "text": plainly(data)[:MAX_TEXT]}
            )

    def _probe(
        self, round: int, link: str, snr_db: float | None, cfo_hz: float | None, surface: str,
        n_rx: int | None, n_tx: int | None, n_subcarrier: int | None, csi: bytes | None,
    ) -> None:  # fmt: skip
        known = self.links.setdefault(link, Link())
        known.rounds += 1
        self.surface = surface or self.surface
        if self._window is not None and round - self._window.first >= self._window_rounds:
            self._close_window()
        if self._window is None:
            self._window = Window(round, round)
        self._window.last = max(self._window.last, round)
        for store, value in ((self._window.snr, snr_db), (self._window.cfo, cfo_hz)):
            if value is not None and np.isfinite(value):
                store.setdefault(link, []).append(value)
        if csi is None or n_rx is None or n_tx is None or n_subcarrier is None:
            return
        h = np.frombuffer(csi, dtype="<c8").reshape(n_rx, n_tx, n_subcarrier)
        if not np.isfinite(h).all():
            return
        known.csi = h
        known.middle.append(complex(h[0, 0, n_subcarrier // 2]))
        self._window.levels[link, round] = 20.0 * np.log10(np.abs(h[0, 0]).astype(np.float64) + 1e-30)

    def _round(self, round: int, kept: bool, reason: str, surface: str) -> None:
        """Count a round; a later record of it, as of one that was withdrawn, replaces the earlier one."""
        self.last_round = max(self.last_round, round)
        self.surface = surface or self.surface
        code = 1 if kept else self._code(reason or "unknown")
        if 0 <= round < _MOST_TRACKED:
            self._outcomes.extend(bytes(max(0, round + 1 - len(self._outcomes))))
            self._count(self._outcomes[round], -1)
            self._outcomes[round] = code
        self._count(code, 1)

    def _code(self, reason: str) -> int:
        if reason not in self._reasons and len(self._reasons) < _MOST_REASONS:
            self._reasons.append(reason)
        return 2 + (self._reasons.index(reason) if reason in self._reasons else _MOST_REASONS - 1)

    def _count(self, code: int, n: int) -> None:
        """Add n rounds with this outcome."""
        if code:
            self.rounds += n
        if code == 1:
            self.kept += n
        elif code:
            self.rejected[self._reasons[code - 2]] += n

    # ------------------------------------------------------------ curves

    def _close_window(self) -> None:
        window, self._window = self._window, None
        if window is None:
            return
        self.points.append(
            {
                "first": window.first,
                "last": window.last,
                "snr_db": {link: float(np.mean(v)) for link, v in window.snr.items()},
                "cfo_hz": {link: float(np.mean(v)) for link, v in window.cfo.items()},
                "r": self._correlations(window),
            }
        )
        if len(self.points) > MAX_WINDOWS:
            self.points = [joined(*self.points[i : i + 2]) for i in range(0, len(self.points), 2)]
            self._window_rounds *= 2
            self.generation += 1

    def _correlations(self, window: Window) -> dict[str, float]:
        """Return the correlation of the levels in dB over the latest windows, for each pair of links.

        It is that of the deviations from each subcarrier's mean so far, as in the summary: what is always the same in
        both spectra does not count.
        """
        for link in {link for link, _ in window.levels}:
            self._means.setdefault(link, Mean()).add([v for (of, _), v in window.levels.items() if of == link])
        by_role = {tuple(self.roles.get(n, n) for n in link.split(">")): link for link in self.links}
        own = by_role.get(("bob", "alice")), by_role.get(("alice", "bob"))
        pairs = {
            "Alice–Bob": own,
            "Bob–Eve": (own[1], by_role.get(("alice", "eve"))),
            "Alice–Eve": (own[0], by_role.get(("bob", "eve"))),
        }
        out = {}
        for name, (a, b) in pairs.items():
            r = None if a is None or b is None else self._pearson(window.levels, a, b)
            if r is not None:
                out[name] = r
        return out

    def _pearson(self, levels: dict[tuple[str, int], F64], a: str, b: str) -> float | None:
        rounds = sorted({r for link, r in levels if link == a} & {r for link, r in levels if link == b})
        if len(rounds) < 3:
            return None
        x, y = (np.stack([levels[link, r] for r in rounds]) - self._means[link].value for link in (a, b))
        if x.shape != y.shape:
            return None
        latest = self._products.setdefault(f"{a} {b}", deque(maxlen=SPAN))
        latest.append((float((x * y).sum()), float((x * x).sum()), float((y * y).sum())))
        xy, xx, yy = map(sum, zip(*latest, strict=True))
        return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else None

    @property
    def rounds_per_s_now(self) -> float | None:
        """The rate of the latest rounds; `rounds_per_s` of a summary is the mean over the run."""
        if len(self._ticks) < 2 or self._ticks[-1][0] == self._ticks[0][0]:
            return None
        (t0, n0), (t1, n1) = self._ticks[0], self._ticks[-1]
        return (n1 - n0) / (t1 - t0)

    @property
    def key_bits(self) -> int:
        """Number of key bits, over the blocks in which both ends have a key of the same length."""
        total = 0
        for block in self.blocks.values():
            bits = [report["key_bits"] for report in block["key"].values()]
            total += bits[0] if len(bits) > 1 and len(set(bits)) == 1 else 0
        return total

    def bit_flow(self) -> dict[str, int]:
        """Return how Alice's raw bits are divided: published to estimate errors, leaked, subtracted for Eve, and
        key."""
        flow: Counter[str] = Counter()
        for block in self.blocks.values():
            agree = self._of(block["agree"], "alice")
            if agree is None:
                continue
            key = self._of(block["key"], "alice")
            left = 0 if key is None else key["key_bits"]
            rest = agree["raw_bits"] - agree["sacrificed_bits"] - left
            leaked = min(max(rest, 0), agree["leaked_bits"]) if agree["verified"] else 0
            flow.update(
                {
                    "raw": agree["raw_bits"],
                    "sacrificed": agree["sacrificed_bits"],
                    "leaked": leaked,
                    "lost": max(0, rest - leaked),
                    "key": left,
                }
            )
        return dict(flow)

    def _of(self, reports: dict[str, Any], role: str) -> dict[str, Any] | None:
        return next((r for node, r in reports.items() if self.roles.get(node, node) == role), None)

    def eves(self) -> list[dict[str, Any]]:
        """Return the key bits that each considered Eve would leave, over all blocks, ascending.

        For a block for which she had no data, the bits that the least able Eve leaves are added, as in the summary.
        """
        rows: dict[str, dict[str, Any]] = {}
        blocks = [(self._of(block["key"], "alice") or {}).get("eves") or [] for block in self.blocks.values()]
        most = [max((eve["key_bits"] for eve in eves), default=0) for eves in blocks]
        for eves in blocks:
            for eve in eves:
                row = rows.setdefault(
                    eve["name"], {"name": eve["name"], "knows": eve["knows"], "bits": 0, "guess": 0.0}
                )
                row["bits"] += eve["key_bits"]
                row["guess"] = max(row["guess"], eve["guess_probability"] or 0.0)
        for name, row in rows.items():
            row["bits"] += sum(n for n, eves in zip(most, blocks, strict=True) if name not in [e["name"] for e in eves])
        return sorted(rows.values(), key=lambda row: (row["bits"], -row["guess"]))

    # ------------------------------------------------------------ data for a page

    def message(self, cursor: dict[str, int] | None = None) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the data after `cursor`, up to which the page has received everything, and the next cursor."""
        with self._lock:
            return self._message(cursor or {})

    def _message(self, cursor: dict[str, int]) -> tuple[dict[str, Any], dict[str, int]]:
        whole = cursor.get("generation") != self.generation
        since = 0 if whole else cursor["points"]
        start = self.start
        told: dict[str, Any] = {
            "state": self.state,
            "paused": self.paused and self.state == "live",
            "asked": self.asked if self.state == "live" else None,
            "whole": whole,
            "title": "" if start is None else str(start.experiment.get("title", "")),
            "planned": 0 if start is None else int(start.experiment.get("rounds") or 0),
            "round": self.last_round,
            "rounds": self.rounds,
            "kept": self.kept,
            "rejected": {reason: n for reason, n in self.rejected.items() if n},
            "rounds_per_s_now": self.rounds_per_s_now if self.state == "live" else None,
            "points": self.points[since:],
            "links": {name: self._link(name, link) for name, link in self.links.items()},
            "subcarrier_hz": None if start is None or not whole else start.subcarrier_hz,
            "nodes": [{"name": n, "role": self.roles.get(n, n), "state": s} for n, s in sorted(self.nodes.items())],
            "events": [event for event in self.events if event["n"] > cursor.get("events", 0)],
            "blocks": [self._block(block) for _, block in sorted(self.blocks.items())],
            "key_bits": self.key_bits,
            "flow": self.bit_flow(),
            "eves": self.eves()[:12],
            "surface": self._pattern(),
            "stop": self.stop,
        }
        return told, {"generation": self.generation, "points": len(self.points), "events": self.event_count}

    def _link(self, name: str, link: Link) -> dict[str, Any]:
        transmitter, receiver = name.split(">")
        out: dict[str, Any] = {
            "rounds": link.rounds,
            "from": transmitter,
            "at": receiver,
            "role": self.roles.get(receiver),
        }
        if link.csi is not None:
            level_db = 20.0 * np.log10(np.abs(link.csi[0, 0]).astype(np.float64) + 1e-30)
            out["level_db"] = np.round(level_db, 2).tolist()
            scale = max(map(abs, link.middle), default=1.0) or 1.0
            out["plane"] = [[round(v.real / scale, 3), round(v.imag / scale, 3)] for v in link.middle]
        return out

    def _block(self, block: dict[str, Any]) -> dict[str, Any]:
        agree, key = (self._of(block[part], "alice") or {} for part in ("agree", "key"))
        eve, n = block["eve"] or {}, agree.get("sacrificed_bits") or 0
        return {
            "block": block["block"],
            "kdr": agree["sacrificed_errors"] / n if n else None,
            "kdr_eve": eve["sacrificed_errors"] / eve["covered_bits"] if eve.get("covered_bits") else None,
            "key_bits": key.get("key_bits"),
            "failure": agree.get("failure") or key.get("failure"),
        }

    def _pattern(self) -> dict[str, Any] | None:
        if self.pattern is None:
            return None
        digest, pattern = self.pattern
        return {"digest": digest, "bits": pattern.phase_bits, "levels": pattern.levels.tolist()}


def joined(a: dict[str, Any], b: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return one point in place of two neighbours; the last point may have no neighbour."""
    if b is None:
        return a
    out: dict[str, Any] = {"first": a["first"], "last": b["last"]}
    for name in ("snr_db", "cfo_hz", "r"):
        keys = a[name].keys() | b[name].keys()
        out[name] = {k: float(np.mean([p[name][k] for p in (a, b) if k in p[name]])) for k in keys}
    return out


def probe_rows(run: RecordedRun) -> Iterator[tuple[Any, ...]]:
    """Yield a closed run's probes, by ascending round, in the form of `Grown.probes`; CSI of NaN is not changed."""
    names = list(run.links)
    sizes = [run.links[name].rounds.size for name in names]
    if not names:
        return
    link = np.repeat(np.arange(len(names)), sizes)
    place = np.concatenate([np.arange(n) for n in sizes])
    order = np.argsort(np.concatenate([run.links[name].rounds for name in names]), kind="stable")
    for j, i in zip(link[order].tolist(), place[order].tolist(), strict=True):
        record = run.links[names[j]]
        head = int(record.rounds[i]), names[j], float(record.snr_db[i]), float(record.cfo_hz[i]), str(record.surface[i])
        if record.csi is None:
            yield *head, None, None, None, None
        else:
            yield *head, *record.csi.shape[1:], record.csi[i].tobytes()
