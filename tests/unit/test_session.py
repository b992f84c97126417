"""Numbered messages over connections that lose some: each arrives once and in order."""

from __future__ import annotations

import random
from typing import Any

import pytest

from testbed.net.session import MAX_OWED, Session


def test_only_the_next_number_is_taken() -> None:
    session = Session("a")
    assert [session.take(n) for n in (0, 2, 0, 1, 2, 1)] == ["next", "gap", "duplicate", "next", "next", "duplicate"]


def test_what_is_acknowledged_is_owed_no_more() -> None:
    session = Session("a")
    assert [session.say(word) for word in "abc"] == [0, 1, 2]
    session.acknowledged(1)
    assert list(session.owed) == [(2, "c", None)]


def test_nothing_is_kept_beyond_a_limit_and_the_numbers_stay_without_a_gap() -> None:
    session = Session("a")
    for n in range(MAX_OWED):
        assert session.say("x") == n
    assert session.dropped == 0
    assert session.say("x") is None
    assert session.say("x") is None
    assert session.dropped == 2
    session.acknowledged(0)
    assert session.say("x") == MAX_OWED
    assert session.dropped == 2


def test_a_loss_is_known_from_what_was_numbered_before_the_question() -> None:
    session = Session("a")
    for word in "abc":
        session.say(word)
    assert not session.has_lost(seen=-1, parent=None)
    assert not session.has_lost(seen=2, parent=3)
    assert session.has_lost(seen=1, parent=3)
    session.acknowledged(2)
    session.say("d")
    assert not session.has_lost(seen=2, parent=3)  # d was said after the question: it may be on its way


def test_what_is_withdrawn_leaves_its_number() -> None:
    session = Session("a")
    for word in ("probe", "abandon", "probe"):
        session.say(word)
    assert session.withdraw(lambda body: body == "probe", "nothing") == 2
    assert [body for _, body, _ in session.owed] == ["nothing", "abandon", "nothing"]


class Pair:
    """Two ends over a line that breaks and then loses all that is under way in both directions."""

    def __init__(self) -> None:
        self.ends = (Session("1"), Session("0"))
        self.line: tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]] = ([], [])
        """What travels towards each end."""
        self.got: tuple[list[int], list[int]] = ([], [])
        self.said = [0, 0]
        self.answered: int | None = None

    def put(self, end: int, kind: str, number: int, body: object = None, parent: int | None = None) -> None:
        self.line[1 - end].append((kind, number, body, parent, self.ends[end].seen))

    def say(self, end: int) -> None:
        number = self.ends[end].say(self.said[end])
        assert number is not None
        self.put(end, "said", number, self.said[end])
        self.said[end] += 1

    def say_here(self) -> None:
        self.put(0, "here", self.ends[0].next_id, None, self.answered)

    def break_line(self) -> None:
        self.line[0].clear()
        self.line[1].clear()

    def deliver(self, end: int) -> None:
        if not self.line[end]:
            return
        kind, number, body, parent, seen = self.line[end].pop(0)
        session = self.ends[end]
        session.acknowledged(seen)
        if kind == "said":
            if session.take(number) == "next":
                self.got[end].append(body)
            return
        if session.has_lost(seen, parent):
            for old, owed, _ in session.owed:
                self.put(end, "said", old, owed)
        if kind == "here":
            self.put(end, "pulse", session.next_id, None, number)
        else:
            self.answered = number


@pytest.mark.parametrize("seed", range(20))
def test_over_any_connections_everything_arrives_once_and_in_order(seed: int) -> None:
    rng, pair = random.Random(seed), Pair()
    for _ in range(4000):
        end, deed = rng.randrange(2), rng.choices(("deliver", "say", "here", "break"), (65, 25, 10, 1))[0]
        match deed:
            case "deliver":
                pair.deliver(end)
            case "say":
                pair.say(end)
            case "here":
                pair.say_here()
            case "break":
                pair.break_line()
    for _ in range(10):  # the line holds from now on
        pair.say_here()
        while pair.line[0] or pair.line[1]:
            pair.deliver(0)
            pair.deliver(1)
    assert min(pair.said) > 300
    for end in (0, 1):
        assert pair.got[end] == list(range(pair.said[1 - end]))
