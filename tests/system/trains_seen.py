"""Which rounds the coordinator of this process has ordered together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from testbed.coordinator.round import Rounds
from testbed.records.recorded import RoundTable


class Trains:
    """Takes note of the trains of all runs from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[int, int] = {}
        """Round → the first round of its train."""
        order = Rounds.order

        def noted(rounds: Rounds, *args: Any, **more: Any) -> Any:
            r = order(rounds, *args, **more)
            self.of[r.number] = r.train
            return r

        monkeypatch.setattr(Rounds, "order", noted)

    def gaps_s(self, record: RoundTable) -> np.ndarray[Any, Any]:
        """Return the times from round to round within trains, on the timeline of the rounds."""
        numbers = record.rounds.tolist()
        inside = [self.of[a] == self.of[b] for a, b in pairwise(numbers)]
        return np.diff(record.t0_s)[inside]
