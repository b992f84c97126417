"""Slot schedules: who transmits and who listens, written as in `A>BE B>AE`."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.core.errors import InputError

MAX_TRAIN = 256
"""Largest number of rounds in a train."""
LONGEST_TRAIN_S = 3.2
"""Longest duration of a train: during it, no node reports on its rounds, and the simulated air keeps samples for 4
s."""
ROLES = {"A": "alice", "B": "bob", "E": "eve"}
_LETTERS = {role: letter for letter, role in ROLES.items()}
_ACCEPTED = "accepted: slots like A>BE, letters A (alice), B (bob), E (eve), separated by spaces"


@dataclass(frozen=True, slots=True)
class Slot:
    """One transmission of a round."""

    tx: str
    """Role of the transmitter."""
    rx: tuple[str, ...]
    """Roles of the receivers, in the order written."""


def longest_train(interval_s: float, longest_s: float = LONGEST_TRAIN_S) -> int:
    """Return how many rounds at this interval may be one train, which lasts for `longest_s` at most.

    >>> longest_train(0.002), longest_train(0.05), longest_train(20.0)
    (256, 64, 1)
    """
    return max(1, min(MAX_TRAIN, int(longest_s / interval_s + 1e-9)))


def parse(text: str) -> tuple[Slot, ...]:
    """Read a schedule; slots happen in the order written.

    Every slot has one transmitter and one or more distinct receivers, not the transmitter. Over a round Bob hears Alice
    exactly once and Alice hears Bob exactly once. Raises InputError naming the token and what is accepted.
    """
    slots = tuple(_slot(token) for token in text.split())
    for tx, rx in (("alice", "bob"), ("bob", "alice")):
        n = sum(slot.tx == tx and rx in slot.rx for slot in slots)
        if n != 1:
            raise InputError(
                f"schedule {text!r}: {rx} receives {tx} {n} times per round; "
                f"accepted: exactly once, one slot {_LETTERS[tx]}>{_LETTERS[rx]}"
            )
    return slots


def _slot(token: str) -> Slot:
    def refuse(what: str) -> InputError:
        return InputError(f"schedule slot {token!r}: {what}; {_ACCEPTED}")

    tx, arrow, rx = token.partition(">")
    if not arrow:
        raise refuse("no '>' between transmitter and receivers")
    for letter in tx + rx:
        if letter not in ROLES:
            raise refuse(f"{letter!r} is no role")
    if len(tx) != 1:
        raise refuse(f"{len(tx)} transmitters, needs exactly one")
    if not rx:
        raise refuse("no receiver")
    if len(set(rx)) != len(rx):
        raise refuse("a receiver is named twice")
    if tx in rx:
        raise refuse(f"{ROLES[tx]} cannot receive its own transmission")
    return Slot(ROLES[tx], tuple(ROLES[letter] for letter in rx))
