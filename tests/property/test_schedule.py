import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.core.errors import InputError
from testbed.core.schedule import ROLES, Slot, parse

LETTERS = {role: letter for letter, role in ROLES.items()}


def render(slots):
    return " ".join(f"{LETTERS[s.tx]}>{''.join(LETTERS[r] for r in s.rx)}" for s in slots)


@st.composite
def schedules(draw):
    """Valid schedules: both directions once, in either order, with Eve listening and transmitting at will."""
    slots = []
    for tx, rx in (("alice", "bob"), ("bob", "alice")):
        receivers = [rx, "eve"] if draw(st.booleans()) else [rx]
        slots.append(Slot(tx, tuple(draw(st.permutations(receivers)))))
    slots += [Slot("eve", tuple(draw(st.permutations(["alice", "bob"])))) for _ in range(draw(st.integers(0, 2)))]
    slots += [Slot(draw(st.sampled_from(["alice", "bob"])), ("eve",)) for _ in range(draw(st.integers(0, 2)))]
    return tuple(draw(st.permutations(slots)))


@given(schedules())
def test_round_trip(slots):
    assert parse(render(slots)) == slots


@given(st.lists(st.text(alphabet="ABE>", min_size=1, max_size=4) | st.sampled_from(["A>B", "B>A", "A>BE"]), max_size=3))
def test_whatever_is_accepted_is_sound(tokens):
    try:
        slots = parse(" ".join(tokens))
    except InputError:
        return
    assert parse(render(slots)) == slots
    for slot in slots:
        assert {slot.tx, *slot.rx} <= set(ROLES.values())
        assert slot.rx
        assert len(set(slot.rx)) == len(slot.rx)
        assert slot.tx not in slot.rx
    for tx, rx in (("alice", "bob"), ("bob", "alice")):
        assert sum(s.tx == tx and rx in s.rx for s in slots) == 1


def test_the_default():
    assert parse("A>BE  B>AE") == (Slot("alice", ("bob", "eve")), Slot("bob", ("alice", "eve")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A>B B>AX", r"'B>AX': 'X' is no role"),
        ("A>B b>A", r"'b>A': 'b' is no role"),
        ("A>B BA", r"'BA': no '>'"),
        ("A>B B>A>E", r"'B>A>E': '>' is no role"),
        ("A>B AB>E", r"'AB>E': 2 transmitters"),
        ("A>B >A", r"'>A': 0 transmitters"),
        ("A>B B>", r"'B>': no receiver"),
        ("A>BB B>A", r"'A>BB': a receiver is named twice"),
        ("A>B B>AB", r"'B>AB': bob cannot receive"),
        ("A>B", r"alice receives bob 0 times per round; accepted: exactly once, one slot B>A"),
        ("A>B A>B B>A", r"bob receives alice 2 times"),
        ("", r"bob receives alice 0 times"),
    ],
)
def test_refusals_name_the_token(text, says):
    with pytest.raises(InputError, match=says):
        parse(text)
