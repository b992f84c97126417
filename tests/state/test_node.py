"""Three nodes' state machines talk to one another with no sockets, no radios and no clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.core.config import Accounting, ChainPlan, ProbingPlan, RadioPlan
from testbed.core.ledger import PublicMessage
from testbed.core.types import CsiFrame, Key
from testbed.net import messages as m
from testbed.nodes import state as s

ROUNDS = list(range(300))
SUBCARRIERS = 16


def configure(**changes: Any) -> m.Configure:
    fields: dict[str, Any] = {
        "radio": RadioPlan(),
        "probing": ProbingPlan(),
        "chain": ChainPlan(enhance_options={"step": 4}),
        "accounting": Accounting(epsilon_log2=32),
        "experiment_mode": True,
        "record_iq": False,
        "seed": 5,
    }
    return m.Configure(**{**fields, **changes})


class Trio:
    """Alice, Bob and Eve with a shared fading channel; Eve's is her own, or a noisy copy of Bob's."""

    def __init__(self, eve_sees: float = 0.0, **changes: Any) -> None:
        self.nodes = {role: s.NodeState(role, secret_seed=i) for i, role in enumerate(("alice", "bob", "eve"))}
        self.reports: dict[str, list[Any]] = {role: [] for role in self.nodes}
        self.keys: dict[str, Key] = {}
        self.transcript: list[m.PublicEnvelope] = []
        self.lost = lambda envelope: False
        rng = np.random.default_rng(1)

        def fading() -> Any:
            return rng.normal(size=(len(ROUNDS), SUBCARRIERS // 4)) + 1j * rng.normal(
                size=(len(ROUNDS), SUBCARRIERS // 4)
            )

        common, own = fading(), fading()
        for role, node in self.nodes.items():
            self.take(role, s.Told(m.Welcome(run="r", lost_after_s=10.0)))
            node.handle(s.Told(configure(**changes)))
            node.handle(s.DeviceDone(m.Configured(accepted={})))
            heard = {"alice": ["bob"], "bob": ["alice"], "eve": ["alice", "bob"]}[role]
            h = common if role != "eve" else eve_sees * common + (1 - eve_sees) * own
            h = h + 0.02 * fading()
            for r in ROUNDS:
                frames = {tx: frame(np.repeat(h[r], 4)) for tx in heard}
                self.take(role, s.ProbeDone(m.Probed(round=r, links=[]), frames))

    def take(self, role: str, event: s.Event) -> None:
        queue: list[tuple[str, s.Event]] = [(role, event)]
        while queue:
            who, what = queue.pop(0)
            for x in self.nodes[who].handle(what):
                match x:
                    case s.Report(body):
                        self.reports[who].append(body)
                    case s.KeepKey(key):
                        self.keys[who] = key
                    case s.Publish(envelope, to_peer):
                        if who == "alice":
                            self.transcript.append(envelope)
                            queue.append(("eve", s.Heard(envelope)))
                        if to_peer and not self.lost(envelope):
                            queue.append(("bob" if who == "alice" else "alice", s.Heard(envelope)))

    def last(self, role: str, kind: type[Any]) -> Any:
        return next(x for x in reversed(self.reports[role]) if isinstance(x, kind))

    def distil(self) -> None:
        order = m.Distil(block=0, rounds=ROUNDS, timeout_s=5.0)
        self.take("alice", s.Told(order))
        self.take("bob", s.Told(order))

    def attack(self) -> Any:
        heard = self.last("alice", m.Agreed).public_messages
        self.take("eve", s.Told(m.Attack(block=0, rounds=ROUNDS, public_messages=heard)))
        return self.last("eve", m.Attacked).report

    def amplify(self, eve: Any) -> None:
        order = m.Amplify(block=0, eve=eve, timeout_s=5.0)
        self.take("bob", s.Told(order))
        self.take("alice", s.Told(order))


def frame(h: Any) -> CsiFrame:
    return CsiFrame(
        h=h.astype(np.complex64)[None, None, :], subcarrier_hz=np.arange(SUBCARRIERS) * 1e5,
        snr_db=np.full(SUBCARRIERS, 30.0), cfo_hz=0.0, time_s=0.0, rssi_dbfs=-30.0,
    )  # fmt: skip


def test_alice_and_bob_end_with_one_key_and_eve_with_none() -> None:
    trio = Trio()
    trio.distil()
    alice, bob = trio.last("alice", m.Agreed), trio.last("bob", m.Agreed)
    assert alice.report.verified
    assert bob.report.verified
    eve = trio.attack()
    assert eve.transcript_complete
    assert 0.4 < eve.sacrificed_errors / eve.sacrificed_bits < 0.6
    trio.amplify(eve)
    assert trio.keys["alice"].bits.size > 100
    assert np.array_equal(trio.keys["alice"].bits, trio.keys["bob"].bits)
    trio.take("eve", s.Told(m.GuessKey(block=0, public_messages=trio.last("alice", m.Amplified).public_messages)))
    digests = {role: trio.last(role, m.Amplified).digest for role in ("alice", "bob")}
    assert digests["alice"] == digests["bob"]
    assert trio.last("eve", m.KeyGuessed).digest not in (None, digests["alice"])


def test_an_eve_who_sees_the_same_channel_leaves_no_key() -> None:
    trio = Trio(eve_sees=0.97)
    trio.distil()
    eve = trio.attack()
    assert eve.sacrificed_errors / eve.sacrificed_bits < 0.1
    trio.amplify(eve)
    assert trio.keys == {}
    assert "entropy_exhausted" in trio.last("alice", m.Amplified).report.failure


def test_messages_that_come_before_the_order_are_kept_for_it() -> None:
    trio = Trio()
    order = m.Distil(block=0, rounds=ROUNDS, timeout_s=5.0)
    trio.take("alice", s.Told(order))  # Bob hears Alice before the coordinator tells him to start
    assert not any(isinstance(x, m.Agreed) for x in trio.reports["bob"])
    trio.take("bob", s.Told(order))
    assert trio.last("bob", m.Agreed).report.verified


def test_private_mode_reports_no_bits_and_no_digests() -> None:
    trio = Trio(experiment_mode=False)
    trio.distil()
    trio.amplify(trio.attack())
    assert trio.keys["alice"].bits.size > 0
    assert trio.last("alice", m.Agreed).raw_bits is None
    assert trio.last("alice", m.Amplified).digest is None
    assert trio.last("alice", m.Amplified).p_values == {}
    assert trio.last("eve", m.Attacked).guess is None


def test_private_mode_does_not_draw_from_the_experiments_seed() -> None:
    """Whoever knows experiment.toml must not foretell which bits Alice sacrifices."""

    def sacrifice(secret_seed: int, experiment_mode: bool, run: str = "r") -> Any:
        trio = Trio(experiment_mode=experiment_mode)
        for node in trio.nodes.values():
            node.run = run
        trio.nodes["alice"]._secret_seed = secret_seed
        trio.distil()
        return next(e.message.body["seed"] for e in trio.transcript if e.message.kind == "sacrifice")

    assert sacrifice(1, False) != sacrifice(2, False)
    assert sacrifice(1, True) == sacrifice(2, True)
    assert sacrifice(1, False) != sacrifice(1, False, "another")  # a tag's point must never come twice


def test_a_silent_peer_ends_in_a_timeout_not_a_wait() -> None:
    trio = Trio()
    trio.lost = lambda envelope: envelope.sender == "bob"
    trio.distil()
    trio.take("alice", s.Tick(6.0))
    report = trio.last("alice", m.Agreed).report
    assert not report.verified
    assert report.failure == "timeout"
    assert trio.nodes["alice"].name == "ready"


@pytest.mark.parametrize("kind", ["nonsense", "verified", "failed", "quantize_follow"])
def test_garbage_from_the_peer_is_a_failure_not_a_crash(kind: str) -> None:
    trio = Trio()
    trio.lost = lambda envelope: envelope.sender == "bob"
    trio.distil()
    garbage = PublicMessage(kind=kind, body={"kept": b"\xff", "block": -1})
    trio.take("alice", s.Heard(m.PublicEnvelope("r", 0, "agree", -1, "bob", garbage)))
    report = trio.last("alice", m.Agreed).report
    assert not report.verified
    assert report.failure


def test_messages_of_another_run_or_block_are_ignored() -> None:
    trio = Trio()
    trio.lost = lambda envelope: envelope.sender == "bob"
    trio.distil()
    stray = PublicMessage(kind="failed", body={"reason": "sabotage"})
    trio.take("alice", s.Heard(m.PublicEnvelope("other", 0, "agree", -1, "bob", stray)))
    assert not any(isinstance(x, m.Agreed) for x in trio.reports["alice"])


def test_an_eve_who_missed_messages_waits_and_then_says_so() -> None:
    trio = Trio()
    trio.distil()
    trio.take("eve", s.Told(m.Attack(block=0, rounds=ROUNDS, public_messages=999)))
    assert not any(isinstance(x, m.Attacked) for x in trio.reports["eve"])
    trio.take("eve", s.Tick(s.EVE_PATIENCE_S + 1.0))
    assert not trio.last("eve", m.Attacked).report.transcript_complete


def test_abandoned_blocks_cannot_become_keys() -> None:
    trio = Trio()
    trio.distil()
    for role in ("alice", "bob"):
        trio.take(role, s.Told(m.Abandon(block=0, reason="bob was lost")))
        trio.take(role, s.Told(m.Amplify(block=0, eve=None, timeout_s=5.0)))
    assert trio.keys == {}
    assert trio.last("alice", m.Failed).operation == "amplify"


def test_a_restarted_node_has_nothing_to_distil() -> None:
    trio = Trio()
    trio.take("bob", s.Told(m.Welcome(run="r", lost_after_s=10.0)))
    trio.take("bob", s.Told(configure()))
    trio.distil()
    assert trio.last("bob", m.Failed).operation == "distil"


@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_finishing_silences_before_it_says_goodbye(kind: Any) -> None:
    node = s.NodeState("alice", 0)
    out = node.handle(s.Told(m.Finish(kind=kind)))
    assert [type(x) for x in out] == [s.Silence, s.Report, s.Exit]


def test_the_same_log_gives_the_same_instructions() -> None:
    first, second = Trio(), Trio()
    for trio in (first, second):
        trio.distil()
        trio.amplify(trio.attack())
    assert [e.message for e in first.transcript] == [e.message for e in second.transcript]
    assert np.array_equal(first.keys["bob"].bits, second.keys["bob"].bits)


@pytest.mark.parametrize("rounds", [[3, 2, 1], [1, 1, 2], [*range(1, 300), 0]])
def test_rounds_out_of_order_are_refused(rounds: list[int]) -> None:
    trio = Trio()
    trio.take("alice", s.Told(m.Distil(block=0, rounds=rounds, timeout_s=5.0)))
    assert trio.last("alice", m.Failed).operation == "distil"


def test_no_round_goes_into_two_blocks() -> None:
    trio = Trio()
    trio.distil()
    trio.take("alice", s.Told(m.Distil(block=1, rounds=ROUNDS[-10:], timeout_s=5.0)))
    assert "repeat" in trio.last("alice", m.Failed).detail


def test_the_mode_cannot_change_within_a_run() -> None:
    trio = Trio(experiment_mode=False)
    trio.take("alice", s.Told(configure(experiment_mode=True)))
    assert trio.last("alice", m.Failed).operation == "configure"


LINEAR = ChainPlan(enhance="linear_mmse", enhance_options={"step": 4}, quantize_options={"bits": 1})


def test_a_training_keeps_a_model_and_its_rounds_never_enter_a_key() -> None:
    trio = Trio(chain=LINEAR)
    kept: list[bytes] = []
    real = trio.nodes["alice"].handle

    def handle(event: s.Event) -> list[s.Instruction]:
        out = real(event)
        kept.extend(x.model for x in out if isinstance(x, s.KeepModel))
        return out

    trio.nodes["alice"].handle = handle  # type: ignore[method-assign]
    order = m.Distil(block=0, rounds=ROUNDS[:100], timeout_s=5.0, purpose="training")
    trio.take("alice", s.Told(order))
    trio.take("bob", s.Told(order))
    reports = [trio.last(role, m.Trained) for role in ("alice", "bob")]
    assert all(r.report.failure is None for r in reports)
    assert reports[0].report.model == reports[1].report.model
    heard = reports[0].public_messages
    assert heard == 3  # Bob's CSI, the model, Bob's word that he has it: all on the public record
    attack = m.Attack(block=0, rounds=ROUNDS[:100], public_messages=heard, purpose="training")
    trio.take("eve", s.Told(attack))
    assert trio.last("eve", m.Attacked).report.transcript_complete
    trio.take("alice", s.Told(m.Distil(block=1, rounds=ROUNDS[50:200], timeout_s=5.0)))
    assert "repeat" in trio.last("alice", m.Failed).detail
    order = m.Distil(block=2, rounds=ROUNDS[110:], timeout_s=5.0)
    trio.take("alice", s.Told(order))
    trio.take("bob", s.Told(order))
    assert trio.last("alice", m.Agreed).report.verified
    # told to configure again, and after a restart, the model is there again
    trio.nodes["alice"].handle(s.Told(configure(chain=LINEAR)))
    again = s.NodeState("alice", 9)
    welcome = s.Told(m.Welcome(run="r", lost_after_s=1.0))
    for event in (welcome, s.Recalled(kept[0]), s.Told(configure(chain=LINEAR))):
        again.handle(event)
    for node in (trio.nodes["alice"], again):
        assert node._chain is not None
        assert node._chain.enhance.model_id == reports[0].report.model  # type: ignore[attr-defined]
    again.handle(s.Told(m.Welcome(run="another", lost_after_s=1.0)))
    again.handle(s.Told(configure(chain=LINEAR)))
    assert again._chain is not None
    assert again._chain.enhance.model_id is None  # type: ignore[attr-defined]


def test_a_kept_model_that_is_broken_stops_the_node_with_the_reason() -> None:
    node = s.NodeState("bob", 1)
    node.handle(s.Told(m.Welcome(run="r", lost_after_s=1.0)))
    node.handle(s.Recalled(b"torn"))
    (out,) = node.handle(s.Told(configure(chain=LINEAR)))
    assert isinstance(out, s.Report)
    assert "model kept of this run" in out.body.detail


def test_a_model_file_that_this_node_does_not_have_is_told_and_ends_nothing_else() -> None:
    node = s.NodeState("bob", 1)
    node.handle(s.Told(m.Welcome(run="r", lost_after_s=1.0)))
    elsewhere = ChainPlan(enhance="linear_mmse", enhance_options={"model": "/nowhere/model.npz"})
    (out,) = node.handle(s.Told(configure(chain=elsewhere)))
    assert isinstance(out, s.Report)
    assert out.body.operation == "configure"
    assert "'/nowhere/model.npz': No such file" in out.body.detail
    assert s.Do in [type(x) for x in node.handle(s.Told(configure(chain=LINEAR)))]


@pytest.mark.parametrize("fault", ["flipped", "truncated"])
@pytest.mark.parametrize(
    ("reconcile", "quantize", "kind"),
    [
        ("cascade", "scalar", "cascade_answer"), ("ldpc", "scalar", "ldpc_syndrome"),
        ("multilevel", "equiprobable", "multilevel_syndrome"),
    ],
)  # fmt: skip
def test_a_reconciliation_message_that_was_tampered_with_costs_the_block_and_no_more(
    reconcile: str, quantize: str, kind: str, fault: str
) -> None:
    """What is changed on the wire never gets this far (`net.transport`); a peer that is broken or lies does."""
    plan = ChainPlan(enhance_options={"step": 4}, quantize=quantize, reconcile=reconcile)
    trio = Trio(chain=plan)
    spoilt = 0

    def tampered(envelope: m.PublicEnvelope) -> bool:
        nonlocal spoilt
        body = envelope.message.body
        if envelope.sender != "alice" or envelope.message.kind != kind or envelope.block != 0:
            return False
        for key, value in body.items():
            if isinstance(value, bytes) and value:
                spoilt += 1
                body[key] = value[:-1] if fault == "truncated" else bytes([value[0] ^ 0x10]) + value[1:]
        return False

    trio.lost = tampered
    order = {"timeout_s": 5.0}
    for block, rounds in ((0, ROUNDS[:150]), (1, ROUNDS[150:])):
        for role in ("alice", "bob"):
            trio.take(role, s.Told(m.Distil(block=block, rounds=rounds, **order)))  # type: ignore[arg-type]
        reports = [trio.last(role, m.Agreed).report for role in ("alice", "bob")]
        assert [r.block for r in reports] == [block, block]
        assert [r.verified for r in reports] == [block == 1] * 2
        assert all((r.failure is None) == r.verified for r in reports)
    assert spoilt
    assert trio.keys == {}
