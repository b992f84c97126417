"""Every event that a state test hands to a machine is followed by a check of all its invariants."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.coordinator.state import CoordinatorState
from testbed.nodes.state import NodeState

_MACHINES: tuple[type[Any], ...] = (CoordinatorState, NodeState)


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Check after every event; the list's one entry counts the checks."""
    count = [0]
    for machine in _MACHINES:
        handle = machine.handle

        def handle_and_check(self: Any, event: Any, handle: Any = handle) -> Any:
            out = handle(self, event)
            self.check()
            count[0] += 1
            return out

        monkeypatch.setattr(machine, "handle", handle_and_check)
    return count
