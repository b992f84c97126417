from testbed.core.words import counted, did_you_mean, plainly


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


def test_a_long_list_of_numbers_is_told_by_its_count_and_range() -> None:
    assert plainly({"block": 0, "rounds": list(range(200))}) == "block: 0; rounds: 200, from 0 to 199"
    assert plainly({"a>b": {"rounds": [3, 9, 8, 1, 2, 5, 7], "cfo_hz": [1.5] * 7}}) == (
        "a>b: rounds 7, from 1 to 9, cfo_hz 7, from 1.5 to 1.5"
    )
    assert plainly({"rounds": [1, 2, 3]}) == "rounds: 1, 2, 3"
    assert plainly({"nodes": list("abcdefghi")}) == "nodes: a, b, c, d, e, f, g, h, i"


def test_a_name_that_is_nearly_a_known_one() -> None:
    assert did_you_mean("stic_room", ["mobile_room", "static_room"]) == "; did you mean 'static_room'?"
    assert did_you_mean("nothing_like_it", ["mobile_room", "static_room"]) == ""
