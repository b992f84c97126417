"""Two runs side by side: what did the change between them bring? Quotes summaries, adds ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both runs."""

    name: str
    unit: str
    ours: float | None
    baseline: float | None

    @property
    def ratio(self) -> float | None:
        """ours / baseline; None where either is missing or there is nothing to divide by."""
        return None if self.ours is None or not self.baseline else self.ours / self.baseline


def compare(summary: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[Row]:
    """Return the figures that say what a run was worth against a baseline run, from both runs' summary.json."""
    fields = [
        ("key bits", "", lambda s: s.get("key_bits")),
        ("keys verified", "", lambda s: s.get("keys_verified")),
        ("key rate", "bit/s", lambda s: s.get("key_rate_bps")),
        ("raw rate", "bit/s", lambda s: s.get("raw_rate_bps")),
        ("raw disagreement Alice–Bob", "", lambda s: s.get("kdr_raw")),
        ("rate of agreed information", "bit/s", agreed_rate_bps),
        ("CSI correlation Alice–Bob", "", lambda s: s.get("csi_correlation_ab")),
    ]
    return [Row(name, unit, value(summary), value(baseline)) for name, unit, value in fields]


def agreed_rate_bps(summary: Mapping[str, Any]) -> float | None:
    """Return the raw rate times 1 − h(disagreement): what ideal reconciliation of independent bits would leave.

    Unlike the raw rate it is not fooled by quantized noise, half of whose bits differ. None where either is unmeasured.
    """
    rate, p = summary.get("raw_rate_bps"), summary.get("kdr_raw")
    if rate is None or p is None:
        return None
    if p in (0.0, 1.0):
        return float(rate)
    return float(rate * (1.0 + p * math.log2(p) + (1.0 - p) * math.log2(1.0 - p)))


def differences(ours: Any, baseline: Any, above: str = "") -> list[str]:
    """Return the dotted keys in which two configurations (plain values) differ, titles aside."""
    if isinstance(ours, dict) and isinstance(baseline, dict):
        out = []
        for key in sorted({*ours, *baseline} - {"title"}):
            out += differences(ours.get(key), baseline.get(key), f"{above}.{key}" if above else key)
        return out
    return [] if ours == baseline else [above]
