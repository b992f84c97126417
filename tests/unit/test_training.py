"""The training of an enhancer as a discussion: what both ends have then, what a broken message does, what Eve gets."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed.assess import training as assess_training
from testbed.chain import training
from testbed.chain.agreement import LEAD
from testbed.chain.dialogue import Conversation, run
from testbed.chain.pipeline import KeyChain
from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import InputError
from testbed.core.ledger import PublicMessage
from testbed.core.types import CsiSeries

PLAN = ChainPlan(enhance="linear_mmse", enhance_options={"step": 2, "align": False}, quantize_options={"bits": 1})
PROBES, CARRIERS, SEED = 300, 16, 5


def chain(plan: ChainPlan = PLAN) -> KeyChain:
    return KeyChain(plan, Accounting(epsilon_log2=32))


def ends(seed: int, eve: float = 0.0) -> dict[str, CsiSeries]:
    """Return CSI by who measured it: fixed ripples at each end that are not reciprocal; Eve's correlated with Bob's."""
    hardware, rng = np.random.default_rng(1), np.random.default_rng(seed)

    def gaussian(*shape: int) -> Any:
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)

    taps = np.fft.fft(np.eye(CARRIERS))[:4] / 2
    h = gaussian(PROBES, 4) @ taps
    own = gaussian(PROBES, 4) @ taps
    out = {}
    for end, channel in (("alice", h), ("bob", h), ("eve", eve * h + np.sqrt(1 - eve**2) * own)):
        ripple = np.exp(1j * hardware.normal(scale=0.6, size=CARRIERS))
        x = channel * ripple + 0.05 * gaussian(PROBES, CARRIERS)
        out[end] = CsiSeries(x[:, None, None, :].astype(np.complex64), np.arange(PROBES), np.arange(CARRIERS) * 625e3)
    return out


def trained() -> tuple[KeyChain, KeyChain, list[PublicMessage]]:
    a, b = chain(), chain()
    csi = ends(1)
    alice, bob, said = run(a.train("alice", csi["alice"], 0, SEED), b.train("bob", csi["bob"], 0, SEED))
    assert alice.failure is None
    assert bob.failure is None
    assert alice.nmse_after < 0.1 * alice.nmse_before
    return a, b, [m for _, m in said]


def agree(a: KeyChain, b: KeyChain) -> tuple[Any, Any, list[PublicMessage]]:
    csi = ends(2)
    alice, bob, said = run(a.agree("alice", csi["alice"], 1, SEED), b.agree("bob", csi["bob"], 1, SEED))
    return alice, bob, [m for _, m in said]


def test_both_ends_have_one_model_and_it_helps() -> None:
    a, b, said = trained()
    assert a.enhance.model_id == b.enhance.model_id is not None
    assert [m.kind for m in said] == [training.CSI, training.MODEL, training.TRAINED]
    assert all(m.leaked_bits == 0 for m in said)
    alice, bob, _ = agree(a, b)
    options = {"step": 2, "scale": "complex", "align": False}
    plain = chain(msgspec.structs.replace(PLAN, enhance="identity", enhance_options=options))
    alice0, bob0, _ = agree(plain, plain)
    wrong, wrong0 = (np.mean(x.raw.values != y.raw.values) for x, y in ((alice, bob), (alice0, bob0)))
    assert alice.report.verified
    assert wrong < 0.5 * wrong0


def test_bobs_csi_of_the_training_is_public_and_alices_weights_are_not() -> None:
    a, _, said = trained()
    published = training.read_series(said[0], ends(1)["alice"], 0)
    np.testing.assert_array_equal(published.h, ends(1)["bob"].h)
    weights = a.enhance._model.private["matrix"].tobytes()  # type: ignore[attr-defined]
    assert weights not in msgspec.msgpack.encode(said[1])


def tampered(said: list[PublicMessage], kind: str, change: Any) -> tuple[Any, Any, KeyChain, KeyChain]:
    """Run the training with one message changed on its way."""
    a, b = chain(), chain()
    csi = ends(1)
    alice = Conversation(a.train("alice", csi["alice"], 0, SEED))
    bob = Conversation(b.train("bob", csi["bob"], 0, SEED))
    to_alice, to_bob = bob.advance(), alice.advance()
    while to_alice or to_bob:
        spoil = lambda ms: [  # noqa: E731
            msgspec.structs.replace(m, body=change(dict(m.body))) if m.kind == kind else m for m in ms
        ]
        to_alice, to_bob = (
            [x for m in spoil(to_bob) for x in bob.advance(m)],
            [x for m in spoil(to_alice) for x in alice.advance(m)],
        )
    return alice.result, bob.result, a, b


def flipped(body: dict[str, Any]) -> dict[str, Any]:
    data = bytearray(body["csi"])
    data[100] ^= 1
    return {**body, "csi": bytes(data)}


@pytest.mark.parametrize(
    ("kind", "change", "who", "reason"),
    [
        (training.CSI, flipped, "alice", "SHA-256"),
        (training.CSI, lambda b: {**b, "csi": b["csi"][:-8]}, "alice", "not the CSI of shape"),
        (training.CSI, lambda b: {**b, "shape": [PROBES, 1, 1, 8]}, "alice", "CSI of shape"),
        (training.CSI, lambda b: {**b, "block": 7}, "alice", "another block"),
        (training.MODEL, lambda b: {**b, "block": 7}, "bob", "block 7"),
        (training.MODEL, lambda b: {**b, "model": {**b["model"], "public": b"PK"}}, "bob", "npz"),
        (training.MODEL, lambda b: {**b, "model": {**b["model"], "card": "{}"}}, "bob", "card"),
        (training.MODEL, lambda b: {"block": 0}, "bob", "KeyError"),
    ],
)
def test_a_corrupted_training_is_refused_at_both_ends(kind: str, change: Any, who: str, reason: str) -> None:
    alice, bob, a, b = tampered([], kind, change)
    mine, theirs = (alice, bob) if who == "alice" else (bob, alice)
    assert mine.failure.startswith("protocol (")
    assert reason in mine.failure
    assert theirs.failure.startswith("peer_failed: protocol")
    assert a.enhance.model_id is b.enhance.model_id is None
    assert (alice.model, bob.model) == (None, None)


def test_a_training_that_fails_leaves_the_model_of_before() -> None:
    a, b, _ = trained()
    before = a.enhance.model_id
    csi = ends(3)
    deaf = replace(csi["bob"], h=np.full_like(csi["bob"].h, np.nan))
    alice, bob, _ = run(a.train("alice", csi["alice"], 1, SEED), b.train("bob", deaf, 1, SEED))
    assert alice.failure.startswith("untrainable (0 of 300 probes")
    assert bob.failure == "peer_failed: untrainable"
    assert a.enhance.model_id == b.enhance.model_id == before


@pytest.mark.parametrize("without", ["alice", "bob"])
def test_an_end_without_a_model_fails_the_block_and_says_so(without: str) -> None:
    a, b, _ = trained()
    alice, bob, _ = agree(chain(), b) if without == "alice" else agree(a, chain())
    mine, theirs = (alice, bob) if without == "alice" else (bob, alice)
    assert mine.report.failure == "not_trained"
    assert theirs.report.failure == "peer_failed: not_trained"


def test_another_model_is_refused() -> None:
    a, b, _ = trained()
    c = ends(4)
    other = b.enhance.fresh()
    other.fit(c["alice"], c["bob"], np.random.default_rng(1))
    b.enhance.load(other.dump())
    alice, bob, _ = agree(a, b)
    assert bob.report.failure == "wrong_model"
    assert alice.report.failure == "peer_failed: wrong_model"


def test_a_model_for_other_csi_fails_the_block() -> None:
    a, b, _ = trained()
    wide = {k: replace(v, h=v.h[..., :8], subcarrier_hz=v.subcarrier_hz[:8]) for k, v in ends(2).items()}
    alice, _, _ = run(a.agree("alice", wide["alice"], 1, SEED), b.agree("bob", wide["bob"], 1, SEED))
    assert alice.report.failure == "wrong_model"


def test_eve_learns_from_what_was_published() -> None:
    """Her own model takes out her own ripple and Bob's: she errs less than one who only does as Bob does."""
    a, b, said = trained()
    e, lazy = chain(), chain()
    e.overhear_training(ends(1, 0.9)["eve"], None, said, SEED)
    alice, _, transcript = agree(a, b)
    lazy.enhance.adopt(said[1].body["model"])
    heard = ends(2, 0.9)["eve"]
    guess, untaught = (k.eavesdrop(1, heard, None, transcript, True) for k in (e, lazy))
    assert guess.report.best_link == "alice, trained"
    assert guess.report.measured
    wrong, wrong0 = (np.mean(g.raw != alice.raw.values) for g in (guess, untaught))
    assert wrong < wrong0 - 0.05


def test_eve_who_missed_the_training_is_no_measurement() -> None:
    a, b, _ = trained()
    _, _, transcript = agree(a, b)
    e = chain(msgspec.structs.replace(PLAN, enhance="pca", enhance_options={"components": 4}))
    assert not e.eavesdrop(1, ends(2)["eve"], None, transcript, True).report.measured


def test_a_saved_model_serves_instead_of_a_training(tmp_path: Any) -> None:
    a, _, _ = trained()
    path = tmp_path / "model.npz"
    a.enhance.save(path)
    card = msgspec.json.decode(path.with_suffix(".json").read_bytes())
    assert card["enhance"] == "linear_mmse"
    assert card["data"]["rounds"] == [0, PROBES - 1]
    assert set(card["versions"]) >= {"numpy", "testbed"}
    options = {**PLAN.enhance_options, "model": str(path)}
    loaded = [chain(msgspec.structs.replace(PLAN, enhance_options=options)) for _ in range(2)]
    alice, _, transcript = agree(*loaded)
    assert alice.report.verified
    assert next(m for m in transcript if m.kind == LEAD).body["model"] == a.enhance.model_id


@pytest.mark.parametrize(
    ("content", "what"),
    [(None, "No such file"), (b"", "npz"), (b"PK\x03\x04 nonsense", "npz"), (b"\x80\x04K\x01.", "npz")],
)
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Any, content: bytes | None, what: str) -> None:
    path = tmp_path / "model.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=what) as caught:
        chain(msgspec.structs.replace(PLAN, enhance_options={"model": str(path)}))
    assert "\n" not in str(caught.value)


def test_pickles_in_a_model_file_are_not_run(tmp_path: Any) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, card=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"no \.npz file of plain numbers"):
        chain(msgspec.structs.replace(PLAN, enhance_options={"model": str(path)}))


@pytest.mark.parametrize(("rho", "least", "most"), [(0.0, 1, 1), (0.9, 8, 14), (1.0, None, None)])
def test_memory_is_measured_in_rounds(rho: float, least: int | None, most: int | None) -> None:
    rng = np.random.default_rng(4)
    h = np.empty((2000, 1, 1, 8), complex)
    h[0] = rng.normal(size=h[0].shape) + 1j * rng.normal(size=h[0].shape)
    for t in range(1, len(h)):
        new = rng.normal(size=h[0].shape) + 1j * rng.normal(size=h[0].shape)
        h[t] = rho * h[t - 1] + np.sqrt(1 - rho**2) * new
    h[7] = np.nan
    found = training.memory_rounds(CsiSeries(h.astype(np.complex64), np.arange(2000), np.arange(8) * 1e6))
    assert found is None if least is None else least <= found <= most


@pytest.mark.parametrize(("memory", "guard", "ok"), [(3, 20, True), (21, 20, False), (None, 20, False)])
def test_what_the_channel_still_remembers_is_named(memory: int | None, guard: int, ok: bool) -> None:
    a, b = chain(), chain()
    csi = ends(1)
    alice, _, _ = run(a.train("alice", csi["alice"], 0, SEED), b.train("bob", csi["bob"], 0, SEED))
    assert alice.memory_rounds == 1  # these probes are independent
    report = msgspec.structs.replace(alice, memory_rounds=memory)
    found = assess_training.guard_verdict([assess_training.Attempt(PROBES, None, report, None)], guard)
    assert found.ok == ok
    assert (str(memory) if memory else "may reveal") in found.detail
