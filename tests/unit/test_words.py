from testbed.core.words import counted, plainly


def test_one_is_singular() -> None:
    assert counted(1, "block") == "1 block"
    assert [counted(n, "key follows", "keys follow") for n in (0, 1, 2000)] == [
        "0 keys follow", "1 key follows", "2,000 keys follow",
    ]  # fmt: skip


def test_events_are_shown_in_words() -> None:
    identity = {"driver": "sim", "clock_ppm": 1.23456789, "more": {"a": 1}, "nothing": None}
    assert plainly({"node": "bob", "identity": identity}) == (
        "bob; identity: driver sim, clock_ppm 1.23457, more (a 1)"
    )
    assert plainly({"nodes": ["alice", "bob"]}) == "nodes: alice, bob"
    assert plainly({"alice": {"low_snr": 1}}) == "alice: low_snr 1"
    assert plainly({"detail": "why", "rounds": 0, "left": {}}) == "why; rounds: 0"
