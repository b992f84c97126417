"""Numbered messages over connections that lose some: each arrives once and in order."""

from __future__ import annotations

import random

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
    assert session.say("x") is None
    session.acknowledged(0)
    assert session.say("x") == MAX_OWED


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


@pytest.mark.parametrize("seed", range(20))
def test_over_any_connections_everything_arrives_once_and_in_order(seed: int) -> None:
    """Two ends over a line that breaks at random and then loses all that is under way in both directions."""
    rng = random.Random(seed)
    ends = {0: Session("1"), 1: Session("0")}
    line: dict[int, list[tuple[str, int, object, int | None, int]]] = {0: [], 1: []}  # what travels towards the end
    got: dict[int, list[object]] = {0: [], 1: []}
    answered: int | None = None
    said = {0: 0, 1: 0}

    def put(end: int, kind: str, number: int, body: object, parent: int | None) -> None:
        line[1 - end].append((kind, number, body, parent, ends[end].seen))

    def again(end: int) -> None:
        for number, body, _ in ends[end].owed:
            put(end, "said", number, body, None)

    def deliver(end: int) -> None:
        nonlocal answered
        kind, number, body, parent, seen = line[end].pop(0)
        session = ends[end]
        session.acknowledged(seen)
        if kind == "said":
            if session.take(number) == "next":
                got[end].append(body)
            return
        if session.has_lost(seen, parent):
            again(end)
        if kind == "here":
            put(end, "pulse", session.next_id, None, number)
        else:
            answered = number

    for step in range(4000):
        action = rng.random()
        end = rng.randrange(2)
        if action < 0.02 and step < 3000:
            line = {0: [], 1: []}
        elif action < 0.3 and step < 2500:
            word = (end, said[end])
            said[end] += 1
            number = ends[end].say(word)
            assert number is not None
            put(end, "said", number, word, None)
        elif action < 0.4:
            put(0, "here", ends[0].next_id, None, answered)
        elif line[end]:
            deliver(end)
    while line[0] or line[1]:
        for end in (0, 1):
            if line[end]:
                deliver(end)
        if not line[0] and not line[1] and (ends[0].owed or ends[1].owed):
            put(0, "here", ends[0].next_id, None, answered)
    for end in (0, 1):
        assert got[end] == [(1 - end, n) for n in range(said[1 - end])]
