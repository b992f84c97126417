"""A short run of the man in the middle over TCP; the long one: `scripts/relay`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import relay

from testbed.chain.pipeline import KeyChain


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyChain, "decide", KeyChain.decide)  # put back afterwards
    relay.decided_before()


@pytest.mark.parametrize("name", ["cascade", "ldpc", "tagged"])
def test_an_honest_relay_changes_nothing(name: str) -> None:
    heard = relay.undisturbed(name)
    assert heard.key.size == 128
    assert {"quantize_lead", "sacrifice", "verify_tag", "amplify", "confirmed", "delivered"} <= set(heard.by_kind)


@pytest.mark.parametrize("name", ["cascade", "tagged"])
def test_a_relay_on_the_line_gets_no_two_keys_and_nobody_hangs(name: str) -> None:
    came, tried = relay.meddle(name, range(40))
    assert came["no key"] > 5
    assert tried.total() == 40
    assert {kind for kind, _ in tried} >= {"amplify", "confirmed", "delivered"}


def test_a_difference_would_be_noticed() -> None:
    """A relay test that cannot fail would prove nothing."""
    block = relay.Block("cascade", relay.honest)
    block.keys = {"alice": np.zeros(128, np.uint8), "bob": np.ones(128, np.uint8)}
    with pytest.raises(AssertionError, match="two different keys"):
        relay.outcome(block)
    block.keys = {"alice": np.zeros(128, np.uint8)}
    with pytest.raises(AssertionError, match="never meant"):
        relay.outcome(block)


def test_a_node_that_raises_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr("testbed.nodes.key_maker.KeyMaker.take", broken)
    with pytest.raises(AssertionError, match=r"cascade, seed 3, .*KeyError"):
        relay.meddle("cascade", range(3, 4))


@pytest.mark.parametrize(("seed", "words"), [(69, "two different keys"), (37, "never meant")])
def test_without_key_confirmation_the_relay_wins(monkeypatch: pytest.MonkeyPatch, seed: int, words: str) -> None:
    """The same manipulations find what they are meant to find where nothing stands against them."""
    for check in ("check_shown", "check_answered"):
        monkeypatch.setattr(f"testbed.chain.amplification.{check}", lambda *_: None)
    with pytest.raises(AssertionError, match=words):
        relay.meddle("cascade", range(seed, seed + 1))
