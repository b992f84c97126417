"""Judging in forked children: the same findings to the bit, and no key where a child is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.core import forks
from testbed.core.forks import Children
from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Earlier, Facts, Heard
from testbed.entropy.judge import JUDGING, judge
from testbed.entropy.length import Budget, key_length
from testbed.entropy.read_off import frequencies
from testbed.nodes import daemon

pytestmark = pytest.mark.skipif(not forks.are_safe(), reason="children end with their parent on Linux only")
TWO = Children(2, limit_s=200.0)


def facts(n: int = 120, dimensions: int = 3) -> Facts:
    """An Eve who hears part of it, an earlier block, patterns, CSI: nearly every attack applies."""
    rng = np.random.default_rng(4)
    probe, dimension = np.divmod(np.arange(n * dimensions), dimensions)
    walk = np.cumsum(rng.normal(size=(n + 80, dimensions)), axis=0)[80:] * 0.2 + rng.normal(size=(n, dimensions))
    hers = walk + 0.5 * rng.normal(size=walk.shape)
    states = np.arange(n) // 5
    return Facts(
        value=((walk > 0) * 2 + (np.abs(walk) > 0.7)).ravel().astype(np.int64),
        bits=np.full(n * dimensions, 2), probe=probe, dimension=dimension, published=rng.random(n * dimensions) < 0.1,
        rounds=np.arange(n) + n, time_s=np.arange(n) * 0.1, features=walk,
        csi=np.exp(walk + 1j * rng.normal(size=walk.shape)), states=states,
        patterns=np.exp(1j * np.pi * np.random.default_rng(1).integers(0, 2, (n // 5, 4)))[states],
        heard=(
            Heard("eve.0:alice", np.arange(n) + n, np.arange(n) * 0.1, hers, np.exp(hers + 0j)),
            Heard("eve.1:alice", np.arange(n) + n, np.arange(n) * 0.1, -hers, np.exp(1j * hers)),
        ),
        earlier=(Earlier("block 0", True, np.arange(n), np.arange(n) * 0.1 - 15.0, walk + 0.1),),
    )  # fmt: skip


class Asked(Attack):
    """Does something before it states the labels' frequencies."""

    knows = "what a test tells it"

    def __init__(self, before: Callable[[Facts, I64], object]) -> None:
        super().__init__()
        self.name, self._before = "asked", before

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        self._before(facts, test)
        return np.asarray(frequencies(facts, train)[test])


def test_the_whole_portfolio_finds_the_same_in_children_and_here() -> None:
    block = facts()
    here = judge(block, seed=3)
    assert len(here.findings) > 20
    assert not here.failures
    assert judge(block, seed=3, children=TWO) == here


def test_an_attack_is_asked_the_same_questions_by_children_together(tmp_path: Path) -> None:
    def note(facts: Facts, test: I64) -> None:
        with open(tmp_path / str(os.getpid()), "a") as file:
            file.write(f"{test[0]}\n")

    block = facts()
    judge(block, seed=3, attacks=[Asked(note)])
    (alone,) = (p.read_text().split() for p in tmp_path.iterdir())
    assert len(alone) == 11  # ten folds, and the first one again
    (tmp_path / str(os.getpid())).unlink()
    judge(block, seed=3, attacks=[Asked(note)], children=TWO)
    shared = [p.read_text().split() for p in tmp_path.iterdir()]
    assert sorted(len(s) for s in shared) == [1, 5, 5]  # the first fold by itself
    assert sorted(q for s in shared for q in s) == sorted(alone)


def test_an_attack_that_fails_in_several_folds_fails_as_it_would_here() -> None:
    def fail(facts: Facts, test: I64) -> None:
        if test[0] > 2:
            raise ValueError(f"symbol {test[0]}")

    block = facts()
    here = judge(block, seed=3, attacks=[Asked(fail)])
    assert here.failures[0].reason.startswith("ValueError: symbol")
    for n in (2, 3):
        assert judge(block, seed=3, attacks=[Asked(fail)], children=Children(n, limit_s=200.0)) == here


class Keeper(Attack):
    """Keeps every label that it is shown, which it must not."""

    name, knows = "keeper", "all labels"

    def __init__(self) -> None:
        super().__init__()
        self.name, self.kept = "keeper", {}

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        self.kept |= dict(zip(train.tolist(), facts.value[train].tolist(), strict=True))
        p = np.asarray(frequencies(facts, train)[test])
        for row, symbol in zip(p, test.tolist(), strict=True):
            if symbol in self.kept:
                row[:] = np.arange(row.size) == self.kept[symbol]
        return p


def test_an_attack_that_keeps_labels_is_caught_in_children_too() -> None:
    for children in (None, TWO, Children(4, limit_s=200.0)):
        found = judge(facts(), seed=3, attacks=[Keeper()], children=children)
        assert "so it used them (canary)" in found.failures[0].reason


class Hearing(Asked):
    """Decides at the first fold how much of its gain the folds hide."""

    needs = ("heard",)

    def __init__(self) -> None:
        super().__init__(lambda *_: setattr(self, "hidden_context", 0.4))
        self.name = "hearing"


def test_what_an_attack_states_at_the_first_fold_counts_wherever_it_was_asked() -> None:
    block = facts()
    here = judge(block, seed=3, attacks=[Hearing(), Asked(lambda *_: None)])
    assert here.findings[0].estimated_bits < here.findings[1].estimated_bits
    for n in (1, 2, 3, 4):
        told = [Hearing(), Asked(lambda *_: None)]
        assert judge(block, seed=3, attacks=told, children=Children(n, limit_s=200.0)) == here


def test_an_attack_that_does_not_say_what_it_needs_fails_alone() -> None:
    class Wordless(Asked):
        needs = None  # type: ignore[assignment]

    for children in (None, TWO):
        found = judge(facts(), seed=3, attacks=[Wordless(lambda *_: None), Hearing()], children=children)
        assert [f.reason[:9] for f in found.failures] == ["TypeError"]
        assert [f.attack for f in found.findings] == ["hearing"]


def in_children(do: Callable[[], object]) -> Attack:
    here = os.getpid()
    return Asked(lambda *_: do() if os.getpid() != here else None)


def in_grandchildren(do: Callable[[], object]) -> Attack:
    here = os.getpid()
    return Asked(lambda *_: do() if os.getppid() != here and os.getpid() != here else None)


@pytest.mark.parametrize("where", [in_children, in_grandchildren])
@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process that judges was ended by SIGKILL"),
        (lambda: time.sleep(600), "the process that judges was not done within 0.5 s"),
    ],
)
def test_a_lost_child_is_a_failure_of_the_block_and_makes_no_key(
    where: Callable[[Callable[[], object]], Attack], do: Callable[[], object], said: str
) -> None:
    block = facts(n=400)
    children = replace(TWO, limit_s=0.5) if "0.5" in said else TWO
    found = judge(block, seed=3, attacks=[where(do)], children=children)
    assert [(f.attack, f.reason) for f in found.failures] == [(JUDGING, said)]
    assert found.min_entropy("estimated") == 0.0
    length = key_length(block, found, 0, Budget())
    assert (length.bits, length.failure) == (0, f"judging failed: {said}")


def test_judging_that_is_no_longer_wanted_ends() -> None:
    children = Children(2, limit_s=200.0, stopped=lambda: True)
    found = judge(facts(), seed=3, attacks=[in_children(lambda: time.sleep(600))], children=children)
    assert found.failures[0].reason == "the process that judges was stopped"


def test_where_no_child_can_be_made_the_findings_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    block, told = facts(), [Asked(lambda *_: None)]
    here = judge(block, seed=3, attacks=told)

    def full() -> int:
        raise OSError("no process is left")

    monkeypatch.setattr(os, "fork", full)
    assert judge(block, seed=3, attacks=told, children=TWO) == here


def test_a_child_that_may_not_fork_asks_all_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    block, told, fork, here = facts(), [Asked(lambda *_: None)], os.fork, os.getpid()
    alone = judge(block, seed=3, attacks=told)

    def full() -> int:
        if os.getpid() != here:
            raise OSError("no process is left")
        return fork()

    monkeypatch.setattr(os, "fork", full)
    assert judge(block, seed=3, attacks=told, children=TWO) == alone


def test_the_memory_that_judging_needs_goes_back_to_the_system() -> None:
    def held_mb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

    kept: list[F64] = []
    before = held_mb()
    judge(facts(), seed=3, attacks=[Asked(lambda *_: kept.append(np.ones(2_000_000)))], children=TWO)
    assert held_mb() < before + 50
    judge(facts(), seed=3, attacks=[Asked(lambda *_: kept.append(np.ones(2_000_000)))])
    assert held_mb() > before + 100  # and so it can be seen


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_node_judges_in_children_unless_it_shares_its_process(
    is_shared: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Made(Exception):
        pass

    told: list[Any] = []

    def state(*arguments: Any) -> None:
        told.extend(arguments)
        raise Made

    monkeypatch.setattr(daemon, "NodeState", state)
    lab = daemon_lab()
    with pytest.raises(Made):
        daemon.NodeDaemon(lab, "alice", "", None, None, tmp_path, Shared() if is_shared else None)  # type: ignore[arg-type]
    children = told[-1]
    if is_shared:
        assert children is None
    else:
        assert children.at_once == forks.usable_cores()
        assert not children.stopped()


class Shared:
    class turns:
        @staticmethod
        def now_s() -> float:
            return 0.0


def daemon_lab() -> Any:
    from testbed import config

    return config.load_lab("sim")
