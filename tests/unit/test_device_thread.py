"""The thread in which a node's device works: everything in its order, nothing lost, errors where they belong."""

from __future__ import annotations

import select
import threading

import pytest

from testbed.nodes.device_thread import DeviceThread


def test_work_is_done_in_its_order_and_what_came_of_it_can_be_taken() -> None:
    thread, gate, order = DeviceThread(), threading.Event(), []

    def first() -> str:
        gate.wait(20.0)
        order.append(1)
        return "one"

    def fails() -> None:
        order.append(2)
        raise ValueError("broken")

    thread.begin("a", first)
    thread.begin("b", fails)
    assert thread.take() == []
    gate.set()
    assert thread.do(lambda: order.append(3)) is None
    assert order == [1, 2, 3]
    assert select.select([thread.done], [], [], 20.0)[0]
    (a, one), (b, error) = thread.take()
    assert (a, one, b) == ("a", "one", "b")
    assert isinstance(error, ValueError)
    assert thread.take() == []
    thread.end(within_s=20.0)
    assert not thread.is_alive()


def test_who_waits_gets_the_error() -> None:
    thread = DeviceThread()

    def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        thread.do(fails)
    assert thread.do(lambda: 7) == 7
    thread.end(within_s=20.0)


def test_a_thread_that_never_worked_can_be_ended() -> None:
    DeviceThread().end(within_s=1.0)
