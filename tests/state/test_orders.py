"""What a coordinator cannot make a node do: orders out of place, weaker keys than the node's own floors, repeats."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from test_node import ROUNDS, Trio, configure, frame

from testbed import config
from testbed.core.config import Accounting, Floors, Lab, RadioPlan, SurfacePlan
from testbed.core.errors import InputError
from testbed.core.ledger import PublicMessage
from testbed.net import messages as m
from testbed.nodes import events as e
from testbed.nodes import floors, key_maker, orders
from testbed.nodes.measured import MeasuredCsi
from testbed.nodes.state import NodeState

WELCOME = m.Welcome(run="r", lost_after_s=10.0)
DISTIL = m.Distil(block=0, rounds=ROUNDS, timeout_s=60.0)
PROBE = m.Probe(rounds=[m.RoundPlan(round=1, slots=[], margin_s=0.0, end_s=1.0)])
ORDERS: list[Any] = [
    configure(), m.ReadClock(), m.Apply(round=1, levels=b"\0", shape=(1, 1), phase_bits=1), m.ReadSurface(round=1),
    m.ApplyNext(round=1),
    PROBE,
    m.Step(round=1, step=0, action="transmit", tx="alice", last=True), DISTIL,
    m.Attack(block=0, rounds=[1], public_messages=0),
    m.Attack(block=0, rounds=[], public_messages=0, purpose="training"),
    m.Amplify(block=0, eve=None, timeout_s=1.0), m.GuessKey(block=0, public_messages=0),
    m.Abandon(block=0, reason="x"), m.KeepKeys(blocks=[0]),
]  # fmt: skip


@pytest.mark.parametrize("role", ["alice", "bob", "eve", "ris"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("welcomed", [False, True])
def test_no_order_in_any_state_is_more_than_a_refusal(role: str, order: Any, welcomed: bool) -> None:
    node = NodeState(role, secret_seed=1)
    if welcomed:
        assert node.handle(e.Received(WELCOME)) == []
    for _ in range(2):
        for instruction in node.handle(e.Received(order)):
            assert isinstance(instruction, e.Report | e.Operate | e.DropKey | e.KeepKeys)
            if isinstance(instruction, e.Report):
                assert isinstance(instruction.body, m.Failed)
                assert "\n" not in instruction.body.detail
    assert node.handle(e.Tick(1e9)) == []


@pytest.mark.parametrize("order", [type(o) for o in ORDERS], ids=lambda o: o.__name__)
def test_nobody_follows_an_order_that_is_not_for_its_role(order: type) -> None:
    for_role = {role: orders.Orders(role, Floors()) for role in ("alice", "bob", "eve", "ris")}
    body = next(o for o in ORDERS if type(o) is order)
    taken = {r for r, o in for_role.items() if o.refusal(body, "r", configured=True) is None}
    ends, radios, everybody = {"alice", "bob"}, {"alice", "bob", "eve"}, {"alice", "bob", "eve", "ris"}
    wanted = {
        m.Configure: everybody, m.ReadClock: everybody, m.Abandon: everybody, m.Apply: {"ris"},
        m.ApplyNext: {"ris"}, m.ReadSurface: {"ris"}, m.KeepKeys: ends,
        m.Probe: radios, m.Step: radios, m.Distil: ends, m.Amplify: ends, m.Attack: {"eve"}, m.GuessKey: {"eve"},
    }  # fmt: skip
    assert taken == wanted[order]


def told(node: NodeState, body: Any) -> str:
    """Return why the node refuses an order."""
    (report,) = node.handle(e.Received(body))
    assert isinstance(report, e.Report)
    assert isinstance(report.body, m.Failed)
    assert report.body.operation == type(body).__name__.lower()
    return report.body.detail


@pytest.mark.parametrize(
    ("accounting", "words"),
    [
        ({"epsilon_log2": 8}, "accounting.epsilon_log2 = 8 is asked for, this node's floors accept it from 32"),
        (
            {"assumed_eve_correlation": 0.0},
            "eve_correlation = 0 is asked for, this node's floors accept it from 0.2",
        ),
        (
            {"assumed_eve_distance_wavelengths": 50.0},
            "wavelengths = 50 is asked for, this node's floors accept it up to 1",
        ),
        ({"sacrifice_fraction": 0.001}, "sacrifice_fraction = 0.001 is asked for, this node's floors accept it from"),
    ],
)
def test_a_coordinator_cannot_ask_a_private_node_for_weak_keys(accounting: dict[str, Any], words: str) -> None:
    node = NodeState("alice", secret_seed=1)
    node.handle(e.Received(WELCOME))
    weak = configure(experiment_mode=False, accounting=Accounting(**accounting))
    assert words in told(node, weak)
    assert told(node, DISTIL) == "not configured for this run yet"
    assert isinstance(node.handle(e.Received(configure(experiment_mode=False)))[0], e.Operate)


def test_a_correlation_that_no_floor_asks_for_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads scipy.special, which takes part of the start of every process."""
    monkeypatch.setattr(floors, "assumed_correlation", lambda _: pytest.fail("was computed"))
    assert floors.refusal(Floors(), Accounting(assumed_eve_distance_wavelengths=0.5), experiment_mode=True) is None


def test_floors_that_are_given_hold_in_both_modes() -> None:
    own = Floors(epsilon_log2=48, assumed_eve_correlation=0.5, sacrifice_fraction=0.2, modes=["private"])
    weak = Accounting(epsilon_log2=47, assumed_eve_correlation=0.5, sacrifice_fraction=0.2)
    strong = msgspec.structs.replace(weak, epsilon_log2=48)
    assert floors.refusal(own, strong, experiment_mode=False) is None
    assert "epsilon_log2 = 47" in str(floors.refusal(own, weak, experiment_mode=False))
    assert "experiment mode is asked for" in str(floors.refusal(own, strong, experiment_mode=True))
    both = msgspec.structs.replace(own, modes=["private", "experiment"])
    assert "epsilon_log2 = 47" in str(floors.refusal(both, weak, experiment_mode=True))
    assert floors.refusal(Floors(), Accounting(epsilon_log2=8), experiment_mode=True) is None


@pytest.mark.parametrize(
    ("own", "asked", "words"),
    [
        # the experiment states the other quantity
        (
            {"assumed_eve_correlation": 0.5},
            {"assumed_eve_distance_wavelengths": 1.0},
            "a correlation of 0.299, is asked",
        ),
        ({"assumed_eve_distance_wavelengths": 0.1}, {"assumed_eve_correlation": 0.5}, "accept it from 0.899"),
        # or none, and the length rule takes its own
        ({"assumed_eve_correlation": 0.95}, {}, "accounting.assumed_eve_correlation = 0.9 is asked for"),
        ({"assumed_eve_distance_wavelengths": 0.02}, {}, "accept it from 0.991"),
    ],
)
@pytest.mark.parametrize("experiment", [False, True])
def test_a_floor_of_the_assumed_eve_holds_in_whatever_terms_she_is_assumed(
    own: dict[str, Any], asked: dict[str, Any], words: str, experiment: bool
) -> None:
    assert words in str(floors.refusal(Floors(**own), Accounting(**asked), experiment))


def test_an_assumed_eve_as_strong_as_a_floor_is_accepted_in_either_term() -> None:
    for own, asked in [
        ({"assumed_eve_correlation": 0.5}, {"assumed_eve_distance_wavelengths": 0.2}),
        ({"assumed_eve_distance_wavelengths": 0.5}, {"assumed_eve_correlation": 0.5}),
        ({"assumed_eve_distance_wavelengths": 0.5}, {"assumed_eve_distance_wavelengths": 0.5}),
        ({"assumed_eve_correlation": 0.9}, {}),
        ({}, {"assumed_eve_distance_wavelengths": 1.0}),
        ({}, {"assumed_eve_correlation": 0.2}),
    ]:
        assert floors.refusal(Floors(**own), Accounting(**asked), experiment_mode=False) is None


def test_a_private_node_takes_part_in_no_experiment_whatever_is_ordered_after_its_refusal() -> None:
    node = NodeState("alice", 1, private=True)
    node.handle(e.Received(WELCOME))
    assert "private by its lab file" in told(node, configure())
    for order in (DISTIL, PROBE):
        assert told(node, order) == "not configured for this run yet"


@pytest.mark.parametrize("role", ["alice", "bob", "eve", "ris"])
def test_a_device_that_was_set_up_for_another_run_does_nothing_in_this_one(role: str) -> None:
    """It would report the channel, or the patterns, of a private run to a coordinator that had an experiment before."""
    node = NodeState(role, 1)
    ordered = [x for x in ORDERS if isinstance(x, m.Probe | m.Step | m.Apply | m.ApplyNext | m.ReadSurface)]
    ordered = [x for x in ordered if orders.Orders(role, Floors()).refusal(x, "r", configured=True) is None]
    node.handle(e.Received(WELCOME))
    node.handle(e.Received(configure()))
    node.handle(e.DeviceDone(m.Configured(accepted={})))
    assert [type(x) for order in ordered for x in node.handle(e.Received(order))] == [e.Operate] * len(ordered)
    node.handle(e.Received(m.Welcome(run="other", lost_after_s=10.0)))
    for order in ordered:
        assert told(node, order) == "not configured for this run yet"
    node.handle(e.Received(configure(experiment_mode=False)))
    node.handle(e.DeviceFault("configure", "the radio refuses the carrier"))
    for order in ordered:
        assert told(node, order) == "not configured for this run yet"


def test_trains_that_nobody_reported_have_a_limit() -> None:
    node = NodeState("alice", 1)
    node.handle(e.Received(WELCOME))
    node.handle(e.Received(configure()))
    node.handle(e.DeviceDone(m.Configured(accepted={})))
    for _ in range(orders.MOST_TRAINS):
        assert isinstance(node.handle(e.Received(PROBE))[0], e.Operate)
    assert told(node, PROBE) == "64 trains are under way, accepted up to 64"
    node.handle(e.ProbeDone([], {}))
    assert isinstance(node.handle(e.Received(PROBE))[0], e.Operate)


def test_rounds_that_no_block_uses_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MeasuredCsi, "MOST", 3)
    kept = MeasuredCsi()
    for number in range(5):
        kept.keep(number, {"bob": frame(np.ones(16))})
    assert kept.until(9, most=9) == [2, 3, 4]


@pytest.mark.parametrize(
    ("surface", "words"),
    [
        (SurfacePlan(policy="fixed", secret=True), "are no secret; accepted: 'random'"),
        (SurfacePlan(policy="sweep", options={"codebook": ["uniform"]}, secret=True), "are no secret"),
        (SurfacePlan(policy="\x1b[2J", secret=True), "table [surface]"),
    ],
)
@pytest.mark.parametrize("role", ["alice", "ris"])
def test_patterns_that_follow_from_the_experiment_are_no_secret_whatever_they_are_called(
    role: str, surface: SurfacePlan, words: str
) -> None:
    node = NodeState(role, 1)
    node.handle(e.Received(WELCOME))
    said = told(node, configure(surface=surface))
    assert words in said
    assert said.isprintable()


def test_a_surface_does_not_become_public_within_a_run() -> None:
    node = NodeState("ris", 1)
    node.handle(e.Received(WELCOME))
    secret = configure(experiment_mode=False, surface=SurfacePlan(policy="random"))
    assert isinstance(node.handle(e.Received(secret))[0], e.Operate)
    public = msgspec.structs.replace(secret, surface=SurfacePlan())
    assert "its surface and its number of blocks cannot change" in told(node, public)


def test_private_mode_without_authentication_is_refused_by_the_node() -> None:
    node = NodeState("alice", 1, authenticated=False)
    node.handle(e.Received(WELCOME))
    assert "curve = true" in told(node, configure(experiment_mode=False))
    assert isinstance(node.handle(e.Received(configure()))[0], e.Operate)


def test_a_sample_rate_that_no_radio_has_is_refused() -> None:
    node = NodeState("alice", 1)
    node.handle(e.Received(WELCOME))
    assert "sample_rate_hz" in told(node, configure(radio=RadioPlan(sample_rate_hz=1e-300)))


def secrets_of(trio: Trio) -> tuple[Any, ...]:
    """Return what Alice's private choices of a block became public as: which bits, which point, which matrix."""
    said = {e.message.kind: e.message.body for e in trio.transcript}
    return said["sacrifice"]["seed"], said["verify_tag"]["point"], said["amplify"]["seed"]


def test_neither_a_second_welcome_nor_a_repeated_block_derives_a_secret_again() -> None:
    trio = Trio(experiment_mode=False)
    alice = trio.nodes["alice"]
    seeds = {alice.seed for _ in range(100)}
    assert len(seeds) == 100
    assert min(seeds) >= 0
    assert sum(n >> 128 > 0 for n in seeds) > 95  # as long as the node's own secret
    trio.distil()
    trio.amplify(trio.attack())
    first = secrets_of(trio)
    for role in ("alice", "bob"):
        node = trio.nodes[role]
        node.handle(e.Received(WELCOME))
        node.handle(e.Received(configure(experiment_mode=False)))
        again = m.Distil(block=0, rounds=[r + 1000 for r in ROUNDS], timeout_s=60.0)
        assert "block 0 was begun before" in told(node, again)
    other = Trio(experiment_mode=False)  # another process with the same secret, which no two have
    assert other.nodes["alice"].seed in seeds  # so it would choose alike, had it not chosen once more
    other.distil()
    other.amplify(other.attack())
    assert all(a != b for a, b in zip(first, secrets_of(other), strict=True))


def test_block_numbers_rise_within_a_run_and_are_remembered_across_runs() -> None:
    numbers = orders.BlockNumbers(most=3)
    assert numbers.take("a", 5) is None
    assert "accepted from 6" in str(numbers.take("a", 5))
    assert numbers.take("b", 0) is None
    assert "begun before" in str(numbers.take("a", 0))
    numbers.known("c", 7)  # from the folder of an earlier process
    assert "accepted from 8" in str(numbers.take("c", 7))
    for n in range(1000):
        numbers.take(f"r{n}", 0)
    assert len(numbers._highest) == 3


def test_what_the_peer_says_too_early_is_kept_up_to_a_limit() -> None:
    """Bob's node may say a block's first messages before Alice's is ordered to begin it; no more of them are kept."""
    node = NodeState("alice", 1)
    node.handle(e.Received(WELCOME))
    node.handle(e.Received(configure()))
    for n in range(20 * key_maker.MAX_EARLY):
        said = PublicMessage(kind="x", body={"n": n, "more": bytes(1000)})
        assert node.handle(e.Discussed(m.PublicEnvelope("r", n, "agree", -1, "bob", said))) == []
    assert len(node.key_maker._early) == key_maker.MAX_EARLY
    assert node.key_maker.dropped == 19 * key_maker.MAX_EARLY


LAB = """
schema = 1
name = "mine"
curve = CURVE
[node.alice]
role = "alice"
driver = "sim"
host = "HOST"
[node.alice.floors]
FLOORS
[node.bob]
role = "bob"
driver = "sim"
"""


def lab(tmp_path: Any, curve: str = "true", host: str = "127.0.0.1", text: str = "key_bits = 256") -> Lab:
    path = tmp_path / "lab.toml"
    path.write_text(LAB.replace("CURVE", curve).replace("HOST", host).replace("FLOORS", text))
    return config.load_lab(str(path))


def test_floors_stand_in_the_lab_file(tmp_path: Any) -> None:
    assert lab(tmp_path).node["alice"].floors == Floors(key_bits=256)
    assert lab(tmp_path).node["bob"].floors.key_bits == 128
    for wrong in ("key_bits = 0", "epsilon_log2 = 4", 'modes = ["any"]', "modes = []", "epsilon = 3"):
        with pytest.raises(InputError, match=r"\[node.alice.floors\]"):
            lab(tmp_path, text=wrong)


def test_links_without_authentication_are_for_one_machine_and_for_experiments(tmp_path: Any) -> None:
    plan = config.load_experiment("static_room")
    private = msgspec.structs.replace(plan, mode="private")
    for host in ("127.0.0.1", "127.0.1.1", "localhost"):
        place = lab(tmp_path, "false", host)
        config.check_mode(plan, place, "lab.toml")
        with pytest.raises(InputError, match=r"lab\.toml: key 'curve': false .* mode = 'private'"):
            config.check_mode(private, place, "lab.toml")
    config.check_mode(private, lab(tmp_path), "lab.toml")
    for host in ("0.0.0.0", "192.168.1.2", "*", "example.org", "127.0.0.1.example.org"):
        with pytest.raises(InputError, match=r"table \[node.alice\]: key 'host'"):
            lab(tmp_path, "false", host)


def test_what_a_local_node_would_refuse_is_refused_before_anything_starts(tmp_path: Any) -> None:
    from testbed.lab.run import check_world, plan_of

    plan, place = plan_of("mobile_room", rounds=20), lab(tmp_path)
    check_world(plan, place, "mine.toml")
    place.node["bob"].private = True
    with pytest.raises(InputError, match=r"mine.toml: table \[node.bob\]: key 'private': true"):
        check_world(plan, place, "mine.toml")
    plan.mode = "private"
    check_world(plan, place, "mine.toml")
    plan.accounting.epsilon_log2 = 10
    with pytest.raises(InputError, match=r"mine.toml: table \[node.alice.floors\]: accounting.epsilon_log2 = 10"):
        check_world(plan, place, "mine.toml")
    for node in place.node.values():
        node.local = False
    check_world(plan, place, "mine.toml")


@pytest.mark.parametrize("rounds", ["x", 0, 2.5])
def test_rounds_that_no_file_could_ask_for_are_refused_in_python_too(rounds: Any) -> None:
    from testbed.lab.run import plan_of

    with pytest.raises(InputError, match=r"key 'rounds'.*accepted: whole numbers from 1"):
        plan_of("mobile_room", rounds=rounds)
