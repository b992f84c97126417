"""The two clocks."""

import pytest

from testbed.core.clock import VirtualClock, WallClock


def test_a_virtual_clock_moves_only_when_told_and_never_back():
    clock = VirtualClock(5.0)
    assert clock.now_s() == clock.now_s() == 5.0
    clock.advance(7.5)
    assert clock.now_s() == 7.5
    with pytest.raises(ValueError, match=r"7\.5 s cannot go back to 7\.0"):
        clock.advance(7.0)


def test_the_wall_clock_never_goes_back():
    clock = WallClock()
    readings = [clock.now_s() for _ in range(100)]
    assert readings == sorted(readings)
