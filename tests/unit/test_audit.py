"""Audit of recorded runs: what became known after a key's length was decided, and what is no news."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.assess.audit import Audited, Unaudited, audit, exposed, table
from testbed.chain import dialogue
from testbed.chain.pipeline import KeyChain
from testbed.core.config import ChainPlan
from testbed.core.outcomes import KeyReport
from testbed.core.types import CsiSeries
from testbed.entropy import attack, judge
from testbed.records.documents import Block

BLOCK_ROUNDS, BLOCKS, CARRIERS, LATE = 150, 2, 6, 170
KEY_BITS = 256
QUICK = ("eve_now", "eve_direct", "recurrence", "string_near")


@pytest.fixture(autouse=True)
def few_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = attack.load_attacks()[0]
    monkeypatch.setattr(judge, "load_attacks", lambda: ({name: everything[name] for name in QUICK}, []))


def csi(h: Any, rng: np.random.Generator, first: int = 0) -> CsiSeries:
    noise = 0.02 * (rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape))
    rounds = np.arange(h.shape[0]) + first
    return CsiSeries((h + noise)[:, None, None].astype(np.complex64), rounds, np.arange(h.shape[1]) * 1e6)


def run_of(seed: int, eve_is_late: bool = False, track: int = 1, spoilt: bool = False) -> Any:
    """Return a run of two blocks as a record has it; Eve hears a channel of her own, or Alice's so many rounds late."""
    plan = config.load_experiment("mobile_room")
    plan = msgspec.structs.replace(plan, chain=ChainPlan(enhance_options={"step": 1}), seed=seed)
    rng, walk = np.random.default_rng(100 + seed), np.random.default_rng(track)
    shape = (BLOCK_ROUNDS * BLOCKS + LATE, CARRIERS)
    h = walk.normal(size=shape) + 1j * walk.normal(size=shape)
    own = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    hers = csi(np.roll(h, LATE, axis=0) if eve_is_late else own, rng)
    links = {"bob>alice": csi(h, rng), "alice>bob": csi(h, rng), "alice>eve": hers}
    chain = KeyChain(plan.chain, plan.accounting)
    blocks, bits = [], {}
    for number in range(BLOCKS):
        rounds = np.arange(number * BLOCK_ROUNDS, (number + 1) * BLOCK_ROUNDS)
        parts = [CsiSeries(links[x].h[rounds], rounds, links[x].subcarrier_hz) for x in ("bob>alice", "alice>bob")]
        alice, bob, _ = dialogue.run(
            chain.agree("alice", parts[0], number, plan.seed), chain.agree("bob", parts[1], number, plan.seed)
        )
        key = KeyReport(block=number, key_bits=KEY_BITS, entropy="estimated", failure=None)
        reports = {"alice": alice.report, "bob": bob.report}
        blocks.append(Block(block=number, rounds=rounds.tolist(), agree=reports, key={"alice": key, "bob": key}))
        bits[number, "alice", "raw"] = alice.raw.values ^ (1 if spoilt else 0)
    every = np.arange(shape[0])
    return SimpleNamespace(
        folder=Path(f"run-{seed}"), start=SimpleNamespace(experiment=msgspec.to_builtins(plan)),
        blocks=blocks, bits=bits, node=lambda role: role, series=links.get, patterns={},
        rounds=SimpleNamespace(rounds=every, surface=np.full(every.size, "")),
    )  # fmt: skip


def test_without_news_no_key_is_exposed() -> None:
    found = audit(run_of(1))
    assert [type(o) for o in found] == [Audited, Audited]
    assert exposed(found) == 0
    assert all(row["left_bits"] > 2 * KEY_BITS for row in table(found))


def test_signals_that_eve_received_after_the_key_was_made_expose_it() -> None:
    found = audit(run_of(2, eve_is_late=True))
    assert exposed(found) == BLOCKS
    for row in table(found):
        assert row["exposed"]
        assert row["attack"] in ("eve_direct", "together")
        assert row["guess_probability"] > 0.85
        assert row["left_bits"] < KEY_BITS


def test_a_track_that_is_walked_again_in_another_run_exposes_both_and_a_strangers_none() -> None:
    run, again, stranger = run_of(3), run_of(4), run_of(5, track=2)
    assert exposed(audit(run, [stranger])) == 0
    found = audit(run, [again])
    assert exposed(found) == BLOCKS
    assert {row["attack"] for row in table(found)} <= {"recurrence", "together"}


def test_a_string_that_the_record_does_not_give_is_not_audited() -> None:
    found = audit(run_of(6, spoilt=True))
    assert [type(o) for o in found] == [Unaudited, Unaudited]
    assert exposed(found) == 0
    assert "does not reproduce" in table(found)[0]["not_audited"]
