"""Three nodes' state machines talk to one another with no sockets, no radios and no clock."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from testbed.chain.wegman_carter import Pool
from testbed.core.config import Accounting, ChainPlan, ProbingPlan, RadioPlan, SurfacePlan
from testbed.core.forks import ChildLost, Children
from testbed.core.ledger import PublicMessage
from testbed.core.outcomes import KeyReport, SurfaceRecord
from testbed.core.types import CsiFrame, Key
from testbed.net import messages as m
from testbed.nodes import events as e
from testbed.nodes import known
from testbed.nodes.eavesdropping import EVE_PATIENCE_S
from testbed.nodes.key_maker import MOST_SERIES
from testbed.nodes.state import NodeState

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
    """Alice, Bob and Eve with a shared fading channel; Eve's is her own, or a noisy copy of Bob's.

    rounds_again: the second half of the rounds comes on the channels of the first. pools: by role, what the discussion
    is authenticated with.
    """

    def __init__(
        self, eve_sees: float = 0.0, rounds_again: bool = False, pools: dict[str, Pool] | None = None,
        children: Children | None = None, **changes: Any,
    ) -> None:  # fmt: skip
        self.nodes = {
            role: NodeState(role, i, wegman_carter=pools is not None, pool=(pools or {}).get(role), children=children)
            for i, role in enumerate(("alice", "bob", "eve"))
        }
        self.done: list[tuple[str, e.Instruction]] = []
        """Every instruction, in order, with whose it was."""
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
        if rounds_again:
            common[len(ROUNDS) // 2 :] = common[: len(ROUNDS) // 2]
        for role, node in self.nodes.items():
            self.take(role, e.Received(m.Welcome(run="r", lost_after_s=10.0)))
            node.handle(e.Received(configure(**changes)))
            node.handle(e.DeviceDone(m.Configured(accepted={})))
            heard = {"alice": ["bob"], "bob": ["alice"], "eve": ["alice", "bob"]}[role]
            h = common if role != "eve" else eve_sees * common + (1 - eve_sees) * own
            h = h + 0.02 * fading()
            for r in ROUNDS:
                frames = {tx: frame(np.repeat(h[r], 4)) for tx in heard}
                self.take(role, e.ProbeDone([m.Probed(rounds=[m.RoundResult(round=r, links=[])])], {r: frames}))

    def take(self, role: str, event: e.Event) -> None:
        queue: list[tuple[str, e.Event]] = [(role, event)]
        while queue:
            who, what = queue.pop(0)
            for x in self.nodes[who].handle(what):
                self.done.append((who, x))
                match x:
                    case e.Report(body):
                        self.reports[who].append(body)
                    case e.StoreKey(key):
                        self.keys[who] = key
                    case e.Publish(envelope, to_peer):
                        if who == "alice":
                            self.transcript.append(envelope)
                            queue.append(("eve", e.Discussed(envelope)))
                        if to_peer and not self.lost(envelope):
                            queue.append(("bob" if who == "alice" else "alice", e.Discussed(envelope)))

    def last(self, role: str, kind: type[Any]) -> Any:
        return next(x for x in reversed(self.reports[role]) if isinstance(x, kind))

    def distil(self) -> None:
        order = m.Distil(block=0, rounds=ROUNDS, timeout_s=5.0)
        self.take("alice", e.Received(order))
        self.take("bob", e.Received(order))

    def attack(self) -> Any:
        heard = self.last("alice", m.Agreed).public_messages
        self.take("eve", e.Received(m.Attack(block=0, rounds=ROUNDS, public_messages=heard)))
        return self.last("eve", m.Attacked).report

    def amplify(self, eve: Any, block: int = 0) -> None:
        order = m.Amplify(block=block, eve=eve, timeout_s=5.0)
        self.take("bob", e.Received(order))
        self.take("alice", e.Received(order))


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
    trio.take("eve", e.Received(m.GuessKey(block=0, public_messages=trio.last("alice", m.Amplified).public_messages)))
    digests = {role: trio.last(role, m.Amplified).digest for role in ("alice", "bob")}
    assert digests["alice"] == digests["bob"]
    assert trio.last("eve", m.KeyGuessed).digest not in (None, digests["alice"])


def test_an_eve_who_reports_more_than_is_judged_does_not_count_as_measured() -> None:
    trio = Trio()
    trio.distil()
    eve = trio.attack()
    (one, *_) = eve.heard
    knowledge = trio.nodes["alice"].key_maker._knowledge
    assert knowledge.most_series == MOST_SERIES == 16
    knowledge.most_series = 2  # fewer, so that it does not take long
    many = tuple(msgspec.structs.replace(one, name=f"eve.{n}:alice") for n in range(3))
    trio.amplify(msgspec.structs.replace(eve, heard=many))
    report = trio.last("alice", m.Amplified).report
    assert report.key_bits > 100
    assert not report.eve_measured
    assert list(knowledge._heard) == ["eve.0:alice", "eve.1:alice"]


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
    trio.take("alice", e.Received(order))  # Bob hears Alice before the coordinator tells him to start
    assert not any(isinstance(x, m.Agreed) for x in trio.reports["bob"])
    trio.take("bob", e.Received(order))
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


@pytest.mark.parametrize("experiment_mode", [False, True])
def test_only_a_rehearsal_draws_from_the_experiments_seed(experiment_mode: bool) -> None:
    """A reader of experiment.toml must not be able to predict which bits Alice sacrifices, in either mode."""

    def sacrifice(secret_seed: int, rehearsal: bool, run: str = "r") -> Any:
        trio = Trio(experiment_mode=experiment_mode, rehearsal=rehearsal)
        for node in trio.nodes.values():
            node.setup.run = run
        trio.nodes["alice"].setup.secret_seed = secret_seed
        trio.distil()
        return next(x.message.body["seed"] for x in trio.transcript if x.message.kind == "sacrifice")

    assert sacrifice(1, False) != sacrifice(2, False)
    assert sacrifice(1, False) != sacrifice(1, False, "another")  # a tag's point must never come twice
    assert sacrifice(1, True) == sacrifice(2, True) == sacrifice(1, True, "another")


def test_a_silent_peer_ends_in_a_timeout_not_a_wait() -> None:
    trio = Trio()
    trio.lost = lambda envelope: envelope.sender == "bob"
    trio.distil()
    trio.take("alice", e.Tick(6.0))
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
    trio.take("alice", e.Discussed(m.PublicEnvelope("r", 0, "agree", -1, "bob", garbage)))
    report = trio.last("alice", m.Agreed).report
    assert not report.verified
    assert report.failure


def test_messages_of_another_run_or_block_are_ignored() -> None:
    trio = Trio()
    trio.lost = lambda envelope: envelope.sender == "bob"
    trio.distil()
    stray = PublicMessage(kind="failed", body={"reason": "sabotage"})
    trio.take("alice", e.Discussed(m.PublicEnvelope("other", 0, "agree", -1, "bob", stray)))
    assert not any(isinstance(x, m.Agreed) for x in trio.reports["alice"])


def test_an_eve_who_missed_messages_waits_and_then_says_so() -> None:
    trio = Trio()
    trio.distil()
    trio.take("eve", e.Received(m.Attack(block=0, rounds=ROUNDS, public_messages=999)))
    assert not any(isinstance(x, m.Attacked) for x in trio.reports["eve"])
    trio.take("eve", e.Tick(EVE_PATIENCE_S + 1.0))
    assert not trio.last("eve", m.Attacked).report.transcript_complete


def test_abandoned_blocks_cannot_become_keys() -> None:
    trio = Trio()
    trio.distil()
    for role in ("alice", "bob"):
        assert trio.nodes[role].is_discussing  # between the two parts, too: no message of the second may be lost
        trio.take(role, e.Received(m.Abandon(block=0, reason="bob was lost")))
        assert not trio.nodes[role].is_discussing
        trio.take(role, e.Received(m.Amplify(block=0, eve=None, timeout_s=5.0)))
    assert trio.keys == {}
    assert trio.last("alice", m.Failed).operation == "amplify"


def test_where_a_child_that_judges_is_lost_both_ends_close_the_block_without_a_key() -> None:
    limits: list[float] = []

    class Lost(Children):
        def one(self, work: Any) -> Any:
            limits.append(self.limit_s)
            raise ChildLost("was ended by SIGKILL")

    trio = Trio(children=Lost(2))
    trio.distil()
    trio.amplify(None)
    assert limits == [4.5]  # of the five seconds of the discussion, so that Bob still hears of it
    report = trio.last("alice", m.Amplified).report
    assert (report.key_bits, report.failure) == (0, "judging failed: the process that judges was ended by SIGKILL")
    assert trio.last("bob", m.Amplified).report.key_bits == 0
    assert trio.keys == {}
    assert trio.nodes["alice"].name == "ready"


def test_a_restarted_node_has_nothing_to_distil() -> None:
    trio = Trio()
    trio.take("bob", e.Received(m.Welcome(run="r", lost_after_s=10.0)))
    trio.take("bob", e.Received(configure()))
    trio.distil()
    assert trio.last("bob", m.Failed).operation == "distil"


@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_finishing_silences_before_it_says_goodbye(kind: Any) -> None:
    node = NodeState("alice", 0)
    out = node.handle(e.Received(m.Finish(kind=kind)))
    assert [type(x) for x in out] == [e.Silence, e.Report, e.Exit]


def test_the_same_log_gives_the_same_instructions() -> None:
    first, second = Trio(), Trio()
    for trio in (first, second):
        trio.distil()
        trio.amplify(trio.attack())
    assert [x.message for x in first.transcript] == [x.message for x in second.transcript]
    assert np.array_equal(first.keys["bob"].bits, second.keys["bob"].bits)


@pytest.mark.parametrize("rounds", [[3, 2, 1], [1, 1, 2], [*range(1, 300), 0]])
def test_rounds_out_of_order_are_refused(rounds: list[int]) -> None:
    trio = Trio()
    trio.take("alice", e.Received(m.Distil(block=0, rounds=rounds, timeout_s=5.0)))
    assert trio.last("alice", m.Failed).operation == "distil"


def test_no_round_goes_into_two_blocks() -> None:
    trio = Trio()
    trio.distil()
    trio.take("alice", e.Received(m.Distil(block=1, rounds=ROUNDS[-10:], timeout_s=5.0)))
    assert "repeat" in trio.last("alice", m.Failed).detail


def test_the_mode_cannot_change_within_a_run() -> None:
    trio = Trio(experiment_mode=False)
    trio.take("alice", e.Received(configure(experiment_mode=True)))
    assert trio.last("alice", m.Failed).operation == "configure"


LINEAR = ChainPlan(enhance="linear_mmse", enhance_options={"step": 4}, quantize_options={"bits": 1})


def test_a_training_keeps_a_model_and_its_rounds_never_enter_a_key() -> None:
    trio = Trio(chain=LINEAR)
    kept: list[bytes] = []
    real = trio.nodes["alice"].handle

    def handle(event: e.Event) -> list[e.Instruction]:
        out = real(event)
        kept.extend(x.model for x in out if isinstance(x, e.StoreModel))
        return out

    trio.nodes["alice"].handle = handle  # type: ignore[method-assign]
    order = m.Distil(block=0, rounds=ROUNDS[:100], timeout_s=5.0, purpose="training")
    trio.take("alice", e.Received(order))
    trio.take("bob", e.Received(order))
    reports = [trio.last(role, m.Trained) for role in ("alice", "bob")]
    assert all(r.report.failure is None for r in reports)
    assert reports[0].report.model == reports[1].report.model
    heard = reports[0].public_messages
    assert heard == 3  # Bob's CSI, the model, Bob's word that he has it: all on the public record
    attack = m.Attack(block=0, rounds=ROUNDS[:100], public_messages=heard, purpose="training")
    trio.take("eve", e.Received(attack))
    assert trio.last("eve", m.Attacked).report.transcript_complete
    trio.take("alice", e.Received(m.Distil(block=1, rounds=ROUNDS[50:200], timeout_s=5.0)))
    assert "repeat" in trio.last("alice", m.Failed).detail
    order = m.Distil(block=2, rounds=ROUNDS[110:], timeout_s=5.0)
    trio.take("alice", e.Received(order))
    trio.take("bob", e.Received(order))
    assert trio.last("alice", m.Agreed).report.verified
    # after another Configure, and after a restart, the model is there again
    trio.nodes["alice"].handle(e.Received(configure(chain=LINEAR)))
    again = NodeState("alice", 9)
    welcome = e.Received(m.Welcome(run="r", lost_after_s=1.0))
    for event in (welcome, e.ModelFound(kept[0]), e.Received(configure(chain=LINEAR))):
        again.handle(event)
    for node in (trio.nodes["alice"], again):
        assert node.setup.chain is not None
        assert node.setup.chain.enhance.model_id == reports[0].report.model  # type: ignore[attr-defined]
    again.handle(e.Received(m.Welcome(run="another", lost_after_s=1.0)))
    again.handle(e.Received(configure(chain=LINEAR)))
    assert again.setup.chain is not None
    assert again.setup.chain.enhance.model_id is None  # type: ignore[attr-defined]


def reported(trio: Trio) -> list[list[int]]:
    """Return the rounds of every series that Eve's last report holds."""
    return [np.frombuffer(s.rounds, "<i8").tolist() for s in trio.last("eve", m.Attacked).report.heard]


def test_eve_reports_rounds_of_training_and_rejected_ones_once_with_the_next_block() -> None:
    trio = Trio()
    trio.take("eve", e.Received(m.Attack(block=0, rounds=ROUNDS[:60], public_messages=0, purpose="training")))
    assert reported(trio) == []
    trio.take("eve", e.Received(m.Attack(block=1, rounds=ROUNDS[80:180:2], public_messages=0)))
    assert reported(trio) == [ROUNDS[:179]] * 2  # training, guard rounds, rejected pairs between those of the block
    assert {len(s.values) // (4 * s.dimensions) for s in trio.last("eve", m.Attacked).report.heard} == {179}
    trio.take("eve", e.Received(m.GuessKey(block=1, public_messages=0)))
    trio.take("eve", e.Received(m.Attack(block=2, rounds=ROUNDS[200:], public_messages=0)))
    assert reported(trio) == [ROUNDS[179:]] * 2  # the block in between failed


def test_a_kept_model_that_is_broken_stops_the_node_with_the_reason() -> None:
    node = NodeState("bob", 1)
    node.handle(e.Received(m.Welcome(run="r", lost_after_s=1.0)))
    node.handle(e.ModelFound(b"torn"))
    (out,) = node.handle(e.Received(configure(chain=LINEAR)))
    assert isinstance(out, e.Report)
    assert "stored model of this run" in out.body.detail


def test_a_missing_model_file_is_reported_and_ends_nothing_else() -> None:
    node = NodeState("bob", 1)
    node.handle(e.Received(m.Welcome(run="r", lost_after_s=1.0)))
    elsewhere = ChainPlan(enhance="linear_mmse", enhance_options={"model": "/nowhere/model.npz"})
    (out,) = node.handle(e.Received(configure(chain=elsewhere)))
    assert isinstance(out, e.Report)
    assert out.body.operation == "configure"
    assert "'/nowhere/model.npz': No such file" in out.body.detail
    assert e.Operate in [type(x) for x in node.handle(e.Received(configure(chain=LINEAR)))]


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
    """A message changed on the wire never gets this far (`net.transport`), but one of a faulty peer does."""
    plan = ChainPlan(enhance_options={"step": 4}, quantize=quantize, reconcile=reconcile)
    trio = Trio(chain=plan)
    tampered_with = 0

    def tampered(envelope: m.PublicEnvelope) -> bool:
        nonlocal tampered_with
        body = envelope.message.body
        if envelope.sender != "alice" or envelope.message.kind != kind or envelope.block != 0:
            return False
        for key, value in body.items():
            if isinstance(value, bytes) and value:
                tampered_with += 1
                body[key] = value[:-1] if fault == "truncated" else bytes([value[0] ^ 0x10]) + value[1:]
        return False

    trio.lost = tampered
    order = {"timeout_s": 5.0}
    for block, rounds in ((0, ROUNDS[:150]), (1, ROUNDS[150:])):
        for role in ("alice", "bob"):
            trio.take(role, e.Received(m.Distil(block=block, rounds=rounds, **order)))  # type: ignore[arg-type]
        reports = [trio.last(role, m.Agreed).report for role in ("alice", "bob")]
        assert [r.block for r in reports] == [block, block]
        assert [r.verified for r in reports] == [block == 1] * 2
        assert all((r.failure is None) == r.verified for r in reports)
    assert tampered_with
    assert trio.keys == {}


# ---------------------------------------------------------------- what Alice takes into account


def record(n: int = len(ROUNDS), **changes: Any) -> SurfaceRecord:
    return SurfaceRecord(**{"states": tuple(range(n)), **changes})


@pytest.mark.parametrize(
    "surface",
    [
        record(3),
        record(levels=b"\0" * 7),
        record(levels=b"\0" * 4 * len(ROUNDS), phase_bits=9),
        record(levels=b"", phase_bits=1),
    ],
    ids=["other rounds", "torn levels", "phase bits", "no element"],
)
def test_a_surface_record_that_does_not_fit_costs_the_block_and_not_the_node(surface: SurfaceRecord) -> None:
    trio = Trio()
    trio.distil()
    trio.take("alice", e.Received(m.Amplify(block=0, eve=None, timeout_s=5.0, surface=surface)))
    failed = trio.last("alice", m.Failed)
    assert failed.operation == "amplify"
    assert "accepted" in failed.detail
    assert "\n" not in failed.detail
    assert trio.nodes["alice"].name == "ready"
    assert trio.keys == {}


def test_private_mode_tells_nothing_that_follows_from_alices_string() -> None:
    trio = Trio(experiment_mode=False)
    trio.distil()
    trio.amplify(trio.attack())
    said = trio.last("alice", m.Amplified).report
    bare = KeyReport(block=0, key_bits=trio.keys["alice"].bits.size, eve_measured=True, entropy="estimated")
    assert said == bare
    amplify = next(x.message for x in trio.transcript if x.message.kind == "amplify")
    assert set(amplify.body) == {"block", "bits", "leaked", "length", "seed"}


def test_a_private_block_without_a_key_tells_the_reason_and_no_entropy() -> None:
    trio = Trio(eve_sees=0.97, experiment_mode=False)
    trio.distil()
    trio.amplify(trio.attack())
    said = trio.last("alice", m.Amplified).report
    assert said == KeyReport(block=0, key_bits=0, eve_measured=True, failure="entropy_exhausted")


def test_what_is_measured_again_makes_no_second_key() -> None:
    """The second block comes on the first one's channel: Eve is taken to know all of that block."""
    trio = Trio(rounds_again=True, blocks=2, accounting=Accounting(epsilon_log2=32, assumed_eve_correlation=0.0))
    half = len(ROUNDS) // 2
    lengths = []
    for block, rounds in enumerate((ROUNDS[:half], ROUNDS[half:])):
        order = m.Distil(block=block, rounds=rounds, timeout_s=5.0)
        trio.take("alice", e.Received(order))
        trio.take("bob", e.Received(order))
        trio.take("bob", e.Received(m.Amplify(block=block, eve=None, timeout_s=5.0)))
        trio.take("alice", e.Received(m.Amplify(block=block, eve=None, timeout_s=5.0)))
        lengths.append(trio.last("alice", m.Amplified).report)
    assert lengths[0].min_entropy_per_bit > 0.4
    assert lengths[1].min_entropy_per_bit < 0.1
    assert lengths[1].key_bits == 0
    assert lengths[1].limiting.startswith("recurrence")


def test_a_block_that_failed_or_was_given_up_counts_as_known() -> None:
    trio = Trio(rounds_again=True, blocks=2, accounting=Accounting(epsilon_log2=32, assumed_eve_correlation=0.0))
    half = len(ROUNDS) // 2
    order = m.Distil(block=0, rounds=ROUNDS[:half], timeout_s=5.0)
    trio.take("alice", e.Received(order))
    trio.take("bob", e.Received(order))
    for role in ("alice", "bob"):  # Bob receives Alice's first message of block 1 before the order to abandon block 0
        trio.take(role, e.Received(m.Abandon(block=0, reason="eve was slow")))
        trio.take(role, e.Received(m.Distil(block=1, rounds=ROUNDS[half:], timeout_s=5.0)))
    assert trio.last("bob", m.Agreed).report.block == 1
    trio.amplify(None, block=1)
    assert trio.last("alice", m.Amplified).report.min_entropy_per_bit < 0.1


def again_in_two_halves(again: bool = True, **changes: Any) -> tuple[Trio, int]:
    accounting = Accounting(epsilon_log2=32, assumed_eve_correlation=0.0)
    return Trio(rounds_again=again, **{"blocks": 2, "accounting": accounting, **changes}), len(ROUNDS) // 2


def second_half(trio: Trio, half: int, block: int = 1) -> KeyReport:
    for role in ("alice", "bob"):
        trio.take(role, e.Received(m.Distil(block=block, rounds=ROUNDS[half:], timeout_s=5.0)))
    trio.amplify(None, block=block)
    report: KeyReport = trio.last("alice", m.Amplified).report
    return report


def measured(trio: Trio, role: str) -> dict[int, Any]:
    return {r: dict(f) for r, f in trio.nodes[role].measured._frames.items()}


def welcome_alice_anew(trio: Trio) -> None:
    """The coordinator had given her up; what she measures from now on is the second half."""
    kept = measured(trio, "alice")
    trio.take("alice", e.Received(m.Welcome(run="r", lost_after_s=10.0)))
    trio.take("alice", e.Received(trio.nodes["bob"].setup.plan))
    for r, frames in kept.items():
        trio.take("alice", e.ProbeDone([m.Probed(rounds=[m.RoundResult(round=r, links=[])])], {r: frames}))


def test_a_discussion_that_is_broken_off_counts_as_known() -> None:
    """Sacrificed bits and parities were said when the block was given up."""
    trio, half = again_in_two_halves()
    trio.lost = lambda envelope: envelope.message.kind == "verified"
    for role in ("alice", "bob"):
        trio.take(role, e.Received(m.Distil(block=0, rounds=ROUNDS[:half], timeout_s=5.0)))
    assert trio.nodes["alice"].key_maker.is_busy
    for role in ("alice", "bob"):
        trio.take(role, e.Received(m.Abandon(block=0, reason="bob was lost")))
    trio.lost = lambda envelope: False
    assert second_half(trio, half).min_entropy_per_bit < 0.1


def test_a_node_that_is_welcomed_to_its_run_again_counts_what_was_published_before() -> None:
    trio, half = again_in_two_halves()
    for role in ("alice", "bob"):
        trio.take(role, e.Received(m.Distil(block=0, rounds=ROUNDS[:half], timeout_s=5.0)))
    trio.amplify(None)
    welcome_alice_anew(trio)
    report = second_half(trio, half)
    assert report.min_entropy_per_bit < 0.1
    assert report.key_bits == 0


def test_a_restarted_alice_who_cannot_know_what_was_said_before_makes_no_key() -> None:
    trio, half = again_in_two_halves()
    report = second_half(trio, half, block=1)  # her process never saw block 0
    assert report.key_bits == 0
    assert "earlier_blocks_unknown" in str(report.failure)
    assert trio.keys == {}


def test_a_restarted_alice_who_finds_what_she_kept_knows_what_was_said_before() -> None:
    """What comes back makes no second key for her, and what is new makes one: she is as good as one who stayed."""
    kept: list[Any] = []
    for again in (True, False):
        trio, half = again_in_two_halves(again=again)
        handle = trio.nodes["alice"].handle

        def keeping(event: e.Event, handle: Any = handle) -> list[e.Instruction]:
            out = handle(event)
            kept.extend(x.part for x in out if isinstance(x, e.StoreKnown))
            return out

        trio.nodes["alice"].handle = keeping  # type: ignore[method-assign]
        for role in ("alice", "bob"):
            trio.take(role, e.Received(m.Distil(block=0, rounds=ROUNDS[:half], timeout_s=5.0)))
        trio.amplify(None)
        assert [type(part) for part in kept] == [known.Begun, known.Decided]
        files = [known.encode(part) for part in kept]
        fresh, _ = again_in_two_halves(again=again)
        fresh.take("alice", e.PastFound(known.Past.of(known.decode(data) for data in files)))
        report = second_half(fresh, half, block=1)
        assert "earlier_blocks_unknown" not in str(report.failure)
        if again:
            assert report.min_entropy_per_bit < 0.1
            assert report.key_bits == 0
        else:
            assert report.min_entropy_per_bit > 0.4
        kept.clear()


def test_nothing_is_published_of_a_block_that_was_not_kept_before() -> None:
    trio = Trio()
    out = trio.nodes["alice"].handle(e.Received(m.Distil(block=0, rounds=ROUNDS, timeout_s=5.0)))
    assert isinstance(out[0], e.StoreKnown)
    assert isinstance(out[0].part, known.Begun)
    out = trio.nodes["bob"].handle(e.Received(m.Distil(block=0, rounds=ROUNDS, timeout_s=5.0)))
    # he decides no length: he stores the number only, so that no other block has it after a restart
    assert [x for x in out if isinstance(x, e.StoreKnown)] == [e.StoreKnown(known.Numbered(0))] == out[:1]


def test_what_was_kept_of_a_run_is_forgotten_with_its_end() -> None:
    for role in ("alice", "bob"):
        out = Trio().nodes[role].handle(e.Received(m.Finish(kind="stop", recorded=True)))
        assert e.ForgetKnown() in out


def test_a_block_that_is_given_up_takes_its_key_with_it() -> None:
    trio = Trio()
    for role in ("alice", "bob"):
        assert trio.nodes[role].handle(e.Received(m.Abandon(block=4, reason="the other end has none"))) == [
            e.DropKey(4)
        ]
    assert trio.nodes["eve"].handle(e.Received(m.Abandon(block=4, reason="x"))) == []


def test_a_node_that_is_configured_again_has_spent_what_it_spent() -> None:
    trio, half = again_in_two_halves(blocks=1)
    for role in ("alice", "bob"):
        trio.take(role, e.Received(m.Distil(block=0, rounds=ROUNDS[:half], timeout_s=5.0)))
    trio.amplify(None)
    trio.take("alice", e.Received(trio.nodes["alice"].setup.plan))
    assert "budget_spent" in str(second_half(trio, half).failure)


@pytest.mark.parametrize("change", [{"rehearsal": True}, {"blocks": 9}, {"accounting": Accounting(epsilon_log2=33)}])
@pytest.mark.parametrize("welcomed", [False, True])
def test_what_a_run_promises_cannot_change_within_it(change: dict[str, Any], welcomed: bool) -> None:
    """Patterns drawn as a rehearsal follow from a public seed: their keys must not become real ones afterwards."""
    trio = Trio(rehearsal=False)
    if welcomed:
        trio.take("alice", e.Received(m.Welcome(run="r", lost_after_s=10.0)))
    trio.take("alice", e.Received(configure(**change)))
    assert trio.last("alice", m.Failed).operation == "configure"
    trio.take("alice", e.Received(m.Welcome(run="another", lost_after_s=10.0)))
    assert trio.nodes["alice"].setup.plan is None
    trio.take("alice", e.Received(configure(**change)))
    assert trio.nodes["alice"].setup.plan == configure(**change)


def test_what_eve_measured_counts_however_much_of_the_discussion_she_missed() -> None:
    trio = Trio(eve_sees=0.97, accounting=Accounting(epsilon_log2=32, assumed_eve_correlation=0.0))
    trio.distil()
    trio.take("eve", e.Received(m.Attack(block=0, rounds=ROUNDS, public_messages=999)))
    trio.take("eve", e.Tick(EVE_PATIENCE_S + 1.0))
    eve = trio.last("eve", m.Attacked).report
    assert not eve.transcript_complete
    trio.amplify(eve)
    assert trio.last("alice", m.Amplified).report.key_bits == 0


@pytest.mark.parametrize("surface", [None, record()], ids=["nothing", "states without patterns"])
def test_an_unreported_public_surface_makes_no_key(surface: SurfaceRecord | None) -> None:
    trio = Trio(surface=SurfacePlan(policy="random", secret=False))
    trio.distil()
    trio.take("alice", e.Received(m.Amplify(block=0, eve=None, timeout_s=5.0, surface=surface)))
    assert "not reported" in trio.last("alice", m.Failed).detail
    assert trio.keys == {}


@pytest.mark.parametrize("experiment_mode", [False, True])
def test_how_often_bob_corrected_leaves_his_node_in_experiment_mode_only(experiment_mode: bool) -> None:
    trio = Trio(experiment_mode=experiment_mode)
    trio.distil()
    assert (trio.last("bob", m.Agreed).report.corrected_bits is not None) is experiment_mode


def test_eves_features_are_reported_by_antenna_and_link() -> None:
    trio = Trio()
    trio.distil()
    report = trio.attack()
    assert sorted(series.name for series in report.heard) == ["eve.0:alice", "eve.0:bob"]
    for series in report.heard:
        assert len(series.rounds) == 8 * len(ROUNDS)
        assert len(series.values) == 4 * len(ROUNDS) * series.dimensions
