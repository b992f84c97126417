"""Fuzzers: bad inputs for everything that reads what others wrote. A reader accepts, or refuses in one printable line.

    scripts/fuzz                              what there is
    scripts/fuzz messages world --inputs 100000 --seed 3
    scripts/fuzz all --seconds 60

Inputs are mutations of good ones and follow from the seed; one that did harm is printed and can be tried again alone
(`--only N`). Harm is: an exception other than the reader's own refusal, a refusal of several lines, more than
`SLOW_S` of processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

SLOW_S = 5.0

Feed = Callable[[random.Random], str]
"""Makes one input and tries it; returns what came of it in a word. What it raises is harm."""


@dataclass
class Result:
    """What came of a fuzzer's inputs."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    harm: list[str] = field(default_factory=list)

    def line(self) -> str:
        told = ", ".join(f"{k} {v}" for k, v in sorted(self.outcomes.items()))
        return f"{self.target}: {self.inputs} inputs in {self.seconds:.0f} s: {told}; harm {len(self.harm)}"


def run(
    target: str, numbers: Iterator[int], seed: int = 0, seconds: float = float("inf"), most_harm: int = 5
) -> Result:
    """Try inputs by number until they, the time, or the patience with harm run out."""
    found = Result(target)
    with opened(target) as feed:
        began_s = time.monotonic()
        for number in numbers:
            if time.monotonic() - began_s > seconds or len(found.harm) >= most_harm:
                break
            found.inputs += 1
            before_s = time.process_time()
            try:
                found.outcomes[feed(random.Random(f"{target}/{seed}/{number}"))] += 1
            except KeyboardInterrupt:  # what came of it until then is told
                found.inputs -= 1
                break
            except Exception as exc:
                what = (str(exc).splitlines() or [""])[0][:200]
                where = _innermost(exc)
                found.harm.append(f"--seed {seed} --only {number}: {type(exc).__name__} at {where}: {what}")
            if (took_s := time.process_time() - before_s) > SLOW_S:
                found.harm.append(f"--seed {seed} --only {number}: took {took_s:.1f} s")
        found.seconds = time.monotonic() - began_s
    return found


@contextlib.contextmanager
def opened(target: str) -> Iterator[Feed]:
    """Make a target's good inputs; its files are in memory where the system has a file system for that, and the folders
    of stages are read once, as nothing in them changes."""
    import targets

    from testbed.core import registry

    memory = Path("/dev/shm")
    folder = memory if os.access(memory, os.W_OK) else None
    once = mock.patch.object(registry, "_files", functools.cache(registry._files))
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-", dir=folder) as made,
        once,
        targets.TARGETS[target](Path(made)) as feed,
    ):
        yield feed


def _innermost(exc: BaseException) -> str:
    frame, line = "?", 0
    at = exc.__traceback__
    while at is not None:
        if "/testbed/" in at.tb_frame.f_code.co_filename or "backend" in at.tb_frame.f_code.co_filename:
            frame, line = Path(at.tb_frame.f_code.co_filename).name, at.tb_lineno
        at = at.tb_next
    return f"{frame}:{line}"


def main() -> int:
    import targets

    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="*", help=f"all, or: {', '.join(targets.TARGETS)}")
    parser.add_argument("--inputs", type=int, default=1000, help="of each target")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="try this input alone, and let its exception through")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = list(targets.TARGETS) if given.target == ["all"] else given.target
    if not names or not set(names) <= set(targets.TARGETS):
        parser.error(f"accepted targets: all, {', '.join(targets.TARGETS)}")
    if given.only is not None:
        with opened(names[0]) as feed:
            print(feed(random.Random(f"{names[0]}/{given.seed}/{given.only}")))
        return 0
    results = []
    for name in names:
        numbers = itertools.islice(itertools.count(), given.inputs)
        results.append(run(name, numbers, given.seed, given.seconds, most_harm=20))
        print(results[-1].line(), *results[-1].harm, sep="\n  ", file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps([{**vars(r), "outcomes": dict(r.outcomes)} for r in results]))
    return 1 if any(r.harm for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
