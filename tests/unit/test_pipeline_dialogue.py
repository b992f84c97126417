"""The code around dialogues: failures reach both sides, no side waits without limit, garbage never raises."""

import pytest

from testbed.chain.dialogue import Conversation, metered, run
from testbed.core.errors import DialogueFailed, ProtocolError
from testbed.core.ledger import Ledger, PublicMessage, Receive, Send


def message(kind, leaked=0, **body):
    return PublicMessage(kind=kind, body=body, leaked_bits=leaked)


def asks(question="q", answer="a"):
    yield Send(message(question, leaked=3))
    reply = yield Receive(answer)
    return reply.body["value"]


def answers(question="q", answer="a"):
    yield Receive(question)
    yield Send(message(answer, leaked=4, value=7))
    return "answered"


def fails(question="q"):
    yield Receive(question)
    raise DialogueFailed("no_way", "because")


def waits(kind):
    yield Receive(kind)


def test_run_returns_both_results_and_the_transcript():
    a, b, transcript = run(asks(), answers())
    assert (a, b) == (7, "answered")
    assert [(who, m.kind) for who, m in transcript] == [("alice", "q"), ("bob", "a")]


def test_both_waiting_is_an_error_not_a_hang():
    with pytest.raises(ProtocolError, match="Alice waits for 'x', Bob for 'y'"):
        run(waits("x"), waits("y"))


def test_a_failure_is_reported_to_the_peer():
    a, b = Conversation(asks()), Conversation(fails())
    b.advance()
    (told,) = b.advance(a.advance()[0])
    assert (told.kind, told.body["reason"]) == ("failed", "no_way")
    assert a.advance(told) == []  # the side that receives the failure does not send it back
    assert (a.done, a.failure.reason, a.failure.detail) == (True, "peer_failed", "no_way")
    with pytest.raises(DialogueFailed, match="no_way: because"):
        run(asks(), fails())


def test_wrong_kind_fails_both():
    a, b = Conversation(asks()), Conversation(answers(answer="other"))
    b.advance()
    (told,) = a.advance(b.advance(a.advance()[0])[0])
    assert a.failure.reason == "protocol"
    assert told.kind == "failed"
    assert b.done  # Bob had finished: what comes afterwards does not change his result
    assert b.advance(told) == []
    assert b.result == "answered"


@pytest.mark.parametrize(
    "garbage",
    [
        message("a"),  # no 'value'
        message("a", leaked=-1, value=1),
        message("z"),
        message("failed"),
        message("failed", reason=5),
        PublicMessage(kind="a", body=None),  # type: ignore[arg-type]
        PublicMessage(kind="failed", body=[1]),  # type: ignore[arg-type]
    ],
)
def test_garbage_becomes_a_failure(garbage):
    a = Conversation(asks())
    a.advance()
    a.advance(garbage)
    assert a.done
    assert a.failure.reason in ("protocol", "peer_failed")
    assert a.result is None


def test_a_bug_of_ones_own_is_not_blamed_on_the_peer():
    def broken():
        yield Send(message("q"))
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        Conversation(broken()).advance()


def test_ledger_and_transcript_hold_both_directions():
    a, b = Conversation(asks()), Conversation(answers())
    b.advance()
    a.advance(b.advance(a.advance()[0])[0])
    assert a.ledger == b.ledger
    assert a.ledger.leaked_bits == 7
    assert [side for side, _ in a.transcript] == ["own", "peer"]
    assert [m for _, m in a.transcript] == [m for _, m in b.transcript]


def test_a_message_that_comes_before_the_start_is_not_lost():
    b = Conversation(answers())
    assert [m.kind for m in b.advance(message("q"))] == ["a"]


def test_ended_from_outside():
    a = Conversation(asks())
    a.advance()
    (told,) = a.fail("timeout", "Bob is silent")
    assert told.body == {"reason": "timeout", "detail": "Bob is silent"}
    assert a.failure.reason == "timeout"
    assert a.fail("again") == []
    unstarted = Conversation(asks())
    assert [m.kind for m in unstarted.fail("lost")] == ["failed"]


def test_an_orderly_end_may_speak_last():
    def polite():
        try:
            yield Receive("x")
        except DialogueFailed as exc:
            yield Send(message("failed", reason="done here"))
            return exc.reason

    p = Conversation(polite())
    p.advance()
    assert [m.kind for m in p.advance(message("y"))] == ["failed"]
    assert (p.result, p.failure) == ("protocol", None)


def test_metered_counts_and_passes_failures_on():
    ledger = Ledger()
    a = Conversation(metered(asks(), ledger))
    a.advance()
    a.advance(message("a", leaked=4, value=1))
    assert (a.result, ledger.leaked_bits, ledger.messages) == (1, 7, 2)
    b = Conversation(metered(asks(), Ledger()))
    b.advance()
    b.advance(message("failed", reason="r"))
    assert b.failure.reason == "peer_failed"
